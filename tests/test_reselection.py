"""What is dropped and what is grown: as in a plain reference, whatever ties, exactly as many."""

import pytest
import torch

from deftx.core import reselection
from deftx.core.reselection import CandidatePool, Candidates, exchange, sm3_update


def best_first(strengths, count):
    """The numbers of the `count` largest, the first ones where they tie."""
    numbers = range(len(strengths))
    ordered = sorted(numbers, key=lambda number: (-strengths[number], number))
    return ordered[:count]


def exchange_plainly(movements, positions, count, candidates):
    """The reference, on lists.

    Args:
        movements: How far each trained entry has moved.
        positions: The position of each.
        count: How many may be dropped.
        candidates: Pairs of a position and its score.

    Returns:
        The positions that are trained afterwards.
    """
    k = len(movements)

    # Those that moved furthest are kept
    kept = set()
    for number in best_first(movements, k - count):
        kept.add(positions[number])

    # The candidates with the highest scores grow, if they are not kept already
    eligible = []
    eligible_scores = []
    for position, score in candidates:
        if position not in kept and score > 0:
            eligible.append(position)
            eligible_scores.append(score)
    grown = set()
    for number in best_first(eligible_scores, count):
        grown.add(eligible[number])

    # Where too few grow, some that would be dropped stay
    leaving = []
    leaving_movements = []
    for position, movement in zip(positions, movements, strict=True):
        if position not in kept and position not in grown:
            leaving.append(position)
            leaving_movements.append(movement)
    trained = kept | grown
    missing = k - len(trained)
    for number in best_first(leaving_movements, missing):
        trained.add(leaving[number])
    return sorted(trained)


@pytest.mark.parametrize("seed", range(200))
def test_entries_are_exchanged_as_in_a_plain_reference(seed):
    generator = torch.Generator().manual_seed(seed)

    def integers(high, size):
        return torch.randint(0, high, (size,), generator=generator)

    def sorted_sample(total, size):
        return torch.randperm(total, generator=generator)[:size].sort().values

    # How many entries there are, are trained, are candidates and may be dropped
    total = int(integers(30, 1)) + 2
    k = int(integers(total, 1)) + 1
    number_of_candidates = int(integers(total + 1, 1))
    count = int(integers(k + 1, 1))

    # Where they are, and what decides; with many ties
    positions = sorted_sample(total, k)
    candidates = sorted_sample(total, number_of_candidates)
    movements = integers(4, k).float()
    scores = integers(4, number_of_candidates).float()

    ours = Candidates(candidates, scores, scores, scores)
    stays, is_new = exchange(movements, positions, count, ours)
    after = torch.cat([positions[stays], candidates[is_new]]).sort().values
    assert len(after) == k
    assert len(after.unique()) == k

    pairs = list(zip(candidates.tolist(), scores.tolist(), strict=True))
    expected = exchange_plainly(movements.tolist(), positions.tolist(), count, pairs)
    assert after.tolist() == expected


def test_what_is_not_a_number_neither_leaves_nor_comes():
    positions = torch.tensor([0, 1, 2])
    movements = torch.tensor([torch.nan, 3.0, 2.0])
    scores = torch.tensor([torch.nan, 1.0])
    candidates = Candidates(torch.tensor([5, 6]), scores, scores, scores)
    stays, is_new = exchange(movements, positions, 1, candidates)
    assert stays.tolist() == [True, True, False]
    assert is_new.tolist() == [False, True]


@pytest.mark.parametrize("capacity", [0, 1, 7, 50, 10_000])
@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 0, 2]])
def test_a_pool_has_the_largest_of_all_tensors_whatever_their_order(monkeypatch, capacity, order):
    monkeypatch.setattr(reselection, "CHUNK", 64)
    generator = torch.Generator().manual_seed(0)
    sizes = [300, 1, 70, 500]
    starts = [0, 300, 301, 371]
    tensors = []
    for size in sizes:
        tensors.append(torch.randint(-9, 10, (size,), generator=generator).float())
    tensors[2][3] = torch.nan

    # The pool never grows beyond twice its capacity
    pool = CandidatePool(capacity)
    for number in order:
        values = 10 * tensors[number]
        pool.add(starts[number], tensors[number], values)
        entries = sum(len(part[0]) for part in pool.parts)
        assert entries <= 2 * capacity

    # The reference: all tensors end to end, sorted
    flat = torch.cat(tensors).nan_to_num(nan=0.0)
    by_magnitude = flat.abs().argsort(stable=True, descending=True)
    expected = by_magnitude[:capacity].sort().values
    expected = expected[flat[expected] != 0]
    if capacity == 0:
        assert pool.result() is None
        return
    positions, magnitudes, values = pool.result()
    assert torch.equal(positions, expected)
    assert torch.equal(magnitudes, flat[expected].abs())
    assert torch.equal(values, 10 * flat[expected])


def test_sm3_bounds_the_sum_of_squared_gradients_of_every_entry():
    """Anil et al. 2019, Proposition 1: min(row, column) is never below the sum so far."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.zeros(5)
    columns = torch.zeros(4)
    sums = torch.zeros(20)
    for _ in range(9):
        indices = torch.randperm(20, generator=generator)[:7].sort().values
        gradients = torch.randn(7, generator=generator)
        sums[indices] += gradients.square()
        sm3_update(rows, columns, indices, gradients)
        bounds = torch.minimum(rows.unsqueeze(1), columns).view(-1)
        assert (bounds >= sums * (1 - 1e-6)).all()
    assert rows.max() == columns.max()
