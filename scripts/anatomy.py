"""What a language's difference is made of: spectra, selected entries, overlaps.

    python scripts/anatomy.py NAME=DIFFERENCE [NAME=DIFFERENCE ...] [--k 2.8%] [--width 384]

A difference δ = θ1 − θ0 is what phase 1 left, such as `phase1.safetensors` of a `delta` step in a
run's store. Prints, as Markdown:

1. by kind of matrix: how much of δ's energy (squared Frobenius norm) the largest singular values
   carry, and the rank that 90% of it takes;
2. which share of the k selected entries is in which kind of parameter, by LT-SFT (the largest of δ)
   and by DeFT-X (the largest of the denoised δ), and how many rows of the embedding they touch;
3. the overlap of LT-SFT's and DeFT-X's entries, for several k and kept shares;
4. the overlap of each pair of languages by each method.
"""

import argparse
import itertools
from collections.abc import Mapping
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor

from deftx.core.denoise import denoise, singular_values
from deftx.core.select import SparseMask, select
from deftx.storage.tensors import load_tensors

Delta = Mapping[str, Tensor]

# kind of parameter -> a part of its tensors' names; the first that fits
KINDS = {
    "word embedding": "word_embeddings",
    "position embedding": "position_embeddings",
    "attention": "attention",
    "feed-forward": "dense",
}
OTHERS = "others"
SHARES_OF_K = ("0.5%", "1%", "2.8%", "5%", "10%")
RANKS = {"90%": 0.9, "100 of 768": None}  # None: the same share of this base's width
KEEPS = (0.0, 0.005, 0.05)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("difference", nargs="+")
    parser.add_argument("--k", default="2.8%")
    parser.add_argument("--width", type=int, default=384)
    options = parser.parse_args()
    torch.set_num_threads(1)
    deltas = dict(read_difference(argument) for argument in options.difference)
    paper_rank = round(options.width * 100 / 768)

    print_spectra(deltas, paper_rank)
    masks = {name: masks_by_method(delta, options.k, paper_rank) for name, delta in deltas.items()}
    print_kinds(masks)
    print_overlaps_of_methods(deltas, paper_rank)
    print_overlaps_of_languages(masks)


def read_difference(argument: str) -> tuple[str, Delta]:
    """NAME=FILE as a name and its tensors, without those of the head."""
    name, file = argument.split("=", 1)
    loaded = load_tensors(Path(file))
    if loaded is None:
        raise SystemExit(f"{file}: no phase 1 is there")
    tensors, _ = loaded
    return name, {key: value for key, value in tensors.items() if not key.startswith("head/")}


def kind_of_parameter(name: str) -> str:
    """Which of KINDS a tensor is; biases and the rest are OTHERS."""
    if name.endswith("weight"):
        for kind, part in KINDS.items():
            if part in name:
                return kind
    return OTHERS


def masks_by_method(delta: Delta, k: str, paper_rank: int) -> dict[str, SparseMask]:
    """method -> the entries that it selects."""
    return {
        "LT-SFT": select(delta, k),
        "DeFT-X 90%": select(denoise(delta, 0.9), k),
        "DeFT-X 100 of 768": select(denoise(delta, paper_rank), k),
    }


def print_spectra(deltas: Mapping[str, Delta], paper_rank: int) -> None:
    """Table 1: means over matrices and languages."""
    tops = (1, 8, 32, paper_rank)
    print(f"| matrices | {' | '.join(f'energy in {top}' for top in tops)} | rank of 90% | full |")
    print("| --- " * (len(tops) + 3) + "|")
    for kind in KINDS:
        rows = []
        for delta in deltas.values():
            for name, matrix in delta.items():
                if kind_of_parameter(name) == kind:
                    rows.append(spectrum(matrix, tops))
        cells = [mean(values) for values in zip(*rows, strict=True)]
        energies = " | ".join(f"{100 * energy:.0f}%" for energy in cells[: len(tops)])
        print(f"| {kind} | {energies} | {cells[-2]:.0f} | {cells[-1]:.0f} |")
    print()


def spectrum(matrix: Tensor, tops: tuple[int, ...]) -> list[float]:
    """The share of the energy in the largest singular values, the rank of 90%, the full rank."""
    energy = singular_values(matrix).square()
    if not energy.sum():
        return [0.0] * len(tops) + [0.0, float(len(energy))]
    cumulative = energy.cumsum(0) / energy.sum()
    shares = [float(cumulative[min(top, len(energy)) - 1]) for top in tops]
    rank = int((cumulative < 0.9).sum()) + 1
    return [*shares, float(rank), float(len(energy))]


def print_kinds(masks: Mapping[str, Mapping[str, SparseMask]]) -> None:
    """Table 2: means over languages."""
    kinds = [*KINDS, OTHERS]
    print(f"| entries of | {' | '.join(kinds)} | rows of the word embedding |")
    print("| --- " * (len(kinds) + 2) + "|")
    for method in next(iter(masks.values())):
        rows = [where_entries_are(by_method[method], kinds) for by_method in masks.values()]
        *shares, n_rows = (mean(values) for values in zip(*rows, strict=True))
        cells = " | ".join(f"{100 * share:.1f}%" for share in shares)
        print(f"| {method} | {cells} | {n_rows:,.0f} |")
    print()


def where_entries_are(mask: SparseMask, kinds: list[str]) -> list[float]:
    """The share of the entries by kind of parameter, and the rows of the word embedding in use."""
    counts = dict.fromkeys(kinds, 0)
    n_rows = 0
    for name, entries in mask.items():
        kind = kind_of_parameter(name)
        counts[kind] += len(entries.indices)
        if kind == "word embedding":
            n_rows += len(torch.unique(entries.indices // entries.shape[1]))
    return [count / mask.k for count in counts.values()] + [float(n_rows)]


def print_overlaps_of_methods(deltas: Mapping[str, Delta], paper_rank: int) -> None:
    """Table 3: means over languages."""
    print(f"| rank, keep | {' | '.join(f'k = {k}' for k in SHARES_OF_K)} |")
    print("| --- " * (len(SHARES_OF_K) + 1) + "|")
    for title, rank in RANKS.items():
        for keep in KEEPS:
            overlaps: dict[str, list[float]] = {k: [] for k in SHARES_OF_K}
            for delta in deltas.values():
                denoised = denoise(delta, rank or paper_rank, keep)
                for k, values in overlaps.items():
                    values.append(common_share(select(delta, k), select(denoised, k)))
            cells = " | ".join(f"{100 * mean(values):.0f}%" for values in overlaps.values())
            print(f"| {title}, {100 * keep:g}% | {cells} |")
    print()


def print_overlaps_of_languages(masks: Mapping[str, Mapping[str, SparseMask]]) -> None:
    """Table 4: each pair of languages, by each method."""
    methods = list(next(iter(masks.values())))
    print(f"| languages | {' | '.join(methods)} |")
    print("| --- " * (len(methods) + 1) + "|")
    for first, second in itertools.combinations(masks, 2):
        shares = [common_share(masks[first][name], masks[second][name]) for name in methods]
        cells = " | ".join(f"{100 * share:.0f}%" for share in shares)
        print(f"| {first}, {second} | {cells} |")


def common_share(first: SparseMask, second: SparseMask) -> float:
    """The share of the smaller mask's entries that the other has too."""
    common = 0
    for name, mask in first.items():
        if name in second:
            common += int(torch.isin(mask.indices, second[name].indices).sum())
    return common / min(first.k, second.k)


if __name__ == "__main__":
    main()
