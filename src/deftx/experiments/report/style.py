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
HATCHES, MARKERS = ["", "///", "...", "xxx"], [".", "s", "^", "x"]
SHADES, HEAT = "viridis", "Blues"
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
class Look:
    """How a variant is drawn; hatches and markers tell apart those that share a colour."""

    colour: str
    hatch: str
    marker: str


def looks(variants: Sequence[str], baseline: str | None) -> dict[str, Look]:
    """A look for each variant, in their order."""
    coloured = [name for name in variants if name != baseline]
    found = {}
    for number, name in enumerate(coloured):
        turn = number // len(COLOURS) % len(HATCHES)
        found[name] = Look(COLOURS[number % len(COLOURS)], HATCHES[turn], MARKERS[turn])
    return {name: found.get(name, Look(GREY, "", ".")) for name in variants}


@contextmanager
def style() -> Iterator[None]:
    """All figures are made and drawn within this."""
    from matplotlib import rc_context

    with rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Glyph .* missing"
        )  # a script that the font of the PNG lacks
        yield


def drawn(figure: "Figure", name: str) -> tuple[str, bytes]:
    """A figure as SVG, to stand in a page, and as PNG on white. The same figure gives the same
    text."""
    from matplotlib import rc_context

    vector, pixels = StringIO(), BytesIO()
    with rc_context({"svg.hashsalt": name}):
        figure.savefig(vector, format="svg", metadata={"Date": None, "Creator": None})
    figure.set_layout_engine("none")  # laid out once is enough
    figure.savefig(pixels, format="png", dpi=150, facecolor=PAPER, metadata={"Software": None})
    svg = vector.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)  # ids are unique in the page
    return svg, pixels.getvalue()


def panels(names: Sequence[Any], draw: Callable[["Axes", Any], None], label: str) -> "Figure":
    """A grid of small panels with one legend below."""
    across = len(names) if len(names) <= 4 else 3 if len(names) % 3 == 0 or len(names) < 7 else 4
    down = ceil(len(names) / across)
    figure = new_figure(WIDTH if across > 2 else 3.4 * across, 2.1 * down + 0.7)
    grid = figure.subplots(down, across, squeeze=False).flatten()
    for axes, name in zip(grid, names, strict=False):
        draw(axes, name)
    hide_rest(grid, len(names))
    for axes in grid[::across]:
        axes.set_ylabel(label)
    legend(figure, *grid[: len(names)], across=across)
    return figure


def legend(figure: "Figure", *axes: Any, across: int = 3) -> None:
    """One legend for all of the axes, below them; labels have a blank in front, lest one with _ be
    left out."""
    named: dict[str, Any] = {}
    for handles, labels in (one.get_legend_handles_labels() for one in axes):
        named |= {label.strip(): handle for handle, label in zip(handles, labels, strict=True)}
    if named:
        figure.legend(
            list(named.values()),
            [f" {name}" for name in named],
            loc="outside lower center",
            ncols=across,
        )


def heat(
    axes: "Axes", rows: Sequence[str], columns: Sequence[str], values: Values, top: float
) -> None:
    """Coloured cells with their values in percent."""
    coloured(axes, values, top)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            if value is not None:
                colour = "#f8f8f8" if value > 0.55 * top else "#10161d"
                axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", color=colour)


def coloured(axes: "Axes", values: Values, top: float) -> Any:
    """Coloured cells, the first row on top; the image, for a colour bar."""
    cells = [[float("nan") if value is None else value for value in row] for row in values]
    # edges, not centres: from a single centre matplotlib makes a cell without width
    columns = [number - 0.5 for number in range(len(cells[0]) + 1)]
    rows = [number - 0.5 for number in range(len(cells) + 1)]
    image = axes.pcolormesh(columns, rows, cells, cmap=HEAT, vmin=0, vmax=top or 1)
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
