"""What is still to be learnt will take: sizes are what they turn out to be, and time goes with
steps."""

import json
from dataclasses import replace
from math import ceil
from pathlib import Path

import pytest
import torch
from tiny import save_base, sentences
from tiny_run import labelled, recipe, write_recipe
from typed import LANGUAGE, QUICK

import deftx
from deftx.config import LanguageTrainingConfig, LanguageVectorConfig, TaskVectorConfig, changed
from deftx.core.parameters import parameter_groups
from deftx.experiments import estimate
from deftx.experiments.estimate import (
    Speed,
    blocks_of,
    estimate_language,
    estimate_steps,
    estimate_task,
    language_speed,
    phase1_numbers,
    seconds_by_cost,
)
from deftx.experiments.run import prepare, run_recipe
from deftx.models.loading import load_language_model
from deftx.models.tokenizers import load_tokenizer
from deftx.objectives.masked_lm import masked_lm

pytestmark = pytest.mark.once


SPEED = Speed(step=2.0, example=0.5, parameters=1000, moved=100, batch=7, length=16)
QUICK_LANGUAGE = LanguageVectorConfig(
    k=40, training=LanguageTrainingConfig(max_steps=20, length=16, batch_size=4, evaluate_every=7)
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_base(tmp_path_factory.mktemp("estimate") / "base"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is timed, in the place of timing it: everything is as fast as SPEED."""
    seen: list[str] = []

    def as_fast(start, training, length):
        seen.append(start.origin.kind)
        return replace(SPEED, length=length)

    monkeypatch.setattr(estimate, "_timed", as_fast)
    return seen


def test_time_is_that_of_the_steps_and_the_evaluations() -> None:
    training = LanguageTrainingConfig(max_steps=20, evaluate_every=7)
    assert SPEED.seconds(1000, 10, training) == 20 * 2.0 + (1 + 3) * 10 * 0.5
    assert SPEED.memory == 4 * phase1_numbers(1000, 100) + 7 == 4 * 1600 + 7


@pytest.mark.parametrize("most", [None, 3])
def test_blocks_are_about_as_many_as_a_training_has(base: str, most: int | None) -> None:
    lines, training = sentences(3000), LanguageTrainingConfig(held_out_blocks=most)
    objective = masked_lm(lines, load_tokenizer(base), training, 16, 0)
    train, held_out = blocks_of(load_tokenizer(base), lines, training, 16)
    assert train == pytest.approx(len(objective.train), rel=0.1)
    assert held_out == pytest.approx(len(objective.held_out[0]), rel=0.2)


def test_a_text_of_two_words_has_a_block_of_each_kind(base: str) -> None:
    assert blocks_of(load_tokenizer(base), ["ba", "be"], LanguageTrainingConfig(), 256) == (1, 1)


def test_a_language_is_timed_once_for_both_phases(base: str, timed: list[str]) -> None:
    lines = sentences(300)
    found = estimate_language(base, lines, QUICK_LANGUAGE)
    _, held_out = blocks_of(load_tokenizer(base), lines, QUICK_LANGUAGE.training, 16)
    once = 20 * 2.0 + (1 + 3) * held_out * 0.5
    assert (found.seconds, timed) == (2 * once, ["language"])
    assert (
        estimate_language(base, lines, changed(QUICK_LANGUAGE, {"phase2": False})).seconds == once
    )
    assert (
        estimate_language(base, lines, changed(QUICK_LANGUAGE, {"rank": "split-half"})).seconds
        == 3 * once
    )
    one_training = estimate_language(base, lines, changed(QUICK_LANGUAGE, {"method": "pafi"}))
    assert one_training.seconds == once
    assert one_training.memory == 4 * (1000 + 100 + 20 * 40) + 7
    spiel = estimate_language(base, lines, changed(QUICK_LANGUAGE, {"method": "spiel-ag"}))
    assert spiel.memory == 4 * (1000 + 100 + 50 * 40) + 7
    assert one_training.disk_state == 4 * 12 * 40
    assert found.memory == SPEED.memory
    assert found.disk == int(4.2 * 40)
    assert found.disk_state == 5 * 4 * 100


def test_a_task_is_timed_on_its_examples(base: str, timed: list[str], tmp_path: Path) -> None:
    labelled(tmp_path / "rows.tsv", 0, count=80)
    rows = deftx.read_examples(tmp_path / "rows.tsv")
    settings = changed(TaskVectorConfig(), {"training": {"epochs": 2, "evaluate_every": 4}})
    found = estimate_task(base, rows, rows.at(range(10)), settings)
    assert (found.seconds, timed) == (2 * (10 * 2.0 + (1 + 3) * 10 * 0.5), ["task"])


def test_what_is_timed_is_a_real_training_that_changes_nothing(base: str) -> None:
    state = torch.get_rng_state()
    speed = language_speed(base, sentences(100), QUICK_LANGUAGE)
    assert torch.equal(torch.get_rng_state(), state)
    model = load_language_model(base)
    assert speed.parameters == sum(weight.numel() for weight in model.parameters())
    assert speed.moved == parameter_groups(model).trainable_size
    assert 0 < speed.example < speed.step < 5
    assert speed.batch > 50e6  # Python and torch alone
    assert speed.length == 16


def test_twice_the_batch_takes_longer(base: str) -> None:
    """Timing is of the settings that are asked for: 64 times the work cannot be as fast."""
    lines = sentences(500)
    small = changed(QUICK_LANGUAGE, {"training": {"batch_size": 1}})
    large = changed(QUICK_LANGUAGE, {"training": {"batch_size": 64}})
    summed = changed(QUICK_LANGUAGE, {"training": {"batch_size": 1, "accumulate": 64}})
    speed = language_speed(base, lines, small).step
    assert language_speed(base, lines, large).step > speed
    assert language_speed(base, lines, summed).step > 4 * speed


def test_steps_of_a_run_that_are_alike_are_timed_once_and_disk_is_what_stays(
    folder: Path, tmp_path: Path, timed: list[str]
) -> None:
    run = prepare(recipe(folder), tmp_path / "store")
    found = estimate_steps(run.remaining(), run.store)
    assert sorted(timed) == ["language", "task"]
    kinds = [step.kind for step in run.remaining()]
    vectors = sum(step.settings.k == "5%" for step in run.remaining() if step.kind == "vector")
    assert vectors == kinds.count("vector")
    assert found.disk == kinds.count("delta") * 4 * 100 + vectors * int(4.2 * 5)
    assert found.disk_state == 4 * 4 * 100
    trainings = [step for step in run.remaining() if step.kind in ("delta", "vector")]
    assert found.seconds > sum(ceil(step.settings.training.max_steps * 2.0) for step in trainings)
    half = prepare(recipe(folder, {"variants": {"LT-SFT": {"target": False}}}), tmp_path / "store")
    assert estimate_steps(half.remaining(), half.store).seconds < found.seconds


def test_what_the_store_has_seen_goes_by_what_it_took_and_what_is_done_takes_nothing(
    folder: Path, tmp_path: Path, timed: list[str]
) -> None:
    run_recipe(recipe(folder), tmp_path / "out")
    run = prepare(recipe(folder, {"seeds": [0, 1]}), tmp_path / "store")
    rates = seconds_by_cost(run.store)
    expected = sum(
        step.cost * rates[estimate.alike(step.kind, step.spec)] for step in run.remaining()
    )
    assert estimate_steps(run.remaining(), run.store).seconds == pytest.approx(expected)
    done = prepare(recipe(folder), tmp_path / "store")
    assert done.remaining() == []
    assert estimate_steps(done.remaining(), done.store) == estimate.Estimate(0, 0, 0, 0)


def test_baselines_and_halves_are_estimated_too(
    folder: Path, tmp_path: Path, timed: list[str]
) -> None:
    variants = {
        "lora": {"family": "lora"},
        "madx": {"family": "madx"},
        "DeFT-X": {"language": {"rank": "split-half"}},
    }
    run = prepare(recipe(folder, {"variants": variants}), tmp_path / "store")
    kinds = {step.kind for step in run.remaining()}
    assert {"adapter", "delta"} < kinds
    assert any(step.spec.get("half") for step in run.remaining())
    assert estimate_steps(run.remaining(), run.store).seconds > 0


@pytest.mark.parametrize(
    "command",
    [
        [
            "fit",
            "language",
            "--base",
            "home/base",
            "--text",
            "home/min.txt",
            "--out",
            "new",
            *LANGUAGE,
        ],
        ["fit", "task", "--base", "home/base", "--train", "home/train.tsv", "--out", "new", *QUICK],
    ],
    ids=["language", "task"],
)
def test_a_dry_run_of_a_fit_says_what_it_takes_and_writes_nothing(
    here: Path, run, command: list[str]
) -> None:
    done = run(*command, "--dry-run")
    assert done.code == 0
    lines = dict(line.split(": about ") for line in done.out.splitlines())
    assert lines.keys() == {"time", "memory", "disk"}
    assert lines["time"].startswith(("0 s", "1 s", "2 s", "3 s"))
    assert [path.name for path in here.iterdir()] == ["home"]


def test_too_little_memory_and_disk_are_said(
    here: Path, run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "free_memory", lambda: 1000)
    monkeypatch.setattr(estimate, "free_disk", lambda folder: 1000)
    done = run(
        "fit",
        "language",
        "--base",
        "home/base",
        "--text",
        "home/min.txt",
        "--out",
        "x",
        *LANGUAGE,
        "--dry-run",
    )
    assert "more memory than is free: lower training.batch_size" in done.out
    assert "more than the disk has free" in done.out


def test_a_plan_as_json_has_the_estimate(
    folder: Path, tmp_path: Path, run, timed: list[str]
) -> None:
    done = run("run", folder / "recipe.yaml", "--store", tmp_path / "store", "--dry-run", "--json")
    assert json.loads(done.out)["left"]["memory"] == SPEED.memory


def test_free_room_is_told_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert estimate.free_disk(tmp_path / "a" / "b") == pytest.approx(
        estimate.free_disk(tmp_path), rel=0.1
    )
    memory = estimate.free_memory()
    assert memory is None or memory > 1e6
