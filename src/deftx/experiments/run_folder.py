"""What a run leaves in its folder, checked as it is read. An unfinished run has less in it.

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

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)
from torch import Tensor

from deftx.errors import DeftxError, first_fault
from deftx.experiments.recipe import PublishedTables
from deftx.experiments.store import PREDICTIONS, RECORD, check_sum
from deftx.storage.tensors import load_tensors

RECIPE, RESULTS, STEPS, TRIMMED = "recipe.json", "results.jsonl", "steps.json", "trimmed.json"

Share = Annotated[float, Field(ge=0, le=1)]
Label = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
# the name of one folder: no path that leads elsewhere
Id = Annotated[str, StringConstraints(pattern=r"^\w[\w.-]*$")]


class JsonObject(BaseModel):
    """A JSON object with at least the keys that are declared."""

    model_config = ConfigDict(frozen=True)


class RecipeData(JsonObject):
    """The recipe of a run; keys that only the run itself needs are kept as they are."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str
    title: str | None = None
    base: str
    source: str
    sources: dict[str, Any] = Field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    language_seeds: tuple[int, ...] = ()
    languages: dict[str, Any] = Field(default_factory=dict)
    test: dict[str, Any] = Field(default_factory=dict)
    metric: Literal["macro_f1", "accuracy", "las"] = "macro_f1"
    baseline: str | None = None
    variants: dict[str, dict[str, Any]] = Field(default_factory=dict)
    paper: PublishedTables = ()
    overlap: Literal["language-task", "languages"] | None = None

    @property
    def labelled(self) -> list[str]:
        """The languages of the labelled data."""
        if self.sources:
            return list(self.sources)
        return [self.source]


class Row(JsonObject):
    """One score; `step` names the step that has its predictions.

    A parser has `las` and `uas`, all others have the other two.
    """

    variant: str
    seed: int
    language: str
    examples: int
    macro_f1: Share | None = None
    accuracy: Share | None = None
    las: Share | None = None
    uas: Share | None = None
    step: Id

    @model_validator(mode="after")
    def _has_scores(self) -> "Row":
        of_labels = (self.macro_f1, self.accuracy)
        of_arcs = (self.las, self.uas)
        if None in of_labels and None in of_arcs:
            raise ValueError("needs macro_f1 and accuracy, or las and uas")
        return self

    def score(self, metric: str) -> float:
        """The score by a metric.

        Raises:
            DeftxError: The row has no such score.
        """
        value = getattr(self, metric)
        if value is None:
            raise DeftxError(f"the score of step {self.step} has no {metric}: run the recipe again")
        return float(value)


class StepRecord(JsonObject):
    """One step of the run; `name` is a language or "task"."""

    id: Id
    kind: str
    variant: tuple[str, ...] = ()
    seed: int | None = None
    name: str | None = None
    inputs: tuple[str, ...] = ()


class Steps(JsonObject):
    """All steps, and their store as a path from the run's folder."""

    store: str
    steps: tuple[StepRecord, ...]


class Finished(JsonObject):
    """What is recorded of a step when it is finished.

    Attributes:
        seconds: How long it took.
        versions: Of the libraries that it ran with.
        sha256: Checksums of its small files, by name.
    """

    seconds: Annotated[float, Field(ge=0)] = 0.0
    versions: dict[str, str] = Field(default_factory=dict)
    sha256: dict[str, str] = Field(default_factory=dict)


class Predictions(JsonObject):
    """True and predicted labels of a test set.

    Attributes:
        true: Numbers of the true labels [n].
        predicted: Numbers of the predicted labels [n].
        labels: The labels' names, which the numbers are indices of.
        sentence_lengths: In tagging and parsing, how many of the labels each sentence has, in their
            order; None where every label is of another text, or where the run is of an earlier
            version.
    """

    true: tuple[Label, ...]
    predicted: tuple[Label, ...]
    labels: tuple[str, ...]
    sentence_lengths: tuple[Count, ...] | None = None


J = TypeVar("J", bound=JsonObject)


@dataclass(frozen=True)
class RunData:
    """What a run left in its folder.

    Attributes:
        folder: The run's folder.
        recipe: Its recipe.
        rows: Its scores.
        steps: All of its steps, whether they are finished or not.
        store: The folder of the steps.
        finished: Records of the finished steps, by id.
        trimmed: Name of the training data -> what the contamination guard left out of it, in words.
    """

    folder: Path
    recipe: RecipeData
    rows: tuple[Row, ...]
    steps: tuple[StepRecord, ...]
    store: Path
    finished: Mapping[str, Finished]
    trimmed: Mapping[str, str]

    @property
    def variants(self) -> list[str]:
        """The variants with a score or a vector.

        First what is in no recipe, such as character n-grams, then the recipe's in its order.
        """
        names = [row.variant for row in self.rows]
        known = set(names)
        for step in self.steps:
            known.update(step.variant)
        in_no_recipe = [name for name in names if name not in self.recipe.variants]
        in_recipe = [name for name in self.recipe.variants if name in known]
        return [*dict.fromkeys(in_no_recipe), *in_recipe]

    @property
    def targets(self) -> list[str]:
        """The languages that are scored, except those of the labelled data."""
        scored = [row.language for row in self.rows]
        names = dict.fromkeys([*self.recipe.test, *scored])
        return [name for name in names if name not in self.recipe.labelled]

    @property
    def languages(self) -> list[str]:
        """The languages that are scored, those of the labelled data last."""
        scored = {row.language for row in self.rows}
        sources = [name for name in self.recipe.labelled if name in scored]
        return [*self.targets, *sources]

    @property
    def seeds(self) -> list[int]:
        """The seeds of all scores and vectors, ascending."""
        of_scores = {row.seed for row in self.rows if row.variant in self.recipe.variants}
        of_vectors = {step.seed for step in self.vectors() if step.seed is not None}
        return sorted(of_scores | of_vectors)

    def scores(self, variant: str) -> dict[int, dict[str, float]]:
        """The scores of a variant by the recipe's metric: seed -> language -> score, 0 to 1."""
        scores: dict[int, dict[str, float]] = {}
        for row in self.rows:
            if row.variant == variant:
                by_language = scores.setdefault(row.seed, {})
                by_language[row.language] = row.score(self.recipe.metric)
        return scores

    def predictions(self, row: Row) -> Predictions | None:
        """The predictions that a score is of; None where they are not kept.

        Raises:
            DeftxError: Where the file is damaged, or was changed after its step was finished.
        """
        path = self.store / row.step / PREDICTIONS
        if not path.is_file():
            return None
        if row.step in self.finished:
            check_sum(path, self.finished[row.step].sha256.get(PREDICTIONS))
        predictions = _read(path, Predictions)
        _check_predictions(predictions, path)
        return predictions

    def vectors(self, variant: str | None = None) -> list[StepRecord]:
        """The finished steps that hold a vector, of one variant or all."""
        steps = []
        for step in self.steps:
            is_asked_for = variant is None or variant in step.variant
            if step.kind == "vector" and step.id in self.finished and is_asked_for:
                steps.append(step)
        return steps

    def delta(self, step: StepRecord) -> dict[str, Tensor] | None:
        """The change of each weight in phase 1, for a step whose file is still kept; else None."""
        # imported here since most reports do without the training
        from deftx.training.phases import phase1_file

        path = self.store / step.id / phase1_file()
        if not path.is_file():
            return None
        loaded = load_tensors(path)
        if loaded is None:
            return None
        tensors, _ = loaded
        return tensors


def read_run(folder: Path) -> RunData:
    """Read the run in a folder.

    Raises:
        DeftxError: Where it is not the folder of a run, where a file is damaged (the message names
            it), or where nothing is finished yet.
    """
    if not (folder / RECIPE).is_file():
        problem = f"{folder} is not the folder of a run: it has no {RECIPE}"
        raise DeftxError(f"{problem}; give the folder of `deftx run`")
    recorded = Steps(store=".", steps=())
    if (folder / STEPS).exists():
        recorded = read_steps(folder)
    store = folder / recorded.store
    if recorded.steps and not store.is_dir():
        problem = f"{store}, the folder of the run's vectors and predictions, does not exist"
        warnings.warn(f"{problem}: they are left out", stacklevel=2)

    recipe = _read(folder / RECIPE, RecipeData)
    rows = _read_rows(folder / RESULTS)
    finished = {}
    for step in recorded.steps:
        record = store / step.id / RECORD
        if record.is_file():
            finished[step.id] = _read(record, Finished)
    trimmed = _read_trimmed(folder / TRIMMED)
    run = RunData(folder, recipe, rows, recorded.steps, store, finished, trimmed)
    if not run.variants:
        problem = f"{folder} has no score and no vector yet"
        raise DeftxError(f"{problem}: let `deftx run` finish something first")
    return run


def read_steps(folder: Path) -> Steps:
    """Read the steps of the run in a folder.

    Raises:
        DeftxError: Where it is not the folder of a run, or where the file is damaged.
    """
    if not (folder / STEPS).is_file():
        raise DeftxError(f"{folder} is not the folder of a run: it has no {STEPS}")
    return _read(folder / STEPS, Steps)


def _read_rows(path: Path) -> tuple[Row, ...]:
    """The scores of a run; of two of the same variant, seed and language the later one counts."""
    if not path.exists():
        return ()
    rows = {}
    # not splitlines: a name may hold another character that it takes for the end of a line
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if line.strip():
            row = _parsed(line, Row, f"{path}, line {number}")
            rows[row.variant, row.seed, row.language] = row
    return tuple(rows.values())


def _read_trimmed(path: Path) -> dict[str, str]:
    """What the contamination guard left out; nothing where there is no such file."""
    if not path.exists():
        return {}
    data = _loaded(_text(path), str(path))
    if not isinstance(data, dict):
        raise DeftxError(f"{path} is damaged: it is not a mapping")
    return {name: str(description) for name, description in data.items()}


def _check_predictions(predictions: Predictions, path: Path) -> None:
    """Raise DeftxError where labels are missing, or numbers do not belong to a label."""
    count = len(predictions.true)
    numbers = (*predictions.true, *predictions.predicted)
    have_names = bool(numbers) and max(numbers) < len(predictions.labels)
    if len(predictions.predicted) != count or not have_names:
        needed = "as many true as predicted labels, each one of `labels`"
        raise DeftxError(f"{path} is damaged: it needs {needed}")
    lengths = predictions.sentence_lengths
    if lengths is not None and sum(lengths) != count:
        problem = f"its sentences have {sum(lengths)} words, and there are {count} labels"
        raise DeftxError(f"{path} is damaged: {problem}")


def _read(path: Path, model: type[J]) -> J:
    """A JSON file as an object of a class."""
    return _parsed(_text(path), model, str(path))


def _text(path: Path) -> str:
    """The text of a file.

    Raises:
        DeftxError: It is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except ValueError as error:
        raise DeftxError(f"{path} is damaged: {error}") from None


def _loaded(text: str, source: str) -> Any:
    """JSON as data.

    Raises:
        DeftxError: It is damaged; the message names the source.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DeftxError(f"{source} is damaged: {error}") from None


def _parsed(text: str, model: type[J], source: str) -> J:
    """JSON as an object of a class.

    Raises:
        DeftxError: Names the source, and the first key that is wrong.
    """
    data = _loaded(text, source)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        key, fault = first_fault(error)
        raise DeftxError(f"{source} is damaged: {key or 'all of it'}: {fault}") from None
