"""Opening what holds data as a table: files (`READERS` lists the formats) and hub datasets."""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from deftx.errors import DeftxError, check_downloaded, did_you_mean, not_installed, unknown

PARQUET_REVISION = "refs/convert/parquet"  # of a hub dataset: the hub's own copy as Parquet
HUB = "hub:"
HUB_FORM = "hub:NAME[@REVISION][:CONFIG][:SPLIT]"
USUAL_SPLITS = ("train", "validation", "test")
NAME_COLUMN_HINT = "say which to read (options that end in `column`; `columns` in a recipe)"
NO_HEADER_HINT = f"{NAME_COLUMN_HINT}, or name columns in a first line"
MAX_COLUMNS_LISTED = 30  # in a message


@dataclass(frozen=True)
class Table:
    """An opened source of data.

    Attributes:
        source: What was opened.
        names: The names of the columns.
        lines: The number of each row, for messages.
        column: The values of a column, one for each of `lines`.
        unit: What `lines` are numbers of.
        hint: What to do where a column is missing.
        plain: Whether it is plain text, whose only column is `text`.
    """

    source: str
    names: list[str]
    lines: Sequence[int]
    column: Callable[[str], Sequence[object]]
    unit: str = "line"
    hint: str = NAME_COLUMN_HINT
    plain: bool = False

    def values(self, name: str) -> Iterator[tuple[str, object]]:
        """The values of a column.

        Yields:
            The place of a value in words, such as `a.tsv, line 3`, and the value.

        Raises:
            DeftxError: There is no such column.
        """
        if name not in self.names:
            raise self._no_column(name)
        for line, value in zip(self.lines, self.column(name), strict=True):
            yield f"{self.source}, {self.unit} {line}", value

    def _no_column(self, name: str) -> DeftxError:
        # Without a header, the names may be whole texts
        known = ", ".join(f"{column!r:.40}" for column in self.names[:MAX_COLUMNS_LISTED])
        unlisted = len(self.names) - MAX_COLUMNS_LISTED
        if unlisted > 0:
            known += f" and {unlisted:,} others"
        near = did_you_mean(name, self.names)
        return DeftxError(
            f"{self.source} has no column {name!r:.100}{near}, only {known}: {self.hint}"
        )


Reader = Callable[[Path], Table]


def open_source(source: str | Path, readers: Mapping[str, Reader] | None = None) -> Table:
    """Open a source of data.

    Args:
        source: A file or `hub:NAME[@REVISION][:CONFIG][:SPLIT]`.
        readers: The readers of files, by the end of their names; None: READERS.

    Returns:
        A table with at least one row, and with different names of columns.

    Raises:
        DeftxError: The source cannot be read, has no rows, or has a column twice.
    """
    if str(source).startswith(HUB):
        table = _open_hub_dataset(str(source))
    else:
        table = _open_file(Path(source), readers or READERS)
    for name, count in Counter(table.names).items():
        if count > 1:
            raise DeftxError(f"{source} has more than one column {name!r:.100}: rename all but one")
    if not table.lines:
        raise DeftxError(f"{source} has columns but no rows: it needs at least one")
    return table


def rows_for(path: Path, table: Table, kept: Sequence[int]) -> str:
    """The content of a file that holds some rows of a table.

    Args:
        path: The file; the end of its name says of which kind it is.
        table: The table.
        kept: The numbers of the rows, from 0.

    Raises:
        DeftxError: The kind of file is not in WRITERS, or it cannot hold the values.
    """
    suffix = path.suffix.lower()
    if suffix not in WRITERS:
        raise unknown(f"kind of file to write ({path})", path.suffix, WRITERS)
    columns = [table.column(name) for name in table.names]
    rows = []
    for number in kept:
        rows.append([column[number] for column in columns])
    return WRITERS[suffix](path, table.names, rows)


def named(source: str | Path) -> str:
    """How a vector names a source for strangers: a hub dataset as it is, a file without its
    folder."""
    name = str(source) if str(source).startswith(HUB) else Path(source).name
    return name.encode(errors="replace").decode()  # the name of a file may be no valid text


def check_file(path: Path) -> None:
    """Check that there is a file.

    Raises:
        DeftxError: There is none, or a folder.
    """
    if path.is_dir():
        raise DeftxError(f"{path} is a folder: name a file in it")
    if not path.exists():
        raise DeftxError(
            f"{path} does not exist: check the path (a hub dataset is written {HUB_FORM})"
        )


def _open_file(path: Path, readers: Mapping[str, Reader]) -> Table:
    check_file(path)
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise unknown(f"kind of file ({path})", path.suffix, readers)
    check_downloaded(path)
    return readers[suffix](path)


def decoded(path: Path) -> str:
    """The content of a text file.

    Raises:
        DeftxError: The file is blank or not UTF-8.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DeftxError(
            f"{path} cannot be read ({error.strerror}): check its permissions"
        ) from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        has_utf16_mark = error.object.startswith((b"\xff\xfe", b"\xfe\xff"))
        usual = "UTF-16" if has_utf16_mark else "WINDOWS-1252"
        raise DeftxError(
            f"{path}, line {line}: not UTF-8: save the file as UTF-8, or convert it "
            f"(iconv -f {usual} -t UTF-8 {path.name}, where -f is its encoding)"
        ) from error
    if not text.strip():
        raise DeftxError(f"{path} is empty: it needs at least one line that is not blank")
    return text


def lines_of(path: Path) -> list[str]:
    """The lines of a text file, without line ends.

    Raises:
        DeftxError: The file is blank or not UTF-8.
    """
    # Not str.splitlines, which also breaks at characters that occur inside texts, such as U+2028
    return [line.removesuffix("\r") for line in decoded(path).rstrip("\r\n").split("\n")]


def _read_plain_text(path: Path) -> Table:
    """A text on every line. Blank lines at the end are kept, since what is written for each text
    goes beside it."""
    lines = [line.removesuffix("\r") for line in decoded(path).removesuffix("\n").split("\n")]
    hint = "write .tsv or .csv with columns"
    if "\t" in lines[0]:
        hint = f"if tabs separate its columns, call it {path.stem}.tsv"
    numbers = range(1, len(lines) + 1)
    return Table(str(path), ["text"], numbers, lambda _: lines, hint=hint, plain=True)


def _read_jsonl(path: Path) -> Table:
    rows = {}
    for number, line in enumerate(lines_of(path), 1):
        if line.strip():
            rows[number] = _json_object(path, number, line)

    # All names, in the order in which they occur
    names: dict[str, None] = {}
    for row in rows.values():
        names.update(dict.fromkeys(row))

    def column(name: str) -> list[object]:
        for number, row in rows.items():
            if name not in row:
                raise DeftxError(
                    f"{path}, line {number}: no {name!r}, which other lines have: add it"
                )
        return [row[name] for row in rows.values()]

    return Table(str(path), list(names), list(rows), column)


def _json_object(path: Path, number: int, line: str) -> dict[str, object]:
    try:
        value = json.loads(line)
        if "\\ud" in line.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise DeftxError(
            f"{path}, line {number}: half a character ({_escaped(error)}), as is left where a "
            "text was cut within an emoji: remove it"
        ) from None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise DeftxError(
            f"{path}, line {number}: not a JSON object: write one {{...}} on each line"
        )
    return value


def _escaped(error: UnicodeEncodeError) -> str:
    """How JSON writes what cannot be encoded, such as \\ud83d."""
    return f"\\u{ord(error.object[error.start]):04x}"


def _read_tsv(path: Path) -> Table:
    lines = lines_of(path)
    has_tabs = "\t" in lines[0]
    rows = []
    for number, line in enumerate(lines, 1):
        # With a single column, a blank line is an empty text
        if line or not has_tabs:
            rows.append((number, line.split("\t")))
    hint = NO_HEADER_HINT
    if not has_tabs and ("," in lines[0] or ";" in lines[0]):
        hint = f"if commas separate its columns, call it {path.stem}.csv"
    return _under_header(path, rows, hint)


def _read_csv(path: Path) -> Table:
    return _under_header(path, _csv_rows(path))


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows of a file, each after the number of the line that it begins in.

    If the header has no comma, tabs separate the fields, or semicolons, as in spreadsheets of
    places where commas are decimal marks.
    """
    text = decoded(path)
    header = text.lstrip("\r\n").split("\n", 1)[0]
    separator = next((mark for mark in ",\t;" if mark in header), ",")
    # Skip a space before a quote, if it stands before all of them: else it is part of the text
    spaced = f'{separator} "' in text and f'{separator}"' not in text
    file = io.StringIO(text, newline="")
    reader = csv.reader(file, delimiter=separator, skipinitialspace=spaced, strict=True)
    usual_limit = csv.field_size_limit(max(len(text), 1))  # a text may be of any length
    start = 1
    try:
        for fields in reader:
            if fields:
                yield start, fields
            start = reader.line_num + 1
    except csv.Error as error:
        raise DeftxError(
            f"{path}, line {start}: {error}: check the quotes, or use TSV, which has none"
        ) from error
    finally:
        csv.field_size_limit(usual_limit)


def _under_header(
    path: Path, rows: Iterable[tuple[int, list[str]]], hint: str = NO_HEADER_HINT
) -> Table:
    """Numbered rows as a table; the first one has the names of the columns."""
    (_, header), *body = rows
    for line, fields in body:
        if len(fields) != len(header):
            raise DeftxError(
                f"{path}, line {line}: {len(fields)} fields, but the header has {len(header)}: "
                "give every row one field for each column"
            )
    names = [name.strip() for name in header]

    def column(name: str) -> list[str]:
        index = names.index(name)
        return [fields[index] for _, fields in body]

    return Table(str(path), names, [line for line, _ in body], column, hint=hint)


def _read_parquet(path: Path) -> Table:
    parquet = _extra("pyarrow.parquet")
    try:
        with parquet.ParquetFile(path) as file:
            table = file.read()
    # pyarrow's own errors are among these
    except (OSError, ValueError, NotImplementedError) as error:
        raise DeftxError(f"{path} is not a readable Parquet file: write it again") from error

    def column(name: str) -> list[object]:
        try:
            values: list[object] = table[name].to_pylist()
        except (ArithmeticError, LookupError, ValueError, NotImplementedError) as error:
            raise _unreadable_value(path, name, table[name]) from error
        return values

    return Table(str(path), table.column_names, range(1, len(table) + 1), column, "row")


def _unreadable_value(path: Path, name: str, column: Any) -> DeftxError:
    """The error for a Parquet column of which Python has no such values, with the first row."""
    for row, value in enumerate(column, start=1):
        try:
            value.as_py()
        except (ArithmeticError, LookupError, ValueError, NotImplementedError) as error:
            what = f"a {column.type} in {name!r:.100} cannot be read ({error!s:.100})"
            return DeftxError(f"{path}, row {row}: {what}: correct it, or write texts in UTF-8")
    return DeftxError(f"{path}: the column {name!r:.100} cannot be read: write it as text")


def _open_hub_dataset(source: str) -> Table:
    """Open a hub dataset.

    SPLIT is `train` where it is not given. A lone part that names a usual split is not a CONFIG. In
    the revision `refs/convert/parquet`, where the hub keeps datasets that a script makes, each
    config is a folder.
    """
    repository, *parts = source.removeprefix(HUB).split(":", 2)
    config = ""
    split = "train"
    if len(parts) == 1 and parts[0] in USUAL_SPLITS:
        split = parts[0]
    elif parts:
        config = parts[0]
        if len(parts) == 2 and parts[1]:
            split = parts[1]
    name, _, revision = repository.partition("@")

    datasets = _extra("datasets")
    config_option = "data_dir" if revision == PARQUET_REVISION else "name"
    options = {config_option: config or None}
    try:
        dataset = datasets.load_dataset(name, **options, split=split, revision=revision or None)
    except (
        OSError,
        ValueError,
        LookupError,
        RuntimeError,
        datasets.exceptions.DatasetsError,
    ) as error:
        reason = " ".join(str(error).split())
        raise DeftxError(f"{source} cannot be loaded as {HUB_FORM}: {reason:.300}") from error

    def column(name: str) -> list[object]:
        values: list[Any] = dataset[name][:]
        feature = dataset.features[name]
        if not isinstance(feature, datasets.ClassLabel):
            return values
        classes = dict(enumerate(feature.names))
        return [classes.get(value) for value in values]  # unlabelled rows have the class -1

    return Table(source, dataset.column_names, range(1, len(dataset) + 1), column, "row")


def _extra(module: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise not_installed(error, "data") from error


READERS: dict[str, Reader] = {
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
    ".tsv": _read_tsv,
    ".txt": _read_plain_text,
}


def _as_text(path: Path, names: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    if len(names) > 1:
        raise DeftxError(
            f"{path} is plain text, which holds one column, not {', '.join(names)}: "
            "write .tsv or .jsonl"
        )
    return _separated(path, rows, "")


def _as_tsv(path: Path, names: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    return _separated(path, [names, *rows], "\t")


def _separated(path: Path, rows: Iterable[Sequence[object]], separator: str) -> str:
    lines = []
    for row in rows:
        cells = [_cell(path, value) for value in row]
        for cell in cells:
            if "\n" in cell or (separator and separator in cell):
                raise DeftxError(
                    f"{path} cannot hold texts with tabs or line breaks in them: "
                    "write .jsonl or .csv"
                )
        lines.append(separator.join(cells) + "\n")
    return "".join(lines)


def _cell(path: Path, value: object) -> str:
    if isinstance(value, list | dict | bytes):
        raise DeftxError(
            f"{path} cannot hold a {type(value).__name__}, such as {value!r:.40}: write .jsonl"
        )
    return "" if value is None else str(value)


def _as_csv(path: Path, names: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        writer.writerow([_cell(path, value) for value in row])
    return file.getvalue()


def _as_jsonl(path: Path, names: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = []
    for row in rows:
        record = dict(zip(names, row, strict=True))
        try:
            lines.append(json.dumps(record, ensure_ascii=False) + "\n")
        except TypeError as error:
            raise DeftxError(f"{path} cannot hold all values ({error}): write .csv") from None
    return "".join(lines)


# The content of a file: (its path, the names of its columns, its rows)
Writer = Callable[[Path, Sequence[str], Sequence[Sequence[object]]], str]

WRITERS: dict[str, Writer] = {
    ".csv": _as_csv,
    ".jsonl": _as_jsonl,
    ".tsv": _as_tsv,
    ".txt": _as_text,
}
