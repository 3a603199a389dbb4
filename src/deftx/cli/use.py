"""Using vectors: compose, evaluate, predict, serve."""

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
from deftx.cli.output import print_json, print_language_losses, print_scores
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
    from deftx.cli.arguments import load_tasks, named_languages
    from deftx.models.compose import compose_to

    tasks = load_tasks(task)
    compose_to(
        out,
        base,
        tasks,
        list(named_languages(language or []).values()),
        rule=rule,
        force=force,
        ignore_base_mismatch=ignore_base_mismatch,
    )
    vectors = ", ".join([*task, *(language or [])])
    loader = "deftx" if tasks[0].task == "parsing" else "transformers"
    print(f"{out}: a model that {loader} loads, composed of {vectors}")


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
    from deftx.cli.arguments import load_tasks, named_languages
    from deftx.core.merge import merge as merge_vectors
    from deftx.storage.atomic_files import check_target
    from deftx.storage.vector_files import save

    check_target(out, force=force)
    tasks = load_tasks(task or [])
    languages = list(named_languages(language or []).values())
    head = 0 if tasks and tasks[0].head else None
    vector = merge_vectors(rule, task=tasks, language=languages, head=head)
    save(vector, out, force=force)
    terms = ", ".join([*(task or []), *(language or [])])
    print(f"{out}: one vector, k = {vector.k:,}, from {terms}")


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
            "Labelled data, one file for each language; with several languages, NAME=FILE.",
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
    from deftx.cli.actions import evaluations
    from deftx.cli.arguments import load_tasks, named_languages, tests_of
    from deftx.data.examples import ColumnNames
    from deftx.models.compose import task_type

    languages = named_languages(language or [])
    tasks = load_tasks(task)
    columns = ColumnNames(text=text_column, pair=pair_column, label=label_column)
    labels = tasks[0].head.labels if tasks[0].head else ()
    tests = tests_of(test, list(languages), task_type(tasks[0]), columns, labels)
    rows = evaluations(
        base, tasks, languages, tests, rule=rule, ignore_base_mismatch=ignore_base_mismatch
    )
    if as_json:
        print_json(rows)
    else:
        print_scores(rows)


@app.command(
    "evaluate-language",
    epilog="Example: deftx evaluate-language --base xlm-roberta-base --language min=vectors/min"
    " --text held-out.txt",
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
    """Measure how well a base predicts a text, by itself and with each language vector: a smaller
    loss is better.

    Every row uses the base's own language modelling head. Training a language vector trains a copy
    of that head too and throws it away at the end, so the gain shown here is usually smaller than
    the fall of the held-out loss that `deftx fit language` prints.
    """
    quiet_transformers()
    from deftx.cli.actions import language_losses
    from deftx.cli.arguments import named_languages
    from deftx.data.reading import read_text

    rows = language_losses(
        base,
        named_languages(language or []),
        read_text(*text, column=column),
        head,
        ignore_base_mismatch=ignore_base_mismatch,
    )
    if as_json:
        print_json(rows)
    else:
        print_language_losses(rows)


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
        option("Write each text before its answer, and its second text or options.", "--with-text"),
    ] = False,
    as_json: Annotated[
        bool, option("Write JSON lines instead of TSV, or of CoNLL-U.", "--json")
    ] = False,
    force: Force = False,
) -> None:
    """Label texts, tag words or answer questions: a line for each line of input, in its order.

    A parser writes CoNLL-U: all of a .conllu file that it reads, with other heads and relations.

    Lines are written as they are finished. With --out they are in OUT.part until the last one is
    there, and stay there when the command is stopped.
    """
    if bool(model) == bool(base and task) or (model and (base or task or language)):
        raise DeftxError("say what predicts: either --model, or --base and --task (and --language)")
    from deftx.storage.atomic_files import check_file

    check_file(out, force=force)
    quiet_transformers()
    from deftx.cli import actions, predictions
    from deftx.cli.arguments import load_tasks, named_languages
    from deftx.data.examples import ColumnNames
    from deftx.models.compose import task_type
    from deftx.models.heads import recorded_task

    # Read the input as the task wants it.
    task_vector = load_tasks([task])[0] if task else None
    kind = task_type(task_vector) if task_vector is not None else recorded_task(str(model))
    columns = ColumnNames(text=text_column, pair=pair_column).over(kind.columns)
    examples = kind.read(data, columns, False)

    # Answer it, some lines at a time.
    if task_vector is None:
        chunks = actions.predictions_of_model(str(model), examples)
    else:
        chunks = actions.predictions_of_vectors(
            str(base),
            task_vector,
            list(named_languages(language or []).values()),
            examples,
            rule=rule,
            ignore_base_mismatch=ignore_base_mismatch,
        )
    if with_text:
        chunks = predictions.with_input(kind, examples, chunks)
    conllu = None if as_json else predictions.conllu_for(kind, data, examples)
    predictions.write_answers(chunks, len(examples), out, as_json=as_json, conllu=conllu)


@app.command(
    epilog="Example: deftx serve --base xlm-roberta-base --task vectors/sentiment"
    " --language min=vectors/min --language ace=vectors/ace"
)
def serve(
    base: Base,
    task: Tasks,
    language: Languages = None,
    rule: Rule = "sum",
    normalizer: Annotated[
        list[str] | None,
        option(
            "How a language's texts are normalised: a file of `deftx data normalize --normalizer`.",
            metavar="[NAME=]FILE",
        ),
    ] = None,
    host: Annotated[
        str, option("Address to listen at; 0.0.0.0 for all of this machine's.", metavar="HOST")
    ] = "127.0.0.1",
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
            "Host name that clients may use, such as example.org or *.example.org; may be"
            " repeated. Without it: this machine's usual names if --host is 127.0.0.1, else any.",
            metavar="NAME",
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        option(
            "File whose first line is the token that clients send in the header"
            " Authorization: Bearer TOKEN.",
            metavar="FILE",
            parser=path,
        ),
    ] = None,
    ignore_base_mismatch: AnyBase = False,
) -> None:
    """Answer requests over HTTP in many languages from one loaded base; the page at / lets you try
    it."""
    quiet_transformers()
    try:
        from deftx.serving.app import serve as answer
    except ModuleNotFoundError as error:
        raise not_installed(error, "serve") from error
    from deftx.cli.actions import switcher_for
    from deftx.cli.arguments import load_tasks, named_languages, normalizers_of
    from deftx.data.tables import lines_of

    limits = Limits(max_texts, max_chars, max_body, max_waiting, max_connections, max_seconds)
    token = None if token_file is None else lines_of(token_file)[0].strip()
    access = Access(tuple(allowed_host or ()), token)
    languages = named_languages(language or [])
    switcher = switcher_for(
        base,
        load_tasks(task),
        languages,
        normalizers_of(normalizer or [], list(languages)),
        rule=rule,
        ignore_base_mismatch=ignore_base_mismatch,
    )
    answer(switcher, limits, host, port, access)
