"""The tables of a report, as cells: the page and the Markdown are made of the same ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from deftx.experiments.report.read import RunData
from deftx.experiments.report.statistics import AVERAGE, LEVEL, Comparison, Difference, holm
from deftx.experiments.report.vectors import Place
from deftx.settings import metric_name
from deftx.storage.privacy import without_paths

BETTER, SURELY_BETTER = "△", "▲"
NOTHING = "–"


@dataclass(frozen=True)
class Cell:
    """One cell: `best` is set in bold, `mark` stands behind the text."""

    text: str
    best: bool = False
    mark: str = ""


@dataclass(frozen=True)
class Line:
    """A row of a table; `aside` is set apart, since it is not of this run."""

    name: str
    cells: Sequence[Cell]
    aside: bool = False


@dataclass(frozen=True)
class Table:
    """Columns, the first of them that of the rows' names; `folded` tables are opened by who wants to see them."""

    caption: str
    columns: Sequence[str]
    lines: Sequence[Line]
    folded: bool = False
    words: bool = False  # its cells are words, not figures


def score_table(run: RunData, baseline: str | None, comparisons: Sequence[Comparison]) -> Table:
    """Mean ± sample standard deviation over the seeds, in percent; the best of a column; what beats the baseline."""
    columns = [*run.targets, AVERAGE, *(name for name in run.languages if name not in run.targets)]
    values = {variant: column_values(run, variant, columns) for variant in run.variants if run.scores(variant)}
    against = {one.first: one for one in comparisons if one.second == baseline}
    lines = []
    for variant, found in values.items():
        cells = []
        for column in columns:
            best = max((round(mean(v[column]), 1) for v in values.values() if v[column]), default=0.0)
            mark = _mark(found[column], values.get(baseline or "", {}).get(column, []), against.get(variant), column)
            is_best = bool(found[column]) and len(values) > 1 and round(mean(found[column]), 1) == best
            cells.append(Cell(spread(found[column]), is_best, mark if variant != baseline else ""))
        lines.append(Line(variant + _seeds_missing(run, variant, found[AVERAGE]), cells))
    metric = metric_name(run.recipe.metric)
    caption = f"{metric[:1].upper()}{metric[1:]} in percent, mean ± standard deviation over the seeds."
    return Table(caption, ["", *columns], [*lines, *_published_lines(run, columns)])


def column_values(run: RunData, variant: str, columns: Sequence[str]) -> dict[str, list[float]]:
    """A variant's scores in percent by column, one for each seed; the average is taken within a seed first."""
    scores = run.scores(variant).values()
    whole = [by for by in scores if run.targets and all(name in by for name in run.targets)]
    average = [100 * mean(by[name] for name in run.targets) for by in whole]
    found = {name: [100 * by[name] for by in scores if name in by] for name in columns}
    return {name: average if name == AVERAGE else values for name, values in found.items()}


def spread(values: Sequence[float]) -> str:
    """Mean ± sample standard deviation; of one value, the value."""
    if not values:
        return NOTHING
    return f"{mean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


def _mark(ours: Sequence[float], theirs: Sequence[float], against: Comparison | None, column: str) -> str:
    if not ours or not theirs or mean(ours) <= mean(theirs):
        return ""
    gaps = {**against.by_language, AVERAGE: against.average} if against else {}
    gap = gaps.get(column)
    return SURELY_BETTER if gap and gap.low > 0 else BETTER


def _seeds_missing(run: RunData, variant: str, whole: Sequence[float]) -> str:
    """What to say behind the name of a variant of which not all seeds are there."""
    wanted, there = len(run.recipe.seeds), len(whole) if run.targets else len(run.scores(variant))
    return f" ({there} of {wanted} seeds)" if variant in run.recipe.variants and there < wanted else ""


def _published_lines(run: RunData, columns: Sequence[str]) -> list[Line]:
    """Others' numbers in our columns. Their average is that of our target languages; as published where there is no
    more than that."""
    lines = []
    for published in run.recipe.paper:
        for name, scores in published.rows.items():
            shown = dict(scores)
            targets = [scores[target] for target in run.targets if target in scores]
            if targets and len(targets) == len(run.targets):
                shown[AVERAGE] = mean(targets)
            cells = [Cell(f"{shown[column]:.1f}" if column in shown else NOTHING) for column in columns]
            lines.append(Line(f"published: {name}", cells, aside=True))
    return lines


def averaged(comparisons: Sequence[Comparison]) -> list[tuple[Comparison, Difference, float]]:
    """The pairs that have an average, it, and its p allowing for how many they are."""
    whole = [(one, one.average) for one in comparisons if one.average]
    adjusted = holm([average.p for _, average in whole])
    return [(one, average, p) for (one, average), p in zip(whole, adjusted, strict=True)]


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """A line for each pair that has an average."""
    lines = [
        Line(
            f"{one.first} against {one.second}",
            [
                Cell(signed(average.value)),
                Cell(interval(average)),
                Cell(probability(average.p)),
                Cell(probability(p)),
                Cell(str(len(one.seeds))),
                Cell(verdict(one, average, p), best=average.leaves_out_0 and p < LEVEL),
            ],
        )
        for one, average, p in averaged(comparisons)
    ]
    columns = ["", "difference", "95% interval", "p", "p (Holm)", "seeds", "what follows"]
    return Table("Average of the target languages, first minus second, in points.", columns, lines)


def language_comparisons(run: RunData, comparisons: Sequence[Comparison]) -> Table:
    """A line for each pair, a column for each language."""
    lines = [
        Line(f"{one.first} against {one.second}", [_gap(one.by_language.get(name)) for name in run.languages])
        for one in comparisons
    ]
    caption = "Differences by language in points, with 95% intervals; bold where the interval leaves out 0."
    return Table(caption, ["", *run.languages], lines, folded=True)


def _gap(gap: Difference | None) -> Cell:
    if gap is None:
        return Cell(NOTHING)
    return Cell(f"{signed(gap.value)} {interval(gap)}", best=gap.leaves_out_0)


def verdict(one: Comparison, gap: Difference, p: float) -> str:
    """What a difference allows to say; p allows for there being several."""
    if not gap.leaves_out_0:
        return "may be chance"
    better = one.first if gap.low > 0 else one.second
    return f"{better} is better" if p < LEVEL else f"{better} is better, taken alone"


def signed(value: float) -> str:
    """A difference in points, its sign always there; a minus is one, not a hyphen."""
    return f"{100 * value:+.1f}".replace("-", "−")


def interval(gap: Difference) -> str:
    """Both ends of an interval, in points."""
    return f"[{signed(gap.low)}, {signed(gap.high)}]"


def probability(p: float) -> str:
    """p with two digits or three, and no claim below a thousandth."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def outside_table(places: Mapping[tuple[str, str], Mapping[Place, float]]) -> Table | None:
    """The share of entries that vectors hold outside of the numbered layers, such as in the embeddings."""
    kinds = list(dict.fromkeys(kind for found in places.values() for layer, kind in found if layer is None))
    if not kinds:
        return None
    lines = [
        Line(f"{variant}: {part}", [Cell(f"{found[None, k]:.1%}" if (None, k) in found else NOTHING) for k in kinds])
        for (variant, part), found in places.items()
    ]
    return Table("Share of the entries outside of the layers that the vectors hold.", ["", *kinds], lines, folded=True)


def settings_table(run: RunData) -> Table:
    """What the variants set, a column for each key that one of them sets."""
    flat = {name: flattened(without_paths("", run.recipe.variants.get(name, {}))) for name in run.variants}
    keys = list(dict.fromkeys(key for found in flat.values() for key in found))
    lines = [Line(name, [Cell(found.get(key, NOTHING)) for key in keys]) for name, found in flat.items()]
    return Table("What the variants set; all else is the same for all of them.", ["", *keys], lines, words=True)


def words_table(caption: str, heading: str, words: Mapping[str, str], *, folded: bool = False) -> Table:
    """Names, and what there is to say of each."""
    lines = [Line(name, [Cell(text)]) for name, text in words.items()]
    return Table(caption, ["", heading], lines, folded=folded, words=True)


def flattened(data: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as `key.key` -> text."""
    found: dict[str, str] = {}
    for key, value in data.items():
        inner = flattened(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: str(value)}
        found |= inner
    return found


def duration(seconds: float) -> str:
    """A time as people say it: 40 s, 12 min, 3.5 h."""
    minutes = seconds / 60
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
