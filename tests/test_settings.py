"""Settings: what is unknown or wrong is named in one line, and changes leave the rest as it was."""

import json
from pathlib import Path

import pytest

from deftx.cli.arguments import assigned
from deftx.cli.output import settings_table
from deftx.config import (
    LANGUAGE_PRESETS,
    TABLES,
    TASK_PRESETS,
    LanguageTrainingConfig,
    LanguageVectorConfig,
    TaskTrainingConfig,
    TaskVectorConfig,
    changed,
    described,
    parse,
)
from deftx.errors import DeftxError


def error(kind, data):
    with pytest.raises(DeftxError) as caught:
        parse(kind, data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("data", "start"),
    [
        (
            {"methd": "deftx"},
            "unknown setting 'methd' (did you mean 'method'?); "
            "known: k, keep, keep_of, method, phase1_steps, phase2, rank, reselection, seed, "
            "split, training",
        ),
        (
            {"training": {"batchsize": 4}},
            "unknown setting 'training.batchsize' (did you mean 'training.batch_size'?); known: ",
        ),
        ({"training": {"metric": "accuracy"}}, "unknown setting 'training.metric'"),
        (
            {"batch_size": 4},
            "unknown setting 'batch_size' (did you mean 'training.batch_size'?); known: k, ",
        ),
    ],
)
def test_an_unknown_setting_is_named_with_the_nearest_known_one(data, start):
    assert error(LanguageVectorConfig, data).startswith(start)


def test_the_known_settings_are_those_of_the_same_place():
    known = error(TaskVectorConfig, {"training": {"x": 1}}).split("known: ")[1].split(", ")
    assert sorted(known) == sorted(
        f"training.{name}" for name in type(TaskVectorConfig().training).model_fields
    )
    assert "training.mask" not in known


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"training": {"batch_size": "four"}},
            "setting training.batch_size = 'four': input should be a valid integer",
        ),
        (
            {"training": {"batch_size": 0}},
            "setting training.batch_size = 0: input should be greater than 0",
        ),
        (
            {"training": {"batch_size": 2.5}},
            "setting training.batch_size = 2.5: input should be a valid integer",
        ),
        (
            {"training": {"learning_rate": -1e-4}},
            "setting training.learning_rate = -0.0001: input should be greater",
        ),
        (
            {"training": {"learning_rate": float("nan")}},
            "setting training.learning_rate = nan: input should be a finite number",
        ),
        (
            {"training": {"precision": "fp16"}},
            "setting training.precision = 'fp16': input should be 'auto', 'fp32' or 'bf16'",
        ),
        ({"training": {"mask": 1.0}}, "setting training.mask = 1.0: input should be less than 1"),
        (
            {"training": 5},
            "setting training = 5: give a name before each value, such as {batch_size: 4}",
        ),
        (
            {"training": {"epochs": 1e308}},
            "setting training.epochs = 1e+308: input should be less than or equal to 1000000",
        ),
        (
            {"training": {"l1": 1e308}},
            "setting training.l1 = 1e+308: input should be less than or equal to 1000000",
        ),
        (
            {"training": {"batch_size": 10**30}},
            "setting training.batch_size = 1000000000000000000000000000000: input should be less",
        ),
        (
            {"training": {"length": 2**31}},
            "setting training.length = 2147483648: input should be less than 2147483648",
        ),
        (
            {"training": {"logs": "a\ud800b"}},
            "setting training.logs = 'a\\ud800b' is not text in Unicode: type it again",
        ),
        ({"keep": 1.5}, "setting keep = 1.5: input should be less than or equal to 1"),
        ({"keep": None}, "setting keep = None: input should be a valid number"),
        ({"split": "row"}, "setting split = 'row': input should be 'global', 'matrix' or 'layer'"),
        (
            {"training": {"average": 0}},
            "setting training.average = 0: input should be greater than 0",
        ),
        ({"seed": -1}, "setting seed = -1: input should be greater than or equal to 0"),
        ({"method": 3}, "setting method = 3: input should be a valid string"),
    ],
)
def test_a_wrong_value_is_named_with_its_place_and_what_it_should_be(data, message):
    assert error(LanguageVectorConfig, data).startswith(message)


def test_fewest_steps_above_the_most_are_an_error_and_not_a_long_surprise():
    """Where both are said: otherwise the fewest would outdo a user's most."""
    message = (
        "setting training.min_steps = 101: is more than max_steps = 100; change one of the two"
    )
    assert (
        error(LanguageVectorConfig, {"training": {"max_steps": 100, "min_steps": 101}}) == message
    )
    assert error(TaskVectorConfig, {"training": {"max_steps": 100, "min_steps": 101}}) == message
    with pytest.raises(DeftxError, match="min_steps = 30000: is more than max_steps = 100"):
        changed(LanguageVectorConfig(), {"training": {"max_steps": 100, "min_steps": 30_000}})
    assert (
        parse(
            LanguageVectorConfig, {"training": {"max_steps": 100, "min_steps": 100}}
        ).training.max_steps
        == 100
    )


@pytest.mark.parametrize(
    ("changes", "most", "fewest"),
    [
        ([{"max_steps": 100}], 100, 100),
        ([{"max_steps": 40_000}], 40_000, 30_000),
        ([{"max_steps": None}], None, 30_000),
        ([{}], 100_000, 30_000),
        ([{"max_steps": 100}, {"max_steps": 50}], 50, 50),
        ([{"max_steps": 100}, {"max_steps": 50_000}], 50_000, 30_000),
        ([{"max_steps": 100}, {"epochs": 3}], 100, 100),
        ([{"max_steps": 100}, {"min_steps": 7}], 100, 7),
    ],
)
def test_the_most_steps_alone_lower_the_fewest(changes, most, fewest):
    """The paper's 30,000 steps at least do not stand in the way of `--set
    training.max_steps=100`."""
    settings = LANGUAGE_PRESETS["paper-sentiment"]
    for change in changes:
        settings = changed(settings, {"training": change})
    assert (settings.training.max_steps, settings.training.min_steps) == (most, fewest)
    assert parse(LanguageVectorConfig, settings.model_dump()) == settings


@pytest.mark.parametrize("most", [0, -1, 2.5, "many"])
def test_most_steps_that_are_no_number_of_steps_are_named(most):
    assert error(LanguageVectorConfig, {"training": {"max_steps": most}}).startswith(
        f"setting training.max_steps = {most!r}: "
    )


@pytest.mark.parametrize("value", [7, "7.6M", "2.8%", 7.6e6])
def test_k_and_rank_are_taken_as_they_are_written(value):
    assert parse(LanguageVectorConfig, {"k": value}).k == value
    assert parse(LanguageVectorConfig, {"rank": value}).rank == value


@pytest.mark.parametrize("data", [{"k": [1]}, {"rank": {"a": 1}}, {"k": None}])
def test_a_k_or_rank_that_is_neither_number_nor_text_is_named(data):
    assert error(LanguageVectorConfig, data).startswith(f"setting {next(iter(data))}")


def test_changes_keep_all_else_of_a_preset():
    quick = LANGUAGE_PRESETS["quick"]
    other = changed(quick, {"k": "5%", "training": {"batch_size": 4}})
    assert type(other) is LanguageVectorConfig
    assert other.model_dump() == {
        **quick.model_dump(),
        "k": "5%",
        "training": {**quick.training.model_dump(), "batch_size": 4},
    }
    assert (other.training.max_steps, other.training.learning_rate) == (1000, 1e-4)
    assert quick.training.batch_size == 8


@pytest.mark.parametrize("preset", [*LANGUAGE_PRESETS.values(), *TASK_PRESETS.values()])
def test_no_changes_and_changes_in_two_steps_are_what_they_should_be(preset):
    assert changed(preset, {}) == preset
    twice = changed(
        changed(preset, {"training": {"epochs": 3}}), {"training": {"batch_size": 2}, "seed": 1}
    )
    assert twice == changed(preset, {"seed": 1, "training": {"batch_size": 2, "epochs": 3}})
    assert parse(type(preset), preset.model_dump()) == preset


def test_changes_are_checked():
    with pytest.raises(
        DeftxError, match=r"unknown setting 'training\.epoch' .did you mean 'training\.epochs'"
    ):
        changed(TaskVectorConfig(), {"training": {"epoch": 3}})
    with pytest.raises(DeftxError, match="setting training = 'x'"):
        changed(TaskVectorConfig(), {"training": "x"})


def test_a_call_names_a_fault_in_settings_within_settings_with_the_outer_name():
    with pytest.raises(DeftxError, match=r"^setting training\.epochs = 0: input should be greater"):
        TaskVectorConfig(training={"epochs": 0})
    with pytest.raises(DeftxError, match=r"^setting epochs = 0: input should be greater"):
        TaskVectorConfig(training=type(TaskVectorConfig().training)(epochs=0))


@pytest.mark.parametrize(
    ("data", "key"), [({1: 2}, "1 = 1"), ({"training": {1: 2}}, r"training\.1 = 1")]
)
def test_a_key_that_is_no_text_is_named(data, key):
    with pytest.raises(DeftxError, match=f"^setting {key}: keys should be strings$"):
        parse(LanguageVectorConfig, data)


def test_settings_do_not_change():
    settings = LanguageVectorConfig()
    with pytest.raises(
        DeftxError, match=r"settings do not change: make others, LanguageVectorConfig\(k=5\)"
    ):
        settings.k = 5
    with pytest.raises(DeftxError, match=r"LanguageTrainingConfig\(epochs=5\)"):
        settings.training.epochs = 5
    assert settings == LanguageVectorConfig()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: TaskVectorConfig(learning_rate=1e-4),
            "unknown setting 'learning_rate' (did you mean 'training.learning_rate'?); known: k, ",
        ),
        (lambda: TaskVectorConfig(keep=2), "setting keep = 2: input should be less than or equal"),
        (
            lambda: TaskTrainingConfig(batch_size=0),
            "setting batch_size = 0: input should be greater than 0",
        ),
        (
            lambda: TaskVectorConfig(training={"batchsize": 4}),
            "unknown setting 'training.batchsize' (did you mean 'training.batch_size'?)",
        ),
        (
            lambda: LanguageVectorConfig(training=TaskTrainingConfig()),
            "setting training is a TaskTrainingConfig: give a LanguageTrainingConfig",
        ),
        (
            lambda: LanguageTrainingConfig(max_steps=10, min_steps=20),
            "setting min_steps = 20: is more than max_steps = 10",
        ),
    ],
)
def test_wrong_settings_in_python_are_one_line_too(make, message):
    with pytest.raises(DeftxError) as caught:
        make()
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert "pydantic" not in str(caught.value)


def test_settings_are_made_of_keywords_alone():
    with pytest.raises(TypeError, match="positional argument"):
        TaskVectorConfig(5)
    settings = TaskVectorConfig(k=7, training={"batch_size": 4})
    assert settings == parse(TaskVectorConfig, {"k": 7, "training": {"batch_size": 4}})
    assert isinstance(settings.training, TaskTrainingConfig)


def test_what_is_set_to_null_is_null():
    assert assigned(["training.held_out_blocks=null"]) == {"training": {"held_out_blocks": None}}
    found = changed(LanguageVectorConfig(), assigned(["training.held_out_blocks=null"]))
    assert LanguageVectorConfig().training.held_out_blocks == 1000
    assert found.training.held_out_blocks is None


def markdown(kind):
    """The table of a kind of settings, as it stands in docs/settings.md."""
    columns, rows = settings_table(described(*TABLES[kind]))
    return "\n".join(f"| {' | '.join(row)} |" for row in [columns, ["---"] * len(columns), *rows])


@pytest.mark.parametrize("kind", TABLES)
def test_the_settings_of_the_docs_are_those_of_the_code(kind):
    page = (Path(__file__).parents[1] / "docs" / "settings.md").read_text(encoding="utf-8")
    assert markdown(kind) in page


@pytest.mark.parametrize("kind", TABLES)
def test_every_setting_is_described_once_with_its_default_and_its_presets(kind):
    settings, presets = TABLES[kind]
    rows = {row.name: row for row in described(settings, presets)}
    groups = {"training", "reselection"}
    inner = {
        f"{group}.{n}" for group in groups for n in type(getattr(settings(), group)).model_fields
    }
    assert rows.keys() == settings.model_fields.keys() - groups | inner
    for row in rows.values():
        assert len(row.meaning) > 20
        assert row.meaning[0].isupper()
        assert row.meaning.endswith(".")
        assert "|" not in row.meaning
        *path, last = row.name.split(".")
        for name, preset in presets.items():
            part = getattr(preset, path[0]) if path else preset
            assert getattr(part, last) == row.presets.get(name, row.default)
            assert name not in row.presets or row.presets[name] != row.default


def test_standard_stands_between_quick_and_the_papers_settings():
    for presets in (LANGUAGE_PRESETS, TASK_PRESETS):
        paper = next(name for name in presets if name.startswith("paper"))
        quick, standard, whole = (presets[name].training for name in ("quick", "standard", paper))
        assert quick.epochs <= standard.epochs <= whole.epochs
        assert (
            (quick.max_steps or 0) <= standard.max_steps <= (whole.max_steps or standard.max_steps)
        )


def test_the_command_lists_all_settings_or_those_of_one_kind(run):
    both = json.loads(run("settings", "--json").out)
    assert both.keys() == {"language", "task"}
    only = json.loads(run("settings", "task", "--json").out)
    assert only == {"task": both["task"]}
    rate = next(row for row in both["language"] if row["name"] == "training.learning_rate")
    assert (rate["default"], rate["presets"]["quick"]) == (5e-5, 1e-4)
    table = run("settings", "language")
    assert table.code == 0
    assert all(name in table.out for name in ("deftx fit language", "quick", "standard", "mask"))
    assert "deftx fit task" not in table.out
    wrong = run("settings", "lang")
    assert wrong.code == 2
    assert wrong.complaint == (
        "deftx: unknown kind of settings 'lang' (did you mean 'language'?); known: language, task"
    )
