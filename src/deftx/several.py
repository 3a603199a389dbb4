"""A task learnt from labelled data of several languages at once: each batch on its own language's vector."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from deftx.core.compose import check_fit
from deftx.core.vector import SparseVector, check_same_base
from deftx.errors import DeftxError
from deftx.fit import fit, fit_task, learnt_head, origin_of, takes_halves
from deftx.models import Base, about_tokenizer, check_tokenizer, load_task_model, load_tokenizer, longest_input, place
from deftx.settings import TaskFit, changed
from deftx.storage.fingerprint import check_base, fingerprint
from deftx.tasks.data import Examples
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
    sources: Mapping[str, SparseVector],
    temperature: float = 1.0,
    force: bool = False,
    work: Path | None = None,
    title: str = "task",
) -> SparseVector:
    """φ_task from labelled data of several languages: each batch is of one, on θ0 + φ_language of that language.

    train_sets, valid_sets, sources  by language. The best step is that of the best mean score over the languages
    temperature  how even the languages are made: 1 takes every example once an epoch; the higher, the more often those
                 of languages with few, up to as many as the largest has

    With one language the same as `fit_task`. Raises DeftxError as that does, and where a language lacks one of these.
    """
    names = list(sources)
    if not names or not set(names) == train_sets.keys() == valid_sets.keys():
        given = "; ".join(", ".join(sorted(some)) or "none" for some in (train_sets, valid_sets, sources))
        raise DeftxError(
            f"training data, validation data and vectors must be of the same languages, but are of {given}"
        )
    if not temperature >= 1:
        raise DeftxError(f"temperature {temperature} is below 1; give 1 (as the data are) or more (more even)")
    if len(names) == 1:
        only, sets = sources[names[0]], (train_sets[names[0]], valid_sets[names[0]])
        return fit_task(base, *sets, settings, source=only, force=force, work=work, title=title)
    if temperature > 1 and takes_halves(settings):
        why = "above it examples come several times, and two halves of the data would share them"
        raise DeftxError(f"rank {settings.rank} with temperature {temperature}: give temperature 1, since {why}")
    processes.join()
    check_same_base(*sources.values())
    settings, task = settled(settings), task_of(settings.task)
    labels = task.names(Examples([], None, [label for name in names for label in train_sets[name].labels or []]))
    model, tokenizer = load_task_model(base, labels, settings.seed, task), load_tokenizer(base)
    place(model)
    origin = origin_of("task", base, fingerprint(model), about_tokenizer(tokenizer))
    for source in sources.values():
        check_base(origin["base_fingerprint"], source, force=force)
        check_fit(model, source)
    check_tokenizer(tokenizer, *sources.values(), force=force)
    length = min(settings.training.length, longest_input(model, tokenizer))
    metric, size = str(settings.training.metric), settings.training.batch_size
    parts = {
        name: supervised(task, train_sets[name], valid_sets[name], labels, tokenizer, length, metric) for name in names
    }
    vectors = {name: replace(sources[name], head=None).to(model.device) for name in names}
    objective = several(parts, vectors, batch_size=size, temperature=temperature, seed=settings.seed)
    made = changed(settings, {"training": {"batch_size": 1}})  # its items are batches
    vector = fit(model, objective, made, work=work, title=title)
    top = learnt_head(model, labels)
    above = {name: dict(source.info) for name, source in sources.items()}
    about = {"source": None, "sources": above, "temperature": temperature, "labels": list(labels)}
    data = {part: sum(map(len, some.values())) for part, some in {"train": train_sets, "valid": valid_sets}.items()}
    info = {**origin, **vector.info, **settings.deciding(), **about, "data": {**data, "digest": objective.digest}}
    return replace(vector, head=top, info={**info, "k": vector.k})
