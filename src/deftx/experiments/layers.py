"""YAML files that extend others of their folder: what a recipe and those below it say together."""

from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import yaml

from deftx.errors import DeftxError

_LARGEST, _DEEPEST = 100_000, 8  # values of a recipe; recipes below it, one extending the other
EXTENDS = "extends"


def read(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """What a recipe and those it extends say."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DeftxError(f"cannot read the recipe {path}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no text, or a date such as 2024-99-99
        raise DeftxError(f"the recipe {path} is not YAML: {' '.join(str(error).split())}") from None
    if _too_large(data):
        raise DeftxError(f"the recipe {path} has more than {_LARGEST:,} values: its references (*) multiply them")
    if not isinstance(data, dict):
        raise DeftxError(f"the recipe {path} is not a mapping of keys to values")
    below = data.pop(EXTENDS, [])
    files = below if isinstance(below, list) else [below]
    if not all(isinstance(file, str) and Path(file).name == file for file in files):
        raise DeftxError(f"the recipe {path} extends {below!r}: give the names of recipes in the same folder")
    if path in above or len(above) > _DEEPEST:
        raise DeftxError(f"the recipe {path} extends itself, by way of {', '.join(map(str, above))}")
    parts = [read(path.parent / file, (*above, path)) for file in files]
    return reduce(_overlaid, [*parts, data], {})


def _overlaid(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`below` with what `above` says instead, mapping within mapping; without what is null there, and was not."""
    both = dict(below)
    for key, value in above.items():
        if value is None and below.get(key) is not None:
            del both[key]
        elif isinstance(value, Mapping) and isinstance(below.get(key), Mapping):
            both[key] = _overlaid(below[key], value)
        else:
            both[key] = value
    return both


def _too_large(data: Any) -> bool:
    """Whether data holds more values than a recipe can have, each counted as often as it is referred to."""
    rest, count = [data], 1
    while rest and count <= _LARGEST:
        value = rest.pop()
        inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
        rest, count = rest + inner, count + len(inner)
    return count > _LARGEST
