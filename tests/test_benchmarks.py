"""The benchmarks are not run by tests; that they can be started is."""

import importlib
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py")))
def test_a_benchmark_finds_what_it_takes_from_deftx_and_from_the_others(name, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(sys, "modules", {**sys.modules})  # what it brings in is forgotten afterwards
    importlib.import_module(name)
