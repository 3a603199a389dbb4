"""YAML files that extend others of their folder: what a recipe and those below it say together."""

from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any

from deftx.errors import DeftxError
from deftx.experiments.plain_yaml import BadYaml, parse_yaml

_DEEPEST = 8  # recipes below one, one extending the other
_MOST_RECIPES = 50  # that a recipe extends, in all
EXTENDS = "extends"


def read(path: Path) -> dict[str, Any]:
    """What a recipe and those it extends say.

    Raises DeftxError for what is no recipe, for one that extends itself, and for too many that are
    extended.
    """
    return _read(path, (), {})


def _read(path: Path, above: tuple[Path, ...], known: dict[Path, dict[str, Any]]) -> dict[str, Any]:
    """`read`, of a recipe that those `above` extend; `known` has those that were read before."""
    if path in above or len(above) > _DEEPEST:
        raise DeftxError(
            f"the recipe {path} extends itself, by way of {', '.join(map(str, above))}"
        )
    if path in known:
        return known[path]
    if len(known) >= _MOST_RECIPES:
        raise DeftxError(
            f"the recipe {above[0]} extends more than {_MOST_RECIPES} others: put what they say together"
        )
    data = _parsed(path)
    below = data.pop(EXTENDS, [])
    files = below if isinstance(below, list) else [below]
    if not all(isinstance(file, str) and Path(file).name == file for file in files):
        raise DeftxError(
            f"the recipe {path} extends {below!r:.200}: give the names of recipes in the same folder"
        )
    if len(set(files)) < len(files):
        raise DeftxError(f"the recipe {path} extends a recipe twice: name each once")
    parts = [_read(path.parent / file, (*above, path), known) for file in files]
    known[path] = reduce(_overlaid, [*parts, data], {})
    return known[path]


def _parsed(path: Path) -> dict[str, Any]:
    try:
        data = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DeftxError(f"cannot read the recipe {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DeftxError(f"the recipe {path} is not UTF-8: {error}") from None
    except BadYaml as error:
        raise DeftxError(f"the recipe {path} is not YAML that can be read: {error}") from None
    if not isinstance(data, dict):
        raise DeftxError(f"the recipe {path} is not a mapping of keys to values")
    return data


def _overlaid(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`below` with what `above` says instead, mapping within mapping; without what is null there,
    and was not."""
    both = dict(below)
    for key, value in above.items():
        if value is None and below.get(key) is not None:
            del both[key]
        elif isinstance(value, Mapping) and isinstance(below.get(key), Mapping):
            both[key] = _overlaid(below[key], value)
        else:
            both[key] = value
    return both
