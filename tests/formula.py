"""A base whose weights are arithmetic, the same on every machine and with every library: for the
fixtures."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import tiny
import torch
from torch import Tensor

from deftx import SparseVector


def save_formula_base(folder: Path) -> Path:
    """A tiny XLM-R-shaped checkpoint; each weight is a fraction of 2³¹, found by multiplying
    integers."""
    model = tiny.xlmr()
    with torch.no_grad():
        for number, (name, weight) in enumerate(sorted(model.named_parameters())):
            steps = torch.arange(weight.numel(), dtype=torch.int64) + 7919 * number
            scattered = (
                steps * 1_103_515_245 + 12_345
            ) % 2**31  # below 2⁵³: no overflow, exact in float64
            values = (scattered.double() / 2**31 - 0.5) / 8
            weight.copy_(
                (values + (1.0 if "LayerNorm.weight" in name else 0.0)).float().view(weight.shape)
            )
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def weights_of(vector: SparseVector) -> dict[str, Tensor]:
    """All that a vector adds to a model, by name: places, values and the head."""
    places = {f"{name}.indices": entries.indices for name, entries in vector.tensors.items()}
    values = {f"{name}.values": entries.values for name, entries in vector.tensors.items()}
    return {**places, **values, **(vector.head.tensors if vector.head else {})}


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names, shapes, types and little-endian bytes of tensors, in the order of
    their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        flat = tensor.detach().reshape(-1).clone(memory_format=torch.contiguous_format)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
