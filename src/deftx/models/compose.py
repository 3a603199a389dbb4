"""Composed models: a base with a task vector and language vectors."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from deftx.core.apply import apply
from deftx.core.merge import NO_HEAD, resolve_terms, rule_of, select_head
from deftx.core.vector import SparseVector, as_list, check_distinct, check_language, check_same_base
from deftx.errors import DeftxError
from deftx.models.fingerprint import check_base
from deftx.models.heads import DEFAULT_TASK, TASK, check_head, load_with_new_head
from deftx.models.limits import longest_input
from deftx.models.loading import Base
from deftx.models.saving import save_model
from deftx.models.tokenizers import check_recorded_tokenizer, load_tokenizer
from deftx.storage.atomic_files import MODEL, check_target
from deftx.tasks.base import Task
from deftx.tasks.registry import task_of

# In the config of a composed model: whether its task reads pairs of texts, and was learnt from
# texts without capitals.
PAIRS, LOWER_CASE = "deftx_pairs", "deftx_lower_case"


class Noted(Protocol):
    """What notes where it comes from, as vectors do."""

    @property
    def info(self) -> Mapping[str, Any]:
        """JSON-like data."""


def compose(
    base: Base,
    task: SparseVector | Sequence[SparseVector],
    language: SparseVector | Sequence[SparseVector] | None = None,
    *,
    rule: str = "sum",
    head: int | None = None,
    ignore_base_mismatch: bool | None = False,
) -> PreTrainedModel:
    """θ0 + φ_task + φ_language with the task's head: an ordinary transformers model, in eval mode.

    `compose_with_tokenizer` also gives the tokenizer that belongs to it.

    Args:
        base: Folder or hub id of the base that all vectors were made on.
        task: The task vector, or several.
        language: One language vector, several (added in order), or none.
        rule: How the vectors are combined, such as `ties` or `scaled:language_scale=1.2`: see
            `merge`.
        head: Of several task vectors with heads, whose is used: 0 is the first.
        ignore_base_mismatch: Warn, instead of raising, where the base has other weights than the
            vectors' base; None: as False, where the user cannot choose.

    Raises:
        DeftxError: The base cannot be loaded, vectors do not fit it or each other, one is given
            twice, no task vector has a head, or the rule is unknown.
    """
    tasks = as_list(task)
    languages = as_list(() if language is None else language)
    rule_of(rule)
    check_language(*languages)
    check_distinct(*tasks, *languages)
    model = load_base_with_head(
        base, tasks, languages, head=head, ignore_base_mismatch=ignore_base_mismatch
    )
    apply(model, *resolve_terms(rule, tasks, languages, head))
    return model


def compose_with_tokenizer(
    base: Base,
    task: SparseVector | Sequence[SparseVector],
    language: SparseVector | Sequence[SparseVector] | None = None,
    *,
    rule: str = "sum",
    head: int | None = None,
    ignore_base_mismatch: bool | None = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """As `compose`, with the tokenizer that belongs to the model: the base's, which cuts inputs to
    the length that the task was trained with (`tokenizer.model_max_length`).

    Save both with `save_pretrained`, and the folder is what `deftx compose --out` writes.

    Args:
        base: As in `compose`, and so are the others.

    Raises:
        DeftxError: As `compose` does.
    """
    tasks = as_list(task)
    model = compose(
        base, tasks, language, rule=rule, head=head, ignore_base_mismatch=ignore_base_mismatch
    )
    tokenizer = load_tokenizer(base)
    top = select_head(tasks, head)
    assert top is not None  # or there would be no model
    tokenizer.model_max_length = trained_length(model, tokenizer, top)
    return model, tokenizer


def compose_to(
    out: Path,
    base: str,
    tasks: Sequence[SparseVector],
    languages: Sequence[SparseVector],
    *,
    rule: str,
    force: bool,
    ignore_base_mismatch: bool,
) -> None:
    """Save the composed model and its tokenizer, which cuts inputs to the task's length, as an
    ordinary checkpoint.

    Of several task vectors, the head and the length are those of the first.
    """
    check_target(out, MODEL, force=force)
    model, tokenizer = compose_with_tokenizer(
        base, tasks, languages, rule=rule, head=0, ignore_base_mismatch=ignore_base_mismatch
    )
    save_model(model, tokenizer, out, force=force)


def load_base_with_head(
    base: Base,
    task: SparseVector | Sequence[SparseVector],
    languages: Sequence[SparseVector] = (),
    *,
    head: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    ignore_base_mismatch: bool | None = False,
) -> PreTrainedModel:
    """θ0 with a head of the task's shape, for the vectors to be applied to; all are checked against
    θ0.

    head       of several task vectors with heads, whose is used: 0 is the first
    tokenizer  the base's, if it is at hand

    Raises DeftxError where a vector does not fit θ0 or its tokenizer, or the task's head its model.

    `applied(model, *languages, task)` on it is `compose`, to be undone: for many languages on one
    loaded base.
    """
    tasks = as_list(task)
    top = select_head(tasks, head)
    if top is None or top.head is None:
        raise DeftxError(NO_HEAD)
    check_language(*languages)
    check_same_base(top, *languages, *tasks)
    model, random = load_with_new_head(base, top.head.labels, task=task_type(top))
    setattr(model.config, TASK, top.info.get("task") or DEFAULT_TASK)  # for `load_composed`
    setattr(model.config, PAIRS, uses_text_pairs(top))
    setattr(model.config, LOWER_CASE, without_capitals(top))
    named = [vector for vector in (top, *languages, *tasks) if vector.info.get("base_fingerprint")]
    for vector in named[:1]:  # the others name the same base
        check_base(model, vector, ignore_base_mismatch=ignore_base_mismatch)
    check_recorded_tokenizer(
        tokenizer or base, *tasks, *languages, ignore_base_mismatch=ignore_base_mismatch
    )
    check_head(model, random, top.head.tensors)
    return model


def task_type(vector: Noted) -> Task:
    """The kind of task that a task vector is for; one that notes none is a classifier's."""
    return task_of(str(vector.info.get("task") or DEFAULT_TASK))


def data_noted(task: Noted) -> Mapping[str, Any]:
    """What a task vector notes of its data."""
    noted = task.info.get("data")
    return noted if isinstance(noted, Mapping) else {}


def uses_text_pairs(task: Noted) -> bool | None:
    """Whether a task was learnt from pairs of texts; None where it is not noted."""
    noted = data_noted(task).get("pairs")
    return noted if isinstance(noted, bool) else None


def without_capitals(task: Noted) -> bool:
    """Whether a task was learnt from texts without capitals, as far as it is noted."""
    return data_noted(task).get("lower_case") is True


def trained_length(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Noted) -> int:
    """The tokens that a task's inputs are cut to: as many as in its training."""
    longest = longest_input(model, tokenizer)
    return min(task.info.get("training", {}).get("length") or longest, longest)
