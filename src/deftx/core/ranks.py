"""How many singular values of a weight difference are kept: the rank r of the paper's section 3, by
rule.

    100      the same rank for every matrix
    100/768  the same, relative to the model's width: 100 of 768, so 50 in a model of width 384
             (`resolve_rank`)
    90%, 0.9 the fewest values whose squares reach that share of all squares
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

AUTO = "auto"
SPLIT_HALF = "split-half"
RECOMMENDED: Rank = "gavish-donoho"  # what `auto` stands for

ROUNDING = 1e-10  # relative: a share of the variance that is missed by less counts as reached
ROUNDED = 1e-6  # of the largest: singular values below may be rounding of the Gram matrix
BLOCK = 1 << 20  # entries that are converted to float64 together


def uniform(rank: int) -> RankRule:
    """The same rank for every matrix (paper: 100, 200, 300); smaller matrices keep their full
    rank."""
    if rank <= 0:
        fix = "give an integer from 1 up, or a share such as 90%"
        raise DeftxError(f"rank {rank} is not positive; {fix}")
    return lambda singular, shape: min(rank, len(singular))


def variance(share: float) -> RankRule:
    """The fewest singular values whose squares reach `share` (0 to 1) of the sum of all squares."""
    if not 0 < share <= 1:
        fix = "give more than 0% and at most 100%"
        raise DeftxError(f"rank {share:.6g} is no share of the variance; {fix}")

    def rule(singular: Tensor, shape: tuple[int, int]) -> int:
        squares = singular.double().square()
        reached = squares.cumsum(0)
        total = reached[-1]
        if not total > 0:
            return 0
        if share == 1:
            return len(singular)
        is_short = reached < share * (1 - ROUNDING) * total
        return int(is_short.sum()) + 1

    return rule


def gavish_donoho(singular: Tensor, shape: tuple[int, int]) -> int:
    """Values above the threshold that loses least, in the limit, when signal is to be told from
    white noise of unknown strength: λ(β)/√μ(β) times the median, 2.858 times for square matrices.

    Gavish and Donoho 2014, "The optimal hard threshold for singular values is 4/√3", section III.E.
    """

    def threshold(beta: float) -> float:
        """λ(β)."""
        root = sqrt(beta * beta + 14 * beta + 1)
        return sqrt(2 * (beta + 1) + 8 * beta / (beta + 1 + root))

    return _above_noise(singular, shape, threshold)


def bulk_edge(singular: Tensor, shape: tuple[int, int]) -> int:
    """Values above the upper edge (1 + √β)·s·√n of the noise, s being fitted to the median: all
    that noise alone would not leave. Signals above it can be seen, if not told apart well (Baik,
    Ben Arous and Péché 2005)."""
    return _above_noise(singular, shape, lambda beta: 1 + sqrt(beta))


def effective_rank(singular: Tensor, shape: tuple[int, int]) -> int:
    """The exponential of the entropy of the singular values as shares of their sum (Roy and
    Vetterli 2007), rounded up: how many equal values would be as spread."""
    if not len(singular):
        return 0
    values = singular.double()
    values = values[values > ROUNDED * values.max()]
    if not len(values):
        return 0
    shares = values / values.sum()
    entropy = -float(torch.special.xlogy(shares, shares).sum())
    return ceil(round(exp(entropy), 6))


def stable_rank(singular: Tensor, shape: tuple[int, int]) -> int:
    """The sum of the squares over the largest of them (Rudelson and Vershynin 2007), rounded up."""
    if not singular.any():
        return 0
    squares = singular.double().square()
    ratio = float(squares.sum()) / float(squares.max())
    return ceil(round(ratio, 6))


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
    if is_auto(rank):
        rank = RECOMMENDED
    return str(rank).strip() == SPLIT_HALF


def is_relative(rank: Rank | None) -> bool:
    """Whether a rank is written relative to a model's width, such as `100/768`."""
    return re.fullmatch(r"\d+\s*/\s*\d+", str(rank).strip()) is not None


def resolve_rank(rank: Rank, width: int) -> Rank:
    """`rank` for a model of hidden width `width`: of one that is relative to the width the number,
    others as they are.

    `100/768` is round(100/768 · width), at least 1: one number for all matrices of the model,
    whatever their shapes, as the paper's 100 is at a width of 768.

    Raises:
        DeftxError: A relative rank is zero, or above the whole width.
    """
    if not is_relative(rank):
        return rank
    numerator, denominator = (int(number) for number in str(rank).split("/"))
    if not 0 < numerator <= denominator:
        fix = "give a part of the width, above 0 and at most 1, such as 100/768"
        raise DeftxError(f"rank {rank} is out of range: {fix}")
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
    """The rule that a rank means.

    Args:
        rank: `100` or `"100"` (uniform), `"90%"`, `0.9` or `"0.9"` (share of variance), a name of
            RANK_RULES, or `auto`.

    Raises:
        DeftxError: A rank out of range, an unknown name, and what matrices alone do not determine:
            `split-half`, and a rank relative to the width of a model.
    """
    if is_auto(rank):
        rank = RECOMMENDED
    text = str(rank).strip()
    if is_split_half(rank):
        what = f"rank {SPLIT_HALF} takes two trainings on half of the data each"
        fix = "learn the vector by a fit, or give denoise the ranks of deftx.split_half_ranks"
        raise DeftxError(f"{what}: {fix}")
    if is_relative(rank):
        what = f"rank {text} is relative to a model's width, which matrices alone do not tell"
        fix = f"give the number that it comes to, round({text} * width)"
        raise DeftxError(f"{what}: {fix}")
    if text in RANK_RULES:
        return RANK_RULES[text]
    try:
        return _rule_of_number(rank)
    except DeftxError:
        fix = "give an integer above 0 or a share up to 100%"
        raise DeftxError(f"rank {text} is out of range: {fix}") from None
    except ValueError:
        integers = "an integer such as 100 (100/768: relative to the width)"
        forms = [integers, "a share such as 90%", *RANK_RULES, SPLIT_HALF, AUTO]
        raise unknown("rank", text, forms) from None


def _rule_of_number(rank: Rank) -> RankRule:
    """The rule that `100`, `90%` or `0.9` means.

    Raises:
        DeftxError: A number out of range.
        ValueError: No number.
    """
    text = str(rank).strip()
    if text.endswith("%"):
        return variance(float(text[:-1]) / 100)
    if isinstance(rank, float) or re.fullmatch(r"[01]?\.\d+", text):
        return variance(float(text))
    return uniform(int(text))


def split_half_ranks(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, int]:
    """The rank of every matrix by `split_half`: what `denoise` takes as its ranks.

    The difference that all of the data makes has less noise than either half's: its best rank is
    this or somewhat more.

    Args:
        first: θ1 − θ0 by tensor name, of a training from θ0 on one half of the data.
        second: The same, of a training from the same θ0 on the other half.

    Raises:
        DeftxError: Names or shapes differ.
    """
    shapes = {name: tensor.shape for name, tensor in first.items()}
    if shapes != {name: tensor.shape for name, tensor in second.items()}:
        raise DeftxError("the two differences have other names or shapes: take both from one base")
    ranks: dict[str, int] = {}
    for name, tensor in first.items():
        if is_matrix(tensor):
            ranks[name] = split_half(tensor, second[name].to(tensor.device))
    return ranks


def split_half(first: Tensor, second: Tensor) -> int:
    """The rank at which each of two matrices, cut to it, is nearest to the other.

    Both are signal S plus noise, and their noises are independent: A = S + N_a, B = S + N_b.

    Direction i of A, σ_i·u_i·v_iᵀ, brings A nearer to S where u_iᵀ S v_i > σ_i / 2, and u_iᵀ B v_i
    estimates u_iᵀ S v_i without bias, since B's noise is independent of A's directions. So the
    first r directions change the squared distance to B by Σ σ_i² − 2·σ_i·u_iᵀ B v_i; the r with the
    least sum of this and the same with A and B exchanged is taken. That is cross-validation of the
    cut (compare Owen and Perry 2009, "Bi-cross-validation of the SVD"), and holds for noise of any
    shape: rows of unequal strength, say, as those of frequent and rare words in embeddings.

    Args:
        first: A [m, n].
        second: B [m, n].
    """
    if first.shape[0] < first.shape[1]:
        first, second = first.mT, second.mT

    # AᵀA, BᵀB and AᵀB, by blocks of rows
    width = first.shape[1]
    gram_a = torch.zeros(width, width, dtype=torch.float64, device=first.device)
    gram_b = torch.zeros_like(gram_a)
    cross = torch.zeros_like(gram_a)
    numbers = torch.arange(len(first), device=first.device)
    for rows in numbers.split(max(1, BLOCK // width)):
        a = first[rows].double()
        b = second[rows].double()
        gram_a.addmm_(a.mT, a)
        gram_b.addmm_(b.mT, b)
        cross.addmm_(a.mT, b)

    # By how much each direction changes the squared distances: σ_i·u_iᵀ B v_i = v_iᵀ Aᵀ B v_i, and
    # the same with A and B exchanged
    change = gram_a.new_zeros(width)
    for gram in (gram_a, gram_b):
        squares, vectors = torch.linalg.eigh(gram)
        alignment = (vectors * (cross @ vectors)).sum(0)
        change += (squares - 2 * alignment).flip(0)

    # The fewest directions that come within rounding of the least distance
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

    low = (1 - sqrt(beta)) ** 2
    high = (1 + sqrt(beta)) ** 2

    def density(x: float) -> float:
        # √((high − t)(t − low)) / (2πβt) dt, with t = low + (high − low)·sin²x, which makes the
        # ends smooth
        numerator = ((high - low) * sin(x) * cos(x)) ** 2
        return numerator / (pi * beta * (low + (high - low) * sin(x) ** 2))

    def above(start: float) -> float:
        """The probability of more than `start`."""
        x = asin(sqrt((start - low) / (high - low)))
        return float(quad(density, x, pi / 2)[0])

    return float(brentq(lambda start: above(start) - 0.5, low, high))


def _above_noise(
    singular: Tensor, shape: tuple[int, int], threshold: Callable[[float], float]
) -> int:
    """How many values are above a threshold, the strength of the noise being read off the median.

    Args:
        singular: The singular values, descending.
        shape: The shape (m, n) of the matrix.
        threshold: From β = narrow / wide to the threshold in units of s·√n.
    """
    narrow, wide = sorted(shape)
    if not narrow:
        return 0
    beta = narrow / wide
    values = singular[:narrow].double()
    unit = float(values.quantile(0.5)) / sqrt(noise_median(beta))
    least = max(threshold(beta) * unit, ROUNDED * float(values.max()))
    return int((values > least).sum())
