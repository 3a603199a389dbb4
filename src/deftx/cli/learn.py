"""Training: language and task vectors, their settings, the demo."""

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
    """Train a language vector on plain text. Presets: paper, standard, quick."""
    quiet_transformers()
    from deftx import fit
    from deftx.cli import actions
    from deftx.cli.arguments import settings_from, warn_of_little
    from deftx.cli.output import print_estimate
    from deftx.config import LANGUAGE_PRESETS, LanguageVectorConfig
    from deftx.data.reading import read_text
    from deftx.experiments.estimate import estimate_language

    # Check everything that is typed before anything is trained.
    options = {"method": method, "rank": rank, "k": k, "keep": keep, "seed": seed}
    config = settings_from(LanguageVectorConfig(), LANGUAGE_PRESETS, preset, options, set_ or [])
    actions.check_free(out, force=force)
    lines = read_text(*text, column=column)
    if dry_run:
        print_estimate(estimate_language(base, lines, config), out)
        return

    def train(checkpoint_dir: Path) -> "SparseVector":
        return fit.fit_language(base, lines, config, checkpoint_dir=checkpoint_dir, title=out.name)

    vector = actions.learn(out, train, text, force=force)
    _print_new_vector(out, vector)
    warn_of_little(lines)


@app.command(
    epilog="Example: deftx extend --base xlm-roberta-base --text min.txt --out bases/xlmr-min"
)
def extend(
    base: Base,
    text: Annotated[
        list[str], option(f"Text of the language ({FORMATS}); may be repeated.", **FILE)
    ],
    out: Out,
    pieces: Annotated[int, option("How many new pieces at most.", metavar="NUMBER")] = 500,
    column: Annotated[
        str, option("Column of texts, where a file has columns.", metavar="NAME")
    ] = "text",
    force: Force = False,
) -> None:
    """Save a base with more pieces, for a language whose script or words its tokenizer does not
    know. Vectors are then learnt on the new base, and fit it alone."""
    quiet_transformers()
    from deftx.cli.actions import check_free
    from deftx.data.reading import read_text
    from deftx.models.vocabulary import extend_base

    check_free(out, force=force)
    lines = read_text(*text, column=column)
    new_pieces = extend_base(base, lines, out, pieces=pieces, force=force)
    first = ", ".join(piece.text for piece in new_pieces[:10])
    print(f"{out}: {base} with {len(new_pieces):,} more pieces, such as {first}")


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
            f"Labelled data ({LABELLED}). For several languages, repeat it as NAME=FILE.",
            metavar="[NAME=]FILE",
        ),
    ],
    out: Out,
    valid: Annotated[
        list[str] | None,
        option(
            "Labelled data on which the best step is chosen, for each language; without it, a tenth"
            " of --train.",
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
            "How evenly several languages are seen: 1 follows the size of their data, a larger"
            " number is more even."
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
    """Train a task vector on labelled data. Presets: paper-sentiment, paper-nli, standard,
    quick."""
    quiet_transformers()
    from deftx.cli import actions
    from deftx.cli.arguments import labelled, of_sources, settings_from
    from deftx.cli.output import print_estimate
    from deftx.config import TASK_PRESETS, TaskVectorConfig
    from deftx.data.examples import ColumnNames, joined
    from deftx.experiments.estimate import estimate_task
    from deftx.fit import fit_task
    from deftx.storage.vector_files import load
    from deftx.tasks.registry import settled, task_of
    from deftx.training.distributed import is_main_process

    # Check everything that is typed before anything is trained.
    options = {
        "task": kind,
        "method": method,
        "rank": rank,
        "k": k,
        "keep": keep,
        "seed": seed,
    }
    config = settings_from(TaskVectorConfig(), TASK_PRESETS, preset, options, set_ or [])
    actions.check_free(out, force=force)
    task = task_of(settled(config).task)
    columns = ColumnNames(text=text_column, pair=pair_column, label=label_column).over(task.columns)
    train_files, valid_files, vectors = of_sources(train, valid or [], source or [])
    train_sets, valid_sets = labelled(task, train_files, valid_files, columns, config.seed)
    if dry_run:
        all_train = joined(list(train_sets.values()))
        all_valid = joined(list(valid_sets.values()))
        print_estimate(estimate_task(base, all_train, all_valid, config), out)
        return
    sources = {name: load(folder) for name, folder in vectors.items()} or None

    def run_fit(checkpoint_dir: Path) -> "SparseVector":
        return fit_task(
            base,
            train_sets,
            valid_sets,
            config,
            source=sources,
            temperature=temperature,
            ignore_base_mismatch=ignore_base_mismatch,
            checkpoint_dir=checkpoint_dir,
            title=out.name,
        )

    files = [*train_files.values(), *valid_files.values()]
    vector = actions.learn(out, run_fit, files, force=force)
    _print_new_vector(out, vector)
    if is_main_process():
        advice = actions.advice_on_trained_task(
            base, vector, sources, valid_sets, ignore_base_mismatch=ignore_base_mismatch
        )
        for line in advice:
            say(line)


def _print_new_vector(out: Path, vector: "SparseVector") -> None:
    """Print one line about a new vector: how it did before, between and after its phases; and what
    to try if it did badly."""
    from deftx.experiments.benefit import advice_on, course_of
    from deftx.training.distributed import is_main_process

    if not is_main_process():
        return
    course = course_of(vector)
    alone = ""
    if vector.head is not None:
        sources = [vector.provenance.source, *vector.provenance.sources.values()]
        if all(source is None for source in sources):
            alone = "; without --source, so trained on the base alone"
    print(f"{out}: {vector.provenance.kind} vector, k = {vector.k:,}, {course}{alone}")
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
    """List all settings for --set and recipes: name, default, values in presets, meaning."""
    from deftx.cli.output import print_json, print_table, settings_table
    from deftx.config import TABLES, described
    from deftx.errors import unknown

    for name in what or []:
        if name not in TABLES:
            raise unknown("kind of settings", name, TABLES)
    rows_of = {name: described(*TABLES[name]) for name in what or TABLES}
    if as_json:
        plain = {}
        for name, rows in rows_of.items():
            plain[name] = [asdict(row) for row in rows]
        print_json(plain)
        return
    for number, (name, rows) in enumerate(rows_of.items()):
        if number:
            print()
        print(f"deftx fit {name}")
        print_table(*settings_table(rows))


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
