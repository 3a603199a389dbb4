"""Vector folders: what is saved comes back bit for bit, and nothing else is accepted or
overwritten."""

import json
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from storage_examples import FLOATS, assert_same, example

from deftx.core.provenance import PhaseLog, Provenance
from deftx.core.tensors import Head, SparseTensor
from deftx.core.vector import SparseVector
from deftx.errors import DeftxError
from deftx.storage.atomic_files import check_target
from deftx.storage.manifest import OriginForm
from deftx.storage.provenance_json import provenance_from_json
from deftx.storage.vector_files import load, save


@pytest.mark.parametrize("head", [True, False])
def test_a_vector_comes_back_as_it_was(tmp_path, head):
    save(example(head=head), tmp_path / "deep" / "down" / "v")
    assert_same(load(tmp_path / "deep" / "down" / "v"), example(head=head))


def test_vectors_are_saved_and_loaded_under_the_names_of_transformers(tmp_path):
    example().save_pretrained(tmp_path / "v")
    for name in (tmp_path / "v", str(tmp_path / "v")):
        found = SparseVector.from_pretrained(name)
        assert_same(found, example())
        assert found.equal(example())
    with pytest.raises(DeftxError, match="v"):
        example(1).save_pretrained(tmp_path / "v")
    example(1).save_pretrained(tmp_path / "v", force=True)
    assert SparseVector.from_pretrained(tmp_path / "v").equal(example(1))


def test_an_empty_vector_comes_back(tmp_path):
    save(SparseVector({}), tmp_path / "v")
    assert_same(load(tmp_path / "v"), SparseVector({}))


@st.composite
def vectors(draw):
    tensors = {}
    for number in range(draw(st.integers(0, 3))):
        shape = tuple(draw(st.lists(st.integers(0, 9), max_size=3)))
        numel = torch.Size(shape).numel()
        places = sorted(draw(st.sets(st.integers(0, numel - 1)))) if numel else []
        dtype = draw(st.sampled_from(FLOATS))
        values = draw(
            st.lists(
                st.floats(width=16, allow_nan=False, allow_infinity=False),
                min_size=len(places),
                max_size=len(places),
            )
        )
        tensors[f"t{number}.weight"] = SparseTensor(
            torch.tensor(places, dtype=torch.int64), torch.tensor(values, dtype=dtype), shape
        )
    numbers = (
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    )
    texts = st.text(st.characters(exclude_categories=["Cs"]))
    # Odd values of the keys that are read back are refused: tests/test_storage_hostile.py
    keys = texts.filter(lambda key: key not in OriginForm.model_fields)
    extra = draw(
        st.dictionaries(keys, st.recursive(numbers | texts, st.lists, max_leaves=5), max_size=3)
    )
    return SparseVector(tensors, None, provenance_from_json(extra))


@settings(max_examples=50, deadline=None)
@given(vectors())
def test_any_vector_comes_back_as_it_was(tmp_path_factory, vector):
    folder = tmp_path_factory.mktemp("any") / "v"
    save(vector, folder)
    assert_same(load(folder), vector)


def test_values_that_share_memory_or_are_strided_or_need_gradients_come_back(tmp_path):
    flat = torch.arange(10.0, requires_grad=True)
    places = torch.arange(5)
    parts = {"a": flat[:5], "b": flat[5:], "c": flat[::2], "d": flat[:5]}
    head = Head({"tied.one": flat, "tied.two": flat, "turned": torch.randn(2, 3).T}, ())
    save(
        SparseVector(
            {name: SparseTensor(places, part, (5,)) for name, part in parts.items()}, head
        ),
        tmp_path / "v",
    )
    loaded = load(tmp_path / "v")
    for name, part in parts.items():
        assert torch.equal(loaded.tensors[name].values, part)
    assert loaded.head is not None
    for name, tensor in head.tensors.items():
        assert torch.equal(loaded.head.tensors[name], tensor)


def test_loaded_values_can_be_changed_without_changing_the_file(tmp_path):
    save(example(), tmp_path / "v")
    for entries in load(tmp_path / "v").tensors.values():
        entries.values.zero_()
    assert_same(load(tmp_path / "v"), example())


def test_a_loaded_vector_outlives_its_folder(tmp_path):
    save(example(0), tmp_path / "v")
    loaded = load(tmp_path / "v")
    save(example(1), tmp_path / "v", force=True)
    assert_same(loaded, example(0))


def damaged(**change):
    return SparseTensor(
        **{"indices": torch.tensor([0, 2]), "values": torch.tensor([1.0, 2.0]), "shape": (4,)}
        | change
    )


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        (
            SparseVector({"a": damaged(values=torch.tensor([1.0, float("nan")]))}),
            "'a' has values that are not finite",
        ),
        (SparseVector({"a": damaged(values=torch.tensor([1.0, float("-inf")]))}), "not finite"),
        (SparseVector({"a": damaged(values=torch.ones(2, dtype=torch.float64))}), "float64"),
        (SparseVector({"a": damaged(values=torch.ones(3))}), "2 indices but 3 values"),
        (
            SparseVector({"a": damaged(indices=torch.tensor([2, 0]))}),
            "tensor 'a': indices must ascend",
        ),
        (SparseVector({"a": damaged(indices=torch.tensor([0, 4]))}), "at most 3"),
        (SparseVector({"../a": damaged()}), "tensors.../a"),
        (
            SparseVector({}, Head({"h": torch.tensor([float("nan")])}, ())),
            "'h' has values that are not finite",
        ),
        (SparseVector({}, Head({"h": torch.ones(1)}, (1,))), "head.labels.0"),  # type: ignore[arg-type]
        (SparseVector({}, None, Provenance(extra={"loss": float("nan")})), "info is not JSON"),
        (
            SparseVector({}, None, Provenance(log={"phase1": PhaseLog(best_score=float("inf"))})),
            "info is not JSON",
        ),
        (SparseVector({}, None, Provenance(extra={"where": os})), "info is not JSON"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(tmp_path, vector, message):
    with pytest.raises(DeftxError, match=message) as error:
        save(vector, tmp_path / "v")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_the_json_is_strict_and_tells_format_shapes_counts_and_labels(tmp_path):
    save(example(), tmp_path / "v")
    content = json.loads((tmp_path / "v" / "vector.json").read_text(), parse_constant=pytest.fail)
    assert content["format_version"] == 1
    assert content["tensors"]["embeddings.word_embeddings.weight"] == {
        "shape": [500, 40],
        "count": 5,
        "dtype": "F32",
    }
    assert content["head"]["labels"] == ["negative", "neutral", "positiv ä"]
    assert content["head"]["shapes"] == {"classifier.weight": [3, 4], "classifier.bias": [3]}


def test_an_existing_folder_is_kept_without_force_and_replaced_with_it(tmp_path):
    save(example(0), tmp_path / "v")
    with pytest.raises(DeftxError, match="--force"):
        save(example(1), tmp_path / "v")
    assert_same(load(tmp_path / "v"), example(0))
    save(example(1, head=False), tmp_path / "v", force=True)
    assert_same(load(tmp_path / "v"), example(1, head=False))
    assert [path.name for path in tmp_path.iterdir()] == ["v"]
    assert sorted(path.name for path in (tmp_path / "v").iterdir()) == [
        "vector.json",
        "vector.safetensors",
    ]


def test_force_fills_an_empty_folder_but_replaces_nothing_else_than_a_vector(tmp_path):
    (tmp_path / "empty").mkdir()
    save(example(), tmp_path / "empty", force=True)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").touch()
    (tmp_path / "file").touch()
    for name in ("thesis", "file"):
        with pytest.raises(DeftxError, match=r"exists: .*--force"):
            check_target(tmp_path / name)
        with pytest.raises(DeftxError, match="not a vector, so --force does not replace it"):
            save(example(), tmp_path / name, force=True)
    assert (tmp_path / "thesis" / "chapter").exists()


def test_a_link_to_a_folder_stays_a_link_when_its_vector_is_replaced(tmp_path):
    save(example(0), tmp_path / "real" / "v")
    (tmp_path / "link").symlink_to(tmp_path / "real" / "v")
    save(example(1), tmp_path / "link", force=True)
    assert (tmp_path / "link").is_symlink()
    assert_same(load(tmp_path / "real" / "v"), example(1))


def test_a_vector_has_the_usual_permissions(tmp_path):
    save(example(), tmp_path / "v")
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "v").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_path_that_is_no_vector_is_told_from_a_missing_one(tmp_path):
    save(example(), tmp_path / "v")
    with pytest.raises(DeftxError, match="no such folder"):
        load(tmp_path / "w")
    with pytest.raises(DeftxError, match="no such folder"):
        load(tmp_path / ("w" * 300))
    with pytest.raises(DeftxError, match=r"is a file: give the folder .* vector\.json"):
        load(tmp_path / "v" / "vector.safetensors")
    with pytest.raises(DeftxError, match=r"has no vector\.json"):
        load(tmp_path)
