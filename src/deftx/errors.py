"""What deftx raises when the input is at fault, and how it names near misses."""

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any


class DeftxError(ValueError):
    """Wrong input. The message is one line: the value, what is allowed, what to do."""


class Diverged(DeftxError):
    """Training produced a loss that is not a finite number."""


class Locked(DeftxError):
    """Another process is at work at the same place."""


class NoSpace(DeftxError):
    """A disk is full."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        fix = "free some space, and repeat the command"
        super().__init__(f"cannot write {os.fspath(path)}: no space left on the disk; {fix}")


# of the operating system, for a disk, or a user's part of it, that is full
NO_SPACE_ERRORS = {errno.ENOSPC, errno.EDQUOT}


@contextmanager
def space_needed(path: str | os.PathLike[str]) -> Iterator[None]:
    """Within the block, a full disk is one error that names what was to be written.

    Args:
        path: The file or folder that the block writes.

    Raises:
        NoSpace: The disk is full.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, DeftxError) or not _is_no_space(error):
            raise
        raise NoSpace(path) from error


def _is_no_space(error: Exception) -> bool:
    """Whether an error says that a disk is full; safetensors has the number in its text only."""
    number = getattr(error, "errno", None)
    if number in NO_SPACE_ERRORS:
        return True
    return any(f"(os error {known})" in str(error) for known in NO_SPACE_ERRORS)


LONGEST_NAME = 100  # characters: a longer name is no misspelling of a known one
MOST_NAMES = 1000  # that are looked through for the nearest one, and are listed


def unknown(kind: str, name: str, known: Iterable[str], beside: Iterable[str] = ()) -> DeftxError:
    """The error for a name that is in no table: lists the known ones, and the nearest of these and
    those `beside`."""
    names = sorted(known)
    listed = ", ".join(names[:MOST_NAMES])
    if len(names) > MOST_NAMES:
        listed += f" and {len(names) - MOST_NAMES:,} others"
    return DeftxError(
        f"unknown {kind} {name!r:.100}{did_you_mean(name, [*names, *beside])}; known: {listed}"
    )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The known name that is spelt most like this one, in whatever case, as a question in brackets;
    "" without one.

    What is long is not compared: that takes time quadratic in its length.
    """
    if len(name) > LONGEST_NAME:
        return ""
    short = [other for other in islice(known, MOST_NAMES) if len(other) <= LONGEST_NAME]
    folded = {other.casefold(): other for other in short}
    near = get_close_matches(name.casefold(), folded, n=1)
    return f" (did you mean {folded[near[0]]!r}?)" if near else ""


def first_fault(error: Any) -> tuple[str, str]:
    """Where pydantic's ValidationError found the first fault, its keys parted by dots, and what it
    is."""
    first = error.errors(include_url=False)[0]
    return ".".join(map(str, first["loc"]))[:200], str(first["msg"])


def not_installed(error: ModuleNotFoundError, extra: str) -> DeftxError:
    """The error for a library that only an extra of deftx installs."""
    return DeftxError(f"{error.name} is not installed: pip install 'deftx[{extra}]'")


# how the stand-in begins that Git keeps for a large file
LFS = b"version https://git-lfs.github.com/spec/"
LFS_LARGEST = 1024  # bytes of a stand-in, by its specification


def check_downloaded(path: str | os.PathLike[str]) -> None:
    """Check that no file is only Git LFS's stand-in for what was to be downloaded.

    Raises:
        DeftxError: The file is, or one in the folder.
    """
    place = Path(path)
    files = sorted(place.iterdir()) if place.is_dir() else [place]
    for file in files:
        try:
            if (
                file.is_file()
                and file.stat().st_size <= LFS_LARGEST
                and file.read_bytes().startswith(LFS)
            ):
                fix = "type `git lfs pull` where it was cloned, or download it again"
                raise DeftxError(f"{file} is a Git LFS pointer, not the file itself: {fix}")
        except OSError:  # whoever reads it says so
            continue
