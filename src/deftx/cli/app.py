"""The `deftx` command itself, which the modules beside this one hang their commands on."""

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
    help="Learn a language vector from text, or a task vector from labels.", no_args_is_help=True
)
app.add_typer(fit_app, name="fit")
data_app = typer.Typer(help="Look after training and evaluation data.", no_args_is_help=True)
app.add_typer(data_app, name="data")


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
