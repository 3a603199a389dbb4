"""A recipe: one comparison as one YAML file. What to train on, what to vary, what to test on."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, field_validator

from deftx.core.merge import rule_of
from deftx.errors import DeftxError
from deftx.settings import LanguageFit, Settings, TaskFit, changed, parse

_LARGEST = 100_000  # values of a recipe
TASK = "task"  # stands beside the languages where vectors are named


class ColumnNames(Settings):
    """Which columns of labelled data to read; the defaults are those of `deftx.read_examples`."""

    text: str = "text"
    pair: str | None = None
    label: str = "label"


class Variant(Settings):
    """One row of the table: how its fits differ from the recipe's, and where language vectors are applied.

    source   the task is learnt on θ0 + φ_source (False: on θ0)
    target   the target's language vector is applied (False: the task vector alone)
    compose  how vectors are combined, such as `ties:density=0.8` (see `deftx.merge`)
    """

    source: bool = True
    target: bool = True
    compose: str = "sum"
    language: dict[str, Any] = Field(default_factory=dict)
    task: dict[str, Any] = Field(default_factory=dict)

    @field_validator("compose")
    @classmethod
    def _known_rule(cls, value: str) -> str:
        rule_of(value)
        return value


class Recipe(Settings):
    """A whole comparison. Files are given relative to the recipe's own folder.

    base       folder or hub id
    languages  name -> plain text (one file or several) from which its language vector is learnt
    source     the language of the labelled data
    train      labelled data; valid: the same, for choosing the best step
    test       language -> labelled data to score on
    language   settings of the language fits; task: of the task fits
    ngrams     also score character n-grams and logistic regression trained on `train`
    leakage    what to do where text to train on holds text of `test` (see `deftx.tasks.leakage`): stop, trim it, or
               ignore it
    """

    base: str
    seeds: tuple[int, ...] = (0,)
    languages: dict[str, str | tuple[str, ...]]
    source: str
    train: str
    valid: str
    test: dict[str, str]
    columns: ColumnNames = ColumnNames()
    language: LanguageFit = LanguageFit()
    task: TaskFit = TaskFit()
    variants: dict[str, Variant]
    ngrams: bool = False
    leakage: Literal["stop", "trim", "ignore"] = "stop"

    @field_validator("languages")
    @classmethod
    def _names_of_folders(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if name == TASK or not re.fullmatch(r"[\w.-]*\w[\w.-]*", name):
                raise ValueError(f"a language cannot be called {name!r}: use letters, digits, - and _ (not {TASK!r})")
        return value

    def language_fit(self, variant: str, seed: int) -> LanguageFit:
        """The settings of a variant's language vectors."""
        return changed(self.language, {**self.variants[variant].language, "seed": seed})

    def task_fit(self, variant: str, seed: int) -> TaskFit:
        """The settings of a variant's task vector."""
        return changed(self.task, {**self.variants[variant].task, "seed": seed})

    def needed_languages(self, variant: str) -> list[str]:
        """The languages whose vectors a variant uses, the source first."""
        chosen = self.variants[variant]
        targets = [name for name in self.test if name != self.source] if chosen.target else []
        source = [self.source] if chosen.source or (chosen.target and self.source in self.test) else []
        return [*source, *targets]


def load_recipe(path: Path, changes: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe in a YAML file, with nested `changes` made to it; everything in it is checked."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DeftxError(f"cannot read the recipe {path}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no text, or a date such as 2024-99-99
        raise DeftxError(f"the recipe {path} is not YAML: {' '.join(str(error).split())}") from None
    if _too_large(data):
        raise DeftxError(f"the recipe {path} has more than {_LARGEST:,} values: its references (*) multiply them")
    if not isinstance(data, dict):
        raise DeftxError(f"the recipe {path} is not a mapping of keys to values")
    recipe = changed(parse(Recipe, data), changes or {})
    for variant in recipe.variants:
        recipe.language_fit(variant, 0), recipe.task_fit(variant, 0)
        missing = [name for name in recipe.needed_languages(variant) if name not in recipe.languages]
        if missing:
            raise DeftxError(f"the recipe {path} has no text for {missing[0]!r}; give it under `languages`")
    return _rooted(recipe, path.parent)


def _too_large(data: Any) -> bool:
    """Whether data holds more values than a recipe can have, each counted as often as it is referred to."""
    rest, count = [data], 1
    while rest and count <= _LARGEST:
        value = rest.pop()
        inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
        rest, count = rest + inner, count + len(inner)
    return count > _LARGEST


def _rooted(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with its files as paths from here instead of from the recipe's folder."""

    def root(source: str) -> str:
        return source if source.startswith("hub:") else str(folder / os.path.expanduser(source))

    texts = {name: tuple(map(root, [t] if isinstance(t, str) else t)) for name, t in recipe.languages.items()}
    local = folder / recipe.base
    return recipe.model_copy(
        update={
            "base": str(local) if local.is_dir() else recipe.base,
            "languages": texts,
            "train": root(recipe.train),
            "valid": root(recipe.valid),
            "test": {name: root(source) for name, source in recipe.test.items()},
        }
    )
