"""LT-SFT's vectors (composable-sft, Ansell et al. 2022): `pytorch_diff.bin`, a file of torch.save.

diffs   name in the task model -> {size, index_steps, values}: entry i stands at the sum of the
        first i + 1 of the steps, in a flattening whose FIRST dimension runs fastest
abs     name in the task model -> dense tensor: what is tuned fully, such as a head
"""

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deftx.core.vector import SparseTensor
from deftx.errors import DeftxError
from deftx.interop.safe_unpickling import DIMENSIONS, LARGEST, Stored, load_plain, whole

FILE = "pytorch_diff.bin"


def read(path: Path) -> tuple[dict[str, SparseTensor], dict[str, Tensor]]:
    """The differences and the dense tensors in a file, by their names in the task model.

    Raises DeftxError, which names the file, for a file of another form. Memory is bounded by the
    file's size.
    """
    content = load_plain(path)
    if (
        not isinstance(content, dict)
        or not content.keys() <= {"diffs", "abs"}
        or "diffs" not in content
    ):
        raise DeftxError(
            f"{path} is not a vector of LT-SFT: it needs `diffs`, and may have `abs`, and nothing else"
        )
    parts = [content["diffs"], content.get("abs", {})]
    if not all(
        isinstance(part, dict) and all(isinstance(name, str) for name in part) for part in parts
    ):
        raise DeftxError(
            f"{path} is not a vector of LT-SFT: `diffs` and `abs` map names to tensors"
        )
    diffs, dense = parts
    entries = {name: _decoded(name, coded, path) for name, coded in diffs.items()}
    return entries, {name: _tensor(name, tensor, path) for name, tensor in dense.items()}


def write(path: Path, diffs: Mapping[str, SparseTensor], dense: Mapping[str, Tensor]) -> None:
    """Write such a file, of tensors and Python's integers only, so that torch's restricted loader
    takes it too."""
    plain = {name: tensor.detach().cpu().clone() for name, tensor in dense.items()}
    torch.save(
        {"diffs": {name: _coded(entries) for name, entries in diffs.items()}, "abs": plain}, path
    )


def _tensor(name: str, stored: object, path: Path) -> Tensor:
    if not isinstance(stored, Stored):
        raise _refused(name, path, "is no tensor of floating point numbers")
    try:
        return stored.tensor()
    except DeftxError as error:
        raise _refused(name, path, f"is damaged: {error}") from error


def _refused(name: str, path: Path, why: str) -> DeftxError:
    return DeftxError(f"{path}: tensor {name!r} {why}")


def _decoded(name: str, coded: Any, path: Path) -> SparseTensor:
    if not isinstance(coded, dict) or coded.keys() != {"size", "index_steps", "values"}:
        raise _refused(name, path, "is not coded as size, index_steps and values")
    size, steps = coded["size"], coded["index_steps"]
    if not isinstance(size, tuple | list) or len(size) > DIMENSIONS or not whole(size):
        raise _refused(name, path, "has no such size as a tensor can have")
    numel = prod(size)
    if max([*size, numel]) > LARGEST:
        raise _refused(name, path, "has no such size as a tensor can have")
    if not isinstance(steps, list) or not whole(steps):
        raise _refused(name, path, "has steps that are not whole numbers, 0 or more")
    values = _tensor(name, coded["values"], path)
    if values.shape != (len(steps),):
        raise _refused(
            name, path, f"has {len(steps)} steps for values of shape {tuple(values.shape)}"
        )
    if steps and (sum(steps) >= numel or 0 in steps[1:]):
        raise _refused(name, path, f"has indices that leave its {numel} entries, or come twice")
    shape = tuple(size)
    indices = np.cumsum(np.array(steps, np.int64))
    if len(shape) > 1 and steps:
        indices = np.ravel_multi_index(np.unravel_index(indices, shape, order="F"), shape)
    order = np.argsort(indices, kind="stable")
    return SparseTensor(torch.from_numpy(indices[order]), values[torch.from_numpy(order)], shape)


def _coded(entries: SparseTensor) -> dict[str, Any]:
    indices, shape = entries.indices.cpu().numpy(), entries.shape
    if len(shape) > 1 and len(indices):
        indices = np.ravel_multi_index(np.unravel_index(indices, shape), shape, order="F")
    order = np.argsort(indices, kind="stable")
    steps = np.diff(indices[order], prepend=0).tolist()
    return {
        "size": torch.Size(shape),
        "index_steps": steps,
        "values": entries.values.cpu()[torch.from_numpy(order)],
    }
