"""What strangers get to see of a vector: where it came from, but no place on its maker's disk."""

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from deftx.core.vector import SparseVector
from deftx.storage.hub_client import is_model_id
from deftx.storage.provenance_json import provenance_from_json, provenance_to_json

LOCAL = "a local folder"  # in place of a model that is not on the hub; it has the form of no hub id
_MODELS = (
    "base",
    "finetuned",
    "tokenizer",
)  # what models stand under, the last one's in its "name"
_PATH = re.compile(
    r"(hub:)?(~[^/\\]*|\.\.?|[A-Za-z]:)?[/\\]"
)  # how a path begins that is no name alone


def published(vector: SparseVector, base: str | None = None) -> SparseVector:
    """A vector without the paths in its provenance: models are hub ids or `a local folder`, other
    paths their last part.

    That holds for the provenance of the vectors it was made from, too. The fingerprint still
    identifies the base.

    Args:
        vector: The vector as it is on its maker's disk.
        base: The hub id of its base, where a folder is recorded.
    """
    record = provenance_to_json(vector.provenance)  # with all that files of others record
    public = {key: without_paths(key, value) for key, value in record.items()}
    provenance = provenance_from_json(public)
    if base:
        provenance = replace(provenance, base=base)
    return replace(vector, provenance=provenance)


def without_paths(key: str, value: Any) -> Any:
    """What is in `value`, which stands under `key`, with the names of files for their paths."""
    if isinstance(value, Mapping):
        public = {}
        for inner, part in value.items():
            is_tokenizer = (key, inner) == ("tokenizer", "name")
            inner_key = key if is_tokenizer else inner
            public[inner] = without_paths(inner_key, part)
        return public
    # Labels are data, whatever they look like
    if isinstance(value, list | tuple) and key != "labels":
        return [without_paths(key, part) for part in value]
    if not isinstance(value, str):
        return value
    if key in _MODELS:
        return value if is_model_id(value) and not os.path.exists(value) else LOCAL
    return re.split(r"[/\\]", value.rstrip("/\\"))[-1] if _PATH.match(value) else value
