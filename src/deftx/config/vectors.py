"""What a vector keeps: the settings of one run of Algorithm 1, with those of its trainings."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator

from deftx.config.base import Config, changed
from deftx.config.training import (
    LATER,
    Count,
    LanguageTrainingConfig,
    TaskTrainingConfig,
    TrainingConfig,
)
from deftx.core.ranks import recorded_rank
from deftx.core.reselection import RESELECTIONS

Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what NumPy takes


class FitConfig(Config):
    """What is trained, and the seed that decides everything random."""

    seed: Seed = 0
    """Decides everything random."""
    training: TrainingConfig

    def deciding(self) -> dict[str, Any]:
        """The settings as JSON-like data, without where logs go, which decides nothing, and what is
        off of LATER."""
        undecided = {"logs", "report_to"}
        for name, value in LATER.items():
            if getattr(self.training, name, value) == value:
                undecided.add(name)
        return self.model_dump(mode="json", exclude={"training": undecided})

    def deciding_phase1(self) -> dict[str, Any]:
        """Those of `deciding` that full fine-tuning depends on; `average` is of phase 2."""
        training = dict(self.deciding()["training"])
        del training["average"]
        return {"seed": self.seed, "training": training}


class ReselectionConfig(Config):
    """When the methods spiel-ag, spiel-ma and spiel-deftx replace entries; the defaults are those
    of SpIEL's code."""

    every: Count = 20
    """Steps from one reselection to the next."""
    window: Count = Field(5, validate_default=True)
    """Steps before a reselection whose gradients are added up; the first reselection comes after
    so many steps."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of the entries that is replaced; it falls linearly to 0. The first reselection
    replaces all."""

    @field_validator("window")
    @classmethod
    def _at_most_every(cls, value: int, info: ValidationInfo) -> int:
        every = info.data.get("every")
        if every is not None and value > every:
            raise ValueError(f"is more than reselection.every = {every}; change one of the two")
        return value


class VectorConfig(FitConfig):
    """One run of Algorithm 1. Shares in k are of the trainable entries; shares in rank are of the
    variance."""

    method: str = "deftx"
    """What selects the entries: deftx, lt-sft (without denoising), or random (any k entries that
    phase 1 moved); without phase 1: pafi or largest-weights (the smallest or largest weights of the
    base), or spiel-ag, spiel-ma or spiel-deftx (chosen again and again in a single training)."""
    k: int | float | str = "2.8%"
    """Entries that the vector may change: a count (7.6M), or a share of the trainable weights
    (2.8% or 0.028)."""
    rank: int | float | str = "90%"
    """What denoising keeps of each matrix: a share of the variance (90% or 0.9), a rank (100; or
    100/768, relative to the base's width), or a rule by name."""
    keep: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Share of each matrix's entries that are added back after the low-rank approximation."""
    keep_of: Literal["matrix", "rows-in-use"] = "matrix"
    """What `keep` is a share of: the whole matrix, as in the paper, or its rows that are not all
    zeros."""
    split: Literal["global", "matrix", "layer"] = "global"
    """Within what the k entries compete: all tensors together, each matrix, or each layer."""
    phase1_steps: Count | None = None
    """The most steps of phase 1, which only has to tell the entries that move; null: as many as
    phase 2."""
    phase2: bool = True
    """False: the selected entries have what phase 1 learnt, as denoising left it (the paper's
    ablation, Table 5)."""
    reselection: ReselectionConfig = ReselectionConfig()

    def deciding(self) -> dict[str, Any]:
        """The settings that decide something; beside the rank `auto` also the `rank_rule` that it
        stands for."""
        settings = {**super().deciding(), **recorded_rank(self.rank)}
        if self.method not in RESELECTIONS:
            del settings["reselection"]
        if self.phase1_steps is None:
            del settings["phase1_steps"]
        return settings

    def deciding_phase1(self) -> dict[str, Any]:
        """Those of `deciding` that full fine-tuning depends on."""
        return super(VectorConfig, self.of_phase1()).deciding_phase1()

    def of_phase1(self) -> Self:
        """The settings with the steps that phase 1 has, for both phases."""
        if self.phase1_steps is None:
            return self
        most = min(self.phase1_steps, self.training.max_steps or self.phase1_steps)
        fewest = min(self.training.min_steps, most)
        steps = {"max_steps": most, "min_steps": fewest}
        return changed(self, {"phase1_steps": None, "training": steps})


class LanguageVectorConfig(VectorConfig):
    """A language vector."""

    training: LanguageTrainingConfig = LanguageTrainingConfig()


class TaskVectorConfig(VectorConfig):
    """A task vector."""

    task: str = "classification"
    """Kind of task, such as classification, tagging or question-answering."""
    k: int | float | str = "5.1%"
    training: TaskTrainingConfig = TaskTrainingConfig()
