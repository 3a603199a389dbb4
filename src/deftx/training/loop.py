"""One training loop for both phases: AdamW, linear decay, an L1 penalty towards the start, the best
step kept."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import ceil, isfinite
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from deftx.config import TrainingConfig
from deftx.core.parameters import EMBEDDING_ROWS, SPARSE_VALUES
from deftx.core.select import CHUNK
from deftx.errors import Diverged
from deftx.objectives.base import Batch, Objective, training_context
from deftx.training import distributed
from deftx.training.best import BestState
from deftx.training.precision import autocast, bf16_pays
from deftx.training.progress import ProgressBar
from deftx.training.random_streams import derived_seed, generator, preserved_global_state
from deftx.training.resume import Checkpointer, ResumePoint
from deftx.training.trackers import tracking

# Part of the name of what a training gives: raised when the same settings give other weights.
LOOP_VERSION = 2


@dataclass(frozen=True, eq=False)
class TrainableState:
    """What an optimiser moves.

    Attributes:
        parameters: Tensors of the backbone, or the flat parameter of sparse tuning.
        anchors: What each of `parameters` was at the start: the L1 penalty pulls towards it.
        head: Parameters of a head, free of the penalty.
        on_restore: Called after `parameters` were set from outside the optimiser.
        layout: Integers that say what `parameters` stand for, where that changes; they are kept
            and put back with them.
        resumed: What else a training that resumes needs.
        before_step: Called before each step with its number, from 0.
        after_step: Called after each step of the optimiser, while gradients are there, with the
            number of steps done, the optimiser, and what the gradient was multiplied by to clip it.
    """

    parameters: Sequence[nn.Parameter]
    anchors: Sequence[Tensor]
    head: Sequence[nn.Parameter] = ()
    on_restore: Callable[[], None] = lambda: None
    layout: Sequence[Tensor] = ()
    resumed: Sequence[Tensor] = ()
    before_step: Callable[[int], None] = lambda step: None
    after_step: Callable[[int, torch.optim.Optimizer, Tensor], None] = lambda *step: None

    @property
    def all_parameters(self) -> list[nn.Parameter]:
        """`parameters`, then those of the head."""
        return [*self.parameters, *self.head]


@dataclass(frozen=True)
class TrainingResult:
    """How a training went.

    Attributes:
        steps: Optimiser steps taken.
        best_step: The evaluated step whose state is left; the last one where states were averaged.
        best_score: Its score on the held-out data.
        start_score: The score before the first step.
        history: Rows of training losses and of scores. Where states were averaged, the last row is
            the mean's.
    """

    steps: int
    best_step: int
    best_score: float
    start_score: float
    history: list[dict[str, float]] = field(repr=False)


def train(
    model: PreTrainedModel,
    objective: Objective,
    training: TrainingConfig,
    state: TrainableState,
    *,
    seed: int,
    title: str = "",
    resume_point: ResumePoint | None = None,
    average: int = 1,
) -> TrainingResult:
    """Train `state` with AdamW (no weight decay, linear decay to 0) and leave it at its best
    evaluated step.

    The penalty λ/N · ‖θ − θ0‖₁ enters as its gradient λ/N · sign(θ − θ0), before the gradient is
    clipped. N is the number of all parameters of the model, a decoder that was untied from the
    embeddings included (LT-SFT).

    Args:
        model: In training mode during steps; what `state` does not hold stays as it is.
        objective: Data, loss and held-out scores.
        training: Settings.
        state: What moves.
        seed: Decides the order of the data, its masks and the dropout.
        title: What the progress bar and trackers call this training.
        resume_point: Where the state is kept from time to time; a training whose state is there
            resumes from it.
        average: Above 1, the mean of the last so many evaluated states is left, however good they
            are.

    Raises:
        Diverged: A loss or a deciding score is not finite; `state` is back at the best step so far,
            or its start.
        DeftxError: A tracker is unknown or not installed.
    """
    steps = total_steps(len(objective.train), training)
    parameters = state.all_parameters
    device = model.device
    use_bf16 = computes_in_bf16(training, device)
    precision = partial(autocast, device, use_bf16)
    penalty = training.l1 / sum(weight.numel() for weight in distinct_parameters(model))
    optimizer = torch.optim.AdamW(
        parameters, lr=training.learning_rate, weight_decay=0.0, fused=True
    )
    kept = [*parameters, *state.layout]
    best = BestState(objective, kept, training.evaluate_every, steps, average)
    checkpointer = Checkpointer(resume_point, [*kept, *state.resumed], optimizer, best)
    log_every = min(training.evaluate_every, max(1, steps // 20))
    order = _DataOrder(len(objective.train), training, seed)
    progress = ProgressBar(title, steps)

    def evaluate() -> dict[str, float]:
        nn.Module.eval(model)
        with torch.no_grad(), precision():
            scores = objective.validate(model, 4 * training.batch_size)
        model.train()
        return {f"eval_{name}": score for name, score in scores.items()}

    with (
        preserved_global_state(device),
        _without_cache(model),
        progress.bar,
        tracking(training, title) as track,
    ):
        try:
            first_step = checkpointer.restore()
            epoch = first_step / order.steps_per_epoch
            if first_step:
                state.on_restore()
            else:
                best.record_start(evaluate())
            model.train()
            for step in range(first_step, steps):
                checkpointer.save_if_due(step)
                state.before_step(step)

                # Gradients of the step's batches, whose mean loss is over all that is labelled in
                # them
                batches = _batches(objective, order, step, seed)
                best.add_loss(_backward(model, objective, batches, precision, seed, step))
                distributed.all_reduce_sum(p.grad for p in parameters if p.grad is not None)
                if penalty:
                    _add_penalty_gradient(state, penalty)

                # The optimiser's step, at a learning rate that decays to 0
                gradient_norm = nn.utils.clip_grad_norm_(parameters, training.clip)
                learning_rate = training.learning_rate * (1 - step / steps)
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate
                optimizer.step()
                clipping = (training.clip / (gradient_norm + 1e-6)).clamp(max=1.0)
                state.after_step(step + 1, optimizer, clipping)
                optimizer.zero_grad(set_to_none=True)
                progress.advance(step + 1)

                # Logs and evaluation
                done = step + 1
                epoch = done / order.steps_per_epoch
                if done % log_every == 0:
                    loss = best.record_loss(done, epoch)
                    progress.report(done, {"loss": loss})
                    track(
                        done,
                        {
                            "loss": loss,
                            "learning_rate": learning_rate,
                            "grad_norm": float(gradient_norm),
                        },
                    )
                if done % training.evaluate_every == 0 or done == steps:
                    scores = evaluate()
                    progress.report(done, scores)
                    track(done, scores)
                    best.record(done, epoch, scores)
            if average > 1:
                best.take_mean()
                state.on_restore()
                best.record(steps, epoch, evaluate())
        except Diverged as error:
            left = "nothing had been evaluated yet"
            if best.step:
                left = f"the state of step {best.step} is kept"
            advice = "lower the learning rate or check the data"
            raise Diverged(f"{title}: {error}; {left}; {advice}") from None
        finally:
            best.restore()
            state.on_restore()
    return TrainingResult(steps, best.step, best.score, best.start_score, best.history)


def computes_in_bf16(training: TrainingConfig, device: torch.device) -> bool:
    """Whether the forward pass is in bf16; always where the base's weights are."""
    if training.base_precision == "bf16" or training.precision == "bf16":
        return True
    return training.precision == "auto" and bf16_pays(device)


def total_steps(examples: int, training: TrainingConfig) -> int:
    """Optimiser steps: the lesser of `epochs` and `max_steps`, but at least `min_steps`."""
    steps = ceil(training.epochs * _steps_per_epoch(examples, training))
    most = training.max_steps or steps
    return max(training.min_steps, min(most, steps), 1)


def distinct_parameters(model: nn.Module) -> list[nn.Parameter]:
    """All parameters of a model but those that training registered on it; tied ones once."""
    registered = {id(getattr(model, name, None)) for name in (SPARSE_VALUES, EMBEDDING_ROWS)}
    return [parameter for parameter in model.parameters() if id(parameter) not in registered]


def _steps_per_epoch(examples: int, training: TrainingConfig) -> int:
    batches = ceil(examples / training.batch_size)
    return ceil(batches / training.accumulate)


class _DataOrder:
    """Which examples each step trains on: every epoch goes through all of them in an order of its
    own."""

    def __init__(self, examples: int, training: TrainingConfig, seed: int) -> None:
        self.examples = examples
        self.batch_size = training.batch_size
        self.accumulate = training.accumulate
        self.seed = seed
        self.steps_per_epoch = _steps_per_epoch(examples, training)
        self.epoch = -1
        self.rows = torch.empty(0, dtype=torch.int64)

    def batches(self, step: int) -> list[list[int]]:
        """The rows of each batch that is accumulated in a step."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self.epoch:
            self.epoch = epoch
            self.rows = torch.randperm(
                self.examples, generator=generator(self.seed, "order", epoch)
            )
        start = position * self.batch_size * self.accumulate
        rows = self.rows[start : start + self.batch_size * self.accumulate]
        return [part.tolist() for part in rows.split(self.batch_size)]


def _batches(objective: Objective, order: _DataOrder, step: int, seed: int) -> list[Batch]:
    """The collated batches of a step."""
    drawn = generator(seed, "batch", step)
    batches = []
    for rows in order.batches(step):
        examples = [objective.train[row] for row in rows]
        batches.append(objective.collate(examples, drawn))
    return batches


def _backward(
    model: PreTrainedModel,
    objective: Objective,
    batches: list[Batch],
    precision: Callable[[], Any],
    seed: int,
    step: int,
) -> float:
    """Accumulate the gradient of the mean loss over all that is labelled in the step's batches.

    Returns:
        That mean loss.

    Raises:
        Diverged: It is not finite.
    """
    sizes = [objective.loss_denominator(batch) for batch in batches]
    total = max(sum(sizes), 1)
    step_loss = torch.zeros((), device=model.device)
    for number, whole_batch in enumerate(batches):
        shard = distributed.local_shard(whole_batch)
        batch = {
            name: tensor.to(model.device, non_blocking=True) for name, tensor in shard.rows.items()
        }
        weight = shard.weight(objective.loss_denominator) / total
        torch.manual_seed(derived_seed(seed, "dropout", step, number, distributed.rank()))
        with training_context(objective, model, batch):
            with precision():
                loss = objective.loss(model, batch) * weight
            loss.backward()
        step_loss += loss.detach().float()
    distributed.all_reduce_sum([step_loss])
    mean_loss = step_loss.item()  # the one wait for a GPU
    if not isfinite(mean_loss):
        raise Diverged(f"the loss became {mean_loss} at step {step + 1}")
    return mean_loss


@torch.no_grad()
def _add_penalty_gradient(state: TrainableState, strength: float) -> None:
    """Add the gradient of strength · ‖θ − θ0‖₁ to that of `state.parameters`."""
    for parameter, anchor in zip(state.parameters, state.anchors, strict=True):
        if parameter.grad is not None:
            add_sign_of_change(parameter.grad, parameter, anchor, strength)


def add_sign_of_change(gradient: Tensor, weight: Tensor, start: Tensor, strength: float) -> None:
    """gradient += strength · sign(weight − start), in place; on a CPU some rows at a time, which
    stay in its cache."""
    gradient, weight, start = torch.atleast_1d(gradient, weight, start)  # views
    rows = len(weight)
    if weight.device.type == "cpu":
        rows = len(weight) * CHUNK // max(1, weight.numel())
    parts = zip(*(tensor.split(max(1, rows)) for tensor in (gradient, weight, start)), strict=True)
    for gradient_rows, weight_rows, start_rows in parts:
        gradient_rows.add_(torch.sign(weight_rows - start_rows), alpha=strength)


@contextmanager
def _without_cache(model: PreTrainedModel) -> Iterator[None]:
    """Within the block decoders keep no keys and values; after it the config is as before.

    The config is part of the name of what is trained, so that it must not change.
    """
    config: Any = model.config
    was_set = "use_cache" in vars(config)
    before = getattr(config, "use_cache", None)
    config.use_cache = False
    try:
        yield
    finally:
        if was_set:
            config.use_cache = before
        else:
            del config.use_cache
