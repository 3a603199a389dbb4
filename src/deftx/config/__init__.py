"""What can be set: what a vector keeps, and how to train it. Unknown names and wrong types are
errors."""

from deftx.config.base import Config, changed, check_kind, merged, parse
from deftx.config.descriptions import Described, described
from deftx.config.presets import (
    LANGUAGE_PRESETS,
    PRESET,
    TABLES,
    TASK_PRESETS,
    preset_named,
    with_preset,
)
from deftx.config.training import (
    LATER,
    LanguageTrainingConfig,
    TaskTrainingConfig,
    TrainingConfig,
    metric_name,
)
from deftx.config.vectors import (
    FitConfig,
    LanguageVectorConfig,
    ReselectionConfig,
    Seed,
    TaskVectorConfig,
    VectorConfig,
)

__all__ = [
    "LANGUAGE_PRESETS",
    "LATER",
    "PRESET",
    "TABLES",
    "TASK_PRESETS",
    "Config",
    "Described",
    "FitConfig",
    "LanguageTrainingConfig",
    "LanguageVectorConfig",
    "ReselectionConfig",
    "Seed",
    "TaskTrainingConfig",
    "TaskVectorConfig",
    "TrainingConfig",
    "VectorConfig",
    "changed",
    "check_kind",
    "described",
    "merged",
    "metric_name",
    "parse",
    "preset_named",
    "with_preset",
]
