"""Files of torch.save that strangers made: tensors, numbers and plain containers, and nothing else.

A pickle is a program. Here it is run by a small machine of our own, which has the operations that
torch.save writes (protocol 2) and no other: nothing of `pickle`, torch or NumPy is called, and what
names stand for is given here.

Time and memory are linear in the size of the file, whatever it says:

- an operation makes one small object at the most, or takes objects off the stack;
- the keys of dicts are texts: to hash a tuple means to walk through all that it holds, as often as
  it is referred to, and to the depth that it is nested;
- whatever is passed to a function is short, and tensors take no more bytes in all than the file
  has.
"""

import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deftx.errors import DeftxError

DIMENSIONS = 8  # of a tensor, at the most
LARGEST = 2**48  # entries of a tensor, at the most
_LONGEST_TEXT = 255  # characters, such as of a tensor's name
_LONGEST_NUMBER = 16  # bytes of an integer
_MOST_ARGUMENTS = 8  # of a function
_WIDTHS = {"i1": 1, "i2": 2, "i4": 4, "i8": 8}  # bytes of NumPy's signed integers, by their codes
_OLD_PARTS = 5  # pickles at the start of a file of the older form: the content is the fourth


# --- what is read ---


@dataclass
class _Data:
    """What is behind the tensors.

    Attributes:
        left: How many more bytes may be taken: in all as many as the file has, so that sharing
            multiplies nothing.
        parts: Key -> bytes.
        widths: Key -> how many bytes a number has.
    """

    left: int
    parts: dict[str, bytearray] = field(default_factory=dict)
    widths: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Stored:
    """A tensor of a file: where its numbers are, and its form. Any of it may be wrong."""

    data: _Data
    key: str
    dtype: torch.dtype
    start: int
    shape: tuple[int, ...]

    def tensor(self) -> Tensor:
        """The tensor.

        Raises:
            DeftxError: It is larger than its data, or has values that are not finite.
        """
        if prod(max(size, 1) for size in self.shape) > LARGEST:
            raise DeftxError("a tensor has no such shape as a tensor can have")
        part = self.data.parts.get(self.key, bytearray())
        count = prod(self.shape)
        offset = self.dtype.itemsize * self.start
        size = self.dtype.itemsize * count
        if self.start < 0 or offset + size > len(part):
            raise DeftxError("a tensor is larger than its data")
        self.data.left -= size
        if self.data.left < 0:
            raise DeftxError("several tensors have the same data")
        if not size:
            return torch.empty(self.shape, dtype=self.dtype)
        flat = torch.frombuffer(part, dtype=self.dtype, count=count, offset=offset)
        if not flat.isfinite().all():
            raise DeftxError("a tensor has values that are not finite")
        return flat.reshape(self.shape)


def load_plain(path: Path) -> Any:
    """What is in a file of torch.save, of its zip form or the older one; tensors are `Stored`.

    Raises:
        DeftxError: The file is damaged, or holds anything but tensors of floating point numbers,
            numbers, texts and plain containers.
    """
    try:
        data = _Data(path.stat().st_size)
        if zipfile.is_zipfile(path):
            return _read_zip(path, data)
        return _read_old(path.read_bytes(), data)
    except OSError as error:
        raise DeftxError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # a damaged file may provoke any of them
        reason = " ".join(str(error).split())[:120]
        what = "is damaged, or holds more than tensors, numbers and plain containers"
        raise DeftxError(
            f"{path} {what}, so it is not read ({type(error).__name__}: {reason})"
        ) from error


def whole(numbers: Iterable[object]) -> bool:
    """Whether all of them are integers, 0 or more."""
    return all(type(number) is int and number >= 0 for number in numbers)


# --- the two forms of a file ---


def _read_zip(path: Path, data: _Data) -> Any:
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: member for member in archive.infolist()}
        stored = all(member.compress_type == zipfile.ZIP_STORED for member in members.values())
        if not stored or sum(member.file_size for member in members.values()) > data.left:
            raise ValueError(
                "its parts are compressed, or larger than the file: torch.save never does that"
            )
        (content,) = (
            name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")
        )
        root = content.removesuffix("data.pkl")
        order = f"{root}byteorder"
        if order in members and archive.read(order) != b"little":
            raise ValueError("its numbers have their highest byte first")
        folder = f"{root}data/"
        for name in members:
            if name.startswith(folder):
                data.parts[name.removeprefix(folder)] = bytearray(archive.read(name))
        return _Machine(archive.read(content), 0, data).run()


def _read_old(content: bytes, data: _Data) -> Any:
    """Several pickles one after the other, the last of them the keys of the data, which come after
    it in their order: for each how many numbers there are, in eight bytes, and the numbers."""
    parts, start = [], 0
    for _ in range(_OLD_PARTS):
        machine = _Machine(content, start, data)
        parts.append(machine.run())
        start = machine.position
    keys = parts[-1]
    if type(keys) is not list or not all(type(key) is str for key in keys):
        raise ValueError("the keys of its data are no texts")
    for key in keys:
        size = int.from_bytes(content[start : start + 8], "little") * data.widths[key]
        start += 8 + size
        data.parts[key] = bytearray(content[start - size : start])
    if start != len(content):
        raise ValueError("it is cut off, or goes on after its end")
    return parts[-2]


# --- what the names in a pickle stand for ---


class _Type:
    """Stands for numpy.dtype: a code such as i8, and the byte order."""

    def __init__(self, code: str) -> None:
        self.width = _WIDTHS[code]
        self.order = "<"

    def number(self, data: bytes) -> int:
        """The integer in `data`."""
        if self.order != "<" or len(data) != self.width:
            raise ValueError("it holds a number of NumPy's that is no integer")
        return int.from_bytes(data, "little", signed=True)


def _make_type(code: Any, *_: Any) -> _Type:
    if type(code) is not str:
        raise ValueError("it holds a type of NumPy's without a code")
    return _Type(code)


def _make_scalar(kind: Any, data: Any) -> int:
    if type(kind) is not _Type or type(data) is not bytes:
        raise ValueError("it holds a number of NumPy's that is no integer")
    return kind.number(data)


def _make_bytes(text: Any, code: Any) -> bytes:
    """Bytes, which protocol 2 writes as text: no more than a number of NumPy's has."""
    if type(text) is not str or len(text) > max(_WIDTHS.values()) or code != "latin1":
        raise ValueError("it holds bytes that are no number of NumPy's")
    return text.encode("latin1")


def _make_size(numbers: Any) -> tuple[Any, ...]:
    """A shape; no longer one, which a file could name often and have copied each time."""
    if len(numbers) > DIMENSIONS:
        raise ValueError("it holds a tensor of too many dimensions")
    return tuple(numbers)


def _make_tensor(storage: Any, start: Any, shape: Any, strides: Any, *_: Any) -> Stored:
    """A tensor whose strides are those of row-major order, as in all that LT-SFT writes."""
    if type(storage) is not _Storage:
        raise ValueError("it holds a tensor without data")
    if (
        len(shape) > DIMENSIONS
        or len(strides) != len(shape)
        or not whole([start, *shape, *strides])
    ):
        raise ValueError("it holds a tensor without a size")
    for place, (size, stride) in enumerate(zip(shape, strides, strict=True)):
        below = prod(max(1, number) for number in shape[place + 1 :])
        if size > 1 and stride != below and 0 not in shape:
            raise ValueError("it holds a tensor that is not stored row by row")
    return Stored(storage.data, storage.key, storage.dtype, start, tuple(shape))


@dataclass(frozen=True)
class _Storage:
    """Where the numbers of tensors are."""

    data: _Data
    key: str
    dtype: torch.dtype


_NAMES: Mapping[tuple[str, str], torch.dtype | Callable[..., Any]] = {
    ("torch", "FloatStorage"): torch.float32,
    ("torch", "HalfStorage"): torch.float16,
    ("torch", "BFloat16Storage"): torch.bfloat16,
    ("torch", "Size"): _make_size,
    ("torch._utils", "_rebuild_tensor_v2"): _make_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    ("collections", "OrderedDict"): lambda: {},
    ("_codecs", "encode"): _make_bytes,
    ("numpy", "dtype"): _make_type,
    ("numpy.core.multiarray", "scalar"): _make_scalar,
    ("numpy._core.multiarray", "scalar"): _make_scalar,
}


# --- the machine ---


class _Machine:
    """Runs the pickle that starts at `position` in `program`: a stack of values, and a memo of
    those that come again.

    Whatever goes wrong is an exception, such as IndexError where the stack is empty or the program
    ends too soon.
    """

    def __init__(self, program: bytes, position: int, data: _Data) -> None:
        self.program = program
        self.position = position
        self.data = data
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks below the marks
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """What the pickle builds; `position` is at its end then."""
        while (operation := self.take(1)) != b".":
            if operation not in _OPERATIONS:
                raise ValueError(
                    "its pickle does what pickles of tensors and plain containers do not "
                    f"({operation!r})"
                )
            _OPERATIONS[operation](self)
        (value,) = self.stack
        return value

    def take(self, count: int) -> bytes:
        """The next bytes of the program."""
        start = self.position
        self.position += count
        if self.position > len(self.program):
            raise ValueError("its pickle is cut off")
        return self.program[start : self.position]

    def number(self, count: int) -> int:
        """The number in the next bytes, 0 or more."""
        return int.from_bytes(self.take(count), "little")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def above_mark(self) -> list[Any]:
        """What is on the stack above the mark, which goes."""
        values = self.stack
        self.stack = self.below.pop()
        return values

    def check_protocol(self) -> None:
        if self.take(1) != b"\x02":
            raise ValueError("its pickle is not of protocol 2, which torch.save writes")

    # numbers and texts

    def signed(self) -> None:
        self.push(int.from_bytes(self.take(4), "little", signed=True))

    def long(self) -> None:
        count = self.number(1)
        if count > _LONGEST_NUMBER:
            raise ValueError("it holds a number that is too long")
        self.push(int.from_bytes(self.take(count), "little", signed=True))

    def float(self) -> None:
        (value,) = struct.unpack(">d", self.take(8))
        self.push(value)

    def text(self) -> None:
        count = self.number(4)
        if count > _LONGEST_TEXT:
            raise ValueError("it holds a text that is too long")
        self.push(self.take(count).decode())

    # containers

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def tuple_of(self, count: int) -> None:
        """A tuple of the last `count` values."""
        values = tuple(self.stack.pop() for _ in range(count))
        self.push(values[::-1])

    def append(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise ValueError("it appends to what is no list")
        target.extend(values)

    def set_items(self, values: list[Any]) -> None:
        target = self.stack[-1]
        keys = values[::2]
        if type(target) is not dict or not all(type(key) is str for key in keys):
            raise ValueError("it sets items of what is no dict, or under a key that is no text")
        target.update(zip(keys, values[1::2], strict=True))

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    # what was there before, and what has a name

    def name(self) -> None:
        lines = []
        for _ in range(2):
            end = self.program.index(b"\n", self.position)
            lines.append(self.take(end - self.position)[:_LONGEST_TEXT].decode())
            self.take(1)
        module, name = lines
        if (module, name) not in _NAMES:
            raise ValueError(
                f"it names {module}.{name}, which no tensor and no plain container needs"
            )
        self.push(_NAMES[module, name])

    def call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(arguments) is not tuple or len(arguments) > _MOST_ARGUMENTS:
            raise ValueError("it calls a function with what are no arguments")
        self.push(
            function(*arguments)
        )  # one of _NAMES: nothing else that can be called is on the stack

    def set_state(self) -> None:
        """The byte order of a type of NumPy's: nothing else has a state."""
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is not _Type or type(state) is not tuple:
            raise ValueError("it changes what was built before")
        target.order = state[1]

    def refer_to_data(self) -> None:
        """Where the numbers of tensors are: ("storage", type, key, device, count), and None for the
        whole of it."""
        kind, dtype, key, _, _, *view = self.stack.pop()
        if (
            kind != "storage"
            or not isinstance(dtype, torch.dtype)
            or type(key) is not str
            or view not in ([], [None])
        ):
            raise ValueError("it refers to something else than the numbers of a tensor")
        self.data.widths[key] = dtype.itemsize
        self.push(_Storage(self.data, key, dtype))

    def remember(self, count: int) -> None:
        self.memo[self.number(count)] = self.stack[-1]

    def recall(self, count: int) -> None:
        self.push(self.memo[self.number(count)])


_OPERATIONS: Mapping[bytes, Callable[[_Machine], None]] = {
    b"\x80": _Machine.check_protocol,
    b"N": lambda machine: machine.push(None),
    b"\x88": lambda machine: machine.push(True),
    b"\x89": lambda machine: machine.push(False),
    b"K": lambda machine: machine.push(machine.number(1)),
    b"M": lambda machine: machine.push(machine.number(2)),
    b"J": _Machine.signed,
    b"\x8a": _Machine.long,
    b"G": _Machine.float,
    b"X": _Machine.text,
    b"(": _Machine.mark,
    b")": lambda machine: machine.push(()),
    b"t": lambda machine: machine.push(tuple(machine.above_mark())),
    b"\x85": partial(_Machine.tuple_of, count=1),
    b"\x86": partial(_Machine.tuple_of, count=2),
    b"\x87": partial(_Machine.tuple_of, count=3),
    b"]": lambda machine: machine.push([]),
    b"a": lambda machine: machine.append([machine.stack.pop()]),
    b"e": lambda machine: machine.append(machine.above_mark()),
    b"}": lambda machine: machine.push({}),
    b"s": _Machine.set_item,
    b"u": lambda machine: machine.set_items(machine.above_mark()),
    b"c": _Machine.name,
    b"R": _Machine.call,
    b"b": _Machine.set_state,
    b"Q": _Machine.refer_to_data,
    b"q": partial(_Machine.remember, count=1),
    b"r": partial(_Machine.remember, count=4),
    b"h": partial(_Machine.recall, count=1),
    b"j": partial(_Machine.recall, count=4),
}
