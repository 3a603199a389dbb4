"""What vectors are checked for before they are used together."""

from collections.abc import Iterable, Mapping
from typing import Any

from deftx.core.vector import SparseVector, check_vectors
from deftx.errors import DeftxError


def as_list(vectors: SparseVector | Iterable[SparseVector]) -> list[SparseVector]:
    """One vector or several, as a list.

    Raises:
        DeftxError: What is given is neither, such as the name of a vector, or vectors by name.
    """
    if isinstance(vectors, Mapping):
        what = "vectors by name are given where one vector or a list is wanted"
        raise DeftxError(f"{what}: for many languages on one base use deftx.Switcher")
    result: list[Any] = [vectors]
    is_one = isinstance(vectors, SparseVector | str)
    if not is_one and isinstance(vectors, Iterable):
        result = list(vectors)
    check_vectors(*result)
    return result


def check_same_tokenizer(*vectors: SparseVector) -> None:
    """Check that all vectors that record their tokenizer record the same one.

    Raises:
        DeftxError: Two record different ones.
    """
    names: dict[str, str] = {}
    for vector in vectors:
        tokenizer = vector.provenance.tokenizer
        if tokenizer is not None and tokenizer.digest is not None:
            names[tokenizer.digest] = str(tokenizer.name)
    if len(names) > 1:
        listing = ", ".join(f"{name} ({digest[:12]})" for digest, name in names.items())
        raise DeftxError(f"vectors made with different tokenizers do not combine: {listing}")


def check_language(*vectors: SparseVector) -> None:
    """Check that all are language vectors.

    Raises:
        DeftxError: One is a task vector, known by its head, or no vector.
    """
    check_vectors(*vectors)
    for number, vector in enumerate(vectors, 1):
        if vector.head is None:
            continue
        which = "the vector"
        if len(vectors) > 1:
            which = f"vector {number} of {len(vectors)}"
        labels = ", ".join(vector.head.labels)
        what = f"{which} given as a language is a task vector, for {labels}"
        raise DeftxError(f"{what}: give one that `deftx fit language` made")


def check_distinct(*vectors: SparseVector) -> None:
    """Check that no vector comes twice: its changes would be made twice.

    Raises:
        DeftxError: One does.
    """
    for number, second in enumerate(vectors):
        for earlier, first in enumerate(vectors[:number]):
            is_same = first is second
            if not is_same and first.k > 0:
                is_same = first.equal_entries(second)
            if is_same:
                what = f"vectors {earlier + 1} and {number + 1} of {len(vectors)} are the same"
                fix = "give each once (to weigh one more, scale it in Python: 2 * vector)"
                raise DeftxError(f"{what}: {fix}")
