"""The method, top to bottom (DeFT-X, Simon and Jyothi 2025, Algorithm 1). Read this file first.

    fit       full fine-tuning -> denoise -> select -> sparse fine-tuning: one sparse vector
    transfer  a source language, a task and target languages: θ0 + φ_task + φ_target of each

`fit` works on a loaded model at θ0. `fit_language` and `fit_task` have the base loaded and the data
prepared (`deftx.training.preparation`), call it, and record where the vector came from.
"""

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor
from transformers import PreTrainedModel

from deftx.config import LanguageVectorConfig, TaskVectorConfig, VectorConfig, check_kind
from deftx.core.denoise import Denoised, denoise
from deftx.core.parameters import ParameterGroups, parameter_groups
from deftx.core.provenance import PhaseLog, Provenance, TrainingRecord
from deftx.core.ranks import Rank, is_split_half, rank_rule, recorded_rank, split_half_ranks
from deftx.core.reselection import RESELECTIONS
from deftx.core.select import parse_k, select
from deftx.core.vector import SparseVector, entries_at
from deftx.core.weights import WEIGHT_RULES, select_by_weight
from deftx.data.examples import Examples, check_read
from deftx.data.held_out import HELD_OUT_SHARE, held_out
from deftx.errors import DeftxError, unknown
from deftx.models.compose import compose
from deftx.models.limits import rank_on
from deftx.models.loading import Base
from deftx.objectives.base import Objective
from deftx.tasks.registry import settled, task_of
from deftx.training import distributed
from deftx.training.halves import HALVES
from deftx.training.phases import (
    Delta,
    full_tuning,
    reselected_training,
    selected_tuning,
    set_parameters,
    training_key,
)
from deftx.training.preparation import (
    learned_head,
    prepare_language,
    prepare_task,
    takes_halves,
    takes_phase1,
)


def _denoised(delta: Delta, rank: Rank | Mapping[str, int], settings: VectorConfig) -> Denoised:
    """DeFT-X (Simon and Jyothi 2025): every matrix of δ without its noise."""
    return denoise(delta, rank, settings.keep, settings.keep_of)


def _as_it_is(delta: Delta, rank: Rank | Mapping[str, int], settings: VectorConfig) -> Denoised:
    """LT-SFT (Ansell et al. 2022): δ itself."""
    return Denoised(delta, {})


def _at_random(delta: Delta, rank: Rank | Mapping[str, int], settings: VectorConfig) -> Denoised:
    """Any k of the entries that phase 1 moved: what a selection has to beat."""
    return Denoised(_random_strengths(delta, settings), {})


# What happens to δ = θ1 − θ0 before the selection: methods with two trainings differ in nothing
# else.
METHODS: dict[str, Callable[[Delta, Rank | Mapping[str, int], VectorConfig], Denoised]] = {
    "deftx": _denoised,
    "lt-sft": _as_it_is,
    "random": _at_random,
}


def fit(
    model: PreTrainedModel,
    objective: Objective,
    settings: VectorConfig,
    *,
    checkpoint_dir: str | Path | None = None,
    title: str = "",
) -> SparseVector:
    """Learn a sparse vector (Simon and Jyothi 2025, Algorithm 1).

    Args:
        model: At θ0. Its layer norms stay as they are. What lies outside the backbone and requires
            a gradient, such as a task's head, is trained fully, from the same start in both phases.
            At the end the head is trained, and the backbone is not to be relied on.
        objective: Data, loss and held-out scores.
        settings: Of the vector and its training.
        checkpoint_dir: Folder for the result of phase 1 and the state of a phase that is under
            way: a fit that was stopped resumes, and one with another method, rank or k takes over
            phase 1. None: nothing is kept.
        title: What progress bars call it.

    Returns:
        φ = θ2 − θ0 at exactly k entries, on the CPU, with its settings, ranks and log.

    Raises:
        DeftxError: A setting is out of range; raised before any training.
        Diverged: A loss is not finite; the last good state is in `checkpoint_dir`.
    """
    if checkpoint_dir is not None:
        checkpoint_dir = Path(checkpoint_dir)
    groups = parameter_groups(model)
    learns_a_head = isinstance(settings, TaskVectorConfig) and bool(groups.trained_head)
    check_settings(settings, model, groups, head=learns_a_head)

    # Ranks: as they are set, or measured by two trainings, which come first so that δ need not be
    # held meanwhile
    rank_setting = rank_on(model, settings.rank)
    rank: Rank | Mapping[str, int] = rank_setting
    logs: dict[str, Any] = {}
    if takes_halves(settings):
        rank, logs = _measured_ranks(model, objective, settings, groups, checkpoint_dir, title)

    # Methods that need no phase 1
    if settings.method in WEIGHT_RULES:
        mask = select_by_weight(groups.trainable, settings.k, settings.method, settings.split)
        phi, logs["phase2"] = selected_tuning(
            model,
            objective,
            settings,
            groups,
            distributed.broadcast_selection(mask),
            training_key(model, objective, settings),
            checkpoint_dir=checkpoint_dir,
            title=title,
        )
        return _with_record(phi, settings, rank_setting, {}, logs)
    if settings.method in RESELECTIONS:
        phi, logs["phase2"] = reselected_training(
            model, objective, settings, groups, checkpoint_dir=checkpoint_dir, title=title
        )
        return _with_record(phi, settings, rank_setting, {}, logs)

    # Phase 1: θ1 = full fine-tuning of θ0;  δ = θ1 − θ0
    phase1 = full_tuning(
        model, objective, settings, groups, checkpoint_dir=checkpoint_dir, title=title
    )
    logs["phase1"] = phase1.log

    # Denoise:  δ ← L + S, matrix by matrix (Equations 2 to 5)
    delta = METHODS[settings.method](phase1.delta, rank, settings)
    ranks = delta.ranks

    # Select:  μ = the k largest entries of δ
    mask = distributed.broadcast_selection(select(delta, settings.k, settings.split))

    # Phase 2: θ2 = fine-tuning of θ0, only the entries in μ moving;  φ = θ2 − θ0
    if settings.phase2:
        phase1_key = phase1.key
        del phase1, delta  # each as large as the model
        phi, logs["phase2"] = selected_tuning(
            model,
            objective,
            settings,
            groups,
            mask,
            phase1_key,
            checkpoint_dir=checkpoint_dir,
            title=title,
        )
    else:  # the paper's ablation: φ is δ at μ
        phi = entries_at(delta, mask)
        set_parameters(list(groups.trained_head.values()), phase1.head)
    return _with_record(phi, settings, rank_setting, ranks, logs)


def _with_record(
    phi: SparseVector,
    settings: VectorConfig,
    rank: Rank,
    ranks: Mapping[str, int],
    logs: Mapping[str, Any],
) -> SparseVector:
    """A vector with its settings, ranks and log."""
    recorded = {**settings.deciding(), **recorded_rank(settings.rank, rank)}
    recorded["training"] = TrainingRecord(recorded["training"])
    recorded["k"] = phi.k
    log = {phase: PhaseLog(**course) for phase, course in logs.items()}
    return replace(phi, provenance=Provenance(**recorded, ranks=dict(ranks), log=log))


def fit_language(
    base: Base,
    text: Sequence[str],
    settings: LanguageVectorConfig | None = None,
    *,
    language: str | None = None,
    checkpoint_dir: str | Path | None = None,
    title: str = "language",
) -> SparseVector:
    """φ_language = fit(text, language modelling, θ0).

    The base says itself how it is learnt: denoising for encoder-decoders, masked or causal language
    modelling.

    Args:
        base: Folder or hub id.
        text: Lines of a language's plain text.
        settings: Of the vector and its training; None: the defaults, which are the paper's
            training.
        language: The language's name, such as `min`, to be recorded in the vector.
        checkpoint_dir: Folder for checkpoints, from which a fit that was stopped resumes.
        title: What the progress bar calls it.

    Raises:
        DeftxError: The base cannot be loaded or has no language modelling head, or the text is too
            short or unknown to its tokenizer; and as `fit` does.
    """
    settings = settings or LanguageVectorConfig()
    check_kind(settings, LanguageVectorConfig)
    prepared = prepare_language(base, text, settings)
    vector = fit(
        prepared.model,
        prepared.objective,
        prepared.settings,
        checkpoint_dir=checkpoint_dir,
        title=title,
    )
    provenance = replace(prepared.origin.updated(vector.provenance), language=language)
    return replace(vector, provenance=provenance)


def fit_task(
    base: Base,
    train_set: Examples | Mapping[str, Examples],
    valid_set: Examples | Mapping[str, Examples],
    settings: TaskVectorConfig | None = None,
    *,
    source: SparseVector | Mapping[str, SparseVector] | None = None,
    temperature: float = 1.0,
    ignore_base_mismatch: bool = False,
    checkpoint_dir: str | Path | None = None,
    title: str = "task",
) -> SparseVector:
    """φ_task = fit(labelled data, task loss, θ0 + φ_source), with the task's head.

    With labelled data of several languages each batch is of one language, on θ0 + φ_language of
    that language; the best step is that of the best mean score over the languages.

    Args:
        base: Folder or hub id.
        train_set: Labelled data to learn from; of several languages by language.
        valid_set: Labelled data to choose the best step on, likewise.
        settings: Of the vector and its training; None: the defaults.
        source: The language vector of the labelled data's language; φ_task is measured from θ0 +
            φ_source, so that any other language vector can take its place. Of several languages by
            language. None: from θ0.
        temperature: How even several languages are made: 1 takes every example once an epoch; the
            higher, the more often those of languages with few, up to as many as the largest has.
        ignore_base_mismatch: Warn, instead of raising, where a source was made on other weights
            than the base's.
        checkpoint_dir: Folder for checkpoints, from which a fit that was stopped resumes.
        title: What the progress bar calls it.

    Raises:
        DeftxError: The base cannot be loaded, examples are not of the task, data and sources are
            not of the same languages, or a source does not fit the base; and as `fit` does.
    """
    settings = settings or TaskVectorConfig()
    check_kind(settings, TaskVectorConfig)
    settings = settled(settings)
    prepared = prepare_task(
        base,
        _by_language(train_set),
        _by_language(valid_set),
        settings,
        None if source is None else _by_language(source),
        temperature=temperature,
        ignore_base_mismatch=ignore_base_mismatch,
    )
    vector = fit(
        prepared.model,
        prepared.objective,
        prepared.settings,
        checkpoint_dir=checkpoint_dir,
        title=title,
    )
    head = learned_head(prepared.groups, prepared.origin.labels)
    provenance = prepared.origin.updated(vector.provenance)
    if prepared.settings != settings:  # several sources are trained batch by batch
        training = TrainingRecord(settings.deciding()["training"])
        provenance = replace(provenance, training=training)
    return replace(vector, head=head, provenance=provenance)


def _by_language(data: Any) -> Mapping[str, Any]:
    """Data of several languages as it is; of one, under a name that is no language's."""
    return data if isinstance(data, Mapping) else {"": data}


@overload
def transfer(
    base: Base,
    source_text: Sequence[str],
    target_text: Mapping[str, Sequence[str]],
    train_set: Examples,
    valid_set: Examples | None = None,
    language_settings: LanguageVectorConfig | None = None,
    task_settings: TaskVectorConfig | None = None,
    *,
    checkpoint_dir: str | Path | None = None,
) -> dict[str, PreTrainedModel]: ...


@overload
def transfer(
    base: Base,
    source_text: Sequence[str],
    target_text: Sequence[str],
    train_set: Examples,
    valid_set: Examples | None = None,
    language_settings: LanguageVectorConfig | None = None,
    task_settings: TaskVectorConfig | None = None,
    *,
    checkpoint_dir: str | Path | None = None,
) -> PreTrainedModel: ...


def transfer(
    base: Base,
    source_text: Sequence[str],
    target_text: Sequence[str] | Mapping[str, Sequence[str]],
    train_set: Examples,
    valid_set: Examples | None = None,
    language_settings: LanguageVectorConfig | None = None,
    task_settings: TaskVectorConfig | None = None,
    *,
    checkpoint_dir: str | Path | None = None,
) -> PreTrainedModel | dict[str, PreTrainedModel]:
    """The whole method: a model for each target language, from labelled data of a source language.

    Args:
        base: Folder or hub id.
        source_text: Lines of plain text in the source language.
        target_text: The same in the target language; for several targets, by language.
        train_set: Labelled data of the source language.
        valid_set: More of them, to choose the best step on; None: a tenth of `train_set`.
        language_settings: Of all language vectors; None: the defaults.
        task_settings: Of the task vector; None: the defaults.
        checkpoint_dir: Folder for what is learnt on the way, from which a call that was stopped
            resumes.

    Returns:
        An ordinary transformers model; for several targets, models by language.

    Raises:
        DeftxError: As `fit_language`, `fit_task` and `compose` do.
    """
    several_targets = isinstance(target_text, Mapping)
    targets = target_text if isinstance(target_text, Mapping) else {"target": target_text}
    for text in targets.values():
        check_read(text, "read_text")  # the other data when they are used first
    language_settings = language_settings or LanguageVectorConfig()
    task_settings = settled(task_settings or TaskVectorConfig())
    if valid_set is None:
        has_named_labels = task_of(task_settings.task).label_names is not None
        train_set, valid_set = held_out(
            train_set, HELD_OUT_SHARE, task_settings.seed, named=has_named_labels
        )

    def folder_of(name: str) -> Path | None:
        return Path(checkpoint_dir) / name if checkpoint_dir else None

    # φ_src, and φ_task on top of it
    phi_source = fit_language(
        base,
        source_text,
        language_settings,
        checkpoint_dir=folder_of("source language"),
        title="source language",
    )
    phi_task = fit_task(
        base,
        train_set,
        valid_set,
        task_settings,
        source=phi_source,
        checkpoint_dir=folder_of("task"),
        title="task",
    )

    # φ_tar of every target;  θ0 + φ_task + φ_tar
    models = {}
    for name, text in targets.items():
        title = f"{name} language"
        phi_target = fit_language(
            base,
            text,
            language_settings,
            language=name if several_targets else None,
            checkpoint_dir=folder_of(title),
            title=title,
        )
        models[name] = compose(base, phi_task, phi_target)
    return models if several_targets else models["target"]


def check_settings(
    settings: VectorConfig, model: PreTrainedModel, groups: ParameterGroups, *, head: bool
) -> None:
    """Raise DeftxError now for what would only come to light after hours of phase 1; `head`: one is
    learnt too."""
    if settings.method not in METHODS and takes_phase1(settings):
        raise unknown("method", settings.method, [*METHODS, *WEIGHT_RULES, *RESELECTIONS])
    if settings.method == "random" and not settings.phase2:
        raise DeftxError(
            "method random needs phase 2: without it the entries would stay as phase 1 left them"
        )
    if not takes_phase1(settings) and not settings.phase2:
        raise DeftxError(
            f"method {settings.method} has no phase 1, so that phase2 = false leaves nothing to"
            " learn: set phase2 = true"
        )
    if settings.phase1_steps is not None and not takes_phase1(settings):
        raise DeftxError(
            f"phase1_steps = {settings.phase1_steps}: method {settings.method} has no phase 1:"
            " leave it out, or choose deftx or lt-sft"
        )
    if settings.training.base_precision == "bf16" and takes_phase1(settings):
        raise DeftxError(
            f"training.base_precision = bf16: method {settings.method} trains all weights in phase"
            " 1, and bf16 loses small changes of them: choose a method without phase 1, such as"
            f" {', '.join([*WEIGHT_RULES, *RESELECTIONS])}; or leave base_precision at fp32"
        )
    if is_split_half(settings.rank) and not takes_phase1(settings):
        raise DeftxError(
            f"rank {settings.rank} needs phase 1, which method {settings.method} has not: give"
            " another rank"
        )
    if not is_split_half(settings.rank):
        rank_rule(rank_on(model, settings.rank))
    if parse_k(settings.k, groups.trainable_size) == 0 and not head:
        raise DeftxError(f"k = {settings.k} leaves nothing to learn: give at least 1")


def _measured_ranks(
    model: PreTrainedModel,
    objective: Objective,
    settings: VectorConfig,
    groups: ParameterGroups,
    checkpoint_dir: Path | None,
    title: str,
) -> tuple[dict[str, int], dict[str, Any]]:
    """The rank of every matrix by `split_half`, and how the two trainings went that tell it."""
    learnt = {
        role: full_tuning(
            model,
            objective,
            settings,
            groups,
            half=half,
            checkpoint_dir=checkpoint_dir,
            title=f"{title}, half {half}",
        )
        for role, half in HALVES.items()
    }
    ranks = split_half_ranks(*(part.delta for part in learnt.values()))
    return ranks, {role: part.log for role, part in learnt.items()}


def _random_strengths(delta: Delta, settings: VectorConfig) -> dict[str, Tensor]:
    """Random numbers in place of a delta, above 0 where it is not 0: entries are drawn among those
    that phase 1 moved.

    They depend on the delta as well as on the seed: by the seed alone a language's entries would be
    all the task's. Where fewer than k entries moved, `select` takes all of these, and fills up with
    others as it does for any method.
    """
    k = parse_k(settings.k, sum(tensor.numel() for tensor in delta.values()))
    moved = sum(int(tensor.count_nonzero()) for tensor in delta.values())
    if moved < k:
        warnings.warn(
            f"phase 1 moved {moved:,} entries, fewer than k = {k:,}: random takes all of them, and"
            " others besides",
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
