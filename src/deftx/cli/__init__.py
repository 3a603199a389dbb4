"""The `deftx` command: parse, call, print. What a command needs is imported when it runs, so that
help is quick."""

import os
import shlex
import sys
from collections.abc import Sequence

from deftx.cli import (
    transfer,
    learn,
    use,
    vectors,
    experiments,
)  # in the order in which help lists their commands
from deftx.cli.app import app
from deftx.messages import error_line, exit_on_sigterm, say, short_warnings, write_all_characters

WRONG_INPUT, STOPPED, TERMINATED = 2, 130, 143  # exit codes; the last two after Ctrl-C and SIGTERM

__all__ = ["app", "experiments", "learn", "main", "transfer", "use", "vectors"]


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point. Wrong input ends with one line and exit code 2; DEFTX_TRACEBACK=1 shows
    where it came from."""
    typed = list(sys.argv[1:] if arguments is None else arguments)
    write_all_characters()
    try:
        with short_warnings(), exit_on_sigterm(TERMINATED):
            ended = app(typed, prog_name="deftx", standalone_mode=False)
    except SystemExit as stop:
        ended = stop.code
    except Exception as error:
        line = error_line(error)
        if line is None or os.environ.get("DEFTX_TRACEBACK"):
            raise
        if line:
            say(line)
        sys.exit(WRONG_INPUT)
    if ended in (STOPPED, TERMINATED):
        say(f"stopped; to go on, type: {shlex.join(['deftx', *typed])}")
    sys.exit(ended)
