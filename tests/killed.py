"""Processes that are killed (SIGKILL) at a file operation of their own, one after the other, or
find the disk full there."""

import errno
import itertools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

FILE_OPERATIONS = {
    "open",
    "os.chmod",
    "os.listdir",
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.scandir",
    "os.symlink",
    "os.truncate",
    "shutil.rmtree",
}


def killed_at(fatal: int, root: Path, action: Callable[[], object]) -> bool:
    """Whether a process that does `action` was killed before its end.

    Args:
        fatal: The number of the file operation at which it is killed, counted from 1.
        root: The folder in which operations count.
        action: What the process does; an exception in it fails the test.
    """
    child = os.fork()
    if child == 0:
        operations = 0

        def count(name: str, arguments: tuple[object, ...]) -> None:
            nonlocal operations
            if name in FILE_OPERATIONS and str(root) in str(arguments[0]):
                operations += 1
                if operations == fatal:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert ended in (0, -signal.SIGKILL), "the action failed"
    return ended == -signal.SIGKILL


# what makes a file or a folder, and so needs a free inode
MAKING = {"open", "os.mkdir", "os.rename", "os.symlink"}


def full_disk_at(
    failing: int, root: Path, action: Callable[[], object], result: Path
) -> str | None:
    """What a process prints that does `action` and finds no free inode; None if it needs no more.

    Args:
        failing: The number of the operation that makes something from which on all fail, counted
            from 1.
        root: The folder on the full disk.
        action: What the process does.
        result: A file outside `root` for what it prints.
    """
    child = os.fork()
    if child == 0:
        makings = 0

        def refuse(name: str, arguments: tuple[object, ...]) -> None:
            nonlocal makings
            if name not in MAKING or str(root) not in str(arguments[0]):
                return
            reads_only = name == "open" and not _is_new(str(arguments[0]))
            if reads_only:
                return
            makings += 1
            if makings >= failing:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[0]))

        sys.addaudithook(refuse)
        code = 1
        try:
            action()
            code = 0
        except Exception as error:
            result.write_text(f"{type(error).__name__}: {error}")
        finally:
            os._exit(code)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if ended == 0:
        return None
    return result.read_text()


def _is_new(path: str) -> bool:
    return not os.path.lexists(path)


def fatal_operations(
    root: Path, action: Callable[[Path], object], *, step: int = 1
) -> Iterator[Path]:
    """A folder in `root` for each file operation of `action`, in which it was killed at that one.

    The last folder is of a process that was not killed. `step` leaves out all but every so many.
    """
    for fatal in itertools.count(1, step):
        folder = root / str(fatal)
        folder.mkdir()
        killed = killed_at(fatal, folder, lambda: action(folder))  # noqa: B023
        yield folder
        if not killed:
            assert fatal > 3, "there were hardly any operations"
            return
