"""Files with one word a line and a blank line after each sentence, as tables with a row a sentence.

.tsv      Columns separated by tabs, without a header: the word first, its tag last. With a single
          column there are words only. Without any tab in the file, spaces separate the columns,
          as in CoNLL-2003 and MasakhaNER.
.txt, .conll, .bio, .iob, .iob2  The same.
.conllu   Universal Dependencies' CoNLL-U: FORM and UPOS. Comments, multiword tokens and empty nodes
          are left out.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from deftx.data.tables import Reader, Table, lines_of
from deftx.errors import DeftxError

CONLLU_FIELDS = 10
DOCUMENT_START = "-DOCSTART-"  # between the documents of CoNLL-2003
COLUMNS_HINT = "separate each word from its tag by a tab, without a header"
WORD_HEADERS = {"word", "words", "token", "tokens", "text", "form"}
TAG_HEADERS = {"tag", "tags", "label", "labels", "pos", "upos", "ner"}

# The word and the tag in a line's fields, as far as it has them; None for a line that has neither
FieldPicker = Callable[[list[str]], list[str] | None]


def read_sentences(pick: FieldPicker, columns: int | None, path: Path) -> Table:
    """Read a file with a word on each line.

    Args:
        pick: Takes the word and the tag from a line's fields.
        columns: How many of these two each line has. None: as many as the first line.
        path: The file.

    Returns:
        A table with the column `words`, lists of words, and `tags`, lists of tags, if the file has
        them.

    Raises:
        DeftxError: The file is not text, has a header, or has lines that differ in form.
    """
    file_lines = lines_of(path)
    separate = _separate_at_tabs
    if not any("\t" in line for line in file_lines):
        separate = _separate_at_spaces
        _check_same_width(path, file_lines)

    sentences: list[list[list[str]]] = []
    first_lines: list[int] = []  # of each sentence, in the file
    inside_sentence = False
    for number, line in enumerate(file_lines, 1):
        if not line.strip() or line.startswith(DOCUMENT_START):
            inside_sentence = False
            continue
        picked = pick(separate(line))
        if picked is None:
            continue
        if not sentences and _is_header(picked):
            raise DeftxError(
                f"{path}, line {number}: {line!r:.40} names columns: remove it, "
                "sentences have no header"
            )
        columns = columns or len(picked)
        has_empty_field = any(not field.strip() for field in picked)
        if len(picked) != columns or has_empty_field:
            raise DeftxError(
                f"{path}, line {number}: {line!r:.40} is no word and tag as on the other lines: "
                "correct it"
            )
        if not inside_sentence:
            inside_sentence = True
            sentences.append([])
            first_lines.append(number)
        sentences[-1].append(picked)

    names = ["words", "tags"][: columns or 1]

    def column(name: str) -> list[list[str]]:
        index = names.index(name)
        cells = []
        for sentence in sentences:
            cells.append([fields[index] for fields in sentence])
        return cells

    return Table(str(path), names, first_lines, column, hint=COLUMNS_HINT)


def looks_tagged(lines: Sequence[str]) -> bool:
    """Whether lines look like words with tags.

    There are blank lines between sentences, all other lines have the same number of columns, two or
    more, and the last column is in capitals throughout, as tags are (NOUN, O, B-PER).
    """
    rows = [_separate_at_spaces(line) for line in lines]
    widths = {len(fields) for fields in rows}
    if len(widths) != 2 or 0 not in widths or max(widths) < 2:
        return False
    return all(fields[-1].isupper() for fields in rows if fields)


def _separate_at_tabs(line: str) -> list[str]:
    return line.split("\t")


def _separate_at_spaces(line: str) -> list[str]:
    """The fields of a line. A no-break space is part of a word, such as the number 10 000."""
    return [field for field in line.split(" ") if field.strip()]


def _check_same_width(path: Path, lines: Sequence[str]) -> None:
    """Raise DeftxError where lines have different numbers of columns: they are running text."""
    first_width, first_number = 0, 0
    for number, line in enumerate(lines, 1):
        # CoNLL-U's lines are separated by tabs, so that only its comments can come here
        width = len(_separate_at_spaces(line))
        if not width or line.startswith((DOCUMENT_START, "#")):
            continue
        if not first_width:
            first_width, first_number = width, number
        if width != first_width:
            raise DeftxError(
                f"{path}, line {number}: {width} columns, and line {first_number} has "
                f"{first_width}: is it plain text? words need their tags, one word a line"
            )


def _is_header(picked: Sequence[str]) -> bool:
    if len(picked) != 2:
        return False
    word, tag = picked
    return word.lower() in WORD_HEADERS and tag.lower() in TAG_HEADERS


def _pick_first_and_last(fields: list[str]) -> list[str] | None:
    if len(fields) == 1:
        return fields
    return [fields[0], fields[-1]]


def _pick_conllu(fields: list[str]) -> list[str] | None:
    """FORM and UPOS. Of a line that is not CoNLL-U all fields, which will be found to be wrong."""
    if fields[0].startswith("#"):
        return None
    if len(fields) != CONLLU_FIELDS:
        return fields
    if not fields[0].isdigit():  # a multiword token (1-2) or an empty node (1.1)
        return None
    return [fields[1], fields[3]]


_read_tagged_words: Reader = partial(read_sentences, _pick_first_and_last, None)
SENTENCES: dict[str, Reader] = {
    ".tsv": _read_tagged_words,
    ".conll": _read_tagged_words,
    ".bio": _read_tagged_words,
    ".iob": _read_tagged_words,
    ".iob2": _read_tagged_words,
    ".conllu": partial(read_sentences, _pick_conllu, 2),
}
# A .txt file is read so where labels are wanted; otherwise each of its lines is a text
LABELLED_TEXT: dict[str, Reader] = {".txt": _read_tagged_words}
