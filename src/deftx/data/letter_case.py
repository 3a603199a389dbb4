"""Whether texts are in lower case."""

from collections.abc import Sequence

MAX_CAPITALS_SHARE = 0.01  # of texts with a capital, where they count as lower-case text


def capitals(texts: Sequence[str]) -> bool:
    """Whether more than a few of the texts have a capital."""
    with_capital = sum(text != text.lower() for text in texts)
    return with_capital > MAX_CAPITALS_SHARE * len(texts)


def lower_case(texts: Sequence[str]) -> bool:
    """Whether hardly any of the texts has a capital, though their letters have two cases."""
    cased = [text for text in texts if text.lower() != text.upper()]
    return bool(cased) and not capitals(cased)
