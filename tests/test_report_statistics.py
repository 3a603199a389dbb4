"""The paired bootstrap: the same as a plain one, still where there is nothing, and finding what is there."""

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score
from synthetic_run import LABELS, make_run

from deftx.errors import DeftxError
from deftx.experiments.report.read import Predictions, RunData, read_run
from deftx.experiments.report.statistics import (
    Comparison,
    Difference,
    accuracy,
    compare,
    confusions,
    difference,
    draws,
    holm,
    macro_f1,
    pairs,
    resampled,
)
from deftx.experiments.report.tables import comparison_table

RESAMPLES = 400


def answers(true: np.ndarray, predicted: np.ndarray, labels: int = 3) -> Predictions:
    names = tuple(f"label {number}" for number in range(labels))
    return Predictions(true=tuple(true.tolist()), predicted=tuple(predicted.tolist()), labels=names)


def guesses(rng: np.random.Generator, true: np.ndarray, skill: float, labels: int = 3) -> np.ndarray:
    """Answers that are right with probability `skill`, wrong ones at random."""
    wrong = (true + rng.integers(1, labels, size=len(true))) % labels
    return np.where(rng.random(len(true)) < skill, true, wrong)


@pytest.fixture
def small(tmp_path: Path) -> RunData:
    return read_run(make_run(tmp_path / "run", languages=("ace", "min"), examples=40, vectors=False, ngrams=True))


@pytest.mark.parametrize("labels", [2, 3, 7])
def test_scores_from_confusion_counts_are_those_of_sklearn_on_every_draw(labels):
    rng = np.random.default_rng(labels)
    true = rng.integers(labels, size=12)  # few: in many draws a label is missing from one side or both
    predicted = guesses(rng, true, 0.5, labels)
    counts = draws(rng, len(true), 100)
    confusion = confusions(counts, answers(true, predicted, labels))
    for row, f1, share in zip(counts.astype(int), macro_f1(confusion), accuracy(confusion), strict=True):
        drawn = np.repeat(true, row), np.repeat(predicted, row)
        assert f1 == pytest.approx(f1_score(*drawn, average="macro", zero_division=0.0))
        assert share == pytest.approx(accuracy_score(*drawn))


def test_a_draw_is_as_large_as_what_is_drawn_from_and_with_replacement():
    counts = draws(np.random.default_rng(0), 20, 2000)
    assert (counts.sum(1) == 20).all()
    assert counts.max() > 2
    assert counts.mean(0) == pytest.approx(np.ones(20), abs=0.15)


def test_a_comparison_is_the_plain_one_draw_by_draw(small):
    """Every draw by loops, from lists of examples, with scikit-learn's macro-F1."""
    found = compare(small, resampled(small, 60, seed=5), "DeFT-X 90%", "LT-SFT", seed=5)
    counts = draws(np.random.default_rng([5, 40]), 40, 60).astype(int)
    seeds = draws(np.random.default_rng([5, 3]), 3, 60).astype(int)
    kept = {(r.variant, r.seed, r.language): small.predictions(r) for r in small.rows}

    def gap(seed: int, language: str, row: np.ndarray) -> float:
        both = [kept[variant, seed, language] for variant in ("DeFT-X 90%", "LT-SFT")]
        scores = [f1_score(np.repeat(a.true, row), np.repeat(a.predicted, row), average="macro") for a in both]
        return float(scores[0] - scores[1])

    gaps = []
    for row, drawn in zip(counts, seeds, strict=True):
        of_seeds = [seed for seed, times in enumerate(drawn) for _ in range(times)]
        by_seed = {seed: np.mean([gap(seed, language, row) for language in ("ace", "min")]) for seed in set(of_seeds)}
        gaps.append(np.mean([by_seed[seed] for seed in of_seeds]))
    whole = [gap(seed, language, np.ones(40, int)) for seed in range(3) for language in ("ace", "min")]
    assert found.average.value == pytest.approx(np.mean(whole))
    assert [found.average.low, found.average.high] == pytest.approx(np.quantile(gaps, [0.025, 0.975]))
    tail = min(sum(g <= 1e-12 for g in gaps), sum(g >= -1e-12 for g in gaps))
    assert found.average.p == pytest.approx(min(1, 2 * (1 + tail) / 61))


def test_a_variant_against_itself_shows_nothing(small):
    found = compare(small, resampled(small, RESAMPLES), "LT-SFT", "LT-SFT")
    for gap in [found.average, *found.by_language.values()]:
        assert (gap.value, gap.low, gap.high, gap.p) == (0, 0, 0, 1)


def test_the_other_way_round_is_the_same_with_its_sign_turned(small):
    scores = resampled(small, RESAMPLES)
    names = ["DeFT-X 90%", "LT-SFT"]
    one, other = (compare(small, scores, *both).average for both in (names, names[::-1]))
    assert (one.value, one.low, one.high, one.p) == pytest.approx((-other.value, -other.high, -other.low, other.p))


def test_where_there_is_no_difference_chance_is_taken_for_one_about_as_often_as_is_said():
    rng = np.random.default_rng(1)
    surely = 0
    for _ in range(100):
        true = rng.integers(3, size=150)
        counts = np.concatenate([np.ones((1, 150)), draws(rng, 150, RESAMPLES)])
        first, second = (macro_f1(confusions(counts, answers(true, guesses(rng, true, 0.7)))) for _ in range(2))
        surely += difference((first - second)[None], np.ones((RESAMPLES, 1))).p < 0.05
    assert 1 <= surely <= 14  # five are meant; beyond these bounds once in thousands of times


def test_a_planted_difference_is_found_and_lies_in_its_interval(tmp_path):
    skill = {"LT-SFT": 0.6, "DeFT-X 90%": 0.75}
    run = read_run(make_run(tmp_path / "run", skill=skill, examples=400, vectors=False))
    gap = compare(run, resampled(run, RESAMPLES), "DeFT-X 90%", "LT-SFT").average
    assert 0 < gap.low < 0.15 < gap.high
    assert gap.p < 0.01


def test_pairing_makes_the_interval_narrower_where_the_same_examples_are_hard():
    rng = np.random.default_rng(2)
    true, hard = rng.integers(3, size=300), rng.random(300)
    both = []
    for skill in (0.6, 0.65):
        right = hard + 0.05 * rng.standard_normal(300) < skill
        both.append(answers(true, np.where(right, true, (true + 1) % 3)))
    drawn = [np.concatenate([np.ones((1, 300)), draws(rng, 300, RESAMPLES)]) for _ in range(2)]
    first, paired, unpaired = (
        macro_f1(confusions(counts, one))
        for counts, one in [(drawn[0], both[0]), (drawn[0], both[1]), (drawn[1], both[1])]
    )
    alone = np.ones((RESAMPLES, 1))
    narrow, wide = (difference((first - second)[None], alone) for second in (paired, unpaired))
    assert narrow.high - narrow.low < 0.6 * (wide.high - wide.low)


def test_seeds_that_differ_make_the_interval_wider():
    gaps = np.random.default_rng(3).normal(0.05, 0.01, size=(5, 1 + RESAMPLES))
    weights = draws(np.random.default_rng(4), 5, RESAMPLES) / 5
    apart = gaps + np.array([-0.1, -0.05, 0.0, 0.05, 0.1])[:, None]
    alike, different = difference(gaps, weights), difference(apart, weights)
    assert different.value == pytest.approx(alike.value)
    assert different.high - different.low > 5 * (alike.high - alike.low)


def test_holms_values_are_those_of_his_procedure():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_what_is_compared_is_every_variant_with_the_baseline_and_deftx_with_lt_sft_each_once(small):
    assert pairs(small, "LT-SFT") == [
        ("character n-grams", "LT-SFT"),
        ("no language vector", "LT-SFT"),
        ("DeFT-X 90%", "LT-SFT"),
    ]
    assert ("DeFT-X 90%", "LT-SFT") in pairs(small, "no language vector")
    assert pairs(small, None) == [("DeFT-X 90%", "LT-SFT")]
    turned = pairs(small, "DeFT-X 90%")
    assert len({frozenset(pair) for pair in turned}) == len(turned) == 3


def test_what_has_no_seed_is_compared_on_all_of_them(small):
    assert compare(small, resampled(small, 10), "character n-grams", "LT-SFT").seeds == (0, 1, 2)


def test_a_pair_that_shares_no_seed_is_not_compared(tmp_path):
    folder = make_run(tmp_path / "run", vectors=False)
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    apart = [row for row in rows if (row["variant"] == "LT-SFT") == (row["seed"] == 0)]
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in apart))
    run = read_run(folder)
    assert compare(run, resampled(run, 10), "DeFT-X 90%", "LT-SFT") is None


def change_answers(run: RunData, **changes: object) -> Path:
    path = run.store / run.rows[-1].step / "predictions.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return path


def test_scores_on_other_test_data_are_not_compared(small):
    last = small.predictions(small.rows[-1])
    turned = {"true": last.true[::-1], "predicted": last.predicted[::-1]}  # the score is the same
    change_answers(small, **turned)
    with pytest.raises(DeftxError, match=f"not of one test set: step {small.rows[-1].step} has other true labels"):
        resampled(small, 10)


def test_labels_that_a_variant_numbers_otherwise_are_compared_by_their_names(small):
    expected = resampled(small, 10)
    last = small.predictions(small.rows[-1])
    number = {label: place for place, label in enumerate(["more", *reversed(LABELS)])}
    turned = {key: [number[LABELS[i]] for i in getattr(last, key)] for key in ("true", "predicted")}
    change_answers(small, **turned, labels=list(number))
    found = resampled(small, 10)
    assert found.keys() == expected.keys()
    assert all(np.allclose(found[key], expected[key]) for key in found)


def test_a_run_that_is_not_finished_is_compared_on_what_there_is(tmp_path):
    folder = make_run(tmp_path / "run", vectors=False)
    whole = read_run(folder)
    expected = compare(whole, resampled(whole, 50), "DeFT-X 90%", "LT-SFT")
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    there = [row for row in rows if row["seed"] < 2 or row["language"] == "ace"]
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in there))
    run = read_run(folder)
    found = compare(run, resampled(run, 50), "DeFT-X 90%", "LT-SFT")
    assert (expected.seeds, found.seeds) == ((0, 1, 2), (0, 1))
    assert found.by_language.keys() == expected.by_language.keys()
    assert found.by_language["ace"] == expected.by_language["ace"]
    assert found.average is not None


def test_predictions_that_do_not_give_the_score_are_left_out_with_a_word(small):
    last = small.predictions(small.rows[-1])
    change_answers(small, predicted=[(label + 1) % len(LABELS) for label in last.predicted])
    with pytest.warns(UserWarning, match=f"{small.rows[-1].step} do not give its score"):
        found = resampled(small, 10)
    assert ("DeFT-X 90%", 2, "ind") not in found
    assert ("DeFT-X 90%", 1, "ind") in found


def test_what_is_better_taken_alone_is_not_called_better_among_several():
    sure, alone, unsure = (
        Difference(0.1, 0.05, 0.15, 0.001),
        Difference(0.1, 0.01, 0.2, 0.03),
        Difference(0.1, -0.1, 0.3, 0.4),
    )
    turned = Difference(-0.1, -0.15, -0.05, 0.001)
    names = {"A": sure, "B": alone, "C": unsure, "D": turned}
    asked = [Comparison(name, "base", (0,), {}, gap) for name, gap in names.items()]

    def said(comparisons):
        return {
            line.name[0]: (line.cells[-1].text, line.cells[-1].best) for line in comparison_table(comparisons).lines
        }

    together = {"A": ("A is better", True), "C": ("may be chance", False), "D": ("base is better", True)}
    assert said(asked) == {**together, "B": ("B is better, taken alone", False)}
    assert said(asked[1:2]) == {"B": ("B is better", True)}
