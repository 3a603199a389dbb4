"""Which base a vector belongs to, told by the base's weights rather than its name."""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from deftx.core.parameters import backbone
from deftx.core.vector import SparseVector
from deftx.errors import DeftxError

IGNORE_BASE_MISMATCH = (
    "go on at your own risk with --ignore-base-mismatch (in Python ignore_base_mismatch=True)"
)

_CHUNK = 1 << 20  # entries hashed at a time


def fingerprint(model: nn.Module) -> str:
    """SHA-256 (64 hex digits) of the backbone's weights; head, pooler, buffers and storage type do
    not count.

    One line of JSON `[name, shape, SHA-256 of the little-endian float32 bytes]` per parameter,
    sorted by name and each ended by a newline, is hashed. float16 and bfloat16 weights and their
    float32 copies give the same.
    """
    weights = backbone(model)
    return fingerprint_of(weights, lambda name: weights[name].detach())


def fingerprint_of(names: Iterable[str], weight: Callable[[str], Tensor]) -> str:
    """The `fingerprint` of the model with the backbone parameters `names`, which `weight` gives one
    at a time."""
    whole = hashlib.sha256()
    for name in sorted(names):
        tensor = weight(name)
        line = json.dumps([name, list(tensor.shape), _digest(tensor)])
        whole.update(f"{line}\n".encode())
    return whole.hexdigest()


def check_base(
    base: nn.Module | str, vector: SparseVector, *, ignore_base_mismatch: bool | None = False
) -> None:
    """Raise DeftxError if `vector` names another base than `base`, a model or its fingerprint; warn
    with `ignore_base_mismatch`; None: there is no such choice.

    A vector without a fingerprint in its info names no base and fits any.
    """
    wanted = vector.info.get("base_fingerprint")
    if wanted is None:
        return
    found = base if isinstance(base, str) else fingerprint(base)
    if found == wanted:
        return
    named = vector.info.get("base", "an unnamed base")
    given = getattr(base, "name_or_path", "") or "the base at hand"
    message = f"the vector was made on {named} ({wanted[:12]}), not on {given} ({found[:12]})"
    if not ignore_base_mismatch:
        raise DeftxError(
            f"{message}: use {named}"
            + (f", or {IGNORE_BASE_MISMATCH}" if ignore_base_mismatch is False else "")
        )
    warnings.warn(message, stacklevel=2)


def _digest(tensor: Tensor) -> str:
    """The SHA-256 of the tensor's float32 bytes, in row-major order, a few rows at a time."""
    digest = hashlib.sha256()
    rows = tensor.reshape(1) if tensor.dim() == 0 else tensor
    for part in rows.split(max(1, _CHUNK * len(rows) // max(1, rows.numel()))):
        digest.update(part.to("cpu", torch.float32).contiguous().numpy())
    return digest.hexdigest()
