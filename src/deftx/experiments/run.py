"""Carry out a recipe: its fits one after the other, its scores, its table. A run that was stopped goes on.

RUN/vectors/NAME-KEY   a finished fit; KEY names all that determines it, so that nothing stale is taken and
                       variants share what they have in common
RUN/vectors.json       which folder holds which variant's vector: variant -> seed -> language or "task"
RUN/work               what phase 1 learnt, shared by the variants that differ only in what comes after, and the
                       state of a phase that is under way; gone when a seed is done
RUN/scores.jsonl       one row per variant, seed and language
RUN/results.md         the table: mean ± standard deviation over the seeds
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from shutil import rmtree
from statistics import mean, stdev
from typing import Any

from deftx.baselines.ngrams import predict_ngrams, train_ngrams
from deftx.core.vector import SparseVector
from deftx.experiments.data import Data, read
from deftx.experiments.recipe import TASK, Recipe
from deftx.fit import fit_language, fit_task
from deftx.models import compose, load_tokenizer, trained_length
from deftx.storage.files import load, save
from deftx.storage.folders import claimed, write_text
from deftx.tasks.classification import evaluate, label_names, scores
from deftx.training import processes

NGRAMS = "character n-grams"


@dataclass(frozen=True)
class Score:
    """One variant's score on one language's test data, shares from 0 to 1."""

    variant: str
    seed: int
    language: str
    macro_f1: float
    accuracy: float


def run_recipe(recipe: Recipe, out: Path) -> list[Score]:
    """All scores of a recipe. Fits that `out` holds already are taken from there.

    Raises DeftxError where another process is at work in `out`.
    """
    processes.alone("a run")
    with claimed(out):
        return _run(recipe, out)


def _run(recipe: Recipe, out: Path) -> list[Score]:
    data = read(recipe)
    found = list(_ngram_scores(recipe, data)) if recipe.ngrams else []
    folders: dict[str, dict[int, dict[str, str]]] = {variant: {} for variant in recipe.variants}
    for seed in recipe.seeds:
        for variant in recipe.variants:
            fitted = _fit_variant(recipe, data, variant, seed, out)
            found += _variant_scores(recipe, data, variant, seed, fitted)
            folders[variant][seed] = {name: str(folder.relative_to(out)) for name, folder in fitted.items()}
            write_text(out / "vectors.json", json.dumps(folders, indent=1))
            write_text(out / "scores.jsonl", "".join(json.dumps(asdict(score)) + "\n" for score in found))
            write_text(out / "results.md", table(found, recipe.task.training.metric) + _trimmed(data))
        rmtree(out / "work" / f"seed{seed}", ignore_errors=True)
    return found


def _fit_variant(recipe: Recipe, data: Data, variant: str, seed: int, out: Path) -> dict[str, Path]:
    """The folders of the vectors that a variant uses, by language, and "task"; fitted where they are missing."""
    folders = {name: _fit_language(recipe, data, variant, seed, name, out) for name in recipe.needed_languages(variant)}
    source = load(folders[recipe.source]) if recipe.variants[variant].source else None
    return {**folders, TASK: _fit_task(recipe, data, variant, seed, source, out)}


def _fit_language(recipe: Recipe, data: Data, variant: str, seed: int, name: str, out: Path) -> Path:
    settings, text = recipe.language_fit(variant, seed), data.texts[name]
    folder = out / "vectors" / f"{name}-seed{seed}-{_key(data.base, text, settings.deciding())}"
    if not folder.exists():
        work, title = out / "work" / f"seed{seed}" / name, f"{variant}, seed {seed}, {name}"
        save(fit_language(recipe.base, text, settings, work=work, title=title), folder)
    return folder


def _fit_task(recipe: Recipe, data: Data, variant: str, seed: int, source: SparseVector | None, out: Path) -> Path:
    settings, above = recipe.task_fit(variant, seed), dict(source.info) if source else None
    key = _key(data.base, asdict(data.train), asdict(data.valid), settings.deciding(), above)
    folder = out / "vectors" / f"{TASK}-seed{seed}-{key}"
    if not folder.exists():
        work, title = out / "work" / f"seed{seed}" / folder.name, f"{variant}, seed {seed}, {TASK}"
        save(fit_task(recipe.base, data.train, data.valid, settings, source=source, work=work, title=title), folder)
    return folder


def _variant_scores(
    recipe: Recipe, data: Data, variant: str, seed: int, folders: Mapping[str, Path]
) -> Iterator[Score]:
    """Compose a variant's vectors for every test language, and score the models."""
    task, tokenizer, chosen = load(folders[TASK]), load_tokenizer(recipe.base), recipe.variants[variant]
    for name, examples in data.test.items():
        model = compose(recipe.base, task, load(folders[name]) if chosen.target else (), rule=chosen.compose)
        scored = evaluate(model, tokenizer, examples, trained_length(model, tokenizer, task))
        yield Score(variant, seed, name, **scored)


def _ngram_scores(recipe: Recipe, data: Data) -> Iterator[Score]:
    """The baseline's scores; it has no seed, so its rows count for all of them."""
    model, labels = train_ngrams(data.train), label_names(data.train)
    for name, examples in data.test.items():
        predicted = predict_ngrams(model, examples)
        true = [labels.index(label) for label in examples.labels or []]
        yield Score(NGRAMS, 0, name, **scores(true, [labels.index(label) for label in predicted]))


def table(found: list[Score], metric: str = "macro_f1") -> str:
    """A Markdown table of a metric in percent: a row per variant, a column per language and their average.

    Cells are mean ± sample standard deviation over the seeds; the average is taken within a seed first.
    """
    variants, languages = (list(dict.fromkeys(getattr(s, by) for s in found)) for by in ("variant", "language"))
    rows = [["", *languages, "average"], ["---"] * (len(languages) + 2)]
    for variant in variants:
        cells = {(s.seed, s.language): 100 * getattr(s, metric) for s in found if s.variant == variant}
        seeds = sorted({seed for seed, _ in cells})
        columns = [[cells[seed, language] for seed in seeds] for language in languages]
        rows.append([variant, *map(_cell, columns), _cell([mean(values) for values in zip(*columns, strict=True)])])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _trimmed(data: Data) -> str:
    """What was left out of the training data, as a line under the table; nothing where it was nothing."""
    what = "; ".join(f"{name} {how_much}" for name, how_much in data.trimmed.items())
    return f"\nLeft out of training, since it holds evaluation text: {what}.\n" if what else ""


def _cell(values: list[float]) -> str:
    return f"{mean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


def _key(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
