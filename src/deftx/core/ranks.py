"""How many singular values of a weight difference are kept: the rank r of the paper's section 3, by
rule.

    100      the same rank for every matrix
    100/768  the same, relative to the model's width: 100 of 768, so 50 in a model of width 384
             (`resolve_rank`)
    90%      the fewest values whose squares reach that share of all squares
    a name   a rule that needs no number, see RANK_RULES; or `auto`, the one of these that did best
    (docs/log.md)

The rules by name ask how much of a spectrum is more than noise would leave, or how many directions
it amounts to. Those that know noise compare with a matrix [m, n] of independent entries of one
variance s²: its singular values fill, as the matrix grows, the range √n ± √m times s, spread as
Marchenko and Pastur (1967) found. How large s is, is read off the median of the spectrum, so that
it need not be known.

`split-half` assumes nothing about the noise but measures it: of two differences from one start,
each learnt from one half of the data, what both have is signal. It takes both of them
(`split_half_ranks`) and is no function of a spectrum.
"""

import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import cache
from math import asin, ceil, cos, exp, pi, sin, sqrt

import torch
from torch import Tensor

from deftx.errors import DeftxError, unknown

# From the singular values [min(m, n)], descending, and the shape (m, n) to the rank that is kept.
# Rows of zeros do not count in the shape; the singular values that they would have, zeros at the
# end, may be there.
RankRule = Callable[[Tensor, tuple[int, int]], int]
Rank = int | float | str  # as it is set

AUTO, SPLIT_HALF = "auto", "split-half"
RECOMMENDED: Rank = "gavish-donoho"  # what `auto` stands for
ROUNDING = 1e-10  # a share of the variance that is missed by less than this, relatively, is reached
BLOCK = 1 << 20  # entries that are taken to float64 together
# singular values this small beside the largest may be rounding: a Gram matrix halves the digits
ROUNDED = 1e-6


def uniform(rank: int) -> RankRule:
    """The same rank for every matrix (paper: 100, 200, 300); smaller matrices keep their full
    rank."""
    if rank <= 0:
        raise DeftxError(
            f"rank {rank} is not positive; give an integer from 1 up, or a share such as 90%"
        )
    return lambda singular, shape: min(rank, len(singular))


def variance(share: float) -> RankRule:
    """The fewest singular values whose squares reach `share` (0 to 1) of the sum of all squares."""
    if not 0 < share <= 1:
        raise DeftxError(
            f"rank {share:.6g} is no share of the variance; give more than 0% and at most 100%"
        )

    def rule(singular: Tensor, shape: tuple[int, int]) -> int:
        squares = singular.double().square()
        reached = squares.cumsum(0)
        if not reached[-1] > 0:
            return 0
        if share == 1:
            return len(singular)
        return int((reached < share * (1 - ROUNDING) * reached[-1]).sum()) + 1

    return rule


def gavish_donoho(singular: Tensor, shape: tuple[int, int]) -> int:
    """Values above the threshold that loses least, in the limit, when signal is to be told from
    white noise of unknown strength (Gavish and Donoho 2014, "The optimal hard threshold for
    singular values is 4/√3", section III.E): λ(β)/√μ(β) times the median, 2.858 times for square
    matrices."""
    return _above_noise(
        singular,
        shape,
        lambda beta: sqrt(
            2 * (beta + 1) + 8 * beta / (beta + 1 + sqrt(beta * beta + 14 * beta + 1))
        ),
    )


def bulk_edge(singular: Tensor, shape: tuple[int, int]) -> int:
    """Values above the upper edge (1 + √β)·s·√n of the noise, s being fitted to the median: all
    that noise alone would not leave. Signals above it can be seen, if not told apart well (Baik,
    Ben Arous and Péché 2005)."""
    return _above_noise(singular, shape, lambda beta: 1 + sqrt(beta))


def effective_rank(singular: Tensor, shape: tuple[int, int]) -> int:
    """The exponential of the entropy of the singular values as shares of their sum (Roy and
    Vetterli 2007), rounded
    up: how many equal values would be as spread."""
    values = singular.double()
    values = values[values > ROUNDED * values.max()] if len(values) else values
    if not len(values):
        return 0
    shares = values / values.sum()
    entropy = -float(torch.special.xlogy(shares, shares).sum())
    return ceil(round(exp(entropy), 6))


def stable_rank(singular: Tensor, shape: tuple[int, int]) -> int:
    """The sum of the squares over the largest of them (Rudelson and Vershynin 2007), rounded up."""
    squares = singular.double().square()
    largest = float(squares.max()) if len(squares) else 0.0
    return ceil(round(float(squares.sum()) / largest, 6)) if largest > 0 else 0


RANK_RULES: dict[str, RankRule] = {
    "gavish-donoho": gavish_donoho,
    "bulk-edge": bulk_edge,
    "effective": effective_rank,
    "stable": stable_rank,
}


def is_auto(rank: Rank | None) -> bool:
    """Whether the rule is left to this library."""
    return str(rank).strip() == AUTO


def is_split_half(rank: Rank) -> bool:
    """Whether a rank is to be told by two differences, see `split_half_ranks`."""
    return str(RECOMMENDED if is_auto(rank) else rank).strip() == SPLIT_HALF


def is_relative(rank: Rank | None) -> bool:
    """Whether a rank is written relative to a model's width, such as `100/768`."""
    return re.fullmatch(r"\d+\s*/\s*\d+", str(rank).strip()) is not None


def resolve_rank(rank: Rank, width: int) -> Rank:
    """`rank` for a model of hidden width `width`: of one that is relative to the width the number,
    others as they are.

    `100/768` is round(100/768 · width), at least 1: one number for all matrices of the model,
    whatever their shapes, as the paper's 100 is at a width of 768.

    Raises DeftxError for a relative rank that is zero or above the whole width.
    """
    if not is_relative(rank):
        return rank
    numerator, denominator = (int(number) for number in str(rank).split("/"))
    if not 0 < numerator <= denominator:
        raise DeftxError(
            f"rank {rank} is out of range: give a part of the width, above 0 and at most 1, such as 100/768"
        )
    share = Fraction(numerator, denominator)
    return max(1, round(share * width))


def recorded_rank(rank: Rank | None, resolved: Rank | None = None) -> dict[str, Rank | None]:
    """What a vector records of a rank: itself, and as `rank_rule` what it stood for, where it does
    not say so itself.

    That is the rule that `auto` stands for, or the number that a relative rank was `resolved` to.
    """
    recorded: dict[str, Rank | None] = {"rank": rank}
    if is_auto(rank):
        recorded["rank_rule"] = RECOMMENDED
    elif is_relative(rank) and resolved is not None:
        recorded["rank_rule"] = resolved
    return recorded


def rank_rule(rank: Rank) -> RankRule:
    """The rule meant by `100` or `"100"` (uniform), `"90%"` or `0.9` (share of variance), a name of
    RANK_RULES, `auto`.

    Raises DeftxError for a rank out of range, an unknown name, and for what matrices alone do not
    tell: `split-half`, and a rank relative to the width of a model.
    """
    rank = RECOMMENDED if is_auto(rank) else rank
    text = str(rank).strip()
    if is_split_half(rank):
        raise DeftxError(
            f"rank {SPLIT_HALF} takes two trainings on half of the data each: learn the vector by a fit, or give"
            " denoise the ranks of deftx.split_half_ranks"
        )
    if is_relative(rank):
        raise DeftxError(
            f"rank {text} is relative to a model's width, which matrices alone do not tell: give the number that it"
            f" comes to, round({text} * width)"
        )
    try:
        if text.endswith("%"):
            return variance(float(text[:-1]) / 100)
        if isinstance(rank, float):
            return variance(rank)
        return uniform(int(text))
    except DeftxError:
        raise DeftxError(
            f"rank {text} is out of range: give an integer above 0 or a share up to 100%"
        ) from None
    except ValueError:
        if text in RANK_RULES:
            return RANK_RULES[text]
        forms = ["an integer such as 100 (100/768: relative to the width)", "a share such as 90%"]
        raise unknown("rank", text, [*forms, *RANK_RULES, SPLIT_HALF, AUTO]) from None


def split_half_ranks(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, int]:
    """The rank of every matrix by `split_half`, from two differences (name -> tensor) with the same
    names and shapes: θ1 − θ0 of two trainings from one θ0, each on its half of the data. What
    `denoise` takes as its ranks.

    The difference that all of the data makes has less noise than either: its best rank is this or
    somewhat more. Raises DeftxError where names or shapes differ.
    """
    if {n: t.shape for n, t in first.items()} != {n: t.shape for n, t in second.items()}:
        raise DeftxError("the two differences have other names or shapes: take both from one base")
    matrices = {name: tensor for name, tensor in first.items() if is_matrix(tensor)}
    return {
        name: split_half(tensor, second[name].to(tensor.device))
        for name, tensor in matrices.items()
    }


def split_half(first: Tensor, second: Tensor) -> int:
    """The rank at which each of two matrices [m, n], cut to it, is nearest to the other: A and B,
    signal S plus noises that have nothing to do with each other.

    Direction i of A, σ_i·u_i·v_iᵀ, brings A nearer to S where u_iᵀ S v_i > σ_i / 2, and u_iᵀ B v_i
    tells u_iᵀ S v_i without bias, since B's noise knows nothing of A's directions. So the first r
    directions change the squared distance to B by Σ σ_i² − 2·σ_i·u_iᵀ B v_i; the r with the least
    sum of this and the same with A and B exchanged is taken. That is cross-validation of the cut
    (compare Owen and Perry 2009, "Bi-cross-validation of the SVD"), and holds for noise of any
    shape: rows of unequal strength, say, as those of frequent and rare words in embeddings.
    """
    if first.shape[0] < first.shape[1]:
        first, second = first.mT, second.mT
    width = first.shape[1]
    zeros = torch.zeros(width, width, dtype=torch.float64, device=first.device)
    gram_a, gram_b, cross = zeros, zeros.clone(), zeros.clone()
    for rows in torch.arange(len(first), device=first.device).split(max(1, BLOCK // width)):
        a, b = first[rows].double(), second[rows].double()
        gram_a.addmm_(a.mT, a)
        gram_b.addmm_(b.mT, b)
        cross.addmm_(a.mT, b)
    change = zeros.new_zeros(width)
    for gram in (gram_a, gram_b):
        squares, vectors = torch.linalg.eigh(
            gram
        )  # σ_i·u_iᵀ B v_i = v_iᵀ Aᵀ B v_i, and so the other way round
        change += (squares - 2 * (vectors * (cross @ vectors)).sum(0)).flip(0)
    distances = torch.cat([change.new_zeros(1), change.cumsum(0)])
    least = distances.min() + ROUNDING * float(gram_a.trace() + gram_b.trace())
    return int((distances <= least).nonzero()[0])


def is_matrix(tensor: Tensor) -> bool:
    """Whether a tensor is denoised: two dimensions, both larger than 1."""
    return tensor.dim() == 2 and min(tensor.shape) > 1


@cache
def noise_median(beta: float) -> float:
    """The median of Marchenko and Pastur's distribution for the shape β = narrow / wide (above 0,
    at most 1): of the squared singular values of noise with variance 1, over the wide side."""
    from scipy.integrate import quad  # here, since few fits ask for it and it takes long to import
    from scipy.optimize import brentq

    low, high = (1 - sqrt(beta)) ** 2, (1 + sqrt(beta)) ** 2

    def above(start: float) -> float:
        # ∫ √((high − t)(t − low)) / (2πβt) dt from `start` on; t = low + (high − low)·sin²x makes
        # the ends smooth
        def density(x: float) -> float:
            return ((high - low) * sin(x) * cos(x)) ** 2 / (
                pi * beta * (low + (high - low) * sin(x) ** 2)
            )

        return float(quad(density, asin(sqrt((start - low) / (high - low))), pi / 2)[0])

    return float(brentq(lambda start: above(start) - 0.5, low, high))


def _above_noise(singular: Tensor, shape: tuple[int, int], bar: Callable[[float], float]) -> int:
    """How many values are above `bar(β)` in units of s·√n, with s·√n as the median tells it."""
    narrow, wide = sorted(shape)
    if not narrow:
        return 0
    values = singular[:narrow].double()
    unit = float(values.quantile(0.5)) / sqrt(noise_median(narrow / wide))
    return int((values > max(bar(narrow / wide) * unit, ROUNDED * float(values.max()))).sum())
