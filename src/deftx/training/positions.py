"""The tensors whose entries may be trained, laid end to end: each entry has a position."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

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
        return self.rows.ids[indices // width] * width + indices % width

    def untrained(self, count: int) -> Tensor:
        """The first `count` entries of the weight that are not in `target`, as flat indices."""
        if self.rows is None:
            return torch.empty(0, dtype=torch.int64)
        width = self.shape[1]
        rows = (self.rows.row_of_id < 0).nonzero().view(-1).cpu()
        first_rows = rows[: -(-count // width)]
        indices = first_rows.unsqueeze(1) * width + torch.arange(width)
        return indices.view(-1)[:count]


def laid_end_to_end(weights: Mapping[str, nn.Parameter], rows: EmbeddingRows | None) -> list[Part]:
    """All tensors, laid end to end."""
    parts = []
    start = 0
    for name, weight in weights.items():
        own_rows = rows if rows is not None and weight is rows.weight else None
        target = weight if own_rows is None else own_rows.values
        part = Part(name, target, start, tuple(weight.shape), own_rows)
        parts.append(part)
        start = part.end
    return parts


def spans_of(positions: Tensor, parts: Sequence[Part]) -> list[tuple[int, int]]:
    """Where each part's entries begin and end among positions [k], ascending."""
    bounds = torch.tensor([part.start for part in parts] + [parts[-1].end])
    ends = torch.searchsorted(positions, bounds.to(positions.device)).tolist()
    return list(pairwise(ends))


def entries_of(group: Sequence[int], spans: Sequence[tuple[int, int]]) -> slice | Tensor:
    """Where the entries of the parts in a group are: a slice, where they lie together, or indices
    [n].

    Args:
        group: The numbers of the parts, ascending.
        spans: Where each part's entries begin and end.
    """
    if len(group) == group[-1] - group[0] + 1:
        return slice(spans[group[0]][0], spans[group[-1]][1])
    return torch.cat([torch.arange(*spans[number]) for number in group])


def read_at(parts: Sequence[Part], positions: Tensor) -> Tensor:
    """The weights at positions [k], ascending, in float32."""
    entries = []
    for part, (begin, end) in zip(parts, spans_of(positions, parts), strict=True):
        indices = positions[begin:end] - part.start
        entries.append(read_entries(part.target.detach(), indices).float())
    return torch.cat(entries)


def write_at(parts: Sequence[Part], positions: Tensor, values: Tensor) -> None:
    """Put values [k] into the weights at positions [k], ascending."""
    for part, (begin, end) in zip(parts, spans_of(positions, parts), strict=True):
        indices = positions[begin:end] - part.start
        write_entries(part.target.detach(), indices, values[begin:end])
