"""What a training has found so far: its history, the best evaluated state, and the mean of the last
ones."""

from collections.abc import Mapping, Sequence
from math import ceil, isfinite, nan
from typing import Any

import torch
from torch import Tensor

from deftx.errors import Diverged
from deftx.objectives.base import Objective


class BestState:
    """Remembers the best evaluated state in memory; with `average` above 1 also the sum of the last
    so many.

    Attributes:
        step: The best evaluated step so far; 0 before the first evaluation.
        score: Its score.
        start_score: The score before the first step.
        history: Rows of training losses and of scores, in order.
    """

    RESUMED = ("step", "score", "start_score", "history", "loss_sum", "loss_logged_at", "summed")

    def __init__(
        self,
        objective: Objective,
        tensors: Sequence[Tensor],
        evaluate_every: int,
        steps: int,
        average: int = 1,
    ) -> None:
        self.metric = f"eval_{objective.metric}"
        self.greater_is_better = objective.greater_is_better
        self.tensors = tensors
        self.step = 0
        self.score = nan
        self.start_score = nan
        self.history: list[dict[str, float]] = []
        self.state = [tensor.detach().clone() for tensor in tensors]

        # The losses since they were last logged
        self.loss_sum = 0.0
        self.loss_logged_at = 0

        # The sum of the last `average` evaluated states
        evaluations = ceil(steps / evaluate_every)
        self.sum_after = (evaluations - average) * evaluate_every
        self.summed = 0
        self.sum: list[Tensor] = []
        if average > 1:
            self.sum = [torch.zeros_like(tensor) for tensor in tensors]

    def add_loss(self, loss: float) -> None:
        """Count the training loss of a step."""
        self.loss_sum += loss

    def record_loss(self, step: int, epoch: float) -> float:
        """Add a row with the mean training loss since the last such row, and return it."""
        mean = self.loss_sum / (step - self.loss_logged_at)
        self.loss_sum = 0.0
        self.loss_logged_at = step
        self.history.append({"step": step, "epoch": epoch, "train_loss": mean})
        return mean

    def record_start(self, scores: Mapping[str, float]) -> None:
        """Take note of the scores before the first step."""
        self.start_score = scores[self.metric]
        self._check_finite(self.start_score, 0)

    def record(self, step: int, epoch: float, scores: Mapping[str, float]) -> None:
        """Add a row of scores, and keep the state if it is the best so far.

        Raises:
            Diverged: The deciding score or a parameter is not finite.
        """
        score = scores[self.metric]
        self._check_finite(score, step)
        self.history.append({"step": step, "epoch": epoch, **scores})
        if self._is_better(score):
            self.step = step
            self.score = score
            _copy(self.tensors, self.state)
        if self.sum and step > self.sum_after:
            self.summed += 1
            for total, tensor in zip(self.sum, self.tensors, strict=True):
                total += tensor.detach()

    def _is_better(self, score: float) -> bool:
        if self.step == 0:
            return True
        if self.greater_is_better:
            return score > self.score
        return score < self.score

    def _check_finite(self, score: float, step: int) -> None:
        if isfinite(score) and all(tensor.isfinite().all() for tensor in self.tensors):
            return
        name = self.metric.removeprefix("eval_")
        raise Diverged(f"the weights or the held-out {name} are not finite after step {step}")

    def take_mean(self) -> None:
        """Put the mean of the last evaluated states into the parameters; the next evaluation counts
        as the best."""
        _copy([total / self.summed for total in self.sum], self.tensors)
        self.step = 0

    def restore(self) -> None:
        """Put the best evaluated state back; the start, where there was no evaluation."""
        _copy(self.state, self.tensors)

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON-like values that `load_state_dict` takes; the start is not among
        them."""
        tensors: dict[str, Tensor] = {}
        if self.step:
            tensors |= {f"best.{number}": tensor for number, tensor in enumerate(self.state)}
        if self.summed:
            tensors |= {f"sum.{number}": tensor for number, tensor in enumerate(self.sum)}
        return tensors, {name: getattr(self, name) for name in self.RESUMED}

    def load_state_dict(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Resume from what `state_dict` gave."""
        for name in self.RESUMED:
            setattr(self, name, values[name])
        if self.step:
            _copy([tensors[f"best.{number}"] for number in range(len(self.state))], self.state)
        if self.summed:
            _copy([tensors[f"sum.{number}"] for number in range(len(self.sum))], self.sum)


@torch.no_grad()
def _copy(source: Sequence[Tensor], target: Sequence[Tensor]) -> None:
    for values, tensor in zip(source, target, strict=True):
        tensor.copy_(values)
