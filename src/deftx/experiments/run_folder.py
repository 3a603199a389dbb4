"""What a run left in its folder, checked as it is read. A run that is not finished has less in it.

RUN/recipe.json    the recipe as data
RUN/results.jsonl  one row per score
RUN/steps.json     the steps that the recipe comes to, and where their store is
RUN/trimmed.json   what the contamination guard left out of training
STORE/ID/          a finished step: step.json, and `vector/`, `predictions.json` or
                   `phase1.safetensors`
"""

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from torch import Tensor

from deftx.errors import DeftxError, first_fault
from deftx.experiments.recipe import PublishedTables
from deftx.experiments.store import PREDICTIONS, RECORD, check_sum
from deftx.storage.tensors import load_tensors

RECIPE, RESULTS, STEPS, TRIMMED = "recipe.json", "results.jsonl", "steps.json", "trimmed.json"

Share = Annotated[float, Field(ge=0, le=1)]
Label = Annotated[int, Field(ge=0)]
Id = Annotated[
    str, StringConstraints(pattern=r"^\w[\w.-]*$")
]  # one folder's name, and nothing above it


class Form(BaseModel):
    """A JSON object with at least the keys that are declared."""

    model_config = ConfigDict(frozen=True)


class RecipeData(Form):
    """The recipe of a run; keys that only the run itself needs are kept as they are."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str
    title: str | None = None
    base: str
    source: str
    sources: dict[str, Any] = Field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    languages: dict[str, Any] = Field(default_factory=dict)
    test: dict[str, Any] = Field(default_factory=dict)
    metric: Literal["macro_f1", "accuracy"] = "macro_f1"
    baseline: str | None = None
    variants: dict[str, dict[str, Any]] = Field(default_factory=dict)
    paper: PublishedTables = ()
    overlap: Literal["language-task", "languages"] | None = None

    @property
    def labelled(self) -> list[str]:
        """The languages of the labelled data."""
        return list(self.sources) or [self.source]


class Row(Form):
    """One score; `step` names the step that has its predictions."""

    variant: str
    seed: int
    language: str
    examples: int
    macro_f1: Share
    accuracy: Share
    step: Id


class Step(Form):
    """One step of the run; `name` is a language or "task"."""

    id: Id
    kind: str
    variant: tuple[str, ...] = ()
    seed: int | None = None
    name: str | None = None
    inputs: tuple[str, ...] = ()


class Steps(Form):
    """All steps, and their store as a path from the run's folder."""

    store: str
    steps: tuple[Step, ...]


class Finished(Form):
    """What a step says of itself when it is done."""

    seconds: Annotated[float, Field(ge=0)] = 0.0
    versions: dict[str, str] = Field(default_factory=dict)
    sha256: dict[str, str] = Field(
        default_factory=dict, description="Of the step's small files, by name."
    )


class Predictions(Form):
    """True and predicted label numbers [n], and the labels that they count through."""

    true: tuple[Label, ...]
    predicted: tuple[Label, ...]
    labels: tuple[str, ...]


F = TypeVar("F", bound=Form)


@dataclass(frozen=True)
class RunData:
    """A run: its recipe, its scores, its steps, and those of them that are `finished`, by id."""

    folder: Path
    recipe: RecipeData
    rows: tuple[Row, ...]
    steps: tuple[Step, ...]
    store: Path
    finished: Mapping[str, Finished]
    trimmed: Mapping[str, str]

    @property
    def variants(self) -> list[str]:
        """Those with a score or a vector: first what is in no recipe, such as character n-grams,
        then in its order."""
        scored = [row.variant for row in self.rows if row.variant not in self.recipe.variants]
        there = {row.variant for row in self.rows}.union(*(step.variant for step in self.steps))
        return [*dict.fromkeys(scored), *(name for name in self.recipe.variants if name in there)]

    @property
    def targets(self) -> list[str]:
        """The languages that are scored, but for those whose labels were learnt from."""
        named = dict.fromkeys([*self.recipe.test, *(row.language for row in self.rows)])
        return [name for name in named if name not in self.recipe.labelled]

    @property
    def languages(self) -> list[str]:
        """The languages that are scored, the sources last."""
        scored = {row.language for row in self.rows}
        return [*self.targets, *(name for name in self.recipe.labelled if name in scored)]

    @property
    def seeds(self) -> list[int]:
        """The seeds of all scores and vectors."""
        return sorted(
            {row.seed for row in self.rows if row.variant in self.recipe.variants}
            | {step.seed for step in self.vectors() if step.seed is not None}
        )

    def scores(self, variant: str) -> dict[int, dict[str, float]]:
        """The metric's scores of a variant, 0 to 1, by seed and language."""
        found: dict[int, dict[str, float]] = {}
        for row in self.rows:
            if row.variant == variant:
                found.setdefault(row.seed, {})[row.language] = getattr(row, self.recipe.metric)
        return found

    def predictions(self, row: Row) -> Predictions | None:
        """What was predicted for a score; None where that is not kept."""
        path = self.store / row.step / PREDICTIONS
        if not path.is_file():
            return None
        if row.step in self.finished:
            check_sum(path, self.finished[row.step].sha256.get(PREDICTIONS))
        found = _read(path, Predictions)
        numbers = (*found.true, *found.predicted)
        if (
            len(found.true) != len(found.predicted)
            or not numbers
            or max(numbers) >= len(found.labels)
        ):
            raise DeftxError(
                f"{path} is damaged: it needs as many true as predicted labels, each one of `labels`"
            )
        return found

    def vectors(self, variant: str | None = None) -> list[Step]:
        """The finished steps that hold a vector, of one variant or all."""
        found = [step for step in self.steps if step.kind == "vector" and step.id in self.finished]
        return [step for step in found if variant is None or variant in step.variant]

    def delta(self, step: Step) -> dict[str, Tensor] | None:
        """What phase 1 changed, for a step that has it still."""
        from deftx.training.phases import (
            phase1_file,  # not for every report: it imports the Trainer
        )

        path = self.store / step.id / phase1_file()
        found = load_tensors(path) if path.is_file() else None
        return found[0] if found else None


def read_run(folder: Path) -> RunData:
    """The run in a folder. Raises DeftxError that names the file where it is none, or where
    something is damaged."""
    if not (folder / RECIPE).is_file():
        raise DeftxError(f"{folder} is no run: it has no {RECIPE}; give the folder of `deftx run`")
    listed = read_steps(folder) if (folder / STEPS).exists() else Steps(store=".", steps=())
    store = folder / listed.store
    if listed.steps and not store.is_dir():
        what = "where the run's vectors and predictions are, is not there: they are left out"
        warnings.warn(f"{store}, {what}", stacklevel=2)
    about = {step.id: store / step.id / RECORD for step in listed.steps}
    run = RunData(
        folder,
        _read(folder / RECIPE, RecipeData),
        _rows(folder / RESULTS),
        listed.steps,
        store,
        {name: _read(path, Finished) for name, path in about.items() if path.is_file()},
        _trimmed(folder / TRIMMED),
    )
    if not run.variants:
        raise DeftxError(
            f"{folder} has no score and no vector yet: let `deftx run` finish something first"
        )
    return run


def read_steps(folder: Path) -> Steps:
    """The steps of the run in a folder. Raises DeftxError where it is none, or damaged."""
    if not (folder / STEPS).is_file():
        raise DeftxError(f"{folder} is not the folder of a run: it has no {STEPS}")
    return _read(folder / STEPS, Steps)


def _rows(path: Path) -> tuple[Row, ...]:
    lines = (
        _text(path).split("\n") if path.exists() else []
    )  # a text may hold what splitlines takes for an end
    found = [
        _parsed(line, Row, f"{path}, line {n}")
        for n, line in enumerate(lines, start=1)
        if line.strip()
    ]
    return tuple(
        {(row.variant, row.seed, row.language): row for row in found}.values()
    )  # a later one counts


def _trimmed(path: Path) -> dict[str, str]:
    found = _loaded(_text(path), str(path)) if path.exists() else {}
    if not isinstance(found, dict):
        raise DeftxError(f"{path} is damaged: it is no mapping")
    return {name: str(words) for name, words in found.items()}


def _read(path: Path, form: type[F]) -> F:
    return _parsed(_text(path), form, str(path))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except ValueError as error:
        raise DeftxError(f"{path} is damaged: {error}") from None


def _loaded(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DeftxError(f"{place} is damaged: {error}") from None


def _parsed(text: str, form: type[F], place: str) -> F:
    """JSON in its form; the error names the place, and the first key that is wrong."""
    try:
        return form.model_validate(_loaded(text, place))
    except ValidationError as error:
        where, fault = first_fault(error)
        raise DeftxError(f"{place} is damaged: {where or 'all of it'}: {fault}") from None
