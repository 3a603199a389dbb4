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


def random_matrix(*shape, seed=0, dtype=torch.float32):
    """A matrix of normal numbers."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


def orthogonal(rows, columns, generator):
    """A float64 matrix [rows, columns] whose columns are orthonormal."""
    normal = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(normal).Q


def matrix_of(spectrum, shape, seed=0):
    """A float64 matrix of `shape` with the singular values of `spectrum`."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = shape
    left = orthogonal(rows, len(spectrum), generator)
    right = orthogonal(columns, len(spectrum), generator)
    singular = torch.tensor(spectrum, dtype=torch.float64)
    return left * singular @ right.mT


def low_rank(matrix, rank):
    """L by a plain SVD, in float64."""
    left, singular, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    return left[:, :rank] * singular[:rank] @ right[:rank]


def rank_by_share(spectrum, share):
    """The fewest values whose squares reach the share, as a plain loop."""
    total = sum(value**2 for value in spectrum)
    wanted = share * total * (1 - 1e-9)
    reached = 0.0
    for rank, value in enumerate(spectrum, start=1):
        reached += value**2
        if reached >= wanted:
            return rank
    raise AssertionError("no rank reaches the share")


def distance_by_spectrum(spectrum, rank):
    """How far the best approximation of a rank is from the matrix (Eckart and Young)."""
    left_out = spectrum[rank:]
    return sum(value**2 for value in left_out) ** 0.5


def distance(matrix, other):
    """The Frobenius norm of the difference of two matrices."""
    return torch.linalg.norm(matrix - other).item()


def largest_leftovers(matrix, low, count):
    """The flat indices of the `count` entries that `low` is furthest from."""
    residual = (matrix.double() - low).abs().view(-1)
    return residual.argsort(descending=True)[:count]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("rank", [SIZE, SIZE + 1, 300, "100%", 1.0])
def test_full_rank_is_the_identity_bit_for_bit(shape, spectrum, rank):
    matrix = matrix_of(SPECTRA[spectrum], shape).float()
    bits = matrix.view(torch.int32)
    for keep in (0.0, 0.05):
        denoised = denoise({"w": matrix}, rank, keep)["w"]
        assert torch.equal(denoised.view(torch.int32), bits)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "spectrum", [name for name in SPECTRA if name not in ("flat", "ties", "one dominant")]
)
@pytest.mark.parametrize("rank", [1, 3, 7, SIZE - 1])
def test_a_uniform_rank_equals_a_plain_svd(shape, spectrum, rank):
    matrix = matrix_of(SPECTRA[spectrum], shape)
    low, kept = denoise_matrix(matrix, uniform(rank), keep=0.0)
    assert kept == rank
    expected = low_rank(matrix, rank)
    largest = max(SPECTRA[spectrum])
    torch.testing.assert_close(low, expected, rtol=0, atol=1e-7 * largest)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("rank", [1, 2, 5])
def test_what_is_left_out_is_as_small_as_the_singular_values_left_out(shape, spectrum, rank):
    """Where singular values tie, L is not unique; its distance from W still is."""
    matrix = matrix_of(SPECTRA[spectrum], shape)
    low, _ = denoise_matrix(matrix, uniform(rank), keep=0.0)
    assert torch.linalg.matrix_rank(low, rtol=1e-6) <= rank
    expected = distance_by_spectrum(SPECTRA[spectrum], rank)
    assert distance(matrix, low) == pytest.approx(expected, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_residual_is_orthogonal_to_what_is_kept(shape, spectrum, dtype):
    matrix = matrix_of(SPECTRA[spectrum], shape).to(dtype)
    low, _ = denoise_matrix(matrix, uniform(3), keep=0.0)
    assert low.dtype == dtype

    # The rest is orthogonal to L
    rest = (matrix - low).double()
    low_in_full = low.double()
    norm = torch.linalg.norm(matrix.double()).item()
    rounding = 1e-12 if dtype == torch.float64 else 1e-6
    small = rounding * norm**2
    assert (rest.mT @ low_in_full).abs().max() <= small
    assert (rest @ low_in_full.mT).abs().max() <= small

    # So denoising twice is denoising once
    again, _ = denoise_matrix(low, uniform(3), keep=0.0)
    tolerance = 1e-5 * (norm + 1e-30)
    torch.testing.assert_close(again.double(), low_in_full, rtol=0, atol=tolerance)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("spectrum", [name for name in SPECTRA if name != "all zero"])
@pytest.mark.parametrize("percent", [10, 50, 90, 95, 99.99])
def test_a_share_of_the_variance_keeps_the_fewest_values_whose_squares_reach_it(
    shape, spectrum, percent
):
    matrix = matrix_of(SPECTRA[spectrum], shape)
    denoised = denoise({"w": matrix}, f"{percent}%", keep=0.0)
    rank = denoised.ranks["w"]
    assert rank == rank_by_share(SPECTRA[spectrum], percent / 100)
    expected = distance_by_spectrum(SPECTRA[spectrum], rank)
    assert distance(matrix, denoised["w"]) == pytest.approx(expected, rel=1e-6, abs=1e-7)


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
    size = len(singular)
    values = torch.tensor(singular, dtype=torch.float64)
    rule = variance(share)
    assert rule(values, (size, size)) == rank


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
    matrix = random_matrix(*shape, seed=1)
    result, _ = denoise_matrix(matrix, uniform(2), keep)

    # Which entries come back
    size = matrix.numel()
    n_keep = round(keep * size)
    low = low_rank(matrix, 2)
    is_back = torch.zeros(size, dtype=torch.bool)
    is_back[largest_leftovers(matrix, low, n_keep)] = True

    # They are the matrix's, bit for bit, and all others those of L
    flat_result = result.view(-1)
    assert torch.equal(flat_result[is_back], matrix.view(-1)[is_back])
    assert (result != matrix).sum() == size - n_keep
    others = flat_result[~is_back].double()
    torch.testing.assert_close(others, low.view(-1)[~is_back], rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_keeping_everything_gives_the_matrix_back_bit_for_bit(dtype):
    matrix = random_matrix(9, 14, seed=2).to(dtype)
    matrix[3] = 0
    matrix[5, :7] = -0.0
    result = denoise({"w": matrix}, 1, keep=1)["w"]
    assert result.dtype == dtype
    assert torch.equal(result, matrix)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_full_precision_and_rounded_once(dtype):
    matrix = (random_matrix(20, 8, seed=3) * 1e-3).to(dtype)
    result, _ = denoise_matrix(matrix, uniform(3), keep=0.0)
    assert result.dtype == dtype
    expected = low_rank(matrix, 3)
    rounded_once = expected.to(dtype).double()
    error_of_rounding = (rounded_once - expected).abs().max()
    error = (result.double() - expected).abs().max()
    assert error <= 1.01 * error_of_rounding + 1e-9


def test_large_half_precision_values_do_not_overflow():
    matrix = torch.full((6, 5), 6e4, dtype=torch.float16)
    matrix[0, 0] = -6e4
    result, _ = denoise_matrix(matrix, uniform(4), keep=0.0)
    torch.testing.assert_close(result, matrix, rtol=2e-3, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("keep", [0.0, 0.05])
def test_rows_of_zeros_change_nothing(shape, keep):
    full = random_matrix(*shape, seed=4)
    rows_in_use = [0, 2, 3, 7, 11]
    rows_of_zeros = [1, 4, 5, 6, 8, 9, 10]
    matrix = torch.zeros(shape)
    matrix[rows_in_use] = full[rows_in_use]
    result, rank = denoise_matrix(matrix, uniform(2), keep)

    # As without regard for them
    expected = low_rank(matrix, 2)
    n_keep = round(keep * matrix.numel())
    back = largest_leftovers(matrix, expected, n_keep)
    expected.view(-1)[back] = matrix.double().view(-1)[back]
    assert rank == 2
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=1e-5)
    assert not result[rows_of_zeros].any()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_rank_that_the_rows_in_use_cannot_exceed_leaves_the_matrix_as_it_is(shape):
    matrix = torch.zeros(shape)
    matrix[[1, 4, 6]] = random_matrix(3, shape[1], seed=5)
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
    wide = random_matrix(30, 22, seed=6)
    for view in (wide.mT, wide[::2], wide[:, ::3], wide[3:9, 1:8].mT):
        assert not view.is_contiguous()
        strided = denoise({"w": view}, rank, 0.1)
        plain = denoise({"w": view.contiguous()}, rank, 0.1)
        torch.testing.assert_close(strided["w"], plain["w"])
        assert strided.ranks == plain.ranks


def test_the_input_is_never_changed():
    with_a_row_of_zeros = torch.randn(8, 6)
    with_a_row_of_zeros[2] = 0
    delta = {"w": torch.randn(8, 6), "rows": with_a_row_of_zeros, "b": torch.randn(8)}
    before = {name: tensor.clone() for name, tensor in delta.items()}
    denoise(delta, 2)
    for name in delta:
        assert torch.equal(delta[name], before[name])


@pytest.mark.parametrize("shape", [(50, 7), (7, 50), (30, 30)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_matrix_taken_in_blocks_is_denoised_as_one(monkeypatch, shape, dtype):
    matrix = random_matrix(*shape, seed=7).to(dtype)
    matrix[2] = 0
    whole, _ = denoise_matrix(matrix, uniform(3))
    monkeypatch.setattr(module, "BLOCK", 60)
    monkeypatch.setattr(module, "STRIP", 3)
    monkeypatch.setattr(module, "SAMPLED_ROWS", 4)
    blocks, _ = denoise_matrix(matrix, uniform(3))
    torch.testing.assert_close(whole, blocks)


@pytest.mark.parametrize("scale", [2.0**-100, 1.0, 2.0**50])
def test_pairs_of_equal_singular_values_are_parted_at_any_scale(scale):
    """L is not unique where the rank parts a pair; its distance from W still is."""
    spectrum = []
    for value in range(40, 0, -1):
        spectrum += [float(value), float(value)]
    matrix = matrix_of(spectrum, (80, 90)) * scale
    for rank in (1, 2, 7, 40, 79):
        low, _ = denoise_matrix(matrix, uniform(rank), keep=0.0)
        expected = distance_by_spectrum(spectrum, rank)
        assert distance(matrix, low) / scale == pytest.approx(expected, rel=1e-9)
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
    delta = {}
    for number, shape in enumerate(shapes):
        delta[str(number)] = torch.randn(shape, generator=generator)
    matrices = [name for name, tensor in delta.items() if tensor.dim() == 2]
    together = denoise(delta, "60%")
    assert list(together) == list(delta)
    assert list(together.ranks) == matrices
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
    for name in delta:
        assert with_one[name].equal(with_three[name])


def test_the_first_of_several_matrices_at_fault_is_named_and_threads_are_as_before(three_threads):
    delta = {name: torch.randn(5, 6) for name in "abcdef"}
    delta["c"][1, 1] = torch.nan
    delta["e"][0, 0] = torch.nan
    with pytest.raises(DeftxError, match="tensor 'c' holds values that are not finite"):
        denoise(delta, 2)
    assert torch.get_num_threads() == 3


def test_a_sample_of_rows_that_misleads_is_made_up_for(monkeypatch):
    """Only one row is sampled, the one with the largest leftovers, so that the bar must fall."""
    monkeypatch.setattr(module, "SAMPLED_ROWS", 1)
    matrix = random_matrix(61, 20, seed=8, dtype=torch.float64)
    matrix[::61] *= 100
    result, _ = denoise_matrix(matrix, uniform(2), keep=0.3)
    n_keep = round(0.3 * matrix.numel())
    expected = largest_leftovers(matrix, low_rank(matrix, 2), n_keep)
    is_back = (result == matrix).view(-1)
    back = is_back.nonzero().view(-1)
    assert back.tolist() == sorted(expected.tolist())


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
    matrix = random_matrix(rows, columns, seed=seed, dtype=torch.float64)
    result = denoise({"w": matrix}, rank, keep)["w"]
    moved = distance(matrix, result)
    moved_by_svd = distance(matrix, low_rank(matrix, rank))
    assert moved <= moved_by_svd + 1e-9
    if keep == 0 and is_matrix(matrix):
        assert moved == pytest.approx(moved_by_svd, abs=1e-9)


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
    assert not torch.equal(denoised["matrix"], delta["matrix"])
    for name, tensor in delta.items():
        if name != "matrix":
            assert denoised[name] is tensor


@pytest.mark.parametrize(
    "rank", [0, -3, "0", "-3", "0%", "-5%", "101%", "100.1%", 0.0, 1.5, -0.2, float("nan"), "nan%"]
)
def test_a_rank_out_of_range_is_an_error_that_says_what_is_allowed(rank):
    message = r"^rank .* is out of range: give an integer .* or a share up to 100%"
    with pytest.raises(DeftxError, match=message) as caught:
        denoise({"w": torch.eye(3)}, rank)
    assert str(rank) in str(caught.value)


def test_what_denoise_returns_has_a_repr_of_one_line():
    delta = {"a": torch.eye(6), "b": torch.ones(5), "c": torch.eye(3)}
    assert repr(denoise(delta, 2)) == "Denoised(3 tensors, 2 matrices of rank 2 to 2)"
    assert repr(denoise({"b": torch.ones(5)}, 2)) == "Denoised(1 tensors)"


@pytest.mark.parametrize("rank", ["abc", "", "x%", "1e2", "9O%", None])
def test_a_rank_that_is_none_is_an_error_that_lists_what_is_known(rank):
    message = r"unknown rank .*; known: a share such as 90%, an integer such as 100"
    with pytest.raises(DeftxError, match=message):
        denoise({"w": torch.eye(3)}, rank)


@pytest.mark.parametrize("keep", [1.5, -0.1, float("nan")])
def test_a_keep_that_is_no_share_is_an_error(keep):
    with pytest.raises(DeftxError, match=r"keep .* give a number from 0 to 1"):
        denoise({"w": torch.eye(3)}, 1, keep)


def embedding_with_few_rows_in_use():
    """The difference of an embedding of 500 rows, 20 of them (4%) in use: a direction, and
    noise."""
    generator = torch.Generator().manual_seed(11)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    direction = normal(20, 1) @ normal(1, 16)
    rows = torch.randperm(500, generator=generator)[:20]
    noise = 0.1 * normal(20, 16)
    matrix = torch.zeros(500, 16)
    matrix[rows] = direction + noise
    return matrix, rows


def test_with_few_rows_in_use_a_share_of_the_matrix_is_all_of_them_one_of_these_rows_is_not():
    """5% of 500 · 16 entries are 400, and 20 rows have 320: nothing is denoised. 5% of these 320
    are 16."""
    matrix, rows = embedding_with_few_rows_in_use()
    of_matrix, _ = denoise_matrix(matrix, uniform(1), 0.05, "matrix")
    by_default, _ = denoise_matrix(matrix, uniform(1), 0.05)
    assert torch.equal(of_matrix, matrix)
    assert torch.equal(by_default, matrix)

    # As the rows in use alone, as a matrix of their own
    denoised, rank = denoise_matrix(matrix, uniform(1), 0.05, "rows-in-use")
    alone, _ = denoise_matrix(matrix[rows], uniform(1), 0.05)
    assert rank == 1
    torch.testing.assert_close(denoised[rows], alone)
    is_back = denoised[rows] == matrix[rows]
    assert int(is_back.sum()) == 16
    is_in_use = (denoised != 0).any(dim=1)
    assert int(is_in_use.sum()) == len(rows)


def test_where_all_rows_are_in_use_both_ways_of_counting_are_one():
    matrix = random_matrix(40, 9, seed=3)
    of_matrix = denoise({"w": matrix}, 2, 0.1, "matrix")
    of_rows = denoise({"w": matrix}, 2, 0.1, "rows-in-use")
    assert torch.equal(of_matrix["w"], of_rows["w"])


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
    singular = torch.tensor([3.0, 2.0, 1.0, 0.5])
    expected = {2: 2, "2": 2, " 2 ": 2, "2_0": 4, "90%": 2, "90.0 %": 2, 0.9: 2}
    for rank, kept in expected.items():
        rule = rank_rule(rank)
        assert rule(singular, (4, 9)) == kept, rank


@pytest.mark.parametrize("shape", [(9, 5), (5, 9), (6, 6), (1, 4)])
def test_singular_values_are_those_of_the_svd_rows_of_zeros_and_all(shape):
    matrix = random_matrix(*shape, seed=0)
    for zeros in (0, 1, shape[0]):
        matrix[:zeros] = 0
        expected = torch.linalg.svdvals(matrix.double())
        torch.testing.assert_close(singular_values(matrix), expected, atol=1e-6, rtol=0)
