"""Composed models in others' hands: ONNX, sentence-transformers, TensorBoard; and vectors that do
not fit together."""

import shutil
import warnings
from dataclasses import replace

import pytest
import tiny
import torch
from lt_sft_files import LABELS, vector_of

import deftx
from deftx.cli import actions
from deftx.config import LanguageVectorConfig
from deftx.core.apply import apply
from deftx.errors import DeftxError
from deftx.interop.convert import convert
from deftx.models import compose as composed
from deftx.models.compose import compose
from deftx.models.loading import load_encoder
from deftx.models.tokenizers import check_tokenizer, load_tokenizer, tokenizer_record
from deftx.storage.provenance_json import provenance_from_json

TEXTS = tiny.sentences(6, seed=5)
QUICK = {"max_steps": 2, "min_steps": 0, "evaluate_every": 1, "length": 16}


def extra(name):
    return pytest.importorskip(name, reason="the extra `neighbours` is not installed")


def test_the_onnx_export_of_a_composed_model_gives_its_logits(tmp_path, bases):
    extra("onnx"), extra("onnxscript")
    runtime = extra("onnxruntime")
    model = compose(bases(), vector_of(bases(), with_head=True), vector_of(bases(), seed=7))
    inputs = dict(load_tokenizer(bases())(TEXTS, padding=True, return_tensors="pt"))
    names, file = list(inputs), str(tmp_path / "model.onnx")
    axes = {name: {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        torch.onnx.export(
            model.eval(),
            (),
            file,
            kwargs=inputs,
            input_names=names,
            dynamic_shapes=axes,
            dynamo=True,
            verbose=False,
        )
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for count in (6, 2):
        fed = load_tokenizer(bases())(TEXTS[:count], padding=True, return_tensors="np")
        (found, *_) = session.run(None, {name: fed[name] for name in names})
        with torch.no_grad():
            wanted = model(**{name: torch.from_numpy(fed[name]) for name in names}).logits
        torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_a_composed_model_in_int8_is_smaller_and_near(tmp_path, bases):
    """The way of docs/moving.md: ONNX, then int8 with a scale for each output."""
    extra("onnx"), extra("onnxscript")
    runtime = extra("onnxruntime")
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = compose(bases(), vector_of(bases(), with_head=True), vector_of(bases(), seed=7)).eval()
    inputs = dict(load_tokenizer(bases())(TEXTS, padding=True, return_tensors="pt"))
    plain, small = tmp_path / "model.onnx", tmp_path / "model-int8.onnx"
    torch.onnx.export(
        model,
        (),
        str(plain),
        kwargs=inputs,
        input_names=list(inputs),
        dynamo=True,
        verbose=False,
        external_data=False,
    )
    quantize_dynamic(str(plain), str(small), weight_type=QuantType.QInt8, per_channel=True)
    assert small.stat().st_size < plain.stat().st_size
    session = runtime.InferenceSession(str(small), providers=["CPUExecutionProvider"])
    fed = {name: tensor.numpy() for name, tensor in inputs.items()}
    (found, *_) = session.run(None, fed)
    with torch.no_grad():
        wanted = model(**inputs).logits
    spread = float(wanted.std())
    assert float((torch.from_numpy(found) - wanted).abs().max()) < spread


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("with_head", [True, False])
def test_sentence_transformers_encodes_with_a_composed_model_as_we_do(tmp_path, bases, with_head):
    sentence_transformers = extra("sentence_transformers")
    vector = vector_of(bases(), with_head=with_head)
    deftx.save(vector, tmp_path / "vector")
    convert(tmp_path / "vector", tmp_path / "model", "model")
    found = sentence_transformers.SentenceTransformer(str(tmp_path / "model"), device="cpu").encode(
        TEXTS
    )
    encoder = load_encoder(bases())
    apply(encoder, replace(vector, head=None))
    inputs = load_tokenizer(bases())(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        states, mask = (
            encoder.eval()(**inputs).last_hidden_state,
            inputs["attention_mask"][..., None],
        )
    wanted = (states * mask).sum(1) / mask.sum(1)  # mean pooling is its default
    torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:google")
def test_what_tensorboard_is_given_is_kept_in_the_folder_that_was_set(tmp_path, bases):
    extra("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    training = {**QUICK, "report_to": ["tensorboard"], "logs": str(tmp_path / "logs")}
    deftx.fit_language(
        bases(), tiny.sentences(20), LanguageVectorConfig(k="5%", training=training), title="min"
    )
    for phase in ("min-phase-1", "min-phase-2"):
        (file,) = (tmp_path / "logs" / phase).rglob("events.out.tfevents.*")
        events = EventAccumulator(str(file))
        events.Reload()
        assert [event.step for event in events.Scalars("eval/loss")] == [1, 2]


def test_without_tensorboard_no_folder_of_logs_is_made(tmp_path, bases, monkeypatch):
    monkeypatch.chdir(tmp_path)
    deftx.fit_language(bases(), tiny.sentences(20), LanguageVectorConfig(k="5%", training=QUICK))
    assert not list(tmp_path.iterdir())


def test_where_logs_go_is_in_no_vector_and_decides_nothing():
    changed = LanguageVectorConfig(training={"logs": "/home/anna/logs"})
    assert changed.deciding() == LanguageVectorConfig().deciding()
    assert changed.training.logs == "/home/anna/logs"


# --- vectors that do not fit together ---


def test_the_same_language_vector_twice_is_refused(tmp_path, bases):
    task, language = vector_of(bases(), with_head=True), vector_of(bases(), seed=7)
    deftx.save(language, tmp_path / "one")
    for again in (language, deftx.load(tmp_path / "one")):
        with pytest.raises(DeftxError, match="vectors 2 and 3 of 3 are the same: give each once"):
            compose(bases(), task, [language, again])
    compose(bases(), task, [language, vector_of(bases(), seed=8)])
    compose(bases(), task, [language, 0.5 * language])


def other_tokenizer(base, folder):
    """The base's tokenizer with one word more."""
    tokenizer = load_tokenizer(base)
    tokenizer.add_tokens(["wordless"])
    tokenizer.save_pretrained(folder)
    return load_tokenizer(folder)


def test_a_vector_notes_its_tokenizer_and_another_one_is_refused(tmp_path, bases):
    tokenizer, other = load_tokenizer(bases()), other_tokenizer(bases(), tmp_path / "other")
    vector = deftx.fit_language(
        bases(), tiny.sentences(20), LanguageVectorConfig(k="5%", training=QUICK)
    )
    assert vector.provenance.tokenizer == tokenizer_record(tokenizer)
    deftx.save(vector, tmp_path / "vector")
    vector = deftx.load(tmp_path / "vector")
    check_tokenizer(tokenizer, vector)
    with pytest.raises(
        DeftxError, match=r"the vector was made with the tokenizer .*, not with .*other"
    ):
        check_tokenizer(other, vector)
    with pytest.warns(UserWarning, match="the vector was made with the tokenizer"):
        check_tokenizer(other, vector, ignore_base_mismatch=True)
    for recorded in (None, [], "x", {}):
        provenance = provenance_from_json({"tokenizer": recorded})
        if recorded == {}:
            with pytest.raises(DeftxError):
                check_tokenizer(other, replace(vector, provenance=provenance))
        else:
            check_tokenizer(other, replace(vector, provenance=provenance))


def test_commands_that_compose_check_the_tokenizer(tmp_path, bases):
    shutil.copytree(bases(), tmp_path / "base")
    tokenizer = tokenizer_record(load_tokenizer(bases()))
    task = vector_of(bases(), with_head=True)
    task = replace(task, provenance=replace(task.provenance, tokenizer=tokenizer))
    other_tokenizer(bases(), tmp_path / "base")
    base, out = str(tmp_path / "base"), tmp_path / "out"
    examples = deftx.Examples(TEXTS, labels=[LABELS[i % 2] for i in range(len(TEXTS))])
    for command in (
        lambda: composed.compose_to(
            out, base, [task], [], rule="sum", force=False, ignore_base_mismatch=False
        ),
        lambda: actions.evaluations(
            base, [task], {}, {None: examples}, rule="sum", ignore_base_mismatch=False
        ),
        lambda: actions.predictions_of_vectors(
            base, task, [], examples, rule="sum", ignore_base_mismatch=False
        ),
    ):
        with pytest.raises(DeftxError, match="tokenizer"):
            command()
    assert not out.exists()


def test_test_data_with_labels_that_the_head_lacks_are_refused(bases):
    task = vector_of(bases(), with_head=True)
    examples = deftx.Examples(TEXTS, labels=["good"] * 5 + ["so-so"])
    with pytest.raises(
        DeftxError, match="label 'so-so' is not among the labels of the training data: bad, good"
    ):
        actions.evaluations(
            bases(), [task], {}, {None: examples}, rule="sum", ignore_base_mismatch=False
        )
