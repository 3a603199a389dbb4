"""What all settings have in common: they are frozen, checked, and wrong ones are named in one
line."""

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from deftx.errors import DeftxError, unknown

# How values are to be written, where pydantic names a type of Python.
FORMS = {
    "tuple_type": "give a list, such as [0, 1]",
    "dict_type": "give a name before each value, such as {min: test.tsv}",
    "model_type": "give a name before each value, such as {batch_size: 4}",
}

ConfigT = TypeVar("ConfigT", bound="Config")


class _ConfigType(type(BaseModel)):  # type: ignore[misc]
    """The type of settings classes: calling such a class raises DeftxError for a fault.

    A call is what users write, `LanguageVectorConfig(...)`. Settings within settings are made by
    pydantic without a call, so that their faults have the name of the outer setting too
    (`training.batch_size`). A method `__init__` would be called for both.
    """

    def __call__(cls, *args: Any, **data: Any) -> Any:
        try:
            return super().__call__(*args, **data)
        except ValidationError as error:
            raise _in_one_line(cls, error) from None


# Any, since mypy cannot see that it is a kind of BaseModel's type
_CONFIG_TYPE: Any = _ConfigType


class Config(BaseModel, metaclass=_CONFIG_TYPE):  # type: ignore[metaclass]
    """Base of all settings: frozen, and strict about names; numbers are finite.

    A wrong name or value raises DeftxError, with one line.

    The text below a field says what it means; `described` reads it, for `deftx settings` and
    docs/settings.md.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    def __setattr__(self, name: str, value: Any) -> None:
        kind = type(self).__name__
        raise DeftxError(f"settings do not change: make others, {kind}({name}={value!r})")


def changed(settings: ConfigT, changes: Mapping[str, Any]) -> ConfigT:
    """The settings with nested changes, such as {"k": "5%", "training": {"batch_size": 4}}.

    Raises:
        DeftxError: A change is wrong.
    """
    return parse(type(settings), merged(settings.model_dump(exclude_unset=True), changes))


def check_kind(settings: object, kind: type[Config]) -> None:
    """Check that settings are of a kind, and no dict.

    Raises:
        DeftxError: They are not.
    """
    if not isinstance(settings, kind):
        raise DeftxError(
            f"the settings are a {type(settings).__name__}: give a deftx.{kind.__name__}"
        )


def parse(kind: type[ConfigT], data: Mapping[str, Any]) -> ConfigT:
    """Data as settings of a kind.

    Raises:
        DeftxError: Something is wrong: one line that names the key and what it allows.
    """
    _check_unicode(data, "")
    try:
        return kind.model_validate(dict(data))
    except ValidationError as error:
        raise _in_one_line(kind, error) from None


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """`old` with what `new` says instead, mapping within mapping."""
    both = {**old, **new}
    for key in old.keys() & new.keys():
        if isinstance(old[key], Mapping) and isinstance(new[key], Mapping):
            both[key] = merged(old[key], new[key])
    return both


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
    """The first fault of settings as an error: the key, its value and what it allows.

    For an unknown key, it lists the known ones.
    """
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
    keys = []
    for name, field in kind.model_fields.items():
        part = field.annotation
        if isinstance(part, type) and issubclass(part, BaseModel):
            keys += [f"{name}.{inner}" for inner in part.model_fields]
    return keys
