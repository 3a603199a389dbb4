"""Whole comparisons, and the data that they rest on."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from deftx.cli.app import app, data_app
from deftx.cli.options import (
    FILE,
    FORMATS,
    AsJson,
    Force,
    option,
    path,
)
from deftx.cli.output import print_json, print_plan, print_table
from deftx.messages import quiet_transformers, say

SHOWN_WORDS = 6  # examples of what was replaced


@app.command(epilog="Example: deftx run recipes/nusax-nano.yaml --out runs/nusax --set seeds=[0]")
def run(
    recipe: Annotated[
        Path, typer.Argument(help="Recipe, a YAML file.", metavar="RECIPE", parser=path)
    ],
    out: Annotated[
        Path | None,
        option("Folder of the run; without it runs/RECIPE.", metavar="FOLDER", parser=path),
    ] = None,
    store: Annotated[
        Path | None,
        option(
            "Folder of finished steps; without it `store` beside OUT.",
            metavar="FOLDER",
            parser=path,
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        option(
            "Any key of the recipe, such as seeds=[0] or task.training.batch_size=4.",
            "--set",
            metavar="KEY=VALUE",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        option(
            "Print the plan, which steps are done, and an estimate for the rest; train nothing.",
            "--dry-run",
        ),
    ] = False,
    jobs: Annotated[int, option("Steps at a time; on Ray, 1 means as many as fit.", min=1)] = 1,
    executor: Annotated[str, option("local or ray.", metavar="NAME")] = "local",
    ray_address: Annotated[
        str | None, option("A running Ray cluster (or auto).", metavar="ADDRESS")
    ] = None,
    step_cpus: Annotated[
        float | None, option("Cores that a step takes on Ray; without it 1.", min=0)
    ] = None,
    step_gpus: Annotated[
        float | None, option("GPUs that a step takes on Ray; without it none.", min=0)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Carry out a recipe, or resume it: every fit, every score, and the table."""
    quiet_transformers()
    from deftx.cli.arguments import assigned
    from deftx.experiments import executors
    from deftx.experiments.recipe import load_recipe
    from deftx.experiments.run import prepare, run_recipe, table

    checked, folder = load_recipe(recipe, assigned(set_ or [])), out or Path("runs") / recipe.stem
    where = store or folder.parent / "store"
    if dry_run:
        print_plan(prepare(checked, where), as_json=as_json)
        return
    chosen, room = executors.named(
        executor, jobs, ray_address, {"num_cpus": step_cpus, "num_gpus": step_gpus}
    )
    scores = run_recipe(checked, folder, where, chosen, room, said=lambda line, *_: say(line))
    if as_json:
        print_json([score.row() for score in scores])
    else:
        print(table(scores, str(checked.task.training.metric), checked.labelled), end="")


@app.command(epilog="Example: deftx runs runs")
def runs(
    folder: Annotated[
        Path, typer.Argument(help="Folder of runs.", metavar="FOLDER", parser=path)
    ] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """List runs: how far each is, and how much disk its steps take in the store."""
    from deftx.experiments.housekeeping import runs as runs_in

    found = runs_in(folder)
    if as_json:
        print_json([{**asdict(run), "folder": str(run.folder)} for run in found])
        return
    cells = [
        [r.folder.name, f"{r.done}/{r.steps}", f"{r.scored}/{r.scores}", f"{r.bytes / 1e9:.2f}"]
        for r in found
    ]
    print_table(["run", "steps", "scores", "GB"], cells)


@app.command(epilog="Example: deftx prune runs/store --deltas")
def prune(
    store: Annotated[Path, typer.Argument(help="Store.", metavar="STORE", parser=path)],
    runs: Annotated[
        Path | None,
        option(
            "Folder of the runs to be kept; without it that of STORE.",
            metavar="FOLDER",
            parser=path,
        ),
    ] = None,
    deltas: Annotated[
        bool, option("Also remove the phase-1 results of finished vectors.", "--deltas")
    ] = False,
    dry_run: Annotated[bool, option("Only say what would be removed.", "--dry-run")] = False,
) -> None:
    """Free disk space in a store: remove steps that no run needs, and with --deltas also the
    phase-1 results of finished vectors."""
    from deftx.experiments import housekeeping
    from deftx.experiments.store import size

    opened = housekeeping.store_at(store)
    runs_folder = runs or opened.root.absolute().parent
    folders = housekeeping.prunable(opened, runs_folder, deltas=deltas)
    if dry_run:
        freed = sum(size(folder) for folder in folders)
        verb = "would be"
    else:
        freed = housekeeping.prune(opened, folders)
        verb = "are"
    print(f"{store}: {len(folders)} folders, {freed / 1e9:.2f} GB {verb} freed")


@app.command(epilog="Example: deftx report runs/nusax-nano")
def report(
    run: Annotated[Path, typer.Argument(help="Folder of `deftx run`.", metavar="RUN", parser=path)],
    out: Annotated[
        Path | None,
        option("Folder to write; without it RUN/report.", metavar="FOLDER", parser=path),
    ] = None,
    baseline: Annotated[
        str | None,
        option("Variant to compare with, instead of the recipe's.", metavar="VARIANT"),
    ] = None,
) -> None:
    """Write a run's report as one page and as Markdown: tables, comparisons and figures. An earlier
    report is replaced."""
    from deftx.experiments.report.page import write_report

    print(f"{write_report(run, out, baseline=baseline)}: the report of {run}")


@data_app.command(
    "trim", epilog="Example: deftx data trim smsa.tsv --against nusax/ind.tsv --out trimmed.tsv"
)
def data_trim(
    data: Annotated[
        str, typer.Argument(help=f"Text or labelled data to train on ({FORMATS}).", **FILE)
    ],
    against: Annotated[list[str], option(f"Evaluation data ({FORMATS}); may be repeated.", **FILE)],
    column: Annotated[
        list[str] | None,
        option("Column to compare; without it text, premise and hypothesis.", metavar="NAME"),
    ] = None,
    out: Annotated[
        Path | None, option("File for the other rows.", metavar="FILE", parser=path)
    ] = None,
    as_json: AsJson = False,
    force: Force = False,
) -> None:
    """Find training text that contains evaluation text: equal, contained, with eight words in a row
    in common, or nearly equal."""
    from deftx.cli.data_actions import trim

    matches = trim(data, against, column or [], out, force=force)
    if as_json:
        print_json(matches)
        return
    for match in matches:
        print(f"{match['row']}: {match['kind']}, {match['of']}")
    written = f"; the others are in {out}" if out else ""
    print(f"{len(matches)} rows of {data} hold evaluation text{written}")


@data_app.command(
    "normalize",
    epilog="Example: deftx data normalize reviews.txt --like smsa.tsv --text ind.txt --out new.txt",
)
def data_normalize(
    data: Annotated[
        str,
        typer.Argument(help=f"Texts in a target language, labelled or not ({FORMATS}).", **FILE),
    ],
    like: Annotated[
        list[str], option(f"What the task was learnt from ({FORMATS}); may be repeated.", **FILE)
    ],
    out: Annotated[Path | None, option("File for the texts.", metavar="FILE", parser=path)] = None,
    normalizer: Annotated[
        Path | None,
        option("File for how they are normalised, for `deftx serve`.", metavar="FILE", parser=path),
    ] = None,
    text: Annotated[
        list[str] | None,
        option(f"Further text of the same language ({FORMATS}); may be repeated.", **FILE),
    ] = None,
    case_only: Annotated[
        bool, option("Leave words as they are, but for capitals.", "--case-only")
    ] = False,
    column: Annotated[
        list[str] | None,
        option("Column to change; without it text, premise and hypothesis.", metavar="NAME"),
    ] = None,
    as_json: AsJson = False,
    force: Force = False,
) -> None:
    """Put a target's texts into the spelling of a related language that a task was learnt in."""
    from deftx.cli.data_actions import write_normalized
    from deftx.tasks.normalization import plain_normalizer

    result = write_normalized(
        data,
        like,
        text or [],
        column or [],
        out,
        normalizer_out=normalizer,
        words=not case_only,
        force=force,
    )
    if as_json:
        print_json(plain_normalizer(result))
        return
    what = f"{out}: the texts of" if out else f"{normalizer}: a normalizer for"
    case = ", all in lower case" if result.lower else ""
    examples = [f"{word} {other}" for word, other in list(result.words.items())[:SHOWN_WORDS]]
    such_as = f", such as {', '.join(examples)}" if examples else ""
    print(f"{what} {data}{case}, {len(result.words):,} words in another spelling{such_as}")


data_app.command("respell", hidden=True)(data_normalize)  # what it was called before
