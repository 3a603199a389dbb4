"""How all figures of a report look, and how they become files. matplotlib is imported when the
first one is drawn.

Text and axes are drawn in INK, which becomes the colour of the text around it when an SVG stands in
a page: so the page can be light or dark. A variant has one colour in all figures, the baseline
grey.
"""

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO, StringIO
from math import ceil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Values = Sequence[Sequence[float | None]]  # rows of cells; None where there is nothing

INK, MUTED, PAPER = "#010203", "#868e99", "#ffffff"
GREY = "#a0a4ab"
# Paul Tol's "bright" scheme, which people tell apart whatever colours they see
COLOURS = ["#4477aa", "#ee6677", "#228833", "#aa3377", "#66ccee", "#ccbb44"]
HATCHES = ["", "///", "...", "xxx"]
MARKERS = [".", "s", "^", "x"]
SHADES = "viridis"  # of the curves of layers
HEAT = "Blues"  # of cells
LIGHT_TEXT, DARK_TEXT = "#f8f8f8", "#10161d"  # on dark and on light cells
WIDTH = 8.8  # of figures with several panels, in inches
STYLE: dict[Any, Any] = {
    "axes.edgecolor": MUTED,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "figure.constrained_layout.use": True,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.size": 9,
    "grid.alpha": 0.3,
    "grid.color": MUTED,
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,  # a name may hold a $
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
}


@dataclass(frozen=True)
class VariantStyle:
    """How a variant is drawn; hatches and markers tell apart those that share a colour."""

    colour: str
    hatch: str
    marker: str


def variant_styles(variants: Sequence[str], baseline: str | None) -> dict[str, VariantStyle]:
    """A style for each variant, in their order; the baseline is grey."""
    styles = {}
    number = 0
    for name in variants:
        if name == baseline:
            styles[name] = VariantStyle(GREY, "", ".")
            continue
        colour = COLOURS[number % len(COLOURS)]
        rounds = number // len(COLOURS) % len(HATCHES)
        styles[name] = VariantStyle(colour, HATCHES[rounds], MARKERS[rounds])
        number += 1
    return styles


@contextmanager
def style() -> Iterator[None]:
    """All figures are made and drawn within this."""
    from matplotlib import rc_context

    with rc_context(STYLE), warnings.catch_warnings():
        # a name may be in a script that the font of the PNG lacks
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


def render(figure: "Figure", name: str) -> tuple[str, bytes]:
    """A figure as SVG, to stand in a page, and as PNG on white.

    The same figure gives the same text.

    Args:
        figure: What is drawn. It cannot be laid out again afterwards.
        name: Put before the ids in the SVG, so that they are unique in the page.
    """
    from matplotlib import rc_context

    vector = StringIO()
    with rc_context({"svg.hashsalt": name}):
        figure.savefig(vector, format="svg", metadata={"Date": None, "Creator": None})
    figure.set_layout_engine("none")  # laid out once is enough
    pixels = BytesIO()
    figure.savefig(pixels, format="png", dpi=150, facecolor=PAPER, metadata={"Software": None})

    # the element alone, in the colour of the text around it, without metadata
    svg = vector.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = svg.replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    return svg, pixels.getvalue()


def panels(names: Sequence[Any], draw: Callable[["Axes", Any], None], label: str) -> "Figure":
    """A grid of small panels with one legend below.

    Args:
        names: What the panels are of.
        draw: Draws the panel of one of them.
        label: Of the y axes.
    """
    count = len(names)
    if count <= 4:
        across = count
    elif count % 3 == 0 or count < 7:
        across = 3
    else:
        across = 4
    down = ceil(count / across)
    width = WIDTH if across > 2 else 3.4 * across
    figure = new_figure(width, 2.1 * down + 0.7)
    grid = figure.subplots(down, across, squeeze=False).flatten()
    for axes, name in zip(grid, names, strict=False):
        draw(axes, name)
    hide_rest(grid, count)
    first_of_rows = grid[::across]
    for axes in first_of_rows:
        axes.set_ylabel(label)
    legend(figure, *grid[:count], across=across)
    return figure


def legend(figure: "Figure", *all_axes: Any, across: int = 3) -> None:
    """One legend for all of the axes, below them.

    Labels have a blank in front, because matplotlib leaves out those that begin with _.
    """
    handle_of: dict[str, Any] = {}
    for axes in all_axes:
        handles, labels = axes.get_legend_handles_labels()
        for handle, label in zip(handles, labels, strict=True):
            handle_of[label.strip()] = handle
    if not handle_of:
        return
    labels = [f" {name}" for name in handle_of]
    handles = list(handle_of.values())
    figure.legend(handles, labels, loc="outside lower center", ncols=across)


def heat(
    axes: "Axes", rows: Sequence[str], columns: Sequence[str], values: Values, top: float
) -> None:
    """Coloured cells with their values in percent; `top` has the darkest colour."""
    colour_cells(axes, values, top)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            if value is None:
                continue
            text = f"{100 * value:.0f}"
            colour = LIGHT_TEXT if value > 0.55 * top else DARK_TEXT
            axes.text(column, row, text, ha="center", va="center", color=colour)


def colour_cells(axes: "Axes", values: Values, top: float) -> Any:
    """Coloured cells, the first row on top; the image, for a colour bar."""
    cells = []
    for row in values:
        cells.append([float("nan") if value is None else value for value in row])
    # edges, not centres: from a single centre matplotlib makes a cell without width
    column_edges = [number - 0.5 for number in range(len(cells[0]) + 1)]
    row_edges = [number - 0.5 for number in range(len(cells) + 1)]
    image = axes.pcolormesh(column_edges, row_edges, cells, cmap=HEAT, vmin=0, vmax=top or 1)
    axes.set_ylim(len(cells) - 0.5, -0.5)  # also where axes are shared
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    return image


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def hide_rest(grid: Any, used: int) -> None:
    """Leave out the axes of a grid that nothing was drawn into."""
    for axes in grid[used:]:
        axes.set_visible(False)
