"""What is dropped and what is grown: as in a plain reference, whatever ties, exactly as many."""

import pytest
import torch

from deftx.core import reselection
from deftx.core.reselection import CandidatePool, Candidates, exchange, sm3_update


def best_first(strengths, count):
    """The numbers of the `count` largest, the first ones where they tie."""
    return sorted(range(len(strengths)), key=lambda number: (-strengths[number], number))[:count]


def exchange_plainly(movements, positions, count, candidates):
    """The reference, on lists -> the positions that are trained afterwards."""
    kept = {positions[number] for number in best_first(movements, len(movements) - count)}
    eligible = [
        (position, score) for position, score in candidates if position not in kept and score > 0
    ]
    chosen = best_first([score for _, score in eligible], count)
    grown = {eligible[number][0] for number in chosen}
    leaving = [number for number, position in enumerate(positions) if position not in kept | grown]
    missing = len(movements) - len(kept | grown)
    stay = best_first([movements[number] for number in leaving], missing)
    return sorted(kept | grown | {positions[leaving[number]] for number in stay})


@pytest.mark.parametrize("seed", range(200))
def test_entries_are_exchanged_as_in_a_plain_reference(seed):
    draw = torch.Generator().manual_seed(seed)

    def integers(high, size):
        return torch.randint(0, high, (size,), generator=draw)

    total = int(integers(30, 1)) + 2
    k = int(integers(total, 1)) + 1
    c = int(integers(total + 1, 1))
    count = int(integers(k + 1, 1))
    positions = torch.randperm(total, generator=draw)[:k].sort().values
    candidates = torch.randperm(total, generator=draw)[:c].sort().values
    movements, scores = integers(4, k).float(), integers(4, c).float()  # many ties
    stays, is_new = exchange(
        movements, positions, count, Candidates(candidates, scores, scores, scores)
    )
    after = torch.cat([positions[stays], candidates[is_new]]).sort().values
    assert len(after) == k == len(after.unique())
    assert after.tolist() == exchange_plainly(
        movements.tolist(),
        positions.tolist(),
        count,
        list(zip(candidates.tolist(), scores.tolist(), strict=True)),
    )


def test_what_is_not_a_number_neither_leaves_nor_comes():
    nan = torch.nan
    positions, others = torch.tensor([0, 1, 2]), torch.tensor([5, 6])
    scores = torch.tensor([nan, 1.0])
    stays, is_new = exchange(
        torch.tensor([nan, 3.0, 2.0]), positions, 1, Candidates(others, scores, scores, scores)
    )
    assert stays.tolist() == [True, True, False]
    assert is_new.tolist() == [False, True]


@pytest.mark.parametrize("capacity", [0, 1, 7, 50, 10_000])
@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 0, 2]])
def test_a_pool_has_the_largest_of_all_tensors_whatever_their_order(monkeypatch, capacity, order):
    monkeypatch.setattr(reselection, "CHUNK", 64)
    draw = torch.Generator().manual_seed(0)
    tensors = [torch.randint(-9, 10, (n,), generator=draw).float() for n in (300, 1, 70, 500)]
    tensors[2][3] = torch.nan
    starts = [0, 300, 301, 371]
    pool = CandidatePool(capacity)
    for number in order:
        pool.add(starts[number], tensors[number], 10 * tensors[number])
        assert sum(len(part[0]) for part in pool.parts) <= 2 * capacity
    flat = torch.cat(tensors).nan_to_num(nan=0.0)
    expected = flat.abs().argsort(stable=True, descending=True)[:capacity].sort().values
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
    draw = torch.Generator().manual_seed(0)
    rows, columns, sums = torch.zeros(5), torch.zeros(4), torch.zeros(20)
    for _ in range(9):
        indices = torch.randperm(20, generator=draw)[:7].sort().values
        gradients = torch.randn(7, generator=draw)
        sums[indices] += gradients.square()
        sm3_update(rows, columns, indices, gradients)
        bounds = torch.minimum(rows.unsqueeze(1), columns).view(-1)
        assert (bounds >= sums * (1 - 1e-6)).all()
    assert rows.max() == columns.max()
