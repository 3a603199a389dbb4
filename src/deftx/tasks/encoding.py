"""Labelled examples as a model reads them: tokenised, in padded batches, with targets; and its
outputs for them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from deftx.data.examples import Examples
from deftx.errors import DeftxError
from deftx.objectives.base import IGNORED, Batch


@dataclass(frozen=True, eq=False)
class Encoded:
    """Tokenised examples, and what is needed to read the model's answers.

    inputs    what the tokenizer made of each example; of long ones, of each window
    targets   what is to be learnt of each input: a number, or one for each of its tokens; empty
              where nothing is
    names     of the head's outputs, if they have any
    pad       a batch of some inputs
    owners    the number of each input's example
    places    what the tokens of each input stand for, or what else the task needs to read answers
    """

    examples: Examples
    inputs: list[dict[str, Any]]
    targets: list[Any]
    names: Sequence[str]
    pad: Callable[[list[dict[str, Any]]], Batch]
    owners: Sequence[int] = ()
    places: Any = ()


def tokenised(
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    labelled: bool,
    **options: Any,
) -> tuple[Any, list[dict[str, Any]]]:
    """The tokenizer's answer for texts, or pairs of them, cut to `length` tokens, and the model's
    inputs out of it.

    Raises DeftxError where there are no examples, where batches cannot be padded, and where labels
    are missing.
    """
    check(examples, tokenizer, labelled)
    texts, pairs = list(examples.texts), list(examples.pairs) if examples.pairs else None
    tokens = tokenizer(texts, pairs, **{"truncation": True, "max_length": length, **options})
    keys = [key for key in tokens if key in tokenizer.model_input_names]
    inputs = [{key: tokens[key][i] for key in keys} for i in range(len(tokens["input_ids"]))]
    first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if first is not None:
        inputs = [each if each["input_ids"] else _of_one(first, each) for each in inputs]
    return tokens, inputs


def _of_one(token: int, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """An input of one token for one of none, which no model can read: an empty text, where nothing
    is put around it."""
    return {key: [{"input_ids": token, "attention_mask": 1}.get(key, 0)] for key in inputs}


def check(examples: Examples, tokenizer: PreTrainedTokenizerBase, labelled: bool) -> None:
    """Raise DeftxError where there are no examples, where batches cannot be padded, and where
    labels are missing."""
    if not examples.texts:
        raise DeftxError("there are no examples: give at least one")
    if tokenizer.pad_token_id is None:
        raise DeftxError(
            "the base's tokenizer has no padding token: give an encoder such as XLM-R as base"
        )
    if labelled and examples.labels is None:
        raise DeftxError("the examples have no labels: give data with a column of labels")


def numbers(labels: Sequence[str], names: Sequence[str]) -> list[int]:
    """The numbers of labels. Raises DeftxError for one that is not in `names`."""
    number = {name: i for i, name in enumerate(names)}
    unseen = sorted(set(labels) - number.keys())
    if unseen:
        raise DeftxError(
            f"label {unseen[0]!r} is not among the labels of the training data: {', '.join(names)}"
        )
    return [number[label] for label in labels]


def label_names(labels: Sequence[str]) -> tuple[str, ...]:
    """The labels that occur, sorted. Raises DeftxError where there are fewer than two."""
    for label in labels:
        if not isinstance(label, str):
            raise DeftxError(
                f"label {label!r:.40} is no text, as names of labels are: give {str(label)!r:.40}"
            )
    names = tuple(sorted(set(labels)))
    if len(names) < 2:
        raise DeftxError(
            f"the training data has {len(names)} label(s) {list(names)}; a classifier needs at least two"
        )
    return names


def padding(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[dict[str, Any]]], Batch]:
    """Pads a batch to its longest input -> token tensors [batch, longest], with the attention
    mask."""
    return lambda batch: dict(tokenizer.pad(batch, return_tensors="pt", return_attention_mask=True))


def by_token(targets: list[list[int]], batch: Batch) -> Tensor:
    """Targets of tokens as a tensor beside the tokens, wherever the padding stands."""
    tokens = batch["attention_mask"].bool()
    spread = torch.full(tokens.shape, IGNORED)
    spread[tokens] = torch.tensor([target for row in targets for target in row])
    return spread


def inputs_of(batch: Batch) -> Batch:
    """A batch without its targets: what the model is given."""
    return {key: value for key, value in batch.items() if key != "labels"}


def batches(
    model: nn.Module, encoded: Encoded, batch_size: int
) -> Iterator[tuple[list[int], Batch]]:
    """Batches of inputs of about one length, on the model's device, each with the numbers of its
    inputs."""
    device = next(model.parameters()).device
    order = sorted(range(len(encoded.inputs)), key=lambda i: len(encoded.inputs[i]["input_ids"]))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = encoded.pad([encoded.inputs[i] for i in rows])
        yield rows, {key: value.to(device) for key, value in batch.items()}


def logits_of(
    model: nn.Module,
    encoded: Encoded,
    batch_size: int,
    logits: Callable[[nn.Module, Batch], Tensor],
    *,
    by_token: bool = False,
) -> list[Tensor]:
    """The `logits` of every input, or of each of its tokens, float32, on the CPU."""
    found: dict[int, Tensor] = {}
    for rows, batch in batches(model, encoded, batch_size):
        outputs = list(logits(model, batch).float().cpu())
        if by_token:  # not of the padding
            there = batch["attention_mask"].bool().cpu()
            outputs = [each[mask] for each, mask in zip(outputs, there, strict=True)]
        found |= dict(zip(rows, outputs, strict=True))
    return [found[row] for row in range(len(encoded.inputs))]
