"""Dense differences of weights on disk: what phase 1 learnt, for another method, rank or k to go on from."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


def save_delta(path: Path, delta: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write `delta` and JSON-like data `about` it, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f".{path.name}.{os.getpid()}")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in delta.items()}
    save_file(tensors, half, metadata={"about": json.dumps(about)})
    os.replace(half, path)


def load_delta(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The delta at `path` and what it is about; None where there is none, or none that can be read."""
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["about"])
            return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118  # no mapping
    except (OSError, SafetensorError, KeyError, ValueError, RecursionError):
        return None
