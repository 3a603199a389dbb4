"""What runs leave: their list, their room, what can go, how long more of the same will take."""

import errno
import itertools
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from killed import fatal_operations, killed_at
from tiny_run import recipe, write_recipe

from deftx.errors import DeftxError
from deftx.experiments import housekeeping, steps
from deftx.experiments import run as run_module
from deftx.experiments.estimate import seconds_left
from deftx.experiments.plan import Step
from deftx.experiments.recipe import Recipe
from deftx.experiments.run import Score, prepare, run_recipe
from deftx.experiments.steps import attempt
from deftx.experiments.store import Store, size, write_record
from deftx.storage.atomic_files import write_text

pytestmark = pytest.mark.once


def one(folder: Path) -> Recipe:
    """The variant that takes the fewest steps alone."""
    whole = recipe(folder, {"ngrams": False})
    return whole.model_copy(update={"variants": {"none": whole.variants["none"]}})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="module")
def found(folder: Path) -> list[Score]:
    return run_recipe(recipe(folder), folder / "out")


def test_plans_runs_and_room(found, folder, run) -> None:
    planned = "run", folder / "recipe.yaml", "--out", folder / "planned", "--dry-run"
    plan = json.loads(run(*planned, "--json").out)
    assert len(plan["steps"]) == 20
    assert plan["left"] == {"seconds": 0, "memory": 0, "disk": 0, "disk_state": 0}
    assert "38 steps, 18 to do, one after the other" in run(*planned, "--set", "seeds=[0,1]").out
    assert not (folder / "planned").exists()
    said = run(*planned, "--store", folder / "new").out
    assert all(word in said for word in ("time: about ", "memory: about ", "disk: about "))
    about = {Path(row["folder"]).name: row for row in json.loads(run("runs", folder, "--json").out)}
    assert (about["out"]["steps"], about["out"]["done"], about["out"]["scored"]) == (20, 20, 8)
    assert about["out"]["bytes"] > 0


def test_pruning_keeps_what_runs_need(folder, tmp_path, run) -> None:
    run_recipe(recipe(folder), tmp_path / "one")
    store, before = tmp_path / "store", size(tmp_path / "store")
    run_recipe(recipe(folder, {"variants": {"DeFT-X": {"task": {"rank": 3}}}}), tmp_path / "one")
    assert not housekeeping.prunable(Store(tmp_path / "none"), tmp_path, deltas=True)
    assert (
        "3 folders" in run("prune", store, "--dry-run").out
    )  # the vector and the scores of rank 2
    assert run("prune", store).code == 0
    assert "5 folders" in run("prune", store, "--deltas").out
    assert size(store) < before / 2
    rest = prepare(recipe(folder, {"variants": {"DeFT-X": {"task": {"rank": 3}}}}), store)
    assert not rest.remaining()  # what phase 1 learnt is needed only for vectors that are not there
    other = prepare(recipe(folder, {"variants": {"DeFT-X": {"task": {"rank": 4}}}}), store)
    assert [step.kind for step in other.remaining()] == ["delta", "vector", "score", "score"]


def test_pruning_knows_the_runs_of_a_store_that_is_elsewhere_or_linked(
    folder, tmp_path, run
) -> None:
    (tmp_path / "disk" / "store").mkdir(parents=True)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "store").symlink_to(tmp_path / "disk" / "store")
    run_recipe(one(folder), tmp_path / "runs" / "one")
    run_recipe(one(folder), tmp_path / "elsewhere" / "two", tmp_path / "disk" / "store")
    for store in ("runs/store", "disk/store"):
        assert ": 0 folders" in run("prune", tmp_path / store).out
    shutil.rmtree(tmp_path / "elsewhere")
    assert ": 0 folders" in run("prune", tmp_path / "disk" / "store").out
    moved = (tmp_path / "runs").rename(tmp_path / "moved")
    refused = run("prune", tmp_path / "disk" / "store")
    assert (refused.code, "so all of it would go: say where its --runs are" in refused.err) == (
        2,
        True,
    )
    assert ": 0 folders" in run("prune", tmp_path / "disk" / "store", "--runs", moved).out
    assert list((tmp_path / "disk" / "store" / "steps").iterdir())


@pytest.mark.parametrize("content", ["{}", "[]", "null", '{"store": "x", "steps": [{}]}', "{"])
def test_a_damaged_list_of_steps_is_one_line(tmp_path, run, content) -> None:
    (tmp_path / "store" / "steps").mkdir(parents=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "steps.json").write_text(content)
    for command in (["runs", tmp_path], ["prune", tmp_path / "store"]):
        done = run(*command)
        assert (done.code, "steps.json is damaged" in done.complaint) == (2, True)


def test_a_damaged_file_of_the_store_is_named_with_what_to_do(folder, tmp_path) -> None:
    ready = prepare(one(folder), tmp_path / "store")
    found = run_recipe(one(folder), tmp_path / "run")
    uses = {
        "scores.json": lambda: run_recipe(one(folder), tmp_path / "run"),
        "step.json": lambda: seconds_left(ready.remaining(), ready.store),
    }
    for file, use in uses.items():
        damaged = sorted((tmp_path / "store" / "steps").glob(f"score-*/{file}"))[0]
        damaged.write_text("{")
        with pytest.raises(
            DeftxError,
            match=f"{file} is damaged .*: remove .*{damaged.parent.name}, and it is made",
        ):
            use()
        shutil.rmtree(damaged.parent)
        assert run_recipe(one(folder), tmp_path / "run") == found


@pytest.mark.parametrize("change", [b"7", b"0.9999"])
def test_a_changed_score_or_text_is_never_shown(folder, tmp_path, change) -> None:
    """By its checksum; where an older version kept none, what is no share is refused all the
    same."""
    run_recipe(one(folder), tmp_path / "run")
    scores = sorted((tmp_path / "store" / "steps").glob("score-*/scores.json"))[0]
    good = scores.read_bytes()
    scores.write_bytes(re.sub(rb'("macro_f1": )[0-9.]+', rb"\g<1>" + change, good))
    with pytest.raises(DeftxError, match=r"scores.json is damaged .*checksum.*: remove"):
        run_recipe(one(folder), tmp_path / "run")
    record = scores.parent / "step.json"
    about = json.loads(record.read_text())
    del about["sha256"]
    record.write_text(json.dumps(about))
    if change == b"7":
        with pytest.raises(
            DeftxError, match=r"scores.json is damaged: it needs macro_f1 and accuracy from 0 to 1"
        ):
            run_recipe(one(folder), tmp_path / "run")
    scores.write_bytes(good)
    run_recipe(one(folder), tmp_path / "run")
    store = Store(tmp_path / "store")
    digest = store.put(["a text", "another"])
    assert store.texts(digest) == ["a text", "another"]
    (store.root / "data" / f"{digest}.json").write_text('["a test", "another"]')
    with pytest.raises(
        DeftxError, match=f"{digest}.json is damaged .*: remove .*{digest}.json, and it is made"
    ):
        store.texts(digest)


PARTS = {
    "delta": ["phase1.safetensors"],
    "given": ["vector/vector.json", "vector/vector.safetensors"],
    "vector": ["vector/vector.json", "vector/vector.safetensors"],
    "score": ["scores.json", "predictions.json"],
}


def finished_step(store: Store, kind: str) -> str:
    step_id = f"{kind}-0123456789abcdef"

    def write_parts(checkpoint_dir: Path, folder: Path) -> None:
        for name in PARTS[kind]:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(f'"{name}"')

    store.make(step_id, {"kind": kind}, write_parts)
    assert store.done(step_id)
    return step_id


@pytest.mark.parametrize("kind", PARTS)
def test_what_a_removal_that_was_killed_once_left_is_made_anew(tmp_path, kind) -> None:
    """Older versions removed file by file: without its record or without its parts a step is not
    done."""
    for missing in ["step.json", *PARTS[kind]]:
        store = Store(tmp_path / missing.replace("/", "-"))
        step_id = finished_step(store, kind)
        (store.folder(step_id) / missing).unlink()
        assert not store.done(step_id)
        finished_step(store, kind)
        assert [path.name for path in store.steps.iterdir()] == [step_id]


@pytest.mark.parametrize("kind", PARTS)
def test_a_prune_that_is_killed_anywhere_leaves_the_step_whole_or_gone(tmp_path, kind) -> None:
    kills = 0
    for fatal in itertools.count(1):
        store = Store(tmp_path / str(fatal))
        step_id = finished_step(store, kind)
        folder = store.folder(step_id)
        killed = killed_at(fatal, store.root, lambda: housekeeping.prune(store, [folder]))  # noqa: B023
        if store.folder(step_id).exists():
            assert store.done(step_id)
            housekeeping.prune(store, [store.folder(step_id)])
        finished_step(store, kind)
        housekeeping.prune(store, [store.folder(step_id)])
        assert not [path for path in store.steps.rglob("*") if path.is_file()], "no leftover stays"
        kills += killed
        if not killed:
            break
    assert kills > 5


def kept_files(root: Path) -> dict[str, object]:
    """All files in a folder by name, with content that depends on neither time nor place."""
    kept: dict[str, object] = {}
    for path in root.rglob("*"):
        name = str(path.relative_to(root))
        if not path.is_file() or path.parent.name == "runs":
            continue
        if path.name == "step.json":
            record = json.loads(path.read_text())
            kept[name] = {**record, "seconds": 0, "finished": ""}
        elif path.suffix in (".txt", ".parquet"):
            kept[name] = None
        else:
            kept[name] = path.read_bytes()
    return kept


@pytest.mark.parametrize("step", [23, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_anywhere_resumes_and_ends_with_the_same_files(
    folder, tmp_path, monkeypatch, step
) -> None:
    """With steps that take no time: how a training resumes is tested in test_kill.py."""

    def quick(store: Store, step: Step, checkpoint_dir: Path, made: Path) -> None:
        write_text(checkpoint_dir / "checkpoint", "half")
        for name in PARTS[step.kind]:
            (made / name).parent.mkdir(exist_ok=True)
            (made / name).write_text(json.dumps({"macro_f1": 0.5, "accuracy": 0.25}))

    ready = prepare(one(folder), tmp_path / "data")
    monkeypatch.setattr(steps, "KINDS", dict.fromkeys(steps.KINDS, quick))

    def run_in(root: Path) -> list[Score]:
        run = replace(ready, store=Store(root / "store"))
        monkeypatch.setattr(run_module, "prepare", lambda recipe, store: run)
        return run_recipe(ready.recipe, root / "run", root / "store")

    whole = run_in(tmp_path / "whole")
    assert len(whole) == 2
    files = kept_files(tmp_path / "whole")
    (tmp_path / "killed").mkdir()
    for root in fatal_operations(tmp_path / "killed", run_in, step=step):
        assert run_in(root) == whole
        assert kept_files(root) == files


def test_a_vector_that_is_not_finished_keeps_its_delta(folder, tmp_path) -> None:
    run_recipe(recipe(folder), tmp_path / "one")
    for step in (tmp_path / "store" / "steps").glob("vector-*"):
        for file in sorted(step.rglob("*"), reverse=True):
            file.unlink() if file.is_file() else file.rmdir()
        step.rmdir()
    gone = housekeeping.prunable(Store(tmp_path / "store"), tmp_path, deltas=True)
    assert not [path for path in gone if path.name.startswith("delta-")]


def test_an_estimate_goes_by_what_such_steps_took(folder, tmp_path) -> None:
    run = prepare(recipe(folder), tmp_path / "store")
    assert seconds_left(run.remaining(), run.store) is None
    for number, step in enumerate(run.plan.steps.values()):
        record = {"kind": step.kind, "cost": step.cost, **step.spec}
        run.store.folder(step.id).mkdir(parents=True)
        write_record(run.store.folder(step.id), record, 2.0 * step.cost)
        if number == 0:
            assert seconds_left(run.remaining(), run.store) is None
    more = prepare(recipe(folder, {"seeds": [0, 1]}), tmp_path / "store")
    assert seconds_left(more.remaining(), more.store) == sum(
        2.0 * step.cost for step in more.remaining()
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["run", "recipe.yaml", "--executor", "raj"],
            "unknown executor 'raj' (did you mean 'ray'?)",
        ),
        (["run", "recipe.yaml", "--jobs", "0"], "Input should be greater than or equal to 1"),
        (["prune", "nowhere"], "nowhere is not a store"),
        (["runs", "nowhere"], "there is no folder nowhere"),
    ],
)
def test_wrong_options_are_one_line(folder, monkeypatch, run, arguments, said) -> None:
    monkeypatch.chdir(folder)
    done = run(*arguments)
    assert done.code == 2
    assert said in done.err


def test_what_a_crash_left_in_a_folder_of_work_goes_with_it(tmp_path) -> None:
    store = Store(tmp_path)
    left = store.checkpoint_dir("log-1") / ".phase2.state.safetensors.0123abcd.tmp"
    left.mkdir(parents=True)
    (left / "half").write_text("x")
    store.make("log-1", {}, lambda checkpoint_dir, folder: None)
    assert store.done("log-1")
    assert not store.checkpoint_dir("log-1").exists()


def test_a_step_that_another_process_has_just_finished_is_not_computed_again(
    tmp_path, monkeypatch
) -> None:
    store = Store(tmp_path)
    step_id = finished_step(store, "score")
    done = Store.done

    def not_yet(self: Store, step: str) -> bool:
        monkeypatch.setattr(Store, "done", done)
        return False

    monkeypatch.setattr(Store, "done", not_yet)
    step = SimpleNamespace(
        id=step_id, kind="score", title="", cost=1, spec={"family": "none"}, inputs={"task": "x"}
    )
    assert attempt(store, step) == ("done", "")


def test_a_step_that_finds_no_space_left_names_its_folder_and_resumes(tmp_path, capfd) -> None:
    store = Store(tmp_path)

    def full(checkpoint_dir: Path, folder: Path) -> None:
        (checkpoint_dir / "half").touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    for _ in range(2):
        with pytest.raises(
            DeftxError, match=f"^cannot write {tmp_path}/steps/score-.*: no space left on the disk"
        ):
            store.make("score-0123456789abcdef", {}, full)
        assert not any(store.steps.iterdir())
        assert (store.checkpoint_dir("score-0123456789abcdef") / "half").exists()
    finished_step(store, "score")
    assert capfd.readouterr().err == ""


def test_a_base_whose_tokenizer_reads_otherwise_now_needs_another_store(folder, tmp_path) -> None:
    shutil.copytree(folder / "base", tmp_path / "base")
    moved = one(folder).model_copy(update={"base": str(tmp_path / "base")})
    before = prepare(moved, tmp_path / "store").plan
    assert prepare(moved, tmp_path / "store").plan.steps.keys() == before.steps.keys()
    told = json.loads((tmp_path / "base" / "tokenizer.json").read_text())
    told["normalizer"] = {"type": "Lowercase"}
    (tmp_path / "base" / "tokenizer.json").write_text(json.dumps(told))
    with pytest.raises(
        DeftxError, match="tokenizer reads texts otherwise now than when the steps in"
    ):
        prepare(moved, tmp_path / "store")
    prepare(moved, tmp_path / "new")
