"""Evaluation text in training text, which makes scores better than they are: finding it, before
anything is trained.

Texts are compared without case, in one of Unicode's forms (NFKC), without characters that are not
seen, and with every run of punctuation or white space as one space (see
`deftx.data.unicode_forms`). A training text leaks an evaluation text where

    equal      they are the same
    contained  one holds the other, of 25 characters or more, as whole words
    words      they share eight words in a row
    similar    their Levenshtein distance is at most a tenth of the longer one's length

These are near to the rules by which SMSA, whose reviews were translated into NusaX, is trimmed for
an evaluation on NusaX, but for the nearest review of each text, which that trimming leaves out
however far it is. In scripts that write no spaces between words only `equal` and `similar` find
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

CONTAINED = 25  # characters from which on a text that is found in another one is no coincidence
WORDS = 8  # in a row
SIMILAR = 0.9  # 1 - distance / length of the longer text

# For training and evaluation texts, both normalised: which evaluation text is found in which
# training text, by index.
Found = dict[int, int]
Rule = Callable[[Sequence[str], Sequence[str]], Found]


@dataclass(frozen=True)
class Leak:
    """Training text number `training` holds evaluation text number `evaluation`, as the rule `kind`
    has it."""

    training: int
    evaluation: int
    kind: str


def find_contamination(training: Sequence[str], evaluation: Sequence[str]) -> list[Leak]:
    """The training texts that leak an evaluation text, in order; of several reasons the first of
    RULES."""
    old, new = [normalised(text) for text in training], [normalised(text) for text in evaluation]
    found: dict[int, Leak] = {}
    for kind, rule in RULES.items():
        for place, of in rule(old, new).items():
            found.setdefault(place, Leak(place, of, kind))
    return [found[place] for place in sorted(found)]


def texts_of(examples: Examples) -> list[str]:
    """All texts of evaluation examples; of pairs, both."""
    return [*examples.texts, *(examples.pairs or [])]


def leaking(examples: Examples, evaluation: Sequence[str]) -> list[Leak]:
    """As `leaks`, for labelled examples: `training` is the number of the example, whichever of its
    texts it is."""
    found = by_row(find_contamination(texts_of(examples), evaluation), len(examples))
    return [replace(leak, training=number) for number, leak in found.items()]


def by_row(found: Sequence[Leak], rows: int) -> dict[int, Leak]:
    """The first leak of every row that has one, where the training texts were columns of so many
    rows, one by one."""
    first = {leak.training % rows: leak for leak in reversed(found)}
    return {row: first[row] for row in sorted(first)}


def counted(found: Sequence[Leak]) -> str:
    """How many leaks there are of each kind, in words."""
    kinds = Counter(leak.kind for leak in found)
    return ", ".join(f"{kinds[kind]} {kind}" for kind in RULES if kinds[kind])


def normalised(text: str) -> str:
    """Without case, in one form of Unicode's, every run of what is no letter, digit or mark on one
    as one space."""
    return " ".join(caseless(text).translate(_KEPT).split())


class _Kept(dict[int, int]):
    """For `str.translate`: characters that words are made of as they are, all others as a space."""

    def __missing__(self, code: int) -> int:
        kept = code if category(chr(code))[0] in "LNM" else ord(" ")
        self[code] = kept
        return kept


_KEPT = _Kept()


def _equal(training: Sequence[str], evaluation: Sequence[str]) -> Found:
    index = {text: of for of, text in enumerate(evaluation) if text}
    return {place: index[text] for place, text in enumerate(training) if text in index}


def _contained(training: Sequence[str], evaluation: Sequence[str]) -> Found:
    """Texts of WORDS words and more are left to the rule of shared words, which finds them too."""
    found = {place: of for of, place in _within(evaluation, training)}
    return {**{place: of for place, of in _within(training, evaluation)}, **found}


def _within(parts: Sequence[str], wholes: Sequence[str]) -> Iterator[tuple[int, int]]:
    """(part, whole) where a short part stands in a whole as whole words; one pair for each whole,
    and for each part."""
    index: dict[str, list[int]] = {}  # equal parts have one entry
    for number, part in enumerate(parts):
        if len(part) >= CONTAINED and part.count(" ") < WORDS - 1:
            index.setdefault(part, []).append(number)
    lengths = sorted({part.count(" ") + 1 for part in index})
    for number, whole in enumerate(wholes):
        words = whole.split(" ")
        for length in lengths:
            for run in _runs(words, length):
                yield from ((part, number) for part in index.get(run, ()))


def _words(training: Sequence[str], evaluation: Sequence[str]) -> Found:
    index = {run: of for of, text in enumerate(evaluation) for run in _runs(text.split(" "), WORDS)}
    runs = (
        (place, run) for place, text in enumerate(training) for run in _runs(text.split(" "), WORDS)
    )
    return {place: index[run] for place, run in runs if run in index}


def _runs(words: Sequence[str], length: int) -> Iterator[str]:
    return (" ".join(words[start : start + length]) for start in range(len(words) - length + 1))


def _similar(training: Sequence[str], evaluation: Sequence[str]) -> Found:
    """Only texts of about the same length can be: they are looked up in order of length."""
    order = sorted(range(len(training)), key=lambda place: len(training[place]))
    texts = [training[place] for place in order]
    lengths = [len(text) for text in texts]
    found = {}
    for of, text in enumerate(evaluation):
        if text:
            first, last = (
                bisect_left(lengths, SIMILAR * len(text)),
                bisect_right(lengths, len(text) / SIMILAR),
            )
            some = texts[first:last]
            for _, _, number in extract_iter(
                text, some, scorer=Levenshtein.normalized_similarity, score_cutoff=SIMILAR
            ):
                found[order[first + number]] = of
    return found


RULES: dict[str, Rule] = {
    "equal": _equal,
    "contained": _contained,
    "words": _words,
    "similar": _similar,
}
