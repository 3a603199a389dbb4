"""How much of a language vector helps: `python scripts/scaled_languages.py RECIPE STORE OUT`.

The vectors are those that `deftx run RECIPE` has learnt with STORE. For each seed: each variant's
task vector is composed with each variant's language vectors, scaled by each of SCALES, and scored
on labelled texts of the targets and of the source. Options:

    --seeds 0,1       seeds (default: the recipe's)
    --tasks A,B       variants whose task vectors are composed (default: all but baselines)
    --languages A,B   variants whose language vectors are composed (default: all that have some)
    --split NAME      the split to score: `valid` (default), or `train` beside the recipe's test
                      files. Labelled target data: what is chosen by it has seen target labels.

One row for each (seed, task, language variant, scale, language) is added to OUT, a JSON-lines file;
rows that are in it are not computed again.
"""

import argparse
import json
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

SCALES = (0.25, 0.5, 0.75, 1.0)


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

    done: dict[str, float] = {}
    if typed.out.exists():
        for line in typed.out.read_text().splitlines():
            row = json.loads(line)
            done[json.dumps([row[name] for name in KEY])] = row["macro_f1"]

    tokenizer = load_tokenizer(recipe.base)
    for (task_variant, seed), task in tasks.items():
        model = load_base_with_head(recipe.base, task, tokenizer=tokenizer)
        length = trained_length(model, tokenizer, task)
        compositions: list[tuple[str | None, float]] = [(None, 0.0)]
        for variant, language_seed in languages:
            if language_seed == seed or seed not in {key[1] for key in languages}:
                compositions += [(variant, scale) for scale in SCALES]
        for variant, scale in compositions:
            for name, texts in examples.items():
                row = {
                    "split": typed.split,
                    "seed": seed,
                    "task": task_variant,
                    "vectors": variant,
                    "scale": scale,
                    "language": name,
                }
                if json.dumps([row[column] for column in KEY]) in done:
                    continue
                added = [task]
                if variant is not None:
                    added.append(scale * languages[variant, seed][name])
                with apply_temporarily(model, *added):
                    scores = evaluate(CLASSIFICATION, model, tokenizer, texts, length)
                row["macro_f1"] = scores["macro_f1"]
                row["accuracy"] = scores["accuracy"]
                with typed.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
        print(f"seed {seed}, task of {task_variant}: done", flush=True)


KEY = ("split", "seed", "task", "vectors", "scale", "language")


if __name__ == "__main__":
    main()
