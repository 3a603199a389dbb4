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
to 0). Text noise comes from the jackknife; in tagging a text is a sentence. docs/report.md derives
the degrees of freedom; tests hold the coverage.
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

    # labels that do not occur have no F1: they add 0 to the sum and nothing to the count
    occurs = total > 0
    denominator = np.where(occurs, total, 1)
    f1 = 2 * hits / denominator
    return np.asarray(f1.sum(-1) / occurs.sum(-1))


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


METRICS: dict[str, Callable[[Floats], Floats]] = {"macro_f1": macro_f1, "accuracy": accuracy}


def jackknife(metric: Callable[[Floats], Floats], answers: Predictions) -> Score:
    """The score of some answers, and the effect of each text on it by leaving that text out.

    In tagging, a text is a sentence, all of whose words are left out together: words of a sentence
    are not independent.

    Args:
        metric: Turns confusion counts into a score: a value of METRICS.
        answers: True and predicted labels.

    Returns:
        The score; its text effects are 0 where there is a single text.
    """
    # the confusion matrix, and the flat index of the cell that each label is counted in
    labels = len(answers.labels)
    true = np.array(answers.true)
    predicted = np.array(answers.predicted)
    cells = true * labels + predicted
    counts = np.bincount(cells, minlength=labels * labels)
    confusion = counts.astype(np.float64).reshape(labels, labels)
    value = float(metric(confusion))

    # the score without each text
    lengths = answers.sentence_lengths
    if lengths is not None:
        lengths = tuple(length for length in lengths if length > 0)
    texts = len(cells) if lengths is None else len(lengths)
    if texts < 2:
        return Score(value, np.zeros(texts))
    if lengths is None:
        left_out = _without_each_label(metric, confusion, cells)
    else:
        left_out = _without_each_sentence(metric, confusion, cells, lengths)

    # scaled so that the sum of squares is the jackknife variance
    scale = np.sqrt((texts - 1) / texts)
    return Score(value, scale * (left_out.mean() - left_out))


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
        of_sentence = np.bincount(cells[start : start + length], minlength=confusion.size)
        without = confusion - of_sentence.reshape(confusion.shape)
        scores.append(float(metric(without)))
        start += length
    return np.array(scores)


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
    # predictions that are kept, and all labels that occur in them
    kept: list[tuple[Row, Predictions]] = []
    names: set[str] = set()
    for row in run.rows:
        if row.language != language:
            continue
        answers = run.predictions(row)
        if answers is None:
            continue
        kept.append((row, answers))
        names.update(answers.labels)
    label_names = sorted(names)

    # label numbers made comparable, and the true labels compared
    by_variant_and_seed: dict[tuple[str, int], Predictions] = {}
    truth: tuple[int, ...] | None = None
    for row, answers in kept:
        if not _gives_its_score(run, row, answers):
            message = f"the predictions of step {row.step} do not give its score: not compared"
            warnings.warn(message, stacklevel=3)
            continue
        answers = _numbered_by_name(answers, label_names)
        if truth is None:
            truth = answers.true
        if answers.true != truth:
            problem = f"the scores on {language} are not of one test set"
            raise DeftxError(f"{problem}: step {row.step} has other true labels")
        by_variant_and_seed[row.variant, row.seed] = answers
    return _with_the_same_sentences(by_variant_and_seed, language)


def _with_the_same_sentences(
    answers: dict[tuple[str, int], Predictions], language: str
) -> dict[tuple[str, int], Predictions]:
    """The answers, without sentences where some of them were recorded without.

    Raises:
        DeftxError: Where they are of different sentences.
    """
    boundaries = {predictions.sentence_lengths for predictions in answers.values()}
    if len(boundaries) <= 1:
        return answers
    if None not in boundaries:
        raise DeftxError(f"the scores on {language} are not of one test set: sentences differ")
    warnings.warn(
        f"some predictions on {language} are of an earlier version, without sentences: words "
        "count as independent texts, so that intervals are too narrow",
        stacklevel=4,
    )
    by_word = {}
    for variant_and_seed, predictions in answers.items():
        by_word[variant_and_seed] = predictions.model_copy(update={"sentence_lengths": None})
    return by_word


def _gives_its_score(run: RunData, row: Row, answers: Predictions) -> bool:
    """Whether predictions give the score that was recorded with them."""
    metric = METRICS[run.recipe.metric]
    recorded = getattr(row, run.recipe.metric)
    value = jackknife(metric, answers).value
    return bool(abs(value - recorded) <= 1e-6)


def _numbered_by_name(answers: Predictions, names: Sequence[str]) -> Predictions:
    """The same answers, labels numbered as in `names`: variants may number them in other ways."""
    numbers = [names.index(label) for label in answers.labels]
    true = tuple(numbers[label] for label in answers.true)
    predicted = tuple(numbers[label] for label in answers.predicted)
    changed = {"true": true, "predicted": predicted, "labels": tuple(names)}
    return answers.model_copy(update=changed)


# Differences


def compare(run: RunData, scores: Scores, first: str, second: str) -> Comparison | None:
    """Compare two variants on the seeds and languages that both have.

    Args:
        run: The run that the scores are of.
        scores: What `score_run` gave for it.
        first: The variant whose scores count positively.
        second: The variant that is subtracted.

    Returns:
        The comparison; None where no seed and language has both.
    """
    # a paired difference for each seed and language
    first_scores = _by_seed(run, scores, first)
    second_scores = _by_seed(run, scores, second)
    common_seeds = sorted(first_scores.keys() & second_scores.keys())
    gaps: dict[int, dict[str, Score]] = {}
    for seed in common_seeds:
        gaps[seed] = _paired(first_scores[seed], second_scores[seed])

    # each language over its seeds
    by_language = {}
    for language in run.languages:
        of_language = [by_name[language] for by_name in gaps.values() if language in by_name]
        if of_language:
            by_language[language] = estimate(of_language)
    if not by_language:
        return None

    # the average over the targets, on the seeds that have all of them
    targets = set(run.targets)
    complete = []
    if targets:
        complete = [seed for seed, by_name in gaps.items() if by_name.keys() >= targets]
    if not complete:
        return Comparison(first, second, tuple(gaps), by_language, average=None)
    means = [_mean_over(gaps[seed], run.targets) for seed in complete]
    return Comparison(first, second, tuple(complete), by_language, estimate(means))


def _by_seed(run: RunData, scores: Scores, variant: str) -> dict[int, dict[str, Score]]:
    """A variant's scores by seed; what is in no recipe has no seed, and counts for all of them."""
    is_seeded = variant in run.recipe.variants
    by_seed: dict[int, dict[str, Score]] = {}
    for (name, own_seed, language), score in scores.items():
        if name != variant:
            continue
        seeds = [own_seed] if is_seeded else run.seeds
        for seed in seeds:
            by_seed.setdefault(seed, {})[language] = score
    return by_seed


def _paired(first: Mapping[str, Score], second: Mapping[str, Score]) -> dict[str, Score]:
    """First minus second in each language that both have: same seed, same texts."""
    gaps = {}
    for language, score in first.items():
        other = second.get(language)
        if other is None:
            continue
        value = score.value - other.value
        effects = score.text_effects - other.text_effects
        gaps[language] = Score(value, effects)
    return gaps


def _mean_over(gaps: Mapping[str, Score], languages: Sequence[str]) -> Score:
    """The mean over languages.

    Languages with equally many texts often have the same ones, translated, so the effects of the
    same line are added before they are squared. Where the texts are in truth others, that adds
    covariances of mean 0 and does no harm.
    """
    values = [gaps[language].value for language in languages]
    effects_by_size: dict[int, Floats] = {}
    for language in languages:
        effects = gaps[language].text_effects
        size = len(effects)
        sum_so_far = effects_by_size.get(size, 0.0)
        effects_by_size[size] = sum_so_far + effects / len(languages)
    effects = np.concatenate(list(effects_by_size.values()))
    return Score(float(np.mean(values)), effects)


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

    # seed part: A/S + C/S
    variance_of_seeds = float(values.var(ddof=1))
    seed_part = _VariancePart(variance_of_seeds / seeds, freedom=seeds - 1)

    # text part: B, the mean of the covariances of two seeds
    covariance = effects @ effects.T
    of_two_seeds = covariance.sum() - np.trace(covariance)
    pairs_of_seeds = seeds * (seeds - 1)
    mean_covariance = float(of_two_seeds / pairs_of_seeds)
    text_part = _VariancePart(max(0.0, mean_covariance), freedom=texts - 1)
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

    # analysis of variance: effects of the rows, of the columns, and what both leave
    mean = values.mean()
    language_effects = values.mean(1) - mean
    task_effects = values.mean(0) - mean
    both = values - mean - language_effects[:, None] - task_effects[None]

    # each mean square divided by the number of cells: a part of the variance of the mean
    language_part = float(np.square(language_effects).sum()) / (languages - 1) / languages
    task_part = float(np.square(task_effects).sum()) / (tasks - 1) / tasks
    freedom_of_both = (languages - 1) * (tasks - 1)
    both_part = float(np.square(both).sum()) / freedom_of_both / cells
    largest = max(language_part, task_part)
    variance = max(language_part + task_part - both_part, largest)

    # Satterthwaite's degrees of freedom of the two seed parts together
    if largest == 0:
        return _VariancePart(variance, freedom=float(min(languages, tasks) - 1))
    squares = language_part**2 / (languages - 1) + task_part**2 / (tasks - 1)
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

    number_of_pairs = languages * tasks * (languages - 1) * (tasks - 1)
    mean_covariance = float(sharing_neither / number_of_pairs)
    return _VariancePart(max(0.0, mean_covariance), freedom=texts - 1)


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
        weight = part.variance / variance if variance > 0 else 1 / len(parts)
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


def pairs(run: RunData, baseline: str | None) -> list[tuple[str, str]]:
    """The pairs to compare: every variant with the baseline, and every DeFT-X with every LT-SFT."""
    scored = [name for name in run.variants if run.scores(name)]
    candidates = []
    if baseline in scored:
        candidates += [(name, baseline) for name in scored]

    # variants are recognised by their names
    deftx = [name for name in scored if "deftx" in _alphanumeric(name)]
    lt_sft = [name for name in scored if "ltsft" in _alphanumeric(name)]
    for first in deftx:
        candidates += [(first, second) for second in lt_sft]

    # each pair once, whichever comes first in it
    chosen: dict[frozenset[str], tuple[str, str]] = {}
    for first, second in candidates:
        if first != second:
            chosen.setdefault(frozenset((first, second)), (first, second))
    return list(chosen.values())


def _alphanumeric(name: str) -> str:
    """A name without spaces and punctuation, in lower case."""
    return "".join(filter(str.isalnum, name)).casefold()
