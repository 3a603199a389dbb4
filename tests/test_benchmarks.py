"""The benchmarks are not run by tests; that they can be started is."""

import importlib
import sys
from pathlib import Path

import pytest

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
