"""Vectors themselves: what they are, sharing them, moving them from and to other tools, and whether
they fit."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from deftx.cli.app import app
from deftx.cli.options import (
    VECTOR,
    AsJson,
    Force,
    K,
    Out,
    option,
    path,
    source,
)
from deftx.cli.output import print_findings, print_json, print_vectors
from deftx.messages import quiet_hub, quiet_transformers

MISFIT = 1  # exit code


@app.command(epilog="Example: deftx inspect vectors/min vectors/ind")
def inspect(
    vector: Annotated[list[str], typer.Argument(help="Vectors: folders or hub ids.", **VECTOR)],
    as_json: AsJson = False,
) -> None:
    """Show where vectors come from, what they change in which layer, and how much they overlap."""
    quiet_hub()
    from deftx.storage.vector_files import load

    print_vectors(vector, [load(name) for name in vector], as_json=as_json)


@app.command(
    epilog="Example: deftx doctor --base xlm-roberta-base --vector vectors/min"
    " --vector vectors/sentiment"
)
def doctor(
    base: Annotated[
        str | None, option("Base to examine: a folder or hub id.", metavar="MODEL", parser=source)
    ] = None,
    vector: Annotated[
        list[str] | None, option("Vector that is to fit the base; may be repeated.", **VECTOR)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what is installed, what a training would run on, and whether vectors fit a base: if not,
    exit code 1."""
    quiet_transformers()
    from deftx.cli.doctor import examine

    findings = examine(base, vector or [])
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        print_findings(findings)
    if not all(finding.fine for finding in findings):
        raise typer.Exit(MISFIT)


@app.command(epilog="Example: deftx convert pytorch_diff.bin vectors/min --base xlm-roberta-base")
def convert(
    old: Annotated[
        str,
        typer.Argument(
            help="Vector: a folder, LT-SFT's file, or a hub id.", metavar="OLD", parser=source
        ),
    ],
    new: Annotated[Path, typer.Argument(help="Folder to write.", metavar="NEW", parser=path)],
    to: Annotated[
        str, option("deftx, lt-sft, peft, model or mergekit.", metavar="FORMAT")
    ] = "deftx",
    base: Annotated[
        str | None, option("Pretrained model of the vector.", metavar="MODEL", parser=source)
    ] = None,
    label: Annotated[
        list[str] | None,
        option("Name of an output of the head, in order, where OLD has none.", metavar="NAME"),
    ] = None,
    kind: Annotated[
        str | None,
        option(
            "Kind of task of the head, if not classification, where OLD does not tell.",
            metavar="NAME",
        ),
    ] = None,
    force: Force = False,
) -> None:
    """Convert a vector from LT-SFT's format or PEFT's SHiRA, or to them, a whole model, or input
    for mergekit."""
    quiet_transformers()
    from deftx.interop import convert as conversion

    vector = conversion.convert(old, new, to, base=base, labels=label or [], kind=kind, force=force)
    hint = ""
    if not vector.provenance.base_fingerprint:
        hint = "; not bound to a base: give --base to check and record it"
    print(f"{new}: {to}, from a vector of k = {vector.k:,}{hint}")


@app.command(
    epilog="Example: deftx extract models/finetuned xlm-roberta-base --k 5% --out vectors/finetuned"
)
def extract(
    finetuned: Annotated[
        str, typer.Argument(help="Model: a folder or hub id.", metavar="MODEL", parser=source)
    ],
    base: Annotated[
        str, typer.Argument(help="What it was fine-tuned from.", metavar="BASE", parser=source)
    ],
    out: Out,
    k: K = None,
    rank: Annotated[
        str | None,
        option(
            "Denoise first, with this rank: a share (90%), a number or a rule (gavish-donoho).",
            metavar="RANK",
        ),
    ] = None,
    force: Force = False,
) -> None:
    """Save the difference of two checkpoints as a vector: all of it, or its k largest entries."""
    quiet_transformers()
    from deftx.cli.actions import check_free
    from deftx.models.extract import extract as extract_vector
    from deftx.storage.vector_files import save

    check_free(out, force=force)
    vector = extract_vector(finetuned, base, k=k, rank=rank)
    save(vector, out, force=force)
    print(f"{out}: {vector.provenance.kind} vector, k = {vector.k:,}")
