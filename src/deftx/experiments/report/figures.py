"""The figures of a report, each from what was measured. They are made within `style.style()`."""

from collections.abc import Iterable, Mapping, Sequence
from math import ceil
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from deftx.config import metric_name
from deftx.experiments.recipe import TASK
from deftx.experiments.report.statistics import AVERAGE, Comparison, Difference
from deftx.experiments.report.style import (
    COLOURS,
    INK,
    MUTED,
    SHADES,
    WIDTH,
    Look,
    Values,
    coloured,
    heat,
    hide_rest,
    legend,
    new_figure,
    panels,
)
from deftx.experiments.report.vectors import BIASES, LANGUAGE, Curve, Place

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor


def bars(scores: Mapping[str, Mapping[str, list[float]]], look: Mapping[str, Look]) -> "Figure":
    """Means of `scores`, variant -> column -> percent by seed, their standard deviation, and a dot
    for each seed."""
    columns = list(next(iter(scores.values())))
    width = 0.84 / len(scores)
    figure = new_figure(max(WIDTH, 1.2 + 0.24 * len(scores) * len(columns)), 3.6)
    axes = figure.subplots()
    for number, (variant, by_column) in enumerate(scores.items()):
        shift = width * (number - (len(scores) - 1) / 2)
        centres = [column + shift for column in range(len(columns))]
        _draw_bars(
            axes,
            variant,
            [by_column[column] for column in columns],
            centres,
            0.92 * width,
            look[variant],
        )
    axes.set_xticks(range(len(columns)), columns)
    axes.tick_params(axis="x", length=0)
    axes.set(ylabel="score (%)", ylim=(0, None), xlim=(-0.5, len(columns) - 0.5))
    legend(figure, axes, across=min(4, len(scores)))
    return figure


def _draw_bars(
    axes: "Axes",
    variant: str,
    values: Sequence[list[float]],
    centres: Sequence[float],
    width: float,
    look: Look,
) -> None:
    """The bars of one variant; deviations and dots where a column has several seeds."""
    heights = [mean(of_column) if of_column else 0.0 for of_column in values]
    bar = axes.bar(centres, heights, width, color=look.colour, hatch=look.hatch)
    bar.set_label(f" {variant}")
    deviations = [stdev(of_column) if len(of_column) > 1 else 0.0 for of_column in values]
    if not any(deviations):
        return
    axes.errorbar(centres, heights, deviations, fmt="none", ecolor=INK, elinewidth=1, capsize=2)
    for centre, of_column in zip(centres, values, strict=True):
        if len(of_column) > 1:
            at_centre = [centre] * len(of_column)
            axes.scatter(at_centre, of_column, s=7, color=INK, alpha=0.55, linewidths=0, zorder=3)


def differences(comparisons: Sequence[Comparison], columns: Sequence[str]) -> "Figure":
    """A panel for each pair: the difference and its interval by language and on average; hollow if
    inconclusive."""
    across = min(3, len(comparisons))
    down = ceil(len(comparisons) / across)
    names = [*columns, AVERAGE]
    figure = new_figure(WIDTH if across > 1 else 4.6, down * (0.9 + 0.24 * len(names)))
    grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).flatten()
    for axes, pair in zip(grid, comparisons, strict=False):
        axes.axvline(0, color=MUTED, linewidth=1)
        for place, name in enumerate(names):
            gap = pair.average if name == AVERAGE else pair.by_language.get(name)
            if gap:
                _draw_interval(axes, place, gap)
        axes.set_title(f"{pair.first}\nagainst {pair.second}", fontsize=9)
        axes.tick_params(labelbottom=True)  # also above a place that stays empty
        axes.set_yticks(range(len(names)), names)
        axes.grid(axis="x")
        axes.grid(visible=False, axis="y")
    grid[0].set_ylim(len(names) - 0.5, -0.5)
    hide_rest(grid, len(comparisons))
    figure.supxlabel("difference (points), with 95% interval", fontsize=9)
    return figure


def _draw_interval(axes: "Axes", place: int, gap: Difference) -> None:
    """One difference as a dot on its interval."""
    colour = COLOURS[0] if gap.value >= 0 else COLOURS[1]
    fill = "full" if gap.conclusive else "none"
    axes.plot([100 * gap.low, 100 * gap.high], [place, place], color=colour, linewidth=2)
    axes.plot(100 * gap.value, place, "o", color=colour, markersize=6, fillstyle=fill)


def overlap_with_task(shares: Mapping[tuple[str, str], list[float]]) -> "Figure":
    """Variants by languages: the share of places that the vectors of a language and of the task
    have in common."""
    rows, columns = (
        _ordered(variant for variant, _ in shares),
        _ordered(language for _, language in shares),
    )
    values = [
        [mean(shares[row, column]) if (row, column) in shares else None for column in columns]
        for row in rows
    ]
    figure = new_figure(2.6 + 0.75 * len(columns), 0.9 + 0.42 * len(rows))
    heat(figure.subplots(), rows, columns, values, _top(values))
    return figure


def overlap_of_languages(shares: Mapping[str, Mapping[tuple[str, str], float]]) -> "Figure":
    """A panel for each variant: the share of places that two languages' vectors have in common."""
    size = max(len(_ordered(one for one, _ in found)) for found in shares.values())
    across = min(3, len(shares))
    down = ceil(len(shares) / across)
    figure = new_figure(0.6 + across * (0.7 + 0.5 * size), down * (0.7 + 0.42 * size))
    grid = figure.subplots(down, across, squeeze=False).flatten()
    top = max(
        (v for found in shares.values() for (a, b), v in found.items() if a != b), default=1.0
    )
    for axes, (variant, found) in zip(grid, shares.items(), strict=False):
        names = _ordered(one for one, _ in found)
        values = [
            [found.get((row, column)) if row != column else None for column in names]
            for row in names
        ]
        heat(axes, names[1:], names[:-1], [row[:-1] for row in values[1:]], top)
        axes.set_title(variant)
    hide_rest(grid, len(shares))
    return figure


def density(places: Mapping[tuple[str, str], Mapping[Place, float]]) -> "Figure":
    """A panel for each variant and part: layers by kinds of tensor, the share of entries that
    vectors hold."""
    from matplotlib.ticker import PercentFormatter

    inner = {
        key: {p: share for p, share in found.items() if p[0] is not None}
        for key, found in places.items()
    }
    inner = {key: found for key, found in inner.items() if found}
    parts = [part for part in (LANGUAGE, TASK) if any(of == part for _, of in inner)]
    variants = _ordered(variant for variant, _ in inner)
    layers = sorted({layer for found in inner.values() for layer, _ in found if layer is not None})
    kinds = sorted(
        _ordered(kind for found in inner.values() for _, kind in found),
        key=lambda kind: kind == BIASES,
    )
    figure = new_figure(1.0 + 2.3 * len(variants), len(parts) * (0.7 + 0.2 * len(layers)) + 0.9)
    grid = figure.subplots(len(parts), len(variants), squeeze=False, sharex=True, sharey=True)
    for part, line in zip(parts, grid, strict=True):
        top = max(
            share for (_, of), found in inner.items() if of == part for share in found.values()
        )
        for variant, axes in zip(variants, line, strict=True):
            found = inner.get((variant, part), {})
            values = [[found.get((layer, kind)) for kind in kinds] for layer in layers]
            image = coloured(axes, values, top)
            if not found:
                axes.text(
                    0.5,
                    0.5,
                    "none",
                    color=MUTED,
                    ha="center",
                    va="center",
                    transform=axes.transAxes,
                )
            axes.set_title(variant if part == parts[0] else "")
            axes.tick_params(length=0)
            axes.set_xticks(range(len(kinds)), kinds, rotation=90)
            axes.set_yticks(range(len(layers)), [str(layer) for layer in layers])
        line[0].set_ylabel(f"{part} vector{'s' if part == LANGUAGE else ''}\nlayer")
        figure.colorbar(image, ax=list(line), format=PercentFormatter(1.0), pad=0.01, fraction=0.03)
    return figure


def ranks(
    found: Mapping[tuple[str, str], Mapping[Place, list[int]]], look: Mapping[str, Look]
) -> "Figure":
    """A panel for each kind of matrix: the rank kept by layer; task vectors dashed, a band from
    least to most."""

    def draw(axes: "Axes", kind: str) -> None:
        for (variant, part), places in found.items():
            points = sorted(
                (at, kept) for (at, of), kept in places.items() if at is not None and of == kind
            )
            if points:
                layers, dashes = [layer for layer, _ in points], "--" if part == TASK else "-"
                label, colour, marker = (
                    f" {variant}, {part}",
                    look[variant].colour,
                    look[variant].marker,
                )
                axes.plot(
                    layers,
                    [mean(kept) for _, kept in points],
                    dashes,
                    color=colour,
                    label=label,
                    marker=marker,
                )
                bounds = [min(kept) for _, kept in points], [max(kept) for _, kept in points]
                axes.fill_between(layers, *bounds, color=colour, alpha=0.15, linewidth=0)
        axes.set(title=kind, xlabel="layer", ylim=(0, None))
        axes.locator_params(integer=True)

    kinds = _ordered(
        kind for places in found.values() for layer, kind in places if layer is not None
    )
    return panels(kinds, draw, "rank kept")


def spectra(found: Mapping[str, Mapping[Place, "Tensor"]]) -> "Figure":
    """A panel for each kind of matrix and of vector: the share of the squares that the first r
    singular values hold."""
    from matplotlib import colormaps

    pairs = _ordered((name, kind) for name, places in found.items() for _, kind in places)
    layers = sorted(
        {layer for places in found.values() for layer, _ in places if layer is not None}
    )
    shade = {
        layer: colormaps[SHADES](0.1 + 0.8 * n / max(1, len(layers) - 1))
        for n, layer in enumerate(layers)
    }

    def draw(axes: "Axes", panel: tuple[str, str]) -> None:
        for (layer, kind), singular in found[panel[0]].items():
            squares = singular.square()
            if kind == panel[1] and layer is not None and squares.sum() > 0:
                held = (100 * squares.cumsum(0) / squares.sum()).tolist()
                axes.plot(
                    range(1, len(held) + 1),
                    held,
                    color=shade[layer],
                    linewidth=1.2,
                    label=f" layer {layer}",
                )
        axes.axhline(90, color=MUTED, linestyle=":", linewidth=1)
        axes.set(title=f"{panel[0]}: {panel[1]}", xlabel="rank r", ylim=(0, 102))

    return panels(pairs, draw, "share of the squares (%)")


def curves(
    found: Mapping[tuple[str, int], Mapping[str, list[Curve]]],
    look: Mapping[str, Look],
    held_out: bool,
) -> "Figure":
    """A panel for each language and the task: means over the seeds by step, a band around them;
    phase 1 dashed."""

    def draw(axes: "Axes", name: str) -> None:
        metric = "loss"
        for (of, phase), variants in found.items():
            for variant, some in variants.items() if of == name else ():
                metric = some[0].metric if held_out else "loss"
                by_step: dict[float, list[float]] = {}
                for step, value in (
                    p for one in some for p in (one.held_out if held_out else one.training)
                ):
                    by_step.setdefault(step, []).append(value)
                steps, colour = sorted(by_step), look[variant].colour
                options: dict[str, Any] = {"color": colour, "label": f" {variant}, phase {phase}"}
                options |= {"marker": look[variant].marker, "markevery": max(1, len(steps) // 20)}
                axes.plot(
                    steps, [mean(by_step[s]) for s in steps], "--" if phase == 1 else "-", **options
                )
                bounds = [min(by_step[s]) for s in steps], [max(by_step[s]) for s in steps]
                axes.fill_between(steps, *bounds, color=colour, alpha=0.15, linewidth=0)
        axes.set(title=f"{name}: {metric_name(metric)}", xlabel="step")

    return panels(
        _ordered(name for name, _ in found), draw, "held-out" if held_out else "training loss"
    )


def _ordered(things: Iterable[Any]) -> list[Any]:
    """Each once, in the order in which it first came."""
    return list(dict.fromkeys(things))


def _top(values: Values) -> float:
    return max((value for row in values for value in row if value is not None), default=1.0)
