"""Using vectors: compose, evaluate, predict, serve."""

import json
from pathlib import Path
from typing import Annotated

import typer

from deftx.cli.app import app
from deftx.cli.options import (
    FILE,
    FORMATS,
    VECTOR,
    AnyBase,
    AsJson,
    Base,
    Force,
    LabelColumn,
    Languages,
    Out,
    PairColumn,
    Rule,
    Tasks,
    TextColumn,
    option,
    path,
    source,
)
from deftx.cli.output import cell, print_json, print_scores, print_table
from deftx.errors import DeftxError, not_installed
from deftx.messages import quiet_transformers
from deftx.serving import Access, Limits


@app.command(
    epilog="Example: deftx compose --base xlm-roberta-base --task vectors/sentiment"
    " --language vectors/min --out models/sentiment-min"
)
def compose(
    base: Base,
    task: Tasks,
    out: Out,
    language: Languages = None,
    rule: Rule = "sum",
    ignore_base_mismatch: AnyBase = False,
    force: Force = False,
) -> None:
    """Save base + language vector + task vector as an ordinary model."""
    quiet_transformers()
    from deftx.cli import arguments as given
    from deftx.models.compose import compose_to

    tasks, languages = given.load_tasks(task), list(given.named_languages(language or []).values())
    compose_to(
        out,
        base,
        tasks,
        languages,
        rule=rule,
        force=force,
        ignore_base_mismatch=ignore_base_mismatch,
    )
    print(
        f"{out}: a model that transformers loads, composed of {', '.join([*task, *(language or [])])}"
    )


@app.command(
    epilog="Example: deftx merge --task vectors/sentiment --language vectors/min"
    " --out vectors/sentiment-min"
)
def merge(
    out: Out,
    task: Annotated[
        list[str] | None,
        option(
            "Task vector: a folder or hub id. Of several, the first one's head is used.",
            "--task",
            **VECTOR,
        ),
    ] = None,
    language: Languages = None,
    rule: Rule = "sum",
    force: Force = False,
) -> None:
    """Save the sum of vectors, or what another rule makes of them, as one vector."""
    from deftx.cli import arguments as given
    from deftx.core.merge import merge as merge_vectors
    from deftx.storage.atomic_files import check_target
    from deftx.storage.vector_files import save

    check_target(out, force=force)
    tasks = given.load_tasks(task or [])
    languages = list(given.named_languages(language or []).values())
    head = 0 if tasks and tasks[0].head else None
    vector = merge_vectors(rule, task=tasks, languages=languages, head=head)
    save(vector, out, force=force)
    print(
        f"{out}: one vector, k = {vector.k:,}, from {', '.join([*(task or []), *(language or [])])}"
    )


@app.command(
    epilog="Example: deftx evaluate --base xlm-roberta-base --task vectors/sentiment"
    " --language min=vectors/min --test min=min.tsv --language ace=vectors/ace --test ace=ace.tsv"
)
def evaluate(
    base: Base,
    task: Tasks,
    test: Annotated[
        list[str],
        option(
            "Labelled data; one for each language, NAME= before it where there are several.",
            metavar="[NAME=]FILE",
        ),
    ],
    language: Languages = None,
    rule: Rule = "sum",
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    ignore_base_mismatch: AnyBase = False,
    as_json: AsJson = False,
) -> None:
    """Score a task vector with each of the language vectors, or with none."""
    quiet_transformers()
    from deftx.cli import actions as commands
    from deftx.cli import arguments as given
    from deftx.data.examples import ColumnNames
    from deftx.models.compose import task_type

    languages, tasks = given.named_languages(language or []), given.load_tasks(task)
    columns = ColumnNames(text=text_column, pair=pair_column, label=label_column)
    labels = tasks[0].head.labels if tasks[0].head else ()
    tests = given.tests_of(test, list(languages), task_type(tasks[0]), columns, labels)
    rows = commands.evaluations(
        base, tasks, languages, tests, rule=rule, ignore_base_mismatch=ignore_base_mismatch
    )
    if as_json:
        print_json(rows)
    else:
        print_scores(rows)


@app.command(
    "evaluate-language",
    epilog="Example: deftx evaluate-language --base xlm-roberta-base --language min=vectors/min --text held-out.txt",
)
def evaluate_language(
    base: Base,
    text: Annotated[
        list[str],
        option(
            f"Text that no vector was learnt from ({FORMATS}); may be repeated.",
            metavar="FILE",
            parser=source,
        ),
    ],
    language: Languages = None,
    column: Annotated[
        str, option("Column of texts, where a file has columns.", metavar="NAME")
    ] = "text",
    head: Annotated[
        str | None,
        option(
            "Model whose language modelling head is used where the base has none.",
            metavar="MODEL",
            parser=source,
        ),
    ] = None,
    ignore_base_mismatch: AnyBase = False,
    as_json: AsJson = False,
) -> None:
    """How well a base knows a text, by itself and with each of the language vectors: less is
    better."""
    quiet_transformers()
    from deftx.cli import actions as commands
    from deftx.cli import arguments as given
    from deftx.data.examples import read_text

    languages = given.named_languages(language or [])
    rows = commands.language_losses(
        base,
        languages,
        read_text(*text, column=column),
        head,
        ignore_base_mismatch=ignore_base_mismatch,
    )
    if as_json:
        print_json(rows)
        return
    cells = []
    for row in rows:
        change = f"{row['loss'] - rows[0]['loss']:+.4f}" if row["language"] else ""
        cells.append(
            [
                row["language"] or "(none)",
                f"{row['loss']:.4f}",
                change,
                f"{row['bits_by_character']:.3f}",
            ]
        )
    print_table(["language", "nats per token", "change", "bits per character"], cells)


@app.command(epilog="Example: deftx predict --model models/sentiment-min reviews.txt")
def predict(
    data: Annotated[str, typer.Argument(help=f"Texts ({FORMATS}).", **FILE)],
    model: Annotated[
        str | None,
        option("Composed model, instead of the next three.", metavar="FOLDER", parser=source),
    ] = None,
    base: Annotated[
        str | None, option("Pretrained model: a folder or hub id.", metavar="MODEL", parser=source)
    ] = None,
    task: Annotated[str | None, option("Task vector: a folder or hub id.", **VECTOR)] = None,
    language: Languages = None,
    rule: Rule = "sum",
    out: Annotated[
        Path | None,
        option("File to write, instead of standard output.", metavar="FILE", parser=path),
    ] = None,
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    ignore_base_mismatch: AnyBase = False,
    with_text: Annotated[
        bool,
        option("Write each text, and what was read beside it, before its answer.", "--with-text"),
    ] = False,
    as_json: Annotated[bool, option("Write JSON lines instead of TSV.", "--json")] = False,
    force: Force = False,
) -> None:
    """Label texts, or tag words, or answer questions: a line for each, in the order of the
    input."""
    if bool(model) == bool(base and task) or (model and (base or task or language)):
        raise DeftxError("say what predicts: either --model, or --base and --task (and --language)")
    from deftx.storage.atomic_files import check_file, write_text

    check_file(out, force=force)
    quiet_transformers()
    from deftx.cli import actions as commands
    from deftx.cli import arguments as given
    from deftx.data.examples import ColumnNames
    from deftx.models.compose import task_type
    from deftx.models.heads import recorded_task

    phi = given.load_tasks([task])[0] if task else None
    kind = task_type(phi) if phi else recorded_task(str(model))
    examples = kind.read(
        data, ColumnNames(text=text_column, pair=pair_column).over(kind.columns), False
    )
    if phi is None:
        found = commands.predictions_of_model(str(model), examples)
    else:
        languages = list(given.named_languages(language or []).values())
        found = commands.predictions_of_vectors(
            str(base),
            phi,
            languages,
            examples,
            rule=rule,
            ignore_base_mismatch=ignore_base_mismatch,
        )
    if with_text:
        options = (
            examples.parts if kind.required_columns.get("parts") else None
        )  # words to be tagged are the text itself
        columns = {"input": examples.texts, "pair": examples.pairs, "options": options}
        shown = {name: column for name, column in columns.items() if column}
        rows = zip(*shown.values(), strict=True)
        found = [
            dict(zip(shown, row, strict=True)) | answer
            for row, answer in zip(rows, found, strict=True)
        ]
    if as_json:
        lines = [json.dumps(answer, ensure_ascii=False) for answer in found]
    else:
        lines = ["\t".join(found[0]), *("\t".join(map(cell, answer.values())) for answer in found)]
    content = "".join(f"{line}\n" for line in lines)
    if out:
        write_text(out, content)
    else:
        print(content, end="")


@app.command(
    epilog="Example: deftx serve --base xlm-roberta-base --task vectors/sentiment"
    " --language min=vectors/min --language ace=vectors/ace"
)
def serve(
    base: Base,
    task: Tasks,
    language: Languages = None,
    rule: Rule = "sum",
    spelling: Annotated[
        list[str] | None,
        option(
            "How a language's texts are read: a file of `deftx data respell --spelling`.",
            metavar="[NAME=]FILE",
        ),
    ] = None,
    host: Annotated[
        str, option("Address to listen at; 0.0.0.0 for all of this machine's.", metavar="HOST")
    ] = ("127.0.0.1"),
    port: Annotated[
        int, option("Port to listen at; 0 for any that is free.", min=0, max=65535)
    ] = 8000,
    max_texts: Annotated[int, option("Most texts in a request.", min=1)] = Limits.texts,
    max_chars: Annotated[int, option("Most characters in a text.", min=1)] = Limits.chars,
    max_body: Annotated[int, option("Most bytes in a request.", min=1)] = Limits.body,
    max_waiting: Annotated[
        int, option("Most texts that wait for an answer.", min=1)
    ] = Limits.waiting,
    max_connections: Annotated[
        int, option("Most connections at once.", min=1)
    ] = Limits.connections,
    max_seconds: Annotated[
        float,
        option(
            "Most seconds that a client takes to send a request, or to read its answer.", min=0.1
        ),
    ] = Limits.seconds,
    allowed_host: Annotated[
        list[str] | None,
        option(
            "Name under which clients may ask, such as example.org or *.example.org; may be repeated. Without it this"
            " machine's usual names if --host is 127.0.0.1, else any.",
            metavar="NAME",
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        option(
            "File whose first line holds the token that clients send in the header Authorization: Bearer TOKEN.",
            metavar="FILE",
            parser=path,
        ),
    ] = None,
    ignore_base_mismatch: AnyBase = False,
) -> None:
    """Answer requests over HTTP in many languages, all from one loaded base; a page to try it is at
    /."""
    quiet_transformers()
    try:
        from deftx.serving.app import serve as answer
    except ModuleNotFoundError as error:
        raise not_installed(error, "serve") from error
    from deftx.cli import actions as commands
    from deftx.cli import arguments as given
    from deftx.data.tables import lines_of

    limits = Limits(max_texts, max_chars, max_body, max_waiting, max_connections, max_seconds)
    token = None if token_file is None else lines_of(token_file)[0].strip()
    access = Access(tuple(allowed_host or ()), token)
    tasks, languages = given.load_tasks(task), given.named_languages(language or [])
    spellings = given.spellings_of(spelling or [], list(languages))
    switcher = commands.switcher_for(
        base, tasks, languages, spellings, rule=rule, ignore_base_mismatch=ignore_base_mismatch
    )
    answer(switcher, limits, host, port, access)
