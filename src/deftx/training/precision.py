"""Which precision a training computes in, and what keeps bf16 fast on processors."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode


def bf16_pays(device: torch.device) -> bool:
    """Whether `device` multiplies bf16 matrices faster than fp32 ones: GPUs made for it (Ampere and
    later), and CPUs with AMX, or AMD's with avx512_bf16 (from Zen 4 on).

    On Intel's CPUs avx512_bf16 alone is not enough: with it products of matrices took twice as long
    as in fp32 on a Xeon, where an AMD EPYC needs 0.57 of the time (`benchmarks/precision.py`).
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if not hasattr(torch.cpu, "get_capabilities"):  # torch before 2.13
        return False
    capabilities: Mapping[str, Any] = torch.cpu.get_capabilities()
    if capabilities.get("amx_bf16", False):
        return True
    is_amd = str(capabilities.get("cpu_name", "")).startswith("AMD")
    return is_amd and bool(capabilities.get("avx512_bf16", False))


@contextmanager
def autocast(device: torch.device, bf16: bool) -> Iterator[None]:
    """Autocast to bf16 on `device` within the block where `bf16` says so; else nothing."""
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        if bf16 and device.type == "cpu":
            with _AttentionInFp32():
                yield
        else:
            yield


class _AttentionInFp32(TorchFunctionMode):
    """Fused attention in fp32.

    In the backward pass torch's CPU kernel is several times slower in bf16, unless there is AMX and
    heads have 64 dimensions or more.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        arguments = kwargs or {}
        if func is not scaled_dot_product_attention:
            return func(*args, **arguments)
        query = args[0] if args else arguments["query"]
        wide_args = [_widen(value) for value in args]
        wide_arguments = {name: _widen(value) for name, value in arguments.items()}
        with torch.autocast("cpu", enabled=False):
            attended = func(*wide_args, **wide_arguments)
        return attended.to(query.dtype)


def _widen(value: Any) -> Any:
    """A floating-point tensor in fp32, anything else as it is."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.float()
    return value
