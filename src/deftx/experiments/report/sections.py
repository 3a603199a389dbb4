"""What a report says, section by section, in words for people who never saw the paper. What a run
lacks is left out."""

from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from deftx.config import metric_name
from deftx.data.tables import named
from deftx.experiments.report import benefit, learnt, scored, tables
from deftx.experiments.report.parts import Findings, Section
from deftx.experiments.report.statistics import AVERAGE
from deftx.hub.privacy import without_paths
from deftx.storage.hub_client import is_model_id


def sections(found: Findings) -> list[Section]:
    """Those that the run has something for, in their order."""
    return list(filter(None, (build(found) for build in SECTIONS)))


def headline(found: Findings) -> list[str]:
    """What comes out, in a sentence or two."""
    run, metric = found.run, metric_name(found.run.recipe.metric)
    averages = {name: tables.column_values(run, name, [AVERAGE])[AVERAGE] for name in run.variants}
    averages = {name: values for name, values in averages.items() if values}
    if not averages:
        return []
    best = max(averages, key=lambda name: mean(averages[name]))
    said = [
        f"Best on average over the target languages: {best}, with a {metric} of {tables.spread(averages[best])} %."
    ]
    for one, gap, p in tables.averaged(found.comparisons):
        if best in (one.first, one.second) and found.baseline in (one.first, one.second):
            measured = f"{tables.signed(gap.value)} points, 95% interval {tables.interval(gap)}"
            said.append(
                f"{one.first} minus {one.second}: {measured} ({tables.verdict(one, gap, p)})."
            )
    return said


def base_name(base: str) -> str:
    """A base as a report may show it: a hub id, or the last part of a folder's path."""
    return base if is_model_id(base) and not Path(base).exists() else Path(base).name


def _trimmed(found: Findings) -> Section | None:
    if not found.run.trimmed:
        return None
    about = (
        "Text of the test data that is also in what is trained on would make scores look better than they are. It was "
        "searched for before the training, and left out."
    )
    table = tables.words_table("Left out of training.", "texts left out", found.run.trimmed)
    return Section("trimmed", "What was left out", about, tables=[table])


def _files_named(value: Any) -> Any:
    """Names of sources without their folders, wherever they stand in a part of a recipe."""
    if isinstance(value, Mapping):
        return {key: _files_named(part) for key, part in value.items()}
    return list(map(_files_named, value)) if isinstance(value, list | tuple) else named(str(value))


def _repeat(found: Findings) -> Section | None:
    run = found.run
    files = {"train", "valid", "languages", "test", "sources", "vectors"}
    recipe = {
        key: _files_named(value) if key in files else without_paths(key, value)
        for key, value in run.recipe.model_dump(exclude={"variants", "paper"}).items()
    }
    shown = [tables.words_table("The recipe.", "value", tables.flattened(recipe), folded=True)]
    if run.recipe.variants:
        shown.insert(0, tables.settings_table(run))
    seconds: dict[str, float] = {}
    versions: dict[str, set[str]] = {}
    for step in run.steps:
        if about := run.finished.get(step.id):
            seconds[step.kind] = seconds.get(step.kind, 0) + about.seconds
            for package, version in about.versions.items():
                versions.setdefault(package, set()).add(version)
    if versions:
        listed = {package: ", ".join(sorted(these)) for package, these in sorted(versions.items())}
        shown.append(tables.words_table("Versions that the steps ran with.", "version", listed))
    if any(seconds.values()):
        times = {kind: tables.duration(total) for kind, total in seconds.items()}
        shown.append(tables.words_table("Time that the steps took, all together.", "time", times))
    mixed = [package for package, these in versions.items() if len(these) > 1]
    notes = [f"Steps ran with different versions of {', '.join(mixed)}."] if mixed else []
    text = "What the run was told, and what it ran with. The commands at the end of this page repeat it."
    return Section("settings", "Settings and versions", text, notes, shown)


SECTIONS: list[Callable[[Findings], Section | None]] = [
    benefit.helped,
    scored.scores,
    scored.comparison,
    learnt.overlaps,
    learnt.ranks,
    learnt.places,
    learnt.training,
    _trimmed,
    _repeat,
]
