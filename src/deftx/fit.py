"""The method, top to bottom (DeFT-X, Simon and Jyothi 2025, Algorithm 1). Read this file first.

    fit       full fine-tuning -> denoise -> select -> sparse fine-tuning: one sparse vector
    transfer  a source language, a task and target languages: θ0 + φ_task + φ_target of each

`fit` works on a loaded model at θ0. `fit_language` and `fit_task` load the base, prepare the data, call
it, and note where the vector came from.
"""

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor
from transformers import PreTrainedModel

from deftx.config import Fit, LanguageFit, TaskFit, check_kind
from deftx.core.apply import apply, check_fit
from deftx.core.denoise import Denoised, denoise
from deftx.core.parameters import head, tunable
from deftx.core.ranks import Rank, is_split_half, rank_rule, recorded_rank, split_half_ranks
from deftx.core.select import parse_k, select
from deftx.core.vector import Head, SparseVector, check_language, check_same_base, entries_at
from deftx.data.examples import (
    HELD_OUT_SHARE,
    Examples,
    about_texts,
    check_examples,
    check_pairs,
    check_read,
    held_out,
)
from deftx.errors import DeftxError, unknown
from deftx.models.compose import compose
from deftx.models.fingerprint import check_base, fingerprint
from deftx.models.loading import (
    Base,
    about_tokenizer,
    check_tokenizer,
    load_language_model,
    load_task_model,
    load_tokenizer,
    longest_input,
    noted_name,
    place,
    rank_on,
)
from deftx.objectives.base import Objective
from deftx.objectives.registry import language_of
from deftx.tasks.base import Supervised, names_of, supervised
from deftx.tasks.registry import settled, task_of
from deftx.training import distributed
from deftx.training.halves import HALVES
from deftx.training.phases import (
    Delta,
    full_tuning,
    selected_tuning,
    set_parameters,
    trained_head_parameters,
)

# What happens to θ1 − θ0 before the selection: the methods differ in nothing else.
METHODS: dict[str, Callable[[Delta, Rank | Mapping[str, int], Fit], Denoised]] = {
    "deftx": lambda delta, rank, settings: denoise(
        delta, rank, settings.keep, settings.keep_of
    ),  # Simon and Jyothi 2025
    "lt-sft": lambda delta, rank, settings: Denoised(delta, {}),  # Ansell et al. 2022
    "random": lambda delta, rank, settings: Denoised(_random_strengths(delta, settings), {}),  # the floor
}


def fit(
    model: PreTrainedModel, objective: Objective, settings: Fit, *, work: Path | None = None, title: str = ""
) -> SparseVector:
    """Learn a sparse vector (Algorithm 1). Leaves the model's head trained, its backbone not to be relied on.

    model  at θ0. Its layer norms stay as they are; what lies outside the backbone is tuned fully where it
           requires a gradient (a task's head), from the same start in both phases
    work   folder for what phase 1 learnt and for the state of a phase that is under way, so that nothing is learnt
           again by a run that was stopped or one of another method, rank or k; without it nothing is kept

    Raises DeftxError before any training where a setting is out of range, and Diverged, the last good state
    being kept in `work`, where a loss is not finite.
    """
    learns_a_head = isinstance(settings, TaskFit) and bool(trained_head_parameters(model))
    check_settings(settings, model, head=learns_a_head)

    # Ranks: as they are set, or measured by two trainings, which come first so that δ need not be held meanwhile
    resolved = rank_on(model, settings.rank)
    rank: Rank | Mapping[str, int] = resolved
    logs: dict[str, Any] = {}
    if takes_halves(settings):
        rank, logs = _measured_ranks(model, objective, settings, work, title)

    # Phase 1: θ1 = full fine-tuning of θ0;  δ = θ1 − θ0
    learnt = full_tuning(model, objective, settings, work=work, title=title)

    # Denoise:  δ ← L + S, matrix by matrix;  select:  μ = the k largest entries of δ
    delta = METHODS[settings.method](learnt.delta, rank, settings)
    selection = distributed.broadcast_selection(select(delta, settings.k, settings.split))

    # Phase 2: θ2 = fine-tuning of θ0, only the entries in μ moving;  φ = θ2 − θ0
    ranks = dict(delta.ranks)
    logs["phase1"] = learnt.log
    if settings.phase2:
        phase1_key = learnt.key
        del learnt, delta  # each as large as the model
        phi, logs["phase2"] = selected_tuning(model, objective, settings, selection, phase1_key, work=work, title=title)
    else:  # the paper's ablation: φ is δ at μ
        phi = entries_at(delta, selection)
        set_parameters(trained_head_parameters(model), learnt.head)
    recorded = {**settings.deciding(), **recorded_rank(settings.rank, resolved)}
    return replace(phi, info={**recorded, "k": phi.k, "ranks": ranks, "log": logs})


@dataclass(frozen=True, eq=False)
class Start:
    """A model at θ0, what it is to be trained for, and where a vector made so comes from."""

    model: PreTrainedModel
    objective: Objective
    origin: Mapping[str, Any]


def language_start(base: Base, text: Sequence[str], settings: LanguageFit) -> Start:
    """`base` about to be trained on the lines of a language's plain text, as its kind of base learns it."""
    distributed.join()
    check_read(text, "read_text")
    tokenizer = load_tokenizer(base)
    training = settings.training
    model = load_language_model(
        base, training.head, lm_head=training.lm_head, dropout=training.dropout, seed=settings.seed
    )
    place(model)
    origin = origin_of("language", base, fingerprint(model), about_tokenizer(tokenizer))
    length = min(settings.training.length, longest_input(model, tokenizer))
    learn = language_of(model.config).objective
    objective = learn(text, tokenizer, settings.training, length, settings.seed)
    return Start(model, objective, {**origin, "data": {"lines": len(text), "digest": objective.digest}})


def task_start(
    base: Base,
    train_set: Examples,
    valid_set: Examples,
    settings: TaskFit,
    source: SparseVector | None = None,
    *,
    any_base: bool = False,
) -> Start:
    """θ0 + φ_source about to be trained on labelled data, with a new head."""
    sources = [source] if source else []
    model, origin, objective_of = task_base(base, train_set, settings, sources, any_base=any_base)
    apply(model, *sources)
    objective = objective_of(train_set, valid_set)
    sizes = {"train": len(train_set), "valid": len(valid_set)}
    data = {**sizes, **about_texts(train_set), "digest": objective.digest}
    return Start(model, objective, {**origin, "source": dict(source.info) if source else None, "data": data})


def task_base(
    base: Base, train_set: Examples, settings: TaskFit, sources: Sequence[SparseVector], *, any_base: bool
) -> tuple[PreTrainedModel, dict[str, Any], Callable[[Examples, Examples], Supervised]]:
    """θ0 with a new head for a task's labels, `sources` checked against it; where a vector of it comes from; and what
    makes an objective of training and validation data."""
    distributed.join()
    check_examples(train_set)
    check_language(*sources)
    check_same_base(*sources)
    settings, task = settled(settings), task_of(settings.task)
    labels, tokenizer = names_of(task, train_set), load_tokenizer(base)
    model = load_task_model(base, labels, settings.seed, task, dropout=settings.training.dropout)
    place(model)
    origin = origin_of("task", base, fingerprint(model), about_tokenizer(tokenizer))
    for source in sources:
        check_base(origin["base_fingerprint"], source, any_base=any_base)
        check_fit(model, source)
    check_tokenizer(tokenizer, *sources, any_base=any_base)
    length = min(settings.training.length, longest_input(model, tokenizer))
    metric, noise = str(settings.training.metric), settings.training.noise

    def objective_of(train: Examples, valid: Examples) -> Supervised:
        check_examples(valid)
        check_pairs(train.pairs is not None, valid)
        return supervised(task, train, valid, labels, tokenizer, length, metric, noise=noise, seed=settings.seed)

    return model, {**origin, "labels": list(labels)}, objective_of


def fit_language(
    base: Base, text: Sequence[str], settings: LanguageFit, *, work: Path | None = None, title: str = "language"
) -> SparseVector:
    """φ_language = fit(text, language modelling, θ0), from the lines of a language's plain text.

    The base says itself how it is learnt: denoising for encoder-decoders, masked or causal language modelling. Raises
    DeftxError where the base cannot be loaded or has no language modelling head, for text that is too short or that its
    tokenizer does not know, and as `fit` does.
    """
    check_kind(settings, LanguageFit)
    start = language_start(base, text, settings)
    vector = fit(start.model, start.objective, settings, work=work, title=title)
    return replace(vector, info={**start.origin, **vector.info})


def fit_task(
    base: Base,
    train_set: Examples,
    valid_set: Examples,
    settings: TaskFit,
    *,
    source: SparseVector | None = None,
    any_base: bool = False,
    work: Path | None = None,
    title: str = "task",
) -> SparseVector:
    """φ_task = fit(labelled data, task loss, θ0 + φ_source), with the task's head.

    source  the language vector of the labelled data's language; φ_task is measured from θ0 + φ_source,
            so that any other language vector can take its place. None: from θ0
    any_base  go on, with a warning, where `source` was made on other weights than the base's

    Raises DeftxError where the base cannot be loaded, for examples that are not of the task, where `source` does not
    fit the base, and as `fit` does.
    """
    check_kind(settings, TaskFit)
    settings = settled(settings)
    start = task_start(base, train_set, valid_set, settings, source, any_base=any_base)
    vector = fit(start.model, start.objective, settings, work=work, title=title)
    top = learnt_head(start.model, start.origin["labels"])
    return replace(vector, head=top, info={**start.origin, **vector.info})


@overload
def transfer(
    base: Base,
    source_text: Sequence[str],
    target_text: Mapping[str, Sequence[str]],
    train_set: Examples,
    valid_set: Examples | None = None,
    language: LanguageFit | None = None,
    task: TaskFit | None = None,
    *,
    work: str | Path | None = None,
) -> dict[str, PreTrainedModel]: ...


@overload
def transfer(
    base: Base,
    source_text: Sequence[str],
    target_text: Sequence[str],
    train_set: Examples,
    valid_set: Examples | None = None,
    language: LanguageFit | None = None,
    task: TaskFit | None = None,
    *,
    work: str | Path | None = None,
) -> PreTrainedModel: ...


def transfer(
    base: Base,
    source_text: Sequence[str],
    target_text: Sequence[str] | Mapping[str, Sequence[str]],
    train_set: Examples,
    valid_set: Examples | None = None,
    language: LanguageFit | None = None,
    task: TaskFit | None = None,
    *,
    work: str | Path | None = None,
) -> PreTrainedModel | dict[str, PreTrainedModel]:
    """The whole method: a model for the target language, from labelled data of the source language.

    source_text   lines of plain text
    target_text   the same; of several targets by language, for each of which there is a model then
    train_set     labelled data of the source
    valid_set     more of them, to choose the best step on; None: a tenth of `train_set`
    language, task  settings of all language vectors, and of the task vector; None: the paper's
    work          folder for what is learnt on the way, from which a call that was stopped resumes

    Raises DeftxError as `fit_language`, `fit_task` and `compose` do.
    """
    targets = target_text if isinstance(target_text, Mapping) else {"target": target_text}
    for text in targets.values():
        check_read(text, "read_text")  # the others when they are used first
    language, task = language or LanguageFit(), settled(task or TaskFit())
    if valid_set is None:
        named = task_of(task.task).names is not None
        train_set, valid_set = held_out(train_set, HELD_OUT_SHARE, task.seed, named=named)

    def fit_of(name: str) -> dict[str, Any]:
        """How a fit is called, and its folder of work."""
        return {"title": name, "work": Path(work) / name if work else None}

    phi_source = fit_language(base, source_text, language, **fit_of("source language"))
    phi_task = fit_task(base, train_set, valid_set, task, source=phi_source, **fit_of("task"))
    models = {}
    for name, text in targets.items():
        phi_target = fit_language(base, text, language, **fit_of(f"{name} language"))
        models[name] = compose(base, phi_task, phi_target)
    return models if isinstance(target_text, Mapping) else models["target"]


def learnt_head(model: PreTrainedModel, labels: Sequence[str]) -> Head:
    """A copy of the head that was trained with a task."""
    trained = {name: parameter for name, parameter in head(model).items() if parameter.requires_grad}
    return Head({name: parameter.detach().cpu().clone() for name, parameter in trained.items()}, tuple(labels))


def check_settings(settings: Fit, model: PreTrainedModel, *, head: bool) -> None:
    """Raise DeftxError now for what would only come to light after hours of phase 1; `head`: one is learnt too."""
    if settings.method not in METHODS:
        raise unknown("method", settings.method, METHODS)
    if settings.method == "random" and not settings.phase2:
        raise DeftxError("method random needs phase 2: without it the entries would stay as phase 1 left them")
    if not is_split_half(settings.rank):
        rank_rule(rank_on(model, settings.rank))
    tunable_entries = sum(weight.numel() for weight in tunable(model).values())
    if parse_k(settings.k, tunable_entries) == 0 and not head:
        raise DeftxError(f"k = {settings.k} leaves nothing to learn: give at least 1")


def takes_halves(settings: Fit) -> bool:
    """Whether a fit takes two trainings more, each on one half of the data, which tell its ranks."""
    return settings.method == "deftx" and is_split_half(settings.rank)


def _measured_ranks(
    model: PreTrainedModel, objective: Objective, settings: Fit, work: Path | None, title: str
) -> tuple[dict[str, int], dict[str, Any]]:
    """The rank of every matrix by `split_half`, and how the two trainings went that tell it."""
    learnt = {
        role: full_tuning(model, objective, settings, half=half, work=work, title=f"{title}, half {half}")
        for role, half in HALVES.items()
    }
    ranks = split_half_ranks(*(part.delta for part in learnt.values()))
    return ranks, {role: part.log for role, part in learnt.items()}


def _random_strengths(delta: Delta, settings: Fit) -> dict[str, Tensor]:
    """Random numbers in place of a delta, above 0 where it is not 0: entries are drawn among those that phase 1 moved.

    They depend on the delta as well as on the seed: by the seed alone a language's entries would be all the task's.
    Where fewer than k entries moved, `select` takes all of these, and fills up with others as it does for any method.
    """
    k = parse_k(settings.k, sum(tensor.numel() for tensor in delta.values()))
    moved = sum(int(tensor.count_nonzero()) for tensor in delta.values())
    if moved < k:
        warnings.warn(
            f"phase 1 moved {moved:,} entries, fewer than k = {k:,}: random takes all of them, and others besides",
            stacklevel=2,
        )

    sums = torch.stack([tensor.double().sum().cpu() for tensor in delta.values()])
    digest_of_both = hashlib.sha256(f"{settings.seed}".encode() + sums.numpy().tobytes()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest_of_both[:8], "little") >> 1)
    strengths: dict[str, Tensor] = {}
    for name, tensor in delta.items():
        drawn = 1 - torch.rand(tensor.shape, generator=generator)  # above 0, at most 1
        strengths[name] = drawn.to(tensor.device).masked_fill_(tensor == 0, 0)
    return strengths


def origin_of(kind: str, base: Base, base_fingerprint: str, tokenizer: Mapping[str, str]) -> dict[str, Any]:
    """What a vector notes of where it comes from: its kind, the base, the tokenizer, the versions."""
    versions = {package: version(package) for package in ("deftx", "torch", "transformers")}
    made_on = {"base": noted_name(base), "base_fingerprint": base_fingerprint, "tokenizer": tokenizer}
    return {"kind": kind, **made_on, "versions": versions}
