"""Adapters: what a baseline learns beside a base that stays as it is. Trained alike, checked alike,
kept alike.

The methods, each a module of its own with `fit_language`, `fit_task` and `compose`, differ in what
they add to the model. `Adapter.method` is the name of the module.
"""

import hashlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from torch import Tensor, float32, nn
from transformers import PreTrainedModel

from deftx.config import LanguageVectorConfig, TaskVectorConfig
from deftx.core.apply import apply
from deftx.core.parameters import parameter_groups
from deftx.core.provenance import PhaseLog, Provenance
from deftx.core.tensors import Head
from deftx.core.vector import SparseVector
from deftx.data.examples import Examples
from deftx.errors import DeftxError, first_fault
from deftx.experiments.baselines.config import (
    LoraArithmeticConfig,
    LoraLanguageConfig,
    LoraTaskConfig,
    MadxConfig,
    MadxLanguageConfig,
    MadxTaskConfig,
)
from deftx.models.fingerprint import fingerprint, fingerprint_of
from deftx.models.heads import load_task_model
from deftx.models.loading import Base
from deftx.storage.manifest import Form
from deftx.storage.provenance_json import provenance_from_json, provenance_to_json
from deftx.storage.tensors import read_tensors, save_tensors
from deftx.training.loop import LOOP_VERSION, TrainableState, train
from deftx.training.preparation import PreparedTraining, prepare_language, prepare_task
from deftx.training.random_streams import derived_seed
from deftx.training.resume import ResumePoint

FILE = "adapter.safetensors"
_BODY, _HEAD = "body/", "head/"  # what the names of tensors begin with in the file


@dataclass(frozen=True, eq=False)
class Adapter:
    """A language or a task as a baseline learns it.

    Attributes:
        method: `madx` or `lora`.
        tensors: Its parameters by name, float32, on the CPU.
        head: The task's head, for tasks only.
        provenance: Where it comes from, as a vector's; `kind` is `language` or `task`.
    """

    method: str
    tensors: Mapping[str, Tensor]
    head: Head | None = None
    provenance: Provenance = field(default_factory=Provenance)

    @property
    def size(self) -> int:
        """The number of its parameters, without the head's."""
        return sum(tensor.numel() for tensor in self.tensors.values())


def prepare_language_adapter(
    base: Base, text: Sequence[str], settings: MadxLanguageConfig | LoraLanguageConfig
) -> PreparedTraining:
    """What the training of a language adapter starts from: the same as for a language vector."""
    config = LanguageVectorConfig(seed=settings.seed, training=settings.training)
    return prepare_language(base, text, config)


def prepare_task_adapter(
    method: str,
    base: Base,
    train_set: Examples,
    valid_set: Examples,
    settings: MadxTaskConfig | LoraTaskConfig,
    source: Adapter | None,
) -> PreparedTraining:
    """What the training of a task adapter starts from: the same as for a task vector.

    `source` is checked, but not put on the model.

    Raises:
        DeftxError: `source` is no language adapter of this method that was made on this base.
    """
    config = TaskVectorConfig(seed=settings.seed, training=settings.training)
    start = prepare_task(base, {"": train_set}, {"": valid_set}, config)
    if source is not None:
        check(source, method, "language", base, str(start.origin.base_fingerprint))
    return start


def learn(
    method: str,
    start: PreparedTraining,
    parameters: Mapping[str, nn.Parameter],
    settings: MadxConfig | LoraArithmeticConfig,
    *,
    trained_head: Collection[str] = (),
    source: Adapter | None = None,
    checkpoint_dir: Path | None = None,
    title: str = "",
) -> Adapter:
    """Train parameters of an otherwise frozen model; for a task, the whole head too.

    Args:
        method: The name of the method.
        start: What the training starts from.
        parameters: What is trained, by name.
        settings: Settings of the adapter and of its training.
        trained_head: The names of what is trained of a language modelling head, and thrown away.
        source: What the model has learnt before.
        checkpoint_dir: Folder for the state of a training that is under way, so that one that was
            killed resumes.
        title: What the progress bar says.
    """
    model = start.model
    task = start.origin.kind == "task"
    body = list(parameters.values())
    top = parameter_groups(model).head
    if not task:  # as for a vector
        top = {name: parameter for name, parameter in top.items() if name in trained_head}
    anchors = [parameter.detach().clone() for parameter in body]
    state = TrainableState(body, anchors, list(top.values()))
    model.requires_grad_(False)
    for parameter in state.all_parameters:
        parameter.requires_grad_(True)
    resume_point = None
    if checkpoint_dir is not None:
        resume_point = ResumePoint(
            checkpoint_dir / f"{method}.state.safetensors", _key(method, start, settings, source)
        )
    result = train(
        model,
        start.objective,
        settings.training,
        state,
        seed=derived_seed(settings.seed, method),
        title=title,
        resume_point=resume_point,
    )
    head = Head(_copies(top), start.origin.labels) if task else None
    size = sum(parameter.numel() for parameter in body)
    recorded = provenance_from_json({**settings.deciding(), "size": size})
    recorded_source = None
    if task and source is not None:
        recorded_source = source.provenance
    provenance = replace(
        start.origin.updated(recorded),
        method=method,
        source=recorded_source,
        log={"training": PhaseLog(**asdict(result))},
    )
    return Adapter(method, _copies(parameters), head, provenance)


def classifier(base: Base, method: str, task: Adapter, language: Adapter | None) -> PreTrainedModel:
    """The base with the task's head, in eval mode, for the two adapters to be put on.

    Raises:
        DeftxError: An adapter is of another method, kind or base, or the head does not fit.
    """
    if task.head is None:
        raise DeftxError("the task adapter has no head: give the one that `fit_task` made")
    model = load_task_model(base, task.head.labels)
    if parameter_groups(model).head.keys() != task.head.tensors.keys():
        raise DeftxError(
            f"the task adapter's head is not one of {os.fspath(base)}: give the base it was made on"
        )
    base_fingerprint = fingerprint(model)
    check(task, method, "task", base, base_fingerprint)
    if language is not None:
        check(language, method, "language", base, base_fingerprint)
    apply(model, SparseVector({}, task.head))
    return model


def check(adapter: Adapter, method: str, kind: str, base: Base, base_fingerprint: str) -> None:
    """Check that an adapter is of a method and kind, and was made on the base of a fingerprint.

    Raises:
        DeftxError: It is not so.
    """
    if (adapter.method, adapter.provenance.kind) != (method, kind):
        other = f"{adapter.provenance.kind} adapter of {adapter.method}"
        raise DeftxError(
            f"a {other} is not a {kind} adapter of {method}: give one that its `fit_{kind}` made"
        )
    made_on = str(adapter.provenance.base_fingerprint)
    if made_on != base_fingerprint:
        named = f"{adapter.provenance.base} ({made_on[:12]})"
        here = f"{os.fspath(base)} ({base_fingerprint[:12]})"
        raise DeftxError(
            f"the {kind} adapter was made on {named}, not on {here}: give the base it was made on"
        )


def save_adapter(adapter: Adapter, folder: str | os.PathLike[str]) -> None:
    """Write `adapter` to `folder`, whole or not at all; one that is there is replaced.

    It is one safetensors file, whose metadata are JSON.

    Raises:
        DeftxError: The disk is full or read-only.
    """
    top = adapter.head.tensors if adapter.head else {}
    tensors = {f"{_BODY}{name}": tensor for name, tensor in adapter.tensors.items()}
    tensors |= {f"{_HEAD}{name}": tensor for name, tensor in top.items()}
    labels = list(adapter.head.labels) if adapter.head else None
    about = {
        "format_version": 1,
        "method": adapter.method,
        "labels": labels,
        "info": provenance_to_json(adapter.provenance),
    }
    save_tensors(Path(folder) / FILE, tensors, about)


def load_adapter(folder: str | os.PathLike[str]) -> Adapter:
    """The adapter that `save_adapter` wrote to `folder`, bit for bit.

    Raises:
        DeftxError: It is no such thing.
    """
    path = Path(folder) / FILE
    try:
        tensors, metadata = read_tensors(path)
    except DeftxError as error:
        raise DeftxError(f"{error}: give a folder that `save_adapter` wrote") from error
    try:
        about = _About.model_validate(metadata)
    except ValidationError as error:
        place, fault = first_fault(error)
        raise DeftxError(f"{path} is damaged: {place!r}: {fault}") from error
    body = {}
    top = {}
    for name, tensor in tensors.items():
        is_known = name.startswith((_BODY, _HEAD))
        if not is_known or tensor.dtype != float32 or not tensor.isfinite().all():
            raise DeftxError(
                f"{path} is damaged: {name!r} is not a finite float32 tensor of an adapter"
            )
        if name.startswith(_BODY):
            body[name.removeprefix(_BODY)] = tensor
        else:
            top[name.removeprefix(_HEAD)] = tensor
    head = None if about.labels is None else Head(top, tuple(about.labels))
    return Adapter(about.method, body, head, provenance_from_json(about.info))


class _About(Form):
    """What the file says of itself; `labels` are the head's, if there is one."""

    format_version: Literal[1]
    method: str
    labels: list[str] | None
    info: dict[str, Any]


def _key(
    method: str,
    start: PreparedTraining,
    settings: MadxConfig | LoraArithmeticConfig,
    source: Adapter | None,
) -> str:
    """Names everything that determines the result of a training."""
    chosen = settings.deciding()
    below = fingerprint_of(source.tensors, source.tensors.__getitem__) if source else None
    config = start.model.config.to_json_string()  # dropout, labels and the like
    parts = [
        version("deftx"),
        LOOP_VERSION,
        method,
        start.origin.base_fingerprint,
        config,
        start.objective.digest,
        chosen,
        below,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _copies(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: parameter.detach().cpu().clone() for name, parameter in parameters.items()}
