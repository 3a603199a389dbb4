"""Classification of a text or a pair of texts: how a task vector is learnt and scored."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from sklearn.metrics import accuracy_score, f1_score
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from deftx.errors import DeftxError, unknown
from deftx.tasks.data import Examples

# Scores of (true, predicted) label numbers, 0 to 1, larger is better.
METRICS: dict[str, Callable[[Sequence[int], Sequence[int]], float]] = {
    "macro_f1": lambda true, predicted: float(f1_score(true, predicted, average="macro", zero_division=0.0)),
    "accuracy": lambda true, predicted: float(accuracy_score(true, predicted)),
}


@dataclass(frozen=True, eq=False)
class Encoded:
    """Tokenised examples: `inputs[i]` is what the tokenizer made of one, `labels[i]` its label number."""

    inputs: list[dict[str, list[int]]]
    labels: list[int]
    pad: Callable[[list[dict[str, list[int]]]], dict[str, Tensor]]


@dataclass(frozen=True, eq=False)
class Classification:
    """Labelled examples to train on and to choose the best step on, and the loss."""

    train: list[dict[str, object]]
    valid: Encoded
    metric: str
    digest: str

    greater_is_better = True
    sampling = "group_by_length"

    @property
    def tokens(self) -> Tensor:
        """All ids that a training batch can hold [n], but for the padding, which nothing is learnt from."""
        ids = {token for example in self.train for token in cast(list[int], example["input_ids"])}
        return torch.tensor(sorted(ids))

    def collate(self, examples: list[dict[str, object]]) -> dict[str, Tensor]:
        """Pad to the longest of a batch -> token tensors [batch, longest] and labels [batch]."""
        labels = torch.tensor([example["labels"] for example in examples])
        inputs = [{key: value for key, value in example.items() if key != "labels"} for example in examples]
        return {**self.valid.pad(inputs), "labels": labels}  # type: ignore[arg-type]

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """The mean cross-entropy of a batch."""
        labels = batch["labels"]
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        return cross_entropy(model(**inputs).logits.float(), labels)

    def validate(self, model: nn.Module, batch_size: int) -> dict[str, float]:
        """All METRICS on the validation examples."""
        return scores(self.valid.labels, logits(model, self.valid, batch_size).argmax(-1).tolist())


def classification(
    train: Examples,
    valid: Examples,
    labels: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    metric: str,
) -> Classification:
    """Tokenise both sets. Raises DeftxError for an unknown metric or a label that is not in `labels`."""
    if metric not in METRICS:
        raise unknown("metric", metric, METRICS)
    learnt = encode(train, tokenizer, length, labels)
    examples = [{**inputs, "labels": label} for inputs, label in zip(learnt.inputs, learnt.labels, strict=True)]
    held_out = encode(valid, tokenizer, length, labels)
    parts = [examples, held_out.inputs, held_out.labels, list(labels)]
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    return Classification(examples, held_out, metric, digest)


def label_names(examples: Examples) -> tuple[str, ...]:
    """The labels that occur, sorted. Raises DeftxError where there are fewer than two."""
    names = tuple(sorted(set(examples.labels or [])))
    if len(names) < 2:
        raise DeftxError(f"the training data has {len(names)} label(s) {list(names)}; a classifier needs at least two")
    return names


def encode(examples: Examples, tokenizer: PreTrainedTokenizerBase, length: int, labels: Sequence[str] = ()) -> Encoded:
    """Tokenise `examples`, cut to `length` tokens, with the numbers of their `labels` (none where none are given).

    Raises DeftxError where there are no examples, where batches cannot be padded, and, given `labels`, for a label
    outside them or none at all.
    """
    if not examples.texts:
        raise DeftxError("there are no examples: give at least one")
    if tokenizer.pad_token_id is None:
        raise DeftxError("the base's tokenizer has no padding token: give an encoder such as XLM-R as base")
    if labels and examples.labels is None:
        raise DeftxError("the examples have no labels: give data with a column of labels")
    texts, pairs = list(examples.texts), list(examples.pairs) if examples.pairs else None
    tokens = tokenizer(texts, pairs, truncation=True, max_length=length)
    inputs = [{key: tokens[key][i] for key in tokens} for i in range(len(texts))]
    number = {label: i for i, label in enumerate(labels)}
    wanted = (examples.labels or []) if labels else []
    unseen = sorted(set(wanted) - number.keys())
    if unseen:
        raise DeftxError(f"label {unseen[0]!r} is not among the labels of the training data: {', '.join(labels)}")
    numbers = [number[label] for label in wanted]
    return Encoded(inputs, numbers, lambda batch: dict(tokenizer.pad(batch, return_tensors="pt")))


@torch.no_grad()
def logits(model: nn.Module, encoded: Encoded, batch_size: int = 32) -> Tensor:
    """What `model` says to every example [examples, labels] float32, on the CPU; batches go by length."""
    nn.Module.eval(model)
    device = next(model.parameters()).device
    order = sorted(range(len(encoded.inputs)), key=lambda i: len(encoded.inputs[i]["input_ids"]))
    answers = []
    for start in range(0, len(order), batch_size):
        batch = encoded.pad([encoded.inputs[i] for i in order[start : start + batch_size]])
        answers.append(model(**{key: value.to(device) for key, value in batch.items()}).logits.float().cpu())
    return torch.cat(answers)[torch.tensor(order).argsort()]


def scores(true: Sequence[int], predicted: Sequence[int]) -> dict[str, float]:
    """All METRICS of predicted against true label numbers."""
    return {name: metric(true, predicted) for name, metric in METRICS.items()}


def evaluate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: Examples, length: int
) -> dict[str, float]:
    """All METRICS of a classifier on labelled examples; its labels are those of its config."""
    labels = list((model.config.id2label or {}).values())
    encoded = encode(examples, tokenizer, length, labels)
    return scores(encoded.labels, logits(model, encoded).argmax(-1).tolist())


def probabilities(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: Examples, length: int
) -> Tensor:
    """How probable each label is for every example [examples, labels] float32, on the CPU; rows sum to 1."""
    return logits(model, encode(examples, tokenizer, length)).softmax(-1)


def most_probable(found: Tensor, labels: Sequence[str]) -> list[tuple[str, float]]:
    """The most probable label of every row of `probabilities`, and its probability (0 to 1)."""
    best = found.max(-1)
    return [(labels[i], p) for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)]


def predict(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: Examples, length: int
) -> list[tuple[str, float]]:
    """The most probable label of every example, and its probability (0 to 1)."""
    labels = list((model.config.id2label or {}).values())
    return most_probable(probabilities(model, tokenizer, examples, length), labels)
