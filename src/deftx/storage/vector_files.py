"""Vectors as folders: safetensors and JSON only, checked when read, replaced whole when written.

vector.json         see `manifest`
vector.safetensors  per tensor NAME: `NAME.indices` and `NAME.values`, coded by `codec`; among its
                    metadata is the checksum of vector.json without its own (files of older versions
                    have none)
head.safetensors    the head's tensors, for vectors that have one
"""

import hashlib
import os
import warnings
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from deftx.core.tensors import Head, SparseTensor
from deftx.core.vector import SparseVector, check_vectors
from deftx.errors import DeftxError, NoSpace, check_downloaded
from deftx.storage import manifest
from deftx.storage.atomic_files import check_target, find, new_folder
from deftx.storage.codec import decode_indices, decode_values, encode_indices, encode_values
from deftx.storage.hub_client import fetch, is_vector_id
from deftx.storage.manifest import HeadForm, Manifest, TensorForm, read_manifest, write_manifest
from deftx.storage.provenance_json import provenance_from_json, provenance_to_json

VECTOR, HEAD = "vector.safetensors", "head.safetensors"
MANIFEST_CHECKSUM = "manifest_sha256"  # its name among the metadata of vector.safetensors
_FLOATS = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}  # by their names in safetensors
_NAMES = {dtype: name for name, dtype in _FLOATS.items()}


def save(vector: SparseVector, folder: str | os.PathLike[str], *, force: bool = False) -> None:
    """Write a vector to a folder, whole or not at all.

    Args:
        vector: The vector, with its head if it has one.
        folder: The folder to write, which must not exist.
        force: Replace the vector there, the whole folder.

    Raises:
        DeftxError: The folder exists, `vector` is no vector or one that `load` would refuse (values
            that are not finite, a provenance that is not JSON), or the disk is full or read-only.
    """
    check_vectors(vector)
    target = check_target(folder, force=force)
    with _about(f"cannot save {target}"), new_folder(target, force=force) as new:
        _write(vector, new)


def load(vector: str | os.PathLike[str]) -> SparseVector:
    """Load a vector from a folder or the hub, bit for bit as it was saved.

    Nothing is unpickled, and memory is bounded by the size of the files.

    Args:
        vector: A folder; or USER/NAME or USER/NAME@REVISION on the hub, where no folder of that
            name exists.

    Returns:
        The vector, on the CPU.

    Raises:
        DeftxError: The vector is incomplete or damaged; the message says which file and how.
    """
    target, standing = find(vector)
    if os.path.isfile(standing):
        raise DeftxError(
            f"{vector} is a file: give the folder of a vector, the one with {manifest.FILE}"
        )
    if not os.path.lexists(standing) and isinstance(vector, str) and is_vector_id(vector):
        try:
            return load_from_hub(vector)
        except DeftxError as error:
            raise DeftxError(f"there is no folder {vector}; {error}") from error
    if not os.path.isdir(standing):
        raise DeftxError(f"there is no vector at {vector}: no such folder")
    if standing != target:
        warnings.warn(
            f"replacing {target} was cut off: this is the vector from before", stacklevel=2
        )
    check_downloaded(standing)
    return _read_folder(standing)


def load_from_hub(vector_id: str) -> SparseVector:
    """The vector that the hub has under `USER/NAME[@REVISION]`, checked like any other.

    Damage in the cache is repaired where the hub can be reached.

    Raises:
        DeftxError: As `load` and `fetch` do.
    """
    files = [manifest.FILE, VECTOR, HEAD]
    folder = fetch(vector_id, files)
    try:
        return _read_folder(folder)
    except DeftxError:  # no more than its size is checked when a file enters the cache
        folder = fetch(vector_id, files, anew=True)
    with _about(f"{vector_id} on the hub"):
        return _read_folder(folder)


def _read_folder(folder: Path) -> SparseVector:
    form = read_manifest(folder / manifest.FILE)
    tensors = _read_tensors(folder, form)
    head = _read_head(folder, form.head)
    vector = SparseVector(tensors, head, provenance_from_json(form.info))
    _check_manifest(folder, form)
    return vector


def _check_manifest(folder: Path, form: Manifest) -> None:
    """Raise DeftxError for a vector.json that was changed, such as in its labels, since the vector
    was saved."""
    with _about(str(folder / VECTOR)), safe_open(folder / VECTOR, framework="pt") as file:
        expected = (file.metadata() or {}).get(MANIFEST_CHECKSUM)
    if expected is not None and expected != manifest.checksum(form.model_dump()):
        what = f"its SHA-256 is not the one in {VECTOR}"
        raise DeftxError(
            f"{folder / manifest.FILE}: the file is damaged, or was changed by hand: {what}"
        )


def _write(vector: SparseVector, folder: Path) -> None:
    # Coded tensors, several at a time
    tensors: dict[str, Tensor] = {}
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for parts in pool.map(_coded, vector.tensors, vector.tensors.values()):
            tensors |= parts

    # The manifest
    forms = {}
    for name, entries in vector.tensors.items():
        forms[name] = {
            "shape": list(entries.shape),
            "count": len(entries.indices),
            "dtype": _NAMES[entries.values.dtype],
        }
    content: dict[str, Any] = {
        "format_version": manifest.VERSION,
        "sha256": "",
        "head": _write_head(vector.head, folder / HEAD),
        "info": provenance_to_json(vector.provenance),
        "tensors": forms,
    }

    # Each of the two files has a checksum of the other
    metadata = {MANIFEST_CHECKSUM: manifest.checksum(content)}
    content["sha256"] = _write_tensors(tensors, folder / VECTOR, metadata)
    write_manifest(content, folder / manifest.FILE)


def _write_head(head: Head | None, path: Path) -> dict[str, object] | None:
    if head is None:
        return None
    tensors = {name: _plain(name, tensor) for name, tensor in head.tensors.items()}
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    return {"labels": list(head.labels), "sha256": _write_tensors(tensors, path), "shapes": shapes}


def _write_tensors(
    tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> str:
    """Write the file and return its checksum."""
    save_file(tensors, path, metadata=metadata)
    return _sha256(path)


def _coded(name: str, entries: SparseTensor) -> dict[str, Tensor]:
    if entries.indices.shape != entries.values.shape:
        raise DeftxError(
            f"tensor {name!r} has {len(entries.indices)} indices but {len(entries.values)} values"
        )
    _check_floats(name, entries.values)
    with _about(f"tensor {name!r}"):
        indices = encode_indices(entries.indices.cpu().numpy(), entries.numel)
    values = encode_values(entries.values.cpu())
    return {
        f"{name}.indices": torch.from_numpy(indices),
        f"{name}.values": torch.from_numpy(values),
    }


def _plain(name: str, tensor: Tensor) -> Tensor:
    """A checked copy on the CPU that shares no memory, as safetensors wants it."""
    _check_floats(name, tensor)
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _check_floats(name: str, tensor: Tensor) -> None:
    if tensor.dtype not in _NAMES:
        raise DeftxError(
            f"tensor {name!r} is {tensor.dtype}: vectors hold float32, float16 or bfloat16"
        )
    _check_finite(name, tensor)


def _read_tensors(folder: Path, form: Manifest) -> dict[str, SparseTensor]:
    names = list(form.tensors)
    forms = list(form.tensors.values())
    parts = []
    for name in names:
        parts += [f"{name}.indices", f"{name}.values"]
    with _opened(folder / VECTOR, form.sha256, parts) as file:
        coded = [_read(file, part, ["U8"]).flatten().numpy() for part in parts]
        coded_indices = coded[::2]
        coded_values = coded[1::2]
        sizes = [len(of_tensor) for of_tensor in coded_indices]

        # Decoded several at a time
        tensors = {}
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            all_indices = pool.map(_places, names, forms, coded_indices)
            all_values = pool.map(_values, names, forms, coded_values, sizes)
            decoded = zip(names, forms, all_indices, all_values, strict=True)
            for name, tensor_form, indices, values in decoded:
                shape = tuple(tensor_form.shape)
                tensors[name] = SparseTensor(torch.from_numpy(indices), values, shape)
        return tensors


def _places(name: str, form: TensorForm, data: NDArray[np.uint8]) -> NDArray[np.int64]:
    with _about(f"tensor {name!r}"):
        return decode_indices(data, form.count, prod(form.shape))


def _values(name: str, form: TensorForm, data: NDArray[np.uint8], most: int) -> Tensor:
    """The values; `most`, the bytes of the indices, bounds their number by what the file holds."""
    with _about(f"tensor {name!r}"):
        numbers = decode_values(data, min(form.count, most), _FLOATS[form.dtype])
    _check_finite(name, numbers)
    return numbers


def _read_head(folder: Path, form: HeadForm | None) -> Head | None:
    if form is None:
        return None
    with _opened(folder / HEAD, form.sha256, form.shapes) as file:
        tensors = {
            name: _read_plain(file, name, tuple(shape)) for name, shape in form.shapes.items()
        }
    return Head(tensors, tuple(form.labels))


def _read_plain(file: safe_open, name: str, shape: tuple[int, ...]) -> Tensor:
    tensor = _read(file, name, _FLOATS)
    if tensor.shape != shape:
        raise DeftxError(
            f"tensor {name!r} has shape {tuple(tensor.shape)}, {manifest.FILE} says {shape}"
        )
    _check_finite(name, tensor)
    return tensor


def _read(file: Any, name: str, dtypes: Collection[str]) -> Tensor:
    dtype = file.get_slice(name).get_dtype()
    if dtype not in dtypes:
        raise DeftxError(f"tensor {name!r} has type {dtype}, not {' or '.join(dtypes)}")
    tensor: Tensor = file.get_tensor(name)
    return tensor


@contextmanager
def _opened(path: Path, sha256: str, names: Collection[str]) -> Iterator[safe_open]:
    """A safetensors file that is undamaged and holds just `names`; errors inside the block name the
    file."""
    with _about(str(path)):
        if not os.path.isfile(path):
            raise DeftxError(f"the file is missing: {manifest.FILE} needs it")
        if _sha256(path) != sha256:
            raise DeftxError(f"the file is damaged: its SHA-256 is not the one in {manifest.FILE}")
        with safe_open(path, framework="pt") as file:
            if strange := set(names) ^ set(file.keys()):
                raise DeftxError(f"{min(strange)!r} is not in both this file and {manifest.FILE}")
            yield file


@contextmanager
def _about(what: str) -> Iterator[None]:
    """Say in one line what an error is about."""
    try:
        yield
    except NoSpace:  # which names the folder
        raise
    except (DeftxError, OSError, SafetensorError) as error:
        raise DeftxError(f"{what}: {' '.join(str(error).split())}") from error


def _check_finite(name: str, tensor: Tensor) -> None:
    if tensor.numel() and not all(
        end.isfinite() for end in tensor.detach().aminmax()
    ):  # NaN is in both ends
        raise DeftxError(f"tensor {name!r} has values that are not finite")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
