"""Folders as a run leaves them, made up in a second: what the tests of the report read."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from sklearn.metrics import accuracy_score, f1_score

from deftx.core.provenance import PhaseLog, Provenance, TrainingRecord
from deftx.core.tensors import SparseTensor
from deftx.core.vector import SparseVector
from deftx.storage.tensors import save_tensors
from deftx.storage.vector_files import save

VARIANTS: dict[str, dict[str, Any]] = {
    "no language vector": {"source": False, "target": False, "task": {"method": "lt-sft"}},
    "LT-SFT": {"language": {"method": "lt-sft"}, "task": {"method": "lt-sft"}},
    "DeFT-X 90%": {"language": {"rank": "90%"}, "task": {"rank": "90%"}},
}
SKILL = {
    "no language vector": 0.58,
    "LT-SFT": 0.66,
    "DeFT-X 90%": 0.74,
}  # the share of right answers
LABELS = ["negative", "neutral", "positive"]
PAPER = {
    "table": "Table 2",
    "url": "https://example.org/paper",
    "rows": {
        "LT-SFT": {"ace": 71.5, "min": 80.25, "bbc": 33.0},
        "DeFT-X": {"ace": 72.0, "min": 81.0},
    },
}
WIDTH, LAYERS = 16, 4
SHAPES = {
    "embeddings.word_embeddings.weight": (40, WIDTH),
    **{
        f"encoder.layer.{layer}.{name}": shape
        for layer in range(LAYERS)
        for name, shape in {
            "attention.self.query.weight": (WIDTH, WIDTH),
            "attention.self.query.bias": (WIDTH,),
            "attention.self.value.weight": (WIDTH, WIDTH),
            "intermediate.dense.weight": (2 * WIDTH, WIDTH),
            "output.dense.weight": (WIDTH, 2 * WIDTH),
        }.items()
    },
}


class Writer:
    """Writes a run step by step; a step's id is its kind and a running number."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store, self.steps = folder, folder.parent / "store", []
        self.generator = torch.Generator().manual_seed(0)

    def step(
        self, kind: str, variant: Sequence[str], seed: int, name: str, inputs: Sequence[str] = ()
    ) -> Path:
        """The folder of a new finished step."""
        step = {
            "id": f"{kind}-{len(self.steps):04x}",
            "kind": kind,
            "variant": [*variant],
            "seed": seed,
            "name": name,
        }
        self.steps.append({**step, "inputs": [*inputs]})
        folder = self.store / str(step["id"])
        folder.mkdir(parents=True)
        about = {
            "id": step["id"],
            "kind": kind,
            "seconds": 90.0,
            "settings": {"k": "5%"},
            "finished": "2026-01-01",
        }
        versions = {"deftx": "0.1.0", "torch": "2.13.0"}
        (folder / "step.json").write_text(json.dumps({**about, "versions": versions}))
        return folder

    def delta(self, variants: Sequence[str], seed: int, name: str, *, kept: bool) -> str:
        folder = self.step("delta", variants, seed, name)
        if kept:
            tensors = {
                key: torch.randn(shape, generator=self.generator) for key, shape in SHAPES.items()
            }
            save_tensors(folder / "phase1.safetensors", tensors, {})
        return folder.name

    def vector(self, variant: str, seed: int, name: str, delta: str) -> None:
        folder = self.step("vector", [variant], seed, name, [delta])
        save(random_vector(self.generator, variant, name), folder / "vector")

    def score(
        self, variant: str, seed: int, language: str, count: int, skill: float
    ) -> dict[str, Any]:
        folder = self.step("score", [variant], seed, language)
        fixed = torch.Generator().manual_seed(
            len(language)
        )  # the same truth for every variant and seed
        true = torch.randint(len(LABELS), (count,), generator=fixed)
        hard = torch.rand(count, generator=fixed)  # the same examples are hard for all
        noise = torch.randn(count, generator=self.generator)
        right = hard + 0.15 * noise < skill
        other = (true + 1 + (noise > 0)) % len(LABELS)
        predicted = torch.where(right, true, other).tolist()
        answers = {"true": true.tolist(), "predicted": predicted, "labels": LABELS}
        (folder / "predictions.json").write_text(json.dumps(answers))
        f1 = f1_score(true.tolist(), predicted, average="macro")
        found = {
            "macro_f1": f1,
            "accuracy": accuracy_score(true.tolist(), predicted),
            "step": folder.name,
        }
        return {"variant": variant, "seed": seed, "language": language, "examples": count, **found}


def history(phase: int, metric: str, generator: torch.Generator) -> list[dict[str, float]]:
    """Training losses and held-out scores of a phase."""
    rows: list[dict[str, float]] = []
    for step in range(10, 110, 10):
        noise = 0.05 * float(torch.randn((), generator=generator))
        value = 5 - 0.02 * step - 0.1 * phase + noise
        rows.append({"step": step, "train_loss": value + 0.2})
        if step % 20 == 0:
            rows.append(
                {"step": step, f"eval_{metric}": value if metric == "loss" else 0.4 + 0.004 * step}
            )
    return rows


def random_vector(generator: torch.Generator, variant: str, name: str) -> SparseVector:
    tensors = {}
    for key, shape in SHAPES.items():
        size = torch.Size(shape).numel()
        share = 0.1 + 0.05 * (sum(map(ord, key)) % 5)
        places = (torch.rand(size, generator=generator) < share).nonzero().view(-1)
        tensors[key] = SparseTensor(places, torch.randn(len(places), generator=generator), shape)
    metric = "macro_f1" if name == "task" else "loss"
    log = {
        f"phase{n}": PhaseLog(best_step=100, history=history(n, metric, generator)) for n in (1, 2)
    }
    ranks = {key: 3 + n % 7 for n, (key, shape) in enumerate(SHAPES.items()) if len(shape) == 2}
    training = {"metric": metric} if name == "task" else {}
    provenance = Provenance(
        base_fingerprint="f" * 64,
        training=TrainingRecord(training),
        ranks=ranks if "DeFT" in variant else {},
        log=log,
    )
    return SparseVector(tensors, provenance=provenance)


def make_run(
    folder: Path,
    variants: Mapping[str, dict[str, Any]] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    languages: Sequence[str] = ("ace", "min", "ban"),
    *,
    skill: Mapping[str, float] | None = None,
    examples: int = 200,
    vectors: bool = True,
    deltas: bool = True,
    ngrams: bool = False,
    **recipe: Any,
) -> Path:
    """A finished run whose variants are right as often as `skill` says; `recipe` replaces values of
    recipe.json."""
    variants, skill = VARIANTS if variants is None else variants, skill or SKILL
    folder.mkdir(parents=True)
    writer = Writer(folder)
    tested = [*languages, "ind"]
    rows = (
        [writer.score("character n-grams", 0, name, examples, 0.7) for name in tested]
        if ngrams
        else []
    )
    for seed in seeds:
        for number, (variant, settings) in enumerate(variants.items()):
            for name in (
                [*(tested if settings.get("target", True) else []), "task"] if vectors else []
            ):
                kept = deltas and not seed and number == len(variants) - 1
                delta = writer.delta([*variants], seed, name, kept=kept)
                writer.vector(variant, seed, name, delta)
            level = skill.get(variant, 0.6)
            rows += [
                writer.score(variant, seed, name, examples, level + 0.01 * (seed - 1))
                for name in tested
            ]
    data = {
        "name": "nusax-nano",
        "title": "NusaX sentiment on nano-xlmr",
        "base": "/home/somebody/models/nano-xlmr",
        "source": "ind",
        "seeds": [*seeds],
        "languages": {name: f"/home/somebody/corpora/{name}.txt" for name in tested},
        "test": {name: f"/home/somebody/nusax/{name}.tsv" for name in tested},
        "metric": "macro_f1",
        "baseline": "LT-SFT",
        "variants": {**variants},
        "paper": PAPER,
        "overlap": None,
    }
    (folder / "recipe.json").write_text(json.dumps({**data, **recipe}))
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "steps.json").write_text(json.dumps({"store": "../store", "steps": writer.steps}))
    trimmed = {
        "ace": "3 of 1,200 (2 same, 1 contained)",
        "labelled data": "518 of 11,000 (518 nearly the same)",
    }
    (folder / "trimmed.json").write_text(json.dumps(trimmed))
    return folder
