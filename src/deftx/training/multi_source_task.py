"""A task learnt from labelled data of several languages at once: each batch on its own language's vector."""

from collections.abc import Mapping
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

from deftx.config import TaskFit, changed, check_kind
from deftx.core.vector import SparseVector
from deftx.data.examples import Examples, about_texts, joined
from deftx.errors import DeftxError
from deftx.fit import Start, fit, learnt_head, takes_halves, task_base, task_start
from deftx.models.loading import Base
from deftx.tasks.registry import settled
from deftx.training.multi_source import multi_source


def fit_task_several(
    base: Base,
    train_sets: Mapping[str, Examples],
    valid_sets: Mapping[str, Examples],
    settings: TaskFit,
    *,
    sources: Mapping[str, SparseVector] | None = None,
    temperature: float = 1.0,
    any_base: bool = False,
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
    check_kind(settings, TaskFit)
    start, made = several_start(
        base, train_sets, valid_sets, settings, sources, temperature=temperature, any_base=any_base
    )
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
    any_base: bool = False,
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
        return task_start(base, train_set, valid_set, settings, source, any_base=any_base), settings
    if temperature > 1 and takes_halves(settings):
        why = "above it examples come several times, and two halves of the data would share them"
        raise DeftxError(f"rank {settings.rank} with temperature {temperature}: give temperature 1, since {why}")
    pooled = joined([train_sets[name] for name in names])
    given = [sources[name] for name in names] if sources else []
    model, origin, objective_of = task_base(base, pooled, settings, given, any_base=any_base)
    parts = {name: objective_of(train_sets[name], valid_sets[name]) for name in names}
    vectors = {name: (sources[name] if sources else SparseVector({})).to(model.device) for name in names}
    size, seed = settings.training.batch_size, settings.seed
    objective = multi_source(parts, vectors, batch_size=size, temperature=temperature, seed=seed)
    above = {name: dict(sources[name].info) if sources else None for name in names}
    sizes = {"train": len(pooled), "valid": sum(map(len, valid_sets.values()))}
    data = {**sizes, **about_texts(pooled), "digest": objective.digest}
    about = {**origin, "source": None, "sources": above, "temperature": temperature, "data": data}
    return Start(model, objective, about), changed(settings, {"training": {"batch_size": 1}})  # its items are batches


def check_same_languages(
    train: Mapping[str, Any], valid: Mapping[str, Any], sources: Mapping[str, Any] | None = None
) -> None:
    """Raise DeftxError unless there is something, and all of it for the same languages."""
    given = [train, valid, *([sources] if sources is not None else [])]
    if not train or len({frozenset(some) for some in given}) > 1:
        said = "; ".join(", ".join(sorted(name or "one without a name" for name in some)) or "none" for some in given)
        raise DeftxError(f"training data, validation data and vectors must be of the same languages, but are of {said}")
