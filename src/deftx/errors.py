"""What deftx raises when the input is at fault, and how it names near misses."""

from collections.abc import Iterable
from difflib import get_close_matches


class DeftxError(ValueError):
    """Wrong input. The message is one line: the value, what is allowed, what to do."""


class Diverged(DeftxError):
    """Training produced a loss that is not a finite number."""


def unknown(kind: str, name: str, known: Iterable[str]) -> DeftxError:
    """The error for a name that is in no table: lists the known ones, the nearest first."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return DeftxError(f"unknown {kind} {name!r}{hint}; known: {', '.join(names)}")


def not_installed(error: ModuleNotFoundError, extra: str) -> DeftxError:
    """The error for a library that only an extra of deftx installs."""
    return DeftxError(f"{error.name} is not installed: pip install 'deftx[{extra}]'")
