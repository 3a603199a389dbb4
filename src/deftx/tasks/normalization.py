"""A target's texts in the spelling of the language that the task was learnt in.

A task learnt from texts without capitals reads those with capitals worse. And related languages
write many words nearly
alike: Acehnese `kareuna` and Banjarese `karana` are Indonesian `karena`. Text of the source is
enough to find the word that is meant, without a dictionary. Nothing is trained for it. (The idea is
ours; bringing a text nearer to what a model knows is called lexical normalisation.)
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import regex
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist

from deftx.data.examples import Examples, check_read, lower_case, written
from deftx.data.unicode_forms import canonical
from deftx.errors import DeftxError
from deftx.tasks.registry import task_of

SIMILARITY = 0.7  # of two spellings, at least: 1 − letters to change / letters of the longer one
SHORTEST = 4  # letters: shorter words are like too many others
# times that the source has a word, at least: what occurs once is often a slip, or another
# language's
OFTEN = 2
MOST = 50_000  # words of the source that are looked at, those that occur most
ROWS = 256  # words compared at once with all of the source

# Many scripts write vowels as marks, and some have joiners within words; a zero-width space stands
# between words
_WORD = regex.compile(r"(?V1)[\p{L}\p{M}[\p{Default_Ignorable_Code_Point}--[\u200b]]]+")


@dataclass(frozen=True)
class Spelling:
    """How texts are written anew.

    words  word in lower case, in the form of `deftx.data.unicode_forms` -> what stands in its place
    lower  whether capitals go
    """

    words: Mapping[str, str]
    lower: bool


def respelt(
    examples: Examples,
    like: Sequence[str],
    text: Sequence[str] = (),
    *,
    words: bool = True,
    task: str = "classification",
) -> Examples:
    """The examples as the source is written: without capitals where `like` has hardly any, with
    cognates for words.

    like   the texts that the task was learnt from; text: further text of their language
    words  whether words are replaced by the source's: see `cognates`
    task   what the examples are for: what labels point into stays as it is

    Raises DeftxError for an unknown task.
    """
    kind, spelling = task_of(task), spelling_for(written(examples), like, text, words=words)
    return kind.map_texts(examples, lambda line: respell(line, spelling))


def spelling_for(
    texts: Sequence[str], like: Sequence[str], text: Sequence[str] = (), *, words: bool = True
) -> Spelling:
    """How `texts` are put into the spelling of the source, and others of their language as far as
    they share words.

    The other parameters are those of `respelt`.
    """
    for some in (texts, like, text):
        check_read(some, "read_text")
    return Spelling(cognates(texts, [*like, *text]) if words else {}, lower_case(like))


def cognates(texts: Iterable[str], source: Iterable[str]) -> dict[str, str]:
    """For the words of `texts` that the source does not have, the most similarly spelt word that it
    has, if any.

    Words are in lower case, and are the same in every form of Unicode's
    (`deftx.data.unicode_forms`); what takes a word's place is written as the source mostly writes
    it. Of equally similar ones that which the source has more often is taken, then the first in the
    alphabet. Each word's is found by itself, whatever else `texts` hold.
    """
    counts, as_written = _counts(source)
    known = [word for word, count in counts.items() if count >= OFTEN and len(word) >= SHORTEST]
    known = sorted(known, key=lambda word: (-counts[word], word))[
        :MOST
    ]  # of the best, `argmax` finds the first
    texts_words, _ = _counts(texts)
    new = [word for word in texts_words if counts[word] < OFTEN and len(word) >= SHORTEST]
    found = {}
    for start in range(0, len(new) if known else 0, ROWS):
        some = new[start : start + ROWS]
        alike = cdist(
            some,
            known,
            scorer=Levenshtein.normalized_similarity,
            score_cutoff=SIMILARITY,
            dtype=np.float32,
            workers=-1,
        )
        best = alike.argmax(axis=1)
        for word, row, at in zip(some, alike, best, strict=True):
            if row[at]:
                found[word] = as_written[known[at]]
    return found


def respell(text: str, spelling: Spelling) -> str:
    """The text in a spelling; where capitals do not go, words keep them."""

    def spelt_word(match: Any) -> str:
        word: str = match.group()
        return _as_capital_as(word, spelling.words.get(canonical(word.lower()), ""))

    spelt = _WORD.sub(spelt_word, text)
    return spelt.lower() if spelling.lower else spelt


def plain_spelling(spelling: Spelling) -> dict[str, Any]:
    """What is written of a spelling, as JSON."""
    return {"lower_case": spelling.lower, "words": dict(spelling.words)}


def read_spelling(file: str | os.PathLike[str]) -> Spelling:
    """The spelling in a file that `deftx data respell --spelling` has written. Raises DeftxError
    for any other."""
    try:
        found = json.loads(Path(file).read_text(encoding="utf-8"))
        lower, words = found["lower_case"], found["words"]
        right = isinstance(lower, bool) and all(isinstance(word, str) for word in words.values())
    except OSError as error:
        raise DeftxError(f"cannot read {file}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        right = False
    if not right:
        raise DeftxError(
            f"{file} holds no spelling: write one with `deftx data respell ... --spelling FILE`"
        )
    return Spelling({canonical(word.lower()): other for word, other in words.items()}, lower)


def _counts(texts: Iterable[str]) -> tuple[Counter[str], dict[str, str]]:
    """How often each word occurs, and the form in which it is mostly written."""
    written = Counter(word for text in texts for word in _WORD.findall(text.lower()))
    counts, forms = Counter[str](), dict[str, str]()
    for word, count in sorted(
        written.items(), key=lambda item: -item[1]
    ):  # of equals, the first to occur
        form = canonical(word)
        counts[form] += count
        forms.setdefault(form, word)
    return counts, forms


def _as_capital_as(word: str, other: str) -> str:
    if not other:
        return word
    if word.isupper() and len(word) > 1:
        return other.upper()
    return other.capitalize() if word[:1].isupper() else other
