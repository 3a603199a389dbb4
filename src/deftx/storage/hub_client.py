"""The Hugging Face hub: which texts are its ids, fetching from it, and what its failures mean to a
user.

Everything goes through `huggingface_hub`, so its settings hold: HF_TOKEN or `hf auth login`,
HF_HOME, HF_HUB_OFFLINE, HF_ENDPOINT. What is in its cache is used where the hub cannot be reached.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from deftx.errors import DeftxError
from deftx.storage.manifest import FILE

_VECTOR_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./+-]+)?", re.ASCII)
_MODEL_ID = re.compile(
    r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?(@[\w./+-]+)?", re.ASCII
)  # old models have no user
FORM = "USER/NAME or USER/NAME@REVISION"
LIBRARY = "deftx"  # how the hub knows us
_LOGIN = "log in with `hf auth login` or set HF_TOKEN"


def is_vector_id(text: str) -> bool:
    """Whether `text` has the form of a vector's hub id, USER/NAME or USER/NAME@REVISION. A path may
    have it too."""
    return _VECTOR_ID.fullmatch(text) is not None


def is_model_id(text: str) -> bool:
    """Whether `text` has the form of a hub id of any kind, with or without a revision. A path may
    have it too."""
    return _MODEL_ID.fullmatch(text) is not None


def fetch(vector_id: str, files: Sequence[str], *, anew: bool = False) -> Path:
    """As `snapshot`, of a vector.

    Raises:
        DeftxError: What is there is no vector; and as `snapshot` does.
    """
    folder = snapshot(vector_id, files, anew=anew)
    if not os.path.isfile(folder / FILE):
        raise DeftxError(f"{vector_id} on the hub: it is not a vector, for it has no {FILE}")
    return folder


def snapshot(hub_id: str, files: Sequence[str], *, anew: bool = False) -> Path:
    """The folder, in the hub's cache, with files that the hub has. They have not been checked.

    Args:
        hub_id: `ID[@REVISION]`.
        files: Their names, or patterns of names.
        anew: Whether they are fetched although they are in the cache.

    Raises:
        DeftxError: There is nothing of that name, or it cannot be fetched.
    """
    from huggingface_hub import snapshot_download

    repo, _, revision = hub_id.partition("@")
    with plain_errors(f"{hub_id} on the hub", repo, revision):
        folder = snapshot_download(
            repo,
            revision=revision or None,
            allow_patterns=list(files),
            force_download=anew,
            library_name=LIBRARY,
            library_version=version("deftx"),
        )
    return Path(folder)


@contextmanager
def plain_errors(what: str, repo: str, revision: str | None = None) -> Iterator[None]:
    """Within the block, the hub's failures are DeftxErrors: one line that begins with `what` and
    says what to do."""
    from huggingface_hub.errors import HfHubHTTPError

    # the bases are the error of the HTTP library, whichever the client is built on, and OSError
    failures: tuple[type[BaseException], ...] = (
        *HfHubHTTPError.__bases__,
        ValueError,
        RuntimeError,
    )
    try:
        yield
    except DeftxError:
        raise
    except failures as error:
        raise DeftxError(f"{what}: {_reason(error, repo, revision)}") from error


def _reason(error: BaseException | None, repo: str, revision: str | None) -> str:
    """What is wrong and what to do about it."""
    from huggingface_hub import constants, errors

    place = f"{constants.ENDPOINT}/{repo}"
    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__:
        return f"{_reason(error.__cause__, repo, revision)}; it is not in the cache either"
    if isinstance(error, RuntimeError) and error.__cause__:  # which says no more than at which file
        return _reason(error.__cause__, repo, revision)
    reasons: dict[type[BaseException], str] = {  # the first that fits
        errors.GatedRepoError: (
            f"its owner decides who may have it: ask for access at {place}, then {_LOGIN}"
        ),
        errors.RevisionNotFoundError: (
            f"it has no branch, tag or commit {revision!r}: see {place}/commits/main"
        ),
        errors.RepositoryNotFoundError: (
            f"there is no such repository, or it is private: check the name, or {_LOGIN}"
        ),
        errors.OfflineModeIsEnabled: "offline mode is on: unset HF_HUB_OFFLINE to reach the hub",
        errors.HFValidationError: f"that is not a name that the hub allows: write {FORM}",
    }
    for kind, reason in reasons.items():
        if isinstance(error, kind):
            return reason
    if isinstance(error, errors.HfHubHTTPError):
        return _status(error.response.status_code, _line(error.server_message or error))
    if isinstance(error, OSError) and error.errno:
        return (
            f"{_line(error)}: check the disk, its free space and the permissions of "
            f"{constants.HF_HUB_CACHE}"
        )
    if isinstance(error, ValueError | RuntimeError):
        return _line(error)
    return (
        f"{_line(error) or type(error).__name__}: check the connection to {constants.ENDPOINT}, "
        "and try again"
    )


def _status(code: int, message: str) -> str:
    """What an answer of the hub means."""
    if code == 401:
        return f"the hub does not know who you are, or your token is no longer valid: {_LOGIN}"
    if code == 403:
        return (
            "your token does not allow it: check the user's name, and that the token may write "
            "there"
        )
    later = "try again later" if code >= 500 or code == 429 else "see https://status.huggingface.co"
    return f"the hub answered {code} ({message}): {later}"


def _line(error: Any) -> str:
    """The first 200 characters of a message, on one line."""
    return " ".join(str(error).split())[:200].rstrip(" .:")
