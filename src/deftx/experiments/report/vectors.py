"""What the vectors of a run show: what they share, where their entries lie, their ranks, how they
were learnt."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from deftx.core.denoise import singular_values
from deftx.core.ranks import is_matrix
from deftx.core.vector import SparseTensor, SparseVector, overlap
from deftx.experiments.recipe import TASK
from deftx.experiments.run_folder import RunData
from deftx.experiments.store import VECTOR
from deftx.storage.vector_files import load

LANGUAGE = "language"
BIASES = "biases"
# kinds of matrices as people call them, by the ends of their names in BERT, DistilBERT and the like
KINDS = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "attention out",
    "intermediate.dense": "feed-forward in",
    "output.dense": "feed-forward out",
    "attention.q_lin": "query",
    "attention.k_lin": "key",
    "attention.v_lin": "value",
    "attention.out_lin": "attention out",
    "ffn.lin1": "feed-forward in",
    "ffn.lin2": "feed-forward out",
    "self_attn.q_proj": "query",
    "self_attn.k_proj": "key",
    "self_attn.v_proj": "value",
    "self_attn.o_proj": "attention out",
    "attn.Wqkv": "query, key, value",
    "attn.Wo": "attention out",
    "mlp.Wi": "feed-forward in",
    "mlp.Wo": "feed-forward out",
}

Place = tuple[int | None, str]  # number of a layer (None: outside of them) and kind of its tensor
History = list[dict[str, float]]


@dataclass(frozen=True)
class Curve:
    """One phase of one fit: (step, value) of its training losses and of its held-out `metric`."""

    metric: str
    training: list[tuple[float, float]]
    held_out: list[tuple[float, float]]


@dataclass
class Seen:
    """What was found, with LANGUAGE or TASK as the `part` of a vector.

    with_task   variant, language -> the shares of places common to its vector and the task's, by
                seed
    languages   variant -> two languages -> the share of places common to their vectors, for the
                first seed
    places      variant, part -> place -> share of the entries there that vectors hold, over
                languages and seeds
    ranks       variant, part -> place -> the ranks that matrices there kept
    curves      language or TASK, phase -> variant -> a curve for each seed
    """

    with_task: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    languages: dict[str, dict[tuple[str, str], float]] = field(default_factory=dict)
    places: dict[tuple[str, str], dict[Place, float]] = field(default_factory=dict)
    ranks: dict[tuple[str, str], dict[Place, list[int]]] = field(default_factory=dict)
    curves: dict[tuple[str, int], dict[str, list[Curve]]] = field(default_factory=dict)


def look(run: RunData) -> Seen:
    """All that the finished vectors of a run show. One variant and seed is in memory at a time."""
    seen = Seen()
    for variant in run.variants:
        counts: dict[str, dict[Place, tuple[int, int]]] = {}
        for seed in sorted({step.seed or 0 for step in run.vectors(variant)}):
            steps = {
                step.name: step
                for step in run.vectors(variant)
                if (step.seed or 0) == seed and step.name
            }
            vectors = {name: load(run.store / step.id / VECTOR) for name, step in steps.items()}
            _overlaps(seen, run, variant, vectors)
            for name, vector in vectors.items():
                part = TASK if name == TASK else LANGUAGE
                _count(counts.setdefault(part, {}), vector.tensors)
                for tensor, rank in vector.info.get("ranks", {}).items():
                    seen.ranks.setdefault((variant, part), {}).setdefault(
                        place_of(tensor), []
                    ).append(rank)
                for phase, curve in _curves(vector.info):
                    seen.curves.setdefault((name, phase), {}).setdefault(variant, []).append(curve)
        for part, found in counts.items():
            seen.places[variant, part] = {
                place: held / size for place, (held, size) in found.items()
            }
    return seen


def place_of(name: str) -> Place:
    """Where a parameter stands: `encoder.layer.3.attention.self.query.weight` -> (3, "query")."""
    numbered = re.match(r"(?:.+?\.)?(\d+)\.(.+)", name)
    rest = numbered[2] if numbered else name
    if rest.endswith(".bias"):
        return int(numbered[1]) if numbered else None, BIASES
    rest = rest.removesuffix(".weight")
    kind = KINDS.get(rest, rest.removeprefix("embeddings.").replace("_", " "))
    side = (
        "decoder: " if numbered and name.startswith("decoder.") else ""
    )  # whose layers have the encoder's numbers
    return int(numbered[1]) if numbered else None, side + kind


def spectra(run: RunData) -> dict[str, dict[Place, torch.Tensor]]:
    """The singular values of what phase 1 changed in the layers' matrices, for one language and the
    task, by name.

    Of those deltas that are kept still, the first of either.
    """
    kept = [
        step for step in run.steps if step.kind == "delta" and step.id in run.finished and step.name
    ]
    kept.sort(key=lambda step: (step.seed or 0, step.name in run.recipe.labelled))
    found = {}
    for of_task in (False, True):
        deltas = (
            (str(step.name), run.delta(step)) for step in kept if (step.name == TASK) == of_task
        )
        name, delta = next(((name, delta) for name, delta in deltas if delta), ("", {}))
        matrices = {place_of(key): tensor for key, tensor in delta.items() if is_matrix(tensor)}
        found[name] = {
            place: singular_values(w) for place, w in matrices.items() if place[0] is not None
        }
    return {name: values for name, values in found.items() if values}


def _overlaps(seen: Seen, run: RunData, variant: str, vectors: Mapping[str, SparseVector]) -> None:
    languages = [name for name in vectors if name != TASK]
    if TASK in vectors and run.recipe.overlap != "languages":
        for name in languages:
            shared = overlap(vectors[name], vectors[TASK])
            seen.with_task.setdefault((variant, name), []).append(shared)
    if (
        len(languages) > 1
        and run.recipe.overlap != "language-task"
        and variant not in seen.languages
    ):
        seen.languages[variant] = {
            (one, other): overlap(vectors[one], vectors[other])
            for place, one in enumerate(languages)
            for other in languages[: place + 1]
        }


def _count(counts: dict[Place, tuple[int, int]], tensors: Mapping[str, SparseTensor]) -> None:
    for name, entries in tensors.items():
        held, size = counts.get(place := place_of(name), (0, 0))
        counts[place] = held + len(entries.indices), size + entries.numel


def _curves(info: Mapping[str, Any]) -> Iterator[tuple[int, Curve]]:
    """The phases of a fit whose history is kept."""
    metric = info.get("training", {}).get("metric", "loss")
    for phase in (1, 2):
        history: History = info.get("log", {}).get(f"phase{phase}", {}).get("history", [])
        if history:
            yield (
                phase,
                Curve(metric, _points(history, "train_loss"), _points(history, f"eval_{metric}")),
            )


def _points(history: History, key: str) -> list[tuple[float, float]]:
    return [(row["step"], row[key]) for row in history if key in row]
