"""A task learnt from labelled data of several languages at once: each batch on its own language's vector."""

from collections.abc import Mapping
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

from deftx.core.compose import check_fit
from deftx.core.vector import SparseVector, check_language, check_same_base
from deftx.errors import DeftxError
from deftx.fit import Start, fit, learnt_head, origin_of, takes_halves, task_start
from deftx.models import Base, about_tokenizer, check_tokenizer, load_task_model, load_tokenizer, longest_input, place
from deftx.settings import TaskFit, changed
from deftx.storage.fingerprint import check_base, fingerprint
from deftx.tasks.data import Examples, joined, lower_case, written
from deftx.tasks.supervised import supervised
from deftx.tasks.table import settled, task_of
from deftx.training import processes
from deftx.training.several import several


def fit_task_several(
    base: Base,
    train_sets: Mapping[str, Examples],
    valid_sets: Mapping[str, Examples],
    settings: TaskFit,
    *,
    sources: Mapping[str, SparseVector] | None = None,
    temperature: float = 1.0,
    force: bool = False,
    work: Path | None = None,
    title: str = "task",
) -> SparseVector:
    """φ_task from labelled data of several languages: each batch is of one, on θ0 + φ_language of that language.

    train_sets, valid_sets, sources  by language. The best step is that of the best mean score over the languages
    sources      None: every batch is on θ0
    temperature  how even the languages are made: 1 takes every example once an epoch; the higher, the more often those
                 of languages with few, up to as many as the largest has

    With one language the same as `fit_task`. Raises DeftxError as that does, and where a language lacks one of these.
    """
    start, made = several_start(base, train_sets, valid_sets, settings, sources, temperature=temperature, force=force)
    vector = fit(start.model, start.objective, made, work=work, title=title)
    top = learnt_head(start.model, start.origin["labels"])
    info = {**start.origin, **vector.info, **settled(settings).deciding(), "k": vector.k}
    return replace(vector, head=top, info=info)


def several_start(
    base: Base,
    train_sets: Mapping[str, Examples],
    valid_sets: Mapping[str, Examples],
    settings: TaskFit,
    sources: Mapping[str, SparseVector] | None = None,
    *,
    temperature: float = 1.0,
    force: bool = False,
) -> tuple[Start, TaskFit]:
    """θ0 about to be trained as `fit_task_several` does, and the settings to do it with."""
    check_same_languages(train_sets, valid_sets, sources)
    if not 1 <= temperature < inf:
        what = "is below 1" if temperature < 1 else "is no number"
        raise DeftxError(f"temperature {temperature} {what}; give 1 (as the data are) or more (more even)")
    settings, names = settled(settings), sorted(train_sets)  # in whatever order they are given
    if len(names) == 1:
        (train_set,), (valid_set,) = train_sets.values(), valid_sets.values()
        source = sources[names[0]] if sources else None
        return task_start(base, train_set, valid_set, settings, source, force=force), settings
    if temperature > 1 and takes_halves(settings):
        why = "above it examples come several times, and two halves of the data would share them"
        raise DeftxError(f"rank {settings.rank} with temperature {temperature}: give temperature 1, since {why}")
    processes.join()
    given, task = [sources[name] for name in names] if sources else [], task_of(settings.task)
    for source in given:
        check_language(source)
    check_same_base(*given)
    labels = task.names(joined([train_sets[name] for name in names]))
    model, tokenizer = load_task_model(base, labels, settings.seed, task), load_tokenizer(base)
    place(model)
    origin = origin_of("task", base, fingerprint(model), about_tokenizer(tokenizer))
    for source in given:
        check_base(origin["base_fingerprint"], source, force=force)
        check_fit(model, source)
    check_tokenizer(tokenizer, *given, force=force)
    length = min(settings.training.length, longest_input(model, tokenizer))
    metric, size = str(settings.training.metric), settings.training.batch_size
    noise, seed = settings.training.noise, settings.seed
    parts = {
        name: supervised(
            task, train_sets[name], valid_sets[name], labels, tokenizer, length, metric, noise=noise, seed=seed
        )
        for name in names
    }
    vectors = {name: (sources[name] if sources else SparseVector({})).to(model.device) for name in names}
    objective = several(parts, vectors, batch_size=size, temperature=temperature, seed=seed)
    above = {name: dict(sources[name].info) if sources else None for name in names}
    about = {"source": None, "sources": above, "temperature": temperature, "labels": list(labels)}
    data = {part: sum(map(len, some.values())) for part, some in {"train": train_sets, "valid": valid_sets}.items()}
    lower = lower_case([text for some in train_sets.values() for text in written(some)])
    origin = {**origin, **about, "data": {**data, "lower_case": lower, "digest": objective.digest}}
    return Start(model, objective, origin), changed(settings, {"training": {"batch_size": 1}})  # its items are batches


def check_same_languages(
    train: Mapping[str, Any], valid: Mapping[str, Any], sources: Mapping[str, Any] | None = None
) -> None:
    """Raise DeftxError unless there is something, and all of it for the same languages."""
    given = [train, valid, *([sources] if sources is not None else [])]
    if not train or len({frozenset(some) for some in given}) > 1:
        said = "; ".join(", ".join(sorted(name or "one without a name" for name in some)) or "none" for some in given)
        raise DeftxError(f"training data, validation data and vectors must be of the same languages, but are of {said}")
