"""What all tasks have in common: labelled examples become batches, an objective, scores and
predictions."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from deftx.tasks.length_buckets import by_length

SMALLER = {"mse"}  # the metrics that are better the smaller they are

Metric = Callable[[Sequence[Any], Sequence[Any]], float]  # of true and predicted labels


def respelt(examples: Examples, spell: Callable[[str], str]) -> Examples:
    """The examples with `spell` of their texts and pairs."""
    pairs = examples.pairs and list(map(spell, examples.pairs))
    return replace(examples, texts=list(map(spell, examples.texts)), pairs=pairs)


@dataclass(frozen=True)
class Task:
    """A kind of task: how its data is read, what is learnt of it, and how answers are scored and
    shown.

    auto       transformers' auto class of the models with its head; None: the base's own language
               model, without one
    columns    where its data stands, if nothing else is said
    read       examples of a source; the last argument says whether they are to have labels
    names      the names of the head's outputs, of the training data; None where outputs have no
               names
    encode     (examples, tokenizer, longest input in tokens, names, whether they are to have
               labels)
    loss       mean loss of a batch, which has the targets as `labels`
    loss_denominator  of how many things the loss of a batch with these targets is the mean
    splits_by_length  whether that holds whichever way the batch is padded, so that it may be
                      computed in parts
    answer     for every example, its predicted label and what else `shown` names
    shown      what the parts of an answer are called
    metrics    of true and predicted labels; the first one decides between steps, if nothing else is
               said
    config     further settings of the model
    stack      the targets of a batch as one tensor, a row an example
    tokens     what of an example holds tokens that the model reads
    respelt    examples with their texts changed by a function, as far as labels do not point into
               them
    takes      the columns of examples that it reads beside texts and labels -> whether it cannot do
               without
    """

    auto: Any
    columns: Columns
    read: Callable[[str | Path, Columns, bool], Examples]
    names: Callable[[Examples], tuple[str, ...]] | None
    encode: Callable[[Examples, PreTrainedTokenizerBase, int, Sequence[str], bool], Encoded]
    loss: Callable[[nn.Module, Batch], Tensor]
    answer: Callable[[nn.Module, Encoded, int], list[tuple[Any, ...]]]
    shown: tuple[str, ...]
    metrics: Mapping[str, Metric]
    config: Mapping[str, Any] = field(default_factory=dict)
    stack: Callable[[list[Any], Batch], Tensor] = lambda targets, batch: torch.tensor(targets)
    tokens: tuple[str, ...] = ("input_ids",)
    loss_denominator: Callable[[Tensor], int] = len
    splits_by_length: bool = False
    respelt: Callable[[Examples, Callable[[str], str]], Examples] = respelt
    takes: Mapping[str, bool] = field(default_factory=lambda: {"pairs": False})


@dataclass(frozen=True, eq=False)
class Supervised:
    """Labelled examples of a task to train on, and others to choose the best step on: an
    `Objective`."""

    task: Task
    train: list[dict[str, Any]]
    valid: Encoded
    metric: str
    digest: str

    @property
    def greater_is_better(self) -> bool:
        """Whether larger values of the metric are better ones."""
        return self.metric not in SMALLER

    @property
    def vocabulary_used(self) -> Tensor:
        """All ids that a training batch can hold [n], but for the padding, which nothing is learnt
        from."""
        held = (_flat(example[part]) for example in self.train for part in self.task.tokens)
        return torch.tensor(sorted({token for ids in held for token in ids}))

    def collate(self, examples: list[dict[str, Any]], generator: Generator | None = None) -> Batch:
        """Pad to the longest of a batch -> token tensors [batch, longest], and the targets as
        `labels`."""
        batch = self.valid.pad(
            [{key: example[key] for key in example if key != "labels"} for example in examples]
        )
        targets = [example["labels"] for example in examples]
        return {**batch, "labels": self.task.stack(targets, batch)}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of a batch."""
        return mean_loss(self.task, model, batch)

    def loss_denominator(self, batch: Batch) -> int:
        """How many targets the loss of a batch is the mean of."""
        return self.task.loss_denominator(batch["labels"])

    def validate(self, model: nn.Module, batch_size: int) -> dict[str, float]:
        """All metrics of the task on the validation examples."""
        return scores(
            self.task, self.valid.examples, answers(self.task, model, self.valid, batch_size)
        )


def mean_loss(task: Task, model: nn.Module, batch: Batch) -> Tensor:
    """The mean loss of a batch. On a processor the batch goes through the model in parts, to leave
    out padding."""
    if not task.splits_by_length or batch["labels"].device.type != "cpu":
        return task.loss(model, batch)
    whole = max(task.loss_denominator(batch["labels"]), 1)
    losses = []
    for part in by_length(batch):
        share = task.loss_denominator(part["labels"]) / whole
        losses.append(task.loss(model, part) * share)
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
    """Tokenise both sets, `train` with noise by `seed`. Raises DeftxError for a label that is not
    in `names`, and as `check_columns` does."""
    for examples in (train, valid):
        check_columns(task, examples)
        check_known(written(examples), tokenizer, refused_from=REFUSED_TO_LEARN)
        if task.auto is None:  # labels are texts to be written
            check_known(
                list(map(str, examples.labels or [])), tokenizer, refused_from=REFUSED_TO_LEARN
            )
    if noise:
        train = task.respelt(train, misspeller(written(train), noise, seed))
    learnt, held_out = (
        task.encode(examples, tokenizer, length, names, True) for examples in (train, valid)
    )
    inputs = [
        {**row, "labels": target} for row, target in zip(learnt.inputs, learnt.targets, strict=True)
    ]
    parts = [
        inputs,
        held_out.inputs,
        held_out.targets,
        valid.labels,
        list(names),
    ]  # scores are of the labels
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    return Supervised(task, inputs, held_out, metric, digest)


def evaluate(
    task: Task,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples,
    length: int,
) -> dict[str, float]:
    """All metrics of a model on labelled examples; its outputs are named in its config."""
    return scores(task, examples, answers_to_labelled(task, model, tokenizer, examples, length))


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
    """The answer to every example: its predicted label, and what else the task's `shown` names."""
    chunks = predict_in_chunks(task, model, tokenizer, examples, length, max(len(examples), 1))
    return [answer for chunk in chunks for answer in chunk]


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
    check_known(written(examples), tokenizer, refused_from=None)  # there is an answer to every text
    check_embedded(written(examples), tokenizer, model.config)
    names = output_names(model)
    for start in range(0, max(len(examples), 1), chunk_size):
        rows = range(start, min(start + chunk_size, len(examples)))
        encoded = task.encode(examples.at(rows), tokenizer, length, names, False)
        yield answers(task, model, encoded)


def by_name(task: Task, found: Sequence[tuple[Any, ...]]) -> list[dict[str, Any]]:
    """Answers with their parts by the names that the task has for them."""
    return [dict(zip(task.shown, answer, strict=True)) for answer in found]


@torch.no_grad()
def answers(
    task: Task, model: nn.Module, encoded: Encoded, batch_size: int = 32
) -> list[tuple[Any, ...]]:
    """What a model answers to every example, in eval mode."""
    nn.Module.eval(model)
    return task.answer(model, encoded, batch_size)


def scores(task: Task, examples: Examples, found: Sequence[tuple[Any, ...]]) -> dict[str, float]:
    """All metrics of answers to labelled examples."""
    return {
        name: metric(examples.labels or [], [each[0] for each in found])
        for name, metric in task.metrics.items()
    }


def output_names(model: PreTrainedModel) -> tuple[str, ...]:
    """The names of a model's outputs, by their numbers: the order in which a config lists them says
    nothing."""
    named = {int(number): str(name) for number, name in (model.config.id2label or {}).items()}
    if sorted(named) != list(range(len(named))):
        numbers = ", ".join(map(str, sorted(named)))
        raise DeftxError(
            f"id2label in the model's config names the outputs {numbers}: number them from 0 on"
        )
    return tuple(named[number] for number in range(len(named)))


def check_columns(task: Task, examples: Examples) -> None:
    """Raise DeftxError where examples lack a column that their task reads, or have one that it does
    not read."""
    for name in ("pairs", "parts"):
        column = getattr(examples, name)
        if column is not None and name not in task.takes:
            raise DeftxError(
                f"the examples have {name}, which this task does not read: leave them out"
            )
        if not task.takes.get(name):
            continue
        if column is None:
            raise DeftxError(
                f"the examples have no {name}, which this task reads: give `{name}`, one for each text"
            )
        if name == "parts" and not all(column):
            raise DeftxError(
                f"example {[*map(bool, column)].index(False) + 1} has no parts: give it at least one"
            )


def names_of(task: Task, examples: Examples) -> tuple[str, ...]:
    """The names of a head's outputs, of the training data; none where outputs have no names."""
    return task.names(examples) if task.names else ()


def _flat(ids: list[Any]) -> Iterator[int]:
    for each in ids:
        if isinstance(each, list):
            yield from _flat(each)
        else:
            yield each
