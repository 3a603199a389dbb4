"""What `make audit` makes of pip-audit's report."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.once


SCRIPT = Path(__file__).parents[1] / "scripts" / "audit.py"

SKIPPED = {"name": "torch", "skip_reason": "not found"}
SOUND = {"name": "click", "version": "8.5.1", "vulns": []}
VULNERABLE = {
    "name": "idna",
    "version": "3.2",
    "vulns": [
        {"id": "PYSEC-1", "fix_versions": ["3.7", "4.0"]},
        {"id": "PYSEC-2", "fix_versions": []},
    ],
}


def summary(*packages):
    spec = importlib.util.spec_from_file_location("audit", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script.summary({"dependencies": list(packages)})


def test_a_known_vulnerability_is_named_and_fails():
    lines, code = summary(SKIPPED, SOUND, VULNERABLE)
    assert code == 1
    assert lines == [
        "idna 3.2: PYSEC-1, fixed in 3.7, 4.0",
        "idna 3.2: PYSEC-2, fixed in none yet",
        "2 of 3 versions were checked for known vulnerabilities",
    ]


def test_versions_without_one_pass():
    assert summary(SOUND, SKIPPED) == (
        ["1 of 2 versions were checked for known vulnerabilities"],
        0,
    )


def test_where_nothing_was_checked_it_says_skipped():
    assert summary(SKIPPED, SKIPPED)[0][0].startswith("skipped: ")
    done = subprocess.run([sys.executable, SCRIPT], input="", capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "skipped: pip-audit could not be run\n")
