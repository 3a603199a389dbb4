"""What the commands of `deftx.cli` do with models and vectors, between parsing and printing."""

import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from math import log
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from deftx.config import LanguageTrainingConfig
from deftx.core.apply import apply_temporarily, check_fit
from deftx.core.merge import resolve_terms, rule_of
from deftx.core.vector import SparseVector
from deftx.core.vector_checks import check_distinct, check_language
from deftx.data.examples import Examples, check_pairs, written
from deftx.data.letter_case import capitals
from deftx.data.tables import named
from deftx.errors import DeftxError
from deftx.experiments.benefit import advice_on_answers, sample_of
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
from deftx.storage.atomic_files import LOCK, check_target, lock_directory
from deftx.storage.vector_files import load, save
from deftx.tasks.base import Task, answers_to_labelled, by_name, predict_in_chunks, scores
from deftx.tasks.normalization import Normalizer
from deftx.training import distributed
from deftx.training.phases import say_where_it_resumes

SAVING = "saving"  # content of a lock file: the vector is being saved, or is saved
ANSWERED_AT_ONCE = 256  # examples: what is predicted before the first of them is written


# Training


def check_free(out: Path, *, force: bool) -> Path:
    """The real path of `out`, checked before hours of training.

    Raises:
        DeftxError: A vector could not be saved there.
    """
    target = check_target(out, force=force or _is_saved(out))
    parent = next(folder for folder in target.parents if folder.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise DeftxError(
            f"{parent} is not a folder that you may write to: choose another folder than {out}"
        )
    return target


def learn(
    out: Path, fit: Callable[[Path], SparseVector], sources: Sequence[str], *, force: bool
) -> SparseVector:
    """Train a vector with `fit` and save it as `out`; of several processes, the first one saves it.

    Args:
        out: Folder of the vector. Until it is there, checkpoints are in `out`.work.
        fit: Trains the vector, with a folder for checkpoints.
        sources: The files it is trained on, to be recorded in the vector.
        force: Whether an existing vector is replaced.
    """
    target = check_free(out, force=force)
    checkpoint_dir = _checkpoint_dir(out)
    distributed.join()

    # An earlier run may have been killed after it saved the vector and before it ended.
    saved = not force and _is_saved(out)
    distributed.assert_same_on_all_ranks(out, saved)
    if not distributed.is_main_process():
        return load(target) if saved else fit(checkpoint_dir)

    with lock_directory(checkpoint_dir):
        if saved:
            vector = load(target)
        else:
            (checkpoint_dir / LOCK).write_text("")
            with say_where_it_resumes(checkpoint_dir, out.name):
                vector = fit(checkpoint_dir)
            vector = _with_sources(vector, sources)
            if not force:  # from here on, what is at `out` is this vector
                (checkpoint_dir / LOCK).write_text(SAVING)
            save(vector, target, force=force)
        _remove_checkpoints(checkpoint_dir)
    return vector


def _with_sources(vector: SparseVector, sources: Sequence[str]) -> SparseVector:
    """The vector, with the names of the files it was trained on recorded."""
    data = replace(vector.provenance.data, sources=tuple(named(source) for source in sources))
    return replace(vector, provenance=replace(vector.provenance, data=data))


def _checkpoint_dir(out: Path) -> Path:
    target = Path(os.path.realpath(out))
    return target.with_name(f"{target.name}.work")


def _is_saved(out: Path) -> bool:
    """Whether `out` was saved by a run that was killed before it had removed its checkpoints."""
    lock = _checkpoint_dir(out) / LOCK  # the last file that is removed
    return os.path.exists(out) and lock.is_file() and lock.read_text() == SAVING


def _remove_checkpoints(checkpoint_dir: Path) -> None:
    for file in checkpoint_dir.glob("*.safetensors"):
        file.unlink(missing_ok=True)
    for leftover in checkpoint_dir.glob(".*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)


def advice_on_trained_task(
    base: str,
    task: SparseVector,
    sources: Mapping[str, SparseVector] | None,
    valid_sets: Mapping[str, Examples],
    *,
    ignore_base_mismatch: bool,
) -> list[str]:
    """What to try where a new task vector gives one label for all validation examples, if it does.

    Args:
        base: The pretrained model.
        task: The new task vector.
        sources: The language vectors that the task was trained on top of, by language.
        valid_sets: Validation examples by language.
        ignore_base_mismatch: Whether the vectors may be of another base.
    """
    task_kind = task_type(task)
    if task_kind.label_names is None:
        return []
    advice: list[str] = []
    for name, examples in valid_sets.items():
        sample = examples.at(sample_of(range(len(examples))))
        languages = [sources[name]] if sources else []
        answers: list[Any] = []
        # Warnings were shown during training, and no error may end a training that is finished.
        with warnings.catch_warnings(), suppress(DeftxError):
            warnings.simplefilter("ignore")
            chunks = predictions_of_vectors(
                base,
                task,
                languages,
                sample,
                rule="sum",
                ignore_base_mismatch=ignore_base_mismatch,
            )
            for chunk in chunks:
                answers += [answer[task_kind.output_fields[0]] for answer in chunk]
        advice += advice_on_answers(answers, sample.labels)
    return advice


# Scores


def evaluations(
    base: str,
    tasks: Sequence[SparseVector],
    languages: Mapping[str, SparseVector],
    tests: Mapping[str | None, Examples],
    *,
    rule: str,
    ignore_base_mismatch: bool,
) -> list[dict[str, Any]]:
    """Scores of what `compose` would make for each language, on one loaded base.

    Args:
        base: The pretrained model.
        tasks: Task vectors; the first one's head is used.
        languages: Language vectors by name.
        tests: Labelled examples by the name of a language; None stands for no language vector.
        rule: How vectors are combined.
        ignore_base_mismatch: Whether the vectors may be of another base.

    Returns:
        A row for each test: the language, the number of examples, and all metrics of the task.
    """
    rule_of(rule)
    first = tasks[0]
    task = task_type(first)
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
    length = trained_length(model, tokenizer, first)

    rows = []
    for name, examples in tests.items():
        _warn_of_capitals(without_capitals(first), examples)
        vectors = [] if name is None else [languages[name]]
        check_distinct(*tasks, *vectors)
        with apply_temporarily(model, *resolve_terms(rule, tasks, vectors, head=0)):
            answers = answers_to_labelled(task, model, tokenizer, examples, length)
        _warn_of_one_label(task, [answer[0] for answer in answers], examples.labels, name)
        metrics = scores(task, examples, answers)
        rows.append({"language": name, "examples": len(examples), **metrics})
    return rows


def language_losses(
    base: str,
    languages: Mapping[str, SparseVector],
    lines: Sequence[str],
    head: str | None,
    *,
    ignore_base_mismatch: bool,
) -> list[dict[str, Any]]:
    """How well a base predicts a text, by itself and with each language vector.

    The language modelling head is always the base's own. A language vector has none: the head that
    was trained with it is thrown away (see docs/method.md), so its gain here is smaller than the
    fall of the held-out loss during its training.

    Args:
        base: The pretrained model.
        languages: Language vectors by name.
        lines: The text.
        head: A model whose language modelling head is used where the base has none.
        ignore_base_mismatch: Whether the vectors may be of another base.

    Returns:
        A row for the base alone and one for each language: `loss` in nats per predicted token, the
        same tokens in all rows, and `bits_by_character`.
    """
    check_language(*languages.values())
    model = load_language_model(base, head)
    tokenizer = load_tokenizer(base)
    for vector in languages.values():
        check_base(model, vector, ignore_base_mismatch=ignore_base_mismatch)
        check_fit(model, vector)
    check_tokenizer(tokenizer, *languages.values(), ignore_base_mismatch=ignore_base_mismatch)
    place(model)

    # The text as blocks of tokens, no longer than those that any of the vectors was trained on.
    training = LanguageTrainingConfig()
    lengths = [longest_input(model, tokenizer), training.length]
    for vector in languages.values():
        lengths.append(vector.provenance.training.length or training.length)
    kind = language_of(model.config)
    objective = kind.objective(lines, tokenizer, training, min(lengths), 0, held_out=lines)

    def loss_with(*vectors: SparseVector) -> float:
        with apply_temporarily(model, *vectors), torch.no_grad():
            return float(objective.validate(model, training.batch_size)["loss"])

    losses: dict[str | None, float] = {None: loss_with()}
    for name, vector in languages.items():
        losses[name] = loss_with(vector)

    # loss [nats / token] · tokens / character / ln 2 = bits / character
    bits_per_nat = _tokens_by_character(lines, tokenizer) / log(2)
    return [
        {"language": name, "loss": loss, "bits_by_character": loss * bits_per_nat}
        for name, loss in losses.items()
    ]


def _tokens_by_character(lines: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> float:
    encoded = tokenizer(list(lines), add_special_tokens=False, verbose=False)
    tokens = sum(len(ids) for ids in encoded["input_ids"])
    return tokens / sum(len(line) for line in lines)


# Predictions


def predictions_of_vectors(
    base: str,
    task: SparseVector,
    languages: Sequence[SparseVector],
    examples: Examples,
    *,
    rule: str,
    ignore_base_mismatch: bool,
) -> Iterator[list[dict[str, Any]]]:
    """The answers of a model composed of vectors, ANSWERED_AT_ONCE at a time.

    Returns:
        For each example, in their order, the parts of its answer by the names that the task has for
        them.
    """
    check_pairs(uses_text_pairs(task), examples)
    _warn_of_capitals(without_capitals(task), examples)
    model = compose(base, task, languages, rule=rule, ignore_base_mismatch=ignore_base_mismatch)
    tokenizer = load_tokenizer(base)
    length = trained_length(model, tokenizer, task)
    return _predictions(task_type(task), model, tokenizer, examples, length)


def predictions_of_model(folder: str, examples: Examples) -> Iterator[list[dict[str, Any]]]:
    """The same as `predictions_of_vectors`, of a model that `compose` saved."""
    task = recorded_task(folder)
    model = load_composed(folder)
    tokenizer = load_tokenizer(folder)
    check_pairs(getattr(model.config, PAIRS, None), examples)
    _warn_of_capitals(getattr(model.config, LOWER_CASE, None) is True, examples)
    return _predictions(task, model, tokenizer, examples, longest_input(model, tokenizer))


def _predictions(
    task: Task,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples,
    length: int,
) -> Iterator[list[dict[str, Any]]]:
    """All answers; after the last of them a warning where they are all one label."""
    place(model)
    first_parts = []
    for chunk in predict_in_chunks(task, model, tokenizer, examples, length, ANSWERED_AT_ONCE):
        first_parts += [answer[0] for answer in chunk]
        yield by_name(task, chunk)
    _warn_of_one_label(task, first_parts, None, None)


def switcher_for(
    base: str,
    tasks: Sequence[SparseVector],
    languages: Mapping[str, SparseVector],
    normalizers: Mapping[str, Normalizer],
    *,
    rule: str,
    ignore_base_mismatch: bool,
) -> Switcher:
    """What `deftx serve` answers with; of several task vectors, the first one's head is used."""
    switcher = Switcher(
        base,
        tasks,
        languages,
        rule=rule,
        head=0,
        normalizers=normalizers,
        ignore_base_mismatch=ignore_base_mismatch,
    )
    as_written = [name for name in languages if name not in normalizers]
    if as_written and without_capitals(tasks[0]):
        warnings.warn(
            "the task was learnt from texts without capitals, and texts in"
            f" {', '.join(as_written)} may have some; --normalizer says how to read them:"
            " see `deftx data normalize`",
            stacklevel=2,
        )
    return switcher


def _warn_of_capitals(lower_case: bool, examples: Examples) -> None:
    """Warn where a task was trained on texts in lower case, and these are not."""
    if lower_case and capitals(written(examples)):
        warnings.warn(
            "the task was learnt from texts without capitals, and these have some:"
            " `deftx data normalize --case-only` writes texts as those were",
            stacklevel=2,
        )


def _warn_of_one_label(
    task: Task,
    answers: Sequence[Any],
    expected: Sequence[Any] | None,
    language: str | None,
) -> None:
    """Warn where a task with named labels gives one of them for everything."""
    if task.label_names is None:
        return
    before = f"{language}: " if language else ""
    for line in advice_on_answers(answers, expected):
        warnings.warn(f"{before}{line}", stacklevel=2)
