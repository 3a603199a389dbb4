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
    """`diffs` and `abs` of a file. Raises DeftxError unless both map names to something."""
    if (
        not isinstance(content, dict)
        or "diffs" not in content
        or not content.keys() <= {"diffs", "abs"}
    ):
        raise DeftxError(
            f"{path} is not a vector of LT-SFT: it needs `diffs`, and may have `abs`, and nothing "
            "else"
        )
    diffs = content["diffs"]
    dense = content.get("abs", {})
    for part in (diffs, dense):
        if not isinstance(part, dict) or not all(isinstance(name, str) for name in part):
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
    """The entries that are coded as `size`, `index_steps` and `values`, with row-major indices."""
    if not isinstance(coded, dict) or coded.keys() != _KEYS:
        raise _refused(name, path, "is not coded as size, index_steps and values")

    size = coded["size"]
    if not isinstance(size, tuple | list) or len(size) > DIMENSIONS or not whole(size):
        raise _refused(name, path, "has no such size as a tensor can have")
    shape = tuple(size)
    numel = prod(shape)
    if max([*shape, numel]) > LARGEST:
        raise _refused(name, path, "has no such size as a tensor can have")

    steps = coded["index_steps"]
    if not isinstance(steps, list) or not whole(steps):
        raise _refused(name, path, "has steps that are not whole numbers, 0 or more")
    values = _tensor(name, coded["values"], path)
    if values.shape != (len(steps),):
        raise _refused(
            name, path, f"has {len(steps)} steps for values of shape {tuple(values.shape)}"
        )
    if steps and (sum(steps) >= numel or 0 in steps[1:]):
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
    indices = entries.indices.cpu().numpy()
    if len(shape) > 1 and len(indices):
        coordinates = np.unravel_index(indices, shape)
        indices = np.ravel_multi_index(coordinates, shape, order="F")
    order = np.argsort(indices, kind="stable")
    steps = np.diff(indices[order], prepend=0)
    return {
        "size": torch.Size(shape),
        "index_steps": steps.tolist(),
        "values": entries.values.cpu()[torch.from_numpy(order)],
    }
