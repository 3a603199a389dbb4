"""Sparse vectors: which entries of a model's backbone change, and by how much."""

import os
import reprlib
from collections.abc import (
    Callable,
    ItemsView,
    Iterable,
    Iterator,
    KeysView,
    Mapping,
    ValuesView,
)
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from deftx.core.entries import read_entries
from deftx.core.parameters import layer_of
from deftx.core.provenance import DataRecord, Provenance
from deftx.core.select import TensorMask
from deftx.errors import DeftxError

# Common entries of a tensor are counted by a mark for each of its entries where these are at most
# this many times the vectors' entries, and else by sorting.
MARKS_PER_ENTRY = 1 << 10


@dataclass(frozen=True, eq=False)
class SparseTensor:
    """The non-zero part of one tensor.

    Attributes:
        indices: Flat (row-major) indices [n] int64, strictly ascending, within the tensor's size.
        values: Their values [n], floating point.
        shape: The shape of the dense tensor.
    """

    indices: Tensor
    values: Tensor
    shape: tuple[int, ...]

    def __repr__(self) -> str:
        dtype = str(self.values.dtype).removeprefix("torch.")
        size = f"{len(self.indices):,} of {self.numel:,} entries"
        return f"SparseTensor({size}, shape={self.shape}, {dtype})"

    @property
    def numel(self) -> int:
        """The number of entries of the dense tensor."""
        return prod(self.shape)

    def to_dense(self) -> Tensor:
        """The dense tensor, zero outside the entries."""
        flat = torch.zeros(self.numel, dtype=self.values.dtype, device=self.values.device)
        return flat.index_copy_(0, self.indices, self.values).view(self.shape)

    def map(self, change: Callable[[Tensor], Tensor]) -> "SparseTensor":
        """The same indices with `change` applied to the values."""
        return replace(self, values=change(self.values))

    def to(self, device: torch.device | str) -> "SparseTensor":
        """The same entries on `device`."""
        return replace(self, indices=self.indices.to(device), values=self.values.to(device))

    def equal(self, other: "SparseTensor") -> bool:
        """Whether shape, indices and values are the same."""
        if self.shape != other.shape:
            return False
        return self.indices.equal(other.indices) and self.values.equal(other.values)


@dataclass(frozen=True, eq=False)
class Head:
    """The dense weights that a task adds on top of the backbone.

    Attributes:
        tensors: Full parameter name -> weights.
        labels: What the head's outputs stand for, in their order.
    """

    tensors: Mapping[str, Tensor]
    labels: tuple[str, ...]

    def __repr__(self) -> str:
        return f"Head({len(self.tensors)} tensors, labels={reprlib.repr(self.labels)})"

    def to(self, device: torch.device | str) -> "Head":
        """The same head on `device`."""
        return replace(self, tensors={n: tensor.to(device) for n, tensor in self.tensors.items()})

    def equal(self, other: "Head") -> bool:
        """Whether labels and weights are the same."""
        if self.labels != other.labels or self.tensors.keys() != other.tensors.keys():
            return False
        return all(tensor.equal(other.tensors[name]) for name, tensor in self.tensors.items())


@dataclass(frozen=True, eq=False)
class SparseVector:
    """A difference of weights that is zero outside its entries (φ of the paper).

    A mapping from names of tensors to their entries: `vector[name]`, `name in vector`,
    `len(vector)`, `for name in vector`.

    Vectors of one base add, subtract, negate, and are multiplied and divided by numbers as the
    dense differences would; `sum(vectors) / len(vectors)` is their mean. The entries of a sum are
    the union of the entries of its terms.

    A head is no difference, so arithmetic does not change its weights: a scaled or negated vector
    keeps its head as it is, and a sum has the head of its first term that has one. Two heads for
    different labels do not add.

    Attributes:
        tensors: Backbone parameter name (relative to the model's `base_model`) -> entries.
        head: The task's head, for task vectors only.
        provenance: Where it comes from; `base_fingerprint` identifies the base.

    Example:
        >>> import torch
        >>> from deftx import SparseTensor, SparseVector
        >>> entries = SparseTensor(torch.tensor([1, 3]), torch.tensor([0.5, -1.0]), (2, 2))
        >>> vector = SparseVector({"encoder.weight": entries})
        >>> (2 * vector)["encoder.weight"].to_dense()
        tensor([[ 0.,  1.],
                [ 0., -2.]])
    """

    __array_ufunc__ = None  # NumPy's numbers leave `number * vector` to the vector

    tensors: Mapping[str, SparseTensor]
    head: Head | None = None
    provenance: Provenance = field(default_factory=Provenance)

    def __post_init__(self) -> None:
        if not isinstance(self.provenance, Provenance):
            what = f"the provenance of a vector is a {type(self.provenance).__name__}"
            raise DeftxError(f"{what}: give deftx.Provenance(kind=..., base=...)")

    # A mapping of tensors

    def __getitem__(self, name: str) -> SparseTensor:
        return self.tensors[name]

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __bool__(self) -> bool:
        return True  # a vector without tensors is still a vector: `if vector` asks for None

    def keys(self) -> KeysView[str]:
        """The names of the tensors."""
        return self.tensors.keys()

    def values(self) -> ValuesView[SparseTensor]:
        """The entries of each tensor."""
        return self.tensors.values()

    def items(self) -> ItemsView[str, SparseTensor]:
        """Each tensor's name and entries."""
        return self.tensors.items()

    # What it is

    def __repr__(self) -> str:
        parts = [f"k={self.k:,} in {len(self)} tensors"]
        if self.base is not None:
            parts.append(f"base={self.base!r}")
        if self.task is not None:
            parts.append(f"task={self.task!r}")
        if self.languages:
            parts.append(f"languages={reprlib.repr(self.languages)}")
        if self.head is not None:
            parts.append(f"labels={reprlib.repr(self.labels)}")
        return f"SparseVector({', '.join(parts)})"

    @property
    def k(self) -> int:
        """The number of entries, over all tensors."""
        return sum(len(entries.indices) for entries in self.tensors.values())

    @property
    def base(self) -> str | None:
        """Folder or hub id of the base that it was made on, as far as it is recorded."""
        return self.provenance.base

    @property
    def task(self) -> str | None:
        """The type of task that it is for, such as `classification`; None for a language vector."""
        return self.provenance.task

    @property
    def labels(self) -> tuple[str, ...]:
        """What the outputs of its head stand for; none without a head."""
        return () if self.head is None else self.head.labels

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages that it was trained on, as far as they are recorded; of a computed vector
        those of the vectors that it was computed from."""
        return self.provenance.languages

    def density(self) -> dict[str, float]:
        """The share of each tensor's entries that the vector holds, in the order of the tensors."""
        return {
            name: len(entries.indices) / max(1, entries.numel)
            for name, entries in self.tensors.items()
        }

    def density_by_layer(self) -> dict[str, float]:
        """As `density`, with the tensors of a numbered layer taken together; other tensors go by
        the first part of their name."""
        held: dict[str, int] = {}
        sizes: dict[str, int] = {}
        for name, entries in self.tensors.items():
            layer = layer_of(name)
            held[layer] = held.get(layer, 0) + len(entries.indices)
            sizes[layer] = sizes.get(layer, 0) + entries.numel
        return {layer: count / max(1, sizes[layer]) for layer, count in held.items()}

    def equal(self, other: "SparseVector") -> bool:
        """Whether all entries, and the heads, are the same bit for bit, wherever they come from."""
        check_vectors(other)
        if self.head is None or other.head is None:
            same_head = self.head is other.head
        else:
            same_head = self.head.equal(other.head)
        return same_head and _equal_entries(self, other)

    def to_dense(self) -> dict[str, Tensor]:
        """The dense difference: tensor name -> tensor, zero outside the entries."""
        return {name: entries.to_dense() for name, entries in self.tensors.items()}

    def to(self, device: torch.device | str) -> "SparseVector":
        """The same vector on `device`: applying it to a model there then copies nothing between
        devices."""
        tensors = {name: entries.to(device) for name, entries in self.tensors.items()}
        head = None if self.head is None else self.head.to(device)
        return replace(self, tensors=tensors, head=head)

    # Arithmetic

    def __add__(self, other: "SparseVector") -> "SparseVector":
        if not isinstance(other, SparseVector):
            return NotImplemented
        check_same_base(self, other)
        top = _vector_with_head(self, other)
        tensors: dict[str, SparseTensor] = {}
        for name in dict.fromkeys([*self.tensors, *other.tensors]):
            tensors[name] = _sum(name, self.tensors.get(name), other.tensors.get(name))
        provenance = derived("sum", self, other, top=top)
        return SparseVector(tensors, None if top is None else top.head, provenance)

    def __radd__(self, other: int) -> "SparseVector":
        if isinstance(other, int) and other == 0:  # what `sum` begins with
            return self
        return NotImplemented

    def __mul__(self, scale: float) -> "SparseVector":
        if isinstance(scale, SparseVector):
            return NotImplemented
        return self._with_values(f"{scale} times", lambda values: values * scale)

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> "SparseVector":
        if isinstance(divisor, SparseVector):
            return NotImplemented
        return self._with_values(f"divided by {divisor}", lambda values: values / divisor)

    def __neg__(self) -> "SparseVector":
        return self * -1.0

    def __sub__(self, other: "SparseVector") -> "SparseVector":
        return self + -other

    def _with_values(self, operation: str, change: Callable[[Tensor], Tensor]) -> "SparseVector":
        """The vector with `change` applied to all values, and its head as it is."""
        tensors = {name: entries.map(change) for name, entries in self.tensors.items()}
        top = self if self.head is not None else None
        return SparseVector(tensors, self.head, derived(operation, self, top=top))

    # Files and the hub, under the names that transformers and PEFT users look for. These are the
    # only places where core reaches up.

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str]) -> "SparseVector":
        """The vector in a folder, or under an id on the hub: `deftx.load(name)`."""
        from deftx.storage.vector_files import load

        return load(name)

    def save_pretrained(self, folder: str | os.PathLike[str], *, force: bool = False) -> None:
        """Save the vector in a folder: `deftx.save(vector, folder, force=force)`."""
        from deftx.storage.vector_files import save

        save(self, folder, force=force)

    def push_to_hub(self, repo: str, **options: Any) -> str:
        """Push the vector to the hub's repository USER/NAME: `deftx.push(vector, repo,
        **options)`."""
        from deftx.hub.share import push

        return push(self, repo, **options)


def entries_at(delta: Mapping[str, Tensor], selection: Mapping[str, TensorMask]) -> SparseVector:
    """The entries of a dense difference at selected indices, as a float32 vector on the CPU.

    Args:
        delta: Tensor name -> difference.
        selection: Tensor name -> indices, see `select`.
    """
    tensors: dict[str, SparseTensor] = {}
    for name, mask in selection.items():
        values = read_entries(delta[name].detach(), mask.indices)
        tensors[name] = SparseTensor(mask.indices.cpu(), values.float().cpu(), mask.shape)
    return SparseVector(tensors)


def overlap(first: SparseVector, second: SparseVector) -> float:
    """The share of the smaller vector's indices that the larger has too (paper, Figures 2 and
    3)."""
    check_vectors(first, second)
    smaller = min(first.k, second.k)
    if not smaller:
        return 0.0
    common = 0
    for name, entries in first.tensors.items():
        if name in second.tensors:
            common += _count_common(entries, second.tensors[name])
    return common / smaller


def _count_common(first: SparseTensor, second: SparseTensor) -> int:
    """How many indices two tensors have in common.

    A mark for each entry of the tensor is faster than sorting the indices together, but needs
    memory for the tensor, which a file may say is larger than any memory.
    """
    size = max(first.numel, second.numel)
    count = len(first.indices) + len(second.indices)
    if size > MARKS_PER_ENTRY * (count + 1):
        return int(torch.isin(first.indices, second.indices, assume_unique=True).sum())
    is_marked = torch.zeros(size, dtype=torch.bool, device=first.indices.device)
    is_marked[first.indices] = True
    return int(is_marked[second.indices].sum())


def check_same_base(*vectors: SparseVector) -> None:
    """Raise DeftxError unless all vectors that record their base record the same one."""
    names: dict[str, str] = {}
    for vector in vectors:
        fingerprint = vector.provenance.base_fingerprint
        if fingerprint:
            names[fingerprint] = vector.base or "unnamed"
    if len(names) > 1:
        listing = ", ".join(f"{name} ({digest[:12]})" for digest, name in names.items())
        raise DeftxError(f"vectors of different bases do not combine: {listing}")


def check_same_tokenizer(*vectors: SparseVector) -> None:
    """Raise DeftxError unless all vectors that record their tokenizer record the same one."""
    names: dict[str, str] = {}
    for vector in vectors:
        tokenizer = vector.provenance.tokenizer
        if tokenizer is not None and tokenizer.digest is not None:
            names[tokenizer.digest] = str(tokenizer.name)
    if len(names) > 1:
        listing = ", ".join(f"{name} ({digest[:12]})" for digest, name in names.items())
        raise DeftxError(f"vectors made with different tokenizers do not combine: {listing}")


def as_list(vectors: SparseVector | Iterable[SparseVector]) -> list[SparseVector]:
    """One vector or several, as a list.

    Raises:
        DeftxError: What is given is neither, such as the name of a vector, or vectors by name.
    """
    if isinstance(vectors, Mapping):
        what = "vectors by name are given where one vector or a list is wanted"
        raise DeftxError(f"{what}: for many languages on one base use deftx.Switcher")
    several = isinstance(vectors, Iterable) and not isinstance(vectors, SparseVector | str)
    result: list[Any] = list(vectors) if several else [vectors]
    check_vectors(*result)
    return result


def check_vectors(*candidates: object) -> None:
    """Raise DeftxError for what is no vector, such as the name of one."""
    for candidate in candidates:
        if isinstance(candidate, str | os.PathLike):
            name = str(candidate)
            raise DeftxError(
                f"{name!r} is the name of a vector, not one: give deftx.load({name!r})"
            )
        if not isinstance(candidate, SparseVector):
            what = f"a {type(candidate).__name__} is given where a vector is wanted"
            fix = "give what deftx.load or a fit returns, several one after the other"
            raise DeftxError(f"{what}: {fix}")


def check_language(*vectors: SparseVector) -> None:
    """Raise DeftxError for a task vector, known by its head, where language vectors are wanted, and
    for what is no vector."""
    check_vectors(*vectors)
    for number, vector in enumerate(vectors, 1):
        if vector.head is None:
            continue
        which = "the vector"
        if len(vectors) > 1:
            which = f"vector {number} of {len(vectors)}"
        labels = ", ".join(vector.head.labels)
        what = f"{which} given as a language is a task vector, for {labels}"
        raise DeftxError(f"{what}: give one that `deftx fit language` made")


def check_distinct(*vectors: SparseVector) -> None:
    """Raise DeftxError where one vector comes twice: its changes would be made twice."""
    for number, second in enumerate(vectors):
        for earlier, first in enumerate(vectors[:number]):
            if first is second or (first.k > 0 and _equal_entries(first, second)):
                what = f"vectors {earlier + 1} and {number + 1} of {len(vectors)} are the same"
                fix = "give each once (to weigh one more, scale it in Python: 2 * vector)"
                raise DeftxError(f"{what}: {fix}")


def derived(operation: str, *vectors: SparseVector, top: SparseVector | None = None) -> Provenance:
    """The provenance of a computed vector.

    Args:
        operation: What was done, such as `sum`.
        vectors: What it was computed from.
        top: The one of them whose head the computed vector has: how a model with the head is to be
            fed is kept of it.
    """
    terms = tuple(vector.provenance for vector in vectors)
    provenance = Provenance(operation=operation, terms=terms)
    for term in terms:
        if term.base_fingerprint:
            provenance = replace(provenance, base=term.base, base_fingerprint=term.base_fingerprint)
            break
    if top is None:
        return provenance
    of_head = top.provenance
    return replace(
        provenance,
        task=of_head.task,
        training=of_head.training,
        labels=of_head.labels,
        tokenizer=of_head.tokenizer,
        data=DataRecord(lower_case=of_head.data.lower_case, pairs=of_head.data.pairs),
    )


def _vector_with_head(first: SparseVector, second: SparseVector) -> SparseVector | None:
    """The first of two vectors that has a head. Raises DeftxError for heads of different labels."""
    if first.head is None:
        return second if second.head is not None else None
    if second.head is not None and first.head.labels != second.head.labels:
        labels = f"{', '.join(first.head.labels)} and {', '.join(second.head.labels)}"
        what = f"cannot add two vectors whose heads have different labels ({labels})"
        raise DeftxError(f"{what}: choose a head with deftx.merge(task=[...], head=0)")
    return first


def _equal_entries(first: SparseVector, second: SparseVector) -> bool:
    """Whether two vectors have the same entries, whatever their heads."""
    if first is second:
        return True
    if first.k != second.k or first.tensors.keys() != second.tensors.keys():
        return False
    return all(entries.equal(second.tensors[name]) for name, entries in first.tensors.items())


def _sum(name: str, first: SparseTensor | None, second: SparseTensor | None) -> SparseTensor:
    """The sum of the entries that two vectors have for one tensor; None: a vector has none."""
    if first is None or second is None:
        present = first or second
        assert present is not None
        return present
    if first.shape != second.shape:
        raise DeftxError(
            f"tensor {name!r} has shape {first.shape} in one vector and {second.shape} in the other"
        )
    both = torch.cat([first.indices, second.indices])
    indices, places = both.unique(return_inverse=True)
    dtype = torch.promote_types(first.values.dtype, second.values.dtype)
    values = torch.zeros(len(indices), dtype=dtype, device=indices.device)
    values.index_add_(0, places, torch.cat([first.values.to(dtype), second.values.to(dtype)]))
    return SparseTensor(indices, values, first.shape)
