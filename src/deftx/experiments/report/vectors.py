"""What the vectors of a run show: their overlaps, where their entries lie, the ranks that denoising
kept, and the curves of their training."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from deftx.core.denoise import singular_values
from deftx.core.provenance import Provenance
from deftx.core.ranks import is_matrix
from deftx.core.tensors import SparseTensor
from deftx.core.vector import SparseVector, overlap
from deftx.experiments.recipe import TASK
from deftx.experiments.run_folder import RunData, StepRecord
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

LayerAndKind = tuple[int | None, str]  # number of a layer (None: outside of them), kind of tensor
History = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class Curve:
    """One phase of one training.

    Attributes:
        metric: Name of the held-out values.
        training: Step and training loss.
        held_out: Step and value on held-out data.
    """

    metric: str
    training: list[tuple[float, float]]
    held_out: list[tuple[float, float]]


@dataclass
class VectorStatistics:
    """What the finished vectors of a run show; a `part` is LANGUAGE or TASK.

    Attributes:
        overlap_with_task: Variant and language -> share of indices that its vector and the task's
            have in common, one for each seed.
        overlap_of_languages: Variant -> two languages -> share of indices that their vectors have
            in common, for the first seed.
        density: Variant and part -> layer and kind -> share of the entries there that vectors hold,
            over languages and seeds.
        ranks: Variant and part -> layer and kind -> the ranks that denoising kept there.
        curves: Language or TASK, and phase -> variant -> a curve for each seed.
    """

    overlap_with_task: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    overlap_of_languages: dict[str, dict[tuple[str, str], float]] = field(default_factory=dict)
    density: dict[tuple[str, str], dict[LayerAndKind, float]] = field(default_factory=dict)
    ranks: dict[tuple[str, str], dict[LayerAndKind, list[int]]] = field(default_factory=dict)
    curves: dict[tuple[str, int], dict[str, list[Curve]]] = field(default_factory=dict)


def vector_statistics(run: RunData) -> VectorStatistics:
    """What the finished vectors of a run show. One variant and seed is in memory at a time."""
    statistics = VectorStatistics()
    for variant in run.variants:
        # vectors of a recipe without seeds count as those of seed 0
        steps_by_seed: dict[int, dict[str, StepRecord]] = {}
        for step in run.vectors(variant):
            if step.name:
                steps_by_seed.setdefault(step.seed or 0, {})[step.name] = step

        counts: dict[str, dict[LayerAndKind, _EntryCount]] = {}
        for seed in sorted(steps_by_seed):
            vectors = {}
            for name, step in steps_by_seed[seed].items():
                vectors[name] = load(run.store / step.id / VECTOR)
            _add_overlaps(statistics, run, variant, vectors)
            for name, vector in vectors.items():
                part = TASK if name == TASK else LANGUAGE
                _add_counts(counts.setdefault(part, {}), vector.tensors)
                _add_ranks(statistics, variant, part, vector)
                for phase, curve in _curves(vector.provenance):
                    by_variant = statistics.curves.setdefault((name, phase), {})
                    by_variant.setdefault(variant, []).append(curve)

        for part, by_place in counts.items():
            shares = {place: count.held / count.size for place, count in by_place.items()}
            statistics.density[variant, part] = shares
    return statistics


def layer_and_kind(name: str) -> LayerAndKind:
    """The layer of a parameter and the kind of its tensor.

    Example:
        >>> layer_and_kind("encoder.layer.3.attention.self.query.weight")
        (3, 'query')
    """
    layer = None
    rest = name
    numbered = re.match(r"(?:.+?\.)?(\d+)\.(.+)", name)
    if numbered:
        layer = int(numbered[1])
        rest = numbered[2]
    if rest.endswith(".bias"):
        return layer, BIASES
    rest = rest.removesuffix(".weight")
    own_name = rest.removeprefix("embeddings.").replace("_", " ")
    kind = KINDS.get(rest, own_name)
    # the layers of a decoder have the numbers of the encoder's
    if numbered and name.startswith("decoder."):
        kind = f"decoder: {kind}"
    return layer, kind


def spectra(run: RunData) -> dict[str, dict[LayerAndKind, torch.Tensor]]:
    """Singular values of what phase 1 changed in the layers' matrices, for one language and the
    task.

    Not every run keeps these differences of weights; the first one of a language and the first one
    of the task that there are count.

    Returns:
        Name of the language or TASK -> layer and kind of matrix -> singular values.
    """
    steps = []
    for step in run.steps:
        if step.kind == "delta" and step.id in run.finished and step.name:
            steps.append(step)
    # the lowest seed first, targets before the languages of the labelled data
    steps.sort(key=lambda step: (step.seed or 0, step.name in run.recipe.labelled))
    languages = [step for step in steps if step.name != TASK]
    tasks = [step for step in steps if step.name == TASK]

    singular: dict[str, dict[LayerAndKind, torch.Tensor]] = {}
    for candidates in (languages, tasks):
        name, delta = _first_delta(run, candidates)
        of_matrices: dict[LayerAndKind, torch.Tensor] = {}
        for parameter, difference in delta.items():
            layer, kind = layer_and_kind(parameter)
            if layer is not None and is_matrix(difference):
                of_matrices[layer, kind] = singular_values(difference)
        if of_matrices:
            singular[name] = of_matrices
    return singular


def _first_delta(run: RunData, steps: Sequence[StepRecord]) -> tuple[str, dict[str, torch.Tensor]]:
    """Name and difference of weights of the first step that has its difference still."""
    for step in steps:
        delta = run.delta(step)
        if delta:
            return str(step.name), delta
    return "", {}


def _add_overlaps(
    statistics: VectorStatistics,
    run: RunData,
    variant: str,
    vectors: Mapping[str, SparseVector],
) -> None:
    """Add the overlaps of the vectors of one seed, as far as the recipe asks for them."""
    languages = [name for name in vectors if name != TASK]
    if TASK in vectors and run.recipe.overlap != "languages":
        for name in languages:
            shared = overlap(vectors[name], vectors[TASK])
            statistics.overlap_with_task.setdefault((variant, name), []).append(shared)

    is_first_seed = variant not in statistics.overlap_of_languages
    is_asked_for = run.recipe.overlap != "language-task"
    if len(languages) > 1 and is_first_seed and is_asked_for:
        shares = {}
        for number, first in enumerate(languages):
            for second in languages[: number + 1]:
                shares[first, second] = overlap(vectors[first], vectors[second])
        statistics.overlap_of_languages[variant] = shares


@dataclass
class _EntryCount:
    """How many entries vectors hold in some tensors, of how many there are."""

    held: int = 0
    size: int = 0


def _add_counts(
    counts: dict[LayerAndKind, _EntryCount], tensors: Mapping[str, SparseTensor]
) -> None:
    """Add the entries of a vector to the counts by layer and kind."""
    for name, tensor in tensors.items():
        count = counts.setdefault(layer_and_kind(name), _EntryCount())
        count.held += len(tensor.indices)
        count.size += tensor.numel


def _add_ranks(statistics: VectorStatistics, variant: str, part: str, vector: SparseVector) -> None:
    """Add the ranks that denoising kept for a vector; there are none where it was not denoised."""
    ranks = vector.provenance.ranks or {}
    for name, rank in ranks.items():
        by_place = statistics.ranks.setdefault((variant, part), {})
        by_place.setdefault(layer_and_kind(name), []).append(rank)


def _curves(provenance: Provenance) -> Iterator[tuple[int, Curve]]:
    """The phases of a training whose history is kept."""
    metric = provenance.training.metric or "loss"
    for phase in (1, 2):
        course = provenance.log.get(f"phase{phase}")
        if course is not None and course.history:
            history = course.history
            training = _points(history, "train_loss")
            held_out = _points(history, f"eval_{metric}")
            yield phase, Curve(metric, training, held_out)


def _points(history: History, key: str) -> list[tuple[float, float]]:
    """Step and value of the rows that have the key."""
    return [(row["step"], row[key]) for row in history if key in row]
