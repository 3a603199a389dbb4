"""Plain text as blocks of tokens, to learn a language from."""

import hashlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from deftx.config import LanguageTrainingConfig
from deftx.data.unknown_text import CHECK_SCRIPT, REFUSED_TO_LEARN, TEXTS_SAMPLED, check_known
from deftx.errors import DeftxError

LINES_PER_BATCH = 1000  # that are tokenised at once


def pack_into_blocks(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    training: LanguageTrainingConfig,
    length: int,
    generator: torch.Generator,
    *,
    closed: bool = True,
    held_out: Sequence[str] | None = None,
) -> tuple[Tensor, Tensor]:
    """Split text into lines to train on and lines held out, and pack both into blocks.

    Without `held_out`, the lines are shuffled and the share `training.held_out` of them is held
    out, or as many as make `training.held_out_blocks` blocks. Warns where the tokenizer does not
    know all of the text.

    Args:
        texts: Lines of text.
        tokenizer: The base's tokenizer.
        training: Says how much is held out.
        length: The tokens of a block.
        generator: Shuffles the lines.
        closed: Whether blocks end as the base's inputs do.
        held_out: Lines that are held out, instead of some of `texts`.

    Returns:
        Blocks to train on, and those held out, each [blocks, length] int64.

    Raises:
        DeftxError: There are fewer than two lines, or the tokenizer knows less than half of the
            text.
    """
    if held_out is not None:
        train = pack(texts, tokenizer, length, closed=closed)
        valid = pack(held_out, tokenizer, length, closed=closed)
        _check_known(held_out, [train, valid], tokenizer)
        return train, valid
    if len(texts) < 2:
        raise DeftxError(
            f"the text has {len(texts)} usable line(s); give at least 2, to learn from and to "
            "hold out"
        )
    order = torch.randperm(len(texts), generator=generator).tolist()
    lines = [texts[number] for number in order]

    # The first lines are held out: a share of all, one at least, but no more than needed
    count = max(1, round(training.held_out * len(lines)))
    count = min(count, len(lines) - 1)
    max_blocks = training.held_out_blocks
    if max_blocks is not None:
        count = _lines_with_tokens(lines[:count], tokenizer, max_blocks * length)
    train = pack(lines[count:], tokenizer, length, closed=closed)
    valid = pack(lines[:count], tokenizer, length, closed=closed)[:max_blocks]
    _check_known(lines, [train, valid], tokenizer)
    return train, valid


def digest(train: Tensor, valid: Tensor) -> str:
    """A fingerprint of the blocks to train on and of those held out."""
    return hashlib.sha256(train.numpy().tobytes() + valid.numpy().tobytes()).hexdigest()


def _check_known(
    lines: Sequence[str], parts: Sequence[Tensor], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Raise DeftxError, or warn, where the tokenizer does not know much of the text."""
    check_known(lines[:TEXTS_SAMPLED], tokenizer, refused_from=REFUSED_TO_LEARN)
    special = torch.tensor(sorted(tokenizer.all_special_ids))
    for part in parts:
        if torch.isin(part, special).all():
            raise DeftxError(f"the text has no token: {CHECK_SCRIPT}")


def _lines_with_tokens(
    lines: Sequence[str], tokenizer: PreTrainedTokenizerBase, tokens: int
) -> int:
    """How many of the first lines have so many tokens, separators included; all of them, where
    there are fewer tokens."""
    total = 0
    number = 0
    for batch in _tokenised_batches(lines, tokenizer):
        for ids in batch:
            number += 1
            total += len(ids) + 1
            if total >= tokens:
                return number
    return len(lines)


def pack(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int, *, closed: bool = True
) -> Tensor:
    """Concatenate all texts and cut them into full blocks.

    Texts are separated by the separator token. Every block starts as the base's inputs do. The tail
    that fills no block is dropped, unless it is all there is: then it is the one, shorter, block.

    Args:
        texts: The texts.
        tokenizer: The base's tokenizer.
        length: The tokens of a block.
        closed: Whether blocks also end as the base's inputs do.

    Returns:
        [blocks, length] int64.

    Raises:
        DeftxError: There are no tokens, or there is no room for one in a block.
    """
    first_id = tokenizer.cls_token_id
    if first_id is None:
        first_id = tokenizer.bos_token_id
    last_id = tokenizer.sep_token_id
    if last_id is None:
        last_id = tokenizer.eos_token_id
    start = [] if first_id is None else [first_id]
    separator = [] if last_id is None else [last_id]

    # One stream of tokens, with a separator after every text but the last
    parts = [torch.empty(0, dtype=torch.int64)]
    for batch in _tokenised_batches(texts, tokenizer):
        ids_of_batch: list[int] = []
        for ids in batch:
            if ids:
                ids_of_batch += ids
                ids_of_batch += separator
        parts.append(torch.tensor(ids_of_batch, dtype=torch.int64))
    stream = torch.cat(parts)
    stream = stream[: len(stream) - len(separator)]

    # Cut it into full blocks
    end = separator if closed else []
    room = min(length - len(start) - len(end), len(stream))
    if room < 1:
        raise DeftxError(
            f"{len(stream)} tokens make no block of length {length}: give more text or a larger "
            "length"
        )
    inner = stream[: len(stream) // room * room].view(-1, room)
    starts = torch.tensor(start, dtype=torch.int64).expand(len(inner), -1)
    ends = torch.tensor(end, dtype=torch.int64).expand(len(inner), -1)
    return torch.cat([starts, inner, ends], dim=1)


def _tokenised_batches(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> Iterator[list[list[int]]]:
    """The tokens of the texts, batch by batch: as lists those of a large text would take
    gigabytes."""
    for start in range(0, len(texts), LINES_PER_BATCH):
        tokens = tokenizer(
            list(texts[start : start + LINES_PER_BATCH]),
            verbose=False,
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        yield tokens["input_ids"]
