"""What a recipe may say, what it may extend, and how what is wrong is named."""

from pathlib import Path

import pytest
import yaml
from tiny_run import RECIPE, recipe, write_recipe

import deftx
from deftx.config import LANGUAGE_PRESETS, TASK_PRESETS, changed, merged
from deftx.data.held_out import held_out
from deftx.errors import DeftxError
from deftx.experiments import inheritance as layers
from deftx.experiments.data import read
from deftx.experiments.recipe import load_recipe
from deftx.experiments.run import prepare

RECIPES = Path(__file__).parents[1] / "recipes"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe"))


def test_a_variant_without_language_vectors_needs_none(folder: Path) -> None:
    assert recipe(folder).needed_languages("none") == []
    assert recipe(folder).needed_languages("DeFT-X") == ["src", "tar"]


def test_a_label_that_is_not_learnt_is_named_before_anything_is(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "mixed.tsv").write_text((folder / "tar.tsv").read_text() + "ba be\tmixed\n")
    with pytest.raises(
        DeftxError, match=r"mixed\.tsv, example \d+: label 'mixed' is not among .*: back, front"
    ):
        prepare(recipe(folder, {"test": {"tar": "mixed.tsv"}}), tmp_path / "store")


def test_an_unknown_tag_is_named_before_anything_is_learnt(folder: Path, tmp_path: Path) -> None:
    (folder / "tags.tsv").write_text("ba\tA\nbe\tB\n\nbo\tA\n")
    (folder / "odd.tsv").write_text("ba\tA\n\nbo\tC\n")
    changes = {
        "train": "tags.tsv",
        "valid": "tags.tsv",
        "task": {"task": "tagging"},
        "ngrams": False,
    }
    changes |= {"test": {"tar": "odd.tsv", "src": "tags.tsv"}}
    with pytest.raises(DeftxError, match=r"odd\.tsv, example 2: label 'C' is not among .*: A, B"):
        prepare(recipe(folder, changes), tmp_path / "store")


def test_a_label_that_trimming_takes_away_is_missed_before_anything_is_learnt(
    folder: Path, tmp_path: Path
) -> None:
    rows = (folder / "src.tsv").read_text()
    (folder / "rare.tsv").write_text(f"{rows}bi bo be ba bu bi bo\trare\n")
    (folder / "same.tsv").write_text("text\tlabel\nbi bo be ba bu bi bo\trare\n")
    changes = {
        "train": "rare.tsv",
        "test": {"tar": "same.tsv", "src": "tar.tsv"},
        "contamination": "trim",
    }
    with pytest.raises(DeftxError, match=r"same\.tsv, example 1: label 'rare' is not among"):
        prepare(recipe(folder, changes), tmp_path / "store")


def test_a_lora_does_not_take_over_the_rank_of_denoising(folder: Path) -> None:
    changes = {
        "language": {"rank": "90%"},
        "variants": {"L": {"family": "lora"}, "M": {"family": "lora"}},
    }
    found = recipe(folder, merged(changes, {"variants": {"M": {"language": {"rank": 3}}}}))
    assert [found.language_config(name, 0).rank for name in "LM"] == [None, 3]
    assert found.language_config("L", 0).training.max_steps == found.language.training.max_steps


def test_settings_start_from_a_preset_in_a_recipe_and_in_a_variant(folder: Path) -> None:
    changes = {"language": {"preset": "quick", "k": "7%", "training": {"max_steps": 9}}}
    changes |= {
        "task": {"preset": "standard", "training": None},
        "variants": {"V": {"task": {"preset": "paper-nli"}}},
    }
    data = {**RECIPE, **changes}
    del data["task"]["training"]
    (folder / "preset.yaml").write_text(yaml.safe_dump(data))
    found = load_recipe(folder / "preset.yaml")
    quick = LANGUAGE_PRESETS["quick"]
    assert found.language == changed(quick, {"k": "7%", "training": {"max_steps": 9}})
    assert found.task.training.max_steps == TASK_PRESETS["standard"].training.max_steps
    variant = found.task_config("V", 0)
    assert (variant.k, variant.training.batch_size, variant.training.metric) == (
        14_155_776,
        32,
        "accuracy",
    )
    assert found.task_config("V", 3).seed == 3
    set_on_top = load_recipe(folder / "preset.yaml", {"language": {"preset": "paper-sentiment"}})
    assert (set_on_top.language.training.max_steps, set_on_top.language.k) == (9, "7%")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"language": {"preset": "quik"}},
            r"unknown preset 'quik' \(did you mean 'quick'\?\); known: paper-nli, ",
        ),
        (
            {"task": {"preset": "paper"}},
            "unknown preset 'paper'.*known: paper-nli, paper-sentiment",
        ),
        ({"task": {"preset": None}}, "unknown preset 'None'"),
        ({"language": {"preset": ["quick"]}}, "unknown preset"),
        ({"variants": {"DeFT-X": {"task": {"preset": "x"}}}}, "unknown preset 'x'"),
        (
            {"variants": {"L": {"family": "lora", "language": {"preset": "quick"}}}},
            r"variant 'L' \(lora\) has no presets",
        ),
    ],
)
def test_a_preset_that_there_is_not_is_named_with_those_there_are(
    folder: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(DeftxError, match=message):
        recipe(folder, changes)


def test_the_base_of_a_recipe_is_found_from_any_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Path(recipe(folder).base)
    assert place.is_absolute()
    assert place.is_dir()
    monkeypatch.setenv("HOME", str(place.parent))
    assert recipe(folder, {"base": f"~/{place.name}"}).base == str(place)


def test_the_model_whose_head_stands_in_is_looked_for_beside_the_recipe(folder: Path) -> None:
    place = Path(recipe(folder).base).name
    there = {"language": {"training": {"head": place}}}
    found = recipe(
        folder,
        {**there, "variants": {"DeFT-X": {"language": {"training": {"head": f"./{place}"}}}}},
    )
    assert (
        found.language.training.head
        == found.language_config("DeFT-X", 0).training.head
        == str(folder.resolve() / place)
    )
    elsewhere = {"training": {"head": "FacebookAI/xlm-roberta-base"}}
    assert (
        recipe(folder, {"language": elsewhere}).language.training.head
        == "FacebookAI/xlm-roberta-base"
    )


def test_test_data_of_single_texts_for_a_task_of_pairs_are_refused(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "pairs.tsv").write_text(
        "premise\thypothesis\tlabel\nba be\tbi\tfront\nbo bu\tba\tback\n"
    )
    changes = {"train": "pairs.tsv", "valid": "pairs.tsv", "contamination": "ignore"}
    with pytest.raises(
        DeftxError, match="the task was learnt from pairs of texts, and these are single ones"
    ):
        prepare(recipe(folder, changes), tmp_path / "store")


def test_null_leaves_out_what_was_set_and_stays_null_over_null(tmp_path: Path) -> None:
    (tmp_path / "below.yaml").write_text("a: 1\nb: null\n")
    (tmp_path / "above.yaml").write_text("extends: below.yaml\na: null\nb: null\nc: null\n")
    assert layers.read(tmp_path / "above.yaml") == {"b": None, "c": None}


def test_a_recipe_extends_another(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "below.yaml").write_text(yaml.safe_dump(RECIPE))
    (tmp_path / "above.yaml").write_text(
        "extends: below.yaml\ntask: {rank: 7}\nvariants: {none: null}\n"
        "language: {training: {max_steps: null}}"
    )
    both = load_recipe(tmp_path / "above.yaml")
    assert set(both.variants) == {"LT-SFT", "DeFT-X"}
    assert (both.task.rank, both.task.k, both.task.training.max_steps) == (7, "5%", 4)
    assert both.language.training.max_steps == 100_000  # its default again


def test_recipes_that_fan_out_are_read_once_each(folder: Path, tmp_path: Path) -> None:
    """Two that extend two that extend two ...: read again for each mention, 2**8 times."""
    base = yaml.safe_load((folder / "recipe.yaml").read_text())
    (tmp_path / "a8.yaml").write_text(yaml.safe_dump(base))
    (tmp_path / "b8.yaml").write_text("seeds: [3]")
    for level in range(8):
        for name in "ab":
            (tmp_path / f"{name}{level}.yaml").write_text(
                f"extends: [a{level + 1}.yaml, b{level + 1}.yaml]"
            )
    assert layers.read(tmp_path / "a0.yaml") == {**base, "seeds": [3]}


def test_a_recipe_extends_no_more_than_can_be_read(tmp_path: Path) -> None:
    for number in range(200):
        (tmp_path / f"b{number}.yaml").write_text(f"seeds: [{number}]")
    (tmp_path / "a.yaml").write_text(
        f"extends: [{', '.join(f'b{number}.yaml' for number in range(200))}]"
    )
    with pytest.raises(DeftxError, match="more than 50 others"):
        load_recipe(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("extends: [b.yaml, b.yaml]", "extends a recipe twice"),
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
        (
            {"paper": {"tabel": "Table 2", "url": "u", "rows": {}}},
            r"unknown setting 'paper\.0\.tabel' \(did you mean 'paper\.0\.table'\?\); known: "
            r"paper\.0\.rows, paper\.0\.table, paper\.0\.url$",
        ),
        (
            {"variants": {"none": {"tsk": {}}}},
            r"unknown setting 'variants\.none\.tsk' \(did you mean 'variants\.none\.task'\?\)",
        ),
        (
            {"language": {"training": {"learning_rat": 1}}},
            "did you mean 'language.training.learning_rate'",
        ),
        ({"variants": {"none": {"task": {"ranc": 1}}}}, "did you mean 'rank'"),
        ({"seeds": "many"}, "seeds"),
        ({"title": "a\ud800b"}, r"setting title = 'a\\ud800b' is not text in Unicode"),
        ({"variants": {"a\udcff": {}}}, r"setting variants = 'a\\udcff' is not text in Unicode"),
        ({"paper": {"\ud800": "u"}}, r"setting paper = '\\ud800' is not text in Unicode"),
        ({"seeds": [2**32]}, "seeds.0 = 4294967296: .* less than"),
        (
            {"languages": {False: "tar.txt"}},
            "called False: YAML reads no, yes, on and off so; put it in quotes",
        ),
        ({"source": False}, "a language is called False: YAML reads no"),
        ({"test": {"elsewhere": "tar.tsv"}}, "no text for 'elsewhere'"),
        ({"variants": {"none": {"rule": "tise"}}}, "unknown rule 'tise'.*did you mean 'ties'"),
        ({"variants": {"none": {"rule": "ties:density=2"}}}, "density = 2: give a share"),
        ({"languages": {"task": "tar.txt"}}, "cannot be called 'task'"),
        ({"languages": {"../tar": "tar.txt"}}, "cannot be called '../tar'"),
        ({"languages": {"..": "tar.txt"}}, "cannot be called '..'"),
        ({"baseline": "LTSFT"}, "did you mean 'LT-SFT'"),
        ({"task": {"task": "taging"}}, "did you mean 'tagging'"),
        ({"task": {"training": {"metric": "f1"}}}, "unknown metric of classification 'f1'"),
        (
            {"task": {"task": "regression"}, "ngrams": False},
            "macro_f1 and accuracy, which regression does not have",
        ),
        (
            {"task": {"task": "ner"}, "ngrams": False},
            "macro_f1 or accuracy, not span_f1: set task.training.metric",
        ),
        (
            {"task": {"task": "parsing", "training": {"metric": "uas"}}},
            "a recipe compares las, not uas: set task.training.metric",
        ),
        (
            {"task": {"task": "tagging"}},
            "ngrams are a baseline for classification, not for tagging",
        ),
        (
            {"variants": {"none": {"task": {"task": "tagging"}}}},
            "variant 'none' has the task tagging",
        ),
        (
            {"variants": {"M": {"family": "madx"}}, "task": {"task": "tagging"}, "ngrams": False},
            r"variant 'M' \(madx\) is for classification, not for tagging",
        ),
    ],
)
def test_what_is_wrong_in_a_recipe_is_named(
    folder: Path, changes: dict[str, object], said: str
) -> None:
    with pytest.raises(DeftxError, match=said):
        recipe(folder, changes)


@pytest.mark.parametrize(("key", "typed"), [("variants", "varients"), ("base", "bsae")])
def test_a_required_key_that_is_misspelt_is_named_with_the_right_spelling(
    folder: Path, tmp_path: Path, key: str, typed: str
) -> None:
    data = {**RECIPE, typed: RECIPE[key]}
    del data[key]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(DeftxError, match=f"^unknown setting '{typed}' .did you mean '{key}'"):
        load_recipe(tmp_path / "recipe.yaml")
    del data[typed]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(DeftxError, match=f"^setting {key}: field required"):
        load_recipe(tmp_path / "recipe.yaml")


def test_a_required_key_of_a_source_that_is_misspelt_is_named(folder: Path) -> None:
    changes = {"sources": {"src": {"trian": "src.tsv"}}}
    with pytest.raises(
        DeftxError, match=r"'sources\.src\.trian' \(did you mean 'sources\.src\.train'\?\)"
    ):
        recipe(folder, changes)


@pytest.mark.parametrize("missing", ["source", "train"])
def test_a_recipe_without_labelled_data_is_refused(folder: Path, missing: str) -> None:
    with pytest.raises(
        DeftxError, match=r"either as source and train \(and valid\), or as sources"
    ):
        recipe(folder, {missing: ""})


def test_without_validation_data_a_tenth_is_held_out_as_fit_task_does(folder: Path) -> None:
    with pytest.warns(
        UserWarning, match="without validation data, 4 of the rows of src choose the best step"
    ):
        data = read(recipe(folder, {"valid": "", "seeds": [3]}))
    whole = deftx.read_examples(folder / "src.tsv")
    train, valid = held_out(whole, 0.1, 3, named=True)
    assert (data.train, data.valid) == ({"src": train}, {"src": valid})
    assert sorted([*data.train["src"].texts, *data.valid["src"].texts]) == sorted(whole.texts)


def test_a_finished_vector_needs_no_text_and_targets_need_no_test(folder: Path) -> None:
    languages = {
        "languages": {"src": None, "tar": "tar.txt"},
        "vectors": {"src": "base"},
        "test": {},
    }
    data = {**RECIPE, **languages, "targets": ["tar", "more"]}
    del data["languages"]["src"]
    (folder / "finished.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(
        DeftxError, match="has no text for 'more'; give it under `languages`, or a finished vector"
    ):
        load_recipe(folder / "finished.yaml")
    found = load_recipe(folder / "finished.yaml", {"languages": {"more": "tar.txt"}})
    assert found.needed_languages("DeFT-X") == ["src", "tar", "more"]
    assert found.needed_texts("DeFT-X") == ["tar", "more"]
    with pytest.raises(DeftxError, match="has no text for 'src'"):
        load_recipe(
            folder / "finished.yaml",
            {"languages": {"more": "tar.txt"}, "variants": {"DeFT-X": {"family": "lora"}}},
        )
    with pytest.raises(
        DeftxError, match="has no text for 'src'"
    ):  # whose words are looked for in the text
        load_recipe(
            folder / "finished.yaml",
            {"languages": {"more": "tar.txt"}, "variants": {"DeFT-X": {"normalize": "words"}}},
        )


@pytest.mark.parametrize("file", sorted(RECIPES.glob("[!_]*.yaml")), ids=lambda file: file.stem)
def test_what_is_in_recipes_is_a_recipe(file: Path) -> None:
    assert load_recipe(file).variants


def test_one_source_is_held_against_three() -> None:
    found = load_recipe(RECIPES / "several-nano.yaml")
    assert (found.contamination, found.seeds, list(found.test)) == (
        "trim",
        (0, 1, 2),
        ["ace", "ban", "bjn", "mad", "min"],
    )
    sources = {variant: found.sources_of(variant) for variant in found.variants}
    assert sorted(sources.values()) == [["ind"]] * 2 + [["ind", "eng", "jav"]] * 2


def test_older_recipes_say_leakage_for_contamination(tmp_path):
    text = "base: b\nlanguages: {id: a.txt, min: b.txt}\nsource: id\ntrain: t.tsv\nvalid: v.tsv\n"
    text += "test: {min: x.tsv}\nvariants: {one: {}}\n"
    (tmp_path / "old.yaml").write_text(text + "leakage: trim\n")
    (tmp_path / "both.yaml").write_text(text + "leakage: trim\ncontamination: stop\n")
    assert load_recipe(tmp_path / "old.yaml").contamination == "trim"
    with pytest.raises(DeftxError, match="leakage"):
        load_recipe(tmp_path / "both.yaml")


def test_language_vectors_of_fewer_seeds_are_used_by_several_tasks(
    folder: Path, tmp_path: Path
) -> None:
    crossed = recipe(folder, {"seeds": [0, 1, 2, 3, 4], "language_seeds": [7, 8]})
    language_seeds = [crossed.language_config("DeFT-X", seed).seed for seed in crossed.seeds]
    assert language_seeds == [7, 8, 7, 8, 7]
    assert [crossed.task_config("DeFT-X", seed).seed for seed in crossed.seeds] == [0, 1, 2, 3, 4]

    # seeds need not begin with 0
    alone = recipe(folder, {"seeds": [3], "language_seeds": [7]})
    assert alone.language_config("DeFT-X", 3).seed == 7
    # without language_seeds a language has the seed of its task
    paired = recipe(folder, {"seeds": [3, 4]})
    assert [paired.language_config("DeFT-X", seed).seed for seed in paired.seeds] == [3, 4]

    # two vectors for each of two languages, five task vectors
    plan = prepare(
        recipe(folder, {"seeds": [0, 1, 2, 3, 4], "language_seeds": [7, 8]}), tmp_path
    ).plan
    users = [use for use, _ in plan.uses_of("vector") if use.variant == "DeFT-X"]
    steps = {
        step_id
        for use, step_id in plan.uses_of("vector")
        if use.variant == "DeFT-X" and use.name != "task"
    }
    assert len(steps) == 4
    assert len([use for use in users if use.name == "task"]) == 5
