"""Masked language modelling on plain text: how a language vector is learnt."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase

from deftx.config import LanguageTrainingConfig
from deftx.errors import DeftxError
from deftx.objectives.base import IGNORED, Batch, labelled_tokens
from deftx.objectives.packing import digest, pack_into_blocks


@dataclass(frozen=True, eq=False)
class Masking:
    """How tokens are masked, as BERT's authors do.

    Attributes:
        share: Probability that a token is chosen.
        special: Ids that are never chosen [n].
        mask_id: What 80% of the chosen tokens become.
        replacements: Ids from which 10% of the chosen tokens are drawn [n]; the other 10% stay.
    """

    share: float
    special: Tensor
    mask_id: int
    replacements: Tensor


@dataclass(frozen=True, eq=False)
class MaskedLM:
    """Packed text, and the loss on its masked tokens.

    Attributes:
        train: [blocks, length] int64, masked differently each time a block is seen.
        held_out: Inputs and labels, each [blocks, length] int64, with one fixed mask.
        masking: How tokens are masked.
        digest: Names the data: equal for equal blocks and replacements.
    """

    train: Tensor
    held_out: tuple[Tensor, Tensor]
    masking: Masking
    digest: str

    metric = "loss"
    greater_is_better = False

    @property
    def vocabulary_used(self) -> Tensor:
        """All ids that a training batch can hold [n]."""
        mask_id = torch.tensor([self.masking.mask_id])
        ids: Tensor = torch.cat([self.train.unique(), mask_id, self.masking.replacements]).unique()
        return ids

    def collate(self, examples: list[Tensor], generator: Generator | None = None) -> Batch:
        """Mask [length] blocks, one after the other -> inputs and labels [batch, length]."""
        masked = [mask(block, self.masking, generator) for block in examples]
        inputs = torch.stack([block_inputs for block_inputs, _ in masked])
        labels = torch.stack([block_labels for _, block_labels in masked])
        return {"input_ids": inputs, "labels": labels}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean cross-entropy over a batch's masked tokens, in nats."""
        return masked_loss(model, batch["input_ids"], batch["labels"])

    def loss_denominator(self, batch: Batch) -> int:
        """The masked tokens of a batch."""
        return labelled_tokens(batch["labels"])

    def validate(self, model: nn.Module, batch_size: int) -> dict[str, float]:
        """The mean loss over all masked tokens of the held-out text, in nats."""
        device = next(model.parameters()).device
        total = 0.0
        count = 0
        all_inputs, all_labels = self.held_out
        batches = zip(all_inputs.split(batch_size), all_labels.split(batch_size), strict=True)
        for inputs, labels in batches:
            masked = labelled_tokens(labels)
            if masked:
                total += masked * float(masked_loss(model, inputs.to(device), labels.to(device)))
                count += masked
        return {"loss": total / max(count, 1)}


def masked_lm(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    training: LanguageTrainingConfig,
    length: int,
    seed: int,
    *,
    held_out: Sequence[str] | None = None,
) -> MaskedLM:
    """The objective of a masked language model.

    Args:
        texts: Lines of text.
        tokenizer: The base's tokenizer.
        training: Says how tokens are masked, and how much text is held out.
        length: The tokens of a block.
        seed: Shuffles the lines, and masks the held-out text.
        held_out: Lines that are held out, instead of some of `texts`.

    Raises:
        DeftxError: The tokenizer has no mask token, or the text is too short or unknown to the
            tokenizer.
    """
    if tokenizer.mask_token_id is None:
        raise DeftxError(
            "the base's tokenizer has no mask token: a language vector needs a masked language "
            "model"
        )
    generator = torch.Generator().manual_seed(seed)
    train, valid = pack_into_blocks(
        texts, tokenizer, training, length, generator, held_out=held_out
    )
    special = torch.tensor(sorted(tokenizer.all_special_ids))

    # Random replacements come from the whole vocabulary, as in LT-SFT, or from the text's own
    # pieces, so that the embeddings of no others can move
    replacements = torch.arange(len(tokenizer))
    if training.replacements == "corpus":
        used = train.unique()
        replacements = used[~torch.isin(used, special)]
    masking = Masking(training.mask, special, tokenizer.mask_token_id, replacements)

    # One fixed mask for the held-out text; again where it has few tokens and none was chosen
    masked = mask(valid, masking, generator)
    while (masked[1] == IGNORED).all():
        masked = mask(valid, masking, generator)
    name = f"{digest(train, valid)} {training.replacements}"
    return MaskedLM(train, masked, masking, name)


def mask(
    ids: Tensor, masking: Masking, generator: Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Mask token ids of any shape.

    Returns:
        Inputs and labels of the same shape; labels are IGNORED where nothing was chosen.
    """
    chance = torch.rand(ids.shape, generator=generator)
    kind = torch.rand(ids.shape, generator=generator)
    drawn = torch.randint(len(masking.replacements), ids.shape, generator=generator)
    chosen = (chance < masking.share) & ~torch.isin(ids, masking.special)
    labels = ids.where(chosen, IGNORED)
    masked = ids.masked_fill(chosen & (kind < 0.8), masking.mask_id)
    inputs = masking.replacements[drawn].where(chosen & (kind >= 0.9), masked)
    return inputs, labels


def masked_loss(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of `labels` [batch, length] where they are not IGNORED; 0 where all are.

    The language modelling head sees the masked positions only: the same loss, without the logits
    [batch, length, vocabulary] of all the others.
    """
    flat_labels = labels.view(-1)
    positions = (flat_labels != IGNORED).nonzero().view(-1)
    with _hidden_states_at(model, positions):
        logits = model(input_ids=inputs).logits.flatten(0, 1)
    total = cross_entropy(logits.float(), flat_labels[positions], reduction="sum")
    return total / max(len(positions), 1)


@contextmanager
def _hidden_states_at(model: Any, positions: Tensor) -> Iterator[None]:
    """Within the block, the backbone returns the hidden states at flat `positions` [n] alone, as
    [1, n, width]."""

    def narrow(module: nn.Module, inputs: object, output: Any) -> Any:
        hidden = output[0].flatten(0, 1).index_select(0, positions).unsqueeze(0)
        if isinstance(output, tuple):
            return (hidden, *output[1:])
        output["last_hidden_state"] = hidden
        return output

    hook = model.base_model.register_forward_hook(narrow)
    try:
        yield
    finally:
        hook.remove()
