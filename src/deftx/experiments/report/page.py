"""Write a report: one page that needs nothing besides itself, the same as Markdown, and its figures
as files.

OUT/report.html          all of it, figures inside; light or dark as the reader's system is
OUT/report.md            the same as Markdown
OUT/figures/NAME.svg     and NAME.png: the figures by themselves
"""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from deftx.config import metric_name
from deftx.errors import DeftxError, unknown
from deftx.experiments.report.comparisons import compare, pairs, score_run
from deftx.experiments.report.parts import Picture, ReportData, Section
from deftx.experiments.report.sections import base_name, headline, sections
from deftx.experiments.report.style import style
from deftx.experiments.report.tables import Cell, Table
from deftx.experiments.report.vectors import vector_statistics
from deftx.experiments.run_folder import RunData, read_run
from deftx.storage.atomic_files import new_folder

PAGE, TEXT, FIGURES = "report.html", "report.md", "figures"
NEEDED = ("matplotlib", "jinja2")
MARKUP = "\\`*_|<>[]#$"  # characters that mean something to Markdown


def write_report(folder: Path, out: Path | None = None, *, baseline: str | None = None) -> Path:
    """Write the report of a run, whole or not at all.

    Args:
        folder: The run's folder.
        out: Where to write it; None: to "report" in the run's folder. An earlier report is
            replaced.
        baseline: The variant that others are compared with; None: the recipe's.

    Returns:
        The path of the page.

    Raises:
        DeftxError: Where `folder` is no run or damaged, where `out` is something else than an
            earlier report, for a baseline that has no scores, and where the libraries of the extra
            `report` are missing.
    """
    missing = lacking()
    if missing:
        raise DeftxError(f"a report needs {' and '.join(missing)}: pip install 'deftx[report]'")
    run = read_run(folder)
    out = (out or folder / "report").resolve()
    if out.exists() and not _may_be_replaced(out):
        raise DeftxError(f"{out} exists and is not a report: choose another folder")
    scored = [name for name in run.variants if run.scores(name)]
    if baseline is not None and baseline not in scored:
        raise unknown("variant", baseline, scored)
    baseline = baseline or run.recipe.baseline

    # compute everything first, so that nothing is written where something is wrong
    scores = score_run(run)
    comparisons = []
    for first, second in pairs(run, baseline):
        comparison = compare(run, scores, first, second)
        if comparison is not None:
            comparisons.append(comparison)
    with style():
        data = ReportData(run, baseline, comparisons, vector_statistics(run))
        parts = sections(data)

    with new_folder(out, force=True) as new:
        (new / PAGE).write_text(page(data, parts), encoding="utf-8")
        (new / TEXT).write_text(markdown(data, parts), encoding="utf-8")
        figures = new / FIGURES
        figures.mkdir()
        for part in parts:
            for picture in part.pictures:
                (figures / f"{picture.name}.svg").write_text(picture.svg, encoding="utf-8")
                (figures / f"{picture.name}.png").write_bytes(picture.png)
    return out / PAGE


def _may_be_replaced(out: Path) -> bool:
    """Whether something is an earlier report, or an empty folder."""
    if not out.is_dir():
        return False
    if (out / PAGE).is_file():
        return True
    return not any(out.iterdir())


def lacking() -> list[str]:
    """The libraries that a report needs and that are not installed."""
    return [name for name in NEEDED if find_spec(name) is None]


def page(data: ReportData, parts: Sequence[Section]) -> str:
    """The page as HTML; all text in it is escaped, whatever a name holds."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup, escape

    def drawing(picture: Picture) -> Markup:
        """The SVG, with words for people who cannot see it; matplotlib escapes its text."""
        described = f'<svg role="img" aria-label="{escape(picture.alt)}"'
        return Markup(picture.svg.replace("<svg", described, 1))

    folder = files("deftx.experiments.report")
    template = folder.joinpath("page.html.jinja").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["drawing"] = drawing
    return environment.from_string(template).render(**_head(data), sections=parts)


def _head(data: ReportData) -> Mapping[str, Any]:
    """What stands above and below the sections."""
    run = data.run
    recipe = run.recipe
    facts = {
        "base": base_name(recipe.base),
        "labelled data": ", ".join(recipe.labelled),
        "targets": ", ".join(run.targets) or "none",
        "seeds": ", ".join(map(str, run.seeds)) or "none",
        "scored by": metric_name(recipe.metric),
    }
    missing = ""
    finished = len(run.finished)
    steps = len({step.id for step in run.steps})
    if finished < steps:
        missing = f"This run is not finished: {finished} of its {steps} steps are done."
    return {
        "title": recipe.title or recipe.name,
        "facts": facts,
        "headline": headline(data),
        "missing": missing,
        "commands": commands(run),
    }


def commands(run: RunData) -> list[str]:
    """What to type to have the run and this report again."""
    name = run.folder.resolve().name
    return [f"deftx run {run.recipe.name}.yaml --out {name}", f"deftx report {name}"]


def markdown(data: ReportData, parts: Sequence[Section]) -> str:
    """The report as Markdown, with its figures as files beside it."""
    head = _head(data)
    facts = [f"{key}: {_escaped(value)}" for key, value in head["facts"].items()]
    paragraphs = [f"# {_escaped(head['title'])}", ", ".join(facts)]
    if head["missing"]:
        paragraphs.append(_escaped(head["missing"]))
    paragraphs += [_escaped(sentence) for sentence in head["headline"]]
    for part in parts:
        paragraphs += [f"## {part.title}", part.about]
        for table in part.tables:
            paragraphs += [table.caption, _markdown_table(table)]
        paragraphs += [_escaped(note) for note in part.notes]
        for picture in part.pictures:
            image = f"![{_escaped(picture.alt)}]({FIGURES}/{picture.name}.png)"
            paragraphs += [image, _escaped(picture.caption)]
    indented = [f"    {command}" for command in head["commands"]]
    paragraphs += ["## To repeat it", "\n".join(indented)]
    return "\n\n".join(paragraphs) + "\n"


def _markdown_table(table: Table) -> str:
    """The rows of a table; figures stand to the right, words to the left."""
    alignment = "---" if table.words else "---:"
    rows = [
        [_escaped(column) for column in table.columns],
        ["---", *[alignment] * (len(table.columns) - 1)],
    ]
    for line in table.lines:
        cells = [_markdown_cell(cell) for cell in line.cells]
        rows.append([_escaped(line.name), *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _markdown_cell(cell: Cell) -> str:
    """A cell in bold where it is the best, with its mark."""
    text = _escaped(cell.text)
    if cell.best:
        text = f"**{text}**"
    if cell.mark:
        text = f"{text} {cell.mark}"
    return text


def _escaped(text: str) -> str:
    """Text on one line in which Markdown finds no markup."""
    characters = []
    for character in text:
        if character in MARKUP:
            characters.append("\\")
        characters.append(character)
    return " ".join("".join(characters).split())
