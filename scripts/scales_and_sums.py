"""Scales chosen on the source, and two languages at once: `python scripts/scales_and_sums.py RECIPE
STORE SEED...`.

The vectors are those that `deftx run RECIPE` has learnt with STORE for its baseline, a variant with
one source; they are composed in ways that a recipe has no word for. For each seed: the pair of
scales that `deftx.tune_scales` chooses on the source's validation data, and the macro-F1 (%) of
each way on the recipe's test data, in lower case, the mean of its targets.
"""

import sys
from pathlib import Path
from statistics import mean

from deftx import normalize, read_examples, tune_scales
from deftx.core.apply import apply_temporarily
from deftx.core.merge import resolve_terms
from deftx.core.vector import SparseVector
from deftx.experiments.recipe import TASK, load_recipe
from deftx.experiments.run import prepare
from deftx.experiments.store import VECTOR
from deftx.models.compose import load_base_with_head, trained_length
from deftx.models.tokenizers import load_tokenizer
from deftx.storage.vector_files import load
from deftx.tasks.base import evaluate
from deftx.tasks.classification import CLASSIFICATION

GRID = (0.5, 0.75, 1.0)


def ways(
    task: SparseVector, target: SparseVector, source: SparseVector, rule: str
) -> dict[str, list[SparseVector]]:
    """What is added to the base, by way; `rule` has the scales that were chosen."""
    return {
        "sum": resolve_terms("sum", [task], [target]),
        "the source's scales": resolve_terms(rule, [task], [target]),
        "half of the target's and half of the source's": [task, 0.5 * target, 0.5 * source],
        "the target's and the source's": [task, target, source],
    }


def main() -> None:
    """Print a row for each seed and way."""
    file, store, *seeds = sys.argv[1:]
    run = prepare(load_recipe(Path(file), {"seeds": list(map(int, seeds))}), Path(store))
    recipe, variant = run.recipe, str(run.recipe.baseline)
    vectors: dict[tuple[int, str], SparseVector] = {}
    for use, step in run.plan.uses_of("vector"):
        if use.variant == variant:
            vectors[use.seed, use.name] = load(run.store.folder(step) / VECTOR)
    like, valid = read_examples(recipe.train).texts, read_examples(recipe.valid)
    tests = {
        name: normalize(read_examples(test), like, words=False)
        for name, test in recipe.test.items()
    }
    tokenizer = load_tokenizer(recipe.base)
    for seed in recipe.seeds:
        task, source = vectors[seed, TASK], vectors[seed, recipe.source]
        scales = tune_scales(recipe.base, task, source, valid, GRID)
        print(
            f"seed {seed}: {scales.rule} ({100 * scales.score:.1f} on the source,"
            f" {100 * scales.scores[1, 1]:.1f} at 1)"
        )
        model = load_base_with_head(recipe.base, task, [source], tokenizer=tokenizer)
        length = trained_length(model, tokenizer, task)
        found: dict[str, list[float]] = {}
        for language, examples in tests.items():
            for way, added in ways(task, vectors[seed, language], source, scales.rule).items():
                with apply_temporarily(model, *added):
                    score = evaluate(CLASSIFICATION, model, tokenizer, examples, length)["macro_f1"]
                found.setdefault(way, []).append(100 * score)
        for way, scores in found.items():
            print(f"seed {seed}: {way}: {mean(scores):.1f}", flush=True)


if __name__ == "__main__":
    main()
