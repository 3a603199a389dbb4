"""Learning: language and task vectors, their settings, the demo."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deftx.cli.app import app, fit_app
from deftx.cli.options import (
    FILE,
    FORMATS,
    LABELLED,
    AnyBase,
    AsJson,
    Base,
    Changes,
    DryRun,
    Force,
    K,
    Keep,
    Kind,
    LabelColumn,
    Method,
    Out,
    PairColumn,
    Preset,
    Rank,
    Seed,
    TextColumn,
    option,
    path,
)
from deftx.messages import quiet_transformers, say

if TYPE_CHECKING:
    from deftx.core.vector import SparseVector


@fit_app.command(
    "language",
    epilog="Example: deftx fit language --base xlm-roberta-base --text min.txt --out vectors/min",
)
def fit_language(
    base: Base,
    text: Annotated[
        list[str], option(f"Text of the language ({FORMATS}); may be repeated.", **FILE)
    ],
    out: Out,
    column: Annotated[
        str, option("Column of texts, where a file has columns.", metavar="NAME")
    ] = "text",
    preset: Preset = None,
    method: Method = None,
    rank: Rank = None,
    k: K = None,
    keep: Keep = None,
    seed: Seed = None,
    set_: Changes = None,
    dry_run: DryRun = False,
    force: Force = False,
) -> None:
    """Learn a language vector from plain text. Presets: paper, standard, quick."""
    quiet_transformers()
    from deftx import config as settings
    from deftx import fit
    from deftx.cli import actions as commands
    from deftx.cli import arguments as given
    from deftx.cli.output import print_estimate
    from deftx.data.examples import read_text
    from deftx.experiments.estimate import estimate_language

    flags = {"method": method, "rank": rank, "k": k, "keep": keep, "seed": seed}
    chosen = given.settings_from(
        settings.LanguageVectorConfig(), settings.LANGUAGE_PRESETS, preset, flags, set_ or []
    )
    commands.check_free(out, force=force)
    lines = read_text(*text, column=column)
    if dry_run:
        print_estimate(estimate_language(base, lines, chosen), out)
        return

    def learn(checkpoint_dir: Path) -> "SparseVector":
        return fit.fit_language(base, lines, chosen, checkpoint_dir=checkpoint_dir, title=out.name)

    _print_learnt(out, commands.learn(out, learn, text, force=force))
    given.warn_of_little(lines)


@fit_app.command(
    "task",
    epilog="Example: deftx fit task --base xlm-roberta-base --train train.tsv --valid valid.tsv"
    " --source vectors/ind --out vectors/sentiment",
)
def fit_task(
    base: Base,
    train: Annotated[
        list[str],
        option(
            f"Labelled data ({LABELLED}); may be repeated, NAME= being the language then.",
            metavar="[NAME=]FILE",
        ),
    ],
    out: Out,
    valid: Annotated[
        list[str] | None,
        option(
            "Labelled data on which the best step is chosen, for each language; without it a tenth of --train.",
            metavar="[NAME=]FILE",
        ),
    ] = None,
    source: Annotated[
        list[str] | None,
        option(
            "Language vector of the labelled data's language, for each language.",
            metavar="[NAME=]VECTOR",
        ),
    ] = None,
    temperature: Annotated[
        float,
        option(
            "Evens out how often each language is seen: 1 follows the size of its data; higher is more even."
        ),
    ] = 1.0,
    kind: Kind = None,
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    preset: Preset = None,
    method: Method = None,
    rank: Rank = None,
    k: K = None,
    keep: Keep = None,
    seed: Seed = None,
    set_: Changes = None,
    ignore_base_mismatch: AnyBase = False,
    dry_run: DryRun = False,
    force: Force = False,
) -> None:
    """Learn a task vector from labelled data of any task. Presets: paper-sentiment, paper-nli,
    standard, quick."""
    quiet_transformers()
    from deftx import config as settings
    from deftx.cli import actions as commands
    from deftx.cli import arguments as given
    from deftx.cli.output import print_estimate
    from deftx.data.examples import ColumnNames, joined
    from deftx.experiments.estimate import estimate_task
    from deftx.fit import fit_task
    from deftx.storage.vector_files import load
    from deftx.tasks.registry import settled, task_of

    flags = {"task": kind, "method": method, "rank": rank, "k": k, "keep": keep, "seed": seed}
    chosen = given.settings_from(
        settings.TaskVectorConfig(), settings.TASK_PRESETS, preset, flags, set_ or []
    )
    commands.check_free(out, force=force)
    task = task_of(settled(chosen).task)
    columns = ColumnNames(text=text_column, pair=pair_column, label=label_column).over(task.columns)
    *files, vectors = given.of_sources(train, valid or [], source or [])
    train_sets, valid_sets = given.labelled(task, files[0], files[1], columns, chosen.seed)
    if dry_run:
        pooled = joined(list(train_sets.values())), joined(list(valid_sets.values()))
        print_estimate(estimate_task(base, *pooled, chosen), out)
        return
    above = {name: load(folder) for name, folder in vectors.items()} or None

    def learn(checkpoint_dir: Path) -> "SparseVector":
        return fit_task(
            base,
            train_sets,
            valid_sets,
            chosen,
            source=above,
            temperature=temperature,
            ignore_base_mismatch=ignore_base_mismatch,
            checkpoint_dir=checkpoint_dir,
            title=out.name,
        )

    _print_learnt(
        out,
        commands.learn(out, learn, [file for some in files for file in some.values()], force=force),
    )


def _print_learnt(out: Path, vector: "SparseVector") -> None:
    """One line about a new vector: how it did before, between and after its phases; and what to try
    if it did badly."""
    from deftx.experiments.benefit import advice_on, course_of
    from deftx.training.distributed import is_main_process

    if not is_main_process():
        return
    course = course_of(vector)
    sources = (
        [vector.info["source"], *vector.info.get("sources", {}).values()] if vector.head else []
    )
    alone = (
        "; without --source, so learnt on the base alone"
        if vector.head and not any(sources)
        else ""
    )
    print(f"{out}: {vector.info['kind']} vector, k = {vector.k:,}, {course}{alone}")
    for line in advice_on(course):
        say(line)


@app.command(epilog="Example: deftx settings task")
def settings(
    what: Annotated[
        list[str] | None,
        typer.Argument(help="language or task; without one, both.", metavar="[WHAT]"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List all settings for --set and recipes: their names, defaults, meanings, and values in
    presets."""
    from deftx.cli.output import print_json, print_table, settings_table
    from deftx.config import TABLES, described
    from deftx.errors import unknown

    for name in what or []:
        if name not in TABLES:
            raise unknown("kind of settings", name, TABLES)
    rows = {name: described(*TABLES[name]) for name in what or TABLES}
    if as_json:
        print_json({name: [asdict(row) for row in some] for name, some in rows.items()})
        return
    for number, (name, some) in enumerate(rows.items()):
        print(f"{chr(10) if number else ''}deftx fit {name}")
        print_table(*settings_table(some))


@app.command(epilog="Example: deftx demo --out demo")
def demo(
    out: Annotated[Path, option("Folder to write.", metavar="FOLDER", parser=path)] = Path("demo"),
    seed: Annotated[int, option("Decides everything random.")] = 0,
    force: Force = False,
) -> None:
    """Run the whole method on small artificial languages: no network, no GPU, a few minutes."""
    quiet_transformers()
    from deftx.experiments.demo.run import demo as run_demo

    run_demo(out, seed, force)
