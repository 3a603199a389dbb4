"""How each kind of step is carried out: what it reads from the store, and what it leaves there."""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from deftx.config import LanguageVectorConfig, TaskVectorConfig
from deftx.core.vector import SparseVector
from deftx.data.examples import Examples, written
from deftx.data.unknown_text import check_embedded
from deftx.errors import Locked
from deftx.experiments.baselines.adapters import load_adapter, save_adapter
from deftx.experiments.baselines.ngrams import predict_ngrams, train_ngrams
from deftx.experiments.plan import Step
from deftx.experiments.recipe import TASK
from deftx.experiments.store import ADAPTER, PREDICTIONS, SCORES, VECTOR, Store
from deftx.fit import fit_language, fit_task
from deftx.messages import error_line
from deftx.models.compose import compose, task_type, trained_length
from deftx.models.loading import place
from deftx.models.tokenizers import load_tokenizer
from deftx.storage.vector_files import load, save
from deftx.tasks.base import Task, answers, names_of, output_names, scores
from deftx.tasks.classification import CLASSIFICATION
from deftx.tasks.parsing import PARSING
from deftx.training.halves import HALVES
from deftx.training.phases import full_tuning, phase1_file, say_where_it_resumes
from deftx.training.preparation import prepare_language, prepare_task

WRONG_HEAD = " (wrong head)"  # behind a predicted relation

# How a step went, and what is wrong where it failed.
Outcome = tuple[Literal["done", "in use", "failed"], str]


def carry_out(store: Store, step: Step) -> None:
    """Compute a step whose inputs are finished, unless it is finished too.

    A step that was interrupted resumes.

    Raises:
        Locked: Another process is computing the step.
        DeftxError: Something is wrong with its input.
    """
    if store.done(step.id):
        return
    record = {
        "kind": step.kind,
        "title": step.title,
        "cost": step.cost,
        **step.spec,
        "inputs": dict(step.inputs),
    }

    def compute(checkpoint_dir: Path, folder: Path) -> None:
        KINDS[step.kind](store, step, checkpoint_dir, folder)

    def compute_resumably(checkpoint_dir: Path, folder: Path) -> None:
        with say_where_it_resumes(checkpoint_dir, step.title):
            compute(checkpoint_dir, folder)

    if step.kind in ("delta", "vector"):
        store.make(step.id, record, compute_resumably)
    else:
        store.make(step.id, record, compute)


def attempt(store: Store, step: Step) -> Outcome:
    """`carry_out`, with what can go wrong as an outcome instead of an exception."""
    try:
        carry_out(store, step)
    except Locked as error:
        return "in use", str(error)
    except Exception as error:
        line = error_line(error)
        if line is None:
            raise
        return "failed", line
    return "done", ""


def _delta(store: Store, step: Step, checkpoint_dir: Path, folder: Path) -> None:
    """Phase 1 of a fit: the file phase1.safetensors.

    Of one half of the data it is phase1-half1.safetensors or phase1-half2.safetensors.
    """
    settings = step.settings
    half = step.spec.get("half")
    if isinstance(settings, TaskVectorConfig):
        data = _task_data(store, step)
        prepared = prepare_task(
            step.base,
            data.train,
            data.valid,
            settings,
            sources=data.sources,
            temperature=data.temperature,
        )
    else:
        assert isinstance(settings, LanguageVectorConfig)
        prepared = prepare_language(step.base, store.texts(step.spec["text"]), settings)
    full_tuning(
        prepared.model,
        prepared.objective,
        prepared.settings,
        prepared.groups,
        half=half,
        checkpoint_dir=checkpoint_dir,
        title=step.title,
    )
    _link(checkpoint_dir / phase1_file(half), folder / phase1_file(half))


def _vector(store: Store, step: Step, checkpoint_dir: Path, folder: Path) -> None:
    """The rest of a fit: the folder `vector`."""
    # the fit finds phase 1 finished, as after an interruption
    halves = {"delta": None, **HALVES}
    for role, half in halves.items():
        if role in step.inputs:
            name = phase1_file(half)
            _link(store.folder(step.inputs[role]) / name, checkpoint_dir / name)

    settings = step.settings
    if isinstance(settings, TaskVectorConfig):
        data = _task_data(store, step)
        vector = fit_task(
            step.base,
            data.train,
            data.valid,
            settings,
            source=data.sources,
            temperature=data.temperature,
            checkpoint_dir=checkpoint_dir,
            title=step.title,
        )
    else:
        assert isinstance(settings, LanguageVectorConfig)
        vector = fit_language(
            step.base,
            store.texts(step.spec["text"]),
            settings,
            checkpoint_dir=checkpoint_dir,
            title=step.title,
        )
    save(vector, folder / VECTOR)


def _given(store: Store, step: Step, checkpoint_dir: Path, folder: Path) -> None:
    """A finished vector that the recipe names: the folder `vector`."""
    shutil.copytree(store.given_vector(step.spec["vector"]), folder / VECTOR)


def _adapter(store: Store, step: Step, checkpoint_dir: Path, folder: Path) -> None:
    """A fit of a baseline: the folder `adapter`."""
    baseline = _baseline(step)
    if step.spec["what"] == TASK:
        source = None
        if "source" in step.inputs:
            source = _load_input(store, step, "source")
        adapter = baseline.fit_task(
            step.base,
            store.examples(step.spec["train"]),
            store.examples(step.spec["valid"]),
            step.settings,
            source=source,
            checkpoint_dir=checkpoint_dir,
            title=step.title,
        )
    else:
        adapter = baseline.fit_language(
            step.base,
            store.texts(step.spec["text"]),
            step.settings,
            checkpoint_dir=checkpoint_dir,
            title=step.title,
        )
    save_adapter(adapter, folder / ADAPTER)


def _score(store: Store, step: Step, checkpoint_dir: Path, folder: Path) -> None:
    """A composed model on test data: scores.json and predictions.json."""
    task = _load_input(store, step, "task")
    if "family" in step.spec:
        language = None
        if "language" in step.inputs:
            language = _load_input(store, step, "language")
        model = _baseline(step).compose(step.base, task, language)
    else:
        languages = [_load_input(store, step, role) for role in step.inputs if role != "task"]
        model = compose(step.base, task, languages, rule=step.spec["rule"])
    place(model)

    examples = store.examples(step.spec["test"])
    tokenizer = load_tokenizer(step.base)
    check_embedded(written(examples), tokenizer, model.config)
    kind = task_type(task)
    length = trained_length(model, tokenizer, task)
    names = output_names(model)
    encoded = kind.encode(examples, tokenizer, length, names, True)
    predicted = answers(kind, model, encoded)
    _write_predictions(folder, kind, examples, predicted, names)


def _ngrams(store: Store, step: Step, checkpoint_dir: Path, folder: Path) -> None:
    """Character n-grams on test data: the same two files as of `_score`."""
    train = store.examples(step.spec["train"])
    test = store.examples(step.spec["test"])
    predicted = [(label,) for label in predict_ngrams(train_ngrams(train), test)]
    names = names_of(CLASSIFICATION, train)
    _write_predictions(folder, CLASSIFICATION, test, predicted, names)


# How each kind of step is carried out, given the store, the step, the folder for its checkpoints
# and the folder for its result.
KINDS: Mapping[str, Callable[[Store, Step, Path, Path], None]] = {
    "delta": _delta,
    "vector": _vector,
    "given": _given,
    "adapter": _adapter,
    "score": _score,
    "ngrams": _ngrams,
}


def _baseline(step: Step) -> Any:
    """The module of a baseline's family."""
    return import_module(f"deftx.experiments.baselines.{step.spec['family']}")


@dataclass(frozen=True)
class _TaskData:
    """What a task vector is learnt from, by language; a single language has the name "".

    Attributes:
        train: Labelled data to train on.
        valid: Labelled data to choose the best step on.
        sources: The language vectors below the task vector; None: none.
        temperature: How evenly the languages are sampled.
    """

    train: dict[str, Examples]
    valid: dict[str, Examples]
    sources: dict[str, SparseVector] | None
    temperature: float


def _task_data(store: Store, step: Step) -> _TaskData:
    """What a step's task vector is learnt from."""
    sources = {}
    for role in step.inputs:
        kind, _, language = role.partition("/")
        if kind == "source":
            sources[language] = _load_input(store, step, role)
    return _TaskData(
        train=_examples_by_language(store, step.spec["train"]),
        valid=_examples_by_language(store, step.spec["valid"]),
        sources=sources or None,
        temperature=step.spec.get("temperature", 1.0),
    )


def _examples_by_language(store: Store, digests: str | Mapping[str, str]) -> dict[str, Examples]:
    """Labelled data of the store by language; those of a single language have the name ""."""
    if isinstance(digests, str):
        return {"": store.examples(digests)}
    return {name: store.examples(digest) for name, digest in digests.items()}


def _load_input(store: Store, step: Step, role: str) -> Any:
    """The vector or adapter that an input of a step is."""
    folder = store.folder(step.inputs[role])
    if "family" in step.spec:
        return load_adapter(folder / ADAPTER)
    return load(folder / VECTOR)


def _write_predictions(
    folder: Path, kind: Task, examples: Examples, predicted: Sequence[Any], names: Sequence[str]
) -> None:
    """Write scores.json, and predictions.json with true and predicted labels as numbers.

    Args:
        folder: Where to write.
        kind: The task.
        examples: The test data.
        predicted: For each example a tuple that begins with its label, or its words' labels, or
            their arcs.
        names: The labels in the order of their numbers.
    """
    true_labels = _flattened(examples.labels or [])
    predicted_labels = _flattened([row[0] for row in predicted])
    if kind is PARSING:
        names = [*names, *(f"{name}{WRONG_HEAD}" for name in names)]
        predicted_labels = _relations_with_heads(true_labels, predicted_labels)
        true_labels = [relation for _, relation in true_labels]
    number = {name: position for position, name in enumerate(names)}
    predictions: dict[str, Any] = {
        "true": [number[label] for label in true_labels],
        "predicted": [number[label] for label in predicted_labels],
        "labels": list(names),
    }
    # words of a sentence are not independent, so reports need to know where sentences end
    labels = examples.labels or []
    if not all(isinstance(label, str) for label in labels):
        predictions["sentence_lengths"] = [len(words) for words in labels]
    (folder / PREDICTIONS).write_text(json.dumps(predictions), encoding="utf-8")
    (folder / SCORES).write_text(json.dumps(scores(kind, examples, predicted)), encoding="utf-8")


def _relations_with_heads(true: Sequence[Any], predicted: Sequence[Any]) -> list[str]:
    """The predicted relation of each word, marked where its head is wrong: equal to the true one
    where head and relation are right, as the LAS counts them."""
    labels = []
    for (true_head, _), (head, relation) in zip(true, predicted, strict=True):
        mark = "" if head == true_head else WRONG_HEAD
        labels.append(f"{relation}{mark}")
    return labels


def _flattened(labels: Sequence[Any]) -> list[Any]:
    """All labels in one list, where an example has one label, or one for each of its words."""
    flat: list[Any] = []
    for label in labels:
        if isinstance(label, str):
            flat.append(label)
        else:
            flat.extend(label)
    return flat


def _link(old: Path, new: Path) -> None:
    """Make the file `old` available at `new` too, in place of what is there.

    It takes no space where the disk has hard links.
    """
    new.unlink(missing_ok=True)
    try:
        os.link(old, new)
    except OSError:
        shutil.copyfile(old, new)
