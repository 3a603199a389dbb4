"""Regression: a number for a text or a pair of texts, such as how similar two sentences are."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.stats import rankdata
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from deftx.data.cells import as_number
from deftx.data.examples import Columns, Examples
from deftx.data.reading import read_pairs
from deftx.objectives.base import Batch
from deftx.tasks.base import Task
from deftx.tasks.classification import logits
from deftx.tasks.encoding import Encoded, logits_of, padding, tokenised


def read(source: str | Path, columns: Columns, labelled: bool) -> Examples:
    """Texts, or pairs of texts, and their numbers."""
    read_label = as_number if labelled else None
    return read_pairs(source, columns, read_label)


def encode(
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    names: Sequence[str],
    labelled: bool,
) -> Encoded:
    """Tokenise `examples`, truncated to `length` tokens, with their numbers."""
    _, inputs = tokenised(examples, tokenizer, length, labelled)
    targets = [float(label) for label in examples.labels or []] if labelled else []
    return Encoded(examples, inputs, targets, names, padding(tokenizer))


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """The mean squared error of a batch."""
    return mse_loss(logits(model, batch).squeeze(-1), batch["labels"])


def answer(model: nn.Module, encoded: Encoded, batch_size: int) -> list[tuple[float]]:
    """The number of every example."""
    return [(float(value),) for value in logits_of(model, encoded, batch_size, logits)]


def pearson(true: Sequence[float], predicted: Sequence[float]) -> float:
    """Pearson's correlation, -1 to 1; 0 where either side is constant."""
    x = np.asarray(true, np.float64)
    y = np.asarray(predicted, np.float64)
    x = x - x.mean()
    y = y - y.mean()
    scale = np.sqrt((x @ x) * (y @ y))
    if not scale:
        return 0.0
    return float(x @ y / scale)


def spearman(true: Sequence[float], predicted: Sequence[float]) -> float:
    """Spearman's rank correlation, -1 to 1: Pearson's of the ranks; equal values share one."""
    return pearson(rankdata(true).tolist(), rankdata(predicted).tolist())


def mse(true: Sequence[float], predicted: Sequence[float]) -> float:
    """The mean squared error."""
    return float(np.square(np.subtract(true, predicted)).mean())


REGRESSION = Task(
    auto_model_class=AutoModelForSequenceClassification,
    columns=Columns(),
    read=read,
    label_names=None,
    encode=encode,
    loss=loss,
    splits_by_length=True,
    answer=answer,
    output_fields=("value",),
    metrics={"pearson": pearson, "spearman": spearman, "mse": mse},
    config={"problem_type": "regression", "num_labels": 1},
)
