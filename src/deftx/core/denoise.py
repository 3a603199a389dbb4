"""Denoising of a weight difference (paper, section 3): what the SVD keeps, plus its largest leftovers.

    U Σ Vᵀ = svd(W);  L = U_r Σ_r V_rᵀ;  S = the n_keep largest entries of W − L;  W ← L + S

L is computed as W V_r V_rᵀ with V_r from the eigenvectors of the smaller Gram matrix (WᵀW or WWᵀ), in
float64: equal to the SVD's up to rounding, and faster. Rows are taken in blocks, so that nothing
of the size of W is needed beside W and the result. An eigen-decomposition keeps one core busy, so several matrices
are worked on at once.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from deftx.core.entries import read_entries, write_entries
from deftx.core.ranks import RankRule, is_matrix, rank_rule
from deftx.core.select import Chunk, largest
from deftx.errors import DeftxError

BLOCK = 1 << 20  # entries worked on together: whole rows, few enough to stay in the processor's cache
STRIP = 192  # columns of a Gram matrix computed together
SAMPLED_ROWS, SAMPLE = 1 << 13, 1 << 17  # rows and their entries that tell roughly how large the kept entries are
TALL = 64  # times as long as wide: most of the time goes into multiplications then, which share the cores themselves
KEEP = 0.05  # share of a matrix's entries kept from the residual, as in the paper


@dataclass(frozen=True, eq=False)
class Denoised(Mapping[str, Tensor]):
    """A denoised delta: a mapping from names to tensors, with the `ranks` that its matrices kept."""

    tensors: Mapping[str, Tensor]
    ranks: Mapping[str, int]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def denoise(delta: Mapping[str, Tensor], rank: int | float | str | Mapping[str, int], keep: float = KEEP) -> Denoised:
    """Denoise every matrix of `delta`; biases and other vectors pass as they are (Algorithm 1).

    rank  see `rank_rule`, or the rank of every matrix by its name (0: nothing but what `keep` keeps); ranks of at least
          min(m, n) leave a matrix as it is
    keep  share (0 to 1) of a matrix's m·n entries that is kept from the residual; 0 is the paper's
          ablation "without higher-order components"

    Raises DeftxError for a rank or keep out of range, a rank that is missing, and a matrix with NaN or infinity.
    """
    rules = _given(delta, rank) if isinstance(rank, Mapping) else dict.fromkeys(delta, rank_rule(rank))
    if not 0 <= keep <= 1:
        raise DeftxError(f"keep {keep} is no share; give a number from 0 to 1 (the paper keeps {KEEP})")
    matrices = {name: tensor for name, tensor in delta.items() if is_matrix(tensor)}

    def denoised(name: str) -> tuple[Tensor, int]:
        if not all(bound.isfinite() for bound in matrices[name].aminmax()):  # without a temporary of its size
            why = "holds values that are not finite: the training diverged; lower the learning rate"
            raise DeftxError(f"the difference of tensor {name!r} {why}")
        return denoise_matrix(matrices[name], rules[name], keep)

    tall = {name: denoised(name) for name, matrix in matrices.items() if len(matrix) >= TALL * matrix.shape[1]}
    others = [name for name in matrices if name not in tall]
    on_cpu = all(matrices[name].device.type == "cpu" for name in others)
    done = tall | dict(zip(others, _a_core_each(denoised, others) if on_cpu else map(denoised, others), strict=True))
    tensors = {name: done[name][0] if name in done else tensor for name, tensor in delta.items()}
    return Denoised(tensors, {name: done[name][1] for name in matrices})


def _given(delta: Mapping[str, Tensor], ranks: Mapping[str, int]) -> dict[str, RankRule]:
    """The ranks of the matrices by name, as rules."""
    for name, tensor in delta.items():
        if is_matrix(tensor) and ranks.get(name, -1) < 0:
            raise DeftxError(f"there is no rank for the matrix {name!r}, or one below 0: give one for each")
    return {name: _at_most(rank) for name, rank in ranks.items()}


def _at_most(rank: int) -> RankRule:
    return lambda singular, shape: min(rank, len(singular))


def denoise_matrix(matrix: Tensor, rule: RankRule, keep: float = KEEP) -> tuple[Tensor, int]:
    """One matrix [m, n] denoised, in its own dtype, and the rank that `rule` kept.

    Rows of zeros (embeddings of unseen pieces) take no part: they change neither Σ nor V.
    """
    rows = _in_use(matrix)
    gram, right = _gram(matrix, rows)
    values, vectors = torch.linalg.eigh(gram)  # of the lower triangle
    singular = _singular(values, matrix)
    rank = rule(singular, (len(rows), matrix.shape[1]))
    if rank >= len(values):
        return matrix, min(rank, len(singular))
    return _approximated(matrix, rows, vectors[:, len(values) - rank :], right, round(keep * matrix.numel())), rank


def singular_values(matrix: Tensor) -> Tensor:
    """All singular values [min(m, n)] of a matrix [m, n], descending, in float64: what a rank rule is given."""
    return _singular(torch.linalg.eigvalsh(_gram(matrix, _in_use(matrix))[0]), matrix)


def _in_use(matrix: Tensor) -> Tensor:
    """The rows that are not all zeros."""
    return ((matrix.amax(dim=1) != 0) | (matrix.amin(dim=1) != 0)).nonzero().view(-1)


def _singular(values: Tensor, matrix: Tensor) -> Tensor:
    """The singular values of a matrix from the eigenvalues, ascending, of the Gram matrix of its rows in use."""
    return pad(values.flip(0).clamp_min(0).sqrt(), (0, min(matrix.shape) - len(values)))


def _gram(matrix: Tensor, rows: Tensor) -> tuple[Tensor, bool]:
    """The smaller Gram matrix of the `rows` in use, on and below its diagonal; whether it is WᵀW (not WWᵀ)."""
    right = matrix.shape[1] <= len(rows)
    if right:
        blocks = (matrix.index_select(0, some) for some in rows.split(_at_once(matrix.shape[1])))
    else:
        blocks = iter(matrix.index_select(0, rows).mT.split(_at_once(len(rows))))
    width = matrix.shape[1] if right else len(rows)
    gram = torch.zeros(width, width, dtype=torch.float64, device=matrix.device)
    for block in blocks:
        exact = block.double()
        for start in range(0, width, STRIP):
            gram[start:, start : start + STRIP].addmm_(exact[:, start:].mT, exact[:, start : start + STRIP])
    return gram, right


def _a_core_each(work: Callable[[str], tuple[Tensor, int]], names: Sequence[str]) -> list[tuple[Tensor, int]]:
    """What `work` makes of each name, several of them at a time, each on one core."""
    cores = torch.get_num_threads()
    torch.set_num_threads(1)  # what the pool's threads begin with
    try:
        with ThreadPoolExecutor(cores) as pool:
            return list(pool.map(work, names))
    finally:
        torch.set_num_threads(cores)


def _approximated(matrix: Tensor, rows: Tensor, vectors: Tensor, right: bool, n_keep: int) -> Tensor:
    """L + S: the `rows` in use projected on the span of the singular `vectors` of one side, but for the
    `n_keep` entries which that changes most: these are as in the matrix."""
    dtype, width = torch.promote_types(matrix.dtype, torch.float32), matrix.shape[1]
    vectors = vectors.to(dtype)
    other = vectors.mT if right else vectors.mT @ matrix.index_select(0, rows).to(dtype)
    result = torch.zeros(matrix.shape, dtype=matrix.dtype, device=matrix.device)

    def parted(places: Tensor) -> tuple[Tensor, Tensor]:
        """L and W − L at the rows in use that stand at these places among them."""
        block = matrix.index_select(0, rows[places]).to(dtype)
        low = (block @ vectors if right else vectors[places]) @ other
        return low, block.sub_(low)

    def leftovers() -> Iterator[Chunk]:
        for places in everywhere.split(_at_once(width)):
            low, leftover = parted(places)
            result.index_copy_(0, rows[places], low.to(result.dtype))  # at hand now, so that L is computed once
            yield "", int(places[0]) * width, leftover.view(-1)

    everywhere, total = torch.arange(len(rows), device=rows.device), len(rows) * width
    sample = parted(everywhere[:: max(5, len(rows) // SAMPLED_ROWS)])[1].view(-1)
    kept = largest(leftovers, [sample[:: len(sample) // SAMPLE | 1]], min(n_keep, total), total)[""]
    if len(rows) < len(matrix):
        kept = rows[kept // width] * width + kept % width
    write_entries(result, kept, read_entries(matrix, kept))  # L + (W − L) is W, without the rounding
    return result


def _at_once(width: int) -> int:
    """How many rows of `width` entries are worked on together."""
    return max(1, BLOCK // max(1, width))
