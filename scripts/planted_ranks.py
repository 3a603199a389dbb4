"""How well each rule for the rank finds a signal that was planted in noise: `python
scripts/planted_ranks.py`.

W = S + E of nano-xlmr's width. S has 24 directions, from three times as strong as the edge of the
noise down to half of
it: the weakest cannot be seen. E is white, or its rows are of unequal strength, as those of rare
and frequent words are. A rule is as good as the distance of W, cut to its rank, from S is small.
`split-half` sees two halves of the data, so twice the variance of the noise, and its rank cuts the
W of all. Prints rank and ‖cut − S‖ / ‖S‖, means over seeds.
"""

from math import sqrt
from statistics import mean

import torch
from torch import Tensor

from deftx.core.denoise import denoise_matrix, singular_values
from deftx.core.ranks import SPLIT_HALF, rank_rule, split_half

SHAPES = {"384 × 384": (384, 384), "1536 × 384": (1536, 384), "8000 × 384": (8000, 384)}
NOISES = {
    "white": 0.0,
    "unequal rows": 1.0,
}  # standard deviation of the logarithm of a row's strength
RULES = [
    "50%",
    "90%",
    "95%",
    "32",
    "64",
    "gavish-donoho",
    "bulk-edge",
    "effective",
    "stable",
    SPLIT_HALF,
]
DIRECTIONS, SEEDS = 24, range(5)


def planted(shape: tuple[int, int], spread: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """S, and two noises that have nothing to do with each other, whose mean is that of all the
    data."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (
        torch.linalg.qr(torch.randn(side, DIRECTIONS, generator=generator)).Q for side in shape
    )
    edge = sqrt(shape[0]) + sqrt(shape[1])
    strength = edge * torch.linspace(3, 0.5, DIRECTIONS)
    rows = torch.exp(spread * torch.randn(shape[0], 1, generator=generator))
    rows = rows / rows.square().mean().sqrt()  # as strong in all as white noise of variance 1
    first, second = (sqrt(2) * rows * torch.randn(shape, generator=generator) for _ in range(2))
    return left * strength @ right.mT, first, second


def cut(matrix: Tensor, rank: int) -> Tensor:
    """The matrix of a rank that is nearest to it, nothing being kept besides."""
    if rank == 0:
        return torch.zeros_like(matrix)
    return denoise_matrix(matrix, lambda singular, shape: rank, 0.0)[0]


def compare(shape: tuple[int, int], spread: float) -> dict[str, tuple[float, float]]:
    """The rank of each rule, and how far from S what it leaves is, as means over the seeds."""
    found: dict[str, list[tuple[float, float]]] = {}
    for seed in SEEDS:
        signal, first, second = planted(shape, spread, seed)
        matrix = signal + (first + second) / 2
        singular = singular_values(matrix)
        ranks = {rule: rank_rule(rule)(singular, shape) for rule in RULES if rule != SPLIT_HALF}
        ranks[SPLIT_HALF] = split_half(signal + first, signal + second)
        apart = {
            rank: float((cut(matrix, rank) - signal).norm() / signal.norm())
            for rank in {*ranks.values(), *range(40)}
        }
        ranks |= {"the best": min(apart, key=lambda rank: apart[rank])}
        for rule, rank in ranks.items():
            found.setdefault(rule, []).append((rank, apart[rank]))
        found.setdefault("no denoising", []).append(
            (min(shape), float((matrix - signal).norm() / signal.norm()))
        )
    return {
        rule: (mean(rank for rank, _ in rows), mean(far for _, far in rows))
        for rule, rows in found.items()
    }


def main() -> None:
    """Print the table."""
    columns = {
        f"{size}, {noise}": compare(SHAPES[size], NOISES[noise])
        for noise in NOISES
        for size in SHAPES
    }
    print(f"| rule | {' | '.join(columns)} |\n{'| --- ' * (len(columns) + 1)}|")
    for rule in ["no denoising", *RULES, "the best"]:
        cells = []
        for column in columns.values():
            rank, far = column[rule]
            cells.append(f"{rank:.0f}: {far:.2f}")
        print(f"| {rule} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
