"""How a vector is trained: the settings of one training."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, PositiveFloat, ValidationInfo, field_validator, model_validator
from pydantic.functional_validators import ModelWrapValidatorHandler

from deftx.config.base import Config

# Settings of trainings that came after vectors were learnt without them, and the value with which
# nothing is different: what was learnt before keeps its name.
LATER = {"noise": 0.0, "held_out_blocks": None, "dropout": None, "base_precision": "fp32"}

Count = Annotated[int, Field(gt=0, lt=2**31)]
Epochs = Annotated[float, Field(gt=0, le=1_000_000)]
Penalty = Annotated[float, Field(ge=0, le=1_000_000)]

TrainingConfigT = TypeVar("TrainingConfigT", bound="TrainingConfig")


class TrainingConfig(Config):
    """One training, the same in both phases. Steps are optimiser steps."""

    learning_rate: PositiveFloat = 5e-5
    """Learning rate of AdamW at the first step; it falls linearly to 0."""
    batch_size: Count = 8
    """Examples, or blocks of text, in a batch."""
    accumulate: Count = 1
    """Batches whose gradients are added up before a step."""
    epochs: Epochs = 100
    """Times that the training data are seen, within `min_steps` and `max_steps`."""
    max_steps: Count | None = None
    """The most steps; null: as many as `epochs` take. Set alone, it lowers `min_steps` where that
    is larger."""
    min_steps: int = Field(0, ge=0, lt=2**31, validate_default=True)
    """The fewest steps, however few the data."""
    evaluate_every: Count = 1000
    """Steps between two evaluations on held-out data; the best evaluated step is kept."""
    average: Count = 1
    """Phase 2 ends at the mean of its last so many evaluated steps; 1: at the best one."""
    length: Count = 256
    """Longest input, in tokens."""
    l1: Penalty = 0.0
    """Weight λ of the penalty λ/N · ‖θ − θ0‖₁, N being the number of all parameters of the
    model."""
    clip: PositiveFloat = 1.0
    """Largest norm of the gradient."""
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Dropout of the base while it is trained; null: as its config has it."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Number format of the forward pass; auto takes bf16 where the device computes it faster than
    fp32."""
    base_precision: Literal["fp32", "bf16"] = "fp32"
    """Number format that the base's weights are held in: bf16 takes half of the memory, for methods
    without phase 1 and bases that are stored in bf16. The trained entries are kept in fp32."""
    report_to: tuple[str, ...] = ()
    """Trackers to log to, such as tensorboard, wandb or trackio."""
    logs: str = "logs"
    """Folder for the files of tensorboard, with a folder for each phase of each fit."""

    @model_validator(mode="wrap")
    @classmethod
    def _max_steps_alone(
        cls, data: Any, handler: ModelWrapValidatorHandler[TrainingConfigT]
    ) -> TrainingConfigT:
        """Where `max_steps` is given and `min_steps` is not, the default of the latter is no more
        than the former."""
        usual_min_steps = cls.model_fields["min_steps"].default
        most = None
        if isinstance(data, Mapping) and "min_steps" not in data:
            most = data.get("max_steps")
        if not isinstance(most, int) or most >= usual_min_steps:
            return handler(data)
        training = handler({**data, "min_steps": most})
        training.model_fields_set.discard("min_steps")  # another max_steps may change it again
        return training

    @field_validator("min_steps")
    @classmethod
    def _at_most_max_steps(cls, value: int, info: ValidationInfo) -> int:
        most = info.data.get("max_steps")
        if most is not None and value > most:
            raise ValueError(f"is more than max_steps = {most}; change one of the two")
        return value


class LanguageTrainingConfig(TrainingConfig):
    """Language modelling on plain text; the defaults are the paper's (Appendix C), but for
    `held_out_blocks`."""

    max_steps: Count | None = 100_000
    min_steps: int = Field(30_000, ge=0, lt=2**31, validate_default=True)
    l1: Penalty = 0.1
    mask: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Share of the tokens that masked language modelling chooses, and that denoising hides."""
    replacements: Literal["vocabulary", "corpus"] = "corpus"
    """What a tenth of the chosen tokens is drawn from: the whole vocabulary, or the text's own
    pieces."""
    lm_head: Literal["trained", "frozen"] = "trained"
    """Whether the language modelling head, except its decoder matrix, is trained along and thrown
    away (trained), or stays as it is (frozen)."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of the lines that the best step is chosen on."""
    held_out_blocks: Count | None = 1000
    """The most blocks of `length` tokens that are held out; null: the whole share, as in the
    paper."""
    head: str | None = None
    """Model of the same kind whose language modelling head is used where the base has none, as mE5
    has none."""


class TaskTrainingConfig(TrainingConfig):
    """Labelled data; the defaults are the paper's for sentiment (Appendix C)."""

    batch_size: Count = 16
    epochs: Epochs = 10
    evaluate_every: Count = 250
    metric: str | None = None
    """Metric that decides between steps; null: the task's own, which is macro-F1 for
    classification."""
    noise: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the words of the training texts that get one wrong letter."""


def metric_name(metric: str) -> str:
    """How a metric is written for people, such as macro-F1."""
    if metric in ("las", "uas"):
        return metric.upper()
    return metric.replace("f1", "F1").replace("_", "-")
