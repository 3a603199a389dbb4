"""What a report is made of: sections with tables and pictures, and what they are made from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deftx.experiments.report.comparisons import Comparison
from deftx.experiments.report.style import render
from deftx.experiments.report.tables import Table
from deftx.experiments.report.vectors import VectorStatistics
from deftx.experiments.run_folder import RunData

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Picture:
    """A figure as it goes to the page and to files.

    Attributes:
        name: Name of its files, without an ending.
        caption: What stands below it.
        alt: What it shows, for people who cannot see it.
        width: In CSS pixels.
        svg: The figure as SVG, to stand in the page.
        png: The figure as PNG.
    """

    name: str
    caption: str
    alt: str
    width: int
    svg: str
    png: bytes


@dataclass(frozen=True)
class Section:
    """A section of the report.

    Attributes:
        key: Its id in the page.
        title: Its heading.
        about: What it is about.
        notes: What to bear in mind.
        tables: Its tables.
        pictures: Its figures.
    """

    key: str
    title: str
    about: str
    notes: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()


@dataclass(frozen=True)
class ReportData:
    """What the sections are made of.

    Attributes:
        run: The run as it was read from its folder.
        baseline: The variant that others are compared with, if there is one.
        comparisons: Differences between variants.
        vectors: What the vectors of the run show.
    """

    run: RunData
    baseline: str | None
    comparisons: Sequence[Comparison]
    vectors: VectorStatistics


def picture(name: str, figure: "Figure", caption: str, alt: str) -> Picture:
    """A figure as SVG and PNG, with what it shows in words."""
    width = round(96 * figure.get_figwidth())
    svg, png = render(figure, name)
    return Picture(name, caption, alt, width, svg, png)
