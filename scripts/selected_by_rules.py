"""Which entries each rule for the rank selects: `python scripts/selected_by_rules.py K
DIFFERENCE...`.

The differences are those of phase 1, such as `phase1.safetensors` in a step of a run's store. For
each rule: the share of a matrix's rank that it keeps, the mean over attention, feed-forward and
embedding matrices; and, in percent, which of the places that DeFT-X selects with 90% of the
variance it selects too, and which of those that LT-SFT selects. All are means over the differences.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import mean

from torch import Tensor

from deftx.core.denoise import denoise
from deftx.core.select import select
from deftx.core.vector import entries_at, overlap
from deftx.storage.tensors import load_tensors

RULES = [
    "90%",
    "50%",
    "95%",
    "32",
    "64",
    "128",
    "gavish-donoho",
    "bulk-edge",
    "effective",
    "stable",
]
KINDS = {"attention": "attention", "feed-forward": "dense", "embedding": "word_embeddings"}


def task_type(name: str) -> str:
    """Which of KINDS a matrix is; the first that its name has, empty for none."""
    return next((kind for kind, part in KINDS.items() if part in name), "")


def compared(delta: Mapping[str, Tensor], k: str) -> dict[str, list[float]]:
    """For each rule its row: shares of the rank by kind, and of the places of 90% and of LT-SFT."""
    found = {rule: denoise(delta, rule) for rule in RULES}
    vectors = {rule: entries_at(delta, select(each, k)) for rule, each in found.items()}
    plain = entries_at(delta, select(delta, k))
    full = {name: min(delta[name].shape) for name in found["90%"].ranks}

    def row(rule: str) -> list[float]:
        shares = [
            mean(
                rank / full[name]
                for name, rank in found[rule].ranks.items()
                if task_type(name) == kind
            )
            for kind in KINDS
        ]
        return [*shares, overlap(vectors[rule], vectors["90%"]), overlap(vectors[rule], plain)]

    return {rule: row(rule) for rule in RULES}


def main() -> None:
    """Print the table."""
    k, *files = sys.argv[1:]
    tables = [compared(kept[0], k) for file in files if (kept := load_tensors(Path(file)))]
    print(f"means over {len(tables)} differences, in percent\n")
    print(
        f"| rule | rank: {' | '.join(KINDS)} | places of 90% | places of LT-SFT |\n{'| --- ' * 6}|"
    )
    for rule in RULES:
        cells = (
            f"{100 * mean(values):.1f}"
            for values in zip(*(table[rule] for table in tables), strict=True)
        )
        print(f"| {rule} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
