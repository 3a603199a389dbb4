"""What a training has found so far: its history, the best state that was evaluated, and the mean of the last ones."""

from collections.abc import Mapping, Sequence
from math import ceil, isfinite
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from deftx.errors import Diverged


class Best(TrainerCallback):
    """Has the model evaluated every so many steps and at the end, and remembers the best state in memory; with
    `average` above 1 also the sum of the last so many evaluated ones."""

    KEPT = ("step", "score", "history", "logged", "summed")

    def __init__(
        self,
        metric: str,
        greater_is_better: bool,
        every: int,
        steps: int,
        parameters: Sequence[nn.Parameter],
        average: int = 1,
    ) -> None:
        self.metric, self.sign = f"eval_{metric}", 1 if greater_is_better else -1
        self.every, self.steps, self.parameters = every, steps, parameters
        self.step, self.score, self.state = 0, float("nan"), [p.detach().clone() for p in parameters]
        self.last = (ceil(steps / every) - average) * every  # evaluations after this step are among the last ones
        self.summed, self.sum = 0, [torch.zeros_like(p) for p in parameters] if average > 1 else []
        self.history: list[dict[str, float]] = []
        self.losses, self.logged = torch.zeros(()), 0  # the sum of the losses since the step that was last logged

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Have the model evaluated when it is time."""
        control.should_evaluate = state.global_step % self.every == 0 or state.global_step == self.steps

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Note the training loss."""
        if "loss" in kwargs["logs"]:
            self.history.append({"step": state.global_step, "train_loss": kwargs["logs"]["loss"]})

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Note the scores, and the state if it is the best so far. Raises Diverged where something is not finite."""
        metrics = kwargs["metrics"]
        score = metrics[self.metric]
        if not isfinite(score) or not all(parameter.isfinite().all() for parameter in self.parameters):
            what = f"held-out {self.metric.removeprefix('eval_')}"
            raise Diverged(f"the weights or the {what} are not finite after step {state.global_step}")
        self.history.append({"step": state.global_step, **metrics})
        if self.step == 0 or self.sign * score > self.sign * self.score:
            self.step, self.score = state.global_step, score
            _copy(self.parameters, self.state)
        if self.sum and state.global_step > self.last:
            self.summed += 1
            for total, parameter in zip(self.sum, self.parameters, strict=True):
                total += parameter.detach()

    def take_mean(self) -> None:
        """Put the mean of the last evaluated states into the parameters; the next evaluation is its, and the best."""
        _copy([total / self.summed for total in self.sum], self.parameters)
        self.step = 0

    def mean_loss(self, step: int) -> float:
        """The mean training loss since it was last asked for."""
        mean = self.losses.item() / (step - self.logged)
        self.losses, self.logged = torch.zeros(()), step
        return mean

    def kept(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a checkpoint holds of this; before the first evaluation the best state is the start."""
        state = {f"best.{number}": tensor for number, tensor in enumerate(self.state)} if self.step else {}
        sums = {f"sum.{number}": tensor for number, tensor in enumerate(self.sum)} if self.summed else {}
        return {"losses": self.losses, **state, **sums}, {name: getattr(self, name) for name in self.KEPT}

    def put(self, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        """Take up what `kept` gave."""
        for name in self.KEPT:
            setattr(self, name, about[name])
        self.losses = tensors["losses"]
        if self.step:
            _copy([tensors[f"best.{number}"] for number in range(len(self.state))], self.state)
        if self.summed:
            _copy([tensors[f"sum.{number}"] for number in range(len(self.sum))], self.sum)

    def restore(self) -> None:
        """Put the best evaluated state back; the start, where there was no evaluation."""
        _copy(self.state, self.parameters)


@torch.no_grad()
def _copy(source: Sequence[Tensor], target: Sequence[Tensor]) -> None:
    for values, place in zip(source, target, strict=True):
        place.copy_(values)
