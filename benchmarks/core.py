"""Selection and denoising at XLM-R's shapes, beside the plain way: `python benchmarks/core.py
[--shape small]`.

The plain way is written here from first principles; both work on the same artificial delta, one
after the other in one process, on the GPU if there is one. "extra" is what a way adds to the peak
memory of a fresh process that holds the delta, its result included. The floor is what cannot be
avoided (one reading of the delta; the multiplications of the decomposition and the projection) at
the machine's measured speed.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from measure import (
    DEVICE,
    Measured,
    alternate,
    available,
    bytes_per_second,
    flops_per_second,
    options_of,
    peak_in_subprocess,
    print_peak,
    report,
)
from torch import Tensor

from deftx.core.denoise import KEEP, denoise
from deftx.core.ranks import is_matrix, rank_rule
from deftx.core.select import parse_k, select

K = "5.118%"  # 14.2M of XLM-R-base's 277M
SHAPES = {"small": (30_000, 192, 12), "base": (250_002, 768, 12), "large": (250_002, 1024, 24)}
Delta = dict[str, Tensor]
Denoising = tuple[Mapping[str, Tensor], Mapping[str, int]]  # the denoised tensors and the ranks


def delta_of(shape: str, unused: float = 0.0) -> Delta:
    """Differences whose singular values fall off evenly; a share of the embedding's rows is
    `unused`, zero."""
    vocabulary, width, layers = SHAPES[shape]
    shapes = {"embedding": (vocabulary, width), "positions": (514, width)}
    for layer in range(layers):
        for name, shape in {**dict.fromkeys("qkvo", (1, 1)), "up": (4, 1), "down": (1, 4)}.items():
            shapes[f"{layer}.{name}.weight"] = (shape[0] * width, shape[1] * width)
            shapes[f"{layer}.{name}.bias"] = (shape[0] * width,)
    generator = torch.Generator().manual_seed(0)
    delta = {}
    for name, shape in shapes.items():
        delta[name] = torch.empty(shape).normal_(generator=generator)
        delta[name] *= 1e-4 * torch.exp(-torch.arange(shape[-1]) * 5 / shape[-1])
    rows = torch.rand(vocabulary, generator=generator) < unused
    delta["embedding"][rows] = 0
    return {name: tensor.to(DEVICE) for name, tensor in delta.items()}


def plain_select(delta: Delta) -> dict[str, Tensor]:
    """All magnitudes sorted, stably, so that ties go to the first."""
    magnitudes = torch.cat([tensor.abs().view(-1) for tensor in delta.values()])
    places = (
        magnitudes.argsort(descending=True, stable=True)[: parse_k(K, len(magnitudes))]
        .sort()
        .values
    )
    starts = np.cumsum([0, *(tensor.numel() for tensor in delta.values())])
    inside = [(places >= start) & (places < end) for start, end in pairwise(starts)]
    return {
        name: places[mask] - start
        for name, mask, start in zip(delta, inside, starts[:-1], strict=True)
    }


def list_select(delta: Delta, k: int | float | str = K) -> dict[str, Tensor]:
    """As LT-SFT's published code does: a Python list of all magnitudes, its k-th largest, then a
    mask."""
    magnitudes: list[float] = []
    for tensor in delta.values():
        magnitudes.extend(tensor.abs().view(-1).tolist())
    count = parse_k(k, len(magnitudes))
    bar = np.partition(magnitudes, len(magnitudes) - count)[len(magnitudes) - count]
    return {
        name: (tensor.abs().view(-1) >= bar).nonzero().view(-1) for name, tensor in delta.items()
    }


def plain_denoise(delta: Delta, rank: str) -> Denoising:
    """The paper's section 3 as it stands: a full SVD of each matrix, L, and the largest entries of
    W - L."""
    tensors, ranks = dict(delta), {}
    for name, matrix in delta.items():
        if is_matrix(matrix):
            left, singular, right = torch.linalg.svd(matrix, full_matrices=False)
            ranks[name] = kept = rank_rule(rank)(singular, (len(matrix), matrix.shape[1]))
            low = left[:, :kept] * singular[:kept] @ right[:kept]
            places = (matrix - low).view(-1).abs().topk(round(KEEP * matrix.numel())).indices
            low.view(-1)[places] = matrix.view(-1)[places]
            tensors[name] = low
    return tensors, ranks


def same_places(_: Delta, ours: dict[str, Tensor], plain: dict[str, Tensor]) -> str:
    """How many of the chosen places differ."""
    of = sum(map(len, plain.values()))
    common = sum(
        int(torch.isin(ours[name], places, assume_unique=True).sum())
        for name, places in plain.items()
    )
    return (
        "same places"
        if common == of == sum(map(len, ours.values()))
        else f"{of - common} of {of} places differ"
    )


def same_matrices(delta: Delta, rank: str, ours: Denoising, plain: Denoising) -> str:
    """Whether the ranks agree, and each way's relative distance (Frobenius) from the plain way in
    float64.

    The distance is over the matrices of the first layer, and the embedding where that is small
    enough.
    """
    part = {
        n: t.double()
        for n, t in delta.items()
        if is_matrix(t) and (n.startswith("0.") or t.numel() < 1e7)
    }
    exact, _ = plain_denoise(part, rank)

    def apart(result: Denoising) -> float:
        distance = sum(
            float((result[0][name] - tensor).square().sum()) for name, tensor in exact.items()
        )
        return (distance / sum(float(tensor.square().sum()) for tensor in exact.values())) ** 0.5

    ranks = "same ranks" if dict(ours[1]) == dict(plain[1]) else "RANKS DIFFER"
    return f"{ranks}; from float64: ours {apart(ours):.0e}, plain {apart(plain):.0e}"


@dataclass(frozen=True)
class Row:
    """One comparison: two ways, how their results agree, and the seconds that cannot be avoided."""

    ours: Callable[[Delta], Any]
    plain: Callable[[Delta], Any]
    agree: Callable[[Delta, Any, Any], str]
    floor: Callable[[Delta, Any], float]
    unused: float = 0.0
    gigabytes: float = (
        5.0  # that the plain way takes at XLM-R base's shape: left out where they are not free
    )


def denoised(rank: str, unused: float = 0.0) -> Row:
    """A row that denoises with a rank."""

    def ours(delta: Delta) -> Denoising:
        result = denoise(delta, rank)
        return result.tensors, result.ranks

    def agree(delta: Delta, ours: Denoising, plain: Denoising) -> str:
        return same_matrices(delta, rank, ours, plain)

    return Row(ours, lambda delta: plain_denoise(delta, rank), agree, denoise_floor, unused)


def selected(delta: Delta) -> dict[str, Tensor]:
    """Our selection, as places by name."""
    return {name: places.indices for name, places in select(delta, K).items()}


def select_floor(delta: Delta, _: Any) -> float:
    """One reading of the delta."""
    return sum(tensor.nbytes for tensor in delta.values()) / bytes_per_second()


def denoise_floor(delta: Delta, result: Any) -> float:
    """Half a Gram matrix and its tridiagonal form in float64, the r vectors, and the projection in
    float32."""
    double = single = 0.0
    for name, rank in result[1].items():
        rows = int(delta[name].any(dim=1).sum())
        width, side = delta[name].shape[1], min(rows, delta[name].shape[1])
        double += rows * width * side + 4 / 3 * side**3 + 2 * side**2 * rank
        single += 4 * rows * width * rank
    return double / flops_per_second(torch.float64) + single / flops_per_second(torch.float32)


ROWS = {
    f"select {K}": Row(selected, plain_select, same_places, select_floor, gigabytes=9.0),
    f"select {K}, beside a Python list": Row(
        selected, list_select, same_places, select_floor, gigabytes=15.0
    ),
    "denoise, rank 100": denoised("100"),
    "denoise, rank 90%": denoised("90%"),
    "denoise, rank 100, 80% of the embedding zero": denoised("100", unused=0.8),
}


def compare(name: str, row: Row, shape: str, repeat: int, plain_too: bool) -> Measured:
    """One row of the table."""
    times, floor, note = timed(row, shape, repeat, plain_too)
    peaks = [
        peak_in_subprocess("--shape", shape, "--peak", name, way)
        for way in ("ours", "plain")[: len(times)]
    ]
    return Measured(name, *_two(times), floor, gigabytes=_two(peaks), note=note)


def timed(row: Row, shape: str, repeat: int, plain_too: bool) -> tuple[list[float], float, str]:
    """The seconds of our way, and of the plain one where there is memory for it; the floor; whether
    they agree."""
    delta = delta_of(shape, row.unused)
    fits = row.gigabytes * sum(tensor.numel() for tensor in delta.values()) / 277e6 < available()
    ways = [row.ours, row.plain][: 1 + (plain_too and fits)]
    times, results = alternate([partial(way, delta) for way in ways], repeat)
    note = (
        row.agree(delta, *results)
        if len(ways) == 2
        else ""
        if fits
        else "not the memory for the plain way"
    )
    return times, row.floor(delta, results[0]), note


def _two(values: list[float]) -> tuple[float, float | None]:
    return values[0], values[1] if len(values) > 1 else None


def main() -> None:
    """Parse, compare, report."""
    parser = options_of(__doc__, SHAPES, 3)
    options = parser.parse_args()
    if options.peak:
        row = ROWS[options.peak[0]]
        delta = delta_of(options.shape, row.unused)
        return print_peak(lambda: getattr(row, options.peak[1])(delta))

    def rows() -> Iterator[Measured]:
        for name, row in ROWS.items():
            if options.only in (None, name):
                yield compare(name, row, options.shape, options.repeat, not options.ours_only)

    report(rows(), options)


if __name__ == "__main__":
    main()
