"""Write the vectors of tests/fixtures: what this version of the format looks like, to be read for
ever.

    python scripts/write_fixtures.py

A fixture is never written again: a new format version gets a folder of its own beside the old one.
"""

import json
import sys
import tempfile
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from formula import checksum, save_formula_base, weights_of
from tiny import sentences

import deftx
from deftx.storage.manifest import VERSION

FOLDER = Path(__file__).parents[1] / "tests" / "fixtures" / f"format-{VERSION}"
TRAINING = {
    "max_steps": 8,
    "evaluate_every": 4,
    "length": 16,
    "learning_rate": 1e-2,
    "precision": "fp32",
}


def vectors() -> dict[str, deftx.SparseVector]:
    """A language vector in each type of values, and a task vector with its head."""
    training = deftx.LanguageTrainingConfig(**TRAINING, min_steps=0)
    language = deftx.fit_language(
        "base", sentences(40), deftx.LanguageVectorConfig(k="4%", training=training)
    )
    data = [
        deftx.Examples(texts, labels=[t[-1] for t in texts])
        for texts in (sentences(40, 1), sentences(40, 2))
    ]
    task = deftx.fit_task(
        "base",
        *data,
        deftx.TaskVectorConfig(training=deftx.TaskTrainingConfig(**TRAINING)),
        source=language,
    )
    return {
        "language": language,
        "language-float16": in_type(language, torch.float16),
        "language-bfloat16": in_type(language, torch.bfloat16),
        "task": task,
    }


def in_type(vector: deftx.SparseVector, dtype: torch.dtype) -> deftx.SparseVector:
    """The vector with its values in another type."""
    tensors = {
        name: entries.map(lambda values: values.to(dtype))
        for name, entries in vector.tensors.items()
    }
    return replace(vector, tensors=tensors)


def main() -> None:
    """Fit the vectors, save them, and note what they hold and what the composed models are."""
    FOLDER.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as place, chdir(place):
        save_formula_base(Path("base"))
        made = vectors()
        sums = {name: checksum(weights_of(vector)) for name, vector in made.items()}
        for name, vector in made.items():
            deftx.save(vector, FOLDER / name)
        for name in made:
            language = () if name == "task" else made[name]
            model = deftx.compose("base", made["task"], language)
            sums[f"task + {name}" if language else "task alone"] = checksum(
                dict(model.named_parameters())
            )
    (FOLDER / "checksums.json").write_text(json.dumps(sums, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
