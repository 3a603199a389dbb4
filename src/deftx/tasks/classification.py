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

from deftx.data.cells import as_name
from deftx.data.examples import Columns, Examples, written
from deftx.data.reading import read_pairs
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


def macro_f1(true: Sequence[Any], predicted: Sequence[Any]) -> float:
    """The mean F1 of all labels, 0 to 1."""
    return float(f1_score(true, predicted, average="macro", zero_division=0.0))


def accuracy(true: Sequence[Any], predicted: Sequence[Any]) -> float:
    """The share of right labels, 0 to 1."""
    return float(accuracy_score(true, predicted))


METRICS: dict[str, Callable[[Sequence[Any], Sequence[Any]], float]] = {
    "macro_f1": macro_f1,
    "accuracy": accuracy,
}


def read(source: str | Path, columns: Columns, labelled: bool) -> Examples:
    """Texts, or pairs of texts, and the names of their labels."""
    read_label = as_name if labelled else None
    return read_pairs(source, columns, read_label)


def names_of_labels(examples: Examples) -> tuple[str, ...]:
    """The labels that occur, sorted."""
    return label_names(examples.labels or [])


def encode(
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    names: Sequence[str] = (),
    labelled: bool = True,
) -> Encoded:
    """Tokenise `examples`, truncated to `length` tokens, with the numbers of their labels."""
    _, inputs = tokenised(examples, tokenizer, length, labelled)
    targets = numbers(examples.labels or [], names) if labelled else []
    return Encoded(examples, inputs, targets, names, padding(tokenizer))


def logits(model: nn.Module, batch: Batch) -> Tensor:
    """The logits of each input of a batch [batch, outputs]."""
    return model(**inputs_of(batch)).logits.float()  # type: ignore[no-any-return]


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """The mean cross-entropy of a batch."""
    return cross_entropy(logits(model, batch), batch["labels"])


def answer(model: nn.Module, encoded: Encoded, batch_size: int) -> list[tuple[str, float]]:
    """The most probable label of every example, and its probability (0 to 1)."""
    best = _probabilities(model, encoded, batch_size).max(-1)
    labels = [encoded.label_names[number] for number in best.indices.tolist()]
    return list(zip(labels, best.values.tolist(), strict=True))


@torch.no_grad()
def probabilities(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: Examples, length: int
) -> Tensor:
    """The probability of each label for every example.

    Returns:
        [examples, labels] float32, on the CPU; rows sum to 1.
    """
    check_known(written(examples), tokenizer, refused_from=None)
    check_embedded(written(examples), tokenizer, model.config)
    nn.Module.eval(model)
    encoded = encode(examples, tokenizer, length, labelled=False)
    return _probabilities(model, encoded, 32)


def _probabilities(model: nn.Module, encoded: Encoded, batch_size: int) -> Tensor:
    return torch.stack(logits_of(model, encoded, batch_size, logits)).softmax(-1)


CLASSIFICATION = Task(
    auto_model_class=AutoModelForSequenceClassification,
    columns=Columns(),
    read=read,
    label_names=names_of_labels,
    encode=encode,
    loss=loss,
    splits_by_length=True,
    answer=answer,
    output_fields=("label", "probability"),
    metrics=METRICS,
    config={"problem_type": "single_label_classification"},
)
