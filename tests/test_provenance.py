"""Where a vector comes from: typed, tolerant of others' files, and the same JSON again."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import deftx
from deftx.core.provenance import (
    ConversionRecord,
    DataRecord,
    PhaseLog,
    Provenance,
    TokenizerRecord,
    TrainingRecord,
)
from deftx.core.vector import SparseVector
from deftx.errors import DeftxError
from deftx.storage.provenance_json import PROVENANCE, provenance_from_json, provenance_to_json

FIXTURES = sorted((Path(__file__).parent / "fixtures" / "format-1").glob("*/vector.json"))
ODD = [None, [], {}, "x", 3, 2.5, True, [1], {"a": 1}, [None], {"digest": []}, {"a": {"b": None}}]
LANGUAGE = {
    "kind": "language",
    "language": "min",
    "tokenizer": {"name": "t", "digest": "d"},
    "note": 1,
}
EVERY_KEY = {
    "kind": "task",
    "base": "b",
    "base_fingerprint": "f",
    "tokenizer": {"name": "t", "digest": "d", "more": 1},
    "versions": {"torch": "2.0"},
    "labels": ["a", "b"],
    "source": LANGUAGE,
    "sources": {"ace": None, "min": LANGUAGE},
    "temperature": 2.0,
    "data": {"train": 3, "valid": 2, "lower_case": False, "pairs": True, "more": [1]},
    "seed": 0,
    "training": {"length": 7, "metric": "macro_f1", "clip": None},
    "method": "deftx",
    "k": 3,
    "rank": "3/16",
    "keep": 0.05,
    "keep_of": "matrix",
    "split": "global",
    "phase1_steps": 100,
    "phase2": True,
    "reselection": {"every": 4, "window": 2, "share": 0.2},
    "task": "tagging",
    "rank_rule": 3,
    "ranks": {"w": 1},
    "log": {"phase1": {"steps": 2, "best_step": 2, "best_score": 0.5, "history": [{"step": 1}]}},
    "language": "min",
    "finetuned": "m",
    "converted": {"from": "lt-sft", "prefix": ""},
    "operation": "sum",
    "of": [LANGUAGE, {}],
}
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def written(record: Any) -> str:
    """A record, read and written again, as text: its order counts."""
    return json.dumps(provenance_to_json(provenance_from_json(record)))


# Reading and writing


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.parent.name)
def test_a_file_gives_the_same_json_again_byte_for_byte(path):
    info = json.loads(path.read_bytes())["info"]
    assert written(info) == json.dumps(info)


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.parent.name)
def test_a_vector_that_is_loaded_and_saved_has_the_same_vector_json(path, tmp_path):
    """But for the checksums of files, whose writer may be another version of safetensors."""
    deftx.save(deftx.load(path.parent), tmp_path / "again")
    before = json.loads(path.read_bytes())
    after = json.loads((tmp_path / "again" / "vector.json").read_bytes())
    assert json.dumps(after["info"]) == json.dumps(before["info"])


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.parent.name)
def test_what_a_file_records_is_read(path):
    info = json.loads(path.read_bytes())["info"]
    provenance = provenance_from_json(info)
    for name in ("kind", "base", "base_fingerprint", "method", "k", "seed", "versions", "ranks"):
        assert getattr(provenance, name) == info[name]
        assert info[name] is not None
    assert provenance.training.length == info["training"]["length"] == 16
    assert provenance.training.metric == info["training"].get("metric")
    assert provenance.data.digest == info["data"]["digest"]
    for phase, log in info["log"].items():
        assert provenance.log[phase].best_score == log["best_score"]
        assert provenance.log[phase].history == log["history"]
    assert provenance.extra == {}


def test_every_key_has_an_attribute_and_is_written_as_it_was_read():
    assert EVERY_KEY.keys() == PROVENANCE.keys()
    provenance = provenance_from_json(EVERY_KEY)
    nothing = Provenance()
    for attribute in fields(Provenance):
        if attribute.name != "extra":
            assert getattr(provenance, attribute.name) != getattr(nothing, attribute.name)
    assert provenance.extra == {}
    assert provenance.converted == ConversionRecord("lt-sft", "")
    assert provenance.log["phase1"] == PhaseLog(2, 2, 0.5, None, [{"step": 1}])
    assert provenance.data.extra == {"more": [1]}
    assert written(EVERY_KEY) == json.dumps(EVERY_KEY)
    turned = dict(reversed(EVERY_KEY.items()))
    assert written(turned) == json.dumps(turned)


def test_a_new_provenance_is_written_in_the_order_of_the_table():
    provenance = replace(provenance_from_json(EVERY_KEY), key_order=())
    assert list(provenance_to_json(provenance)) == list(PROVENANCE)


@pytest.mark.parametrize("value", ODD, ids=repr)
@pytest.mark.parametrize("key", sorted(PROVENANCE))
def test_odd_values_of_strangers_are_read_as_nothing_and_kept(key, value):
    record = {"more": 1, key: value}
    provenance = provenance_from_json(record)
    assert written(record) == json.dumps(record)
    assert provenance.extra["more"] == 1
    for name in ("kind", "language", "task", "base", "base_fingerprint", "method", "operation"):
        assert isinstance(getattr(provenance, name), str | None)
    assert provenance.k is not True
    assert isinstance(provenance.k, int | None)
    assert isinstance(provenance.data, DataRecord)
    assert all(isinstance(log, PhaseLog) for log in provenance.log.values())
    assert isinstance(provenance.languages, tuple)
    assert isinstance(repr(provenance), str)


@given(st.dictionaries(st.sampled_from(sorted(PROVENANCE)) | st.text(), JSON_VALUES, max_size=4))
def test_whatever_a_file_holds_is_written_as_it_was_read(record):
    assert written(record) == json.dumps(record)


@pytest.mark.parametrize("record", [None, [], "x", 3])
def test_what_is_no_object_is_one_line(record):
    with pytest.raises(DeftxError, match="must be a JSON object"):
        provenance_from_json(record)


@pytest.mark.parametrize("depth", [3, 5000])
def test_sums_of_sums_may_be_deep(depth):
    provenance = Provenance(language="min")
    for _ in range(depth):
        provenance = Provenance(operation="sum", terms=(provenance,))
    record = provenance_to_json(provenance)
    again = provenance_from_json(record)
    for _ in range(depth):
        (record,) = record["of"]
        (again,) = again.terms
    assert record == {"language": "min"}
    assert again == provenance_from_json({"language": "min"})
    assert provenance.languages == ("min",)


def test_a_rank_that_stood_for_a_number_is_saved_and_loaded(tmp_path):
    provenance = Provenance(rank="3/16", rank_rule=3)
    deftx.save(SparseVector({}, provenance=provenance), tmp_path / "vector")
    assert deftx.load(tmp_path / "vector").provenance == provenance


# Changing


def test_changes_keep_the_order_of_the_file_and_what_it_says_besides():
    record = {"note": [1], "kind": "task", "source": None, "k": 3, "data": {"z": 1, "lines": 2}}
    provenance = provenance_from_json(record)
    data = replace(provenance.data, digest="d")
    changed = replace(provenance, k=4, base="b", kind="x", data=data)
    assert json.dumps(provenance_to_json(changed)) == json.dumps(
        {
            "note": [1],
            "kind": "x",
            "source": None,
            "k": 4,
            "data": {"z": 1, "lines": 2, "digest": "d"},
            "base": "b",
        }
    )
    assert provenance.k == 3


def test_an_odd_value_gives_way_to_a_new_one():
    provenance = provenance_from_json({"base": 3, "data": "x"})
    assert (provenance.base, provenance.data) == (None, DataRecord())
    changed = replace(provenance, base="b", data=DataRecord(lines=1))
    assert provenance_to_json(changed) == {"base": "b", "data": {"lines": 1}}


def test_an_update_takes_what_the_later_one_records():
    first = Provenance(kind="language", k=3, ranks={"w": 1}, extra={"a": 1, "b": 1})
    later = Provenance(k=4, ranks={}, extra={"b": 2})
    assert first.updated(later) == Provenance(
        kind="language", k=4, ranks={}, extra={"a": 1, "b": 2}
    )


def test_that_a_trained_task_had_no_source_is_written():
    trained = Provenance(kind="task", log={"phase2": PhaseLog(steps=1)})
    assert provenance_to_json(trained)["source"] is None
    assert provenance_to_json(trained)["labels"] == []
    assert "source" not in provenance_to_json(replace(trained, kind="language"))
    assert "source" not in provenance_to_json(Provenance(kind="task"))


@pytest.mark.parametrize("settings", [deftx.LanguageVectorConfig, deftx.TaskVectorConfig])
def test_every_setting_of_a_fit_has_an_attribute(settings):
    assert settings.model_fields.keys() <= PROVENANCE.keys()


# What it says


def test_nothing_recorded_is_none_or_empty():
    provenance = Provenance()
    assert provenance_to_json(provenance) == {}
    values = {
        attribute.name: getattr(provenance, attribute.name) for attribute in fields(provenance)
    }
    assert values.pop("training") == TrainingRecord()
    assert values.pop("data") == DataRecord()
    assert not any(values.values())
    assert (provenance.training.length, provenance.training.metric) == (None, None)
    assert provenance.languages == ()


def test_sources_and_terms_are_provenances_too():
    language = provenance_from_json(LANGUAGE)
    task = provenance_from_json({"source": LANGUAGE, "sources": {"min": LANGUAGE, "ace": None}})
    assert task.source == language
    assert task.source.tokenizer == TokenizerRecord("t", "d")
    assert task.sources == {"min": language, "ace": None}
    total = Provenance(operation="sum", terms=(language, task))
    assert total.languages == ("min", "ace")
    assert provenance_from_json(provenance_to_json(total)) == total


@pytest.mark.parametrize("length", [True, "x", 2.5, None])
def test_a_setting_of_another_type_is_not_read(length):
    assert TrainingRecord({"length": length, "metric": [1]}).length is None
    assert TrainingRecord({"length": length, "metric": [1]}).metric is None


def test_a_vector_takes_no_mapping_for_its_provenance():
    with pytest.raises(DeftxError, match=r"is a dict: give deftx\.Provenance\(") as error:
        SparseVector({}, None, {"base": "b"})
    assert "\n" not in str(error.value)
