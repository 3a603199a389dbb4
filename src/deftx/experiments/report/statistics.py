"""How sure a difference between two variants is: a paired bootstrap over seeds and test examples.

What could have come out otherwise is which seeds were run and which examples the test data happens to have. So both are
drawn anew with replacement, many times: the seeds of a pair, and the examples of each language, the same ones for
every variant and seed, since all answer the same test. Languages with equally many examples share their draws, for
theirs are often the same sentences, translated. The metric is computed anew from each draw, and the spread of the
differences is how far chance reaches (Efron and Tibshirani 1993, "An introduction to the bootstrap").
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deftx.errors import DeftxError
from deftx.experiments.report.read import Predictions, RunData

Floats = NDArray[np.float64]

RESAMPLES = 10_000
LEVEL = 0.05  # a difference is told from chance where p is below; the intervals hold the rest
BLOCK = 1 << 22  # draws of examples made at once
AVERAGE = "average"


@dataclass(frozen=True)
class Difference:
    """A minus B in points (0 to 1): as measured, its 95% interval, and p, two-sided, for there being none."""

    value: float
    low: float
    high: float
    p: float

    @property
    def leaves_out_0(self) -> bool:
        """Whether the interval does."""
        return bool(self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Comparison:
    """Two variants on the seeds that both have: by language, and on the average of the targets where all are there."""

    first: str
    second: str
    seeds: tuple[int, ...]
    by_language: Mapping[str, Difference]
    average: Difference | None


# variant, seed, language -> its metric [1 + resamples]: on the examples as they are, then on each draw
Resampled = Mapping[tuple[str, int, str], Floats]


def macro_f1(confusion: Floats) -> Floats:
    """Macro-F1 of confusion counts [..., true, predicted]: the mean over the labels that occur in either."""
    hits, seen = np.diagonal(confusion, axis1=-2, axis2=-1), confusion.sum(-1) + confusion.sum(-2)
    f1 = 2 * hits / np.where(seen > 0, seen, 1)
    return np.asarray(f1.sum(-1) / (seen > 0).sum(-1))


def accuracy(confusion: Floats) -> Floats:
    """The share of hits in confusion counts [..., true, predicted]."""
    return np.asarray(np.trace(confusion, axis1=-2, axis2=-1) / confusion.sum((-2, -1)))


METRICS: dict[str, Callable[[Floats], Floats]] = {"macro_f1": macro_f1, "accuracy": accuracy}


def draws(rng: np.random.Generator, size: int, count: int) -> Floats:
    """How often each of `size` things is drawn, in `count` draws of `size` with replacement [count, size]."""
    drawn = rng.integers(size, size=(count, size)) + size * np.arange(count)[:, None]
    return np.bincount(drawn.ravel(), minlength=count * size).reshape(count, size).astype(np.float64)


def confusions(counts: Floats, answers: Predictions) -> Floats:
    """The confusion counts [count, true, predicted] where example i comes `counts[:, i]` times."""
    size = len(answers.labels)
    cells = np.array(answers.true) * size + np.array(answers.predicted)
    one_hot = np.zeros((len(cells), size * size))
    one_hot[np.arange(len(cells)), cells] = 1
    return (counts @ one_hot).reshape(-1, size, size)


def resampled(run: RunData, resamples: int = RESAMPLES, seed: int = 0) -> Resampled:
    """The metric of every score whose predictions are kept, on `resamples` draws of its language's examples.

    Raises DeftxError where two scores of a language are not of the same test data.
    """
    metric = METRICS[run.recipe.metric]
    found: dict[tuple[str, int, str], Floats] = {}
    for language in run.languages:
        answers = _answers(run, language)
        size = len(next(iter(answers.values())).true) if answers else 0
        rng = np.random.default_rng([seed, size])
        parts: list[dict[tuple[str, int], Floats]] = []
        for start in range(0, resamples if answers else 0, at_once := max(1, BLOCK // max(1, size))):
            counts = draws(rng, size, min(at_once, resamples - start))
            parts.append({key: metric(confusions(counts, one)) for key, one in answers.items()})
        whole = np.ones((1, size))
        for key, one in answers.items():
            found[*key, language] = np.concatenate([metric(confusions(whole, one)), *(part[key] for part in parts)])
    return found


def _answers(run: RunData, language: str) -> dict[tuple[str, int], Predictions]:
    """The predictions of a language's scores by variant and seed, all on one test set."""
    found: dict[tuple[str, int], Predictions] = {}
    told = [(row, run.predictions(row)) for row in run.rows if row.language == language]
    names = sorted({label for _, answers in told if answers for label in answers.labels})
    for row, answers in told:
        if answers is None:
            continue
        score = float(METRICS[run.recipe.metric](confusions(np.ones((1, len(answers.true))), answers))[0])
        if abs(score - getattr(row, run.recipe.metric)) > 1e-6:
            warnings.warn(f"the predictions of step {row.step} do not give its score: not compared", stacklevel=2)
            continue
        answers = _by_name(answers, names)
        first = next(iter(found.values()), answers)
        if answers.true != first.true:
            raise DeftxError(f"the scores on {language} are not of one test set: step {row.step} has other true labels")
        found[row.variant, row.seed] = answers
    return found


def _by_name(answers: Predictions, names: Sequence[str]) -> Predictions:
    """The same with labels numbered as in `names`: variants that learn from other data may number them otherwise."""
    number = [names.index(label) for label in answers.labels]
    true, predicted = (tuple(number[label] for label in some) for some in (answers.true, answers.predicted))
    return Predictions(true=true, predicted=predicted, labels=tuple(names))


def compare(run: RunData, scores: Resampled, first: str, second: str, seed: int = 0) -> Comparison | None:
    """`first` against `second`; None where no seed and language has both."""
    ours, theirs = _by_seed(run, scores, first), _by_seed(run, scores, second)
    both = {s: ours[s].keys() & theirs[s].keys() for s in sorted(ours.keys() & theirs.keys())}

    def judged(languages: Sequence[str]) -> Difference | None:
        """The mean over languages, on the seeds that have all of them."""
        seeds = [s for s, there in both.items() if there.issuperset(languages)] if languages else []
        if not seeds:
            return None
        gaps = np.stack([np.mean([ours[s][lang] - theirs[s][lang] for lang in languages], axis=0) for s in seeds])
        weights = draws(np.random.default_rng([seed, len(seeds)]), len(seeds), len(gaps[0]) - 1) / len(seeds)
        return difference(gaps, weights)

    found = {lang: gap for lang in run.languages if (gap := judged([lang]))}
    whole = [s for s, there in both.items() if there.issuperset(run.targets)] if run.targets else []
    return Comparison(first, second, tuple(whole or both), found, judged(run.targets)) if found else None


def _by_seed(run: RunData, scores: Resampled, variant: str) -> dict[int, dict[str, Floats]]:
    """A variant's resampled scores by seed; what is in no recipe has no seed, and counts for all of them."""
    found: dict[int, dict[str, Floats]] = {}
    for (name, seed, language), values in scores.items():
        if name == variant:
            for place in [seed] if variant in run.recipe.variants else run.seeds:
                found.setdefault(place, {})[language] = values
    return found


def difference(gaps: Floats, weights: Floats) -> Difference:
    """Of `gaps` [seeds, 1 + resamples], as measured and on each draw of examples, with the draws of seeds as
    `weights` [resamples, seeds], rows of sum 1."""
    measured, drawn = float(gaps[:, 0].mean()), np.einsum("sr,rs->r", gaps[:, 1:], weights)
    if not len(drawn):
        return Difference(measured, measured, measured, 1.0)
    low, high = np.quantile(drawn, [LEVEL / 2, 1 - LEVEL / 2])
    tail = min((drawn <= 0).sum(), (drawn >= 0).sum())
    return Difference(measured, float(low), float(high), min(1.0, 2 * (1 + int(tail)) / (1 + len(drawn))))


def holm(values: Sequence[float]) -> list[float]:
    """The p values of several comparisons, each raised so that all of them together err as one would (Holm 1979)."""
    adjusted, largest = [0.0] * len(values), 0.0
    for place, number in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        largest = max(largest, min(1.0, (len(values) - place) * values[number]))
        adjusted[number] = largest
    return adjusted


def pairs(run: RunData, baseline: str | None) -> list[tuple[str, str]]:
    """What is compared: every variant with the baseline, and every DeFT-X with every LT-SFT, by their names."""
    scored = [name for name in run.variants if run.scores(name)]
    with_baseline = [(name, baseline) for name in scored if baseline and baseline in scored and name != baseline]
    deftx, lt_sft = ([name for name in scored if word in _letters(name)] for word in ("deftx", "ltsft"))
    found = [*with_baseline, *((one, other) for one in deftx for other in lt_sft if one != other)]
    return list({frozenset(pair): pair for pair in reversed(found)}.values())[::-1]  # each once, the first way round


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name)).casefold()
