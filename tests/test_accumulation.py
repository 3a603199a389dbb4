"""Batches that are accumulated give the gradient of the large batch, for every objective, uneven
last parts too."""

import pytest
import tiny
import torch
from task_examples import EXAMPLES

from deftx.config import LanguageTrainingConfig, TrainingConfig
from deftx.core.parameters import parameter_groups
from deftx.models.heads import load_task_model
from deftx.models.loading import load_language_model
from deftx.models.tokenizers import load_tokenizer
from deftx.objectives.registry import language_of
from deftx.tasks.base import names_of, supervised
from deftx.tasks.registry import TASKS
from deftx.training import loop
from deftx.training.loop import TrainableState, train

TEXT = tiny.sentences(60)
TASK_BASES = {"generation": "qwen"}


@pytest.fixture
def gradients(monkeypatch):
    """The gradients of each optimiser step, before they are clipped."""
    steps = []

    def captured(parameters, largest):
        steps.append(
            [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]
        )
        return torch.zeros(())

    monkeypatch.setattr(loop.nn.utils, "clip_grad_norm_", captured)
    return steps


def step_gradients(load, objective, gradients, batch_size, accumulate):
    """The gradients of three steps of one model, whose weights stay nearly where they are."""
    model = load().double()
    training = TrainingConfig(
        learning_rate=1e-12,
        batch_size=batch_size,
        accumulate=accumulate,
        max_steps=3,
        evaluate_every=99,
        precision="fp32",
    )
    body = list(parameter_groups(model).backbone.values())
    state = TrainableState(body, [weight.detach().clone() for weight in body])
    gradients.clear()
    train(model, objective, training, state, seed=0)
    return list(gradients)


def assert_parts_are_the_whole(load, objective, gradients):
    examples = len(objective.train)
    assert 8 < examples < 24
    assert examples % 8 != 0  # the last step of an epoch is a part of a batch
    whole = step_gradients(load, objective, gradients, 8, 1)
    for batch_size, accumulate in ((4, 2), (2, 4), (1, 8)):
        parts = step_gradients(load, objective, gradients, batch_size, accumulate)
        for whole_step, parts_step in zip(whole, parts, strict=True):
            largest = max(float(gradient.abs().max()) for gradient in whole_step)
            assert largest > 1e-4
            for one, other in zip(whole_step, parts_step, strict=True):
                difference = float((one - other).abs().max())
                assert difference < 1e-6 * largest  # losses are float32


@pytest.mark.parametrize("shape", ["xlmr", "modernbert", "qwen", "t5", "bart"])
def test_of_language_modelling(bases, gradients, shape):
    base = bases(shape)
    learn = language_of(load_language_model(base).config).objective
    objective = learn(TEXT, load_tokenizer(base), LanguageTrainingConfig(), 24, 0)
    assert_parts_are_the_whole(lambda: load_language_model(base, dropout=0.0), objective, gradients)


@pytest.mark.parametrize("name", TASKS)
def test_of_every_kind_of_task(bases, gradients, name):
    task, examples, base = TASKS[name], EXAMPLES[name], bases(TASK_BASES.get(name, "modernbert"))
    labels = names_of(task, examples)
    objective = supervised(
        task, examples, examples, labels, load_tokenizer(base), 24, next(iter(task.metrics))
    )

    def load():
        model = load_task_model(base, labels, 0, task, dropout=0.0)
        if name == "parsing":  # whose head starts at 0, so that nothing below it has a gradient
            generator = torch.Generator().manual_seed(0)
            for weight in parameter_groups(model).head.values():
                torch.nn.init.normal_(weight, std=0.5, generator=generator)
        return model

    assert_parts_are_the_whole(load, objective, gradients)
