"""Vectors to the hub and from it: `push` and `pull`."""

import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from deftx.core.vector import SparseVector
from deftx.errors import DeftxError
from deftx.hub.model_card import About, model_card
from deftx.hub.privacy import published
from deftx.storage.atomic_files import check_target
from deftx.storage.hub_client import FORM, LIBRARY, is_vector_id, plain_errors
from deftx.storage.vector_files import HEAD, load, load_from_hub, save

CARD = "README.md"


def push(
    vector: SparseVector | str | os.PathLike[str],
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    base: str | None = None,
    languages: Sequence[str] = (),
    datasets: Sequence[str] = (),
    license: str | None = None,
) -> str:
    """Put a vector into a repository of the hub, with a model card, all files in one commit.

    Paths on your disk are left out of what is pushed (`privacy.published`).

    Args:
        vector: A vector or its folder; a README.md in the folder is pushed as it is, in place of
            the model card.
        repo: The repository, USER/NAME; it is made where it is missing.
        private: Make the repository private.
        revision: The branch to push to, made where it is missing; the main one by default.
        message: The message of the commit.
        base: For the model card, as are the parameters after it: see `model_card.About`.
        languages: ISO 639 codes.
        datasets: Hub ids of the training data.
        license: The hub's name of a licence.

    Returns:
        USER/NAME@COMMIT, which `load` takes.

    Raises:
        DeftxError: Whatever keeps the vector from being pushed, in one line.
    """
    about = About(base, languages, datasets, license)
    return push_described(vector, repo, about, private=private, revision=revision, message=message)


def push_described(
    vector: SparseVector | str | os.PathLike[str],
    repo: str,
    about: About,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
) -> str:
    """As `push`, with what the model card says in one."""
    if not is_vector_id(repo) or "@" in repo:
        raise DeftxError(
            f"{repo!r} is no place to push to: write USER/NAME, and a branch with --revision"
        )
    own_card = None
    if not isinstance(vector, SparseVector):
        own_card = _own_card(Path(vector), about)
        vector = load(vector)
    if message is None:
        kind = vector.provenance.kind or "Sparse"
        message = f"{kind} vector (deftx {version('deftx')})".capitalize()
    card = own_card or model_card(vector, repo, about)

    with TemporaryDirectory() as parent:
        folder = Path(parent) / "vector"
        save(published(vector, about.base), folder)
        (folder / CARD).write_text(card, encoding="utf-8")
        with plain_errors(f"cannot push to {repo}", repo, revision):
            return _commit(folder, repo, private, revision, message)


def pull(vector_id: str, out: str | os.PathLike[str], *, force: bool = False) -> SparseVector:
    """Save a vector of the hub as a folder, whole or not at all.

    Args:
        vector_id: USER/NAME or USER/NAME@REVISION.
        out: The folder to write.
        force: Replace the vector at `out`.

    Raises:
        DeftxError: It is no id, or `load` or `save` refuses it.
    """
    if not is_vector_id(vector_id):
        raise DeftxError(f"{vector_id!r} is no vector on the hub: write {FORM}")
    check_target(out, force=force)
    vector = load_from_hub(vector_id)
    save(vector, out, force=force)
    return vector


def _own_card(folder: Path, about: About) -> str | None:
    """The text of the folder's own README.md, if it has one."""
    if not (folder / CARD).is_file():
        return None
    if about != About(about.base):
        raise DeftxError(
            f"{folder / CARD} is pushed as it is: say languages, datasets and licence there, or "
            "remove it"
        )
    try:
        return (folder / CARD).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DeftxError(f"{folder / CARD} cannot be read as UTF-8 text: {error}") from error


def _commit(folder: Path, repo: str, private: bool, revision: str | None, message: str) -> str:
    """Make what is missing on the hub, and commit the files in `folder`: USER/NAME@COMMIT."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(library_name=LIBRARY, library_version=version("deftx"))
    api.create_repo(repo, private=private or None, exist_ok=True)
    if private and not api.model_info(repo).private:
        raise DeftxError(
            f"{repo} is there already and public: make it private on the hub, or choose another "
            "name"
        )
    if revision is not None:
        api.create_branch(repo, branch=revision, exist_ok=True)
    names = sorted(os.listdir(folder))
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in names
    ]
    if HEAD not in names and api.file_exists(repo, HEAD, revision=revision):
        # the head of a vector that was there before
        operations.append(CommitOperationDelete(path_in_repo=HEAD))
    commit = api.create_commit(repo, operations, commit_message=message, revision=revision)
    return f"{repo}@{commit.oid}"
