"""Tensors and what they are about, kept in a folder of work: what phase 1 learnt, and the state of
a training."""

import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from deftx.errors import DeftxError, space_needed
from deftx.storage.atomic_files import new_file


def save_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write `tensors` and JSON-like data `about` them, whole or not at all.

    Arrays in `about` become lists. What was at `path` is left where writing fails.

    Raises:
        NoSpace: The disk is full.
        DeftxError: The folder is read-only, or cannot be written otherwise.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(about, default=lambda array: array.tolist())
    metadata = {"about": text, "sha256": _checksum(plain, text)}
    try:
        with space_needed(path), new_file(path) as half:
            save_file(plain, half, metadata=metadata)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise DeftxError(
            f"cannot write {path}: {reason}; what was kept before is still there"
        ) from error


def load_tensors(
    path: Path, key: str | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The tensors at `path` and what they are about, where they can be used.

    Args:
        path: The file. Files of older versions have no checksum.
        key: What `about["key"]` has to be; None: anything.

    Returns:
        None where there is no file, where it has another key, and, with a warning, where it is
        damaged.
    """
    if not path.exists():
        return None
    try:
        return _read(path, key)
    except DeftxError:
        warnings.warn(f"{path} is damaged, so it is not used", stacklevel=2)
        return None


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors at `path` and what they are about.

    Raises:
        DeftxError: The file is missing or damaged.
    """
    contents = _read(path, key=None)
    assert contents is not None  # only with a key
    return contents


def _read(path: Path, key: str | None) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """What a file holds; None where it has another key.

    Raises:
        DeftxError: The file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            about = json.loads(metadata["about"])
            if not isinstance(about, dict):
                raise DeftxError(f"{path} is damaged: its metadata are no JSON object")
            if key is not None and about.get("key") != key:
                return None
            # the file is no mapping, so that it cannot be iterated over
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except DeftxError:
        raise
    except (OSError, SafetensorError, KeyError, ValueError, RecursionError):
        raise DeftxError(f"{path} is missing or damaged") from None
    has_checksum = "sha256" in metadata
    if has_checksum and metadata["sha256"] != _checksum(tensors, metadata["about"]):
        raise DeftxError(f"{path} is damaged: its checksum is another one")
    return tensors, about


def read_about(path: Path) -> dict[str, Any] | None:
    """What the tensors at `path` are about, without reading them; None where there is no such
    file, or none that can be read."""
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["about"])
    except (OSError, SafetensorError, KeyError, ValueError, RecursionError):
        return None
    return about if isinstance(about, dict) else None


def _checksum(tensors: Mapping[str, Tensor], about: str) -> str:
    """Of all that a file holds: what it is about, and each tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(about.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(
            f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode(errors="surrogatepass")
        )
        digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
