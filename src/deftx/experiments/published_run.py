"""Which vectors of a run go to the hub, under which names, and with which scores on their cards."""

import re
from collections.abc import Mapping
from pathlib import Path

from deftx.errors import DeftxError, unknown
from deftx.experiments.recipe import TASK
from deftx.experiments.run import vectors_of
from deftx.experiments.run_folder import RECIPE, Row, RunData, read_run
from deftx.hub.collection import CollectionItem
from deftx.hub.model_card import About, MeasuredScore

RUN = "run"  # the folder of the run within that of a transfer


def run_folder(folder: Path) -> Path | None:
    """The run that a folder is of, or has in it, as that of a transfer has; None: there is none."""
    for place in (folder, folder / RUN):
        if (place / RECIPE).is_file():
            return place
    return None


def vectors_to_publish(
    folder: Path,
    prefix: str,
    *,
    variant: str | None = None,
    seed: int | None = None,
    codes: Mapping[str, str] | None = None,
    base: str | None = None,
    license: str | None = None,
) -> list[CollectionItem]:
    """The language vectors and the task vector of one variant and one seed of a run.

    Args:
        folder: The run's folder.
        prefix: USER/NAME: a vector goes to USER/NAME-LANGUAGE, or USER/NAME-task.
        variant: Of the recipe; it can be left out where one variant has language vectors.
        seed: The first that has vectors by default.
        codes: Name of a language in the run -> its ISO 639 code. A name of two or three small
            letters is its own code.
        base: Hub id of the base, where the run was made on a folder with that model.
        license: The hub's name of a licence.

    Returns:
        The task vector first, then the languages in the run's order.

    Raises:
        DeftxError: The run has no such vectors, or several variants have some and none is chosen.
    """
    run = read_run(folder)
    variant = _variant(run, variant)
    seed = _seed(run, variant, seed)
    folders = vectors_of(folder, variant, seed)
    if not folders:
        raise DeftxError(f"{folder} has no finished vector of {variant!r}, seed {seed}")
    languages_of_run = [name for name in folders if name != TASK]
    names = [TASK] if TASK in folders else []
    names += languages_of_run
    codes = codes or {}
    for name in codes:
        if name not in languages_of_run:
            raise unknown("language", name, languages_of_run)

    items = []
    for name in names:
        scores = _scores(run, variant, seed, name)
        languages = []
        if name in codes:
            languages = [codes[name]]
        elif name != TASK and re.fullmatch(r"[a-z]{2,3}", name):
            languages = [name]
        about = About(base=base, languages=languages, license=license, scores=scores)
        items.append(CollectionItem(folders[name], f"{prefix}-{name}", about, _note(name, scores)))
    return items


def _variant(run: RunData, name: str | None) -> str:
    """The variant whose vectors are meant."""
    candidates = []
    for variant in run.recipe.variants:
        kinds = {step.name for step in run.vectors(variant)}
        if kinds - {TASK}:
            candidates.append(variant)
    if name is not None:
        if name not in run.recipe.variants:
            raise unknown("variant", name, run.recipe.variants)
        return name
    if len(candidates) != 1:
        choice = ", ".join(candidates) or "none"
        raise DeftxError(
            f"variants of {run.folder} with language vectors: {choice}; say which with --variant"
        )
    return candidates[0]


def _seed(run: RunData, variant: str, seed: int | None) -> int:
    """The seed whose vectors are meant."""
    seeds = sorted({step.seed for step in run.vectors(variant) if step.seed is not None})
    if seed is None and seeds:
        return seeds[0]
    if seed is None or seed not in seeds:
        there = ", ".join(map(str, seeds)) or "none"
        raise DeftxError(f"{variant!r} has no vectors of seed {seed}: its seeds are {there}")
    return seed


def _scores(run: RunData, variant: str, seed: int, name: str) -> list[MeasuredScore]:
    """The test scores that a vector has a part in: a language vector those of its language, a task
    vector all."""
    metric = run.recipe.metric
    without = {row.language: row.score(metric) for row in _rows_without_vector(run, variant, seed)}
    scores = []
    for row in run.rows:
        is_of_variant = (row.variant, row.seed) == (variant, seed)
        if is_of_variant and name in (TASK, row.language):
            score = MeasuredScore(
                language=row.language,
                metric=metric,
                value=row.score(metric),
                without=without.get(row.language),
                examples=row.examples,
                seed=seed,
            )
            scores.append(score)
    return scores


def _rows_without_vector(run: RunData, variant: str, seed: int) -> list[Row]:
    """The scores, with this seed, of the first other variant that adds no language vector."""
    for other, settings in run.recipe.variants.items():
        if other != variant and settings.get("target") is False:
            return [row for row in run.rows if (row.variant, row.seed) == (other, seed)]
    return []


def _note(name: str, scores: list[MeasuredScore]) -> str:
    """What the collection's page says of a vector."""
    if name == TASK:
        return "Task vector: add it to the base, and one of the language vectors."
    if not scores:
        return f"Language vector of {name}."
    return f"Language vector of {name}: {scores[0].in_words}."
