"""Adding vectors to a model: what dense sums give, and undone to the last bit."""

import pytest
import tiny
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from deftx.core import apply as module
from deftx.core.apply import apply, apply_temporarily
from deftx.core.parameters import parameter_groups
from deftx.core.tensors import Head, SparseTensor
from deftx.core.vector import SparseVector
from deftx.errors import DeftxError

FLOATS = [torch.float32, torch.float16, torch.bfloat16]
INTEGERS = {4: torch.int32, 2: torch.int16}


def made(shape="xlmr", dtype=torch.float32):
    torch.manual_seed(0)
    return tiny.SHAPES[shape]().to(dtype).eval()


def vector(model, seed, share=0.3, dtype=torch.float32, head=None):
    """Random changes of about `share` of the backbone."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, weight in parameter_groups(model).backbone.items():
        places = (torch.rand(weight.numel(), generator=generator) < share).nonzero().view(-1)
        tensors[name] = SparseTensor(
            places, torch.randn(len(places), generator=generator).to(dtype), tuple(weight.shape)
        )
    return SparseVector(tensors, head)


def bits(model):
    """A copy of all weights, as integers: NaN equals NaN, and 0 is not -0."""
    weights = model.state_dict(keep_vars=True)
    return {
        name: weight.detach().clone().contiguous().view(INTEGERS[weight.itemsize])
        for name, weight in weights.items()
    }


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("indices", [[0, 16 * 75], [-1, 3], [5, 2]])
def test_entries_that_are_nowhere_are_refused_before_anything_is_changed(indices):
    model, name = made("xlmr", torch.float32), "embeddings.word_embeddings.weight"
    change, before = vector(model, 1), bits(model)
    stray = SparseTensor(
        torch.tensor(indices), torch.ones(2), tuple(parameter_groups(model).backbone[name].shape)
    )
    with pytest.raises(DeftxError, match=r"are not within .75, 16., or not in order"):
        apply(model, change, SparseVector({name: stray}))
    assert same(bits(model), before)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", tiny.SHAPES)
def test_applying_adds_the_entries_and_nothing_else(shape, dtype):
    model = made(shape, dtype)
    before = {
        name: weight.detach().clone() for name, weight in parameter_groups(model).backbone.items()
    }
    others = {
        name: weight.detach().clone() for name, weight in parameter_groups(model).head.items()
    }
    change = vector(model, 1)
    apply(model, change)
    for name, weight in parameter_groups(model).backbone.items():
        entries = change.tensors[name]
        expected = before[name].clone().view(-1)
        expected[entries.indices] = (
            before[name].view(-1)[entries.indices].float() + entries.values
        ).to(dtype)
        assert torch.equal(weight.view(-1), expected)
    assert all(
        torch.equal(weight, others[name]) for name, weight in parameter_groups(model).head.items()
    )


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("values", FLOATS)
def test_undo_is_exact(dtype, values):
    model = made(dtype=dtype)
    start = bits(model)
    with apply_temporarily(model, vector(model, 1, dtype=values)) as same_model:
        assert same_model is model
        assert not same(bits(model), start)
    assert same(bits(model), start)


@pytest.mark.parametrize("dtype", FLOATS)
def test_undo_is_exact_for_nested_and_overlapping_vectors(dtype):
    model = made(dtype=dtype)
    one, two, three = (vector(model, seed, share=0.7) for seed in (1, 2, 3))
    start = bits(model)
    with apply_temporarily(model, one, two):
        outer = bits(model)
        with apply_temporarily(model, three, -1 * two, one):
            assert not same(bits(model), outer)
        assert same(bits(model), outer)
        with apply_temporarily(model, three):
            pass
        assert same(bits(model), outer)
    assert same(bits(model), start)


def test_several_vectors_are_added_one_after_the_other():
    one, two = made(dtype=torch.bfloat16), made(dtype=torch.bfloat16)
    vectors = [vector(one, seed, share=0.9) for seed in (1, 2)]
    apply(one, *vectors)
    for each in vectors:
        apply(two, each)
    assert same(bits(one), bits(two))


def test_applying_two_vectors_equals_applying_their_sum():
    one, two = made(), made()
    first, second = vector(one, 1), vector(one, 2)
    apply(one, first, second)
    apply(two, first + second)
    for name, weight in parameter_groups(one).backbone.items():
        torch.testing.assert_close(weight, parameter_groups(two).backbone[name])


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_undo_is_exact_after_an_exception_inside(error):
    model = made()
    start = bits(model)
    with (
        pytest.raises(error),
        apply_temporarily(model, vector(model, 1)),
        apply_temporarily(model, vector(model, 2)),
    ):
        raise error
    assert same(bits(model), start)


@pytest.mark.parametrize("fails_at", [0, 3, 40])
def test_undo_is_exact_after_an_exception_half_way_through_applying(monkeypatch, fails_at):
    model = made()
    start, put, calls = bits(model), module._put, []

    def failing(parameter, indices, values):
        calls.append(parameter)
        if len(calls) == fails_at + 1:
            raise MemoryError
        put(parameter, indices, values)

    monkeypatch.setattr(module, "_put", failing)
    with pytest.raises(MemoryError), apply_temporarily(model, vector(model, 1), vector(model, 2)):
        raise AssertionError("never reached")
    assert same(bits(model), start)


@pytest.mark.parametrize("dtype", FLOATS)
def test_odd_values_come_back_with_the_bits_they_had(dtype):
    layer = nn.Linear(4, 2, bias=False, dtype=dtype)
    odd = [
        float("nan"),
        float("inf"),
        -float("inf"),
        -0.0,
        0.0,
        torch.finfo(dtype).tiny / 4,
        1e-3,
        60000.0,
    ]
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(odd, dtype=dtype).view(2, 4))
    start = bits(layer)
    with apply_temporarily(
        layer,
        SparseVector({"weight": SparseTensor(torch.arange(8), torch.full((8,), 1e4), (2, 4))}),
    ):
        assert not same(bits(layer), start)
    assert same(bits(layer), start)


@pytest.mark.parametrize("dtype", FLOATS)
def test_strides_of_parameters_do_not_matter(dtype):
    wide = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    change = SparseVector(
        {"weight": SparseTensor(torch.tensor([0, 3, 5, 11]), torch.tensor([1.0, 2, 3, 4]), (4, 3))}
    )
    for view in (wide[:3, :4].mT, wide[:4, ::3], wide[1:5, 2:5]):
        strided, plain = nn.Linear(3, 4, bias=False), nn.Linear(3, 4, bias=False)
        strided.weight, plain.weight = nn.Parameter(view), nn.Parameter(view.clone().contiguous())
        assert not strided.weight.is_contiguous()
        start = bits(strided)
        with apply_temporarily(strided, change), apply_temporarily(plain, change):
            assert not same(bits(strided), start)
            assert same(bits(strided), bits(plain))
        assert same(bits(strided), start)


def test_tied_weights_change_together_and_once():
    model = made()
    embeddings, decoder = model.get_input_embeddings(), model.get_output_embeddings()
    assert decoder.weight is embeddings.weight
    start, before = bits(model), embeddings.weight.detach().clone()
    name = next(
        name
        for name, weight in parameter_groups(model).backbone.items()
        if weight is embeddings.weight
    )
    change = SparseVector(
        {name: SparseTensor(torch.tensor([5]), torch.tensor([1.0]), tuple(before.shape))}
    )
    with apply_temporarily(model, change):
        assert decoder.weight is embeddings.weight
        assert torch.equal((decoder.weight - before).view(-1).nonzero().view(-1), torch.tensor([5]))
        assert decoder.weight.view(-1)[5] == before.view(-1)[5] + 1
    assert same(bits(model), start)


def classifier(bases, labels=3, seed=0):
    torch.manual_seed(seed)
    return AutoModelForSequenceClassification.from_pretrained(
        bases("bert"), num_labels=labels
    ).eval()


def head_of(model, labels=("a", "b", "c")):
    return Head(
        {name: torch.randn(weight.shape) for name, weight in parameter_groups(model).head.items()},
        labels,
    )


def test_a_head_replaces_the_models_and_is_taken_off_again(bases):
    model = classifier(bases)
    task = vector(model, 1, head=head_of(model))
    assert {
        "classifier.weight",
        "classifier.bias",
        "bert.pooler.dense.weight",
    } <= task.head.tensors.keys()
    start = bits(model)
    with apply_temporarily(model, vector(model, 2), task):
        assert all(
            torch.equal(weight, task.head.tensors[name])
            for name, weight in parameter_groups(model).head.items()
        )
    assert same(bits(model), start)


def test_of_two_heads_the_last_one_counts_and_both_are_taken_off(bases):
    model = classifier(bases)
    first, last = (SparseVector({}, head_of(model)) for _ in range(2))
    start = bits(model)
    with apply_temporarily(model, first, last):
        assert all(
            torch.equal(weight, last.head.tensors[name])
            for name, weight in parameter_groups(model).head.items()
        )
    assert same(bits(model), start)


def test_a_head_is_left_out_where_the_model_has_no_such_head(bases):
    task = vector(classifier(bases), 1, head=head_of(classifier(bases)))
    for model in (made("bert"), made("bert").base_model):
        before = {
            name: weight.detach().clone() for name, weight in parameter_groups(model).head.items()
        }
        apply(model, task)
        assert all(
            torch.equal(weight, before[name])
            for name, weight in parameter_groups(model).head.items()
        )


def test_a_vector_of_the_classifier_fits_the_masked_language_model_and_the_bare_encoder(bases):
    models = [classifier(bases), made("bert"), made("bert").base_model]
    names = [list(parameter_groups(model).backbone) for model in models]
    assert names[0] == names[1] == names[2]
    for model in models:
        with apply_temporarily(model, vector(models[0], 1)):
            pass


def misfits(model):
    name, weight = next(iter(parameter_groups(model).backbone.items()))
    one = (torch.tensor([0]), torch.ones(1))
    yield (
        "'elsewhere.weight', which the model does not have",
        SparseVector({"elsewhere.weight": SparseTensor(*one, (1,))}),
    )
    yield (
        "in the model.*in the vector",
        SparseVector({name: SparseTensor(*one, tuple(reversed(weight.shape)))}),
    )
    wrong = {
        n: torch.zeros(*w.shape[:-1], w.shape[-1] + 1)
        for n, w in parameter_groups(model).head.items()
    }
    yield (
        "^head '.*load the model with the vector's labels",
        SparseVector({}, Head(wrong, ("a", "b"))),
    )


@pytest.mark.parametrize("number", range(3))
def test_a_vector_that_does_not_fit_changes_nothing(bases, number):
    model = classifier(bases)
    message, misfit = list(misfits(model))[number]
    good, start = vector(model, 1, head=head_of(model)), bits(model)
    with pytest.raises(DeftxError, match=message) as caught:
        apply(model, good, misfit)
    assert "\n" not in str(caught.value)
    assert same(bits(model), start)
    with pytest.raises(DeftxError, match=message), apply_temporarily(model, good, misfit):
        raise AssertionError("never reached")
    assert same(bits(model), start)


def test_a_vector_is_applied_to_weights_that_require_gradients_without_a_trace():
    model = made()
    with apply_temporarily(model, vector(model, 1)):
        assert all(
            weight.is_leaf and weight.requires_grad and weight.grad is None
            for weight in model.parameters()
        )
        model(input_ids=torch.tensor([[0, 7, 8, 2]])).logits.sum().backward()
    assert all(weight.is_leaf for weight in model.parameters())


def test_outputs_are_those_of_the_dense_sum_and_come_back():
    model, change = made(), None
    inputs = torch.tensor([[0, 7, 8, 9, 2]])
    change = 0.1 * vector(model, 1)
    with torch.no_grad():
        start = model(input_ids=inputs).logits
        with apply_temporarily(model, change):
            inside = model(input_ids=inputs).logits
        after = model(input_ids=inputs).logits
        for name, weight in parameter_groups(model).backbone.items():
            weight += change.tensors[name].to_dense()
        dense = model(input_ids=inputs).logits
    assert torch.equal(start, after)
    assert torch.equal(inside, dense)
    assert not torch.equal(start, inside)


def test_no_vectors_change_nothing():
    model = made()
    start = bits(model)
    apply(model)
    apply(model, SparseVector({}))
    with apply_temporarily(model):
        assert same(bits(model), start)
    assert same(bits(model), start)
