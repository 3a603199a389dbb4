"""Denoising of a weight difference (paper, section 3): what the SVD keeps, plus its largest leftovers.

    U Σ Vᵀ = svd(W);  L = U_r Σ_r V_rᵀ;  S = the n_keep largest entries of W − L;  W ← L + S

L is computed as W V_r V_rᵀ with V_r from the eigenvectors of the smaller Gram matrix (WᵀW or WWᵀ), in
float64: equal to the SVD's up to rounding, and 2 to 6 times faster.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from deftx.core.entries import read_entries, write_entries
from deftx.core.select import largest
from deftx.errors import DeftxError, unknown

ROWS = 1 << 13  # rows taken to float64 together
KEEP = 0.05  # share of a matrix's entries kept from the residual, as in the paper
ROUNDING = 1e-10  # a share of the variance that is missed by less than this, relatively, is reached

# From the singular values [min(m, n)], descending, and the shape (m, n) to the rank that is kept.
RankRule = Callable[[Tensor, tuple[int, int]], int]


def uniform(rank: int) -> RankRule:
    """The same rank for every matrix (paper: 100, 200, 300); smaller matrices keep their full rank."""
    if rank <= 0:
        raise DeftxError(f"rank {rank} is not positive; give an integer from 1 up, or a share such as 90%")
    return lambda singular, shape: min(rank, len(singular))


def variance(share: float) -> RankRule:
    """The fewest singular values whose squares reach `share` (0 to 1) of the sum of all squares."""
    if not 0 < share <= 1:
        raise DeftxError(f"rank {share:.6g} is no share of the variance; give more than 0% and at most 100%")

    def rule(singular: Tensor, shape: tuple[int, int]) -> int:
        squares = singular.double().square()
        reached = squares.cumsum(0)
        if not reached[-1] > 0:
            return 0
        if share == 1:
            return len(singular)
        return int((reached < share * (1 - ROUNDING) * reached[-1]).sum()) + 1

    return rule


RANK_RULES: dict[str, RankRule] = {}  # rules by name; see CONTRIBUTING.md


def rank_rule(rank: int | float | str) -> RankRule:
    """The rule meant by `100` or `"100"` (uniform), `"90%"` or `0.9` (share of variance), or a name."""
    text = str(rank).strip()
    try:
        if text.endswith("%"):
            return variance(float(text[:-1]) / 100)
        if isinstance(rank, float):
            return variance(rank)
        return uniform(int(text))
    except DeftxError:
        raise DeftxError(f"rank {text} is out of range: give an integer above 0 or a share up to 100%") from None
    except ValueError:
        if text in RANK_RULES:
            return RANK_RULES[text]
        raise unknown("rank", text, ["an integer such as 100", "a share such as 90%", *RANK_RULES]) from None


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


def denoise(delta: Mapping[str, Tensor], rank: int | float | str, keep: float = KEEP) -> Denoised:
    """Denoise every matrix of `delta`; biases and other vectors pass as they are (Algorithm 1).

    rank  see `rank_rule`; ranks of at least min(m, n) leave a matrix as it is
    keep  share (0 to 1) of a matrix's m·n entries that is kept from the residual; 0 is the paper's
          ablation "without higher-order components"

    Raises DeftxError for a rank or keep out of range, and where a matrix holds NaN or infinity.
    """
    rule = rank_rule(rank)
    if not 0 <= keep <= 1:
        raise DeftxError(f"keep {keep} is no share; give a number from 0 to 1 (the paper keeps {KEEP})")
    tensors, ranks = {}, {}
    for name, tensor in delta.items():
        tensors[name] = tensor
        if is_matrix(tensor):
            if not tensor.isfinite().all():
                why = "holds values that are not finite: the training diverged; lower the learning rate"
                raise DeftxError(f"the difference of tensor {name!r} {why}")
            tensors[name], ranks[name] = denoise_matrix(tensor, rule, keep)
    return Denoised(tensors, ranks)


def is_matrix(tensor: Tensor) -> bool:
    """Whether a tensor is denoised: two dimensions, both larger than 1."""
    return tensor.dim() == 2 and min(tensor.shape) > 1


def denoise_matrix(matrix: Tensor, rule: RankRule, keep: float = KEEP) -> tuple[Tensor, int]:
    """One matrix [m, n] denoised, in its own dtype, and the rank that `rule` kept.

    Rows of zeros (embeddings of unseen pieces) take no part: they change neither Σ nor V.
    """
    rows = matrix.any(dim=1).nonzero().view(-1)
    part = matrix if len(rows) == len(matrix) else matrix[rows]
    singular, vectors, right = _decompose(part, min(matrix.shape))
    rank = rule(singular, (matrix.shape[0], matrix.shape[1]))
    if rank >= min(part.shape):
        return matrix, min(rank, len(singular))
    low = _project(part, vectors[:, :rank], right)
    leftover = part.to(low.dtype) - low
    kept = largest(leftover, min(round(keep * matrix.numel()), leftover.numel()))
    write_entries(low, kept, read_entries(part, kept).to(low.dtype))  # L + (W − L) is W, without the rounding
    if part is matrix:
        return low.to(matrix.dtype), rank
    return torch.zeros_like(matrix).index_copy_(0, rows, low.to(matrix.dtype)), rank


def _decompose(matrix: Tensor, count: int) -> tuple[Tensor, Tensor, bool]:
    """Singular values, descending, padded to `count`; singular vectors of the smaller side as columns,
    in the same order; whether these are right singular vectors."""
    right = matrix.shape[1] <= matrix.shape[0]
    tall = matrix if right else matrix.mT
    gram = torch.zeros(tall.shape[1], tall.shape[1], dtype=torch.float64, device=matrix.device)
    for start in range(0, len(tall), ROWS):
        block = tall[start : start + ROWS].double()
        gram.addmm_(block.mT, block)
    values, vectors = torch.linalg.eigh(gram)
    singular = values.flip(0).clamp_min(0).sqrt()
    padded = torch.nn.functional.pad(singular, (0, count - len(singular)))
    return padded, vectors.flip(1), right


def _project(matrix: Tensor, vectors: Tensor, right: bool) -> Tensor:
    """The best approximation of `matrix` within the span of the singular `vectors` of one side."""
    vectors = vectors.to(torch.promote_types(matrix.dtype, torch.float32))
    matrix = matrix.to(vectors.dtype)
    return (matrix @ vectors) @ vectors.mT if right else vectors @ (vectors.mT @ matrix)
