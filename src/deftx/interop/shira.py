"""PEFT's SHiRA adapters: sparse changes of the weights of linear layers, and of nothing else.

adapter_config.json        r: every layer [m, n] has exactly r · (m + n) entries; target_modules:
                           their names
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

from deftx.core.vector import SparseTensor
from deftx.errors import DeftxError

FILE, _TENSORS, _PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."
_INDICES, _VALUES = ".shira_indices", ".shira_weight"


def write(
    folder: Path,
    layers: Mapping[str, SparseTensor],
    dense: Mapping[str, Tensor],
    about: Mapping[str, Any],
) -> None:
    """Write an adapter. Raises DeftxError where a layer is too dense for SHiRA.

    layers  linear module's name in the whole model -> entries of its weight [m, n]
    dense   names of parameters of fully tuned modules -> values
    about   further keys of the configuration, such as base_model_name_or_path, task_type and
            modules_to_save
    """
    r = max(-(-len(entries.indices) // sum(entries.shape)) for entries in layers.values())
    for name, entries in layers.items():
        if r * sum(entries.shape) > entries.numel:
            why = f"room for r = {r}, which the densest layer needs, and SHiRA has one r for all layers"
            raise DeftxError(
                f"{name!r} of shape {entries.shape} has no {why}: convert a sparser vector"
            )
    tensors = {_PREFIX + name: tensor.detach().cpu().clone() for name, tensor in dense.items()}
    for name, entries in layers.items():
        filled = r * sum(entries.shape) - len(
            entries.indices
        )  # with zeros, which change nothing wherever they stand
        indices = torch.cat([entries.indices.cpu(), torch.zeros(filled, dtype=torch.int64)])
        places = torch.stack([indices // entries.shape[1], indices % entries.shape[1]])
        tensors[_PREFIX + name + _INDICES] = places.to(torch.int32)
        tensors[_PREFIX + name + _VALUES] = torch.cat(
            [entries.values.cpu().float(), torch.zeros(filled)]
        )
    save_file(tensors, folder / _TENSORS)
    fixed = {
        "peft_type": "SHIRA",
        "r": r,
        "mask_type": "random",
        "random_seed": 0,
        "inference_mode": True,
    }
    config = {**fixed, "target_modules": list(layers), **about}
    (folder / FILE).write_text(json.dumps(config, indent=1), encoding="utf-8")


def read(
    folder: Path, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, SparseTensor], dict[str, Tensor]]:
    """The entries of linear modules, by the modules' names in the whole model, and the fully tuned
    parameters.

    shapes  module's name -> shape of its weight. Raises DeftxError for a file of another form or
            another model.
    """
    try:
        config = json.loads((folder / FILE).read_bytes())
        if not isinstance(config, dict) or config.get("peft_type") != "SHIRA":
            raise DeftxError(
                f"{folder / FILE} is no adapter of type SHIRA, the one type of PEFT's that is sparse"
            )
        tensors = load_file(folder / _TENSORS)
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        if isinstance(error, DeftxError):
            raise
        raise DeftxError(
            f"cannot read the adapter in {folder}: {' '.join(str(error).split())[:200]}"
        ) from error
    named = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()}
    layers = {
        name.removesuffix(_INDICES): tensor
        for name, tensor in named.items()
        if name.endswith(_INDICES)
    }
    found = {}
    for name, places in layers.items():
        found[name] = _entries(
            f"{folder / _TENSORS}: layer {name!r}",
            places,
            named.get(name + _VALUES),
            shapes.get(name),
        )
    return found, {
        name: tensor for name, tensor in named.items() if not name.endswith((_INDICES, _VALUES))
    }


def _entries(
    what: str, places: Tensor, values: Tensor | None, shape: tuple[int, ...] | None
) -> SparseTensor:
    if shape is None:
        raise DeftxError(f"{what} is no linear layer of the base: give the adapter's base")
    if (
        values is None
        or not values.is_floating_point()
        or places.shape != (2, *values.shape)
        or values.dim() != 1
    ):
        raise DeftxError(f"{what} is damaged: its indices and values do not belong together")
    rows, columns = places.long()
    inside = (rows >= 0) & (rows < shape[0]) & (columns >= 0) & (columns < shape[1])
    if not inside.all() or not values.isfinite().all():
        raise DeftxError(
            f"{what} is damaged: it leaves its shape {shape}, or has values that are not finite"
        )
    used = values != 0
    indices, order = (rows * shape[1] + columns)[used].sort()
    if (indices.diff() == 0).any():
        raise DeftxError(f"{what} is damaged: it changes an entry twice")
    return SparseTensor(indices, values[used][order], shape)
