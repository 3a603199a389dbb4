"""The figures of a report, each from what was measured. They are made within `style.style()`."""

from collections.abc import Iterable, Mapping, Sequence
from math import ceil
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from deftx.config import metric_name
from deftx.experiments.recipe import TASK
from deftx.experiments.report.comparisons import AVERAGE, Comparison
from deftx.experiments.report.statistics import Difference
from deftx.experiments.report.style import (
    COLOURS,
    INK,
    MUTED,
    SHADES,
    WIDTH,
    Values,
    VariantStyle,
    colour_cells,
    heat,
    hide_rest,
    legend,
    new_figure,
    panels,
)
from deftx.experiments.report.vectors import BIASES, LANGUAGE, Curve, LayerAndKind

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

LINE_OF_PART = {LANGUAGE: "-", TASK: "--"}
LINE_OF_PHASE = {1: "--", 2: "-"}
ERROR_BAR: dict[str, Any] = {"fmt": "none", "ecolor": INK, "elinewidth": 1, "capsize": 2}
SEED_DOT: dict[str, Any] = {"s": 7, "color": INK, "alpha": 0.55, "linewidths": 0, "zorder": 3}


def bars(
    scores: Mapping[str, Mapping[str, list[float]]], styles: Mapping[str, VariantStyle]
) -> "Figure":
    """Mean scores as bars, with the standard deviation and a dot for each seed.

    Args:
        scores: Variant -> column -> scores in percent, one for each seed.
        styles: How each variant is drawn.
    """
    first_scores = next(iter(scores.values()))
    columns = list(first_scores)
    number_of_variants = len(scores)
    number_of_bars = number_of_variants * len(columns)
    figure_width = max(WIDTH, 1.2 + 0.24 * number_of_bars)
    figure = new_figure(figure_width, 3.6)
    axes = figure.subplots()

    # The bars of a column stand side by side around its place
    places = range(len(columns))
    pitch = 0.84 / number_of_variants
    middle = (number_of_variants - 1) / 2
    for number, (variant, by_column) in enumerate(scores.items()):
        shift = pitch * (number - middle)
        centres = [place + shift for place in places]
        values = [by_column[column] for column in columns]
        bar_width = 0.92 * pitch
        _draw_bars(axes, variant, values, centres, bar_width, styles[variant])

    # The axes, and the legend below
    axes.set_xticks(places, columns)
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(0, None)
    axes.set_ylabel("score (%)")
    legend(figure, axes, across=min(4, number_of_variants))
    return figure


def _draw_bars(
    axes: "Axes",
    variant: str,
    values: Sequence[list[float]],
    centres: Sequence[float],
    width: float,
    style: VariantStyle,
) -> None:
    """The bars of one variant; deviations and dots where a column has several seeds."""
    heights = []
    deviations = []
    for of_column in values:
        height = 0.0
        deviation = 0.0
        if of_column:
            height = mean(of_column)
        if len(of_column) > 1:
            deviation = stdev(of_column)
        heights.append(height)
        deviations.append(deviation)

    bar = axes.bar(centres, heights, width, color=style.colour, hatch=style.hatch)
    bar.set_label(f" {variant}")
    if not any(deviations):
        return

    axes.errorbar(centres, heights, deviations, **ERROR_BAR)
    for centre, of_column in zip(centres, values, strict=True):
        if len(of_column) > 1:
            same_place = [centre] * len(of_column)
            axes.scatter(same_place, of_column, **SEED_DOT)


def differences(comparisons: Sequence[Comparison], columns: Sequence[str]) -> "Figure":
    """Differences with their intervals by language and on average, a panel for each comparison.

    Dots are hollow where a difference is inconclusive.
    """
    names = [*columns, AVERAGE]
    lines = range(len(names))
    across = min(3, len(comparisons))
    down = ceil(len(comparisons) / across)
    width = WIDTH if across > 1 else 4.6
    height_of_panel = 0.9 + 0.24 * len(names)
    figure = new_figure(width, down * height_of_panel)
    grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).flatten()

    for axes, comparison in zip(grid, comparisons, strict=False):
        # An interval on the line of each language, and of the average
        by_name = dict(comparison.by_language)
        if comparison.average is not None:
            by_name[AVERAGE] = comparison.average
        axes.axvline(0, color=MUTED, linewidth=1)
        for line, name in zip(lines, names, strict=True):
            if name in by_name:
                _draw_interval(axes, line, by_name[name])

        axes.set_title(f"{comparison.first}\nagainst {comparison.second}", fontsize=9)
        axes.tick_params(labelbottom=True)  # also above a place that stays empty
        axes.set_yticks(lines, names)
        axes.grid(axis="x")
        axes.grid(visible=False, axis="y")

    first_axes = grid[0]  # shares its limits with the others
    first_axes.set_ylim(len(names) - 0.5, -0.5)
    hide_rest(grid, len(comparisons))
    figure.supxlabel("difference (points), with 95% interval", fontsize=9)
    return figure


def _draw_interval(axes: "Axes", line: int, gap: Difference) -> None:
    """One difference as a dot on its interval."""
    colour = COLOURS[0] if gap.value >= 0 else COLOURS[1]
    fill = "full" if gap.conclusive else "none"
    ends = [100 * gap.low, 100 * gap.high]
    axes.plot(ends, [line, line], color=colour, linewidth=2)
    axes.plot(100 * gap.value, line, "o", color=colour, markersize=6, fillstyle=fill)


def overlap_with_task(shares: Mapping[tuple[str, str], list[float]]) -> "Figure":
    """How much of each language vector overlaps with the task vector: variants by languages.

    Args:
        shares: Variant and language -> share of common indices, one for each seed.
    """
    variants = _distinct(variant for variant, _ in shares)
    languages = _distinct(language for _, language in shares)
    values = []
    for variant in variants:
        row: list[float | None] = []
        for language in languages:
            share = None
            if (variant, language) in shares:
                share = mean(shares[variant, language])
            row.append(share)
        values.append(row)

    width = 2.6 + 0.75 * len(languages)
    height = 0.9 + 0.42 * len(variants)
    figure = new_figure(width, height)
    axes = figure.subplots()
    heat(axes, variants, languages, values, _largest(values))
    return figure


def overlap_of_languages(shares: Mapping[str, Mapping[tuple[str, str], float]]) -> "Figure":
    """How much the vectors of two languages overlap, a panel for each variant.

    Args:
        shares: Variant -> two languages -> share of common indices. A language is also paired with
            itself, which is not shown.
    """
    # The languages of each variant, and the largest share of two languages
    languages_of = {}
    top = 0.0
    for variant, of_variant in shares.items():
        languages_of[variant] = _distinct(first for first, _ in of_variant)
        for (first, second), share in of_variant.items():
            if first != second:
                top = max(top, share)

    most_languages = max(map(len, languages_of.values()))
    across = min(3, len(shares))
    down = ceil(len(shares) / across)
    width_of_panel = 0.7 + 0.5 * most_languages
    height_of_panel = 0.7 + 0.42 * most_languages
    figure = new_figure(0.6 + across * width_of_panel, down * height_of_panel)
    grid = figure.subplots(down, across, squeeze=False).flatten()

    for axes, (variant, of_variant) in zip(grid, shares.items(), strict=False):
        # Each pair once: the triangle below the diagonal, without the latter
        names = languages_of[variant]
        rows = names[1:]
        columns = names[:-1]
        values = []
        for row in rows:
            below_diagonal = dict(of_variant)
            below_diagonal.pop((row, row), None)
            values.append([below_diagonal.get((row, column)) for column in columns])
        heat(axes, rows, columns, values, top)
        axes.set_title(variant)
    hide_rest(grid, len(shares))
    return figure


def density(places: Mapping[tuple[str, str], Mapping[LayerAndKind, float]]) -> "Figure":
    """Where the entries of vectors lie: layers by kinds of tensor, a panel for each variant and
    part.

    Args:
        places: Variant and part (LANGUAGE or TASK) -> layer and kind of tensor -> the share of the
            entries there that vectors hold. What is outside of the layers is not drawn.
    """
    from matplotlib.ticker import PercentFormatter

    # What lies in layers
    in_layers: dict[tuple[str, str], dict[LayerAndKind, float]] = {}
    layers: set[int] = set()
    kinds: list[str] = []
    for variant_and_part, shares in places.items():
        for (layer, kind), share in shares.items():
            if layer is None:
                continue
            in_layers.setdefault(variant_and_part, {})[layer, kind] = share
            layers.add(layer)
            kinds.append(kind)

    # The rows and columns of cells, and those of panels
    ordered_layers = sorted(layers)
    ordered_kinds = sorted(_distinct(kinds), key=lambda kind: kind == BIASES)  # biases last
    variants = _distinct(variant for variant, _ in in_layers)
    with_shares = {part for _, part in in_layers}
    parts = [part for part in (LANGUAGE, TASK) if part in with_shares]

    width = 1.0 + 2.3 * len(variants)
    height_of_panel = 0.7 + 0.2 * len(ordered_layers)
    figure = new_figure(width, len(parts) * height_of_panel + 0.9)
    grid = figure.subplots(len(parts), len(variants), squeeze=False, sharex=True, sharey=True)

    for part, line in zip(parts, grid, strict=True):
        # The panels of a line share a scale of colours
        top = 0.0
        for (_, part_of_shares), shares in in_layers.items():
            if part_of_shares == part:
                top = max(top, *shares.values())

        for variant, axes in zip(variants, line, strict=True):
            shares = in_layers.get((variant, part), {})
            image = _draw_density(axes, shares, ordered_layers, ordered_kinds, top)
            if part == parts[0]:
                axes.set_title(variant)

        vectors = "language vectors" if part == LANGUAGE else f"{part} vector"
        line[0].set_ylabel(f"{vectors}\nlayer")
        percent = PercentFormatter(1.0)
        figure.colorbar(image, ax=list(line), format=percent, pad=0.01, fraction=0.03)
    return figure


def _draw_density(
    axes: "Axes",
    shares: Mapping[LayerAndKind, float],
    layers: Sequence[int],
    kinds: Sequence[str],
    top: float,
) -> Any:
    """One panel of `density`: a cell for each layer (down) and kind of tensor (across).

    Returns:
        The image, for a colour bar.
    """
    values = []
    for layer in layers:
        values.append([shares.get((layer, kind)) for kind in kinds])
    image = colour_cells(axes, values, top)
    if not shares:
        centred: dict[str, Any] = {"ha": "center", "va": "center", "transform": axes.transAxes}
        axes.text(0.5, 0.5, "none", color=MUTED, **centred)
    axes.tick_params(length=0)
    axes.set_xticks(range(len(kinds)), kinds, rotation=90)
    axes.set_yticks(range(len(layers)), [str(layer) for layer in layers])
    return image


def ranks(
    kept: Mapping[tuple[str, str], Mapping[LayerAndKind, list[int]]],
    styles: Mapping[str, VariantStyle],
) -> "Figure":
    """The ranks that denoising kept by layer, a panel for each kind of matrix.

    Lines are means, in a band from the least to the most; task vectors are dashed.

    Args:
        kept: Variant and part (LANGUAGE or TASK) -> layer and kind of matrix -> ranks kept.
        styles: How each variant is drawn.
    """
    kinds = []
    for places in kept.values():
        kinds += [kind for layer, kind in places if layer is not None]

    def draw(axes: "Axes", panel: str) -> None:
        for (variant, part), places in kept.items():
            ranks_of_layer = {}
            for (layer, kind), of_place in places.items():
                if layer is not None and kind == panel:
                    ranks_of_layer[layer] = of_place
            if not ranks_of_layer:
                continue
            style = {
                "color": styles[variant].colour,
                "marker": styles[variant].marker,
                "linestyle": LINE_OF_PART[part],
                "label": f" {variant}, {part}",
            }
            _draw_mean_and_band(axes, ranks_of_layer, style)
        axes.set(title=panel, xlabel="layer", ylim=(0, None))
        axes.locator_params(integer=True)

    return panels(_distinct(kinds), draw, "rank kept")


def spectra(singular_values: Mapping[str, Mapping[LayerAndKind, "Tensor"]]) -> "Figure":
    """The share of the squares that the first r singular values hold, a curve for each layer and a
    panel for each kind of matrix and of vector.

    Args:
        singular_values: Name of the vector -> layer and kind of matrix -> singular values, the
            largest first.
    """
    from matplotlib import colormaps

    # A panel for each vector and kind
    names_and_kinds = []
    layers = set()
    for name, places in singular_values.items():
        for layer, kind in places:
            names_and_kinds.append((name, kind))
            if layer is not None:
                layers.add(layer)

    # A shade for each layer
    shade_at = colormaps[SHADES]
    last = max(1, len(layers) - 1)
    shades = {}
    for number, layer in enumerate(sorted(layers)):
        position = 0.1 + 0.8 * number / last
        shades[layer] = shade_at(position)

    def draw(axes: "Axes", panel: tuple[str, str]) -> None:
        name, kind_of_panel = panel
        for (layer, kind), of_matrix in singular_values[name].items():
            if kind != kind_of_panel or layer is None:
                continue
            squares = of_matrix.square()
            total = squares.sum()
            if total == 0:
                continue
            percent_held = 100 * squares.cumsum(0) / total
            numbers = range(1, len(percent_held) + 1)
            label = f" layer {layer}"
            shade = shades[layer]
            axes.plot(numbers, percent_held.tolist(), color=shade, linewidth=1.2, label=label)
        axes.axhline(90, color=MUTED, linestyle=":", linewidth=1)
        axes.set(title=f"{name}: {kind_of_panel}", xlabel="rank r", ylim=(0, 102))

    return panels(_distinct(names_and_kinds), draw, "share of the squares (%)")


def curves(
    histories: Mapping[tuple[str, int], Mapping[str, list[Curve]]],
    styles: Mapping[str, VariantStyle],
    held_out: bool,
) -> "Figure":
    """How training went, a panel for each language and the task.

    Lines are means over the seeds by step, in a band from the least to the most; phase 1 is dashed.

    Args:
        histories: Language or TASK, and phase -> variant -> a curve for each seed.
        styles: How each variant is drawn.
        held_out: Whether values on held-out data are drawn, or training losses.
    """

    def draw(axes: "Axes", panel: str) -> None:
        metric = "loss"
        for (name, phase), by_variant in histories.items():
            if name != panel:
                continue
            for variant, of_seeds in by_variant.items():
                if held_out:
                    metric = of_seeds[0].metric
                by_step = _values_by_step(of_seeds, held_out)
                steps_per_marker = max(1, len(by_step) // 20)
                style = {
                    "color": styles[variant].colour,
                    "marker": styles[variant].marker,
                    "markevery": steps_per_marker,
                    "linestyle": LINE_OF_PHASE[phase],
                    "label": f" {variant}, phase {phase}",
                }
                _draw_mean_and_band(axes, by_step, style)
        axes.set(title=f"{panel}: {metric_name(metric)}", xlabel="step")

    names = _distinct(name for name, _ in histories)
    label = "held-out" if held_out else "training loss"
    return panels(names, draw, label)


def _values_by_step(of_seeds: Iterable[Curve], held_out: bool) -> dict[float, list[float]]:
    """Values of all seeds by training step."""
    by_step: dict[float, list[float]] = {}
    for curve in of_seeds:
        points = curve.held_out if held_out else curve.training
        for step, value in points:
            by_step.setdefault(step, []).append(value)
    return by_step


def _draw_mean_and_band(
    axes: "Axes", values: Mapping[Any, Sequence[float]], style: Mapping[str, Any]
) -> None:
    """A line through the means of some values, in a band from the least to the most.

    Args:
        axes: Where to draw.
        values: Place on the x axis -> values there.
        style: Colour, marker, dashes and label of the line.
    """
    places = sorted(values)
    in_order = [values[place] for place in places]
    means = [mean(of_place) for of_place in in_order]
    least = [min(of_place) for of_place in in_order]
    most = [max(of_place) for of_place in in_order]
    axes.plot(places, means, **style)
    axes.fill_between(places, least, most, color=style["color"], alpha=0.15, linewidth=0)


def _distinct(things: Iterable[Any]) -> list[Any]:
    """Each thing once, in the order in which it first came."""
    return list(dict.fromkeys(things))


def _largest(values: Values) -> float:
    """The largest of some cells; 1 where all are empty."""
    cells = []
    for row in values:
        cells += [value for value in row if value is not None]
    return max(cells, default=1.0)
