"""Reading text and labelled examples, from any source that `deftx.tasks.sources` can open."""

from dataclasses import dataclass, replace
from pathlib import Path

from deftx.errors import DeftxError
from deftx.tasks.sources import Table, open_source

NLI = {"premise", "hypothesis"}


@dataclass(frozen=True)
class Columns:
    """Names of the columns that hold the text, its pair (None: single texts) and the label."""

    text: str = "text"
    pair: str | None = None
    label: str = "label"


@dataclass(frozen=True)
class Examples:
    """Examples, column by column, in the order of their source. `pairs` are second texts, such as hypotheses."""

    texts: list[str]
    pairs: list[str] | None = None
    labels: list[str] | None = None

    def __len__(self) -> int:
        return len(self.texts)


def read_text(*sources: str | Path, column: str = "text") -> list[str]:
    """The texts in `sources`, one after the other, without surrounding white space and without empty ones.

    A source is a file or `hub:NAME[@REVISION][:CONFIG][:SPLIT]`. In plain text every line is a text;
    elsewhere `column` holds them. Raises DeftxError where a source cannot be read or holds no text.
    """
    return [text for source in sources for text in _usable(open_source(source), column)]


def read_examples(source: str | Path, columns: Columns | None = None, *, labelled: bool = True) -> Examples:
    """The examples in `source`, a file or `hub:NAME[@REVISION][:CONFIG][:SPLIT]`.

    By default the columns are `text` and `label`, or `premise`, `hypothesis` and `label` where there is no
    `text`. Texts may be empty, labels may not; integers and hub class labels become strings. Without
    `labelled` the label column is not looked for. Raises DeftxError, naming the line, where a row is at fault.
    """
    table, columns = open_source(source), columns or Columns()
    if columns == Columns(label=columns.label) and {"text", *NLI} & {*table.names} == NLI:
        columns = replace(columns, text="premise", pair="hypothesis")
    return Examples(
        texts=_texts(table, columns.text),
        pairs=_texts(table, columns.pair) if columns.pair else None,
        labels=_labels(table, columns.label) if labelled else None,
    )


def _texts(table: Table, name: str) -> list[str]:
    texts = []
    for place, value in table.values(name):
        if not isinstance(value, str | None):
            raise DeftxError(f"{place}: {name!r} is a {type(value).__name__}, not text: choose a column of text")
        texts.append(value or "")  # some writers turn an empty text into null
    return texts


def _usable(table: Table, name: str) -> list[str]:
    usable = [text.strip() for text in _texts(table, name) if text.strip()]
    if not usable:
        raise DeftxError(f"{table.source} has no usable line: it needs at least one that is not blank")
    return usable


def _labels(table: Table, name: str) -> list[str]:
    labels = []
    for place, value in table.values(name):
        if not isinstance(value, str | int | None):
            raise DeftxError(f"{place}: label {value!r:.40} is neither text nor an integer: choose another column")
        labels.append("" if value is None else str(value).strip())
        if not labels[-1]:
            raise DeftxError(f"{place}: the label in {name!r} is empty: fill it in or remove the row")
    return labels
