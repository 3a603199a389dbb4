"""The `deftx` command: parse, call, print. What a command needs is imported when it runs, so that
help is quick."""

import os
import shlex
import sys
from collections.abc import Sequence

# isort: off
# In the order in which help lists their commands.
from deftx.cli import transfer, learn, use, vectors, sharing, experiments

# isort: on
from deftx.cli.app import app, unwrap_help
from deftx.messages import (
    error_line,
    exit_on_sigterm,
    program_name,
    say,
    short_warnings,
    write_all_characters,
)

# Exit codes: wrong input, and what a shell expects after Ctrl-C and SIGTERM.
WRONG_INPUT = 2
STOPPED = 130
TERMINATED = 143

unwrap_help()

__all__ = ["app", "experiments", "learn", "main", "sharing", "transfer", "use", "vectors"]


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point.

    Wrong input ends with one line and exit code 2; with DEFTX_TRACEBACK=1 a traceback follows.
    """
    if arguments is None:
        arguments = sys.argv[1:]
    words = list(arguments)
    write_all_characters()
    try:
        with short_warnings(), exit_on_sigterm(TERMINATED):
            exit_code = app(words, prog_name="deftx", standalone_mode=False)
    except SystemExit as stop:
        exit_code = stop.code
    except Exception as error:
        line = error_line(error)
        if line is None or os.environ.get("DEFTX_TRACEBACK"):
            raise
        if line:
            say(line)
        sys.exit(WRONG_INPUT)
    if exit_code in (STOPPED, TERMINATED):
        say(f"stopped; to go on, type: {program_name()} {shlex.join(words)}")
    sys.exit(exit_code)
