"""A recipe: one comparison as one YAML file. What to train on, what to vary, what to test on."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field, field_validator

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

METRICS = {"macro_f1", "accuracy"}  # what a table can show of a task
L = TypeVar("L", bound=FitConfig)
TASK = "task"  # stands beside the languages where vectors are named


# What variants learn, and the settings of it, for languages and for the task.
VECTORS = "vectors"
FAMILIES: dict[str, tuple[type[FitConfig], type[FitConfig]]] = {
    VECTORS: (LanguageVectorConfig, TaskVectorConfig),
    "madx": (MadxLanguageConfig, MadxTaskConfig),
    "lora": (LoraLanguageConfig, LoraTaskConfig),
}


class Labelled(Config):
    """Labelled data of one language; `valid` is for choosing the best step, without it a tenth of
    `train`."""

    train: str
    valid: str = ""


class Variant(Config):
    """One row of the table: how its fits differ from the recipe's, and where language vectors are
    applied.

    family   vectors, or a baseline that learns something else: madx or lora, see `FAMILIES`
    source   the task is learnt on θ0 + φ_source (False: on θ0)
    sources  the languages of whose labelled data the task is learnt; None: all that the recipe has
    temperature  how even several sources are made: see `deftx.fit_task`
    target   the target's language vector is applied (False: the task vector alone)
    keep_source  those of the sources are applied too
    respell  test texts are put into the spelling of the task's sources, by these languages'
             labelled texts (`case`), or plain text too (`words`): see `deftx.respelt`
    rule     how vectors are combined, such as `ties:density=0.8` (see `deftx.merge`)
    """

    family: str = VECTORS
    source: bool = True
    sources: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    temperature: Annotated[float, Field(ge=1)] = 1.0
    target: bool = True
    keep_source: bool = False
    respell: Literal["case", "words"] | None = None
    rule: str = "sum"
    language: dict[str, Any] = Field(default_factory=dict)
    task: dict[str, Any] = Field(default_factory=dict)

    @field_validator("rule")
    @classmethod
    def _known_rule(cls, value: str) -> str:
        rule_of(value)
        return value


class Published(Config):
    """Published numbers, in percent, to stand beside ours: row -> language -> number.

    table  where they stand, and of which base, such as `Table 2 of the paper, XLM-R base`
    rows   a row may have `average` in place of languages, where nothing else is published
    """

    table: str
    url: str
    rows: dict[str, dict[str, float]]


def _as_tables(value: Any) -> Any:
    """Published tables as a list: one alone, and none, may stand without."""
    if value is None:
        return []
    return [value] if isinstance(value, Mapping | Published) else value


PublishedTables = Annotated[tuple[Published, ...], BeforeValidator(_as_tables)]


class Recipe(Config):
    """A whole comparison. Files are given relative to the recipe's own folder.

    title      what is compared, in a line
    base       folder or hub id
    languages  name -> plain text (one file or several) from which its language vector is learnt
    source     the language of the labelled data
    train      labelled data; valid: the same, for choosing the best step; without it a tenth of
               `train` is held out
    sources    in place of these three, where several languages have labelled data: language ->
               train and valid
    vectors    language -> finished language vector (folder or hub id), which is taken instead of
               learning one
    test       language -> labelled data to score on; without any the vectors alone are learnt
    targets    languages whose vectors are learnt too, although there is no test data of them
    language   settings of the language fits; task: of the task fits
    ngrams     also score character n-grams and logistic regression trained on all labelled data
    baseline   the variant that the others are held against
    overlap    which vectors' overlaps are wanted: each language's with the task's, or the
               languages' with each other
    paper      what others published: a table of it, or several
    contamination    what to do where text to train on holds text of `test` (see
                     `deftx.data.contamination`): stop, trim
               it, or ignore it
    """

    title: str = ""
    base: str
    seeds: tuple[Seed, ...] = (0,)
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

    @field_validator("languages", "sources", "vectors", "targets", "test", "source", mode="before")
    @classmethod
    def _called_by_text(cls, value: Any) -> Any:
        for name in value if isinstance(value, dict | list | tuple) else [value]:
            if isinstance(name, bool):
                raise ValueError(
                    f"a language is called {name}: YAML reads no, yes, on and off so; put it in quotes"
                )
        return value

    @field_validator("languages", "vectors")
    @classmethod
    def _names_of_folders(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if name == TASK or not re.fullmatch(r"[\w.-]*\w[\w.-]*", name):
                raise ValueError(
                    f"a language cannot be called {name!r}: use letters, digits, - and _ (not {TASK!r})"
                )
        return value

    def language_fit(self, variant: str, seed: int) -> FitConfig:
        """The settings of what a variant learns of languages."""
        chosen, (kind, _) = self.variants[variant], self.family(variant)
        return _of_kind(kind, self.language, {**chosen.language, "seed": seed})

    def task_fit(self, variant: str, seed: int) -> FitConfig:
        """The settings of what a variant learns of the task."""
        chosen, (_, kind) = self.variants[variant], self.family(variant)
        return _of_kind(kind, self.task, {**chosen.task, "seed": seed})

    def family(self, variant: str) -> tuple[type[FitConfig], type[FitConfig]]:
        """The kinds of settings of a variant's family. Raises DeftxError for a family that there is
        not."""
        name = self.variants[variant].family
        if name not in FAMILIES:
            raise unknown("family", name, FAMILIES)
        return FAMILIES[name]

    @property
    def labelled(self) -> dict[str, Labelled]:
        """The labelled data, by language."""
        return self.sources or {self.source: Labelled(train=self.train, valid=self.valid)}

    def sources_of(self, variant: str) -> list[str]:
        """The languages whose labelled data a variant learns the task from."""
        chosen = self.variants[variant].sources
        return [name for name in self.labelled if chosen is None or name in chosen]

    @property
    def needs_task(self) -> bool:
        """Whether task vectors are to be learnt."""
        return bool(self.test) or self.overlap != "languages"

    def needed_languages(self, variant: str) -> list[str]:
        """The languages whose vectors a variant uses, its sources first."""
        chosen, sources = self.variants[variant], self.sources_of(variant)
        if not self.test:
            return list(dict.fromkeys([*sources, *self.languages, *self.vectors, *self.targets]))
        targets = [*self.test, *self.targets] if chosen.target else []
        below = [name for name in sources if chosen.source or chosen.keep_source or name in targets]
        return list(dict.fromkeys([*below, *targets]))

    def texts_of(self, variant: str) -> list[str]:
        """The languages whose plain text a variant uses."""
        chosen = self.variants[variant]
        finished = self.vectors if chosen.family == VECTORS else {}
        learnt = [name for name in self.needed_languages(variant) if name not in finished]
        read = self.sources_of(variant) if chosen.respell == "words" else []
        return list(dict.fromkeys([*learnt, *read]))


def load_recipe(path: Path, changes: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe in a YAML file, with nested `changes` made to it; everything in it is checked.

    A recipe that `extends` others, files of the same folder and later ones above earlier ones, says
    only what is different; null takes away what they say. Settings may start from a `preset`, in
    the recipe and in a variant.
    """
    return recipe_from(merged(read(path), changes or {}), path)


def recipe_from(data: Mapping[str, Any], path: Path) -> Recipe:
    """The recipe that the file `path` would hold with these data, there or not; everything in it is
    checked."""
    recipe = parse(Recipe, _with_presets(data))
    recipe = recipe.model_copy(update={"task": settled(recipe.task)})
    _check_sources(recipe)
    _check_task(recipe)
    for variant in recipe.variants:
        recipe.language_fit(variant, 0), recipe.task_fit(variant, 0)
        chosen = recipe.variants[variant]
        if chosen.family != VECTORS and (chosen.rule != "sum" or chosen.keep_source):
            raise DeftxError(
                f"the variant {variant!r} has no vectors to compose: leave rule and keep_source out"
            )
        missing = [name for name in recipe.texts_of(variant) if name not in recipe.languages]
        if missing:
            where = "give it under `languages`, or a finished vector under `vectors`"
            raise DeftxError(f"the recipe {path} has no text for {missing[0]!r}; {where}")
    if recipe.baseline is not None and recipe.baseline not in recipe.variants:
        raise unknown("variant (baseline)", recipe.baseline, recipe.variants)
    return _rooted(recipe, path.parent)


def _with_presets(data: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's data with presets as the settings that they stand for."""
    whole: dict[str, Any] = _settings_spelled_out(data)
    variants = data.get("variants")
    if isinstance(variants, Mapping):
        whole["variants"] = {
            name: _settings_spelled_out(variant, str(name)) for name, variant in variants.items()
        }
    return whole


def _settings_spelled_out(data: Any, variant: str | None = None) -> Any:
    """The recipe, or a variant of it, with the settings of its languages and its task spelled
    out."""
    if not isinstance(data, Mapping):
        return data
    language, task = data.get("language"), data.get("task")
    family = data.get("family", VECTORS)
    for settings in (language, task):
        if family != VECTORS and isinstance(settings, Mapping) and PRESET in settings:
            raise DeftxError(
                f"the variant {variant!r} ({family}) has no presets, which are for vectors: say its settings"
            )
    spelled_out = {
        "language": with_preset(language, LANGUAGE_PRESETS),
        "task": with_preset(task, TASK_PRESETS),
    }
    return {**data, **{name: settings for name, settings in spelled_out.items() if name in data}}


def _of_kind(kind: type[L], settings: FitConfig, changes: Mapping[str, Any]) -> L:
    """`settings`, as far as a kind of settings knows them too, with changes."""
    given = settings.model_dump(exclude_unset=True)
    shared = kind.model_fields.keys() - (
        set() if issubclass(kind, VectorConfig) else {"rank"}
    )  # of a LoRA it is another thing
    return parse(kind, merged({name: given[name] for name in given.keys() & shared}, changes))


def _check_sources(recipe: Recipe) -> None:
    """Raise DeftxError for labelled data that are given in no way or in two, and for variants that
    cannot use them."""
    needed = recipe.source and recipe.train
    superfluous = recipe.source or recipe.train or recipe.valid
    if superfluous if recipe.sources else not needed:
        several = "sources: {LANGUAGE: {train: FILE, valid: FILE}}"
        raise DeftxError(
            f"a recipe has its labelled data either as source and train (and valid), or as {several}"
        )
    for name, variant in recipe.variants.items():
        for source in variant.sources or ():
            if source not in recipe.labelled:
                raise unknown(f"source of the variant {name!r}", source, recipe.labelled)
        if variant.family != VECTORS and len(recipe.sources_of(name)) > 1:
            raise DeftxError(
                f"the variant {name!r} ({variant.family}) is learnt on one source: say sources: [LANGUAGE]"
            )


def _check_task(recipe: Recipe) -> None:
    """Raise DeftxError for a task that a recipe cannot compare, and for a variant with another
    task."""
    name, metric = recipe.task.task, recipe.task.training.metric
    if not task_of(name).metrics.keys() >= METRICS:
        raise DeftxError(
            f"a recipe compares macro_f1 and accuracy, which {name} does not have: use `deftx evaluate`"
        )
    if metric not in METRICS:
        raise DeftxError(
            f"a recipe compares macro_f1 or accuracy, not {metric}: set task.training.metric to one"
        )
    if recipe.ngrams and name != "classification":
        raise DeftxError(
            f"ngrams are a baseline for classification, not for {name}: set ngrams to false"
        )
    for variant, about in recipe.variants.items():
        if about.family != VECTORS and name != "classification":
            what = f"({about.family}) is for classification, not for {name}"
            raise DeftxError(f"the variant {variant!r} {what}: leave it out")
        fitted = recipe.task_fit(variant, 0)
        if isinstance(fitted, TaskVectorConfig) and (other := settled(fitted).task) != name:
            raise DeftxError(
                f"the variant {variant!r} has the task {other}, the recipe {name}: make a recipe for each"
            )


def _rooted(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with its files as paths from here instead of from the recipe's folder; models as
    full paths."""

    def from_here(source: str) -> str:
        """Its path, without the recipe's folder in it where it leads out of that, which may not be
        there yet."""
        path = folder / os.path.expanduser(source)
        return (
            os.path.join(os.path.realpath(path.parent), path.name)
            if ".." in path.parts
            else str(path)
        )

    def root(source: str) -> str:
        return source if source.startswith("hub:") else from_here(source)

    def model(name: str) -> str:
        local = from_here(name)
        return os.path.abspath(local) if os.path.isdir(local) else name

    def select_head(language: Mapping[str, Any]) -> dict[str, Any]:
        head = language.get("training", {}).get("head")
        return merged(language, {"training": {"head": model(head)}} if head else {})

    variants = {
        name: each.model_copy(update={"language": select_head(each.language)})
        for name, each in recipe.variants.items()
    }
    texts = {
        name: tuple(map(root, [t] if isinstance(t, str) else t))
        for name, t in recipe.languages.items()
    }
    return recipe.model_copy(
        update={
            "base": model(recipe.base),
            "languages": texts,
            "language": changed(
                recipe.language, select_head(recipe.language.model_dump(exclude_unset=True))
            ),
            "variants": variants,
            "train": recipe.train and root(recipe.train),
            "valid": recipe.valid and root(recipe.valid),
            "vectors": {name: model(vector) for name, vector in recipe.vectors.items()},
            "sources": {
                name: Labelled(train=root(source.train), valid=source.valid and root(source.valid))
                for name, source in recipe.sources.items()
            },
            "test": {name: root(source) for name, source in recipe.test.items()},
        }
    )
