"""Examples of a task and plain text, column by column, from any source that `deftx.data.tables` can
open."""

import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Container, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from itertools import chain
from math import isfinite, nan
from pathlib import Path
from typing import Any, TypeVar

import torch

from deftx.config import Config
from deftx.data.tables import Table, open_source
from deftx.data.unicode_forms import canonical, caseless
from deftx.errors import DeftxError, did_you_mean

NLI = {"premise", "hypothesis"}
HELD_OUT_SHARE = 0.1  # of labelled data, where no validation data are given
MAX_CAPITALS_SHARE = 0.01  # of texts with a capital, where they count as lower-case text
T = TypeVar("T")
# What a cell holds: (its place in words, the name of its column, its content)
Cell = Callable[[str, str, object], T]


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


def capitals(texts: Sequence[str]) -> bool:
    """Whether more than a few of the texts have a capital."""
    with_capital = sum(text != text.lower() for text in texts)
    return with_capital > MAX_CAPITALS_SHARE * len(texts)


def lower_case(texts: Sequence[str]) -> bool:
    """Whether hardly any of the texts has a capital, though their letters have two cases."""
    cased = [text for text in texts if text.lower() != text.upper()]
    return bool(cased) and not capitals(cased)


def held_out(
    examples: Examples, share: float, seed: int, *, named: bool
) -> tuple[Examples, Examples]:
    """Split examples at random into those to train on and those held out.

    Texts that occur twice are trained on, so that none is on both sides.

    Args:
        examples: What is split.
        share: How much is held out, 0 to 1; one example at least.
        seed: Which examples are drawn.
        named: Whether labels are names. Each of them stays among the examples to train on.

    Returns:
        The examples to train on, and those held out, each in their order.

    Raises:
        DeftxError: Nothing can be held out.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(examples), generator=generator).tolist()
    wanted = max(1, round(share * len(examples)))

    texts = [(canonical(text), canonical(pair)) for text, pair in text_pairs(examples)]
    occurrences = Counter(texts)
    # How often each label occurs in each example, and among those that are trained on
    label_counts: list[Counter[str]] = [Counter() for _ in texts]
    if named:
        label_counts = [Counter(_listed(label)) for label in examples.labels or []]
    remaining = sum(label_counts, Counter[str]())

    rows: set[int] = set()
    for row in order:
        if len(rows) == wanted:
            break
        is_unique = occurrences[texts[row]] == 1
        own_labels = label_counts[row]
        if is_unique and all(remaining[name] > count for name, count in own_labels.items()):
            rows.add(row)
            remaining -= own_labels
    if not rows or len(rows) == len(examples):
        raise DeftxError(
            f"of {len(examples)} example(s) none can be held out, since every label, and what "
            "occurs twice, has to stay: give validation data (--valid)"
        )
    trained = [row for row in range(len(examples)) if row not in rows]
    return examples.at(trained), examples.at(sorted(rows))


def _listed(label: Any) -> list[str]:
    """The names in a label: itself, or the tags of its words, or the relations of their arcs."""
    if isinstance(label, str):
        return [label]
    names = []
    for item in label:
        names.append(item if isinstance(item, str) else item[-1])
    return names


def check_labels(source: str, examples: Examples, names: Sequence[str]) -> None:
    """Check that all labels are in `names`.

    Raises:
        DeftxError: A label is not.
    """
    for number, label in enumerate(examples.labels or [], 1):
        for name in _listed(label):
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


def joined(parts: Sequence[Examples]) -> Examples:
    """The examples of all parts, one after the other; without a column that one of them lacks."""
    whole: dict[str, Any] = {}
    for column in fields(Examples):
        columns = [getattr(part, column.name) for part in parts]
        is_missing = any(values is None for values in columns)
        whole[column.name] = None if is_missing else list(chain.from_iterable(columns))
    return Examples(**whole)


def read_text(*sources: str | Path, column: str = "text") -> list[str]:
    """Read plain text.

    Args:
        *sources: Files, or `hub:NAME[@REVISION][:CONFIG][:SPLIT]`. In plain text every line is a
            text.
        column: The column that holds the texts in sources that have columns.

    Returns:
        The texts of all sources, one after the other, without surrounding white space and without
        empty ones.

    Raises:
        DeftxError: A source cannot be read or holds no text.
    """
    texts = []
    for source in sources:
        table = open_source(source)
        text_column = "text" if table.plain else column
        texts += usable(table.source, cells(table, text_column, text))
    return texts


def read_pairs(source: str | Path, columns: Columns, label: Cell[Any] | None) -> Examples:
    """Read texts, or pairs of texts, and their labels.

    Where there is no column `text`, and no other one is asked for, texts are `premise` and
    `hypothesis`.

    Args:
        source: A file or `hub:NAME[@REVISION][:CONFIG][:SPLIT]`.
        columns: The names of the columns.
        label: Reads a label; None: labels are not read.
    """
    table = open_source(source)
    are_usual = columns == Columns(label=columns.label)
    if are_usual and "text" not in table.names and NLI.issubset(table.names):
        columns = replace(columns, text="premise", pair="hypothesis")
    texts = cells(table, columns.text, text)
    labels = None
    if label:
        labels = cells(table, columns.label, label)
        _check_no_header(table, columns, texts, labels)
        if label is name:
            warn_of_odd_labels(table, columns, labels)
    pairs = None
    if columns.pair:
        pairs = cells(table, columns.pair, text)
    return Examples(texts, pairs, labels)


def _check_no_header(
    table: Table, columns: Columns, texts: Sequence[str], labels: Sequence[Any]
) -> None:
    """Check that the names of the columns do not come again as a row, as in concatenated files.

    Raises:
        DeftxError: They do.
    """
    places = table.values(columns.text)
    for (place, _), example, label in zip(places, texts, labels, strict=True):
        is_text_header = example.strip().lower() == columns.text.lower()
        if is_text_header and str(label).lower() == columns.label.lower():
            raise DeftxError(
                f"{place}: {example!r} {label!r} are the names of the columns again: "
                "remove this line"
            )


# Values that often stand for a missing label
NO_LABELS = {
    "-",
    "--",
    "-1",
    "?",
    "n/a",
    "na",
    "nan",
    "none",
    "null",
    "<na>",
    "#n/a",
    "unk",
    "unlabeled",
    "unlabelled",
}
QUOTES = "\"'`“”„‘’«»"
MAX_LABEL_WARNINGS = 5
SEPARATORS = re.compile(r"\s*[,;|/+]\s*")


def warn_of_odd_labels(table: Table, columns: Columns, labels: Sequence[str]) -> None:
    """Warn, with the line, of labels that are hardly meant as such: each of them would be learnt as
    a class."""
    first_rows: dict[str, int] = {}
    for row, label in enumerate(labels):
        first_rows.setdefault(label, row)
    places = [place for place, _ in table.values(columns.label)]
    by_form: dict[str, str] = {}
    warned = 0
    for label, row in first_rows.items():
        twin = by_form.setdefault(_label_form(label), label)
        reason = _odd_label(label, twin, first_rows)
        if reason and warned < MAX_LABEL_WARNINGS:
            warned += 1
            what = f"{places[row]}: the label {label!r:.60} {reason}"
            warnings.warn(
                f"{what}, and is a class of its own so: correct it, or remove the row", stacklevel=2
            )


def _odd_label(label: str, twin: str, labels: Container[str]) -> str:
    """What is odd about a label; "" where nothing is.

    Args:
        label: The label.
        twin: The first label that differs only by how it is written.
        labels: All labels.
    """
    if label.lower() in NO_LABELS:
        return "often stands for none"
    if label[0] in QUOTES or label[-1] in QUOTES:
        return "has quotes about it"
    if twin != label:
        return f"differs from {twin!r:.60} by its writing alone"
    parts = SEPARATORS.split(label)
    if len(parts) > 1 and all(part in labels for part in parts):
        return "holds several labels"
    return ""


def _label_form(label: str) -> str:
    """One form of all labels that differ by case, Unicode's forms, white space, or a decimal part
    of 0."""
    return re.sub(r"\.0+$", "", " ".join(caseless(label).split()))


def cells(table: Table, column: str, read: Cell[T]) -> list[T]:
    """All cells of a column."""
    return [read(place, column, value) for place, value in table.values(column)]


def text(place: str, column: str, value: object) -> str:
    """A text, which may be empty: some writers turn an empty one into null."""
    if not isinstance(value, str | None):
        raise DeftxError(
            f"{place}: {column!r} is a {type(value).__name__}, not text: choose a column of text"
        )
    return value or ""


def name(place: str, column: str, value: object) -> str:
    """The name of a label, which may not be empty; integers and hub class labels become text."""
    # pandas makes floats of a column of integers in which one is missing
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str | int | None):
        raise DeftxError(
            f"{place}: label {value!r:.40} is neither text nor an integer: write it as one"
        )
    label = "" if value is None else str(value).strip()
    if not label:
        raise DeftxError(f"{place}: the label in {column!r} is empty: fill it in or remove the row")
    return label


def names(place: str, column: str, value: object) -> list[str]:
    """A list of names, at least one."""
    if not isinstance(value, list) or not value:
        raise DeftxError(
            f"{place}: {column!r} is {value!r:.40}, not a list: "
            "write .jsonl with a list in each line"
        )
    return [name(place, column, item) for item in value]


def number(place: str, column: str, value: object) -> float:
    """A finite number."""
    parsed = nan
    if isinstance(value, str | int | float):
        with suppress(ValueError, OverflowError):
            parsed = float(value)
    if not isfinite(parsed):
        raise DeftxError(
            f"{place}: {value!r:.40} in {column!r} is not a number: correct it or remove the row"
        )
    return parsed


def usable(source: str, texts: Sequence[str]) -> list[str]:
    """Texts without surrounding white space and without empty ones.

    Raises:
        DeftxError: None is left.
    """
    kept = [text.strip() for text in texts if text.strip()]
    if not kept:
        raise DeftxError(f"{source} has no usable line: it needs at least one that is not blank")
    return kept
