"""Entries chosen by the magnitude of the weights: exactly the extreme ones, ties by index."""

import pytest
import torch

from deftx.core.weights import WEIGHT_RULES, select_by_weight


def weights(dtype=torch.float32):
    """Random weights with exact ties, zeros of both signs, and neighbours a bit apart."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(7, 11, generator=generator)
    matrix[0, :3] = torch.tensor([0.0, -0.0, 0.0])
    matrix[1] = matrix[2]
    matrix[3, 0] = torch.nextafter(matrix[3, 1], torch.tensor(torch.inf))
    return {"matrix": matrix.to(dtype), "bias": torch.zeros(5, dtype=dtype)}


def ordered(tensors, *, largest):
    """The reference: all entries by magnitude, those that tie as they come."""
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors.values()]).double().abs()
    return flat.argsort(stable=True, descending=largest)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rule", WEIGHT_RULES)
def test_exactly_the_extreme_weights_are_chosen_for_every_k(rule, dtype):
    tensors = weights(dtype)
    order = ordered(tensors, largest=rule == "largest-weights")
    for k in range(len(order) + 1):
        mask = select_by_weight(tensors, k, rule)
        positions = torch.cat([mask["matrix"].indices, mask["bias"].indices + 77])
        assert torch.equal(positions, order[:k].sort().values)


def test_each_matrix_has_its_part_of_k_where_k_is_split():
    mask = select_by_weight(weights(), "50%", "pafi", "matrix")
    assert [len(part.indices) for part in mask.values()] == [39, 2]
