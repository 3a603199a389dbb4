"""Classification of a text or a pair of texts."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from sklearn.metrics import accuracy_score, f1_score
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from deftx.data import examples as data
from deftx.data.examples import Columns, Examples, read_pairs, written
from deftx.data.unknown_text import check_embedded, check_known
from deftx.objectives.base import Batch
from deftx.tasks.base import Task
from deftx.tasks.encoding import (
    Encoded,
    inputs_of,
    label_names,
    logits_of,
    numbers,
    padding,
    tokenised,
)

# Scores of (true, predicted) labels, 0 to 1.
METRICS: dict[str, Callable[[Sequence[Any], Sequence[Any]], float]] = {
    "macro_f1": lambda true, predicted: float(
        f1_score(true, predicted, average="macro", zero_division=0.0)
    ),
    "accuracy": lambda true, predicted: float(accuracy_score(true, predicted)),
}


def read(source: str | Path, columns: Columns, labelled: bool) -> Examples:
    """Texts, or pairs of texts, and the names of their labels."""
    return read_pairs(source, columns, data.name if labelled else None)


def encode(
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    names: Sequence[str] = (),
    labelled: bool = True,
) -> Encoded:
    """Tokenise `examples`, cut to `length` tokens, with the numbers of their labels."""
    _, inputs = tokenised(examples, tokenizer, length, labelled)
    targets = numbers(examples.labels or [], names) if labelled else []
    return Encoded(examples, inputs, targets, names, padding(tokenizer))


def logits(model: nn.Module, batch: Batch) -> Tensor:
    """What the model says to each input of a batch [batch, outputs]."""
    return model(**inputs_of(batch)).logits.float()  # type: ignore[no-any-return]


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """The mean cross-entropy of a batch."""
    return cross_entropy(logits(model, batch), batch["labels"])


def answer(model: nn.Module, encoded: Encoded, batch_size: int) -> list[tuple[str, float]]:
    """The most probable label of every example, and its probability (0 to 1)."""
    best = _probabilities(model, encoded, batch_size).max(-1)
    return [
        (encoded.names[i], p)
        for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


@torch.no_grad()
def probabilities(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: Examples, length: int
) -> Tensor:
    """How probable each label is for every example [examples, labels] float32, on the CPU; rows sum
    to 1."""
    check_known(written(examples), tokenizer, refused_from=None)
    check_embedded(written(examples), tokenizer, model.config)
    nn.Module.eval(model)
    return _probabilities(model, encode(examples, tokenizer, length, labelled=False), 32)


def _probabilities(model: nn.Module, encoded: Encoded, batch_size: int) -> Tensor:
    return torch.stack(logits_of(model, encoded, batch_size, logits)).softmax(-1)


CLASSIFICATION = Task(
    auto=AutoModelForSequenceClassification,
    columns=Columns(),
    read=read,
    names=lambda examples: label_names(examples.labels or []),
    encode=encode,
    loss=loss,
    splits_by_length=True,
    answer=answer,
    shown=("label", "probability"),
    metrics=METRICS,
    config={"problem_type": "single_label_classification"},
)
