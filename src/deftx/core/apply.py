"""Adding vectors to a model's weights, for good or for a while: θ = θ0 + φ_task + φ_language.

Vectors are added one after the other in the weights' own dtype, the sum of each entry in float32.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from deftx.core.entries import read_entries, write_entries
from deftx.core.parameters import backbone, head
from deftx.core.vector import SparseTensor, SparseVector, check_vectors
from deftx.errors import DeftxError

PIECE = (
    1 << 16
    # entries changed together: few enough that what is read of the weights is in the cache to be
    # written
)


def apply(model: nn.Module, *vectors: SparseVector) -> None:
    """Add `vectors` to the weights of `model`, in place.

    A head that a vector brings replaces the model's; it is left out where the model has no such
    head (a masked language model, a bare encoder). Raises DeftxError, before anything is changed,
    where a vector does not fit the model.
    """
    for _ in _changes(model, vectors):
        pass


def check_fit(model: nn.Module, *vectors: SparseVector) -> None:
    """Raise DeftxError where a vector's names or shapes are not those of `model`, which may be
    without weights."""
    for vector in vectors:
        _fit_body(model, vector)
        _fit_head(model, vector)


@contextmanager
def apply_temporarily(model: nn.Module, *vectors: SparseVector) -> Iterator[nn.Module]:
    """`model` with `vectors` added, until the end of the `with` block.

    On leaving, also by an exception, every entry that was changed gets back the bits it had. Nests.
    Raises DeftxError for a vector that does not fit the model.
    """
    changes: list[_Change] = []
    try:
        for change in _changes(model, vectors):
            changes.append(change)
        yield model
    finally:
        for change in reversed(changes):
            _put(change.parameter, change.indices, change.before)


@dataclass(frozen=True, eq=False)
class _Change:
    """What is about to be overwritten: entries `indices` of a parameter, or all of it (None)."""

    parameter: nn.Parameter
    indices: Tensor | None
    before: Tensor


def _changes(model: nn.Module, vectors: tuple[SparseVector, ...]) -> Iterator[_Change]:
    """Apply the vectors piece by piece; each change is yielded just before it is made."""
    bodies = [_fit_body(model, vector) for vector in vectors]
    heads = [_fit_head(model, vector) for vector in vectors]
    for parameter, entries in chain.from_iterable(bodies):
        whole = (
            entries.indices.to(parameter.device),
            entries.values.to(parameter.device, torch.float32),
        )
        for indices, values in zip(*(part.split(PIECE) for part in whole), strict=True):
            before = read_entries(parameter.detach(), indices)
            yield _Change(parameter, indices, before)
            _put(parameter, indices, before.float() + values)
    for parameter, values in chain.from_iterable(heads):
        yield _Change(parameter, None, parameter.detach().clone())
        _put(parameter, None, values)


def _put(parameter: nn.Parameter, indices: Tensor | None, values: Tensor) -> None:
    with torch.no_grad():
        if indices is None:
            parameter.copy_(values)
        else:
            write_entries(parameter, indices, values)


def _fit_body(model: nn.Module, vector: SparseVector) -> list[tuple[nn.Parameter, SparseTensor]]:
    """The model's parameters beside the vector's entries, all checked."""
    check_vectors(vector)
    parameters = backbone(model)
    for name, entries in vector.tensors.items():
        if name not in parameters:
            raise DeftxError(
                f"the vector changes {name!r}, which the model does not have: it belongs to another base"
            )
        shape = tuple(parameters[name].shape)
        if shape != entries.shape:
            raise DeftxError(
                f"{name!r} is {shape} in the model, {entries.shape} in the vector: use the vector's base"
            )
        looked_at = entries.indices.device.type == "cpu" and len(
            entries.indices
        )  # on a GPU a look would wait for it
        if (
            looked_at
            and not 0 <= int(entries.indices[0]) <= int(entries.indices[-1]) < entries.numel
        ):
            raise DeftxError(
                f"the vector's indices of {name!r} are not within {shape}, or not in order: sort them"
            )
    return [(parameters[name], entries) for name, entries in vector.tensors.items()]


def _fit_head(model: nn.Module, vector: SparseVector) -> list[tuple[nn.Parameter, Tensor]]:
    """The model's head parameters beside the vector's, all checked; empty where the model lacks
    them."""
    parameters = head(model)
    tensors = vector.head.tensors if vector.head else {}
    if not tensors.keys() <= parameters.keys():
        return []
    for name, tensor in tensors.items():
        if parameters[name].shape != tensor.shape:
            shapes = f"{tuple(parameters[name].shape)} in the model and {tuple(tensor.shape)} in the vector"
            raise DeftxError(f"head {name!r} is {shapes}: load the model with the vector's labels")
    return [(parameters[name], tensor) for name, tensor in tensors.items()]
