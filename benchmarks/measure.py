"""What the benchmarks share: timing two ways in turn, peak memory of one step, the machine's speed,
what was measured.

Each script prints its rows, and with `--save FILE` keeps them there, one row after the other, so
that one that is cut off loses no more than the row it was at. `page.py` makes docs/performance.md
of the file.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # what the benchmarks run on


@dataclass(frozen=True)
class Measured:
    """One row: what ours, the plain way and the floor take, in `unit`; without `ours`, `note` says
    why not.

    gigabytes  what ours and the plain way add to the peak memory of a process, their results
               included
    note       whether both give the same answer, or what else is to be said
    """

    step: str
    ours: float | None
    plain: float | None = None
    floor: float | None = None
    unit: str = "s"
    gigabytes: tuple[float | None, float | None] = (None, None)
    note: str = ""


@dataclass(frozen=True)
class Kept:
    """A row in the file: with the machine, the shape, rounds and day, and how many cores others
    kept busy."""

    script: str
    machine: str
    shape: str
    rounds: int
    day: str
    others: float
    row: Measured


def options_of(script_doc: str, shapes: Iterable[str], rounds: int) -> argparse.ArgumentParser:
    """The options that all scripts have."""
    parser = argparse.ArgumentParser(
        description=script_doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--shape", choices=list(shapes), default="base", help="of XLM-R base, large or a small one"
    )
    parser.add_argument(
        "--repeat", type=int, default=rounds, help="rounds, of which the median is shown"
    )
    parser.add_argument("--only", metavar="STEP", help="one row alone")
    parser.add_argument(
        "--ours-only", action="store_true", help="leave out the plain way, which takes minutes"
    )
    parser.add_argument(
        "--save",
        type=Path,
        metavar="FILE",
        help="keep the rows in this file, in place of older ones",
    )
    parser.add_argument("--peak", nargs=2, metavar=("STEP", "WAY"), help=argparse.SUPPRESS)
    return parser


def report(rows: Iterable[Measured], options: argparse.Namespace) -> None:
    """Print the rows as they come, and keep them where that is asked for."""
    print(f"{machine()}; shape {options.shape}, median of {options.repeat}\n")
    print(f"| {' | '.join(HEADER)} |\n{'| --- ' * len(HEADER)}|")
    before = time.monotonic(), others()
    for row in rows:
        print(f"| {' | '.join(cells(row))} |", flush=True)
        after = time.monotonic(), others()
        busy = round((after[1] - before[1]) / (after[0] - before[0]), 1)
        before = after
        if options.save:
            day = f"{datetime.now(UTC):%Y-%m-%d}"
            _keep(
                options.save,
                Kept(
                    Path(sys.argv[0]).name, machine(), options.shape, options.repeat, day, busy, row
                ),
            )


HEADER = [
    "step",
    "ours",
    "plain",
    "ratio",
    "floor",
    "ours / floor",
    "ours: extra memory",
    "plain",
    "",
]


def cells(row: Measured) -> list[str]:
    """A row as text."""

    def one(value: float | None, unit: str) -> str:
        return (
            ""
            if value is None
            else f"{value:.{3 if value < 0.1 else 2 if value < 10 else 1}f} {unit}"
        )

    def ratio(above: float | None, below: float | None) -> str:
        return f"{above / below:.1f}" if above and below else ""

    times = [one(row.ours, row.unit), one(row.plain, row.unit), ratio(row.plain, row.ours)]
    floor = [one(row.floor, row.unit), ratio(row.ours, row.floor)]
    return [row.step, *times, *floor, *(one(size, "GB") for size in row.gigabytes), row.note]


def read(path: Path) -> list[Kept]:
    """The rows in a file."""
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [Kept(**{**line, "row": Measured(**line["row"])}) for line in lines]


def _keep(path: Path, new: Kept) -> None:
    """Put a row into the file, where an older one of the same step stands or else at the end."""
    rows = {
        (kept.machine, kept.shape, kept.script, kept.row.step): kept for kept in [*read(path), new]
    }
    path.write_text("".join(json.dumps(asdict(kept)) + "\n" for kept in rows.values()))


def others() -> float:
    """The seconds for which other processes than this one and its children have kept cores busy, so
    far."""
    if not Path("/proc/stat").exists():
        return 0.0
    user, nice, system = map(int, Path("/proc/stat").read_text().split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK") - sum(os.times()[:4])


def available() -> float:
    """The gigabytes of memory that are free; infinite where that is not known."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return float("inf")
    return (
        next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024 / 1e9
    )


def alternate(ways: Sequence[Callable[[], Any]], repeat: int) -> tuple[list[float], list[Any]]:
    """Each way's median wall time in seconds over `repeat` rounds, and its last result.

    The ways take turns, so that what else the machine does meets all of them alike.
    """
    times: list[list[float]] = [[] for _ in ways]
    results: list[Any] = [None] * len(ways)
    for _ in range(repeat):
        for number, way in enumerate(ways):
            results[number] = None  # frees the last round's before the next is made
            start = now()
            results[number] = way()
            times[number].append(now() - start)
    return [median(of) for of in times], results


def now() -> float:
    """Seconds on a clock, when all that a GPU was given to do is done."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def print_peak(step: Callable[[], Any]) -> None:
    """Run a step and print by how many bytes it raised the memory that is held, its result
    included: the GPU's where there is one, else this process's.

    To be run by `peak_in_subprocess`. Without a GPU it needs Linux: elsewhere the peak cannot be
    set back to what is held now.
    """
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")
    before = _peak()
    result = step()
    print(_peak() - before)
    del result


def peak_in_subprocess(*arguments: str) -> float:
    """The gigabytes that `print_peak` prints, as its last line, in a fresh run of this script with
    `arguments`."""
    run = subprocess.run(
        [sys.executable, sys.argv[0], *arguments], stdout=subprocess.PIPE, text=True, check=True
    )
    return int(run.stdout.split()[-1]) / 1e9


def bytes_per_second(device: torch.device = DEVICE) -> float:
    """How fast memory is read: the sum of a tensor far larger than the caches."""
    tensor = torch.ones(1 << 27, device=device)
    return tensor.nbytes / _best(tensor.sum)


def flops_per_second(dtype: torch.dtype) -> float:
    """How fast square matrices are multiplied, in floating point operations; on a GPU larger ones,
    to fill it."""
    size = 8192 if DEVICE.type == "cuda" else 1536
    matrix = torch.ones(size, size, dtype=dtype, device=DEVICE)
    return 2 * size**3 / _best(lambda: matrix @ matrix)


def _peak() -> int:
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )


def machine() -> str:
    """What the figures were taken on."""
    if DEVICE.type == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "a CPU"
    )
    threads, kind = torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()
    return f"{name}, {threads} threads, {kind}, torch {torch.__version__}"


def _best(way: Callable[[], Any]) -> float:
    return min(alternate([way], 1)[0][0] for _ in range(5))
