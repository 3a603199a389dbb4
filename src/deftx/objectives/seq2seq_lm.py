"""Denoising on plain text: how a language vector of an encoder-decoder is learnt.

The encoder reads a text in which spans are missing. The base's tokenizer tells what marks them, and
so what the decoder writes. T5 and similar models have sentinels, a different token for each span
(span corruption, Raffel et al. 2020): they write every missing span after its sentinel. BART and
similar models have a mask token (text infilling, Lewis et al. 2020): they write the whole text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, cycle, pairwise

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from deftx.config import LanguageTrainingConfig
from deftx.errors import DeftxError
from deftx.objectives.base import IGNORED, Batch, labelled_tokens
from deftx.objectives.packing import digest, pack_into_blocks

MEAN_SPAN_LENGTH = 3  # tokens, in both papers
SENTINELS = ("▁<extra_id_{}>", "<extra_id_{}>")  # as mT5's tokenizer spells them, and as T5's does

Spans = list[tuple[int, int]]  # first token of each, and the one after its last
Pair = tuple[list[int], list[int]]  # what is read, and what is to be written


@dataclass(frozen=True)
class Noise:
    """How spans of a text are hidden.

    Attributes:
        share: The share of tokens that are hidden.
        special: Ids that are never hidden.
        marks: Ids that stand for the spans: the sentinels in their order, or the mask token.
        sentinels: Whether they are sentinels.
        end: Ids that are written after the last span.
        pad: The id that fills rows of a batch.
    """

    share: float
    special: frozenset[int]
    marks: tuple[int, ...]
    sentinels: bool
    end: tuple[int, ...]
    pad: int


@dataclass(frozen=True, eq=False)
class Seq2SeqLM:
    """Packed text, and the loss on its hidden spans, or on all of it.

    Attributes:
        train: [blocks, length] int64, corrupted differently each time a block is seen.
        held_out: Other blocks, corrupted once.
        noise: How blocks are corrupted.
        digest: A fingerprint of the blocks.
    """

    train: Tensor
    held_out: list[Pair]
    noise: Noise
    digest: str

    metric = "loss"
    greater_is_better = False

    @property
    def vocabulary_used(self) -> Tensor:
        """All ids that the encoder can read in a training batch [n], except padding."""
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
        """The mean loss over all tokens to write of the held-out text, in nats.

        Logits of all these tokens take most of the memory, so that a batch is a quarter of
        `batch_size`.
        """
        device = next(model.parameters()).device
        rows_per_batch = max(1, batch_size // 4)
        total = 0.0
        tokens = 0
        for start in range(0, len(self.held_out), rows_per_batch):
            rows = self.held_out[start : start + rows_per_batch]
            batch = padded(rows, self.noise.pad)
            batch = {name: part.to(device) for name, part in batch.items()}
            written = sum(len(labels) for _, labels in rows)
            total += written * float(written_loss(model, batch))
            tokens += written
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
    """The objective of an encoder-decoder.

    Args:
        texts: Lines of text.
        tokenizer: The base's tokenizer.
        training: Says how much of a text is hidden, and how much text is held out.
        length: The tokens of a block.
        seed: Shuffles the lines, and corrupts the held-out text.
        held_out: Lines that are held out, instead of some of `texts`.

    Raises:
        DeftxError: The tokenizer has neither sentinels nor a mask token; and as `pack_into_blocks`
            does.
    """
    noise = noise_of(tokenizer, training.mask)
    generator = torch.Generator().manual_seed(seed)
    train, valid = pack_into_blocks(
        texts, tokenizer, training, length, generator, held_out=held_out
    )
    corrupted_blocks = [corrupted(block, noise, generator) for block in valid.tolist()]
    return Seq2SeqLM(train, corrupted_blocks, noise, digest(train, valid))


def noise_of(tokenizer: PreTrainedTokenizerBase, share: float) -> Noise:
    """The noise that a base was pretrained with.

    Raises:
        DeftxError: Its tokenizer has neither sentinels nor a mask token.
    """
    marks = _sentinels_of(tokenizer)
    has_sentinels = bool(marks)
    if not has_sentinels and tokenizer.mask_token_id is not None:
        marks = (tokenizer.mask_token_id,)
    pad = tokenizer.pad_token_id
    if pad is None or not marks:
        raise DeftxError(
            "the base's tokenizer has neither sentinels nor a mask token: "
            "give a base such as mT5 or BART"
        )
    end = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    special = set(tokenizer.all_special_ids)
    if has_sentinels:
        special.update(marks)
    return Noise(share, frozenset(special), marks, has_sentinels, end, pad)


def _sentinels_of(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The ids of a tokenizer's sentinels, numbered from 0 without a gap; none if it has none."""
    vocabulary = tokenizer.get_vocab()
    for template in SENTINELS:
        sentinels = []
        for number in count():
            name = template.format(number)
            if name not in vocabulary:
                break
            sentinels.append(vocabulary[name])
        if sentinels:
            return tuple(sentinels)
    return ()


def corrupted(ids: Sequence[int], noise: Noise, generator: torch.Generator | None = None) -> Pair:
    """Hide spans of a text.

    Spans are drawn among the tokens that are not special; a span with special tokens in it becomes
    several. Spans for which no sentinel is left are not hidden.

    Returns:
        The ids to read and the ids to write.
    """
    # Draw spans of positions among the tokens that are not special
    positions = [position for position, token in enumerate(ids) if token not in noise.special]
    draw_spans = sentinel_spans if noise.sentinels else infilled_spans
    spans: Spans = []
    for start, stop in draw_spans(len(positions), noise.share, generator):
        spans.extend(_runs(positions, start, stop))
    spans = _no_longer(spans)

    # Replace them by their marks
    marks = noise.marks if noise.sentinels else cycle(noise.marks)
    read: list[int] = []
    written: list[int] = []
    done = 0
    for mark, (start, stop) in zip(marks, spans, strict=False):
        read += [*ids[done:start], mark]
        written += [mark, *ids[start:stop]]
        done = stop
    read += ids[done:]
    if not noise.sentinels:
        return read, list(ids)
    return read, [*written, *noise.end]


def sentinel_spans(tokens: int, share: float, generator: torch.Generator | None = None) -> Spans:
    """Draw spans for span corruption.

    As many spans as make their mean length 3, no two of them side by side. All lengths of that sum
    and all positions are equally probable. (In Raffel et al.'s code the last span always ends where
    the text does: in a short text it would be the only one.)

    Args:
        tokens: The tokens of the text.
        share: The share of them that is hidden.
        generator: Draws the spans; None: torch's own.
    """
    if not tokens:
        return []
    hidden = max(round(share * tokens), 1)
    hidden = min(hidden, max(tokens - 1, 1))
    kept = tokens - hidden
    number = max(1, min(round(hidden / MEAN_SPAN_LENGTH), kept))

    # Cut the hidden tokens into spans, and choose the gaps between kept tokens where these go
    cuts = _draw_sorted(hidden - 1, number - 1, generator) + 1
    lengths = [stop - start for start, stop in pairwise([0, *cuts.tolist(), hidden])]
    gaps = _draw_sorted(kept + 1, number, generator)
    return _placed(lengths, gaps)


def infilled_spans(tokens: int, share: float, generator: torch.Generator | None = None) -> Spans:
    """Draw spans for text infilling.

    Lengths are Poisson(3), also 0, which inserts a mask. They are drawn until the share of tokens
    is hidden; the last one is cut to that, and spans of length 0 that would make the text longer
    are left out. All positions among the kept tokens are equally probable.

    Args:
        tokens: The tokens of the text.
        share: The share of them that is hidden.
        generator: Draws the spans; None: torch's own.
    """
    hidden = min(max(round(share * tokens), 1), tokens)
    mean = torch.tensor(float(MEAN_SPAN_LENGTH))
    lengths: list[int] = []
    remaining = hidden
    while remaining:
        length = min(int(torch.poisson(mean, generator=generator)), remaining)
        hidden_so_far = hidden - remaining
        if length or len(lengths) < hidden_so_far:
            lengths.append(length)
            remaining -= length

    # Several spans may go into the same gap between kept tokens
    number = len(lengths)
    gaps = _draw_sorted(tokens - hidden + number, number, generator) - torch.arange(number)
    return _placed(lengths, gaps)


def padded(rows: Sequence[Pair], pad: int) -> Batch:
    """A batch of texts: inputs [batch, longest] with their attention mask, and labels [batch,
    longest], IGNORED after their ends."""
    read = [torch.tensor(read_ids) for read_ids, _ in rows]
    written = [torch.tensor(written_ids) for _, written_ids in rows]
    masks = [torch.ones_like(ids) for ids in read]
    return {
        "input_ids": pad_sequence(read, batch_first=True, padding_value=pad),
        "attention_mask": pad_sequence(masks, batch_first=True),
        "labels": pad_sequence(written, batch_first=True, padding_value=IGNORED),
    }


def written_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The mean cross-entropy of what a decoder is to write, a batch's `labels`, given what its
    encoder reads."""
    loss: Tensor = model(**batch, use_cache=False).loss
    return loss.float()


def _draw_sorted(total: int, number: int, generator: torch.Generator | None) -> Tensor:
    """So many different numbers below `total`, sorted [number]."""
    return torch.randperm(total, generator=generator)[:number].sort().values


def _placed(lengths: list[int], gaps: Tensor) -> Spans:
    """Spans of these lengths.

    Args:
        lengths: The length of each span.
        gaps: How many kept tokens are before each span [spans].
    """
    spans = []
    hidden_before = 0
    for length, kept_before in zip(lengths, gaps.tolist(), strict=True):
        start = kept_before + hidden_before
        spans.append((start, start + length))
        hidden_before += length
    return spans


def _no_longer(spans: Spans) -> Spans:
    """The spans without the last empty ones whose masks would make the text longer: no more masks
    than tokens that all spans hide."""
    empty = [number for number, (start, stop) in enumerate(spans) if start == stop]
    hidden = sum(stop - start for start, stop in spans)
    full = len(spans) - len(empty)
    max_empty = hidden - full  # at least 0: each of the full spans hides one token or more
    left_out = set(empty[max_empty:])
    return [span for number, span in enumerate(spans) if number not in left_out]


def _runs(positions: Sequence[int], start: int, stop: int) -> Iterator[tuple[int, int]]:
    """A span of `positions` as runs of neighbouring tokens; an empty span stays one, where it
    is."""
    if start == stop:
        at = positions[start] if start < len(positions) else positions[-1] + 1
        yield at, at
        return
    first = positions[start]
    last = first
    for position in positions[start + 1 : stop]:
        if position != last + 1:
            yield first, last + 1
            first = position
        last = position
    yield first, last + 1
