"""LoRA arithmetic: dense sums of low-rank changes, the rank for a budget, and what moves."""

import sys
from dataclasses import replace

import pytest
import torch
from adapter_examples import IDS, equal
from fit_examples import QUICK, TEXT, TRAIN, VALID
from transformers import XLMRobertaConfig, XLMRobertaModel

from deftx.config import changed, parse
from deftx.core.parameters import parameter_groups
from deftx.core.provenance import Provenance
from deftx.errors import DeftxError
from deftx.experiments.baselines import lora
from deftx.experiments.baselines.adapters import load_adapter, save_adapter
from deftx.experiments.baselines.config import LoraLanguageConfig, LoraTaskConfig
from deftx.models.heads import load_composed, load_task_model
from deftx.models.loading import load_encoder, load_language_model
from deftx.models.tokenizers import load_tokenizer
from deftx.tasks.base import evaluate
from deftx.tasks.classification import CLASSIFICATION

LANGUAGE = parse(LoraLanguageConfig, {"rank": 3, "alpha": 6, "training": {**QUICK, "min_steps": 0}})
TASK = parse(LoraTaskConfig, {"rank": 3, "alpha": 6, "training": QUICK})
LINEAR = [
    *[f"attention.self.{name}" for name in ("query", "key", "value")],
    *["attention.output.dense", "intermediate.dense", "output.dense"],
]

peft = pytest.importorskip("peft", reason="the extra `baselines` is not installed")


@pytest.fixture(scope="module")
def language(bases):
    return lora.fit_language(bases(), TEXT, LANGUAGE)


@pytest.fixture(scope="module")
def task(bases, language):
    return lora.fit_task(bases(), TRAIN, VALID, TASK, source=language)


# --- composition ---


def test_a_composed_model_is_the_dense_sum(bases, language, task):
    start = dict(load_task_model(bases(), task.head.labels).named_parameters())
    model = lora.compose(bases(), task, language)
    for name, weight in model.named_parameters():
        layer = name.removeprefix("roberta.").removesuffix(".weight")
        if name in task.head.tensors:
            wanted = task.head.tensors[name]
        elif f"{layer}.A" in task.tensors:
            changes = [
                6 / 3 * a.tensors[f"{layer}.B"] @ a.tensors[f"{layer}.A"] for a in (language, task)
            ]
            assert all(change.abs().max() > 1e-4 for change in changes)
            wanted = start[name] + changes[0] + changes[1]
        else:
            wanted = start[name]
        torch.testing.assert_close(weight, wanted)
    assert {name.rpartition(".")[0] for name in task.tensors} == {
        f"encoder.layer.{number}.{name}" for number in (0, 1) for name in LINEAR
    }


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing")  # peft asks for it by its old name
def test_one_change_gives_the_logits_of_pefts_own_model(bases, task):
    targets = r".*encoder\.layer\..*\.(query|key|value|dense)"
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=targets, task_type="SEQ_CLS")
    wrapped = peft.get_peft_model(load_task_model(bases(), task.head.labels), config)
    state = {name: tensor for name, tensor in wrapped.state_dict().items() if "lora_" in name}
    assert len(state) == len(task.tensors)
    for name in state:
        layer = name.removeprefix("base_model.model.roberta.").partition(".lora_")[0]
        state[name] = task.tensors[f"{layer}.{'A' if 'lora_A' in name else 'B'}"]
    prefix = "base_model.model.classifier.modules_to_save.default."
    state |= {
        prefix + name.removeprefix("classifier."): tensor
        for name, tensor in task.head.tensors.items()
    }
    assert not wrapped.load_state_dict(state, strict=False).unexpected_keys
    model = lora.compose(bases(), task, None)
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, wrapped.eval()(IDS).logits)


def test_what_a_composed_model_scores_is_what_its_training_noted(bases, language, task):
    model = lora.compose(bases(), task, language)
    scores = evaluate(CLASSIFICATION, model, load_tokenizer(bases()), VALID, QUICK["length"])
    assert scores["macro_f1"] == pytest.approx(task.provenance.log["training"].best_score, abs=1e-9)
    assert not model.training


def test_a_composed_model_is_an_ordinary_one(bases, language, task, tmp_path):
    model = lora.compose(bases(), task, language)
    model.save_pretrained(tmp_path)
    again = load_composed(tmp_path)
    with torch.no_grad():
        assert again(IDS).logits.equal(model(IDS).logits)


# --- training ---


def test_at_its_start_a_lora_leaves_the_output_as_it_is(bases):
    model = load_language_model(bases()).eval()
    with torch.no_grad():
        before = model(IDS).logits
        made = lora.inject(model, LANGUAGE)
        assert model(IDS).logits.equal(before)
    assert all(parameter.any() != name.endswith(".B") for name, parameter in made.items())


def test_only_the_lora_and_the_head_move(bases, language, moved):
    lora.fit_language(bases(), TEXT, LANGUAGE)
    adapter = lora.fit_task(bases(), TRAIN, VALID, TASK, source=language)
    loras = {f"roberta.{name[:-1]}lora_{name[-1]}.default.weight" for name in adapter.tensors}
    language_head = {name for name in moved[0] if name.startswith("lm_head.")}
    assert "lm_head.decoder.weight" not in language_head
    assert len(language_head) == 5
    assert moved == [loras | language_head, loras | set(adapter.head.tensors)]


def test_a_task_is_learnt_on_top_of_its_source_language(bases, language, task):
    assert not equal(lora.fit_task(bases(), TRAIN, VALID, TASK, source=None), task)
    assert task.provenance.source == language.provenance


def test_the_same_seed_gives_the_same_adapters_and_another_one_others(bases, language, task):
    assert equal(lora.fit_language(bases(), TEXT, LANGUAGE), language)
    assert equal(lora.fit_task(bases(), TRAIN, VALID, TASK, source=language), task)
    assert not equal(lora.fit_language(bases(), TEXT, changed(LANGUAGE, {"seed": 1})), language)


@pytest.mark.parametrize("shape", ["bert", "distilbert", "modernbert", "deberta"])
def test_every_shape_of_base_goes_all_the_way(bases, shape):
    base = bases(shape)
    language = lora.fit_language(base, TEXT, LANGUAGE)
    task = lora.fit_task(base, TRAIN, VALID, TASK, source=language)
    scores = evaluate(
        CLASSIFICATION,
        lora.compose(base, task, language),
        load_tokenizer(base),
        VALID,
        QUICK["length"],
    )
    assert scores["macro_f1"] == pytest.approx(task.provenance.log["training"].best_score, abs=1e-9)


def test_adapters_come_back_from_a_folder_bit_for_bit(task, tmp_path):
    save_adapter(task, tmp_path)
    assert equal(load_adapter(tmp_path), task)
    assert load_adapter(tmp_path).provenance == task.provenance


# --- sizes ---


def test_a_language_and_a_task_have_as_many_parameters_by_default(bases):
    model = load_encoder(bases())
    language, task = (lora.ranked(model, kind()) for kind in (LoraLanguageConfig, LoraTaskConfig))
    assert (
        (language.rank, language.alpha)
        == (task.rank, task.alpha)
        == (lora.rank_for(model, "2.8%"),) * 2
    )


def test_the_rank_for_a_number_of_parameters_is_the_nearest(bases):
    model = load_encoder(bases())
    a_rank = 2 * (4 * (16 + 16) + 2 * (16 + 24))
    assert [lora.rank_for(model, round(k * a_rank)) for k in (0.1, 1, 1.9, 3.4, 3.6)] == [
        1,
        1,
        2,
        3,
        4,
    ]
    share = a_rank * 5 / parameter_groups(model).trainable_size
    assert lora.rank_for(model, f"{100 * share}%") == 5


def test_at_the_shape_of_xlm_r_base_ranks_are_those_of_the_papers_k():
    with torch.device("meta"):
        model = XLMRobertaModel(
            XLMRobertaConfig(vocab_size=250_002, type_vocab_size=1, max_position_embeddings=514)
        )
    assert [lora.rank_for(model, k) for k in ("7.6M", "14.2M", "2.8%")] == [46, 86, 47]


def test_the_size_of_an_adapter_is_that_of_the_formula(language, task):
    assert (
        language.size
        == task.size
        == language.provenance.extra["size"]
        == 3 * 2 * (4 * (16 + 16) + 2 * (16 + 24))
    )


# --- what is refused ---


def test_adapters_that_do_not_fit_are_refused_in_one_line(bases, language, task):
    name = "encoder.layer.0.output.dense.B"
    fewer = {n: tensor for n, tensor in language.tensors.items() if n != name}
    turned = {**language.tensors, name: language.tensors[name].T.contiguous()}
    cases = [
        ("was made on", lambda: lora.fit_task(bases("bert"), TRAIN, VALID, TASK, source=language)),
        ("not a language adapter", lambda: lora.compose(bases(), task, task)),
        (
            f"'{name}' is missing",
            lambda: lora.compose(bases(), task, replace(language, tensors=fewer)),
        ),
        (
            f"'{name}' is missing",
            lambda: lora.compose(bases(), task, replace(language, tensors=turned)),
        ),
        (
            "setting rank",
            lambda: lora.compose(
                bases(), task, replace(language, provenance=replace(language.provenance, rank=0))
            ),
        ),
        (
            "does not fit",
            lambda: lora.add(load_encoder(bases()), replace(language, provenance=Provenance())),
        ),
    ]
    for message, wrong in cases:
        with pytest.raises(DeftxError) as caught:
            wrong()
        assert "\n" not in str(caught.value)
        assert message in str(caught.value)


def test_without_peft_it_is_said_what_to_install(bases, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(
        DeftxError, match=r"peft is not installed: pip install 'deftx\[baselines\]'"
    ):
        lora.fit_language(bases(), TEXT, LANGUAGE)
