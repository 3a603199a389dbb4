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
to 0). Text noise comes from the jackknife; in tagging and parsing a text is a sentence.
docs/report.md derives the degrees of freedom; tests hold the coverage.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from deftx.experiments.run_folder import Predictions

Floats = NDArray[np.float64]

LEVEL = 0.05  # two-sided error of a test; the intervals hold the rest
POWER = 0.8  # probability of telling a detectable difference from chance
SEEDS_FOR_A_CONCLUSION = 3  # with two seeds an interval covers 91 to 96%, as simulated
SEEDS_FOR_P = 5


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
        """Half the length of the 95% interval."""
        critical = stats.t.ppf(1 - LEVEL / 2, self.freedom)
        return float(critical * self.error)

    @property
    def p(self) -> float | None:
        """Two-sided p value for no difference; None with fewer than five seeds."""
        if self.seeds < SEEDS_FOR_P:
            return None
        if self.value == 0:
            return 1.0
        if self.error == 0:
            return 0.0
        t = abs(self.value) / self.error
        one_sided = stats.t.sf(t, self.freedom)
        return float(2 * one_sided)

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


# Scores and their text noise


def macro_f1(confusion: Floats) -> Floats:
    """The mean of the labels' F1 scores, over the labels that occur as true or predicted ones.

        F1(label) = 2 x hits / (times true + times predicted)

    Args:
        confusion: Counts of answers [..., true label, predicted label].

    Returns:
        Macro-F1 [...], 0 to 1.
    """
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    times_true = confusion.sum(-1)
    times_predicted = confusion.sum(-2)
    total = times_true + times_predicted

    # Labels that do not occur have no F1: they add 0 to the sum and nothing to the count
    occurs = total > 0
    denominator = np.where(occurs, total, 1)
    f1 = 2 * hits / denominator
    sum_of_f1 = f1.sum(-1)
    number_of_labels = occurs.sum(-1)
    return np.asarray(sum_of_f1 / number_of_labels)


def accuracy(confusion: Floats) -> Floats:
    """The share of texts whose predicted label is the true one.

    Args:
        confusion: Counts of answers [..., true label, predicted label].

    Returns:
        Accuracy [...], 0 to 1.
    """
    hits = np.trace(confusion, axis1=-2, axis2=-1)
    texts = confusion.sum((-2, -1))
    return np.asarray(hits / texts)


# The predicted label of a word with a wrong head is never its true one, so that the LAS is the
# accuracy
METRICS: dict[str, Callable[[Floats], Floats]] = {
    "macro_f1": macro_f1,
    "accuracy": accuracy,
    "las": accuracy,
}


def jackknife(metric: Callable[[Floats], Floats], answers: Predictions) -> Score:
    """The score of some answers, and the effect of each text on it by leaving that text out.

    In tagging and parsing, a text is a sentence, all of whose words are left out together: words of
    a sentence are not independent.

    Args:
        metric: Turns confusion counts into a score: a value of METRICS.
        answers: True and predicted labels.

    Returns:
        The score; its text effects are 0 where there is a single text.
    """
    # The confusion matrix, and the flat index of the cell that each label is counted in
    labels = len(answers.labels)
    true = np.array(answers.true)
    predicted = np.array(answers.predicted)
    cells = true * labels + predicted
    counts = np.bincount(cells, minlength=labels * labels)
    confusion = counts.astype(np.float64).reshape(labels, labels)
    value = float(metric(confusion))

    # How many texts there are: labels, or sentences that have words
    lengths = answers.sentence_lengths
    if lengths is None:
        texts = len(cells)
    else:
        lengths = tuple(length for length in lengths if length > 0)
        texts = len(lengths)
    if texts < 2:
        return Score(value, np.zeros(texts))

    # The score without each text
    if lengths is None:
        left_out = _without_each_label(metric, confusion, cells)
    else:
        left_out = _without_each_sentence(metric, confusion, cells, lengths)

    # Scaled so that the sum of squares is the jackknife variance
    scale = np.sqrt((texts - 1) / texts)
    deviations = left_out.mean() - left_out
    return Score(value, scale * deviations)


def _without_each_label(
    metric: Callable[[Floats], Floats], confusion: Floats, cells: NDArray[np.int64]
) -> Floats:
    """The score without each of the labels in turn [labels].

    It is the same for all labels in one cell, so it is computed once for each cell that has any.
    """
    without = confusion.copy()
    flat = without.reshape(-1)  # shares its memory with `without`
    score_of_cell = np.zeros(confusion.size)
    for cell in np.unique(cells):
        flat[cell] -= 1
        score_of_cell[cell] = metric(without)
        flat[cell] += 1
    return score_of_cell[cells]


def _without_each_sentence(
    metric: Callable[[Floats], Floats],
    confusion: Floats,
    cells: NDArray[np.int64],
    lengths: Sequence[int],
) -> Floats:
    """The score without each of the sentences in turn [sentences]."""
    scores = []
    start = 0
    for length in lengths:
        end = start + length
        counts = np.bincount(cells[start:end], minlength=confusion.size)
        of_sentence = counts.reshape(confusion.shape)
        without = confusion - of_sentence
        scores.append(float(metric(without)))
        start = end
    return np.array(scores)


# Differences


def estimate(gaps: Sequence[Score]) -> Difference:
    """A difference with its interval, from one paired difference for each seed.

    The seed part and the text part are those of the module's docstring. The reciprocal of the
    degrees of freedom is the mean of theirs (seeds - 1, texts - 1), weighted by the parts.

    Args:
        gaps: Differences by seed, all on the same texts. With one, the interval is over texts only.
    """
    values = np.array([gap.value for gap in gaps])
    effects = np.stack([gap.text_effects for gap in gaps])  # [seeds, texts]
    seeds, texts = effects.shape
    if seeds == 1:
        text_variance = float(np.square(effects).sum())
        only_texts = _VariancePart(text_variance, freedom=texts - 1)
        return _difference(values, [only_texts], seeds)

    # Seed part: A/S + C/S
    variance_of_seeds = float(values.var(ddof=1))
    seed_part = _VariancePart(variance_of_seeds / seeds, freedom=seeds - 1)

    # Text part: B, the mean of the covariances of two seeds
    covariance = effects @ effects.T
    of_two_seeds = covariance.sum() - np.trace(covariance)
    pairs_of_seeds = seeds * (seeds - 1)
    mean_covariance = float(of_two_seeds / pairs_of_seeds)
    text_variance = max(0.0, mean_covariance)
    text_part = _VariancePart(text_variance, freedom=texts - 1)
    return _difference(values, [seed_part, text_part], seeds)


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
    seeds = min(values.shape)
    parts = [_crossed_seed_part(values)]
    if text_effects is not None:
        parts.append(_crossed_text_part(text_effects))
    return _difference(values, parts, seeds)


def _crossed_seed_part(values: Floats) -> "_VariancePart":
    """The seeds' part of the variance of the mean of a two-way table [I, J]."""
    languages, tasks = values.shape
    cells = languages * tasks

    # Analysis of variance: effects of the rows, of the columns, and what both leave
    mean = values.mean()
    language_effects = values.mean(1) - mean
    task_effects = values.mean(0) - mean
    both = values - mean - language_effects[:, None] - task_effects[None]

    # Each mean square divided by the number of cells: a part of the variance of the mean
    language_freedom = languages - 1
    task_freedom = tasks - 1
    both_freedom = language_freedom * task_freedom
    language_part = float(np.square(language_effects).sum()) / language_freedom / languages
    task_part = float(np.square(task_effects).sum()) / task_freedom / tasks
    both_part = float(np.square(both).sum()) / both_freedom / cells
    largest = max(language_part, task_part)
    variance = max(language_part + task_part - both_part, largest)

    # Satterthwaite's degrees of freedom of the two seed parts together
    if largest == 0:
        smaller_freedom = min(language_freedom, task_freedom)
        return _VariancePart(variance, freedom=float(smaller_freedom))
    squares = language_part**2 / language_freedom + task_part**2 / task_freedom
    freedom = (language_part + task_part) ** 2 / squares
    return _VariancePart(variance, freedom)


def _crossed_text_part(text_effects: Floats) -> "_VariancePart":
    """The texts' part: the mean covariance of two combinations that share neither vector.

    The sum over such pairs is that over all pairs, without those that share the language vector or
    the task vector; a combination with itself shares both, and is subtracted twice.
    """
    languages, tasks, texts = text_effects.shape
    all_pairs = np.square(text_effects.sum((0, 1))).sum()
    same_language = np.square(text_effects.sum(1)).sum()
    same_task = np.square(text_effects.sum(0)).sum()
    itself = np.square(text_effects).sum()
    sharing_neither = all_pairs - same_language - same_task + itself

    pairs_of_languages = languages * (languages - 1)
    pairs_of_tasks = tasks * (tasks - 1)
    mean_covariance = float(sharing_neither / (pairs_of_languages * pairs_of_tasks))
    text_variance = max(0.0, mean_covariance)
    return _VariancePart(text_variance, freedom=texts - 1)


@dataclass(frozen=True)
class _VariancePart:
    """A part of the variance of a mean, and the degrees of freedom that it is estimated with."""

    variance: float
    freedom: float


def _difference(values: Floats, parts: Sequence[_VariancePart], seeds: int) -> Difference:
    """The mean of some differences, with the parts of its variance."""
    variance = sum(part.variance for part in parts)
    reciprocal = 0.0
    for part in parts:
        weight = 1 / len(parts)
        if variance > 0:
            weight = part.variance / variance
        reciprocal += weight / max(1, part.freedom)
    return Difference(
        value=float(values.mean()),
        error=float(np.sqrt(variance)),
        freedom=1 / reciprocal,
        seeds=seeds,
    )


def detectable_ratio(freedom: float) -> float:
    """The true difference, in standard errors, that a two-sided t test finds with a power of 80%.

    The test finds a difference where

        difference / error + noise > critical value x (estimated error / true error)

    with noise from a normal distribution and the square of the ratio of errors from a chi-square
    distribution. The mean over the latter is taken at 2,000 of its quantiles.
    """
    critical = stats.t.ppf(1 - LEVEL / 2, freedom)
    probabilities = (np.arange(2000) + 0.5) / 2000
    relative_variances = stats.chi2.ppf(probabilities, freedom) / freedom
    thresholds = critical * np.sqrt(relative_variances)

    def missing_power(ratio: float) -> float:
        above = stats.norm.sf(thresholds - ratio)
        below = stats.norm.cdf(-thresholds - ratio)
        power = (above + below).mean()
        return float(power - POWER)

    highest = 2 * critical + 10
    return float(optimize.brentq(missing_power, 0, highest))


# Several comparisons


def holm(values: Sequence[float]) -> list[float]:
    """Holm's correction (1979) for several comparisons.

    The smallest of n p values is multiplied by n, the next one by n - 1, and so on; none becomes
    smaller than one before it.

    Args:
        values: p values.

    Returns:
        The corrected p values in the same order: all of them together err as often as one would.
    """
    ascending = sorted(range(len(values)), key=values.__getitem__)
    corrected = [0.0] * len(values)
    largest = 0.0
    for rank, index in enumerate(ascending):
        raised = (len(values) - rank) * values[index]
        largest = max(largest, min(1.0, raised))
        corrected[index] = largest
    return corrected
