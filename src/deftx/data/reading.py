"""Reading plain text, and labelled texts, from any source that `deftx.data.tables` can open."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from deftx.data.cells import CellReader, as_name, as_text, read_column
from deftx.data.examples import Columns, Examples
from deftx.data.odd_labels import warn_of_odd_labels
from deftx.data.tables import Table, open_source
from deftx.errors import DeftxError

NLI = {"premise", "hypothesis"}


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
        texts += usable(table.source, read_column(table, text_column, as_text))
    return texts


def read_pairs(source: str | Path, columns: Columns, label: CellReader[Any] | None) -> Examples:
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
    texts = read_column(table, columns.text, as_text)
    labels = None
    if label:
        labels = read_column(table, columns.label, label)
        _check_no_header(table, columns, texts, labels)
        if label is as_name:
            warn_of_odd_labels(table, columns, labels)
    pairs = None
    if columns.pair:
        pairs = read_column(table, columns.pair, as_text)
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


def usable(source: str, texts: Sequence[str]) -> list[str]:
    """Texts without surrounding white space and without empty ones.

    Raises:
        DeftxError: None is left.
    """
    kept = [text.strip() for text in texts if text.strip()]
    if not kept:
        raise DeftxError(f"{source} has no usable line: it needs at least one that is not blank")
    return kept
