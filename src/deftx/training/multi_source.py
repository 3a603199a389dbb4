"""Training on several languages at once: each batch is of one language, with that language's vector
in the weights.

Between batches no language is in the weights: they are θ0 + φ_task so far. A language is added
before the forward pass of a batch and taken off after its backward pass, to the last bit. So the
gradient of φ_task is the one at θ0 + φ_language + φ_task, there is one φ_task for all languages,
and neither the optimiser nor sparse tuning nor a checkpoint need know of them, also where a
language changes entries that are tuned.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from statistics import mean
from typing import Any

import torch
from torch import Generator, Tensor, nn

from deftx.core.apply import apply_temporarily
from deftx.core.entries import read_entries, write_entries
from deftx.core.parameters import parameter_groups
from deftx.core.vector import SparseVector
from deftx.objectives.base import Batch, Objective
from deftx.training.embedding_rows import EmbeddingRows

LANGUAGE = "language"  # of a batch [batch]: the number of its language


@dataclass(frozen=True, eq=False)
class MultiSource:
    """Objectives of several languages as one, for a model at θ0; made by `multi_source`.

    Attributes:
        parts: Language -> its objective.
        vectors: Language -> its vector, on the model's device.
        train: All batches: the number of their language, and their examples. The loop takes a batch
            as one item.
        batch_size: Examples of a batch.
        digest: A name of all of this.
    """

    parts: Mapping[str, Objective]
    vectors: Mapping[str, SparseVector]
    train: Sequence[tuple[int, list[Any]]]
    batch_size: int
    digest: str

    @property
    def metric(self) -> str:
        """That of all parts."""
        return next(iter(self.parts.values())).metric

    @property
    def greater_is_better(self) -> bool:
        """That of all parts."""
        return next(iter(self.parts.values())).greater_is_better

    @property
    def vocabulary_used(self) -> Tensor:
        """All token ids of all languages [n]."""
        ids: Tensor = torch.cat([part.vocabulary_used for part in self.parts.values()]).unique()
        return ids

    def collate(self, examples: list[Any], generator: Generator | None = None) -> Batch:
        """The one batch in `examples`, with the number of its language."""
        ((number, rows),) = examples
        batch = self._part(number).collate(rows, generator)
        return {**batch, LANGUAGE: torch.full((len(rows),), number)}

    @contextmanager
    def training_context(self, model: nn.Module, batch: Batch) -> Iterator[None]:
        """The batch's language is in the weights."""
        vectors = list(self.vectors.values())
        with in_language(model, vectors[int(batch[LANGUAGE][0])]):
            yield

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """That of the batch's language."""
        return self._part(int(batch[LANGUAGE][0])).loss(model, _without_language(batch))

    def loss_denominator(self, batch: Batch) -> int:
        """That of the batch's language."""
        return self._part(int(batch[LANGUAGE][0])).loss_denominator(_without_language(batch))

    def validate(self, model: nn.Module, batch_size: int) -> dict[str, float]:
        """Each score as its mean over the languages, each with its own vector and data."""
        by_language = []
        for name, part in self.parts.items():
            with in_language(model, self.vectors[name]):
                examples = batch_size * self.batch_size  # an item is a batch
                by_language.append(part.validate(model, examples))
        means = {}
        for name in by_language[0]:
            means[name] = mean(scores[name] for scores in by_language)
        return means

    def _part(self, number: int) -> Objective:
        return list(self.parts.values())[number]


def _without_language(batch: Batch) -> Batch:
    return {name: tensor for name, tensor in batch.items() if name != LANGUAGE}


def multi_source(
    parts: Mapping[str, Objective],
    vectors: Mapping[str, SparseVector],
    *,
    batch_size: int,
    temperature: float,
    seed: int,
) -> MultiSource:
    """Objectives and vectors by language as one objective, its batches drawn by `seed`.

    Args:
        parts: Language -> objective.
        vectors: Language -> vector.
        batch_size: Examples of a batch.
        temperature: T decides how often a language with n examples is seen, where the largest has
            n_max: n_max · (n / n_max)^(1/T) examples an epoch. 1: as many as it has; the higher,
                the nearer to n_max.
        seed: Draws which examples make a batch.
    """
    most = max(len(part.train) for part in parts.values())
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for number, part in enumerate(parts.values()):
        count = len(part.train)
        examples_per_epoch = round(most * (count / most) ** (1 / temperature))
        passes = ceil(examples_per_epoch / count)  # each example as often as others, give or take 1
        orders = [torch.randperm(count, generator=generator) for _ in range(passes)]
        order = torch.cat(orders)[:examples_per_epoch]
        for rows in order.split(batch_size):
            batches.append((number, [part.train[row] for row in rows.tolist()]))
    named = [(name, part.digest, _digest(vectors[name])) for name, part in parts.items()]
    digest = hashlib.sha256(repr((named, batch_size, temperature, seed)).encode()).hexdigest()
    return MultiSource(parts, vectors, batches, batch_size, digest)


@contextmanager
def in_language(model: nn.Module, vector: SparseVector) -> Iterator[None]:
    """`apply_temporarily`, also to embedding rows that are trained by themselves, and to autocast's
    copies of the weights."""
    rows = getattr(model, "trainable_embedding_rows", None)
    with apply_temporarily(model, vector), _fresh_autocast_copies():
        if rows is None:
            yield
            return
        indices, values = _entries_in_rows(model, rows, vector)
        before = read_entries(rows.values.detach(), indices)
        try:
            write_entries(rows.values.detach(), indices, before.float() + values)
            yield
        finally:
            write_entries(rows.values.detach(), indices, before)


@contextmanager
def _fresh_autocast_copies() -> Iterator[None]:
    """Within the block and after it autocast casts weights from what they are now, not from what
    they were before."""
    torch.clear_autocast_cache()
    try:
        yield
    finally:
        torch.clear_autocast_cache()


def _entries_in_rows(
    model: nn.Module, rows: EmbeddingRows, vector: SparseVector
) -> Sequence[Tensor]:
    """The vector's entries in these rows.

    Returns:
        Flat indices into the rows [n], and values [n] float32.
    """
    device = rows.ids.device
    for name, weight in parameter_groups(model).backbone.items():
        if weight is rows.weight and name in vector:
            entries = vector[name].to(device)
            is_in_rows = rows.row_of_id[entries.indices // weight.shape[1]] >= 0
            return rows.local(entries.indices[is_in_rows]), entries.values[is_in_rows].float()
    return torch.empty(0, dtype=torch.int64, device=device), torch.empty(0, device=device)


def _digest(vector: SparseVector) -> str:
    """A name of a vector's entries."""
    whole = hashlib.sha256()
    for name, entries in vector.tensors.items():
        whole.update(
            f"{name} {entries.shape} {len(entries.indices)} {entries.values.dtype}\n".encode()
        )
        whole.update(entries.indices.cpu().numpy().tobytes())
        whole.update(entries.values.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()
