"""Words of the texts that a task is learnt from, put into the spelling of the languages that it is wanted in.

Related languages write many words nearly alike: Indonesian `karena` is `kareuna` in Acehnese and `karana` in Banjarese.
Plain text of both is enough to find such pairs, without a dictionary. With a share of its words replaced so, a task
meets its targets' spellings beside labels. (The idea is ours; `deftx.tasks.noise` changes letters without any text.)
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist

from deftx.errors import DeftxError
from deftx.tasks.data import Examples, written
from deftx.tasks.table import task_of

SHARE = 0.8  # of the words that have a cognate, how many are replaced
SIMILARITY = 0.7  # of two spellings, at least: 1 − letters to change / letters of the longer one
SHORTEST = 4  # letters: shorter words are like too many others
OFTEN = 2  # times that a word occurs, at least: what occurs once is often a slip
MOST = 30_000  # words of the other language that are looked at, those that occur most
ROWS = 256  # words compared at once with all of the other language

_WORD = re.compile(r"[^\W\d_]+")


def cognates(texts: Iterable[str], target: Iterable[str], others: Iterable[str] = ()) -> dict[str, str]:
    """For the words of `texts` the most similarly spelt word of another language, in lower case, where there is one.

    target  plain text of the other language; words that are in `texts` or `others` too are not taken for its own
    others  further text of the language of `texts`

    Of equally similar words the one that occurs more often is taken, then the first in the alphabet.
    """
    ours, theirs = _counts(texts), _counts(target)
    known = ours + _counts(others)
    words = [word for word, count in ours.items() if count >= OFTEN and len(word) >= SHORTEST]
    new = [word for word, count in theirs.items() if count >= OFTEN and len(word) >= SHORTEST and known[word] < OFTEN]
    new = sorted(new, key=lambda word: (-theirs[word], word))[:MOST]  # of the best, `argmax` finds the first
    found = {}
    for start in range(0, len(words) if new else 0, ROWS):
        some = words[start : start + ROWS]
        alike = cdist(
            some, new, scorer=Levenshtein.normalized_similarity, score_cutoff=SIMILARITY, dtype=np.float32, workers=-1
        )
        best = alike.argmax(axis=1)
        found.update({word: new[at] for word, row, at in zip(some, alike, best, strict=True) if row[at]})
    return found


def respeller(tables: Sequence[Mapping[str, str]], share: float, seed: int) -> Callable[[str], str]:
    """A function that puts a text into the spelling of one of the languages, each as likely as that it stays as it is.

    Each word that the language's table has is replaced with probability `share`; capitals stay. The same calls in the
    same order give the same texts for a seed.
    """
    lots = random.Random(f"cognates {seed}")

    def spell(text: str) -> str:
        table = lots.choice([{}, *tables])

        def replaced(found: re.Match[str]) -> str:
            word = found.group()
            other = table.get(word.lower(), "")
            return _as_capital_as(word, other) if other and lots.random() < share else word

        return _WORD.sub(replaced, text)

    return spell


def with_cognates(
    examples: Examples,
    targets: Sequence[Sequence[str]],
    others: Sequence[str] = (),
    *,
    share: float = SHARE,
    seed: int = 0,
    task: str = "classification",
) -> Examples:
    """The examples, each in the spelling of one of several languages or as it is: see `respeller` and `cognates`.

    targets  plain text of each language; others: further text of the examples' own language
    task     what the examples are for: what labels point into stays as it is

    Raises DeftxError for a share that is not in (0, 1], and an unknown task.
    """
    check_share(share)
    texts = written(examples)
    spell = respeller([cognates(texts, target, others) for target in targets], share, seed)
    return task_of(task).respelt(examples, spell)


def check_share(share: float) -> None:
    """Raise DeftxError for a share of words that is none."""
    if not 0 < share <= 1:
        raise DeftxError(f"cognates for a share of {share}: give one above 0 and up to 1, such as {SHARE}")


def _counts(texts: Iterable[str]) -> Counter[str]:
    return Counter(word for text in texts for word in _WORD.findall(text.lower()))


def _as_capital_as(word: str, other: str) -> str:
    if word.isupper() and len(word) > 1:
        return other.upper()
    return other.capitalize() if word[:1].isupper() else other
