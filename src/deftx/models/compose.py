"""Composed models: a base with a task vector and language vectors."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from deftx.core.apply import apply
from deftx.core.merge import NO_HEAD, resolve_terms, rule_of, select_head
from deftx.core.provenance import Provenance
from deftx.core.vector import SparseVector, check_same_base
from deftx.core.vector_checks import as_list, check_distinct, check_language
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

# In the config of a composed model: whether its task has pairs of texts as input, and whether it
# was trained on texts without capitals
PAIRS = "deftx_pairs"
LOWER_CASE = "deftx_lower_case"


class HasProvenance(Protocol):
    """What records where it comes from, as vectors and adapters do."""

    @property
    def provenance(self) -> Provenance:
        """Where it comes from."""


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
    languages = [] if language is None else as_list(language)
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
    """Save a composed model and its tokenizer, which cuts inputs to the task's length, as an
    ordinary checkpoint.

    Of several task vectors, the head and the length are those of the first.

    Args:
        out: The folder to be made.
        base: Folder or hub id of the base.
        tasks: The task vectors.
        languages: The language vectors, if any.
        rule: How the vectors are combined: see `merge`.
        force: Replace the model that is there.
        ignore_base_mismatch: As in `compose`.

    Raises:
        DeftxError: As `compose` does, and where something else is at `out`.
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
    """θ0 with a head of the task's shape, to which vectors can be applied.

    All vectors are checked against θ0. `apply_temporarily(model, *languages, task)` on the model is
    `compose` that is undone at the end of the block: for many languages on one loaded base.

    Args:
        base: Folder or hub id of the base.
        task: The task vector, or several.
        languages: All language vectors that are to be applied.
        head: Of several task vectors with heads, which head is used: 0 is the first.
        tokenizer: The base's, if it is loaded already.
        ignore_base_mismatch: As in `compose`.

    Raises:
        DeftxError: A vector does not fit θ0 or its tokenizer, or the task's head does not fit the
            model.
    """
    tasks = as_list(task)
    top = select_head(tasks, head)
    if top is None or top.head is None:
        raise DeftxError(NO_HEAD)
    check_language(*languages)
    check_same_base(top, *languages, *tasks)
    model, random = load_with_new_head(base, top.head.labels, task=task_type(top))

    # What `load_composed` and `deftx predict --model` need to know
    setattr(model.config, TASK, top.task or DEFAULT_TASK)
    setattr(model.config, PAIRS, uses_text_pairs(top))
    setattr(model.config, LOWER_CASE, without_capitals(top))

    # All vectors that record a base record the same one: checking the first of them is enough
    for vector in (top, *languages, *tasks):
        if vector.provenance.base_fingerprint:
            check_base(model, vector, ignore_base_mismatch=ignore_base_mismatch)
            break
    check_recorded_tokenizer(
        tokenizer or base, *tasks, *languages, ignore_base_mismatch=ignore_base_mismatch
    )
    check_head(model, random, top.head.tensors)
    return model


# --- what a task vector records ---


def task_type(vector: HasProvenance) -> Task:
    """The kind of task that a task vector is for; one that records none is a classifier's."""
    return task_of(vector.provenance.task or DEFAULT_TASK)


def uses_text_pairs(task: HasProvenance) -> bool | None:
    """Whether a task was trained on pairs of texts; None where it is not recorded."""
    return task.provenance.data.pairs


def without_capitals(task: HasProvenance) -> bool:
    """Whether it is recorded that a task was trained on texts without capitals."""
    return task.provenance.data.lower_case is True


def trained_length(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: HasProvenance
) -> int:
    """The number of tokens that a task's inputs are cut to: as in its training, if the model takes
    so many."""
    longest = longest_input(model, tokenizer)
    recorded = task.provenance.training.length
    return min(recorded or longest, longest)
