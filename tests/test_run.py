"""A recipe from YAML to table, on a tiny base."""

import json
from pathlib import Path

import pytest
import yaml
from tiny import save_base, sentences

from deftx.errors import DeftxError
from deftx.experiments import run
from deftx.experiments.recipe import load_recipe
from deftx.experiments.run import Score, run_recipe, table

TRAINING = {"learning_rate": 1e-3, "max_steps": 4, "evaluate_every": 2, "batch_size": 4, "length": 16}


def labelled(path: Path, seed: int) -> None:
    """Sentences labelled by the vowel they end in."""
    rows = [f"{text}\t{'front' if text[-1] in 'ei' else 'back'}" for text in sentences(40, seed)]
    path.write_text("\n".join(["text\tlabel", *rows]) + "\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    save_base(folder / "base")
    for number, name in enumerate(["src", "tar"]):
        (folder / f"{name}.txt").write_text("\n".join(sentences(60, number)))
        labelled(folder / f"{name}.tsv", number)
    recipe = {
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
            "DeFT-X 90%": {"language": {"rank": "90%"}},
            "DeFT-X 2": {"language": {"rank": 2}, "task": {"rank": 2}},
        },
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> list[Score]:
    return run_recipe(load_recipe(folder / "recipe.yaml"), folder / "out")


def test_a_recipe_scores_every_variant_on_every_language(found: list[Score], folder: Path) -> None:
    variants = ["character n-grams", "none", "DeFT-X 90%", "DeFT-X 2"]
    assert [(s.variant, s.language) for s in found] == [(v, name) for v in variants for name in ("tar", "src")]
    rows = [json.loads(row) for row in (folder / "out" / "scores.jsonl").read_text().splitlines()]
    assert [Score(**row) for row in rows] == found
    assert all(variant in (folder / "out" / "results.md").read_text() for variant in variants)


def test_a_second_run_trains_nothing_and_finds_the_same(
    found: list[Score], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_training(*args: object, **options: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(run, "fit_language", no_training)
    monkeypatch.setattr(run, "fit_task", no_training)
    assert run_recipe(load_recipe(folder / "recipe.yaml"), folder / "out") == found


def test_a_changed_setting_trains_only_what_depends_on_it(
    found: list[Score], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []
    fit_task = run.fit_task

    def counted(*args: object, title: str, **options: object) -> object:
        trained.append(title)
        return fit_task(*args, title=title, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(run, "fit_language", lambda *args, **options: pytest.fail("language trained again"))
    monkeypatch.setattr(run, "fit_task", counted)
    changes = {"variants": {"DeFT-X 2": {"task": {"rank": 3}}}}
    run_recipe(load_recipe(folder / "recipe.yaml", changes), folder / "out")
    assert trained == ["DeFT-X 2, seed 0, task"]


def test_another_rule_of_composition_trains_nothing_and_is_used(
    found: list[Score], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules: list[object] = []
    compose = run.compose

    def watched(*args: object, rule: str) -> object:
        rules.append(rule)
        return compose(*args, rule=rule)  # type: ignore[arg-type]

    monkeypatch.setattr(run, "compose", watched)
    for name in ("fit_language", "fit_task"):
        monkeypatch.setattr(run, name, lambda *args, **options: pytest.fail("trained again"))
    run_recipe(load_recipe(folder / "recipe.yaml", {"variants": {"DeFT-X 2": {"compose": "ties"}}}), folder / "out")
    assert rules == ["sum"] * 4 + ["ties"] * 2


def test_a_variant_without_language_vectors_needs_none(folder: Path) -> None:
    recipe = load_recipe(folder / "recipe.yaml")
    assert recipe.needed_languages("none") == []
    assert recipe.needed_languages("DeFT-X 2") == ["src", "tar"]


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
    ],
)
def test_what_is_wrong_in_a_recipe_is_named(folder: Path, changes: dict[str, object], said: str) -> None:
    with pytest.raises(DeftxError, match=said):
        load_recipe(folder / "recipe.yaml", changes)


def test_a_table_shows_mean_and_spread_over_seeds() -> None:
    found = [
        Score("A", seed, name, f1, 0.0)
        for seed, name, f1 in [(0, "x", 0.5), (0, "y", 0.7), (1, "x", 0.7), (1, "y", 0.7)]
    ]
    assert table(found).splitlines()[2] == "| A | 60.0 ± 14.1 | 70.0 ± 0.0 | 65.0 ± 7.1 |"
