"""Folders and files written whole or not at all, by one process at a time, and replaced only where
that is meant."""

import errno
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import IO

from deftx.errors import DeftxError, Locked, space_needed
from deftx.storage.manifest import FILE

VECTOR, MODEL, SFT, PEFT = "vector", "model", "vector of LT-SFT", "PEFT adapter"
LOCK = ".lock"
ATTEMPTS = 100  # where another process removes a folder just then
# the file that tells what a folder holds
MARKS = {VECTOR: FILE, MODEL: "config.json", SFT: "pytorch_diff.bin", PEFT: "adapter_config.json"}


def check_file(file: Path | None, *, force: bool) -> None:
    """Check that a file may be written.

    Raises:
        DeftxError: It is there already, and `force` is not set.
    """
    if file and file.exists() and not force:
        raise DeftxError(f"{file} exists: choose another file, or replace it with --force")


def check_target(
    folder: str | os.PathLike[str], kind: str = VECTOR, *, force: bool = False
) -> Path:
    """The real path that writing to `folder` would take; to be asked before long work.

    Raises:
        DeftxError: Something is there; with `force`, something else than a folder of this `kind` or
            an empty one.
    """
    target, standing = find(folder)
    if not os.path.lexists(standing):
        return target
    if not force:
        raise DeftxError(
            f"{target} exists: choose another folder, or replace the {kind} there with --force"
        )
    if not os.path.isdir(standing) or (
        os.listdir(standing) and not os.path.isfile(standing / MARKS[kind])
    ):
        raise DeftxError(
            f"{target} exists and is not a {kind}, so --force does not replace it: choose another "
            "folder"
        )
    return target


@contextmanager
def lock_directory(folder: Path) -> Iterator[None]:
    """Have `folder`, made where it is missing, to this process until the end of the block, or of
    the process.

    Raises Locked that names the folder where another process has it. Where the system or the disk
    knows no such locks (Windows, some network disks), nothing is refused. A folder that is empty at
    the end is removed.
    """
    lock = folder / LOCK
    with space_needed(folder):
        lock_file = _opened(lock)
    with lock_file as file:
        if not _locked(file.fileno(), lock):
            raise Locked(
                f"{folder} is in use by another deftx: wait until it is done, or choose another "
                "folder"
            )
        try:
            yield
        finally:
            with suppress(OSError):  # there is something else in it
                lock.unlink()
                folder.rmdir()


def _opened(lock: Path) -> IO[str]:
    """The file `lock`, it and its folder made where they are missing; anew where another process,
    which is done with the folder, removes it meanwhile."""
    for _ in range(ATTEMPTS):
        with suppress(FileNotFoundError, FileExistsError):
            lock.parent.mkdir(parents=True, exist_ok=True)
            return lock.open("a")
    lock.parent.mkdir(parents=True, exist_ok=True)
    return lock.open("a")


def _locked(file: int, path: Path) -> bool:
    """Whether the open file or folder at `path`, with this descriptor, is this process's alone
    now."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.exists(path) and os.path.samestat(os.stat(path), os.fstat(file))
    except BlockingIOError:
        return False
    except OSError:
        return True


@contextmanager
def new_folder(target: Path, *, force: bool = False) -> Iterator[Path]:
    """An empty folder beside `target` to write into; it gets the name at the end of the block.

    `target` is as `check_target` gave it. The new folder is complete and on the disk before it gets
    its name, so a crash leaves no folder, the old one or the new one. Replacing takes two renames.
    A crash between them leaves the old folder as `.NAME.old`: `find` looks for it there, and the
    next replacement cleans up. An exception in the block leaves everything as it was.
    """
    with _scratch(target) as new:
        yield new
        files = [*new.rglob("*")]
        _share(files, new)
        for path in [*files, new]:
            _sync(path)
        if force:
            _set_aside(target)
        _rename_to_free(new, target)
        _sync(target.parent)
        shutil.rmtree(_aside(target), ignore_errors=True)


def _rename_to_free(new: Path, target: Path) -> None:
    """Rename `new` to `target`.

    Raises:
        DeftxError: Another process made `target` meanwhile.
    """
    try:
        os.rename(new, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise DeftxError(
            f"another process has written {target} meanwhile: choose another folder"
        ) from error


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A name to write to; what is there at the end of the block becomes `path`, once the disk holds
    it.

    The folder of `path` is made where it is missing. What a crash left of an earlier attempt is
    removed.
    """
    with _scratch(path) as folder:
        half = folder / path.name
        yield half
        _share([half], folder)
        _sync(half)
        half.replace(path)


@contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """A new empty folder beside `target`, which is gone at the end; so are those that crashes left,
    but not those that other processes write in.

    A library that writes a file may make others beside it until that is done: in here they are
    nobody's.

    Raises:
        NoSpace: The disk is full.
    """
    with space_needed(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target.parent, escape(target.name))
        new, held = _held_anew(target)
        try:
            yield new
        finally:
            try:
                shutil.rmtree(new, ignore_errors=True)
            finally:
                os.close(held)


def remove_folder(folder: Path) -> None:
    """Remove a folder at once: a crash leaves it whole, or nothing by its name.

    It gets the name of a leftover first. What other crashes left in the same folder goes too.
    """
    os.rename(folder, _scratch_name(folder))
    _remove_leftovers(folder.parent, "*")


def _remove_leftovers(parent: Path, name: str) -> None:
    """Remove the scratch folders of targets with a `name` (a pattern) that no process holds."""
    for leftover in parent.glob(f".{name}.{'[0-9a-f]' * 8}.tmp"):
        with suppress(OSError):  # another user's
            held = _held(leftover)
            if held is not None:
                shutil.rmtree(leftover, ignore_errors=True)
                os.close(held)


def _scratch_name(target: Path) -> Path:
    return target.parent / f".{target.name}.{secrets.token_hex(4)}.tmp"


def _held_anew(target: Path) -> tuple[Path, int]:
    """A new folder beside `target`, and the descriptor that holds it; again where another process
    takes it for a leftover before it is held."""
    for _ in range(ATTEMPTS):
        new = _scratch_name(target)
        new.mkdir()
        try:
            held = _held(new)
        except OSError:
            shutil.rmtree(new, ignore_errors=True)
            raise
        if held is not None:
            return new, held
    raise DeftxError(
        f"{target.parent}: what is written there is removed by another program: choose another "
        "folder"
    )


def _held(folder: Path) -> int | None:
    """A descriptor that keeps a folder to this process until it is closed; None where another one
    has it or it is gone."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return None
    if _locked(descriptor, folder):
        return descriptor
    os.close(descriptor)
    return None


def _share(paths: Sequence[Path], folder: Path) -> None:
    """Let those read who may read `folder`, which is new: safetensors 0.8 writes files for their
    owner alone."""
    mode = folder.stat().st_mode & 0o666
    for path in paths:
        if path.is_file():
            path.chmod(mode)


def write_text(path: Path, text: str) -> None:
    """Write a small file, whole or not at all; its folder is made where it is missing."""
    with new_file(path) as half:
        half.write_text(text, encoding="utf-8")


def find(folder: str | os.PathLike[str]) -> tuple[Path, Path]:
    """The path that is meant, and where its content is: aside, when a crash cut off its
    replacement."""
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
