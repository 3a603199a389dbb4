"""PEFT's SHiRA adapters: sparse changes of the weights of linear layers, and of nothing else.

adapter_config.json        r: every layer [m, n] has exactly r · (m + n) entries; target_modules:
                           their names; auto_mapping: the model's class, for AutoPeftModel
adapter_model.safetensors  per layer `shira_indices` [2, entries] int32 (rows, columns) and
                           `shira_weight` [entries], under base_model.model.NAME; modules that are
                           tuned fully, under their own names there
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from deftx.core.tensors import SparseTensor
from deftx.errors import DeftxError

FILE = "adapter_config.json"
_TENSORS = "adapter_model.safetensors"
_PREFIX = "base_model.model."  # of the names in that file
_INDICES = ".shira_indices"
_VALUES = ".shira_weight"
_MASK = {"mask_type": "random", "random_seed": 0}  # to be replaced by the indices in the file


def write(
    folder: Path,
    layers: Mapping[str, SparseTensor],
    dense: Mapping[str, Tensor],
    about: Mapping[str, Any],
) -> None:
    """Write an adapter.

    Args:
        folder: Where to write its two files.
        layers: Linear module's name in the whole model -> entries of its weight [m, n].
        dense: Names of parameters of fully trained modules -> values.
        about: Further keys of the configuration, such as base_model_name_or_path, task_type and
            modules_to_save.

    Raises:
        DeftxError: A layer is too dense for SHiRA.
    """
    r = max(_smallest_r(entries) for entries in layers.values())
    for name, entries in layers.items():
        if r * sum(entries.shape) > entries.numel:
            why = (
                f"room for r = {r}, which the densest layer needs, and SHiRA has one r for all "
                "layers"
            )
            raise DeftxError(
                f"{name!r} of shape {entries.shape} has no {why}: convert a sparser vector"
            )

    tensors = {}
    for name, tensor in dense.items():
        tensors[_PREFIX + name] = tensor.detach().cpu().clone()
    for name, entries in layers.items():
        coordinates, values = _padded(entries, r * sum(entries.shape))
        tensors[_PREFIX + name + _INDICES] = coordinates
        tensors[_PREFIX + name + _VALUES] = values
    save_file(tensors, folder / _TENSORS)

    config = {
        "peft_type": "SHIRA",
        "r": r,
        **_MASK,
        "inference_mode": True,
        "target_modules": list(layers),
        **about,
    }
    (folder / FILE).write_text(json.dumps(config, indent=1), encoding="utf-8")


def read(
    folder: Path, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, SparseTensor], dict[str, Tensor]]:
    """Read an adapter.

    Args:
        folder: Where its two files are.
        shapes: Linear module's name in the whole model -> shape of its weight.

    Returns:
        The entries of linear modules' weights, by the modules' names in the whole model, and the
        fully trained parameters by theirs.

    Raises:
        DeftxError: The files have another form, or belong to another model.
    """
    tensors = _load_files(folder)
    layers = {}
    dense = {}
    for name, tensor in tensors.items():
        if name.endswith(_INDICES):
            layer = name.removesuffix(_INDICES)
            what = f"{folder / _TENSORS}: layer {layer!r}"
            values = tensors.get(layer + _VALUES)
            layers[layer] = _entries(what, tensor, values, shapes.get(layer))
        elif not name.endswith(_VALUES):
            dense[name] = tensor
    return layers, dense


def _smallest_r(entries: SparseTensor) -> int:
    """The least r for which a layer of this shape has room for these entries."""
    return -(-len(entries.indices) // sum(entries.shape))  # rounded up


def _padded(entries: SparseTensor, size: int) -> tuple[Tensor, Tensor]:
    """Coordinates [2, size] and values [size]: the entries, then zeros, which change nothing."""
    missing = size - len(entries.indices)
    indices = torch.cat([entries.indices.cpu(), torch.zeros(missing, dtype=torch.int64)])
    values = torch.cat([entries.values.cpu().float(), torch.zeros(missing)])
    columns = entries.shape[1]
    coordinates = torch.stack([indices // columns, indices % columns])
    return coordinates.to(torch.int32), values


def _load_files(folder: Path) -> dict[str, Tensor]:
    """The tensors of an adapter, by their names in the whole model."""
    try:
        config = json.loads((folder / FILE).read_bytes())
        if not isinstance(config, dict) or config.get("peft_type") != "SHIRA":
            raise DeftxError(
                f"{folder / FILE} is no adapter of type SHIRA, the one type of PEFT's that is "
                "sparse"
            )
        tensors = load_file(folder / _TENSORS)
    except DeftxError:
        raise
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DeftxError(f"cannot read the adapter in {folder}: {reason}") from error
    return {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()}


def _entries(
    what: str, coordinates: Tensor, values: Tensor | None, shape: tuple[int, ...] | None
) -> SparseTensor:
    """The entries of one layer, without the zeros that fill it up. `what` names it in messages."""
    if shape is None:
        raise DeftxError(f"{what} is no linear layer of the base: give the adapter's base")
    if (
        values is None
        or not values.is_floating_point()
        or values.dim() != 1
        or coordinates.shape != (2, *values.shape)
    ):
        raise DeftxError(f"{what} is damaged: its indices and values do not belong together")

    rows, columns = coordinates.long()
    inside = (rows >= 0) & (rows < shape[0]) & (columns >= 0) & (columns < shape[1])
    if not inside.all() or not values.isfinite().all():
        raise DeftxError(
            f"{what} is damaged: it leaves its shape {shape}, or has values that are not finite"
        )

    used = values != 0
    flat = (rows * shape[1] + columns)[used]
    indices, order = flat.sort()
    if (indices.diff() == 0).any():
        raise DeftxError(f"{what} is damaged: it changes an entry twice")
    return SparseTensor(indices, values[used][order], shape)
