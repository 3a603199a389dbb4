"""Warnings of labels that are hardly meant as such."""

import re
import warnings
from collections.abc import Container, Sequence

from deftx.data.examples import Columns
from deftx.data.tables import Table
from deftx.data.unicode_forms import caseless

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
