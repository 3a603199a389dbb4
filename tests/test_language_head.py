"""The language modelling head: trained along but for its decoder, from one start in both phases,
and thrown away."""

import pytest
import tiny
import torch
from torch import nn
from transformers import AutoModel, AutoTokenizer

import deftx.training.phases as phases_module
from deftx.config import LanguageTrainingConfig, LanguageVectorConfig, changed
from deftx.core.parameters import parameter_groups
from deftx.errors import DeftxError
from deftx.fit import fit_language
from deftx.models.loading import load_language_model
from deftx.training.preparation import prepare_language

TRAINING = {
    "learning_rate": 1e-2,
    "max_steps": 3,
    "min_steps": 0,
    "evaluate_every": 3,
    "batch_size": 4,
    "length": 16,
}
LANGUAGE = LanguageVectorConfig(
    k="5%", rank=3, training=LanguageTrainingConfig(**TRAINING, precision="fp32")
)
TEXT = tiny.sentences(40)
WITH_MORE_THAN_A_DECODER = ["xlmr", "bert", "distilbert", "modernbert", "deberta"]
ALL_SHAPES = [*WITH_MORE_THAN_A_DECODER, "qwen", "llama", "t5", "mt5", "bart", "mbart"]


@pytest.fixture
def heads(monkeypatch):
    """The trained head's tensors at the start and at the end of each phase."""
    seen, train = [], phases_module.train

    def watched(model, objective, training, state, **options):
        start = [parameter.detach().clone() for parameter in state.head]
        result = train(model, objective, training, state, **options)
        seen.append((start, [parameter.detach().clone() for parameter in state.head]))
        return result

    monkeypatch.setattr(phases_module, "train", watched)
    return seen


@pytest.mark.parametrize("shape", WITH_MORE_THAN_A_DECODER)
def test_all_of_the_head_but_its_decoder_moves_in_both_phases_from_one_start(bases, heads, shape):
    vector = fit_language(bases(shape), TEXT, LANGUAGE)
    (start1, end1), (start2, end2) = heads
    assert len(start1) >= 3  # a dense layer, a norm, a bias
    assert all(torch.equal(one, two) for one, two in zip(start1, start2, strict=True))
    for start, end in ((start1, end1), (start2, end2)):
        assert not any(torch.equal(before, after) for before, after in zip(start, end, strict=True))
    assert not all(torch.equal(one, two) for one, two in zip(end1, end2, strict=True))
    assert vector.head is None
    assert (
        vector.tensors.keys()
        <= parameter_groups(load_language_model(bases(shape))).trainable.keys()
    )


@pytest.mark.parametrize("shape", ALL_SHAPES)
def test_the_decoder_is_untied_and_frozen_whatever_the_base(bases, shape):
    model = load_language_model(bases(shape), lm_head="trained")
    decoder = model.get_output_embeddings()
    assert decoder.weight is not model.get_input_embeddings().weight
    assert not decoder.weight.requires_grad
    trained = {
        name for name, parameter in parameter_groups(model).head.items() if parameter.requires_grad
    }
    assert trained == parameter_groups(model).head.keys() - {
        name for name, p in parameter_groups(model).head.items() if p is decoder.weight
    }
    assert bool(trained) is (shape in WITH_MORE_THAN_A_DECODER)


@pytest.mark.parametrize("shape", ALL_SHAPES)
def test_a_frozen_head_stays_as_it_is(bases, shape):
    settings = changed(LANGUAGE, {"training": {"lm_head": "frozen"}})
    start = prepare_language(bases(shape), TEXT, settings)
    assert not any(
        parameter.requires_grad for parameter in parameter_groups(start.model).head.values()
    )
    assert all(
        parameter.requires_grad for parameter in parameter_groups(start.model).backbone.values()
    )


def test_trained_and_frozen_heads_give_other_vectors(bases):
    trained = fit_language(bases(), TEXT, LANGUAGE)
    frozen = fit_language(bases(), TEXT, changed(LANGUAGE, {"training": {"lm_head": "frozen"}}))
    assert trained.provenance.training.settings["lm_head"] == "trained"
    assert any(
        not torch.equal(entries.values, frozen.tensors[name].values)
        for name, entries in trained.tensors.items()
        if len(entries.values) == len(frozen.tensors[name].values)
    )


@pytest.fixture
def headless(bases, tmp_path):
    """A base as mE5 is: an encoder alone."""
    AutoModel.from_pretrained(bases(), add_pooling_layer=False).save_pretrained(
        tmp_path / "headless"
    )
    AutoTokenizer.from_pretrained(bases()).save_pretrained(tmp_path / "headless")
    return tmp_path / "headless"


def test_a_base_without_a_head_gets_one_that_is_trained_along(headless, heads):
    with pytest.warns(
        UserWarning, match="has no language modelling head: a new one is trained along"
    ):
        vector = fit_language(headless, TEXT, LANGUAGE)
    (start1, end1), (start2, _) = heads
    assert all(torch.equal(one, two) for one, two in zip(start1, start2, strict=True))
    assert not any(torch.equal(before, after) for before, after in zip(start1, end1, strict=True))
    assert vector.head is None


def test_the_new_head_is_drawn_by_the_seed(headless):
    with pytest.warns(UserWarning, match="has no language modelling head"):
        models = [load_language_model(headless, lm_head="trained", seed=seed) for seed in (0, 0, 1)]
    dense = [model.lm_head.dense.weight for model in models]
    assert torch.equal(dense[0], dense[1])
    assert not torch.equal(dense[0], dense[2])
    embeddings = models[0].get_input_embeddings().weight
    assert torch.equal(models[0].get_output_embeddings().weight, embeddings)


def test_a_head_that_is_to_stay_frozen_must_be_there(headless):
    with pytest.raises(
        DeftxError, match=r"is not a masked language model: its checkpoint lacks lm_head"
    ):
        fit_language(headless, TEXT, changed(LANGUAGE, {"training": {"lm_head": "frozen"}}))


def test_the_unigram_shift_of_a_language_goes_into_the_heads_bias_not_into_the_vector(bases):
    """A text of few words: with a trained head the backbone has less to learn of which words there
    are."""
    few = [" ".join(tiny.WORDS[i % 5] for i in range(n, n + 6)) for n in range(80)]
    more = {"training": {"max_steps": 60, "evaluate_every": 20, "learning_rate": 1e-3}}
    vectors = {}
    for lm_head in ("trained", "frozen"):
        settings = changed(changed(LANGUAGE, more), {"training": {"lm_head": lm_head}})
        vectors[lm_head] = fit_language(bases(), few, settings)
    losses = {name: vector.provenance.log["phase1"].best_score for name, vector in vectors.items()}
    assert losses["trained"] < losses["frozen"]
    assert vectors["trained"].provenance.log["phase1"].start_score == pytest.approx(
        vectors["frozen"].provenance.log["phase1"].start_score
    )


def test_a_tied_decoder_bias_is_one_parameter():
    model = tiny.xlmr()
    assert isinstance(model.lm_head.decoder.bias, nn.Parameter)
    assert model.lm_head.bias is model.lm_head.decoder.bias
