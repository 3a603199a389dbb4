"""What can be set: what a vector keeps, and how to train it. Unknown names and wrong types are
errors."""

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.functional_validators import ModelWrapValidatorHandler

from deftx.core.ranks import recorded_rank
from deftx.core.reselection import RESELECTIONS
from deftx.errors import DeftxError, unknown

# Settings of trainings that came after vectors were learnt without them, and the value with which
# nothing is different: what was learnt before keeps its name.
LATER = {"noise": 0.0, "held_out_blocks": None, "dropout": None}

T = TypeVar("T", bound="TrainingConfig")

Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what NumPy takes
Count = Annotated[int, Field(gt=0, lt=2**31)]
Epochs = Annotated[float, Field(gt=0, le=1_000_000)]
Penalty = Annotated[float, Field(ge=0, le=1_000_000)]


class Config(BaseModel):
    """Base of all settings: frozen, and strict about names; numbers are finite.

    A wrong name or value raises DeftxError, with one line.

    The text below a field says what it means; `described` reads it, for `deftx settings` and
    docs/settings.md.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise _in_one_line(type(self), error) from None

    # As BaseModel's own: settings within settings are made without it, and their errors have the
    # name of the outer setting too.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    def __setattr__(self, name: str, value: Any) -> None:
        kind = type(self).__name__
        raise DeftxError(f"settings do not change: make others, {kind}({name}={value!r})")


class TrainingConfig(Config):
    """One training, the same in both phases. Steps are optimiser steps."""

    learning_rate: PositiveFloat = 5e-5
    """Learning rate of AdamW at the first step; it falls linearly to 0."""
    batch_size: Count = 8
    """Examples, or blocks of text, in a batch."""
    accumulate: Count = 1
    """Batches whose gradients are added up before a step."""
    epochs: Epochs = 100
    """Times that the training data are seen, within `min_steps` and `max_steps`."""
    max_steps: Count | None = None
    """The most steps; null: as many as `epochs` take. Set alone, it lowers `min_steps` where that
    is larger."""
    min_steps: int = Field(0, ge=0, lt=2**31, validate_default=True)
    """The fewest steps, however few the data."""
    evaluate_every: Count = 1000
    """Steps between two evaluations on held-out data; the best evaluated step is kept."""
    average: Count = 1
    """Phase 2 ends at the mean of its last so many evaluated steps; 1: at the best one."""
    length: Count = 256
    """Longest input, in tokens."""
    l1: Penalty = 0.0
    """Weight λ of the penalty λ/N · ‖θ − θ0‖₁, N being the number of all parameters of the
    model."""
    clip: PositiveFloat = 1.0
    """Largest norm of the gradient."""
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Dropout of the base while it is trained; null: as its config has it."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Number format of the forward pass; auto takes bf16 where the device computes it faster than
    fp32."""
    report_to: tuple[str, ...] = ()
    """Trackers to log to, such as tensorboard, wandb or trackio."""
    logs: str = "logs"
    """Folder for the files of tensorboard, with a folder for each phase of each fit."""

    @model_validator(mode="wrap")
    @classmethod
    def _max_steps_alone(cls, data: Any, handler: ModelWrapValidatorHandler[T]) -> T:
        """Where `max_steps` is given and `min_steps` is not, the default of the latter is no more
        than the former."""
        most = (
            data.get("max_steps") if isinstance(data, Mapping) and "min_steps" not in data else None
        )
        if not isinstance(most, int) or most >= cls.model_fields["min_steps"].default:
            return handler(data)
        training = handler({**data, "min_steps": most})
        training.model_fields_set.discard("min_steps")  # another max_steps may change it again
        return training

    @field_validator("min_steps")
    @classmethod
    def _at_most_max_steps(cls, value: int, info: ValidationInfo) -> int:
        most = info.data.get("max_steps")
        if most is not None and value > most:
            raise ValueError(f"is more than max_steps = {most}; change one of the two")
        return value


class LanguageTrainingConfig(TrainingConfig):
    """Language modelling on plain text; the defaults are the paper's (Appendix C), but for
    `held_out_blocks`."""

    max_steps: Count | None = 100_000
    min_steps: int = Field(30_000, ge=0, lt=2**31, validate_default=True)
    l1: Penalty = 0.1
    mask: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Share of the tokens that masked language modelling chooses, and that denoising hides."""
    replacements: Literal["vocabulary", "corpus"] = "corpus"
    """What a tenth of the chosen tokens is drawn from: the whole vocabulary, or the text's own
    pieces."""
    lm_head: Literal["trained", "frozen"] = "trained"
    """Whether the language modelling head, except its decoder matrix, is trained along and thrown
    away (trained), or stays as it is (frozen)."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of the lines that the best step is chosen on."""
    held_out_blocks: Count | None = 1000
    """The most blocks of `length` tokens that are held out; null: the whole share, as in the
    paper."""
    head: str | None = None
    """Model of the same kind whose language modelling head is used where the base has none, as mE5
    has none."""


class TaskTrainingConfig(TrainingConfig):
    """Labelled data; the defaults are the paper's for sentiment (Appendix C)."""

    batch_size: Count = 16
    epochs: Epochs = 10
    evaluate_every: Count = 250
    metric: str | None = None
    """Metric that decides between steps; null: the task's own, which is macro-F1 for
    classification."""
    noise: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the words of the training texts that get one wrong letter."""


def metric_name(metric: str) -> str:
    """How a metric is written for people, such as macro-F1."""
    if metric in ("las", "uas"):
        return metric.upper()
    return metric.replace("f1", "F1").replace("_", "-")


class FitConfig(Config):
    """What is trained, and the seed that decides everything random."""

    seed: Seed = 0
    """Decides everything random."""
    training: TrainingConfig

    def deciding(self) -> dict[str, Any]:
        """The settings as JSON-like data, without where logs go, which decides nothing, and what is
        off of LATER."""
        off = {
            name for name, value in LATER.items() if getattr(self.training, name, value) == value
        }
        return self.model_dump(mode="json", exclude={"training": {"logs", "report_to"} | off})

    def deciding_phase1(self) -> dict[str, Any]:
        """Those of `deciding` that full fine-tuning depends on; `average` is of phase 2."""
        training = {
            name: value for name, value in self.deciding()["training"].items() if name != "average"
        }
        return {"seed": self.seed, "training": training}


class ReselectionConfig(Config):
    """When the methods spiel-ag, spiel-ma and spiel-deftx replace entries; the defaults are those
    of SpIEL's code."""

    every: Count = 20
    """Steps from one reselection to the next."""
    window: Count = Field(5, validate_default=True)
    """Steps before a reselection whose gradients are added up; the first reselection comes after
    so many steps."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of the entries that is replaced; it falls linearly to 0. The first reselection
    replaces all."""

    @field_validator("window")
    @classmethod
    def _at_most_every(cls, value: int, info: ValidationInfo) -> int:
        every = info.data.get("every")
        if every is not None and value > every:
            raise ValueError(f"is more than reselection.every = {every}; change one of the two")
        return value


class VectorConfig(FitConfig):
    """One run of Algorithm 1. Shares in k are of the trainable entries; shares in rank are of the
    variance."""

    method: str = "deftx"
    """What selects the entries: deftx, lt-sft (without denoising), or random (any k entries that
    phase 1 moved); without phase 1: pafi or largest-weights (the smallest or largest weights of the
    base), or spiel-ag, spiel-ma or spiel-deftx (chosen again and again in a single training)."""
    k: int | float | str = "2.8%"
    """Entries that the vector may change: a count (7.6M), or a share of the trainable weights
    (2.8% or 0.028)."""
    rank: int | float | str = "90%"
    """What denoising keeps of each matrix: a share of the variance (90% or 0.9), a rank (100; or
    100/768, relative to the base's width), or a rule by name."""
    keep: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Share of each matrix's entries that are added back after the low-rank approximation."""
    keep_of: Literal["matrix", "rows-in-use"] = "matrix"
    """What `keep` is a share of: the whole matrix, as in the paper, or its rows that are not all
    zeros."""
    split: Literal["global", "matrix", "layer"] = "global"
    """Within what the k entries compete: all tensors together, each matrix, or each layer."""
    phase2: bool = True
    """False: the selected entries have what phase 1 learnt, as denoising left it (the paper's
    ablation, Table 5)."""
    reselection: ReselectionConfig = ReselectionConfig()

    def deciding(self) -> dict[str, Any]:
        """The settings that decide something; beside the rank `auto` also the `rank_rule` that it
        stands for."""
        settings = {**super().deciding(), **recorded_rank(self.rank)}
        if self.method not in RESELECTIONS:
            del settings["reselection"]
        return settings


class LanguageVectorConfig(VectorConfig):
    """A language vector."""

    training: LanguageTrainingConfig = LanguageTrainingConfig()


class TaskVectorConfig(VectorConfig):
    """A task vector."""

    task: str = "classification"
    """Kind of task, such as classification, tagging or question-answering."""
    k: int | float | str = "5.1%"
    training: TaskTrainingConfig = TaskTrainingConfig()


# quick     a first look on an ordinary machine
# standard an evening on an ordinary GPU, or a night on a processor; provisional, until curves have
# been measured paper-* the paper's settings for XLM-R base, with its best ranks (Tables 2 and 3)
# and k as in LT-SFT's code
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

# How values are to be written, where pydantic names a type of Python.
FORMS = {
    "tuple_type": "give a list, such as [0, 1]",
    "dict_type": "give a name before each value, such as {min: test.tsv}",
    "model_type": "give a name before each value, such as {batch_size: 4}",
}

S = TypeVar("S", bound=Config)
PRESET = "preset"  # among settings in a recipe: the name of those to start from


def preset_named(presets: Mapping[str, S], name: object) -> S:
    """The settings of a preset. Raises DeftxError for a name that none of them has."""
    if not isinstance(name, str) or name not in presets:
        raise unknown("preset", str(name), presets)
    return presets[name]


def with_preset(data: Any, presets: Mapping[str, S]) -> Any:
    """Settings as data, those of their `preset` below what they say besides; without one, as they
    are."""
    if not isinstance(data, Mapping) or PRESET not in data:
        return data
    own = {key: value for key, value in data.items() if key != PRESET}
    return merged(preset_named(presets, data[PRESET]).model_dump(exclude_unset=True), own)


@dataclass(frozen=True)
class Described:
    """A setting for people: its name, written out, its default, what it means, and what presets set
    it to."""

    name: str
    default: Any
    meaning: str
    presets: Mapping[str, Any]


def described(kind: type[Config], presets: Mapping[str, Config] | None = None) -> list[Described]:
    """All settings of a kind. Of each preset, those that it sets to something else than the default
    are named."""
    own, inner = [], []
    for name, field in kind.model_fields.items():
        values = {key: getattr(preset, name) for key, preset in (presets or {}).items()}
        if isinstance(field.default, Config):
            parts = described(type(field.default), values)
            inner += [replace(part, name=f"{name}.{part.name}") for part in parts]
        else:
            different = {key: value for key, value in values.items() if value != field.default}
            own.append(Described(name, field.default, _meaning(kind, name), different))
    return [*own, *inner]


def _meaning(kind: type[BaseModel], name: str) -> str:
    """What a setting means, as the nearest class says that says something of it."""
    for ancestor in kind.__mro__:
        if issubclass(ancestor, BaseModel) and name in ancestor.model_fields:
            description = ancestor.model_fields[name].description
            if description:
                return " ".join(description.split())
    return ""


def changed(settings: S, changes: Mapping[str, Any]) -> S:
    """`settings` with nested `changes`, such as {"k": "5%", "training": {"batch_size": 4}}, checked
    anew."""
    return parse(type(settings), merged(settings.model_dump(exclude_unset=True), changes))


def check_kind(settings: object, kind: type[Config]) -> None:
    """Raise DeftxError for settings of another kind, or a dict of them."""
    if not isinstance(settings, kind):
        raise DeftxError(
            f"the settings are a {type(settings).__name__}: give a deftx.{kind.__name__}"
        )


def parse(kind: type[S], data: Mapping[str, Any]) -> S:
    """`data` as settings of a `kind`. Raises DeftxError, one line, that names the key and what it
    allows."""
    _check_unicode(data, "")
    try:
        return kind.model_validate(dict(data))
    except ValidationError as error:
        raise _in_one_line(kind, error) from None


def _check_unicode(data: Any, key: str) -> None:
    """Raise DeftxError for text that no file can hold: lone surrogates are half a character.

    Args:
        data: Settings, as mappings, lists and single values.
        key: Where they are within others, written out; "" at the top.
    """
    if isinstance(data, str):
        try:
            data.encode()
        except UnicodeEncodeError:
            what = "is not text in Unicode: type it again"
            raise DeftxError(f"setting {key or 'name'} = {reprlib.repr(data)} {what}") from None
    elif isinstance(data, Mapping):
        for name, value in data.items():
            _check_unicode(name, key)
            _check_unicode(value, f"{key}.{name}".removeprefix("."))
    elif isinstance(data, list | tuple):
        for number, value in enumerate(data):
            _check_unicode(value, f"{key}.{number}".removeprefix("."))


def _in_one_line(kind: type[Config], error: ValidationError) -> DeftxError:
    """The first fault of settings: the key, its value and what it allows; of an unknown key the
    known ones."""
    first, *others = error.errors()
    if first["type"] == "missing":
        # its name may be there, misspelt
        for other in others:
            if other["type"] == "extra_forbidden" and other["loc"][:-1] == first["loc"][:-1]:
                first = other
                break
    location = first["loc"]
    key = ".".join(str(part) for part in location)
    if first["type"] == "extra_forbidden":
        nested_keys = _within(kind) if len(location) == 1 else []
        return unknown("setting", key, _known(kind, location), nested_keys)
    if isinstance(first["input"], Config):
        what = f"setting {key} is a {type(first['input']).__name__}"
        return DeftxError(f"{what}: give a {first['ctx']['class_name']}")
    value = ""
    if first["type"] != "missing":
        value = f" = {reprlib.repr(first['input'])}"
    message = FORMS.get(first["type"]) or first["msg"].removeprefix("Value error, ")
    return DeftxError(f"setting {key}{value}: {message[:1].lower()}{message[1:]}")


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """`old` with what `new` says instead, mapping within mapping."""
    both = {
        key: merged(old[key], new[key])
        for key in old.keys() & new.keys()
        if isinstance(old[key], Mapping) and isinstance(new[key], Mapping)
    }
    return {**old, **new, **both}


def _known(kind: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The keys allowed beside the one at `location`, written out from the top."""
    *parents, _ = location
    model = _model_at(kind, parents)
    if model is None:
        return []
    prefix = "".join(f"{part}." for part in parents)
    return [prefix + name for name in model.model_fields]


def _model_at(kind: type[BaseModel], location: Sequence[int | str]) -> type[BaseModel] | None:
    """The kind of the settings at a place within others; None where there are no settings.

    Args:
        kind: The kind of the outer settings.
        location: Names of settings, keys of mappings and numbers in lists, from the outside in.
    """
    annotation: Any = kind
    for part in location:
        if _is_settings(annotation):
            field = annotation.model_fields.get(part)
            annotation = field.annotation if field is not None else None
        elif get_origin(annotation) is dict:
            _, annotation = get_args(annotation)
        elif get_origin(annotation) is tuple:
            annotation, *_ = get_args(annotation)
        else:
            return None
    return annotation if _is_settings(annotation) else None


def _is_settings(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _within(kind: type[BaseModel]) -> list[str]:
    """The keys that stand within others, written out, such as training.batch_size."""
    parts = {name: field.annotation for name, field in kind.model_fields.items()}
    return [
        f"{name}.{inner}"
        for name, part in parts.items()
        if isinstance(part, type) and issubclass(part, BaseModel)
        for inner in part.model_fields
    ]
