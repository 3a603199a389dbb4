"""Choosing entries by the magnitude of the weights that a training starts from: no data, no phase
1.

    pafi             the smallest (PaFi, Liao, Meng and Monz 2023)
    largest-weights  the largest (Super-Tuning's magnitude rule; Hugging Face's PEFT has it too)

All languages and tasks of one base share such a choice, as far as k and the start are the same.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from deftx.core.select import SparseMask, select

GREATEST_BITS = 0x7F7FFFFF  # of the greatest finite float32, read as an integer


def select_by_weight(
    weights: Mapping[str, Tensor], k: int | float | str, rule: str, split: str = "global"
) -> SparseMask:
    """Exactly k entries by the magnitude of `weights`.

    Args:
        weights: Tensor name -> weights; their order decides ties, then the lowest index does.
        k: A count or a share of all entries, see `parse_k`.
        rule: A name of `WEIGHT_RULES`.
        split: Which entries compete with each other, as in `select`.

    Raises:
        DeftxError: As `select` does.

    Example:
        >>> import torch
        >>> weights = {"weight": torch.tensor([0.5, -0.1, 2.0])}
        >>> select_by_weight(weights, 1, "pafi")["weight"].indices
        tensor([1])
    """
    strength_of = WEIGHT_RULES[rule]
    strengths = {name: strength_of(weight.detach()) for name, weight in weights.items()}
    return select(strengths, k, split)


def _as_they_are(weight: Tensor) -> Tensor:
    return weight


def _reversed_magnitudes(weight: Tensor) -> Tensor:
    """Numbers above 0 that are the larger, the smaller a weight is.

    The bits of a float32 above 0, read as an integer, are in the order of the numbers. So the
    distance from the greatest one reverses the order of magnitudes, and keeps any two apart that
    differ.
    """
    bits = weight.float().abs().view(torch.int32)
    return (GREATEST_BITS - bits).view(torch.float32)


# From the weights to what `select` takes the largest of.
WEIGHT_RULES: dict[str, Callable[[Tensor], Tensor]] = {
    "pafi": _reversed_magnitudes,
    "largest-weights": _as_they_are,
}
