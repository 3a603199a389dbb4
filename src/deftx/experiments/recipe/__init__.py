"""A recipe: one comparison as one YAML file, with what to train on, vary and test on."""

from deftx.experiments.recipe.checks import compared_metrics
from deftx.experiments.recipe.loading import load_recipe, recipe_from
from deftx.experiments.recipe.schema import (
    FAMILIES,
    TASK,
    VECTORS,
    Published,
    PublishedTables,
    Recipe,
    Variant,
)

__all__ = [
    "FAMILIES",
    "TASK",
    "VECTORS",
    "Published",
    "PublishedTables",
    "Recipe",
    "Variant",
    "compared_metrics",
    "load_recipe",
    "recipe_from",
]
