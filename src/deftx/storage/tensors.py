"""Tensors and what they are about, kept in a folder of work: what phase 1 learnt, and the state of a training."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from deftx.errors import DeftxError
from deftx.storage.folders import new_file


def save_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write `tensors` and JSON-like data `about` them, whole or not at all; arrays in the latter become lists.

    Raises DeftxError where the disk is full or the folder read-only; what was at `path` is left then.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        with new_file(path) as half:
            save_file(plain, half, metadata={"about": json.dumps(about, default=lambda array: array.tolist())})
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise DeftxError(f"cannot write {path}: {reason}; what was kept before is still there") from error


def load_tensors(path: Path, key: str | None = None) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The tensors at `path` and what they are about; None where there are none, or none that can be read.

    With a `key`, None too where it is not the one in what they are about.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["about"])
            if not isinstance(about, dict) or (key is not None and about.get("key") != key):
                return None
            return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118  # no mapping
    except (OSError, SafetensorError, KeyError, ValueError, RecursionError):
        return None
