"""A progress bar for a training, on standard error; the figures also go to the log `deftx.training`."""

import logging
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from deftx.settings import metric_name
from deftx.training.processes import first

LOG = logging.getLogger("deftx.training")


class ProgressBar(TrainerCallback):
    """One line: what is trained, how far it is, its latest losses and scores. Shown within `with self.bar`."""

    def __init__(self, title: str, steps: int) -> None:
        self.title, self.news = title, dict[str, float]()
        columns = [
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        ]
        news = TextColumn("{task.fields[news]}", markup=False)
        self.bar = Progress(*columns, news, console=Console(stderr=True), disable=not first())
        self.task = self.bar.add_task(title, total=steps, news="")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Count the step."""
        self.bar.update(self.task, completed=state.global_step)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Show the latest figures."""
        logs, shown = kwargs["logs"], {"loss": "loss", "eval_loss": "held out"}
        scores = {name: metric_name(name.removeprefix("eval_")) for name in logs if name.startswith("eval_")}
        self.news |= {name: logs[key] for key, name in {**scores, **shown}.items() if key in logs}
        news = "  ".join(f"{name} {value:.3f}" for name, value in self.news.items())
        self.bar.update(self.task, news=news)
        LOG.info("%s: step %d of %d  %s", self.title, state.global_step, state.max_steps, news)
