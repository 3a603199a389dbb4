"""Generation: a text for a text, such as its translation or summary, by a decoder or an
encoder-decoder.

The model reads the text, and a line break where it is a decoder; it writes the other text and the
token that ends texts. The loss is that of what it writes alone; answers are written greedily.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, PreTrainedTokenizerBase

from deftx.data import examples as data
from deftx.data.examples import Columns, Examples, read_pairs
from deftx.errors import DeftxError
from deftx.objectives.base import IGNORED, Batch, labelled_tokens
from deftx.objectives.seq2seq_lm import written_loss
from deftx.tasks.base import Task
from deftx.tasks.encoding import Encoded, batches, padding, tokenised

SEPARATOR = "\n"  # between what a decoder reads and what it writes
ORDER, BETA = 6, 2  # of chrF


@dataclass(frozen=True)
class Writing:
    """How answers are written: at most `most` tokens, and what they are in words."""

    tokenizer: Any
    most: int


def read(source: str | Path, columns: Columns, labelled: bool) -> Examples:
    """Texts, and what is to be written for each."""
    return read_pairs(source, columns, data.name if labelled else None)


def encode(
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    names: Sequence[str],
    labelled: bool,
) -> Encoded:
    """Tokenise what is read and what is written, each cut to half of the `length` in tokens.

    targets  the tokens to write, the one that ends texts at their end
    """
    end, most = tokenizer.eos_token_id, length // 2
    if end is None or most < 1:
        raise DeftxError(
            f"generation needs a token that ends texts, and a length of 2 or more, not {length}"
        )
    after = (
        "" if tokenizer("a")["input_ids"][-1] == end else SEPARATOR
    )  # an encoder's text says itself where it ends
    lines = Examples([text + after for text in examples.texts], labels=examples.labels)
    _, inputs = tokenised(lines, tokenizer, length - most, labelled)
    ends = tokenizer(after, add_special_tokens=False)["input_ids"] if after else []
    for each in inputs:  # of a text that was cut, too
        if len(each["input_ids"]) == length - most > len(ends):
            each["input_ids"] = [*each["input_ids"][: length - most - len(ends)], *ends]
    written = list(examples.labels or []) if labelled else []
    ids = tokenizer(written, add_special_tokens=False)["input_ids"] if written else []
    targets = [[*each[: most - 1], end] for each in ids]
    return Encoded(
        examples, inputs, targets, names, padding(tokenizer), places=Writing(tokenizer, most)
    )


def ragged(targets: list[list[int]], batch: Batch) -> Tensor:
    """Targets of any lengths [batch, longest], filled with IGNORED."""
    return pad_sequence(list(map(torch.tensor, targets)), batch_first=True, padding_value=IGNORED)


def loss(model: Any, batch: Batch) -> Tensor:
    """The mean cross-entropy of the tokens to write, each given what is read and those before
    it."""
    if model.config.is_encoder_decoder:
        return written_loss(model, batch)
    read, written = batch["input_ids"], batch["labels"]
    ids = torch.cat([read, written.clamp_min(0)], dim=1)
    there = torch.cat([batch["attention_mask"].bool(), written != IGNORED], dim=1)
    targets = torch.cat([torch.full_like(read, IGNORED), written], dim=1)
    order = (
        (~there).int().argsort(dim=1, stable=True)
    )  # padding to the right: what is written follows what is read
    ids, there, targets = (each.gather(1, order) for each in (ids, there, targets))
    logits = (
        model(input_ids=ids, attention_mask=there.long(), use_cache=False)
        .logits[:, :-1]
        .flatten(0, 1)
    )
    total = cross_entropy(
        logits.float(), targets[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return total / max(labelled_tokens(written), 1)


def answer(model: Any, encoded: Encoded, batch_size: int) -> list[tuple[str]]:
    """What the model writes for every example, the most probable token at each step."""
    writing: Writing = encoded.places
    tokenizer = writing.tokenizer
    settings = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=writing.most,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    found: dict[int, tuple[str]] = {}
    for rows, batch in batches(model, encoded, batch_size):
        given = {key: batch[key] for key in ("input_ids", "attention_mask")}
        known = 0  # tokens that are given back before what is written
        if (
            not model.config.is_encoder_decoder
        ):  # padding to the left: the model goes on from the end
            left = given["attention_mask"].argsort(dim=1, stable=True)
            given, known = {key: ids.gather(1, left) for key, ids in given.items()}, left.shape[1]
        written = model.generate(**given, generation_config=settings)[:, known:].tolist()
        texts = tokenizer.batch_decode(written, skip_special_tokens=True)
        found |= {row: (text.strip(),) for row, text in zip(rows, texts, strict=True)}
    return [found[row] for row in range(len(encoded.inputs))]


def exact_match(true: Sequence[str], predicted: Sequence[str]) -> float:
    """The share of answers that are what they are to be, but for white space at their ends."""
    return sum(
        one.strip() == other.strip() for one, other in zip(true, predicted, strict=True)
    ) / len(true)


def chrf(true: Sequence[str], predicted: Sequence[str]) -> float:
    """chrF (Popović 2015), 0 to 1: F2 of mean precision and mean recall of 1- to 6-grams of
    characters, without spaces.

    Counts are of all texts together; orders that either side has no n-grams of are left out.
    """
    precision, recall = [], []
    for n in range(1, ORDER + 1):
        pairs = [
            (_grams(one, n), _grams(other, n)) for one, other in zip(true, predicted, strict=True)
        ]
        right = sum((one & other).total() for one, other in pairs)
        there, made = (sum(pair[side].total() for pair in pairs) for side in (0, 1))
        if there and made:
            precision.append(right / made)
            recall.append(right / there)
    p, r = (sum(shares) / max(len(shares), 1) for shares in (precision, recall))
    return (1 + BETA**2) * p * r / (BETA**2 * p + r) if p + r else 0.0


def _grams(text: str, n: int) -> Counter[str]:
    packed = "".join(text.split())
    return Counter(packed[i : i + n] for i in range(len(packed) - n + 1))


GENERATION = Task(
    auto=None,
    columns=Columns("text", None, "target"),
    read=read,
    names=None,
    encode=encode,
    loss=loss,
    answer=answer,
    shown=("text",),
    metrics={"chrf": chrf, "exact_match": exact_match},
    stack=ragged,
    loss_denominator=labelled_tokens,
    tokens=("input_ids", "labels"),
    takes={},
)
