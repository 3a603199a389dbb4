"""Model folders whose tensors are read one at a time: safetensors, in one file or in several with
an index."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from deftx.errors import DeftxError
from deftx.storage.hub_client import is_model_id, snapshot

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class Checkpoint:
    """Which file of `folder` holds which tensor."""

    folder: Path
    files: Mapping[str, str]

    def tensor(self, name: str) -> Tensor:
        """One tensor, as it is stored.

        Raises:
            DeftxError: It cannot be read.
        """
        path = self.folder / self.files[name]
        try:
            with safe_open(path, framework="pt") as file:
                tensor: Tensor = file.get_tensor(name)
                return tensor
        except (OSError, SafetensorError) as error:
            raise DeftxError(
                f"cannot read {name!r} from {path}: {' '.join(str(error).split())}"
            ) from error


def open_checkpoint(model: str | os.PathLike[str]) -> Checkpoint:
    """The checkpoint in a folder, or of a hub id.

    Raises:
        DeftxError: It has no safetensors, or a damaged index.
    """
    folder = local(model, ["config.json", _WHOLE, _INDEX, "model-*.safetensors"])
    try:
        if (folder / _INDEX).is_file():
            files = json.loads((folder / _INDEX).read_bytes())["weight_map"]
        elif (folder / _WHOLE).is_file():
            with safe_open(folder / _WHOLE, framework="pt") as file:
                files = dict.fromkeys(file.keys(), _WHOLE)
        else:
            why = "load it with transformers, and save it again with save_pretrained"
            raise DeftxError(f"{model} has no {_WHOLE} and no {_INDEX}: {why}")
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, DeftxError):
            raise
        raise DeftxError(
            f"the checkpoint {folder} is damaged: {' '.join(str(error).split())[:200]}"
        ) from error
    if not isinstance(files, dict) or not all(
        isinstance(file, str) and Path(file).name == file for file in files.values()
    ):
        raise DeftxError(f"{folder / _INDEX} is damaged: it must map tensors to files beside it")
    return Checkpoint(folder, files)


def local(model: str | os.PathLike[str], patterns: Sequence[str]) -> Path:
    """The folder that is meant, or one with those files of a hub id (`ID@REVISION` to pin one) that
    fit `patterns`."""
    name = os.fspath(model)
    if os.path.exists(name):
        return Path(name)
    if not is_model_id(name):
        raise DeftxError(f"there is no folder {name!r}, and it is no hub id")
    try:
        return snapshot(name, patterns)
    except DeftxError as error:
        raise DeftxError(f"there is no folder {name!r}; {error}") from error
