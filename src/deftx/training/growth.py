"""What says which entries SpIEL grows: gradients that are added up, or estimates of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from deftx.core.entries import read_entries
from deftx.core.reselection import CandidatePool, Candidates, sm3_update
from deftx.core.select import CHUNK
from deftx.training.positions import Part, entries_of, spans_of

Denoise = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Trained:
    """The entries that are trained at the moment.

    Attributes:
        positions: Where they are [k], ascending.
        spans: Where each part's entries begin and end among them.
        gradient: Their gradients [k] in the step that is under way, clipped.
    """

    positions: Tensor
    spans: Sequence[tuple[int, int]]
    gradient: Tensor | None


class Growth(Protocol):
    """What says which entries are grown.

    Attributes:
        buffers: Tensors that a training which resumes needs.
    """

    buffers: list[Tensor]

    def begin_step(self, number: int, window: int) -> None:
        """Get ready for a step: the `number`-th, from 0, since a window began."""

    def observe(self, number: int, gradient: Tensor) -> None:
        """See the dense gradient of a batch, of the part of that number."""

    def restore(self) -> None:
        """Bring all else up to date after `buffers` were set from outside."""

    def end_step(self, trained: Trained, clipping: Tensor) -> None:
        """Take in what a step has shown; `clipping` is what its gradient was multiplied by."""

    def candidates(self, group: int, count: int, trained: Trained, done: int) -> Candidates:
        """What may be grown in a group, of which `count` are wanted, after `done` steps."""


class AddedGradients:
    """SpIEL-AG: the candidates are the entries with the largest gradients in the first batch of a
    window, as many as are trained; their gradients are added up over the window.

    Args:
        parts: All tensors.
        groups: The numbers of the parts that compete.
        sizes: How many entries of each group are trained.
        denoise: What is done to a gradient before its largest entries are taken.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        groups: Sequence[Sequence[int]],
        sizes: Sequence[int],
        denoise: Denoise | None,
    ) -> None:
        self.parts = parts
        self.groups = groups
        self.sizes = sizes
        self.denoise = denoise
        self.group_of: dict[int, int] = {}
        for number, group in enumerate(groups):
            self.group_of |= dict.fromkeys(group, number)

        # The candidates' positions, filled up with -1s, and what is added up of each
        k = sum(sizes)
        device = parts[0].target.device
        self.positions = torch.full((k,), -1, device=device)
        self.sums = torch.zeros(k, device=device)
        self.squares = torch.zeros(k, device=device)
        self.window = torch.zeros((), dtype=torch.int64)  # steps that are added up
        self.buffers = [self.positions, self.sums, self.squares, self.window]

        # Of the step that is under way
        self.is_watching = False
        self.is_searching = False
        self.seen: set[int] = set()
        self.pools: list[CandidatePool] = []
        self.step_gradients = self.sums[:0]
        self.restore()

    def restore(self) -> None:
        """Find out again where each part's candidates are."""
        self.count = int((self.positions >= 0).sum())
        self.spans = spans_of(self.positions[: self.count], self.parts)

    def begin_step(self, number: int, window: int) -> None:
        """In the first step of a window, look for candidates; then add their gradients up."""
        self.is_watching = number < window
        self.is_searching = number == 0
        if self.is_searching:
            self.seen.clear()
            self.pools = [CandidatePool(size) for size in self.sizes]
            for buffer in self.buffers:
                buffer.zero_()
        elif self.is_watching:
            self.step_gradients = torch.zeros_like(self.sums[: self.count])

    def observe(self, number: int, gradient: Tensor) -> None:
        """Let all entries of a first batch compete; of another, take the candidates' gradients."""
        if not self.is_watching:
            return
        part = self.parts[number]
        if self.is_searching and number not in self.seen:
            self.seen.add(number)
            scores = gradient if self.denoise is None else self.denoise(gradient)
            pool = self.pools[self.group_of[number]]
            pool.add(part.start, scores.reshape(-1), gradient.reshape(-1))
            return
        if self.is_searching:  # the first batch is over
            self._settle()
        begin, end = self.spans[number]
        indices = self.positions[begin:end] - part.start
        self.step_gradients[begin:end] += read_entries(gradient, indices)

    def _settle(self) -> None:
        """Make those that won in the first batch the candidates."""
        self.is_searching = False
        results = [pool.result() for pool in self.pools]
        self.pools = []
        won = [result for result in results if result is not None]
        self.positions.fill_(-1)
        if won:
            positions = torch.cat([positions for positions, _, _ in won])
            gradients = torch.cat([gradients for _, _, gradients in won])
            order = positions.argsort()
            self.positions[: len(order)] = positions[order]
            self.step_gradients = gradients[order].float()
        else:
            self.step_gradients = self.sums[:0]
        self.restore()

    def end_step(self, trained: Trained, clipping: Tensor) -> None:
        """Add a step's gradients, clipped as those of the trained entries were."""
        if not self.is_watching:
            return
        if self.is_searching:
            self._settle()
        clipped = self.step_gradients * clipping
        self.sums[: self.count] += clipped
        self.squares[: self.count] += clipped.square()
        self.window += 1
        self.is_watching = False

    def candidates(self, group: int, count: int, trained: Trained, done: int) -> Candidates:
        """Those of a group, by the magnitude of the sum of their gradients."""
        own = entries_of(self.groups[group], self.spans)
        sums = self.sums[own]
        squares = self.squares[own]
        steps = int(self.window)
        return Candidates(self.positions[own], sums.abs(), sums / steps, squares / steps)


class Estimates:
    """SpIEL-MA: gradients of entries that are not trained are estimated from those that are, by
    SM3's maxima of each row and each column: the root of their product.

    Args:
        parts: All tensors; without matrices among them nothing is grown.
        groups: The numbers of the parts that compete, all of them matrices.
    """

    def __init__(self, parts: Sequence[Part], groups: Sequence[Sequence[int]]) -> None:
        self.parts = parts
        self.groups = groups
        self.maxima: dict[int, tuple[Tensor, Tensor]] = {}
        self.buffers: list[Tensor] = []
        for group in groups:
            for number in group:
                target = parts[number].target
                rows, columns = target.shape
                row_maxima = torch.zeros(rows, device=target.device)
                column_maxima = torch.zeros(columns, device=target.device)
                self.maxima[number] = (row_maxima, column_maxima)
                self.buffers += [row_maxima, column_maxima]

    def begin_step(self, number: int, window: int) -> None:
        """Nothing: all steps count."""

    def observe(self, number: int, gradient: Tensor) -> None:
        """Nothing: only the gradients of the trained entries count."""

    def restore(self) -> None:
        """Nothing: there is nothing but `buffers`."""

    def end_step(self, trained: Trained, clipping: Tensor) -> None:
        """Let the maxima take in the gradients of the trained entries."""
        gradient = trained.gradient
        if gradient is None:
            return
        for number, (row_maxima, column_maxima) in self.maxima.items():
            begin, end = trained.spans[number]
            indices = trained.positions[begin:end] - self.parts[number].start
            sm3_update(row_maxima, column_maxima, indices, gradient[begin:end])

    def candidates(self, group: int, count: int, trained: Trained, done: int) -> Candidates:
        """The `count` entries of a group with the largest estimates, of those not trained."""
        pool = CandidatePool(count)
        for number in self.groups[group]:
            self._add_to_pool(pool, number, trained)
        result = pool.result()
        if result is None:
            none = torch.empty(0, device=trained.positions.device)
            return Candidates(trained.positions[:0], none, none, none)
        positions, estimates, least = result
        return Candidates(positions, estimates, torch.zeros_like(least), least / done)

    def _add_to_pool(self, pool: CandidatePool, number: int, trained: Trained) -> None:
        """Let the entries of a part compete that are not trained, some rows at a time."""
        part = self.parts[number]
        begin, end = trained.spans[number]
        trained_indices = trained.positions[begin:end] - part.start
        row_maxima, column_maxima = self.maxima[number]
        width = len(column_maxima)
        rows_at_once = max(1, CHUNK // width)
        for first_row in range(0, len(row_maxima), rows_at_once):
            rows = row_maxima[first_row : first_row + rows_at_once]
            estimates = torch.outer(rows.sqrt(), column_maxima.sqrt()).view(-1)
            least = torch.minimum(rows.unsqueeze(1), column_maxima).view(-1)

            # Those that are trained already do not compete
            first = first_row * width
            indices = trained_indices - first
            is_here = (indices >= 0) & (indices < len(estimates))
            estimates[indices[is_here]] = 0
            pool.add(part.start + first, estimates, least)
