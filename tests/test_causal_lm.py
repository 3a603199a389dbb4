"""Causal language modelling: the loss is the model's own, blocks hold text in order, and a decoder
learns from it."""

import pytest
import tiny
import torch

from deftx.config import LanguageTrainingConfig, LanguageVectorConfig
from deftx.core.parameters import parameter_groups
from deftx.errors import DeftxError
from deftx.fit import fit
from deftx.models.loading import load_language_model
from deftx.models.tokenizers import load_tokenizer
from deftx.objectives.causal_lm import causal_lm
from deftx.objectives.masked_lm import masked_lm
from deftx.objectives.registry import language_of

TOKENIZER = tiny.tokenizer(decoder=True)
every_shape = pytest.mark.parametrize("shape", tiny.DECODERS)


def made(texts, length=16, seed=0):
    return causal_lm(texts, TOKENIZER, LanguageTrainingConfig(held_out=0.2), length, seed)


@every_shape
@torch.no_grad()
def test_the_loss_is_the_models_own_also_on_held_out_text(bases, shape):
    model, objective = load_language_model(bases(shape)).eval(), made(tiny.sentences(40))
    batch = objective.collate([*objective.train[:3]])
    torch.testing.assert_close(objective.loss(model, batch), model(**batch).loss)
    each = [
        model(input_ids=block[None], labels=block[None]).loss.item() for block in objective.held_out
    ]
    for batch_size in (1, 3, 100):
        assert objective.validate(model, batch_size)["loss"] == pytest.approx(
            sum(each) / len(each), rel=1e-5
        )


def test_blocks_begin_as_texts_do_and_hold_the_text_in_order_without_an_end():
    objective = made(["ba be bi bo bu"] * 10, length=5)
    assert (objective.train[:, 0] == TOKENIZER.bos_token_id).all()
    stream = ([*range(5, 10), TOKENIZER.eos_token_id] * 8)[:-1]
    assert objective.train[:, 1:].flatten().tolist() == stream[: len(stream) // 4 * 4]
    assert objective.vocabulary_used.tolist() == [0, 2, *range(5, 10)]


def test_equal_texts_have_equal_digests_and_others_do_not():
    given = [(0, 0), (0, 0), (1, 0), (0, 1)]
    digests = [made(tiny.sentences(20, number), seed=seed).digest for number, seed in given]
    assert len({*digests}) == 3


def test_too_little_text_is_an_error():
    with pytest.raises(DeftxError, match=r"has 1 usable line"):
        made(["ba be"])


@pytest.mark.parametrize(
    ("shape", "objective"), [("xlmr", masked_lm), ("modernbert", masked_lm), ("qwen", causal_lm)]
)
def test_a_base_says_itself_how_its_language_is_learnt(bases, shape, objective):
    assert language_of(load_language_model(bases(shape)).config).objective is objective


@pytest.mark.parametrize("shape", [*tiny.DECODERS, "mt5", "bart"])
def test_a_base_that_writes_learns_a_language_and_moves_nothing_outside_the_selection(bases, shape):
    """Its text is a pattern, so it is soon better, though 30% of its weights move."""
    training = LanguageTrainingConfig(
        learning_rate=1e-2,
        batch_size=8,
        length=32,
        max_steps=60,
        min_steps=0,
        evaluate_every=20,
        l1=0,
    )
    model = load_language_model(bases(shape))
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    learn = language_of(model.config).objective
    objective = learn(tiny.sentences(200), load_tokenizer(bases(shape)), training, 32, 0)
    with torch.no_grad():
        at_first = objective.validate(model.eval(), 8)["loss"]
    phi = fit(model, objective, LanguageVectorConfig(k="30%", training=training))
    scores = [
        row["eval_loss"] for row in phi.provenance.log["phase2"].history if "eval_loss" in row
    ]
    assert phi.provenance.log["phase2"].best_score == min(scores) < at_first - 0.3
    names = {id(weight): name for name, weight in parameter_groups(model).backbone.items()}
    for name, weight in model.named_parameters():
        entries = phi.tensors.get(names.get(id(weight), "none: it is of the head"))
        moved = (weight != before[name]).view(-1).nonzero().view(-1)
        assert set(moved.tolist()) <= set(entries.indices.tolist() if entries else ())
    assert phi.k == round(0.3 * parameter_groups(model).trainable_size)
