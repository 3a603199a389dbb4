"""What the benchmarks share: timing two ways in turn, peak memory of one step, the machine's speed, tables."""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # what the benchmarks run on


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
    """Run a step and print by how many bytes it raised the memory that is held, its result included: the GPU's
    where there is one, else this process's.

    To be run by `peak_in_subprocess`. Without a GPU it needs Linux: elsewhere the peak cannot be set back to what is
    held now.
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
    """The gigabytes that `print_peak` prints, as its last line, in a fresh run of this script with `arguments`."""
    run = subprocess.run([sys.executable, sys.argv[0], *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return int(run.stdout.split()[-1]) / 1e9


def bytes_per_second(device: torch.device = DEVICE) -> float:
    """How fast memory is read: the sum of a tensor far larger than the caches."""
    tensor = torch.ones(1 << 27, device=device)
    return tensor.nbytes / _best(tensor.sum)


def flops_per_second(dtype: torch.dtype) -> float:
    """How fast square matrices are multiplied, in floating point operations; on a GPU larger ones, to fill it."""
    size = 8192 if DEVICE.type == "cuda" else 1536
    matrix = torch.ones(size, size, dtype=dtype, device=DEVICE)
    return 2 * size**3 / _best(lambda: matrix @ matrix)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A Markdown table, its columns aligned."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    for row in [header, ["-" * width for width in widths], *rows]:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")


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
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "a CPU")
    threads, kind = torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()
    return f"{name}, {threads} threads, {kind}, torch {torch.__version__}"


def _best(way: Callable[[], Any]) -> float:
    return min(alternate([way], 1)[0][0] for _ in range(5))
