"""Where a vector comes from: typed, tolerant of others' files, and the same JSON again."""

import json
from pathlib import Path

import pytest

from deftx.core.provenance import KNOWN, DataRecord, Provenance, TokenizerRecord, TrainingRecord
from deftx.errors import DeftxError

FIXTURES = sorted((Path(__file__).parent / "fixtures" / "format-1").glob("*/vector.json"))
ODD = [None, [], {}, "x", 3, 2.5, True, [1], {"a": 1}, [None], {"digest": []}]
PROPERTIES = [name for name, thing in vars(Provenance).items() if isinstance(thing, property)]


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.parent.name)
def test_a_file_gives_the_same_json_again_byte_for_byte(path):
    info = json.loads(path.read_bytes())["info"]
    again = Provenance.from_json(info).to_json()
    assert json.dumps(again) == json.dumps(info)


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.parent.name)
def test_what_a_file_records_is_read(path):
    info = json.loads(path.read_bytes())["info"]
    provenance = Provenance.from_json(info)
    for name in ("kind", "base", "base_fingerprint", "method", "k", "seed", "versions", "ranks"):
        assert getattr(provenance, name) == info[name]
        assert info[name] is not None
    assert provenance.training.length == info["training"]["length"] == 16
    assert provenance.training.metric == info["training"].get("metric")
    assert provenance.data.digest == info["data"]["digest"]
    assert provenance.log == info["log"]
    assert provenance.extra.keys() == info.keys() - KNOWN


@pytest.mark.parametrize("value", ODD, ids=repr)
@pytest.mark.parametrize("key", sorted(KNOWN))
def test_odd_values_of_strangers_are_read_as_nothing_and_kept(key, value):
    provenance = Provenance.from_json({key: value, "more": 1})
    for name in PROPERTIES:
        getattr(provenance, name)
    assert provenance.to_json() == {key: value, "more": 1}
    assert provenance.extra == {"more": 1}
    for name in ("kind", "language", "task", "base", "base_fingerprint", "method", "operation"):
        assert isinstance(getattr(provenance, name), str | None)
    assert isinstance(provenance.k, int | None)
    assert provenance.k is not True


def test_nothing_recorded_is_none_or_empty():
    provenance = Provenance()
    empty = {name: getattr(provenance, name) for name in PROPERTIES}
    assert empty.pop("training") == TrainingRecord()
    assert empty.pop("data") == DataRecord()
    assert not any(empty.values())
    assert (provenance.data.pairs, provenance.data.lower_case) == (None, False)
    assert provenance.tokenizer is None


def test_changes_keep_the_order_of_the_file():
    provenance = Provenance.of(kind="task", source=None, k=3)
    assert list(provenance.changed(k=4, base="b", kind="x").to_json()) == [
        *("kind", "source", "k", "base")
    ]
    assert provenance.k == 3
    assert provenance.source is None
    assert "source" in provenance.to_json()


def test_sources_and_terms_are_provenances_too():
    language = {"kind": "language", "language": "min", "tokenizer": {"name": "t", "digest": "d"}}
    task = Provenance.of(kind="task", source=language, sources={"min": language, "ace": None})
    assert task.source == Provenance(language)
    assert task.source.tokenizer == TokenizerRecord("t", "d")
    assert task.sources == {"min": Provenance(language), "ace": None}
    total = Provenance.of(operation="sum", of=[language, task.to_json(), "odd"])
    assert total.terms == (Provenance(language), task)
    assert total.languages == ("min", "ace")


@pytest.mark.parametrize("record", [None, [], "x", 3])
def test_what_is_no_object_is_one_line(record):
    with pytest.raises(DeftxError, match="must be a JSON object"):
        Provenance.from_json(record)
