"""Masked language modelling on plain text: how a language vector is learnt."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase

from deftx.errors import DeftxError
from deftx.settings import LanguageTraining
from deftx.tasks.blocks import blocks, digest
from deftx.tasks.encoded import IGNORED


@dataclass(frozen=True, eq=False)
class MaskedLM:
    """Packed text, and the loss on its masked tokens.

    train      [blocks, length] int64, masked anew each time a block is seen
    held_out   [blocks, length] int64, with one fixed mask: (inputs, labels)
    special    ids that are never masked
    noise      ids from which a masked token's random replacement is drawn: those of the text, so that no others move
    digest     names the data: equal for equal blocks
    """

    train: Tensor
    held_out: tuple[Tensor, Tensor]
    special: Tensor
    mask_id: int
    noise: Tensor
    share: float
    digest: str

    metric = "loss"
    greater_is_better = False
    sampling = "random"

    @property
    def tokens(self) -> Tensor:
        """All ids that a training batch can hold [n]."""
        return torch.cat([self.train.unique(), torch.tensor([self.mask_id])])

    def collate(self, blocks: list[Tensor]) -> dict[str, Tensor]:
        """Stack [length] blocks to inputs and labels [batch, length], freshly masked."""
        inputs, labels = mask(torch.stack(blocks), self.share, self.special, self.mask_id, self.noise)
        return {"input_ids": inputs, "labels": labels}

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """The mean cross-entropy over a batch's masked tokens."""
        return masked_loss(model, batch["input_ids"], batch["labels"])

    def validate(self, model: nn.Module, batch_size: int) -> dict[str, float]:
        """The mean loss over all masked tokens of the held-out text, in nats."""
        device = next(model.parameters()).device
        total, count = 0.0, 0
        for inputs, labels in zip(*(part.split(batch_size) for part in self.held_out), strict=True):
            masked = int((labels != IGNORED).sum())
            if masked:
                total += masked * float(masked_loss(model, inputs.to(device), labels.to(device)))
                count += masked
        return {"loss": total / max(count, 1)}


def masked_lm(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    training: LanguageTraining,
    length: int,
    seed: int,
    *,
    held_out: Sequence[str] | None = None,
) -> MaskedLM:
    """Shuffle the lines of `texts`, hold some out unless `held_out` are given, and pack both parts into blocks of
    `length` tokens."""
    if tokenizer.mask_token_id is None:
        raise DeftxError("the base's tokenizer has no mask token: a language vector needs a masked language model")
    generator = torch.Generator().manual_seed(seed)
    train, valid = blocks(texts, tokenizer, training, length, generator, held_out=held_out)
    special = torch.tensor(sorted(tokenizer.all_special_ids))
    share, mask_id = training.mask, tokenizer.mask_token_id
    used = train.unique()
    noise = used[~torch.isin(used, special)]
    fixed = mask(valid, share, special, mask_id, noise, generator)
    while (fixed[1] == IGNORED).all():  # few tokens, none of them chosen
        fixed = mask(valid, share, special, mask_id, noise, generator)
    return MaskedLM(train, fixed, special, mask_id, noise, share, digest(train, valid))


def mask(
    ids: Tensor, share: float, special: Tensor, mask_id: int, noise: Tensor, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Masked inputs and labels [blocks, length] of token `ids`, as BERT's authors mask.

    Each token that is not special is chosen with probability `share`; of the chosen, 80% become the mask,
    10% a random one of the `noise` ids [n], 10% stay. Labels are IGNORED where nothing was chosen.
    """
    chance, kind = (torch.rand(ids.shape, generator=generator) for _ in range(2))
    chosen = (chance < share) & ~torch.isin(ids, special)
    labels = ids.where(chosen, IGNORED)
    random = noise[torch.randint(len(noise), ids.shape, generator=generator)]
    masked = ids.masked_fill(chosen & (kind < 0.8), mask_id)
    return random.where(chosen & (kind >= 0.9), masked), labels


def masked_loss(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of `labels` [batch, length] where they are not IGNORED; 0 where all are.

    The language modelling head sees the masked positions only: the same loss, without the logits
    [batch, length, vocabulary] of all the others.
    """
    places = (labels.view(-1) != IGNORED).nonzero().view(-1)
    with _only(model, places):
        logits = model(input_ids=inputs).logits.flatten(0, 1)
    return cross_entropy(logits.float(), labels.view(-1)[places], reduction="sum") / max(len(places), 1)


@contextmanager
def _only(model: Any, places: Tensor) -> Iterator[None]:
    """While active, the backbone hands on its hidden states at flat `places` [n] alone, as [1, n, width]."""

    def narrow(module: nn.Module, inputs: object, output: Any) -> Any:
        hidden = output[0].flatten(0, 1).index_select(0, places).unsqueeze(0)
        if isinstance(output, tuple):
            return (hidden, *output[1:])
        output["last_hidden_state"] = hidden
        return output

    hook = model.base_model.register_forward_hook(narrow)
    try:
        yield
    finally:
        hook.remove()
