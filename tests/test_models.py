"""Bases: any encoder loads in float32, its parts are told apart, and a composed model is an
ordinary one."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    ViTConfig,
    XLMRobertaModel,
    pipeline,
)
from transformers.utils import logging
from vector_examples import LABELS, vector

import deftx
from deftx.config import changed
from deftx.core.apply import apply_temporarily
from deftx.core.merge import merge
from deftx.core.parameters import parameter_groups
from deftx.core.provenance import TrainingRecord
from deftx.data.examples import Examples
from deftx.errors import DeftxError
from deftx.models.compose import compose, compose_to
from deftx.models.fingerprint import fingerprint
from deftx.models.heads import load_composed, load_task_model
from deftx.models.limits import longest_input
from deftx.models.loading import load_encoder, load_language_model, skeleton
from deftx.models.saving import save_model
from deftx.models.tokenizers import load_tokenizer, tokenizer_record
from deftx.tasks.base import evaluate, output_names, predict
from deftx.tasks.classification import CLASSIFICATION, probabilities
from deftx.tasks.registry import task_of

TEXTS = tiny.sentences(6, seed=5)
every_shape = pytest.mark.parametrize("shape", tiny.SHAPES)
also_encoder_decoders = pytest.mark.parametrize("shape", [*tiny.SHAPES, *tiny.ENCODER_DECODERS])


def error(load, *args):
    with pytest.raises(DeftxError) as caught:
        load(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- bases that bring code ---


@pytest.fixture
def bringing_code(bases, tmp_path, monkeypatch):
    """A base's folder with Python code, by its kind; the test fails where the code runs or somebody
    is asked."""
    folder, ran = tmp_path / "base", tmp_path / "ran"

    def make(model_type: str) -> Path:
        shutil.copytree(bases("xlmr"), folder)
        write = f"open({str(ran)!r}, 'w')"
        names = ["XLMRobertaConfig as C", "XLMRobertaModel as M", "XLMRobertaTokenizer as T"]
        classes = f"from transformers import {', '.join(names)}"
        (folder / "conf.py").write_text(f"{write}\n{classes}\n")
        classes = {"AutoConfig": "conf.C", "AutoModel": "conf.M", "AutoTokenizer": ["conf.T", None]}
        changes = {"config.json": {"model_type": model_type}, "tokenizer_config.json": {}}
        for name, change in changes.items():
            before = json.loads((folder / name).read_text())
            (folder / name).write_text(json.dumps({**before, "auto_map": classes, **change}))
        return folder

    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked"))
    yield make
    assert not ran.exists()


@pytest.mark.parametrize("load", [load_encoder, load_language_model, load_composed, skeleton])
def test_a_base_that_needs_its_own_code_is_refused(bringing_code, load):
    assert "deftx does not run" in error(load, bringing_code("own"))


@pytest.mark.parametrize("load", [load_encoder, load_language_model, load_tokenizer, skeleton])
def test_a_base_that_transformers_knows_loads_without_the_code_beside_it(bringing_code, load):
    assert load(bringing_code("xlm-roberta")) is not None


# --- the parts of a model ---


@every_shape
def test_the_backbone_is_the_same_in_every_model_of_a_base(bases, shape):
    kinds = [AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification]
    bodies = [parameter_groups(kind.from_pretrained(bases(shape))).backbone for kind in kinds]
    assert same(bodies[0], bodies[1])
    assert same(bodies[0], bodies[2])
    assert not any("pooler" in name for name in bodies[0])


@every_shape
def test_backbone_and_head_together_are_all_parameters_each_once(bases, shape):
    for kind in (AutoModelForMaskedLM, AutoModelForSequenceClassification):
        model = kind.from_pretrained(bases(shape))
        parts = [
            id(weight)
            for part in (parameter_groups(model).backbone, parameter_groups(model).head)
            for weight in part.values()
        ]
        assert sorted(parts) == sorted(id(weight) for weight in model.parameters())
        assert len(set(parts)) == len(parts)
        assert (
            id(model.get_input_embeddings().weight)
            in parts[: len(parameter_groups(model).backbone)]
        )


@every_shape
def test_layer_norms_are_the_only_part_of_the_backbone_that_is_not_tunable(bases, shape):
    model = AutoModelForMaskedLM.from_pretrained(bases(shape))
    frozen = parameter_groups(model).backbone.keys() - parameter_groups(model).trainable.keys()
    assert frozen == {name for name in parameter_groups(model).backbone if "norm" in name.lower()}
    assert len(frozen) >= 4
    assert list(parameter_groups(model).trainable) == [
        name for name in parameter_groups(model).backbone if name not in frozen
    ]


def test_a_pooler_is_part_of_the_head(bases):
    model = AutoModelForSequenceClassification.from_pretrained(bases("bert"))
    assert {"bert.pooler.dense.weight", "bert.pooler.dense.bias"} <= parameter_groups(
        model
    ).head.keys()


# --- loading ---


@every_shape
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_checkpoint_is_loaded_in_full_precision(tmp_path, shape, dtype):
    base = tiny.save_base(tmp_path / "base", shape, dtype)
    stored = AutoModelForMaskedLM.from_pretrained(base)
    assert {weight.dtype for weight in stored.parameters()} == {dtype}
    for model in (load_language_model(base), load_task_model(base, LABELS)):
        assert {weight.dtype for weight in model.parameters()} == {torch.float32}
        for name, weight in parameter_groups(model).backbone.items():
            assert torch.equal(weight, parameter_groups(stored).backbone[name].float())


@every_shape
def test_the_masked_language_model_is_the_checkpoints_with_a_frozen_and_untied_head(bases, shape):
    model, plain = (
        load_language_model(bases(shape)),
        AutoModelForMaskedLM.from_pretrained(bases(shape)).eval(),
    )
    inputs = {
        "input_ids": torch.tensor([[0, 7, 4, 9, 2]]),
        "labels": torch.tensor([[-100, -100, 8, -100, -100]]),
    }
    assert torch.equal(model.eval()(**inputs).logits, plain(**inputs).logits)
    decoder, embeddings = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    assert decoder is not embeddings
    assert torch.equal(decoder, embeddings)
    assert not any(weight.requires_grad for weight in parameter_groups(model).head.values())
    assert all(weight.requires_grad for weight in parameter_groups(model).backbone.values())
    model(**inputs).loss.backward()
    moved = embeddings.grad.any(dim=1).nonzero().view(-1).tolist()
    assert moved == [0, 2, 4, 7, 9]  # the tokens that were read, and none that was only predicted
    assert decoder.grad is None


@also_encoder_decoders
def test_a_classifiers_head_is_drawn_from_its_seed_and_nothing_else_is(bases, shape):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = load_task_model(bases(shape), LABELS, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again, other = (
        load_task_model(bases(shape), LABELS, seed=5),
        load_task_model(bases(shape), LABELS, seed=6),
    )
    assert same(parameter_groups(one).head, parameter_groups(again).head)
    assert not same(parameter_groups(one).head, parameter_groups(other).head)
    assert same(parameter_groups(one).backbone, parameter_groups(other).backbone)
    assert parameter_groups(one).head
    assert [one.config.id2label[i] for i in range(3)] == list(LABELS)
    assert one.config.label2id == {"bad": 0, "fair": 1, "good": 2}
    assert not one.training


@pytest.mark.parametrize(
    ("shape", "longest"), [("xlmr", 32), ("bert", 32), ("modernbert", 32), ("distilbert", 32)]
)
def test_the_longest_input_is_one_that_the_model_takes(bases, shape, longest):
    """XLM-R's 34 positions begin after the padding index: 32 are left."""
    model, tokenizer = load_language_model(bases(shape)), load_tokenizer(bases(shape))
    assert longest_input(model, tokenizer) == longest
    model(input_ids=torch.full((1, longest), 7))


# Config, model, whether positions begin after the padding index: by how it counts, not by its name
POSITIONS = {
    "CamembertConfig": ("CamembertForMaskedLM", True),
    "MPNetConfig": ("MPNetForMaskedLM", True),
    "XmodConfig": ("XmodForMaskedLM", True),
    "Data2VecTextConfig": ("Data2VecTextForMaskedLM", True),
    "LongformerConfig": ("LongformerForMaskedLM", True),
    "LukeConfig": ("LukeForMaskedLM", True),
    "EsmConfig": ("EsmForMaskedLM", True),
    "RobertaPreLayerNormConfig": ("RobertaPreLayerNormForMaskedLM", True),
    "IBertConfig": ("IBertForMaskedLM", True),
    "ElectraConfig": ("ElectraForMaskedLM", False),
    "NystromformerConfig": ("NystromformerForMaskedLM", False),
}


@pytest.mark.parametrize("config", POSITIONS)
def test_the_longest_input_of_a_base_is_one_that_it_takes_whatever_it_is_called(config):
    model_class, after_padding = POSITIONS[config]
    further = {
        "mask_token_id": 4,
        "attention_window": 4,
        "position_embedding_type": "absolute",
        "embedding_size": 16,
    }
    sizes = {**tiny.SIZES, **tiny.COMMON, "max_position_embeddings": 34}
    if config in ("XmodConfig",):
        further |= {"languages": ["en_XX"], "default_language": "en_XX"}
    model = getattr(transformers, model_class)(
        getattr(transformers, config)(**sizes, **further)
    ).eval()
    tokenizer = tiny.tokenizer()
    tokenizer.model_max_length = int(1e30)

    longest = longest_input(model, tokenizer)
    model(input_ids=torch.full((1, longest), 7))
    assert longest <= 32 if after_padding else longest in (32, 34)
    if config not in (
        "LongformerConfig",
        "NystromformerConfig",
    ):  # which pad their inputs themselves
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, longest + 1), 7))


def test_a_config_without_a_padding_id_takes_the_tokenizers(bases, tmp_path):
    folder = shutil.copytree(bases(), tmp_path / "base")
    config_of(folder, pad_token_id=None)
    texts = Examples(["ba be", "ba be bi bo bu da de"])
    tokenizer, models = (
        load_tokenizer(folder),
        [load_task_model(base, LABELS) for base in (folder, bases())],
    )
    assert models[0].config.pad_token_id == tokenizer.pad_token_id == 1
    found, wanted = (predict(CLASSIFICATION, model, tokenizer, texts, 32) for model in models)
    assert found == wanted
    assert same(
        parameter_groups(load_language_model(folder)).backbone,
        parameter_groups(load_language_model(bases())).backbone,
    )
    assert load_encoder(folder).config.pad_token_id == 1


def config_of(folder, **changes):
    path = Path(folder) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("shape", ["xlmr", "bert", "distilbert", "qwen", "mt5"])
def test_a_base_without_the_files_of_its_tokenizer_is_one_line(bases, tmp_path, shape):
    folder = shutil.copytree(bases(shape), tmp_path / "base")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).unlink()
    assert "tokenizer" in error(load_tokenizer, folder)


def base_with_more_tokens(bases, folder, **special):
    """A base whose tokenizer has one token more than the model has embeddings, which are 75."""
    shutil.copytree(bases(), folder)
    tokenizer = load_tokenizer(bases())
    tokenizer.add_special_tokens(special) if special else tokenizer.add_tokens(["ŋgoro"])
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_token_without_an_embedding_does_no_harm_in_texts_that_lack_it(bases, tmp_path):
    base = base_with_more_tokens(bases, tmp_path / "base")
    settings = deftx.LanguageVectorConfig(k="5%", training={"max_steps": 1, "length": 16})
    more, usual = (deftx.fit_language(b, tiny.sentences(20), settings) for b in (base, bases()))
    for name, tensor in usual.tensors.items():
        assert torch.equal(more.tensors[name].indices, tensor.indices)
        assert torch.equal(more.tensors[name].values, tensor.values)
    tokenizer, model = load_tokenizer(base), load_task_model(base, LABELS)
    assert len(tokenizer) == 76
    answers = predict(CLASSIFICATION, model, tokenizer, Examples(TEXTS), 32)
    assert answers == predict(CLASSIFICATION, model, load_tokenizer(bases()), Examples(TEXTS), 32)


def test_a_text_with_a_token_without_an_embedding_is_one_line_wherever_it_is_read(bases, tmp_path):
    base = base_with_more_tokens(bases, tmp_path / "base")
    tokenizer, model = load_tokenizer(base), load_task_model(base, LABELS)
    texts = [*tiny.sentences(20), "ŋgoro"]
    labelled = Examples(texts, labels=[LABELS[i % 3] for i in range(len(texts))])
    settings = deftx.LanguageVectorConfig()
    everywhere = changed(settings, {"training": {"replacements": "vocabulary"}})
    for wrong in (
        lambda: deftx.fit_language(base, texts, settings),
        lambda: deftx.fit_task(base, labelled, labelled),
        lambda: predict(CLASSIFICATION, model, tokenizer, labelled, 32),
        lambda: evaluate(CLASSIFICATION, model, tokenizer, labelled, 32),
        lambda: probabilities(model, tokenizer, labelled, 32),
    ):
        said = error(wrong)
        assert "the text has the token 'ŋgoro', for which the base has no embedding" in said
        assert "it has 75" in said
    assert "replacements = corpus" in error(
        lambda: deftx.fit_language(base, tiny.sentences(20), everywhere)
    )
    model.resize_token_embeddings(76)
    predict(CLASSIFICATION, model, tokenizer, labelled, 32)


def test_a_special_token_without_an_embedding_is_one_line(bases, tmp_path):
    base = base_with_more_tokens(bases, tmp_path / "base", pad_token="[fill]")
    said = error(load_tokenizer, base)
    assert "the pad_token of its tokenizer is '[fill]', for which the base has no embedding" in said
    model = AutoModelForMaskedLM.from_pretrained(base)
    model.resize_token_embeddings(76)
    model.save_pretrained(base)
    assert len(load_tokenizer(base)) == 76


@pytest.mark.parametrize("shape", ["xlmr", "bert", "distilbert", "modernbert", "qwen", "mt5"])
@pytest.mark.parametrize("labels", [("x", "y", "z"), ("x", "y")])
def test_a_classifier_as_base_does_not_lend_its_head_to_another_task(
    bases, tmp_path, shape, labels
):
    first = load_task_model(bases(shape), LABELS, seed=9)
    save_model(first, load_tokenizer(bases(shape)), tmp_path / "base")
    one, again, other = (
        load_task_model(tmp_path / "base", labels, seed=seed) for seed in (5, 5, 6)
    )
    assert same(parameter_groups(one).backbone, parameter_groups(first).backbone)
    assert same(parameter_groups(one).head, parameter_groups(again).head)
    drawn = [
        n
        for n, weight in parameter_groups(one).head.items()
        if weight.any() and n.endswith("weight") and "pooler" not in n
    ]
    assert drawn
    for name in drawn:
        if "norm" not in name.lower():
            assert not parameter_groups(one).head[name].equal(parameter_groups(other).head[name])
            assert not parameter_groups(one).head[name].equal(parameter_groups(first).head[name])
    assert one.config.num_labels == len(labels)


def test_a_composed_model_keeps_its_head_when_it_is_loaded(bases, tmp_path):
    model = compose(bases(), vector(bases(), 1, with_head=True))
    save_model(model, load_tokenizer(bases()), tmp_path / "model")
    assert same(
        parameter_groups(load_composed(tmp_path / "model")).head, parameter_groups(model).head
    )


def test_weights_of_the_backbone_with_another_shape_are_one_line(bases, tmp_path):
    folder = shutil.copytree(bases(), tmp_path / "base")
    config_of(folder, intermediate_size=28)
    said = error(load_task_model, folder, LABELS)
    assert "[24] in the checkpoint and [28] by config.json" in said


def test_names_of_outputs_go_by_their_numbers_not_by_their_order(bases, tmp_path):
    labels = tuple(f"t{number:02d}" for number in range(12))
    model = load_task_model(bases(), labels)
    assert output_names(model) == labels
    model.config.id2label = dict(
        sorted(model.config.id2label.items(), key=lambda item: str(item[0]), reverse=True)
    )
    assert output_names(model) == labels
    save_model(model, load_tokenizer(bases()), tmp_path / "model")
    named = json.loads((tmp_path / "model/config.json").read_text())["id2label"]
    config_of(tmp_path / "model", id2label=dict(sorted(named.items(), reverse=True)))
    assert output_names(load_composed(tmp_path / "model")) == labels


def test_outputs_that_are_numbered_with_gaps_are_one_line(bases):
    model = load_task_model(bases(), LABELS)
    model.config.id2label = {1: "bad", 2: "fair", 3: "good"}
    assert "1, 2, 3: number them from 0 on" in error(output_names, model)


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json"])
def test_what_git_lfs_has_not_fetched_is_called_so(bases, tmp_path, file):
    folder = shutil.copytree(bases(), tmp_path / "base")
    (folder / file).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"
    )
    for load in (load_language_model, load_tokenizer, load_encoder):
        assert "git lfs pull" in error(load, folder)


def test_a_vector_and_a_table_that_git_lfs_has_not_fetched_are_called_so(bases, tmp_path):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"
    deftx.save(vector(bases(), 1), tmp_path / "vector")
    (tmp_path / "vector/vector.safetensors").write_text(pointer)
    (tmp_path / "train.tsv").write_text(pointer)
    assert "git lfs pull" in error(deftx.load, tmp_path / "vector")
    assert "git lfs pull" in error(deftx.read_examples, tmp_path / "train.tsv")


def test_the_longest_input_is_also_what_the_tokenizer_says(bases):
    tokenizer = load_tokenizer(bases())
    for most, longest in [(20, 20), (int(1e30), 32)]:
        tokenizer.model_max_length = most
        assert longest_input(load_language_model(bases()), tokenizer) == longest


def test_a_folder_may_have_an_at_sign_in_its_name(bases, tmp_path):
    folder = tmp_path / "me@home"
    shutil.copytree(bases(), folder)
    assert same(
        parameter_groups(load_language_model(folder)).backbone,
        parameter_groups(load_language_model(str(bases()))).backbone,
    )
    assert load_tokenizer(str(folder)).mask_token == "<mask>"


# --- what cannot be loaded ---


def test_a_base_without_a_language_modelling_head_is_an_error_that_says_so(bases, tmp_path):
    XLMRobertaModel.from_pretrained(bases()).save_pretrained(tmp_path)
    message = error(load_language_model, tmp_path)
    assert message.startswith(
        f"{tmp_path} is not a masked language model: its checkpoint lacks lm_head."
    )
    assert parameter_groups(load_task_model(tmp_path, LABELS)).backbone


def test_a_base_that_is_no_language_model_is_an_error_that_says_what_is_needed(tmp_path):
    ViTConfig().save_pretrained(tmp_path)
    message = error(load_language_model, tmp_path)
    assert message.startswith(
        "a base of the kind 'vit' is no encoder-decoder model or masked language model or causal"
    )
    assert message.endswith("language model: give one such as XLM-R, Qwen or mT5")


@pytest.mark.parametrize("shape", tiny.ENCODER_DECODERS)
def test_an_encoder_decoder_has_one_backbone_in_every_model_its_embeddings_once_and_its_head_untied(
    bases, shape
):
    base, model = bases(shape), load_language_model(bases(shape)).eval()
    plain, kinds = (
        AutoModelForSeq2SeqLM.from_pretrained(base).eval(),
        [AutoModel, AutoModelForQuestionAnswering],
    )
    for other in [
        plain,
        load_task_model(base, LABELS),
        *(kind.from_pretrained(base) for kind in kinds),
    ]:
        assert same(parameter_groups(model).backbone, parameter_groups(other).backbone)
        assert fingerprint(model) == fingerprint(other)
    ids = torch.tensor([[7, 4, 9, 2]])
    assert torch.equal(
        model(input_ids=ids, labels=ids).logits, plain(input_ids=ids, labels=ids).logits
    )
    assert list(parameter_groups(model).head) == ["lm_head.weight"]
    assert not model.lm_head.weight.requires_grad
    assert model.lm_head.weight is not model.get_input_embeddings().weight
    assert [
        name
        for name in parameter_groups(model).backbone
        if "shared" in name or "embed_tokens" in name
    ] == ["shared.weight"]
    assert {name.split(".")[0] for name in parameter_groups(model).backbone} == {
        "shared",
        "encoder",
        "decoder",
    }
    frozen = parameter_groups(model).backbone.keys() - parameter_groups(model).trainable.keys()
    assert frozen == {name for name in parameter_groups(model).backbone if "norm" in name}
    assert len(frozen) >= 12
    assert [
        name.split(".")[0] for name in parameter_groups(load_task_model(base, LABELS)).head
    ] == ["classification_head"] * 4


@pytest.mark.parametrize("shape", tiny.ENCODER_DECODERS)
@torch.no_grad()
def test_a_writer_with_changed_embeddings_is_the_same_when_saved_and_loaded(bases, tmp_path, shape):
    """Also where the model's output embeddings were its input embeddings."""
    model = load_task_model(bases(shape), (), task=task_of("generation")).eval()
    model.get_input_embeddings().weight[5] += 1
    save_model(model, load_tokenizer(bases(shape)), tmp_path / "model")
    ids, loaded = (
        torch.tensor([[5, 6, 9, 2]]),
        AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "model").eval(),
    )
    assert torch.equal(
        loaded(input_ids=ids, labels=ids).logits, model(input_ids=ids, labels=ids).logits
    )
    assert (
        loaded.generate(ids, max_new_tokens=8).tolist()
        == model.generate(ids, max_new_tokens=8).tolist()
    )


@pytest.mark.parametrize("shape", tiny.DECODERS)
def test_a_decoder_is_loaded_with_a_frozen_and_untied_head_and_its_backbone_is_that_of_every_model(
    bases, shape
):
    plain, model = (
        AutoModelForCausalLM.from_pretrained(bases(shape)).eval(),
        load_language_model(bases(shape)).eval(),
    )
    ids = torch.tensor([[0, 7, 4, 9]])
    assert torch.equal(model(ids).logits, plain(ids).logits)
    classifier = load_task_model(bases(shape), LABELS)
    assert same(
        parameter_groups(model).backbone,
        parameter_groups(AutoModel.from_pretrained(bases(shape))).backbone,
    )
    assert same(parameter_groups(model).backbone, parameter_groups(classifier).backbone)
    assert [name.split(".")[0] for name in parameter_groups(model).head] == ["lm_head"]
    assert list(parameter_groups(classifier).head) == ["score.weight"]
    assert not any(weight.requires_grad for weight in parameter_groups(model).head.values())
    frozen = parameter_groups(model).backbone.keys() - parameter_groups(model).trainable.keys()
    assert frozen == {name for name in parameter_groups(model).backbone if "norm" in name}
    assert len(frozen) >= 5


@pytest.mark.parametrize("shape", tiny.DECODERS)
def test_a_decoder_classifies_padded_texts_as_it_does_each_alone(bases, shape):
    """Its tokenizer knows no padding: texts end where the padding begins."""
    model, tokenizer = load_task_model(bases(shape), LABELS).eval(), load_tokenizer(bases(shape))
    assert model.config.pad_token_id == tokenizer.pad_token_id == tokenizer.eos_token_id
    found = predict(CLASSIFICATION, model, tokenizer, Examples(TEXTS), 32)
    for (label, chance), text in zip(found, TEXTS, strict=True):
        expected = model(**tokenizer(text, return_tensors="pt")).logits[0].detach().softmax(-1)
        assert label == LABELS[int(expected.argmax())]
        assert chance == pytest.approx(float(expected.max()), rel=1e-4)


def test_weights_of_the_base_that_a_model_lacks_are_an_error(bases, tmp_path):
    folder = Path(shutil.copytree(bases(), tmp_path / "base"))
    weights = load_file(folder / "model.safetensors")
    weights.pop("roberta.encoder.layer.1.output.dense.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert error(LOADERS[2], folder).startswith(
        f"{folder} lacks roberta.encoder.layer.1.output.dense.weight, which XLM"
    )


LOADERS = [load_language_model, load_tokenizer, lambda base: load_task_model(base, LABELS)]


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize(
    "name", ["/no/such/folder", "./nowhere", "../up/there", "models/of/mine", "/no/such@v1"]
)
def test_a_folder_that_is_not_there_is_an_error_that_says_so(load, name):
    assert error(load, name).startswith(f"cannot load the model '{name}': there is no such folder")


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize("name", ["nobody/nothing", "nothing", "nobody/nothing@v1", "", "x" * 200])
def test_a_hub_id_that_cannot_be_had_is_one_line(load, name):
    assert error(load, name).startswith(f"cannot load the model '{name.partition('@')[0]}': ")


def broken(folder, how):
    weights, config = folder / "model.safetensors", folder / "config.json"
    if how == "half of the weights":
        weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    elif how == "empty weights":
        weights.write_bytes(b"")
    elif how == "no weights":
        weights.unlink()
    elif how == "no config":
        config.unlink()
    elif how == "half a config":
        config.write_text(config.read_text()[:50])
    elif how == "an unknown kind of model":
        config.write_text('{"model_type": "nonesuch"}')
    elif how == "another width":
        config.write_text(json.dumps(json.loads(config.read_text()) | {"hidden_size": 8}))
    return folder


BREAKS = [
    "half of the weights",
    "empty weights",
    "no weights",
    "half a config",
    "an unknown kind of model",
    "another width",
]


@pytest.mark.parametrize("how", [*BREAKS, "no config"])
def test_a_damaged_base_is_one_line_that_names_it(bases, tmp_path, how):
    folder = broken(Path(shutil.copytree(bases(), tmp_path / "base")), how)
    for load in (load_language_model, LOADERS[2]):
        assert error(load, folder).startswith(f"cannot load the model '{folder}': ")


@pytest.mark.parametrize("content", ["{", None])
def test_a_damaged_tokenizer_is_one_line(bases, tmp_path, content):
    folder = Path(shutil.copytree(bases(), tmp_path / "base"))
    if content:
        (folder / "tokenizer.json").write_text(content)
    else:
        (folder / "tokenizer.json").unlink()
    assert error(load_tokenizer, folder).startswith(f"cannot load the model '{folder}': ")


# --- composing ---


@also_encoder_decoders
def test_a_composed_model_is_the_base_plus_both_vectors_with_the_tasks_head(bases, shape):
    task, language = vector(bases(shape), 1, with_head=True), vector(bases(shape), 2)
    model = compose(bases(shape), task, language)
    assert not model.training
    start = parameter_groups(AutoModel.from_pretrained(bases(shape))).backbone
    for name, weight in parameter_groups(model).backbone.items():
        added = [v.tensors[name].to_dense() for v in (task, language) if name in v.tensors]
        torch.testing.assert_close(
            weight.detach(), start[name].detach() + sum(added, torch.zeros(()))
        )
    assert same(parameter_groups(model).head, dict(task.head.tensors))


@also_encoder_decoders
def test_a_saved_composed_model_runs_in_an_ordinary_pipeline(bases, tmp_path, shape):
    model = compose(bases(shape), vector(bases(shape), 1, with_head=True), vector(bases(shape), 2))
    save_model(model, load_tokenizer(bases(shape)), tmp_path / "model")
    answers = pipeline("text-classification", model=str(tmp_path / "model"), device="cpu")(
        TEXTS, top_k=None
    )
    for text, answer in zip(TEXTS, answers, strict=True):
        with torch.no_grad():
            expected = (
                model(**load_tokenizer(bases(shape))(text, return_tensors="pt"))
                .logits.softmax(-1)[0]
                .tolist()
            )
        assert {row["label"]: row["score"] for row in answer} == pytest.approx(
            dict(zip(LABELS, expected, strict=True)), rel=1e-4
        )


def test_several_languages_one_or_none_can_be_composed(bases):
    task, one, two = vector(bases(), 1, with_head=True), vector(bases(), 2), vector(bases(), 3)
    both, total = compose(bases(), task, [one, two]), compose(bases(), task, one + two)
    for name, weight in parameter_groups(both).backbone.items():
        torch.testing.assert_close(weight, parameter_groups(total).backbone[name])
    assert same(
        parameter_groups(compose(bases(), task, one)).backbone,
        parameter_groups(compose(bases(), task, [one])).backbone,
    )
    assert same(
        parameter_groups(compose(bases(), task)).backbone,
        parameter_groups(compose(bases(), task, [])).backbone,
    )


def test_of_two_tasks_with_heads_the_one_that_is_chosen_gives_its_head(bases):
    first, second, language = (
        vector(bases(), 1, with_head=True),
        vector(bases(), 2, with_head=True),
        vector(bases(), 3),
    )
    assert error(compose, bases(), [first, second], language).startswith(
        "2 task vectors have heads"
    )
    model = compose(bases(), [first, second], language, head=1)
    assert same(parameter_groups(model).head, dict(second.head.tensors))
    assert same(
        parameter_groups(model).backbone,
        parameter_groups(compose(bases(), [first, second], language, head=0)).backbone,
    )


@pytest.mark.parametrize("rule", ["ties:density=0.7", "scaled:language_scale=0.5", "agree"])
def test_a_rule_composes_the_merged_vector(bases, rule):
    task, language = vector(bases(), 1, with_head=True), vector(bases(), 2)
    model = compose(bases(), task, language, rule=rule)
    assert same(
        parameter_groups(model).backbone,
        parameter_groups(compose(bases(), merge(rule, task=task, language=[language]))).backbone,
    )
    assert not same(
        parameter_groups(model).backbone,
        parameter_groups(compose(bases(), task, language)).backbone,
    )


def test_a_composed_model_takes_another_language_and_gives_it_back(bases):
    model, language = compose(bases(), vector(bases(), 1, with_head=True)), vector(bases(), 2)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    with apply_temporarily(model, language):
        assert not same(
            parameter_groups(model).backbone,
            {name: before[f"roberta.{name}"] for name in parameter_groups(model).backbone},
        )
    assert same(dict(model.named_parameters()), before)


def test_a_task_vector_without_a_head_is_an_error(bases):
    assert error(compose, bases(), vector(bases(), 1)).startswith("the task vector has no head: ")


def test_vectors_of_another_base_are_refused_and_with_force_warned_about(bases, tmp_path):
    other = tiny.save_base(tmp_path / "other", seed=7)
    task, language = vector(other, 1, with_head=True), vector(other, 2)
    message = error(compose, bases(), task, language)
    assert f"the vector was made on {other} (" in message
    assert f"not on {bases()} (" in message
    with pytest.warns(UserWarning, match="the vector was made on"):
        model = compose(bases(), task, language, ignore_base_mismatch=True)
    assert same(parameter_groups(model).head, dict(task.head.tensors))
    assert not same(
        parameter_groups(model).backbone,
        parameter_groups(load_task_model(bases(), LABELS)).backbone,
    )


def test_a_base_whose_tokenizer_was_changed_is_refused_and_warned_of_where_that_is_wanted(
    bases, tmp_path
):
    read = tokenizer_record(load_tokenizer(bases()))
    task = vector(bases(), 1, with_head=True)
    task = replace(task, provenance=replace(task.provenance, tokenizer=read))
    compose(bases(), task)
    AutoModelForMaskedLM.from_pretrained(bases()).save_pretrained(tmp_path / "base")
    load_tokenizer(bases()).save_pretrained(tmp_path / "base")
    pieces = tmp_path / "base/tokenizer.json"
    pieces.write_text(pieces.read_text().replace('"zu"', '"new"'))
    with pytest.raises(
        DeftxError, match=r"the vector was made with the tokenizer .*--ignore-base-mismatch"
    ):
        compose(tmp_path / "base", task)
    with pytest.warns(UserWarning, match="the vector was made with the tokenizer"):
        compose(tmp_path / "base", task, ignore_base_mismatch=True)
    language = vector(bases(), 2)
    language = replace(
        language, provenance=replace(language.provenance, tokenizer=replace(read, digest="0" * 64))
    )
    with pytest.raises(DeftxError, match="vectors made with different tokenizers do not combine"):
        deftx.merge(task=task, language=[language])
    for rule in ("sum", "ties"):
        with pytest.raises(DeftxError, match="the vector was made with the tokenizer"):
            compose(bases(), task, language, rule=rule)
        with pytest.warns(UserWarning, match="the vector was made with the tokenizer"):
            compose(bases(), task, language, rule=rule, ignore_base_mismatch=True)


def test_the_tokenizer_of_a_composed_model_cuts_inputs_to_the_tasks_length(bases, tmp_path):
    base, language = bases(), vector(bases(), 2)
    task = vector(base, 1, with_head=True)
    short = replace(
        task, provenance=replace(task.provenance, training=TrainingRecord({"length": 9}))
    )
    model, tokenizer = deftx.compose_with_tokenizer(base, short, language)
    assert same(model.state_dict(), compose(base, short, language).state_dict())
    assert tokenizer.model_max_length == 9
    assert len(tokenizer("ba " * 100, truncation=True)["input_ids"]) == 9
    compose_to(
        tmp_path / "saved",
        str(base),
        [short],
        [language],
        rule="sum",
        force=False,
        ignore_base_mismatch=False,
    )
    saved = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert saved.model_max_length == tokenizer.model_max_length
    _, whole = deftx.compose_with_tokenizer(base, task)
    assert whole.model_max_length == load_tokenizer(base).model_max_length == 32
    other = vector(base, 3, with_head=True)
    _, chosen = deftx.compose_with_tokenizer(base, [other, short], head=1)
    assert chosen.model_max_length == 9


def test_composing_says_nothing_of_heads_that_are_new(bases, caplog, capsys):
    verbosity = logging.get_verbosity()
    with caplog.at_level("WARNING"):
        compose(bases(), vector(bases(), 1, with_head=True))
    assert not caplog.records
    assert "MISSING" not in capsys.readouterr().err
    assert logging.get_verbosity() == verbosity


NO_VECTORS = {  # what is said of what is no vector, and what is asked for with one
    r"'vectors/min' is the name of a vector, not one: give deftx.load\('vectors/min'\)": {
        "compose": lambda model, made, folder: compose(folder, made, "vectors/min"),
        "compose a list": lambda model, made, folder: compose(folder, made, ["vectors/min"]),
        "apply": lambda model, made, folder: deftx.apply(model, "vectors/min"),
        "overlap": lambda model, made, folder: deftx.overlap(made, "vectors/min"),
    },
    (
        "a list is given where a vector is wanted: give what deftx.load or a fit returns, several"
        " one after the other"
    ): {
        "apply": lambda model, made, folder: deftx.apply(model, [made]),
        "apply_temporarily": lambda model, made, folder: deftx.apply_temporarily(
            model, [made]
        ).__enter__(),
    },
    "a NoneType is given where a vector is wanted": {
        "compose": lambda model, made, folder: compose(folder, None, made),
    },
    "a XLMRobertaModel is given where a vector is wanted": {
        "save": lambda model, made, folder: deftx.save(model, folder / "new"),
    },
}


@pytest.mark.parametrize(
    ("says", "asked"), [(says, name) for says, some in NO_VECTORS.items() for name in some]
)
def test_what_is_no_vector_is_told_from_one(bases, says, asked):
    model = AutoModel.from_pretrained(bases())
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(DeftxError, match=f"^{says}"):
        NO_VECTORS[says][asked](model, vector(bases(), 1, with_head=True), Path(bases()))
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("foreign", ["task", "language"])
def test_vectors_of_two_bases_do_not_compose_even_by_force(bases, tmp_path, foreign):
    other = tiny.save_base(tmp_path / "other", seed=7)
    task = vector(other if foreign == "task" else bases(), 1, with_head=True)
    language = vector(other if foreign == "language" else bases(), 2)
    for ignore_base_mismatch in (False, True):
        with pytest.raises(DeftxError, match="vectors of different bases do not combine"):
            compose(bases(), task, language, ignore_base_mismatch=ignore_base_mismatch)


@pytest.mark.parametrize("foreign", ["task", "language"])
def test_one_named_vector_is_enough_to_tell_another_base(bases, tmp_path, foreign):
    other = tiny.save_base(tmp_path / "other", seed=7)
    task = vector(other, 1, with_head=True, named=foreign == "task")
    language = vector(other, 2, named=foreign == "language")
    assert "the vector was made on" in error(compose, bases(), task, language)


def test_a_vector_of_another_shape_of_base_is_an_error_even_by_force(bases):
    task = vector(bases("bert"), 1, with_head=True)
    with (
        pytest.warns(UserWarning, match="the vector was made on"),
        pytest.raises(
            DeftxError, match=r"which the model does not have|not in the head of|in the model"
        ),
    ):
        compose(bases("distilbert"), task, ignore_base_mismatch=True)


def test_vectors_that_name_no_base_fit_any(bases):
    model = compose(
        bases(), vector(bases(), 1, with_head=True, named=False), vector(bases(), 2, named=False)
    )
    assert parameter_groups(model).backbone


def test_the_head_that_a_base_lacks_may_be_another_models(bases, tmp_path):
    AutoModel.from_pretrained(bases()).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(
        DeftxError, match="is not a masked language model: its checkpoint lacks lm_head"
    ):
        load_language_model(tmp_path)
    whole, mended = load_language_model(bases()), load_language_model(tmp_path, bases())
    assert all(
        torch.equal(weight, mended.state_dict()[name])
        for name, weight in whole.state_dict().items()
    )
    with pytest.raises(DeftxError, match="lacks lm_head"):
        load_language_model(tmp_path, bases("bert"))
