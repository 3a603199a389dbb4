"""The `deftx` command: parse, call, print. What a command needs is imported when it runs, so that help is quick."""

import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deftx.console import (
    error_line,
    exit_on_sigterm,
    print_findings,
    print_json,
    print_scores,
    print_vectors,
    quiet_hub,
    quiet_transformers,
    say,
    short_warnings,
)
from deftx.errors import DeftxError, not_installed
from deftx.options import (
    FILE,
    FORMATS,
    VECTOR,
    AnyBase,
    AsJson,
    Base,
    Changes,
    Force,
    K,
    Keep,
    LabelColumn,
    Languages,
    Method,
    Out,
    PairColumn,
    Preset,
    Rank,
    Seed,
    Task,
    TextColumn,
    option,
    path,
    source,
)
from deftx.serving import Limits

if TYPE_CHECKING:
    from deftx.core.vector import SparseVector

MISFIT, WRONG_INPUT, STOPPED, TERMINATED = 1, 2, 130, 143  # exit codes; the last two after Ctrl-C and SIGTERM

app = typer.Typer(
    help="Language and task vectors that add up to a model for a language without labels.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
fit_app = typer.Typer(help="Learn a language vector from text, or a task vector from labels.", no_args_is_help=True)
app.add_typer(fit_app, name="fit")
data_app = typer.Typer(help="Look after training and evaluation data.", no_args_is_help=True)
app.add_typer(data_app, name="data")


def _print_version(wanted: bool) -> None:
    if wanted:
        import deftx

        print(deftx.__version__)
        raise typer.Exit()


@app.callback()
def top(
    version: Annotated[bool, option("Print the version.", "--version", callback=_print_version, is_eager=True)] = False,
) -> None:
    """Language and task vectors that add up to a model for a language without labels."""


@fit_app.command(
    "language", epilog="Example: deftx fit language --base xlm-roberta-base --text min.txt --out vectors/min"
)
def fit_language(
    base: Base,
    text: Annotated[list[str], option(f"Text of the language ({FORMATS}); may be repeated.", **FILE)],
    out: Out,
    column: Annotated[str, option("Column of texts, where a file has columns.", metavar="NAME")] = "text",
    preset: Preset = None,
    method: Method = None,
    rank: Rank = None,
    k: K = None,
    keep: Keep = None,
    seed: Seed = None,
    set_: Changes = None,
    force: Force = False,
) -> None:
    """Learn a language vector from plain text. Presets: paper, quick."""
    quiet_transformers()
    from deftx import commands, fit, settings
    from deftx.tasks.data import read_text

    flags = {"method": method, "rank": rank, "k": k, "keep": keep, "seed": seed}
    chosen = commands.settings_from(settings.LanguageFit(), settings.LANGUAGE_PRESETS, preset, flags, set_ or [])
    commands.check_free(out, force=force)
    lines = read_text(*text, column=column)

    def learn(work: Path) -> "SparseVector":
        return fit.fit_language(base, lines, chosen, work=work, title=out.name)

    _print_learnt(out, commands.learn(out, learn, text, force=force))


@fit_app.command(
    "task",
    epilog="Example: deftx fit task --base xlm-roberta-base --train train.tsv --valid valid.tsv"
    " --source vectors/ind --out vectors/sentiment",
)
def fit_task(
    base: Base,
    train: Annotated[str, option(f"Labelled data ({FORMATS}).", **FILE)],
    valid: Annotated[str, option("Labelled data on which the best step is chosen.", **FILE)],
    out: Out,
    source: Annotated[str | None, option("Language vector of the labelled data's language.", **VECTOR)] = None,
    text_column: TextColumn = "text",
    pair_column: PairColumn = None,
    label_column: LabelColumn = "label",
    preset: Preset = None,
    method: Method = None,
    rank: Rank = None,
    k: K = None,
    keep: Keep = None,
    seed: Seed = None,
    set_: Changes = None,
    any_base: AnyBase = False,
    force: Force = False,
) -> None:
    """Learn a task vector from labelled data. Presets: paper-sentiment, paper-nli, quick."""
    quiet_transformers()
    from deftx import commands, fit, settings
    from deftx.storage.files import load
    from deftx.tasks.data import Columns, read_examples

    flags = {"method": method, "rank": rank, "k": k, "keep": keep, "seed": seed}
    chosen = commands.settings_from(settings.TaskFit(), settings.TASK_PRESETS, preset, flags, set_ or [])
    commands.check_free(out, force=force)
    columns = Columns(text_column, pair_column, label_column)
    data = read_examples(train, columns), read_examples(valid, columns)
    commands.check_sizes(*data)
    phi_source = load(source) if source else None

    def learn(work: Path) -> "SparseVector":
        return fit.fit_task(base, *data, chosen, source=phi_source, force=any_base, work=work, title=out.name)

    _print_learnt(out, commands.learn(out, learn, [train, valid], force=force))


@app.command(
    epilog="Example: deftx compose --base xlm-roberta-base --task vectors/sentiment"
    " --language vectors/min --out models/sentiment-min"
)
def compose(
    base: Base,
    task: Task,
    out: Out,
    language: Languages = None,
    any_base: AnyBase = False,
    force: Force = False,
) -> None:
    """Save base + language vector + task vector as an ordinary model."""
    quiet_transformers()
    from deftx import commands
    from deftx.storage.files import load

    languages = list(commands.named_languages(language or []).values())
    commands.compose_to(out, base, load(task), languages, force=force, any_base=any_base)
    print(f"{out}: a classifier that transformers loads, composed of {', '.join([task, *(language or [])])}")


@app.command(
    epilog="Example: deftx evaluate --base xlm-roberta-base --task vectors/sentiment"
    " --language min=vectors/min --test min=min.tsv --language ace=vectors/ace --test ace=ace.tsv"
)
def evaluate(
    base: Base,
    task: Task,
    test: Annotated[
        list[str],
        option("Labelled data; one for each language, NAME= before it where there are several.", metavar="[NAME=]FILE"),
    ],
    language: Languages = None,
    text_column: TextColumn = "text",
    pair_column: PairColumn = None,
    label_column: LabelColumn = "label",
    any_base: AnyBase = False,
    as_json: AsJson = False,
) -> None:
    """Score a task vector with each of the language vectors, or with none."""
    quiet_transformers()
    from deftx import commands
    from deftx.storage.files import load
    from deftx.tasks.data import Columns

    languages = commands.named_languages(language or [])
    tests = commands.tests_of(test, list(languages), Columns(text_column, pair_column, label_column))
    rows = commands.evaluations(base, load(task), languages, tests, any_base=any_base)
    print_json(rows) if as_json else print_scores(rows)


@app.command(epilog="Example: deftx predict --model models/sentiment-min reviews.txt")
def predict(
    data: Annotated[str, typer.Argument(help=f"Texts ({FORMATS}).", **FILE)],
    model: Annotated[
        str | None, option("Composed model, instead of the next three.", metavar="FOLDER", parser=source)
    ] = None,
    base: Annotated[str | None, option("Pretrained model: a folder or hub id.", metavar="MODEL", parser=source)] = None,
    task: Annotated[str | None, option("Task vector: a folder or hub id.", **VECTOR)] = None,
    language: Languages = None,
    out: Annotated[
        Path | None, option("File to write, instead of standard output.", metavar="FILE", parser=path)
    ] = None,
    text_column: TextColumn = "text",
    pair_column: PairColumn = None,
    any_base: AnyBase = False,
    as_json: Annotated[bool, option("Write JSON lines instead of TSV.", "--json")] = False,
    force: Force = False,
) -> None:
    """Label texts: a label and its probability for each, in the order of the input."""
    if bool(model) == bool(base and task) or (model and (base or task or language)):
        raise DeftxError("say what predicts: either --model, or --base and --task (and --language)")
    if out and out.exists() and not force:
        raise DeftxError(f"{out} exists: choose another file, or replace it with --force")
    quiet_transformers()
    from deftx import commands
    from deftx.storage.files import load
    from deftx.storage.folders import write_text
    from deftx.tasks.data import Columns, read_examples

    examples = read_examples(data, Columns(text_column, pair_column), labelled=False)
    if model:
        found = commands.predictions_of_model(model, examples)
    else:
        assert base is not None
        assert task is not None
        languages = list(commands.named_languages(language or []).values())
        found = commands.predictions_of_vectors(base, load(task), languages, examples, any_base=any_base)
    if as_json:
        lines = [json.dumps({"label": label, "probability": p}, ensure_ascii=False) for label, p in found]
    else:
        lines = ["label\tprobability", *(f"{label}\t{p:.4f}" for label, p in found)]
    content = "".join(f"{line}\n" for line in lines)
    write_text(out, content) if out else print(content, end="")


@app.command(
    epilog="Example: deftx serve --base xlm-roberta-base --task vectors/sentiment"
    " --language min=vectors/min --language ace=vectors/ace"
)
def serve(
    base: Base,
    task: Task,
    language: Languages = None,
    host: Annotated[str, option("Address to listen at; 0.0.0.0 for all of this machine's.", metavar="HOST")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, option("Port to listen at; 0 for any that is free.", min=0, max=65535)] = 8000,
    max_batch: Annotated[int, option("Most texts in a request.", min=1)] = Limits.texts,
    max_chars: Annotated[int, option("Most characters in a text.", min=1)] = Limits.chars,
    max_body: Annotated[int, option("Most bytes in a request.", min=1)] = Limits.body,
    max_waiting: Annotated[int, option("Most texts that wait for an answer.", min=1)] = Limits.waiting,
    any_base: AnyBase = False,
) -> None:
    """Answer requests over HTTP in many languages, all from one loaded base; a page to try it is at /."""
    quiet_transformers()
    try:
        from deftx.serving.app import serve as answer
    except ModuleNotFoundError as error:
        raise not_installed(error, "serve") from error
    from deftx import commands
    from deftx.storage.files import load
    from deftx.switcher import Switcher

    limits = Limits(max_batch, max_chars, max_body, max_waiting)
    answer(Switcher(base, load(task), commands.named_languages(language or []), force=any_base), limits, host, port)


@app.command(epilog="Example: deftx inspect vectors/min vectors/ind")
def inspect(
    vector: Annotated[list[str], typer.Argument(help="Vectors: folders or hub ids.", **VECTOR)],
    as_json: AsJson = False,
) -> None:
    """Show where vectors come from, what they change in which layer, and how much they overlap."""
    quiet_hub()
    from deftx.storage.files import load

    print_vectors(vector, [load(name) for name in vector], as_json=as_json)


@app.command(epilog="Example: deftx doctor --base xlm-roberta-base --vector vectors/min --vector vectors/sentiment")
def doctor(
    base: Annotated[str | None, option("Base to examine: a folder or hub id.", metavar="MODEL", parser=source)] = None,
    vector: Annotated[list[str] | None, option("Vector that is to fit the base; may be repeated.", **VECTOR)] = None,
    as_json: AsJson = False,
) -> None:
    """Show what is installed, what a training would run on, and whether vectors fit a base: if not, exit code 1."""
    quiet_transformers()
    from deftx.doctor import examine

    found = examine(base, vector or [])
    print_json([asdict(finding) for finding in found]) if as_json else print_findings(found)
    if not all(finding.fine for finding in found):
        raise typer.Exit(MISFIT)


@app.command(epilog="Example: deftx push vectors/min you/xlmr-min --language min --license cc-by-sa-4.0")
def push(
    vector: Annotated[str, typer.Argument(help="Vector: its folder.", **VECTOR)],
    repo: Annotated[str, typer.Argument(help="Repository on the hub.", metavar="USER/NAME")],
    private: Annotated[bool, option("Make the repository private.", "--private")] = False,
    revision: Annotated[str | None, option("Branch to push to.", metavar="BRANCH")] = None,
    message: Annotated[str | None, option("Message of the commit.", metavar="TEXT")] = None,
    base: Annotated[
        str | None, option("Hub id of the base, where the vector was made on a folder with it.", metavar="MODEL")
    ] = None,
    language: Annotated[
        list[str] | None, option("Language, as its ISO 639 code; may be repeated.", metavar="CODE")
    ] = None,
    dataset: Annotated[list[str] | None, option("Hub dataset of the training; may be repeated.", metavar="ID")] = None,
    license: Annotated[str | None, option("Licence, such as apache-2.0.", metavar="NAME")] = None,
) -> None:
    """Put a vector on the Hugging Face hub, with a model card; log in with `hf auth login` or HF_TOKEN first."""
    quiet_hub()
    from deftx.storage.share import push as push_vector

    pinned = push_vector(
        vector,
        repo,
        private=private,
        revision=revision,
        message=message,
        base=base,
        languages=language or [],
        datasets=dataset or [],
        license=license,
    )
    print(f"{repo}: {vector} is on the hub, and stays there as {pinned}")


@app.command(epilog="Example: deftx pull you/xlmr-min --out vectors/min")
def pull(
    vector: Annotated[str, typer.Argument(help="Vector on the hub.", metavar="USER/NAME[@REVISION]")],
    out: Out,
    force: Force = False,
) -> None:
    """Save a vector from the Hugging Face hub as a folder. Other commands take its id as it is."""
    quiet_hub()
    from deftx.storage.share import pull as pull_vector

    found = pull_vector(vector, out, force=force)
    print(f"{out}: {found.info.get('kind') or 'sparse'} vector, k = {found.k:,}, from {vector}")


@app.command(epilog="Example: deftx convert pytorch_diff.bin vectors/min --base xlm-roberta-base")
def convert(
    old: Annotated[
        str, typer.Argument(help="Vector: a folder, LT-SFT's file, or a hub id.", metavar="OLD", parser=source)
    ],
    new: Annotated[Path, typer.Argument(help="Folder to write.", metavar="NEW", parser=path)],
    to: Annotated[str, option("deftx, lt-sft, peft, model or mergekit.", metavar="FORMAT")] = "deftx",
    base: Annotated[str | None, option("Pretrained model of the vector.", metavar="MODEL", parser=source)] = None,
    label: Annotated[
        list[str] | None, option("Name of an output of the head, in order, where OLD has none.", metavar="NAME")
    ] = None,
    force: Force = False,
) -> None:
    """Convert a vector from LT-SFT's format or PEFT's SHiRA, or to them, a whole model, or input for mergekit."""
    quiet_transformers()
    from deftx import conversion

    vector = conversion.convert(old, new, to, base=base, labels=label or [], force=force)
    bound = "" if vector.info.get("base_fingerprint") else "; not bound to a base: give --base to check and note it"
    print(f"{new}: {to}, from a vector of k = {vector.k:,}{bound}")


@app.command(epilog="Example: deftx delta models/finetuned xlm-roberta-base --k 5% --out vectors/finetuned")
def delta(
    finetuned: Annotated[str, typer.Argument(help="Model: a folder or hub id.", metavar="MODEL", parser=source)],
    base: Annotated[str, typer.Argument(help="What it was fine-tuned from.", metavar="BASE", parser=source)],
    out: Out,
    k: K = None,
    rank: Annotated[
        str | None, option("Denoise before the choice, with this rank: a share (90%) or a number.", metavar="RANK")
    ] = None,
    force: Force = False,
) -> None:
    """Save the difference of two checkpoints as a vector: all of it, or its k largest entries."""
    quiet_transformers()
    from deftx import commands
    from deftx.difference import extract
    from deftx.storage.files import save

    commands.check_free(out, force=force)
    vector = extract(finetuned, base, k=k, rank=rank)
    save(vector, out, force=force)
    print(f"{out}: {vector.info['kind']} vector, k = {vector.k:,}")


@app.command(epilog="Example: deftx demo --out demo")
def demo(
    out: Annotated[Path, option("Folder to write.", metavar="FOLDER", parser=path)] = Path("demo"),
    seed: Annotated[int, option("Decides everything random.")] = 0,
    force: Force = False,
) -> None:
    """Run the whole method on small artificial languages: no network, no GPU, a few minutes."""
    quiet_transformers()
    from deftx.experiments.demo.run import demo as run_demo

    run_demo(out, seed, force)


@app.command(epilog="Example: deftx run recipes/nusax-nano.yaml --out runs/nusax --set seeds=[0]")
def run(
    recipe: Annotated[Path, typer.Argument(help="Recipe, a YAML file.", metavar="RECIPE", parser=path)],
    out: Annotated[
        Path | None, option("Folder of the run; without it runs/RECIPE.", metavar="FOLDER", parser=path)
    ] = None,
    set_: Changes = None,
    as_json: AsJson = False,
) -> None:
    """Carry out a recipe, or go on with it: every fit, every score, and the table."""
    quiet_transformers()
    from deftx.commands import assigned
    from deftx.experiments.recipe import load_recipe
    from deftx.experiments.run import run_recipe, table

    checked = load_recipe(recipe, assigned(set_ or []))
    scores = run_recipe(checked, out or Path("runs") / recipe.stem)
    if as_json:
        print_json([asdict(score) for score in scores])
    else:
        print(table(scores, checked.task.training.metric), end="")


@data_app.command("trim", epilog="Example: deftx data trim smsa.tsv --against nusax/ind.tsv --out trimmed.tsv")
def data_trim(
    data: Annotated[str, typer.Argument(help=f"Text or labelled data to train on ({FORMATS}).", **FILE)],
    against: Annotated[list[str], option(f"Evaluation data ({FORMATS}); may be repeated.", **FILE)],
    column: Annotated[
        list[str] | None, option("Column to compare; without it text, premise and hypothesis.", metavar="NAME")
    ] = None,
    out: Annotated[Path | None, option("File for the other rows.", metavar="FILE", parser=path)] = None,
    as_json: AsJson = False,
    force: Force = False,
) -> None:
    """Find training text that holds evaluation text: the same, contained, eight words in a row, nearly the same."""
    from deftx import commands

    found = commands.trim(data, against, column or [], out, force=force)
    if as_json:
        print_json(found)
        return
    for row in found:
        print(f"{row['row']}: {row['kind']}, {row['of']}")
    print(f"{len(found)} rows of {data} hold evaluation text" + (f"; the others are in {out}" if out else ""))


def _print_learnt(out: Path, vector: "SparseVector") -> None:
    """One line about a new vector."""
    from deftx.training.processes import first

    if not first():
        return
    best, training = vector.info["log"]["phase2"], vector.info["training"]
    metric = training.get("metric", "loss")
    alone = "; without --source, so learnt on the base alone" if vector.head and not vector.info["source"] else ""
    print(f"{out}: {vector.info['kind']} vector, k = {vector.k:,}, held-out {metric} {best['best_score']:.4f}{alone}")


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point. Wrong input ends with one line and exit code 2; DEFTX_TRACEBACK=1 shows where it came from."""
    typed = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with short_warnings(), exit_on_sigterm(TERMINATED):
            ended = app(typed, prog_name="deftx", standalone_mode=False)
    except SystemExit as stop:
        ended = stop.code
    except Exception as error:
        line = error_line(error)
        if line is None or os.environ.get("DEFTX_TRACEBACK"):
            raise
        if line:
            say(line)
        sys.exit(WRONG_INPUT)
    if ended in (STOPPED, TERMINATED):
        say(f"stopped; to go on, type: {shlex.join(['deftx', *typed])}")
    sys.exit(ended)


if __name__ == "__main__":
    main()
