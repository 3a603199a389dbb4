"""A recipe on a tiny base, which takes seconds: what the tests of runs share."""

from pathlib import Path

import torch
import yaml
from tiny import save_base, sentences

import deftx
from deftx.experiments.recipe import Recipe, load_recipe

TRAINING = {
    "learning_rate": 1e-2,
    "max_steps": 4,
    "evaluate_every": 2,
    "batch_size": 4,
    "length": 16,
}
RECIPE = {
    "base": "base",
    "source": "src",
    "train": "src.tsv",
    "valid": "src.tsv",
    "languages": {"src": "src.txt", "tar": "tar.txt"},
    "test": {"tar": "tar.tsv", "src": "src.tsv"},
    "contamination": "ignore",
    "ngrams": True,
    "language": {"k": "5%", "training": {**TRAINING, "min_steps": 0}},
    "task": {"k": "5%", "training": TRAINING},
    "variants": {
        "none": {"source": False, "target": False, "task": {"method": "lt-sft"}},
        "LT-SFT": {"language": {"method": "lt-sft"}, "task": {"method": "lt-sft"}},
        "DeFT-X": {"language": {"rank": 2}, "task": {"rank": 2}},
    },
}


def labelled(path: Path, seed: int, count: int = 40) -> None:
    """Sentences labelled by the vowel they end in."""
    rows = [f"{text}\t{'front' if text[-1] in 'ei' else 'back'}" for text in sentences(count, seed)]
    path.write_text("\n".join(["text\tlabel", *rows]) + "\n")


def write_recipe(folder: Path) -> Path:
    """The base, the data and `recipe.yaml` in `folder`, which comes back."""
    save_base(folder / "base")
    for number, name in enumerate(["src", "tar"]):
        (folder / f"{name}.txt").write_text("\n".join(sentences(60, number)))
        labelled(folder / f"{name}.tsv", number)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    return folder


def recipe(folder: Path, changes: dict[str, object] | None = None) -> Recipe:
    return load_recipe(folder / "recipe.yaml", changes)


def same(first: Path, second: Path) -> bool:
    one, other = deftx.load(first), deftx.load(second)
    return one.tensors.keys() == other.tensors.keys() and all(
        torch.equal(a.indices, b.indices) and torch.equal(a.values, b.values)
        for a, b in ((one.tensors[name], other.tensors[name]) for name in one.tensors)
    )
