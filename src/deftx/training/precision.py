"""Which precision a training computes in, and what keeps bf16 fast on processors."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode


def bf16_pays(device: torch.device) -> bool:
    """Whether `device` multiplies bf16 matrices faster than fp32 ones: GPUs made for it (Ampere
    on), and CPUs with AMX.

    avx512_bf16 alone is not enough: there products of matrices took twice as long as in fp32 on an
    Intel Xeon.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    told: Mapping[str, bool] = getattr(
        torch.cpu, "get_capabilities", dict
    )()  # releases before 2.13 do not tell
    return told.get("amx_bf16", False)


@contextmanager
def autocast(device: torch.device, bf16: bool) -> Iterator[None]:
    """bf16 autocast on `device` where `bf16` says so, nothing otherwise."""
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        if bf16 and device.type == "cpu":
            with _AttentionInFp32():
                yield
        else:
            yield


class _AttentionInFp32(TorchFunctionMode):
    """Fused attention in fp32: backward, torch's CPU kernel is several times slower in bf16, unless
    there is AMX and heads have 64 dimensions or more."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is not scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        named = dict(kwargs or {})
        query = args[0] if args else named["query"]
        with torch.autocast("cpu", enabled=False):
            wide = func(*map(_widen, args), **{name: _widen(arg) for name, arg in named.items()})
        return wide.to(query.dtype)


def _widen(arg: Any) -> Any:
    return arg.float() if isinstance(arg, Tensor) and arg.is_floating_point() else arg
