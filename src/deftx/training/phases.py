"""The two trainings of `deftx.fit`: phase 1 moves the whole backbone, phase 2 a selection of its entries."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from deftx.core.backbone import backbone, head, tunable
from deftx.core.select import Selection
from deftx.core.vector import SparseVector
from deftx.errors import Diverged
from deftx.settings import Fit
from deftx.storage.fingerprint import fingerprint
from deftx.storage.tensors import load_tensors, save_tensors
from deftx.training import processes
from deftx.training.checkpoint import Kept
from deftx.training.halves import halved
from deftx.training.loop import Moving, Objective, train
from deftx.training.rows import rows_apart
from deftx.training.sparse import sparse_tuning

Delta = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Learnt:
    """What phase 1 gave: δ = θ1 − θ0 by tensor, the tensors of the trained head, how the training went, and a name of
    all that determined it."""

    delta: Delta
    head: Sequence[Tensor]
    log: dict[str, Any]
    key: str


@dataclass(frozen=True)
class Phase:
    """Which phase of which fit, a name of all that determines its result, and the folder of work, if there is one; of
    phase 1 also on which half of the data, if not on all."""

    number: int
    title: str
    key: str
    work: Path | None
    half: int | None = None

    @property
    def folder(self) -> Path | None:
        """Where this process writes: of several one does."""
        return self.work if processes.first() else None

    @property
    def state(self) -> Path:
        """The file of a training that is under way."""
        assert self.work is not None
        return self.work / _file(self.number, self.half, ".state")


def learnt_file(half: int | None = None) -> str:
    """The name of the file in a folder of work with what phase 1 learnt, from all of the data or a half (1 or 2)."""
    return _file(1, half)


def full_tuning(
    model: PreTrainedModel,
    objective: Objective,
    settings: Fit,
    *,
    half: int | None = None,
    work: Path | None = None,
    title: str = "",
) -> Learnt:
    """Phase 1 of `fit`, or what an earlier one left in `work`. Leaves the model at θ0, its head at its start.

    half  1 or 2: from one half of the training data alone, see `halved`
    """
    if half:
        objective, settings = halved(objective, settings, half)
    body, top = tunable(model), trained_head(model)
    for name, weight in backbone(model).items():
        weight.requires_grad_(name in body)
    phase = Phase(1, title, _key(model, objective, settings), work, half)
    done = load_tensors(work / learnt_file(half), phase.key) if work else None
    processes.see_alike(work, done is not None)
    if done is not None:
        tensors, log = done[0], done[1]["log"]  # tensors in the model's order, which decides ties
        delta = {name: tensors[name].to(weight.device) for name, weight in body.items()}  # to be denoised as it was
        tops = [tensors[name].to(weight.device) for name, weight in zip(_heads(top), top, strict=True)]
        return Learnt(delta, tops, log, phase.key)
    theta0, top0 = _copies(body.values()), _copies(top)

    def difference() -> Delta:
        return {name: weight.detach() - before for (name, weight), before in zip(body.items(), theta0, strict=True)}

    with _last_good_kept(phase, difference), rows_apart(model, objective.tokens) as rows:
        moving = [rows.values if rows and weight is rows.weight else weight for weight in body.values()]
        both = zip(moving, body.values(), theta0, strict=True)
        start = [before if now is weight else now.detach().clone() for now, weight, before in both]
        log = _train(model, objective, settings, Moving(moving, start, top), phase)
    learnt = Learnt(difference(), _copies(top), log, phase.key)
    if keep := phase.folder:
        heads = dict(zip(_heads(top), learnt.head, strict=True))
        save_tensors(keep / learnt_file(half), {**learnt.delta, **heads}, {"key": phase.key, "log": log})
        phase.state.unlink(missing_ok=True)
    put([*body.values(), *top], [*theta0, *top0])
    return learnt


def selected_tuning(
    model: PreTrainedModel, objective: Objective, settings: Fit, selection: Selection, phase: Phase
) -> tuple[SparseVector, dict[str, Any]]:
    """Phase 2 of `fit`: how far the selected entries moved, and how the training went."""
    top = trained_head(model)
    with sparse_tuning(model, selection) as tuning:

        def difference() -> Delta:
            return {name: entries.dense() for name, entries in tuning.vector().tensors.items()}

        with _last_good_kept(phase, difference):
            flat = Moving([tuning.values], [tuning.start], top, placed=tuning.write)
            log = _train(model, objective, settings, flat, phase)
        return tuning.vector(), log


def _train(model: PreTrainedModel, objective: Objective, settings: Fit, moving: Moving, phase: Phase) -> dict[str, Any]:
    """One phase's training, as its log."""
    title, kept = f"{phase.title}: phase {phase.number}", Kept(phase.state, phase.key) if phase.work else None
    average = settings.training.average if phase.number == 2 else 1
    trained = train(
        model, objective, settings.training, moving, seed=settings.seed, title=title, kept=kept, average=average
    )
    return asdict(trained)


@contextmanager
def _last_good_kept(phase: Phase, difference: Callable[[], Delta]) -> Iterator[None]:
    """Write down what was learnt where the training within the block diverges."""
    try:
        yield
    except Diverged as error:
        learnt = difference()
        if phase.folder is None or not any(tensor.any() for tensor in learnt.values()):
            raise
        save_tensors(last := phase.folder / "last-good.safetensors", learnt, {"phase": phase.number})
        raise Diverged(f"{error}; the change of the weights up to there is in {last}") from None


def trained_head(model: PreTrainedModel) -> list[nn.Parameter]:
    """The tensors of the head that are trained."""
    return [parameter for parameter in head(model).values() if parameter.requires_grad]


@torch.no_grad()
def put(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Set parameters to values, one by one."""
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


def _file(number: int, half: int | None, what: str = "") -> str:
    """The name of a phase's file, such as phase1.safetensors, phase1-half2.safetensors, phase2.state.safetensors."""
    return f"phase{number}{f'-half{half}' if half else ''}{what}.safetensors"


def _heads(top: Sequence[Tensor]) -> list[str]:
    """What they are called beside the backbone's."""
    return [f"head/{number}" for number in range(len(top))]


def _copies(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


def _key(model: PreTrainedModel, objective: Objective, settings: Fit) -> str:
    """Names everything that determines the result of phase 1."""
    deciding = settings.deciding_phase1()
    config = model.config.to_json_string()  # dropout and the like
    parts = [version("deftx"), fingerprint(model), config, objective.digest, deciding["training"], deciding["seed"]]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
