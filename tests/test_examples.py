"""The notebooks of examples/ run from top to bottom, as Jupyter would run them: cell after cell, in
a new process."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import hub_data
import hub_server
import pytest
from built import EXTRAS, Installed

import deftx

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples").glob("*.ipynb"))
# runs code as Jupyter does, but leaves out `%pip install`: `test_the_free_gpu_notebook` looks at it
CELL_BY_CELL = """
import json, subprocess, sys
from pathlib import Path
cells = json.loads(Path(sys.argv[1]).read_text("utf-8"))["cells"]
sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
names = {"__name__": "__main__"}  # of the notebook alone
for number, source in enumerate(sources, 1):
    if source.startswith("%pip install "):
        continue
    if source.startswith("!"):
        subprocess.run(source[1:], shell=True, check=True)
    else:
        exec(compile(source, f"cell {number}", "exec"), names)
"""
ON_THE_HUB = "free-gpu"  # the notebook that downloads what it needs
OFFLINE = [notebook for notebook in NOTEBOOKS if notebook.stem != ON_THE_HUB]


def cells(notebook: Path) -> list[dict[str, object]]:
    content = json.loads(notebook.read_text(encoding="utf-8"))
    assert content["nbformat"] == 4
    found: list[dict[str, object]] = content["cells"]
    return found


def test_there_are_notebooks() -> None:
    assert {notebook.stem for notebook in NOTEBOOKS} == {
        "demo",
        "own-language",
        "serving",
        ON_THE_HUB,
    }


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_what_it_printed(notebook: Path) -> None:
    code = [cell for cell in cells(notebook) if cell["cell_type"] == "code"]
    assert code
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.slow
@pytest.mark.parametrize("notebook", OFFLINE, ids=lambda path: path.stem)
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


@pytest.mark.slow
def test_the_free_gpu_notebook_runs_on_a_machine_with_nothing_but_deftx(
    installed: Installed, tmp_path: Path
) -> None:
    """With the wheel, and a stand-in for the hub with a tiny base under XLM-R's name."""
    (notebook,) = [notebook for notebook in NOTEBOOKS if notebook.stem == ON_THE_HUB]
    code = ["".join(cell["source"]) for cell in cells(notebook) if cell["cell_type"] == "code"]
    (extras,) = re.findall(r'^%pip install --quiet "deftx\[([\w,]+)\]"$', code[0])
    assert set(extras.split(",")) <= set(EXTRAS.split(","))
    folder = tmp_path / "machine"
    folder.mkdir()
    with hub_server.serving() as hub:
        hub_data.offer_nusax(hub, tmp_path / "base")
        online = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        online |= {"HF_HOME": str(tmp_path / "cache"), "TMPDIR": str(tmp_path)}
        words = ["python", "-c", CELL_BY_CELL, str(notebook)]
        done = installed.run(*words, cwd=folder, **online)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "macro-F1" in done.stdout
    assert "60 texts" in done.stdout
    assert {path.name for path in folder.iterdir()} == {"min", "min-vectors.zip"}
    # the classes of the two data sets are numbered differently: they are told apart by name
    config = json.loads((folder / "min" / "models" / "min" / "config.json").read_text())
    assert sorted(config["label2id"]) == ["negative", "positive"]
