"""The scores of a run with their text noise, and the differences between its variants.

How sure a difference is: see `deftx.experiments.report.statistics`.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from deftx.errors import DeftxError
from deftx.experiments.report.statistics import (
    METRICS,
    Difference,
    Floats,
    Score,
    estimate,
    jackknife,
)
from deftx.experiments.run_folder import Predictions, Row, RunData

AVERAGE = "average"

Scores = Mapping[tuple[str, int, str], Score]  # by variant, seed and language


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
    recorded = row.score(run.recipe.metric)
    value = jackknife(metric, answers).value
    return bool(abs(value - recorded) <= 1e-6)


def _numbered_by_name(answers: Predictions, names: Sequence[str]) -> Predictions:
    """The same answers, labels numbered as in `names`: variants may number them in other ways."""
    numbers = [names.index(label) for label in answers.labels]
    true = tuple(numbers[label] for label in answers.true)
    predicted = tuple(numbers[label] for label in answers.predicted)
    changed = {"true": true, "predicted": predicted, "labels": tuple(names)}
    return answers.model_copy(update=changed)


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
