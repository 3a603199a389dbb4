"""Files of torch.save that strangers made: tensors, numbers and plain containers, and nothing else.

A pickle is a program. Before this one runs, a pattern has to match all of it that allows no operation but those that
build numbers, texts, lists, tuples and dicts, no name of a function but a few, and no more memory than the
file's own. What those names stand for is given here: nothing of torch or NumPy is called.
"""

import io
import pickle
import re
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deftx.errors import DeftxError

_FLOATS = {"FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16}
DIMENSIONS = 8  # of a tensor, at the most
_WIDTHS = {"i1": 1, "i2": 2, "i4": 4, "i8": 8}  # bytes of NumPy's signed integers, by their codes
_OLD_PARTS = 5  # pickles at the start of a file of the older form: the content is the fourth


def _counted(operation: bytes, zeros: int, most: int) -> bytes:
    """A pattern for an operation with a count, a byte and some zeros, and so many bytes after it."""
    sizes = b"|".join(b"\\x%02x\\x00{%d}.{%d}" % (size, zeros, size) for size in range(most))
    return operation + b"(?:" + sizes + b")"


# Protocol 2, which torch.save writes. Two operations have their numbers limited: texts are short of 256 bytes, and
# `r`, which numbers what is built, stays below 2**16, since room is made for all numbers up to it.
_OPERATIONS = re.compile(
    b"(?:"
    + b"|".join(
        [
            *(rb"K.", rb"M..", rb"J.{4}", _counted(rb"\x8a", 0, 17), rb"G.{8}", _counted(b"X", 3, 256)),
            *(rb"q.", rb"h.", rb"r..\x00\x00", rb"j.{4}", rb"[]}()tsueaRbQN\x85-\x89]", rb"\x80\x02"),
            rb"ctorch\n(?:Size|FloatStorage|HalfStorage|BFloat16Storage)\n",
            rb"ctorch\._utils\n(?:_rebuild_tensor_v2|_rebuild_parameter)\n",
            rb"ccollections\nOrderedDict\n|c_codecs\nencode\n|cnumpy\ndtype\n|cnumpy\._?core\.multiarray\nscalar\n",
        ]
    )
    + rb")*+\.",
    re.DOTALL,
)


@dataclass
class _Data:
    """What is behind the tensors, by key: the bytes, and how many a number has.

    left  how many more bytes may be taken from it: in all as many as the file has, so that sharing multiplies nothing
    """

    left: int
    parts: dict[str, bytearray] = field(default_factory=dict)
    widths: dict[str, int] = field(default_factory=dict)


class Stored(NamedTuple):  # a tuple: a pickle could set the attributes of anything else, frozen or not
    """A tensor of a file: where its numbers are, and its form. Any of it may be wrong."""

    data: _Data
    key: str
    dtype: torch.dtype
    start: int
    shape: tuple[int, ...]

    def tensor(self) -> Tensor:
        """The tensor. Raises DeftxError where it is larger than its data, or has values that are not finite."""
        part, size = self.data.parts.get(self.key, bytearray()), self.dtype.itemsize * prod(self.shape)
        if self.start < 0 or self.dtype.itemsize * self.start + size > len(part):
            raise DeftxError("a tensor is larger than its data")
        self.data.left -= size
        if self.data.left < 0:
            raise DeftxError("several tensors have the same data")
        if not size:
            return torch.empty(self.shape, dtype=self.dtype)
        flat = torch.frombuffer(part, dtype=self.dtype, count=prod(self.shape), offset=self.dtype.itemsize * self.start)
        if not flat.isfinite().all():
            raise DeftxError("a tensor has values that are not finite")
        return flat.reshape(self.shape)


def load_plain(path: Path) -> Any:
    """What is in a file of torch.save, of its zip form or the older one; tensors are `Stored`.

    Raises DeftxError for a file that is damaged, or that holds anything but tensors of floating point numbers,
    numbers, texts and plain containers.
    """
    try:
        data = _Data(path.stat().st_size)
        return _read_zip(path, data) if zipfile.is_zipfile(path) else _read_old(path.read_bytes(), data)
    except OSError as error:
        raise DeftxError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # a damaged file may provoke any of them
        reason = " ".join(str(error).split())[:120]
        what = "is damaged, or holds more than tensors, numbers and plain containers"
        raise DeftxError(f"{path} {what}, so it is not read ({type(error).__name__}: {reason})") from error


def _read_zip(path: Path, data: _Data) -> Any:
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: member for member in archive.infolist()}
        stored = all(member.compress_type == zipfile.ZIP_STORED for member in members.values())
        if not stored or sum(member.file_size for member in members.values()) > data.left:
            raise ValueError("its parts are compressed, or larger than the file: torch.save never does that")
        (content,) = (name for name in members if name.count("/") == 1 and name.endswith("/data.pkl"))
        folder, order = f"{content.removesuffix('data.pkl')}data/", f"{content.removesuffix('data.pkl')}byteorder"
        if order in members and archive.read(order) != b"little":
            raise ValueError("its numbers have their highest byte first")
        data.parts |= {
            name.removeprefix(folder): bytearray(archive.read(name)) for name in members if name.startswith(folder)
        }
        return _unpickled(archive.read(content), data)[0]


def _read_old(content: bytes, data: _Data) -> Any:
    parts, start = [], 0
    for _ in range(_OLD_PARTS):
        part, start = _unpickled(content, data, start)
        parts.append(part)
    for key in parts[-1]:
        size = int.from_bytes(content[start : start + 8], "little") * data.widths[key]
        start += 8 + size
        data.parts[key] = bytearray(content[start - size : start])
    if start != len(content):
        raise ValueError("it is cut off, or goes on after its end")
    return parts[-2]


def _unpickled(content: bytes, data: _Data, start: int = 0) -> tuple[Any, int]:
    """What the pickle at `start` builds, and where it ends."""
    allowed = _OPERATIONS.match(content, start)
    if allowed is None:
        raise ValueError("its pickle does what pickles of tensors and plain containers do not")
    return _Unpickler(io.BytesIO(allowed[0]), data).load(), allowed.end()


class _Unpickler(pickle.Unpickler):
    """Builds what the pickle says, from the stand-ins of `find_class`."""

    def __init__(self, file: io.BytesIO, data: _Data) -> None:
        super().__init__(file)
        self.data = data

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name; made anew each time, so that a file can change nothing that stays."""
        stand_ins: dict[str, Callable[..., Any]] = {
            "Size": _size,
            "OrderedDict": lambda: {},
            "encode": lambda text, code: text.encode("latin1"),  # bytes, in protocol 2
            "dtype": lambda code, *_: _Type(code),
            "scalar": lambda kind, number: kind.number(number),
            "_rebuild_parameter": lambda tensor, *_: tensor,
            "_rebuild_tensor_v2": lambda storage, start, shape, strides, *_: _stored(storage, start, shape, strides),
        }
        return _FLOATS.get(name) or stand_ins[name]

    def persistent_load(self, pid: Any) -> tuple[_Data, str, torch.dtype]:
        """Where the numbers of tensors are: ("storage", type, key, device, count), and None for the whole of it."""
        kind, dtype, key, _, _, *view = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(key, str) or any(view):
            raise ValueError("it refers to something else than the numbers of a tensor")
        self.data.widths[key] = dtype.itemsize
        return self.data, key, dtype


def _size(numbers: Any) -> tuple[Any, ...]:
    """A shape; no longer one, which a file could name often and have copied each time."""
    if len(numbers) > DIMENSIONS:
        raise ValueError("it holds a tensor of too many dimensions")
    return tuple(numbers)


def _stored(storage: tuple[_Data, str, torch.dtype], start: int, shape: Any, strides: Any) -> Stored:
    """A tensor whose strides are those of row-major order, as in all that LT-SFT writes."""
    if not whole([start, *shape]) or len(shape) > DIMENSIONS:
        raise ValueError("it holds a tensor without a size")
    expected = [max(1, prod(shape[place + 1 :])) for place in range(len(shape))]
    if any(size > 1 and stride != wanted for size, stride, wanted in zip(shape, strides, expected, strict=True)):
        raise ValueError("it holds a tensor that is not stored row by row")
    return Stored(*storage, start, tuple(shape))


def whole(numbers: Iterable[object]) -> bool:
    """Whether all of them are integers, 0 or more."""
    return all(type(number) is int and number >= 0 for number in numbers)


class _Type:
    """Stands for numpy.dtype: a code such as i8, and the byte order."""

    def __init__(self, code: str) -> None:
        self.width, self.order = _WIDTHS[code], "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    def number(self, data: bytes) -> int:
        """The integer in `data`."""
        if self.order != "<" or len(data) != self.width:
            raise ValueError("it holds a number of NumPy's that is no integer")
        return int.from_bytes(data, "little", signed=True)
