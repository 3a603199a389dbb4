"""A person's first hour, with deftx installed from its wheel, outside of the checkout: the commands
of the pages as they are written, on little files of their own, and the wrong turns.

`test_docs.py` runs the pages in this process; here they are typed, and no step is left out. The
base is a tiny one under XLM-R's name.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import hub_server
import pytest
from built import Installed
from doc_blocks import BASE, Block, blocks, write_own_files

pytestmark = pytest.mark.slow
SPINE = ["README.md", "docs/own-language.md"]
# what a test elsewhere does: installing, the demo, and recipes that read what is not in a checkout
ELSEWHERE = {"make", "pip", "uv", "python"}
ELSEWHERE_OF_DEFTX = {"demo", "run", "report"}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that a person brings."""
    return write_own_files(tmp_path_factory.mktemp("desk"))


@pytest.fixture(scope="module")
def hub() -> Iterator[hub_server.Hub]:
    """A stand-in for the hub, which knows the user."""
    with hub_server.serving({"hf_you": "you"}) as hub:
        yield hub


def for_deftx(block: Block) -> list[list[str]]:
    """The commands of a block that are deftx's own, without those that are tested elsewhere."""
    own = []
    for command in block.commands:
        if command[0] in ELSEWHERE:
            continue
        assert command[0] == "deftx", command
        if command[1] not in ELSEWHERE_OF_DEFTX:
            own.append(command)
    return own


@pytest.mark.parametrize("page", SPINE)
def test_the_commands_of_a_page_run_as_they_are_written(
    page: str, installed: Installed, desk: Path, hub: hub_server.Hub, tmp_path: Path
) -> None:
    folder = tmp_path / "desk"
    shutil.copytree(desk, folder)
    online = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_you", "HF_HUB_OFFLINE": "0"}
    online |= {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
    script = tmp_path / "snippets.py"
    ran = 0
    for block in blocks(page):
        if block.reason is not None:
            continue
        for command in for_deftx(block):
            done = installed.run(*command, cwd=folder, **online)
            assert done.returncode == 0, (command, done.stderr[-2000:])
            ran += 1
        if block.language == "python" and "finetuned" not in block.code:
            script.write_text(script.read_text() + block.code if script.exists() else block.code)
    assert ran > 2
    snippets = installed.run("python", str(script), cwd=folder, **online)
    assert snippets.returncode == 0, snippets.stderr[-2000:]


# What was typed -> what the one line on standard error must have: what is wrong, and what to do.
TRANSFER = f"transfer --base {BASE} --train train.tsv --source ind=ind.txt --target min=min.txt"
WRONG_TURNS = {
    "a misspelt command": (
        "transfr --base x",
        ["No such command 'transfr'", "Did you mean 'transfer'?", "deftx --help"],
    ),
    "no source text": (
        f"transfer --base {BASE} --train train.tsv --target min=min.txt --out out",
        ["no text of the source language", "--source NAME=FILE", "--source-vector NAME=VECTOR"],
    ),
    "no target": (
        f"transfer --base {BASE} --train train.tsv --source ind=ind.txt --out out",
        ["no target", "--target NAME=FILE", "--target-vector NAME=VECTOR"],
    ),
    "no labelled data": (
        f"transfer --base {BASE} --source ind=ind.txt --target min=min.txt --out out",
        ["Missing option '--train'", "deftx transfer --help"],
    ),
    "no base": (
        "transfer --train train.tsv --source ind=ind.txt --target min=min.txt --out out",
        ["Missing option '--base'", "deftx transfer --help"],
    ),
    "an unknown preset": (
        f"{TRANSFER} --out out --preset standrd",
        ["unknown preset 'standrd'", "did you mean 'standard'?", "quick"],
    ),
    "a misspelt file": (
        f"{TRANSFER.replace('min.txt', 'mni.txt')} --out out",
        ["mni.txt does not exist", "check the path"],
    ),
    "a column of another name": (
        f"{TRANSFER} --out out --label-column stars",
        ["no column 'stars'", "'text', 'label'", "options that end in `column`"],
    ),
    "a folder that is in the way": (
        f"{TRANSFER} --out full",
        ["full exists and is not the folder of a transfer", "choose another folder"],
    ),
    "a base that is not there": (
        f"{TRANSFER.replace(BASE, 'xlm-robreta')} --out out",
        ["cannot load the model 'xlm-robreta'", "no such folder"],
    ),
    "a model that is not there": (
        "predict --model transfer/models/min new.txt",
        ["cannot load the model 'transfer/models/min'", "no such folder"],
    ),
}


@pytest.mark.parametrize(("typed", "expected"), WRONG_TURNS.values(), ids=WRONG_TURNS)
def test_a_wrong_turn_gets_one_line_with_the_way_back(
    typed: str, expected: list[str], installed: Installed, desk: Path
) -> None:
    (desk / "full").mkdir(exist_ok=True)
    (desk / "full" / "mine.txt").write_text("mine")
    before = {path: path.read_bytes() for path in desk.rglob("*") if path.is_file()}
    done = installed.run("deftx", *typed.split(), cwd=desk, HF_HUB_OFFLINE="1")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = [line for line in done.stderr.splitlines() if line.strip()]
    assert [words for words in expected if words not in line] == [], line
    after = {path: path.read_bytes() for path in desk.rglob("*") if path.is_file()}
    assert after == before, "nothing is left behind, and nothing of theirs is changed"


def test_where_the_command_is_not_found_the_module_is(installed: Installed, desk: Path) -> None:
    """As in a shell where the environment is not active: the README says what to type then."""
    python = str(installed.programs / "python")
    elsewhere = {"PATH": "/usr/bin:/bin"}
    assert shutil.which("deftx", path=elsewhere["PATH"]) is None
    done = installed.run(python, "-m", "deftx", "--version", cwd=desk, **elsewhere)
    assert done.returncode == 0, done.stderr


def test_without_a_preset_and_without_valid_there_is_a_plan_and_nothing_is_left_behind(
    installed: Installed, desk: Path
) -> None:
    words = [*TRANSFER.split(), "--out", "out", "--dry-run"]
    done = installed.run("deftx", *words, cwd=desk, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    for step in ("ind", "min", "task"):
        assert step in done.stdout
    assert not (desk / "out").exists()
