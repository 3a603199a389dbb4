"""Settings described for people: `deftx settings` and docs/settings.md show them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel

from deftx.config.base import Config


@dataclass(frozen=True)
class Described:
    """A setting, described for people.

    Attributes:
        name: Its name, written out: `training.batch_size`.
        default: Its default.
        meaning: What it means.
        presets: What presets set it to, by their names, where that is not the default.
    """

    name: str
    default: Any
    meaning: str
    presets: Mapping[str, Any]


def described(kind: type[Config], presets: Mapping[str, Config] | None = None) -> list[Described]:
    """All settings of a kind, those that are within others last.

    Args:
        kind: The kind of settings.
        presets: Presets of that kind, by their names.
    """
    presets = presets or {}
    own = []
    inner = []
    for name, field in kind.model_fields.items():
        values = {key: getattr(preset, name) for key, preset in presets.items()}
        if isinstance(field.default, Config):
            for part in described(type(field.default), values):
                inner.append(replace(part, name=f"{name}.{part.name}"))
        else:
            different = {key: value for key, value in values.items() if value != field.default}
            own.append(Described(name, field.default, _meaning(kind, name), different))
    return [*own, *inner]


def _meaning(kind: type[BaseModel], name: str) -> str:
    """The text below a setting in its class, or in the nearest base class that has one."""
    for ancestor in kind.__mro__:
        if issubclass(ancestor, BaseModel) and name in ancestor.model_fields:
            description = ancestor.model_fields[name].description
            if description:
                return " ".join(description.split())
    return ""
