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
from deftx.objectives.packing import digest, pack_into_blocks


@dataclass(frozen=True, eq=False)
class CausalLM:
    """Packed text, and the loss on each token given those before it.

    Attributes:
        train: Blocks to train on [blocks, length] int64.
        held_out: Blocks to validate on [blocks, length] int64.
        digest: A fingerprint of the blocks.
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
        """The mean cross-entropy over a batch's tokens, except the first of each block."""
        return next_token_loss(model, batch["input_ids"])

    def loss_denominator(self, batch: Batch) -> int:
        """The tokens of a batch, except the first of each block."""
        rows, length = batch["input_ids"].shape
        return int(rows * (length - 1))

    def validate(self, model: nn.Module, batch_size: int) -> dict[str, float]:
        """The mean loss over the held-out text, in nats; its blocks have one length.

        Logits of all tokens take most of the memory, so that a batch is a quarter of `batch_size`.
        """
        device = next(model.parameters()).device
        total = 0.0
        for part in self.held_out.split(max(1, batch_size // 4)):
            total += len(part) * float(next_token_loss(model, part.to(device)))
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
    """The objective of a causal language model.

    Args:
        texts: Lines of text.
        tokenizer: The base's tokenizer.
        training: Says how much text is held out.
        length: The tokens of a block.
        seed: Shuffles the lines.
        held_out: Lines that are held out, instead of some of `texts`.

    Raises:
        DeftxError: A block is a single token, which none follows; and as `pack_into_blocks` does.
    """
    generator = torch.Generator().manual_seed(seed)
    train, valid = pack_into_blocks(
        texts, tokenizer, training, length, generator, closed=False, held_out=held_out
    )
    if min(train.shape[1], valid.shape[1]) < 2:
        raise DeftxError(
            "a part of the text is one token, and none follows it: give more text or a larger "
            "length"
        )
    return CausalLM(train, valid, digest(train, valid))


def next_token_loss(model: nn.Module, ids: Tensor) -> Tensor:
    """Mean cross-entropy of every token of `ids` [batch, length] but the first, given those before
    it."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())
