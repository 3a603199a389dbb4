"""`deftx transfer`: from labelled data of one language, and text of it and of others, to models for
the others.

What it does is written down as a recipe and carried out as `deftx run` would, so what was stopped
resumes, and phase 1 is shared. Then what a user wants is gathered:

OUT/recipe.yaml     exactly what was done, for `deftx run`
OUT/vectors/NAME    the vectors of the source, of each target, and of the task
OUT/models/TARGET   base + task vector + the target's vector, with its tokenizer
OUT/results.md      scores, where there is test data, and whether the vectors helped
OUT/report/         the same and more as one page
OUT/run, OUT/store  the run, and its finished steps
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from deftx.config import LANGUAGE_PRESETS, TASK_PRESETS, merged, metric_name, with_preset
from deftx.core.vector import SparseVector
from deftx.data.reading import read_text
from deftx.data.tables import check_file
from deftx.errors import DeftxError, unknown
from deftx.experiments.benefit import Benefit, Course, advice_on, benefits, course_of
from deftx.experiments.plain_yaml import parse_yaml
from deftx.experiments.recipe import TASK, Recipe, recipe_from
from deftx.experiments.report.benefit_section import FILE as BENEFIT
from deftx.experiments.report.comparisons import compare, score_run
from deftx.experiments.report.page import lacking, write_report
from deftx.experiments.report.statistics import Difference
from deftx.experiments.run import Prepared, prepare, run_recipe, vectors_of
from deftx.experiments.run_folder import read_run
from deftx.models.compose import compose_to
from deftx.storage.atomic_files import LOCK, lock_directory, write_text
from deftx.storage.vector_files import load, save
from deftx.tasks.registry import task_of
from deftx.training import distributed

# Variants of the recipe, as said of a target
WITH = "with its vector"
WITHOUT = "without its vector"
# For languages and for the task
PRESETS = [name for name in LANGUAGE_PRESETS if name in TASK_PRESETS]
# In the folder of a transfer
RECIPE = "recipe.yaml"
RUN = "run"
STORE = "store"
RESULTS = "results.md"
GATHERED = ("vectors", "models", "report", RESULTS)  # what is made again from the finished steps
HUB = "hub:"


@dataclass(frozen=True)
class Request:
    """What a transfer is made of. Files are paths from here, or `hub:` datasets.

    Attributes:
        base: Folder or hub id of the pretrained model.
        train: Labelled data of the source.
        source: The language of the labelled data.
        targets: The languages that the task is carried over to.
        texts: Language -> plain text.
        vectors: Language -> finished vector, which is used instead of learning one.
        tests: Target -> labelled data to score on.
        valid: Labelled data of the source on which the best step is chosen; "": a tenth of `train`.
        preset: One of PRESETS.
        changes: Further keys of the recipe, nested.
    """

    base: str
    train: str
    source: str
    targets: Sequence[str]
    texts: Mapping[str, str]
    vectors: Mapping[str, str] = field(default_factory=dict)
    tests: Mapping[str, str] = field(default_factory=dict)
    valid: str = ""
    preset: str = "standard"
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TargetScore:
    """The scores of a target on its test data, with its language vector and without.

    Attributes:
        language: The target.
        examples: How many labelled examples there are.
        metric: Name of the score.
        with_vector: Mean score over the seeds with the language vector, 0 to 1.
        without: Mean score over the seeds without it, 0 to 1.
        difference: What the vector adds, with its 95% interval. With one seed the interval is over
            the texts only: another seed may give another difference.
    """

    language: str
    examples: int
    metric: str
    with_vector: float
    without: float
    difference: Difference

    @property
    def interval(self) -> str:
        """Both ends of the 95% interval, in points."""
        low = 100 * self.difference.low
        high = 100 * self.difference.high
        return f"{low:+.1f} to {high:+.1f}"

    @property
    def certainty(self) -> str:
        """With how many seeds it was measured, and what that allows to say."""
        if self.difference.too_few_seeds is not None:
            return self.difference.too_few_seeds
        seeds = f"{self.difference.seeds} seeds"
        if self.difference.conclusive:
            return seeds
        return f"{seeds}: may be chance"

    def __str__(self) -> str:
        with_vector = f"{100 * self.with_vector:.1f} with the vector"
        without = f"{100 * self.without:.1f} without"
        points = f"{100 * (self.with_vector - self.without):+.1f} points"
        scores = f"{metric_name(self.metric)} {with_vector}, {without}: {points}"
        return f"{scores} (95% interval {self.interval}); {self.examples} texts; {self.certainty}"


@dataclass(frozen=True)
class Outcome:
    """What came of a transfer.

    Attributes:
        folder: Where it is gathered.
        task: How learning the task went.
        benefits: What is known of each language's vector.
        scores: The scores of targets that have test data.
    """

    folder: Path
    task: Course | None
    benefits: Sequence[Benefit]
    scores: Sequence[TargetScore]

    def about(self) -> list[dict[str, Any]]:
        """For each language and the task what is known, and what to try."""
        facts_of_task = [str(self.task)] if self.task else []
        task = {"name": TASK, "facts": facts_of_task, "advice": advice_on(self.task)}
        rows = [task]
        for benefit in self.benefits:
            scores = [score for score in self.scores if score.language == benefit.language]
            facts = [*map(str, scores), *benefit.facts()]
            advice = list(benefit.advice())
            for score in scores:
                if score.difference.conclusive and score.difference.high < 0:
                    loss = 100 * (score.without - score.with_vector)
                    advice.append(f"its vector costs {loss:.1f} points")
            rows.append({"name": benefit.language, "facts": facts, "advice": advice})
        return rows

    def markdown(self) -> str:
        """What is known, as a page of Markdown."""
        lines = ["# What came of it", ""]
        if self.scores:
            lines += self._table_of_scores()
        for row in self.about():
            lines += [f"## {row['name']}", ""]
            lines += [f"- {fact}" for fact in row["facts"]]
            lines += [f"- **To try:** {line}" for line in row["advice"]]
            lines.append("")
        return "\n".join(lines)

    def _table_of_scores(self) -> list[str]:
        """The lines of a Markdown table of the scores."""
        heading = ["language", "without its vector", "with it", "difference"]
        heading += ["95% interval", "texts", "seeds"]
        lines = [
            f"| {' | '.join(heading)} |",
            "| --- | ---: | ---: | ---: | --- | ---: | --- |",
        ]
        for score in self.scores:
            gain = score.with_vector - score.without
            cells = [
                score.language,
                f"{100 * score.without:.1f}",
                f"{100 * score.with_vector:.1f}",
                f"{100 * gain:+.1f}",
                score.interval,
                str(score.examples),
                score.certainty,
            ]
            lines.append(f"| {' | '.join(cells)} |")
        metric = metric_name(self.scores[0].metric)
        return [*lines, "", f"{metric} in percent.", ""]


def transfer(
    request: Request,
    out: Path,
    *,
    force: bool = False,
    ready: Callable[[Prepared], None] = lambda run: None,
    said: Callable[[str, int, int], None] = lambda line, done, total: None,
) -> Outcome:
    """Carry out a transfer, or resume one that was stopped, and gather what came of it.

    Args:
        request: What is transferred.
        out: The folder that everything goes to.
        force: Whether another transfer in `out` is replaced.
        ready: Is told what is to be done, once all that is needed was read and before anything is
            learnt.
        said: Is told what happens: see `run_recipe`.

    Raises:
        DeftxError: Something is wrong with the request, `out` holds something else, or another
            transfer without `force`; and as `run_recipe` does.
    """
    distributed.refuse_several_processes("a transfer")
    data = recipe_data(request, out)
    recipe = recipe_from(data, out / RECIPE)
    check_files(request)
    check_out(out, data, force=force)
    with lock_directory(out):

        def begin(run: Prepared) -> None:
            ready(run)
            if _recipe_in(out) != data:
                _clear(out)
                write_text(out / RECIPE, _as_yaml(data))

        run_recipe(recipe, out / RUN, out / STORE, said=said, ready=begin)
        return _gather(recipe, request, out)


def plan(
    request: Request, out: Path, show: Callable[[Prepared], None], *, force: bool = False
) -> None:
    """Tell `show` what a transfer would do: nothing is learnt, and nothing is left in `out`."""
    data = recipe_data(request, out)
    recipe = recipe_from(data, out / RECIPE)
    check_files(request)
    check_out(out, data, force=force)
    with TemporaryDirectory() as folder:
        store = out / STORE
        if not store.is_dir():
            store = Path(folder)
        show(prepare(recipe, store))


def check_files(request: Request) -> None:
    """Check that the data files are there.

    Raises:
        DeftxError: One is not; it is named as it was typed.
    """
    sources = [request.train, *request.texts.values(), *request.tests.values()]
    if request.valid:
        sources.append(request.valid)
    for source in sources:
        if not source.startswith(HUB):
            check_file(Path(source))


def recipe_data(request: Request, out: Path) -> dict[str, Any]:
    """A transfer as a recipe in the folder `out`.

    Raises:
        DeftxError: The preset is unknown.
    """
    if request.preset not in PRESETS:
        raise unknown("preset", request.preset, PRESETS)

    def from_out(source: str) -> str:
        """A file as a path from `out`; what is none, as a hub id, as it is."""
        if source.startswith(HUB) or not os.path.exists(source):
            return source
        return os.path.relpath(os.path.realpath(source), os.path.realpath(out))

    # The data
    data: dict[str, Any] = {
        "title": f"From {request.source} to {', '.join(request.targets)}",
        "base": from_out(request.base),
        "seeds": [0],
        "source": request.source,
        "train": from_out(request.train),
    }
    if request.valid:
        data["valid"] = from_out(request.valid)
    for key, files in {"languages": request.texts, "test": request.tests}.items():
        if files:
            data[key] = {name: from_out(file) for name, file in files.items()}
    if request.vectors:
        data["vectors"] = {name: from_out(vector) for name, vector in request.vectors.items()}

    # What is learnt and compared
    data |= {
        "targets": list(request.targets),
        "contamination": "trim",
        "language": {"preset": request.preset},
        "task": {"preset": request.preset},
        "variants": {WITH: {}},
    }
    if request.tests:
        data["variants"][WITHOUT] = {"target": False}
        data["baseline"] = WITHOUT
    data = merged(data, request.changes)

    # Presets are spelled out, since a later version may change what they stand for
    data["language"] = with_preset(data["language"], LANGUAGE_PRESETS)
    data["task"] = with_preset(data["task"], TASK_PRESETS)

    # As it will be read from the file
    text = yaml.safe_dump(data, sort_keys=False)
    as_read: dict[str, Any] = yaml.safe_load(text)
    return as_read


def check_out(out: Path, data: Mapping[str, Any], *, force: bool) -> None:
    """Check that a transfer may be put into a folder.

    Raises:
        DeftxError: It holds something that is no transfer, or, without `force`, another one.
    """
    if not out.exists():
        return
    is_empty = out.is_dir() and not any(out.iterdir())
    if is_empty:
        return
    before = _recipe_in(out)
    if before is None:
        if out.is_dir() and _not_begun(out):
            return
        raise DeftxError(f"{out} exists and is not the folder of a transfer: choose another folder")
    if before != data and not force:
        keys = [key for key in {**before, **data} if before.get(key) != data.get(key)]
        what = f"{out} holds another transfer ({', '.join(keys)} differ)"
        fix = "choose another folder, or replace it with --force"
        raise DeftxError(f"{what}: {fix}, which keeps what can be used again")


def _not_begun(out: Path) -> bool:
    """Whether a folder holds what a transfer leaves that was stopped before it began to learn."""
    names = {path.name for path in out.iterdir()}
    run = out / RUN
    if run.is_dir():
        names.update(path.name for path in run.iterdir())
    return names <= {STORE, RUN, LOCK}


def _recipe_in(out: Path) -> dict[str, Any] | None:
    """The recipe of the transfer in a folder; None where there is none."""
    try:
        text = (out / RECIPE).read_text(encoding="utf-8")
        data = parse_yaml(text)
    except (OSError, ValueError):  # such as BadYaml
        return None
    return data if isinstance(data, dict) else None


def _as_yaml(data: Mapping[str, Any]) -> str:
    """A recipe as the text of a file, with how to use it."""
    program = f"deftx {version('deftx')}"
    head = f"# What `deftx transfer` of {program} did. Once more: deftx run {RECIPE}\n"
    return head + yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True)


def _clear(out: Path) -> None:
    """Remove what was gathered for another recipe, but not the finished steps."""
    for name in GATHERED:
        path = out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _gather(recipe: Recipe, request: Request, out: Path) -> Outcome:
    """Put what came of a finished run where it is easily found, and say whether it helped.

    Vectors and models are those of the first seed, scores those of all.
    """
    # Vectors and models
    first_seed = recipe.seeds[0]
    folders = vectors_of(out / RUN, WITH, first_seed)
    vectors = {name: load(folder) for name, folder in folders.items()}
    for name, vector in vectors.items():
        save(vector, out / "vectors" / name, force=True)
    for name in request.targets:
        compose_to(
            out / "models" / name,
            recipe.base,
            [vectors[TASK]],
            [vectors[name]],
            rule="sum",
            force=True,
            ignore_base_mismatch=False,
        )

    # Whether it helped
    outcome = Outcome(
        folder=out,
        task=course_of(vectors[TASK]),
        benefits=_benefits(recipe, request, vectors),
        scores=_scores(recipe, out),
    )
    about = json.dumps(outcome.about(), ensure_ascii=False, indent=1)
    write_text(out / RESULTS, outcome.markdown())
    write_text(out / RUN / BENEFIT, about)
    if not lacking():
        write_report(out / RUN, out / "report")
    return outcome


def _benefits(
    recipe: Recipe, request: Request, vectors: Mapping[str, SparseVector]
) -> list[Benefit]:
    """What is known of the source's and the targets' vectors without labels."""
    task = task_of(recipe.task.task)
    columns = recipe.columns.over(task.columns)
    train = task.read(recipe.train, columns, True)
    texts = {name: read_text(*sources) for name, sources in recipe.languages.items()}

    # Answers are compared on test texts, or else on plain text
    to_answer = {name: texts[name] for name in request.targets if name in texts}
    for name, source in recipe.test.items():
        to_answer[name] = task.read(source, columns, True).texts
    languages = {name: vectors[name] for name in (request.source, *request.targets)}
    return benefits(recipe.base, vectors[TASK], languages, texts, to_answer, train)


def _scores(recipe: Recipe, out: Path) -> list[TargetScore]:
    """The scores of the targets that have test data."""
    if not recipe.test:
        return []
    run = read_run(out / RUN)
    compared = compare(run, score_run(run), WITH, WITHOUT)
    if compared is None:
        return []
    examples = {row.language: row.examples for row in run.rows}

    def mean_score(variant: str, language: str) -> float:
        """The mean over the seeds that have it."""
        by_seed = run.scores(variant).values()
        return mean(scores[language] for scores in by_seed if language in scores)

    target_scores = []
    for name, difference in compared.by_language.items():
        target_score = TargetScore(
            language=name,
            examples=examples[name],
            metric=run.recipe.metric,
            with_vector=mean_score(WITH, name),
            without=mean_score(WITHOUT, name),
            difference=difference,
        )
        target_scores.append(target_score)
    return target_scores
