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

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from deftx.config import VectorConfig
from deftx.core.denoise import denoise_matrix
from deftx.core.entries import read_entries, write_entries
from deftx.core.parameters import ParameterGroups
from deftx.core.ranks import is_matrix, rank_rule
from deftx.core.reselection import RESELECTIONS, Candidates, exchange
from deftx.core.select import SPLITS, parse_k, shares_of
from deftx.core.tensors import SparseTensor
from deftx.core.vector import SparseVector
from deftx.errors import DeftxError
from deftx.models.limits import rank_on
from deftx.training import distributed
from deftx.training.embedding_rows import trainable_embedding_rows
from deftx.training.growth import AddedGradients, Denoise, Estimates, Growth, Trained
from deftx.training.positions import Part, entries_of, laid_end_to_end, read_at, spans_of, write_at
from deftx.training.random_streams import generator


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
        self.start = read_at(self.parts, self.positions)
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
        sizes_of_groups = []
        for group in self.groups:
            sizes_of_groups.append(sum(counts[number] for number in group))
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
        self.growth.end_step(self._trained(), clipping)
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
        write_at(self.parts, self._written, self.start)
        self._written.copy_(self.positions)
        self.spans = spans_of(self.positions, self.parts)
        self.start.copy_(read_at(self.parts, self.positions))
        self.write()
        self.growth.restore()

    def write(self) -> None:
        """Put the values into the model's weights."""
        write_at(self.parts, self.positions, self.values.detach())

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

    def _trained(self) -> Trained:
        return Trained(self.positions, self.spans, self.values.grad)

    @torch.no_grad()
    def _reselect(self, share: float, done: int, optimizer: torch.optim.Optimizer) -> None:
        """Replace a share of the entries of each group."""
        movements = self._movements()
        stays = torch.ones_like(self.positions, dtype=torch.bool)
        grown = []
        for number, group in enumerate(self.groups):
            own = entries_of(group, self.spans)
            positions = self.positions[own]
            count = int(share * len(positions))
            candidates = self.growth.candidates(number, count, self._trained(), done)
            stays[own], is_new = exchange(movements[own], positions, count, candidates)
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
        write_at(self.parts, self.positions, torch.where(stays, self.values.detach(), self.start))
        order = torch.cat([self.positions[stays], new]).argsort()

        def put(entries: Tensor, of_new: Tensor) -> None:
            entries.copy_(torch.cat([entries[stays], of_new.to(entries.dtype)])[order])

        put(self.positions, new)
        self._written.copy_(self.positions)
        self.spans = spans_of(self.positions, self.parts)
        at_start = read_at(self.parts, self.positions)  # true of the new ones
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


def check_reselection(settings: VectorConfig, steps: int) -> None:
    """Check that settings go together with choosing entries again and again.

    Raises:
        DeftxError: A setting does not.
    """
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
        tuning = ReselectedTuning(
            laid_end_to_end(groups.trainable, rows), settings, k, steps, denoise
        )
        for number, part in enumerate(tuning.parts):
            hook = partial(tuning.gather, number=number)
            handle = part.target.register_post_accumulate_grad_hook(hook)
            stack.callback(handle.remove)
        stack.callback(tuning.write)
        yield tuning


def _denoise_function(model: PreTrainedModel, settings: VectorConfig) -> Denoise:
    """What denoises a matrix as DeFT-X does, and leaves anything else as it is."""
    rule = rank_rule(rank_on(model, settings.rank))

    def denoise(tensor: Tensor) -> Tensor:
        if not is_matrix(tensor) or not tensor.isfinite().all():
            return tensor  # the loop stops at what is not finite
        return denoise_matrix(tensor, rule, settings.keep, settings.keep_of)[0]

    return denoise
