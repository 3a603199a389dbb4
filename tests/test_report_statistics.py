"""Intervals of differences: the right noise, the right coverage, and no more said than the seeds
allow."""

import importlib.util
import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score
from synthetic_run import LABELS, make_run

from deftx.errors import DeftxError
from deftx.experiments.report.comparisons import Comparison, compare, pairs, score_run
from deftx.experiments.report.statistics import (
    METRICS,
    POWER,
    Difference,
    Score,
    detectable_ratio,
    estimate,
    estimate_crossed,
    holm,
    jackknife,
)
from deftx.experiments.report.tables import comparison_table
from deftx.experiments.run_folder import Predictions, Row, RunData, read_run

pytestmark = pytest.mark.once


SCRIPT = Path(__file__).parents[1] / "scripts" / "coverage.py"


def loaded_script():
    """scripts/coverage.py as a module: it simulates how often intervals hold the truth."""
    spec = importlib.util.spec_from_file_location("coverage_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


simulate = loaded_script()


def answers(true: np.ndarray, predicted: np.ndarray, labels: int = 3) -> Predictions:
    """Answers to texts, given by the numbers of labels."""
    names = tuple(f"label {number}" for number in range(labels))
    true_numbers = tuple(true.tolist())
    predicted_numbers = tuple(predicted.tolist())
    return Predictions(true=true_numbers, predicted=predicted_numbers, labels=names)


def guesses(
    rng: np.random.Generator, true: np.ndarray, skill: float, labels: int = 3
) -> np.ndarray:
    """Answers that are right with probability `skill`, wrong ones at random."""
    texts = len(true)
    wrong = (true + rng.integers(1, labels, size=texts)) % labels
    is_right = rng.random(texts) < skill
    return np.where(is_right, true, wrong)


def variance_over_texts(score: Score) -> float:
    """The jackknife variance that text effects amount to."""
    return float(np.square(score.text_effects).sum())


def interval(gap: Difference) -> tuple[float, float]:
    return gap.low, gap.high


@pytest.fixture
def small(tmp_path: Path) -> RunData:
    folder = tmp_path / "run"
    make_run(folder, languages=("ace", "min"), examples=40, vectors=False, ngrams=True)
    return read_run(folder)


# Scores and their text noise


def sklearn_macro_f1(true: np.ndarray, predicted: np.ndarray) -> float:
    return f1_score(true, predicted, average="macro", zero_division=0.0)


REFERENCES = {
    "macro_f1": sklearn_macro_f1,
    "accuracy": accuracy_score,
    "las": accuracy_score,
}


@pytest.mark.parametrize("labels", [2, 3, 7])
def test_scores_and_effects_are_those_of_sklearn_with_each_text_left_out(labels):
    rng = np.random.default_rng(labels)
    texts = 12  # few: some labels occur once, and vanish with their text
    for _ in range(5):
        true = rng.integers(labels, size=texts)
        predicted = guesses(rng, true, 0.5, labels)
        for name, metric in METRICS.items():
            reference = REFERENCES[name]
            score = jackknife(metric, answers(true, predicted, labels))
            assert score.value == pytest.approx(reference(true, predicted))

            # The jackknife, from the scores without each text
            scores_without = []
            for text in range(texts):
                other_true = np.delete(true, text)
                other_predicted = np.delete(predicted, text)
                scores_without.append(reference(other_true, other_predicted))
            deviations = scores_without - np.mean(scores_without)
            variance = (texts - 1) / texts * np.square(deviations).sum()
            assert variance_over_texts(score) == pytest.approx(variance)
            if variance != 0:
                correlation = np.corrcoef(score.text_effects, scores_without)[0, 1]
                assert correlation < -0.999


def in_sentences(words: Predictions, lengths: tuple[int, ...]) -> Predictions:
    """Answers to words that stand in sentences of these lengths."""
    return words.model_copy(update={"sentence_lengths": lengths})


@pytest.mark.parametrize("name", METRICS)
def test_in_tagging_a_sentence_is_left_out_with_all_of_its_words(name):
    rng = np.random.default_rng(3)
    lengths = (3, 0, 1, 5, 2, 4)  # one has no words, and counts for nothing
    true = rng.integers(3, size=15)
    predicted = guesses(rng, true, 0.5)
    words = answers(true, predicted)
    metric = METRICS[name]
    score = jackknife(metric, in_sentences(words, lengths))
    assert score.value == jackknife(metric, words).value

    # The reference: the scores of the words of all other sentences
    sentence_of_word = np.repeat(np.arange(6), lengths)
    scores_without = []
    for sentence in (0, 2, 3, 4, 5):
        is_other = sentence_of_word != sentence
        others = answers(true[is_other], predicted[is_other])
        scores_without.append(jackknife(metric, others).value)
    deviations = np.mean(scores_without) - scores_without
    assert score.text_effects == pytest.approx(np.sqrt(4 / 5) * deviations)


@pytest.mark.parametrize("name", METRICS)
def test_words_that_say_the_same_as_their_sentence_add_no_certainty(name):
    rng = np.random.default_rng(4)
    true = rng.integers(3, size=30)
    predicted = guesses(rng, true, 0.6)
    repeated = answers(np.repeat(true, 8), np.repeat(predicted, 8))
    by_text = jackknife(METRICS[name], answers(true, predicted))
    by_sentence = jackknife(METRICS[name], in_sentences(repeated, (8,) * 30))
    by_word = jackknife(METRICS[name], repeated)
    assert by_sentence.value == pytest.approx(by_text.value)
    assert by_sentence.text_effects == pytest.approx(by_text.text_effects)
    assert variance_over_texts(by_word) < variance_over_texts(by_sentence) / 7


def test_a_single_sentence_says_nothing_of_others():
    words = answers(np.array([0, 1, 2]), np.array([0, 1, 1]))
    score = jackknife(METRICS["accuracy"], in_sentences(words, (0, 3)))
    assert score.text_effects.tolist() == [0.0]


def test_the_text_noise_of_accuracy_is_that_of_a_share():
    rng = np.random.default_rng(0)
    true = rng.integers(3, size=50)
    predicted = guesses(rng, true, 0.7)
    score = jackknife(METRICS["accuracy"], answers(true, predicted))
    variance_of_share = score.value * (1 - score.value) / 49
    assert variance_over_texts(score) == pytest.approx(variance_of_share)


def test_the_text_noise_of_macro_f1_is_that_of_new_test_sets():
    rng = np.random.default_rng(1)
    values = []
    variances = []
    for _ in range(1500):
        true = rng.choice(3, size=150, p=[0.6, 0.3, 0.1])
        predicted = guesses(rng, true, 0.65)
        score = jackknife(METRICS["macro_f1"], answers(true, predicted))
        values.append(score.value)
        variances.append(variance_over_texts(score))
    assert np.mean(variances) == pytest.approx(np.var(values), rel=0.12)


def test_a_single_text_has_no_noise_to_measure():
    label = np.array([1])
    score = jackknife(METRICS["macro_f1"], answers(label, label))
    assert score.value == 1.0
    assert score.text_effects.tolist() == [0.0]


# Intervals


def test_without_text_noise_an_interval_is_students():
    values = [0.01, 0.03, 0.08, 0.02, 0.05]
    gaps = [Score(value, np.zeros(40)) for value in values]
    gap = estimate(gaps)
    expected = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
    assert interval(gap) == pytest.approx(expected)
    assert gap.p == pytest.approx(stats.ttest_1samp(values, 0).pvalue)


def test_of_one_seed_the_interval_is_over_texts_only():
    rng = np.random.default_rng(2)
    score = Score(0.1, 0.004 * rng.standard_normal(100))
    gap = estimate([score])
    assert gap.error == pytest.approx(np.sqrt(variance_over_texts(score)))
    assert gap.freedom == pytest.approx(99)
    assert gap.low > 0
    assert not gap.conclusive
    assert gap.p is None
    assert gap.detectable is None


def test_seeds_that_agree_leave_the_noise_of_the_texts_and_no_less():
    rng = np.random.default_rng(3)
    score = Score(0.05, 0.002 * rng.standard_normal(100))
    of_one = estimate([score])
    of_four = estimate([score, score, score, score])
    assert of_four.error == pytest.approx(of_one.error)
    assert of_four.freedom == pytest.approx(99)


def test_text_noise_of_single_seeds_is_counted_once():
    rng = np.random.default_rng(4)
    values = [0.0, 0.1, 0.2, 0.1, 0.1]
    texts = 4000
    noise = rng.standard_normal((5, texts)) / texts
    orthonormal, _ = np.linalg.qr(noise.T)
    uncorrelated = 0.02 * orthonormal.T  # no covariance between seeds
    gaps = []
    for value, effects in zip(values, uncorrelated, strict=True):
        gaps.append(Score(value, effects))
    assert estimate(gaps).error == pytest.approx(stats.sem(values))


def test_the_degrees_of_freedom_lie_between_those_of_the_parts():
    rng = np.random.default_rng(5)
    effects = 0.003 * rng.standard_normal(200)
    for spread in (0.001, 0.03, 1.0):
        gaps = [Score(value, effects) for value in (-spread, 0.0, spread)]
        gap = estimate(gaps)
        assert 2 <= gap.freedom <= 199
    assert gap.freedom == pytest.approx(2, abs=0.01)


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.8, 1.0])
def test_intervals_hold_the_truth_in_95_of_100_cases(seeds, share):
    """Of the variance of the mean, `share` comes from the seeds; half of the text noise is a seed's
    own."""
    rng = np.random.default_rng(seeds)
    held = simulate.gaussian(rng, 2500, seeds, share, both=0.5, texts=60)
    assert 0.93 <= held <= 0.97


def test_two_seeds_fall_short_by_as_much_as_is_said():
    rng = np.random.default_rng(2)
    held = []
    for share in (0.0, 0.3, 0.9, 1.0):
        held.append(simulate.gaussian(rng, 2500, 2, share, texts=60))
    assert min(held) >= 0.895
    assert max(held) <= 0.97


@pytest.mark.parametrize(
    ("seeds", "seed_noise", "text_noise"),
    [(3, 0.3, 1.0), (3, 0.3, 0.0), (5, 0.0, 1.0), (5, 1.0, 1.0)],
)
@pytest.mark.parametrize("metric", ["macro_f1", "accuracy"])
def test_intervals_of_answered_texts_hold_the_truth_too(metric, seeds, seed_noise, text_noise):
    rng = np.random.default_rng(0)
    held = simulate.answered(
        rng, 600, seeds, metric, seed_noise=seed_noise, text_noise=text_noise, texts=150
    )
    assert 0.93 <= held <= 0.975


def test_an_interval_of_one_seed_does_not_hold_what_other_seeds_give():
    rng = np.random.default_rng(0)
    held = simulate.answered(rng, 300, 1, "accuracy", seed_noise=1.0, text_noise=1.0)
    assert held < 0.85


@pytest.mark.parametrize("shape", [(3, 3), (5, 5), (10, 10), (3, 10)])
@pytest.mark.parametrize("noise", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.3), (1.0, 1.0, 0.5)])
def test_crossed_seeds_hold_the_truth(shape, noise):
    rng = np.random.default_rng(0)
    held = simulate.crossed(rng, 2000, shape, noise, 0.3, texts=30)
    assert 0.92 <= held <= 0.975


def test_crossed_seeds_taken_for_independent_runs_would_not():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        of_language = rng.standard_normal((5, 1))
        of_both = 0.3 * rng.standard_normal((5, 5))
        values = of_language + of_both
        low, high = stats.t.interval(0.95, 24, values.mean(), stats.sem(values.ravel()))
        held += low <= 0 <= high
    assert held < 800


def test_where_only_the_language_vector_matters_crossed_seeds_are_students_over_them():
    values = np.array([0.01, 0.04, 0.02, 0.09])
    table = np.repeat(values[:, None], 3, axis=1)
    gap = estimate_crossed(table)
    expected = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
    assert interval(gap) == pytest.approx(expected)
    turned = estimate_crossed(table.T)
    assert interval(turned) == pytest.approx(interval(gap))


def test_the_text_part_of_crossed_seeds_is_the_mean_covariance_of_those_that_share_no_vector():
    rng = np.random.default_rng(6)
    languages = 3
    tasks = 4
    effects = 0.01 * (1 + rng.standard_normal((languages, tasks, 20)))
    cells = list(product(range(languages), range(tasks)))
    covariances = []
    for first, second in product(cells, cells):
        share_none = first[0] != second[0] and first[1] != second[1]
        if share_none:
            covariances.append(float(effects[first] @ effects[second]))
    expected = np.mean(covariances)
    assert expected > 0

    gap = estimate_crossed(np.zeros((languages, tasks)), effects)
    assert gap.error**2 == pytest.approx(expected)


def test_a_detectable_difference_is_found_in_four_of_five_cases():
    for freedom in (2, 4, 9, 100):
        ratio = detectable_ratio(freedom)
        critical = stats.t.ppf(0.975, freedom)
        above = stats.nct.sf(critical, freedom, ratio)
        below = stats.nct.cdf(-critical, freedom, ratio)
        power = above + below
        assert power == pytest.approx(POWER, abs=0.002)
    assert detectable_ratio(1e9) == pytest.approx(1.96 + 0.84, abs=0.01)


# Comparisons of a run


def test_languages_of_one_size_share_their_texts(tmp_path):
    """The same lines answered in two languages count as one sample of texts, not as two."""
    folder = tmp_path / "run"
    make_run(folder, seeds=(0,), languages=("ace", "min"), examples=100, vectors=False)
    run = read_run(folder)
    scores = dict(score_run(run))
    variants = ("LT-SFT", "DeFT-X 90%")

    for variant in variants:
        scores[variant, 0, "min"] = scores[variant, 0, "ace"]
    shared = compare(run, scores, "DeFT-X 90%", "LT-SFT")
    assert shared.average == shared.by_language["ace"]

    # One text less: no translations of each other
    for variant in variants:
        score = scores[variant, 0, "ace"]
        scores[variant, 0, "min"] = Score(score.value, score.text_effects[1:])
    apart = compare(run, scores, "DeFT-X 90%", "LT-SFT")
    expected = shared.average.error / np.sqrt(2)
    assert apart.average.error == pytest.approx(expected, rel=0.1)


def test_a_comparison_is_the_plain_one_from_lists_of_examples(small):
    predictions = {}
    for row in small.rows:
        predictions[row.variant, row.seed, row.language] = small.predictions(row)

    def score_without(variant: str, seed: int, language: str, text: int | None) -> float:
        of_variant = predictions[variant, seed, language]
        true = list(of_variant.true)
        predicted = list(of_variant.predicted)
        if text is not None:
            del true[text]
            del predicted[text]
        return float(f1_score(true, predicted, average="macro"))

    def average_without(seed: int, text: int | None) -> float:
        """The difference of the two variants, mean over the languages."""
        gaps = []
        for language in ("ace", "min"):
            first = score_without("DeFT-X 90%", seed, language, text)
            second = score_without("LT-SFT", seed, language, text)
            gaps.append(first - second)
        return sum(gaps) / 2

    # The seeds' part
    values = np.array([average_without(seed, None) for seed in range(3)])
    seed_part = values.var(ddof=1) / 3

    # The texts' part: the mean covariance of two seeds
    left_out = np.zeros((3, 40))
    for seed in range(3):
        for text in range(40):
            left_out[seed, text] = average_without(seed, text)
    covariance = 39 * np.cov(left_out, ddof=0)
    of_two_seeds = [covariance[0, 1], covariance[0, 2], covariance[1, 2]]
    text_part = max(0, np.mean(of_two_seeds))

    found = compare(small, score_run(small), "DeFT-X 90%", "LT-SFT")
    variance = seed_part + text_part
    assert found.average.value == pytest.approx(values.mean())
    assert found.average.error == pytest.approx(np.sqrt(variance))
    reciprocal = (seed_part / 2 + text_part / 79) / variance
    assert 1 / found.average.freedom == pytest.approx(reciprocal, rel=0.02)


def test_a_variant_against_itself_shows_nothing(small):
    found = compare(small, score_run(small), "LT-SFT", "LT-SFT")
    for gap in [found.average, *found.by_language.values()]:
        assert gap.value == 0
        assert interval(gap) == (0, 0)
        assert not gap.conclusive


def test_the_other_way_round_is_the_same_with_its_sign_turned(small):
    scores = score_run(small)
    forth = compare(small, scores, "DeFT-X 90%", "LT-SFT").average
    back = compare(small, scores, "LT-SFT", "DeFT-X 90%").average
    assert forth.value == pytest.approx(-back.value)
    assert forth.low == pytest.approx(-back.high)
    assert forth.high == pytest.approx(-back.low)


def test_a_planted_difference_is_found_and_lies_in_its_interval(tmp_path):
    skill = {"LT-SFT": 0.6, "DeFT-X 90%": 0.75}
    folder = tmp_path / "run"
    make_run(folder, seeds=range(5), skill=skill, examples=400, vectors=False)
    run = read_run(folder)
    gap = compare(run, score_run(run), "DeFT-X 90%", "LT-SFT").average
    assert 0 < gap.low < 0.15 < gap.high
    assert gap.p < 0.01
    assert gap.conclusive


def test_pairing_makes_the_interval_narrower_where_the_same_examples_are_hard():
    rng = np.random.default_rng(2)
    true = rng.integers(3, size=300)
    hard = rng.random(300)
    wrong = (true + 1) % 3
    scores = []
    for skill in (0.6, 0.65):
        is_right = hard + 0.05 * rng.standard_normal(300) < skill
        predicted = np.where(is_right, true, wrong)
        scores.append(jackknife(METRICS["macro_f1"], answers(true, predicted)))
    first, second = scores
    paired = estimate([Score(0.0, first.text_effects - second.text_effects)])
    unpaired_error = np.sqrt(variance_over_texts(first) + variance_over_texts(second))
    assert paired.error < 0.6 * unpaired_error


@pytest.mark.parametrize("seeds", [1, 2, 3, 4, 5, 6])
def test_p_comes_with_five_seeds_and_a_conclusion_with_three(seeds):
    gaps = [Score(0.1 + 0.001 * seed, np.zeros(10)) for seed in range(seeds)]
    gap = estimate(gaps)
    assert (gap.p is not None) == (seeds >= 5)
    assert gap.conclusive == (seeds >= 3)
    assert (gap.detectable is not None) == (seeds >= 2)


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
    distinct = {frozenset(pair) for pair in turned}
    assert len(turned) == 3
    assert len(distinct) == 3


def test_what_has_no_seed_is_compared_on_all_of_them(small):
    assert compare(small, score_run(small), "character n-grams", "LT-SFT").seeds == (0, 1, 2)


def keep_rows(folder: Path, is_kept: Callable[[dict[str, Any]], bool]) -> None:
    """Remove the other rows of a run's results."""
    path = folder / "results.jsonl"
    lines = []
    for line in path.read_text().splitlines():
        if is_kept(json.loads(line)):
            lines.append(f"{line}\n")
    path.write_text("".join(lines))


def test_a_pair_that_shares_no_seed_is_not_compared(tmp_path):
    folder = make_run(tmp_path / "run", vectors=False)

    def is_apart(row: dict[str, Any]) -> bool:
        return (row["variant"] == "LT-SFT") == (row["seed"] == 0)

    keep_rows(folder, is_apart)
    run = read_run(folder)
    assert compare(run, score_run(run), "DeFT-X 90%", "LT-SFT") is None


def change_answers(run: RunData, row: Row | None = None, **changes: object) -> Path:
    """Change the predictions of a row, or of the last one."""
    row = row or run.rows[-1]
    path = run.store / row.step / "predictions.json"
    predictions = json.loads(path.read_text())
    predictions.update(changes)
    path.write_text(json.dumps(predictions))
    return path


def test_scores_on_other_test_data_are_not_compared(small):
    last_row = small.rows[-1]
    last = small.predictions(last_row)
    # Turned round, so that the score is the same
    change_answers(small, true=last.true[::-1], predicted=last.predicted[::-1])
    message = f"not of one test set: step {last_row.step} has other true labels"
    with pytest.raises(DeftxError, match=message):
        score_run(small)


def test_labels_that_a_variant_numbers_otherwise_are_compared_by_their_names(small):
    expected = score_run(small)
    last = small.predictions(small.rows[-1])
    other_labels = ["more", *reversed(LABELS)]
    other_number = [other_labels.index(label) for label in LABELS]
    true = [other_number[number] for number in last.true]
    predicted = [other_number[number] for number in last.predicted]
    change_answers(small, true=true, predicted=predicted, labels=other_labels)
    found = score_run(small)
    assert found.keys() == expected.keys()
    for key, score in found.items():
        assert score.value == pytest.approx(expected[key].value)
        assert np.allclose(score.text_effects, expected[key].text_effects)


def test_a_run_that_is_not_finished_is_compared_on_what_there_is(tmp_path):
    folder = make_run(tmp_path / "run", vectors=False)
    whole = read_run(folder)
    expected = compare(whole, score_run(whole), "DeFT-X 90%", "LT-SFT")

    def is_finished(row: dict[str, Any]) -> bool:
        return row["seed"] < 2 or row["language"] == "ace"

    keep_rows(folder, is_finished)
    run = read_run(folder)
    found = compare(run, score_run(run), "DeFT-X 90%", "LT-SFT")
    assert expected.seeds == (0, 1, 2)
    assert found.seeds == (0, 1)
    assert found.by_language.keys() == expected.by_language.keys()
    assert found.by_language["ace"] == expected.by_language["ace"]
    assert found.average is not None


def test_predictions_that_do_not_give_the_score_are_left_out_with_a_word(small):
    last = small.predictions(small.rows[-1])
    predicted = [(label + 1) % len(LABELS) for label in last.predicted]
    change_answers(small, predicted=predicted)
    with pytest.warns(UserWarning, match=f"{small.rows[-1].step} do not give its score"):
        found = score_run(small)
    assert ("DeFT-X 90%", 2, "ind") not in found
    assert ("DeFT-X 90%", 1, "ind") in found


def test_sentences_are_the_texts_of_a_comparison(small):
    for row in small.rows:
        change_answers(small, row, sentence_lengths=[4] * 10)
    scores = score_run(small)
    assert {len(score.text_effects) for score in scores.values()} == {10}
    assert compare(small, scores, "DeFT-X 90%", "LT-SFT").by_language["ace"].seeds == 3


def test_words_are_the_texts_where_some_scores_have_no_sentences_and_it_is_said(small):
    change_answers(small, sentence_lengths=[4] * 10)
    language = small.rows[-1].language
    with pytest.warns(UserWarning, match=f"predictions on {language} are of an earlier version"):
        scores = score_run(small)
    assert {len(score.text_effects) for score in scores.values()} == {40}


def test_scores_on_other_sentences_are_refused(small):
    of_language = [row for row in small.rows if row.language == "ace"]
    for row in of_language:
        change_answers(small, row, sentence_lengths=[4] * 10)
    change_answers(small, of_language[0], sentence_lengths=[8] * 5)
    with pytest.raises(DeftxError, match="on ace are not of one test set: sentences differ"):
        score_run(small)


def said(comparisons: list[Comparison]) -> dict[str, tuple[str, bool]]:
    """The last cell of each line by the first variant."""
    verdicts = {}
    for line in comparison_table(comparisons).lines:
        verdict = line.cells[-1]
        verdicts[line.name[0]] = (verdict.text, verdict.best)
    return verdicts


def compared(first: str, value: float, error: float, seeds: int) -> Comparison:
    gap = Difference(value, error, 100.0, seeds)
    return Comparison(first, "base", tuple(range(seeds)), {}, gap)


def test_what_is_better_taken_alone_is_not_called_better_among_several():
    asked = [
        compared("A", 0.1, 0.02, 5),
        compared("B", 0.1, 0.045, 5),
        compared("C", 0.1, 0.1, 5),
        compared("D", -0.1, 0.02, 5),
    ]
    assert said(asked) == {
        "A": ("A is better", True),
        "B": ("B is better, taken alone", False),
        "C": ("may be chance", False),
        "D": ("base is better", True),
    }
    assert said(asked[1:2]) == {"B": ("B is better", True)}


def test_few_seeds_say_little_however_large_the_difference():
    expected = {
        1: ("one seed: interval over texts only", False),
        2: ("2 seeds: too few to say", False),
        3: ("A is better, taken alone", False),
        4: ("A is better, taken alone", False),
        5: ("A is better", True),
    }
    for seeds, words in expected.items():
        assert said([compared("A", 0.3, 0.01, seeds)]) == {"A": words}


def test_the_table_says_what_could_have_been_shown_and_leaves_out_p_of_few_seeds():
    for seeds, expected in {3: ["2.8", "–", "–", "3"], 1: ["–", "–", "–", "1"]}.items():
        (line,) = comparison_table([compared("A", 0.3, 0.01, seeds)]).lines
        assert [cell.text for cell in line.cells[2:6]] == expected
