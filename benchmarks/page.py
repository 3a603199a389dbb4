"""Write docs/performance.md from the rows that the benchmarks kept: `python benchmarks/page.py ROWS
PAGE`."""

import sys
from collections.abc import Iterator
from pathlib import Path

from measure import HEADER, Kept, cells, read

INTRO = """# Speed and memory

Ours beside the plain way: the operations that come first to mind for the method as it is written
up, from first principles (lists of all magnitudes, an SVD of each matrix, logits of all positions,
the penalty through autograd, dense masked gradients, AdamW over all weights, coordinate lists).
Both run in one process in turn; times are medians; the memory is what a way adds to the peak of a
process of its own, its result included. Every row checks that both give the same answer, and says
how closely.

The *floor* is what cannot be avoided, at the speed that the same run measures on the machine: the
bytes that must be read or written once, the multiplications. `make bench` measures everything
anew, on a GPU where there is one, and writes this page; `make bench BENCH="--shape small"` takes a
few minutes, and `python benchmarks/core.py --help` tells how to measure one row. The rows are in
`docs/results/performance.jsonl`.
"""

# What we want of a step at XLM-R base's shape, on two ordinary cores in fp32.
GOALS = {
    "select 5.118%": "2 s, 0.6 GB",
    "denoise, rank 100": "5 s",
    "save a task vector": "0.5 s",
    "load it": "0.15 s",
    "its size": "57 MB",
    "apply a task vector, and undo": "0.12 s, to the last bit",
    "MLM phase 1": "a quarter of the plain way, 8 GB",
    "MLM phase 2": "a quarter of the plain way",
    "MLM phase 2, beside forward and backward alone": "103%",
    "MLM phase 2: optimiser": "2 k floats",
}

WHY = """## How far from the floor, and why

- **Selection** compares each entry with a bar that a sample suggests, and keeps the few that reach
  it; the floor is a mere reading. The comparisons and the places of what reaches the bar make up
  the rest.
- **Denoising**: the floor takes Gram matrices in float64, their tridiagonal forms, the vectors
  that are kept and the projections all at the speed of large matrix products. The products do come
  near it. An eigen-decomposition does not: half of its tridiagonal form is products of the matrix
  with one vector at a time, and LAPACK's solver computes all vectors. So several matrices are
  decomposed at once, a core each. Gram matrices in float32 would halve the rest, but square the
  rounding: small singular values beside large ones would be lost, which a plain SVD in float32
  keeps. Subspace iteration and Lanczos do not help where a difference is mostly noise:
  neighbouring singular values are within a percent of each other.
- **Files**: loading checks the checksum of the file, which is most of its floor; then places and
  values are decoded on all cores. Much of what is left is the system handing out fresh memory.
  Saving waits for the disk to hold the file.
- **Applying** reads and writes entries that lie scattered: each costs a cache line, which the
  floor counts; the processor waits for many of them.
- **A step of training**: the floor is the multiplications of forward and backward pass. Softmax,
  layer norms, GELU and the optimiser come on top, and are bound by memory. A quarter of the plain
  way cannot be had in fp32 where the multiplications alone are nearly a quarter of it (4.0 of 16.9
  s with AVX512): we are at a third. In bf16 with AMX multiplications cost little, and what is
  bound by memory is most of a step; the floor there is that of large square matrices, which the
  shapes of a model do not reach. Texts of a task are of many lengths: on a processor a batch goes
  through the model in parts of like length, so that most of its padding, half of a batch
  otherwise, is left out.
- **Five languages**: all but a little is the texts themselves.
- **The demo's recipe**: matrices of so small a model cost less than the calls that ask for them,
  and a run that can be resumed notes its state: nothing is gained there.

## What could not be measured

There was no GPU to measure on. The scripts take one where there is one; nothing of theirs has run
there yet. bf16 is measured where the processor has instructions for it. The recipe nusax-nano was
timed once, with ten steps a phase instead of 200 and 600, beside a training on the other core.

The EPYC's rows at XLM-R base's shape are of the code as it is, without those of dropout and bf16;
where a row computes, it takes about twice as long as the Xeon, by the plain way too. The Xeon's
rows of training and of denoising at that shape were measured before some changes: batches of a
task in parts of like length, attention beside bf16 in fp32 (little difference at this shape), the
penalty's gradient a few rows at a time, and candidates in one array, with which denoising at rank
100 takes 6.1 s there (`docs/log.md`).

## Goals that are missed

They were set in seconds of one machine; the Xeon is the nearest to it that we had.

- **Denoising at rank 100**: 6.1 s for 5 s. Where four fifths of the embedding's rows are not in
  the text, 4.8 s. The embedding's Gram matrix takes 1.4 s at seven tenths of the speed of large
  products, the eigen-decompositions 2.1 s on both cores (`docs/log.md`).
- **Applying and undoing**: 0.18 to 0.21 s for 0.12 s; the floor is 0.09 to 0.10 s. It reads the
  entries once and writes them twice. torch's reading alone takes 0.04 to 0.05 s for two thirds of
  them, and its writing as long each time.
- **Loading** takes 0.14 s on the Xeon and 0.29 s on the EPYC, for 0.15 s.
- **A step of phase 1 and 2 in fp32** takes a third of the plain way, not a quarter: see above.
"""


def table(rows: list[Kept]) -> Iterator[str]:
    """Markdown lines: the rows of one machine and shape, with the goals where they are meant for
    it."""
    goals = GOALS if rows[0].shape == "base" and "threads" in rows[0].machine else {}
    header = [*HEADER, *(["goal"] if goals else [])]
    yield f"| {' | '.join(header)} |"
    yield "| --- " * len(header) + "|"
    for kept in rows:
        row = [*cells(kept.row), *([goals.get(kept.row.step, "")] if goals else [])]
        yield f"| {' | '.join(row)} |"


def page(kept: list[Kept]) -> str:
    """The whole page."""
    lines = [INTRO]
    for machine, shape in sorted({(row.machine, row.shape) for row in kept}):
        rows = [row for row in kept if (row.machine, row.shape) == (machine, shape)]
        days, others = sorted({row.day for row in rows}), [row.others for row in rows]
        busy = f"other processes kept {min(others)} to {max(others)} cores busy meanwhile"
        lines += [
            f"## {machine}: {shape}",
            "",
            *table(rows),
            "",
            f"Measured on {' and '.join(days)}; {busy}.",
            "",
        ]
    return "\n".join([*lines, WHY])


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(page(read(Path(sys.argv[1]))), encoding="utf-8")
