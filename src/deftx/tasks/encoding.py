"""Labelled examples as a model reads them: tokenised, in padded batches, with targets; and its
outputs for them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from deftx.data.examples import Examples
from deftx.errors import DeftxError
from deftx.objectives.base import IGNORED, Batch

Pad = Callable[[list[dict[str, Any]]], Batch]


@dataclass(frozen=True, eq=False)
class Encoded:
    """Tokenised examples, and what is needed to read the model's answers.

    Attributes:
        examples: What was tokenised.
        inputs: The model's inputs for each example or, where long examples are read in windows, for
            each window.
        targets: What is to be predicted for each input: a number, or one for each of its tokens.
            Empty for examples without labels.
        label_names: The names of the head's outputs, if they have any.
        pad: Makes a batch of some inputs.
        overflow_to_sample_mapping: The number of each window's example.
        word_ids: For each window, the number of the word that each token is the first one of, or
            -1. For tagging.
        offset_mapping: For each window, the first character of each token in the context and the
            one after its last. For question answering.
        decoding: How answers are generated. For generation.
    """

    examples: Examples
    inputs: list[dict[str, Any]]
    targets: list[Any]
    label_names: Sequence[str]
    pad: Pad
    overflow_to_sample_mapping: Sequence[int] = ()
    word_ids: Sequence[Sequence[int]] = ()
    offset_mapping: Sequence[Sequence[tuple[int, int]]] = ()
    decoding: Any = None


def tokenised(
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    labelled: bool,
    **options: Any,
) -> tuple[Any, list[dict[str, Any]]]:
    """Tokenise texts, or pairs of texts.

    Args:
        examples: What is tokenised.
        tokenizer: The base's tokenizer.
        length: Inputs are truncated to so many tokens.
        labelled: Whether the examples must have labels.
        **options: Further options of the tokenizer.

    Returns:
        What the tokenizer returned, and the model's inputs, one mapping for each.

    Raises:
        DeftxError: There are no examples, batches cannot be padded, or labels are missing.
    """
    check(examples, tokenizer, labelled)
    texts = list(examples.texts)
    pairs = list(examples.pairs) if examples.pairs else None
    settings: dict[str, Any] = {"truncation": True, "max_length": length, **options}
    tokens = tokenizer(texts, pairs, **settings)

    # One mapping for each input, with the columns that the model reads
    names = [name for name in tokens if name in tokenizer.model_input_names]
    inputs = []
    for number in range(len(tokens["input_ids"])):
        inputs.append({name: tokens[name][number] for name in names})

    # No model can read an empty input: an empty text gets one token where the tokenizer adds none
    first_token = tokenizer.bos_token_id
    if first_token is None:
        first_token = tokenizer.eos_token_id
    if first_token is not None:
        for number, row in enumerate(inputs):
            if not row["input_ids"]:
                inputs[number] = _input_of_one_token(first_token, row)
    return tokens, inputs


def _input_of_one_token(token: int, names: Mapping[str, Any]) -> dict[str, Any]:
    values = {"input_ids": token, "attention_mask": 1}
    return {name: [values.get(name, 0)] for name in names}


def check(examples: Examples, tokenizer: PreTrainedTokenizerBase, labelled: bool) -> None:
    """Check that examples can be tokenised and put into batches.

    Raises:
        DeftxError: There are no examples, batches cannot be padded, or labels are missing.
    """
    if not examples.texts:
        raise DeftxError("there are no examples: give at least one")
    if tokenizer.pad_token_id is None:
        raise DeftxError(
            "the base's tokenizer has no padding token: give an encoder such as XLM-R as base"
        )
    if labelled and examples.labels is None:
        raise DeftxError("the examples have no labels: give data with a column of labels")


def numbers(labels: Sequence[str], names: Sequence[str]) -> list[int]:
    """The number of each label in `names`.

    Raises:
        DeftxError: A label is not in `names`.
    """
    number_of = {name: number for number, name in enumerate(names)}
    unseen = sorted(set(labels) - number_of.keys())
    if unseen:
        raise DeftxError(
            f"label {unseen[0]!r} is not among the labels of the training data: {', '.join(names)}"
        )
    return [number_of[label] for label in labels]


def label_names(labels: Sequence[str]) -> tuple[str, ...]:
    """The labels that occur, sorted.

    Raises:
        DeftxError: There are fewer than two, or one is not text.
    """
    for label in labels:
        if not isinstance(label, str):
            raise DeftxError(
                f"label {label!r:.40} is not text, as names of labels are: give {str(label)!r:.40}"
            )
    names = tuple(sorted(set(labels)))
    if len(names) < 2:
        raise DeftxError(
            f"the training data has {len(names)} label(s) {list(names)}; a classifier needs at "
            "least two"
        )
    return names


def padding(tokenizer: PreTrainedTokenizerBase) -> Pad:
    """A function that pads inputs to the longest of them.

    It returns tensors [batch, longest], the attention mask among them.
    """

    def pad(inputs: list[dict[str, Any]]) -> Batch:
        return dict(tokenizer.pad(inputs, return_tensors="pt", return_attention_mask=True))

    return pad


def by_token(targets: list[list[int]], batch: Batch) -> Tensor:
    """Targets of tokens as a tensor [batch, longest], IGNORED at the padding, on either side."""
    is_token = batch["attention_mask"].bool()
    padded = torch.full(is_token.shape, IGNORED)
    flat_targets = list(chain.from_iterable(targets))
    padded[is_token] = torch.tensor(flat_targets)
    return padded


def inputs_of(batch: Batch) -> Batch:
    """A batch without its targets: what the model is given."""
    return {name: value for name, value in batch.items() if name != "labels"}


def batches(
    model: nn.Module, encoded: Encoded, batch_size: int
) -> Iterator[tuple[list[int], Batch]]:
    """Batches of inputs of similar length, on the model's device.

    Yields:
        The numbers of a batch's inputs, and the batch.
    """
    device = next(model.parameters()).device
    lengths = [len(row["input_ids"]) for row in encoded.inputs]
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = encoded.pad([encoded.inputs[row] for row in rows])
        yield rows, {name: value.to(device) for name, value in batch.items()}


def logits_of(
    model: nn.Module,
    encoded: Encoded,
    batch_size: int,
    logits: Callable[[nn.Module, Batch], Tensor],
    *,
    by_token: bool = False,
) -> list[Tensor]:
    """The logits of every input.

    Args:
        model: The model, in eval mode.
        encoded: The inputs.
        batch_size: Inputs in a batch.
        logits: Computes the logits of a batch [batch, ...].
        by_token: Whether these are logits of tokens [batch, longest, ...]; those of the padding are
            left out.

    Returns:
        For each input a float32 tensor on the CPU: [...], or [tokens, ...] if `by_token`.
    """
    logits_by_row: dict[int, Tensor] = {}
    for rows, batch in batches(model, encoded, batch_size):
        outputs = list(logits(model, batch).float().cpu())
        if by_token:
            masks = batch["attention_mask"].bool().cpu()
            outputs = [output[mask] for output, mask in zip(outputs, masks, strict=True)]
        logits_by_row.update(zip(rows, outputs, strict=True))
    return [logits_by_row[row] for row in range(len(encoded.inputs))]
