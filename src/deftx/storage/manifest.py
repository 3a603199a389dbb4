"""vector.json: what a vector folder says about itself, as strict JSON of a fixed form."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from deftx.errors import DeftxError, first_fault

VERSION = 1
FILE = "vector.json"

Name = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$", max_length=512)
]
Size = Annotated[int, Field(ge=0, le=2**48)]
Shape = Annotated[list[Size], Field(max_length=8)]


class Form(BaseModel):
    """A JSON object with exactly the keys and types that are declared."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class TensorForm(Form):
    """One tensor: the shape of the dense tensor, how many of its entries the vector holds, and
    their type."""

    shape: Shape
    count: Size
    dtype: Literal["F32", "F16", "BF16"]


class HeadForm(Form):
    """The labels in the order of the head's outputs; checksum and tensors of head.safetensors."""

    labels: list[str]
    sha256: str
    shapes: dict[Name, Shape]


class TrainingForm(BaseModel):
    """Of the settings that a vector was trained with, those that are read back."""

    model_config = ConfigDict(strict=True, frozen=True)

    length: Annotated[int, Field(ge=1, le=2**31)] | None = None
    metric: str | None = None


class OriginForm(BaseModel):
    """Of where a vector came from, what is read back; there may be more beside it."""

    model_config = ConfigDict(strict=True, frozen=True)

    base: str | None = None
    base_fingerprint: str | None = None
    kind: str | None = None
    operation: str | None = None
    task: str | None = None
    method: str | None = None
    rank_rule: int | float | str | None = None
    ranks: dict[str, int] = {}
    training: TrainingForm = TrainingForm()


class InfoForm(BaseModel):
    """The part of vector.json whose other content is free."""

    info: OriginForm


class Manifest(Form):
    """The whole file; `sha256` is the checksum of vector.safetensors, `info` is the vector's
    own."""

    format_version: Literal[1]
    sha256: str
    head: HeadForm | None
    info: dict[str, Any]
    tensors: dict[Name, TensorForm]


def checksum(content: Mapping[str, Any]) -> str:
    """The SHA-256 of what vector.json says, but for the checksums of the other files: it is kept in
    one of them.

    Raises:
        DeftxError: The content is not JSON.
    """
    rest = {key: value for key, value in content.items() if key != "sha256"}
    if rest["head"]:
        rest["head"] = {key: value for key, value in rest["head"].items() if key != "sha256"}
    # through JSON and back: keys that are numbers become texts, tuples lists
    plain = json.loads(_as_json(rest))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _as_json(content: Mapping[str, Any]) -> str:
    try:
        return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        raise DeftxError(f"the vector's info is not JSON: {error}") from error


def write_manifest(content: dict[str, Any], path: Path) -> None:
    """Write vector.json; raises DeftxError for content of another form and for info that is not
    JSON (NaN is not)."""
    _check(content)
    try:
        text = _as_json(content).encode()
    except ValueError as error:
        if isinstance(error, DeftxError):
            raise
        raise DeftxError(f"the vector's info is not JSON: {error}") from error
    path.write_bytes(text)


def read_manifest(path: Path) -> Manifest:
    """Read vector.json; raises DeftxError that names the file and what is wrong with it."""
    if not os.path.isfile(path):
        raise DeftxError(f"{path.parent} is not a vector: it has no {FILE}{_inside(path.parent)}")
    try:
        content = json.loads(path.read_bytes().decode(), parse_constant=_refuse)
        json.dumps(
            content, ensure_ascii=False
        ).encode()  # halves of characters, which nothing could print
    except (ValueError, RecursionError, OSError) as error:
        raise DeftxError(f"{path} is not valid JSON: {error}") from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if isinstance(version, int) and version > VERSION:
        raise DeftxError(
            f"{path} has format version {version}, this deftx reads up to {VERSION}: upgrade deftx"
        )
    try:
        return _check(content)
    except DeftxError as error:
        raise DeftxError(f"{path} is damaged: {error}") from error


def _inside(folder: Path) -> str:
    """The vectors that a folder holds, for who named the folder in place of one."""
    names = sorted(found.parent.name for found in folder.glob(f"*/{FILE}"))
    return f"; in it are the vectors {', '.join(names)}: name one of them" if names else ""


def _check(content: object) -> Manifest:
    """`content` in its form; the error names the first place that is wrong."""
    try:
        found = Manifest.model_validate(content)
        InfoForm.model_validate({"info": found.info})
        return found
    except ValidationError as error:
        place, fault = first_fault(error)
        raise DeftxError(f"{place!r}: {fault}") from error


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")
