"""`deftx transfer`: the whole method in one command."""

import shlex
from typing import TYPE_CHECKING, Annotated

from deftx.cli.app import app
from deftx.cli.options import (
    FORMATS,
    LABELLED,
    AsJson,
    Base,
    Force,
    Kind,
    LabelColumn,
    Method,
    Out,
    PairColumn,
    Rank,
    TextColumn,
    option,
    source,
)
from deftx.cli.output import print_json, print_plan
from deftx.messages import program_name, quiet_transformers, say

if TYPE_CHECKING:
    from deftx.experiments.run import Prepared
    from deftx.experiments.transfer import Outcome, Request


@app.command(
    epilog="Example: deftx transfer --base xlm-roberta-base --train train.tsv --source ind=ind.txt"
    " --target min=min.txt --test min=test.tsv --out transfer"
)
def transfer(
    base: Base,
    train: Annotated[
        str,
        option(
            f"Labelled data of the source language ({LABELLED}).", metavar="FILE", parser=source
        ),
    ],
    out: Out,
    source_: Annotated[
        str | None,
        option(f"Text of the source language ({FORMATS}).", "--source", metavar="[NAME=]FILE"),
    ] = None,
    target: Annotated[
        list[str] | None,
        option(
            "Text of a target language; may be repeated. Without NAME it is called after its file.",
            metavar="[NAME=]FILE",
        ),
    ] = None,
    test: Annotated[
        list[str] | None,
        option("Labelled data of a target, to score on; may be repeated.", metavar="[NAME=]FILE"),
    ] = None,
    valid: Annotated[
        str | None,
        option(
            "Labelled data of the source on which the best step is chosen; without it, a tenth of"
            " --train.",
            metavar="FILE",
            parser=source,
        ),
    ] = None,
    source_vector: Annotated[
        str | None,
        option(
            "Finished vector of the source language, in place of its text.", metavar="[NAME=]VECTOR"
        ),
    ] = None,
    target_vector: Annotated[
        list[str] | None,
        option(
            "Finished vector of a target, in place of learning it; may be repeated.",
            metavar="[NAME=]VECTOR",
        ),
    ] = None,
    preset: Annotated[
        str,
        option(
            "Settings to start from: quick, standard, paper-sentiment or paper-nli.", metavar="NAME"
        ),
    ] = "standard",
    kind: Kind = None,
    method: Method = None,
    rank: Rank = None,
    seed: Annotated[int, option("Decides everything random.", metavar="NUMBER")] = 0,
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    set_: Annotated[
        list[str] | None,
        option(
            "Any key of the recipe, such as language.training.max_steps=500 or contamination=stop.",
            "--set",
            metavar="KEY=VALUE",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        option(
            "Print the plan, and about what time, memory and disk it takes; learn nothing.",
            "--dry-run",
        ),
    ] = False,
    as_json: AsJson = False,
    force: Force = False,
) -> None:
    """Make a model for a language without labelled data: train what is missing, and say whether it
    helped."""
    quiet_transformers()
    from deftx.cli.arguments import assigned, transfer_request
    from deftx.experiments import transfer as transfers

    columns = {"text": text_column, "pair": pair_column, "label": label_column}
    changes = assigned([*_changes(kind, method, rank, seed, columns), *(set_ or [])])
    request = transfer_request(
        base,
        train,
        valid,
        source_,
        source_vector,
        target or [],
        target_vector or [],
        test or [],
        preset,
        changes,
    )

    def show(run: "Prepared") -> None:
        if dry_run or not as_json:
            print_plan(run, as_json=as_json)

    if dry_run:
        transfers.plan(request, out, show, force=force)
        return
    outcome = transfers.transfer(
        request, out, force=force, ready=show, said=lambda line, *_: say(line)
    )
    if as_json:
        print_json(outcome.about())
    else:
        print(f"\n{outcome.markdown()}\n{_next(request, outcome)}")


def _changes(
    kind: str | None,
    method: str | None,
    rank: str | None,
    seed: int,
    columns: dict[str, str | None],
) -> list[str]:
    """What options change in the recipe, as KEY=VALUE."""
    changes = [f"seeds=[{seed}]"]
    for name, value in {"method": method, "rank": rank}.items():
        if value is not None:
            changes += [f"language.{name}={value}", f"task.{name}={value}"]
    if kind is not None:
        changes.append(f"task.task={kind}")
    for name, column in columns.items():
        if column is not None:
            changes.append(f"columns.{name}={column}")
    return changes


def _next(request: "Request", outcome: "Outcome") -> str:
    """Where things are, and what to type next."""
    out, target = outcome.folder, request.targets[0]
    models = ", ".join(str(out / "models" / name) for name in request.targets)
    lines = [f"A model that transformers loads for each target: {models}"]
    report = out / "report" / "report.html"
    if report.is_file():
        lines.append(f"The report: {report}")
    else:
        lines.append(
            "For a report as a page: pip install 'deftx[report]', and the same command again"
        )
    model = str(out / "models" / target)
    commands = [["predict", "--model", model, "new.txt"]]
    if not outcome.scores:
        task = str(out / "vectors" / "task")
        language = f"{target}={out / 'vectors' / target}"
        vectors = ["--base", request.base, "--task", task, "--language", language]
        commands.append(["evaluate", *vectors, "--test", f"{target}=test.tsv"])
    lines.append("Next:")
    lines += [f"  {program_name()} {shlex.join(command)}" for command in commands]
    return "\n".join(lines)
