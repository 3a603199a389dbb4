"""Imports point one way: from the top of the table in CONTRIBUTING.md down."""

import ast
import re
from pathlib import Path

import deftx

ROOT = Path(deftx.__file__).parent
HOUSE = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
# `SparseVector.from_pretrained`, `save_pretrained` and `push_to_hub`, as transformers' models have
METHODS_OF_VECTORS = {("core", "hub"), ("core", "storage")}


def order() -> list[list[str]]:
    """The places of the table's rows, as the first parts of modules' names."""
    lines = HOUSE.partition("| place |")[2].partition("../../benchmarks")[0].splitlines()
    rows = [
        re.findall(r"`(\w+)(?:/|\.py)`", line.split("|")[1])
        for line in lines
        if line.startswith("| `")
    ]
    return [row for row in rows if row]


def imports(file: Path) -> set[str]:
    """The places that a module imports from, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import | ast.ImportFrom)
            else []
        )
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{name}" for name in names]
        found |= {name.split(".")[1] for name in names if name.startswith("deftx.")}
    return found


def test_every_module_is_in_the_table():
    places = {file.relative_to(ROOT).parts[0].removesuffix(".py") for file in ROOT.rglob("*.py")}
    assert sorted(place for row in order() for place in row) == sorted(places - {"__init__"})


def test_no_module_imports_from_a_row_above_its_own():
    depth = {place: number for number, row in enumerate(order()) for place in row}
    wrong = {
        (place, other)
        for file in ROOT.rglob("*.py")
        if (place := file.relative_to(ROOT).parts[0].removesuffix(".py")) != "__init__"
        for other in imports(file) & depth.keys()
        if depth[other] < depth[place]
    }
    assert wrong == METHODS_OF_VECTORS
