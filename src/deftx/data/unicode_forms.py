"""When two texts count as the same, though Unicode writes them differently.

Equal are both forms of a letter with its marks (NFC and NFD), compatibility forms (ligatures, full
width, presentation forms), and texts with and without characters that are not seen (soft hyphens,
joiners, marks of direction, variation selectors, byte order marks). A zero-width space parts words
in scripts that write no spaces: a space, there.
"""

import unicodedata

import regex

_UNSEEN = regex.compile(r"\p{Default_Ignorable_Code_Point}+")
_PARTED = regex.compile(r"(?<=[\p{Khmer}\p{Lao}\p{Myanmar}\p{Thai}\p{Tibetan}])\u200b+")


def canonical(text: str) -> str:
    """The one form (NFKC, without what is not seen) of all texts that count as the same; case
    stays."""
    if text.isascii():
        return text
    seen = _UNSEEN.sub("", _PARTED.sub(" ", text))
    return unicodedata.normalize("NFKC", seen)


def caseless(text: str) -> str:
    """`canonical`, and the same for all spellings in capitals or without."""
    return canonical(canonical(text).casefold())
