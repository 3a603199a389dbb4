"""The two trainings of `deftx.fit`: phase 1 moves the whole backbone, phase 2 a selection of its
entries.

Each phase draws random numbers of its own, derived from the seed: other batches, masks and dropout.
A head starts from the same values in both, and is trained in both.
"""

import hashlib
import json
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from deftx.config import VectorConfig
from deftx.core.parameters import ParameterGroups
from deftx.core.select import SparseMask, digest
from deftx.core.vector import SparseVector
from deftx.errors import Diverged
from deftx.messages import say
from deftx.models.fingerprint import fingerprint
from deftx.objectives.base import Objective
from deftx.storage.tensors import load_tensors, read_about, save_tensors
from deftx.training import distributed
from deftx.training.embedding_rows import trainable_embedding_rows
from deftx.training.halves import halved
from deftx.training.loop import LOOP_VERSION, TrainableState, total_steps, train
from deftx.training.random_streams import derived_seed
from deftx.training.resume import ResumePoint
from deftx.training.sparse import sparse_tuning
from deftx.training.spiel import check_reselection, reselected_tuning

Delta = Mapping[str, Tensor]

# the keys of the phases that a fit began, while `say_where_it_resumes` waits for its end
_keys_in_use: ContextVar[set[str] | None] = ContextVar("keys of phases in use", default=None)


@dataclass(frozen=True, eq=False)
class Phase1Result:
    """What phase 1 gave.

    Attributes:
        delta: δ = θ1 − θ0 by tensor.
        head: The tensors of the trained head.
        log: How the training went.
        key: A name of all that determined it.
    """

    delta: Delta
    head: Sequence[Tensor]
    log: dict[str, Any]
    key: str


@dataclass(frozen=True)
class Phase:
    """One phase of a fit, and where it keeps what it needs to resume.

    Attributes:
        number: 1 or 2.
        title: What the fit is called.
        key: A name of all that determines the result of this phase.
        checkpoint_dir: Folder for its files, if there is one.
        half: 1 or 2 where it trains on half of the data, else None.
    """

    number: int
    title: str
    key: str
    checkpoint_dir: Path | None
    half: int | None = None

    @property
    def folder(self) -> Path | None:
        """Where this process writes: of several one does."""
        return self.checkpoint_dir if distributed.is_main_process() else None

    @property
    def state_file(self) -> Path:
        """The file of a training that is under way."""
        assert self.checkpoint_dir is not None
        return self.checkpoint_dir / _file_name(self.number, self.half, ".state")

    @property
    def resume_point(self) -> ResumePoint | None:
        """Where the training keeps its state, if anywhere."""
        if self.checkpoint_dir is None:
            return None
        return ResumePoint(self.state_file, self.key)


def phase1_file(half: int | None = None) -> str:
    """The name of the file with what phase 1 learnt, from all of the data or a half (1 or 2)."""
    return _file_name(1, half)


def full_tuning(
    model: PreTrainedModel,
    objective: Objective,
    settings: VectorConfig,
    groups: ParameterGroups,
    *,
    half: int | None = None,
    checkpoint_dir: Path | None = None,
    title: str = "",
) -> Phase1Result:
    """Phase 1 of `fit`: fine-tune the whole backbone, or read what an earlier run left.

    Args:
        model: At θ0; it is left there, its head at its start.
        objective: What to train for.
        settings: Of the fit; phase 1 depends on its training and its seed alone.
        groups: The model's parameters.
        half: 1 or 2: train on one half of the data, see `halved`.
        checkpoint_dir: Folder for checkpoints and the result.
        title: What the fit is called.

    Raises:
        Diverged: A loss is not finite.
    """
    settings = settings.of_phase1()
    if half:
        objective, settings = halved(objective, settings, half)
    trainable = groups.trainable
    trained_head = list(groups.trained_head.values())
    for name, weight in groups.backbone.items():
        weight.requires_grad_(name in trainable)
    phase = Phase(1, title, training_key(model, objective, settings), checkpoint_dir, half)
    _key_in_use(phase)

    # An earlier run's result
    kept = load_tensors(checkpoint_dir / phase1_file(half), phase.key) if checkpoint_dir else None
    distributed.assert_same_on_all_ranks(checkpoint_dir, kept is not None)
    if kept is not None:
        tensors, values = kept
        device = model.device
        # In the model's order, which decides ties
        delta = {name: tensors[name].to(device) for name in trainable}
        head_values = [tensors[name].to(device) for name in _head_names(trained_head)]
        return Phase1Result(delta, head_values, values["log"], phase.key)

    # Training: θ1
    theta0 = _copies(trainable.values())
    head_start = _copies(trained_head)

    def difference() -> Delta:
        return {
            name: weight.detach() - start
            for (name, weight), start in zip(trainable.items(), theta0, strict=True)
        }

    with (
        _keep_last_good(phase, difference),
        trainable_embedding_rows(model, objective.vocabulary_used) as rows,
    ):
        parameters, anchors = [], []
        for weight, start in zip(trainable.values(), theta0, strict=True):
            if rows is not None and weight is rows.weight:
                parameters.append(rows.values)
                anchors.append(rows.values.detach().clone())
            else:
                parameters.append(weight)
                anchors.append(start)
        log = _train(
            model, objective, settings, TrainableState(parameters, anchors, trained_head), phase
        )

    # δ = θ1 − θ0, kept for other methods, ranks and sizes; the model goes back to θ0
    result = Phase1Result(difference(), _copies(trained_head), log, phase.key)
    if phase.folder is not None:
        head_tensors = dict(zip(_head_names(trained_head), result.head, strict=True))
        tensors = {**result.delta, **head_tensors}
        save_tensors(phase.folder / phase1_file(half), tensors, {"key": phase.key, "log": log})
        phase.state_file.unlink(missing_ok=True)
    set_parameters([*trainable.values(), *trained_head], [*theta0, *head_start])
    return result


def selected_tuning(
    model: PreTrainedModel,
    objective: Objective,
    settings: VectorConfig,
    groups: ParameterGroups,
    selection: SparseMask,
    phase1_key: str,
    *,
    checkpoint_dir: Path | None = None,
    title: str = "",
) -> tuple[SparseVector, dict[str, Any]]:
    """Phase 2 of `fit`: fine-tune the selected entries.

    Args:
        model: At θ0, its head at its start; it is left at θ2.
        objective: What to train for.
        settings: Of the fit.
        groups: The model's parameters.
        selection: Which entries move.
        phase1_key: The name of all that determined phase 1, or would have.
        checkpoint_dir: Folder for checkpoints.
        title: What the fit is called.

    Returns:
        How far the selected entries moved, φ = θ2 − θ0, and how the training went.

    Raises:
        Diverged: A loss is not finite.
    """
    key = f"{phase1_key} {digest(selection)} {settings.training.average}"
    if settings.phase1_steps is not None:  # phase 1's name does not tell the steps of phase 2 then
        key += f" {settings.training.max_steps} {settings.training.min_steps}"
    phase = Phase(2, title, key, checkpoint_dir)
    _key_in_use(phase)
    trained_head = list(groups.trained_head.values())
    with sparse_tuning(model, selection) as tuning:

        def difference() -> Delta:
            return {name: entries.to_dense() for name, entries in tuning.vector().tensors.items()}

        state = TrainableState(
            [tuning.values], [tuning.start], trained_head, on_restore=tuning.write
        )
        with _keep_last_good(phase, difference):
            log = _train(model, objective, settings, state, phase)
        return tuning.vector(), log


def reselected_training(
    model: PreTrainedModel,
    objective: Objective,
    settings: VectorConfig,
    groups: ParameterGroups,
    *,
    checkpoint_dir: Path | None = None,
    title: str = "",
) -> tuple[SparseVector, dict[str, Any]]:
    """In place of both phases: fine-tune entries that are chosen meanwhile (SpIEL).

    Args:
        model: At θ0; it is left at the end of the training.
        objective: What to train for.
        settings: Of the fit.
        groups: The model's parameters.
        checkpoint_dir: Folder for checkpoints.
        title: What the fit is called.

    Returns:
        How far the entries moved that were chosen last, and how the training went.

    Raises:
        DeftxError: A setting does not go together with the method.
        Diverged: A loss is not finite.
    """
    steps = total_steps(len(objective.train), settings.training)
    check_reselection(settings, steps)
    deciding = json.dumps(settings.deciding(), sort_keys=True)
    key = f"{training_key(model, objective, settings)} {deciding}"
    phase = Phase(2, title, key, checkpoint_dir)
    vocabulary_used = objective.vocabulary_used
    with reselected_tuning(model, groups, vocabulary_used, settings, steps) as tuning:

        def difference() -> Delta:
            return {name: entries.to_dense() for name, entries in tuning.vector().tensors.items()}

        state = TrainableState(
            [tuning.values],
            [tuning.start],
            list(groups.trained_head.values()),
            on_restore=tuning.restore,
            layout=[tuning.positions],
            resumed=tuning.growth.buffers,
            before_step=tuning.before_step,
            after_step=tuning.after_step,
        )
        with _keep_last_good(phase, difference):
            log = _train(model, objective, settings, state, phase)
        return tuning.vector(), log


@contextmanager
def say_where_it_resumes(checkpoint_dir: Path, title: str) -> Iterator[None]:
    """Where a fit within the block is stopped, say what the same command starts from next time."""
    keys: set[str] = set()
    token = _keys_in_use.set(keys)
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        point = _where_it_resumes(checkpoint_dir, keys)
        if point is None:
            say(f"{title}: stopped before the first checkpoint, so nothing was kept")
        else:
            say(f"{title}: it will resume from {point}")
        raise
    finally:
        _keys_in_use.reset(token)


def _where_it_resumes(checkpoint_dir: Path, keys: Container[str]) -> str | None:
    """The latest point that a fit's files lead back to, in words; None without any.

    Args:
        checkpoint_dir: The folder of the files.
        keys: Of the fit's phases; files with another one were left by other settings or data.
    """
    for number in (2, 1):
        for half in (None, 2, 1):
            of_half = f" on half {half} of the data" if half else ""
            about = read_about(checkpoint_dir / _file_name(number, half, ".state"))
            if about is not None and about.get("key") in keys:
                return f"step {about['step']} of phase {number}{of_half}"
            if number == 2:
                continue
            about_result = read_about(checkpoint_dir / phase1_file(half))
            if about_result is not None and about_result.get("key") in keys:
                return f"the end of phase 1{of_half}"
    return None


def _key_in_use(phase: Phase) -> None:
    """Remember the key of a phase that has begun, for `say_where_it_resumes`."""
    keys = _keys_in_use.get()
    if keys is not None:
        keys.add(phase.key)


@torch.no_grad()
def set_parameters(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Set parameters to values, one by one."""
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


def _train(
    model: PreTrainedModel,
    objective: Objective,
    settings: VectorConfig,
    state: TrainableState,
    phase: Phase,
) -> dict[str, Any]:
    """One phase's training, as its log."""
    average = settings.training.average if phase.number == 2 else 1
    result = train(
        model,
        objective,
        settings.training,
        state,
        seed=derived_seed(settings.seed, "phase", phase.number),
        title=f"{phase.title}: phase {phase.number}",
        resume_point=phase.resume_point,
        average=average,
    )
    return asdict(result)


@contextmanager
def _keep_last_good(phase: Phase, difference: Callable[[], Delta]) -> Iterator[None]:
    """Write the change of the weights to a file where the training within the block diverges."""
    try:
        yield
    except Diverged as error:
        change = difference()
        if phase.folder is None or not any(tensor.any() for tensor in change.values()):
            raise
        path = phase.folder / "last-good.safetensors"
        save_tensors(path, change, {"phase": phase.number})
        raise Diverged(f"{error}; the change of the weights up to there is in {path}") from None


def _file_name(number: int, half: int | None, suffix: str = "") -> str:
    """The name of a phase's file, such as phase1.safetensors, phase1-half2.safetensors,
    phase2.state.safetensors."""
    part = f"-half{half}" if half else ""
    return f"phase{number}{part}{suffix}.safetensors"


def _head_names(trained_head: Sequence[Tensor]) -> list[str]:
    """What the head's tensors are called beside the backbone's."""
    return [f"head/{number}" for number in range(len(trained_head))]


def _copies(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


def training_key(model: PreTrainedModel, objective: Objective, settings: VectorConfig) -> str:
    """Names everything that determines the result of a training of all weights: phase 1."""
    deciding = settings.deciding_phase1()
    config = model.config.to_json_string()  # dropout and the like
    parts = [version("deftx"), LOOP_VERSION, fingerprint(model), config, objective.digest]
    parts += [deciding["training"], deciding["seed"]]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
