"""The notebooks of examples/ run from top to bottom, as Jupyter would run them: cell after cell, in
a new process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import deftx

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples").glob("*.ipynb"))
CELL_BY_CELL = """
import json, sys
from pathlib import Path
cells = [cell for cell in json.loads(Path(sys.argv[1]).read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
for number, cell in enumerate(cells, 1):
    exec(compile("".join(cell["source"]), f"cell {number}", "exec"), globals())
"""


def cells(notebook: Path) -> list[dict[str, object]]:
    content = json.loads(notebook.read_text(encoding="utf-8"))
    assert content["nbformat"] == 4
    found: list[dict[str, object]] = content["cells"]
    return found


def test_there_are_notebooks() -> None:
    assert {notebook.stem for notebook in NOTEBOOKS} == {"demo", "own-language", "serving"}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_what_it_printed(notebook: Path) -> None:
    code = [cell for cell in cells(notebook) if cell["cell_type"] == "code"]
    assert code
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_its_top_to_its_end(notebook: Path, tmp_path: Path) -> None:
    if notebook.stem == "serving":
        pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(deftx.__file__).parents[1]),
        "OMP_NUM_THREADS": "1",
    }
    words = [sys.executable, "-c", CELL_BY_CELL, str(notebook)]
    done = subprocess.run(
        words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert list(tmp_path.iterdir()) == [], (
        "a notebook leaves nothing in the folder it is started in"
    )
