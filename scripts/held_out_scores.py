"""What a recipe's vectors reached on held-out data: `python scripts/held_out_scores.py RECIPE STORE
[KEY=VALUE...]`.

For each variant and seed of what `deftx run RECIPE` has learnt with STORE: the best held-out loss
of the languages' second phases, the mean of the languages, and the best score of the task's (%).
These are finer than test scores: of a language, the loss is the mean of all words that are guessed,
and no labels of the target are in it.
"""

import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean

from deftx.cli.arguments import assigned
from deftx.experiments.recipe import TASK, load_recipe
from deftx.experiments.run import prepare
from deftx.experiments.store import VECTOR
from deftx.storage.vector_files import load


def main() -> None:
    """Print the table."""
    file, store, *changes = sys.argv[1:]
    run = prepare(load_recipe(Path(file), assigned(changes)), Path(store))
    found: dict[tuple[str, int], dict[str, float]] = defaultdict(dict)
    for use, step in run.plan.uses_of("vector"):
        if run.store.done(step):
            log = load(run.store.folder(step) / VECTOR).provenance.log
            found[use.variant, use.seed][use.name] = log["phase2"].best_score
    print(f"| variant | seed | languages | held-out loss | task |\n{'| --- ' * 5}|")
    for (variant, seed), scores in found.items():
        losses = [score for name, score in scores.items() if name != TASK]
        loss = f"{mean(losses):.4f}" if losses else ""
        task = f"{100 * scores[TASK]:.1f}" if TASK in scores else ""
        print(f"| {variant} | {seed} | {len(losses)} | {loss} | {task} |")


if __name__ == "__main__":
    main()
