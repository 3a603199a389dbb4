"""Contamination: evaluation text in training text, which makes scores look better than they are.

It is looked for before anything is trained. Texts are compared without case, in one of Unicode's
forms (NFKC), without invisible characters, and with every run of punctuation or white space as one
space (see `deftx.data.unicode_forms`). A training text is contaminated by an evaluation text where

    equal      they are the same
    contained  one contains the other, which has 25 characters or more, as whole words
    words      they share eight words in a row
    similar    their Levenshtein distance is at most a tenth of the longer one's length

These rules are close to those by which SMSA, whose reviews were translated into NusaX, is trimmed
for an evaluation on NusaX. That trimming also leaves out the nearest review of each text, however
far it is; this does not. In scripts without spaces between words only `equal` and `similar` find
much.
"""

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from unicodedata import category

from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import extract_iter

from deftx.data.examples import Examples
from deftx.data.unicode_forms import caseless

MIN_CONTAINED_CHARACTERS = 25  # a shorter text may be in another one by coincidence
SHARED_WORDS = 8  # in a row
MIN_SIMILARITY = 0.9  # 1 - distance / length of the longer text

# The number of a training text -> the number of an evaluation text that contaminates it
Matches = dict[int, int]
Rule = Callable[[Sequence[str], Sequence[str]], Matches]  # of normalised texts


@dataclass(frozen=True)
class Overlap:
    """A training text that holds an evaluation text.

    Attributes:
        training: The number of the training text, from 0.
        evaluation: The number of the evaluation text, from 0.
        kind: The name of the rule by which it does, in RULES.
    """

    training: int
    evaluation: int
    kind: str


def find_contamination(training: Sequence[str], evaluation: Sequence[str]) -> list[Overlap]:
    """The training texts that hold an evaluation text, in order, each once, by the first rule of
    RULES that finds it."""
    training_texts = [normalised(text) for text in training]
    evaluation_texts = [normalised(text) for text in evaluation]
    overlaps: dict[int, Overlap] = {}
    for kind, rule in RULES.items():
        for train_number, eval_number in rule(training_texts, evaluation_texts).items():
            overlaps.setdefault(train_number, Overlap(train_number, eval_number, kind))
    return [overlaps[train_number] for train_number in sorted(overlaps)]


def texts_of(examples: Examples) -> list[str]:
    """All texts of evaluation examples; of pairs, both."""
    return [*examples.texts, *(examples.pairs or [])]


def find_contaminated_examples(examples: Examples, evaluation: Sequence[str]) -> list[Overlap]:
    """As `find_contamination`, for labelled examples: `training` is the number of the example,
    whichever of its texts it is."""
    overlaps = find_contamination(texts_of(examples), evaluation)
    by_row = first_by_row(overlaps, len(examples))
    return [replace(overlap, training=row) for row, overlap in by_row.items()]


def first_by_row(overlaps: Sequence[Overlap], rows: int) -> dict[int, Overlap]:
    """The first overlap of every row that has one.

    Args:
        overlaps: Their training texts are columns of `rows` texts, one column after the other.
        rows: How many rows there are.
    """
    first: dict[int, Overlap] = {}
    for overlap in overlaps:
        first.setdefault(overlap.training % rows, overlap)
    return {row: first[row] for row in sorted(first)}


def describe_counts(overlaps: Sequence[Overlap]) -> str:
    """How many overlaps there are of each kind, in words."""
    counts = Counter(overlap.kind for overlap in overlaps)
    return ", ".join(f"{counts[kind]} {kind}" for kind in RULES if counts[kind])


def normalised(text: str) -> str:
    """The text without case, in one of Unicode's forms, and with every run of other characters than
    letters, digits and marks as one space."""
    return " ".join(caseless(text).translate(_WORD_CHARACTERS).split())


class _WordCharacters(dict[int, int]):
    """For `str.translate`: letters, digits and marks as they are, all others as a space."""

    def __missing__(self, code: int) -> int:
        major_category = category(chr(code))[0]
        self[code] = code if major_category in "LNM" else ord(" ")
        return self[code]


_WORD_CHARACTERS = _WordCharacters()


def _find_equal(training: Sequence[str], evaluation: Sequence[str]) -> Matches:
    number_of = {text: number for number, text in enumerate(evaluation) if text}
    matches = {}
    for train_number, text in enumerate(training):
        if text in number_of:
            matches[train_number] = number_of[text]
    return matches


def _find_contained(training: Sequence[str], evaluation: Sequence[str]) -> Matches:
    """Parts of SHARED_WORDS words and more are left to the rule of shared words, which finds them
    too."""
    matches = {}
    for train_number, eval_number in _parts_in_wholes(training, evaluation):
        matches[train_number] = eval_number
    for eval_number, train_number in _parts_in_wholes(evaluation, training):
        matches[train_number] = eval_number
    return matches


def _parts_in_wholes(parts: Sequence[str], wholes: Sequence[str]) -> Iterator[tuple[int, int]]:
    """The numbers of a short part, and of a whole that contains it as whole words."""
    # Equal parts share an entry
    numbers_of: dict[str, list[int]] = {}
    for number, part in enumerate(parts):
        is_short = part.count(" ") + 1 < SHARED_WORDS
        if is_short and len(part) >= MIN_CONTAINED_CHARACTERS:
            numbers_of.setdefault(part, []).append(number)
    lengths = sorted({part.count(" ") + 1 for part in numbers_of})

    for whole_number, whole in enumerate(wholes):
        words = whole.split(" ")
        for length in lengths:
            for run in _word_runs(words, length):
                for part_number in numbers_of.get(run, ()):
                    yield part_number, whole_number


def _find_shared_words(training: Sequence[str], evaluation: Sequence[str]) -> Matches:
    number_of = {}
    for eval_number, text in enumerate(evaluation):
        for run in _word_runs(text.split(" "), SHARED_WORDS):
            number_of[run] = eval_number
    matches = {}
    for train_number, text in enumerate(training):
        for run in _word_runs(text.split(" "), SHARED_WORDS):
            if run in number_of:
                matches[train_number] = number_of[run]
    return matches


def _word_runs(words: Sequence[str], length: int) -> Iterator[str]:
    """All runs of `length` words in a row."""
    for start in range(len(words) - length + 1):
        yield " ".join(words[start : start + length])


def _find_similar(training: Sequence[str], evaluation: Sequence[str]) -> Matches:
    # Only texts of about the same length can be similar: training texts are sorted by length
    order = sorted(range(len(training)), key=lambda number: len(training[number]))
    texts = [training[number] for number in order]
    lengths = [len(text) for text in texts]
    matches = {}
    for eval_number, text in enumerate(evaluation):
        if not text:
            continue
        first = bisect_left(lengths, MIN_SIMILARITY * len(text))
        last = bisect_right(lengths, len(text) / MIN_SIMILARITY)
        similar = extract_iter(
            text,
            texts[first:last],
            scorer=Levenshtein.normalized_similarity,
            score_cutoff=MIN_SIMILARITY,
        )
        for _, _, offset in similar:
            matches[order[first + offset]] = eval_number
    return matches


RULES: dict[str, Rule] = {
    "equal": _find_equal,
    "contained": _find_contained,
    "words": _find_shared_words,
    "similar": _find_similar,
}
