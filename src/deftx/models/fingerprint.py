"""Which base a vector was made on, by the weights of the base rather than by its name."""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from deftx.core.parameters import parameter_groups
from deftx.core.vector import SparseVector
from deftx.errors import DeftxError

IGNORE_BASE_MISMATCH = (
    "go on at your own risk with --ignore-base-mismatch (in Python ignore_base_mismatch=True)"
)

_CHUNK = 1 << 20  # entries hashed at a time


def fingerprint(model: nn.Module) -> str:
    """A name of a base by its weights.

    Head, pooler, buffers and storage type do not count: float16 and bfloat16 weights and their
    float32 copies have the same fingerprint. One line of JSON `[name, shape, SHA-256 of the
    little-endian float32 bytes]` for each parameter, sorted by name and ended by a newline, is
    hashed.

    Args:
        model: The base, with or without a head.

    Returns:
        SHA-256 of the backbone's weights, 64 hex digits.
    """
    weights = parameter_groups(model).backbone
    return fingerprint_of(weights, lambda name: weights[name].detach())


def fingerprint_of(names: Iterable[str], weight: Callable[[str], Tensor]) -> str:
    """The `fingerprint` of a model that need not be loaded whole.

    Args:
        names: The names of the backbone's parameters.
        weight: Gives a parameter by its name.
    """
    whole = hashlib.sha256()
    for name in sorted(names):
        tensor = weight(name)
        line = json.dumps([name, list(tensor.shape), _digest(tensor)])
        whole.update(f"{line}\n".encode())
    return whole.hexdigest()


def check_base(
    base: nn.Module | str, vector: SparseVector, *, ignore_base_mismatch: bool | None = False
) -> None:
    """Check that a vector was made on a base.

    Args:
        base: A model, or its fingerprint.
        vector: One that records no fingerprint fits any base.
        ignore_base_mismatch: Warn instead of raising. None: raise, without mentioning this option.

    Raises:
        DeftxError: The vector was made on other weights.
    """
    recorded = vector.provenance.base_fingerprint
    if recorded is None:
        return
    current = base if isinstance(base, str) else fingerprint(base)
    if current == recorded:
        return
    recorded_base = vector.base or "an unnamed base"
    current_base = getattr(base, "name_or_path", "") or "the base at hand"
    message = (
        f"the vector was made on {recorded_base} ({recorded[:12]}),"
        f" not on {current_base} ({current[:12]})"
    )
    if ignore_base_mismatch:
        warnings.warn(message, stacklevel=2)
        return
    remedy = f"use {recorded_base}"
    if ignore_base_mismatch is False:
        remedy = f"{remedy}, or {IGNORE_BASE_MISMATCH}"
    raise DeftxError(f"{message}: {remedy}")


def _digest(tensor: Tensor) -> str:
    """The SHA-256 of a tensor's little-endian float32 bytes, in row-major order.

    A few rows are converted at a time, so that no float32 copy of the whole is made.
    """
    digest = hashlib.sha256()
    rows = tensor.reshape(1) if tensor.dim() == 0 else tensor
    rows_at_once = max(1, _CHUNK * len(rows) // max(1, rows.numel()))
    for part in rows.split(rows_at_once):
        digest.update(part.to("cpu", torch.float32).contiguous().numpy())
    return digest.hexdigest()
