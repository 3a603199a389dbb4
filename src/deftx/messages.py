"""What a process says on standard error, one line each, and how it ends when it is told to."""

import io
import os
import shlex
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from typer.exceptions import TyperException

from deftx.errors import NO_SPACE_ERRORS, DeftxError, NoSpace

# By class name, since the classes are those of libraries that need not have been imported.
KNOWN = {
    "MemoryError": "out of memory: lower training.batch_size and raise training.accumulate, with"
    " --set",
    "OutOfMemoryError": "out of GPU memory: lower training.batch_size and raise"
    " training.accumulate, with --set",
    "SafetensorError": "cannot read or write weights ({}): check the free space and the files",
}


def say(message: str) -> None:
    """Write one line to standard error."""
    print(f"deftx: {message}", file=sys.stderr)


def program_name() -> str:
    """What to type for `deftx` in this shell: its name where the shell finds it, else its path."""
    program = Path(sys.argv[0])
    as_module = (program.parent.name, program.name) == ("deftx", "__main__.py")
    if as_module and shutil.which("deftx") is None:
        return f"{shlex.quote(sys.executable)} -m deftx"
    if program.name != "deftx" or not program.exists():  # run as a module, or from a test
        return "deftx"
    found = shutil.which("deftx")
    if found and os.path.samefile(found, program):
        return "deftx"
    if program.is_absolute() and program.is_relative_to(Path.cwd()):
        program = program.relative_to(Path.cwd())
    return shlex.quote(str(program))


def error_line(error: Exception) -> str | None:
    """What is wrong and what to do, in one line; None for what no input of users can cause."""
    message = " ".join(str(error).split())
    if isinstance(error, DeftxError):
        return message
    if isinstance(
        error, TyperException
    ):  # how the command was typed; without a message help was shown instead
        complaint, context = error.format_message().rstrip("."), getattr(error, "ctx", None)
        hint = f"; see {context.command_path} --help" if context else ""
        return complaint and complaint + hint
    if isinstance(error, OSError) and error.errno in NO_SPACE_ERRORS and error.filename:
        return str(NoSpace(error.filename))
    if isinstance(error, OSError):
        what = ": ".join(str(part) for part in (error.filename, error.strerror) if part)
        return f"{what or message}: check the path, its permissions and the free space"
    if (
        "can't allocate memory" in message
    ):  # what torch says of a processor's memory, in a RuntimeError
        return KNOWN["MemoryError"]
    names = [kind.__name__ for kind in type(error).__mro__]
    return next((line.format(message) for name, line in KNOWN.items() if name in names), None)


@contextmanager
def short_warnings() -> Iterator[None]:
    """Within the block, deftx's own warnings are one line, and those of other libraries are not
    shown."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        say(f"warning: {' '.join(str(message).split())}")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", module="deftx")
        warnings.showwarning = show
        yield


def quiet_hub() -> None:
    """Leave out what the hub's client says besides its progress: errors come as one line."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub.utils.logging import set_verbosity_error

    set_verbosity_error()  # type: ignore[no-untyped-call]


def write_all_characters() -> None:
    """Have standard output and error write what their encoding lacks as \\u1234, rather than lose
    what is printed."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def exit_on_sigterm(code: int) -> Iterator[None]:
    """Within the block, SIGTERM ends the program as `sys.exit(code)` would, cleaning up on the
    way."""
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield
        return

    def end(*_: object) -> None:
        raise SystemExit(code)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def quiet_transformers() -> None:
    """Leave out what transformers says while it loads: weights left unused and new ones are meant
    to be there."""
    quiet_hub()
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
