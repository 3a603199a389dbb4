"""The state of a training, kept in a file from time to time: one that was killed goes on from there, bit for bit.

A checkpoint holds what moves, the best state so far, the optimiser's state, the random states, and how far the
training is; in phase 2 these are some 4 · k numbers. Nothing in it can run code: it is one safetensors file whose
metadata are JSON.
"""

import json
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from deftx.storage.tensors import load_tensors, save_tensors
from deftx.training import processes
from deftx.training.best import Best

SECONDS = 60.0  # between two checkpoints, at least
SHARE = 0.02  # of the time may go to them, at most

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Kept:
    """Where a training keeps its state; `key` names all that determines its result, so that no other's is taken."""

    path: Path
    key: str


class Checkpoint(TrainerCallback):
    """Writes the state down after a step, and puts it back at the beginning of a later training.

    The Trainer goes to the step by itself, past the batches that were seen. It collates batches before it needs them;
    so the random states in which those that are yet to come were drawn are kept too.
    """

    def __init__(self, kept: Kept, parameters: Sequence[nn.Parameter], best: Best, placed: Callable[[], None]) -> None:
        self.where, self.parameters, self.best, self.placed = kept, parameters, best, placed
        self.found = load_tensors(kept.path, kept.key)
        processes.see_alike(kept.path.parent, self.found[1]["trainer"]["global_step"] if self.found else 0)
        self.random = dict(self.found[1]["random"]) if self.found else {}  # what is yet to be put back
        self.epoch: Any = None  # the random state at the beginning of the epoch
        self.ahead: deque[Any] = deque()  # those before each batch that was collated and not yet trained on
        self.due = 0.0

    def folder(self, folder: str) -> str | None:
        """What the Trainer is to resume from, written into `folder`; None where it is to begin."""
        if self.found is None:
            return None
        Path(folder, "trainer_state.json").write_text(json.dumps(self.found[1]["trainer"]), encoding="utf-8")
        save_file({}, Path(folder, "model.safetensors"))  # what moves is put back by `on_train_begin`
        self.verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # it would warn of that
        return folder

    def collating(self, collate: Callable[[list[Any]], Batch]) -> Callable[[list[Any]], Batch]:
        """`collate`, with an eye on the random state."""

        def watched(examples: list[Any]) -> Batch:
            if self.random.get("ahead"):
                put_random_state(self.random["ahead"].pop(0))
            self.ahead.append(random_state())
            return collate(examples)

        return watched

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        """Put back what was kept; the Trainer has done so with its own state."""
        self.due = monotonic() + SECONDS
        if self.found is None:
            return
        logging.set_verbosity(self.verbosity)
        (tensors, about), self.found = self.found, None
        with torch.no_grad():
            for number, parameter in enumerate(self.parameters):
                parameter.copy_(tensors[f"value.{number}"])
        self.placed()
        kw["optimizer"].load_state_dict({"state": _by_parameter(tensors), "param_groups": about["optimizer"]})
        kw["lr_scheduler"].load_state_dict(about["scheduler"])
        self.best.put(tensors, about["best"])

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The order of the epoch's batches is drawn next."""
        if "epoch" in self.random:
            put_random_state(self.random.pop("epoch"))
        self.epoch = random_state()
        self.ahead.clear()

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        """The last step is over, and its evaluation and log: keep the state, if it is time."""
        if "step" in self.random:
            put_random_state(self.random.pop("step"))
            self.random.clear()
        if (
            not processes.first()
            or monotonic() < self.due
            or not all(parameter.isfinite().all() for parameter in self.parameters)
        ):
            return
        start = monotonic()
        self._save(state, kw["optimizer"], kw["lr_scheduler"])
        self.due = monotonic() + max(SECONDS, (monotonic() - start) / SHARE)

    def on_substep_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """A batch has been trained on."""
        self.ahead.popleft()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """A batch has been trained on."""
        self.ahead.popleft()

    def _save(self, state: TrainerState, optimizer: Any, scheduler: Any) -> None:
        tensors, best = self.best.kept()
        tensors |= {f"value.{number}": parameter for number, parameter in enumerate(self.parameters)}
        moments = optimizer.state_dict()
        for number, values in moments["state"].items():
            tensors |= {f"optimizer.{number}.{name}": value for name, value in values.items()}
        about = {
            "key": self.where.key,
            "best": best,
            "optimizer": moments["param_groups"],
            "scheduler": scheduler.state_dict(),
            "trainer": asdict(state),
            "random": {"epoch": self.epoch, "ahead": list(self.ahead), "step": random_state()},
        }
        save_tensors(self.where.path, tensors, about)


def random_state() -> tuple[Any, ...]:
    """Where the random generators of Python, NumPy and torch are."""
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return random.getstate(), np.random.get_state(legacy=False), torch.get_rng_state(), devices


def put_random_state(state: Sequence[Any]) -> None:
    """Set the random generators to what `random_state` gave, also after it went through JSON."""
    (version, words, gauss), numpy, cpu, devices = state
    random.setstate((version, tuple(words), gauss))
    key = np.asarray(numpy["state"]["key"], np.uint32)
    np.random.set_state({**numpy, "state": {**numpy["state"], "key": key}})
    torch.set_rng_state(torch.as_tensor(cpu, dtype=torch.uint8))
    if devices and torch.cuda.device_count() == len(devices):
        torch.cuda.set_rng_state_all([torch.as_tensor(device, dtype=torch.uint8) for device in devices])


def _by_parameter(tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """The optimiser's state, by the number of the parameter."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            _, number, name = key.split(".", 2)
            state.setdefault(int(number), {})[name] = tensor
    return state
