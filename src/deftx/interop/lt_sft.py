"""LT-SFT's vectors (composable-sft, Ansell et al. 2022): `pytorch_diff.bin`, a file of torch.save.

diffs   name in the task model -> {size, index_steps, values}: the index of entry i is the sum of
        the first i + 1 steps, in a flattening whose FIRST dimension varies fastest
abs     name in the task model -> dense tensor: what is trained fully, such as a head
"""

import errno
import os
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deftx.core.tensors import SparseTensor
from deftx.errors import DeftxError
from deftx.interop.safe_unpickling import DIMENSIONS, LARGEST, Stored, load_plain, whole

FILE = "pytorch_diff.bin"
_PARTS = ({"diffs"}, {"diffs", "abs"})  # of a file
_KEYS = {"size", "index_steps", "values"}  # of a coded tensor


def read(path: Path) -> tuple[dict[str, SparseTensor], dict[str, Tensor]]:
    """Read a vector of LT-SFT. Memory is bounded by the file's size.

    Args:
        path: The file, which may come from anybody.

    Returns:
        The differences, and the dense tensors, by their names in the task model.

    Raises:
        DeftxError: The file has another form; the message names it.
    """
    content = load_plain(path)
    diffs, dense = _check_content(content, path)
    sparse_tensors = {name: _decode(name, coded, path) for name, coded in diffs.items()}
    dense_tensors = {name: _tensor(name, stored, path) for name, stored in dense.items()}
    return sparse_tensors, dense_tensors


def write(path: Path, diffs: Mapping[str, SparseTensor], dense: Mapping[str, Tensor]) -> None:
    """Write a vector of LT-SFT, which torch's restricted loader (`weights_only`) reads, too.

    Args:
        path: The file.
        diffs: Name in the task model -> difference.
        dense: Name in the task model -> tensor that was trained fully.

    Raises:
        OSError: The disk is full, or the file cannot be written.
    """
    coded = {name: _encode(entries) for name, entries in diffs.items()}
    copies = {name: tensor.detach().cpu().clone() for name, tensor in dense.items()}
    try:
        torch.save({"diffs": coded, "abs": copies}, path)
    except RuntimeError as error:  # torch does not say why: a file that opened cannot be filled
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(path)) from error


def _check_content(content: object, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """`diffs` and `abs` of a file.

    Raises:
        DeftxError: They do not both map names to something.
    """
    if not isinstance(content, dict) or set(content) not in _PARTS:
        raise DeftxError(
            f"{path} is not a vector of LT-SFT: it needs `diffs`, and may have `abs`, and nothing "
            "else"
        )
    diffs = content["diffs"]
    dense = content.get("abs", {})
    for part in (diffs, dense):
        has_names = isinstance(part, dict) and all(isinstance(name, str) for name in part)
        if not has_names:
            raise DeftxError(
                f"{path} is not a vector of LT-SFT: `diffs` and `abs` map names to tensors"
            )
    return diffs, dense


def _tensor(name: str, stored: object, path: Path) -> Tensor:
    """The tensor that a file stores under `name`."""
    if not isinstance(stored, Stored):
        raise _refused(name, path, "is no tensor of floating point numbers")
    try:
        return stored.tensor()
    except DeftxError as error:
        raise _refused(name, path, f"is damaged: {error}") from error


def _refused(name: str, path: Path, why: str) -> DeftxError:
    return DeftxError(f"{path}: tensor {name!r} {why}")


def _decode(name: str, coded: Any, path: Path) -> SparseTensor:
    """The entries that are coded as `size`, `index_steps` and `values`, with row-major indices.

    Raises:
        DeftxError: They do not make a tensor; the message says why.
    """
    if not isinstance(coded, dict) or coded.keys() != _KEYS:
        raise _refused(name, path, "is not coded as size, index_steps and values")

    # The shape
    size = coded["size"]
    if not isinstance(size, tuple | list) or len(size) > DIMENSIONS or not whole(size):
        raise _refused(name, path, "has no such size as a tensor can have")
    shape = tuple(size)
    numel = prod(shape)
    if max([*shape, numel]) > LARGEST:
        raise _refused(name, path, "has no such size as a tensor can have")

    # The steps from one index to the next, and the values
    steps = coded["index_steps"]
    if not isinstance(steps, list) or not whole(steps):
        raise _refused(name, path, "has steps that are not whole numbers, 0 or more")
    values = _tensor(name, coded["values"], path)
    shape_of_values = tuple(values.shape)
    if shape_of_values != (len(steps),):
        why = f"has {len(steps)} steps for values of shape {shape_of_values}"
        raise _refused(name, path, why)
    last_index = sum(steps)
    come_twice = 0 in steps[1:]
    if steps and (last_index >= numel or come_twice):
        raise _refused(name, path, f"has indices that leave its {numel} entries, or come twice")

    # From their column-major order to ours
    indices = np.cumsum(np.array(steps, np.int64))
    if len(shape) > 1 and steps:
        coordinates = np.unravel_index(indices, shape, order="F")
        indices = np.ravel_multi_index(coordinates, shape)
    order = np.argsort(indices, kind="stable")
    sorted_indices = torch.from_numpy(indices[order])
    sorted_values = values[torch.from_numpy(order)]
    return SparseTensor(sorted_indices, sorted_values, shape)


def _encode(entries: SparseTensor) -> dict[str, Any]:
    """The inverse of `_decode`: tensors and Python's integers only."""
    shape = entries.shape

    # From our row-major order to their column-major one
    indices = entries.indices.cpu().numpy()
    if len(shape) > 1 and len(indices):
        coordinates = np.unravel_index(indices, shape)
        indices = np.ravel_multi_index(coordinates, shape, order="F")
    order = np.argsort(indices, kind="stable")
    steps = np.diff(indices[order], prepend=0)
    values = entries.values.cpu()
    sorted_values = values[torch.from_numpy(order)]
    return {
        "size": torch.Size(shape),
        "index_steps": steps.tolist(),
        "values": sorted_values,
    }
