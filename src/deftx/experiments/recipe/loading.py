"""Recipes from YAML files: presets and relative paths are resolved, and everything is checked."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from deftx.config import LANGUAGE_PRESETS, PRESET, TASK_PRESETS, changed, merged, parse, with_preset
from deftx.errors import DeftxError, unknown
from deftx.experiments.inheritance import read
from deftx.experiments.recipe.checks import check_sources, check_task, check_variant
from deftx.experiments.recipe.schema import VECTORS, Labelled, Recipe, Variant
from deftx.tasks.registry import settled

HUB = "hub:"  # what the name of a data set on the hub begins with

Value = TypeVar("Value")


def load_recipe(path: Path, changes: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe in a YAML file, completely checked.

    A recipe that `extends` other recipes of its folder says only what is different. Later ones in
    the list override earlier ones, and null removes what they say. Settings may start from a
    `preset`, in the recipe and in a variant.

    Args:
        path: The YAML file.
        changes: Nested values that replace those of the file.

    Raises:
        DeftxError: The file cannot be read, or something in the recipe is wrong.
    """
    return recipe_from(merged(read(path), changes or {}), path)


def recipe_from(data: Mapping[str, Any], path: Path) -> Recipe:
    """The recipe that a file holds, completely checked.

    Args:
        data: The content of the file.
        path: The file, which need not exist. Its folder is what files are relative to.

    Raises:
        DeftxError: Something in the recipe is wrong.
    """
    recipe = parse(Recipe, _with_presets(data))
    recipe = recipe.model_copy(update={"task": settled(recipe.task)})

    check_sources(recipe)
    check_task(recipe)
    for variant in recipe.variants:
        check_variant(recipe, variant, path)
    if recipe.baseline is not None and recipe.baseline not in recipe.variants:
        raise unknown("variant (baseline)", recipe.baseline, recipe.variants)
    return _with_full_paths(recipe, path.parent)


def _with_presets(data: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's data, with the settings that presets stand for."""
    resolved: dict[str, Any] = _without_presets(data)
    variants = data.get("variants")
    if isinstance(variants, Mapping):
        resolved["variants"] = {}
        for name, variant in variants.items():
            resolved["variants"][name] = _without_presets(variant, str(name))
    return resolved


def _without_presets(data: Any, variant: str | None = None) -> Any:
    """The data of a recipe, or of a `variant`, with presets replaced by their settings.

    Raises:
        DeftxError: A preset is unknown, or in a variant that learns no vectors.
    """
    if not isinstance(data, Mapping):
        return data  # which `parse` refuses
    family = data.get("family", VECTORS)
    resolved = dict(data)
    for key, presets in (("language", LANGUAGE_PRESETS), ("task", TASK_PRESETS)):
        settings = data.get(key)
        if family != VECTORS and isinstance(settings, Mapping) and PRESET in settings:
            why = "has no presets, which are for vectors: say its settings"
            raise DeftxError(f"the variant {variant!r} ({family}) {why}")
        if key in data:
            resolved[key] = with_preset(settings, presets)
    return resolved


def _with_full_paths(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with files that can be found from the working directory.

    Files become paths that begin with the recipe's folder, and models absolute paths. Names on the
    hub stay as they are.
    """

    def path_of(name: str) -> str:
        path = folder / os.path.expanduser(name)
        if ".." not in path.parts:
            return str(path)
        # the recipe's folder may not exist yet, and then the system cannot follow `..` out of it
        return os.path.join(os.path.realpath(path.parent), path.name)

    def data_of(name: str) -> str:
        if not name or name.startswith(HUB):
            return name
        return path_of(name)

    def model_of(name: str) -> str:
        path = path_of(name)
        if os.path.isdir(path):
            return os.path.abspath(path)
        return name

    def texts_of(names: str | tuple[str, ...]) -> tuple[str, ...]:
        if isinstance(names, str):
            names = (names,)
        return tuple(data_of(name) for name in names)

    def labelled_of(source: Labelled) -> Labelled:
        return Labelled(train=data_of(source.train), valid=data_of(source.valid))

    def language_of(settings: Mapping[str, Any]) -> dict[str, Any]:
        """The model that the settings take a language modelling head from is a path, too."""
        head = settings.get("training", {}).get("head")
        if not head:
            return merged(settings, {})
        return merged(settings, {"training": {"head": model_of(head)}})

    def variant_of(variant: Variant) -> Variant:
        return variant.model_copy(update={"language": language_of(variant.language)})

    language = recipe.language.model_dump(exclude_unset=True)
    return recipe.model_copy(
        update={
            "base": model_of(recipe.base),
            "languages": _each(recipe.languages, texts_of),
            "language": changed(recipe.language, language_of(language)),
            "variants": _each(recipe.variants, variant_of),
            "train": data_of(recipe.train),
            "valid": data_of(recipe.valid),
            "vectors": _each(recipe.vectors, model_of),
            "sources": _each(recipe.sources, labelled_of),
            "test": _each(recipe.test, data_of),
        }
    )


def _each(values: Mapping[str, Any], function: Callable[[Any], Value]) -> dict[str, Value]:
    """A mapping with a function applied to each value."""
    return {name: function(value) for name, value in values.items()}
