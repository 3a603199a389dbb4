"""What all tasks have in common: labelled examples become batches, an objective, scores and
predictions."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from deftx.data.examples import Columns, Examples, written
from deftx.data.misspelling import misspeller
from deftx.data.unknown_text import REFUSED_TO_LEARN, REFUSED_TO_SCORE, check_embedded, check_known
from deftx.errors import DeftxError
from deftx.objectives.base import Batch
from deftx.tasks.encoding import Encoded
from deftx.tasks.length_buckets import split_by_length

LOWER_IS_BETTER = {"mse"}  # metrics

Metric = Callable[[Sequence[Any], Sequence[Any]], float]  # of true and predicted labels


def map_texts(examples: Examples, change: Callable[[str], str]) -> Examples:
    """The examples with `change` applied to their texts and pairs."""
    texts = [change(text) for text in examples.texts]
    pairs = examples.pairs
    if pairs is not None:
        pairs = [change(text) for text in pairs]
    return replace(examples, texts=texts, pairs=pairs)


def stack_targets(targets: list[Any], batch: Batch) -> Tensor:
    """Targets of one shape as a tensor [batch, ...]."""
    return torch.tensor(targets)


@dataclass(frozen=True)
class Task:
    """A kind of task: how its data is read, what is learnt from it, and how answers are scored.

    Attributes:
        auto_model_class: transformers' auto class of the models with its head. None: the base's own
            language model, without a head of the task.
        columns: The columns that its data usually has.
        read: Reads the examples of a source: (source, columns, whether labels are wanted).
        label_names: The names of the head's outputs, from the training data. None: its outputs have
            no names.
        encode: Tokenises: (examples, tokenizer, longest input in tokens, label names, whether
            labels are wanted).
        loss: The mean loss of a batch, whose targets are `labels`.
        answer: For every example, its predicted label and what else `output_fields` names: (model,
            encoded examples, batch size).
        output_fields: The names of the parts of an answer.
        metrics: Scores of true and predicted labels. The first one chooses the best step by
            default.
        config: Further settings of the model.
        collate_targets: The targets of a batch as one tensor, with a row for each example.
        token_fields: The parts of an example that hold ids of tokens which the model reads.
        loss_denominator: The number of targets that the loss of a batch is the mean of.
        splits_by_length: Whether the loss denominator is the same however the batch is padded, so
            that its loss may be computed in parts.
        map_texts: Applies a function to the examples' texts, except where labels point into them.
        required_columns: The columns of examples (`pairs`, `parts`) that are read beside texts and
            labels, and whether they are required.
    """

    auto_model_class: Any
    columns: Columns
    read: Callable[[str | Path, Columns, bool], Examples]
    label_names: Callable[[Examples], tuple[str, ...]] | None
    encode: Callable[[Examples, PreTrainedTokenizerBase, int, Sequence[str], bool], Encoded]
    loss: Callable[[nn.Module, Batch], Tensor]
    answer: Callable[[nn.Module, Encoded, int], list[tuple[Any, ...]]]
    output_fields: tuple[str, ...]
    metrics: Mapping[str, Metric]
    config: Mapping[str, Any] = field(default_factory=dict)
    collate_targets: Callable[[list[Any], Batch], Tensor] = stack_targets
    token_fields: tuple[str, ...] = ("input_ids",)
    loss_denominator: Callable[[Tensor], int] = len
    splits_by_length: bool = False
    map_texts: Callable[[Examples, Callable[[str], str]], Examples] = map_texts
    required_columns: Mapping[str, bool] = field(default_factory=lambda: {"pairs": False})


@dataclass(frozen=True, eq=False)
class Supervised:
    """Labelled examples of a task to train on, and others to choose the best step on.

    An `Objective`.

    Attributes:
        task: The kind of task.
        train: The tokenised training examples, with their targets as `labels`.
        valid: The tokenised validation examples.
        metric: The metric that chooses the best step.
        digest: A fingerprint of the data.
    """

    task: Task
    train: list[dict[str, Any]]
    valid: Encoded
    metric: str
    digest: str

    @property
    def greater_is_better(self) -> bool:
        """Whether larger values of the metric are better."""
        return self.metric not in LOWER_IS_BETTER

    @property
    def vocabulary_used(self) -> Tensor:
        """All token ids that a training batch can hold [n], except the padding, which nothing is
        learnt from."""
        used: set[int] = set()
        for example in self.train:
            for name in self.task.token_fields:
                used.update(_flat(example[name]))
        return torch.tensor(sorted(used))

    def collate(self, examples: list[dict[str, Any]], generator: Generator | None = None) -> Batch:
        """Pad examples to the longest of them -> tensors of tokens [batch, longest], and the
        targets as `labels`."""
        inputs = []
        targets = []
        for example in examples:
            inputs.append({name: value for name, value in example.items() if name != "labels"})
            targets.append(example["labels"])
        batch = self.valid.pad(inputs)
        return {**batch, "labels": self.task.collate_targets(targets, batch)}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of a batch."""
        return mean_loss(self.task, model, batch)

    def loss_denominator(self, batch: Batch) -> int:
        """The number of targets that the loss of a batch is the mean of."""
        return self.task.loss_denominator(batch["labels"])

    def validate(self, model: nn.Module, batch_size: int) -> dict[str, float]:
        """All metrics of the task on the validation examples."""
        predicted = answers(self.task, model, self.valid, batch_size)
        return scores(self.task, self.valid.examples, predicted)


def mean_loss(task: Task, model: nn.Module, batch: Batch) -> Tensor:
    """The mean loss of a batch.

    On a CPU the rows are split by length, to leave out padding; the loss is the same.
    """
    if not task.splits_by_length or batch["labels"].device.type != "cpu":
        return task.loss(model, batch)
    total = max(task.loss_denominator(batch["labels"]), 1)
    losses = []
    for bucket in split_by_length(batch):
        weight = task.loss_denominator(bucket["labels"]) / total
        losses.append(task.loss(model, bucket) * weight)
    return torch.stack(losses).sum()


def supervised(
    task: Task,
    train: Examples,
    valid: Examples,
    names: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    metric: str,
    *,
    noise: float = 0.0,
    seed: int = 0,
) -> Supervised:
    """The objective of learning a task.

    Args:
        task: The kind of task.
        train: Labelled examples to train on.
        valid: Labelled examples to choose the best step on.
        names: The names of the head's outputs.
        tokenizer: The base's tokenizer.
        length: The longest input, in tokens.
        metric: The metric that chooses the best step.
        noise: The share of words in `train` that get a misspelling.
        seed: Which misspellings these are.

    Raises:
        DeftxError: A label is not in `names`; the examples do not have the columns of the task; or
            the tokenizer does not know enough of the text.
    """
    for examples in (train, valid):
        check_columns(task, examples)
        check_known(written(examples), tokenizer, refused_from=REFUSED_TO_LEARN)
        if task.auto_model_class is None:  # its labels are texts that the model writes
            labels = [str(label) for label in examples.labels or []]
            check_known(labels, tokenizer, refused_from=REFUSED_TO_LEARN)
    if noise:
        train = task.map_texts(train, misspeller(written(train), noise, seed))

    # Tokenise both
    train_encoded = task.encode(train, tokenizer, length, names, True)
    valid_encoded = task.encode(valid, tokenizer, length, names, True)
    train_rows = []
    for row, target in zip(train_encoded.inputs, train_encoded.targets, strict=True):
        train_rows.append({**row, "labels": target})

    # The validation labels are part of the fingerprint since scores are of them, not of targets
    fingerprinted = [
        train_rows,
        valid_encoded.inputs,
        valid_encoded.targets,
        valid.labels,
        list(names),
    ]
    digest = hashlib.sha256(json.dumps(fingerprinted).encode()).hexdigest()
    return Supervised(task, train_rows, valid_encoded, metric, digest)


def evaluate(
    task: Task,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples,
    length: int,
) -> dict[str, float]:
    """All metrics of a model on labelled examples; its config names its outputs."""
    predicted = answers_to_labelled(task, model, tokenizer, examples, length)
    return scores(task, examples, predicted)


def answers_to_labelled(
    task: Task,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples,
    length: int,
) -> list[tuple[Any, ...]]:
    """The answers that `evaluate` scores.

    Raises:
        DeftxError: The examples lack labels or a column, or the tokenizer knows hardly any of them.
    """
    check_columns(task, examples)
    check_known(written(examples), tokenizer, refused_from=REFUSED_TO_SCORE)
    check_embedded(written(examples), tokenizer, model.config)
    encoded = task.encode(examples, tokenizer, length, output_names(model), True)
    return answers(task, model, encoded)


def predict(
    task: Task,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples,
    length: int,
) -> list[tuple[Any, ...]]:
    """The answer to every example: its predicted label, and what else the task's `output_fields`
    name."""
    one_chunk = max(len(examples), 1)
    chunks = predict_in_chunks(task, model, tokenizer, examples, length, one_chunk)
    return list(chain.from_iterable(chunks))


def predict_in_chunks(
    task: Task,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples,
    length: int,
    chunk_size: int,
) -> Iterator[list[tuple[Any, ...]]]:
    """The answers of `predict`, `chunk_size` examples at a time and in their order.

    The examples are checked, and warned of, once and as a whole.
    """
    check_columns(task, examples)
    # Every text gets an answer, however little of it is known
    check_known(written(examples), tokenizer, refused_from=None)
    check_embedded(written(examples), tokenizer, model.config)
    names = output_names(model)
    for start in range(0, max(len(examples), 1), chunk_size):
        rows = range(start, min(start + chunk_size, len(examples)))
        encoded = task.encode(examples.at(rows), tokenizer, length, names, False)
        yield answers(task, model, encoded)


def by_name(task: Task, predicted: Sequence[tuple[Any, ...]]) -> list[dict[str, Any]]:
    """Answers as mappings from the task's `output_fields`."""
    return [dict(zip(task.output_fields, answer, strict=True)) for answer in predicted]


@torch.no_grad()
def answers(
    task: Task, model: nn.Module, encoded: Encoded, batch_size: int = 32
) -> list[tuple[Any, ...]]:
    """What a model answers to every example, in eval mode."""
    nn.Module.eval(model)
    return task.answer(model, encoded, batch_size)


def scores(
    task: Task, examples: Examples, predicted: Sequence[tuple[Any, ...]]
) -> dict[str, float]:
    """All metrics of answers to labelled examples."""
    true_labels = examples.labels or []
    predicted_labels = [answer[0] for answer in predicted]
    return {name: metric(true_labels, predicted_labels) for name, metric in task.metrics.items()}


def output_names(model: PreTrainedModel) -> tuple[str, ...]:
    """The names of a model's outputs, in the order of the outputs.

    Raises:
        DeftxError: `id2label` in the model's config does not number them from 0.
    """
    # Sorted by number: the order in which a config lists them has no meaning
    id2label = model.config.id2label or {}
    names = {int(number): str(name) for number, name in id2label.items()}
    if sorted(names) != list(range(len(names))):
        listed = ", ".join(str(number) for number in sorted(names))
        raise DeftxError(
            f"id2label in the model's config names the outputs {listed}: number them from 0 on"
        )
    return tuple(names[number] for number in range(len(names)))


def check_columns(task: Task, examples: Examples) -> None:
    """Check that examples have the columns that their task reads, and no others.

    Raises:
        DeftxError: A required column is missing or empty, or a column is not read.
    """
    for name in ("pairs", "parts"):
        column = getattr(examples, name)
        if column is not None and name not in task.required_columns:
            raise DeftxError(
                f"the examples have {name}, which this task does not read: leave them out"
            )
        if not task.required_columns.get(name):
            continue
        if column is None:
            raise DeftxError(
                f"the examples have no {name}, which this task reads: "
                f"give `{name}`, one for each text"
            )
        if name != "parts":
            continue
        for number, parts in enumerate(column, 1):
            if not parts:
                raise DeftxError(f"example {number} has no parts: give it at least one")


def names_of(task: Task, examples: Examples) -> tuple[str, ...]:
    """The names of a head's outputs, from the training data; none where outputs have no names."""
    if task.label_names is None:
        return ()
    return task.label_names(examples)


def _flat(ids: list[Any]) -> Iterator[int]:
    for item in ids:
        if isinstance(item, list):
            yield from _flat(item)
        else:
            yield item
