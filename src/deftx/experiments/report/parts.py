"""What a report is made of: sections with tables and pictures, and what they are made from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deftx.experiments.report.statistics import Comparison
from deftx.experiments.report.style import drawn
from deftx.experiments.report.tables import Table
from deftx.experiments.report.vectors import Seen
from deftx.experiments.run_folder import RunData

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Picture:
    """A figure as it goes to the page and to files: `name` is that of the files, `width` in CSS
    pixels."""

    name: str
    caption: str
    alt: str
    width: int
    svg: str
    png: bytes


@dataclass(frozen=True)
class Section:
    """A heading, what it is about, what to bear in mind, and what there is to see."""

    key: str
    title: str
    about: str
    notes: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()


@dataclass(frozen=True)
class Findings:
    """All that the sections are made of."""

    run: RunData
    baseline: str | None
    comparisons: Sequence[Comparison]
    seen: Seen


def picture(name: str, figure: "Figure", caption: str, alt: str) -> Picture:
    """A figure as SVG and PNG, with what it shows in words."""
    return Picture(name, caption, alt, round(96 * figure.get_figwidth()), *drawn(figure, name))
