"""A progress bar for a training, on standard error; the figures also go to the log
`deftx.training`."""

import logging
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from deftx.config import metric_name
from deftx.training.distributed import is_main_process

LOG = logging.getLogger("deftx.training")
SHOWN_NAMES = {"loss": "loss", "eval_loss": "held out"}


class ProgressBar:
    """One line: what is trained, how far it is, its latest losses and scores. Shown within `with
    self.bar`."""

    def __init__(self, title: str, steps: int) -> None:
        self.title = title
        self.steps = steps
        self.latest: dict[str, float] = {}
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[latest]}", markup=False),
            console=Console(stderr=True),
            disable=not is_main_process(),
        )
        self.task = self.bar.add_task(title, total=steps, latest="")

    def advance(self, step: int) -> None:
        """Show that so many steps are done."""
        self.bar.update(self.task, completed=step)

    def report(self, step: int, values: Mapping[str, float]) -> None:
        """Show and log the latest losses and scores; scores' names begin with `eval_`."""
        for name, value in values.items():
            shown = SHOWN_NAMES.get(name) or metric_name(name.removeprefix("eval_"))
            self.latest[shown] = value
        latest = "  ".join(f"{name} {value:.3f}" for name, value in self.latest.items())
        self.bar.update(self.task, completed=step, latest=latest)
        LOG.info("%s: step %d of %d  %s", self.title, step, self.steps, latest)
