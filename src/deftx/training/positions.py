"""The tensors whose entries may be trained, laid end to end: each entry has a position."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil

import torch
from torch import Tensor, nn

from deftx.core.entries import read_entries, write_entries
from deftx.training.embedding_rows import EmbeddingRows


@dataclass(frozen=True, eq=False)
class Part:
    """A tensor whose entries may be trained, and where it lies when all are laid end to end.

    Attributes:
        name: The name of the weight.
        target: What has a gradient: the weight itself, or the rows of an embedding.
        start: The position of its first entry.
        shape: The shape of the weight.
        rows: The embedding rows, if `target` are these.
    """

    name: str
    target: nn.Parameter
    start: int
    shape: tuple[int, ...]
    rows: EmbeddingRows | None

    @property
    def end(self) -> int:
        """The position after its last entry."""
        return self.start + self.target.numel()

    def in_weight(self, indices: Tensor) -> Tensor:
        """Flat indices [n] into `target` as flat indices into the weight."""
        if self.rows is None:
            return indices
        width = self.shape[1]
        rows = self.rows.ids[indices // width]
        columns = indices % width
        return rows * width + columns

    def untrained(self, count: int) -> Tensor:
        """The first `count` entries of the weight that are not in `target`, as flat indices."""
        if self.rows is None:
            return torch.empty(0, dtype=torch.int64)
        width = self.shape[1]
        is_untrained = self.rows.row_of_id < 0
        rows = is_untrained.nonzero().view(-1).cpu()
        rows_needed = ceil(count / width)
        starts = rows[:rows_needed] * width
        indices = starts.unsqueeze(1) + torch.arange(width)
        return indices.view(-1)[:count]


def laid_end_to_end(weights: Mapping[str, nn.Parameter], rows: EmbeddingRows | None) -> list[Part]:
    """All tensors, laid end to end."""
    parts = []
    start = 0
    for name, weight in weights.items():
        own_rows = None
        target = weight
        if rows is not None and weight is rows.weight:
            own_rows = rows
            target = rows.values
        part = Part(name, target, start, tuple(weight.shape), own_rows)
        parts.append(part)
        start = part.end
    return parts


def spans_of(positions: Tensor, parts: Sequence[Part]) -> list[tuple[int, int]]:
    """Where each part's entries begin and end among positions [k], ascending."""
    starts = [part.start for part in parts]
    bounds = torch.tensor([*starts, parts[-1].end])
    ends = torch.searchsorted(positions, bounds.to(positions.device)).tolist()
    return list(pairwise(ends))


def entries_of(group: Sequence[int], spans: Sequence[tuple[int, int]]) -> slice | Tensor:
    """Where the entries of the parts in a group are: a slice, where they lie together, or indices
    [n].

    Args:
        group: The numbers of the parts, ascending.
        spans: Where each part's entries begin and end.
    """
    first = group[0]
    last = group[-1]
    if len(group) == last - first + 1:
        begin, _ = spans[first]
        _, end = spans[last]
        return slice(begin, end)
    return torch.cat([torch.arange(*spans[number]) for number in group])


def read_at(parts: Sequence[Part], positions: Tensor) -> Tensor:
    """The weights at positions [k], ascending, in float32."""
    entries = []
    for part, (begin, end) in zip(parts, spans_of(positions, parts), strict=True):
        indices = positions[begin:end] - part.start
        values = read_entries(part.target.detach(), indices)
        entries.append(values.float())
    return torch.cat(entries)


def write_at(parts: Sequence[Part], positions: Tensor, values: Tensor) -> None:
    """Put values [k] into the weights at positions [k], ascending."""
    for part, (begin, end) in zip(parts, spans_of(positions, parts), strict=True):
        indices = positions[begin:end] - part.start
        write_entries(part.target.detach(), indices, values[begin:end])
