"""Vectors that an earlier version wrote load and compose to the same weights, for ever.

They are written by scripts/write_fixtures.py.
"""

import json
from pathlib import Path

import pytest
from formula import checksum, save_formula_base, weights_of

import deftx

FIXTURES = Path(__file__).parent / "fixtures"
FORMATS = sorted(folder.name for folder in FIXTURES.iterdir())


def checksums(version: str) -> dict[str, str]:
    return json.loads((FIXTURES / version / "checksums.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_formula_base(tmp_path_factory.mktemp("formula") / "base")


def test_the_first_format_is_kept() -> None:
    assert FORMATS[0] == "format-1"


@pytest.mark.parametrize("version", FORMATS)
def test_vectors_written_by_an_earlier_version_hold_what_they_held(version: str) -> None:
    folders = sorted(folder for folder in (FIXTURES / version).iterdir() if folder.is_dir())
    assert len(folders) == 4
    for folder in folders:
        assert checksum(weights_of(deftx.load(folder))) == checksums(version)[folder.name], (
            folder.name
        )


@pytest.mark.parametrize("version", FORMATS)
@pytest.mark.parametrize("language", ["", "language", "language-float16", "language-bfloat16"])
def test_vectors_written_by_an_earlier_version_compose_to_the_same_weights(
    base: Path, version: str, language: str
) -> None:
    task = deftx.load(FIXTURES / version / "task")
    model = deftx.compose(base, task, deftx.load(FIXTURES / version / language) if language else ())
    expected = checksums(version)[f"task + {language}" if language else "task alone"]
    assert checksum(dict(model.named_parameters())) == expected


@pytest.mark.parametrize("version", FORMATS)
def test_a_fixture_is_small_and_says_which_base_it_belongs_to(base: Path, version: str) -> None:
    size = sum(file.stat().st_size for file in (FIXTURES / version).rglob("*") if file.is_file())
    assert size < 100_000
    for name in ("language", "task"):
        provenance = deftx.load(FIXTURES / version / name).provenance
        assert (provenance.kind, provenance.base) == (name, "base")
