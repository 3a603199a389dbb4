"""The tables of a report, as cells: the page and the Markdown are made of the same ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from deftx.config import metric_name
from deftx.experiments.report.comparisons import AVERAGE, Comparison
from deftx.experiments.report.statistics import LEVEL, SEEDS_FOR_A_CONCLUSION, Difference, holm
from deftx.experiments.report.vectors import LayerAndKind
from deftx.experiments.run_folder import RunData
from deftx.hub.privacy import without_paths

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
    """Columns, the first of them that of the rows' names; `folded` tables are opened by who wants
    to see them."""

    caption: str
    columns: Sequence[str]
    lines: Sequence[Line]
    folded: bool = False
    words: bool = False  # its cells are words, not figures


def score_table(run: RunData, baseline: str | None, comparisons: Sequence[Comparison]) -> Table:
    """Mean ± sample standard deviation over the seeds, in percent.

    With several variants of which one has several seeds, the best of a column is bold. Marks say
    what is higher than the baseline.
    """
    columns = score_columns(run)
    values = {}
    for variant in run.variants:
        if run.scores(variant):
            values[variant] = column_values(run, variant, columns)
    best = _best_of_columns(values, columns)
    against_baseline = {pair.first: pair for pair in comparisons if pair.second == baseline}
    lines = []
    for variant, by_column in values.items():
        cells = []
        for column in columns:
            scores = by_column[column]
            is_best = bool(scores) and round(mean(scores), 1) == best.get(column)
            mark = ""
            if baseline in values and variant != baseline:
                gap = _gap_of_column(against_baseline.get(variant), column)
                mark = _mark(scores, values[baseline][column], gap)
            cells.append(Cell(spread(scores), is_best, mark))
        name = variant + _seeds_missing(run, variant, by_column[AVERAGE])
        lines.append(Line(name, cells))
    metric = metric_name(run.recipe.metric)
    caption = (
        f"{metric[:1].upper()}{metric[1:]} in percent, mean ± standard deviation over the seeds."
    )
    return Table(caption, ["", *columns], [*lines, *_published_lines(run, columns)])


def score_columns(run: RunData) -> list[str]:
    """The targets, their average, then the languages of the labelled data."""
    others = [name for name in run.languages if name not in run.targets]
    return [*run.targets, AVERAGE, *others]


def column_values(run: RunData, variant: str, columns: Sequence[str]) -> dict[str, list[float]]:
    """A variant's scores in percent by column, one for each seed; the average is taken within a
    seed first."""
    values: dict[str, list[float]] = {column: [] for column in columns}
    for by_language in run.scores(variant).values():
        for column in columns:
            if column in by_language:
                values[column].append(100 * by_language[column])
        if AVERAGE in columns and run.targets and by_language.keys() >= set(run.targets):
            values[AVERAGE].append(100 * mean(by_language[name] for name in run.targets))
    return values


def spread(values: Sequence[float]) -> str:
    """Mean ± sample standard deviation; of one value, the value."""
    if not values:
        return NOTHING
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{mean(values):.1f} ± {stdev(values):.1f}"


def _best_of_columns(
    values: Mapping[str, Mapping[str, Sequence[float]]], columns: Sequence[str]
) -> dict[str, float]:
    """The highest mean of each column, as it is shown; nothing where no comparison is meant."""
    best: dict[str, float] = {}
    if len(values) < 2:
        return best
    for column in columns:
        scores = [by_column[column] for by_column in values.values() if by_column[column]]
        several_seeds = any(len(of_variant) > 1 for of_variant in scores)
        if several_seeds:
            best[column] = max(round(mean(of_variant), 1) for of_variant in scores)
    return best


def _gap_of_column(comparison: Comparison | None, column: str) -> Difference | None:
    if comparison is None:
        return None
    if column == AVERAGE:
        return comparison.average
    return comparison.by_language.get(column)


def _mark(scores: Sequence[float], baseline: Sequence[float], gap: Difference | None) -> str:
    """How a score stands to the baseline's."""
    if not scores or not baseline or mean(scores) <= mean(baseline):
        return ""
    if gap and gap.conclusive and gap.value > 0:
        return SURELY_BETTER
    return BETTER


def _seeds_missing(run: RunData, variant: str, averages: Sequence[float]) -> str:
    """What to say behind the name of a variant of which not all seeds are there."""
    wanted = len(run.recipe.seeds)
    done = len(averages) if run.targets else len(run.scores(variant))
    if variant in run.recipe.variants and done < wanted:
        return f" ({done} of {wanted} seeds)"
    return ""


def _published_lines(run: RunData, columns: Sequence[str]) -> list[Line]:
    """Others' numbers in our columns.

    Their average is that of our target languages where they have all of them, otherwise as
    published.
    """
    lines = []
    for published in run.recipe.paper:
        for name, scores in published.rows.items():
            shown = dict(scores)
            if run.targets and scores.keys() >= set(run.targets):
                shown[AVERAGE] = mean(scores[target] for target in run.targets)
            cells = []
            for column in columns:
                text = NOTHING
                if column in shown:
                    text = f"{shown[column]:.1f}"
                cells.append(Cell(text))
            lines.append(Line(f"published: {name}", cells, aside=True))
    return lines


def averaged(
    comparisons: Sequence[Comparison],
) -> list[tuple[Comparison, Difference, float | None]]:
    """The pairs that have an average, it, and its p corrected for how many have one."""
    with_average = [pair for pair in comparisons if pair.average]
    probabilities = [
        pair.average.p for pair in with_average if pair.average and pair.average.p is not None
    ]
    corrected = iter(holm(probabilities))
    rows = []
    for pair in with_average:
        gap = pair.average
        if gap:
            rows.append((pair, gap, None if gap.p is None else next(corrected)))
    return rows


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """A line for each pair that has an average."""
    lines = []
    for pair, gap, corrected in averaged(comparisons):
        conclusion = verdict(pair, gap, corrected)
        cells = [
            Cell(signed(gap.value)),
            Cell(interval(gap)),
            Cell(detectable(gap)),
            Cell(probability(gap.p)),
            Cell(probability(corrected)),
            Cell(str(gap.seeds)),
            Cell(conclusion, best=is_proven(gap, corrected)),
        ]
        lines.append(Line(f"{pair.first} against {pair.second}", cells))
    columns = [
        "",
        "difference",
        "95% interval",
        "detectable",
        "p",
        "p (Holm)",
        "seeds",
        "what follows",
    ]
    return Table("Average of the target languages, first minus second, in points.", columns, lines)


def language_comparisons(run: RunData, comparisons: Sequence[Comparison]) -> Table:
    """A line for each pair, a column for each language."""
    lines = []
    for pair in comparisons:
        cells = []
        for language in run.languages:
            gap = pair.by_language.get(language)
            cell = Cell(NOTHING)
            if gap is not None:
                cell = Cell(f"{signed(gap.value)} {interval(gap)}", best=gap.conclusive)
            cells.append(cell)
        lines.append(Line(f"{pair.first} against {pair.second}", cells))
    caption = (
        "Differences by language in points, with 95% intervals; "
        f"bold where the interval of {SEEDS_FOR_A_CONCLUSION} seeds or more leaves out 0."
    )
    return Table(caption, ["", *run.languages], lines, folded=True)


def is_proven(gap: Difference, corrected: float | None) -> bool:
    """Whether a difference holds among all comparisons; `corrected` is its p by Holm."""
    return gap.conclusive and corrected is not None and corrected < LEVEL


def verdict(pair: Comparison, gap: Difference, corrected: float | None) -> str:
    """What a difference allows to say; `corrected` is its p by Holm."""
    if gap.too_few_seeds is not None:
        return gap.too_few_seeds
    if not gap.conclusive:
        return "may be chance"
    better = pair.first if gap.value > 0 else pair.second
    if is_proven(gap, corrected):
        return f"{better} is better"
    return f"{better} is better, taken alone"


def signed(value: float) -> str:
    """A difference in points, its sign always there; a minus is one, not a hyphen."""
    return f"{100 * value:+.1f}".replace("-", "−")


def interval(gap: Difference) -> str:
    """Both ends of an interval, in points."""
    return f"[{signed(gap.low)}, {signed(gap.high)}]"


def detectable(gap: Difference) -> str:
    """The difference that could have been shown, in points."""
    if gap.detectable is None:
        return NOTHING
    return f"{100 * gap.detectable:.1f}"


def probability(p: float | None) -> str:
    """p with two digits or three, and no claim below a thousandth."""
    if p is None:
        return NOTHING
    if p < 0.001:
        return "< 0.001"
    return f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def outside_table(places: Mapping[tuple[str, str], Mapping[LayerAndKind, float]]) -> Table | None:
    """The share of entries that vectors hold outside of the numbered layers, such as in the
    embeddings."""
    kinds: list[str] = []
    for shares in places.values():
        for layer, kind in shares:
            if layer is None and kind not in kinds:
                kinds.append(kind)
    if not kinds:
        return None
    lines = []
    for (variant, part), shares in places.items():
        cells = []
        for kind in kinds:
            share = shares.get((None, kind))
            text = NOTHING
            if share is not None:
                text = f"{share:.1%}"
            cells.append(Cell(text))
        lines.append(Line(f"{variant}: {part}", cells))
    caption = "Share of the entries outside of the layers that the vectors hold."
    return Table(caption, ["", *kinds], lines, folded=True)


def settings_table(run: RunData) -> Table:
    """What the variants set, a column for each key that one of them sets."""
    by_variant = {}
    keys: list[str] = []
    for variant in run.variants:
        settings = without_paths("", run.recipe.variants.get(variant, {}))
        by_variant[variant] = flattened(settings)
        keys += [key for key in by_variant[variant] if key not in keys]
    lines = []
    for variant, settings in by_variant.items():
        cells = [Cell(settings.get(key, NOTHING)) for key in keys]
        lines.append(Line(variant, cells))
    caption = "What the variants set; all else is the same for all of them."
    return Table(caption, ["", *keys], lines, words=True)


def words_table(
    caption: str, heading: str, words: Mapping[str, str], *, folded: bool = False
) -> Table:
    """Names, and what there is to say of each."""
    lines = [Line(name, [Cell(text)]) for name, text in words.items()]
    return Table(caption, ["", heading], lines, folded=folded, words=True)


def flattened(data: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as `key.key` -> text."""
    flat: dict[str, str] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = str(value)
    return flat


def duration(seconds: float) -> str:
    """A time as people say it: 40 s, 12 min, 3.5 h."""
    minutes = seconds / 60
    if minutes < 2:
        return f"{seconds:.0f} s"
    if minutes < 120:
        return f"{minutes:.0f} min"
    return f"{minutes / 60:.1f} h"
