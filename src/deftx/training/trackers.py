"""Experiment trackers, such as tensorboard, wandb and trackio, by way of accelerate."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from deftx.config import TrainingConfig
from deftx.errors import DeftxError, unknown
from deftx.training import distributed

Track = Callable[[int, dict[str, float]], None]


@contextmanager
def tracking(training: TrainingConfig, title: str) -> Iterator[Track]:
    """Within the block, the yielded function reports the figures of a step to all of
    `training.report_to`.

    Raises:
        DeftxError: A tracker is unknown, not installed or cannot start.
    """
    if not training.report_to or not distributed.is_main_process():
        yield lambda step, values: None
        return
    run_name = re.sub(r"[^\w.-]+", "-", title) or "training"
    trackers = [_start(name, run_name, training.logs) for name in training.report_to]

    def track(step: int, values: dict[str, float]) -> None:
        for tracker in trackers:
            tracker.log(_grouped(values), step=step)

    try:
        yield track
    finally:
        for tracker in trackers:
            tracker.finish()


def _start(name: str, run_name: str, folder: str) -> Any:
    """The tracker of that name, started."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS  # it imports what each tracker needs

    if name not in LOGGER_TYPE_TO_CLASS:
        raise unknown("training.report_to", name, LOGGER_TYPE_TO_CLASS)
    tracker_class = LOGGER_TYPE_TO_CLASS[name]
    arguments = [run_name]
    if tracker_class.requires_logging_directory:
        os.makedirs(folder, exist_ok=True)
        arguments.append(folder)
    try:
        tracker = tracker_class(*arguments)
        if hasattr(tracker, "start"):  # releases before 1.11 start by themselves
            tracker.start()
    except Exception as error:  # whatever a service's library raises
        reason = " ".join(str(error).split())
        raise DeftxError(f"training.report_to = {name}: cannot start it: {reason}") from error
    return tracker


def _grouped(values: dict[str, float]) -> dict[str, float]:
    """Figures under train/ and eval/, as the Trainer of transformers names them."""
    grouped = {}
    for name, value in values.items():
        if name.startswith("eval_"):
            grouped[f"eval/{name.removeprefix('eval_')}"] = value
        else:
            grouped[f"train/{name}"] = value
    return grouped
