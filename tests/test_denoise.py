"""Denoising: L is the projection that a plain SVD gives, S is exactly the n_keep largest
leftovers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deftx.core import denoise as module
from deftx.core.denoise import denoise, denoise_matrix, singular_values
from deftx.core.ranks import is_matrix, rank_rule, uniform, variance
from deftx.errors import DeftxError

SIZE = 12
SPECTRA = {
    "flat": [1.0] * SIZE,
    "one dominant": [1e4] + [1.0] * (SIZE - 1),
    "geometric": [2.0**-i for i in range(SIZE)],
    "ties": [5.0, 3.0, 3.0, 3.0, 2.0, 2.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.1],
    "rank deficient": [4.0, 3.0, 2.0, 1.0] + [0.0] * (SIZE - 4),
    "rank one": [7.0] + [0.0] * (SIZE - 1),
    "all zero": [0.0] * SIZE,
}
SHAPES = [(SIZE, 40), (40, SIZE), (SIZE, SIZE)]


def orthogonal(rows, columns, generator):
    return torch.linalg.qr(torch.randn(rows, columns, generator=generator, dtype=torch.float64)).Q


def matrix_of(spectrum, shape, seed=0):
    """A float64 matrix of `shape` with the given singular values."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (orthogonal(size, len(spectrum), generator) for size in shape)
    return left * torch.tensor(spectrum, dtype=torch.float64) @ right.mT


def low_rank(matrix, rank):
    """L by a plain SVD, in float64."""
    left, singular, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    return left[:, :rank] * singular[:rank] @ right[:rank]


def rank_by_share(spectrum, share):
    """The fewest values whose squares reach the share, as a plain loop."""
    total, reached = sum(value**2 for value in spectrum), 0.0
    for rank, value in enumerate(spectrum, start=1):
        reached += value**2
        if reached >= share * total * (1 - 1e-9):
            return rank
    raise AssertionError("no rank reaches the share")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("rank", [SIZE, SIZE + 1, 300, "100%", 1.0])
def test_full_rank_is_the_identity_bit_for_bit(shape, spectrum, rank):
    matrix = matrix_of(SPECTRA[spectrum], shape).float()
    for keep in (0.0, 0.05):
        denoised = denoise({"w": matrix}, rank, keep)
        assert torch.equal(denoised["w"].view(torch.int32), matrix.view(torch.int32))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "spectrum", [name for name in SPECTRA if name not in ("flat", "ties", "one dominant")]
)
@pytest.mark.parametrize("rank", [1, 3, 7, SIZE - 1])
def test_a_uniform_rank_equals_a_plain_svd(shape, spectrum, rank):
    matrix = matrix_of(SPECTRA[spectrum], shape)
    low, kept = denoise_matrix(matrix, uniform(rank), keep=0.0)
    assert kept == rank
    torch.testing.assert_close(
        low, low_rank(matrix, rank), rtol=0, atol=1e-7 * max(SPECTRA[spectrum])
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("rank", [1, 2, 5])
def test_what_is_left_out_is_as_small_as_the_singular_values_left_out(shape, spectrum, rank):
    """Where singular values tie, L is not unique; its distance from W still is (Eckart and
    Young)."""
    matrix = matrix_of(SPECTRA[spectrum], shape)
    low, _ = denoise_matrix(matrix, uniform(rank), keep=0.0)
    assert torch.linalg.matrix_rank(low, rtol=1e-6) <= rank
    rest = sum(value**2 for value in SPECTRA[spectrum][rank:]) ** 0.5
    assert torch.linalg.norm(matrix - low).item() == pytest.approx(rest, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_residual_is_orthogonal_to_what_is_kept(shape, spectrum, dtype):
    matrix = matrix_of(SPECTRA[spectrum], shape).to(dtype)
    low, _ = denoise_matrix(matrix, uniform(3), keep=0.0)
    assert low.dtype == dtype
    rest, low = (matrix - low).double(), low.double()
    scale = torch.linalg.norm(matrix.double()).item() ** 2
    small = (1e-12 if dtype == torch.float64 else 1e-6) * scale
    assert (rest.mT @ low).abs().max() <= small
    assert (rest @ low.mT).abs().max() <= small
    again, _ = denoise_matrix(low.to(dtype), uniform(3), keep=0.0)
    torch.testing.assert_close(again.double(), low, rtol=0, atol=1e-5 * (scale**0.5 + 1e-30))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("spectrum", [name for name in SPECTRA if name != "all zero"])
@pytest.mark.parametrize("percent", [10, 50, 90, 95, 99.99])
def test_a_share_of_the_variance_keeps_the_fewest_values_whose_squares_reach_it(
    shape, spectrum, percent
):
    matrix = matrix_of(SPECTRA[spectrum], shape)
    denoised = denoise({"w": matrix}, f"{percent}%", keep=0.0)
    assert denoised.ranks["w"] == rank_by_share(SPECTRA[spectrum], percent / 100)
    rank = denoised.ranks["w"]
    rest = sum(value**2 for value in SPECTRA[spectrum][rank:]) ** 0.5
    assert torch.linalg.norm(matrix - denoised["w"]).item() == pytest.approx(
        rest, rel=1e-6, abs=1e-7
    )


@pytest.mark.parametrize(
    ("singular", "share", "rank"),
    [
        ([3.0, 1.0], 0.9, 1),  # 9 of 10: exactly reached
        ([3.0, 1.0], 0.9001, 2),
        ([2.0, 2.0, 2.0, 2.0], 0.5, 2),
        ([2.0, 2.0, 2.0, 2.0], 0.51, 3),
        ([9.0, 1.0], 0.9, 1),  # 81 of 82: squares decide, not the values (9 of 10)
        ([1.0] * 100, 0.07, 7),  # 0.07 · 100 is a little above 7 in floating point
        ([1.0] * 100, 0.28, 28),
        ([0.1] * 10, 0.3, 3),
        ([0.0, 0.0], 0.9, 0),
        ([1.0, 0.0, 0.0], 0.999999, 1),
        ([1.0, 0.0, 0.0], 1.0, 3),
    ],
)
def test_a_share_that_is_exactly_reached_needs_no_further_value(singular, share, rank):
    singular = torch.tensor(singular, dtype=torch.float64)
    assert variance(share)(singular, (len(singular), len(singular))) == rank


def test_a_diagonal_reaches_its_share_exactly():
    matrix = torch.zeros(8, 10)
    matrix[range(8), range(8)] = torch.tensor([3.0, 1, 0, 0, 0, 0, 0, 0])
    denoised = denoise({"w": matrix}, "90%", keep=0.0)
    assert denoised.ranks == {"w": 1}
    expected = torch.zeros(8, 10)
    expected[0, 0] = 3
    torch.testing.assert_close(denoised["w"], expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("keep", [0.0, 0.01, 0.05, 0.333, 0.9, 1.0])
def test_exactly_n_keep_of_the_largest_leftovers_come_back_bit_for_bit(shape, keep):
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    result, _ = denoise_matrix(matrix, uniform(2), keep)
    residual = (matrix.double() - low_rank(matrix, 2)).abs().view(-1)
    n_keep = round(keep * matrix.numel())
    largest = residual.argsort(descending=True)[:n_keep]
    back = torch.zeros(matrix.numel(), dtype=torch.bool)
    back[largest] = True
    assert torch.equal(result.view(-1)[back], matrix.view(-1)[back])
    assert (result != matrix).sum() == matrix.numel() - n_keep
    torch.testing.assert_close(
        result.view(-1)[~back].double(), low_rank(matrix, 2).view(-1)[~back], rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_keeping_everything_gives_the_matrix_back_bit_for_bit(dtype):
    matrix = torch.randn(9, 14, generator=torch.Generator().manual_seed(2)).to(dtype)
    matrix[3], matrix[5, :7] = 0, -0.0
    result = denoise({"w": matrix}, 1, keep=1)["w"]
    assert result.dtype == dtype
    assert torch.equal(result, matrix)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_full_precision_and_rounded_once(dtype):
    matrix = (torch.randn(20, 8, generator=torch.Generator().manual_seed(3)) * 1e-3).to(dtype)
    result, _ = denoise_matrix(matrix, uniform(3), keep=0.0)
    expected = low_rank(matrix, 3)
    assert result.dtype == dtype
    assert (result.double() - expected).abs().max() <= 1.01 * (
        expected.to(dtype).double() - expected
    ).abs().max() + 1e-9


def test_large_half_precision_values_do_not_overflow():
    matrix = torch.full((6, 5), 6e4, dtype=torch.float16)
    matrix[0, 0] = -6e4
    result, _ = denoise_matrix(matrix, uniform(4), keep=0.0)
    torch.testing.assert_close(result, matrix, rtol=2e-3, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("keep", [0.0, 0.05])
def test_rows_of_zeros_change_nothing(shape, keep):
    full = torch.randn(*shape, generator=torch.Generator().manual_seed(4))
    rows = torch.tensor([0, 2, 3, 7, 11])
    matrix = torch.zeros(shape).index_copy_(0, rows, full[rows])
    result, rank = denoise_matrix(matrix, uniform(2), keep)
    expected = low_rank(matrix, 2)
    residual = (matrix.double() - expected).abs().view(-1)
    back = residual.argsort(descending=True)[: round(keep * matrix.numel())]
    expected.view(-1)[back] = matrix.double().view(-1)[back]
    assert rank == 2
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=1e-5)
    assert not result[[1, 4, 5, 6, 8, 9, 10]].any()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_rank_that_the_rows_in_use_cannot_exceed_leaves_the_matrix_as_it_is(shape):
    matrix = torch.zeros(shape)
    matrix[[1, 4, 6]] = torch.randn(3, shape[1], generator=torch.Generator().manual_seed(5))
    result, rank = denoise_matrix(matrix, uniform(3), keep=0.0)
    assert torch.equal(result, matrix)
    assert rank == 3


def test_a_row_that_sums_to_zero_is_no_row_of_zeros():
    matrix = torch.tensor([[1.0, -1, 2, -2], [5, 0, 0, 0], [-3, 3, 1, -1]])
    result, _ = denoise_matrix(matrix, uniform(2), keep=0.0)
    torch.testing.assert_close(result.double(), low_rank(matrix, 2))


@pytest.mark.parametrize("rank", [1, 3, "90%"])
@pytest.mark.parametrize("keep", [0.0, 0.05, 1.0])
def test_a_matrix_of_zeros_stays_zero(rank, keep):
    result = denoise({"w": torch.zeros(6, 9)}, rank, keep)["w"]
    assert torch.equal(result, torch.zeros(6, 9))


@pytest.mark.parametrize("rank", [2, "70%"])
def test_strides_do_not_matter(rank):
    wide = torch.randn(30, 22, generator=torch.Generator().manual_seed(6))
    for view in (wide.mT, wide[::2], wide[:, ::3], wide[3:9, 1:8].mT):
        assert not view.is_contiguous()
        strided, plain = (denoise({"w": w}, rank, 0.1) for w in (view, view.contiguous()))
        torch.testing.assert_close(strided["w"], plain["w"])
        assert strided.ranks == plain.ranks


def test_the_input_is_never_changed():
    delta = {
        "w": torch.randn(8, 6),
        "rows": torch.randn(8, 6).index_fill_(0, torch.tensor([2]), 0),
        "b": torch.randn(8),
    }
    before = {name: tensor.clone() for name, tensor in delta.items()}
    denoise(delta, 2)
    assert all(torch.equal(delta[name], before[name]) for name in delta)


@pytest.mark.parametrize("shape", [(50, 7), (7, 50), (30, 30)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_matrix_taken_in_blocks_is_denoised_as_one(monkeypatch, shape, dtype):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(7)).to(dtype)
    matrix[2] = 0
    whole, _ = denoise_matrix(matrix, uniform(3))
    for name, size in {"BLOCK": 60, "STRIP": 3, "SAMPLED_ROWS": 4}.items():
        monkeypatch.setattr(module, name, size)
    blocks, _ = denoise_matrix(matrix, uniform(3))
    torch.testing.assert_close(whole, blocks)


@pytest.mark.parametrize("scale", [2.0**-100, 1.0, 2.0**50])
def test_pairs_of_equal_singular_values_are_parted_at_any_scale(scale):
    """L is not unique where the rank parts a pair; its distance from W still is."""
    spectrum = [float(value) for value in range(40, 0, -1) for _ in range(2)]
    matrix = matrix_of(spectrum, (80, 90)) * scale
    for rank in (1, 2, 7, 40, 79):
        low, _ = denoise_matrix(matrix, uniform(rank), keep=0.0)
        rest = sum(value**2 for value in spectrum[rank:]) ** 0.5
        assert torch.linalg.norm(matrix - low).item() / scale == pytest.approx(rest, rel=1e-9)
        assert torch.linalg.matrix_rank(low, rtol=1e-9) == rank


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_matrices_denoised_at_once_are_as_each_alone(three_threads):
    generator = torch.Generator().manual_seed(9)
    shapes = [(9, 30), (300, 4), (30, 9), (7,), (12, 12), (400, 5), (20, 21), (8, 3)]
    delta = {
        str(number): torch.randn(shape, generator=generator) for number, shape in enumerate(shapes)
    }
    together = denoise(delta, "60%")
    assert list(together) == list(delta)
    assert list(together.ranks) == [name for name in delta if delta[name].dim() == 2]
    for name, rank in together.ranks.items():
        alone, rank_alone = denoise_matrix(delta[name], variance(0.6))
        assert rank == rank_alone
        torch.testing.assert_close(together[name], alone)
    assert torch.get_num_threads() == 3


def test_the_number_of_threads_does_not_change_a_bit(three_threads):
    """docs/versions.md says so; the gradients of a training do depend on it."""
    generator = torch.Generator().manual_seed(9)
    delta = {name: torch.randn(600, 200, generator=generator) for name in "abc"}
    with_three = denoise(delta, "60%")
    torch.set_num_threads(1)
    with_one = denoise(delta, "60%")
    assert all(with_one[name].equal(with_three[name]) for name in delta)


def test_the_first_of_several_matrices_at_fault_is_named_and_threads_are_as_before(three_threads):
    delta = {name: torch.randn(5, 6) for name in "abcdef"}
    delta["c"][1, 1] = delta["e"][0, 0] = torch.nan
    with pytest.raises(DeftxError, match="tensor 'c' holds values that are not finite"):
        denoise(delta, 2)
    assert torch.get_num_threads() == 3


def test_a_sample_of_rows_that_misleads_is_made_up_for(monkeypatch):
    """Only one row is sampled, the one with the largest leftovers, so that the bar must fall."""
    monkeypatch.setattr(module, "SAMPLED_ROWS", 1)
    matrix = torch.randn(61, 20, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    matrix[::61] *= 100
    result, _ = denoise_matrix(matrix, uniform(2), keep=0.3)
    residual = (matrix - low_rank(matrix, 2)).abs().view(-1)
    back = residual.argsort(descending=True)[: round(0.3 * matrix.numel())]
    assert sorted(back.tolist()) == (result == matrix).view(-1).nonzero().view(-1).tolist()


@given(
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(1, 14),
    st.sampled_from([0.0, 0.1, 1.0]),
    st.integers(0, 99),
)
def test_denoising_never_moves_a_matrix_further_than_the_best_approximation(
    rows, columns, rank, keep, seed
):
    matrix = torch.randn(
        rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    result = denoise({"w": matrix}, rank, keep)["w"]
    far = torch.linalg.norm(matrix - result)
    best = torch.linalg.norm(matrix - low_rank(matrix, rank))
    assert far <= best + 1e-9
    assert keep or not is_matrix(matrix) or far == pytest.approx(best.item(), abs=1e-9)


def test_only_matrices_are_denoised():
    delta = {
        "matrix": torch.randn(6, 5),
        "bias": torch.randn(6),
        "row": torch.randn(1, 9),
        "column": torch.randn(9, 1),
        "scalar": torch.randn(()),
        "cube": torch.randn(3, 4, 5),
        "empty": torch.empty(0, 5),
    }
    denoised = denoise(delta, 1)
    assert list(denoised) == list(delta)
    assert len(denoised) == len(delta)
    assert denoised.ranks == {"matrix": 1}
    assert all(denoised[name] is delta[name] for name in delta if name != "matrix")
    assert not torch.equal(denoised["matrix"], delta["matrix"])


@pytest.mark.parametrize(
    "rank", [0, -3, "0", "-3", "0%", "-5%", "101%", "100.1%", 0.0, 1.5, -0.2, float("nan"), "nan%"]
)
def test_a_rank_out_of_range_is_an_error_that_says_what_is_allowed(rank):
    with pytest.raises(
        DeftxError, match=r"^rank .* is out of range: give an integer .* or a share up to 100%"
    ) as caught:
        denoise({"w": torch.eye(3)}, rank)
    assert str(rank) in str(caught.value)


def test_what_denoise_returns_has_a_repr_of_one_line():
    delta = {"a": torch.eye(6), "b": torch.ones(5), "c": torch.eye(3)}
    assert repr(denoise(delta, 2)) == "Denoised(3 tensors, 2 matrices of rank 2 to 2)"
    assert repr(denoise({"b": torch.ones(5)}, 2)) == "Denoised(1 tensors)"


@pytest.mark.parametrize("rank", ["abc", "", "x%", "1e2", "9O%", None])
def test_a_rank_that_is_none_is_an_error_that_lists_what_is_known(rank):
    with pytest.raises(
        DeftxError, match=r"unknown rank .*; known: a share such as 90%, an integer such as 100"
    ):
        denoise({"w": torch.eye(3)}, rank)


@pytest.mark.parametrize("keep", [1.5, -0.1, float("nan")])
def test_a_keep_that_is_no_share_is_an_error(keep):
    with pytest.raises(DeftxError, match=r"keep .* give a number from 0 to 1"):
        denoise({"w": torch.eye(3)}, 1, keep)


def embedding_with_few_rows_in_use():
    """The difference of an embedding of 500 rows, 20 of them (4%) in use: a direction, and
    noise."""
    generator = torch.Generator().manual_seed(11)
    used = torch.randn(20, 1, generator=generator) @ torch.randn(1, 16, generator=generator)
    matrix = torch.zeros(500, 16)
    rows = torch.randperm(500, generator=generator)[:20]
    matrix[rows] = used + 0.1 * torch.randn(20, 16, generator=generator)
    return matrix, rows


def test_with_few_rows_in_use_a_share_of_the_matrix_is_all_of_them_one_of_these_rows_is_not():
    """5% of 500 · 16 entries are 400, and 20 rows have 320: nothing is denoised. 5% of these 320
    are 16."""
    matrix, rows = embedding_with_few_rows_in_use()
    whole, _ = denoise_matrix(matrix, uniform(1), 0.05, "matrix")
    assert torch.equal(whole, matrix)
    assert torch.equal(whole, denoise_matrix(matrix, uniform(1), 0.05)[0])

    denoised, rank = denoise_matrix(matrix, uniform(1), 0.05, "rows-in-use")
    assert rank == 1
    alone, _ = denoise_matrix(
        matrix[rows], uniform(1), 0.05
    )  # the rows in use as a matrix of their own
    torch.testing.assert_close(denoised[rows], alone)
    assert int((denoised[rows] == matrix[rows]).sum()) == 16
    assert int((denoised != 0).any(dim=1).sum()) == len(rows)


def test_where_all_rows_are_in_use_both_ways_of_counting_are_one():
    matrix = torch.randn(40, 9, generator=torch.Generator().manual_seed(3))
    one, other = (
        denoise({"w": matrix}, 2, 0.1, keep_of)["w"] for keep_of in ("matrix", "rows-in-use")
    )
    assert torch.equal(one, other)


def test_an_unknown_way_of_counting_what_is_kept_is_named_with_the_known_ones():
    with pytest.raises(DeftxError, match=r"^unknown keep_of 'rows'; known: matrix, rows-in-use"):
        denoise({"w": torch.eye(3)}, 1, 0.05, "rows")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_an_error_that_names_the_tensor(value):
    matrix = torch.randn(5, 6)
    matrix[2, 3] = value
    with pytest.raises(DeftxError, match=r"'encoder.w'.*not finite.*diverged"):
        denoise({"fine": torch.eye(3), "encoder.w": matrix}, 2)


def test_the_same_rank_can_be_written_in_several_ways():
    singular, shape = torch.tensor([3.0, 2.0, 1.0, 0.5]), (4, 9)
    assert [rank_rule(rank)(singular, shape) for rank in (2, "2", " 2 ", "2_0")] == [2, 2, 2, 4]
    assert [rank_rule(rank)(singular, shape) for rank in ("90%", "90.0 %", 0.9)] == [2, 2, 2]


@pytest.mark.parametrize("shape", [(9, 5), (5, 9), (6, 6), (1, 4)])
def test_singular_values_are_those_of_the_svd_rows_of_zeros_and_all(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for zeros in (0, 1, shape[0]):
        matrix[:zeros] = 0
        expected = torch.linalg.svdvals(matrix.double())
        torch.testing.assert_close(singular_values(matrix), expected, atol=1e-6, rtol=0)
