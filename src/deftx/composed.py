"""Composed models: a base with a task vector and language vectors."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from deftx.core.compose import apply
from deftx.core.merge import rule_of, to_add, with_head
from deftx.core.vector import SparseVector, check_distinct, check_language, check_same_base
from deftx.errors import DeftxError
from deftx.models import DEFAULT_TASK, TASK, Base, check_head, longest_input, with_new_head
from deftx.storage.fingerprint import check_base
from deftx.tasks.supervised import Task
from deftx.tasks.table import task_of


class Noted(Protocol):
    """What notes where it comes from, as vectors do."""

    @property
    def info(self) -> Mapping[str, Any]:
        """JSON-like data."""


def compose(
    base: Base,
    task: SparseVector | Sequence[SparseVector],
    language: SparseVector | Sequence[SparseVector] = (),
    *,
    rule: str = "sum",
    head: int | None = None,
    force: bool = False,
) -> PreTrainedModel:
    """θ0 + φ_task + φ_language with the task's head: an ordinary transformers model, in eval mode.

    base      folder or hub id of the base that all vectors were made on
    task      the task vector, or several
    language  one language vector, several (added in order), or none
    rule      how the vectors are combined, such as `ties` or `scaled:language_scale=1.2`: see `merge`
    head      of several task vectors with heads, whose is used: 0 is the first
    force     go on, with a warning, where the base has other weights than the vectors' base
    """
    tasks = [task] if isinstance(task, SparseVector) else list(task)
    languages = [language] if isinstance(language, SparseVector) else list(language)
    rule_of(rule)
    check_language(*languages)
    check_distinct(*tasks, *languages)
    top = with_head(tasks, head) or SparseVector({})
    model = without_vectors(base, top, languages, [other for other in tasks if other is not top], force=force)
    apply(model, *to_add(rule, tasks, languages, head))
    return model


def without_vectors(
    base: Base,
    task: SparseVector,
    languages: Sequence[SparseVector] = (),
    others: Sequence[SparseVector] = (),
    *,
    force: bool = False,
) -> PreTrainedModel:
    """θ0 with a head of the task's shape, for the vectors to be applied to; all are checked against θ0.

    others  further task vectors, whose heads are not used

    Raises DeftxError where a vector does not fit θ0, or the task's head its model.

    `applied(model, *languages, task)` on it is `compose`, to be undone: for many languages on one loaded base.
    """
    if task.head is None:
        raise DeftxError("the task vector has no head: give the vector that `deftx fit task` made")
    check_language(*languages)
    check_same_base(task, *languages, *others)
    model, random = with_new_head(base, task.head.labels, task=kind_of(task))
    setattr(model.config, TASK, task.info.get("task") or DEFAULT_TASK)  # for `load_composed`
    named = [vector for vector in (task, *languages, *others) if vector.info.get("base_fingerprint")]
    for vector in named[:1]:  # the others name the same base
        check_base(model, vector, force=force)
    check_head(model, random, task.head.tensors)
    return model


def kind_of(vector: Noted) -> Task:
    """The kind of task that a task vector is for; one that notes none is a classifier's."""
    return task_of(str(vector.info.get("task") or DEFAULT_TASK))


def trained_length(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Noted) -> int:
    """The tokens that a task's inputs are cut to: as many as in its training."""
    longest = longest_input(model, tokenizer)
    return min(task.info.get("training", {}).get("length") or longest, longest)
