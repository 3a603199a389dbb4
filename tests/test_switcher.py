"""One base, many languages: every model is the composed one, bit for bit, whatever came before."""

import threading
import time
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import random_vector, sentences

import deftx
from deftx.core.provenance import Provenance, TokenizerRecord
from deftx.core.vector import SparseVector
from deftx.data.examples import Examples
from deftx.errors import DeftxError
from deftx.models import switcher as module
from deftx.models.heads import load_task_model
from deftx.models.tokenizers import load_tokenizer
from deftx.tasks.base import evaluate
from deftx.tasks.classification import CLASSIFICATION
from deftx.tasks.registry import TASKS

NAMES = ["ace", "ban", "min"]
CHOICES = st.lists(st.sampled_from([*NAMES, None]), max_size=8)


@pytest.fixture(scope="module")
def parts(bases):
    """A base, a task vector and language vectors by name."""
    model = load_task_model(bases(), ["bad", "good"])
    languages = {name: random_vector(model, seed) for seed, name in enumerate(NAMES, 1)}
    return bases(), random_vector(model, 0, ("bad", "good")), languages


@pytest.fixture(scope="module")
def made(parts):
    """A switcher, and by language the composed model."""
    base, task, languages = parts
    composed = {name: deftx.compose(base, task, language) for name, language in languages.items()}
    composed[None] = deftx.compose(base, task)
    return deftx.Switcher(base, task, languages), composed


def same(model, other):
    mine, others = model.state_dict(), other.state_dict()
    return all(
        torch.equal(mine[name].view(torch.int32), others[name].view(torch.int32)) for name in others
    )


@settings(deadline=None, max_examples=30)
@given(CHOICES)
def test_after_any_switches_the_model_is_the_composed_one_bit_for_bit(made, names):
    switcher, composed = made
    for name in names:
        with switcher.language(name) as model:
            assert same(model, composed[name])


RULES = [
    "scaled:language_scale=0.5",
    "ties:density=0.8",
    "ties-sum",
    "dare",
    "dare-ties:drop=0.2",
    "agree",
    "layers",
]


@pytest.mark.parametrize("rule", RULES)
def test_by_any_rule_too_the_model_is_the_composed_one_bit_for_bit(parts, rule):
    base, task, languages = parts
    switcher = deftx.Switcher(base, task, languages, rule=rule)
    composed = {
        name: deftx.compose(base, task, languages.get(name, ()), rule=rule)
        for name in [*NAMES, None]
    }
    for name in ["ace", "ban", None, "min", "ace", None, None, "ban"]:
        with switcher.language(name) as model:
            assert same(model, composed[name])


@pytest.mark.parametrize("rule", ["sum", "ties-sum"])
def test_several_languages_and_several_tasks_are_applied_together(parts, rule):
    base, task, languages = parts
    ace, ban, least = (languages[name] for name in NAMES)
    tasks = [random_vector(load_task_model(base, ["bad", "good"]), 9, ("bad", "good")), task]
    together = {"ace": ace, "both": [ban, least], "all": [least, ace, ban]}
    switcher = deftx.Switcher(base, tasks, together, rule=rule, head=1)
    composed = {
        name: deftx.compose(base, tasks, some, rule=rule, head=1) for name, some in together.items()
    }
    composed[None] = deftx.compose(base, tasks, rule=rule, head=1)
    for name in ["both", "ace", "all", None, "both", "all", None]:
        with switcher.language(name) as model:
            assert same(model, composed[name])


def test_what_compose_refuses_is_refused(parts):
    base, task, languages = parts
    other = random_vector(load_task_model(base, ["bad", "good"]), 9, ("bad", "good"))
    for arguments, said in [
        (([task, other], languages), "2 task vectors have heads, and a model takes one"),
        (
            (task, {"twice": [languages["ace"], languages["ace"]]}),
            "vectors 2 and 3 of 3 are the same",
        ),
        ((task, {"ace": other}), "is a task vector"),
        (([], languages), "the task vector has no head"),
    ]:
        with pytest.raises(DeftxError, match=said):
            deftx.Switcher(base, *arguments)


@pytest.mark.parametrize("rule", ["sum", "ties", "layers"])
def test_what_is_kept_for_a_language_is_what_it_changes_in_the_task_alone(parts, rule):
    base, task, languages = parts
    switcher = deftx.Switcher(base, task, languages, rule=rule)
    alone = deftx.compose(base, task, rule=rule).state_dict()
    for name, language in languages.items():
        found = deftx.compose(base, task, language, rule=rule).state_dict()
        changed = sum(
            int((found[n].view(torch.int32) != alone[n].view(torch.int32)).sum()) for n in alone
        )
        assert sum(len(part.indices) for part in switcher._entries[name]) == changed > 0


@pytest.mark.parametrize("shape", ["mt5", "bart"])
def test_an_encoder_decoder_takes_on_languages_too(bases, shape):
    model = load_task_model(bases(shape), ["bad", "good"])
    task, languages = random_vector(model, 0, ("bad", "good")), {"min": random_vector(model, 1)}
    switcher = deftx.Switcher(bases(shape), task, languages)
    for name in ("min", None, "min"):
        with switcher.language(name) as model:
            assert same(model, deftx.compose(bases(shape), task, languages[name] if name else ()))


def test_what_a_switch_writes_is_the_entries_of_two_languages(made, monkeypatch):
    switcher, _ = made
    written = []
    monkeypatch.setattr(
        module, "write_entries", lambda weight, indices, values: written.append(len(indices))
    )
    monkeypatch.setattr(switcher, "_current", "ace")
    monkeypatch.setattr(switcher, "_is_complete", True)
    with switcher.language("ace"):
        assert written == []
    with switcher.language("min"):
        assert sum(written) == sum(
            len(part.indices) for name in ("ace", "min") for part in switcher._entries[name]
        )


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


def hammered(switcher, composed, monkeypatch):
    """How many of the answers that four threads got are not, bit for bit, those of the composed
    models."""
    inputs = switcher._tokenizer(sentences(2, seed=4), padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = {name: model(**inputs).logits for name, model in composed.items()}
    write, answers = module.write_entries, []

    def slowly(*arguments):
        write(*arguments)
        time.sleep(1e-4)  # the others' turn: in the middle of a switch

    def ask(seed):
        draw = torch.Generator().manual_seed(seed)
        for number in torch.randint(4, (15,), generator=draw).tolist():
            name = [*NAMES, None][number]
            with switcher.language(name) as model, torch.no_grad():
                answers.append(torch.equal(model(**inputs).logits, expected[name]))

    monkeypatch.setattr(module, "write_entries", slowly)
    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 60
    return answers.count(False)


def test_no_thread_ever_sees_a_half_switched_model(made, monkeypatch):
    assert hammered(*made, monkeypatch) == 0


def test_without_its_lock_threads_would_see_half_switched_models(parts, made, monkeypatch):
    switcher = deftx.Switcher(*parts)
    monkeypatch.setattr(switcher, "_lock", nullcontext())
    never = property(lambda _: False, lambda *_: None)
    monkeypatch.setattr(deftx.Switcher, "_in_use", never, raising=False)
    assert hammered(switcher, made[1], monkeypatch) > 0


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
    for answer in (switcher.predict, switcher.probabilities):
        with pytest.raises(
            DeftxError, match="are 2 examples and 1 languages: give one for each, or one for all"
        ):
            answer(Examples(["a", "b"]), ["ace"])
        with pytest.raises(DeftxError, match=r"unknown language 'mni'.*min"):
            answer(Examples(["a", "b"]), "mni")


@pytest.mark.parametrize("name", [*NAMES, None])
def test_one_language_is_that_of_all_texts(made, name):
    switcher, texts = made[0], sentences(4, seed=5)
    assert switcher.predict(texts, name) == switcher.predict(texts, [name] * 4)
    assert switcher.predict(texts, language=name) == switcher.predict(texts, name)
    assert torch.equal(
        switcher.probabilities(texts, name), switcher.probabilities(texts, [name] * 4)
    )


def test_languages_are_given_by_name(parts):
    base, task, languages = parts
    for wrong in (languages["min"], [languages["min"]]):
        with pytest.raises(DeftxError, match=r"languages is a .*: give them by name, such as"):
            deftx.Switcher(base, task, wrong)


def test_an_unknown_rule_is_refused_before_anything_is_loaded(parts):
    with pytest.raises(DeftxError, match=r"unknown rule 'tise'.*did you mean 'ties'"):
        deftx.Switcher("nowhere", *parts[1:], rule="tise")


def test_a_vector_of_another_shape_is_refused(parts):
    base, task, languages = parts
    name, entries = next(iter(languages["ace"].tensors.items()))
    for tensors in (
        {name: replace(entries, shape=(1, *entries.shape))},
        {"elsewhere.weight": entries},
    ):
        with pytest.raises(DeftxError, match=r"use the vector's base|belongs to another base"):
            deftx.Switcher(base, task, {"ace": SparseVector(tensors)})


def test_vectors_of_another_base_are_refused(bases):
    model = load_task_model(bases(), ["bad", "good"])
    task, language = random_vector(model, 0, ("bad", "good")), random_vector(model, 1)
    other = SparseVector(
        language.tensors, provenance=Provenance(base="other", base_fingerprint="f" * 64)
    )
    with pytest.raises(DeftxError, match="other"):
        deftx.Switcher(bases(), task, {"min": other})


def test_vectors_of_another_tokenizer_are_refused(parts):
    base, task, languages = parts
    other = SparseVector(
        languages["ace"].tensors,
        provenance=Provenance(tokenizer=TokenizerRecord(name="other", digest="f" * 64)),
    )
    with pytest.raises(DeftxError, match="made with the tokenizer other"):
        deftx.Switcher(base, task, {"ace": other})


def test_texts_are_read_in_the_spelling_of_their_language(parts):
    base, task, languages = parts
    normalizer = deftx.Normalizer({"ba": "be", "di": "do"}, lower=True)
    texts, names = ["Ba be", "di BA", "Ba be", "di BA", "Ba be"], ["min", "ace", "ace", None, None]
    switcher = deftx.Switcher(
        base, task, languages, normalizers={"min": normalizer, "ace": normalizer}
    )
    with pytest.warns(UserWarning, match="of the text is unknown to the base's tokenizer"):
        found = switcher.probabilities(Examples(texts), names)
    spelt = Examples(["be be", "do be", "be be", "di BA", "Ba be"])
    plain = deftx.Switcher(base, task, languages)
    with pytest.warns(UserWarning, match="of the text is unknown to the base's tokenizer"):
        as_spelt = plain.probabilities(spelt, names)
    with pytest.warns(UserWarning, match="of the text is unknown to the base's tokenizer"):
        as_written = plain.probabilities(Examples(texts), names)
    assert torch.equal(found, as_spelt)
    assert not torch.equal(found, as_written)
    with pytest.warns(UserWarning, match="of the text is unknown to the base's tokenizer"):
        assert switcher.predict(Examples(texts), names) == plain.predict(spelt, names)


@pytest.mark.parametrize("language", ["min", None])
def test_scores_are_those_of_the_composed_model(parts, language):
    base, _, languages = parts
    kind, made = (
        TASKS["regression"],
        random_vector(load_task_model(base, (), task=TASKS["regression"]), 0, ("any",)),
    )
    task = replace(
        made, head=replace(made.head, labels=()), provenance=Provenance(task="regression")
    )
    normalizer = deftx.Normalizer({"ba": "be"}, lower=True)
    switcher = deftx.Switcher(base, task, languages, normalizers={"min": normalizer})
    test = Examples(sentences(20), labels=[float(number) for number in range(20)])
    spelt = replace(
        test,
        texts=[" ".join("be" if w == "ba" else w for w in text.split()) for text in test.texts],
    )
    composed, tokenizer = (
        deftx.compose(base, task, languages.get(language, ())),
        load_tokenizer(base),
    )
    scores = {
        name: evaluate(kind, composed, tokenizer, some, 64)
        for name, some in {"min": spelt, None: test}.items()
    }
    assert switcher.evaluate(test, language) == scores[language]
    assert scores[None] != scores["min"]


def test_examples_that_cannot_be_scored_are_refused(made):
    switcher, test = made[0], Examples(["ba be"], labels=["fine"])
    for wrong, says in [
        (replace(test, labels=None), "the examples have no labels"),
        (test, "label 'fine' is not among the labels of the training data: bad, good"),
        (["ba be"], "a list is given where examples are wanted"),
    ]:
        with pytest.raises(DeftxError, match=says):
            switcher.evaluate(wrong, "min")
    assert switcher.predict(["ba be"], ["min"])  # and the model can be had again


def test_the_spelling_of_a_language_that_is_not_there_is_refused(parts):
    base, task, languages = parts
    with pytest.raises(DeftxError, match=r"unknown language .mni.*known: ace, ban, min"):
        deftx.Switcher(base, task, languages, normalizers={"mni": deftx.Normalizer({}, lower=True)})


def test_plain_texts_are_answered_as_examples_are(made):
    switcher, texts, names = made[0], sentences(4, seed=5), [*NAMES, None]
    assert switcher.predict(texts, names) == switcher.predict(Examples(texts), names)
    assert torch.equal(
        switcher.probabilities(tuple(texts), names), switcher.probabilities(Examples(texts), names)
    )
    with pytest.raises(DeftxError, match="'ba be' is one text, where a list is wanted"):
        switcher.predict("ba be", [None])


def test_no_texts_have_no_answers(parts):
    switcher = deftx.Switcher(*parts[:2], parts[2])
    assert switcher.predict(Examples([]), []) == switcher.predict([], "min") == []
    assert switcher.probabilities(Examples([]), []).shape == (0, len(switcher.labels))
