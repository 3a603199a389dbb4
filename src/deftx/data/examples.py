"""Examples of a task, column by column, and the names of their columns."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import Any

from deftx.config import Config
from deftx.errors import DeftxError, did_you_mean


@dataclass(frozen=True)
class Columns:
    """The names of columns.

    Attributes:
        text: The text.
        pair: The second input: a text pair, a context, or options. None: there is none.
        label: The label.
    """

    text: str = "text"
    pair: str | None = None
    label: str = "label"


class ColumnNames(Config):
    """The names of columns that a user gave; None: the task's usual one."""

    text: str | None = None
    pair: str | None = None
    label: str | None = None

    def over(self, usual: Columns) -> Columns:
        """The usual columns of a task, except for those that were named."""
        return replace(usual, **self.model_dump(exclude_none=True))


@dataclass(frozen=True)
class Examples:
    """Examples, column by column, in the order of their source.

    Attributes:
        texts: What is labelled.
        pairs: Second texts, such as hypotheses, or the contexts of questions.
        labels: What is predicted: names, lists of tags, numbers, or answers.
        parts: The words of each text, which are read instead of it, or the options of each
            question.

    Raises:
        DeftxError: The columns differ in length.
    """

    texts: list[str]
    pairs: list[str] | None = None
    labels: list[Any] | None = None
    parts: list[list[str]] | None = None

    def __post_init__(self) -> None:
        check_read(self.texts, "read_examples")
        for name, column in self._columns().items():
            if column is not None and len(column) != len(self.texts):
                raise DeftxError(
                    f"there are {len(self.texts)} texts and {len(column)} {name}: give one for each"
                )

    def __len__(self) -> int:
        return len(self.texts)

    def at(self, rows: Sequence[int]) -> "Examples":
        """The examples with these numbers, counted from 0."""
        selected: dict[str, Any] = {}
        for name, column in self._columns().items():
            selected[name] = None if column is None else [column[row] for row in rows]
        return Examples(**selected)

    def _columns(self) -> dict[str, list[Any] | None]:
        return {column.name: getattr(self, column.name) for column in fields(self)}


def check_read(data: object, reader: str) -> None:
    """Check that data is not the name of a file, or a single text, where a list is wanted.

    Args:
        data: What the user gave.
        reader: The function of `deftx` that reads such data from a file.

    Raises:
        DeftxError: It is.
    """
    if isinstance(data, str | os.PathLike):
        name = os.fspath(data)
        fix = f"put it in one, or read the file of that name with deftx.{reader}"
        raise DeftxError(f"{name!r:.80} is one text, where a list is wanted: {fix}")


def check_examples(data: object) -> None:
    """Check that data are Examples, not a list of texts.

    Raises:
        DeftxError: They are not.
    """
    check_read(data, "read_examples")
    if not isinstance(data, Examples):
        fix = "give deftx.Examples(texts, labels=labels), or what deftx.read_examples reads"
        raise DeftxError(f"a {type(data).__name__} is given where examples are wanted: {fix}")


def written(examples: Examples) -> list[str]:
    """All texts in examples: texts, pairs and parts."""
    pairs = examples.pairs or []
    parts = chain.from_iterable(examples.parts or [])
    return [*examples.texts, *pairs, *parts]


def text_pairs(examples: Examples) -> list[tuple[str, str]]:
    """Each text with its second one, which is the text itself where there are no pairs."""
    return list(zip(examples.texts, examples.pairs or examples.texts, strict=True))


def joined(parts: Sequence[Examples]) -> Examples:
    """The examples of all parts, one after the other; without a column that one of them lacks."""
    whole: dict[str, Any] = {}
    for column in fields(Examples):
        columns = [getattr(part, column.name) for part in parts]
        is_missing = any(values is None for values in columns)
        whole[column.name] = None if is_missing else list(chain.from_iterable(columns))
    return Examples(**whole)


def names_in_label(label: Any) -> list[str]:
    """The names in a label: itself, or the tags of its words, or the relations of their arcs."""
    if isinstance(label, str):
        return [label]
    names = []
    for item in label:
        if isinstance(item, str):
            names.append(item)
        else:
            names.append(item[-1])  # the relation of an arc
    return names


def check_labels(source: str, examples: Examples, names: Sequence[str]) -> None:
    """Check that all labels are in `names`.

    Raises:
        DeftxError: A label is not.
    """
    for number, label in enumerate(examples.labels or [], 1):
        for name in names_in_label(label):
            if name not in names:
                raise DeftxError(
                    f"{source}, example {number}: label {name!r:.40} is not among those learnt"
                    f"{did_you_mean(name, names)}: {', '.join(names)}"
                )


def check_pairs(learnt: bool | None, examples: Examples) -> None:
    """Check that a task that was learnt from pairs of texts gets pairs, and no other task does.

    Args:
        learnt: Whether the task was learnt from pairs; None: it is not recorded.
        examples: What the task is used on.

    Raises:
        DeftxError: It is not so.
    """
    if learnt is None or learnt == (examples.pairs is not None):
        return
    if learnt:
        raise DeftxError(
            "the task was learnt from pairs of texts, and these are single ones: "
            "give the second texts too (--pair-column, or `pairs`)"
        )
    raise DeftxError(
        "the task was learnt from single texts, and these are pairs: leave the second texts out"
    )
