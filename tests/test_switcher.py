"""One base, many languages: every model is the composed one, bit for bit, whatever came before."""

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import sentences

import deftx
from deftx import switcher as module
from deftx.core.backbone import backbone, head
from deftx.core.vector import Entries, Head, SparseVector
from deftx.errors import DeftxError
from deftx.models import load_task_model
from deftx.tasks.classification import CLASSIFICATION
from deftx.tasks.data import Examples

NAMES = ["ace", "ban", "min"]
CHOICES = st.lists(st.sampled_from([*NAMES, None]), max_size=8)


def vector(model, seed, with_head=False):
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, weight in backbone(model).items():
        places = (torch.rand(weight.numel(), generator=generator) < 0.3).nonzero().view(-1)
        tensors[name] = Entries(places, torch.randn(len(places), generator=generator), tuple(weight.shape))
    top = {name: torch.randn(weight.shape, generator=generator) for name, weight in head(model).items()}
    return SparseVector(tensors, Head(top, ("bad", "good")) if with_head else None)


@pytest.fixture(scope="module")
def made(bases):
    """A switcher, and by language the weights of the composed model and the model itself."""
    base = bases()
    model = load_task_model(base, ["bad", "good"])
    task = vector(model, 0, with_head=True)
    languages = {name: vector(model, seed) for seed, name in enumerate(NAMES, 1)}
    composed = {name: deftx.compose(base, task, language) for name, language in languages.items()}
    composed[None] = deftx.compose(base, task)
    return deftx.Switcher(base, task, languages), composed


def same(model, other):
    mine, others = model.state_dict(), other.state_dict()
    return all(torch.equal(mine[name].view(torch.int32), others[name].view(torch.int32)) for name in others)


@settings(deadline=None, max_examples=30)
@given(CHOICES)
def test_after_any_switches_the_model_is_the_composed_one_bit_for_bit(made, names):
    switcher, composed = made
    for name in names:
        with switcher.language(name) as model:
            assert same(model, composed[name])


def test_what_a_switch_writes_is_the_entries_of_two_languages(made, monkeypatch):
    switcher, _ = made
    written = []
    monkeypatch.setattr(module, "write_entries", lambda weight, indices, values: written.append(len(indices)))
    monkeypatch.setattr(switcher, "_written", ["ace"])
    monkeypatch.setattr(switcher, "_whole", True)
    with switcher.language("ace"):
        assert written == []
    with switcher.language("min"):
        assert sum(written) == sum(len(part.indices) for name in ("ace", "min") for part in switcher._entries[name])


@pytest.mark.parametrize("after", range(0, 60, 7))
@pytest.mark.parametrize("then", ["ace", "ban", None])
def test_a_switch_that_is_cut_off_is_mended_by_the_next(made, monkeypatch, after, then):
    switcher, composed = made
    with switcher.language("ace"):
        pass
    write, calls = module.write_entries, []

    def cut(*arguments):
        calls.append(1)
        if len(calls) > after:
            raise KeyboardInterrupt
        write(*arguments)

    monkeypatch.setattr(module, "write_entries", cut)
    try:
        with switcher.language("ban"):
            pass
    except KeyboardInterrupt:
        pass
    monkeypatch.setattr(module, "write_entries", write)
    with switcher.language(then) as model:
        assert same(model, composed[then])


def test_mixed_batches_are_answered_as_by_a_model_for_each_language_and_in_order(made):
    switcher, composed = made
    texts = sentences(40, seed=3)
    languages = [[*NAMES, None][number % 4] for number in range(len(texts))]
    found = switcher.predict(Examples(texts), languages)
    for (label, share), text, name in zip(found, texts, languages, strict=True):
        expected, probability = module.predict(
            CLASSIFICATION, composed[name], switcher._tokenizer, Examples([text]), switcher._length
        )[0]
        assert label == expected
        assert share == pytest.approx(probability, abs=1e-5)


def test_no_thread_ever_sees_a_half_switched_model(made):
    switcher, composed = made
    inputs = switcher._tokenizer(sentences(2, seed=4), padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = {name: model(**inputs).logits for name, model in composed.items()}
    wrong = []

    def ask(seed):
        draw = torch.Generator().manual_seed(seed)
        for number in torch.randint(4, (25,), generator=draw).tolist():
            name = [*NAMES, None][number]
            with switcher.language(name) as model, torch.no_grad():
                if not torch.equal(model(**inputs).logits, expected[name]):
                    wrong.append(name)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_block_within_a_block_is_an_error_and_leaves_the_model_as_it_is(made):
    switcher, composed = made
    with switcher.language("ace") as model:
        with pytest.raises(DeftxError, match="end that block first"), switcher.language("min"):
            pass
        assert same(model, composed["ace"])
    with switcher.language("min") as model:
        assert same(model, composed["min"])


def test_an_unknown_language_is_an_error_that_lists_those_there_are(made):
    switcher, _ = made
    assert switcher.languages == tuple(NAMES)
    with pytest.raises(DeftxError, match=r"unknown language 'mni'.*min"), switcher.language("mni"):
        pass
    with pytest.raises(DeftxError, match="give one for each"):
        switcher.predict(Examples(["a", "b"]), ["ace"])


def test_vectors_of_another_base_are_refused(bases):
    model = load_task_model(bases(), ["bad", "good"])
    task, language = vector(model, 0, with_head=True), vector(model, 1)
    other = SparseVector(language.tensors, info={"base": "other", "base_fingerprint": "f" * 64})
    with pytest.raises(DeftxError, match="other"):
        deftx.Switcher(bases(), task, {"min": other})
