"""What each deviation from LT-SFT's training does to a language vector, by held-out loss.

    python scripts/method_deviations.py BASE CORPORA OUT [--languages ace,mad] [--seeds 0,1,2]
    [--settings ...]

For every language and seed it learns vectors by LT-SFT and DeFT-X under each of SETTINGS, which
differ from the first in one thing, and appends a row of JSON to OUT: the best held-out loss of both
phases (with the head as it was trained), and the held-out loss of base + φ with the base's own
head, on one mask for all settings. Rows that are there already are not computed again. CORPORA
holds a text for each language, LANGUAGE.txt. Vectors are kept beside OUT.
"""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import torch

import deftx.training.phases as phases
from deftx.config import LanguageTrainingConfig, LanguageVectorConfig, changed
from deftx.core.apply import apply
from deftx.data.reading import read_text
from deftx.fit import fit_language
from deftx.models.loading import load_language_model
from deftx.models.tokenizers import load_tokenizer
from deftx.objectives.masked_lm import masked_lm
from deftx.storage.vector_files import save
from deftx.training.random_streams import derived_seed

TRAINING = LanguageTrainingConfig(
    learning_rate=4e-4,
    batch_size=4,
    length=96,
    max_steps=200,
    min_steps=0,
    evaluate_every=50,
    held_out=0.05,
    held_out_blocks=100,
    dropout=0.1,
    replacements="corpus",
    lm_head="trained",
    precision="fp32",
)
METHODS: dict[str, dict[str, Any]] = {
    "LT-SFT": {"method": "lt-sft"},
    "DeFT-X": {"method": "deftx", "rank": 50},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "as LT-SFT but for replacements": {},
    "head frozen": {"lm_head": "frozen"},
    "replacements from the vocabulary": {"replacements": "vocabulary"},
    "dropout 0": {"dropout": 0.0},
    "phase 2 replays phase 1": {},
}
REPLAY = "phase 2 replays phase 1"


@contextmanager
def replayed_random_numbers() -> Iterator[None]:
    """Within the block phase 2 draws the random numbers of phase 1, as deftx did once."""
    before = phases.derived_seed
    phases.derived_seed = lambda seed, purpose, number: derived_seed(seed, purpose, 1)
    try:
        yield
    finally:
        phases.derived_seed = before


def main() -> None:
    """Compute what is missing in OUT."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base")
    parser.add_argument("corpora", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--languages", default="ace,mad,min,ban,bjn")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--settings", default=",".join(SETTINGS))
    parser.add_argument("--k", default="10%")
    parser.add_argument("--set", default="{}", help="changes of the training for all, as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    done = set()
    if options.out.exists():
        for line in options.out.read_text().splitlines():
            row = json.loads(line)
            done.add((row["seed"], row["language"], row["setting"], row["method"]))
    for seed in map(int, options.seeds.split(",")):
        for language in options.languages.split(","):
            for setting in SETTINGS:
                if setting not in options.settings.split(","):
                    continue
                for method in METHODS:
                    if (seed, language, setting, method) not in done:
                        measure(options, seed, language, setting, method)


def measure(
    options: argparse.Namespace, seed: int, language: str, setting: str, method: str
) -> None:
    """Learn one vector and append its row."""
    text = read_text(options.corpora / f"{language}.txt")
    training = {**json.loads(options.set), **SETTINGS[setting]}
    plain = LanguageVectorConfig(k=options.k, seed=seed, training=TRAINING)
    settings = changed(changed(plain, METHODS[method]), {"training": training})
    checkpoint_dir = options.out.parent / "work" / f"{seed}-{language}-{setting}".replace(" ", "_")
    start = monotonic()
    if setting == REPLAY:
        checkpoint_dir = (
            options.out.parent
            / "work"
            / f"{seed}-{language}-{next(iter(SETTINGS))}".replace(" ", "_")
        )
        with replayed_random_numbers():
            vector = fit_language(options.base, text, settings, checkpoint_dir=checkpoint_dir)
    else:
        vector = fit_language(options.base, text, settings, checkpoint_dir=checkpoint_dir)
    seconds = monotonic() - start
    folder = (
        options.out.parent / "vectors" / f"{seed}-{language}-{setting}-{method}".replace(" ", "_")
    )
    save(vector, folder, force=True)
    log = vector.provenance.log
    row = {
        "seed": seed,
        "language": language,
        "setting": setting,
        "method": method,
        "start": log["phase1"].start_score,
        "phase1": log["phase1"].best_score,
        "phase2": log["phase2"].best_score,
        "phase2_step": log["phase2"].best_step,
        "own_head": loss_with_own_head(options.base, text, settings, vector),
        "seconds": round(seconds, 1),
        "training": settings.training.model_dump(mode="json", exclude_unset=True),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(
        row["seed"],
        language,
        setting,
        method,
        row["start"],
        row["phase1"],
        row["phase2"],
        row["own_head"],
        flush=True,
    )


@torch.no_grad()
def loss_with_own_head(
    base: str, text: list[str], settings: LanguageVectorConfig, vector: Any
) -> dict[str, float]:
    """The held-out loss of the base and of base + φ with the base's own head, on a mask that all
    settings share."""
    training = settings.training.model_copy(update={"replacements": "vocabulary"})
    objective = masked_lm(text, load_tokenizer(base), training, training.length, settings.seed)
    model = load_language_model(base)
    model.eval()
    before = objective.validate(model, 16)["loss"]
    apply(model, vector)
    return {"base": before, "base + φ": objective.validate(model, 16)["loss"]}


if __name__ == "__main__":
    main()
