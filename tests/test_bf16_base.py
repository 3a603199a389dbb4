"""A base that is held in bf16 while entries of it are trained in float32."""

import pytest
import tiny
import torch
from fit_examples import TRAIN, VALID

import deftx
from deftx.config import LanguageVectorConfig, TaskVectorConfig, changed
from deftx.core.parameters import parameter_groups
from deftx.errors import DeftxError
from deftx.training.preparation import prepare_language, prepare_task

SHAPES = ["xlmr", "qwen", "mt5"]
TRAINING = {
    "learning_rate": 3e-3,
    "batch_size": 8,
    "length": 16,
    "max_steps": 20,
    "evaluate_every": 10,
    "l1": 0.0,
    "precision": "bf16",
    "held_out": 0.2,
}
LANGUAGE = changed(LanguageVectorConfig(), {"method": "pafi", "k": "20%", "training": {**TRAINING}})
IN_BF16 = {"training": {"base_precision": "bf16"}}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Bases by shape, stored in bf16; and one in float16."""
    folder = tmp_path_factory.mktemp("bases")
    for shape in SHAPES:
        tiny.save_base(folder / shape, shape, torch.bfloat16)
    tiny.save_base(folder / "float16", "xlmr", torch.float16)
    return folder


@pytest.fixture(scope="module")
def text():
    return tiny.sentences(120)


def flat(vector):
    """All changes of a vector in one tensor."""
    return torch.cat([entries.to_dense().view(-1) for entries in vector.tensors.values()])


def dtypes(parameters):
    return {parameter.dtype for parameter in parameters.values()}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_backbone_is_in_bf16_and_what_is_trained_besides_in_float32(bases, text, shape):
    prepared = prepare_language(bases / shape, text, changed(LANGUAGE, IN_BF16))
    groups = parameter_groups(prepared.model)
    assert dtypes(groups.backbone) == {torch.bfloat16}
    assert dtypes(groups.trained_head) <= {torch.float32}


@pytest.mark.parametrize("method", ["pafi", "largest-weights", "spiel-ag", "spiel-ma"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_language_is_learnt_nearly_as_on_the_base_in_float32(bases, text, shape, method):
    settings = changed(LANGUAGE, {"method": method, "reselection": {"every": 5, "window": 2}})
    in_float32 = deftx.fit_language(bases / shape, text, settings)
    in_bf16 = deftx.fit_language(bases / shape, text, changed(settings, IN_BF16))
    assert in_bf16.k == in_float32.k
    assert in_bf16.provenance.base_fingerprint == in_float32.provenance.base_fingerprint
    losses = [vector.provenance.log["phase2"].best_score for vector in (in_bf16, in_float32)]
    assert losses[0] == pytest.approx(losses[1], abs=0.02)
    # the same entries move alike, and by steps that bf16 would lose
    if method in ("pafi", "largest-weights"):
        changes = [flat(vector) for vector in (in_bf16, in_float32)]
        assert torch.cosine_similarity(*changes, dim=0) > 0.8
    moved = torch.cat([entries.values for entries in in_bf16.tensors.values()])
    assert (moved != 0).float().mean() > 0.5


def test_a_task_is_learnt_on_a_source_and_composes_with_the_base_as_it_is_stored(bases, text):
    source = deftx.fit_language(bases / "xlmr", text, changed(LANGUAGE, IN_BF16))
    training = {**TRAINING, "max_steps": 6, "evaluate_every": 3}
    del training["held_out"]
    settings = changed(TaskVectorConfig(), {"method": "pafi", "k": "20%", "training": {**training}})
    settings = changed(settings, IN_BF16)
    prepared = prepare_task(bases / "xlmr", {"": TRAIN}, {"": VALID}, settings, {"": source})
    assert dtypes(prepared.groups.backbone) == {torch.bfloat16}
    assert dtypes(prepared.groups.trained_head) == {torch.float32}

    task = deftx.fit_task(bases / "xlmr", TRAIN, VALID, settings, source=source)
    model = deftx.compose(bases / "xlmr", task, source)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert task.head is not None


def test_a_base_that_is_a_classifier_already_gets_a_new_head_in_float32(bases, text, tmp_path):
    prepared = prepare_task(
        bases / "xlmr", {"": TRAIN}, {"": VALID}, TaskVectorConfig(method="pafi")
    )
    prepared.model.to(torch.bfloat16).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    settings = changed(TaskVectorConfig(method="pafi"), IN_BF16)
    renewed = prepare_task(tmp_path, {"": TRAIN}, {"": VALID}, settings)
    assert dtypes(renewed.groups.backbone) == {torch.bfloat16}
    assert dtypes(renewed.groups.trained_head) == {torch.float32}


@pytest.mark.parametrize("method", ["deftx", "lt-sft", "random"])
def test_methods_that_train_all_weights_are_refused(bases, text, method):
    settings = changed(LANGUAGE, {"method": method, **IN_BF16})
    with pytest.raises(DeftxError, match=f"method {method} trains all weights in phase 1"):
        deftx.fit_language(bases / "xlmr", text, settings)


def test_a_base_that_is_stored_otherwise_is_refused(bases, text):
    settings = changed(LANGUAGE, IN_BF16)
    with pytest.raises(DeftxError, match=r"is stored in float16, and rounding would make another"):
        deftx.fit_language(bases / "float16", text, settings)


def test_vectors_of_before_keep_their_name():
    assert "base_precision" not in LANGUAGE.deciding()["training"]
    assert changed(LANGUAGE, IN_BF16).deciding()["training"]["base_precision"] == "bf16"
