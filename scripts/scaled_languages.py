"""How much of a language vector helps, and which part of it: `python scripts/scaled_languages.py
RECIPE STORE OUT`.

The vectors are those that `deftx run RECIPE` has learnt with STORE. For each seed: each variant's
task vector is composed with each variant's language vectors, scaled by each of the scales, or with
a part of their tensors, and scored on labelled texts of the targets and of the source. Options:

    --seeds 0,1       seeds (default: the recipe's)
    --tasks A,B       variants whose task vectors are composed (default: all)
    --languages A,B   variants whose language vectors are composed (default: all)
    --scales 0.5,1    what language vectors are multiplied by
    --parts           score the parts of PARTS instead, each at scale 1
    --split NAME      the split to score: `valid` (default), or `train` beside the recipe's test
                      files. Labelled target data: what is chosen by it has seen target labels.

One row for each (split, seed, task, language variant, part, scale, language) is added to OUT, a
JSON-lines file; rows that are in it are not computed again.
"""

import argparse
import json
import re
from dataclasses import replace
from pathlib import Path

from deftx import read_examples
from deftx.core.apply import apply_temporarily
from deftx.core.vector import SparseVector
from deftx.experiments.recipe import TASK, load_recipe
from deftx.experiments.run import prepare
from deftx.experiments.store import VECTOR
from deftx.models.compose import load_base_with_head, trained_length
from deftx.models.tokenizers import load_tokenizer
from deftx.storage.vector_files import load
from deftx.tasks.base import evaluate
from deftx.tasks.classification import CLASSIFICATION

ALL = "all"
# Which tensors a part consists of: a regular expression of their names
PARTS = {
    "word embeddings": r"word_embeddings",
    "layers 0 to 2": r"layer\.[012]\.",
    "layers 3 to 5": r"layer\.[345]\.",
    "layers 6 to 8": r"layer\.[678]\.",
    "layers 9 to 11": r"layer\.(9|10|11)\.",
    "attention": r"attention",
    "feed-forward": r"layer\.\d+\.(intermediate|output)",
}
KEY = ("split", "seed", "task", "vectors", "part", "scale", "language")


def part_of(vector: SparseVector, part: str) -> SparseVector:
    """A vector with the tensors of one of PARTS alone, or all of it."""
    if part == ALL:
        return vector
    tensors = {name: t for name, t in vector.tensors.items() if re.search(PARTS[part], name)}
    return replace(vector, tensors=tensors)


def names(text: str) -> list[str]:
    """The names of a comma-separated list."""
    return [name.strip() for name in text.split(",")]


def arguments() -> argparse.Namespace:
    """What was typed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("store", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=names)
    parser.add_argument("--tasks", type=names)
    parser.add_argument("--languages", type=names)
    parser.add_argument("--scales", type=names, default=["0.25", "0.5", "0.75", "1"])
    parser.add_argument("--parts", action="store_true")
    parser.add_argument("--split", default="valid", choices=["train", "valid"])
    return parser.parse_args()


def main() -> None:
    """Add the rows that OUT lacks."""
    typed = arguments()
    overrides = {} if typed.seeds is None else {"seeds": list(map(int, typed.seeds))}
    run = prepare(load_recipe(typed.recipe, overrides), typed.store)
    recipe = run.recipe

    # The vectors that the run has learnt, by kind.
    tasks: dict[tuple[str, int], SparseVector] = {}
    languages: dict[tuple[str, int], dict[str, SparseVector]] = {}
    for use, step in run.plan.uses_of("vector"):
        file = run.store.folder(step) / VECTOR
        if not file.exists():
            continue
        if use.name == TASK:
            tasks[use.variant, use.seed] = load(file)
        else:
            languages.setdefault((use.variant, use.seed), {})[use.name] = load(file)
    if typed.tasks is not None:
        tasks = {key: vector for key, vector in tasks.items() if key[0] in typed.tasks}
    if typed.languages is not None:
        languages = {key: group for key, group in languages.items() if key[0] in typed.languages}

    # Labelled texts: the chosen split of every language whose test file the recipe names.
    examples = {
        name: read_examples(Path(test).with_name(f"{typed.split}.tsv"))
        for name, test in recipe.test.items()
    }

    done = set()
    if typed.out.exists():
        for line in typed.out.read_text().splitlines():
            row = json.loads(line)
            done.add(tuple(row[name] for name in KEY))
    ways = [(ALL, float(scale)) for scale in typed.scales]
    if typed.parts:
        ways = [(part, 1.0) for part in PARTS]

    tokenizer = load_tokenizer(recipe.base)
    for (task_variant, seed), task in tasks.items():
        model = load_base_with_head(recipe.base, task, tokenizer=tokenizer)
        length = trained_length(model, tokenizer, task)
        compositions: list[tuple[str | None, str, float]] = [(None, ALL, 0.0)]
        for variant, language_seed in languages:
            if language_seed == seed:
                compositions += [(variant, part, scale) for part, scale in ways]
        for added_variant, part, scale in compositions:
            for name, texts in examples.items():
                key = (typed.split, seed, task_variant, added_variant, part, scale, name)
                if key in done:
                    continue
                added = [task]
                if added_variant is not None:
                    added.append(scale * part_of(languages[added_variant, seed][name], part))
                with apply_temporarily(model, *added):
                    scores = evaluate(CLASSIFICATION, model, tokenizer, texts, length)
                row = dict(zip(KEY, key, strict=True)) | scores
                with typed.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
        print(f"seed {seed}, task of {task_variant}: done", flush=True)


if __name__ == "__main__":
    main()
