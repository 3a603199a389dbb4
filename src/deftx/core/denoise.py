"""Denoising of a weight difference (paper, section 3): what the SVD keeps, plus its largest
leftovers.

    U Σ Vᵀ = svd(W);  L = U_r Σ_r V_rᵀ;  S = the n_keep largest entries of W − L;  W ← L + S

L is computed as W V_r V_rᵀ with V_r from the eigenvectors of the smaller Gram matrix (WᵀW or WWᵀ),
in float64: equal to the SVD's up to rounding, and faster. Rows are taken in blocks, so that nothing
of the size of W is needed beside W and the result. An eigen-decomposition keeps one core busy, so
several matrices are worked on at once.
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
from deftx.errors import DeftxError, unknown

BLOCK = 1 << 20  # entries worked on together: whole rows, few enough for the processor's cache
STRIP = 192  # columns of a Gram matrix computed together

# Rows, and entries of these, from which the size of the kept entries is guessed.
SAMPLED_ROWS = 1 << 13
SAMPLE = 1 << 17

# A matrix at least so many times as long as wide spends most of its time in multiplications, which
# use all cores by themselves.
TALL = 64

KEEP = 0.05  # share of a matrix's entries kept from the residual, as in the paper

# What `keep` is a share of: from a matrix [m, n] and the number of its rows in use to a number of
# entries.
KEEP_OF: dict[str, Callable[[Tensor, int], int]] = {
    "matrix": lambda matrix, rows_in_use: matrix.numel(),  # as in the paper
    "rows-in-use": lambda matrix, rows_in_use: rows_in_use * matrix.shape[1],
}


@dataclass(frozen=True, eq=False)
class Denoised(Mapping[str, Tensor]):
    """A denoised difference: a mapping from names to tensors.

    Attributes:
        tensors: Tensor name -> denoised difference.
        ranks: Matrix name -> the rank that was kept.
    """

    tensors: Mapping[str, Tensor]
    ranks: Mapping[str, int]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __repr__(self) -> str:
        parts = [f"{len(self)} tensors"]
        if self.ranks:
            least = min(self.ranks.values())
            greatest = max(self.ranks.values())
            parts.append(f"{len(self.ranks)} matrices of rank {least} to {greatest}")
        return f"Denoised({', '.join(parts)})"


def denoise(
    delta: Mapping[str, Tensor],
    rank: int | float | str | Mapping[str, int],
    keep: float = KEEP,
    keep_of: str = "matrix",
) -> Denoised:
    """Denoise every matrix of `delta` (Algorithm 1): W ← L + S, with L the low-rank approximation
    of W and S the largest entries of W − L.

    Biases and other vectors stay as they are.

    Args:
        delta: Tensor name -> difference.
        rank: A rank (`100`), a share of the variance (`0.9` or `"90%"`), a rule by name (see
            `rank_rule`), or the rank of every matrix by its name (0: nothing but what `keep`
            keeps). Ranks of at least min(m, n) leave a matrix as it is.
        keep: Share (0 to 1) of a matrix's entries that is kept from the residual; 0 is the paper's
            ablation "without higher-order components".
        keep_of: Which entries `keep` is a share of. `matrix`: all m·n, as in the paper.
            `rows-in-use`: those of rows that are not all zeros. In the difference of an embedding
            most rows are zeros, those of tokens that the text lacks: where 5% of the rows or fewer
            are in use, 5% of the matrix is all of them, and it is not denoised at all.

    Returns:
        The denoised tensors, and the rank that each matrix kept.

    Raises:
        DeftxError: A rank or keep out of range, an unknown `keep_of`, a rank that is missing, and a
            matrix with NaN or infinity.

    Example:
        >>> import torch
        >>> from deftx import denoise
        >>> denoised = denoise({"weight": torch.eye(4), "bias": torch.ones(4)}, rank=2, keep=0)
        >>> denoised.ranks
        {'weight': 2}
    """
    matrices = {name: tensor for name, tensor in delta.items() if is_matrix(tensor)}
    rules = _rules_by_name(matrices, rank)
    if not 0 <= keep <= 1:
        allowed = f"give a number from 0 to 1 (the paper keeps {KEEP})"
        raise DeftxError(f"keep {keep} is no share; {allowed}")
    if keep_of not in KEEP_OF:
        raise unknown("keep_of", keep_of, KEEP_OF)

    def denoise_one(name: str) -> tuple[Tensor, int]:
        _check_finite(name, matrices[name])
        return denoise_matrix(matrices[name], rules[name], keep, keep_of)

    # Tall matrices one after the other, since their multiplications use all cores
    tall = [name for name, matrix in matrices.items() if len(matrix) >= TALL * matrix.shape[1]]
    results = {name: denoise_one(name) for name in tall}

    # The others at once, a core each
    others = [name for name in matrices if name not in results]
    if all(matrices[name].device.type == "cpu" for name in others):
        results |= _on_a_core_each(denoise_one, others)
    else:
        results |= {name: denoise_one(name) for name in others}

    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for name, tensor in delta.items():
        if name in results:
            tensors[name], ranks[name] = results[name]
        else:
            tensors[name] = tensor
    return Denoised(tensors, ranks)


def denoise_matrix(
    matrix: Tensor, rule: RankRule, keep: float = KEEP, keep_of: str = "matrix"
) -> tuple[Tensor, int]:
    """Denoise one matrix.

    Rows of zeros (embeddings of unseen tokens) take no part: they change neither Σ nor V.

    Args:
        matrix: W [m, n].
        rule: From the singular values to the rank that is kept.
        keep: As in `denoise`.
        keep_of: As in `denoise`.

    Returns:
        The denoised matrix [m, n], in W's dtype, and the rank that was kept.
    """
    # Σ and V (or U) from the smaller Gram matrix
    rows = _rows_in_use(matrix)
    gram, is_right = _gram(matrix, rows)
    eigenvalues, eigenvectors = torch.linalg.eigh(gram)  # of the lower triangle, ascending

    # The rank r
    singular = _singular(eigenvalues, matrix)
    rank = rule(singular, (len(rows), matrix.shape[1]))
    if rank >= len(eigenvalues):
        return matrix, min(rank, len(singular))

    # L + S
    leading = eigenvectors[:, len(eigenvalues) - rank :]
    n_keep = round(keep * KEEP_OF[keep_of](matrix, len(rows)))
    return _low_rank_plus_largest(matrix, rows, leading, is_right, n_keep), rank


def singular_values(matrix: Tensor) -> Tensor:
    """All singular values [min(m, n)] of a matrix [m, n], descending, in float64: what a rank rule
    is given."""
    gram, _ = _gram(matrix, _rows_in_use(matrix))
    return _singular(torch.linalg.eigvalsh(gram), matrix)


def _rules_by_name(
    matrices: Mapping[str, Tensor], rank: int | float | str | Mapping[str, int]
) -> dict[str, RankRule]:
    """The rank rule of every matrix: one for all, or the rank that is given for it."""
    if not isinstance(rank, Mapping):
        return dict.fromkeys(matrices, rank_rule(rank))
    rules: dict[str, RankRule] = {}
    for name in matrices:
        if rank.get(name, -1) < 0:
            problem = f"there is no rank for the matrix {name!r}, or one below 0"
            raise DeftxError(f"{problem}: give one for each")
        rules[name] = _at_most(rank[name])
    return rules


def _at_most(rank: int) -> RankRule:
    """As `ranks.uniform`, and also for rank 0."""
    return lambda singular, shape: min(rank, len(singular))


def _check_finite(name: str, matrix: Tensor) -> None:
    """Raise DeftxError for NaN and infinity: both show in the least or the greatest entry, without
    a temporary copy."""
    least, greatest = matrix.aminmax()
    if not (least.isfinite() and greatest.isfinite()):
        why = "holds values that are not finite: the training diverged; lower the learning rate"
        raise DeftxError(f"the difference of tensor {name!r} {why}")


def _on_a_core_each(
    denoise_one: Callable[[str], tuple[Tensor, int]], names: Sequence[str]
) -> dict[str, tuple[Tensor, int]]:
    """The results for all matrices, several computed at a time, each on one core."""
    cores = torch.get_num_threads()
    torch.set_num_threads(1)  # what the pool's threads begin with
    try:
        with ThreadPoolExecutor(cores) as pool:
            results = pool.map(denoise_one, names)
            return dict(zip(names, results, strict=True))
    finally:
        torch.set_num_threads(cores)


def _rows_in_use(matrix: Tensor) -> Tensor:
    """The numbers of the rows that are not all zeros."""
    has_positive_or_nan = matrix.amax(dim=1) != 0
    has_negative_or_nan = matrix.amin(dim=1) != 0
    return (has_positive_or_nan | has_negative_or_nan).nonzero().view(-1)


def _singular(values: Tensor, matrix: Tensor) -> Tensor:
    """The singular values of a matrix from the eigenvalues, ascending, of the Gram matrix of its
    rows in use."""
    descending = values.flip(0).clamp_min(0).sqrt()
    return pad(descending, (0, min(matrix.shape) - len(values)))


def _gram(matrix: Tensor, rows: Tensor) -> tuple[Tensor, bool]:
    """The smaller Gram matrix of the `rows` in use, on and below its diagonal; whether it is WᵀW
    (not WWᵀ)."""
    is_right = matrix.shape[1] <= len(rows)
    blocks: Iterator[Tensor]
    if is_right:
        width = matrix.shape[1]
        numbers = rows.split(_rows_per_block(width))
        blocks = (matrix.index_select(0, block_rows) for block_rows in numbers)
    else:
        width = len(rows)
        blocks = iter(matrix.index_select(0, rows).mT.split(_rows_per_block(width)))

    gram = torch.zeros(width, width, dtype=torch.float64, device=matrix.device)
    for block in blocks:
        exact = block.double()
        for start in range(0, width, STRIP):
            strip = exact[:, start : start + STRIP]
            gram[start:, start : start + STRIP].addmm_(exact[:, start:].mT, strip)
    return gram, is_right


def _low_rank_plus_largest(
    matrix: Tensor, rows: Tensor, leading: Tensor, is_right: bool, n_keep: int
) -> Tensor:
    """L + S: the rows in use, projected on the span of singular vectors, and the largest entries
    that this changes.

    Args:
        matrix: W [m, n].
        rows: The numbers of its rows in use.
        leading: The singular vectors of one side that are kept, [n, r] of the right one,
            [len(rows), r] of the left.
        is_right: Whether they are those of the right side.
        n_keep: How many entries stay as they are in W: those which the projection changes most.
    """
    dtype = torch.promote_types(matrix.dtype, torch.float32)
    width = matrix.shape[1]
    leading = leading.to(dtype)
    # L = (W V_r) V_rᵀ, or U_r (U_rᵀ W)
    second_factor = leading.mT
    if not is_right:
        second_factor = second_factor @ matrix.index_select(0, rows).to(dtype)
    result = torch.zeros(matrix.shape, dtype=matrix.dtype, device=matrix.device)

    def split_rows(numbers: Tensor) -> tuple[Tensor, Tensor]:
        """L and W − L, for some of the rows in use, by their numbers among these."""
        block = matrix.index_select(0, rows[numbers]).to(dtype)
        first_factor = block @ leading if is_right else leading[numbers]
        low = first_factor @ second_factor
        return low, block.sub_(low)

    def leftovers() -> Iterator[Chunk]:
        """W − L in blocks of rows. L is written to the result on the way, so that it is computed
        once."""
        for numbers in all_numbers.split(_rows_per_block(width)):
            low, leftover = split_rows(numbers)
            result.index_copy_(0, rows[numbers], low.to(result.dtype))
            yield "", int(numbers[0]) * width, leftover.view(-1)

    # A sample of the leftovers tells roughly how large the kept ones are
    all_numbers = torch.arange(len(rows), device=rows.device)
    row_step = max(5, len(rows) // SAMPLED_ROWS)
    _, sampled_leftover = split_rows(all_numbers[::row_step])
    sample = sampled_leftover.view(-1)
    sample = sample[:: len(sample) // SAMPLE | 1]

    # S: where the largest leftovers are, W itself, which is L + (W − L) without the rounding
    total = len(rows) * width
    kept = largest(leftovers, [sample], min(n_keep, total), total)[""]
    if len(rows) < len(matrix):  # from indices among the rows in use to those in the matrix
        kept = rows[kept // width] * width + kept % width
    write_entries(result, kept, read_entries(matrix, kept))
    return result


def _rows_per_block(width: int) -> int:
    """How many rows of `width` entries are worked on together."""
    return max(1, BLOCK // max(1, width))
