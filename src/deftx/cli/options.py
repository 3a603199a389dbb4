"""The options that commands share, and how paths among them are read."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer


def path(text: str) -> Path:
    """A path that may begin with ~."""
    return Path(os.path.expanduser(text))  # which leaves an unknown ~name as it is


def source(text: str) -> str:
    """A path that may begin with ~, or a hub id."""
    return os.path.expanduser(text)


def option(help: str, *names: str, **settings: Any) -> Any:
    """An option of a command; its name is that of the parameter where none is given."""
    return typer.Option(*names, help=help, **settings)


# help texts are Rich's markup, which would read `[@REVISION]` as a tag and leave it out
_HUB_DATA = r"hub:NAME\[@REVISION][:CONFIG][:SPLIT]"
FORMATS = f"TSV, CSV, JSONL, Parquet, plain text or {_HUB_DATA}"
LABELLED = f"TSV, CSV, JSONL, Parquet, .conllu for tags and trees, or {_HUB_DATA}"
FILE = {"metavar": "FILE", "parser": source}
VECTOR = {"metavar": "VECTOR", "parser": source}  # a folder, or USER/NAME[@REVISION] on the hub

DryRun = Annotated[
    bool,
    option("Only print an estimate of time, memory and disk, from a few timed steps.", "--dry-run"),
]
Base = Annotated[
    str, option("Pretrained model: a folder or hub id.", metavar="MODEL", parser=source)
]
Out = Annotated[Path, option("Folder to write.", metavar="FOLDER", parser=path)]
Force = Annotated[bool, option("Replace an existing output.", "--force")]
AnyBase = Annotated[
    bool,
    option("Continue although the vectors were made on other weights.", "--ignore-base-mismatch"),
]
AsJson = Annotated[bool, option("Print JSON.", "--json")]
Tasks = Annotated[
    list[str],
    option(
        "Task vector: a folder or hub id. Of several, the first one's head is used.",
        "--task",
        **VECTOR,
    ),
]
Rule = Annotated[
    str,
    option(
        "How vectors are combined: sum, scaled, ties, dare, agree, layers, ...",
        metavar="NAME[:KEY=VALUE,...]",
    ),
]
Languages = Annotated[
    list[str] | None,
    option(
        "Language vector; may be repeated. Without NAME it is called after its folder.",
        metavar="[NAME=]VECTOR",
    ),
]
Changes = Annotated[
    list[str] | None,
    option("Any setting, such as training.batch_size=4.", "--set", metavar="KEY=VALUE"),
]
Preset = Annotated[
    str | None,
    option("Settings to start from; without it the paper's, with k as a share.", metavar="NAME"),
]
Method = Annotated[
    str | None,
    option(
        "deftx (the default), lt-sft, or random (any k entries); without phase 1: pafi,"
        " largest-weights, spiel-ag, spiel-ma or spiel-deftx.",
        metavar="NAME",
    ),
]
Rank = Annotated[
    str | None,
    option(
        "What denoising keeps: a share of variance (90%), a rank (100) or a rule"
        " (gavish-donoho, split-half).",
        metavar="RANK",
    ),
]
K = Annotated[
    str | None,
    option("Entries of the vector: a count (7.6M) or a share (2.8%).", "--k", metavar="K"),
]
Keep = Annotated[
    str | None,
    option(
        "Share of each matrix's entries added back after the low-rank approximation (0.05).",
        metavar="SHARE",
    ),
]
Seed = Annotated[str | None, option("Decides everything random.", metavar="NUMBER")]
Kind = Annotated[
    str | None,
    option(
        "Kind of task: classification (the default), tagging, ner, parsing, question-answering,"
        " multiple-choice, regression, generation.",
        metavar="NAME",
    ),
]
TextColumn = Annotated[
    str | None,
    option("Column of texts (default: the task's usual one, such as `text`).", metavar="NAME"),
]
PairColumn = Annotated[
    str | None,
    option("Name of the second input column (text pair, context or options).", metavar="NAME"),
]
LabelColumn = Annotated[
    str | None, option("Column of labels, such as label, tags or answers.", metavar="NAME")
]
