"""What can be set: what a vector keeps, and how to train it. Unknown names and wrong types are errors."""

import reprlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from deftx.core.ranks import noted
from deftx.errors import DeftxError, unknown

# Settings of trainings that came after vectors were learnt without them, and the value with which nothing is different:
# what was learnt before keeps its name.
LATER = {"noise": 0.0, "held_out_blocks": None}


Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what NumPy takes


class Settings(BaseModel):
    """Base of all settings: frozen, and strict about names; numbers are finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Training(Settings):
    """One training, the same in both phases. Steps are optimiser steps.

    epochs, max_steps, min_steps  steps = max(min_steps, min(max_steps, epochs over the data)); min_steps ≤ max_steps
    accumulate  batches whose gradients are added up before a step
    average    phase 2 ends at the mean of its last so many evaluated steps; 1: at the best one
    length     longest input, in tokens
    l1         weight λ of the penalty λ/N · ‖θ − θ0‖₁, N the backbone's parameter count
    clip       largest norm of the gradient
    precision  auto takes bf16 where the device computes it faster than fp32
    report_to  the Trainer's logging integrations, such as tensorboard, wandb or trackio
    logs       folder for the files of tensorboard, a folder in it for each phase of each fit
    """

    learning_rate: PositiveFloat = 5e-5
    batch_size: PositiveInt = 8
    accumulate: PositiveInt = 1
    epochs: PositiveFloat = 100
    max_steps: PositiveInt | None = None
    min_steps: int = Field(0, ge=0, validate_default=True)
    evaluate_every: PositiveInt = 1000
    average: PositiveInt = 1
    length: PositiveInt = 256
    l1: NonNegativeFloat = 0.0
    clip: PositiveFloat = 1.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    report_to: tuple[str, ...] = ()
    logs: str = "logs"

    @field_validator("min_steps")
    @classmethod
    def _at_most_max_steps(cls, value: int, info: ValidationInfo) -> int:
        most = info.data.get("max_steps")
        if most is not None and value > most:
            raise ValueError(f"is more than max_steps = {most}; change one of the two")
        return value


class LanguageTraining(Training):
    """Language modelling on plain text; the defaults are the paper's (Appendix C), but for `held_out_blocks`.

    mask      share of the tokens that masked language modelling chooses, and that denoising hides
    held_out  share of the lines that the best step is chosen on
    held_out_blocks  the most blocks of `length` tokens of them; None: all, as in the paper
    head      model of the same kind whose language modelling head stands in where the base has none, as mE5 has none
    """

    max_steps: PositiveInt | None = 100_000
    min_steps: int = Field(30_000, ge=0, validate_default=True)
    l1: NonNegativeFloat = 0.1
    mask: Annotated[float, Field(gt=0, lt=1)] = 0.15
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.05
    held_out_blocks: PositiveInt | None = 1000
    head: str | None = None


class TaskTraining(Training):
    """Labelled data; the defaults are the paper's for sentiment (Appendix C).

    metric  decides between steps; without it the task's own, which is macro-F1 for classification
    noise   share of the words of the training texts that get one wrong letter: see `deftx.tasks.noise`
    """

    batch_size: PositiveInt = 16
    epochs: PositiveFloat = 10
    evaluate_every: PositiveInt = 250
    metric: str | None = None
    noise: Annotated[float, Field(ge=0, le=1)] = 0.0


def metric_name(metric: str) -> str:
    """How a metric is written for people, such as macro-F1."""
    return metric.replace("f1", "F1").replace("_", "-")


class Learning(Settings):
    """What is trained, and the seed that decides everything random."""

    seed: Seed = 0
    training: Training

    def deciding(self) -> dict[str, Any]:
        """The settings as JSON-like data, without where logs go, which decides nothing, and what is off of LATER."""
        off = {name for name, value in LATER.items() if getattr(self.training, name, value) == value}
        return self.model_dump(mode="json", exclude={"training": {"logs", "report_to"} | off})

    def deciding_phase1(self) -> dict[str, Any]:
        """Those of `deciding` that full fine-tuning depends on; `average` is of phase 2."""
        training = {name: value for name, value in self.deciding()["training"].items() if name != "average"}
        return {"seed": self.seed, "training": training}


class Fit(Learning):
    """One run of Algorithm 1. Shares in k are of the tunable entries; shares in rank are of the variance.

    rank    a count, a share, or the name of a rule: see `deftx.core.ranks`
    split   within what the k entries compete: everything, each matrix, or each layer
    phase2  False: the selected entries have what phase 1 learnt, as denoising left it (the paper's ablations, Table 5)
    """

    method: str = "deftx"
    k: int | float | str = "2.8%"
    rank: int | float | str = "90%"
    keep: Annotated[float, Field(ge=0, le=1)] = 0.05
    split: Literal["global", "matrix", "layer"] = "global"
    phase2: bool = True

    def deciding(self) -> dict[str, Any]:
        """The settings that decide something; beside the rank `auto` also the `rank_rule` that it stands for."""
        return {**super().deciding(), **noted(self.rank)}


class LanguageFit(Fit):
    """A language vector."""

    training: LanguageTraining = LanguageTraining()


class TaskFit(Fit):
    """A task vector.

    task  what kind of task it is, such as tagging: one of `deftx.tasks.table.TASKS`
    """

    task: str = "classification"
    k: int | float | str = "5.1%"
    training: TaskTraining = TaskTraining()


class AdapterLanguageTraining(LanguageTraining):
    """As `LanguageTraining`, for few new parameters beside a base that stays: no penalty, larger steps."""

    learning_rate: PositiveFloat = 1e-4
    l1: NonNegativeFloat = 0.0


class AdapterTaskTraining(TaskTraining):
    """As `TaskTraining`, for few new parameters beside a base that stays: larger steps."""

    learning_rate: PositiveFloat = 1e-4


class MadxFit(Learning):
    """An adapter of MAD-X. Bottlenecks are `reduction` times narrower than the base, whose width gives the number."""

    reduction: Annotated[float, Field(ge=1)] = 2


class MadxLanguageFit(MadxFit):
    """A language adapter of MAD-X; `invertible_reduction` is that of the halves of the invertible adapter."""

    invertible_reduction: Annotated[float, Field(ge=1)] = 2
    training: AdapterLanguageTraining = AdapterLanguageTraining()


class MadxTaskFit(MadxFit):
    """A task adapter of MAD-X."""

    reduction: Annotated[float, Field(ge=1)] = 1
    training: AdapterTaskTraining = AdapterTaskTraining()


class LoraFit(Learning):
    """A LoRA, W + alpha / rank · B A.

    rank   None: the one whose number of parameters is nearest to k of the tunable entries
    alpha  None: as the rank
    """

    k: int | float | str = "2.8%"
    rank: PositiveInt | None = None
    alpha: PositiveInt | None = None


class LoraLanguageFit(LoraFit):
    """A language LoRA."""

    training: AdapterLanguageTraining = AdapterLanguageTraining()


class LoraTaskFit(LoraFit):
    """A task LoRA."""

    training: AdapterTaskTraining = AdapterTaskTraining()


# The paper's settings, and small ones for a first look on an ordinary machine. At XLM-R base's 277M
# tunable parameters the default shares of k are the paper's 7.6M and 14.2M.
LANGUAGE_PRESETS = {
    "paper": LanguageFit(k="7.6M", rank="90%"),
    "quick": LanguageFit(
        training=LanguageTraining(learning_rate=1e-4, max_steps=1000, min_steps=0, evaluate_every=100)
    ),
}
TASK_PRESETS = {
    "paper-sentiment": TaskFit(k="14.2M", rank="90%", training=TaskTraining(metric="macro_f1")),
    "paper-nli": TaskFit(
        k="14.2M",
        rank="90%",
        training=TaskTraining(batch_size=32, epochs=5, evaluate_every=625, metric="accuracy"),
    ),
    "quick": TaskFit(training=TaskTraining(learning_rate=1e-4, epochs=2, evaluate_every=100)),
}

# How values are to be written, where pydantic names a type of Python.
FORMS = {
    "tuple_type": "give a list, such as [0, 1]",
    "dict_type": "give a name before each value, such as {min: test.tsv}",
    "model_type": "give a name before each value, such as {batch_size: 4}",
}

S = TypeVar("S", bound=Settings)


def changed(settings: S, changes: Mapping[str, Any]) -> S:
    """`settings` with nested `changes`, such as {"k": "5%", "training": {"batch_size": 4}}, checked anew."""
    return parse(type(settings), merged(settings.model_dump(exclude_unset=True), changes))


def check_kind(settings: object, kind: type[Settings]) -> None:
    """Raise DeftxError for settings of another kind, or a dict of them."""
    if not isinstance(settings, kind):
        raise DeftxError(f"the settings are a {type(settings).__name__}: give a deftx.{kind.__name__}")


def parse(kind: type[S], data: Mapping[str, Any]) -> S:
    """`data` as settings of a `kind`. Raises DeftxError, one line, that names the key and what it allows."""
    try:
        return kind.model_validate(dict(data))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = _known(kind, first["loc"])
            raise unknown("setting", key, known, _within(kind) if len(first["loc"]) == 1 else ()) from None
        value = "" if first["type"] == "missing" else f" = {reprlib.repr(first['input'])}"
        message = FORMS.get(first["type"]) or first["msg"].removeprefix("Value error, ")
        raise DeftxError(f"setting {key}{value}: {message[:1].lower()}{message[1:]}") from None


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """`old` with what `new` says instead, mapping within mapping."""
    both = {
        key: merged(old[key], new[key])
        for key in old.keys() & new.keys()
        if isinstance(old[key], Mapping) and isinstance(new[key], Mapping)
    }
    return {**old, **new, **both}


def _known(kind: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The keys allowed beside the one at `location`, written out from the top."""
    prefix = ""
    for part in location[:-1]:
        field = kind.model_fields.get(str(part))
        if field is None or not isinstance(field.annotation, type) or not issubclass(field.annotation, BaseModel):
            break
        kind, prefix = field.annotation, f"{prefix}{part}."
    return [prefix + name for name in kind.model_fields]


def _within(kind: type[BaseModel]) -> list[str]:
    """The keys that stand within others, written out, such as training.batch_size."""
    parts = {name: field.annotation for name, field in kind.model_fields.items()}
    return [
        f"{name}.{inner}"
        for name, part in parts.items()
        if isinstance(part, type) and issubclass(part, BaseModel)
        for inner in part.model_fields
    ]
