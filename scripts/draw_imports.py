#!/usr/bin/env python3
"""Draw which room of src/deftx imports which, as docs/figures/layout.svg.

    python scripts/draw_imports.py

Boxes are the rooms, in the order of CONTRIBUTING.md's table. An arrow A → C is left out where A
reaches C by other arrows, A → B → C; an import that points up is dashed. `tests/test_house.py`
checks that the picture is up to date.
"""

import ast
import re
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "deftx"
TABLE = ROOT / "CONTRIBUTING.md"
FIGURE = ROOT / "docs" / "figures" / "layout.svg"

Arrow = tuple[str, str]  # a room, and one that it imports

# Sizes in pixels
BOX_LEFT, BOX_WIDTH, BOX_HEIGHT = 10, 470, 30
GAP, MARGIN = 16, 10
LANE = 22  # between two arrows beside the boxes

STYLE = """
  .box { fill: #f4f6f8; stroke: #5b6b7b; }
  text { font: 13px sans-serif; fill: #1c2733; }
  .name { font-weight: bold; }
  .arrow { fill: none; stroke: #5b6b7b; marker-end: url(#head); }
  .up { stroke-dasharray: 4 3; }
"""


def rooms() -> dict[str, str]:
    """What each room holds, by its name, in the order of the table."""
    table = TABLE.read_text(encoding="utf-8").partition("| place |")[2].partition("\n\n")[0]
    found = {}
    for line in table.splitlines():
        row = re.match(r"\| `(\w+)(?:/|\.py)` \| ([^|]*) \|", line)
        if row:
            found[row[1]] = row[2].replace("`", "").strip()
    return found


def room_of(file: Path) -> str:
    """The room that a module is in; of a module beside the rooms, its own name."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(file: Path) -> set[str]:
    """The rooms that a module imports from, wherever in it the import stands."""
    names = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return {name.split(".")[1] for name in names if name.startswith("deftx.")}


def arrows(order: list[str]) -> set[Arrow]:
    """Every import between two rooms."""
    found = set()
    for file in sorted(PACKAGE.rglob("*.py")):
        room = room_of(file)
        for other in imported_rooms(file):
            if room in order and other in order and room != other:
                found.add((room, other))
    return found


def without_detours(down: set[Arrow]) -> set[Arrow]:
    """The arrows that no path of other arrows replaces."""
    targets: dict[str, set[str]] = {}
    for room, other in down:
        targets.setdefault(room, set()).add(other)

    def reaches(room: str, goal: str) -> bool:
        return any(other == goal or reaches(other, goal) for other in targets.get(room, ()))

    kept = set()
    for room, goal in down:
        others = targets[room] - {goal}
        if not any(reaches(other, goal) for other in others):
            kept.add((room, goal))
    return kept


def lanes(spans: list[tuple[int, int]]) -> list[int]:
    """A lane for each span of rows, so that spans in one lane do not overlap; short spans first."""
    taken: list[list[tuple[int, int]]] = []
    lane_of = {}
    for span in sorted(spans, key=lambda span: (span[1] - span[0], span)):
        number = 0
        while number < len(taken) and _overlaps(span, taken[number]):
            number += 1
        if number == len(taken):
            taken.append([])
        taken[number].append(span)
        lane_of[span] = number
    return [lane_of[span] for span in spans]


def _overlaps(span: tuple[int, int], others: list[tuple[int, int]]) -> bool:
    return any(span[0] < bottom and top < span[1] for top, bottom in others)


def draw() -> str:
    """The picture, as SVG."""
    contents = rooms()
    order = list(contents)
    row = {room: number for number, room in enumerate(order)}
    every = arrows(order)
    up = {(room, other) for room, other in every if row[other] < row[room]}
    shown = sorted(
        without_detours(every - up) | up, key=lambda arrow: (row[arrow[0]], row[arrow[1]])
    )

    # Arrows to the next box are straight, all others run in a lane beside the boxes.
    beside = [(room, other) for room, other in shown if row[other] != row[room] + 1]
    spans = []
    for room, other in beside:
        ends = (row[room], row[other])
        spans.append((min(ends), max(ends)))
    lane_of = dict(zip(beside, lanes(spans), strict=True))

    right = BOX_LEFT + BOX_WIDTH
    width = right + LANE * (max(lane_of.values(), default=0) + 2)
    height = 2 * MARGIN + len(order) * (BOX_HEIGHT + GAP) - GAP
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
        f' width="{width}" height="{height}" role="img">',
        "<title>Which room of deftx imports which</title>",
        f"<style>{STYLE}</style>",
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7"'
        ' markerHeight="7" orient="auto">'
        '<path d="M0 0L10 5L0 10z" fill="#5b6b7b"/></marker></defs>',
    ]

    def top(room: str) -> int:
        return MARGIN + row[room] * (BOX_HEIGHT + GAP)

    for room in order:
        y = top(room)
        lines.append(
            f'<rect class="box" x="{BOX_LEFT}" y="{y}" width="{BOX_WIDTH}"'
            f' height="{BOX_HEIGHT}" rx="4"/>'
        )
        held = contents[room]
        short = held if len(held) <= 55 else held[:54].rpartition(" ")[0].rstrip(",;:") + " …"
        lines.append(f'<text class="name" x="{BOX_LEFT + 10}" y="{y + 20}">{room}</text>')
        lines.append(f'<text x="{BOX_LEFT + 120}" y="{y + 20}">{escape(short)}</text>')

    for room, other in shown:
        style = "arrow up" if (room, other) in up else "arrow"
        if (room, other) in lane_of:
            x = right + LANE * (lane_of[room, other] + 1)
            start = top(room) + 21
            end = top(other) + 9
            path = f"M{right} {start}H{x}V{end}H{right}"
        else:
            x = BOX_LEFT + 60
            path = f"M{x} {top(room) + BOX_HEIGHT}V{top(other)}"
        lines.append(f'<path class="{style}" d="{path}"><title>{room} → {other}</title></path>')
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    FIGURE.write_text(draw(), encoding="utf-8")
    print(FIGURE)
