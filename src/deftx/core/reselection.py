"""Choosing entries again while they are trained (SpIEL, Ansell, Vulić, Sterz, Korhonen and Ponti
2024).

From time to time the entries that moved least are dropped, and as many others are grown:

    spiel-ag     those whose gradients, added up over some steps, are largest
    spiel-ma     those whose gradients are estimated to be largest, from row-wise and column-wise
                 maxima, as SM3 (Anil et al. 2019) keeps them for the entries that are trained
    spiel-deftx  as spiel-ag, but gradients and movements are denoised before they are compared

An entry is named here by its position: its flat index in all tensors laid end to end. Of entries
that tie, the first ones win.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from deftx.core.select import CHUNK, largest_mask


@dataclass(frozen=True)
class Reselection:
    """How a method chooses.

    Attributes:
        estimates: Whether gradients are estimated by SM3; else they are added up.
        denoises: Whether matrices are denoised before their entries are compared.
    """

    estimates: bool = False
    denoises: bool = False


# Method -> how it chooses.
RESELECTIONS = {
    "spiel-ag": Reselection(),
    "spiel-ma": Reselection(estimates=True),
    "spiel-deftx": Reselection(denoises=True),
}


@dataclass(frozen=True, eq=False)
class Candidates:
    """Entries that may be grown.

    Attributes:
        positions: Where they are [c] int64, ascending.
        scores: How much speaks for each [c]; 0: nothing.
        mean: The mean gradient of each [c].
        mean_square: The mean squared gradient of each [c].
    """

    positions: Tensor
    scores: Tensor
    mean: Tensor
    mean_square: Tensor

    def at(self, chosen: Tensor) -> "Candidates":
        """Those that a mask [c] says."""
        parts = (self.positions, self.scores, self.mean, self.mean_square)
        return Candidates(*(part[chosen] for part in parts))


class CandidatePool:
    """The `capacity` entries largest in magnitude of tensors that come one after the other.

    It holds about twice as many entries as its capacity, whatever the size of the tensors. Entries
    of 0 and NaN are never among them.

    Args:
        capacity: How many entries are kept.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.parts: list[tuple[Tensor, Tensor, Tensor]] = []
        self.count = 0
        self.least = 0.0  # what an entry must reach, once there are enough

    def add(self, start: int, scores: Tensor, values: Tensor) -> None:
        """Let the entries of a tensor compete.

        Args:
            start: The position of the tensor's first entry.
            scores: What they are compared by [n].
            values: What is kept of each [n].
        """
        if self.capacity == 0:
            return
        for begin in range(0, len(scores), CHUNK):
            magnitudes = scores[begin : begin + CHUNK].abs()
            is_reaching = (magnitudes > 0) & (magnitudes >= self.least)
            reaching = is_reaching.nonzero().view(-1)
            if len(reaching) == 0:
                continue
            kept_values = values[begin : begin + CHUNK][reaching]
            self.parts.append((reaching + (start + begin), magnitudes[reaching], kept_values))
            self.count += len(reaching)
            if self.count > 2 * self.capacity:
                self._reduce()

    def result(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """The positions, ascending, magnitudes and values of the largest; None without any."""
        if not self.parts:
            return None
        self._reduce()
        return self.parts[0]

    def _reduce(self) -> None:
        """Keep no more than the capacity."""
        positions, magnitudes, values = (
            torch.cat(parts) for parts in zip(*self.parts, strict=True)
        )
        order = positions.argsort()  # the order that decides ties
        order = order[largest_mask(magnitudes[order], self.capacity)]
        self.parts = [(positions[order], magnitudes[order], values[order])]
        self.count = len(order)
        if self.count == self.capacity:
            self.least = float(self.parts[0][1].min())


def exchange(
    movements: Tensor, positions: Tensor, count: int, candidates: Candidates
) -> tuple[Tensor, Tensor]:
    """Which entries stay and which candidates take the place of the others.

    Of the `count` entries that moved least, those that are among the best `count` candidates stay.
    Where too few candidates have a score above 0, fewer entries are replaced.

    Args:
        movements: How far the current entries moved, or what stands for it [k].
        positions: Where they are [k], ascending.
        count: How many are to be replaced, at most.
        candidates: Entries that may be grown; current ones may be among them.

    Returns:
        Masks of the entries that stay [k] and of the candidates that are new [c]; as many are new
        as do not stay.
    """
    strengths = movements.abs().nan_to_num(nan=torch.inf)
    stays = largest_mask(strengths, len(strengths) - count)
    if count == 0 or len(candidates.positions) == 0:
        return torch.ones_like(stays), torch.zeros_like(candidates.positions, dtype=torch.bool)

    # The best candidates among those that are not sure to stay
    number = torch.searchsorted(positions, candidates.positions).clamp_max(len(positions) - 1)
    is_current = positions[number] == candidates.positions
    scores = candidates.scores.nan_to_num(nan=0.0)
    is_eligible = (scores > 0) & ~(is_current & stays[number])
    eligible = is_eligible.nonzero().view(-1)
    best = eligible[largest_mask(scores[eligible], min(count, len(eligible)))]
    is_chosen = torch.zeros_like(is_current)
    is_chosen[best] = True

    # Current ones that are chosen again stay; and those of the others for which no new one is there
    stays[number[is_chosen & is_current]] = True
    is_new = is_chosen & ~is_current
    leaving = (~stays).nonzero().view(-1)
    surplus = len(leaving) - int(is_new.sum())
    stays[leaving[largest_mask(strengths[leaving], surplus)]] = True
    return stays, is_new


def sm3_update(
    row_maxima: Tensor, column_maxima: Tensor, indices: Tensor, gradients: Tensor
) -> None:
    """Let SM3's maxima of a matrix take in a step's gradients of some entries, in place.

    ν = min(row, column) + gradient², of which every row and column keeps the largest.

    Args:
        row_maxima: Of each row [m].
        column_maxima: Of each column [n].
        indices: Flat indices of the entries [k].
        gradients: Their gradients [k].
    """
    rows = indices // len(column_maxima)
    columns = indices % len(column_maxima)
    sums = torch.minimum(row_maxima[rows], column_maxima[columns]) + gradients.square()
    row_maxima.scatter_reduce_(0, rows, sums, "amax")
    column_maxima.scatter_reduce_(0, columns, sums, "amax")
