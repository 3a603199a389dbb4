"""A recipe from YAML to table, on a tiny base: its plan, its results, what a changed run computes
again."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from tiny import sentences
from tiny_run import RECIPE, recipe, same, write_recipe

import deftx
from deftx.data.conll import conllu_block, with_arcs
from deftx.errors import DeftxError
from deftx.experiments import housekeeping, plan, steps
from deftx.experiments.plan import Step
from deftx.experiments.recipe import Recipe, load_recipe
from deftx.experiments.report.comparisons import score_run
from deftx.experiments.run import Score, prepare, run_recipe, table, vectors_of
from deftx.experiments.run_folder import read_run
from deftx.experiments.store import Store


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="module")
def found(folder: Path) -> list[Score]:
    return run_recipe(recipe(folder), folder / "out")


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


def test_a_recipe_scores_every_variant_on_every_language(found: list[Score], folder: Path) -> None:
    variants = ["none", "LT-SFT", "DeFT-X", "character n-grams"]
    assert [(s.variant, s.language) for s in found] == [
        (v, name) for v in variants for name in ("tar", "src")
    ]
    rows = [json.loads(row) for row in (folder / "out" / "results.jsonl").read_text().splitlines()]
    assert rows == [score.row() for score in found]
    assert all(0 <= row["macro_f1"] <= 1 and row["examples"] == 40 for row in rows)
    assert all(variant in (folder / "out" / "results.md").read_text() for variant in variants)
    parquet = pytest.importorskip("pyarrow.parquet")
    assert parquet.read_table(folder / "out" / "results.parquet").to_pylist() == rows


def test_a_finished_vector_is_taken_as_it_is_and_gives_the_same_scores(
    found: list[Score], folder: Path, tmp_path: Path, computed: list[Step]
) -> None:
    finished = vectors_of(folder / "out", "DeFT-X", 0)
    data = yaml.safe_load((folder / "recipe.yaml").read_text())
    data |= {"variants": {"DeFT-X": data["variants"]["DeFT-X"]}, "ngrams": False, "languages": {}}
    data["vectors"] = {name: str(finished[name]) for name in ("src", "tar")}
    (folder / "given.yaml").write_text(yaml.safe_dump(data))
    again = run_recipe(load_recipe(folder / "given.yaml"), tmp_path / "out")
    assert [step.kind for step in computed] == [
        "given",
        "given",
        "delta",
        "vector",
        "score",
        "score",
    ]
    before = {score.language: score.scores for score in found if score.variant == "DeFT-X"}
    assert {score.language: score.scores for score in again} == before
    taken = vectors_of(tmp_path / "out", "DeFT-X", 0)
    assert taken.keys() == {"src", "tar", "task"}
    assert all(same(taken[name], finished[name]) for name in taken)
    assert deftx.load(taken["tar"]).provenance == deftx.load(finished["tar"]).provenance
    other = {"vectors": {"tar": str(finished["src"])}}
    run = prepare(load_recipe(folder / "given.yaml", other), tmp_path / "store")
    assert [step.kind for step in run.remaining()] == [
        "score"
    ]  # src's in the place of tar's: other content, another step
    with pytest.raises(DeftxError, match="is a task vector"):
        prepare(
            load_recipe(folder / "given.yaml", {"vectors": {"tar": str(finished["task"])}}),
            tmp_path / "store",
        )
    base = deftx.load(finished["tar"])
    deftx.save(
        replace(base, provenance=replace(base.provenance, base_fingerprint="0" * 64)),
        tmp_path / "foreign",
    )
    with pytest.raises(DeftxError, match="the vector was made on"):
        prepare(
            load_recipe(folder / "given.yaml", {"vectors": {"tar": str(tmp_path / "foreign")}}),
            tmp_path / "s",
        )


def test_a_method_without_phase_1_has_no_step_for_it(folder: Path, tmp_path: Path) -> None:
    by_weight = {"method": "pafi"}
    data = yaml.safe_load((folder / "recipe.yaml").read_text())
    data |= {"variants": {"PaFi": {"language": by_weight, "task": by_weight}}, "ngrams": False}
    (folder / "pafi.yaml").write_text(yaml.safe_dump(data))
    run = prepare(load_recipe(folder / "pafi.yaml"), tmp_path / "store")
    kinds = [step.kind for step in run.plan.steps.values()]
    assert kinds == ["vector", "vector", "vector", "score", "score"]
    scores = run_recipe(load_recipe(folder / "pafi.yaml"), tmp_path / "out")
    assert [score.variant for score in scores] == ["PaFi", "PaFi"]


def test_predictions_are_kept_and_give_the_scores(found: list[Score], folder: Path) -> None:
    for score in found:
        kept = json.loads(
            (folder / "store" / "steps" / score.step / "predictions.json").read_text()
        )
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
    assert all(
        order.index(i) < order.index(step.id)
        for step in run.plan.steps.values()
        for i in step.inputs.values()
    )


HALVES = {
    "DeFT-X": RECIPE["variants"]["DeFT-X"],
    "split-half": {"language": {"rank": "split-half"}, "task": {"rank": "split-half"}},
    "split-half, nothing besides": {
        "language": {"rank": "split-half", "keep": 0},
        "task": {"rank": "split-half"},
    },
    "split-half, unused": {
        "language": {"rank": "split-half", "method": "lt-sft"},
        "task": {"method": "lt-sft"},
    },
}


def halves_recipe(folder: Path) -> Recipe:
    """The recipe with the variants of HALVES instead of its own."""
    (folder / "halves.yaml").write_text(
        yaml.safe_dump({**RECIPE, "ngrams": False, "variants": HALVES})
    )
    return load_recipe(folder / "halves.yaml")


def test_halves_are_steps_that_variants_share_and_change_no_other(folder: Path) -> None:
    run = prepare(halves_recipe(folder), folder / "elsewhere")
    deltas = [step for step in run.plan.steps.values() if step.kind == "delta"]
    halves = [step for step in deltas if "half" in step.spec]
    languages = [step for step in halves if step.spec["what"] == "language"]
    # two of each language; and of the task above either source vector, since these differ in what
    # denoising keeps
    assert [step.spec["half"] for step in languages] == [1, 2, 1, 2]
    assert [step.spec["half"] for step in halves if step not in languages] == [1, 2, 1, 2]
    assert len(deltas) - len(halves) == 2 + 4
    assert {use.variant for use in run.plan.uses[languages[0].id]} == {
        "split-half",
        "split-half, nothing besides",
    }
    wholes = {json.dumps(step.spec, sort_keys=True) for step in deltas if step not in halves}
    assert all(
        json.dumps({k: v for k, v in s.spec.items() if k != "half"}, sort_keys=True) in wholes
        for s in halves
    )
    assert {step.cost for step in halves} == {2}
    for step in run.plan.steps.values():
        if step.kind == "vector":
            measured = (
                step.spec["settings"]["rank"] == "split-half"
                and step.spec["settings"]["method"] == "deftx"
            )
            assert ({"half1", "half2"} <= step.inputs.keys()) == measured
            assert "rank_rule" not in step.spec["settings"]
    assert prepare(recipe(folder), folder / "ids").plan.steps.keys() >= {
        step_id
        for step_id, uses in run.plan.uses.items()
        if any(use.variant == "DeFT-X" for use in uses)
    }


def test_the_rule_that_auto_stood_for_is_in_the_name_of_a_step(folder: Path, monkeypatch) -> None:
    def ids() -> set[str]:
        auto = {"variants": {"DeFT-X": {"language": {"rank": "auto"}, "task": {"rank": "auto"}}}}
        return set(prepare(recipe(folder, auto), folder / "ids").plan.steps)

    before = ids()
    monkeypatch.setattr("deftx.core.ranks.RECOMMENDED", "stable")
    assert {step.split("-")[0] for step in before - ids()} == {
        "vector",
        "delta",
        "score",
    }  # of the task above them too


def test_vectors_whose_ranks_two_halves_tell_are_those_of_the_functions(
    folder: Path, tmp_path: Path
) -> None:
    checked = halves_recipe(folder)
    run_recipe(checked, tmp_path / "out")
    mine = vectors_of(tmp_path / "out", "split-half", 0)
    text, examples = deftx.read_text(folder / "src.txt"), deftx.read_examples(folder / "src.tsv")
    source = deftx.fit_language(folder / "base", text, checked.language_config("split-half", 0))
    task = deftx.fit_task(
        folder / "base", examples, examples, checked.task_config("split-half", 0), source=source
    )
    for name, vector in {"src": source, "task": task}.items():
        deftx.save(vector, tmp_path / name)
        assert same(mine[name], tmp_path / name)
        assert deftx.load(mine[name]).provenance.ranks == vector.provenance.ranks
    gone = list(housekeeping.prunable(Store(tmp_path / "store"), tmp_path, deltas=True))
    assert len([path for path in gone if list(path.glob("phase1-half*.safetensors"))]) == 8


def test_the_vectors_are_those_of_the_functions(found: list[Score], folder: Path) -> None:
    mine, checked = vectors_of(folder / "out", "DeFT-X", 0), recipe(folder)
    text, examples = deftx.read_text(folder / "src.txt"), deftx.read_examples(folder / "src.tsv")
    source = deftx.fit_language(folder / "base", text, checked.language_config("DeFT-X", 0))
    task = deftx.fit_task(
        folder / "base", examples, examples, checked.task_config("DeFT-X", 0), source=source
    )
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
    run_recipe(
        recipe(folder, {"variants": {"LT-SFT": {"language": {"k": "6%"}}}}), folder / "changed"
    )
    # other language vectors, so another θ0 + φ_source for the task's phase 1; the languages' phase
    # 1 is there
    assert [(step.kind, step.spec.get("what")) for step in computed] == [
        ("vector", "language"),
        ("vector", "language"),
        ("delta", "task"),
        ("vector", "task"),
        ("score", None),
        ("score", None),
    ]


def test_other_content_or_code_is_another_step_and_another_place_or_log_is_not(
    folder, monkeypatch
) -> None:
    def ids(changes: dict[str, object] | None = None) -> set[str]:
        return set(prepare(recipe(folder, changes), folder / "ids").plan.steps)

    before = ids()
    assert (
        ids({"language": {"training": {"logs": "elsewhere", "report_to": ["tensorboard"]}}})
        == before
    )
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


def test_vectors_alone_are_learnt_where_nothing_is_tested(folder: Path) -> None:
    shared = {"test": {}, "ngrams": False}
    text = yaml.safe_dump({**RECIPE, **shared})
    (folder / "overlap.yaml").write_text(text)
    languages = prepare(
        load_recipe(folder / "overlap.yaml", {"overlap": "languages"}), folder / "ids"
    ).plan
    assert {step.spec["what"] for step in languages.steps.values()} == {"language"}
    both = prepare(
        load_recipe(folder / "overlap.yaml", {"overlap": "language-task"}), folder / "ids"
    ).plan
    assert {step.spec["what"] for step in both.steps.values()} == {"language", "task"}


def test_another_rule_of_composition_trains_nothing_and_is_used(
    found, folder, computed, monkeypatch
) -> None:
    rules: list[object] = []

    def watched(*args: object, rule: str, compose=steps.compose) -> object:
        rules.append(rule)
        return compose(*args, rule=rule)

    monkeypatch.setattr(steps, "compose", watched)
    run_recipe(recipe(folder, {"variants": {"DeFT-X": {"rule": "ties"}}}), folder / "ties")
    assert {step.kind for step in computed} == {"score"}
    assert rules == ["ties"] * 2


def test_the_source_s_vector_can_stay_beside_the_target_s(
    found, folder, computed, monkeypatch
) -> None:
    with_both: list[int] = []

    def watched(
        base: str, task: object, languages: list[object], compose=steps.compose, **options: object
    ) -> object:
        with_both.append(len(languages))
        return compose(base, task, languages, **options)

    monkeypatch.setattr(steps, "compose", watched)
    kept = run_recipe(
        recipe(folder, {"variants": {"DeFT-X": {"keep_source": True}}}), folder / "kept"
    )
    assert [(step.kind, step.inputs.keys()) for step in computed] == [
        ("score", {"task", "language", "source"})
    ]
    assert with_both == [2]
    assert [score.language for score in kept if score not in found] in ([], ["tar"])
    run_recipe(
        recipe(folder, {"variants": {"LT-SFT": {"keep_source": True, "target": False}}}),
        folder / "kept2",
    )
    assert with_both == [2, 1, 1]  # of the source, tested above its own vector too


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

    run = read_run(folder / "pos")
    lengths = {}
    for name, seed in [("src", 0), ("tar", 1)]:
        lengths[name] = tuple(len(text.split()) for text in sentences(20, seed))
    for row in run.rows:
        assert run.predictions(row).sentence_lengths == lengths[row.language]


def test_a_recipe_compares_parsers_by_las(folder: Path) -> None:
    for name, seed in [("src", 0), ("tar", 1)]:
        trees = []
        for text in sentences(20, seed):
            words = text.split()
            relations = ["nsubj:pass" if word[-1] in "ei" else "obj" for word in words]
            arcs = list(enumerate(relations))
            trees.append(with_arcs(conllu_block(words), arcs))
        (folder / f"{name}.conllu").write_text("".join(trees))
    changes = {
        "train": "src.conllu",
        "valid": "src.conllu",
        "test": {"tar": "tar.conllu", "src": "src.conllu"},
        "ngrams": False,
        "task": {"task": "parsing"},
    }
    found = run_recipe(load_recipe(folder / "recipe.yaml", changes), folder / "trees")
    assert len(found) == 6
    assert "| LT-SFT |" in (folder / "trees" / "results.md").read_text()

    # What is kept of the predictions gives the LAS, and the sentences
    run = read_run(folder / "trees")
    scores = score_run(run)
    for row in run.rows:
        assert 0 <= row.las <= row.uas <= 1
        assert scores[row.variant, row.seed, row.language].value == pytest.approx(row.las)
        seed = 0 if row.language == "src" else 1
        lengths = tuple(len(text.split()) for text in sentences(20, seed))
        assert run.predictions(row).sentence_lengths == lengths
    assert len({row.las for row in run.rows}) > 1


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
    assert table(found[1:2], labelled=["s"]).splitlines()[::2] == [
        "|  | average | s |",
        "| A |  | 90.0 |",
    ]
    assert table(found[:2], labelled=["s"]).splitlines()[2] == "| A | 50.0 | 50.0 | 90.0 |"
