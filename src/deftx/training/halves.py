"""Two more trainings, each on one half of the data: what both learn is signal
(`deftx.core.ranks.split_half_ranks`)."""

from typing import Any, cast

import torch

from deftx.config import VectorConfig, changed
from deftx.errors import DeftxError
from deftx.objectives.base import Objective
from deftx.training.loop import total_steps

HALVES = {"half1": 1, "half2": 2}


class Half:
    """An objective with one half of its training data, drawn by a seed.

    Attributes:
        objective: The whole objective, which does everything else.
        train: The half's training data.
        digest: A name of the half.
    """

    def __init__(self, objective: Objective, half: int, seed: int) -> None:
        count = len(objective.train)
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randperm(count, generator=generator).tolist()
        own_rows = rows[: count // 2] if half == 1 else rows[count // 2 :]
        self.objective = objective
        self.train = [objective.train[row] for row in own_rows]
        self.digest = f"{objective.digest}, half {half} by seed {seed}"

    def __getattr__(self, name: str) -> Any:
        return getattr(self.objective, name)


def halved(
    objective: Objective, settings: VectorConfig, half: int
) -> tuple[Objective, VectorConfig]:
    """The training on one half of the data.

    The two halves together see all of the training data and take the steps of one training on it.
    Each has the same schedule in half of the steps, and as many evaluations. Each draws its own
    dropout and order of batches, so that the halves have no noise in common.

    Args:
        objective: What the whole is trained for.
        settings: How the whole is trained.
        half: 1 or 2.

    Returns:
        What the half is trained for, and how.

    Raises:
        DeftxError: A half has fewer than two batches.
    """
    training = settings.training
    count = len(objective.train)
    if count // 2 <= training.batch_size:
        least = 2 * training.batch_size + 2
        problem = f"there are {count} training examples or blocks"
        why = f"two halves of at least 2 batches of {training.batch_size} take {least}"
        fix = "give more data, a smaller training.batch_size, or another rank"
        raise DeftxError(f"rank split-half: {problem}, and {why}: {fix}")
    steps = max(1, total_steps(count, training) // 2)
    evaluate_every = max(1, training.evaluate_every // 2)
    changes = {"max_steps": steps, "min_steps": steps, "evaluate_every": evaluate_every}
    part = cast(Objective, Half(objective, half, settings.seed))
    return part, changed(settings, {"seed": settings.seed + half, "training": changes})
