"""All kinds of tasks by name, and reading their data."""

from pathlib import Path

from deftx.config import TaskVectorConfig, changed
from deftx.data.examples import Columns, Examples
from deftx.errors import unknown
from deftx.tasks.base import Task
from deftx.tasks.classification import CLASSIFICATION
from deftx.tasks.generation import GENERATION
from deftx.tasks.multiple_choice import CHOICE
from deftx.tasks.parsing import PARSING
from deftx.tasks.question_answering import ANSWERING
from deftx.tasks.regression import REGRESSION
from deftx.tasks.tagging import NER, TAGGING

TASKS: dict[str, Task] = {
    "classification": CLASSIFICATION,
    "tagging": TAGGING,
    "ner": NER,
    "parsing": PARSING,
    "question-answering": ANSWERING,
    "multiple-choice": CHOICE,
    "regression": REGRESSION,
    "generation": GENERATION,
}


def task_of(name: str) -> Task:
    """The task of a name.

    Raises:
        DeftxError: The name is not in TASKS.
    """
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    return TASKS[name]


def settled(settings: TaskVectorConfig) -> TaskVectorConfig:
    """The settings with the task's first metric where they name none.

    Raises:
        DeftxError: The task or the metric is unknown.
    """
    metrics = task_of(settings.task).metrics
    metric = settings.training.metric or next(iter(metrics))
    if metric not in metrics:
        raise unknown(f"metric of {settings.task}", metric, metrics)
    return changed(settings, {"training": {"metric": metric}})


def read_examples(
    source: str | Path,
    columns: Columns | None = None,
    *,
    labelled: bool = True,
    task: str = "classification",
) -> Examples:
    """Read the examples of a task.

    Texts may be empty, labels may not. Integers and the hub's class labels become text where labels
    are names.

    Args:
        source: A file or `hub:NAME[@REVISION][:CONFIG][:SPLIT]`.
        columns: The names of the columns. By default those that the task's data usually has. For
            classification they are `text` and `label`, or `premise`, `hypothesis` and `label` where
            there is no `text`.
        labelled: Whether labels are read.
        task: The kind of task.

    Raises:
        DeftxError: The task is unknown, the source cannot be read, or a row is wrong; the message
            names its line.
    """
    kind = task_of(task)
    return kind.read(source, columns or kind.columns, labelled)
