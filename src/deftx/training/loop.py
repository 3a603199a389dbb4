"""One training loop for both phases: the transformers Trainer, through its public hooks."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from deftx.core.backbone import backbone
from deftx.core.select import CHUNK
from deftx.errors import DeftxError, Diverged
from deftx.settings import Training
from deftx.training import processes
from deftx.training.best import Best
from deftx.training.checkpoint import Checkpoint, Kept
from deftx.training.precision import autocast, bf16_pays
from deftx.training.progress import ProgressBar


class Objective(Protocol):
    """What a model is trained for: its data, its loss, and how well it does on held-out data.

    One with `within(model, batch)`, a context, has the forward and the backward pass of every batch in it.
    """

    @property
    def train(self) -> Any:
        """The training examples: a sequence of what `collate` takes."""

    @property
    def metric(self) -> str:
        """Which of the scores of `validate` decides between steps."""

    @property
    def greater_is_better(self) -> bool:
        """Whether larger scores are better ones."""

    @property
    def sampling(self) -> str:
        """The Trainer's `train_sampling_strategy`."""

    @property
    def tokens(self) -> Tensor:
        """All token ids that a training batch can hold [n], but for padding."""

    @property
    def digest(self) -> str:
        """A name of the data: other data, another name."""

    def collate(self, examples: list[Any]) -> dict[str, Tensor]:
        """One batch."""

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """The loss of a batch, a scalar."""

    def validate(self, model: nn.Module, batch_size: int) -> dict[str, float]:
        """Scores on the held-out data."""


@dataclass(frozen=True, eq=False)
class Moving:
    """What an optimiser moves.

    body    tensors of the backbone, or the flat parameter of sparse tuning
    start   what each of `body` was at the beginning: the penalty pulls towards it
    head    parameters of a task's head, free of the penalty
    placed  to be called when `body` was set by hand
    """

    body: Sequence[nn.Parameter]
    start: Sequence[Tensor]
    head: Sequence[nn.Parameter] = ()
    placed: Callable[[], None] = lambda: None

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All of them."""
        return [*self.body, *self.head]


@dataclass(frozen=True)
class Trained:
    """How a training went: `history` has rows of training losses and of scores, `best_step` is the one kept (the last
    one where states are averaged; the last row is the mean's then)."""

    steps: int
    best_step: int
    best_score: float
    history: list[dict[str, float]] = field(repr=False)


def train(
    model: PreTrainedModel,
    objective: Objective,
    training: Training,
    moving: Moving,
    *,
    seed: int,
    title: str = "",
    kept: Kept | None = None,
    average: int = 1,
) -> Trained:
    """Train `moving` with AdamW (no weight decay, linear decay to 0), and leave it at its best evaluated step; with
    `average` above 1 at the mean of the last so many evaluated steps, however good they are.

    The penalty λ/N · ‖θ − θ0‖₁ enters as its gradient λ/N · sign(θ − θ0), N being the parameters of the backbone.
    With `kept`, the state is written there from time to time, and a training whose state is there goes on from it.
    Raises Diverged where a loss or a deciding score is not finite; the parameters are back at the best step so far
    then, or at their start.
    """
    steps = total_steps(len(objective.train), training)
    every, parameters = training.evaluate_every, moving.parameters
    best = Best(objective.metric, objective.greater_is_better, every, steps, parameters, average)
    checkpoint = Checkpoint(kept, parameters, best, moving.placed) if kept else None
    progress = ProgressBar(title, steps)
    with TemporaryDirectory() as folder, progress.bar, _config_kept(model):
        with _reporting(training):
            trainer = _Trainer(
                objective,
                training,
                moving,
                best,
                model=model,
                args=_arguments(training, objective, steps, seed, _logs(training, title) or folder, model.device),
                data_collator=checkpoint.collating(objective.collate) if checkpoint else objective.collate,
                train_dataset=objective.train,
                callbacks=[best, progress, *([checkpoint] if checkpoint else [])],
                optimizers=(_optimizer(parameters, training), None),
            )
        trainer.remove_callback(PrinterCallback)
        try:
            trainer.train(checkpoint.folder(folder) if checkpoint else None)
            if average > 1:
                best.take_mean()
                moving.placed()
                trainer.evaluate()
        except Diverged as error:
            state = f"the state of step {best.step} is kept" if best.step else "nothing had been evaluated yet"
            raise Diverged(f"{title}: {error}; {state}; lower the learning rate or check the data") from None
        finally:
            best.restore()
    return Trained(steps, best.step, best.score, best.history)


def total_steps(examples: int, training: Training) -> int:
    """Optimiser steps: the lesser of `epochs` and `max_steps`, but at least `min_steps`."""
    per_epoch = ceil(ceil(examples / training.batch_size) / training.accumulate)
    steps = ceil(training.epochs * per_epoch)
    return max(training.min_steps, min(training.max_steps or steps, steps), 1)


class _Trainer(Trainer):
    """The Trainer with our loss, our validation, the penalty's gradient, and a stop at the first bad loss."""

    def __init__(self, objective: Objective, training: Training, moving: Moving, best: Best, **options: Any) -> None:
        super().__init__(**options)
        self.model_accepts_loss_kwargs = False  # our loss is a mean of its batch, to be divided when accumulating
        self.objective: Objective = objective
        self.moving, self.best, self.batch_size = moving, best, 4 * training.batch_size
        self.batches = 0  # of this step, so far
        self.pull = training.l1 / sum(weight.numel() for weight in backbone(options["model"]).values())
        bf16 = training.precision == "bf16" or (training.precision == "auto" and bf16_pays(self.args.device))
        self.autocast = partial(autocast, self.args.device, bf16)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *args: Any, **options: Any) -> Tensor:
        rows, weight = processes.own_rows(inputs)
        self.batches += 1
        with self.autocast(), processes.own_numbers(self.args.seed, self.state.global_step, self.batches):
            return self.objective.loss(model, rows) * weight

    def training_step(self, model: nn.Module, inputs: dict[str, Tensor], *args: Any, **options: Any) -> Tensor:
        with self.objective.within(model, inputs) if hasattr(self.objective, "within") else nullcontext():
            loss: Tensor = super().training_step(model, inputs, *args, **options)
        processes.add_up([loss])
        value = loss.detach().cpu()  # the one wait for a GPU
        if not value.isfinite():
            raise Diverged(f"the loss became {value.item()} at step {self.state.global_step + 1}")
        self.best.losses += value
        if not self.accelerator.sync_gradients:
            return loss
        self.batches = 0
        processes.add_up(parameter.grad for parameter in self.moving.parameters if parameter.grad is not None)
        if self.pull:
            for parameter, start in zip(self.moving.body, self.moving.start, strict=True):
                if parameter.grad is not None:
                    _pull(parameter.grad, parameter.detach(), start, self.pull)
        return loss

    def log(self, logs: dict[str, float], *args: Any, **options: Any) -> None:
        if "loss" in logs:  # the Trainer's own knows nothing of the steps before it went on from a checkpoint
            logs = {**logs, "loss": self.best.mean_loss(self.state.global_step)}
        super().log(logs, *args, **options)

    def evaluate(self, *args: Any, **options: Any) -> dict[str, float]:
        model: Any = self.model
        model.eval()
        with torch.no_grad(), self.autocast():
            scores = self.objective.validate(model, self.batch_size)
        metrics = {f"eval_{name}": score for name, score in scores.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def _pull(gradient: Tensor, weight: Tensor, start: Tensor, strength: float) -> None:
    """Add the gradient of strength · ‖weight − start‖₁; on a processor some rows at a time, which stay in its cache."""
    gradient, weight, start = torch.atleast_1d(gradient, weight, start)  # views
    rows = max(1, len(weight) * CHUNK // max(1, weight.numel()) if weight.device.type == "cpu" else len(weight))
    for part, here, there in zip(gradient.split(rows), weight.split(rows), start.split(rows), strict=True):
        part.add_(torch.sign(here - there), alpha=strength)


def _optimizer(parameters: list[nn.Parameter], training: Training) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=training.learning_rate, weight_decay=0.0, fused=True)


@contextmanager
def _config_kept(model: PreTrainedModel) -> Iterator[None]:
    """On leaving, the config is as before: the Trainer sets its `use_cache`, and the config names what is learnt."""
    there, before = "use_cache" in vars(model.config), getattr(model.config, "use_cache", None)
    try:
        yield
    finally:
        if there:
            model.config.use_cache = before
        elif "use_cache" in vars(model.config):
            del model.config.use_cache


@contextmanager
def _reporting(training: Training) -> Iterator[None]:
    """Within the block, a service to report to that is unknown or not installed is an error of one line."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if not training.report_to:
            raise
        raise DeftxError(f"training.report_to = {', '.join(training.report_to)}: {error}") from error


def _logs(training: Training, title: str) -> str | None:
    """The folder that the Trainer is given for what it writes, where somebody wants to keep that."""
    name = re.sub(r"[^\w.-]+", "-", title) or "training"
    return str(Path(training.logs, name)) if "tensorboard" in training.report_to else None


class _OneDevice(TrainingArguments):
    """Trains where the model is. The Trainer would copy it to every GPU that it sees."""

    @property
    def n_gpu(self) -> int:
        """The GPUs that are used."""
        return min(int(super().n_gpu), 1)


def _arguments(
    training: Training, objective: Objective, steps: int, seed: int, folder: str, device: torch.device
) -> TrainingArguments:
    return _OneDevice(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=training.batch_size,
        gradient_accumulation_steps=training.accumulate,
        learning_rate=training.learning_rate,
        lr_scheduler_type="linear",
        max_grad_norm=training.clip,
        seed=seed,
        train_sampling_strategy=objective.sampling,
        logging_steps=min(training.evaluate_every, max(1, steps // 20)),
        logging_nan_inf_filter=False,
        report_to=list(training.report_to),
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=device.type == "cuda",
        save_strategy="no",
        eval_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
