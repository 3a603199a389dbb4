"""Training on several languages at once: each batch is of one language, with that language's vector in the weights.

Between batches no language is in the weights: they are θ0 + φ_task so far. A language is added before the forward pass
of a batch and taken off after its backward pass, to the last bit. So the gradient of φ_task is the one at
θ0 + φ_language + φ_task, there is one φ_task for all languages, and neither the optimiser nor sparse tuning nor a
checkpoint need know of them, also where a language changes entries that are tuned.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

from deftx.core.backbone import backbone
from deftx.core.compose import applied
from deftx.core.entries import read_entries, write_entries
from deftx.core.vector import SparseVector
from deftx.training.loop import Objective
from deftx.training.rows import Rows

LANGUAGE = "language"  # of a batch [batch]: the number of its language


@dataclass(frozen=True, eq=False)
class Several:
    """One objective of several, for a model at θ0; made by `several`.

    parts    language -> its objective;  vectors: language -> its vector, on the model's device
    train    all batches: the number of their language, and their examples. One of them is one item to the Trainer
    """

    parts: Mapping[str, Objective]
    vectors: Mapping[str, SparseVector]
    train: list[tuple[int, list[Any]]]
    batch_size: int
    digest: str

    sampling = "random"

    @property
    def metric(self) -> str:
        """That of all parts."""
        return next(iter(self.parts.values())).metric

    @property
    def greater_is_better(self) -> bool:
        """That of all parts."""
        return next(iter(self.parts.values())).greater_is_better

    @property
    def tokens(self) -> Tensor:
        """All token ids of all languages [n]."""
        ids: Tensor = torch.cat([part.tokens for part in self.parts.values()]).unique()
        return ids

    def collate(self, examples: list[Any]) -> dict[str, Tensor]:
        """The one batch in `examples`, with the number of its language."""
        ((number, rows),) = examples
        return {**self._part(number).collate(rows), LANGUAGE: torch.full((len(rows),), number)}

    @contextmanager
    def within(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Iterator[None]:
        """The forward and the backward pass of a batch belong in here."""
        with in_language(model, list(self.vectors.values())[int(batch[LANGUAGE][0])]):
            yield

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """That of the batch's language."""
        inputs = {name: tensor for name, tensor in batch.items() if name != LANGUAGE}
        return self._part(int(batch[LANGUAGE][0])).loss(model, inputs)

    def validate(self, model: nn.Module, batch_size: int) -> dict[str, float]:
        """Each score as its mean over the languages, each with its own vector and data."""
        found = []
        for name, part in self.parts.items():
            with in_language(model, self.vectors[name]):
                found.append(part.validate(model, batch_size * self.batch_size))  # an item is a batch
        return {score: mean(scores[score] for scores in found) for score in found[0]}

    def _part(self, number: int) -> Objective:
        return list(self.parts.values())[number]


def several(
    parts: Mapping[str, Objective],
    vectors: Mapping[str, SparseVector],
    *,
    batch_size: int,
    temperature: float,
    seed: int,
) -> Several:
    """Language -> objective and language -> vector as one objective, its batches drawn by `seed`.

    temperature  how often a language is seen, against the one with the most examples n_max: n_max · (n / n_max)^(1/T)
                 examples an epoch. 1: as many as it has; the higher, the nearer to n_max
    """
    most = max(len(part.train) for part in parts.values())
    generator, batches = torch.Generator().manual_seed(seed), []
    for number, part in enumerate(parts.values()):
        wanted = round(most * (len(part.train) / most) ** (1 / temperature))
        passes = [torch.randperm(len(part.train), generator=generator) for _ in range(-(-wanted // len(part.train)))]
        order = torch.cat(passes)[:wanted]  # every example as often as any other, but for one
        batches += [(number, [part.train[row] for row in rows.tolist()]) for rows in order.split(batch_size)]
    named = [(name, part.digest, _digest(vectors[name])) for name, part in parts.items()]
    digest = hashlib.sha256(repr((named, batch_size, temperature, seed)).encode()).hexdigest()
    return Several(parts, vectors, batches, batch_size, digest)


@contextmanager
def in_language(model: nn.Module, vector: SparseVector) -> Iterator[None]:
    """`applied`, also to embedding rows that are apart, and to what autocast keeps of the weights in half precision."""
    rows = getattr(model, "rows_that_are_apart", None)
    with applied(model, vector), _cast_anew():
        if rows is None:
            yield
            return
        indices, values = _in_rows(model, rows, vector)
        before = read_entries(rows.values.detach(), indices)
        try:
            write_entries(rows.values.detach(), indices, before.float() + values)
            yield
        finally:
            write_entries(rows.values.detach(), indices, before)


@contextmanager
def _cast_anew() -> Iterator[None]:
    """Within the block and after it, weights are cast from what they are now: autocast casts them once, and would go on
    with that as long as it is on."""
    torch.clear_autocast_cache()
    try:
        yield
    finally:
        torch.clear_autocast_cache()


def _in_rows(model: nn.Module, rows: Rows, vector: SparseVector) -> Sequence[Tensor]:
    """The vector's entries in the rows that are apart: flat indices into these [n], and values [n] float32."""
    name = next(name for name, weight in backbone(model).items() if weight is rows.weight)
    if name not in vector.tensors:
        return torch.empty(0, dtype=torch.int64, device=rows.ids.device), torch.empty(0, device=rows.ids.device)
    entries = vector.tensors[name]
    indices = entries.indices.to(rows.ids.device)
    reached = rows.place[indices // rows.weight.shape[1]] >= 0
    return rows.local(indices[reached]), entries.values.to(rows.ids.device)[reached].float()


def _digest(vector: SparseVector) -> str:
    """A name of a vector's entries."""
    whole = hashlib.sha256()
    for name, entries in vector.tensors.items():
        whole.update(f"{name} {entries.shape} {len(entries.indices)} {entries.values.dtype}\n".encode())
        whole.update(entries.indices.cpu().numpy().tobytes())
        whole.update(entries.values.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()
