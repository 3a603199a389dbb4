"""A recipe: one comparison as one YAML file, with what to train on, vary and test on."""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import BeforeValidator, Field, field_validator, model_validator

from deftx.config import (
    LANGUAGE_PRESETS,
    PRESET,
    TASK_PRESETS,
    Config,
    FitConfig,
    LanguageVectorConfig,
    Seed,
    TaskVectorConfig,
    VectorConfig,
    changed,
    merged,
    parse,
    with_preset,
)
from deftx.core.merge import rule_of
from deftx.data.examples import ColumnNames
from deftx.errors import DeftxError, unknown
from deftx.experiments.baselines.config import (
    LoraLanguageConfig,
    LoraTaskConfig,
    MadxLanguageConfig,
    MadxTaskConfig,
)
from deftx.experiments.inheritance import read
from deftx.tasks.registry import settled, task_of

# What tables can show of a task: a task has all metrics of one of these sets
COMPARED = ({"macro_f1", "accuracy"}, {"las"})
TASK = "task"  # the name of the task vector, among the names of languages
HUB = "hub:"  # what the name of a data set on the hub begins with
LANGUAGE_NAME = re.compile(r"[\w.-]*\w[\w.-]*")  # folders are named after languages

FitConfigT = TypeVar("FitConfigT", bound=FitConfig)
Value = TypeVar("Value")


class Family(NamedTuple):
    """The settings of what variants of one family learn: of languages, and of the task."""

    language: type[FitConfig]
    task: type[FitConfig]


VECTORS = "vectors"
FAMILIES = {
    VECTORS: Family(LanguageVectorConfig, TaskVectorConfig),
    "madx": Family(MadxLanguageConfig, MadxTaskConfig),
    "lora": Family(LoraLanguageConfig, LoraTaskConfig),
}


class Labelled(Config):
    """Files of labelled data in one language.

    Attributes:
        train: Labelled data to train on.
        valid: Labelled data to choose the best step on; "": a tenth of `train` is held out.
    """

    train: str
    valid: str = ""


class Variant(Config):
    """One row of the table: how its fits differ from the recipe's, and which vectors it adds.

    Attributes:
        family: `vectors`, or a baseline that learns something else (see `FAMILIES`).
        source: Whether the task is learnt on θ0 + φ_source, or on θ0 alone.
        sources: The languages whose labelled data the task is learnt from; None: all.
        temperature: How evenly several sources are sampled (see `deftx.fit_task`).
        target: Whether the target's language vector is added, or the task vector alone.
        keep_source: Whether the language vectors of the sources are added too.
        normalize: Whether test texts are normalised to the spelling of the sources' labelled texts
            (`case`), or of their plain text too (`words`); see `deftx.normalize`.
        rule: How vectors are combined, such as `ties:density=0.8` (see `deftx.merge`).
        language: Settings of the language fits that differ from the recipe's.
        task: Settings of the task fits that differ from the recipe's.
    """

    family: str = VECTORS
    source: bool = True
    sources: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    temperature: Annotated[float, Field(ge=1)] = 1.0
    target: bool = True
    keep_source: bool = False
    normalize: Literal["case", "words"] | None = None
    rule: str = "sum"
    language: dict[str, Any] = Field(default_factory=dict)
    task: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _read_former_names(cls, values: Any) -> Any:
        """Recipes in older run folders say `respell` for `normalize`."""
        if not isinstance(values, Mapping) or "respell" not in values or "normalize" in values:
            return values
        return {{"respell": "normalize"}.get(name, name): value for name, value in values.items()}

    @field_validator("rule")
    @classmethod
    def _known_rule(cls, value: str) -> str:
        rule_of(value)
        return value


class Published(Config):
    """Published numbers in percent, for comparison with ours.

    Attributes:
        table: Where they were published and for which base: `Table 2 of the paper, XLM-R base`.
        url: Address of the publication.
        rows: row -> language -> number. A row with nothing but an average has `average` in place
            of languages.
    """

    table: str
    url: str
    rows: dict[str, dict[str, float]]


def _as_tables(value: Any) -> Any:
    """Published tables as a list; a recipe may give none, or one without a list around it."""
    if value is None:
        return []
    if isinstance(value, Mapping | Published):
        return [value]
    return value


PublishedTables = Annotated[tuple[Published, ...], BeforeValidator(_as_tables)]


class Recipe(Config):
    """A whole comparison. Files are given relative to the recipe's own folder.

    Attributes:
        title: What is compared, in a line.
        base: Folder or hub id of the pretrained model.
        seeds: Every fit is repeated with each of these.
        language_seeds: Seeds of the language fits, where these are to be fewer: the first of
            `seeds` goes with the first of these, and so on, from the beginning again after the
            last. Without any, a language fit has the seed of its task fit.
        languages: language -> plain text (one file or several) to learn its language vector from.
        source: The language of the labelled data.
        train: Labelled data of the source.
        valid: Labelled data of the source to choose the best step on; "": a tenth of `train` is
            held out.
        sources: In place of `source`, `train` and `valid` where several languages have labelled
            data: language -> its `train` and `valid`.
        vectors: language -> finished language vector (folder or hub id), used instead of learning
            one.
        targets: Languages without test data whose vectors are learnt too.
        test: language -> labelled data to score on; without any, only vectors are learnt.
        columns: Names of the columns of the labelled data.
        language: Settings of the language fits.
        task: Settings of the task fits.
        variants: name -> how a row of the table differs from these settings.
        ngrams: Whether logistic regression on character n-grams is scored too.
        baseline: The variant that the others are compared with.
        overlap: Which overlaps the report shows: of each language vector with the task vector, or
            of the language vectors with each other.
        paper: Published numbers: one table, or several.
        contamination: What happens to training text that also occurs in `test` (see
            `deftx.data.contamination`): the run stops, the text is left out (trim), or nothing.
    """

    title: str = ""
    base: str
    seeds: tuple[Seed, ...] = (0,)
    language_seeds: tuple[Seed, ...] = ()
    languages: dict[str, str | tuple[str, ...]] = Field(default_factory=dict)
    source: str = ""
    train: str = ""
    valid: str = ""
    sources: dict[str, Labelled] = Field(default_factory=dict)
    vectors: dict[str, str] = Field(default_factory=dict)
    targets: tuple[str, ...] = ()
    test: dict[str, str] = Field(default_factory=dict)
    columns: ColumnNames = ColumnNames()
    language: LanguageVectorConfig = LanguageVectorConfig()
    task: TaskVectorConfig = TaskVectorConfig()
    variants: dict[str, Variant]
    ngrams: bool = False
    baseline: str | None = None
    overlap: Literal["language-task", "languages"] | None = None
    paper: PublishedTables = ()
    contamination: Literal["stop", "trim", "ignore"] = "stop"

    @model_validator(mode="before")
    @classmethod
    def _read_former_names(cls, values: Any) -> Any:
        """Older recipes say `leakage` for `contamination`."""
        if not isinstance(values, Mapping) or "leakage" not in values or "contamination" in values:
            return values
        return {
            {"leakage": "contamination"}.get(name, name): value for name, value in values.items()
        }

    @field_validator("languages", "sources", "vectors", "targets", "test", "source", mode="before")
    @classmethod
    def _names_are_text(cls, value: Any) -> Any:
        """Refuse the language code `no` (Norwegian) without quotes, which YAML reads as False."""
        names = value
        if not isinstance(value, dict | list | tuple):
            names = [value]
        for name in names:
            if isinstance(name, bool):
                why = "YAML reads no, yes, on and off so; put it in quotes"
                raise ValueError(f"a language is called {name}: {why}")
        return value

    @field_validator("languages", "vectors")
    @classmethod
    def _names_of_folders(cls, value: dict[str, Any]) -> dict[str, Any]:
        """Refuse names of languages that cannot be names of folders."""
        for name in value:
            if name == TASK or not LANGUAGE_NAME.fullmatch(name):
                fix = f"use letters, digits, - and _ (not {TASK!r})"
                raise ValueError(f"a language cannot be called {name!r}: {fix}")
        return value

    def language_config(self, variant: str, seed: int) -> FitConfig:
        """The settings of a variant's language fits that go with a task fit's seed."""
        language_seed = seed
        if self.language_seeds:
            position = self.seeds.index(seed)
            language_seed = self.language_seeds[position % len(self.language_seeds)]
        changes = {**self.variants[variant].language, "seed": language_seed}
        return _converted(self.language, self.family(variant).language, changes)

    def task_config(self, variant: str, seed: int) -> FitConfig:
        """The settings of a variant's task fit."""
        changes = {**self.variants[variant].task, "seed": seed}
        return _converted(self.task, self.family(variant).task, changes)

    def family(self, variant: str) -> Family:
        """The kinds of settings of a variant's family.

        Raises:
            DeftxError: The family is unknown.
        """
        name = self.variants[variant].family
        if name not in FAMILIES:
            raise unknown("family", name, FAMILIES)
        return FAMILIES[name]

    @property
    def labelled(self) -> dict[str, Labelled]:
        """The labelled data, by language."""
        if self.sources:
            return self.sources
        return {self.source: Labelled(train=self.train, valid=self.valid)}

    @property
    def needs_task(self) -> bool:
        """Whether task vectors are learnt."""
        return bool(self.test) or self.overlap != "languages"

    def sources_of(self, variant: str) -> list[str]:
        """The languages whose labelled data a variant learns the task from."""
        chosen = self.variants[variant].sources
        if chosen is None:
            return list(self.labelled)
        return [name for name in self.labelled if name in chosen]

    def needed_languages(self, variant: str) -> list[str]:
        """The languages whose vectors a variant uses, its sources first."""
        settings = self.variants[variant]
        sources = self.sources_of(variant)
        if not self.test:
            return _unique(sources, self.languages, self.vectors, self.targets)
        targets: list[str] = []
        if settings.target:
            targets = [*self.test, *self.targets]
        # a source's vector is needed below the task's, or because the source is a target too
        if not (settings.source or settings.keep_source):
            sources = [name for name in sources if name in targets]
        return _unique(sources, targets)

    def needed_texts(self, variant: str) -> list[str]:
        """The languages whose plain text a variant uses."""
        settings = self.variants[variant]
        names = self.needed_languages(variant)
        if settings.family == VECTORS:
            names = [name for name in names if name not in self.vectors]
        if settings.normalize == "words":
            names += self.sources_of(variant)
        return _unique(names)


def _unique(*names: Iterable[str]) -> list[str]:
    """All names in order, each once."""
    return list(dict.fromkeys(name for part in names for name in part))


def _converted(
    settings: FitConfig, kind: type[FitConfigT], changes: Mapping[str, Any]
) -> FitConfigT:
    """Settings of another kind: `settings` as far as the kind has them too, with changes."""
    shared = set(kind.model_fields)
    if not issubclass(kind, VectorConfig):
        shared.discard("rank")  # the rank of a LoRA is not the rank of denoising
    values = settings.model_dump(exclude_unset=True)
    kept = {name: value for name, value in values.items() if name in shared}
    return parse(kind, merged(kept, changes))


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
    _check_sources(recipe)
    _check_task(recipe)
    for variant in recipe.variants:
        _check_variant(recipe, variant, path)
    if recipe.baseline is not None and recipe.baseline not in recipe.variants:
        raise unknown("variant (baseline)", recipe.baseline, recipe.variants)
    return _with_full_paths(recipe, path.parent)


def _with_presets(data: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's data, with the settings that presets stand for."""
    resolved: dict[str, Any] = _without_presets(data)
    variants = data.get("variants")
    if isinstance(variants, Mapping):
        resolved["variants"] = {
            name: _without_presets(variant, str(name)) for name, variant in variants.items()
        }
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


def _check_variant(recipe: Recipe, name: str, path: Path) -> None:
    """Raise DeftxError for wrong settings of a variant, and for text that it lacks."""
    # settings are checked as they are made
    recipe.language_config(name, 0)
    recipe.task_config(name, 0)
    variant = recipe.variants[name]
    if variant.family != VECTORS and (variant.rule != "sum" or variant.keep_source):
        why = "has no vectors to compose: leave rule and keep_source out"
        raise DeftxError(f"the variant {name!r} {why}")
    for language in recipe.needed_texts(name):
        if language not in recipe.languages:
            fix = "give it under `languages`, or a finished vector under `vectors`"
            raise DeftxError(f"the recipe {path} has no text for {language!r}; {fix}")


def _check_sources(recipe: Recipe) -> None:
    """Raise DeftxError for labelled data that are missing or given twice, or that a variant cannot
    use."""
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


def _check_task(recipe: Recipe) -> None:
    """Raise DeftxError for a task that cannot be compared, and for variants with another task."""
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
    if recipe.ngrams and name != "classification":
        fix = "set ngrams to false"
        raise DeftxError(f"ngrams are a baseline for classification, not for {name}: {fix}")
    for variant, settings in recipe.variants.items():
        if settings.family != VECTORS and name != "classification":
            what = f"({settings.family}) is for classification, not for {name}"
            raise DeftxError(f"the variant {variant!r} {what}: leave it out")
        task_config = recipe.task_config(variant, 0)
        if isinstance(task_config, TaskVectorConfig):
            other = settled(task_config).task
            if other != name:
                what = f"has the task {other}, the recipe {name}: make a recipe for each"
                raise DeftxError(f"the variant {variant!r} {what}")


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
