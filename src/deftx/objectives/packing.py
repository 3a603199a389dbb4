"""Plain text as blocks of tokens, to learn a language from."""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import chain

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from deftx.config import LanguageTrainingConfig
from deftx.data.unknown_text import CHECK_SCRIPT, REFUSED_TO_LEARN, TEXTS_SAMPLED, check_known
from deftx.errors import DeftxError

AT_ONCE = 1000  # lines that are tokenised at once


def blocks(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    training: LanguageTrainingConfig,
    length: int,
    generator: torch.Generator,
    *,
    closed: bool = True,
    held_out: Sequence[str] | None = None,
) -> tuple[Tensor, Tensor]:
    """Shuffle the lines of `texts`, hold some of them out, and `pack` both parts: those to train on
    come first.

    Held out is the share `training.held_out` of the lines, or as many as make
    `training.held_out_blocks`; or all of the lines `held_out`, where these are given, and none of
    the others. Raises DeftxError where there are fewer than two lines, or where the tokenizer knows
    nothing, or less than half, of the text; warns where it does not know all.
    """
    if held_out is not None:
        parts = [pack(lines, tokenizer, length, closed=closed) for lines in (texts, held_out)]
        _check_known(held_out, parts, tokenizer)
        return parts[0], parts[1]
    if len(texts) < 2:
        raise DeftxError(
            f"the text has {len(texts)} usable line(s); give at least 2, to learn from and to hold out"
        )
    lines = [texts[i] for i in torch.randperm(len(texts), generator=generator).tolist()]
    count, most = (
        min(max(1, round(training.held_out * len(lines))), len(lines) - 1),
        training.held_out_blocks,
    )
    if most is not None:
        count = _enough(lines[:count], tokenizer, most * length)
    train, valid = (
        pack(part, tokenizer, length, closed=closed) for part in (lines[count:], lines[:count])
    )
    valid = valid[:most]
    _check_known(lines, [train, valid], tokenizer)
    return train, valid


def digest(train: Tensor, valid: Tensor) -> str:
    """A name of both parts: equal for equal blocks."""
    return hashlib.sha256(train.numpy().tobytes() + valid.numpy().tobytes()).hexdigest()


def _check_known(
    lines: Sequence[str], parts: Sequence[Tensor], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Raise DeftxError, or warn, where the tokenizer does not know much of the text."""
    check_known(lines[:TEXTS_SAMPLED], tokenizer, refused_from=REFUSED_TO_LEARN)
    special = torch.tensor(sorted(tokenizer.all_special_ids))
    if any(torch.isin(part, special).all() for part in parts):
        raise DeftxError(f"the text has no token: {CHECK_SCRIPT}")


def _enough(lines: Sequence[str], tokenizer: PreTrainedTokenizerBase, tokens: int) -> int:
    """How many of the first lines have so many tokens, separators among them; all, where there are
    fewer tokens."""
    total = 0
    for number, ids in enumerate(chain.from_iterable(_encoded(lines, tokenizer)), 1):
        total += len(ids) + 1
        if total >= tokens:
            return number
    return len(lines)


def pack(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int, *, closed: bool = True
) -> Tensor:
    """All texts one after the other, cut into full blocks -> [blocks, length] int64.

    Every block starts as the base's inputs do, and also ends so if it is to be `closed`; texts are
    parted by the separator. The tail that fills no block is dropped, except where it is all there
    is: then it is the one, shorter, block. Raises DeftxError where there are no tokens, or no room
    for one.
    """
    first = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
    last = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    start, end = ([] if token is None else [token] for token in (first, last))
    parts = (
        torch.tensor([token for ids in some if ids for token in (*ids, *end)], dtype=torch.int64)
        for some in _encoded(texts, tokenizer)
    )
    stream = torch.cat([torch.empty(0, dtype=torch.int64), *parts])
    stream = stream[: len(stream) - len(end)]
    end = end if closed else []
    room = min(length - len(start) - len(end), len(stream))
    if room < 1:
        raise DeftxError(
            f"{len(stream)} tokens make no block of length {length}: give more text or a larger length"
        )
    inner = stream[: len(stream) // room * room].view(-1, room)
    edges = [torch.tensor(edge, dtype=torch.int64).expand(len(inner), -1) for edge in (start, end)]
    return torch.cat([edges[0], inner, edges[1]], dim=1)


def _encoded(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[list[int]]]:
    """The tokens of the texts, of some at a time: as lists those of a large text would take
    gigabytes."""
    options = {
        "add_special_tokens": False,
        "return_attention_mask": False,
        "return_token_type_ids": False,
    }
    for start in range(0, len(texts), AT_ONCE):
        yield tokenizer(list(texts[start : start + AT_ONCE]), verbose=False, **options)["input_ids"]
