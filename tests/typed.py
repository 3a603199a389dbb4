"""What the tests of the commands share: typing one in this process, and a home with what a user's
first ones make."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from tiny import save_base, sentences
from tiny_run import labelled
from transformers import AutoModel

from deftx.cli import main
from deftx.models.tokenizers import load_tokenizer

TRAINING = ["max_steps=2", "evaluate_every=1", "length=16", "batch_size=8", "learning_rate=1e-2"]
QUICK = ["--k", "5%", *(part for setting in TRAINING for part in ("--set", f"training.{setting}"))]
LANGUAGE = [*QUICK, "--set", "training.min_steps=0"]

# in a folder beside a home
FIT_LANGUAGE = [
    "fit",
    "language",
    "--base",
    "home/base",
    "--text",
    "home/min.txt",
    "--out",
    "new",
    *LANGUAGE,
]
FIT_TASK = (
    "fit task --base home/base --train home/train.tsv --valid home/valid.tsv --out new".split()
    + QUICK
)
TWO = (
    "--train a=home/train.tsv --train b=home/test.tsv --valid a=home/valid.tsv --valid"
    " b=home/valid.tsv"
)
COMPOSE = "compose --base home/base --task home/task --language home/min --out new".split()
EVALUATE = (
    "evaluate --base home/base --task home/task --language min=home/min --test home/test.tsv"
).split()


@dataclass(frozen=True)
class Done:
    """A command's exit code, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The one line on standard error besides progress bars."""
        (line,) = [line for line in self.err.splitlines() if line.strip() and "━" not in line]
        return line


def typed(*arguments: object) -> int:
    """The exit code of a command."""
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return int(end.value.code or 0)


def with_options(command: list[str], options: str) -> list[str]:
    """A command with `options` in place of those of the same names."""
    words = options.split()
    names = {word for word in words if word.startswith("--")} - {"--set"}
    kept = [
        word
        for before, word in zip(["", *command], command, strict=False)
        if not {before, word} & names
    ]
    return [*kept, *words]


def make_home(home: Path) -> Path:
    """The folder `home` with data, two bases, and what the first commands of a user make of
    them."""
    save_base(home / "base")
    save_base(home / "other", seed=1)
    AutoModel.from_pretrained(home / "base").save_pretrained(home / "encoder")
    load_tokenizer(home / "base").save_pretrained(home / "encoder")
    for number, name in enumerate(["ind", "min"]):
        (home / f"{name}.txt").write_text("\n".join(sentences(30, number)) + "\n")
    for number, name in enumerate(["train", "valid", "test"]):
        labelled(home / f"{name}.tsv", number, count=24)
    base = ["--base", home / "base"]
    for name in ["ind", "min"]:
        assert (
            typed(
                "fit",
                "language",
                *base,
                "--text",
                home / f"{name}.txt",
                "--out",
                home / name,
                *LANGUAGE,
            )
            == 0
        )
    data = ["--train", home / "train.tsv", "--valid", home / "valid.tsv", "--source", home / "ind"]
    assert typed("fit", "task", *base, *data, "--out", home / "task", *QUICK) == 0
    vectors = ["--task", home / "task", "--language", home / "min"]
    assert typed("compose", *base, *vectors, "--out", home / "model") == 0
    return home


def tree(folder: Path) -> dict[str, bytes]:
    """The content of every file below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
