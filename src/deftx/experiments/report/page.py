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
from deftx.experiments.report.parts import Findings, Section
from deftx.experiments.report.sections import base_name, headline, sections
from deftx.experiments.report.statistics import compare, pairs, score_run
from deftx.experiments.report.style import style
from deftx.experiments.report.tables import Cell, Table
from deftx.experiments.report.vectors import look
from deftx.experiments.run_folder import RunData, read_run
from deftx.storage.atomic_files import new_folder

PAGE, TEXT, FIGURES = "report.html", "report.md", "figures"
NEEDED = ("matplotlib", "jinja2")


def write_report(folder: Path, out: Path | None = None, *, baseline: str | None = None) -> Path:
    """The report of the run in `folder`, written to `out` (folder/report), whole or not at all; the
    page's path.

    baseline  the variant that others are held against, instead of the recipe's

    Raises DeftxError where `folder` is no run or damaged, where `out` is something else than an
    earlier report, for a baseline that has no scores, and where the libraries of the extra `report`
    are missing.
    """
    if missing := lacking():
        raise DeftxError(f"a report needs {' and '.join(missing)}: pip install 'deftx[report]'")
    run, out = read_run(folder), (out or folder / "report").resolve()
    if out.exists() and not (out.is_dir() and ((out / PAGE).is_file() or not any(out.iterdir()))):
        raise DeftxError(f"{out} exists and is not a report: choose another folder")
    scored = [name for name in run.variants if run.scores(name)]
    if baseline is not None and baseline not in scored:
        raise unknown("variant", baseline, scored)
    baseline = baseline or run.recipe.baseline
    scores = score_run(run)
    compared = [compare(run, scores, *pair) for pair in pairs(run, baseline)]
    with style():
        found = Findings(run, baseline, [one for one in compared if one], look(run))
        parts = sections(found)
    with new_folder(out, force=True) as new:
        (new / PAGE).write_text(page(found, parts), encoding="utf-8")
        (new / TEXT).write_text(markdown(found, parts), encoding="utf-8")
        (new / FIGURES).mkdir()
        for picture in (picture for part in parts for picture in part.pictures):
            (new / FIGURES / f"{picture.name}.svg").write_text(picture.svg, encoding="utf-8")
            (new / FIGURES / f"{picture.name}.png").write_bytes(picture.png)
    return out / PAGE


def lacking() -> list[str]:
    """The libraries that a report needs and that are not installed."""
    return [name for name in NEEDED if find_spec(name) is None]


def page(found: Findings, parts: Sequence[Section]) -> str:
    """The page as HTML; all text in it is escaped, whatever a name holds."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup, escape

    template = (
        files("deftx.experiments.report").joinpath("page.html.jinja").read_text(encoding="utf-8")
    )
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["drawing"] = lambda picture: (
        Markup(  # matplotlib escapes the text of its figures
            picture.svg.replace("<svg", f'<svg role="img" aria-label="{escape(picture.alt)}"', 1)
        )
    )
    return environment.from_string(template).render(**_head(found), sections=parts)


def _head(found: Findings) -> Mapping[str, Any]:
    """What stands above and below the sections."""
    run = found.run
    recipe, finished, steps = run.recipe, len(run.finished), len({step.id for step in run.steps})
    facts = {
        "base": base_name(recipe.base),
        "labelled data": ", ".join(recipe.labelled),
        "targets": ", ".join(run.targets) or "none",
        "seeds": ", ".join(map(str, run.seeds)) or "none",
        "scored by": metric_name(recipe.metric),
    }
    missing = (
        f"This run is not finished: {finished} of its {steps} steps are done."
        if finished < steps
        else ""
    )
    return {
        "title": recipe.title or recipe.name,
        "facts": facts,
        "headline": headline(found),
        "missing": missing,
        "commands": commands(run),
    }


def commands(run: RunData) -> list[str]:
    """What to type to have the run and this report again."""
    name = run.folder.resolve().name
    return [f"deftx run {run.recipe.name}.yaml --out {name}", f"deftx report {name}"]


def markdown(found: Findings, parts: Sequence[Section]) -> str:
    """The report as Markdown, with its figures beside it."""
    head = _head(found)
    lines = [
        f"# {_plain(head['title'])}",
        "",
        ", ".join(f"{key}: {_plain(v)}" for key, v in head["facts"].items()),
        "",
    ]
    lines += [
        line for said in [head["missing"], *head["headline"]] if said for line in (_plain(said), "")
    ]
    for part in parts:
        lines += [f"## {part.title}", "", part.about, ""]
        for table in part.tables:
            lines += [*_markdown_table(table), ""]
        lines += [line for note in part.notes for line in (_plain(note), "")]
        for picture in part.pictures:
            lines += [
                f"![{_plain(picture.alt)}]({FIGURES}/{picture.name}.png)",
                "",
                _plain(picture.caption),
                "",
            ]
    return "\n".join(
        [*lines, "## To repeat it", "", *(f"    {command}" for command in head["commands"]), ""]
    )


def _markdown_table(table: Table) -> list[str]:
    align = ["---", *(["---" if table.words else "---:"] * (len(table.columns) - 1))]
    rows = [[_plain(line.name), *map(_markdown_cell, line.cells)] for line in table.lines]
    lines = [
        f"| {' | '.join(row)} |"
        for row in [[_plain(column) for column in table.columns], align, *rows]
    ]
    return [table.caption, "", *lines]


def _markdown_cell(cell: Cell) -> str:
    text = f"**{_plain(cell.text)}**" if cell.best else _plain(cell.text)
    return f"{text} {cell.mark}" if cell.mark else text


def _plain(text: str) -> str:
    """Text on one line that Markdown takes for nothing else."""
    escaped = "".join(f"\\{sign}" if sign in "\\`*_|<>[]#$" else sign for sign in text)
    return " ".join(escaped.split())
