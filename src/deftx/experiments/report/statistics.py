"""How sure a difference between two variants is, when both the seeds and the test texts are
samples.

A score belongs to one seed and one set of test texts; other seeds and other texts would have given
another score. The interval of a difference is for the mean over all seeds and all texts like those
at hand. Seeds and texts are crossed: every seed answers the same texts, and both variants share
both. With S seeds, the difference d_s of seed s is

    d_s = difference + seed effect (variance A) + text effect (B) + seed x text effect (C)

so that the mean over seeds has variance A/S + B + C/S. Two parts estimate it:

    seed part   variance of the d_s between seeds, divided by S       estimates A/S + C/S
    text part   mean covariance of the text noise of two seeds        estimates B

Adding the text noise of the mean itself would count C twice. This is the analysis that radiology
uses for readers and cases (Obuchowski and Rockette 1995; Hillis 2007, who sets a negative text part
to 0). Text noise comes from the jackknife. docs/report.md derives the degrees of freedom; tests
hold the coverage.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from deftx.errors import DeftxError
from deftx.experiments.run_folder import Predictions, Row, RunData

Floats = NDArray[np.float64]

LEVEL = 0.05  # two-sided error of a test; the intervals hold the rest
POWER = 0.8  # probability of telling a detectable difference from chance
SEEDS_FOR_A_CONCLUSION = 3  # with two seeds an interval covers 91 to 96%, as simulated
SEEDS_FOR_P = 5
AVERAGE = "average"


@dataclass(frozen=True)
class Score:
    """One score, and how it depends on the texts.

    Attributes:
        value: The score, 0 to 1.
        text_effects: What each text contributes to the score's deviation [texts]. The sum of
            squares is the jackknife variance over texts; the inner product with another score's
            effects is the covariance.
    """

    value: float
    text_effects: Floats


@dataclass(frozen=True)
class Difference:
    """A difference of scores, first minus second, on a scale of 0 to 1.

    Attributes:
        value: The mean over the seeds.
        error: Its standard error.
        freedom: The degrees of freedom of the standard error.
        seeds: How many seeds it was measured with. With one, the error is that of the texts only.
    """

    value: float
    error: float
    freedom: float
    seeds: int

    @property
    def low(self) -> float:
        """Lower end of the 95% interval."""
        return self.value - self._reach

    @property
    def high(self) -> float:
        """Upper end of the 95% interval."""
        return self.value + self._reach

    @property
    def _reach(self) -> float:
        return float(stats.t.ppf(1 - LEVEL / 2, self.freedom) * self.error)

    @property
    def p(self) -> float | None:
        """Two-sided p value for no difference; None with fewer than five seeds."""
        if self.seeds < SEEDS_FOR_P:
            return None
        if self.value == 0:
            return 1.0
        if self.error == 0:
            return 0.0
        return float(2 * stats.t.sf(abs(self.value) / self.error, self.freedom))

    @property
    def detectable(self) -> float | None:
        """The true difference that as many seeds and texts would tell from chance in 80% of cases.

        None with one seed.
        """
        if self.seeds < 2:
            return None
        return self.error * detectable_ratio(self.freedom)

    @property
    def conclusive(self) -> bool:
        """Whether there are enough seeds for a conclusion and the interval leaves out 0."""
        if self.too_few_seeds is not None:
            return False
        return self.low > 0 or self.high < 0

    @property
    def too_few_seeds(self) -> str | None:
        """What is said instead of a conclusion where the seeds are too few for one; else None."""
        if self.seeds == 1:
            return "one seed: interval over texts only"
        if self.seeds < SEEDS_FOR_A_CONCLUSION:
            return f"{self.seeds} seeds: too few to say"
        return None


@dataclass(frozen=True)
class Comparison:
    """Two variants on the seeds that both have.

    Attributes:
        first: Name of the variant whose scores count positively.
        second: Name of the variant that is subtracted.
        seeds: The seeds of the average where there is one, otherwise all common seeds.
        by_language: The difference in each language.
        average: The mean over the target languages; None where no seed has all of them.
    """

    first: str
    second: str
    seeds: tuple[int, ...]
    by_language: Mapping[str, Difference]
    average: Difference | None


Scores = Mapping[tuple[str, int, str], Score]  # by variant, seed and language


# Scores and their text noise


def macro_f1(confusion: Floats) -> Floats:
    """Macro-F1 of confusion counts [..., true, predicted]: mean over the labels that occur in
    either."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    true_and_predicted = confusion.sum(-1) + confusion.sum(-2)
    occurs = true_and_predicted > 0
    f1 = 2 * hits / np.where(occurs, true_and_predicted, 1)
    return np.asarray(f1.sum(-1) / occurs.sum(-1))


def accuracy(confusion: Floats) -> Floats:
    """The share of hits in confusion counts [..., true, predicted]."""
    hits = np.trace(confusion, axis1=-2, axis2=-1)
    return np.asarray(hits / confusion.sum((-2, -1)))


METRICS: dict[str, Callable[[Floats], Floats]] = {"macro_f1": macro_f1, "accuracy": accuracy}


def jackknife(metric: Callable[[Floats], Floats], answers: Predictions) -> Score:
    """The score of some answers, and the effect of each text on it by leaving that text out.

    All texts with the same true and predicted label have the same effect, so the metric is computed
    once for each pair of labels that occurs.
    """
    labels = len(answers.labels)
    texts = len(answers.true)
    cells = np.array(answers.true) * labels + np.array(answers.predicted)
    counts = np.bincount(cells, minlength=labels * labels).astype(np.float64)
    value = float(metric(counts.reshape(labels, labels)))
    if texts < 2:
        return Score(value, np.zeros(texts))
    without = np.zeros(labels * labels)
    for cell in np.unique(cells):
        counts[cell] -= 1
        without[cell] = metric(counts.reshape(labels, labels))
        counts[cell] += 1
    left_out = without[cells]
    scale = np.sqrt((texts - 1) / texts)
    return Score(value, scale * (left_out.mean() - left_out))


def score_run(run: RunData) -> Scores:
    """Every score of a run whose predictions are kept.

    Raises:
        DeftxError: Where two scores of a language are not of the same test data.
    """
    metric = METRICS[run.recipe.metric]
    scores = {}
    for language in run.languages:
        for (variant, seed), answers in _answers(run, language).items():
            scores[variant, seed, language] = jackknife(metric, answers)
    return scores


def _answers(run: RunData, language: str) -> dict[tuple[str, int], Predictions]:
    """The predictions of a language's scores by variant and seed, all on one test set."""
    kept: list[tuple[Row, Predictions]] = []
    names: set[str] = set()
    for row in run.rows:
        answers = run.predictions(row) if row.language == language else None
        if answers is not None:
            kept.append((row, answers))
            names.update(answers.labels)
    numbered: dict[tuple[str, int], Predictions] = {}
    truth: tuple[int, ...] | None = None
    for row, answers in kept:
        if not _gives_its_score(run, row, answers):
            message = f"the predictions of step {row.step} do not give its score: not compared"
            warnings.warn(message, stacklevel=3)
            continue
        answers = _numbered_by_name(answers, sorted(names))
        truth = truth or answers.true
        if answers.true != truth:
            raise DeftxError(
                f"the scores on {language} are not of one test set: step {row.step} has other true labels"
            )
        numbered[row.variant, row.seed] = answers
    return numbered


def _gives_its_score(run: RunData, row: Row, answers: Predictions) -> bool:
    score = jackknife(METRICS[run.recipe.metric], answers).value
    return bool(abs(score - getattr(row, run.recipe.metric)) <= 1e-6)


def _numbered_by_name(answers: Predictions, names: Sequence[str]) -> Predictions:
    """The same answers, labels numbered as in `names`: variants may number them in other ways."""
    numbers = [names.index(label) for label in answers.labels]
    true = tuple(numbers[label] for label in answers.true)
    predicted = tuple(numbers[label] for label in answers.predicted)
    return Predictions(true=true, predicted=predicted, labels=tuple(names))


# Differences


def compare(run: RunData, scores: Scores, first: str, second: str) -> Comparison | None:
    """Compare two variants; None where no seed and language has both."""
    first_scores = _by_seed(run, scores, first)
    second_scores = _by_seed(run, scores, second)
    gaps: dict[int, dict[str, Score]] = {}
    for seed in sorted(first_scores.keys() & second_scores.keys()):
        gaps[seed] = _paired(first_scores[seed], second_scores[seed])
    by_language = {}
    for language in run.languages:
        seeds = [seed for seed in gaps if language in gaps[seed]]
        if seeds:
            by_language[language] = estimate([gaps[seed][language] for seed in seeds])
    if not by_language:
        return None
    complete = [seed for seed in gaps if run.targets and gaps[seed].keys() >= set(run.targets)]
    average = None
    if complete:
        average = estimate([_mean_over(gaps[seed], run.targets) for seed in complete])
    return Comparison(first, second, tuple(complete or gaps), by_language, average)


def _by_seed(run: RunData, scores: Scores, variant: str) -> dict[int, dict[str, Score]]:
    """A variant's scores by seed; what is in no recipe has no seed, and counts for all of them."""
    by_seed: dict[int, dict[str, Score]] = {}
    for (name, seed, language), score in scores.items():
        if name != variant:
            continue
        seeds = [seed] if variant in run.recipe.variants else run.seeds
        for place in seeds:
            by_seed.setdefault(place, {})[language] = score
    return by_seed


def _paired(first: Mapping[str, Score], second: Mapping[str, Score]) -> dict[str, Score]:
    """First minus second in each language that both have: same seed, same texts."""
    gaps = {}
    for language, score in first.items():
        if other := second.get(language):
            effects = score.text_effects - other.text_effects
            gaps[language] = Score(score.value - other.value, effects)
    return gaps


def _mean_over(gaps: Mapping[str, Score], languages: Sequence[str]) -> Score:
    """The mean over languages.

    Languages with equally many texts often have the same ones, translated, so the effects of the
    same line are added before they are squared. Where the texts are in truth others, that adds
    covariances of mean 0 and does no harm.
    """
    value = float(np.mean([gaps[language].value for language in languages]))
    by_size: dict[int, Floats] = {}
    for language in languages:
        effects = gaps[language].text_effects
        by_size[len(effects)] = by_size.get(len(effects), 0.0) + effects / len(languages)
    return Score(value, np.concatenate(list(by_size.values())))


def estimate(gaps: Sequence[Score]) -> Difference:
    """A difference with its interval, from one paired difference for each seed.

    The seed part and the text part are those of the module's docstring. The reciprocal of the
    degrees of freedom is the mean of theirs (seeds - 1, texts - 1), weighted by the parts.

    Args:
        gaps: Differences by seed, all on the same texts. With one, the interval is over texts only.
    """
    values = np.array([gap.value for gap in gaps])
    effects = np.stack([gap.text_effects for gap in gaps])
    seeds, texts = effects.shape
    if seeds == 1:
        text_variance = float(np.square(effects).sum())
        return _difference(values, [(text_variance, texts - 1)], seeds)
    covariance = effects @ effects.T
    between_seeds = (covariance.sum() - np.trace(covariance)) / (seeds * (seeds - 1))
    seed_part = float(values.var(ddof=1)) / seeds
    text_part = max(0.0, float(between_seeds))
    return _difference(values, [(seed_part, seeds - 1), (text_part, texts - 1)], seeds)


def estimate_crossed(values: Floats, text_effects: Floats | None = None) -> Difference:
    """A difference with its interval, where language vectors and task vectors have seeds of their
    own.

    Every language vector of one seed is combined with every task vector of another. The
    combinations are no independent runs: two of a row share the language vector, two of a column
    the task vector. With mean squares MS of the two-way table, the variance of the mean is

        (MS_language + MS_task - MS_both) / (I x J) + text part

    where the text part is the mean covariance of two combinations that share neither vector. As a
    variance is not smaller than one of its parts, neither is the estimate. Intervals are too wide
    where little but the interaction varies, and cover 92% at worst where I and J are far apart.

    Args:
        values: Differences by seed of the language vector and seed of the task [I, J], both at
            least 2.
        text_effects: Their text effects [I, J, texts]; without them the texts count as fixed.

    Returns:
        The difference; its `seeds` is the smaller of I and J.
    """
    languages, tasks = values.shape
    cells = languages * tasks
    mean = values.mean()
    language_effects = values.mean(1) - mean
    task_effects = values.mean(0) - mean
    both = values - mean - language_effects[:, None] - task_effects[None]
    # each mean square divided by the number of cells: a part of the variance of the mean
    language_part = float(np.square(language_effects).sum()) / (languages - 1) / languages
    task_part = float(np.square(task_effects).sum()) / (tasks - 1) / tasks
    both_part = float(np.square(both).sum()) / ((languages - 1) * (tasks - 1)) / cells
    largest = max(language_part, task_part)
    seed_variance = max(language_part + task_part - both_part, largest)
    # Satterthwaite's degrees of freedom of the two seed parts together
    freedom = float(min(languages, tasks) - 1)
    if largest > 0:
        squares = language_part**2 / (languages - 1) + task_part**2 / (tasks - 1)
        freedom = (language_part + task_part) ** 2 / squares
    parts = [(seed_variance, freedom)]
    if text_effects is not None:
        texts = text_effects.shape[-1]
        total = np.square(text_effects.sum((0, 1))).sum()
        same_language = np.square(text_effects.sum(1)).sum()
        same_task = np.square(text_effects.sum(0)).sum()
        itself = np.square(text_effects).sum()
        pairs_apart = cells * (languages - 1) * (tasks - 1)
        apart = (total - same_language - same_task + itself) / pairs_apart
        parts.append((max(0.0, float(apart)), texts - 1))
    return _difference(values, parts, min(languages, tasks))


def _difference(values: Floats, parts: Sequence[tuple[float, float]], seeds: int) -> Difference:
    """The mean of some differences, with parts of its variance and their degrees of freedom."""
    variance = sum(part for part, _ in parts)
    reciprocal = 0.0
    for part, freedom in parts:
        weight = part / variance if variance > 0 else 1 / len(parts)
        reciprocal += weight / max(1, freedom)
    return Difference(float(values.mean()), float(np.sqrt(variance)), 1 / reciprocal, seeds)


def detectable_ratio(freedom: float) -> float:
    """The true difference, in standard errors, that a two-sided t test finds with a power of
    80%."""
    critical = stats.t.ppf(1 - LEVEL / 2, freedom)
    # the test finds it where difference / error + noise > critical x (estimated error / true error)
    probabilities = (np.arange(2000) + 0.5) / 2000
    relative_errors = np.sqrt(stats.chi2.ppf(probabilities, freedom) / freedom)
    thresholds = critical * relative_errors

    def missing_power(ratio: float) -> float:
        found = stats.norm.sf(thresholds - ratio) + stats.norm.cdf(-thresholds - ratio)
        return float(found.mean() - POWER)

    return float(optimize.brentq(missing_power, 0, 2 * critical + 10))


# Several comparisons


def holm(values: Sequence[float]) -> list[float]:
    """Holm's correction (1979): p values of several comparisons, each raised so that all of them
    together err as one would."""
    order = sorted(range(len(values)), key=values.__getitem__)
    adjusted = [0.0] * len(values)
    largest = 0.0
    for place, number in enumerate(order):
        raised = (len(values) - place) * values[number]
        largest = max(largest, min(1.0, raised))
        adjusted[number] = largest
    return adjusted


def pairs(run: RunData, baseline: str | None) -> list[tuple[str, str]]:
    """The pairs to compare: every variant with the baseline, and every DeFT-X with every LT-SFT."""
    scored = [name for name in run.variants if run.scores(name)]
    deftx = [name for name in scored if "deftx" in _letters(name)]
    lt_sft = [name for name in scored if "ltsft" in _letters(name)]
    candidates = []
    if baseline in scored:
        candidates += [(name, baseline) for name in scored]
    for first in deftx:
        candidates += [(first, second) for second in lt_sft]
    chosen: dict[frozenset[str], tuple[str, str]] = {}
    for first, second in candidates:
        if first != second:
            chosen.setdefault(frozenset((first, second)), (first, second))
    return list(chosen.values())


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name)).casefold()
