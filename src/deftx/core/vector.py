"""Sparse vectors: which entries of a model's backbone change, and by how much."""

import os
import reprlib
from collections import Counter
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, ValuesView
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from deftx.core.entries import read_entries
from deftx.core.parameters import layer_of
from deftx.core.provenance import DataRecord, Provenance
from deftx.core.select import TensorMask
from deftx.core.tensors import Head, SparseTensor, count_common, tensor_sum
from deftx.errors import DeftxError


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
        shares = {}
        for name, entries in self.tensors.items():
            shares[name] = len(entries.indices) / max(1, entries.numel)
        return shares

    def density_by_layer(self) -> dict[str, float]:
        """As `density`, with the tensors of a numbered layer taken together; other tensors go by
        the first part of their name."""
        counts: Counter[str] = Counter()
        sizes: Counter[str] = Counter()
        for name, entries in self.tensors.items():
            layer = layer_of(name)
            counts[layer] += len(entries.indices)
            sizes[layer] += entries.numel
        shares = {}
        for layer, count in counts.items():
            shares[layer] = count / max(1, sizes[layer])
        return shares

    def equal(self, other: "SparseVector") -> bool:
        """Whether all entries, and the heads, are the same bit for bit, wherever they come from."""
        check_vectors(other)
        if self.head is None or other.head is None:
            same_head = self.head is other.head
        else:
            same_head = self.head.equal(other.head)
        return same_head and self.equal_entries(other)

    def equal_entries(self, other: "SparseVector") -> bool:
        """As `equal`, whatever the heads."""
        if self is other:
            return True
        if self.k != other.k or self.tensors.keys() != other.tensors.keys():
            return False
        return all(entries.equal(other.tensors[name]) for name, entries in self.tensors.items())

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
        head = None if top is None else top.head
        tensors: dict[str, SparseTensor] = {}
        for name in dict.fromkeys([*self.tensors, *other.tensors]):
            first = self.tensors.get(name)
            second = other.tensors.get(name)
            tensors[name] = tensor_sum(name, first, second)
        return SparseVector(tensors, head, derived("sum", self, other, top=top))

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
        top = None if self.head is None else self
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
            common += count_common(entries, second.tensors[name])
    return common / smaller


def check_same_base(*vectors: SparseVector) -> None:
    """Check that all vectors that record their base record the same one.

    Raises:
        DeftxError: Two record different ones.
    """
    names: dict[str, str] = {}
    for vector in vectors:
        fingerprint = vector.provenance.base_fingerprint
        if fingerprint:
            names[fingerprint] = vector.base or "unnamed"
    if len(names) > 1:
        listing = ", ".join(f"{name} ({digest[:12]})" for digest, name in names.items())
        raise DeftxError(f"vectors of different bases do not combine: {listing}")


def check_vectors(*candidates: object) -> None:
    """Check that all are vectors, not the names of some.

    Raises:
        DeftxError: One is not.
    """
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
    """The first of two vectors that has a head.

    Raises:
        DeftxError: Their heads have different labels.
    """
    if first.head is None:
        return None if second.head is None else second
    if second.head is not None and first.head.labels != second.head.labels:
        first_labels = ", ".join(first.head.labels)
        second_labels = ", ".join(second.head.labels)
        what = "cannot add two vectors whose heads have different labels"
        fix = "choose a head with deftx.merge(task=[...], head=0)"
        raise DeftxError(f"{what} ({first_labels} and {second_labels}): {fix}")
    return first
