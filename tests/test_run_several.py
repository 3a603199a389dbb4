"""A recipe with several sources: which its variants are learnt on, and above which vectors."""

from pathlib import Path

import pytest
import yaml
from tiny import sentences
from tiny_run import RECIPE, labelled, recipe, same, write_recipe

import deftx
from deftx.errors import DeftxError
from deftx.experiments.plan import Step
from deftx.experiments.recipe import Recipe, load_recipe
from deftx.experiments.run import prepare, run_recipe, vectors_of
from deftx.experiments.run_folder import read_run

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
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="module")
def several(folder: Path) -> Recipe:
    """One source against two, on the same data as the recipe of one, and a further language with
    few labels."""
    (folder / "far.txt").write_text("\n".join(sentences(60, 2)))
    labelled(folder / "far.tsv", 2, count=12)
    text = yaml.safe_dump({**RECIPE, **SEVERAL, "variants": ONE_OR_TWO}, sort_keys=False)
    (folder / "several.yaml").write_text(text)
    return load_recipe(folder / "several.yaml")


def test_a_variant_is_learnt_on_the_sources_it_names_each_above_its_vector(
    several: Recipe, folder: Path
) -> None:
    made = prepare(several, folder / "ids").plan
    vectors = {
        use.name: step_id
        for use, step_id in made.uses_of("vector")
        if use.variant == "two" and use.name != "task"
    }
    tasks = {
        use.variant: made.steps[step_id]
        for use, step_id in made.uses_of("delta")
        if use.name == "task"
    }
    above = {"source/src": vectors["src"], "source/far": vectors["far"]}
    assert tasks["one"].inputs == {"source": vectors["src"]}
    assert tasks["two"].inputs == tasks["two, even"].inputs == above
    assert tasks["two, on the base"].inputs == {}
    assert {variant: step.spec.get("temperature") for variant, step in tasks.items()} == {
        "one": None,
        "two": 1.0,
        "two, even": 5.0,
        "two, on the base": 1.0,
    }
    assert len({step.id for step in tasks.values()}) == 4
    for step in made.steps.values():
        assert Step.from_json(step.to_json()).id == step.id


def test_one_of_several_sources_is_the_same_step_as_the_only_one(
    several: Recipe, folder: Path
) -> None:
    """And the order in which sources are named makes no difference."""
    alone = prepare(recipe(folder, {"variants": {"DeFT-X": {}}}), folder / "ids").plan
    of_several = prepare(several, folder / "ids").plan
    mine = {
        use.name: step_id
        for use, step_id in alone.uses_of("vector", "score")
        if use.variant == "DeFT-X"
    }
    theirs = {
        use.name: step_id
        for use, step_id in of_several.uses_of("vector", "score")
        if use.variant == "one"
    }
    assert mine == {name: theirs[name] for name in mine}
    turned = several.model_copy(update={"sources": dict(reversed(several.sources.items()))})
    assert set(prepare(turned, folder / "ids").plan.steps) == set(of_several.steps)


def test_several_sources_are_learnt_as_the_function_does(
    several: Recipe, folder: Path, run
) -> None:
    found = run_recipe(several, folder / "several", folder / "store")
    assert [(s.variant, s.language) for s in found][:8] == [
        (v, name) for v in ONE_OR_TWO for name in ("tar", "src")
    ]
    mine = vectors_of(folder / "several", "two, even", 0)
    sets = {name: deftx.read_examples(folder / f"{name}.tsv") for name in ("far", "src")}
    sources = {name: deftx.load(mine[name]) for name in sets}
    settings = several.task_config("two, even", 0)
    deftx.save(
        deftx.fit_task(folder / "base", sets, sets, settings, source=sources, temperature=5),
        folder / "by-hand" / "two",
    )
    assert same(mine["task"], folder / "by-hand" / "two")
    assert not same(mine["task"], vectors_of(folder / "several", "two", 0)["task"])
    assert (
        " 0 to do"
        in run("run", folder / "several.yaml", "--out", folder / "several", "--dry-run").out
    )
    read = read_run(folder / "several")
    assert (read.targets, read.languages) == (["tar"], ["tar", "src"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"source": "src"}, r"either as source and train \(and valid\), or as sources"),
        ({"sources": {"src": {"valid": None}}}, "sources.src.valid"),
        ({"sources": {"mid": {"train": "src.tsv", "valid": "src.tsv"}}}, "no text for 'mid'"),
        (
            {"variants": {"one": {"sources": ["scr"]}}},
            "unknown source of the variant 'one' 'scr'.*did you mean 'src'",
        ),
        ({"variants": {"one": {"sources": []}}}, "variants.one.sources"),
        ({"variants": {"two": {"temperature": 0.5}}}, "temperature = 0.5"),
        (
            {"variants": {"madx": {"family": "madx"}}},
            r"'madx' \(madx\) is learnt on one source: say sources",
        ),
    ],
)
def test_what_is_wrong_with_several_sources_is_named(
    several, folder: Path, changes, said: str
) -> None:
    with pytest.raises(DeftxError, match=said):
        load_recipe(folder / "several.yaml", changes)
