"""Processes that are killed (SIGKILL) at a file operation of their own, one after the other."""

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
