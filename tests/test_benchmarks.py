"""The benchmarks are not run by tests; that they can be started is."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.once


FOLDER = Path(__file__).parents[1] / "benchmarks"


NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_finds_what_it_takes_from_deftx_and_from_the_others(name, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    try:
        importlib.import_module(name)
    finally:
        for other in NAMES:  # their names are anybody's
            sys.modules.pop(other, None)


@pytest.mark.slow
def test_the_two_ways_to_serve_are_measured_side_by_side():
    """It has a stand-in for the Switcher of its own, which nothing else would find to lack
    something."""
    pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
    brief = "--languages 2 --clients 2 --seconds 0.5 --repeat 1".split()
    done = subprocess.run(
        [sys.executable, FOLDER / "serve.py", *brief], capture_output=True, text=True, check=True
    )
    rows = {
        line.split()[0]: line.split()
        for line in done.stdout.splitlines()
        if line.startswith(("ours", "plain"))
    }
    assert float(rows["ours"][1]) > 0
    assert float(rows["plain"][1]) > 0
    assert "Traceback" not in done.stderr
