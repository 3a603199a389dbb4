"""Imports point one way: from the top of the table in CONTRIBUTING.md down."""

import ast
import importlib.util
import re
from itertools import chain
from pathlib import Path
from types import ModuleType

import pytest

import deftx

pytestmark = pytest.mark.once


ROOT = Path(deftx.__file__).parent
HOUSE = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
# `SparseVector.from_pretrained`, `save_pretrained` and `push_to_hub`, as transformers' models have
METHODS_OF_VECTORS = {("core", "hub"), ("core", "storage")}


def order() -> list[list[str]]:
    """The places of the table's rows, as the first parts of modules' names."""
    _, _, from_table = HOUSE.partition("| place |")
    table, _, _ = from_table.partition("../../benchmarks")
    rows = []
    for line in table.splitlines():
        if not line.startswith("| `"):
            continue
        first_cell = line.split("|")[1]
        places = re.findall(r"`(\w+)(?:/|\.py)`", first_cell)
        if places:
            rows.append(places)
    return rows


def imports(file: Path) -> set[str]:
    """The places that a module imports from, wherever in it."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return {name.split(".")[1] for name in names if name.startswith("deftx.")}


def place_of(file: Path) -> str:
    """The place that a module is in; of a module beside the places, its own name."""
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def test_every_module_is_in_the_table():
    places = {place_of(file) for file in ROOT.rglob("*.py")} - {"__init__"}
    in_table = list(chain.from_iterable(order()))
    assert sorted(in_table) == sorted(places)


def test_no_module_imports_from_a_row_above_its_own():
    depth = {}
    for number, row in enumerate(order()):
        depth |= dict.fromkeys(row, number)
    wrong = set()
    for file in ROOT.rglob("*.py"):
        place = place_of(file)
        if place == "__init__":
            continue
        for other in imports(file) & depth.keys():
            if depth[other] < depth[place]:
                wrong.add((place, other))
    assert wrong == METHODS_OF_VECTORS


def draw_imports() -> ModuleType:
    """The script of that name, as a module."""
    path = Path(__file__).parents[1] / "scripts" / "draw_imports.py"
    spec = importlib.util.spec_from_file_location("draw_imports", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_of_the_layout_is_up_to_date():
    script = draw_imports()
    drawn = script.FIGURE.read_text(encoding="utf-8")
    assert drawn == script.draw(), "run `python scripts/draw_imports.py`"


def test_the_picture_leaves_out_only_arrows_that_others_replace():
    script = draw_imports()
    down = {("a", "b"), ("b", "c"), ("a", "c"), ("c", "d"), ("a", "d"), ("e", "d")}
    assert script.without_detours(down) == {("a", "b"), ("b", "c"), ("c", "d"), ("e", "d")}
    assert script.lanes([(0, 9), (1, 3), (3, 5), (2, 4)]) == [2, 0, 0, 1]


def test_the_walks_through_the_code_pass_files_that_exist():
    page = (Path(__file__).parents[1] / "docs" / "layout.md").read_text(encoding="utf-8")
    walks = re.findall(r"^## [^\n]*: (\d+) files$(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    assert len(walks) == 3
    for count, walk in walks:
        files = re.findall(r"^\d+\. `([\w/]+\.py)`", walk, re.MULTILINE)
        assert len(files) == int(count)
        assert [file for file in files if not (ROOT / file).is_file()] == []


def test_no_test_module_imports_another():
    """What tests share is in modules of its own, which hold no tests."""
    pattern = re.compile(r"^(?:from|import) (test_\w+)", re.MULTILINE)
    for file in Path(__file__).parent.glob("*.py"):
        assert pattern.findall(file.read_text(encoding="utf-8")) == []
