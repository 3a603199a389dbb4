"""What a vector is made of: the entries of single tensors, and a task's head."""

import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

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
        flat.index_copy_(0, self.indices, self.values)
        return flat.view(self.shape)

    def map(self, change: Callable[[Tensor], Tensor]) -> "SparseTensor":
        """The same indices with `change` applied to the values."""
        return replace(self, values=change(self.values))

    def to(self, device: torch.device | str) -> "SparseTensor":
        """The same entries on `device`."""
        indices = self.indices.to(device)
        values = self.values.to(device)
        return SparseTensor(indices, values, self.shape)

    def equal(self, other: "SparseTensor") -> bool:
        """Whether shape, indices and values are the same."""
        if self.shape != other.shape:
            return False
        if not self.indices.equal(other.indices):
            return False
        return self.values.equal(other.values)


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
        labels = reprlib.repr(self.labels)
        return f"Head({len(self.tensors)} tensors, labels={labels})"

    def to(self, device: torch.device | str) -> "Head":
        """The same head on `device`."""
        tensors = {}
        for name, tensor in self.tensors.items():
            tensors[name] = tensor.to(device)
        return Head(tensors, self.labels)

    def equal(self, other: "Head") -> bool:
        """Whether labels and weights are the same."""
        if self.labels != other.labels:
            return False
        if self.tensors.keys() != other.tensors.keys():
            return False
        return all(tensor.equal(other.tensors[name]) for name, tensor in self.tensors.items())


def tensor_sum(name: str, first: SparseTensor | None, second: SparseTensor | None) -> SparseTensor:
    """The sum of the entries that two vectors have for a tensor, at the union of their indices.

    Args:
        name: What the error calls the tensor.
        first: The entries of one vector; None: it has none.
        second: The entries of the other; not None as well.

    Raises:
        DeftxError: Their shapes differ.
    """
    if first is None or second is None:
        only = first or second
        assert only is not None
        return only
    if first.shape != second.shape:
        shapes = f"{first.shape} in one vector and {second.shape} in the other"
        raise DeftxError(f"tensor {name!r} has shape {shapes}")
    both = torch.cat([first.indices, second.indices])
    indices, positions = both.unique(return_inverse=True)
    dtype = torch.promote_types(first.values.dtype, second.values.dtype)
    values = torch.zeros(len(indices), dtype=dtype, device=indices.device)
    added = torch.cat([first.values.to(dtype), second.values.to(dtype)])
    values.index_add_(0, positions, added)
    return SparseTensor(indices, values, first.shape)


def count_common(first: SparseTensor, second: SparseTensor) -> int:
    """How many indices two tensors have in common.

    A mark for each entry of the tensor is faster than sorting the indices together, but needs
    memory for the tensor, which a file may say is larger than any memory.
    """
    size = max(first.numel, second.numel)
    count = len(first.indices) + len(second.indices)
    if size > MARKS_PER_ENTRY * (count + 1):
        is_common = torch.isin(first.indices, second.indices, assume_unique=True)
        return int(is_common.sum())
    is_marked = torch.zeros(size, dtype=torch.bool, device=first.indices.device)
    is_marked[first.indices] = True
    is_common = is_marked[second.indices]
    return int(is_common.sum())
