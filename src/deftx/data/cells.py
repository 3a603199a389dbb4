"""What the cells of a table hold: texts, names, lists of names, and numbers."""

from collections.abc import Callable
from contextlib import suppress
from math import isfinite, nan
from typing import TypeVar

from deftx.data.tables import Table
from deftx.errors import DeftxError

T = TypeVar("T")
# Reads one cell: (its place in words, the name of its column, its content)
CellReader = Callable[[str, str, object], T]


def read_column(table: Table, column: str, read: CellReader[T]) -> list[T]:
    """All cells of a column, each read by a function of this module."""
    return [read(place, column, value) for place, value in table.values(column)]


def as_text(place: str, column: str, value: object) -> str:
    """A text, which may be empty: some writers turn an empty one into null."""
    if not isinstance(value, str | None):
        raise DeftxError(
            f"{place}: {column!r} is a {type(value).__name__}, not text: choose a column of text"
        )
    return value or ""


def as_name(place: str, column: str, value: object) -> str:
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


def as_names(place: str, column: str, value: object) -> list[str]:
    """A list of names, at least one."""
    if not isinstance(value, list) or not value:
        raise DeftxError(
            f"{place}: {column!r} is {value!r:.40}, not a list: "
            "write .jsonl with a list in each line"
        )
    return [as_name(place, column, item) for item in value]


def as_number(place: str, column: str, value: object) -> float:
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
