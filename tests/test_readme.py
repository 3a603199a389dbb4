"""Every command and every snippet of the README is run, with a tiny stand-in for the base."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_server import serving
from tiny import save_base, sentences
from transformers import AutoModelForMaskedLM

import deftx

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands(program: str) -> list[list[str]]:
    lines = [line.split("#")[0].split() for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line and line[0] == program]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the README speaks of; the base is a tiny one under its name."""
    folder = tmp_path_factory.mktemp("readme")
    save_base(folder / "FacebookAI" / "xlm-roberta-base")
    for number, name in enumerate(["ind", "min"]):
        (folder / f"{name}.txt").write_text("\n".join(sentences(60, number)))
    for number, name in enumerate(["train", "valid", "test"]):
        rows = [f"{text}\t{'positive' if text[-1] in 'ei' else 'negative'}" for text in sentences(60, number)]
        (folder / f"{name}.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n")
    model = AutoModelForMaskedLM.from_pretrained(folder / "FacebookAI" / "xlm-roberta-base")
    bias = "roberta.encoder.layer.0.output.dense.bias"
    coded = {"size": torch.Size([16]), "index_steps": [1, 2], "values": torch.ones(2)}
    torch.save({"diffs": {bias: coded}, "abs": {}}, folder / "pytorch_diff.bin")
    with torch.no_grad():
        model.get_parameter(bias).add_(1)
    model.save_pretrained(folder / "models" / "finetuned")
    return folder


def deftx_program(arguments: list[str], folder: Path, settings: dict[str, str]) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "deftx.cli", *arguments[1:]]
    return subprocess.run(program, cwd=folder, env=os.environ | settings, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_first_real_use_runs_as_it_is_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = [command for command in commands("deftx") if command[1] != "run"]
    first = ["fit", "fit", "fit", "compose", "evaluate", "evaluate", "inspect"]
    beside = ["convert", "convert", "convert", "delta"]
    assert [command[1] for command in typed] == [*first, "push", "pull", "inspect", *beside, "data"]
    with serving({"hf_you": "you"}) as hub:  # by the settings that a user has, in programs of their own
        settings = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_you", "HF_HOME": str(folder / "home")}
        settings |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        for command in typed:
            done = deftx_program(command, folder, settings)
            assert done.returncode == 0, (command, done.stderr)
    assert deftx.load(folder / "vectors" / "from-the-hub").k == deftx.load(folder / "vectors" / "min").k
    assert list((folder / "home" / "hub").glob("models--you--xlmr-min/snapshots/*/vector.json"))
    monkeypatch.chdir(folder)
    use, library, loop = blocks("python")
    scope: dict[str, object] = {"torch": torch}
    exec(use, scope)
    exec(library, scope)
    finetuned = AutoModelForMaskedLM.from_pretrained("FacebookAI/xlm-roberta-base")
    with torch.no_grad():
        for parameter in finetuned.parameters():
            parameter.add_(torch.randn_like(parameter) / 100)
    scope |= {"finetuned": finetuned, "deftx": deftx}
    exec(loop, scope)
    assert isinstance(scope["vector"], deftx.SparseVector)


def test_make_has_the_targets_that_the_readme_names() -> None:
    assert [command[1] for command in commands("make")] == ["demo", "test"]
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    for command in commands("make"):
        subprocess.run([command[0], "--dry-run", command[1]], cwd=ROOT, check=True, capture_output=True)


def test_the_recipes_that_the_readme_runs_are_valid() -> None:
    from deftx.experiments.recipe import load_recipe

    runs = [command for command in commands("deftx") if command[1] == "run"]
    assert runs
    for command in runs:
        load_recipe(ROOT / command[2])


def test_every_link_to_a_file_leads_somewhere() -> None:
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", README) if "://" not in target]
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []
