"""When two texts count as the same, though Unicode writes them differently.

Equal are both forms of a letter with its marks (NFC and NFD), compatibility forms (ligatures, full
width, presentation forms), and texts with and without invisible characters (soft hyphens, joiners,
marks of direction, variation selectors, byte order marks). In scripts that write no spaces a
zero-width space separates words: it counts as a space there.
"""

import unicodedata

import regex

_INVISIBLE = regex.compile(r"\p{Default_Ignorable_Code_Point}+")
_ZERO_WIDTH_SPACE = regex.compile(r"(?<=[\p{Khmer}\p{Lao}\p{Myanmar}\p{Thai}\p{Tibetan}])\u200b+")


def canonical(text: str) -> str:
    """The one form (NFKC, without invisible characters) of all texts that count as the same; case
    stays."""
    if text.isascii():
        return text
    spaced = _ZERO_WIDTH_SPACE.sub(" ", text)
    visible = _INVISIBLE.sub("", spaced)
    return unicodedata.normalize("NFKC", visible)


def caseless(text: str) -> str:
    """As `canonical`, and the same whatever the case."""
    return canonical(canonical(text).casefold())
