"""Files with a word on each line and a blank line after each sentence, as tables: a row a sentence.

.tsv      the word, then its tag in the last of the columns, which tabs part; no header. One column:
          words alone. Without a tab in the file, spaces part the columns, as in CoNLL-2003 and
          MasakhaNER
.txt, .conll, .bio, .iob, .iob2  the same
.conllu   Universal Dependencies' CoNLL-U: FORM and UPOS; comments, multiword tokens and empty nodes
          are left out
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from deftx.data.tables import Reader, Table, lines_of
from deftx.errors import DeftxError

CONLLU_FIELDS = 10
DOCUMENT = "-DOCSTART-"  # between the documents of CoNLL-2003
HINT = "part each word from its tag by a tab, without a header"
HEADERS = (
    {"word", "words", "token", "tokens", "text", "form"},
    {"tag", "tags", "label", "labels", "pos", "upos", "ner"},
)


def _columns(fields: list[str]) -> list[str] | None:
    return fields if len(fields) == 1 else [fields[0], fields[-1]]


def _conllu(fields: list[str]) -> list[str] | None:
    """The word and its tag; nothing for a line that has none, and all fields of one that is no line
    of CoNLL-U."""
    if fields[0].startswith("#") or (len(fields) == CONLLU_FIELDS and not fields[0].isdigit()):
        return None
    return [fields[1], fields[3]] if len(fields) == CONLLU_FIELDS else fields


def _sentences(
    pick: Callable[[list[str]], list[str] | None], width: int | None, path: Path
) -> Table:
    """A file as lists of words, and of tags where there are any.

    pick   the word and the tag of a line's fields; None for a line that holds neither
    width  how many of these there are on every line; None: as many as on the first one
    """
    sentences: list[list[list[str]]] = []
    lines: list[int] = []
    inside = False
    file_lines = lines_of(path)
    separator = "\t" if any("\t" in line for line in file_lines) else None  # None: any white space
    for number, line in enumerate(file_lines, 1):
        if line.startswith(DOCUMENT):
            inside = False
            continue
        picked = pick(line.split(separator)) if line.strip() else None
        inside = inside and bool(line.strip())
        if picked is None:
            continue
        if (
            not sentences
            and len(picked) == 2
            and picked[0].lower() in HEADERS[0]
            and picked[1].lower() in HEADERS[1]
        ):
            raise DeftxError(
                f"{path}, line {number}: {line!r:.40} names columns: remove it, sentences have no header"
            )
        width = width or len(picked)
        if len(picked) != width or not all(map(str.strip, picked)):
            raise DeftxError(
                f"{path}, line {number}: {line!r:.40} is no word and tag as on the other lines: correct it"
            )
        if not inside:
            inside = True
            sentences.append([])
            lines.append(number)
        sentences[-1].append(picked)
    names = ["words", "tags"][: width or 1]

    def column(name: str) -> list[list[str]]:
        return [[row[names.index(name)] for row in rows] for rows in sentences]

    return Table(str(path), names, lines, column, hint=HINT)


_WORD_AND_TAG: Reader = partial(_sentences, _columns, None)
SENTENCES: dict[str, Reader] = {
    **dict.fromkeys((".tsv", ".conll", ".bio", ".iob", ".iob2"), _WORD_AND_TAG),
    ".conllu": partial(_sentences, _conllu, 2),
}
LABELLED_TEXT: dict[str, Reader] = {
    ".txt": _WORD_AND_TAG
}  # where tags are looked for; else a text is on each line
