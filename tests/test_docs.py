"""Every command and every snippet of the README and of docs/ is run, with a tiny stand-in for the
base.

A block that cannot be run here has a line before it, `<!-- not run: why -->`. Its commands must
exist all the same, with all their options, and its Python must be Python.
"""

import json
import re
import shutil
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import typer
from doc_blocks import BASE, ROOT, blocks, write_own_files
from hub_server import Hub
from synthetic_run import make_run
from tiny import save_base, sentences
from transformers import AutoModelForMaskedLM
from typer.exceptions import TyperException

import deftx
from deftx.cli import app, main
from deftx.experiments.recipe import load_recipe

pytestmark = pytest.mark.once


PAGES = ["README.md", *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md")))]
# Two steps instead of the presets' thousands: what else a command says holds as it is written.
SHORT = ["max_steps=2", "min_steps=0", "evaluate_every=1"]
SHORT_FIT = [f"training.{setting}" for setting in SHORT]
SHORT_TRANSFER = [
    f"{what}.training.{setting}" for what in ("language", "task") for setting in SHORT
]


WITH_BLOCKS = [page for page in PAGES if blocks(page)]


def exit_code(command: list[str]) -> int:
    with pytest.raises(SystemExit) as end:
        main(command[1:])
    return int(end.value.code or 0)


def shortened(command: list[str]) -> list[str]:
    settings = {"fit": SHORT_FIT, "transfer": SHORT_TRANSFER}.get(command[1], [])
    return [*command, *(part for setting in settings for part in ("--set", setting))]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the pages speak of and what their fits make."""
    folder = write_own_files(tmp_path_factory.mktemp("docs"))
    save_base(folder / "google/mt5-base", "mt5")
    for name in ["train", "valid", "test"]:
        words = [text.split() for text in sentences(20, len(name))]
        tagged = ["".join(f"{word}\t{word[-1].upper()}\n" for word in row) for row in words]
        (folder / f"pos-{name}.tsv").write_text("\n".join(tagged))
    # A comparison that would take hours
    variants = {"DeFT-X": {"language": {"rank": "90%"}, "task": {"rank": "90%"}}}
    make_run(folder / "runs" / "nusax", variants, seeds=(0,), examples=20, deltas=False)
    (folder / "words.tsv").write_text("ba\nbe\n\nbi\n")
    asked = [
        {"question": text[:2], "context": text, "answers": text[3:5]} for text in sentences(20)
    ]
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, asked)))
    finetuned, layer = (
        AutoModelForMaskedLM.from_pretrained(folder / BASE),
        "roberta.encoder.layer.0.output.dense",
    )
    coded = {"size": torch.Size([16]), "index_steps": [1, 2], "values": torch.ones(2)}
    torch.save({"diffs": {f"{layer}.bias": coded}, "abs": {}}, folder / "pytorch_diff.bin")
    with torch.no_grad():
        finetuned.get_parameter(f"{layer}.weight")[0].add_(1)
    finetuned.save_pretrained(folder / "models" / "finetuned")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in [
            "language --text ind.txt --out vectors/ind",
            "language --text min.txt --out vectors/min",
        ]:
            assert exit_code(shortened(["deftx", "fit", *command.split(), "--base", BASE])) == 0
        task = (
            "task --train train.tsv --valid valid.tsv --source vectors/ind --out vectors/sentiment"
        )
        assert exit_code(shortened(["deftx", "fit", *task.split(), "--base", BASE])) == 0
    return folder


def run(command: list[str], *, short: bool) -> None:
    """Carry out a command of the page in the current folder, or check what would take too long."""
    if command[0] != "deftx" or command[1] == "demo":
        return  # checked by `test_every_command_and_every_option_exists`
    if command[1] == "run":
        load_recipe(ROOT / command[2])
        return
    for flag, out in pairwise(command):
        if flag == "--out":  # it may stand there from the preparation
            shutil.rmtree(out, ignore_errors=True)
    assert exit_code(shortened(command) if short else command) == 0, command


def run_page(page: str, *, short: bool) -> dict[str, object]:
    finetuned = AutoModelForMaskedLM.from_pretrained(BASE)
    with torch.no_grad():
        for parameter in finetuned.parameters():
            parameter.add_(torch.randn_like(parameter) / 100)
    scope: dict[str, object] = {"torch": torch, "deftx": deftx, "finetuned": finetuned}
    for block in blocks(page):
        if block.reason is None:
            for command in block.commands:
                run(command, short=short)
            if block.language == "python":
                exec(compile(block.code, page, "exec"), scope)
    return scope


@pytest.fixture
def here(prepared: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with all that the pages speak of; a stand-in for the hub knows the
    user."""
    monkeypatch.setattr(hub, "tokens", {"hf_you": "you"})
    monkeypatch.setenv("HF_TOKEN", "hf_you")
    folder = tmp_path / "here"
    shutil.copytree(prepared, folder)
    monkeypatch.chdir(folder)
    return folder


# The stand-in's tokenizer knows made-up syllables only: deftx warns of every real word of a page.
@pytest.mark.filterwarnings("ignore:.* of the text is unknown to the base's tokenizer")
@pytest.mark.parametrize("page", WITH_BLOCKS)
def test_a_page_runs_from_its_top_to_its_end(page: str, here: Path) -> None:
    run_page(page, short=True)


def test_the_readme_has_the_one_command_and_is_short() -> None:
    names = []
    for block in blocks("README.md"):
        names += [command[1] for command in block.commands if command[0] == "deftx"]
    assert names == ["transfer", "transfer", "predict", "transfer"]
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def check_deftx(words: list[str]) -> None:
    """Raise what the command line would say of these words, without carrying them out."""
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        name, *words = words
        assert name in command.commands, f"there is no command {name!r}"
        command = command.commands[name]
    command.make_context(command.name, list(words))


def check_make(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in [word for word in words if "=" not in word]:
        assert re.search(rf"^{re.escape(target)}:", makefile, flags=re.MULTILINE), (
            f"there is no target {target!r}"
        )


def check_python(words: list[str]) -> None:
    """Installing, with extras that there are."""
    assert words[:3] == ["-m", "pip", "install"]
    check_extras(words)


def check_uv(words: list[str]) -> None:
    """An environment of uv, or installing into it."""
    if words != ["venv"]:
        assert words[:2] == ["pip", "install"]
        check_extras(words)


def check_extras(words: list[str]) -> None:
    """Raise AssertionError for an extra that there is not."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]
    asked = re.findall(r"\[([\w,]+)\]", " ".join(words))
    assert {extra for names in asked for extra in names.split(",")} <= extras.keys()


CHECKS = {"deftx": check_deftx, "make": check_make, "python": check_python, "uv": check_uv}


@pytest.mark.parametrize("page", WITH_BLOCKS)
def test_every_command_and_every_option_exists(page: str) -> None:
    for block in blocks(page):
        for program, *words in block.commands:
            assert program in CHECKS, f"{program}: say in CHECKS how to check it"
            CHECKS[program](words)


@pytest.mark.parametrize(
    "words", ["fit language --bse x", "fit nothing", "compose --base b --task t", "nothing"]
)
def test_a_command_that_is_not_there_is_found(words: str) -> None:
    with pytest.raises((AssertionError, TyperException)):
        check_deftx(words.split())


@pytest.mark.parametrize("page", WITH_BLOCKS)
def test_every_public_name_in_a_snippet_exists(page: str) -> None:
    for block in blocks(page):
        if block.language == "python":
            compile(block.code, page, "exec")
            names = set(re.findall(r"\bdeftx\.(\w+)", block.code))
            assert names <= {*deftx.__all__}, names


def test_every_public_name_is_in_the_reference() -> None:
    described = re.findall(
        r"^\.\. auto\w+:: deftx\.(\w+)$", (ROOT / "docs/api.md").read_text(), flags=re.MULTILINE
    )
    assert sorted(described) == sorted(deftx.__all__)


@pytest.mark.parametrize("page", PAGES)
def test_every_link_to_a_file_leads_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = [
        target.split("#")[0]
        for target in re.findall(r"\]\(([^)\s]+)\)", text)
        if "://" not in target
    ]
    assert [target for target in targets if not ((ROOT / page).parent / target).exists()] == []
