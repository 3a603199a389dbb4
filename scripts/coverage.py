"""How often the report's 95% intervals hold the true difference, by simulation.

    python scripts/coverage.py [REPEATS]

Three worlds: Gaussian noise of seeds, texts and both; crossed seeds of language vectors and tasks;
and two variants that answer texts one by one, scored by accuracy and by macro-F1. `share` is how
much of the variance of the mean difference comes from the seeds. The tests run smaller versions.
"""

import sys

import numpy as np
from scipy import stats

from deftx.experiments.report.statistics import (
    METRICS,
    Difference,
    Floats,
    Score,
    estimate,
    estimate_crossed,
    jackknife,
)
from deftx.experiments.run_folder import Predictions

LABELS = ("negative", "neutral", "positive")


def coverage(differences: list[Difference], truth: float) -> float:
    """The share of the 95% intervals that hold the truth."""
    values = np.array([one.value for one in differences])
    errors = np.array([one.error for one in differences])
    freedom = np.array([one.freedom for one in differences])
    reach = stats.t.ppf(0.975, freedom) * errors
    return float(np.mean(np.abs(values - truth) <= reach))


def gaussian(
    rng: np.random.Generator,
    repeats: int,
    seeds: int,
    share: float,
    *,
    both: float = 0.0,
    texts: int = 100,
) -> float:
    """Coverage where a text's effect is Gaussian, common to all seeds or, by the share `both`,
    not."""
    seed_noise = np.sqrt(share * seeds)
    common_noise = np.sqrt((1 - share) * (1 - both) * texts)
    own_noise = np.sqrt((1 - share) * both * texts * seeds)
    differences = []
    for _ in range(repeats):
        common = common_noise * rng.standard_normal(texts)
        own = own_noise * rng.standard_normal((seeds, texts))
        noise = common + own
        values = seed_noise * rng.standard_normal(seeds) + noise.mean(1)
        effects = (noise - noise.mean(1, keepdims=True)) / np.sqrt(texts * (texts - 1))
        gaps = [Score(float(value), effect) for value, effect in zip(values, effects, strict=True)]
        differences.append(estimate(gaps))
    return coverage(differences, 0.0)


def crossed(
    rng: np.random.Generator,
    repeats: int,
    shape: tuple[int, int],
    noise: tuple[float, float, float],
    text_noise: float = 0.0,
    texts: int = 100,
) -> float:
    """Coverage where `noise` is the deviation by language vector, by task vector, and by both."""
    of_language, of_task, of_both = noise
    differences = []
    for _ in range(repeats):
        values = of_both * rng.standard_normal(shape)
        values += of_language * rng.standard_normal((shape[0], 1))
        values += of_task * rng.standard_normal((1, shape[1]))
        text = text_noise * np.sqrt(texts) * rng.standard_normal(texts)
        values += text.mean()
        effects = (text - text.mean()) / np.sqrt(texts * (texts - 1))
        everywhere = np.broadcast_to(effects, (*shape, texts))
        differences.append(estimate_crossed(values, everywhere))
    return coverage(differences, 0.0)


def answered(
    rng: np.random.Generator,
    repeats: int,
    seeds: int,
    metric: str,
    *,
    seed_noise: float,
    text_noise: float,
    texts: int = 200,
) -> float:
    """Coverage where two variants, equally good, answer text by text.

    A variant of a seed gives each label a score: for the true label, for what the text looks like
    to this variant (`text_noise`), for a preference of the seed (`seed_noise`), and by chance.
    Labels are uneven, so that macro-F1 is far from linear.
    """
    differences = []
    for _ in range(repeats):
        true = rng.choice(3, size=texts, p=[0.55, 0.3, 0.15])
        skill = 1.5 * np.eye(3)[true]
        looks = text_noise * rng.standard_normal((2, texts, 3))
        gaps = []
        for _ in range(seeds):
            scores = []
            for variant in range(2):
                preference = seed_noise * rng.standard_normal(3)
                chance = rng.standard_normal((texts, 3))
                predicted = np.argmax(skill + looks[variant] + preference + chance, axis=1)
                scores.append(score_of(true, predicted, metric))
            first, second = scores
            gaps.append(Score(first.value - second.value, first.text_effects - second.text_effects))
        differences.append(estimate(gaps))
    return coverage(differences, 0.0)


def score_of(true: Floats, predicted: Floats, metric: str) -> Score:
    """The score of label numbers, with its text effects."""
    answers = Predictions.model_construct(
        true=tuple(true), predicted=tuple(predicted), labels=LABELS
    )
    return jackknife(METRICS[metric], answers)


def main() -> None:
    """Print a table of each world, in percent."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 4000
    rng = np.random.default_rng(0)
    print(
        "| Gaussian: seeds | of text noise own to a seed "
        "| share 0 | 0.1 | 0.3 | 0.5 | 0.7 | 0.9 | 1 |"
    )
    for seeds in (2, 3, 4, 5, 10):
        for both in (0.0, 0.5):
            shares = (0, 0.1, 0.3, 0.5, 0.7, 0.9, 1)
            row = [gaussian(rng, repeats, seeds, share, both=both) for share in shares]
            print(f"| {seeds} | {both:.0%} | {cells(row)} |", flush=True)
    print(
        "| crossed: shape | text noise "
        "| language only | task only | both alike | all three | interaction | none |"
    )
    worlds = [(1, 0, 0), (0, 1, 0), (1, 1, 0), (1, 1, 1), (0.1, 0.1, 1), (0, 0, 0)]
    for shape in [(2, 2), (3, 3), (5, 5), (3, 10), (10, 10)]:
        for text_noise in (0.0, 0.5):
            row = [crossed(rng, repeats, shape, noise, text_noise) for noise in worlds]
            print(f"| {shape} | {text_noise} | {cells(row)} |", flush=True)
    print(
        "| answers: metric | seeds "
        "| seed noise 0, text noise 1 | 0.1, 1 | 0.3, 1 | 1, 1 | 0.3, 0 | 0, 0 |"
    )
    noises = [(0, 1), (0.1, 1), (0.3, 1), (1, 1), (0.3, 0), (0, 0)]
    for metric in METRICS:
        for seeds in (1, 2, 3, 5, 10):
            row = [
                answered(rng, repeats // 4, seeds, metric, seed_noise=seed, text_noise=text)
                for seed, text in noises
            ]
            print(f"| {metric} | {seeds} | {cells(row)} |", flush=True)


def cells(shares: list[float]) -> str:
    """Shares in percent, as cells of a Markdown table."""
    return " | ".join(f"{100 * share:.1f}" for share in shares)


if __name__ == "__main__":
    main()
