"""Sparse vectors: which entries of a model's backbone change, and by how much."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from deftx.core.entries import read_entries
from deftx.core.parameters import layer_of
from deftx.core.select import SparseMask
from deftx.errors import DeftxError

DENSE = 1 << 10  # entries of a tensor for each of a vector, up to which they are counted by marks
KEPT_WITH_HEAD = (
    "task",
    "training",
    "labels",
    "tokenizer",
)  # of what is noted: how a model with the head is fed
KEPT_OF_DATA = ("lower_case", "pairs")


@dataclass(frozen=True, eq=False)
class SparseTensor:
    """The non-zero part of one tensor: `values[i]` stands at flat index `indices[i]`.

    indices  [n] int64, strictly ascending, within the tensor's size
    values   [n] floating point
    shape    the shape of the dense tensor
    """

    indices: Tensor
    values: Tensor
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """The number of entries of the dense tensor."""
        return prod(self.shape)

    def dense(self) -> Tensor:
        """The dense tensor, zero outside the entries."""
        flat = torch.zeros(self.numel, dtype=self.values.dtype, device=self.values.device)
        return flat.index_copy_(0, self.indices, self.values).view(self.shape)

    def map(self, change: Callable[[Tensor], Tensor]) -> "SparseTensor":
        """The same places with `change` applied to the values."""
        return replace(self, values=change(self.values))


@dataclass(frozen=True, eq=False)
class Head:
    """The dense weights a task adds on top of the backbone, and the labels they stand for."""

    tensors: Mapping[str, Tensor]
    labels: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class SparseVector:
    """A difference of weights that is zero outside its entries (φ of the paper).

    tensors  backbone parameter name (relative to the model's `base_model`) -> entries
    head     the task's head, for task vectors only
    info     where it came from: JSON-like data; `base_fingerprint` names the base it belongs to

    Vectors of one base add, subtract, negate, and are multiplied and divided by numbers as the
    dense differences would; `sum(vectors) / len(vectors)` is their mean. The places of a sum are
    the union of the places of its terms. Heads do not add: at most one term may have one, and only
    addition keeps it, with how it is to be fed.
    """

    tensors: Mapping[str, SparseTensor]
    head: Head | None = None
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def k(self) -> int:
        """The number of entries, over all tensors."""
        return sum(len(entries.indices) for entries in self.tensors.values())

    def __add__(self, other: "SparseVector") -> "SparseVector":
        if not isinstance(other, SparseVector):
            return NotImplemented
        check_same_base(self, other)
        if self.head is not None and other.head is not None:
            raise DeftxError(
                "cannot add two vectors that both have a head: heads of tasks do not add up"
            )
        names = [*self.tensors, *(name for name in other.tensors if name not in self.tensors)]
        tensors = {
            name: _sum(name, self.tensors.get(name), other.tensors.get(name)) for name in names
        }
        top = next((vector for vector in (self, other) if vector.head), None)
        return SparseVector(
            tensors, top.head if top else None, derived("sum", self, other, top=top)
        )

    def __radd__(self, other: int) -> "SparseVector":
        return (
            self if isinstance(other, int) and other == 0 else NotImplemented
        )  # what `sum` begins with

    def __mul__(self, scale: float) -> "SparseVector":
        if isinstance(scale, SparseVector):
            return NotImplemented
        tensors = {
            name: entries.map(lambda values: values * scale)
            for name, entries in self.tensors.items()
        }
        return SparseVector(tensors, None, derived(f"{scale} times", self))

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> "SparseVector":
        if isinstance(divisor, SparseVector):
            return NotImplemented
        tensors = {
            name: entries.map(lambda values: values / divisor)
            for name, entries in self.tensors.items()
        }
        return SparseVector(tensors, None, derived(f"divided by {divisor}", self))

    def __neg__(self) -> "SparseVector":
        return self * -1.0

    def __sub__(self, other: "SparseVector") -> "SparseVector":
        return self + -other

    def to(self, device: torch.device | str) -> "SparseVector":
        """The same vector on `device`, beside a model there: applying it moves nothing over
        then."""
        tensors = {
            n: replace(e, indices=e.indices.to(device), values=e.values.to(device))
            for n, e in self.tensors.items()
        }
        head = self.head and replace(
            self.head, tensors={n: t.to(device) for n, t in self.head.tensors.items()}
        )
        return replace(self, tensors=tensors, head=head)

    def density(self) -> dict[str, float]:
        """The share of each tensor's entries that the vector holds, in the order of the tensors."""
        return {
            name: len(entries.indices) / max(1, entries.numel)
            for name, entries in self.tensors.items()
        }

    def density_by_layer(self) -> dict[str, float]:
        """As `density`, the tensors of a numbered layer together; others go by the first part of
        their name."""
        layers: dict[str, list[SparseTensor]] = {}
        for name, entries in self.tensors.items():
            layers.setdefault(layer_of(name), []).append(entries)
        sizes = {layer: max(1, sum(e.numel for e in of)) for layer, of in layers.items()}
        return {
            layer: sum(len(e.indices) for e in of) / sizes[layer] for layer, of in layers.items()
        }

    def push_to_hub(self, repo: str, **options: Any) -> str:
        """Put the vector into the hub's repository USER/NAME: `deftx.push(vector, repo,
        **options)`."""
        from deftx.hub.share import (
            push,  # the one place where core reaches up: the method is what users look for
        )

        return push(self, repo, **options)


def entries_at(delta: Mapping[str, Tensor], selection: SparseMask) -> SparseVector:
    """What a dense difference holds at the places of a selection, as a vector on the CPU."""
    places = {name: (some.indices.cpu(), some.shape) for name, some in selection.items()}
    values = {
        name: read_entries(delta[name].detach(), some.indices).float().cpu()
        for name, some in selection.items()
    }
    return SparseVector(
        {
            name: SparseTensor(indices, values[name], shape)
            for name, (indices, shape) in places.items()
        }
    )


def overlap(first: SparseVector, second: SparseVector) -> float:
    """The share of the smaller vector's places that the other holds too (paper, Figures 2 and
    3)."""
    check_vectors(first, second)
    common = sum(
        _common(entries, second.tensors[name])
        for name, entries in first.tensors.items()
        if name in second.tensors
    )
    smaller = min(first.k, second.k)
    return common / smaller if smaller else 0.0


def _common(one: SparseTensor, other: SparseTensor) -> int:
    """How many places both have: a mark for each entry of the tensor is faster than sorting the
    places together, but needs room for the tensor, which a file may say is larger than any
    memory."""
    if max(one.numel, other.numel) > DENSE * (len(one.indices) + len(other.indices) + 1):
        return int(torch.isin(one.indices, other.indices, assume_unique=True).sum())
    marked = torch.zeros(max(one.numel, other.numel), dtype=torch.bool, device=one.indices.device)
    marked[one.indices] = True
    return int(marked[other.indices].sum())


def check_same_base(*vectors: SparseVector) -> None:
    """Raise DeftxError unless all vectors that name their base name the same one."""
    bases = {
        vector.info["base_fingerprint"]: vector
        for vector in vectors
        if vector.info.get("base_fingerprint")
    }
    if len(bases) > 1:
        named = ", ".join(
            f"{v.info.get('base', 'unnamed')} ({print_[:12]})" for print_, v in bases.items()
        )
        raise DeftxError(f"vectors of different bases do not combine: {named}")


def check_same_tokenizer(*vectors: SparseVector) -> None:
    """Raise DeftxError unless all vectors that note their tokenizer note the same one."""
    noted = [
        vector.info["tokenizer"]
        for vector in vectors
        if isinstance(vector.info.get("tokenizer"), Mapping)
    ]
    read = {about["digest"]: about for about in noted if isinstance(about.get("digest"), str)}
    if len(read) > 1:
        named = ", ".join(f"{about.get('name')} ({digest[:12]})" for digest, about in read.items())
        raise DeftxError(f"vectors made with different tokenizers do not combine: {named}")


def listed(some: SparseVector | Sequence[SparseVector]) -> list[SparseVector]:
    """One vector or several, as a list. Raises DeftxError as `check_vectors` does."""
    vectors = list(some) if isinstance(some, Iterable) and not isinstance(some, str) else [some]
    check_vectors(*vectors)
    return vectors


def check_vectors(*given: object) -> None:
    """Raise DeftxError for what is no vector, such as the name of one."""
    for each in given:
        if isinstance(each, str | os.PathLike):
            raise DeftxError(
                f"{str(each)!r} is the name of a vector, not one: give deftx.load({str(each)!r})"
            )
        if not isinstance(each, SparseVector):
            what = f"a {type(each).__name__} is given where a vector is wanted"
            raise DeftxError(
                f"{what}: give what deftx.load or a fit returns, several one after the other"
            )


def check_language(*vectors: SparseVector) -> None:
    """Raise DeftxError for a task vector, known by its head, where language vectors are wanted, and
    for no vector."""
    check_vectors(*vectors)
    for place, vector in enumerate(vectors, 1):
        if vector.head is not None:
            which = f"vector {place} of {len(vectors)}" if len(vectors) > 1 else "the vector"
            what = (
                f"{which} given as a language is a task vector, for {', '.join(vector.head.labels)}"
            )
            raise DeftxError(f"{what}: give one that `deftx fit language` made")


def check_distinct(*vectors: SparseVector) -> None:
    """Raise DeftxError where one vector comes twice: its changes would be made twice."""
    for place, second in enumerate(vectors):
        for earlier, first in enumerate(vectors[:place]):
            if _same(first, second):
                what = f"vectors {earlier + 1} and {place + 1} of {len(vectors)} are the same"
                raise DeftxError(
                    f"{what}: give each once (to weigh one more, scale it in Python: 2 * vector)"
                )


def _same(first: SparseVector, second: SparseVector) -> bool:
    if first is second:
        return True
    if first.k != second.k or not first.k or first.tensors.keys() != second.tensors.keys():
        return False
    pairs = [(entries, second.tensors[name]) for name, entries in first.tensors.items()]
    return all(
        one.indices.equal(other.indices) and one.values.equal(other.values) for one, other in pairs
    )


def _sum(name: str, first: SparseTensor | None, second: SparseTensor | None) -> SparseTensor:
    if first is None or second is None:
        present = first or second
        assert present is not None
        return present
    if first.shape != second.shape:
        raise DeftxError(
            f"tensor {name!r} has shape {first.shape} in one vector and {second.shape} in the other"
        )
    indices, places = torch.cat([first.indices, second.indices]).unique(return_inverse=True)
    dtype = torch.promote_types(first.values.dtype, second.values.dtype)
    values = torch.zeros(len(indices), dtype=dtype, device=indices.device)
    values.index_add_(0, places, torch.cat([first.values.to(dtype), second.values.to(dtype)]))
    return SparseTensor(indices, values, first.shape)


def derived(
    operation: str, *vectors: SparseVector, top: SparseVector | None = None
) -> dict[str, Any]:
    """Provenance of a computed vector: the base it belongs to, what it was computed from, and
    KEPT_WITH_HEAD and KEPT_OF_DATA of the vector `top`, whose head it has."""
    named = [vector.info for vector in vectors if vector.info.get("base_fingerprint")]
    base = (
        {key: named[0][key] for key in ("base", "base_fingerprint") if key in named[0]}
        if named
        else {}
    )
    about = {key: top.info[key] for key in KEPT_WITH_HEAD if key in top.info} if top else {}
    data = top.info.get("data") if top else None
    if isinstance(data, Mapping) and (
        kept := {key: data[key] for key in KEPT_OF_DATA if key in data}
    ):
        about["data"] = kept
    return {
        **about,
        **base,
        "operation": operation,
        "of": [dict(vector.info) for vector in vectors],
    }
