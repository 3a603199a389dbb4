"""What is published can be installed, and has everything in it."""

import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from built import EXTRAS, ROOT, Installed

pytestmark = pytest.mark.slow


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(installed: Installed) -> None:
    source = ROOT / "src" / "deftx"
    files = {
        path for path in source.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }
    expected = {path.relative_to(source.parent).as_posix() for path in files}
    with zipfile.ZipFile(installed.wheel) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        assert all(wheel.read(name) == (source.parent / name).read_bytes() for name in names)
    assert names == expected
    beside_code = {Path(name).name for name in names if not name.endswith(".py")}
    assert beside_code >= {"py.typed", "page.html", "page.html.jinja", "model.safetensors"}


def test_the_wheel_says_what_a_package_index_shows(installed: Installed) -> None:
    with zipfile.ZipFile(installed.wheel) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = message_from_bytes(wheel.read(name))
    assert metadata["Name"] == "deftx"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert str(metadata.get_payload()).strip().startswith("# deftx")
    assert set(EXTRAS.split(",")) <= set(metadata.get_all("Provides-Extra"))


def test_the_archive_of_sources_has_what_its_tests_and_pages_need(installed: Installed) -> None:
    with tarfile.open(installed.sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    for folder in ("src", "tests", "docs", "recipes", "examples", "scripts", "benchmarks"):
        tracked = [path for path in (ROOT / folder).rglob("*.*") if "__pycache__" not in path.parts]
        files = {path.relative_to(ROOT).as_posix() for path in tracked if path.is_file()}
        assert files
        assert files <= names
    assert {"README.md", "LICENSE", "Makefile", "pyproject.toml", "constraints.txt"} <= names


def test_outside_the_checkout_it_is_the_wheel_that_runs(
    installed: Installed, tmp_path: Path
) -> None:
    where = installed.run("python", "-c", "import deftx; print(deftx.__file__)", cwd=tmp_path)
    assert Path(where.stdout.strip()).is_relative_to(installed.programs.parent), where
    assert not Path(where.stdout.strip()).is_relative_to(ROOT)
    as_program = installed.run("deftx", "--version", cwd=tmp_path)
    as_module = installed.run("python", "-m", "deftx", "--version", cwd=tmp_path)
    assert (as_program.returncode, as_module.returncode) == (0, 0)
    assert as_program.stdout == as_module.stdout
    doctor = installed.run("deftx", "doctor", cwd=tmp_path)
    assert doctor.returncode == 0, doctor.stderr
    assert "not installed" not in doctor.stdout
