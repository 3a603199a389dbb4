"""Carry out a recipe: its plan, its steps, its scores, its table. A run that was stopped goes on.

RUN/recipe.json      the recipe
RUN/steps.json       the store, and the steps that the recipe comes to, with what uses them
RUN/trimmed.json     what was left out of the training data, since it holds evaluation text
RUN/results.jsonl    one row per score: variant, seed, language, examples, the metrics, the step.
                     results.parquet too, where pyarrow is installed
RUN/results.md       the table: mean ± standard deviation over the seeds

The results of the steps are in a store, which runs share: see `deftx.experiments.store`.
"""

import json
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from deftx.errors import DeftxError
from deftx.experiments.data import read
from deftx.experiments.estimate import seconds_left
from deftx.experiments.executors import Executor, here, work_off
from deftx.experiments.plan import Plan, Step, make_plan
from deftx.experiments.recipe import Recipe, compared_metrics
from deftx.experiments.report.comparisons import AVERAGE
from deftx.experiments.report.tables import duration, spread
from deftx.experiments.run_folder import RECIPE, RESULTS, STEPS, TRIMMED, read_steps
from deftx.experiments.store import SCORES, VECTOR, Store
from deftx.storage.atomic_files import lock_directory, new_file, write_text
from deftx.training import distributed

TABLE = "results.md"


@dataclass(frozen=True)
class Score:
    """One variant's scores on one language's test data, shares from 0 to 1, and the step that gave
    them."""

    variant: str
    seed: int
    language: str
    examples: int
    scores: dict[str, float]
    step: str = ""

    def row(self) -> dict[str, Any]:
        """The score as a row of results.jsonl."""
        about = {
            "variant": self.variant,
            "seed": self.seed,
            "language": self.language,
            "examples": self.examples,
        }
        return {**about, **self.scores, "step": self.step}


@dataclass(frozen=True)
class Prepared:
    """A recipe about to be carried out: its plan, and the store."""

    recipe: Recipe
    plan: Plan
    store: Store
    trimmed: dict[str, str]

    def remaining(self) -> list[Step]:
        """The steps that still have to be carried out."""
        return self.plan.remaining(self.store.done)


def prepare(recipe: Recipe, store: Path) -> Prepared:
    """Read and check all that a recipe needs, and plan it.

    Raises:
        DeftxError: Something is wrong with the recipe.
    """
    data = read(recipe)
    steps_store = Store(store.resolve())
    steps_store.record_tokenizer(data.base, data.reading)
    plan = make_plan(recipe, data, steps_store)
    return Prepared(recipe, plan, steps_store, dict(data.trimmed))


def run_recipe(
    recipe: Recipe,
    out: Path,
    store: Path | None = None,
    executor: Executor = here,
    room: int = 1,
    said: Callable[[str, int, int], None] = lambda line, done, total: None,
    ready: Callable[["Prepared"], None] = lambda run: None,
) -> list[Score]:
    """Carry out a recipe, and give all its scores.

    Args:
        recipe: The recipe.
        out: The folder of the run.
        store: Where finished steps are taken from and put; None: the folder `store` beside `out`.
        executor: Where the steps are carried out: see `deftx.experiments.executors`.
        room: How many steps are carried out at once.
        said: Is told what happens in a line, how many steps are done, and how many there are.
        ready: Is told of the run once all that it needs was read and checked, before its first
            step.

    Raises:
        Locked: Another process is at work in `out`.
        DeftxError: A step failed. All that does not need it is done all the same.
    """
    distributed.refuse_several_processes("a run")
    with lock_directory(out):
        run = prepare(recipe, store or out.parent / "store")
        ready(run)
        _describe(run, out)

        def report(step: Step, became: str) -> None:
            total = len(run.plan.steps)
            done = total - len(run.remaining())
            said(_line(run, step, became), done, total)
            if became == "done" and step.kind in SCORING:
                _write_scores(run, out)

        run.store.remove_leftovers(run.plan.steps)
        try:
            with executor(run.store) as submit:
                work_off(run.plan, run.store, submit, room, report)
        finally:
            _write_scores(run, out)
        return scores_of(run)


SCORING = ("score", "ngrams")  # kinds of steps that give scores


def scores_of(run: Prepared) -> list[Score]:
    """The scores that are there."""
    found = []
    for use, step_id in run.plan.uses_of(*SCORING):
        if run.store.done(step_id):
            scores = run.store.result(step_id, SCORES)
            metrics = compared_metrics(run.recipe.task.task)
            _check_scores(scores, metrics, run.store.folder(step_id))
            cost = run.plan.steps[step_id].cost
            found.append(Score(use.variant, use.seed, use.name, cost, scores, step_id))
    return found


def _check_scores(scores: Any, metrics: Collection[str], folder: Path) -> None:
    """Raise DeftxError for scores that a step cannot have given: what is compared is a share."""
    values = [scores.get(metric) for metric in metrics] if isinstance(scores, dict) else [None]
    if not all(isinstance(value, int | float) and 0 <= value <= 1 for value in values):
        what = f"needs {' and '.join(sorted(metrics, reverse=True))} from 0 to 1"
        raise DeftxError(
            f"{folder / SCORES} is damaged: it {what}: remove {folder}, and it is made again"
        )


def vectors_of(out: Path, variant: str, seed: int) -> dict[str, Path]:
    """The folders of a variant's finished vectors in a run, by language, and "task"."""
    about = read_steps(out)
    wanted = [
        step for step in about.steps if step.kind in ("vector", "given") and step.seed == seed
    ]
    folders = {
        str(step.name): out / about.store / step.id for step in wanted if variant in step.variant
    }
    return {name: folder / VECTOR for name, folder in folders.items() if (folder / VECTOR).is_dir()}


def _line(run: Prepared, step: Step, became: str) -> str:
    """What became of a step, how many are done, and about how long the others take."""
    remaining = run.remaining()
    total = len(run.plan.steps)
    progress = f"{total - len(remaining)}/{total}"
    if became == "done" and remaining:
        seconds = seconds_left(remaining, run.store)
        if seconds:
            progress += f", about {duration(seconds)} left"
    return f"[{progress}] {became}: {step.kind}, {step.title}"


def _describe(run: Prepared, out: Path) -> None:
    """Write down what is to be done."""
    steps = []
    for step in run.plan.steps.values():
        uses = run.plan.uses[step.id]
        for seed, name in dict.fromkeys((use.seed, use.name) for use in uses):
            variants = [use.variant for use in uses if (use.seed, use.name) == (seed, name)]
            about = {
                "id": step.id,
                "kind": step.kind,
                "variant": variants,
                "seed": seed,
                "name": name,
            }
            steps.append({**about, "inputs": list(step.inputs.values())})
    recipe = {
        "name": out.name,
        **run.recipe.model_dump(mode="json"),
        "metric": run.recipe.task.training.metric,
    }
    run.store.record_run(out)
    store = os.path.relpath(run.store.steps, out.resolve())
    for name, data in {
        RECIPE: recipe,
        STEPS: {"store": store, "steps": steps},
        TRIMMED: run.trimmed,
    }.items():
        write_text(out / name, json.dumps(data, indent=1, ensure_ascii=False))


def _write_scores(run: Prepared, out: Path) -> None:
    """Write down the scores that are there."""
    # A line of JSON for each
    scores = scores_of(run)
    rows = [score.row() for score in scores]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    write_text(out / RESULTS, "".join(lines))

    # The same as Parquet, where pyarrow is there
    pyarrow = _pyarrow() if rows else None
    if pyarrow is not None:
        with new_file(out / RESULTS.replace(".jsonl", ".parquet")) as half:
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), half)

    # A table for people
    text = table(scores, str(run.recipe.task.training.metric), run.recipe.labelled)
    if run.trimmed:
        trimmed = "; ".join(f"{name} {how_much}" for name, how_much in run.trimmed.items())
        text += f"\nLeft out of training, since it holds evaluation text: {trimmed}.\n"
    write_text(out / TABLE, text)


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        return None
    return pyarrow


def table(scores: Sequence[Score], metric: str = "macro_f1", labelled: Collection[str] = ()) -> str:
    """A Markdown table of a metric in percent, with a row for each variant.

    Columns are the target languages, their average, and the languages whose labels were learnt
    from. A cell is the mean ± sample standard deviation over the seeds, and empty without scores.
    The average is taken over languages first, for the seeds that have scores of all targets.

    Args:
        scores: All scores of a run.
        metric: The metric to show.
        labelled: The languages whose labels were learnt from.
    """
    variants = list(dict.fromkeys(score.variant for score in scores))
    languages = list(dict.fromkeys(score.language for score in scores))
    targets = [name for name in languages if name not in labelled]
    sources = [name for name in languages if name in labelled]
    rows = [["", *targets, AVERAGE, *sources], ["---"] * (len(languages) + 2)]
    for variant in variants:
        # percentages by seed, then by language
        by_seed: dict[int, dict[str, float]] = {}
        for score in scores:
            if score.variant == variant:
                percent = 100 * score.scores[metric]
                by_seed.setdefault(score.seed, {})[score.language] = percent
        averages = []
        by_language: dict[str, list[float]] = {name: [] for name in languages}
        for _, values in sorted(by_seed.items()):
            for language, value in values.items():
                by_language[language].append(value)
            if targets and values.keys() >= set(targets):
                averages.append(mean(values[name] for name in targets))
        cells = [by_language[name] for name in targets]
        cells.append(averages)
        cells += [by_language[name] for name in sources]
        rows.append([variant, *map(_cell, cells)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _cell(values: Sequence[float]) -> str:
    """Mean and spread of values, or nothing without values."""
    if not values:
        return ""
    return spread(values)
