"""Two trainings more, each on one half of the data: what both learn is signal
(`deftx.core.ranks.split_half_ranks`)."""

from typing import Any, cast

import torch

from deftx.config import VectorConfig, changed
from deftx.errors import DeftxError
from deftx.objectives.base import Objective
from deftx.training.loop import total_steps

HALVES = {"half1": 1, "half2": 2}


class Half:
    """One half of an objective's training data, drawn by a seed; in all else the objective."""

    def __init__(self, objective: Objective, half: int, seed: int) -> None:
        rows = torch.randperm(
            len(objective.train), generator=torch.Generator().manual_seed(seed)
        ).tolist()
        middle = len(rows) // 2
        self.objective = objective
        self.train = [
            objective.train[row] for row in (rows[:middle] if half == 1 else rows[middle:])
        ]
        self.digest = f"{objective.digest}, half {half} by seed {seed}"

    def __getattr__(self, name: str) -> Any:
        return getattr(self.objective, name)


def halved(
    objective: Objective, settings: VectorConfig, half: int
) -> tuple[Objective, VectorConfig]:
    """What a half (1 or 2) is trained for, and how: the two together see all of the training data
    and take the steps of one training on it. Each is as that one is, evaluated as often and with
    the same schedule, in half of the steps.

    Dropout and the order of batches are drawn anew in each, so that the halves have no noise in
    common. Raises DeftxError where a half has fewer than two batches.
    """
    training, count = settings.training, len(objective.train)
    if count // 2 <= training.batch_size:
        why = f"two halves of at least 2 batches of {training.batch_size} take {2 * training.batch_size + 2}"
        raise DeftxError(
            f"rank split-half: there are {count} training examples or blocks, and {why}: give more data, a smaller"
            " training.batch_size, or another rank"
        )
    steps = max(1, total_steps(count, training) // 2)
    every = max(1, training.evaluate_every // 2)
    change = {"max_steps": steps, "min_steps": steps, "evaluate_every": every}
    part = cast(Objective, Half(objective, half, settings.seed))
    return part, changed(settings, {"seed": settings.seed + half, "training": change})
