"""Denoising on plain text: how a language vector of a base with an encoder and a decoder is learnt.

The encoder reads a text in which spans are missing. What stands in their place, and so what the
decoder writes, is told by the base's tokenizer: sentinels, each another token, for T5 and its like
(span corruption, Raffel et al. 2020), which write every missing span after its sentinel; else the
mask token for BART and its like (text infilling, Lewis et al. 2020), which write the whole text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, count, cycle, groupby, pairwise, takewhile

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from deftx.config import LanguageTrainingConfig
from deftx.errors import DeftxError
from deftx.objectives.base import IGNORED, Batch, labelled_tokens
from deftx.objectives.packing import blocks, digest

SPAN = 3  # mean tokens of a span, in both papers
SENTINELS = ("▁<extra_id_{}>", "<extra_id_{}>")  # as mT5's tokenizer spells them, and as T5's does

Spans = list[tuple[int, int]]  # first token of each, and the one after its last
Pair = tuple[list[int], list[int]]  # what is read, and what is to be written


@dataclass(frozen=True)
class Noise:
    """How spans of a text are hidden.

    share      of the tokens that are hidden
    special    ids that are never hidden
    marks      what stands for the spans: the sentinels, one for each in their order, or the mask
               for all
    sentinels  whether they are sentinels
    end        what is written last, after spans
    pad        fills rows of a batch
    """

    share: float
    special: frozenset[int]
    marks: tuple[int, ...]
    sentinels: bool
    end: tuple[int, ...]
    pad: int


@dataclass(frozen=True, eq=False)
class Seq2SeqLM:
    """Packed text, and the loss on what is missing of it, or on all of it.

    train      [blocks, length] int64, corrupted anew each time a block is seen
    held_out   the other blocks, corrupted once
    digest     names the data: equal for equal blocks
    """

    train: Tensor
    held_out: list[Pair]
    noise: Noise
    digest: str

    metric = "loss"
    greater_is_better = False

    @property
    def vocabulary_used(self) -> Tensor:
        """All ids that the encoder can read in a training batch [n], but for padding."""
        ids: Tensor = torch.cat([self.train.unique(), torch.tensor(self.noise.marks)]).unique()
        return ids

    def collate(self, examples: list[Tensor], generator: Generator | None = None) -> Batch:
        """Corrupt [length] blocks -> inputs [batch, longest] with their attention mask, labels
        [batch, longest]."""
        pairs = [corrupted(block.tolist(), self.noise, generator) for block in examples]
        return padded(pairs, self.noise.pad)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean cross-entropy of the tokens to write, each given what is read and those before
        it."""
        return written_loss(model, batch)

    def loss_denominator(self, batch: Batch) -> int:
        """The tokens to write in a batch."""
        return labelled_tokens(batch["labels"])

    def validate(self, model: nn.Module, batch_size: int) -> dict[str, float]:
        """The mean loss over all tokens to write of the held-out text, in nats; a quarter of
        `batch_size` at a time, since logits of all these tokens take most of the memory."""
        device, batch_size = next(model.parameters()).device, max(1, batch_size // 4)
        total, tokens = 0.0, 0
        for start in range(0, len(self.held_out), batch_size):
            rows = self.held_out[start : start + batch_size]
            batch = {name: part.to(device) for name, part in padded(rows, self.noise.pad).items()}
            written = sum(len(labels) for _, labels in rows)
            total, tokens = total + written * float(written_loss(model, batch)), tokens + written
        return {"loss": total / max(tokens, 1)}


def seq2seq_lm(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    training: LanguageTrainingConfig,
    length: int,
    seed: int,
    *,
    held_out: Sequence[str] | None = None,
) -> Seq2SeqLM:
    """Shuffle the lines of `texts`, hold some out unless `held_out` are given, and pack both parts
    into blocks of `length` tokens."""
    noise = noise_of(tokenizer, training.mask)
    generator = torch.Generator().manual_seed(seed)
    train, valid = blocks(texts, tokenizer, training, length, generator, held_out=held_out)
    corrupted_blocks = [corrupted(block, noise, generator) for block in valid.tolist()]
    return Seq2SeqLM(train, corrupted_blocks, noise, digest(train, valid))


def noise_of(tokenizer: PreTrainedTokenizerBase, share: float) -> Noise:
    """The noise that a base was pretrained with. Raises DeftxError where its tokenizer has no token
    for it."""
    vocabulary = tokenizer.get_vocab()
    spelt = (takewhile(vocabulary.__contains__, map(form.format, count())) for form in SENTINELS)
    sentinels = next(
        filter(None, (tuple(map(vocabulary.__getitem__, names)) for names in spelt)), ()
    )
    mask, pad = tokenizer.mask_token_id, tokenizer.pad_token_id
    marks = sentinels or (() if mask is None else (mask,))
    if pad is None or not marks:
        raise DeftxError(
            "the base's tokenizer has neither sentinels nor a mask token: give a base such as mT5 or BART"
        )
    end = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    special = frozenset((*tokenizer.all_special_ids, *sentinels))
    return Noise(share, special, marks, bool(sentinels), end, pad)


def corrupted(ids: Sequence[int], noise: Noise, generator: torch.Generator | None = None) -> Pair:
    """What is read and what is to be written of a text's `ids`.

    Spans are drawn among the tokens that are not special; one that has special tokens in it becomes
    several. Spans for which there are no sentinels left are not hidden.
    """
    places = [place for place, token in enumerate(ids) if token not in noise.special]
    drawn = (sentinel_spans if noise.sentinels else infilled_spans)(
        len(places), noise.share, generator
    )
    spans = _no_longer([run for start, stop in drawn for run in _runs(places, start, stop)])
    read: list[int] = []
    written: list[int] = []
    done = 0
    for token, (start, stop) in zip(
        noise.marks if noise.sentinels else cycle(noise.marks), spans, strict=False
    ):
        read += [*ids[done:start], token]
        written += [token, *ids[start:stop]]
        done = stop
    read += ids[done:]
    return read, [*written, *noise.end] if noise.sentinels else list(ids)


def sentinel_spans(tokens: int, share: float, generator: torch.Generator | None = None) -> Spans:
    """Spans of span corruption in so many tokens: as many as make their mean length 3, and no two
    side by side.

    All lengths of that sum and all places are equally probable. (Raffel et al.'s code lets a span
    end where the text does, always: in a short text it would be the only one.)
    """
    if not tokens:
        return []
    hidden = min(max(round(share * tokens), 1), max(tokens - 1, 1))
    number = max(1, min(round(hidden / SPAN), tokens - hidden))
    cuts = _some(hidden - 1, number - 1, generator) + 1
    lengths = [stop - start for start, stop in pairwise([0, *cuts.tolist(), hidden])]
    return _placed(lengths, _some(tokens - hidden + 1, number, generator))


def infilled_spans(tokens: int, share: float, generator: torch.Generator | None = None) -> Spans:
    """Spans of text infilling in so many tokens: their lengths are Poisson(3), 0 too, which inserts
    a mask.

    Lengths are drawn until the share of tokens is hidden, the last one cut to that, and those of 0
    left out that would make the text longer; all places among the kept tokens are equally probable.
    """
    hidden = min(max(round(share * tokens), 1), tokens)
    lengths: list[int] = []
    while left := hidden - sum(lengths):
        length = min(int(torch.poisson(torch.tensor(float(SPAN)), generator=generator)), left)
        if length or len(lengths) < sum(lengths):
            lengths.append(length)
    number = len(lengths)
    return _placed(
        lengths, _some(tokens - hidden + number, number, generator) - torch.arange(number)
    )


def padded(rows: Sequence[Pair], pad: int) -> Batch:
    """Inputs [batch, longest] with their attention mask, and labels [batch, longest], IGNORED after
    their ends."""
    read, written = ([torch.tensor(ids) for ids in part] for part in zip(*rows, strict=True))
    there = [torch.ones_like(ids) for ids in read]
    return {
        "input_ids": pad_sequence(read, batch_first=True, padding_value=pad),
        "attention_mask": pad_sequence(there, batch_first=True),
        "labels": pad_sequence(written, batch_first=True, padding_value=IGNORED),
    }


def written_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The mean cross-entropy of what a decoder is to write, a batch's `labels`, given what its
    encoder reads."""
    loss: Tensor = model(**batch, use_cache=False).loss
    return loss.float()


def _some(total: int, number: int, generator: torch.Generator | None) -> Tensor:
    """So many different numbers below `total`, sorted."""
    return torch.randperm(total, generator=generator)[:number].sort().values


def _placed(lengths: list[int], kept: Tensor) -> Spans:
    """Spans of these lengths, so many `kept` tokens being before each [spans]."""
    before = accumulate(lengths, initial=0)
    starts = [one + other for one, other in zip(kept.tolist(), before, strict=False)]
    return [(start, start + length) for start, length in zip(starts, lengths, strict=True)]


def _no_longer(spans: Spans) -> Spans:
    """Without the last empty spans, as far as their masks would be more than the tokens that all
    spans hide."""
    empty = [number for number, (start, stop) in enumerate(spans) if start == stop]
    hidden = sum(stop - start for start, stop in spans)
    kept = hidden - (len(spans) - len(empty))  # at least 0: each of the others hides one or more
    return [span for number, span in enumerate(spans) if number not in empty[kept:]]


def _runs(places: Sequence[int], start: int, stop: int) -> Iterator[tuple[int, int]]:
    """A span of `places` as runs of neighbours; an empty one stays one, where it is."""
    if start == stop:
        at = places[start] if start < len(places) else places[-1] + 1
        yield at, at
    for _, run in groupby(enumerate(places[start:stop]), lambda pair: pair[1] - pair[0]):
        neighbours = [place for _, place in run]
        yield neighbours[0], neighbours[-1] + 1
