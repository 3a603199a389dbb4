"""Whether a recipe makes sense as a whole: its labelled data, its task, and each of its
variants."""

from pathlib import Path

from deftx.config import TaskVectorConfig
from deftx.errors import DeftxError, unknown
from deftx.experiments.recipe.schema import VECTORS, Recipe
from deftx.tasks.registry import settled, task_of

# What tables can show of a task: a task has all metrics of one of these sets
COMPARED = ({"macro_f1", "accuracy"}, {"las"})


def check_variant(recipe: Recipe, name: str, path: Path) -> None:
    """Check the settings of a variant, and that there is the text that it needs.

    Args:
        recipe: The recipe.
        name: The name of the variant.
        path: The recipe's file, for the message.

    Raises:
        DeftxError: A setting is wrong, or text is missing.
    """
    # Settings are checked as they are made
    recipe.language_config(name, recipe.seeds[0])
    recipe.task_config(name, recipe.seeds[0])
    variant = recipe.variants[name]
    if variant.family != VECTORS and (variant.rule != "sum" or variant.keep_source):
        why = "has no vectors to compose: leave rule and keep_source out"
        raise DeftxError(f"the variant {name!r} {why}")
    for language in recipe.needed_texts(name):
        if language not in recipe.languages:
            fix = "give it under `languages`, or a finished vector under `vectors`"
            raise DeftxError(f"the recipe {path} has no text for {language!r}; {fix}")


def check_sources(recipe: Recipe) -> None:
    """Check the labelled data.

    Raises:
        DeftxError: They are missing or given twice, or a variant cannot use them.
    """
    if recipe.sources:
        given_once = not (recipe.source or recipe.train or recipe.valid)
    else:
        given_once = bool(recipe.source and recipe.train)
    if not given_once:
        several = "sources: {LANGUAGE: {train: FILE, valid: FILE}}"
        raise DeftxError(
            "a recipe has its labelled data either as source and train (and valid), "
            f"or as {several}"
        )

    for name, variant in recipe.variants.items():
        for source in variant.sources or ():
            if source not in recipe.labelled:
                raise unknown(f"source of the variant {name!r}", source, recipe.labelled)
        if variant.family != VECTORS and len(recipe.sources_of(name)) > 1:
            what = f"the variant {name!r} ({variant.family})"
            raise DeftxError(f"{what} is learnt on one source: say sources: [LANGUAGE]")


def compared_metrics(task: str) -> set[str]:
    """The metrics of a task that a recipe can compare; none where it cannot."""
    for metrics in COMPARED:
        if task_of(task).metrics.keys() >= metrics:
            return metrics
    return set()


def check_task(recipe: Recipe) -> None:
    """Check that a recipe can compare the scores of its task, and that all variants have that task.

    Raises:
        DeftxError: It is not so.
    """
    name = recipe.task.task
    metric = recipe.task.training.metric
    metrics = compared_metrics(name)
    if not metrics:
        raise DeftxError(
            f"a recipe compares macro_f1 and accuracy, which {name} does not have: "
            "use `deftx evaluate`"
        )
    if metric not in metrics:
        fix = "set task.training.metric to one"
        listed = " or ".join(sorted(metrics, reverse=True))
        raise DeftxError(f"a recipe compares {listed}, not {metric}: {fix}")

    # Baselines are for classification
    if recipe.ngrams and name != "classification":
        fix = "set ngrams to false"
        raise DeftxError(f"ngrams are a baseline for classification, not for {name}: {fix}")
    for variant, settings in recipe.variants.items():
        if settings.family != VECTORS and name != "classification":
            what = f"({settings.family}) is for classification, not for {name}"
            raise DeftxError(f"the variant {variant!r} {what}: leave it out")

        task_config = recipe.task_config(variant, recipe.seeds[0])
        if isinstance(task_config, TaskVectorConfig):
            other = settled(task_config).task
            if other != name:
                what = f"has the task {other}, the recipe {name}: make a recipe for each"
                raise DeftxError(f"the variant {variant!r} {what}")
