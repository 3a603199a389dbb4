"""Random misspellings in the texts that a task is learnt from: related languages differ in spelling
first.

Aepli and Sennrich (2022), Improving Zero-Shot Cross-lingual Transfer Between Closely Related
Languages by Injecting Character-Level Noise, https://arxiv.org/abs/2109.06772.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable

import regex

# Two or more letters and their marks in a row: a word of one letter could be lost with it
_WORD = regex.compile(r"[\p{L}\p{M}]{2,}")


def misspeller(texts: Iterable[str], share: float, seed: int) -> Callable[[str], str]:
    """A function that changes one letter in some words of a text.

    The letter is left out, replaced, or has another one put before it, each equally likely. New
    letters are drawn as often as they occur in `texts`. The same calls in the same order give the
    same texts for a seed.

    Args:
        texts: Text of the language.
        share: The probability that a word is changed.
        seed: Which words and letters are drawn.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(letter for letter in text if letter.isalpha())
    letters = list(counts)
    weights = list(counts.values())
    generator = random.Random(f"noise {seed}")

    def misspelt(match: regex.Match[str]) -> str:
        word = match.group()
        if generator.random() >= share:
            return word
        position = generator.randrange(len(word))
        (drawn,) = generator.choices(letters, weights)
        leave_out, insert, replace = ("", 1), (drawn, 0), (drawn, 1)
        inserted, removed = generator.choice([leave_out, replace, insert])
        return word[:position] + inserted + word[position + removed :]

    return lambda text: _WORD.sub(misspelt, text)
