"""Embedding rows apart: what is learnt is what the whole embedding would learn, and no other row is
touched."""

from contextlib import suppress

import pytest
import tiny
import torch
from torch import nn

from deftx.config import LanguageTrainingConfig, TrainingConfig
from deftx.core.parameters import parameter_groups
from deftx.core.select import select
from deftx.data.examples import Examples
from deftx.models.heads import load_task_model
from deftx.models.loading import load_language_model
from deftx.objectives.masked_lm import masked_lm
from deftx.tasks.base import supervised
from deftx.tasks.classification import CLASSIFICATION
from deftx.training.embedding_rows import trainable_embedding_rows
from deftx.training.loop import TrainableState, train
from deftx.training.sparse import sparse_tuning

TOKENIZER = tiny.tokenizer()
TRAINING = TrainingConfig(
    learning_rate=1e-2, batch_size=4, epochs=3, evaluate_every=100, precision="fp32", l1=5.0
)
FEW = [
    " ".join(sentence.split()[:3]) for sentence in ("ba be bi bo", "da de di do", "ba do be di")
] * 8


@pytest.fixture(params=["xlmr", "bert", "distilbert", "modernbert", "deberta"])
def base(request, tmp_path):
    tiny.save_base(tmp_path / "base", request.param)
    return tmp_path / "base"


def prepared(base, kind):
    """A model at its start, without dropout, and an objective on few words."""
    if kind == "language":
        model = load_language_model(base)
        objective = masked_lm(FEW, TOKENIZER, LanguageTrainingConfig(min_steps=0), 10, 0)
    else:
        examples = Examples(FEW, None, ["yes" if "ba" in text else "no" for text in FEW])
        model = load_task_model(base, ["no", "yes"])
        objective = supervised(
            CLASSIFICATION, examples, examples, ["no", "yes"], TOKENIZER, 16, "accuracy"
        )
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for name, weight in parameter_groups(model).backbone.items():
        weight.requires_grad_(name in parameter_groups(model).trainable)
    return model, objective


def learnt(model, objective, moving):
    train(
        model,
        objective,
        TRAINING,
        TrainableState(moving, [weight.detach().clone() for weight in moving]),
        seed=0,
    )


@pytest.mark.parametrize("kind", ["language", "task"])
def test_training_with_rows_apart_is_training_of_the_whole(base, kind):
    start, _ = prepared(base, kind)
    whole, objective = prepared(base, kind)
    apart, _ = prepared(base, kind)
    learnt(whole, objective, list(parameter_groups(whole).trainable.values()))
    with trainable_embedding_rows(apart, objective.vocabulary_used) as rows:
        assert rows is not None
        assert len(rows.ids) < 20 < len(rows.weight)
        learnt(
            apart,
            objective,
            [
                rows.values if w is rows.weight else w
                for w in parameter_groups(apart).trainable.values()
            ],
        )
    before, expected = parameter_groups(start).backbone, parameter_groups(whole).backbone
    for name, weight in parameter_groups(apart).backbone.items():
        if not name.endswith(
            ("key.bias", "key_proj.bias", "k_lin.bias")
        ):  # their gradient is rounding alone
            torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=1e-5)
    weight, unused = apart.get_input_embeddings().weight, torch.ones(75, dtype=torch.bool)
    unused[rows.ids] = False
    assert not torch.equal(weight[rows.ids], start.get_input_embeddings().weight[rows.ids])
    for model in (apart, whole):
        assert torch.equal(
            model.get_input_embeddings().weight[unused], start.get_input_embeddings().weight[unused]
        )
    assert set(before) == set(parameter_groups(apart).backbone)


def test_phase_2_with_rows_apart_is_phase_2_of_the_whole(base):
    """Tied embeddings cannot be parted: the same steps with a second, unused tie and without."""
    results = []
    for tied in (False, True):
        model, objective = prepared(base, "language")
        generator = torch.Generator().manual_seed(3)
        delta = {
            name: torch.randn(weight.shape, generator=generator)
            for name, weight in parameter_groups(model).trainable.items()
        }
        if tied:
            model.register_parameter("tie", model.get_input_embeddings().weight)
        with sparse_tuning(model, select(delta, "20%")) as tuning:
            assert hasattr(model, "embedding_rows") is not tied
            optimiser = torch.optim.AdamW(tuning.parameters(), 1e-2)
            for number in range(3):
                drawn = torch.Generator().manual_seed(number)
                objective.loss(
                    model, objective.collate(list(objective.train[:4]), drawn)
                ).backward()
                optimiser.step()
                optimiser.zero_grad()
        results.append(tuning.vector().tensors)
    for apart, whole in zip(results[0].values(), results[1].values(), strict=True):
        assert torch.equal(apart.indices, whole.indices)
        torch.testing.assert_close(apart.values, whole.values, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["language", "task"])
def test_batches_hold_no_other_tokens_than_an_objective_says(base, kind):
    _, objective = prepared(base, kind)
    said = {*objective.vocabulary_used.tolist(), TOKENIZER.pad_token_id}
    for seed in range(20):
        drawn = torch.Generator().manual_seed(seed)
        assert (
            set(objective.collate(list(objective.train), drawn)["input_ids"].unique().tolist())
            <= said
        )


def test_rows_are_written_and_all_is_as_before_after_an_exception():
    model = tiny.xlmr()
    model.lm_head.decoder.weight = nn.Parameter(model.lm_head.decoder.weight.detach().clone())
    weight, ids = model.get_input_embeddings().weight, torch.tensor([[0, 7, 30, 2]])
    before, said = weight.detach().clone(), model.eval()(input_ids=ids).logits
    with suppress(KeyError), trainable_embedding_rows(model, torch.tensor([7, 9, 7])) as rows:
        assert torch.equal(model(input_ids=ids).logits, said)
        assert not weight.requires_grad
        with torch.no_grad():
            rows.values += 1
        assert not torch.equal(model(input_ids=ids).logits, said)
        raise KeyError
    assert weight.requires_grad
    assert not hasattr(model, "embedding_rows")
    assert torch.equal(weight[[7, 9]], before[[7, 9]] + 1)
    weight.data[[7, 9]] = before[[7, 9]]
    assert torch.equal(model(input_ids=ids).logits, said)


def test_all_rows_are_the_whole_embedding_and_need_no_parameter_of_their_own():
    model = tiny.xlmr()
    model.lm_head.decoder.weight = nn.Parameter(model.lm_head.decoder.weight.detach().clone())
    with trainable_embedding_rows(model, torch.arange(75)) as rows:
        assert rows is None
        assert model.get_input_embeddings().weight.requires_grad


@pytest.mark.parametrize(
    "model",
    [tiny.xlmr(), nn.Linear(3, 3), tiny.deberta(legacy=False)],
    ids=["tied", "no embeddings", "read by a head"],
)
def test_what_cannot_be_parted_is_left_alone(model):
    trained = [parameter.requires_grad for parameter in model.parameters()]
    with trainable_embedding_rows(model, torch.tensor([7])) as rows:
        assert rows is None
        assert [parameter.requires_grad for parameter in model.parameters()] == trained
