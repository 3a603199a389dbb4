"""Lexical normalisation: a target's texts in the spelling of the language of the training data.

A task learnt from texts without capitals reads texts with capitals worse. And related languages
spell many words almost alike: Acehnese `kareuna` and Banjarese `karana` are Indonesian `karena`.
Plain text of the source language is enough to find the word that is meant, without a dictionary,
and nothing is trained. (The idea of doing this for a related language is ours.)
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

from deftx.data.examples import Examples, check_read, written
from deftx.data.letter_case import lower_case
from deftx.data.unicode_forms import canonical
from deftx.errors import DeftxError
from deftx.tasks.registry import task_of

# Of two spellings: 1 - edit distance / length of the longer one
MIN_SIMILARITY = 0.7
# Letters: a shorter word is similar to too many others
MIN_LETTERS = 4
# Times that the source has a word: one that occurs once is often a slip, or of another language
MIN_SOURCE_COUNT = 2
# The source's most frequent words, which are compared with
MAX_SOURCE_WORDS = 50_000
# Words that are compared with all of the source's at once
WORDS_PER_BATCH = 256

# Many scripts write vowels as marks, and some have joiners within words; a zero-width space stands
# between words
_WORD = regex.compile(r"(?V1)[\p{L}\p{M}[\p{Default_Ignorable_Code_Point}--[\u200b]]]+")


@dataclass(frozen=True)
class Normalizer:
    """How texts are normalised.

    Attributes:
        words: Replacements of words. The keys are in lower case and in the form of
            `deftx.data.unicode_forms`.
        lower: Whether texts are put into lower case.
    """

    words: Mapping[str, str]
    lower: bool


def normalize(
    examples: Examples,
    like: Sequence[str],
    text: Sequence[str] = (),
    *,
    words: bool = True,
    task: str = "classification",
) -> Examples:
    """Write examples as the source is written.

    They are put into lower case if hardly any text of `like` has capitals, and their words are
    replaced by similarly spelt words of the source.

    Args:
        examples: The target's examples.
        like: The texts that the task was learnt from.
        text: Further text of their language.
        words: Whether words are replaced: see `cognates`.
        task: What the examples are for. Text that labels point into stays as it is.

    Raises:
        DeftxError: The task is unknown.
    """
    kind = task_of(task)
    normalizer = build_normalizer(written(examples), like, text, words=words)
    return kind.map_texts(examples, lambda line: normalize_text(line, normalizer))


def build_normalizer(
    texts: Sequence[str], like: Sequence[str], text: Sequence[str] = (), *, words: bool = True
) -> Normalizer:
    """The normalizer of some texts, and of others of their language as far as they share words.

    Args:
        texts: Text of the target language.
        like: The texts that the task was learnt from.
        text: Further text of their language.
        words: Whether words are replaced: see `cognates`.
    """
    for data in (texts, like, text):
        check_read(data, "read_text")
    replacements = cognates(texts, [*like, *text]) if words else {}
    return Normalizer(replacements, lower_case(like))


def cognates(texts: Iterable[str], source: Iterable[str]) -> dict[str, str]:
    """For words that the source does not have, its most similarly spelt word.

    Words are compared in lower case and in one form of Unicode (`deftx.data.unicode_forms`). Of
    equally similar words the most frequent one is taken, then the first in the alphabet. The
    replacement of a word does not depend on the other words of `texts`.

    Args:
        texts: Text of the target language.
        source: Text of the source language.

    Returns:
        Word -> its replacement, as the source mostly writes it. Words without a similar one are
        left out.
    """
    source_counts, usual_form = _word_counts(source)
    target_counts, _ = _word_counts(texts)

    # Words to compare with, the most frequent first: `argmax` takes the first of equals
    candidates = []
    for word, count in source_counts.items():
        if count >= MIN_SOURCE_COUNT and len(word) >= MIN_LETTERS:
            candidates.append(word)
    candidates.sort(key=lambda word: (-source_counts[word], word))
    candidates = candidates[:MAX_SOURCE_WORDS]
    if not candidates:
        return {}

    # Words to replace
    unseen = []
    for word in target_counts:
        if source_counts[word] < MIN_SOURCE_COUNT and len(word) >= MIN_LETTERS:
            unseen.append(word)

    replacements = {}
    for start in range(0, len(unseen), WORDS_PER_BATCH):
        batch = unseen[start : start + WORDS_PER_BATCH]
        # [batch, candidates], 0 where they are less similar than the cutoff
        similarities = cdist(
            batch,
            candidates,
            scorer=Levenshtein.normalized_similarity,
            score_cutoff=MIN_SIMILARITY,
            dtype=np.float32,
            workers=-1,
        )
        best = similarities.argmax(axis=1)
        for word, row, candidate in zip(batch, similarities, best, strict=True):
            if row[candidate]:
                replacements[word] = usual_form[candidates[candidate]]
    return replacements


def normalize_text(text: str, normalizer: Normalizer) -> str:
    """The text, normalised. Where it is not put into lower case, words keep their capitals."""

    def replacement(match: Any) -> str:
        word: str = match.group()
        other = normalizer.words.get(canonical(word.lower()), "")
        if not other:
            return word
        return _with_capitals_of(word, other)

    normalized = _WORD.sub(replacement, text)
    if normalizer.lower:
        return normalized.lower()
    return normalized


def plain_normalizer(normalizer: Normalizer) -> dict[str, Any]:
    """A normalizer as it is written to a JSON file."""
    return {"lower_case": normalizer.lower, "words": dict(normalizer.words)}


def read_normalizer(file: str | os.PathLike[str]) -> Normalizer:
    """Read a normalizer from a file that `deftx data normalize --normalizer` has written.

    Raises:
        DeftxError: The file cannot be read or is another one.
    """
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
        lower = content["lower_case"]
        words = content["words"]
        is_valid = isinstance(lower, bool) and all(
            isinstance(other, str) for other in words.values()
        )
    except OSError as error:
        raise DeftxError(f"cannot read {file}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        is_valid = False
    if not is_valid:
        raise DeftxError(
            f"{file} holds no normalizer: write one with "
            "`deftx data normalize ... --normalizer FILE`"
        )
    return Normalizer({canonical(word.lower()): other for word, other in words.items()}, lower)


def _word_counts(texts: Iterable[str]) -> tuple[Counter[str], dict[str, str]]:
    """How often each word occurs, and the form in which it is mostly written.

    Forms of a word differ by how Unicode writes them; of equally frequent ones, the first to occur.
    """
    form_counts: Counter[str] = Counter()
    for text in texts:
        form_counts.update(_WORD.findall(text.lower()))
    counts: Counter[str] = Counter()
    usual_form: dict[str, str] = {}
    for form, count in form_counts.most_common():
        word = canonical(form)
        counts[word] += count
        usual_form.setdefault(word, form)
    return counts, usual_form


def _with_capitals_of(word: str, other: str) -> str:
    """`other` in capitals, or with a capital, if `word` is."""
    if word.isupper() and len(word) > 1:
        return other.upper()
    if word[:1].isupper():
        return other.capitalize()
    return other
