"""Examples of a task and plain text, column by column, from any source that `deftx.data.tables` can
open."""

import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Container, Sequence
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
FEW = 0.01  # of texts that are taken to be in lower case: those with a capital
T = TypeVar("T")
Cell = Callable[
    [str, str, object], T
]  # what a cell holds, by its place in words, its column and its content


@dataclass(frozen=True)
class Columns:
    """Names of the columns that hold the text, what stands beside it (None: nothing) and the label.

    What stands beside a text is a second one, the context of a question, or its options.
    """

    text: str = "text"
    pair: str | None = None
    label: str = "label"


class ColumnNames(Config):
    """The columns that somebody named; None: the usual one of the task."""

    text: str | None = None
    pair: str | None = None
    label: str | None = None

    def over(self, usual: Columns) -> Columns:
        """The usual columns of a task, but for those that were named."""
        return replace(usual, **self.model_dump(exclude_none=True))


@dataclass(frozen=True)
class Examples:
    """Examples, column by column, in the order of their source.

    texts   what is to be labelled
    pairs   second texts, such as hypotheses, or the contexts of questions
    labels  what the task says: names, tags, numbers, answers
    parts   what a text is made of or may be answered with: its words, which are then read in its
            place, or its options
    """

    texts: list[str]
    pairs: list[str] | None = None
    labels: list[Any] | None = None
    parts: list[list[str]] | None = None

    def __post_init__(self) -> None:
        check_read(self.texts, "read_examples")
        for each in fields(self):
            column = getattr(self, each.name)
            if column is not None and len(column) != len(self.texts):
                raise DeftxError(
                    f"there are {len(self.texts)} texts and {len(column)} {each.name}: give one for each"
                )

    def __len__(self) -> int:
        return len(self.texts)

    def at(self, rows: Sequence[int]) -> "Examples":
        """The examples with these numbers, counted from 0."""
        columns = {each.name: getattr(self, each.name) for each in fields(self)}
        return Examples(
            **{name: column and [column[row] for row in rows] for name, column in columns.items()}
        )


def check_read(data: object, reader: str) -> None:
    """Raise DeftxError for the name of a file, or a text, where a list is wanted, such as
    `deftx.READER` gives."""
    if isinstance(data, str | os.PathLike):
        name = os.fspath(data)
        fix = f"put it in one, or read the file of that name with deftx.{reader}"
        raise DeftxError(f"{name!r:.80} is one text, where a list is wanted: {fix}")


def check_examples(data: object) -> None:
    """Raise DeftxError for what are no Examples, such as a list of texts."""
    check_read(data, "read_examples")
    if not isinstance(data, Examples):
        fix = "give deftx.Examples(texts, labels=labels), or what deftx.read_examples reads"
        raise DeftxError(f"a {type(data).__name__} is given where examples are wanted: {fix}")


def written(examples: Examples) -> list[str]:
    """All that is written in examples: texts, pairs and parts."""
    return [*examples.texts, *(examples.pairs or []), *chain(*(examples.parts or []))]


def text_pairs(examples: Examples) -> list[tuple[str, str]]:
    """Each text with its second one, which is the text itself where there are no pairs."""
    return list(zip(examples.texts, examples.pairs or examples.texts, strict=True))


def capitals(texts: Sequence[str]) -> bool:
    """Whether more than a few of the texts have a capital."""
    return sum(text != text.lower() for text in texts) > FEW * len(texts)


def lower_case(texts: Sequence[str]) -> bool:
    """Whether hardly any of the texts has a capital, though their letters have two cases."""
    cased = [text for text in texts if text.lower() != text.upper()]
    return bool(cased) and not capitals(cased)


def about_texts(examples: Examples) -> dict[str, bool]:
    """What a task vector notes of the texts it was learnt from: whether they are in lower case, and
    pairs."""
    return {"lower_case": lower_case(written(examples)), "pairs": examples.pairs is not None}


def held_out(
    examples: Examples, share: float, seed: int, *, named: bool
) -> tuple[Examples, Examples]:
    """Examples parted by a seed: those to learn from, and a share of them, one at least.

    named  labels are names, of which each stays among those to learn from

    What occurs twice is learnt from, lest it be on both sides. Raises DeftxError where nothing is
    left to hold out.
    """
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed)).tolist()
    wanted, rows = max(1, round(share * len(examples))), set[int]()
    mine = [Counter(_listed(label)) for label in examples.labels or []] if named else []
    left = sum(mine, Counter[str]())
    texts = [(canonical(text), canonical(pair)) for text, pair in text_pairs(examples)]
    times = Counter(texts)
    for row in order:
        if len(rows) == wanted:
            break
        if times[texts[row]] == 1 and all(
            left[name] > count for name, count in (mine[row].items() if named else ())
        ):
            rows.add(row)
            left -= mine[row] if named else Counter()
    if not rows or len(rows) == len(examples):
        why = "since every label, and what occurs twice, has to stay"
        raise DeftxError(
            f"of {len(examples)} example(s) none can be held out, {why}: give validation data (--valid)"
        )
    return examples.at([row for row in range(len(examples)) if row not in rows]), examples.at(
        sorted(rows)
    )


def _listed(label: Any) -> list[str]:
    return [label] if isinstance(label, str) else list(label)


def check_labels(source: str, examples: Examples, names: Sequence[str]) -> None:
    """Raise DeftxError for a label that is not in `names`."""
    for number, label in enumerate(examples.labels or [], 1):
        for each in _listed(label):
            if each not in names:
                what = f"label {each!r:.40} is not among those learnt{did_you_mean(each, names)}: {', '.join(names)}"
                raise DeftxError(f"{source}, example {number}: {what}")


def check_pairs(learnt: bool | None, examples: Examples) -> None:
    """Raise DeftxError for single texts where a task was `learnt` from pairs, and for pairs where
    it was not."""
    if learnt is not None and learnt != (examples.pairs is not None):
        wrong = "from pairs of texts, and these are single ones: give the second texts too (--pair-column, or `pairs`)"
        what = (
            wrong
            if learnt
            else "from single texts, and these are pairs: leave the second texts out"
        )
        raise DeftxError(f"the task was learnt {what}")


def joined(parts: Sequence[Examples]) -> Examples:
    """The examples of all parts, one after the other; without a column that one of them lacks."""
    columns: dict[str, Any] = {
        each.name: [getattr(part, each.name) for part in parts] for each in fields(Examples)
    }
    whole: dict[str, Any] = {
        name: None if None in some else list(chain(*some)) for name, some in columns.items()
    }
    return Examples(**whole)


def read_text(*sources: str | Path, column: str = "text") -> list[str]:
    """The texts in `sources`, one after the other, without surrounding white space and without
    empty ones.

    A source is a file or `hub:NAME[@REVISION][:CONFIG][:SPLIT]`. In plain text every line is a
    text; elsewhere `column` holds them. Raises DeftxError where a source cannot be read or holds no
    text.
    """
    tables = map(open_source, sources)
    found = (
        (table.source, cells(table, "text" if table.plain else column, text)) for table in tables
    )
    return [each for name, texts in found for each in usable(name, texts)]


def read_pairs(source: str | Path, columns: Columns, label: Cell[Any] | None) -> Examples:
    """Texts, or pairs of them, and their labels, read by `label` (None: labels are not looked for).

    Where there is no column `text`, and no other one is asked for, texts are `premise` and
    `hypothesis`.
    """
    table = open_source(source)
    if columns == Columns(label=columns.label) and {"text", *NLI} & {*table.names} == NLI:
        columns = replace(columns, text="premise", pair="hypothesis")
    texts = cells(table, columns.text, text)
    labels = cells(table, columns.label, label) if label else None
    if labels is not None:
        _check_no_header(table, columns, texts, labels)
        if label is name:
            warn_of_odd_labels(table, columns, labels)
    return Examples(texts, cells(table, columns.pair, text) if columns.pair else None, labels)


def _check_no_header(
    table: Table, columns: Columns, texts: Sequence[str], labels: Sequence[Any]
) -> None:
    """Raise DeftxError where the names of the columns come again as a row: two files were put
    together."""
    for (place, _), example, label in zip(table.values(columns.text), texts, labels, strict=True):
        if (
            example.strip().lower() == columns.text.lower()
            and str(label).lower() == columns.label.lower()
        ):
            raise DeftxError(
                f"{place}: {example!r} {label!r} are the names of the columns again: remove this line"
            )


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
MOST_WARNINGS = 5  # of odd labels
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
        if reason and warned < MOST_WARNINGS:
            warned += 1
            what = f"{places[row]}: the label {label!r:.60} {reason}"
            warnings.warn(
                f"{what}, and is a class of its own so: correct it, or remove the row", stacklevel=2
            )


def _odd_label(label: str, twin: str, labels: Container[str]) -> str:
    """What is odd about a label; "" where nothing is.

    twin    the first label that is the same but for how it is written
    labels  all of them
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
    if (
        isinstance(value, float) and value.is_integer()
    ):  # an integer, in a column where one was missing once
        value = int(value)
    if not isinstance(value, str | int | None):
        raise DeftxError(
            f"{place}: label {value!r:.40} is neither text nor an integer: write it as one"
        )
    found = "" if value is None else str(value).strip()
    if not found:
        raise DeftxError(f"{place}: the label in {column!r} is empty: fill it in or remove the row")
    return found


def names(place: str, column: str, value: object) -> list[str]:
    """A list of names, at least one."""
    if not isinstance(value, list) or not value:
        raise DeftxError(
            f"{place}: {column!r} is {value!r:.40}, not a list: write .jsonl with a list in each line"
        )
    return [name(place, column, each) for each in value]


def number(place: str, column: str, value: object) -> float:
    """A finite number."""
    try:
        found = float(value) if isinstance(value, str | int | float) else nan
    except (ValueError, OverflowError):
        found = nan
    if not isfinite(found):
        raise DeftxError(
            f"{place}: {value!r:.40} in {column!r} is not a number: correct it or remove the row"
        )
    return found


def usable(source: str, texts: Sequence[str]) -> list[str]:
    """Texts without surrounding white space and without empty ones. Raises DeftxError where none is
    left."""
    found = [each.strip() for each in texts if each.strip()]
    if not found:
        raise DeftxError(f"{source} has no usable line: it needs at least one that is not blank")
    return found
