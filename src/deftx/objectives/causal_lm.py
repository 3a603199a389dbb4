"""Causal language modelling on plain text: how a language vector of a decoder is learnt."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase

from deftx.config import LanguageTrainingConfig
from deftx.errors import DeftxError
from deftx.objectives.base import Batch
from deftx.objectives.packing import blocks, digest


@dataclass(frozen=True, eq=False)
class CausalLM:
    """Packed text, and the loss on each token given those before it.

    train, held_out  [blocks, length] int64
    digest           names the data: equal for equal blocks
    """

    train: Tensor
    held_out: Tensor
    digest: str

    metric = "loss"
    greater_is_better = False

    @property
    def vocabulary_used(self) -> Tensor:
        """All ids that a training batch can hold [n]."""
        ids: Tensor = self.train.unique()
        return ids

    def collate(self, examples: list[Tensor], generator: Generator | None = None) -> Batch:
        """Stack [length] blocks to inputs and labels [batch, length], which are the same."""
        ids = torch.stack(examples)
        return {"input_ids": ids, "labels": ids}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean cross-entropy over a batch's tokens, but for the first of each block."""
        return next_token_loss(model, batch["input_ids"])

    def loss_denominator(self, batch: Batch) -> int:
        """The tokens of a batch, but for the first of each block."""
        rows, length = batch["input_ids"].shape
        return int(rows * (length - 1))

    def validate(self, model: nn.Module, batch_size: int) -> dict[str, float]:
        """The mean loss over the held-out text, in nats; its blocks are of one length.

        Logits of all tokens take most of the memory, and more than `batch_size` suits: it is a
        quarter here.
        """
        device = next(model.parameters()).device
        parts = self.held_out.split(max(1, batch_size // 4))
        total = sum(len(part) * float(next_token_loss(model, part.to(device))) for part in parts)
        return {"loss": total / len(self.held_out)}


def causal_lm(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    training: LanguageTrainingConfig,
    length: int,
    seed: int,
    *,
    held_out: Sequence[str] | None = None,
) -> CausalLM:
    """Shuffle the lines of `texts`, hold some out unless `held_out` are given, and pack both parts
    into blocks of `length` tokens.

    Raises DeftxError where a block is a single token, which none follows.
    """
    generator = torch.Generator().manual_seed(seed)
    train, valid = blocks(
        texts, tokenizer, training, length, generator, closed=False, held_out=held_out
    )
    if min(train.shape[1], valid.shape[1]) < 2:
        raise DeftxError(
            "a part of the text is one token, and none follows it: give more text or a larger length"
        )
    return CausalLM(train, valid, digest(train, valid))


def next_token_loss(model: nn.Module, ids: Tensor) -> Tensor:
    """Mean cross-entropy of every token of `ids` [batch, length] but the first, given those before
    it."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())
