"""Several vectors to the hub at once, each in a repository of its own, and a page that lists them.

The hub calls such a page a collection (https://huggingface.co/docs/hub/collections).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from deftx.errors import DeftxError
from deftx.hub.model_card import About
from deftx.hub.share import push_described
from deftx.storage.hub_client import LIBRARY, plain_errors

LONGEST_TITLE = 59  # characters, by the hub
LONGEST_NOTE = 500
LONGEST_DESCRIPTION = 150


@dataclass(frozen=True)
class CollectionItem:
    """One vector of a collection.

    Attributes:
        vector: Its folder.
        repo: The repository that it goes to, USER/NAME.
        about: For its model card.
        note: What the collection's page says of it.
    """

    vector: Path
    repo: str
    about: About
    note: str


@dataclass(frozen=True)
class PushedCollection:
    """What is on the hub.

    Attributes:
        url: The page that lists the vectors.
        vectors: USER/NAME@COMMIT of each, which `load` takes.
    """

    url: str
    vectors: list[str]


def push_collection(
    items: Sequence[CollectionItem],
    title: str,
    *,
    description: str = "",
    private: bool = False,
    said: Callable[[str], None] = lambda line: None,
) -> PushedCollection:
    """Put vectors on the hub, and list them in a collection of their owner.

    What is there already and equal is left as it is, so that a push that was stopped goes on when
    it is typed again, and a further vector is added to those of an earlier push.

    Args:
        items: The vectors; all repositories are of one owner.
        title: Of the collection. A collection of the owner that has this title is added to.
        description: A sentence for its page.
        private: Make repositories and collection private.
        said: Called with a line for each vector that is done.

    Raises:
        DeftxError: Whatever keeps a vector or the collection from being pushed, in one line. What
            was pushed before it stays on the hub.
    """
    from huggingface_hub import HfApi

    owner = _owner(items)
    if not 0 < len(title) <= LONGEST_TITLE:
        allowed = f"the hub allows 1 to {LONGEST_TITLE} characters"
        raise DeftxError(f"title {title!r} has {len(title)}: {allowed}; shorten it with --title")

    # The vectors first: the page lists nothing that is not there.
    pinned = []
    for item in items:
        vector_id = push_described(item.vector, item.repo, item.about, private=private)
        said(vector_id)
        pinned.append(vector_id)

    # Then the page
    api = HfApi(library_name=LIBRARY, library_version=version("deftx"))
    with plain_errors(f"the vectors are on the hub, but not their collection {title!r}", owner):
        collection = api.create_collection(
            title,
            namespace=owner,
            description=description[:LONGEST_DESCRIPTION],
            private=private,
            exists_ok=True,
        )
        for item in items:
            api.add_collection_item(
                collection.slug,
                item.repo,
                "model",
                note=item.note[:LONGEST_NOTE],
                exists_ok=True,
            )
    return PushedCollection(collection.url, pinned)


def _owner(items: Sequence[CollectionItem]) -> str:
    """Whose repositories they are: one user, or one organisation."""
    owners = sorted({item.repo.partition("/")[0] for item in items})
    if len(owners) != 1:
        raise DeftxError(
            f"the vectors of a collection have one owner, and these have {', '.join(owners) or 0}"
        )
    return owners[0]
