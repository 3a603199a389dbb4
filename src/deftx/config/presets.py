"""Presets: settings of vectors by name."""

from collections.abc import Mapping
from typing import Any

from deftx.config.base import ConfigT, merged
from deftx.config.training import LanguageTrainingConfig, TaskTrainingConfig
from deftx.config.vectors import LanguageVectorConfig, TaskVectorConfig, VectorConfig
from deftx.errors import unknown

PRESET = "preset"  # among settings in a recipe: the name of those to start from

# quick: a first look on an ordinary machine
# standard: an evening on an ordinary GPU, or a night on a processor; provisional, until curves have
#     been measured
# paper-*: the paper's settings for XLM-R base, with its best ranks (Tables 2 and 3) and k as in
#     LT-SFT's code
PAPER_LANGUAGE_TRAINING = LanguageTrainingConfig(
    dropout=0.1, replacements="vocabulary", held_out_blocks=None
)
LANGUAGE_PRESETS = {
    "paper-sentiment": LanguageVectorConfig(
        k=7_667_712, rank=100, training=PAPER_LANGUAGE_TRAINING
    ),
    "paper-nli": LanguageVectorConfig(k=7_667_712, rank=200, training=PAPER_LANGUAGE_TRAINING),
    "quick": LanguageVectorConfig(
        training=LanguageTrainingConfig(
            learning_rate=1e-4, max_steps=1000, min_steps=0, evaluate_every=100
        )
    ),
    "standard": LanguageVectorConfig(
        training=LanguageTrainingConfig(
            learning_rate=1e-4, length=128, max_steps=3000, min_steps=0, evaluate_every=250
        )
    ),
}
TASK_PRESETS = {
    "paper-sentiment": TaskVectorConfig(
        k=14_155_776,
        rank=100,
        training=TaskTrainingConfig(metric="macro_f1", dropout=0.1),
    ),
    "paper-nli": TaskVectorConfig(
        k=14_155_776,
        rank="90%",
        training=TaskTrainingConfig(
            batch_size=32, epochs=5, evaluate_every=625, metric="accuracy", dropout=0.1
        ),
    ),
    "quick": TaskVectorConfig(
        training=TaskTrainingConfig(learning_rate=1e-4, epochs=2, evaluate_every=100)
    ),
    "standard": TaskVectorConfig(
        training=TaskTrainingConfig(epochs=3, max_steps=3000, evaluate_every=250)
    ),
}

# what is learnt -> its kind of settings, and its presets
TABLES: dict[str, tuple[type[VectorConfig], Mapping[str, VectorConfig]]] = {
    "language": (LanguageVectorConfig, LANGUAGE_PRESETS),
    "task": (TaskVectorConfig, TASK_PRESETS),
}


def preset_named(presets: Mapping[str, ConfigT], name: object) -> ConfigT:
    """The settings of a preset.

    Raises:
        DeftxError: None of the presets has that name.
    """
    if not isinstance(name, str) or name not in presets:
        raise unknown("preset", str(name), presets)
    return presets[name]


def with_preset(data: Any, presets: Mapping[str, ConfigT]) -> Any:
    """Settings as data: their `preset` with their own settings over it.

    Data that name no preset stay as they are.
    """
    if not isinstance(data, Mapping) or PRESET not in data:
        return data
    own = {key: value for key, value in data.items() if key != PRESET}
    preset = preset_named(presets, data[PRESET])
    return merged(preset.model_dump(exclude_unset=True), own)
