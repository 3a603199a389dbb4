"""Sparse tuning whose entries are chosen while they are trained (SpIEL, Ansell et al. 2024).

As in `deftx.training.sparse`, k values are trained, and at most one dense gradient exists at a
time: it is dropped as soon as its entries are gathered. The entries begin at random, each tensor
having its part of k by its size. In the steps before a reselection, a dense gradient also says
which entries are candidates and how large their gradients are, or what SM3 keeps of them. Then the
entries that moved least go back to the weight that they had at the start, and candidates take
their place, with moments of AdamW that fit the gradients which they were chosen for. So memory goes
with k: there is neither a dense difference nor a dense moment.

Embedding rows that the data do not use are left out, as their entries cannot move.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from deftx.config import VectorConfig
from deftx.core.denoise import denoise_matrix
from deftx.core.entries import read_entries, write_entries
from deftx.core.parameters import ParameterGroups
from deftx.core.ranks import is_matrix, rank_rule
from deftx.core.reselection import (
    RESELECTIONS,
    CandidatePool,
    Candidates,
    exchange,
    sm3_update,
)
from deftx.core.select import CHUNK, SPLITS, parse_k, shares_of
from deftx.core.vector import SparseTensor, SparseVector
from deftx.errors import DeftxError
from deftx.models.limits import rank_on
from deftx.training import distributed
from deftx.training.embedding_rows import EmbeddingRows, trainable_embedding_rows
from deftx.training.random_streams import generator

Denoise = Callable[[Tensor], Tensor]


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


class ReselectedTuning:
    """A model some of whose entries are trained, and chosen meanwhile; made by
    `reselected_tuning`.

    Attributes:
        values: The trained values [k], in float32.
        start: What these entries were at the beginning [k].
        positions: Where they are [k], ascending.
        growth: What says which entries are grown.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        settings: VectorConfig,
        k: int,
        steps: int,
        denoise: Denoise | None,
    ) -> None:
        self.parts = parts
        self.schedule = settings.reselection
        self.steps = steps
        self.k = k
        self.denoise = denoise

        # The entries to begin with, as many of each tensor as its size says
        sizes = [part.target.numel() for part in parts]
        counts = shares_of(min(k, sum(sizes)), sizes)
        drawn = generator(settings.seed, "entries")
        chosen = []
        for part, size, count in zip(parts, sizes, counts, strict=True):
            indices = torch.randperm(size, generator=drawn, dtype=torch.int32)[:count]
            chosen.append(indices.long().sort().values + part.start)
        self.positions = torch.cat(chosen).to(parts[0].target.device)
        self.spans = spans_of(self.positions, parts)
        self.start = self._read(self.positions)
        self.values = nn.Parameter(self.start.clone())
        self._written = self.positions.clone()  # the entries whose values are in the weights

        # The tensors that compete, and what says which entries are grown
        estimates = RESELECTIONS[settings.method].estimates
        by_group: dict[str, list[int]] = {}
        for number, part in enumerate(parts):
            if estimates and not is_matrix(part.target):
                continue  # nothing can be said of entries without rows and columns: they stay
            by_group.setdefault(SPLITS[settings.split](part.name), []).append(number)
        self.groups = list(by_group.values())
        sizes_of_groups = [sum(counts[number] for number in group) for group in self.groups]
        self.growth: Growth
        if estimates:
            self.growth = Estimates(parts, self.groups)
        else:
            self.growth = AddedGradients(parts, self.groups, sizes_of_groups, denoise)

    def before_step(self, step: int) -> None:
        """Get ready for a step, counted from 0."""
        self.growth.begin_step(step % self.schedule.every, self.schedule.window)

    def after_step(self, done: int, optimizer: torch.optim.Optimizer, clipping: Tensor) -> None:
        """Write the values that the optimiser has changed, and replace entries when it is time.

        Args:
            done: How many steps are done.
            optimizer: Of the values, whose gradient is still there.
            clipping: What the gradient was multiplied by to clip it.
        """
        self.write()
        self.growth.end_step(self, clipping)
        since_first = done - self.schedule.window
        if since_first < 0 or since_first % self.schedule.every != 0 or done == self.steps:
            return
        share = 1.0
        if since_first > 0:
            share = self.schedule.share * (1 - done / self.steps)
        self._reselect(share, done, optimizer)

    @torch.no_grad()
    def restore(self) -> None:
        """Bring all else up to date after values, positions and what `growth` keeps were set from
        outside."""
        self._write_at(self._written, self.start)
        self._written.copy_(self.positions)
        self.spans = spans_of(self.positions, self.parts)
        self.start.copy_(self._read(self.positions))
        self.write()
        self.growth.restore()

    def write(self) -> None:
        """Put the values into the model's weights."""
        self._write_at(self.positions, self.values.detach())

    def vector(self) -> SparseVector:
        """How far the entries have moved so far, φ = θ − θ0, as a float32 vector of exactly k
        entries on the CPU. Where fewer can move, others are among them, with 0."""
        change = (self.values.detach() - self.start).cpu()
        missing = self.k - len(change)
        tensors = {}
        for part, (begin, end) in zip(self.parts, self.spans, strict=True):
            indices = part.in_weight(self.positions[begin:end] - part.start).cpu()
            values = change[begin:end]
            others = part.untrained(missing)
            missing -= len(others)
            indices, order = torch.cat([indices, others]).sort()
            values = torch.cat([values, torch.zeros(len(others))])[order]
            tensors[part.name] = SparseTensor(indices, values, part.shape)
        return SparseVector(tensors)

    def gather(self, target: nn.Parameter, number: int) -> None:
        """Move the entries of a part's fresh gradient into that of the values, show it to `growth`,
        and drop it."""
        assert target.grad is not None
        gradient = target.grad.detach()
        target.grad = None
        if self.values.grad is None:
            self.values.grad = torch.zeros_like(self.values)
        begin, end = self.spans[number]
        indices = self.positions[begin:end] - self.parts[number].start
        self.values.grad[begin:end] += read_entries(gradient, indices)
        self.growth.observe(number, gradient)

    @torch.no_grad()
    def _reselect(self, share: float, done: int, optimizer: torch.optim.Optimizer) -> None:
        """Replace a share of the entries of each group."""
        movements = self._movements()
        stays = torch.ones_like(self.positions, dtype=torch.bool)
        grown = []
        for number, group in enumerate(self.groups):
            own = torch.cat([torch.arange(*self.spans[part]) for part in group])
            own = own.to(self.positions.device)
            count = int(share * len(own))
            candidates = self.growth.candidates(number, count, self, done)
            stays[own], is_new = exchange(movements[own], self.positions[own], count, candidates)
            grown.append(candidates.at(is_new))
        self._replace(stays, grown, optimizer)

    def _movements(self) -> Tensor:
        """How far each entry has moved [k], denoised where that is asked for."""
        change = self.values.detach() - self.start
        if self.denoise is None:
            return change
        for part, (begin, end) in zip(self.parts, self.spans, strict=True):
            if is_matrix(part.target):
                indices = self.positions[begin:end] - part.start
                dense = torch.zeros(part.target.shape, device=change.device)
                write_entries(dense, indices, change[begin:end])
                change[begin:end] = read_entries(self.denoise(dense), indices)
        return change

    def _replace(
        self, stays: Tensor, grown: Sequence[Candidates], optimizer: torch.optim.Optimizer
    ) -> None:
        """Put entries back that do not stay, and let others take their place."""
        if sum(len(candidates.positions) for candidates in grown) == 0:
            return
        new = torch.cat([candidates.positions for candidates in grown])
        self._write_at(self.positions, torch.where(stays, self.values.detach(), self.start))
        order = torch.cat([self.positions[stays], new]).argsort()

        def put(entries: Tensor, of_new: Tensor) -> None:
            entries.copy_(torch.cat([entries[stays], of_new.to(entries.dtype)])[order])

        put(self.positions, new)
        self._written.copy_(self.positions)
        self.spans = spans_of(self.positions, self.parts)
        at_start = self._read(self.positions)  # true of the new ones
        is_new = order >= int(stays.sum())
        put(self.start, self.start.new_zeros(len(new)))
        put(self.values, self.start.new_zeros(len(new)))
        self.start[is_new] = at_start[is_new]
        self.values[is_new] = at_start[is_new]

        # Moments of AdamW which, as it corrects them, are the mean gradient and mean square
        state = optimizer.state[self.values]
        betas = optimizer.param_groups[0]["betas"]
        correction, square_correction = (1 - beta ** float(state["step"]) for beta in betas)
        mean = torch.cat([candidates.mean for candidates in grown])
        mean_square = torch.cat([candidates.mean_square for candidates in grown])
        put(state["exp_avg"], mean * correction)
        put(state["exp_avg_sq"], mean_square * square_correction)

    def _read(self, positions: Tensor) -> Tensor:
        """The weights at positions [k], ascending, in float32."""
        entries = []
        for part, (begin, end) in zip(self.parts, spans_of(positions, self.parts), strict=True):
            indices = positions[begin:end] - part.start
            entries.append(read_entries(part.target.detach(), indices).float())
        return torch.cat(entries)

    def _write_at(self, positions: Tensor, values: Tensor) -> None:
        """Put values [k] into the weights at positions [k], ascending."""
        for part, (begin, end) in zip(self.parts, spans_of(positions, self.parts), strict=True):
            indices = positions[begin:end] - part.start
            write_entries(part.target.detach(), indices, values[begin:end])


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

    def end_step(self, tuning: ReselectedTuning, clipping: Tensor) -> None:
        """Take in what a step has shown; `clipping` is what its gradient was multiplied by."""

    def candidates(self, group: int, count: int, tuning: ReselectedTuning, done: int) -> Candidates:
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
        self.group_of = {part: number for number, group in enumerate(groups) for part in group}
        device = parts[0].target.device
        self.positions = torch.full((sum(sizes),), -1, device=device)  # then -1s
        self.sums = torch.zeros(sum(sizes), device=device)
        self.squares = torch.zeros(sum(sizes), device=device)
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

    def end_step(self, tuning: ReselectedTuning, clipping: Tensor) -> None:
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

    def candidates(self, group: int, count: int, tuning: ReselectedTuning, done: int) -> Candidates:
        """Those of a group, by the magnitude of the sum of their gradients."""
        own = torch.cat([torch.arange(*self.spans[number]) for number in self.groups[group]])
        own = own.to(self.positions.device)
        steps = int(self.window)
        sums = self.sums[own]
        return Candidates(self.positions[own], sums.abs(), sums / steps, self.squares[own] / steps)


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
        for group in groups:
            for number in group:
                target = parts[number].target
                sides = (torch.zeros(size, device=target.device) for size in target.shape)
                row_maxima, column_maxima = sides
                self.maxima[number] = (row_maxima, column_maxima)
        self.buffers = [side for sides in self.maxima.values() for side in sides]

    def begin_step(self, number: int, window: int) -> None:
        """Nothing: all steps count."""

    def observe(self, number: int, gradient: Tensor) -> None:
        """Nothing: only the gradients of the trained entries count."""

    def restore(self) -> None:
        """Nothing: there is nothing but `buffers`."""

    def end_step(self, tuning: ReselectedTuning, clipping: Tensor) -> None:
        """Let the maxima take in the gradients of the trained entries."""
        gradient = tuning.values.grad
        if gradient is None:
            return
        for number, (row_maxima, column_maxima) in self.maxima.items():
            begin, end = tuning.spans[number]
            indices = tuning.positions[begin:end] - self.parts[number].start
            sm3_update(row_maxima, column_maxima, indices, gradient[begin:end])

    def candidates(self, group: int, count: int, tuning: ReselectedTuning, done: int) -> Candidates:
        """The `count` entries of a group with the largest estimates, of those not trained."""
        pool = CandidatePool(count)
        for number in self.groups[group]:
            part = self.parts[number]
            begin, end = tuning.spans[number]
            trained = tuning.positions[begin:end] - part.start
            row_maxima, column_maxima = self.maxima[number]
            width = len(column_maxima)
            rows_at_once = max(1, CHUNK // width)
            for first_row in range(0, len(row_maxima), rows_at_once):
                rows = row_maxima[first_row : first_row + rows_at_once]
                estimates = torch.outer(rows.sqrt(), column_maxima.sqrt()).view(-1)
                least = torch.minimum(rows.unsqueeze(1), column_maxima).view(-1)
                inside = trained - first_row * width
                estimates[inside[(inside >= 0) & (inside < len(estimates))]] = 0
                pool.add(part.start + first_row * width, estimates, least)
        result = pool.result()
        if result is None:
            none = tuning.values.detach()[:0]
            return Candidates(tuning.positions[:0], none, none, none)
        positions, estimates, least = result
        return Candidates(positions, estimates, torch.zeros_like(least), least / done)


def spans_of(positions: Tensor, parts: Sequence[Part]) -> list[tuple[int, int]]:
    """Where each part's entries begin and end among positions [k], ascending."""
    bounds = torch.tensor([part.start for part in parts] + [parts[-1].end])
    ends = torch.searchsorted(positions, bounds.to(positions.device)).tolist()
    return list(pairwise(ends))


def check_reselection(settings: VectorConfig, steps: int) -> None:
    """Raise DeftxError for what does not go together with choosing entries again and again."""
    method = settings.method
    distributed.refuse_several_processes(f"method {method}")
    if settings.training.average > 1:
        raise DeftxError(
            f"method {method} with training.average = {settings.training.average}: states of"
            " other entries have no mean of k entries; set training.average = 1"
        )
    window = settings.reselection.window
    if window >= steps:
        raise DeftxError(
            f"reselection.window = {window} steps, but the training has {steps}: set it below"
        )


@contextmanager
def reselected_tuning(
    model: PreTrainedModel,
    groups: ParameterGroups,
    vocabulary_used: Tensor,
    settings: VectorConfig,
    steps: int,
) -> Iterator[ReselectedTuning]:
    """Within the block, k entries of the model's backbone are trained, chosen as `settings.method`
    says. On leaving, the model keeps what was learnt.

    Args:
        model: At θ0.
        groups: Its parameters.
        vocabulary_used: Token ids whose embeddings can change.
        settings: Of the fit.
        steps: How many steps the training has.
    """
    k = parse_k(settings.k, groups.trainable_size)
    denoise = None
    if RESELECTIONS[settings.method].denoises:
        denoise = _denoise_function(model, settings)
    with ExitStack() as stack:
        # Gradients of all that may be trained
        for name, weight in groups.backbone.items():
            stack.callback(weight.requires_grad_, weight.requires_grad)
            weight.requires_grad_(name in groups.trainable)
            weight.grad = None

        rows = stack.enter_context(trainable_embedding_rows(model, vocabulary_used))
        tuning = ReselectedTuning(_parts(groups.trainable, rows), settings, k, steps, denoise)
        for number, part in enumerate(tuning.parts):
            hook = partial(tuning.gather, number=number)
            handle = part.target.register_post_accumulate_grad_hook(hook)
            stack.callback(handle.remove)
        stack.callback(tuning.write)
        yield tuning


def _parts(weights: Mapping[str, nn.Parameter], rows: EmbeddingRows | None) -> list[Part]:
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


def _denoise_function(model: PreTrainedModel, settings: VectorConfig) -> Denoise:
    """What denoises a matrix as DeFT-X does, and leaves anything else as it is."""
    rule = rank_rule(rank_on(model, settings.rank))

    def denoise(tensor: Tensor) -> Tensor:
        if not is_matrix(tensor) or not tensor.isfinite().all():
            return tensor  # the loop stops at what is not finite
        return denoise_matrix(tensor, rule, settings.keep, settings.keep_of)[0]

    return denoise
