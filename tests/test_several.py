"""Training on several languages: batches of one language each, its vector in the weights for as
long as they last."""

from collections import Counter
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from fit_examples import TASK, TRAIN, VALID, labelled, same
from vector_examples import vector

from deftx.config import changed
from deftx.core.apply import apply, apply_temporarily
from deftx.core.parameters import parameter_groups
from deftx.core.select import select
from deftx.errors import DeftxError
from deftx.fit import fit, fit_task
from deftx.models.heads import load_task_model
from deftx.models.tokenizers import load_tokenizer
from deftx.tasks.base import supervised
from deftx.tasks.classification import CLASSIFICATION
from deftx.training.multi_source import in_language, multi_source
from deftx.training.preparation import prepare_task
from deftx.training.sparse import sparse_tuning

SMALL = labelled(9, 5)


def made(bases, **options):
    """A model at θ0 and an objective of two languages, of 30 and of 9 examples."""
    labels, tokenizer = ("early", "late"), load_tokenizer(bases())
    parts = {
        name: supervised(CLASSIFICATION, some, VALID, labels, tokenizer, 16, "macro_f1")
        for name, some in {"one": TRAIN, "two": SMALL}.items()
    }
    vectors = {"one": vector(bases(), 1), "two": vector(bases(), 2)}
    options = {"batch_size": 4, "temperature": 1.0, "seed": 0} | options
    return load_task_model(bases(), labels), multi_source(parts, vectors, **options)


def bits(model):
    return {
        name: weight.detach().clone().view(torch.int32) for name, weight in model.named_parameters()
    }


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("temperature", "counts"), [(1.0, (30, 9)), (2.0, (30, 16)), (1e9, (30, 30))]
)
def test_batches_are_of_one_language_and_every_example_comes_as_often_as_any_other(
    temperature, counts
):
    parts = {
        name: SimpleNamespace(train=[f"{name}{i}" for i in range(n)], digest="")
        for name, n in {"a": 30, "b": 9}.items()
    }
    vectors = {name: SimpleNamespace(tensors={}) for name in "ab"}
    found = multi_source(parts, vectors, batch_size=4, temperature=temperature, seed=0)
    for number, rows in found.train:
        assert {row[0] for row in rows} == {"ab"[number]}
    for number, name in enumerate("ab"):
        seen = Counter(row for which, rows in found.train for row in rows if which == number)
        assert sum(seen.values()) == counts[number]
        assert len(seen) == len(parts[name].train)
        assert max(seen.values()) - min(seen.values()) <= 1
    assert all(len(rows) == 4 for number, rows in found.train[:7])
    assert (
        multi_source(parts, vectors, batch_size=4, temperature=temperature, seed=0).train
        == found.train
    )
    assert (
        multi_source(parts, vectors, batch_size=4, temperature=temperature, seed=1).train
        != found.train
    )


@pytest.mark.parametrize("number", [0, 1])
def test_a_batch_sees_its_language_and_its_gradient_is_taken_there(bases, number):
    """Also where the language changes entries that are tuned, and embedding rows that are apart."""
    model, objective = made(bases)
    model.eval()
    change = {
        name: torch.randn_like(weight) for name, weight in parameter_groups(model).trainable.items()
    }
    selection = select(change, "40%")
    which, rows = next(item for item in objective.train if item[0] == number)
    batch = objective.collate([(which, rows)])
    with sparse_tuning(model, selection) as tuning:
        with torch.no_grad():
            tuning.values += 0.1  # φ_task so far
        tuning.write()
        before = bits(model)
        with objective.training_context(model, batch):
            loss = objective.loss(model, batch)
            loss.backward()
        assert equal(bits(model), before)
        gradient = tuning.values.grad.clone()
    plain, language = (
        load_task_model(bases(), ("early", "late")),
        list(objective.vectors.values())[number],
    )
    plain.load_state_dict(model.state_dict())
    apply(plain.eval(), language)
    expected = objective.parts["one" if number == 0 else "two"].loss(
        plain, {n: t for n, t in batch.items() if n != "language"}
    )
    expected.backward()
    torch.testing.assert_close(loss, expected)
    weights = parameter_groups(plain).backbone
    dense = [weights[name].grad.view(-1)[places.indices] for name, places in selection.items()]
    torch.testing.assert_close(gradient, torch.cat(dense), rtol=1e-4, atol=1e-6)
    assert gradient.abs().max() > 1e-3


def test_scores_are_means_over_the_languages_each_with_its_own_vector(bases):
    model, objective = made(bases)
    found = []
    for name, part in objective.parts.items():
        with apply_temporarily(model, objective.vectors[name]):
            found.append(part.validate(model, 16)["accuracy"])
    before = bits(model)
    assert objective.validate(model, 1)["accuracy"] == sum(found) / 2
    assert equal(bits(model), before)


@torch.no_grad()
def test_in_half_precision_each_language_is_read_with_its_own_weights(bases):
    """Autocast keeps what it has cast for as long as it is on: that of the language before, or
    after it of the last."""
    model, objective = made(bases)
    model.eval()
    inputs = {
        n: t
        for n, t in objective.collate(objective.train[:1]).items()
        if n not in ("language", "labels")
    }

    def read(name):
        with in_language(model, objective.vectors[name]) if name else nullcontext():
            return model(**inputs).logits

    found = {}
    for name in ("one", "two", None):
        with torch.autocast("cpu", torch.bfloat16):
            found[name] = read(name)
    assert not torch.equal(found["one"], found["two"])
    with torch.autocast("cpu", torch.bfloat16):
        for name, alone in found.items():
            assert torch.equal(read(name), alone)


def test_after_training_no_language_is_left_in_the_weights(bases):
    """Outside of the vector's entries they are θ0, to the last bit, after languages came and went
    with every batch."""
    model, objective = made(bases, temperature=3.0)
    start = {
        name: weight.detach().clone() for name, weight in parameter_groups(model).backbone.items()
    }
    learnt = fit(model, objective, changed(TASK, {"training": {"batch_size": 1}}))
    moved = 0
    for name, weight in parameter_groups(model).backbone.items():
        outside = torch.ones(weight.numel(), dtype=torch.bool)
        if name in learnt.tensors:
            entries = learnt.tensors[name]
            outside[entries.indices] = False
            change = (weight.detach() - start[name]).view(-1)[entries.indices]
            torch.testing.assert_close(change, entries.values, rtol=0, atol=1e-6)
            moved += int((entries.values != 0).sum())
        assert torch.equal(weight.detach().view(-1)[outside], start[name].view(-1)[outside])
    assert moved > 0.5 * learnt.k


def test_one_language_alone_is_fit_task_bit_for_bit(bases):
    source = vector(bases(), 1)
    alone = fit_task(bases(), {"ind": TRAIN}, {"ind": VALID}, TASK, source={"ind": source})
    assert same(alone, fit_task(bases(), TRAIN, VALID, TASK, source=source))


def test_a_task_vector_of_two_languages_notes_both_and_the_settings_as_they_were(bases):
    sources = {"ind": vector(bases(), 1), "eng": vector(bases(), 2)}
    found = fit_task(
        bases(),
        {"ind": TRAIN, "eng": SMALL},
        {"ind": VALID, "eng": VALID},
        TASK,
        source=sources,
        temperature=2,
    )
    assert found.head.labels == ("early", "late")
    assert found.provenance.sources.keys() == sources.keys()
    assert found.provenance.training.settings["batch_size"] == TASK.training.batch_size
    assert (found.provenance.k, found.provenance.data.train) == (found.k, 39)


def test_the_order_in_which_languages_are_given_makes_no_difference(bases):
    train, valid = {"ind": TRAIN, "eng": SMALL}, {"ind": VALID, "eng": VALID}
    sources = {"eng": vector(bases(), 2), "ind": vector(bases(), 1)}
    found = fit_task(bases(), train, valid, TASK, source=sources)
    turned = dict(reversed(train.items())), dict(reversed(valid.items()))
    assert same(found, fit_task(bases(), *turned, TASK, source=dict(reversed(sources.items()))))


def test_without_vectors_every_batch_is_on_the_base_alone(bases):
    sets = {"ind": TRAIN, "eng": SMALL}, {"ind": VALID, "eng": VALID}
    start = prepare_task(bases(), *sets, TASK)
    before = bits(start.model)
    for item in start.objective.train:
        with start.objective.training_context(start.model, start.objective.collate([item])):
            assert equal(bits(start.model), before)
    assert start.settings.training.batch_size == 1
    found = fit_task(bases(), *sets, TASK)
    assert found.provenance.sources == {"ind": None, "eng": None}
    assert not same(
        found, fit_task(bases(), *sets, TASK, source={n: vector(bases(), 1) for n in sets[0]})
    )


def test_a_task_vector_is_no_source(bases):
    sources = {"ind": vector(bases(), 1), "eng": fit_task(bases(), TRAIN, VALID, TASK)}
    with pytest.raises(DeftxError, match="vector 1 of 2 given as a language is a task vector"):
        fit_task(
            bases(),
            {"ind": TRAIN, "eng": SMALL},
            {"ind": VALID, "eng": VALID},
            TASK,
            source=sources,
        )


def test_what_does_not_fit_together_is_refused_before_anything_is_loaded():
    for train, valid, sources in [
        ({"a": TRAIN}, {"a": VALID}, {}),
        ({"a": TRAIN}, {}, {"a": None}),
        ({}, {}, {}),
    ]:
        with pytest.raises(DeftxError, match="must be of the same languages, but are of"):
            fit_task("nowhere", train, valid, TASK, source=sources)
    with pytest.raises(DeftxError, match=r"temperature 0\.5 is below 1"):
        fit_task("nowhere", {"a": TRAIN}, {"a": VALID}, TASK, source={"a": None}, temperature=0.5)
