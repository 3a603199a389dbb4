"""What the commands of `deftx.cli` do, between parsing and printing."""

import json
import os
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import log
from pathlib import Path
from typing import Any

import torch

from deftx.config import LanguageTrainingConfig
from deftx.core.apply import apply_temporarily, check_fit
from deftx.core.merge import resolve_terms, rule_of
from deftx.core.vector import SparseVector, check_distinct, check_language
from deftx.data.contamination import by_row, find_contamination
from deftx.data.examples import Examples, capitals, check_pairs, usable, written
from deftx.data.tables import Table, named, open_source, rows_for
from deftx.errors import DeftxError, unknown
from deftx.models.compose import (
    LOWER_CASE,
    PAIRS,
    compose,
    load_base_with_head,
    task_type,
    trained_length,
    uses_text_pairs,
    without_capitals,
)
from deftx.models.fingerprint import check_base
from deftx.models.heads import load_composed, recorded_task
from deftx.models.limits import longest_input
from deftx.models.loading import load_language_model, place
from deftx.models.switcher import Switcher
from deftx.models.tokenizers import check_tokenizer, load_tokenizer
from deftx.objectives.registry import language_of
from deftx.storage.atomic_files import LOCK, check_file, check_target, lock_directory, write_text
from deftx.storage.vector_files import load, save
from deftx.tasks.base import by_name, evaluate, predict
from deftx.tasks.normalization import Spelling, plain_spelling, respell, spelling_for
from deftx.training import distributed

SAVING = "saving"  # in the lock of a folder of work: what is learnt is being saved, or has been
TEXT_COLUMNS = ("text", "premise", "hypothesis")


def check_free(out: Path, *, force: bool) -> Path:
    """The real path of OUT. Raises DeftxError now for what would keep a vector from being saved
    hours later."""
    target = check_target(out, force=force or _saved(out))
    parent = next(folder for folder in target.parents if folder.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise DeftxError(
            f"{parent} is not a folder that you may write to: choose another place than {out}"
        )
    return target


def learn(
    out: Path, fit: Callable[[Path], SparseVector], sources: Sequence[str], *, force: bool
) -> SparseVector:
    """Have `fit` learn a vector from `sources` and save it as OUT. Its folder of work is OUT.work,
    until OUT is there.

    Of several processes, the first one saves it.
    """
    target, checkpoint_dir = check_free(out, force=force), _work(out)
    distributed.join()
    saved = not force and _saved(out)  # killed after the vector was saved, before the end
    distributed.assert_same_on_all_ranks(out, saved)
    if not distributed.is_main_process():
        return load(target) if saved else fit(checkpoint_dir)
    with lock_directory(checkpoint_dir):
        if saved:
            vector = load(target)
        else:
            (checkpoint_dir / LOCK).write_text("")
            vector = fit(checkpoint_dir)
            data = {**vector.info["data"], "sources": [named(source) for source in sources]}
            vector = replace(vector, info={**vector.info, "data": data})
            if not force:  # what is at OUT from here on is this vector
                (checkpoint_dir / LOCK).write_text(SAVING)
            save(vector, target, force=force)
        for file in checkpoint_dir.glob("*.safetensors"):
            file.unlink(missing_ok=True)
        for leftover in checkpoint_dir.glob(".*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)
    return vector


def _work(out: Path) -> Path:
    """The folder of work of OUT."""
    target = Path(os.path.realpath(out))
    return target.with_name(f"{target.name}.work")


def _saved(out: Path) -> bool:
    """Whether OUT was saved by a fit that was killed before it had cleared its folder of work."""
    lock = _work(out) / LOCK  # the last file to go
    return os.path.exists(out) and lock.is_file() and lock.read_text() == SAVING


def evaluations(
    base: str,
    tasks: Sequence[SparseVector],
    languages: Mapping[str, SparseVector],
    tests: Mapping[str | None, Examples],
    *,
    rule: str,
    ignore_base_mismatch: bool,
) -> list[dict[str, Any]]:
    """A row of scores for each test, on one loaded base: what `compose` would score for each
    language."""
    rule_of(rule)
    first = tasks[0]
    for examples in tests.values():
        check_pairs(uses_text_pairs(first), examples)
    tokenizer = load_tokenizer(base)
    model = load_base_with_head(
        base,
        tasks,
        list(languages.values()),
        head=0,
        tokenizer=tokenizer,
        ignore_base_mismatch=ignore_base_mismatch,
    )
    place(model)
    length, rows = trained_length(model, tokenizer, first), []
    for name, examples in tests.items():
        _warn_of_capitals(without_capitals(first), examples)
        vectors = [languages[name]] if name is not None else []
        check_distinct(*tasks, *vectors)
        with apply_temporarily(model, *resolve_terms(rule, tasks, vectors, head=0)):
            scores = evaluate(task_type(first), model, tokenizer, examples, length)
        rows.append({"language": name, "examples": len(examples), **scores})
    return rows


def language_losses(
    base: str,
    languages: Mapping[str, SparseVector],
    lines: Sequence[str],
    head: str | None,
    *,
    ignore_base_mismatch: bool,
) -> list[dict[str, Any]]:
    """How well a base knows a text by itself, and with each of the language vectors: a row of
    losses for each.

    The loss is in nats for each token that the base is to guess, the same ones for all rows.
    """
    check_language(*languages.values())
    model, tokenizer = load_language_model(base, head), load_tokenizer(base)
    for vector in languages.values():
        check_base(model, vector, ignore_base_mismatch=ignore_base_mismatch)
        check_fit(model, vector)
    check_tokenizer(tokenizer, *languages.values(), ignore_base_mismatch=ignore_base_mismatch)
    place(model)
    training = LanguageTrainingConfig()
    lengths = [
        vector.info.get("training", {}).get("length") or training.length
        for vector in languages.values()
    ]
    length = min([longest_input(model, tokenizer), training.length, *lengths])
    objective = language_of(model.config).objective(
        lines, tokenizer, training, length, 0, held_out=lines
    )

    def loss_with(*vectors: SparseVector) -> float:
        with apply_temporarily(model, *vectors), torch.no_grad():
            return float(objective.validate(model, training.batch_size)["loss"])

    tokens = sum(
        map(len, tokenizer(list(lines), add_special_tokens=False, verbose=False)["input_ids"])
    )
    tokens_by_character = tokens / sum(map(len, lines))
    losses: dict[str | None, float] = {None: loss_with()}
    losses |= {name: loss_with(vector) for name, vector in languages.items()}
    return [
        {"language": name, "loss": loss, "bits_by_character": loss * tokens_by_character / log(2)}
        for name, loss in losses.items()
    ]


def predictions_of_vectors(
    base: str,
    task: SparseVector,
    languages: Sequence[SparseVector],
    examples: Examples,
    *,
    rule: str,
    ignore_base_mismatch: bool,
) -> list[dict[str, Any]]:
    """The answer to each example by the composed model, its parts as the task names them."""
    kind = task_type(task)
    check_pairs(uses_text_pairs(task), examples)
    _warn_of_capitals(without_capitals(task), examples)
    model, tokenizer = (
        compose(base, task, languages, rule=rule, ignore_base_mismatch=ignore_base_mismatch),
        load_tokenizer(base),
    )
    place(model)
    return by_name(
        kind, predict(kind, model, tokenizer, examples, trained_length(model, tokenizer, task))
    )


def predictions_of_model(folder: str, examples: Examples) -> list[dict[str, Any]]:
    """The answer to each example by a model that was composed before, its parts as the task names
    them."""
    kind = recorded_task(folder)
    model, tokenizer = load_composed(folder), load_tokenizer(folder)
    check_pairs(getattr(model.config, PAIRS, None), examples)
    _warn_of_capitals(getattr(model.config, LOWER_CASE, None) is True, examples)
    place(model)
    return by_name(kind, predict(kind, model, tokenizer, examples, longest_input(model, tokenizer)))


def switcher_for(
    base: str,
    tasks: Sequence[SparseVector],
    languages: Mapping[str, SparseVector],
    spellings: Mapping[str, Spelling],
    *,
    rule: str,
    ignore_base_mismatch: bool,
) -> Switcher:
    """What is served: of several task vectors, the first one's head counts."""
    switcher = Switcher(
        base,
        tasks,
        languages,
        rule=rule,
        head=0,
        spellings=spellings,
        ignore_base_mismatch=ignore_base_mismatch,
    )
    as_written = [name for name in languages if name not in spellings]
    if as_written and without_capitals(tasks[0]):
        fix = "--spelling says how to read them: see `deftx data respell`"
        some = f"texts in {', '.join(as_written)} may have some"
        warnings.warn(
            f"the task was learnt from texts without capitals, and {some}; {fix}", stacklevel=2
        )
    return switcher


def _warn_of_capitals(lower_case: bool, examples: Examples) -> None:
    """Warn where a task was learnt from texts in lower case, and is to read others."""
    if lower_case and capitals(written(examples)):
        fix = "`deftx data respell --case-only` writes texts as those were"
        warnings.warn(
            f"the task was learnt from texts without capitals, and these have some: {fix}",
            stacklevel=2,
        )


def trim(
    source: str, against: Sequence[str], columns: Sequence[str], out: Path | None, *, force: bool
) -> list[dict[str, str]]:
    """The rows of a source that hold evaluation text, and where that stands; the other rows are
    written to OUT.

    columns  those to compare; of a file that has none of them, those of TEXT_COLUMNS that it has
    """
    check_file(out, force=force)
    table = open_source(source)
    others = [open_source(file) for file in against]
    for name in columns:
        if not any(name in each.names for each in (table, *others)):
            raise unknown(
                "column",
                name,
                dict.fromkeys(name for each in (table, *others) for name in each.names),
            )
    theirs = [cell for other in others for cell in _cells(other, columns)]
    ours = _cells(table, columns)
    found = find_contamination([text for _, text in ours], [text for _, text in theirs])
    rows = by_row(found, len(table.lines))
    if out:
        write_text(
            out, rows_for(out, table, [row for row in range(len(table.lines)) if row not in rows])
        )
    return [
        {"row": ours[h.training][0], "of": theirs[h.evaluation][0], "kind": h.kind}
        for h in rows.values()
    ]


def write_respelt(
    data: str,
    like: Sequence[str],
    text: Sequence[str],
    columns: Sequence[str],
    out: Path | None,
    *,
    spelling_out: Path | None = None,
    words: bool = True,
    force: bool = False,
) -> Spelling:
    """Write texts to OUT in the spelling of the source, see `deftx.respelt`, and tell in which; it
    is written to `spelling_out`, where `deftx.read_spelling` reads it.

    columns  those to change; without any, those of TEXT_COLUMNS that the data has. A cell may be a
             list of words
    """
    if not (out or spelling_out):
        raise DeftxError(
            "say what to write: --out FILE for the texts, --spelling FILE for how they are spelt, or both"
        )
    if out and spelling_out and out.resolve() == spelling_out.resolve():
        raise DeftxError(f"{out} cannot hold both the texts and how they are spelt: give two files")
    for file in (out, spelling_out):
        check_file(file, force=force)
    table = open_source(data)
    cells = {name: [_words(v) for _, v in table.values(name)] for name in _columns(table, columns)}
    ours = [line for column in cells.values() for cell in column for line in _lines(cell)]
    learnt, more = (
        [line for file in files for line in _written(file, columns)] for files in (like, text)
    )
    spelling = spelling_for(ours, learnt, more, words=words)
    changed = {
        name: [
            respell(c, spelling) if isinstance(c, str) else [respell(word, spelling) for word in c]
            for c in column
        ]
        for name, column in cells.items()
    }
    spelt = replace(
        table, column=lambda name: changed[name] if name in changed else table.column(name)
    )
    if out:
        write_text(out, rows_for(out, spelt, range(len(table.lines))))
    if spelling_out:
        write_text(spelling_out, json.dumps(plain_spelling(spelling), ensure_ascii=False, indent=1))
    return spelling


def _words(cell: object) -> str | list[str]:
    return [str(word) for word in cell] if isinstance(cell, list) else str(cell or "")


def _lines(cell: str | list[str]) -> list[str]:
    return [cell] if isinstance(cell, str) else cell


def _written(source: str, columns: Sequence[str]) -> list[str]:
    """What a source says in those of the columns that it has; else in those of TEXT_COLUMNS."""
    table = open_source(source)
    found = [_words(value) for name in _there(table, columns) for _, value in table.values(name)]
    return usable(source, [line for cell in found for line in _lines(cell)])


def _columns(table: Table, columns: Sequence[str]) -> Sequence[str]:
    """The columns that were asked for; without any, those of TEXT_COLUMNS that a table has."""
    names = columns or [name for name in TEXT_COLUMNS if name in table.names]
    if not names:
        raise DeftxError(
            f"{table.source} has no column {' or '.join(TEXT_COLUMNS)}: say which with --column"
        )
    return names


def _cells(table: Table, columns: Sequence[str]) -> list[tuple[str, str]]:
    """Place and text of every cell that is to be compared, column by column."""
    return [
        (place, str(value or ""))
        for name in _there(table, columns)
        for place, value in table.values(name)
    ]


def _there(table: Table, columns: Sequence[str]) -> Sequence[str]:
    """Those of the columns that a table has; else those of TEXT_COLUMNS."""
    return [name for name in columns if name in table.names] or _columns(table, ())
