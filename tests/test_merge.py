"""Combining vectors by a rule: each rule beside its definition on dense numbers, its laws, and what
is refused."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from deftx.core.apply import apply
from deftx.core.merge import RULES, merge, resolve_terms, rule_of
from deftx.core.provenance import Provenance, TrainingRecord
from deftx.core.tensors import Head, SparseTensor
from deftx.core.vector import SparseVector
from deftx.errors import DeftxError

# Three layers and what is below them; some names that only one of the vectors has are left out at
# random.
SHAPES = {
    "embeddings.word.weight": (4, 3),
    "encoder.layer.0.dense.weight": (2, 3),
    "encoder.layer.1.dense.bias": (5,),
    "encoder.layer.2.dense.weight": (3, 2),
}
VALUES = st.sampled_from([0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.25, 3.0])
FLOATS = st.floats(-100, 100, width=32, allow_subnormal=False)


@st.composite
def vectors(draw, values=FLOATS, dtypes=(torch.float32,)):
    tensors = {}
    for name, shape in SHAPES.items():
        size = torch.Size(shape).numel()
        if draw(st.integers(0, 9)):
            places = sorted(draw(st.sets(st.integers(0, size - 1))))
            numbers = draw(st.lists(values, min_size=len(places), max_size=len(places)))
            kind = draw(st.sampled_from(dtypes))
            tensors[name] = SparseTensor(
                torch.tensor(places, dtype=torch.int64), torch.tensor(numbers, dtype=kind), shape
            )
    return SparseVector(tensors)


def dense(vector):
    """All of SHAPES, zeros where the vector has nothing, in float64."""
    empty = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    return empty | {name: entries.to_dense().double() for name, entries in vector.tensors.items()}


def flat(vector):
    return torch.cat([tensor.view(-1) for tensor in dense(vector).values()])


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)


def made(seed, head=None, share=0.6):
    """A random vector with entries of both signs, and a head that says whose it is."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in SHAPES.items():
        places = (
            (torch.rand(torch.Size(shape).numel(), generator=generator) < share).nonzero().view(-1)
        )
        tensors[name] = SparseTensor(places, torch.randn(len(places), generator=generator), shape)
    top = Head({"classifier.weight": torch.full((2, 3), float(seed))}, ("a", "b")) if head else None
    return SparseVector(
        tensors,
        top,
        Provenance(base="b", base_fingerprint="f", kind="task") if head else Provenance(),
    )


# --- each rule beside its definition, with loops over dense numbers ---


def largest(vector, density):
    """Dense, the share of a vector's entries that are largest in magnitude; earlier ones where they
    tie."""
    places = [
        (-abs(value), number, index)
        for number, entries in enumerate(vector.tensors.values())
        for index, value in zip(entries.indices.tolist(), entries.values.tolist(), strict=True)
    ]
    kept, result = sorted(places)[: round(density * len(places))], dense(vector)
    for number, name in enumerate(vector.tensors):
        for index in range(result[name].numel()):
            if index not in {i for _, n, i in kept if n == number}:
                result[name].view(-1)[index] = 0
    return torch.cat([tensor.view(-1) for tensor in result.values()])


def by_columns(rows, join):
    return torch.tensor(
        [join(column) for column in torch.stack(rows).T.tolist()], dtype=torch.float64
    )


def mean_of_elected(column):
    total = sum(column)
    elected = [value for value in column if value * total > 0]
    return sum(elected) / len(elected) if elected else 0.0


def total_of_elected(column):
    return sum(value for value in column if value * sum(column) > 0)


def total_where_agreed(column):
    return 0.0 if max(column) > 0 > min(column) else sum(column)


@given(
    st.lists(vectors(VALUES), min_size=1, max_size=3),
    vectors(VALUES),
    st.sampled_from([0.1, 0.3, 0.5, 0.8, 1.0]),
)
def test_ties_trims_elects_a_sign_and_takes_the_mean_of_those_that_have_it(
    languages, task, density
):
    trimmed = [largest(vector, density) for vector in [*languages, task]]
    for rule, join in {"ties": mean_of_elected, "ties-sum": total_of_elected}.items():
        merged = merge_some(rule, task, languages, density=density)
        close(flat(merged), by_columns(trimmed, join))


@given(st.lists(vectors(), min_size=1, max_size=3), vectors())
def test_agree_leaves_out_what_is_pulled_both_ways(languages, task):
    close(
        flat(merge_some("agree", task, languages)),
        by_columns([flat(vector) for vector in [*languages, task]], total_where_agreed),
    )


@given(
    st.lists(vectors(), min_size=1, max_size=3), vectors(), st.sampled_from([1.2, -1.0, 0.0, 0.9])
)
def test_scaled_adds_multiples(languages, task, scale):
    merged = merge_some("scaled", task, languages, language_scale=scale, task_scale=0.5)
    close(flat(merged), sum(scale * flat(vector) for vector in languages) + 0.5 * flat(task))


@given(vectors(), vectors(), st.sampled_from([0.0, 0.34, 0.5, 0.67, 1.0]))
def test_layers_are_of_the_language_up_to_the_cut_and_of_the_task_above(language, task, cut):
    merged = dense(merge_some("layers", task, [language], cut=cut))
    present = {name for vector in (language, task) for name in vector.tensors}
    depth = 1 + max((int(name.split(".")[2]) for name in present if "layer" in name), default=0)
    for number, name in enumerate(SHAPES):
        lower = number == 0 or int(name.split(".")[2]) + 0.5 < cut * depth
        close(merged[name], dense(language if lower else task)[name])


@given(vectors(), vectors(), st.integers(0, 99), st.sampled_from([0.2, 0.5, 0.9]))
def test_dare_drops_entries_and_makes_up_for_it_with_the_others(language, task, seed, drop):
    for rule in ("dare", "dare-ties"):
        alone = flat(merge_some(rule, task, [], drop=drop, seed=seed))
        close(alone, torch.where(alone != 0, flat(task) / (1 - drop), 0))
    both = merge_some("dare", task, [language], drop=drop, seed=seed)
    again = merge_some("dare", task, [language], drop=drop, seed=seed)
    assert torch.equal(flat(both), flat(again))


def test_one_vector_is_given_as_it_is_and_several_as_a_list():
    task, language = made(1, head=True), made(2)
    expected = merge("ties", task=[task], language=[language])
    assert merge("ties", task=task, language=language).equal(expected)
    assert merge(task=task, language=None).equal(merge(task=task, language=[]))
    with pytest.raises(DeftxError, match=r"vectors by name are given .* use deftx\.Switcher"):
        merge(task=task, language={"min": language})


def merge_some(rule, task, languages, **options):
    """`merge`, of vectors that may be equal: hypothesis likes them so."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deftx.core.merge.check_distinct", lambda *vectors: None)
        return merge(rule, task=task, language=languages, **options)


# --- laws ---


@given(
    st.lists(vectors(dtypes=(torch.float32, torch.float16, torch.bfloat16)), min_size=1, max_size=4)
)
def test_the_sum_is_that_of_the_dense_vectors_in_any_order(some):
    total = sum(flat(vector) for vector in some)
    close(flat(merge_some("sum", some[0], some[1:])), total)
    close(flat(merge_some("sum", some[-1], some[-2::-1] if len(some) > 1 else [])), total)


@pytest.mark.parametrize(
    "rule", ["sum", "scaled", "ties:density=1", "ties-sum:density=1", "agree", "layers"]
)
@given(vector=vectors())
def test_one_vector_comes_out_as_it_is(rule, vector):
    for merged in (merge(rule, task=vector), merge(rule, language=[vector])):
        assert torch.equal(flat(merged), flat(vector))


@given(language=vectors(), task=vectors(), seed=st.integers(0, 9))
def test_dare_without_dropping_is_the_sum(language, task, seed):
    plain = merge_some("sum", task, [language])
    assert torch.equal(flat(merge_some(f"dare:drop=0,seed={seed}", task, [language])), flat(plain))


def test_dares_expectation_is_the_sum_and_vectors_are_not_dropped_alike():
    language, task = made(1, share=0.9), made(2, share=0.9)
    drawn = torch.stack(
        [flat(merge("dare", task=task, language=[language], seed=seed)) for seed in range(400)]
    )
    sizes = flat(language).square() + flat(task).square()  # the variance of an entry, at drop = 0.5
    assert (
        (drawn.mean(0) - flat(language) - flat(task)).abs() <= 5 * (sizes / 400).sqrt() + 1e-6
    ).all()
    both = flat(merge("dare", task=2.0 * language, language=[language])) / flat(language)
    assert {round(ratio) for ratio in both[flat(language) != 0].tolist()} == {
        0,
        2,
        4,
        6,
    }  # alike: 0 and 6 alone


@given(st.lists(vectors(VALUES), min_size=2, max_size=3))
def test_ties_does_not_depend_on_the_order_and_never_exceeds_the_largest(some):
    one, other = merge_some("ties", some[0], some[1:]), merge_some("ties", some[-1], some[:-1])
    close(flat(one), flat(other))
    assert (
        flat(one).abs() <= torch.stack([flat(vector).abs() for vector in some]).amax(0) + 1e-6
    ).all()


@pytest.mark.parametrize("rule", RULES)
@given(language=vectors(VALUES), task=vectors(VALUES))
def test_a_result_is_a_vector_without_zeros_that_costs_no_more_than_its_terms(rule, language, task):
    merged = merge_some(rule, task, [language])
    assert merged.k <= language.k + task.k
    for name, entries in merged.tensors.items():
        assert entries.shape == SHAPES[name]
        assert (entries.indices.diff() > 0).all()
        assert (entries.values != 0).all()
        assert entries.values.dtype == torch.float32


@pytest.mark.parametrize("rule", RULES)
def test_vectors_are_not_changed(rule):
    language, task = made(1), made(2)
    before = flat(language), flat(task)
    merge(rule, task=task, language=[language])
    assert torch.equal(flat(language), before[0])
    assert torch.equal(flat(task), before[1])


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "sum"])
def test_scales_weigh_a_vector_before_it_meets_the_others(rule):
    language, task = made(1), made(2)
    merged = merge(rule, task=task, language=[language], language_scale=2, task_scale=-0.5)
    assert torch.equal(flat(merged), flat(merge(rule, task=-0.5 * task, language=[2.0 * language])))


# --- what is added to a model ---


class Named(nn.Module):
    """A model with the parameters of SHAPES."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name, shape in SHAPES.items():
            *path, last = name.split(".")
            module = self
            for part in path:
                if not hasattr(module, part):
                    module.add_module(part, nn.Module())
                module = getattr(module, part)
            module.register_parameter(last, nn.Parameter(torch.randn(shape, generator=generator)))


def weights(model):
    return torch.cat([parameter.detach().view(-1) for parameter in model.parameters()])


def test_the_sum_is_added_vector_by_vector_as_it_always_was():
    language, other, task = made(1), made(2), made(3, head=True)
    assert resolve_terms("sum", task, [language, other]) == [language, other, task]
    assert [
        vector.head for vector in resolve_terms("sum", [task, made(4, head=True)], [], head=0)
    ] == [task.head, None]


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "sum"])
def test_a_merged_vector_is_added_as_any_other(rule):
    language, task, model = made(1), made(2), Named()
    before = weights(model)
    apply(model, *resolve_terms(rule, task, [language]))
    close((weights(model) - before).double(), flat(merge(rule, task=task, language=[language])))


def test_where_layers_are_cut_does_not_hang_on_whether_lower_ones_have_entries():
    upper = {
        f"encoder.layer.{number}.weight": SparseTensor(torch.tensor([0]), torch.ones(1), (2,))
        for number in range(6, 12)
    }
    merged = merge(
        "layers:cut=0.75", task=SparseVector(upper), language=[2.0 * SparseVector(upper)]
    )
    assert [float(entries.values) for entries in merged.tensors.values()] == [2.0] * 3 + [1.0] * 3


def test_of_several_tasks_the_result_is_for_that_of_the_head():
    tagging, sentiment = made(1, head=True), made(2, head=True)
    tagging = replace(
        tagging,
        provenance=replace(
            tagging.provenance, task="tagging", training=TrainingRecord({"length": 7})
        ),
    )
    for head, task in enumerate(["tagging", None]):
        merged = merge("sum", task=[tagging, sentiment], head=head)
        assert merged.provenance.task == task
        assert bool(merged.provenance.training.settings) == (head == 0)
    added = made(3) + tagging
    assert (added.provenance.task, added.provenance.training.settings) == ("tagging", {"length": 7})


def test_what_is_noted_of_options_gives_the_same_again():
    task, language = made(1), made(2)
    merged = merge("dare", task=task, language=[language], seed=123456789, drop=0.123456789)
    assert (
        merged.provenance.operation
        == "dare:drop=0.123456789,seed=123456789,language_scale=1,task_scale=1"
    )
    assert torch.equal(
        flat(merge(merged.provenance.operation, task=task, language=[language])), flat(merged)
    )


def test_the_result_knows_its_base_its_head_and_how_to_feed_the_model():
    task = made(1, head=True)
    task = SparseVector(
        task.tensors,
        task.head,
        replace(task.provenance, training=TrainingRecord({"length": 7}), labels=("a", "b")),
    )
    merged = merge("ties:density=1", task=task, language=[made(2)], language_scale=2)
    assert merged.head is task.head
    assert merged.provenance.base_fingerprint == "f"
    assert merged.provenance.training.settings == {"length": 7}
    assert merged.provenance.operation == "ties:density=1,language_scale=2,task_scale=1"
    assert [term.kind for term in merged.provenance.terms] == [None, "task"]
    assert merge("sum", language=[made(2)]).head is None


def test_of_two_heads_one_must_be_chosen():
    first, second, plain = made(1, head=True), made(2, head=True), made(3)
    with pytest.raises(
        DeftxError,
        match="2 task vectors have heads, and a model takes one: choose it, such as head=0",
    ):
        merge("sum", task=[first, second])
    assert merge("sum", task=[first, second], head=1).head is second.head
    assert merge("sum", task=[plain, second]).head is second.head
    for head in (0, 2, -1):
        with pytest.raises(
            DeftxError, match=f"head = {head} is not the number of a task vector with a head"
        ):
            merge("sum", task=[plain, second], head=head)


# --- what is refused ---


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        (
            "tise",
            r"unknown rule 'tise' \(did you mean 'ties'\?\); known: agree, dare, dare-ties,"
            r" layers, ",
        ),
        (
            "ties:densty=0.5",
            r"unknown option of ties 'densty' \(did you mean 'density'\?\); known: density, ",
        ),
        ("sum:language_scale=2", r"unknown option of sum 'language_scale'"),
        ("ties:density=0", r"rule ties: density = 0: give a share above 0 and at most 1"),
        ("ties:density", r"rule ties: density = : give a share"),
        ("ties:density=half", r"rule ties: density = half: give a share"),
        ("ties:density=nan", r"density = nan: give a share"),
        ("dare:drop=1", r"drop = 1: give a share from 0 to below 1"),
        ("dare:seed=1.5", r"seed = 1.5: give an integer from 0 on"),
        ("dare:seed=inf", r"seed = inf"),
        ("layers:cut=2", r"cut = 2: give a share from 0 to 1"),
        ("scaled:task_scale=inf", r"task_scale = inf: give a finite number"),
    ],
)
def test_what_a_rule_does_not_know_is_named_with_what_it_does(rule, says):
    with pytest.raises(DeftxError, match=says):
        merge(rule, task=made(1))


def test_a_rule_is_written_with_its_options_and_those_given_count_more():
    rule, options = rule_of("ties: density=0.8 , task_scale=2", task_scale=3)
    assert rule is RULES["ties"]
    assert options == {"density": 0.8, "language_scale": 1.0, "task_scale": 3.0}
    assert rule_of("ties:") == rule_of("ties")


def test_vectors_that_do_not_belong_together_are_refused():
    name = "embeddings.word.weight"
    other = SparseVector({name: SparseTensor(torch.tensor([0]), torch.ones(1), (3, 4))})
    with pytest.raises(DeftxError, match=rf"'{name}' has the shapes \(3, 4\) and \(4, 3\)"):
        merge("ties", task=made(1), language=[other])
    with pytest.raises(DeftxError, match="vectors 1 and 2 of 2 are the same"):
        merge("ties", task=made(1), language=[made(1)])
    with pytest.raises(DeftxError, match="there is nothing to combine"):
        merge("ties")
    foreign = SparseVector(made(2).tensors, None, Provenance(base="c", base_fingerprint="g"))
    with pytest.raises(DeftxError, match="vectors of different bases do not combine"):
        merge("ties", task=made(1, head=True), language=[foreign])


def test_every_rule_says_where_it_is_described():
    assert all("https://" in rule.source for rule in RULES.values())
