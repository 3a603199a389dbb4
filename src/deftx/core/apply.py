"""Adding vectors to a model's weights, for good or for a while: θ = θ0 + φ_task + φ_language.

Vectors are added one after the other in the weights' own dtype, the sum of each entry in float32.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deftx.core.entries import read_entries, write_entries
from deftx.core.parameters import ParameterGroups, parameter_groups
from deftx.core.tensors import SparseTensor
from deftx.core.vector import SparseVector, check_vectors
from deftx.errors import DeftxError

# Entries changed together: few enough that what is read of the weights is still in the cache when
# it is written.
PIECE = 1 << 16


def apply(model: nn.Module, *vectors: SparseVector) -> None:
    """Add `vectors` to the weights of `model`, in place.

    A head that a vector brings replaces the model's; it is left out where the model has no such
    head (a masked language model, a bare encoder).

    Args:
        model: A model of the vectors' base, or one that torch has wrapped.
        vectors: One or several, added one after the other.

    Raises:
        DeftxError: A vector does not fit the model; raised before anything is changed.
    """
    for _ in _changes(model, vectors):
        pass


def check_fit(model: nn.Module, *vectors: SparseVector) -> None:
    """Check that vectors fit a model, which may be without weights.

    Raises:
        DeftxError: A vector's names or shapes are not those of the model.
    """
    groups = parameter_groups(model)
    for vector in vectors:
        _fit_backbone(groups, vector)
        _fit_head(groups, vector)


@contextmanager
def apply_temporarily(model: nn.Module, *vectors: SparseVector) -> Iterator[nn.Module]:
    """`model` with `vectors` added, until the end of the `with` block.

    On leaving, also by an exception, every entry that was changed gets back the bits it had. Nests.

    Args:
        model: As in `apply`.
        vectors: As in `apply`.

    Raises:
        DeftxError: A vector does not fit the model.
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
    """What is about to be overwritten.

    Attributes:
        parameter: Where.
        indices: Its flat indices [n]; None: all of it.
        before: The values there.
    """

    parameter: nn.Parameter
    indices: Tensor | None
    before: Tensor


def _changes(model: nn.Module, vectors: tuple[SparseVector, ...]) -> Iterator[_Change]:
    """Apply the vectors piece by piece; each change is yielded just before it is made."""
    # All are checked before anything is changed
    groups = parameter_groups(model)
    in_backbone: list[tuple[nn.Parameter, SparseTensor]] = []
    in_head: list[tuple[nn.Parameter, Tensor]] = []
    for vector in vectors:
        in_backbone += _fit_backbone(groups, vector)
        in_head += _fit_head(groups, vector)

    for parameter, entries in in_backbone:
        indices = entries.indices.to(parameter.device)
        values = entries.values.to(parameter.device, torch.float32)
        for piece, added in zip(indices.split(PIECE), values.split(PIECE), strict=True):
            before = read_entries(parameter.detach(), piece)
            yield _Change(parameter, piece, before)
            _put(parameter, piece, before.float() + added)

    for parameter, weights in in_head:
        yield _Change(parameter, None, parameter.detach().clone())
        _put(parameter, None, weights)


def _put(parameter: nn.Parameter, indices: Tensor | None, values: Tensor) -> None:
    """Overwrite entries `indices` of a parameter, or all of it (None)."""
    with torch.no_grad():
        if indices is None:
            parameter.copy_(values)
        else:
            write_entries(parameter, indices, values)


def _fit_backbone(
    groups: ParameterGroups, vector: SparseVector
) -> list[tuple[nn.Parameter, SparseTensor]]:
    """The backbone's parameters with the vector's entries for them, all checked."""
    check_vectors(vector)
    pairs = []
    for name, entries in vector.tensors.items():
        if name not in groups.backbone:
            problem = f"the vector changes {name!r}, which the model does not have"
            raise DeftxError(f"{problem}: it belongs to another base")
        parameter = groups.backbone[name]
        shape = tuple(parameter.shape)
        if shape != entries.shape:
            problem = f"{name!r} is {shape} in the model, {entries.shape} in the vector"
            raise DeftxError(f"{problem}: use the vector's base")
        _check_indices(name, entries)
        pairs.append((parameter, entries))
    return pairs


def _check_indices(name: str, entries: SparseTensor) -> None:
    """Raise DeftxError for indices on the CPU whose ends are outside the tensor; to look at some on
    a GPU would wait for it."""
    indices = entries.indices
    if indices.device.type != "cpu" or not len(indices):
        return
    if not 0 <= int(indices[0]) <= int(indices[-1]) < entries.numel:
        problem = (
            f"the vector's indices of {name!r} are not within {entries.shape}, or not in order"
        )
        raise DeftxError(f"{problem}: sort them")


def _fit_head(groups: ParameterGroups, vector: SparseVector) -> list[tuple[nn.Parameter, Tensor]]:
    """The head's parameters with the vector's weights for them, all checked; empty where the model
    has no such head."""
    if vector.head is None or not vector.head.tensors.keys() <= groups.head.keys():
        return []
    pairs = []
    for name, weights in vector.head.tensors.items():
        parameter = groups.head[name]
        if parameter.shape != weights.shape:
            shapes = (
                f"{tuple(parameter.shape)} in the model and {tuple(weights.shape)} in the vector"
            )
            fix = "load the model with the vector's labels"
            raise DeftxError(f"head {name!r} is {shapes}: {fix}")
        pairs.append((parameter, weights))
    return pairs
