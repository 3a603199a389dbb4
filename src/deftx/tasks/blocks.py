"""Plain text as blocks of tokens, to learn a language from."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from deftx.errors import DeftxError
from deftx.settings import LanguageTraining


def blocks(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    training: LanguageTraining,
    length: int,
    generator: torch.Generator,
    *,
    closed: bool = True,
) -> tuple[Tensor, Tensor]:
    """Shuffle the lines of `texts`, hold some of them out, and `pack` both parts: those to train on come first.

    Held out is the share `training.held_out` of the lines, or as many as make `training.held_out_blocks`.
    Raises DeftxError where there are fewer than two lines, or no token that is not special.
    """
    if len(texts) < 2:
        raise DeftxError(f"the text has {len(texts)} usable line(s); give at least 2, to learn from and to hold out")
    lines = [texts[i] for i in torch.randperm(len(texts), generator=generator).tolist()]
    count, most = min(max(1, round(training.held_out * len(lines))), len(lines) - 1), training.held_out_blocks
    if most is not None:
        count = _enough(lines[:count], tokenizer, most * length)
    train, valid = (pack(part, tokenizer, length, closed=closed) for part in (lines[count:], lines[:count]))
    valid = valid[:most]
    special = torch.tensor(sorted(tokenizer.all_special_ids))
    if any(torch.isin(part, special).all() for part in (train, valid)):
        raise DeftxError("the text has no token that the base's tokenizer knows: is it in the base's script?")
    return train, valid


def _enough(lines: Sequence[str], tokenizer: PreTrainedTokenizerBase, tokens: int) -> int:
    """How many of the first lines have so many tokens, separators among them; all, where there are fewer tokens."""
    total = 0
    for start in range(0, len(lines), 1000):  # not all at once: a share of a large text is large
        part = tokenizer(list(lines[start : start + 1000]), add_special_tokens=False, verbose=False)["input_ids"]
        for number, ids in enumerate(part, start + 1):
            total += len(ids) + 1
            if total >= tokens:
                return number
    return len(lines)


def pack(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int, *, closed: bool = True) -> Tensor:
    """All texts one after the other, cut into full blocks -> [blocks, length] int64.

    Every block starts as the base's inputs do, and also ends so if it is to be `closed`; texts are parted by the
    separator. The tail that fills no block is dropped, except where it is all there is: then it is the one, shorter,
    block. Raises DeftxError where there are no tokens, or no room for one.
    """
    first = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
    last = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    start, end = ([] if token is None else [token] for token in (first, last))
    encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    stream = torch.tensor([token for ids in encoded if ids for token in (*ids, *end)])
    stream = stream[: len(stream) - len(end)]
    end = end if closed else []
    room = min(length - len(start) - len(end), len(stream))
    if room < 1:
        raise DeftxError(f"{len(stream)} tokens make no block of length {length}: give more text or a larger length")
    inner = stream[: len(stream) // room * room].view(-1, room)
    edges = [torch.tensor(edge, dtype=torch.int64).expand(len(inner), -1) for edge in (start, end)]
    return torch.cat([edges[0], inner, edges[1]], dim=1)
