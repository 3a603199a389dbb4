"""Damaged and hostile files of torch.save: our reader beside torch.load(weights_only=True).

    python scripts/fuzz_pickles.py [--files 2000] [--seed 0] [FILE ...]

Each file is a valid one of LT-SFT's form whose pickle was changed: bits flipped, bytes removed or
repeated, opcodes inserted, integers replaced by large ones. Every file is read once by each
reader in a process of its own, with five seconds of the processor and 1 GB more memory than at
its start. Printed is how often each one read the file, refused it with an error, ran out of time,
ran out of memory, or crashed (a signal). What becomes of FILEs is printed file by file.
"""

import argparse
import collections
import os
import pickletools
import random
import resource
import signal
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from deftx.interop.safe_unpickling import load_plain

SECONDS = 5  # of the processor
MEMORY = 2**30
REFUSED, NO_MEMORY = 10, 11
OUTCOMES = {0: "read", REFUSED: "refused", NO_MEMORY: "out of memory"}


def load_with_ours(path: Path) -> object:
    """What `deftx convert` does first."""
    return load_plain(path)


def load_with_torch(path: Path) -> object:
    """torch's own safe reader, with what LT-SFT's files need allowed."""
    allowed = [np.core.multiarray.scalar, np.dtype, np.dtypes.Int64DType, torch.Size]
    with torch.serialization.safe_globals(allowed):
        return torch.load(path, map_location="cpu", weights_only=True)


READERS: dict[str, Callable[[Path], object]] = {
    "ours": load_with_ours,
    "torch.load": load_with_torch,
}


def main() -> None:
    """Make the files, read each with both, print the counts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("file", nargs="*", type=Path)
    options = parser.parse_args()
    for path in options.file:
        for name, reader in READERS.items():
            print(path, name, outcome_of(reader, path))
    chance = random.Random(options.seed)
    counts: dict[str, collections.Counter[str]] = {name: collections.Counter() for name in READERS}
    with tempfile.TemporaryDirectory() as folder:
        valid = Path(folder) / "valid.bin"
        write_valid(valid)
        for name, reader in READERS.items():
            outcome = outcome_of(reader, valid)
            if outcome != "read":
                sys.exit(f"{name} does not read the valid file: {outcome}")
        changed = Path(folder) / "changed.bin"
        for _ in range(options.files):
            write_changed(valid, changed, chance)
            for name, reader in READERS.items():
                counts[name][outcome_of(reader, changed)] += 1
    for name, count in counts.items():
        print(name, dict(count.most_common()))


def write_valid(path: Path) -> None:
    """A file as LT-SFT writes it: differences of two tensors by steps of indices, and a head."""
    generator = torch.Generator().manual_seed(0)
    diffs = {
        name: {
            "size": torch.Size((4, 5)),
            "index_steps": [np.int64(1), 2, 3],
            "values": torch.randn(3, generator=generator),
        }
        for name in ("encoder.weight", "encoder.bias")
    }
    head = {"classifier.weight": torch.randn(2, 4, generator=generator)}
    torch.save({"diffs": diffs, "abs": head}, path)


def write_changed(valid: Path, path: Path, chance: random.Random) -> None:
    """The valid file with one to four changes of its pickle."""
    with zipfile.ZipFile(valid) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (name,) = (name for name in members if name.endswith("/data.pkl"))
    content = bytearray(members[name])
    for _ in range(chance.randint(1, 4)):
        chance.choice(CHANGES)(content, chance)
    members[name] = bytes(content)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for member, data in members.items():
            archive.writestr(member, data)


def flip_a_bit(content: bytearray, chance: random.Random) -> None:
    """One bit anywhere."""
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)


def remove_a_part(content: bytearray, chance: random.Random) -> None:
    """Up to nine bytes."""
    start = chance.randrange(len(content))
    del content[start : start + chance.randint(1, 9)]


def repeat_a_part(content: bytearray, chance: random.Random) -> None:
    """Up to 40 bytes, up to 200 times."""
    start = chance.randrange(len(content))
    part = content[start : start + chance.randint(1, 40)]
    content[start:start] = part * chance.randint(1, 200)


def insert_an_operation(content: bytearray, chance: random.Random) -> None:
    """Any opcode of pickle, with some bytes as its argument."""
    opcodes = [opcode.code.encode("latin1") for opcode in pickle_opcodes()]
    start = chance.randrange(len(content))
    argument = chance.randbytes(chance.choice((0, 1, 4)))
    content[start:start] = chance.choice(opcodes) + argument


def enlarge_a_number(content: bytearray, chance: random.Random) -> None:
    """Four bytes that read as a large number."""
    start = chance.randrange(max(1, len(content) - 4))
    content[start : start + 4] = chance.choice((b"\xff\xff\xff\x7f", b"\xff" * 4, b"\0\0\0\x10"))


CHANGES = (
    flip_a_bit,
    remove_a_part,
    repeat_a_part,
    insert_an_operation,
    enlarge_a_number,
)


def pickle_opcodes() -> list[pickletools.OpcodeInfo]:
    """All operations that pickles have."""
    return pickletools.opcodes


def outcome_of(reader: Callable[[Path], object], path: Path) -> str:
    """What becomes of reading a file, in words."""
    child = os.fork()
    if child == 0:
        os._exit(_read_within_limits(reader, path))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == -signal.SIGPROF:
        return "out of time"
    if code < 0:
        return f"crashed ({signal.Signals(-code).name})"
    return OUTCOMES.get(code, f"exit {code}")


def _read_within_limits(reader: Callable[[Path], object], path: Path) -> int:
    """Read a file in this process, as its exit code."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        reader(path)
    except MemoryError:
        return NO_MEMORY
    except BaseException:
        return REFUSED
    return 0


if __name__ == "__main__":
    main()
