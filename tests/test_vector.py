"""The algebra of vectors: what dense differences would do, on the union of the places."""

from dataclasses import replace
from operator import add, sub

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deftx.core.provenance import DataRecord, Provenance, TrainingRecord
from deftx.core.tensors import Head, SparseTensor
from deftx.core.vector import SparseVector, check_same_base, overlap
from deftx.errors import DeftxError
from deftx.storage.provenance_json import provenance_from_json

SHAPES = {"matrix": (4, 5), "bias": (6,), "cube": (2, 3, 2), "scalar": ()}
FLOATS = [torch.float32, torch.float16, torch.bfloat16]
SCALES = [
    2,
    0,
    -1,
    0.5,
    3.7,
    numpy.float32(0.25),
    numpy.float64(-1.5),
    numpy.int64(3),
    numpy.array(2.0)[()],
]


def vector(seed, names=tuple(SHAPES), share=0.5, dtype=torch.float32, **rest):
    """Random entries of the named tensors, about `share` of each."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name in names:
        dense = torch.randn(SHAPES[name], generator=generator)
        places = (torch.rand(SHAPES[name], generator=generator) < share).view(-1).nonzero().view(-1)
        tensors[name] = SparseTensor(places, dense.reshape(-1)[places].to(dtype), SHAPES[name])
    return SparseVector(tensors, **rest)


def dense(vector):
    """All tensors, those that the vector does not name as zeros."""
    zeros = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    return {**zeros, **{name: entries.to_dense() for name, entries in vector.tensors.items()}}


def places(vector):
    return {
        (name, index)
        for name, entries in vector.tensors.items()
        for index in entries.indices.tolist()
    }


def assert_well_formed(vector):
    for entries in vector.tensors.values():
        assert entries.indices.dtype == torch.int64
        assert len(entries.indices) == len(entries.values)
        assert (entries.indices.diff() > 0).all()


NAMES = st.lists(st.sampled_from(list(SHAPES)), unique=True).map(tuple)
SHARES = st.sampled_from([0.0, 0.3, 1.0])
VECTORS = st.builds(vector, st.integers(0, 9), NAMES, SHARES)


@pytest.mark.parametrize("operation", [add, sub])
@given(VECTORS, VECTORS)
def test_sums_and_differences_equal_dense_ones_on_the_union_of_the_places(operation, one, other):
    result = operation(one, other)
    assert_well_formed(result)
    assert places(result) == places(one) | places(other)
    for name, tensor in dense(result).items():
        assert torch.equal(tensor, operation(dense(one)[name], dense(other)[name]))


@given(VECTORS, st.sampled_from(SCALES))
def test_scaling_equals_dense_scaling_from_both_sides(one, scale):
    for result in (one * scale, scale * one):
        assert isinstance(result, SparseVector)
        assert places(result) == places(one)
        for name, tensor in dense(result).items():
            assert torch.equal(tensor, dense(one)[name] * float(scale))


@given(VECTORS, st.sampled_from([scale for scale in SCALES if scale]))
def test_division_equals_dense_division(one, divisor):
    result = one / divisor
    assert places(result) == places(one)
    for name, tensor in dense(result).items():
        assert torch.equal(tensor, dense(one)[name] / float(divisor))


@given(st.lists(VECTORS, min_size=1, max_size=4))
def test_the_mean_of_vectors_is_their_sum_over_their_number(some):
    mean = sum(some) / len(some)
    for name in SHAPES:
        expected = torch.stack([dense(one)[name] for one in some]).mean(0)
        torch.testing.assert_close(dense(mean)[name], expected)


@pytest.mark.parametrize(
    "wrong", [lambda v: v + 1, lambda v: 1 + v, lambda v: v * v, lambda v: v / v, lambda v: 1 / v]
)
def test_what_has_no_meaning_is_a_type_error(wrong):
    with pytest.raises(TypeError, match="unsupported operand"):
        wrong(vector(1))


@given(VECTORS, VECTORS, VECTORS)
def test_addition_is_commutative_and_associative(a, b, c):
    for one, other in [(a + b, b + a), ((a + b) + c, a + (b + c))]:
        assert places(one) == places(other)
        for name in SHAPES:
            torch.testing.assert_close(dense(one)[name], dense(other)[name])


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_vector_and_its_negation_cancel_exactly(dtype):
    one = vector(1, dtype=dtype)
    for nothing in (one + -one, one - one, -one + one):
        assert nothing.k == one.k
        assert all(not entries.values.any() for entries in nothing.tensors.values())
        assert all(entries.values.dtype == dtype for entries in nothing.tensors.values())


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("scale", SCALES)
def test_scaling_keeps_the_dtype(dtype, scale):
    assert {
        entries.values.dtype for entries in (vector(1, dtype=dtype) * scale).tensors.values()
    } == {dtype}


def test_a_sum_of_two_dtypes_takes_the_wider_one():
    total = vector(1, ("bias",), dtype=torch.float16) + vector(2, ("bias",), dtype=torch.float32)
    assert total.tensors["bias"].values.dtype == torch.float32


def test_neither_term_is_changed():
    one, other = vector(1), vector(2)
    before = [entries.values.clone() for v in (one, other) for entries in v.tensors.values()]
    _ = one + other, one - other, 3 * one, -one
    after = [entries.values for v in (one, other) for entries in v.tensors.values()]
    assert all(map(torch.equal, before, after))


def test_tensors_keep_the_order_in_which_they_come():
    total = vector(1, ("cube", "bias")) + vector(2, ("matrix", "bias"))
    assert list(total.tensors) == ["cube", "bias", "matrix"]


def test_tensors_of_different_shapes_do_not_add():
    one = SparseVector({"w": SparseTensor(torch.tensor([0]), torch.ones(1), (2, 3))})
    other = SparseVector({"w": SparseTensor(torch.tensor([0]), torch.ones(1), (3, 2))})
    with pytest.raises(
        DeftxError, match=r"'w' has shape \(2, 3\) in one vector and \(3, 2\) in the other"
    ):
        one + other


def test_vectors_of_different_bases_do_not_combine():
    one = vector(1, provenance=Provenance(base="xlm-r", base_fingerprint="a" * 64))
    other = vector(2, provenance=Provenance(base="bert", base_fingerprint="b" * 64))
    for combine in (add, sub, check_same_base):
        with pytest.raises(
            DeftxError, match=r"different bases.*xlm-r \(aaaaaaaaaaaa\), bert \(bbbbbbbbbbbb\)"
        ):
            combine(one, other)
    with pytest.raises(DeftxError, match="different bases"):
        check_same_base(one, vector(3), other)
    check_same_base()
    check_same_base(one, vector(3), one)


def test_a_computed_vector_knows_its_base_and_what_it_was_computed_from():
    named, unnamed = (
        vector(1, provenance=Provenance(base="xlm-r", base_fingerprint="a" * 64, seed=4)),
        vector(2),
    )
    for result in (named + unnamed, unnamed + named, 2 * named, -named, named - unnamed):
        assert (result.provenance.base, result.provenance.base_fingerprint) == ("xlm-r", "a" * 64)
    assert (unnamed + named).provenance.terms == (Provenance(), named.provenance)
    assert (numpy.float32(0.5) * named).provenance.operation == "0.5 times"
    assert (2 * unnamed).provenance.base is None


def head(labels=("no", "yes"), value=1.0):
    return Head({"classifier.weight": torch.full((len(labels), 3), value)}, labels)


@pytest.mark.parametrize("scale", [2, -1, 0, 0.5])
def test_scaling_keeps_the_head_as_it_is_and_how_it_is_fed(scale):
    provenance = Provenance(
        task="tagging",
        training=TrainingRecord({"length": 7}),
        data=DataRecord(lower_case=True, train=9),
    )
    task = vector(1, head=head(), provenance=provenance)
    for scaled in (scale * task, task * scale, -task, task / 2):
        assert scaled.head is task.head
        assert (scaled.task, scaled.provenance.training.settings) == ("tagging", {"length": 7})
        assert scaled.provenance.data == DataRecord(lower_case=True)


def test_a_sum_has_the_head_of_its_first_term_that_has_one():
    task, other, language = vector(1, head=head()), vector(3, head=head(value=2.0)), vector(2)
    for total in (task + language, language + task, task - language, language - task):
        assert total.head is task.head
    assert (task + other).head is (task - other).head is task.head
    assert (other + task).head is other.head
    assert (sum([language, task, other]) / 3).head is task.head
    assert (language + language).head is None


def test_heads_for_other_labels_do_not_add():
    one, other = vector(1, head=head()), vector(2, head=head(("no", "yes", "maybe")))
    for combine in (add, sub):
        with pytest.raises(
            DeftxError, match=r"heads have different labels \(no, yes and no, yes, maybe\).*merge"
        ):
            combine(one, other)
    reordered = vector(2, head=head(("yes", "no")))
    with pytest.raises(DeftxError, match="different labels"):
        one + reordered


def test_a_vector_is_a_mapping_of_its_tensors():
    one = vector(1, ("bias", "cube"))
    assert (len(one), list(one), "bias" in one, "matrix" in one) == (
        2,
        ["bias", "cube"],
        True,
        False,
    )
    assert one["cube"] is one.tensors["cube"]
    assert dict(one) == dict(one.items()) == one.tensors
    assert list(one.keys()) == list(one)
    assert list(one.values()) == list(one.tensors.values())
    with pytest.raises(KeyError):
        one["matrix"]
    assert len(SparseVector({})) == 0
    assert SparseVector({})  # still a vector


def test_what_a_vector_is_can_be_asked():
    sources = {"ace": Provenance(), "min": Provenance()}
    provenance = Provenance(base="xlm-r", task="tagging", sources=sources)
    task, language = (
        vector(1, head=head(), provenance=provenance),
        vector(2, provenance=Provenance(language="ban")),
    )
    assert (task.base, task.task, task.labels) == ("xlm-r", "tagging", ("no", "yes"))
    assert task.languages == ("ace", "min")
    assert (language.base, language.task, language.labels) == (None, None, ())
    assert language.languages == ("ban",)
    assert (2 * (task + language)).languages == ("ace", "min", "ban")
    odd = provenance_from_json({"base": 3, "task": ["x"], "sources": None, "of": [7, {}]})
    nothing = SparseVector({}, provenance=odd)
    assert (nothing.base, nothing.task, nothing.languages) == (None, None, ())


@given(VECTORS, VECTORS)
def test_vectors_are_equal_where_all_entries_are(one, other):
    assert one.equal(replace(one, tensors=dict(one), provenance=Provenance(seed=1)))
    same = [*one] == [*other] and all(
        torch.equal(one[name].indices, other[name].indices)
        and torch.equal(one[name].values, other[name].values)
        for name in one
    )
    assert one.equal(other) is other.equal(one)
    if [*one] == [*other]:
        assert one.equal(other) is same


def test_one_value_index_shape_or_head_more_makes_another_vector():
    one = vector(1, ("matrix",))
    entries = one["matrix"]
    values = entries.values.clone()
    values[0] += 1
    others = [
        replace(entries, values=values),
        replace(entries, shape=(5, 4)),
        replace(entries, indices=entries.indices[1:], values=entries.values[1:]),
    ]
    for other in others:
        assert not one.equal(SparseVector({"matrix": other}))
    assert not one.equal(SparseVector({"other": entries}))
    assert not one.equal(SparseVector({}))
    task = replace(one, head=head())
    assert not one.equal(task)
    assert not task.equal(one)
    assert task.equal(replace(one, head=head()))
    assert not task.equal(replace(one, head=head(value=2.0)))
    assert not task.equal(replace(one, head=head(("no", "maybe"))))
    with pytest.raises(DeftxError, match="a int is given where a vector is wanted"):
        one.equal(3)


@given(VECTORS)
def test_a_dense_vector_is_that_of_its_tensors(one):
    found = one.to_dense()
    assert list(found) == list(one)
    for name, entries in one.items():
        assert found[name].shape == entries.shape
        assert torch.equal(found[name].view(-1)[entries.indices], entries.values)
        assert found[name].count_nonzero() == entries.values.count_nonzero()


def test_a_repr_is_one_short_line():
    labels = tuple(f"label {number}\n" for number in range(500))
    provenance = Provenance(base="xlm-r\nlarge", task="tagging", language="min")
    one = vector(1, share=1.0, head=head(labels), provenance=provenance)
    assert repr(one).startswith(
        "SparseVector(k=39 in 4 tensors, base='xlm-r\\nlarge', task='tagging', "
        "languages=('min',), labels=('label 0"
    )
    assert repr(one["matrix"]) == "SparseTensor(20 of 20 entries, shape=(4, 5), float32)"
    assert repr(head()) == "Head(1 tensors, labels=('no', 'yes'))"
    for value in (one, one["matrix"], one.head, SparseVector({})):
        assert "\n" not in repr(value)
        assert len(repr(value)) < 400


def test_overlap_is_the_share_of_the_smaller_vectors_places():
    def at(**tensors):
        return SparseVector(
            {n: SparseTensor(torch.tensor(i), torch.ones(len(i)), (9,)) for n, i in tensors.items()}
        )

    one, other = at(a=[0, 1, 2, 3], b=[5]), at(a=[2, 3, 4], c=[5])
    assert overlap(one, other) == 2 / 4
    assert overlap(at(a=[1]), at(a=[1, 2, 3])) == 1
    assert overlap(at(a=[1]), at(b=[1])) == 0


@given(VECTORS, VECTORS)
def test_overlap_is_symmetrical_between_0_and_1_and_what_sets_say(one, other):
    smaller = min(one.k, other.k)
    expected = len(places(one) & places(other)) / smaller if smaller else 0
    assert overlap(one, other) == overlap(other, one) == pytest.approx(expected)
    assert 0 <= overlap(one, other) <= 1
    assert overlap(one, one) == (1 if one.k else 0)


def test_density_is_the_share_of_each_tensors_entries():
    entries = {
        "some": SparseTensor(torch.tensor([0, 7, 11]), torch.ones(3), (3, 4)),
        "none": SparseTensor(torch.empty(0, dtype=torch.int64), torch.empty(0), (5,)),
        "scalar": SparseTensor(torch.tensor([0]), torch.ones(1), ()),
    }
    assert SparseVector(entries).density() == {"some": 0.25, "none": 0.0, "scalar": 1.0}
    assert SparseVector(entries).k == 4


def test_no_tensors_at_all_make_a_vector_that_changes_nothing():
    empty, one = SparseVector({}), vector(1)
    assert empty.k == 0
    assert empty.density() == {}
    assert places(empty + one) == places(one)
    assert overlap(empty, one) == 0


def test_entries_give_their_dense_tensor_back():
    entries = SparseTensor(
        torch.tensor([1, 5]), torch.tensor([2.0, -3.0], dtype=torch.float16), (2, 3)
    )
    assert torch.equal(
        entries.to_dense(), torch.tensor([[0, 2, 0], [0, 0, -3]], dtype=torch.float16)
    )
    assert entries.numel == 6


def test_a_sum_is_for_the_task_of_the_term_that_has_the_head():
    head = Head({"classifier.weight": torch.ones(2, 2)}, ("no", "yes"))
    task, language = vector(0, head=head, provenance=Provenance(task="tagging")), vector(1)
    assert (language + task).provenance.task == "tagging"
    assert (language + language).provenance.task is None


def test_overlap_needs_room_for_entries_alone():
    """A file may say that a tensor is larger than any memory."""
    shape = (1 << 48, 1 << 10)
    one, other = (
        SparseVector({"w": SparseTensor(torch.tensor(at), torch.ones(3), shape)})
        for at in ([0, 5, 9], [5, 8, 9])
    )
    assert overlap(one, other) == 2 / 3
    empty = SparseVector(
        {"layer.0.w": SparseTensor(torch.empty(0, dtype=torch.long), torch.empty(0), (0, 4))}
    )
    assert (empty.density(), empty.density_by_layer()) == ({"layer.0.w": 0.0}, {"layer.0": 0.0})


def test_vectors_elsewhere_are_added_and_made_dense_there():
    """On the device `meta`, which has no values, as it would be on a GPU."""
    there = (
        SparseVector({"w": SparseTensor(torch.tensor([0, 2]), torch.ones(2), (2, 2))})
        .to("meta")
        .tensors["w"]
    )
    assert there.to_dense().device.type == "meta"
