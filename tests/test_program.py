"""The program `deftx` in a process of its own, its settings and its help."""

import re
import subprocess
import sys
from importlib.metadata import entry_points

import pytest
from typed import QUICK

import deftx
from deftx.cli import arguments
from deftx.config import LANGUAGE_PRESETS, LanguageVectorConfig
from deftx.messages import program_name


def test_later_settings_win_and_a_preset_comes_first():
    flags = {"k": "5%", "rank": "100", "method": None}
    changes = ["k=3", "training.batch_size=4", "training.report_to=[wandb]"]
    chosen = arguments.settings_from(
        LanguageVectorConfig(), LANGUAGE_PRESETS, "quick", flags, changes
    )
    quick = LANGUAGE_PRESETS["quick"]
    training = quick.training.model_copy(update={"batch_size": 4, "report_to": ("wandb",)})
    assert chosen == quick.model_copy(update={"k": 3, "rank": 100, "training": training})
    assert (
        arguments.settings_from(LanguageVectorConfig(), LANGUAGE_PRESETS, None, {}, [])
        == LanguageVectorConfig()
    )


def program(*arguments: object) -> subprocess.CompletedProcess[str]:
    typed = [sys.executable, *map(str, arguments)]
    return subprocess.run(typed, capture_output=True, text=True, check=False, timeout=120)


def test_importing_deftx_or_its_command_imports_nothing_heavy():
    heavy = "torch transformers pydantic numpy pandas sklearn matplotlib yaml safetensors".split()
    code = f"import sys, deftx, deftx.cli; print([name for name in {heavy} if name in sys.modules])"
    assert program("-c", code).stdout == "[]\n"


def test_the_program_keeps_results_and_news_apart(home, tmp_path):
    task = ["--base", home / "base", "--train", home / "train.tsv", "--valid", home / "valid.tsv"]
    done = program("-m", "deftx", "fit", "task", *task, "--out", tmp_path / "task", *QUICK)
    assert done.returncode == 0
    alone = "; without --source, so trained on the base alone"
    assert re.fullmatch(
        rf".*task: task vector, k = 278, held-out macro-F1 .*0\.\d+ after phase 2{alone}\n",
        done.stdout,
    )
    news = [line for line in done.stderr.splitlines() if line]
    assert all("━" in line or line.startswith("deftx: ") for line in news), done.stderr


def test_the_program_refuses_with_one_line_and_code_2(home):
    done = program("-m", "deftx", "inspect", home / "min", home)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(
        r"deftx: .* is not a vector: it has no vector\.json; in it are .*\n", done.stderr
    )


def test_the_command_is_installed_under_its_name(run):
    (script,) = entry_points(group="console_scripts", name="deftx")
    assert script.value == "deftx.cli:main"
    assert run("--version").out == f"{deftx.__version__}\n"


@pytest.mark.parametrize(
    "name",
    [
        *[
            "fit language",
            "fit task",
            "extend",
            "compose",
            "evaluate",
            "predict",
            "inspect",
            "push",
            "pull",
            "convert",
            "extract",
        ],
        *["data trim", "demo", "report", "run", "runs", "prune", "serve", "doctor"],
    ],
)
def test_every_command_explains_itself_with_an_example(run, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "200")
    done = run(*name.split(), "--help")
    assert done.code == 0
    assert f"Example: deftx {name} " in done.out


def test_what_to_type_is_the_name_or_the_path_of_the_program(tmp_path, monkeypatch):
    folder = tmp_path / "my env" / "bin"
    folder.mkdir(parents=True)
    program = folder / "deftx"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [str(program)])
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert program_name() == "'my env/bin/deftx'"
    monkeypatch.setenv("PATH", str(folder))
    assert program_name() == "deftx"
    monkeypatch.setattr("sys.argv", ["-m"])
    assert program_name() == "deftx"
    # `python -m deftx`
    monkeypatch.setattr("sys.argv", [str(folder.parent / "lib" / "deftx" / "__main__.py")])
    monkeypatch.setattr("sys.executable", str(folder / "python"))
    assert program_name() == "deftx"
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert program_name() == f"'{folder / 'python'}' -m deftx"
