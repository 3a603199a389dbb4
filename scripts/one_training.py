"""One training in place of two, by held-out loss at equal k and equal steps in all.

    python scripts/one_training.py BASE TEXT OUT [--k 10%] [--seeds 0] [--only "spiel-ag;pafi"]

Methods with two phases take `STEPS` steps in each, or fewer in phase 1 and more in phase 2; the
others twice as many in one. Appends a row
of JSON to OUT for each method and seed: the best held-out loss (with the head as it was trained),
the held-out loss of base + φ with the base's own head, on one mask for all, and processor seconds.
Rows that are there already are not computed again. Training is that of `method_deviations.py`.
"""

import argparse
import json
import tempfile
from pathlib import Path
from time import process_time
from typing import Any

import torch
from method_deviations import TRAINING, loss_with_own_head

from deftx.config import LanguageVectorConfig, changed
from deftx.data.reading import read_text
from deftx.fit import fit_language

STEPS = 200
ONE = {"training": {"max_steps": 2 * STEPS, "min_steps": 0}}


def short_phase1(method: dict[str, Any], steps: int) -> dict[str, Any]:
    """A method with so many steps in phase 1, and what it saves there in phase 2."""
    training = {"max_steps": 2 * STEPS - steps, "min_steps": 0}
    return {**method, "phase1_steps": steps, "training": training}


METHODS: dict[str, dict[str, Any]] = {
    "lt-sft": {"method": "lt-sft"},
    "deftx": {"method": "deftx", "rank": 50},
    "lt-sft, phase 1 of 100": short_phase1({"method": "lt-sft"}, 100),
    "lt-sft, phase 1 of 50": short_phase1({"method": "lt-sft"}, 50),
    "lt-sft, phase 1 of 25": short_phase1({"method": "lt-sft"}, 25),
    "deftx, phase 1 of 100": short_phase1({"method": "deftx", "rank": 50}, 100),
    "deftx, phase 1 of 50": short_phase1({"method": "deftx", "rank": 50}, 50),
    "deftx, phase 1 of 25": short_phase1({"method": "deftx", "rank": 50}, 25),
    "spiel-ag": {"method": "spiel-ag", **ONE},
    "spiel-ag by matrix": {"method": "spiel-ag", "split": "matrix", **ONE},
    "spiel-ma": {"method": "spiel-ma", **ONE},
    "spiel-deftx": {"method": "spiel-deftx", "rank": 50, **ONE},
    "pafi": {"method": "pafi", **ONE},
    "largest-weights": {"method": "largest-weights", **ONE},
}


def main() -> None:
    """Compute what is missing in OUT."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base")
    parser.add_argument("text", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--k", default="10%")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--only", default=";".join(METHODS), help="methods, with ; between them")
    options = parser.parse_args()
    torch.set_num_threads(1)
    done = set()
    if options.out.exists():
        for line in options.out.read_text().splitlines():
            row = json.loads(line)
            done.add((row["seed"], row["method"], row["k"]))
    for seed in map(int, options.seeds.split(",")):
        with tempfile.TemporaryDirectory() as folder:  # for phase 1, which two methods share
            for method in options.only.split(";"):
                if (seed, method, options.k) not in done:
                    row = measure(options, seed, method, Path(folder))
                    with options.out.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                    print(row, flush=True)


def measure(
    options: argparse.Namespace, seed: int, method: str, checkpoint_dir: Path
) -> dict[str, Any]:
    """Learn one vector -> its row."""
    text = read_text(options.text)
    training = TRAINING.model_copy(update={"max_steps": STEPS})
    plain = LanguageVectorConfig(k=options.k, seed=seed, training=training)
    settings = changed(plain, METHODS[method])
    began = process_time()
    vector = fit_language(options.base, text, settings, checkpoint_dir=checkpoint_dir)
    seconds = process_time() - began
    log = vector.provenance.log
    phase1 = log.get("phase1")
    return {
        "seed": seed,
        "method": method,
        "k": options.k,
        "text": options.text.name,
        "start": next(iter(log.values())).start_score,
        "phase1": None if phase1 is None else phase1.best_score,
        "end": log["phase2"].best_score,
        "best_step": log["phase2"].best_step,
        "own_head": loss_with_own_head(options.base, text, settings, vector),
        "processor_seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    main()
