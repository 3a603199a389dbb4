"""Fits that are stopped, killed, refused by another one at work, or meet a loss that is no
number."""

import os
import shlex
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from typed import FIT_LANGUAGE, LANGUAGE

import deftx
from deftx.experiments.demo.run import recipe as demo_recipe
from deftx.objectives import masked_lm
from deftx.storage.atomic_files import lock_directory
from deftx.training import resume

pytestmark = pytest.mark.once


def lines(err: str) -> list[str]:
    """The lines on standard error besides progress bars."""
    return [line for line in err.splitlines() if line.strip() and "━" not in line]


@pytest.mark.parametrize("phase", [1, 2])
def test_a_fit_that_is_stopped_after_a_checkpoint_says_from_which_step_it_resumes(
    here, home, run, monkeypatch, phase
):
    monkeypatch.setattr(resume, "SECONDS_BETWEEN", 0.0)
    monkeypatch.setattr(resume, "LARGEST_SHARE_OF_TIME", 1e9)
    save = resume.Checkpointer.save_if_due
    seen = []

    def stop_after_saving(self, step):
        save(self, step)
        if step == 1 and self.resume_point.path.name.startswith(f"phase{phase}"):
            seen.append(step)
            raise KeyboardInterrupt

    command = [*FIT_LANGUAGE[:-1], "training.min_steps=0"]
    with monkeypatch.context() as patch:
        patch.setattr(resume.Checkpointer, "save_if_due", stop_after_saving)
        stopped = run(*command)
    assert (stopped.code, seen) == (130, [1])
    assert lines(stopped.err)[0] == f"deftx: new: it will resume from step 1 of phase {phase}"
    assert run(*command).code == 0
    new, whole = deftx.load("new"), deftx.load(home / "min")
    assert all(
        torch.equal(entries.values, whole.tensors[name].values)
        for name, entries in new.tensors.items()
    )


def test_a_fit_that_was_stopped_goes_on_where_phase_1_ended(here, home, run, monkeypatch):
    train, titles = deftx.training.phases.train, []

    def stopping(*arguments, title, **options):
        titles.append(title)
        if len(titles) == 2:
            raise KeyboardInterrupt
        return train(*arguments, title=title, **options)

    monkeypatch.setattr("deftx.training.phases.train", stopping)
    command = [
        "fit",
        "language",
        "--base",
        "home/base",
        "--text",
        "home/min.txt",
        "--out",
        "a b",
        *LANGUAGE,
    ]
    stopped = run(*command)
    assert stopped.code == 130
    assert lines(stopped.err) == [
        "deftx: a b: it will resume from the end of phase 1",
        f"deftx: stopped; to go on, type: {shlex.join(['deftx', *command])}",
    ]
    assert sorted(os.listdir(here)) == ["a b.work", "home"]
    assert run(*command).code == 0
    assert titles == ["a b: phase 1", "a b: phase 2", "a b: phase 2"]
    assert sorted(os.listdir(here)) == ["a b", "home"]
    assert all(
        torch.equal(entries.values, deftx.load("a b").tensors[name].values)
        for name, entries in deftx.load(home / "min").tensors.items()
    )


def test_what_other_settings_left_is_not_named_as_where_a_fit_resumes(here, home, run, monkeypatch):
    train, titles = deftx.training.phases.train, []

    def stopping(*arguments, title, **options):
        titles.append(title)
        if len(titles) in (2, 3):  # phase 2 of the first run, phase 1 of the second
            raise KeyboardInterrupt
        return train(*arguments, title=title, **options)

    monkeypatch.setattr("deftx.training.phases.train", stopping)
    command = ["fit", "language", "--base", "home/base", "--text", "home/min.txt", "--out", "new"]
    command += LANGUAGE
    assert lines(run(*command).err)[0] == "deftx: new: it will resume from the end of phase 1"
    other = [*command, "--set", "training.learning_rate=0.5"]
    said = lines(run(*other).err)
    assert said[0] == "deftx: new: stopped before the first checkpoint, so nothing was kept"
    assert titles == ["new: phase 1", "new: phase 2", "new: phase 1"]

    # the first settings find theirs
    assert run(*command).code == 0
    assert titles[3:] == ["new: phase 2"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_with_what_to_type_and_leaves_the_handler_as_it_was(
    here, run, monkeypatch, number, code
):
    before = signal.getsignal(signal.SIGTERM)
    interrupt = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # ignored where the tests are in the background
    monkeypatch.setattr(
        "deftx.training.phases.train",
        lambda *args, **options: os.kill(os.getpid(), number) or time.sleep(9),
    )
    command = [
        "fit",
        "language",
        "--base",
        "home/base",
        "--text",
        "home/min.txt",
        "--out",
        "min",
        *LANGUAGE,
    ]
    stopped = run(*command)
    assert stopped.code == code
    assert lines(stopped.err) == [
        "deftx: min: stopped before the first checkpoint, so nothing was kept",
        f"deftx: stopped; to go on, type: {shlex.join(['deftx', *command])}",
    ]
    signal.signal(signal.SIGINT, interrupt)
    assert signal.getsignal(signal.SIGTERM) == before
    assert os.listdir(here) == ["home"]


def test_the_second_of_two_processes_on_one_folder_is_refused(here, run, monkeypatch):
    monkeypatch.setattr("deftx.experiments.run.read", lambda recipe: pytest.fail("begun"))
    recipe = {
        "base": "home/base",
        "source": "ind",
        "languages": {"ind": "home/ind.txt"},
        "variants": {"V": {}},
    }
    recipe |= {
        "train": "home/train.tsv",
        "valid": "home/valid.tsv",
        "test": {"ind": "home/test.tsv"},
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    Path("demo").mkdir()
    Path("demo/recipe.yaml").write_text(yaml.safe_dump(demo_recipe(0), sort_keys=False))
    data = ["--base", "home/base", "--text", "home/min.txt"]
    commands = {
        "min.work": ["fit", "language", *data, "--out", "min", *LANGUAGE],
        "runs": ["run", "recipe.yaml", "--out", "runs"],
        "demo": ["demo", "--out", "demo"],
    }
    for folder, command in commands.items():
        with lock_directory(Path(folder)):
            refused = run(*command)
        assert refused.code == 2
        assert f"{folder} is in use by another deftx" in refused.complaint
    assert not Path("min.work").exists()
    assert run(*commands["min.work"]).code == 0


def test_a_fit_that_was_killed_after_its_vector_was_saved_is_done(here, home, run):
    command = [
        "fit",
        "language",
        "--base",
        "home/base",
        "--text",
        "home/min.txt",
        "--out",
        "min",
        *LANGUAGE,
    ]
    first = run(*command)
    assert first.code == 0
    assert run(*command).code == 2
    Path("min.work").mkdir()
    Path("min.work/.lock").write_text("saving")
    again = run(*command)
    assert (again.code, again.out) == (0, first.out)
    assert sorted(os.listdir(here)) == ["home", "min"]


COMPLAINTS = {  # one service is unknown, one is not installed
    "nonsense": "unknown training.report_to 'nonsense'; known: aim, clearml,",
    "clearml": "training.report_to = clearml: cannot start it: ",
}


@pytest.mark.parametrize("service", COMPLAINTS)
def test_a_service_to_report_to_that_is_not_there_is_one_line_before_any_step(here, run, service):
    fit = [
        "fit",
        "language",
        "--base",
        "home/base",
        "--text",
        "home/ind.txt",
        *LANGUAGE,
        "--out",
        "new",
    ]
    done = run(*fit, "--set", f"training.report_to=[{service}]")
    assert done.code == 2
    bar, complaint = done.err.strip().splitlines()
    assert " 0/2 " in bar
    assert complaint.startswith(f"deftx: {COMPLAINTS[service]}")


def test_a_loss_that_is_no_number_stops_and_names_the_step(here, run):
    command = [
        "fit",
        "language",
        "--base",
        "home/base",
        "--text",
        "home/min.txt",
        "--out",
        "min",
        *LANGUAGE,
    ]
    done = run(*command, "--set", "training.learning_rate=1e30")
    assert done.code == 2
    assert done.complaint.startswith("deftx: min: phase 1: the ")
    assert "step 1" in done.complaint
    assert "learning rate" in done.complaint
    assert os.listdir(here) == ["home"]


@pytest.mark.parametrize(("bad", "phase"), [(2, 1), (4, 2)])
def test_the_last_good_state_is_kept_when_the_loss_is_no_number(here, run, monkeypatch, bad, phase):
    loss, seen = masked_lm.MaskedLM.loss, []

    def poisoned(self, model, batch):
        seen.append(None)
        return loss(self, model, batch) * (float("nan") if len(seen) == bad else 1.0)

    command = [
        "fit",
        "language",
        "--base",
        "home/base",
        "--text",
        "home/min.txt",
        "--out",
        "min",
        *LANGUAGE,
    ]
    with monkeypatch.context() as patch:
        patch.setattr(masked_lm.MaskedLM, "loss", poisoned)
        done = run(*command)
    assert done.code == 2
    assert (
        f"phase {phase}: the loss became nan at step 2; the state of step 1 is kept"
        in done.complaint
    )
    assert "min.work/last-good.safetensors" in done.complaint
    learnt = load_file("min.work/last-good.safetensors")
    assert all(tensor.isfinite().all() for tensor in learnt.values())
    changed = sum(int((tensor != 0).sum()) for tensor in learnt.values())
    tunable = sum(tensor.numel() for tensor in learnt.values())
    assert changed > 0
    assert phase == 1 or changed <= round(0.05 * tunable)
    assert not Path("min").exists()
    assert run(*command).code == 0
    assert not Path("min.work").exists()
