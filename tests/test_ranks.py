"""Rules for the rank: what is known of each in closed form, and planted signals in noise."""

from math import sqrt

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deftx.core.denoise import denoise
from deftx.core.ranks import RANK_RULES, noise_median, rank_rule
from deftx.errors import DeftxError

NOISE_RULES = ["gavish-donoho", "bulk-edge"]


def noise(shape, seed):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def planted(shape, rank, strength, seed):
    """Noise of variance 1 plus `rank` directions, each `strength` times the edge of the noise."""
    left, right = (torch.linalg.qr(noise((size, rank), seed + 1 + i)).Q for i, size in enumerate(shape))
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
    """Embeddings of unseen pieces: with their rows in the shape, the noise would be taken for something else."""
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
    """Gavish and Donoho's own approximation, ω(β) ≈ 0.56 β³ − 0.95 β² + 1.82 β + 1.43, is within 0.02 of it."""
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
@given(st.sampled_from(list(RANK_RULES)), st.integers(2, 9), st.integers(2, 9), st.integers(0, 9), st.integers(0, 99))
def test_every_rule_gives_a_possible_rank_and_does_not_mind_scale_or_side(rule, rows, columns, rank, seed):
    matrix = noise((rows, rank), seed) @ noise((rank, columns), seed + 1) + 0.1 * noise((rows, columns), seed + 2)
    kept = denoise({"w": matrix}, rule).ranks["w"]
    assert 0 <= kept <= min(rows, columns)
    assert kept == denoise({"w": matrix.mT.contiguous()}, rule).ranks["w"]
    assert kept == denoise({"w": 1024 * matrix}, rule).ranks["w"]


def test_an_unknown_rule_is_an_error_that_lists_the_rules():
    with pytest.raises(DeftxError, match=r"unknown rank 'gavish'.*gavish-donoho"):
        rank_rule("gavish")
