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

PARQUET = "refs/convert/parquet"
HUB = "hub:"
HUB_FORM = "hub:NAME[@REVISION][:CONFIG][:SPLIT]"
WHICH = "say which to read (options that end in `column`; `columns` in a recipe)"
MOST_NAMED = 30  # columns, in a message
UNNAMED = f"{WHICH}, or name columns in a first line"


@dataclass(frozen=True)
class Table:
    """An opened source: `column(name)` has one value for each of `lines`, which are its rows'
    places for messages; a `hint` says what to do where a column is not there. Plain text has no
    columns to choose from, but for its `text`."""

    source: str
    names: list[str]
    lines: Sequence[int]
    column: Callable[[str], Sequence[object]]
    unit: str = "line"
    hint: str = WHICH
    plain: bool = False

    def values(self, name: str) -> Iterator[tuple[str, object]]:
        """Each value of a column, after its place in words."""
        if name not in self.names:
            there = ", ".join(
                f"{name!r:.40}" for name in self.names[:MOST_NAMED]
            )  # without a header, whole texts
            if len(self.names) > MOST_NAMED:
                there += f" and {len(self.names) - MOST_NAMED:,} others"
            near = did_you_mean(name, self.names)
            raise DeftxError(
                f"{self.source} has no column {name!r:.100}{near}, only {there}: {self.hint}"
            )
        for line, value in zip(self.lines, self.column(name), strict=True):
            yield f"{self.source}, {self.unit} {line}", value


Reader = Callable[[Path], Table]


def open_source(source: str | Path, readers: Mapping[str, Reader] | None = None) -> Table:
    """The table in `source`, a file or `hub:NAME[@REVISION][:CONFIG][:SPLIT]`.

    readers  of files, by the end of their names; without them READERS

    It has at least one row, and no name twice. Raises DeftxError where the source cannot be read.
    """
    table = (
        _hub(str(source))
        if str(source).startswith(HUB)
        else _file(Path(source), readers or READERS)
    )
    for name, count in Counter(table.names).items():
        if count > 1:
            raise DeftxError(f"{source} has more than one column {name!r:.100}: rename all but one")
    if not table.lines:
        raise DeftxError(f"{source} has columns but no rows: it needs at least one")
    return table


def rows_for(path: Path, table: Table, kept: Sequence[int]) -> str:
    """What the file `path`, of the kind that its name says, is to hold: the rows `kept`, by number
    from 0, of a table.

    Raises DeftxError for a kind that is not in WRITERS, and for values that this kind cannot hold.
    """
    if path.suffix.lower() not in WRITERS:
        raise unknown(f"kind of file to write ({path})", path.suffix, WRITERS)
    columns = [table.column(name) for name in table.names]
    rows = [[column[number] for column in columns] for number in kept]
    return WRITERS[path.suffix.lower()](path, table.names, rows)


def named(source: str | Path) -> str:
    """How a vector names a source, for strangers to read: a hub dataset as it was given, a file
    without its folder."""
    name = str(source) if str(source).startswith(HUB) else Path(source).name
    return name.encode(errors="replace").decode()  # of a file, it may be no text


def _file(path: Path, readers: Mapping[str, Reader]) -> Table:
    if path.is_dir():
        raise DeftxError(f"{path} is a folder: name a file in it")
    if not path.exists():
        raise DeftxError(
            f"{path} does not exist: check the path (a hub dataset is written {HUB_FORM})"
        )
    if path.suffix.lower() not in readers:
        raise unknown(f"kind of file ({path})", path.suffix, readers)
    check_downloaded(path)
    return readers[path.suffix.lower()](path)


def _decoded(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DeftxError(
            f"{path} cannot be read ({error.strerror}): check its permissions"
        ) from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        usual = "UTF-16" if error.object.startswith((b"\xff\xfe", b"\xfe\xff")) else "WINDOWS-1252"
        fix = f"save the file as UTF-8, or type iconv -f {usual} -t UTF-8 {path.name}, with what it is in"
        raise DeftxError(f"{path}, line {line}: not UTF-8: {fix}") from error
    if not text.strip():
        raise DeftxError(f"{path} is empty: it needs at least one line that is not blank")
    return text


def lines_of(path: Path) -> list[str]:
    """The lines of a file of text, without what ends them. Raises DeftxError for one that is blank
    or not UTF-8."""
    # not str.splitlines, which also breaks at characters that occur inside texts, such as U+2028
    return [line.removesuffix("\r") for line in _decoded(path).rstrip("\r\n").split("\n")]


def _plain(path: Path) -> Table:
    """A text on every line, blank ones at the end among them: what is written for each goes beside
    it."""
    lines = [line.removesuffix("\r") for line in _decoded(path).removesuffix("\n").split("\n")]
    tabs = "\t" in lines[0]
    hint = (
        f"if tabs part its columns, call it {path.stem}.tsv"
        if tabs
        else "write .tsv or .csv with columns"
    )
    return Table(
        str(path), ["text"], range(1, len(lines) + 1), lambda _: lines, hint=hint, plain=True
    )


def _jsonl(path: Path) -> Table:
    rows = {
        number: _json_object(path, number, line)
        for number, line in enumerate(lines_of(path), 1)
        if line.strip()
    }

    def column(name: str) -> list[object]:
        for number, row in rows.items():
            if name not in row:
                raise DeftxError(
                    f"{path}, line {number}: no {name!r}, which other lines have: add it"
                )
        return [row[name] for row in rows.values()]

    return Table(
        str(path),
        list(dict.fromkeys(name for row in rows.values() for name in row)),
        list(rows),
        column,
    )


def _json_object(path: Path, number: int, line: str) -> dict[str, object]:
    try:
        value = json.loads(line)
        if "\\ud" in line.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        what = (
            f"half a character ({_escaped(error)}), as is left where a text was cut within an emoji"
        )
        raise DeftxError(f"{path}, line {number}: {what}: remove it") from None
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


def _tsv(path: Path) -> Table:
    lines = lines_of(path)
    rows = (
        (number, line.split("\t"))
        for number, line in enumerate(lines, 1)
        if line or "\t" not in lines[0]
    )
    commas = "\t" not in lines[0] and ("," in lines[0] or ";" in lines[0])
    return _under_header(
        path, rows, f"if commas part its columns, call it {path.stem}.csv" if commas else UNNAMED
    )


def _csv(path: Path) -> Table:
    return _under_header(path, _csv_rows(path))


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Rows after the lines they begin in. Fields are divided by tabs, or by semicolons, as
    spreadsheets write them where commas are decimal marks, if the header has such and no comma."""
    text = _decoded(path)
    header = text.lstrip("\r\n").split("\n", 1)[0]
    separator = next((mark for mark in ",\t;" if mark in header), ",")
    # A quote after a space would be part of the text: all or none of the fields are written so
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


def _under_header(path: Path, rows: Iterable[tuple[int, list[str]]], hint: str = UNNAMED) -> Table:
    (_, header), *body = rows
    for line, fields in body:
        if len(fields) != len(header):
            fix = "give every row one field for each column"
            raise DeftxError(
                f"{path}, line {line}: {len(fields)} fields, but the header has {len(header)}: {fix}"
            )
    names = [name.strip() for name in header]

    def column(name: str) -> list[str]:
        at = names.index(name)
        return [fields[at] for _, fields in body]

    return Table(str(path), names, [line for line, _ in body], column, hint=hint)


def _parquet(path: Path) -> Table:
    parquet = _extra("pyarrow.parquet")
    try:
        with parquet.ParquetFile(path) as file:
            table = file.read()
    except (
        OSError,
        ValueError,
        NotImplementedError,
    ) as error:  # pyarrow's own errors are among them
        raise DeftxError(f"{path} is not a readable Parquet file: write it again") from error
    return Table(
        str(path),
        table.column_names,
        range(1, len(table) + 1),
        lambda name: table[name].to_pylist(),
        "row",
    )


def _hub(source: str) -> Table:
    """A hub dataset; SPLIT is `train` where it is not given. A lone part that names a usual split
    is no CONFIG.

    In the revision PARQUET, where the hub keeps datasets that are made by a script, each config is
    a folder.
    """
    repository, *parts = source.removeprefix(HUB).split(":", 2)
    if len(parts) == 1 and parts[0] in ("train", "validation", "test"):
        parts.insert(0, "")
    config, split = [*parts, "", ""][:2]
    name, _, revision = repository.partition("@")
    datasets = _extra("datasets")
    try:
        which = {"data_dir" if revision == PARQUET else "name": config or None}
        dataset = datasets.load_dataset(
            name, **which, split=split or "train", revision=revision or None
        )
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
        if not isinstance(dataset.features[name], datasets.ClassLabel):
            return values
        classes = dict(enumerate(dataset.features[name].names))
        return [classes.get(value) for value in values]  # unlabelled rows have the class -1

    return Table(source, dataset.column_names, range(1, len(dataset) + 1), column, "row")


def _extra(module: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise not_installed(error, "data") from error


READERS: dict[str, Reader] = {
    ".csv": _csv,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
    ".tsv": _tsv,
    ".txt": _plain,
}


def _as_text(path: Path, names: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    if len(names) > 1:
        raise DeftxError(
            f"{path} is plain text, which holds one column, not {', '.join(names)}: write .tsv or .jsonl"
        )
    return _separated(path, rows, "")


def _as_tsv(path: Path, names: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    return _separated(path, [names, *rows], "\t")


def _separated(path: Path, rows: Iterable[Sequence[object]], separator: str) -> str:
    lines = [[_cell(path, value) for value in row] for row in rows]
    if any(mark in value for line in lines for value in line for mark in ("\n", separator or "\n")):
        raise DeftxError(
            f"{path} cannot hold texts with tabs or line breaks in them: write .jsonl or .csv"
        )
    return "".join(separator.join(line) + "\n" for line in lines)


def _cell(path: Path, value: object) -> str:
    if isinstance(value, list | dict | bytes):
        raise DeftxError(
            f"{path} cannot hold a {type(value).__name__}, such as {value!r:.40}: write .jsonl"
        )
    return "" if value is None else str(value)


def _as_csv(path: Path, names: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator="\n").writerows(
        [names, *([_cell(path, value) for value in row] for row in rows)]
    )
    return file.getvalue()


def _as_jsonl(path: Path, names: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    objects = (dict(zip(names, row, strict=True)) for row in rows)
    try:
        return "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in objects)
    except TypeError as error:
        raise DeftxError(f"{path} cannot hold all values ({error}): write .csv") from None


# What a file with these columns and rows is to hold.
Writer = Callable[[Path, Sequence[str], Sequence[Sequence[object]]], str]

WRITERS: dict[str, Writer] = {
    ".csv": _as_csv,
    ".jsonl": _as_jsonl,
    ".tsv": _as_tsv,
    ".txt": _as_text,
}
