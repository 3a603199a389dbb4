"""The figures of docs/method.md and docs/settings.md, from what phase 1 of a real fit learnt.

    python scripts/figures.py WORK/phase1.safetensors

Such a file is in OUT.work while `deftx fit` is in phase 2, and in RUN/work of a run that goes on.
That of the
figures: `deftx run` with the task of recipes/nusax-nano.yaml (batches of 8, 600 steps, seed 0, no
source vector).
"""

import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from deftx.core.denoise import denoise
from deftx.core.select import select
from deftx.core.tensors import SparseTensor
from deftx.core.vector import SparseVector, overlap
from deftx.storage.tensors import load_tensors

FOLDER = Path(__file__).parents[1] / "docs" / "figures"
CORNER, K = 48, "10%"
MATRIX = "encoder.layer.3.attention.self.value.weight"
KINDS = {
    "query": "attention.self.query.weight",
    "value": "attention.self.value.weight",
    "feed-forward": "intermediate.dense.weight",
}
SHADES = {1: "#9bb4e5", 3: "#4f6db8", 5: "#1d2f66"}  # by layer


def selections(delta: Mapping[str, Tensor]) -> dict[str, SparseVector]:
    """What is selected without and with denoising, as vectors of the selected entries."""
    found = {}
    for name, denoised in {
        "LT-SFT": delta,
        "DeFT-X, rank 90%": denoise(delta, "90%"),
        "DeFT-X, rank 64": denoise(delta, 64),
    }.items():
        places = select(denoised, K)
        entries = {
            n: SparseTensor(p.indices, denoised[n].reshape(-1)[p.indices], p.shape)
            for n, p in places.items()
        }
        found[name] = SparseVector(entries)
    return found


def matrix(delta: Mapping[str, Tensor], chosen: Mapping[str, SparseVector]) -> Figure:
    """A corner of one matrix: the difference, denoised, and what is selected of either."""
    denoised = denoise({MATRIX: delta[MATRIX]}, 64)[MATRIX]
    bound = float(delta[MATRIX][:CORNER, :CORNER].abs().max()) / 1.5
    panels = {
        "difference": delta[MATRIX],
        "denoised (rank 64)": denoised,
        "selected by LT-SFT": chosen["LT-SFT"].tensors[MATRIX].to_dense(),
        "selected by DeFT-X": chosen["DeFT-X, rank 64"].tensors[MATRIX].to_dense(),
    }
    figure = Figure(figsize=(9, 2.7), layout="constrained")
    for axes, (title, values) in zip(figure.subplots(1, 4), panels.items(), strict=True):
        axes.imshow(
            values[:CORNER, :CORNER].numpy(),
            cmap="RdBu_r",
            vmin=-bound,
            vmax=bound,
            interpolation="nearest",
        )
        axes.set_title(title, fontsize=10)
        axes.set(xticks=[], yticks=[])
    return figure


def rank(delta: Mapping[str, Tensor]) -> Figure:
    """The share of the squared norm that the first r singular values hold, for several matrices."""
    figure = Figure(figsize=(9, 3), layout="constrained")
    for axes, (kind, ending) in zip(
        figure.subplots(1, len(KINDS), sharey=True), KINDS.items(), strict=True
    ):
        for layer, shade in SHADES.items():
            squares = torch.linalg.svdvals(
                delta[f"encoder.layer.{layer}.{ending}"].double()
            ).square()
            axes.plot(
                range(1, len(squares) + 1),
                100 * squares.cumsum(0) / squares.sum(),
                color=shade,
                label=f"layer {layer}",
            )
        axes.axhline(90, color="grey", linestyle=":")
        axes.set(title=kind, xlabel="rank", ylim=(0, 102))
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("share of the squares (%)")
    figure.axes[-1].legend(frameon=False, loc="lower right")
    return figure


def density(chosen: Mapping[str, SparseVector]) -> Figure:
    """The share of each layer's entries that is selected."""
    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = figure.subplots()
    for number, (name, colour) in enumerate(
        zip(chosen, ["#b9bfcc", "#4f6db8", "#3b9463"], strict=True)
    ):
        layers = chosen[name].density_by_layer()
        places = [place + 0.27 * (number - 1) for place in range(len(layers))]
        axes.bar(places, [100 * share for share in layers.values()], 0.25, label=name, color=colour)
    axes.set_xticks(range(len(layers)), [layer.removeprefix("encoder.") for layer in layers])
    axes.set_ylabel("entries selected (%)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def main() -> None:
    """Draw all of them."""
    found = load_tensors(Path(sys.argv[1]))
    if found is None:
        sys.exit(f"{sys.argv[1]} is not what phase 1 learnt")
    delta = {name: tensor for name, tensor in found[0].items() if tensor.numel()}
    chosen = selections(delta)
    for name, vector in chosen.items():
        print(f"{name}: shares {overlap(chosen['LT-SFT'], vector):.1%} of its places with LT-SFT")
    for name, figure in {
        "matrix": matrix(delta, chosen),
        "rank": rank(delta),
        "density": density(chosen),
    }.items():
        figure.savefig(FOLDER / f"{name}.png", dpi=110)


if __name__ == "__main__":
    main()
