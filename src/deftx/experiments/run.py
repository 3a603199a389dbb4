"""Carry out a recipe: its fits one after the other, its scores, its table. A run that was stopped goes on.

RUN/vectors/NAME-KEY   a finished fit; KEY names all that determines it, so that nothing stale is taken
RUN/work               what phase 1 learnt, shared by the variants that differ only in what comes after
RUN/scores.jsonl       one row per variant, seed and language
RUN/results.md         the table: mean ± standard deviation over the seeds
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from shutil import rmtree
from statistics import mean, stdev
from typing import Any

from deftx.baselines.ngrams import predict_ngrams, train_ngrams
from deftx.core.vector import SparseVector
from deftx.experiments.recipe import Recipe
from deftx.fit import fit_language, fit_task
from deftx.models import compose, load_masked_lm, load_tokenizer, longest_input
from deftx.storage.files import load, save
from deftx.storage.fingerprint import fingerprint
from deftx.storage.folders import write_text
from deftx.tasks.classification import evaluate, label_names, scores
from deftx.tasks.data import Columns, read_examples, read_text

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
    """All scores of a recipe. Fits that `out` holds already are taken from there."""
    data = _Data(recipe)
    found = list(_ngram_scores(recipe, data)) if recipe.ngrams else []
    for seed in recipe.seeds:
        for variant in recipe.variants:
            found += _variant_scores(recipe, data, variant, seed, out)
            write_text(out / "scores.jsonl", "".join(json.dumps(asdict(score)) + "\n" for score in found))
            write_text(out / "results.md", table(found, recipe.task.training.metric))
        rmtree(out / "work" / f"seed{seed}", ignore_errors=True)
    return found


class _Data:
    """Everything a recipe reads, read at once: what is missing or wrong shows before the first training."""

    def __init__(self, recipe: Recipe) -> None:
        columns = Columns(**recipe.columns.model_dump())
        self.texts = {name: read_text(*sources) for name, sources in recipe.languages.items()}
        self.train, self.valid = read_examples(recipe.train, columns), read_examples(recipe.valid, columns)
        self.test = {name: read_examples(source, columns) for name, source in recipe.test.items()}
        self.base = fingerprint(load_masked_lm(recipe.base))


def _variant_scores(recipe: Recipe, data: _Data, variant: str, seed: int, out: Path) -> Iterator[Score]:
    """Fit what a variant needs with one seed, compose it for every test language, and score it."""
    chosen = recipe.variants[variant]
    languages = {
        name: _language_vector(recipe, data, variant, seed, name, out) for name in recipe.needed_languages(variant)
    }
    task = _task_vector(recipe, data, variant, seed, languages[recipe.source] if chosen.source else None, out)
    tokenizer = load_tokenizer(recipe.base)
    for name, examples in data.test.items():
        model = compose(recipe.base, task, languages[name] if chosen.target else ())
        length = min(recipe.task.training.length, longest_input(model, tokenizer))
        yield Score(variant, seed, name, **evaluate(model, tokenizer, examples, length))


def _language_vector(recipe: Recipe, data: _Data, variant: str, seed: int, name: str, out: Path) -> SparseVector:
    settings, text = recipe.language_fit(variant, seed), data.texts[name]
    key = _key(data.base, text, settings.model_dump(mode="json"))
    work, title = out / "work" / f"seed{seed}" / name, f"{variant}, seed {seed}, {name}"
    make = partial(fit_language, recipe.base, text, settings, work=work, title=title)
    return _finished(out / "vectors" / f"{_slug(title)}-{key}", make)


def _task_vector(
    recipe: Recipe, data: _Data, variant: str, seed: int, source: SparseVector | None, out: Path
) -> SparseVector:
    settings, above = recipe.task_fit(variant, seed), dict(source.info) if source else None
    key = _key(data.base, asdict(data.train), asdict(data.valid), settings.model_dump(mode="json"), above)
    title = f"{variant}, seed {seed}, task"
    work = out / "work" / f"seed{seed}" / _slug(title)
    make = partial(fit_task, recipe.base, data.train, data.valid, settings, source=source, work=work, title=title)
    return _finished(out / "vectors" / f"{_slug(title)}-{key}", make)


def _finished(folder: Path, make: Callable[[], SparseVector]) -> SparseVector:
    """The vector in `folder`; made and saved there first if it is not."""
    if not folder.exists():
        save(make(), folder)
    return load(folder)


def _ngram_scores(recipe: Recipe, data: _Data) -> Iterator[Score]:
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


def _cell(values: list[float]) -> str:
    return f"{mean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


def _key(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
