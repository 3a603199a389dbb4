"""Files with one word a line and a blank line after each sentence, as tables with a row a sentence.

.tsv      Columns separated by tabs, without a header: the word first, its tag last. With a single
          column there are words only. Without any tab in the file, spaces separate the columns,
          as in CoNLL-2003 and MasakhaNER.
.txt, .conll, .bio, .iob, .iob2  The same.
.conllu   Universal Dependencies' CoNLL-U: FORM and UPOS, or FORM, HEAD and DEPREL (`read_trees`).
          Comments, multiword tokens and empty nodes are left out.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from deftx.data.tables import Reader, Table, decoded, lines_of
from deftx.errors import DeftxError

CONLLU_FIELDS = 10
DOCUMENT_START = "-DOCSTART-"  # between the documents of CoNLL-2003
COLUMNS_HINT = "separate each word from its tag by a tab, without a header"
WORD_HEADERS = {"word", "words", "token", "tokens", "text", "form"}
TAG_HEADERS = {"tag", "tags", "label", "labels", "pos", "upos", "ner"}

NO_WORD_ID = re.compile(r"[0-9]+[-.][0-9]+")  # of a multiword token (1-2), an empty node (1.1)

# Numbers of columns of CoNLL-U
ID, FORM, UPOS, HEAD, DEPREL = 0, 1, 3, 6, 7

# The word and the tag in a line's fields, as far as it has them; None for a line that has neither
FieldPicker = Callable[[list[str]], list[str] | None]


@dataclass(frozen=True)
class Sentence:
    """The words of a sentence in a file.

    Attributes:
        rows: What was picked from each word's line.
        lines: The number of each word's line, from 1.
    """

    rows: list[list[str]]
    lines: list[int]


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
    sentences = _sentences(pick, columns, path)
    contents = {"words": _column(sentences, 0)}
    if sentences and len(sentences[0].rows[0]) > 1:
        contents["tags"] = _column(sentences, 1)
    return _table(path, sentences, contents, COLUMNS_HINT)


def read_words(path: Path) -> Table:
    """Read the words of a CoNLL-U file, whatever heads they have: a table with the column `words`.

    Raises:
        DeftxError: As `read_sentences` does.
    """
    sentences = _sentences(_pick_form, 1, path)
    return _table(path, sentences, {"words": _column(sentences, 0)}, COLUMNS_HINT)


def read_trees(path: Path) -> Table:
    """Read the dependency trees of a CoNLL-U file.

    Returns:
        A table with the columns `words`, `heads` and `relations`, lists with an item for each word:
        the number of the word's head, counted from 1, and 0 for the root.

    Raises:
        DeftxError: As `read_sentences` does, and for heads that are no tree. It names the line.
    """
    sentences = _sentences(_pick_tree, 4, path)
    contents: dict[str, list[list[object]]] = {"words": [], "heads": [], "relations": []}
    for sentence in sentences:
        heads = _heads(path, sentence)
        fault = fault_of_tree(heads)
        if fault is not None:
            word, why = fault
            raise DeftxError(f"{path}, line {sentence.lines[word - 1]}: {why}")
        contents["words"].append([row[1] for row in sentence.rows])
        contents["heads"].append([*heads])
        contents["relations"].append([row[3] for row in sentence.rows])
    return _table(path, sentences, contents, COLUMNS_HINT)


def _heads(path: Path, sentence: Sentence) -> list[int]:
    """The heads of a sentence as numbers.

    Raises:
        DeftxError: A word's number is not its place, or its head is no number.
    """
    heads = []
    for number, (row, line) in enumerate(zip(sentence.rows, sentence.lines, strict=True), 1):
        own_number, word, head, _ = row
        if own_number != str(number):
            raise DeftxError(
                f"{path}, line {line}: the word {word!r:.40} has the ID {own_number}, and is word "
                f"{number} of its sentence: number the words from 1"
            )
        if not (head.isascii() and head.isdigit()):
            raise DeftxError(
                f"{path}, line {line}: the head of {word!r:.40} is {head!r:.40}: give the number "
                "of a word, or 0 for the root"
            )
        heads.append(int(head))
    return heads


def fault_of_tree(heads: Sequence[int]) -> tuple[int, str] | None:
    """Why heads are no tree with a single root.

    Args:
        heads: The number of each word's head, counted from 1; 0 for the root.

    Returns:
        The number of a word that is wrong, and what is wrong with it; None for a tree.
    """
    roots = []
    for word, head in enumerate(heads, 1):
        if not 0 <= head <= len(heads):
            return word, f"the head of word {word} is {head}, of {len(heads)} words: correct it"
        if head == 0:
            roots.append(word)
    if not roots:
        return 1, "no word of the sentence has the head 0: give one the root"
    if len(roots) > 1:
        first, second = roots[:2]
        return second, f"the words {first} and {second} both have the head 0: leave one of them"

    # Every word leads to the root, unless its way ends in a cycle
    leads_to_root = {0}
    for word in range(1, len(heads) + 1):
        way = []
        place = word
        while place not in leads_to_root:
            if place in way:
                return place, f"the heads of word {place} lead back to it: correct one of them"
            way.append(place)
            place = heads[place - 1]
        leads_to_root.update(way)
    return None


def conllu_blocks(path: Path) -> list[str]:
    """The text of a CoNLL-U file in one block for each of its sentences; joined they are the file.

    A block has the comments before its sentence, and the blank line after it. What follows the last
    sentence belongs to it.
    """
    *lines, last_line = decoded(path).split("\n")  # which has no line end
    blocks = []
    block = ""
    has_words = False
    for line in [*(f"{line}\n" for line in lines), last_line]:
        block += line
        has_words = has_words or _is_word(line.split("\t"))
        if has_words and not line.strip():
            blocks.append(block)
            block = ""
            has_words = False
    if has_words or not blocks:
        blocks.append(block)
    else:
        blocks[-1] += block
    return blocks


def conllu_block(words: Sequence[str]) -> str:
    """A sentence of CoNLL-U that says nothing but its words."""
    forms = [" ".join(word.split()) or "_" for word in words]
    lines = [f"# text = {' '.join(forms)}"]
    unknown_fields = ["_"] * (CONLLU_FIELDS - 2)
    for number, word in enumerate(forms, 1):
        lines.append("\t".join([str(number), word, *unknown_fields]))
    return "\n".join(lines) + "\n\n"


def with_arcs(block: str, arcs: Sequence[tuple[int, str]]) -> str:
    """A sentence of CoNLL-U with other heads and relations; the rest stays as it is.

    Args:
        block: The lines of the sentence.
        arcs: The head and the relation of each word.
    """
    remaining = iter(arcs)
    lines = []
    for line in block.split("\n"):
        fields = line.split("\t")
        if _is_word(fields):
            head, relation = next(remaining)
            fields[HEAD] = str(head)
            fields[DEPREL] = relation
        lines.append("\t".join(fields))
    return "\n".join(lines)


def _is_word(fields: Sequence[str]) -> bool:
    """Whether a line of CoNLL-U is a word's: no comment, multiword token or empty node."""
    return len(fields) == CONLLU_FIELDS and fields[0].isdigit()


def _sentences(pick: FieldPicker, columns: int | None, path: Path) -> list[Sentence]:
    """The sentences of a file with a word on each line; the parameters are those of
    `read_sentences`."""
    file_lines = lines_of(path)
    separate = _separate_at_tabs
    if not any("\t" in line for line in file_lines):
        separate = _separate_at_spaces
        _check_same_width(path, file_lines)

    sentences: list[Sentence] = []
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
            sentences.append(Sentence([], []))
        sentences[-1].rows.append(picked)
        sentences[-1].lines.append(number)
    return sentences


def _column(sentences: Sequence[Sentence], index: int) -> list[list[str]]:
    """What each word of each sentence has at a place of its row."""
    column = []
    for sentence in sentences:
        column.append([row[index] for row in sentence.rows])
    return column


def _table(
    path: Path,
    sentences: Sequence[Sentence],
    contents: Mapping[str, Sequence[object]],
    hint: str,
) -> Table:
    """A table of sentences, with its columns by name."""
    first_lines = [sentence.lines[0] for sentence in sentences]
    return Table(str(path), list(contents), first_lines, contents.__getitem__, hint=hint)


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


def _pick_conllu(columns: Sequence[int], fields: list[str]) -> list[str] | None:
    """Some columns of CoNLL-U. Of a line that is not CoNLL-U all fields, which will be found to be
    wrong."""
    if fields[0].startswith("#"):
        return None
    if len(fields) != CONLLU_FIELDS:
        return [*fields, ""]  # so that a line of as many fields as columns is wrong, too
    if NO_WORD_ID.fullmatch(fields[0]):
        return None
    if not _is_word(fields):
        return [*fields, ""]
    return [fields[column] for column in columns]


_pick_form = partial(_pick_conllu, [FORM])
_pick_tree = partial(_pick_conllu, [ID, FORM, HEAD, DEPREL])
_read_tagged_words: Reader = partial(read_sentences, _pick_first_and_last, None)
SENTENCES: dict[str, Reader] = {
    ".tsv": _read_tagged_words,
    ".conll": _read_tagged_words,
    ".bio": _read_tagged_words,
    ".iob": _read_tagged_words,
    ".iob2": _read_tagged_words,
    ".conllu": partial(read_sentences, partial(_pick_conllu, [FORM, UPOS]), 2),
}
# A .txt file is read so where labels are wanted; otherwise each of its lines is a text
LABELLED_TEXT: dict[str, Reader] = {".txt": _read_tagged_words}
