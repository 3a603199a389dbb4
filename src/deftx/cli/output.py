"""What commands print on standard output."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from deftx.cli.doctor import Finding
    from deftx.config import Described
    from deftx.core.vector import SparseVector
    from deftx.experiments.estimate import Estimate
    from deftx.experiments.run import Prepared

MEANING = "meaning"  # a column of sentences
NOT_IN_PERCENT = {"mse"}  # metrics that are not shown in percent


def print_json(data: Any) -> None:
    """Print JSON-like data."""
    print(json.dumps(data, ensure_ascii=False, indent=1))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table.

    The first column and the column MEANING are text, all other columns are figures.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        is_text = number == 0 or column == MEANING
        side: Literal["left", "right"] = "left" if is_text else "right"
        table.add_column(column, justify=side, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False, markup=False).print(table)


def print_scores(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print what `evaluate` found, a row for each language.

    Scores are in percent, except those in NOT_IN_PERCENT.
    """
    from deftx.config import metric_name

    metrics = [name for name in rows[0] if name not in ("language", "examples")]
    cells = []
    for row in rows:
        values = []
        for name in metrics:
            format_ = ".4f" if name in NOT_IN_PERCENT else ".1%"
            values.append(format(row[name], format_))
        language = row["language"] or "(none)"
        cells.append([language, *values, str(row["examples"])])
    names = [metric_name(name) for name in metrics]
    print_table(["language", *names, "examples"], cells)


def print_language_losses(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print what `evaluate-language` measured: the base alone first, then each language vector."""
    base_loss = rows[0]["loss"]
    cells = []
    for row in rows:
        language = row["language"] or "(none)"
        loss = f"{row['loss']:.4f}"
        change = ""
        if row["language"]:
            change = f"{row['loss'] - base_loss:+.4f}"
        bits = f"{row['bits_by_character']:.3f}"
        cells.append([language, loss, change, bits])
    print_table(["language", "nats per token", "change", "bits per character"], cells)


def settings_table(rows: Sequence["Described"]) -> tuple[list[str], list[list[str]]]:
    """Settings as a table, with a column for each preset, which is empty where the default holds.

    Returns:
        The names of the columns, and the rows.
    """
    presets: dict[str, None] = {}  # each once, in the order in which they first come
    for row in rows:
        presets |= dict.fromkeys(row.presets)
    columns = ["setting", "default", *presets, MEANING]
    cells = []
    for row in rows:
        values = []
        for preset in presets:
            value = ""
            if preset in row.presets:
                value = _as_typed(row.presets[preset])
            values.append(value)
        cells.append([row.name, _as_typed(row.default), *values, row.meaning])
    return columns, cells


def _as_typed(value: Any) -> str:
    """A value as it is typed after `--set NAME=`."""
    if isinstance(value, float):
        return f"{value:g}"
    if value is None or isinstance(value, bool | tuple):
        return json.dumps(value)
    return str(value)


def cell(value: Any) -> str:
    """A value as a cell of TSV."""
    if isinstance(value, list):
        return " ".join(map(cell, value))
    if isinstance(value, float):
        return f"{value:.4f}"
    words = str(value).split()
    return " ".join(words)


def print_plan(run: "Prepared", *, as_json: bool) -> None:
    """Print the steps of a recipe, which of them are done, and about what the others take."""
    from dataclasses import asdict

    from deftx.experiments.estimate import estimate_steps

    steps = run.plan.steps
    unfinished = run.remaining()
    ids_to_do = {step.id for step in unfinished}
    needed = estimate_steps(unfinished, run.store)
    if as_json:
        rows = []
        for id_, step in steps.items():
            is_done = id_ not in ids_to_do
            rows.append({"id": id_, "kind": step.kind, "title": step.title, "done": is_done})
        print_json({"store": str(run.store.root), "left": asdict(needed), "steps": rows})
        return

    cells = []
    for id_, step in steps.items():
        state = "" if id_ in ids_to_do else "done"
        cells.append([step.title, step.kind, state, id_])
    print_table(["for", "step", "", "name in the store"], cells)
    for name, how_much in run.trimmed.items():
        print(f"\nleft out of {name}, since it holds evaluation text: {how_much}")
    print(f"\n{len(steps)} steps, {len(ids_to_do)} to do, one after the other")
    if unfinished:
        print_estimate(needed, run.store.root)


def print_estimate(needed: "Estimate", folder: Path) -> None:
    """Print what some work will take, and what this machine lacks for it."""
    from deftx.experiments.estimate import free_disk, free_memory
    from deftx.experiments.report.tables import duration

    memory = free_memory()
    disk = free_disk(folder)
    print(f"time: about {duration(needed.seconds)} on this machine, by a few timed steps")

    memory_line = f"memory: about {_gigabytes(needed.memory)}"
    if memory:
        memory_line += f", of {_gigabytes(memory)} free"
    print(memory_line)

    disk_line = f"disk: about {_gigabytes(needed.disk)}"
    if needed.disk_state:
        disk_line += f", and {_gigabytes(needed.disk_state)} while learning"
    print(f"{disk_line}, of {_gigabytes(disk)} free")

    if memory and needed.memory > memory:
        fix = "lower training.batch_size and raise training.accumulate, or take a smaller base"
        print(f"This is more memory than is free: {fix}.")
    if needed.disk + needed.disk_state > disk:
        print("This is more than the disk has free: choose a folder on another disk.")


def _gigabytes(size: float) -> str:
    """A number of bytes for people."""
    if size >= 5e7:
        return f"{size / 1e9:.1f} GB"
    return f"{size / 1e6:.1f} MB"


def print_findings(findings: Sequence["Finding"]) -> None:
    """Print what `doctor` found, a line each, what does not fit with a mark."""
    width = max(len(finding.topic) for finding in findings)
    for finding in findings:
        mark = " " if finding.fine else "✗"
        print(f"{mark} {finding.topic:{width}}  {finding.says}")


def print_vectors(
    names: Sequence[str], vectors: Sequence["SparseVector"], *, as_json: bool
) -> None:
    """Print what vectors are, which share of each layer they change, and how much they overlap."""
    from deftx.core.vector import overlap

    summaries = [_summary(vector) for vector in vectors]
    densities = [vector.density_by_layer() for vector in vectors]
    overlaps = []
    for first in vectors:
        overlaps.append([overlap(first, second) for second in vectors])
    if as_json:
        described = []
        for name, summary, density in zip(names, summaries, densities, strict=True):
            described.append({"vector": name, **summary, "density": density})
        print_json({"vectors": described, "overlap": overlaps})
        return

    # Whole paths would be broken within words: their last parts do, where they differ.
    last_parts = [name.rstrip("/").rpartition("/")[2] for name in names]
    if len(set(last_parts)) == len(last_parts):
        names = last_parts

    # What they are
    facts = []
    for key in summaries[0]:
        facts_of_vectors = [_short(key, summary[key]) for summary in summaries]
        facts.append([key, *facts_of_vectors])
    print_table(["", *names], facts)

    # The share of each layer that they change
    print()
    layers: dict[str, None] = {}
    for density in densities:
        layers |= dict.fromkeys(density)
    shares = []
    for layer in layers:
        shares_of_vectors = [f"{density.get(layer, 0):.2%}" for density in densities]
        shares.append([layer, *shares_of_vectors])
    print_table(["density", *names], shares)

    # How much they overlap
    if len(vectors) > 1:
        print()
        rows = []
        for name, row in zip(names, overlaps, strict=True):
            percentages = [f"{share:.1%}" for share in row]
            rows.append([name, *percentages])
        print_table(["overlap", *names], rows)


def _summary(vector: "SparseVector") -> dict[str, Any]:
    """What `inspect` shows of one vector."""
    provenance = vector.provenance
    ranks = sorted((provenance.ranks or {}).values())
    spread = None
    if ranks:
        median = ranks[len(ranks) // 2]
        spread = {"smallest": ranks[0], "median": median, "largest": ranks[-1]}
    labels = None
    if vector.head:
        labels = list(vector.head.labels)
    return {
        "kind": provenance.kind or provenance.operation,
        "base": provenance.base,
        "fingerprint": provenance.base_fingerprint,
        "task": provenance.task,
        "method": provenance.method,
        "rank": provenance.rank,
        "rank_rule": provenance.rank_rule,
        "keep": provenance.keep,
        "keep_of": provenance.keep_of,
        "seed": provenance.seed,
        "k": vector.k,
        "ranks": spread,
        "labels": labels,
    }


def _short(key: str, fact: Any) -> str:
    """A fact as a cell of a table."""
    if key == "fingerprint":
        return str(fact)[:12]
    if isinstance(fact, Mapping):
        return ", ".join(f"{key} {value}" for key, value in fact.items())
    if isinstance(fact, list):
        return ", ".join(fact)
    if isinstance(fact, int):
        return f"{fact:,}"
    if fact is None:
        return ""
    return str(fact)
