"""The state of a training, kept in a file from time to time: one that was killed resumes from
there, bit for bit.

The file holds what moves, the best state so far, the optimiser's moments and the step; in phase 2
these are some 4 · k numbers. Random numbers are a function of the step
(`deftx.training.random_streams`), so that there is no random state to keep. Nothing in the file can
run code: it is one safetensors file whose metadata are JSON.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import torch
from torch import Tensor

from deftx.storage.tensors import load_tensors, save_tensors
from deftx.training import distributed
from deftx.training.best import BestState

SECONDS_BETWEEN = 60.0  # two checkpoints are at least this far apart
LARGEST_SHARE_OF_TIME = 0.02  # that writing checkpoints may take


@dataclass(frozen=True)
class ResumePoint:
    """Where a training keeps its state.

    Attributes:
        path: The file.
        key: Names all that determines the training's result, so that no other training's state is
            taken.
    """

    path: Path
    key: str


class Checkpointer:
    """Writes the state of a training before a step, and puts it back at the beginning of a later
    one.

    Without a resume point it does nothing.
    """

    def __init__(
        self,
        resume_point: ResumePoint | None,
        tensors: Sequence[Tensor],
        optimizer: torch.optim.Optimizer,
        best: BestState,
    ) -> None:
        self.resume_point = resume_point
        self.tensors = tensors
        self.optimizer = optimizer
        self.best = best
        self.due = monotonic() + SECONDS_BETWEEN

    def restore(self) -> int:
        """Put back the state that an earlier training left; the number of steps that it had taken,
        else 0."""
        if self.resume_point is None:
            return 0
        loaded = load_tensors(self.resume_point.path, self.resume_point.key)
        step = 0
        if loaded is not None:
            step = int(loaded[1]["step"])
        distributed.assert_same_on_all_ranks(self.resume_point.path.parent, step)
        if loaded is None:
            return 0
        tensors, values = loaded
        with torch.no_grad():
            for number, tensor in enumerate(self.tensors):
                tensor.copy_(tensors[f"value.{number}"])
        moments = _moments_by_parameter(tensors)
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.best.load_state_dict(tensors, values["best"])
        return step

    def save_if_due(self, step: int) -> None:
        """Keep the state after `step` steps, if the last checkpoint is long ago and the state is
        finite."""
        if self.resume_point is None or step == 0 or not distributed.is_main_process():
            return
        if monotonic() < self.due:
            return
        if not all(tensor.isfinite().all() for tensor in self.tensors):
            return
        start = monotonic()
        self._save(self.resume_point, step)
        seconds = monotonic() - start
        self.due = monotonic() + max(SECONDS_BETWEEN, seconds / LARGEST_SHARE_OF_TIME)

    def _save(self, resume_point: ResumePoint, step: int) -> None:
        tensors, best_values = self.best.state_dict()
        for number, tensor in enumerate(self.tensors):
            tensors[f"value.{number}"] = tensor.detach()
        for number, moments in self.optimizer.state_dict()["state"].items():
            for name, moment in moments.items():
                tensors[f"optimizer.{number}.{name}"] = moment
        save_tensors(
            resume_point.path, tensors, {"key": resume_point.key, "step": step, "best": best_values}
        )


def _moments_by_parameter(tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """The optimiser's state by the number of the parameter."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            _, number, name = key.split(".", 2)
            state.setdefault(int(number), {})[name] = tensor
    return state
