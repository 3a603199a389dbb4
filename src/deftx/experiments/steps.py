"""How each kind of step is carried out: what it reads from the store, and what it leaves there."""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from deftx.config import LanguageVectorConfig, TaskVectorConfig
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
from deftx.training.halves import HALVES
from deftx.training.phases import full_tuning, phase1_file, say_where_it_resumes
from deftx.training.preparation import prepare_language, prepare_task

# How it went, and what is wrong where it failed.
Outcome = tuple[Literal["done", "in use", "failed"], str]


def carry_out(store: Store, step: Step) -> None:
    """Compute a step whose inputs are there, unless it is there already; what was begun before goes
    on.

    Raises Locked where another process is at it, and DeftxError for what is wrong with its input.
    """
    if store.done(step.id):
        return
    about = {
        "kind": step.kind,
        "title": step.title,
        "cost": step.cost,
        **step.spec,
        "inputs": dict(step.inputs),
    }
    with store.making(step.id, about) as (checkpoint_dir, folder):
        if not store.done(step.id):  # by another process, just now
            when_stopped: AbstractContextManager[None] = nullcontext()
            if step.kind in ("delta", "vector"):
                when_stopped = say_where_it_resumes(checkpoint_dir, step.title)
            with when_stopped:
                KINDS[step.kind](store, step, checkpoint_dir, folder)


def attempt(store: Store, step: Step) -> Outcome:
    """`carry_out`, what can go wrong with it being an outcome."""
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
    """Phase 1 of a fit: phase1.safetensors, or of one half of the data, such as
    phase1-half1.safetensors."""
    settings, half = step.settings, step.spec.get("half")
    if isinstance(settings, TaskVectorConfig):
        train, valid, above = _of_sources(store, step)
        prepared = prepare_task(step.base, train, valid, settings, **above)
    else:
        assert isinstance(settings, LanguageVectorConfig)
        prepared = prepare_language(step.base, store.texts(step.spec["text"]), settings)
    full_tuning(
        prepared.model,
        prepared.objective,
        prepared.settings,
        half=half,
        checkpoint_dir=checkpoint_dir,
        title=step.title,
    )
    _link(checkpoint_dir / phase1_file(half), folder / phase1_file(half))


def _vector(store: Store, step: Step, checkpoint_dir: Path, folder: Path) -> None:
    """The rest of a fit: the folder `vector`."""
    settings, title = step.settings, step.title
    for role, half in {"delta": None, **HALVES}.items():
        if role in step.inputs:
            _link(
                store.folder(step.inputs[role]) / phase1_file(half),
                checkpoint_dir / phase1_file(half),
            )
    if isinstance(settings, TaskVectorConfig):
        train, valid, above = _of_sources(store, step)
        source, temperature = above.get("sources"), above.get("temperature", 1.0)
        vector = fit_task(
            step.base,
            train,
            valid,
            settings,
            source=source,
            temperature=temperature,
            checkpoint_dir=checkpoint_dir,
            title=title,
        )
    else:
        assert isinstance(settings, LanguageVectorConfig)
        vector = fit_language(
            step.base,
            store.texts(step.spec["text"]),
            settings,
            checkpoint_dir=checkpoint_dir,
            title=title,
        )
    save(vector, folder / VECTOR)


def _given(store: Store, step: Step, checkpoint_dir: Path, folder: Path) -> None:
    """A vector that the recipe takes as it is: the folder `vector`."""
    shutil.copytree(store.given_vector(step.spec["vector"]), folder / VECTOR)


def _adapter(store: Store, step: Step, checkpoint_dir: Path, folder: Path) -> None:
    """A fit of a baseline: the folder `adapter`."""
    module, settings, title = _baseline(step), step.settings, step.title
    if step.spec["what"] == TASK:
        labelled, source = _labelled(store, step), _learnt(store, step, "source")
        learnt = module.fit_task(
            step.base,
            *labelled,
            settings,
            source=source,
            checkpoint_dir=checkpoint_dir,
            title=title,
        )
    else:
        learnt = module.fit_language(
            step.base,
            store.texts(step.spec["text"]),
            settings,
            checkpoint_dir=checkpoint_dir,
            title=title,
        )
    save_adapter(learnt, folder / ADAPTER)


def _score(store: Store, step: Step, checkpoint_dir: Path, folder: Path) -> None:
    """A composed model on test data: scores.json, and predictions.json with numbers of labels."""
    examples, tokenizer = store.examples(step.spec["test"]), load_tokenizer(step.base)
    learnt: dict[str, Any] = {role: _learnt(store, step, role) for role in step.inputs}
    if "family" in step.spec:
        model = _baseline(step).compose(step.base, learnt["task"], learnt.get("language"))
    else:
        languages = [vector for role, vector in learnt.items() if role != "task"]
        model = compose(step.base, learnt["task"], languages, rule=step.spec["rule"])
    place(model)
    kind, length = task_type(learnt["task"]), trained_length(model, tokenizer, learnt["task"])
    check_embedded(written(examples), tokenizer, model.config)
    encoded = kind.encode(examples, tokenizer, length, names := output_names(model), True)
    _write_answers(folder, kind, examples, answers(kind, model, encoded), names)


def _ngrams(store: Store, step: Step, checkpoint_dir: Path, folder: Path) -> None:
    """Character n-grams on test data: the same files."""
    train, examples = store.examples(step.spec["train"]), store.examples(step.spec["test"])
    found = [(label,) for label in predict_ngrams(train_ngrams(train), examples)]
    _write_answers(folder, CLASSIFICATION, examples, found, names_of(CLASSIFICATION, train))


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


def _labelled(store: Store, step: Step) -> tuple[Examples, Examples]:
    return store.examples(step.spec["train"]), store.examples(step.spec["valid"])


def _of_sources(
    store: Store, step: Step
) -> tuple[dict[str, Examples], dict[str, Examples], dict[str, Any]]:
    """What a task is learnt from: training and validation data by language, where a single one has
    no name; and above which vectors, and how even the languages are made."""
    parts = [step.spec[part] for part in ("train", "valid")]
    digests = [part if isinstance(part, Mapping) else {"": part} for part in parts]
    train, valid = (
        {name: store.examples(digest) for name, digest in part.items()} for part in digests
    )
    roles = [role for role in step.inputs if role.partition("/")[0] == "source"]
    sources = {role.partition("/")[2]: _learnt(store, step, role) for role in roles}
    return (
        train,
        valid,
        {"sources": sources or None, "temperature": step.spec.get("temperature", 1.0)},
    )


def _learnt(store: Store, step: Step, role: str) -> Any:
    """The vector or adapter that an input is; None where the step has no such input."""
    if role not in step.inputs:
        return None
    folder = store.folder(step.inputs[role])
    return load_adapter(folder / ADAPTER) if "family" in step.spec else load(folder / VECTOR)


def _write_answers(
    folder: Path, kind: Task, examples: Examples, found: Sequence[Any], names: Sequence[str]
) -> None:
    number = {name: i for i, name in enumerate(names)}
    true, answered = (
        [number[name] for name in _flat(each)]
        for each in (examples.labels, [row[0] for row in found])
    )
    told = {"true": true, "predicted": answered, "labels": list(names)}
    (folder / PREDICTIONS).write_text(json.dumps(told), encoding="utf-8")
    (folder / SCORES).write_text(json.dumps(scores(kind, examples, found)), encoding="utf-8")


def _flat(labels: Any) -> list[str]:
    """The labels of all examples; of words, where these have labels of their own."""
    return [
        name for label in labels or [] for name in ([label] if isinstance(label, str) else label)
    ]


def _link(old: Path, new: Path) -> None:
    """The file at `old` at `new` too, in the place of what is there; without taking room where the
    disk can do that."""
    new.unlink(missing_ok=True)
    try:
        os.link(old, new)
    except OSError:
        shutil.copyfile(old, new)
