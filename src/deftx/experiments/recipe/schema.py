"""What a recipe consists of: its settings, its variants, and published numbers."""

import re
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import BeforeValidator, Field, field_validator, model_validator

from deftx.config import (
    Config,
    FitConfig,
    LanguageVectorConfig,
    Seed,
    TaskVectorConfig,
    VectorConfig,
    merged,
    parse,
)
from deftx.core.merge import rule_of
from deftx.data.examples import ColumnNames
from deftx.errors import unknown
from deftx.experiments.baselines.config import (
    LoraLanguageConfig,
    LoraTaskConfig,
    MadxLanguageConfig,
    MadxTaskConfig,
)

TASK = "task"  # the name of the task vector, among the names of languages
LANGUAGE_NAME = re.compile(r"[\w.-]*\w[\w.-]*")  # folders are named after languages

FitConfigT = TypeVar("FitConfigT", bound=FitConfig)


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
        return _renamed(values, "respell", "normalize")

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
        return _renamed(values, "leakage", "contamination")

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


def _renamed(values: Any, former: str, name: str) -> Any:
    """A mapping in which a setting has its name of today in place of its former one.

    A mapping that has today's name too, or no former one, stays as it is: unknown names are refused
    later.
    """
    if not isinstance(values, Mapping) or former not in values or name in values:
        return values
    renamed = {}
    for key, value in values.items():
        renamed[name if key == former else key] = value
    return renamed


def _unique(*names: Iterable[str]) -> list[str]:
    """All names in order, each once."""
    return list(dict.fromkeys(chain.from_iterable(names)))


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
