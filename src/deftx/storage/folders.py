"""Folders and files written whole or not at all; folders are replaced only where they hold what is meant to be."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path

from deftx.errors import DeftxError
from deftx.storage.manifest import FILE

VECTOR, MODEL, SFT, PEFT = "vector", "model", "vector of LT-SFT", "PEFT adapter"
# the file that tells what a folder holds
MARKS = {VECTOR: FILE, MODEL: "config.json", SFT: "pytorch_diff.bin", PEFT: "adapter_config.json"}


def check_target(folder: str | os.PathLike[str], kind: str = VECTOR, *, force: bool = False) -> Path:
    """The real path that writing to `folder` would take; to be asked before long work.

    Raises DeftxError if something is there, unless `force` and it is a folder of this `kind` or an empty one.
    """
    target, standing = find(folder)
    if not os.path.lexists(standing):
        return target
    if not force:
        raise DeftxError(f"{target} exists: choose another folder, or replace the {kind} there with --force")
    if not os.path.isdir(standing) or (os.listdir(standing) and not os.path.isfile(standing / MARKS[kind])):
        raise DeftxError(f"{target} exists and is not a {kind}, so --force does not replace it: choose another folder")
    return target


@contextmanager
def new_folder(target: Path, *, force: bool = False) -> Iterator[Path]:
    """An empty folder beside `target` to write into; it gets the name at the end of the block.

    `target` is as `check_target` gave it. The new folder is complete and on the disk before it gets its name, so
    a crash leaves no folder, the old one or the new one. Replacing takes two renames. A crash between them leaves
    the old folder as `.NAME.old`: `find` looks for it there, and the next replacement cleans up. An exception in
    the block leaves everything as it was.
    """
    new = target.parent / f".{target.name}.{secrets.token_hex(4)}.tmp"
    target.parent.mkdir(parents=True, exist_ok=True)
    for leftover in target.parent.glob(f".{escape(target.name)}.{'[0-9a-f]' * 8}.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        new.mkdir()
        yield new
        for path in [*new.rglob("*"), new]:
            _sync(path)
        if force:
            _set_aside(target)
        os.rename(new, target)
        _sync(target.parent)
        shutil.rmtree(_aside(target), ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a small file, whole or not at all; its folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        half.write_text(text, encoding="utf-8")
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)


def find(folder: str | os.PathLike[str]) -> tuple[Path, Path]:
    """The path that is meant, and where its content is: aside, when a crash cut off its replacement."""
    target = Path(os.path.realpath(folder))
    aside = _aside(target)
    return target, aside if os.path.isdir(aside) and not os.path.lexists(target) else target


def _aside(target: Path) -> Path:
    return target.parent / f".{target.name}.old"


def _set_aside(target: Path) -> None:
    if os.path.lexists(target):
        aside = _aside(target)
        if aside.exists():  # older than the target: left by a crash after both renames
            shutil.rmtree(aside)
        os.rename(target, aside)


def _sync(path: Path) -> None:
    """Have the disk hold the file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
