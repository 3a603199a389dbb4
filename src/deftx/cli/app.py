"""The `deftx` command itself, to which the other modules of this folder add their commands."""

import inspect
from typing import Annotated

import typer

from deftx.cli.options import option

app = typer.Typer(
    help="Language and task vectors that add up to a model for a language without labels.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
fit_app = typer.Typer(
    help="Train a language vector on text, or a task vector on labels.", no_args_is_help=True
)
app.add_typer(fit_app, name="fit")
data_app = typer.Typer(help="Prepare training and evaluation data.", no_args_is_help=True)
app.add_typer(data_app, name="data")


def unwrap_help() -> None:
    """Give each command its docstring as help, with paragraphs of one line: the terminal wraps
    them."""
    for group in (app, fit_app, data_app):
        for command in group.registered_commands:
            text = inspect.getdoc(command.callback) or ""
            paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
            command.help = "\n\n".join(paragraphs)


def _print_version(wanted: bool) -> None:
    if wanted:
        import deftx

        print(deftx.__version__)
        raise typer.Exit()


@app.callback()
def top(
    version: Annotated[
        bool, option("Print the version.", "--version", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Language and task vectors that add up to a model for a language without labels."""
