"""Recipes that inherit from others of their folder (`extends`): what all of them say together."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deftx.errors import DeftxError
from deftx.experiments.plain_yaml import BadYaml, parse_yaml

EXTENDS = "extends"
MOST_LEVELS = 8  # of recipes below one, each extended by the one above
MOST_RECIPES = 50  # that a recipe extends, directly or not


def read(path: Path) -> dict[str, Any]:
    """The data of a recipe, together with those that it extends.

    Raises:
        DeftxError: A file is not a recipe, a recipe extends itself, or too many are extended.
    """
    return _read(path, (), {})


def _read(path: Path, above: tuple[Path, ...], known: dict[Path, dict[str, Any]]) -> dict[str, Any]:
    """The data of a recipe, together with those that it extends.

    Args:
        path: The recipe.
        above: The recipes that extend it, the outermost first.
        known: The data of recipes that were read before; this one's are added.
    """
    if path in above or len(above) > MOST_LEVELS:
        way = ", ".join(str(recipe) for recipe in above)
        raise DeftxError(f"the recipe {path} extends itself, by way of {way}")
    if path in known:
        return known[path]
    if len(known) >= MOST_RECIPES:
        what = f"extends more than {MOST_RECIPES} others: put what they say together"
        raise DeftxError(f"the recipe {above[0]} {what}")

    own_data = _parsed(path)
    extended = own_data.pop(EXTENDS, [])
    names = _extended_names(path, extended)

    # Later recipes override earlier ones, and the recipe itself overrides all
    inherited: dict[str, Any] = {}
    for name in names:
        parent = path.parent / name
        parent_data = _read(parent, (*above, path), known)
        inherited = _overridden(inherited, parent_data)
    data = _overridden(inherited, own_data)
    known[path] = data
    return data


def _extended_names(path: Path, value: Any) -> list[str]:
    """The names of the recipes that `path` extends, given its value of `extends`."""
    names = [value]
    if isinstance(value, list):
        names = value
    for name in names:
        is_name = isinstance(name, str) and Path(name).name == name
        if not is_name:
            fix = "give the names of recipes in the same folder"
            raise DeftxError(f"the recipe {path} extends {value!r:.200}: {fix}")
    if len(set(names)) < len(names):
        raise DeftxError(f"the recipe {path} extends a recipe twice: name each once")
    return names


def _parsed(path: Path) -> dict[str, Any]:
    """The data of one recipe file.

    Raises:
        DeftxError: The file cannot be read, or is not a mapping in YAML.
    """
    try:
        text = path.read_text(encoding="utf-8")
        data = parse_yaml(text)
    except OSError as error:
        raise DeftxError(f"cannot read the recipe {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DeftxError(f"the recipe {path} is not UTF-8: {error}") from None
    except BadYaml as error:
        raise DeftxError(f"the recipe {path} is not YAML that can be read: {error}") from None
    if not isinstance(data, dict):
        raise DeftxError(f"the recipe {path} is not a mapping of keys to values")
    return data


def _overridden(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`below` with what `above` says instead, mapping within mapping.

    Null in `above` removes a value of `below`; where there is none, it is kept as a value.
    """
    data = dict(below)
    for key, value in above.items():
        old = below.get(key)
        if value is None and old is not None:
            del data[key]
        elif isinstance(value, Mapping) and isinstance(old, Mapping):
            data[key] = _overridden(old, value)
        else:
            data[key] = value
    return data
