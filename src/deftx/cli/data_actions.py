"""What `deftx data trim` and `deftx data normalize` do, between parsing and printing."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from deftx.data.contamination import find_contamination, first_by_row
from deftx.data.reading import usable
from deftx.data.tables import Table, open_source, rows_for
from deftx.errors import DeftxError, unknown
from deftx.storage.atomic_files import check_file, write_text
from deftx.tasks.normalization import Normalizer, build_normalizer, normalize_text, plain_normalizer

TEXT_COLUMNS = ("text", "premise", "hypothesis")

Cell = str | list[str]  # a text, or the words of one


def trim(
    source: str, against: Sequence[str], columns: Sequence[str], out: Path | None, *, force: bool
) -> list[dict[str, str]]:
    """Find the rows of a source that hold evaluation text, and write the other rows to `out`.

    Args:
        source: The data to train on.
        against: The evaluation data.
        columns: The columns to compare; of a file with none of them, those of TEXT_COLUMNS that it
            has.
        out: The file for the other rows; None writes nothing.
        force: Whether an existing file is replaced.

    Returns:
        For each row that holds evaluation text: where it is, where that text is, and how they are
        alike.
    """
    check_file(out, force=force)
    table = open_source(source)
    evaluation_tables = [open_source(file) for file in against]
    _check_columns(columns, [table, *evaluation_tables])

    # Compare all cells with all evaluation cells.
    cells = _cells(table, columns)
    evaluation_cells = []
    for evaluation_table in evaluation_tables:
        evaluation_cells += _cells(evaluation_table, columns)
    matches = find_contamination(
        [text for _, text in cells], [text for _, text in evaluation_cells]
    )
    match_of_row = first_by_row(matches, len(table.lines))

    if out:
        clean_rows = [row for row in range(len(table.lines)) if row not in match_of_row]
        write_text(out, rows_for(out, table, clean_rows))
    return [
        {
            "row": cells[match.training][0],
            "of": evaluation_cells[match.evaluation][0],
            "kind": match.kind,
        }
        for match in match_of_row.values()
    ]


def write_normalized(
    data: str,
    like: Sequence[str],
    text: Sequence[str],
    columns: Sequence[str],
    out: Path | None,
    *,
    normalizer_out: Path | None = None,
    words: bool = True,
    force: bool = False,
) -> Normalizer:
    """Write texts in the spelling of the source language, see `deftx.normalize`.

    Args:
        data: The texts, labelled or not.
        like: What the task was trained on.
        text: Further text of the same language as `like`.
        columns: The columns to change; without any, those of TEXT_COLUMNS that the data has. A cell
            may be a list of words.
        out: The file for the texts.
        normalizer_out: The file for the normalizer, which `deftx.read_normalizer` reads.
        words: Whether words are replaced, and not only their case.
        force: Whether existing files are replaced.

    Returns:
        The normalizer.
    """
    _check_outputs(out, normalizer_out, force=force)
    table = open_source(data)
    cells = {}
    for name in _chosen_columns(table, columns):
        cells[name] = [_as_cell(value) for _, value in table.values(name)]

    # The normalizer, from the texts themselves and those of the source language.
    target_lines = []
    for column in cells.values():
        target_lines += _lines(column)
    trained_lines = _lines_of_files(like, columns)
    further_lines = _lines_of_files(text, columns)
    normalizer = build_normalizer(target_lines, trained_lines, further_lines, words=words)

    if out:
        changed = {}
        for name, column in cells.items():
            changed[name] = [_normalize_cell(cell, normalizer) for cell in column]
        normalized_table = _with_columns(table, changed)
        all_rows = range(len(table.lines))
        write_text(out, rows_for(out, normalized_table, all_rows))
    if normalizer_out:
        plain = plain_normalizer(normalizer)
        write_text(normalizer_out, json.dumps(plain, ensure_ascii=False, indent=1))
    return normalizer


def _check_outputs(out: Path | None, normalizer_out: Path | None, *, force: bool) -> None:
    """Check that there is something to write, and that the files can be written.

    Raises:
        DeftxError: It is not so.
    """
    if not (out or normalizer_out):
        raise DeftxError(
            "say what to write: --out FILE for the texts, --normalizer FILE for later ones, or both"
        )
    if out and normalizer_out and out.resolve() == normalizer_out.resolve():
        raise DeftxError(f"{out} cannot hold both the texts and the normalizer: give two files")
    for file in (out, normalizer_out):
        check_file(file, force=force)


def _with_columns(table: Table, columns: Mapping[str, Sequence[Cell]]) -> Table:
    """A table with some of its columns replaced."""

    def column(name: str) -> Sequence[object]:
        if name in columns:
            return columns[name]
        return table.column(name)

    return replace(table, column=column)


def _normalize_cell(cell: Cell, normalizer: Normalizer) -> Cell:
    if isinstance(cell, str):
        return normalize_text(cell, normalizer)
    return [normalize_text(word, normalizer) for word in cell]


def _as_cell(value: object) -> Cell:
    if isinstance(value, list):
        return [str(word) for word in value]
    return str(value or "")


def _lines(cells: Sequence[Cell]) -> list[str]:
    """The texts of some cells; of a list of words, each word."""
    lines: list[str] = []
    for cell in cells:
        if isinstance(cell, str):
            lines.append(cell)
        else:
            lines += cell
    return lines


def _lines_of_files(files: Sequence[str], columns: Sequence[str]) -> list[str]:
    """All text in the compared columns of some files."""
    lines = []
    for file in files:
        table = open_source(file)
        cells = []
        for name in _present_columns(table, columns):
            cells += [_as_cell(value) for _, value in table.values(name)]
        lines += usable(file, _lines(cells))
    return lines


def _cells(table: Table, columns: Sequence[str]) -> list[tuple[str, str]]:
    """Place (in words) and text of every cell to compare, column by column."""
    cells = []
    for name in _present_columns(table, columns):
        cells += [(place, str(value or "")) for place, value in table.values(name)]
    return cells


def _check_columns(columns: Sequence[str], tables: Sequence[Table]) -> None:
    """Raise DeftxError for a column that no table has."""
    known: dict[str, None] = {}
    for table in tables:
        known |= dict.fromkeys(table.names)
    for name in columns:
        if name not in known:
            raise unknown("column", name, known)


def _chosen_columns(table: Table, columns: Sequence[str]) -> Sequence[str]:
    """The columns that the user named; without any, those of TEXT_COLUMNS that a table has."""
    names = columns or [name for name in TEXT_COLUMNS if name in table.names]
    if not names:
        raise DeftxError(
            f"{table.source} has no column {' or '.join(TEXT_COLUMNS)}: say which with --column"
        )
    return names


def _present_columns(table: Table, columns: Sequence[str]) -> Sequence[str]:
    """Those of the columns that a table has; if there are none, those of TEXT_COLUMNS."""
    present = [name for name in columns if name in table.names]
    return present or _chosen_columns(table, ())
