"""A recipe from YAML to table, on a tiny base: its plan, its store, what a stopped or changed run computes again."""

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
import torch
import yaml
from tiny import save_base, sentences

import deftx
from deftx.cli import main
from deftx.errors import DeftxError
from deftx.experiments import executors, housekeeping, plan, steps
from deftx.experiments.executors import processes
from deftx.experiments.plan import Step
from deftx.experiments.recipe import Recipe, load_recipe
from deftx.experiments.report.read import read_run
from deftx.experiments.run import Score, estimate, prepare, run_recipe, table, vectors_of
from deftx.experiments.store import Store, size
from deftx.storage.folders import claimed

TRAINING = {"learning_rate": 1e-2, "max_steps": 4, "evaluate_every": 2, "batch_size": 4, "length": 16}
RECIPE = {
    "base": "base",
    "source": "src",
    "train": "src.tsv",
    "valid": "src.tsv",
    "languages": {"src": "src.txt", "tar": "tar.txt"},
    "test": {"tar": "tar.tsv", "src": "src.tsv"},
    "leakage": "ignore",
    "ngrams": True,
    "language": {"k": "5%", "training": {**TRAINING, "min_steps": 0}},
    "task": {"k": "5%", "training": TRAINING},
    "variants": {
        "none": {"source": False, "target": False, "task": {"method": "lt-sft"}},
        "LT-SFT": {"language": {"method": "lt-sft"}, "task": {"method": "lt-sft"}},
        "DeFT-X": {"language": {"rank": 2}, "task": {"rank": 2}},
    },
}


def labelled(path: Path, seed: int, count: int = 40) -> None:
    """Sentences labelled by the vowel they end in."""
    rows = [f"{text}\t{'front' if text[-1] in 'ei' else 'back'}" for text in sentences(count, seed)]
    path.write_text("\n".join(["text\tlabel", *rows]) + "\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    save_base(folder / "base")
    for number, name in enumerate(["src", "tar"]):
        (folder / f"{name}.txt").write_text("\n".join(sentences(60, number)))
        labelled(folder / f"{name}.tsv", number)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> list[Score]:
    return run_recipe(load_recipe(folder / "recipe.yaml"), folder / "out")


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    """The steps that are computed in this process from now on."""
    seen: list[Step] = []
    for kind, make in steps.KINDS.items():

        def counted(store, step, *folders, make=make):
            seen.append(step)
            make(store, step, *folders)

        monkeypatch.setitem(steps.KINDS, kind, counted)
    return seen


def recipe(folder: Path, changes: dict[str, object] | None = None) -> Recipe:
    return load_recipe(folder / "recipe.yaml", changes)


def same(first: Path, second: Path) -> bool:
    one, other = deftx.load(first), deftx.load(second)
    return one.tensors.keys() == other.tensors.keys() and all(
        torch.equal(a.indices, b.indices) and torch.equal(a.values, b.values)
        for a, b in ((one.tensors[name], other.tensors[name]) for name in one.tensors)
    )


def test_a_recipe_scores_every_variant_on_every_language(found: list[Score], folder: Path) -> None:
    variants = ["none", "LT-SFT", "DeFT-X", "character n-grams"]
    assert [(s.variant, s.language) for s in found] == [(v, name) for v in variants for name in ("tar", "src")]
    rows = [json.loads(row) for row in (folder / "out" / "results.jsonl").read_text().splitlines()]
    assert rows == [score.row() for score in found]
    assert all(0 <= row["macro_f1"] <= 1 and row["examples"] == 40 for row in rows)
    assert all(variant in (folder / "out" / "results.md").read_text() for variant in variants)
    parquet = pytest.importorskip("pyarrow.parquet")
    assert parquet.read_table(folder / "out" / "results.parquet").to_pylist() == rows


def test_predictions_are_kept_and_give_the_scores(found: list[Score], folder: Path) -> None:
    for score in found:
        kept = json.loads((folder / "store" / "steps" / score.step / "predictions.json").read_text())
        right = [a == b for a, b in zip(kept["true"], kept["predicted"], strict=True)]
        assert score.scores["accuracy"] == sum(right) / len(right)
        assert kept["labels"] == ["back", "front"]


def test_variants_share_what_they_have_in_common(folder: Path) -> None:
    run = prepare(recipe(folder), folder / "elsewhere")
    kinds = [step.kind for step in run.plan.steps.values()]
    # phase 1: two languages, a task on θ0, and one above each of the two source vectors
    assert {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)} == {
        "delta": 5,
        "vector": 7,
        "score": 6,
        "ngrams": 2,
    }
    order = list(run.plan.steps)
    assert all(order.index(i) < order.index(step.id) for step in run.plan.steps.values() for i in step.inputs.values())


HALVES = {
    "DeFT-X": RECIPE["variants"]["DeFT-X"],
    "split-half": {"language": {"rank": "split-half"}, "task": {"rank": "split-half"}},
    "split-half, nothing besides": {"language": {"rank": "split-half", "keep": 0}, "task": {"rank": "split-half"}},
    "split-half, unused": {"language": {"rank": "split-half", "method": "lt-sft"}, "task": {"method": "lt-sft"}},
}


def halves_recipe(folder: Path) -> Recipe:
    """The recipe with the variants of HALVES instead of its own."""
    (folder / "halves.yaml").write_text(yaml.safe_dump({**RECIPE, "ngrams": False, "variants": HALVES}))
    return load_recipe(folder / "halves.yaml")


def test_halves_are_steps_that_variants_share_and_change_no_other(folder: Path) -> None:
    run = prepare(halves_recipe(folder), folder / "elsewhere")
    deltas = [step for step in run.plan.steps.values() if step.kind == "delta"]
    halves = [step for step in deltas if "half" in step.about]
    languages = [step for step in halves if step.about["what"] == "language"]
    # two of each language; and of the task above either source vector, since these differ in what denoising keeps
    assert [step.about["half"] for step in languages] == [1, 2, 1, 2]
    assert [step.about["half"] for step in halves if step not in languages] == [1, 2, 1, 2]
    assert len(deltas) - len(halves) == 2 + 4
    assert {use.variant for use in run.plan.uses[languages[0].id]} == {"split-half", "split-half, nothing besides"}
    wholes = {json.dumps(step.about, sort_keys=True) for step in deltas if step not in halves}
    assert all(json.dumps({k: v for k, v in s.about.items() if k != "half"}, sort_keys=True) in wholes for s in halves)
    assert {step.cost for step in halves} == {2}
    for step in run.plan.steps.values():
        if step.kind == "vector":
            measured = step.about["settings"]["rank"] == "split-half" and step.about["settings"]["method"] == "deftx"
            assert ({"half1", "half2"} <= step.inputs.keys()) == measured
            assert "rank_rule" not in step.about["settings"]
    assert prepare(recipe(folder), folder / "ids").plan.steps.keys() >= {
        step_id for step_id, uses in run.plan.uses.items() if any(use.variant == "DeFT-X" for use in uses)
    }


def test_the_rule_that_auto_stood_for_is_in_the_name_of_a_step(folder: Path, monkeypatch) -> None:
    def ids() -> set[str]:
        auto = {"variants": {"DeFT-X": {"language": {"rank": "auto"}, "task": {"rank": "auto"}}}}
        return set(prepare(recipe(folder, auto), folder / "ids").plan.steps)

    before = ids()
    monkeypatch.setattr("deftx.core.ranks.RECOMMENDED", "stable")
    assert {step.split("-")[0] for step in before - ids()} == {"vector", "delta", "score"}  # of the task above them too


def test_vectors_whose_ranks_two_halves_tell_are_those_of_the_functions(folder: Path, tmp_path: Path) -> None:
    checked = halves_recipe(folder)
    run_recipe(checked, tmp_path / "out")
    mine = vectors_of(tmp_path / "out", "split-half", 0)
    text, examples = deftx.read_text(folder / "src.txt"), deftx.read_examples(folder / "src.tsv")
    source = deftx.fit_language(folder / "base", text, checked.language_fit("split-half", 0))
    task = deftx.fit_task(folder / "base", examples, examples, checked.task_fit("split-half", 0), source=source)
    for name, vector in {"src": source, "task": task}.items():
        deftx.save(vector, tmp_path / name)
        assert same(mine[name], tmp_path / name)
        assert deftx.load(mine[name]).info["ranks"] == vector.info["ranks"]
    gone = list(housekeeping.prunable(Store(tmp_path / "store"), tmp_path, deltas=True))
    assert len([path for path in gone if list(path.glob("phase1-half*.safetensors"))]) == 8


def test_the_vectors_are_those_of_the_functions(found: list[Score], folder: Path) -> None:
    mine, checked = vectors_of(folder / "out", "DeFT-X", 0), recipe(folder)
    text, examples = deftx.read_text(folder / "src.txt"), deftx.read_examples(folder / "src.tsv")
    source = deftx.fit_language(folder / "base", text, checked.language_fit("DeFT-X", 0))
    task = deftx.fit_task(folder / "base", examples, examples, checked.task_fit("DeFT-X", 0), source=source)
    deftx.save(source, folder / "by-hand" / "src")
    deftx.save(task, folder / "by-hand" / "task")
    assert list(mine) == ["src", "tar", "task"]
    assert same(mine["src"], folder / "by-hand" / "src")
    assert same(mine["task"], folder / "by-hand" / "task")


def test_a_second_run_computes_nothing_and_finds_the_same(found, folder, computed) -> None:
    assert run_recipe(recipe(folder), folder / "out") == found
    assert run_recipe(recipe(folder), folder / "again") == found
    assert not computed


def test_a_changed_setting_computes_only_what_depends_on_it(found, folder, computed) -> None:
    run_recipe(recipe(folder, {"variants": {"DeFT-X": {"task": {"rank": 3}}}}), folder / "changed")
    assert [step.kind for step in computed] == ["vector", "score", "score"]
    computed.clear()
    run_recipe(recipe(folder, {"variants": {"LT-SFT": {"language": {"k": "6%"}}}}), folder / "changed")
    # other language vectors, so another θ0 + φ_source for the task's phase 1; the languages' phase 1 is there
    assert [(step.kind, step.about.get("what")) for step in computed] == [
        ("vector", "language"),
        ("vector", "language"),
        ("delta", "task"),
        ("vector", "task"),
        ("score", None),
        ("score", None),
    ]


def test_other_content_or_code_is_another_step_and_another_place_or_log_is_not(folder, monkeypatch) -> None:
    def ids(changes: dict[str, object] | None = None) -> set[str]:
        return set(prepare(recipe(folder, changes), folder / "ids").plan.steps)

    before = ids()
    assert ids({"language": {"training": {"logs": "elsewhere", "report_to": ["tensorboard"]}}}) == before
    (folder / "copy.txt").write_text((folder / "tar.txt").read_text())
    assert ids({"languages": {"tar": "copy.txt"}}) == before
    (folder / "copy.txt").write_text((folder / "tar.txt").read_text() + "\nba be bi")
    other = ids({"languages": {"tar": "copy.txt"}})
    assert {step.split("-")[0] for step in before - other} == {"delta", "vector", "score"}
    monkeypatch.setitem(plan.VERSIONS, "score", 99)
    assert {step.split("-")[0] for step in before - ids()} == {"score"}


def test_a_step_is_the_same_after_it_was_text(folder: Path) -> None:
    for step in prepare(recipe(folder), folder / "ids").plan.steps.values():
        assert Step.from_json(step.to_json()) == step
        assert Step.from_json(step.to_json()).id == step.id


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
    command = [sys.executable, "-m", "deftx.cli", "run", str(folder / "recipe.yaml"), "--out", str(tmp_path / "run")]
    for wanted in (1, 6, 12):  # killed when so many steps are there
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
            while len(list(tmp_path.glob("store/steps/[!.]*"))) < wanted:
                assert child.poll() is None, "ended before it was killed"
                time.sleep(0.02)
            child.send_signal(signal.SIGKILL)
    assert len(list(tmp_path.glob("store/steps/[!.]*"))) < 20
    assert run_recipe(recipe(folder), tmp_path / "run") == found
    assert not list(tmp_path.glob("store/work/*"))
    assert not list(tmp_path.glob("store/steps/.*"))


def test_children_end_with_the_process_that_started_them(folder, tmp_path) -> None:
    command = [sys.executable, "-m", "deftx.cli", "run", str(folder / "recipe.yaml"), "--jobs", "2", "--set"]
    command += ["language.training.max_steps=100000", "--out", str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as parent:
        while not list(tmp_path.glob("store/work/*/log.txt")):
            assert parent.poll() is None, "ended before it was killed"
            time.sleep(0.05)
        parent.send_signal(signal.SIGKILL)
    for work in tmp_path.glob("store/work/*"):
        for _ in range(100):
            try:
                with claimed(work):
                    break
            except DeftxError:
                time.sleep(0.1)
        else:
            pytest.fail(f"{work} is still in use")


def test_a_step_that_another_process_is_at_comes_after_the_others_and_is_waited_for(folder, tmp_path, monkeypatch):
    run = prepare(recipe(folder, {"ngrams": True, "variants": {"LT-SFT": {}}}), tmp_path / "store")
    first, second = (step for step in run.plan.steps.values() if step.kind == "ngrams")
    heard: list[tuple[str, str]] = []
    busy, pauses = claimed(run.store.work(first.id)), [0.0]
    busy.__enter__()

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 5:
            busy.__exit__(None, None, None)

    monkeypatch.setattr(executors.time, "sleep", sleep)
    monkeypatch.setattr(executors.time, "monotonic", lambda: sum(pauses))
    with executors.here(run.store) as submit:
        only = replace(run.plan, steps={step.id: step for step in (first, second)})
        executors.work_off(only, run.store, submit, 1, lambda step, became: heard.append((step.id, became)))
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
        with claimed(run.store.work(first.id)):
            only = replace(run.plan, steps={second.id: second, first.id: first})
            done = pool.submit(
                executors.work_off, only, run.store, lambda step: pool.submit(slow, step), 2, lambda *_: None
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
    def broken(store, step, work, folder):
        raise DeftxError("no luck")

    def vector(store, step, work, folder, make=steps.KINDS["vector"]):
        (broken if "LT-SFT" in step.title and step.about["what"] == "task" else make)(store, step, work, folder)

    monkeypatch.setitem(steps.KINDS, "vector", vector)
    with pytest.raises(DeftxError, match=r"LT-SFT, seed 0: task \(vector\): no luck; 2 more steps are not done"):
        run_recipe(recipe(folder), tmp_path / "run")
    rows = [json.loads(row) for row in (tmp_path / "run" / "results.jsonl").read_text().splitlines()]
    assert {row["variant"] for row in rows} == {"none", "DeFT-X", "character n-grams"}
    assert "| LT-SFT |" not in (tmp_path / "run" / "results.md").read_text()


def test_a_process_that_ends_by_itself_is_a_failed_step(folder, tmp_path) -> None:
    run = prepare(recipe(folder), tmp_path / "store")
    step = next(step for step in run.plan.steps.values() if step.kind == "score")  # its inputs are not there
    with processes(run.store, 1) as submit:
        became, why = submit(step).result()
    assert became == "failed"
    assert "there is no vector" in why


def test_plans_runs_and_room(found, folder, capsys) -> None:
    main_ok(["run", str(folder / "recipe.yaml"), "--out", str(folder / "planned"), "--dry-run", "--json"])
    plan = json.loads(capsys.readouterr().out)
    assert len(plan["steps"]) == 20
    assert plan["seconds_left"] == 0
    main_ok(["run", str(folder / "recipe.yaml"), "--out", str(folder / "planned"), "--dry-run", "--set", "seeds=[0,1]"])
    assert "38 steps, 18 to do: about " in capsys.readouterr().out
    assert not (folder / "planned").exists()
    main_ok(
        [
            "run",
            str(folder / "recipe.yaml"),
            "--out",
            str(folder / "planned"),
            "--store",
            str(folder / "new"),
            "--dry-run",
        ]
    )
    assert "no such steps were timed yet" in capsys.readouterr().out
    main_ok(["runs", str(folder), "--json"])
    about = {Path(row["folder"]).name: row for row in json.loads(capsys.readouterr().out)}
    assert (about["out"]["steps"], about["out"]["done"], about["out"]["scored"]) == (20, 20, 8)
    assert about["out"]["bytes"] > 0


def test_pruning_keeps_what_runs_need(folder, tmp_path, capsys) -> None:
    run_recipe(recipe(folder), tmp_path / "one")
    store, before = tmp_path / "store", size(tmp_path / "store")
    run_recipe(recipe(folder, {"variants": {"DeFT-X": {"task": {"rank": 3}}}}), tmp_path / "one")
    assert not list(housekeeping.prunable(Store(tmp_path / "none"), tmp_path, deltas=True))
    main_ok(["prune", str(store), "--dry-run"])
    assert "3 folders" in capsys.readouterr().out  # the vector and the scores of rank 2
    main_ok(["prune", str(store)])
    main_ok(["prune", str(store), "--deltas"])
    assert "5 folders" in capsys.readouterr().out.splitlines()[-1]
    assert size(store) < before / 2
    rest = prepare(recipe(folder, {"variants": {"DeFT-X": {"task": {"rank": 3}}}}), store)
    assert not rest.left()  # what phase 1 learnt is needed only for vectors that are not there
    other = prepare(recipe(folder, {"variants": {"DeFT-X": {"task": {"rank": 4}}}}), store)
    assert [step.kind for step in other.left()] == ["delta", "vector", "score", "score"]


def test_a_vector_that_is_not_finished_keeps_its_delta(folder, tmp_path) -> None:
    run_recipe(recipe(folder), tmp_path / "one")
    for step in (tmp_path / "store" / "steps").glob("vector-*"):
        for file in sorted(step.rglob("*"), reverse=True):
            file.unlink() if file.is_file() else file.rmdir()
        step.rmdir()
    gone = list(housekeeping.prunable(Store(tmp_path / "store"), tmp_path, deltas=True))
    assert not [path for path in gone if path.name.startswith("delta-")]


def main_ok(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert not ended.value.code


def test_an_estimate_goes_by_what_such_steps_took(folder, tmp_path) -> None:
    run = prepare(recipe(folder), tmp_path / "store")
    assert estimate(run) is None
    for number, step in enumerate(run.plan.steps.values()):
        with run.store.making(step.id, {"kind": step.kind, "cost": step.cost, **step.about}) as (_, made):
            pass
        record = json.loads((made.parent / step.id / "step.json").read_text())
        (run.store.folder(step.id) / "step.json").write_text(json.dumps({**record, "seconds": 2.0 * step.cost}))
        if number == 0:
            assert estimate(run) is None
    more = prepare(recipe(folder, {"seeds": [0, 1]}), tmp_path / "store")
    assert estimate(more) == sum(2.0 * step.cost for step in more.left())


def test_vectors_alone_are_learnt_where_nothing_is_tested(folder: Path) -> None:
    shared = {"test": {}, "ngrams": False}
    text = yaml.safe_dump({**RECIPE, **shared})
    (folder / "overlap.yaml").write_text(text)
    languages = prepare(load_recipe(folder / "overlap.yaml", {"overlap": "languages"}), folder / "ids").plan
    assert {step.about["what"] for step in languages.steps.values()} == {"language"}
    both = prepare(load_recipe(folder / "overlap.yaml", {"overlap": "language-task"}), folder / "ids").plan
    assert {step.about["what"] for step in both.steps.values()} == {"language", "task"}


def test_another_rule_of_composition_trains_nothing_and_is_used(found, folder, computed, monkeypatch) -> None:
    rules: list[object] = []

    def watched(*args: object, rule: str, compose=steps.compose) -> object:
        rules.append(rule)
        return compose(*args, rule=rule)

    monkeypatch.setattr(steps, "compose", watched)
    run_recipe(recipe(folder, {"variants": {"DeFT-X": {"compose": "ties"}}}), folder / "ties")
    assert {step.kind for step in computed} == {"score"}
    assert rules == ["ties"] * 2


def test_a_variant_without_language_vectors_needs_none(folder: Path) -> None:
    assert recipe(folder).needed_languages("none") == []
    assert recipe(folder).needed_languages("DeFT-X") == ["src", "tar"]


def test_a_recipe_extends_another(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "below.yaml").write_text(yaml.safe_dump(RECIPE))
    (tmp_path / "above.yaml").write_text(
        "extends: below.yaml\ntask: {rank: 7}\nvariants: {none: null}\nlanguage: {training: {max_steps: null}}"
    )
    both = load_recipe(tmp_path / "above.yaml")
    assert set(both.variants) == {"LT-SFT", "DeFT-X"}
    assert (both.task.rank, both.task.k, both.task.training.max_steps) == (7, "5%", 4)
    assert both.language.training.max_steps == 100_000  # its default again


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("extends: above.yaml", "extends itself"),
        ("extends: ../below.yaml", "same folder"),
        ("extends: 3", "same folder"),
        ("extends: none.yaml", "cannot read the recipe .*none.yaml"),
    ],
)
def test_a_recipe_extends_only_what_it_can(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "above.yaml").write_text(text)
    with pytest.raises(DeftxError, match=said):
        load_recipe(tmp_path / "above.yaml")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sourec": "src"}, "did you mean 'source'"),
        ({"language": {"training": {"learning_rat": 1}}}, "did you mean 'language.training.learning_rate'"),
        ({"variants": {"none": {"task": {"ranc": 1}}}}, "did you mean 'rank'"),
        ({"seeds": "many"}, "seeds"),
        ({"test": {"elsewhere": "tar.tsv"}}, "no text for 'elsewhere'"),
        ({"variants": {"none": {"compose": "tise"}}}, "unknown rule 'tise'.*did you mean 'ties'"),
        ({"variants": {"none": {"compose": "ties:density=2"}}}, "density = 2: give a share"),
        ({"languages": {"task": "tar.txt"}}, "cannot be called 'task'"),
        ({"languages": {"../tar": "tar.txt"}}, "cannot be called '../tar'"),
        ({"languages": {"..": "tar.txt"}}, "cannot be called '..'"),
        ({"baseline": "LTSFT"}, "did you mean 'LT-SFT'"),
        ({"task": {"task": "taging"}}, "did you mean 'tagging'"),
        ({"task": {"training": {"metric": "f1"}}}, "unknown metric of classification 'f1'"),
        ({"task": {"task": "regression"}, "ngrams": False}, "macro_f1 and accuracy, which regression has not"),
        ({"task": {"task": "ner"}, "ngrams": False}, "macro_f1 or accuracy, not span_f1: set task.training.metric"),
        ({"task": {"task": "tagging"}}, "ngrams are a baseline for classification, not for tagging"),
        ({"variants": {"none": {"task": {"task": "tagging"}}}}, "variant 'none' has the task tagging"),
    ],
)
def test_what_is_wrong_in_a_recipe_is_named(folder: Path, changes: dict[str, object], said: str) -> None:
    with pytest.raises(DeftxError, match=said):
        recipe(folder, changes)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "recipe.yaml", "--executor", "raj"], "unknown executor 'raj' (did you mean 'ray'?)"),
        (["run", "recipe.yaml", "--jobs", "0"], "Input should be greater than or equal to 1"),
        (["prune", "nowhere"], "nowhere is not a store"),
    ],
)
def test_wrong_options_are_one_line(folder, monkeypatch, capsys, arguments, said) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_a_recipe_compares_taggers_too(folder: Path) -> None:
    for name, seed in [("src", 0), ("tar", 1)]:
        words = [text.split() for text in sentences(20, seed)]
        (folder / f"{name}-pos.tsv").write_text(
            "\n".join("".join(f"{word}\t{word[-1].upper()}\n" for word in row) for row in words)
        )
    changes = {
        "train": "src-pos.tsv",
        "valid": "src-pos.tsv",
        "test": {"tar": "tar-pos.tsv", "src": "src-pos.tsv"},
        "ngrams": False,
        "task": {"task": "tagging"},
    }
    found = run_recipe(load_recipe(folder / "recipe.yaml", changes), folder / "pos")
    assert len(found) == 6
    assert all(0 <= score.scores["macro_f1"] <= 1 for score in found)


SEVERAL = {
    "source": "",
    "train": "",
    "valid": "",
    "sources": {name: {"train": f"{name}.tsv", "valid": f"{name}.tsv"} for name in ("src", "far")},
    "languages": {"src": "src.txt", "tar": "tar.txt", "far": "far.txt"},
}
ONE_OR_TWO = {
    "one": {"sources": ["src"], "language": {"rank": 2}, "task": {"rank": 2}},
    "two": {"language": {"rank": 2}, "task": {"rank": 2}},
    "two, even": {"language": {"rank": 2}, "task": {"rank": 2}, "temperature": 5},
    "two, on the base": {"source": False, "language": {"rank": 2}, "task": {"rank": 2}},
}


@pytest.fixture(scope="module")
def several(folder: Path) -> Recipe:
    """One source against two, on the same data as the recipe of one, and a further language with few labels."""
    (folder / "far.txt").write_text("\n".join(sentences(60, 2)))
    labelled(folder / "far.tsv", 2, count=12)
    text = yaml.safe_dump({**RECIPE, **SEVERAL, "variants": ONE_OR_TWO}, sort_keys=False)
    (folder / "several.yaml").write_text(text)
    return load_recipe(folder / "several.yaml")


def test_a_variant_is_learnt_on_the_sources_it_names_each_above_its_vector(several: Recipe, folder: Path) -> None:
    made = prepare(several, folder / "ids").plan
    vectors = {use.name: step_id for use, step_id in made.of("vector") if use.variant == "two" and use.name != "task"}
    tasks = {use.variant: made.steps[step_id] for use, step_id in made.of("delta") if use.name == "task"}
    above = {"source/src": vectors["src"], "source/far": vectors["far"]}
    assert tasks["one"].inputs == {"source": vectors["src"]}
    assert tasks["two"].inputs == tasks["two, even"].inputs == above
    assert tasks["two, on the base"].inputs == {}
    assert {variant: step.about.get("temperature") for variant, step in tasks.items()} == {
        "one": None,
        "two": 1.0,
        "two, even": 5.0,
        "two, on the base": 1.0,
    }
    assert len({step.id for step in tasks.values()}) == 4
    for step in made.steps.values():
        assert Step.from_json(step.to_json()).id == step.id


def test_one_of_several_sources_is_the_same_step_as_the_only_one(several: Recipe, folder: Path) -> None:
    """And the order in which sources are named makes no difference."""
    alone = prepare(recipe(folder, {"variants": {"DeFT-X": {}}}), folder / "ids").plan
    of_several = prepare(several, folder / "ids").plan
    mine = {use.name: step_id for use, step_id in alone.of("vector", "score") if use.variant == "DeFT-X"}
    theirs = {use.name: step_id for use, step_id in of_several.of("vector", "score") if use.variant == "one"}
    assert mine == {name: theirs[name] for name in mine}
    turned = several.model_copy(update={"sources": dict(reversed(several.sources.items()))})
    assert set(prepare(turned, folder / "ids").plan.steps) == set(of_several.steps)


def test_several_sources_are_learnt_as_the_function_does(several: Recipe, folder: Path, capsys) -> None:
    found = run_recipe(several, folder / "several", folder / "store")
    assert [(s.variant, s.language) for s in found][:8] == [(v, name) for v in ONE_OR_TWO for name in ("tar", "src")]
    mine = vectors_of(folder / "several", "two, even", 0)
    sets = {name: deftx.read_examples(folder / f"{name}.tsv") for name in ("far", "src")}
    sources = {name: deftx.load(mine[name]) for name in sets}
    settings = several.task_fit("two, even", 0)
    deftx.save(
        deftx.fit_task_several(folder / "base", sets, sets, settings, sources=sources, temperature=5),
        folder / "by-hand" / "two",
    )
    assert same(mine["task"], folder / "by-hand" / "two")
    assert not same(mine["task"], vectors_of(folder / "several", "two", 0)["task"])
    main_ok(["run", str(folder / "several.yaml"), "--out", str(folder / "several"), "--dry-run"])
    assert " 0 to do" in capsys.readouterr().out
    read = read_run(folder / "several")
    assert (read.targets, read.languages) == (["tar"], ["tar", "src"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"source": "src"}, "either as source, train and valid, or as sources"),
        ({"sources": {"src": {"valid": None}}}, "sources.src.valid"),
        ({"sources": {"mid": {"train": "src.tsv", "valid": "src.tsv"}}}, "no text for 'mid'"),
        ({"variants": {"one": {"sources": ["scr"]}}}, "unknown source of the variant 'one' 'scr'.*did you mean 'src'"),
        ({"variants": {"one": {"sources": []}}}, "variants.one.sources"),
        ({"variants": {"two": {"temperature": 0.5}}}, "temperature = 0.5"),
        ({"variants": {"madx": {"family": "madx"}}}, r"'madx' \(madx\) is learnt on one source: say sources"),
    ],
)
def test_what_is_wrong_with_several_sources_is_named(several, folder: Path, changes, said: str) -> None:
    with pytest.raises(DeftxError, match=said):
        load_recipe(folder / "several.yaml", changes)


@pytest.mark.parametrize("missing", ["source", "train", "valid"])
def test_a_recipe_without_labelled_data_is_refused(folder: Path, missing: str) -> None:
    with pytest.raises(DeftxError, match="either as source, train and valid, or as sources"):
        recipe(folder, {missing: ""})


RECIPES = Path(__file__).parents[1] / "recipes"


@pytest.mark.parametrize("file", sorted(RECIPES.glob("[!_]*.yaml")), ids=lambda file: file.stem)
def test_what_is_in_recipes_is_a_recipe(file: Path) -> None:
    assert load_recipe(file).variants


def test_one_source_is_held_against_three() -> None:
    found = load_recipe(RECIPES / "several-nano.yaml")
    assert (found.leakage, found.seeds, list(found.test)) == ("trim", (0, 1, 2), ["ace", "ban", "bjn", "mad", "min"])
    sources = {variant: found.sources_of(variant) for variant in found.variants}
    assert sorted(sources.values()) == [["ind"]] * 2 + [["ind", "eng", "jav"]] * 2


def test_a_table_shows_mean_and_spread_over_seeds() -> None:
    found = [
        Score("A", seed, name, 4, {"macro_f1": f1})
        for seed, name, f1 in [(0, "x", 0.5), (0, "y", 0.7), (1, "x", 0.7), (1, "y", 0.7)]
    ]
    assert table(found).splitlines()[2] == "| A | 60.0 ± 14.1 | 70.0 ± 0.0 | 65.0 ± 7.1 |"
    assert table(found[:3]).splitlines()[2] == "| A | 60.0 ± 14.1 | 70.0 | 60.0 |"


def test_a_table_has_the_languages_of_the_labels_last_and_not_in_the_average() -> None:
    scores = [("x", 0.5), ("s", 0.9), ("y", 0.7)]
    found = [Score("A", 0, name, 4, {"macro_f1": f1}) for name, f1 in scores]
    assert table(found, labelled={"s", "t"}).splitlines()[::2] == [
        "|  | x | y | average | s |",
        "| A | 50.0 | 70.0 | 60.0 | 90.0 |",
    ]
    assert table(found[1:2], labelled=["s"]).splitlines()[::2] == ["|  | average | s |", "| A |  | 90.0 |"]
    assert table(found[:2], labelled=["s"]).splitlines()[2] == "| A | 50.0 | 50.0 | 90.0 |"
