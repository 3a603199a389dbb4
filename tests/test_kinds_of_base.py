"""Further kinds of base, tiny and random, all the way: what transformers calls their parts must not
matter."""

import re
from pathlib import Path

import pytest
import tiny
import torch
import transformers
from fit_examples import LANGUAGE, TASK, TEXT, TRAIN, VALID
from transformers import AutoModelForSequenceClassification, PreTrainedModel

import deftx
from deftx.cli.actions import predictions_of_model
from deftx.config import changed
from deftx.core.parameters import parameter_groups
from deftx.core.vector import SparseVector
from deftx.data.examples import Examples
from deftx.models.compose import compose_to
from deftx.models.loading import load_language_model
from deftx.training import embedding_rows, sparse

ENCODER = {**tiny.SIZES, **tiny.COMMON, "max_position_embeddings": 34, "type_vocab_size": 1}
DECODER = {**tiny.DECODER, "pad_token_id": 1, "bos_token_id": 0}
GROUPED = {**DECODER, "num_key_value_heads": 1, "head_dim": 8}
GPT2 = {"vocab_size": 75, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, **tiny.COMMON}
BLOOM = {"vocab_size": 75, "hidden_size": 16, "n_layer": 2, "n_head": 2, **tiny.COMMON}
OPT = {**ENCODER, "ffn_dim": 24, "word_embed_proj_dim": 16, "init_std": 0.3}
XGLM = {**tiny.COMMON, "d_model": 16, "num_layers": 2, "attention_heads": 2, "ffn_dim": 24}
XLM = {**tiny.COMMON, "emb_dim": 16, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 34}
XLM |= {"pad_index": 1, "bos_index": 0, "eos_index": 2, "unk_index": 3, "mask_index": 4}

# Its config and language model in transformers, and what the config is given.
ENCODERS = {
    "EuroBERT": (
        "EuroBertConfig",
        "EuroBertForMaskedLM",
        {**ENCODER, "num_key_value_heads": 2, "mask_token_id": 4},
    ),
    "RoBERTa": ("RobertaConfig", "RobertaForMaskedLM", ENCODER),
    "XLM-R XL": ("XLMRobertaXLConfig", "XLMRobertaXLForMaskedLM", ENCODER),
    "X-MOD": (
        "XmodConfig",
        "XmodForMaskedLM",
        {**ENCODER, "languages": ["en_XX"], "default_language": "en_XX"},
    ),
    "RemBERT": ("RemBertConfig", "RemBertForMaskedLM", {**ENCODER, "input_embedding_size": 8}),
    "ALBERT": ("AlbertConfig", "AlbertForMaskedLM", {**ENCODER, "embedding_size": 8}),
    "ELECTRA": ("ElectraConfig", "ElectraForMaskedLM", {**ENCODER, "embedding_size": 8}),
    "MPNet": ("MPNetConfig", "MPNetForMaskedLM", ENCODER),
    "XLM": ("XLMConfig", "XLMWithLMHeadModel", XLM),
    "DeBERTa, newer": (
        "DebertaV2Config",
        "DebertaV2ForMaskedLM",
        {**ENCODER, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "legacy": False},
    ),
}
DECODERS = {
    "Gemma 3": ("Gemma3TextConfig", "Gemma3ForCausalLM", GROUPED),
    "Mistral": ("MistralConfig", "MistralForCausalLM", GROUPED),
    "SmolLM 3": ("SmolLM3Config", "SmolLM3ForCausalLM", GROUPED),
    "GPT-2": ("GPT2Config", "GPT2LMHeadModel", GPT2),
    "GPT-NeoX": ("GPTNeoXConfig", "GPTNeoXForCausalLM", DECODER),
    "BLOOM": ("BloomConfig", "BloomForCausalLM", BLOOM),
    "OPT": ("OPTConfig", "OPTForCausalLM", OPT),
    "XGLM": ("XGLMConfig", "XGLMForCausalLM", XGLM),
}
ENCODER_DECODERS = {
    "umT5": ("UMT5Config", "UMT5ForConditionalGeneration", tiny.T5),
    "NLLB": (
        "M2M100Config",
        "M2M100ForConditionalGeneration",
        {**tiny.BART, "decoder_start_token_id": 2},
    ),
}
WITHOUT_CLASSIFIER = ("XGLM", "NLLB")  # in transformers


@pytest.fixture(scope="module", params=[*ENCODERS, *DECODERS, *ENCODER_DECODERS])
def kind(request, tmp_path_factory):
    """The name of a kind of base, and a folder with one."""
    config, model, about = (ENCODERS | DECODERS | ENCODER_DECODERS)[request.param]
    folder = tmp_path_factory.mktemp("base")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        getattr(transformers, model)(getattr(transformers, config)(**about)).save_pretrained(folder)
    tiny.tokenizer(
        decoder=request.param in DECODERS, sentinels=request.param == "umT5"
    ).save_pretrained(folder)
    return request.param, str(folder)


@pytest.fixture(scope="module")
def language(kind):
    return deftx.fit_language(kind[1], TEXT, LANGUAGE)


def same(one: SparseVector, other: SparseVector) -> bool:
    names = {
        name
        for vector in (one, other)
        for name, entries in vector.tensors.items()
        if len(entries.indices)
    }
    return all(
        torch.equal(one.tensors[name].to_dense(), other.tensors[name].to_dense()) for name in names
    )


def said(model: PreTrainedModel) -> torch.Tensor:
    ids = torch.tensor([[7, 9, 30, 2], [12, 60, 40, 2]])
    return model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def test_the_documentation_lists_them():
    listed = (
        (Path(__file__).parents[1] / "docs/tasks.md")
        .read_text()
        .split("## Bases")[1]
        .split("\n## ")[0]
    )
    for name in [*ENCODERS, *DECODERS, *ENCODER_DECODERS]:
        assert name.removesuffix(", newer") in listed


@pytest.mark.slow
def test_rows_apart_and_layer_norms_left_alone_are_the_same_in_every_kind(
    kind, language, monkeypatch
):
    norms = re.compile(r"norm|ln_|\.ln\d")
    assert language.k == round(
        0.05
        * sum(
            weight.numel()
            for weight in parameter_groups(load_language_model(kind[1])).trainable.values()
        )
    )
    assert not [name for name in language.tensors if norms.search(name.lower())]
    for module in (embedding_rows, sparse):
        monkeypatch.setattr(module, "input_embeddings", lambda model: None)
    whole = deftx.fit_language(kind[1], TEXT, LANGUAGE)
    assert deftx.overlap(language, whole) > 0.99
    for name, entries in whole.tensors.items():
        torch.testing.assert_close(
            language.tensors[name].to_dense(), entries.to_dense(), rtol=0, atol=1e-6
        )


@pytest.mark.slow
def test_a_task_composes_on_every_kind_saves_and_switches(kind, language, tmp_path):
    name, base = kind
    if name in WITHOUT_CLASSIFIER:
        with pytest.raises(
            deftx.DeftxError, match="transformers has no AutoModelForSequenceClassification"
        ):
            deftx.fit_task(base, TRAIN, VALID, TASK)
        return
    task = deftx.fit_task(base, TRAIN, VALID, TASK, source=language)
    model = deftx.compose(base, task, language)
    model.save_pretrained(tmp_path / "model")
    assert torch.equal(
        said(AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")), said(model)
    )
    before = said(model)
    with deftx.apply_temporarily(model, -2.0 * language):
        assert not torch.equal(said(model), before)
    assert torch.equal(said(model), before)
    switcher = deftx.Switcher(base, task, {"source": language})
    with switcher.language("source") as switched:
        assert torch.equal(said(switched), before)
    assert switcher.probabilities(Examples(TEXT[:3]), ["source"] * 3).shape == (
        3,
        len(task.head.labels),
    )


@pytest.mark.slow
def test_every_kind_that_writes_learns_to(kind, tmp_path):
    pairs = Examples(TEXT, labels=["ba be"] * len(TEXT))
    training = {"metric": None, "max_steps": 80, "evaluate_every": 80}
    settings = changed(
        TASK, {"task": "generation", "method": "lt-sft", "k": "80%", "training": training}
    )
    if kind[0] in ENCODERS and kind[0] != "XLM":
        with pytest.raises(deftx.DeftxError, match="cannot write texts"):
            deftx.fit_task(kind[1], pairs, pairs, settings)
        return
    task = deftx.fit_task(kind[1], pairs, pairs, settings)
    compose_to(
        tmp_path / "model", kind[1], [task], [], rule="sum", force=False, ignore_base_mismatch=False
    )
    (found,) = predictions_of_model(str(tmp_path / "model"), Examples(TEXT[:4]))
    if kind[0] != "XLM":  # an encoder that may be loaded as a decoder
        assert [each["text"] for each in found] == ["ba be"] * 4


@pytest.mark.slow
@pytest.mark.parametrize("form", ["lt-sft", "model"])
def test_vectors_of_every_kind_go_to_other_formats_and_back(kind, language, tmp_path, form):
    deftx.save(language, tmp_path / "vector")
    deftx.convert(tmp_path / "vector", tmp_path / form, form, base=kind[1])
    if form == "model":
        assert same(deftx.extract(tmp_path / form, kind[1]), language)
    else:
        assert same(deftx.convert(tmp_path / form, tmp_path / "back", base=kind[1]), language)
