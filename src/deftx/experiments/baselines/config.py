"""Settings of the baselines: MAD-X (Pfeiffer et al. 2020, 2021) and LoRA arithmetic."""

from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from deftx.config import FitConfig, LanguageTrainingConfig, TaskTrainingConfig


class AdapterLanguageTrainingConfig(LanguageTrainingConfig):
    """Training of a language adapter: a larger learning rate than for vectors, and no penalty.

    Few new parameters are trained on top of a frozen base.
    """

    learning_rate: PositiveFloat = 1e-4
    l1: NonNegativeFloat = 0.0


class AdapterTaskTrainingConfig(TaskTrainingConfig):
    """Training of a task adapter: a larger learning rate than for vectors."""

    learning_rate: PositiveFloat = 1e-4


class MadxConfig(FitConfig):
    """An adapter of MAD-X."""

    k: int | float | str = "2.8%"
    """Size of the adapter where `reduction` is null, in parameters: a count, or a share of the
    trainable weights. The nearest size that bottlenecks allow is taken."""
    reduction: PositiveFloat | None = 2
    """Width of the base divided by the width of a bottleneck (below 1: a wider bottleneck); null:
    chosen so that the size is nearest to k."""


class MadxLanguageConfig(MadxConfig):
    """A language adapter of MAD-X."""

    invertible_reduction: Annotated[float, Field(ge=1)] = 2
    """The same ratio for the two bottlenecks of the invertible adapter."""
    training: AdapterLanguageTrainingConfig = AdapterLanguageTrainingConfig()


class MadxTaskConfig(MadxConfig):
    """A task adapter of MAD-X."""

    k: int | float | str = "5.1%"
    reduction: PositiveFloat | None = 1
    training: AdapterTaskTrainingConfig = AdapterTaskTrainingConfig()


class LoraArithmeticConfig(FitConfig):
    """A LoRA, W + α / rank · B A."""

    k: int | float | str = "2.8%"
    """Size of the LoRA where `rank` is null, in parameters: a count, or a share of the trainable
    weights."""
    rank: PositiveInt | None = None
    """Rank r of the LoRA; null: chosen so that the size is nearest to k."""
    alpha: PositiveInt | None = None
    """Scale α of the LoRA; null: the same as the rank."""


class LoraLanguageConfig(LoraArithmeticConfig):
    """A language LoRA."""

    training: AdapterLanguageTrainingConfig = AdapterLanguageTrainingConfig()


class LoraTaskConfig(LoraArithmeticConfig):
    """A task LoRA."""

    training: AdapterTaskTrainingConfig = AdapterTaskTrainingConfig()
