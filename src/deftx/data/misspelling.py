"""Letters changed at random in the texts that a task is learnt from: spelling is much of what parts
related languages.

Aepli and Sennrich (2022), Improving Zero-Shot Cross-lingual Transfer Between Closely Related
Languages by Injecting Character-Level Noise, https://arxiv.org/abs/2109.06772.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import chain

import regex

_WORD = regex.compile(
    r"[\p{L}\p{M}]{2,}"
)  # letters and their marks in a row, too many to be lost with one of them


def misspeller(texts: Iterable[str], share: float, seed: int) -> Callable[[str], str]:
    """A function that changes one letter in each word of a text with probability `share`; other
    words stay.

    The letter is left out, replaced, or has another put before it, each as likely; new letters are
    drawn as often as they occur in `texts`. The same calls in the same order give the same texts
    for a seed.
    """
    counts = Counter(letter for letter in chain.from_iterable(texts) if letter.isalpha())
    letters, weights = list(counts), list(counts.values())
    lots = random.Random(f"noise {seed}")

    def changed(found: regex.Match[str]) -> str:
        word = found.group()
        if lots.random() >= share:
            return word
        at, (drawn,) = lots.randrange(len(word)), lots.choices(letters, weights)
        put, left_out = lots.choice([("", 1), (drawn, 1), (drawn, 0)])
        return word[:at] + put + word[at + left_out :]

    return lambda text: _WORD.sub(changed, text)
