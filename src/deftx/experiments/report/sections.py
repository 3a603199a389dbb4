"""What a report says, section by section, in words for people who never saw the paper. What a run
lacks is left out."""

from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from deftx.config import metric_name
from deftx.data.tables import named
from deftx.experiments.report import benefit_section, score_sections, tables, vector_sections
from deftx.experiments.report.comparisons import AVERAGE
from deftx.experiments.report.parts import ReportData, Section
from deftx.experiments.run_folder import RunData
from deftx.hub.privacy import without_paths
from deftx.storage.hub_client import is_model_id


def sections(data: ReportData) -> list[Section]:
    """The sections that the run has something for, in their order."""
    shown = []
    for make_section in SECTIONS:
        section = make_section(data)
        if section is not None:
            shown.append(section)
    return shown


def headline(data: ReportData) -> list[str]:
    """The result in a sentence or two."""
    run = data.run
    averages = {}
    for variant in run.variants:
        values = tables.column_values(run, variant, [AVERAGE])[AVERAGE]
        if values:
            averages[variant] = values
    if not averages:
        return []
    best = max(averages, key=lambda variant: mean(averages[variant]))
    score = f"a {metric_name(run.recipe.metric)} of {tables.spread(averages[best])} %"
    sentences = [f"Best on average over the target languages: {best}, with {score}."]

    # the comparison of the best variant with the baseline
    for pair, difference, p in tables.averaged(data.comparisons):
        compared = (pair.first, pair.second)
        if best in compared and data.baseline in compared:
            points = f"{tables.signed(difference.value)} points"
            interval = f"95% interval {tables.interval(difference)}"
            verdict = tables.verdict(pair, difference, p)
            name = f"{pair.first} minus {pair.second}"
            sentences.append(f"{name}: {points}, {interval} ({verdict}).")
    return sentences


def base_name(base: str) -> str:
    """A base as a report may show it: a hub id, or the last part of a folder's path."""
    is_on_hub = is_model_id(base) and not Path(base).exists()
    return base if is_on_hub else Path(base).name


def _trimmed(data: ReportData) -> Section | None:
    """What the contamination guard left out of training."""
    if not data.run.trimmed:
        return None
    about = (
        "Text of the test data that is also in what is trained on would make scores look better "
        "than they are. It was searched for before the training, and left out."
    )
    table = tables.words_table("Left out of training.", "texts left out", data.run.trimmed)
    return Section("trimmed", "What was left out", about, tables=[table])


def _settings(data: ReportData) -> Section:
    """What the run was told, and what it ran with."""
    run = data.run
    shown = []
    if run.recipe.variants:
        shown.append(tables.settings_table(run))
    recipe = tables.flattened(_recipe_without_folders(run))
    shown.append(tables.words_table("The recipe.", "value", recipe, folded=True))

    # versions and times of the steps that are finished
    seconds_by_kind: dict[str, float] = {}
    versions_by_package: dict[str, set[str]] = {}
    for step in run.steps:
        finished = run.finished.get(step.id)
        if finished is None:
            continue
        seconds_by_kind[step.kind] = seconds_by_kind.get(step.kind, 0) + finished.seconds
        for package, version in finished.versions.items():
            versions_by_package.setdefault(package, set()).add(version)

    notes = []
    if versions_by_package:
        listed = {}
        for package in sorted(versions_by_package):
            listed[package] = ", ".join(sorted(versions_by_package[package]))
        shown.append(tables.words_table("Versions that the steps ran with.", "version", listed))
        mixed = [name for name, versions in versions_by_package.items() if len(versions) > 1]
        if mixed:
            notes.append(f"Steps ran with different versions of {', '.join(mixed)}.")
    if any(seconds_by_kind.values()):
        times = {kind: tables.duration(total) for kind, total in seconds_by_kind.items()}
        shown.append(tables.words_table("Time that the steps took, all together.", "time", times))

    about = (
        "What the run was told, and what it ran with. The commands at the end of this page repeat "
        "it."
    )
    return Section("settings", "Settings and versions", about, notes, shown)


def _recipe_without_folders(run: RunData) -> dict[str, Any]:
    """The recipe as data, without folders of the machine that it ran on."""
    recipe = {}
    for key, value in run.recipe.model_dump(exclude={"variants", "paper"}).items():
        if key in KEYS_OF_FILES:
            recipe[key] = _without_folders(value)
        else:
            recipe[key] = without_paths(key, value)
    return recipe


def _without_folders(value: Any) -> Any:
    """Names of files without their folders, wherever they are in a part of a recipe."""
    if isinstance(value, Mapping):
        return {key: _without_folders(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_folders(part) for part in value]
    return named(str(value))


KEYS_OF_FILES = {"train", "valid", "languages", "test", "sources", "vectors"}

SECTIONS: list[Callable[[ReportData], Section | None]] = [
    benefit_section.benefit,
    score_sections.scores,
    score_sections.comparison,
    vector_sections.overlaps,
    vector_sections.ranks,
    vector_sections.density,
    vector_sections.training,
    _trimmed,
    _settings,
]
