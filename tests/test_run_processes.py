"""A run in several processes, some of them killed, broken or at a step that another one wants."""

import json
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest
from tiny_run import recipe, same, write_recipe

from deftx.errors import DeftxError
from deftx.experiments import executors, steps
from deftx.experiments.executors import processes
from deftx.experiments.plan import Step
from deftx.experiments.run import Score, prepare, run_recipe
from deftx.experiments.store import Store
from deftx.storage.atomic_files import lock_directory

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="module")
def found(folder: Path) -> list[Score]:
    return run_recipe(recipe(folder), folder / "out")


def test_what_is_for_ray_is_refused_without_it() -> None:
    for address, cpus in (("auto", None), (None, 2.0)):
        with pytest.raises(DeftxError, match="are for Ray: add --executor ray"):
            executors.named("local", 1, address, {"num_cpus": cpus, "num_gpus": None})


def test_several_processes_find_what_one_finds(found: list[Score], folder: Path) -> None:
    def pair(store: Store):
        return processes(store, 2)

    others = run_recipe(recipe(folder), folder / "parallel", folder / "store2", pair, 2)
    assert others == found
    for step in (folder / "store" / "steps").glob("vector-*"):
        other = folder / "store2" / "steps" / step.name / "vector"
        assert not other.exists() or same(step / "vector", other)
    assert not list((folder / "store2" / "work").iterdir())


def test_a_run_that_is_killed_goes_on_and_finds_the_same(found, folder, tmp_path) -> None:
    command = [
        sys.executable,
        "-m",
        "deftx",
        "run",
        str(folder / "recipe.yaml"),
        "--out",
        str(tmp_path / "run"),
    ]
    for wanted in (1, 6, 12):  # killed when so many steps are there
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as child:
            while len(list(tmp_path.glob("store/steps/[!.]*"))) < wanted:
                assert child.poll() is None, "ended before it was killed"
                time.sleep(0.02)
            child.send_signal(signal.SIGKILL)
    assert len(list(tmp_path.glob("store/steps/[!.]*"))) < 20
    assert run_recipe(recipe(folder), tmp_path / "run") == found
    assert not list(tmp_path.glob("store/work/*"))
    assert not list(tmp_path.glob("store/steps/.*"))


def test_children_end_with_the_process_that_started_them(folder, tmp_path) -> None:
    command = [
        sys.executable,
        "-m",
        "deftx",
        "run",
        str(folder / "recipe.yaml"),
        "--jobs",
        "2",
        "--set",
    ]
    command += ["language.training.max_steps=100000", "--out", str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as parent:
        while not list(tmp_path.glob("store/work/*/log.txt")):
            assert parent.poll() is None, "ended before it was killed"
            time.sleep(0.05)
        parent.send_signal(signal.SIGKILL)
    for checkpoint_dir in tmp_path.glob("store/work/*"):
        for _ in range(100):
            try:
                with lock_directory(checkpoint_dir):
                    break
            except DeftxError:
                time.sleep(0.1)
        else:
            pytest.fail(f"{checkpoint_dir} is still in use")


def test_a_step_that_another_process_is_at_comes_after_the_others_and_is_waited_for(
    folder, tmp_path, monkeypatch
):
    run = prepare(recipe(folder, {"ngrams": True, "variants": {"LT-SFT": {}}}), tmp_path / "store")
    first, second = (step for step in run.plan.steps.values() if step.kind == "ngrams")
    heard: list[tuple[str, str]] = []
    busy, pauses = lock_directory(run.store.checkpoint_dir(first.id)), [0.0]
    busy.__enter__()

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 5:
            busy.__exit__(None, None, None)

    monkeypatch.setattr(executors.time, "sleep", sleep)
    monkeypatch.setattr(executors.time, "monotonic", lambda: sum(pauses))
    with executors.here(run.store) as submit:
        only = replace(run.plan, steps={step.id: step for step in (first, second)})
        executors.work_off(
            only, run.store, submit, 1, lambda step, became: heard.append((step.id, became))
        )
    assert heard == [
        (first.id, "begun"),
        (first.id, "in use"),
        (second.id, "begun"),
        (second.id, "done"),
        (first.id, "done"),
    ]


def test_while_other_steps_run_one_that_another_process_is_at_is_not_asked_for_without_pause(
    folder, tmp_path, monkeypatch
):
    run = prepare(recipe(folder, {"ngrams": True, "variants": {"LT-SFT": {}}}), tmp_path / "store")
    first, second = (step for step in run.plan.steps.values() if step.kind == "ngrams")
    monkeypatch.setattr(executors, "PAUSE", 0.2)
    asked: list[str] = []
    ended = Event()

    def slow(step: Step):
        asked.append(step.id)
        if step is second:
            ended.wait(60)
        return steps.attempt(run.store, step)

    with ThreadPoolExecutor(3) as pool:
        with lock_directory(run.store.checkpoint_dir(first.id)):
            only = replace(run.plan, steps={second.id: second, first.id: first})
            done = pool.submit(
                executors.work_off,
                only,
                run.store,
                lambda step: pool.submit(slow, step),
                2,
                lambda *_: None,
            )
            begun = time.monotonic()
            while asked.count(first.id) < 3:
                assert time.monotonic() < begun + 60
                time.sleep(0.01)
            assert asked.count(first.id) <= 2 + (time.monotonic() - begun) / 0.2
            ended.set()
        done.result(timeout=60)
    assert run.store.done(first.id)


def test_a_step_that_fails_stops_only_what_needs_it(folder, tmp_path, monkeypatch) -> None:
    def broken(store, step, checkpoint_dir, folder):
        raise DeftxError("no luck")

    def vector(store, step, checkpoint_dir, folder, make=steps.KINDS["vector"]):
        (broken if "LT-SFT" in step.title and step.spec["what"] == "task" else make)(
            store, step, checkpoint_dir, folder
        )

    monkeypatch.setitem(steps.KINDS, "vector", vector)
    with pytest.raises(
        DeftxError, match=r"LT-SFT, seed 0: task \(vector\): no luck; 2 more steps are not done"
    ):
        run_recipe(recipe(folder), tmp_path / "run")
    rows = [
        json.loads(row) for row in (tmp_path / "run" / "results.jsonl").read_text().splitlines()
    ]
    assert {row["variant"] for row in rows} == {"none", "DeFT-X", "character n-grams"}
    assert "| LT-SFT |" not in (tmp_path / "run" / "results.md").read_text()


def test_a_process_that_ends_by_itself_is_a_failed_step(folder, tmp_path) -> None:
    run = prepare(recipe(folder), tmp_path / "store")
    step = next(
        step for step in run.plan.steps.values() if step.kind == "score"
    )  # its inputs are not there
    with processes(run.store, 1) as submit:
        became, why = submit(step).result()
    assert became == "failed"
    assert "there is no vector" in why
