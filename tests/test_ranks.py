"""Rules for the rank: what is known of each in closed form, and planted signals in noise."""

from math import sqrt

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deftx.core.denoise import denoise
from deftx.core.ranks import (
    RANK_RULES,
    RECOMMENDED,
    noise_median,
    rank_rule,
    recorded_rank,
    resolve_rank,
    split_half,
    split_half_ranks,
)
from deftx.errors import DeftxError

NOISE_RULES = ["gavish-donoho", "bulk-edge"]


def noise(shape, seed):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def planted(shape, rank, strength, seed):
    """Noise of variance 1 plus `rank` directions, each `strength` times the edge of the noise."""
    left, right = (
        torch.linalg.qr(noise((size, rank), seed + 1 + i)).Q for i, size in enumerate(shape)
    )
    return noise(shape, seed) + strength * (sqrt(shape[0]) + sqrt(shape[1])) * left @ right.mT


@pytest.mark.parametrize("shape", [(60, 60), (200, 60), (60, 200), (400, 50)])
@pytest.mark.parametrize("rule", NOISE_RULES)
@pytest.mark.parametrize("rank", [1, 5])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e5])
def test_a_planted_signal_is_counted_whatever_the_strength_of_the_noise(shape, rule, rank, scale):
    assert denoise({"w": scale * planted(shape, rank, 2.0, seed=3)}, rule).ranks == {"w": rank}


@pytest.mark.parametrize("shape", [(60, 60), (200, 60), (60, 200)])
def test_noise_alone_has_no_signal(shape):
    ranks = [denoise({"w": noise(shape, seed)}, "gavish-donoho").ranks["w"] for seed in range(10)]
    assert ranks == [0] * 10
    ranks = [denoise({"w": noise(shape, seed)}, "bulk-edge").ranks["w"] for seed in range(10)]
    assert max(ranks) <= 1  # at the very edge chance decides


@pytest.mark.parametrize("rule", NOISE_RULES)
def test_rows_of_zeros_do_not_count_in_the_shape(rule):
    """Embeddings of unseen pieces: with their rows in the shape, the noise would be taken for
    something else."""
    matrix = planted((80, 60), 4, 2.0, seed=5)
    padded = torch.zeros(1000, 60, dtype=torch.float64)
    padded[100:900:10] = matrix
    assert denoise({"w": padded}, rule).ranks == denoise({"w": matrix}, rule).ranks == {"w": 4}


@pytest.mark.parametrize("rule", NOISE_RULES)
@pytest.mark.parametrize("rank", [1, 4])
def test_a_signal_without_any_noise_is_kept_whole(rule, rank):
    matrix = noise((40, rank), 0) @ noise((rank, 30), 1)
    assert denoise({"w": matrix}, rule).ranks == {"w": rank}


@pytest.mark.parametrize("beta", [0.05, 0.2, 0.5, 0.8, 1.0])
def test_the_threshold_is_the_one_of_the_paper(beta):
    """Gavish and Donoho's own approximation, ω(β) ≈ 0.56 β³ − 0.95 β² + 1.82 β + 1.43, is within
    0.02 of it."""
    narrow, wide = round(1000 * beta), 1000
    omega = 0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43
    flat = torch.ones(narrow, dtype=torch.float64)
    for times, kept in ((omega + 0.03, 1), (omega - 0.03, 0)):
        spectrum = torch.cat([torch.tensor([times], dtype=torch.float64), flat[1:]])
        assert rank_rule("gavish-donoho")(spectrum, (wide, narrow)) == kept
        assert rank_rule("gavish-donoho")(spectrum, (narrow, wide)) == kept


@pytest.mark.parametrize(("narrow", "wide"), [(300, 300), (300, 900), (100, 1000)])
def test_the_median_of_the_noise_is_what_noise_shows(narrow, wide):
    squares = torch.linalg.svdvals(noise((narrow, wide), 7)).square() / wide
    assert noise_median(narrow / wide) == pytest.approx(float(squares.quantile(0.5)), rel=0.02)


@pytest.mark.parametrize(
    ("rule", "spectrum", "rank"),
    [
        ("effective", [2.0, 2.0, 2.0], 3),
        ("effective", [1.0, 0.0, 0.0], 1),
        ("effective", [1.0, *[1e-8] * 300], 1),  # rounding of a Gram matrix
        ("effective", [], 0),
        ("effective", [2.0, 1.0, 1.0], 3),  # exp of the entropy of 1/2, 1/4, 1/4 is 2.83
        ("stable", [2.0, 2.0, 2.0], 3),
        ("stable", [1.0, 0.0, 0.0], 1),
        ("stable", [2.0, 1.0, 1.0], 2),  # 6 / 4
    ],
)
def test_effective_and_stable_rank_by_hand(rule, spectrum, rank):
    assert rank_rule(rule)(torch.tensor(spectrum), (3, 5)) == rank


@pytest.mark.parametrize("rule", RANK_RULES)
def test_a_matrix_of_zeros_keeps_nothing(rule):
    denoised = denoise({"w": torch.zeros(5, 7)}, rule)
    assert denoised.ranks == {"w": 0}
    assert not denoised["w"].any()


@settings(deadline=None)
@given(
    st.sampled_from(list(RANK_RULES)),
    st.integers(2, 9),
    st.integers(2, 9),
    st.integers(0, 9),
    st.integers(0, 99),
)
def test_every_rule_gives_a_possible_rank_and_does_not_mind_scale_or_side(
    rule, rows, columns, rank, seed
):
    matrix = noise((rows, rank), seed) @ noise((rank, columns), seed + 1) + 0.1 * noise(
        (rows, columns), seed + 2
    )
    kept = denoise({"w": matrix}, rule).ranks["w"]
    assert 0 <= kept <= min(rows, columns)
    assert kept == denoise({"w": matrix.mT.contiguous()}, rule).ranks["w"]
    assert kept == denoise({"w": 1024 * matrix}, rule).ranks["w"]


def test_an_unknown_rule_is_an_error_that_lists_the_rules():
    with pytest.raises(
        DeftxError, match=r"unknown rank 'gavish'.*auto, .*gavish-donoho, split-half"
    ):
        rank_rule("gavish")


def test_auto_is_the_rule_that_is_recommended(monkeypatch):
    matrix = planted((60, 40), 3, 2.0, seed=1)
    for rule in (RECOMMENDED, "stable", 7):
        monkeypatch.setattr("deftx.core.ranks.RECOMMENDED", rule)
        assert denoise({"w": matrix}, "auto").ranks == denoise({"w": matrix}, rule).ranks
        assert recorded_rank("auto") == {"rank": "auto", "rank_rule": rule}
    assert [recorded_rank(rank) for rank in (None, 7, "90%")] == [
        {"rank": rank} for rank in (None, 7, "90%")
    ]


@pytest.mark.parametrize(
    ("rank", "width", "number"),
    [
        ("100/768", 768, 100),
        ("200/1024", 1024, 200),
        ("100/768", 384, 50),
        (" 200 / 768 ", 384, 100),
        ("100/768", 1024, 133),
        ("1/768", 64, 1),  # 0.08: at least one
        ("1/1", 768, 768),
        (7, 384, 7),
        ("7", 384, "7"),
        ("90%", 384, "90%"),
        ("auto", 384, "auto"),
        (0.9, 384, 0.9),
    ],
)
def test_a_rank_relative_to_the_width_is_one_number_for_a_model_and_others_stay(
    rank, width, number
):
    assert resolve_rank(rank, width) == number


@pytest.mark.parametrize("rank", ["0/768", "768/100", "1/0"])
def test_a_rank_that_is_no_part_of_the_width_is_refused(rank):
    with pytest.raises(
        DeftxError, match=rf"^rank {rank} is out of range: give a part of the width"
    ):
        resolve_rank(rank, 768)


def test_matrices_alone_do_not_tell_a_rank_relative_to_the_width():
    with pytest.raises(
        DeftxError,
        match=r"^rank 100/768 is relative to a model's width.*round\(100/768 \* width\)$",
    ):
        denoise({"w": noise((4, 3), 0)}, "100/768")


def test_of_a_relative_rank_the_number_is_recorded_too():
    assert recorded_rank("100/768", 50) == {"rank": "100/768", "rank_rule": 50}
    assert recorded_rank("100/768") == {"rank": "100/768"}
    assert recorded_rank(50, 50) == {"rank": 50}


def test_one_difference_alone_does_not_tell_the_rank_of_two_halves():
    with pytest.raises(
        DeftxError, match=r"^rank split-half takes two trainings .* deftx\.split_half_ranks$"
    ):
        denoise({"w": noise((4, 3), 0)}, "split-half")


# --- two halves of the data ---


def halves(shape, rank, strength, seed, uneven=0.0):
    """One signal of `rank` directions, each `strength` times the edge of white noise, under two
    noises. Rows of the noise are `uneven`: factors exp(uneven · normal), as from words of different
    frequency."""
    signal = planted(shape, rank, strength, seed) - noise(shape, seed)
    rows = (uneven * noise((shape[0], 1), seed + 50)).exp()
    rows *= (shape[0] / rows.square().sum()).sqrt()
    return [signal + rows * noise(shape, seed + number) for number in (100, 101)], signal


def cut_errors(matrix, signal):
    """The singular values of a matrix, and how far it is from the signal when it is cut to rank 0,
    1, ..."""
    left, singular, right = torch.linalg.svd(matrix, full_matrices=False)
    cut = [left[:, :r] * singular[:r] @ right[:r] for r in range(len(singular) + 1)]
    return singular, [(matrix - signal).square().sum().item() for matrix in cut]


SHAPES = [(60, 60), (200, 60), (60, 200), (400, 50)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [0, 1, 5])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e5])
def test_halves_agree_on_a_planted_signal_and_on_nothing_in_noise(shape, rank, scale):
    (first, second), _ = halves(shape, rank, 2.0, seed=3)
    assert split_half(scale * first, scale * second) == rank


@pytest.mark.parametrize("shape", SHAPES)
def test_halves_tell_signal_from_uneven_noise_which_the_rules_for_white_noise_do_not(shape):
    """The strongest rows make singular values of their own, far above the bulk: in one half alone
    they look like signal. So those rules keep three times as many as there are, and are twice as
    far from the signal."""
    ranks = {"halves": [], "gavish-donoho": [], "bulk-edge": []}
    far, nearest = dict.fromkeys(ranks, 0.0), 0.0
    for seed in range(5):
        (first, second), signal = halves(shape, 4, 3.0, seed, uneven=1.2)
        singular, errors = cut_errors(first, signal)
        nearest += min(errors)
        for name in ranks:
            rank = (
                split_half(first, second) if name == "halves" else rank_rule(name)(singular, shape)
            )
            ranks[name].append(rank)
            far[name] += errors[rank]
    assert max(ranks["halves"]) <= 5
    assert min(ranks["gavish-donoho"] + ranks["bulk-edge"]) >= 12
    assert far["halves"] < 1.05 * nearest
    assert min(far["gavish-donoho"], far["bulk-edge"]) > 2 * nearest


@pytest.mark.parametrize("strength", [0.8, 1.0, 1.3, 2.0])
def test_the_rank_of_two_halves_is_nearly_as_near_to_the_signal_as_any_rank(strength):
    """Which the signal itself tells; and nearer than the whole, or nothing."""
    chosen, best = 0.0, 0.0
    for seed in range(8):
        (first, second), signal = halves((120, 60), 6, strength, seed)
        errors = cut_errors(first, signal)[1]
        chosen, best = chosen + errors[split_half(first, second)], best + min(errors)
        assert errors[split_half(first, second)] < errors[-1]
    assert chosen <= 1.1 * best


def test_halves_may_be_exchanged_turned_and_padded():
    (first, second), _ = halves((80, 60), 4, 1.5, seed=2)
    rank = split_half(first, second)
    assert rank == split_half(second, first) == split_half(first.mT, second.mT)
    padded = [
        torch.cat([matrix, torch.zeros(300, 60, dtype=torch.float64)]) for matrix in (first, second)
    ]
    assert split_half(*padded) == rank


@pytest.mark.parametrize("rank", [0, 1, 4, 30])
def test_a_matrix_agrees_with_itself_whole_and_with_its_opposite_in_nothing(rank):
    matrix = noise((40, rank), 0) @ noise((rank, 30), 1)
    assert split_half(matrix, matrix) == rank
    assert split_half(matrix, -matrix) == 0


def test_matrices_are_taken_in_blocks_of_rows(monkeypatch):
    (first, second), _ = halves((200, 60), 3, 2.0, seed=4)
    monkeypatch.setattr("deftx.core.ranks.BLOCK", 7 * 60)
    assert split_half(first, second) == 3


def test_ranks_of_two_halves_are_those_that_denoise_takes():
    pairs = {
        name: halves((60, 40), rank, 2.0, seed=rank)[0]
        for name, rank in {"a": 2, "b": 0, "c": 3}.items()
    }
    first, second = (
        {name: pair[i] for name, pair in pairs.items()} | {"bias": noise((9,), i)} for i in (0, 1)
    )
    ranks = split_half_ranks(first, second)
    assert ranks == {"a": 2, "b": 0, "c": 3}
    denoised = denoise(first, ranks, keep=0)
    assert denoised.ranks == ranks
    assert torch.linalg.matrix_rank(denoised["c"]) == 3
    assert not denoised["b"].any()
    assert torch.equal(denoised["bias"], first["bias"])
    assert torch.equal(denoise(first, {"a": 99, "b": 99, "c": 99})["a"], first["a"])


def test_halves_or_ranks_that_do_not_fit_are_refused():
    matrix = noise((4, 3), 0)
    for other in ({"w": matrix.mT}, {"v": matrix}, {}):
        with pytest.raises(DeftxError, match="the two differences have other names or shapes"):
            split_half_ranks({"w": matrix}, other)
    for ranks in ({}, {"v": 1}, {"w": -1}):
        with pytest.raises(DeftxError, match="there is no rank for the matrix 'w', or one below 0"):
            denoise({"w": matrix}, ranks)
