"""Vectors from and to others' formats: LT-SFT's files, PEFT's SHiRA, whole models, mergekit's
input."""

import json
import os
import resource
import zipfile
from dataclasses import replace
from time import process_time

import numpy as np
import pytest
import tiny
import torch
import yaml
from lt_sft_files import LABELS, coded, entries, sparse, vector_of
from safetensors.torch import load_file
from storage_examples import assert_same
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

import deftx
from deftx.cli import main
from deftx.core.apply import apply
from deftx.core.parameters import parameter_groups
from deftx.core.provenance import Provenance
from deftx.core.tensors import Head, SparseTensor
from deftx.errors import DeftxError
from deftx.interop import convert as conversion
from deftx.interop import lt_sft
from deftx.interop import safe_unpickling as pickled
from deftx.interop.convert import convert, read
from deftx.messages import error_line
from deftx.models.compose import compose
from deftx.models.fingerprint import fingerprint
from deftx.models.heads import load_task_model
from deftx.models.loading import load_language_model
from deftx.models.tokenizers import load_tokenizer
from deftx.tasks.registry import task_of

TEXTS = tiny.sentences(6, seed=5)
BERT_QUERY = "bert.encoder.layer.0.attention.self.query.weight"
both_forms = pytest.mark.parametrize("form", ["zip", "older"])


def write_sft(folder, diffs, dense=None, form="zip"):
    folder.mkdir(exist_ok=True)
    content = {"diffs": {name: coded(tensor) for name, tensor in diffs.items()}, "abs": dense or {}}
    torch.save(content, folder / lt_sft.FILE, _use_new_zipfile_serialization=form == "zip")
    return folder


def logits(model, tokenizer):
    with torch.no_grad():
        return model.eval()(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits


# --- LT-SFT ---


@both_forms
@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 4), (7, 1), (1, 6)])
def test_a_tensor_of_lt_sft_is_read_as_it_was_meant(tmp_path, shape, form):
    dense = sparse(shape, share=0.5)
    write_sft(tmp_path / "sft", {"roberta.x.weight": dense}, form=form)
    found, _ = lt_sft.read(tmp_path / "sft" / lt_sft.FILE)
    assert found["roberta.x.weight"].to_dense().equal(dense)
    assert (found["roberta.x.weight"].indices.diff() > 0).all()


@both_forms
def test_a_language_vector_of_lt_sft_changes_the_model_as_its_own_code_would(tmp_path, bases, form):
    theirs = AutoModelForMaskedLM.from_pretrained(bases())
    diffs = {
        f"roberta.{n}": sparse(tuple(p.shape), i)
        for i, (n, p) in enumerate(parameter_groups(theirs).backbone.items())
    }
    dense = {"lm_head.bias": torch.nn.Parameter(torch.randn(75))}
    write_sft(tmp_path / "sft", diffs, dense, form)
    ours = AutoModel.from_pretrained(bases(), add_pooling_layer=False)
    apply(ours, vector := read(tmp_path / "sft", bases()))
    for name, parameter in ours.named_parameters():
        before = theirs.get_parameter(f"roberta.{name}")
        assert torch.allclose(parameter, before + diffs[f"roberta.{name}"], atol=0, rtol=0), name
    assert vector.head is None
    assert vector.provenance.base_fingerprint == fingerprint(theirs)
    assert vector.provenance.kind == "language"


def test_a_task_vector_of_lt_sft_brings_its_head_and_is_composed(tmp_path, bases):
    theirs = load_task_model(bases(), LABELS, seed=1)
    diffs = {
        f"roberta.{name}": sparse(tuple(p.shape))
        for name, p in parameter_groups(theirs).trainable.items()
    }
    dense = {
        name: torch.randn(parameter.shape)
        for name, parameter in parameter_groups(theirs).head.items()
    }
    write_sft(tmp_path / "sft", diffs, dense)
    task = convert(tmp_path / "sft", tmp_path / "task", base=bases(), labels=LABELS)
    assert task.head.labels == LABELS
    model = compose(bases(), deftx.load(tmp_path / "task"))
    with torch.no_grad():
        for name, tensor in {**diffs, **dense}.items():
            parameter = theirs.get_parameter(name)
            parameter.copy_(parameter + tensor if name in diffs else tensor)
    tokenizer = load_tokenizer(bases())
    assert logits(model, tokenizer).equal(logits(theirs, tokenizer))
    assert read(tmp_path / "sft", bases()).head.labels == ("LABEL_0", "LABEL_1")
    with pytest.raises(DeftxError, match="3 labels are given for a head of 2 outputs"):
        read(tmp_path / "sft", bases(), ["a", "b", "c"])


def test_without_a_base_a_vector_of_lt_sft_is_bound_to_none(tmp_path, bases):
    shapes = {
        name: tuple(p.shape)
        for name, p in parameter_groups(load_language_model(bases())).trainable.items()
    }
    write_sft(
        tmp_path / "sft", {f"roberta.{name}": sparse(shape) for name, shape in shapes.items()}
    )
    vector = read(tmp_path / "sft")
    assert vector.tensors.keys() == shapes.keys()
    assert vector.provenance.base_fingerprint is None
    assert read(tmp_path / "sft" / lt_sft.FILE).k == vector.k  # the file itself will do


def test_names_and_shapes_that_do_not_fit_the_base_are_refused(tmp_path, bases):
    write_sft(tmp_path / "sft", {"roberta.encoder.nothing.weight": sparse((3, 4))})
    with pytest.raises(DeftxError, match="which the model does not have"):
        read(tmp_path / "sft", bases())
    write_sft(tmp_path / "sft", {"roberta.embeddings.word_embeddings.weight": sparse((3, 4))})
    with pytest.raises(DeftxError, match="in the vector"):
        read(tmp_path / "sft", bases())


def test_whole_tensors_of_the_backbone_and_a_pooler_are_read_beside_their_base(tmp_path, bases):
    norm, pooler = "bert.encoder.layer.0.output.LayerNorm.weight", "bert.pooler.dense.weight"
    change, whole = sparse((16, 16)), torch.rand(16)
    dense = {norm: whole, "classifier.weight": torch.ones(2, 16), "classifier.bias": torch.zeros(2)}
    write_sft(tmp_path / "sft", {pooler: change}, dense)
    with pytest.raises(DeftxError, match="give --base"):
        read(tmp_path / "sft")
    with pytest.raises(DeftxError, match=f"the base has no '{pooler}'"):
        read(tmp_path / "sft", bases("bert"))  # a masked language model: without a pooler
    theirs = load_task_model(bases("bert"), LABELS)
    theirs.bert.save_pretrained(tmp_path / "base")
    vector = read(tmp_path / "sft", tmp_path / "base")
    ours = load_task_model(tmp_path / "base", LABELS)
    apply(ours, vector)
    assert ours.get_parameter(pooler).equal(theirs.get_parameter(pooler) + change)
    assert torch.allclose(ours.get_parameter(norm), whole)


def test_a_head_with_a_pooler_of_lt_sft_has_its_labels_and_is_composed(tmp_path, bases):
    """The pooler is among the changed weights there, and comes after the classifier."""
    load_task_model(bases("bert"), LABELS).bert.save_pretrained(tmp_path / "base")
    load_tokenizer(bases("bert")).save_pretrained(tmp_path / "base")
    dense = {"classifier.weight": torch.ones(2, 16), "classifier.bias": torch.zeros(2)}
    write_sft(
        tmp_path / "sft",
        {"bert.pooler.dense.weight": sparse((16, 16)), BERT_QUERY: sparse((16, 16), 1)},
        dense,
    )
    vector = read(tmp_path / "sft", tmp_path / "base", LABELS)
    assert vector.head.labels == LABELS
    with pytest.raises(DeftxError, match="3 labels are given for a head of 2 outputs"):
        read(tmp_path / "sft", tmp_path / "base", ["a", "b", "c"])
    pooler = replace(
        vector.head, tensors={**vector.head.tensors, "bert.pooler.dense.bias": torch.zeros(16)}
    )
    model = compose(tmp_path / "base", replace(vector, head=pooler))
    assert model.classifier.weight.equal(torch.ones(2, 16))


@pytest.mark.parametrize("shape", [(5, 7), (1, 16), (1 << 20, 1 << 20)])
def test_a_pooler_of_another_shape_is_refused_before_room_is_made_for_it(tmp_path, bases, shape):
    load_task_model(bases("bert"), LABELS).bert.save_pretrained(tmp_path / "base")
    pooler = SparseTensor(torch.tensor([1]), torch.ones(1), shape)
    head = {"classifier.weight": torch.ones(2, 16), "classifier.bias": torch.zeros(2)}
    (tmp_path / "sft").mkdir()
    lt_sft.write(tmp_path / "sft" / lt_sft.FILE, {"bert.pooler.dense.weight": pooler}, head)
    with pytest.raises(DeftxError, match=r"in the file, \(16, 16\) in the base"):
        read(tmp_path / "sft", tmp_path / "base")
    with pytest.raises(DeftxError, match="give --base"):
        read(tmp_path / "sft")


def test_a_head_that_is_not_the_models_is_refused_and_the_kind_of_task_can_be_told(tmp_path, bases):
    diffs = {"roberta.encoder.layer.0.attention.self.query.weight": sparse((16, 16))}
    write_sft(
        tmp_path / "sft",
        diffs,
        {"classifier.weight": torch.ones(3, 16), "classifier.bias": torch.ones(3)},
    )
    tagger = convert(tmp_path / "sft", tmp_path / "untold", base=bases(), labels=["N", "V", "X"])
    with pytest.raises(
        DeftxError, match=r"'classifier\.bias', which is not in the head of .*--kind"
    ):
        compose(bases(), tagger)
    told = convert(tmp_path / "untold", tmp_path / "told", labels=["N", "V", "X"], kind="tagging")
    composed = compose(bases(), deftx.load(tmp_path / "told"))
    assert told.provenance.task == "tagging"
    assert torch.equal(composed.classifier.bias, torch.ones(3))
    with pytest.raises(DeftxError, match="unknown task 'taging'"):
        convert(tmp_path / "sft", tmp_path / "new", kind="taging")
    write_sft(tmp_path / "language", diffs)
    with pytest.raises(DeftxError, match="kind tagging: the vector has no head"):
        convert(tmp_path / "language", tmp_path / "new", kind="tagging")


@pytest.mark.parametrize("kind", ["question-answering", "multiple-choice", "regression"])
def test_a_head_whose_outputs_have_no_names_is_converted_and_evaluated(tmp_path, bases, kind):
    base, task = bases("distilbert"), task_of(kind)
    model = load_task_model(base, (), task=task)
    top = {name: weight.detach().clone() for name, weight in parameter_groups(model).head.items()}
    write_sft(
        tmp_path / "sft",
        {f"distilbert.{next(iter(parameter_groups(model).trainable))}": sparse((75, 16))},
        top,
    )
    vector = convert(tmp_path / "sft", tmp_path / "vector", base=base, kind=kind)
    assert vector.head.labels == ()
    lines = {
        "question-answering": {"question": "ba", "context": "be bi bo", "answers": "bi"},
        "multiple-choice": {"question": "ba", "options": ["be", "bi"], "label": 0},
        "regression": {"text": "ba be", "label": 0.5},
    }
    (tmp_path / "test.jsonl").write_text(json.dumps(lines[kind]) + "\n")
    with pytest.raises(SystemExit) as end:
        main(
            [
                "evaluate",
                "--base",
                base,
                "--task",
                str(tmp_path / "vector"),
                "--test",
                str(tmp_path / "test.jsonl"),
            ]
        )
    assert not end.value.code


@pytest.mark.parametrize("labels", [20, 16, 2])
def test_the_outputs_of_a_head_are_told_from_the_matrices_before_them(labels):
    """Also where there are more of them than the base is wide."""
    matrices = {"dense.weight": torch.ones(16, 16), "out_proj.weight": torch.ones(labels, 16)}
    for some in (matrices, dict(reversed(matrices.items()))):
        assert len(conversion._head(some, ()).labels) == labels


@pytest.mark.parametrize(
    "part", [["score.weight"], ["classifier.out_proj.weight", "classifier.out_proj.bias"], []]
)
def test_a_head_that_would_be_random_in_part_is_refused(bases, part):
    head = {name: torch.ones(2, 16)[: 1 if name.endswith("bias") else 2].squeeze() for name in part}
    task = replace(vector_of(bases(), with_head=True), head=Head(head, LABELS))
    with pytest.raises(DeftxError, match="the head of XLMRobertaForSequenceClassification"):
        compose(bases(), task)


@both_forms
def test_what_lt_sft_wrote_and_what_we_write_come_back_bit_for_bit(tmp_path, bases, form):
    vector = vector_of(bases(), with_head=True)
    deftx.save(vector, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "sft", "lt-sft")
    back = convert(tmp_path / "sft", tmp_path / "back", base=bases(), labels=LABELS)
    assert_same(replace(back, provenance=Provenance()), replace(vector, provenance=Provenance()))
    assert_same(
        replace(deftx.load(tmp_path / "back"), provenance=Provenance()),
        replace(vector, provenance=Provenance()),
    )
    content = torch.load(tmp_path / "sft" / lt_sft.FILE, weights_only=True)
    assert content["diffs"].keys() == {f"roberta.{name}" for name in vector.tensors}
    name = "roberta.embeddings.word_embeddings.weight"
    reference = coded(vector.tensors[name.removeprefix("roberta.")].to_dense())
    assert content["diffs"][name]["index_steps"] == reference["index_steps"]
    assert content["diffs"][name]["values"].equal(reference["values"])


class Runs:
    """What a pickle makes of this is whatever the function returns; here a folder would tell that
    it was called."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@both_forms
@pytest.mark.parametrize("place", ["whole", "diffs", "steps", "abs", "key"])
def test_a_file_that_would_run_code_is_refused_before_it_runs(tmp_path, form, place):
    trap = Runs(os.mkdir, str(tmp_path / "sprung"))
    good = coded(sparse((3, 4)))
    content = {
        "whole": trap,
        "diffs": {"diffs": trap},
        "steps": {"diffs": {"a": {**good, "index_steps": [trap]}}},
        "abs": {"diffs": {}, "abs": {"head": trap}},
        "key": {"diffs": {}, trap: 1},
    }[place]
    torch.save(content, tmp_path / lt_sft.FILE, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(DeftxError, match="more than tensors, numbers and plain containers"):
        read(tmp_path)
    assert not (tmp_path / "sprung").exists()
    torch.load(tmp_path / lt_sft.FILE, weights_only=False)
    assert (tmp_path / "sprung").exists(), "the trap is one"


def test_a_pickle_cannot_change_a_tensor_after_it_was_checked(tmp_path):
    torch.save({"diffs": {}, "abs": {"classifier.weight": torch.ones(2, 3)}}, tmp_path / "plain")
    with zipfile.ZipFile(tmp_path / "plain") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    before, after = parts["plain/data.pkl"].rsplit(b"R", 1)  # where the tensor is made
    for attribute in (b"shape", b"start", b"dtype"):
        setting = b"}(X\x05\x00\x00\x00" + attribute + b"X\x01\x00\x00\x00zub"
        with zipfile.ZipFile(tmp_path / lt_sft.FILE, "w") as archive:
            for name, data in parts.items():
                archive.writestr(
                    name, before + b"R" + setting + after if name == "plain/data.pkl" else data
                )
        with pytest.raises(DeftxError, match="is damaged, or holds more"):
            read(tmp_path)


GOOD = {"size": torch.Size([3, 4]), "index_steps": [0, 5], "values": torch.ones(2)}


@both_forms
@pytest.mark.parametrize(
    "content",
    [
        [],
        {"diffs": 3},
        {"abs": {}},
        {"diffs": {}, "more": {}},
        {"diffs": {3: GOOD}},
        {"diffs": {"a": {**GOOD, "more": 1}}},
        {"diffs": {"a": {**GOOD, "size": torch.Size([3])}}},
        {"diffs": {"a": {**GOOD, "size": [3, -4]}}},
        {"diffs": {"a": {**GOOD, "size": [2**40, 2**40]}}},
        {"diffs": {"a": {**GOOD, "size": [1] * 9}}},
        {"diffs": {"a": {**GOOD, "index_steps": [0, 12]}}},
        {"diffs": {"a": {**GOOD, "index_steps": [-1, 3]}}},
        {"diffs": {"a": {**GOOD, "index_steps": [3, 0]}}},
        {"diffs": {"a": {**GOOD, "index_steps": [0.0, 1.0]}}},
        {"diffs": {"a": {**GOOD, "index_steps": [True, True]}}},
        {"diffs": {"a": {**GOOD, "index_steps": [0, 2**70]}}},
        {"diffs": {"a": {**GOOD, "index_steps": [0]}}},
        {"diffs": {"a": {**GOOD, "index_steps": torch.tensor([0, 5])}}},
        {"diffs": {"a": {**GOOD, "index_steps": [np.float64(0), 5]}}},
        {"diffs": {"a": {**GOOD, "index_steps": np.array([0, 5])}}},
        {"diffs": {"a": {**GOOD, "values": torch.tensor([1.0, torch.nan])}}},
        {"diffs": {"a": {**GOOD, "values": torch.tensor([1, 2])}}},
        {"diffs": {"a": {**GOOD, "values": torch.ones(2, dtype=torch.float64)}}},
        {"diffs": {"a": {**GOOD, "values": torch.ones(2, 1)}}},
        {"diffs": {"a": {**GOOD, "values": torch.ones(1).expand(2)}}},
        {"diffs": {"a": {**GOOD, "values": torch.ones(2).to_sparse()}}},
        {"diffs": {}, "abs": {"h": torch.ones(3, 4).t()}},
        {"diffs": {}, "abs": {"h": torch.full((2,), torch.inf)}},
        {"diffs": {}, "abs": {"h": [1.0]}},
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_files_of_another_form_are_refused(tmp_path, content, form):
    torch.save(content, tmp_path / lt_sft.FILE, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(DeftxError) as error:
        read(tmp_path)
    assert lt_sft.FILE in str(error.value)
    assert "\n" not in str(error.value)


def test_a_long_shape_that_is_named_often_is_not_copied_each_time(tmp_path):
    # protocol 2: a list of 1,000 numbers, once in the memo, then torch.Size of it again and again
    listed = b"](" + b"K\x01" * 1000 + b"eq\x01"
    sized = b"ctorch\nSize\nh\x01\x85R"
    content = b"\x80\x02](" + listed + sized * 50 + b"e."
    with zipfile.ZipFile(tmp_path / "pytorch_diff.bin", "w") as file:
        file.writestr("archive/data.pkl", content)
        file.writestr("archive/version", "3")
    with pytest.raises(DeftxError, match="too many dimensions"):
        lt_sft.read(tmp_path / "pytorch_diff.bin")


def test_no_language_may_be_said_as_none(bases):
    task = vector_of(bases(), with_head=True)
    alone, without = compose(bases(), task), compose(bases(), task, None)
    assert all(
        alone.get_parameter(name).equal(weight) for name, weight in without.named_parameters()
    )


def write_program(folder, program):
    """A file of the newer form with a pickle as it is given."""
    with zipfile.ZipFile(folder / lt_sft.FILE, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/version", "3")


DEEP = b"\x85" * 500_000  # a tuple of a tuple of a tuple ...
WIDE = b"q\x00" + b"h\x00h\x00\x86q\x00" * 60  # a pair of the same pair of the same pair ...
SET = b"K\x01s."


@pytest.mark.parametrize(
    "program",
    {
        "deep key": b"\x80\x02})" + DEEP + SET,
        "wide key": b"\x80\x02})" + WIDE + SET,
        "wide keys at once": b"\x80\x02}()" + WIDE + b"K\x01u.",
        "wide code of a type": b"\x80\x02cnumpy\ndtype\n)" + WIDE + b"\x85R.",
        "wide key of data": b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\n)"
        + WIDE
        + b"NNtQ.",
        "deep content": b"\x80\x02)" + DEEP + b".",
        "wide content": b"\x80\x02)" + WIDE + b".",
        "deep lists": b"\x80\x02" + b"]" * 500_000 + b"a" * 499_999 + b".",
        "deep marks": b"\x80\x02" + b"(" * 500_000 + b"t" * 500_000 + b".",
        "memo far away": b"\x80\x02}r\xff\xff\xff\xff.",
        "list in itself": b"\x80\x02]q\x00h\x00a.",
        "call of text": b"\x80\x02X\x01\x00\x00\x00a)R.",
        "empty": b"",
        "stack that is empty": b"\x80\x02a.",
    }.values(),
)
def test_a_hostile_pickle_is_refused_at_once(tmp_path, program):
    write_program(tmp_path, program)
    began = process_time()
    with pytest.raises(DeftxError) as error:
        read(tmp_path)
    assert process_time() - began < 5
    assert len(str(error.value)) < 1000


def test_a_file_whose_steps_are_all_numbers_of_numpy_is_read(tmp_path):
    """Its memo has more than 2**16 numbers."""
    dense = torch.ones(20_000)
    plain = coded(dense)
    plain["index_steps"] = [np.int64(step) for step in plain["index_steps"]]
    torch.save({"diffs": {"roberta.x": plain}}, tmp_path / lt_sft.FILE)
    entries, _ = lt_sft.read(tmp_path / lt_sft.FILE)
    assert entries["roberta.x"].to_dense().equal(dense)


@both_forms
def test_damaged_files_and_random_programs_are_read_or_refused(tmp_path, form):
    """Bits of a good file are flipped, and operations of its pickle put in, left out and
    exchanged."""
    generator = np.random.default_rng(7)
    write_sft(tmp_path, {"roberta.x": sparse((3, 4))}, {"head": torch.ones(2, 3)}, form)
    good = (tmp_path / lt_sft.FILE).read_bytes()
    operations = [
        b"(",
        b")",
        b"t",
        b"\x85",
        b"\x86",
        b"\x87",
        b"]",
        b"}",
        b"a",
        b"e",
        b"s",
        b"u",
        b"R",
        b"b",
        b"Q",
        b"N",
    ]
    operations += [
        b"q\x00",
        b"h\x00",
        b"h\x01",
        b"h\x05",
        b"K\x03",
        b"J\xff\xff\xff\x7f",
        b"ctorch\nSize\n",
    ]
    operations += [b"\x8a\x10" + b"\x7f" * 16, b"ctorch\nFloatStorage\n", b"cnumpy\ndtype\n"]
    refused = 0
    for _ in range(1500):
        content = bytearray(good)
        for _ in range(generator.integers(1, 4)):
            place = int(generator.integers(len(content)))
            if generator.random() < 0.5:
                content[place] ^= 1 << int(generator.integers(8))
            else:
                content[place : place + int(generator.integers(4))] = operations[
                    generator.integers(len(operations))
                ]
        (tmp_path / lt_sft.FILE).write_bytes(content)
        try:
            lt_sft.read(tmp_path / lt_sft.FILE)
        except DeftxError:
            refused += 1
    for _ in range(1500):
        length = int(generator.integers(2, 40))
        program = b"".join(operations[i] for i in generator.integers(len(operations), size=length))
        write_program(tmp_path, b"\x80\x02" + program + b".")
        with pytest.raises(DeftxError):
            lt_sft.read(tmp_path / lt_sft.FILE)
    assert 1000 < refused < 1500


@pytest.mark.parametrize("shape", [(0, 2**100), (0, 2**47, 2**47), (2**60, 0), (0,) * 8])
def test_an_empty_tensor_of_an_impossible_shape_is_refused(tmp_path, shape):
    data = pickled._Data(100, {"0": bytearray()})
    stored = pickled.Stored(data, "0", torch.float32, 0, shape)
    if max(shape) > 0:
        with pytest.raises(DeftxError, match="no such shape"):
            stored.tensor()
    else:
        assert stored.tensor().shape == shape


def test_sharing_data_among_tensors_does_not_multiply_memory(tmp_path):
    steps, values = [1] * 50_000, torch.ones(50_000)
    same = {"size": [10**6], "index_steps": steps, "values": values}
    torch.save(
        {"diffs": {f"t{number}": dict(same) for number in range(2000)}}, tmp_path / lt_sft.FILE
    )
    with pytest.raises(DeftxError, match="same data"):
        read(tmp_path)


# --- PEFT ---


@pytest.mark.parametrize("to", ["deftx", "lt-sft", "model"])
def test_a_disk_without_room_is_one_line_in_every_format(tmp_path, bases, to):
    deftx.save(vector_of(bases(), with_head=True), tmp_path / "vector")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, before[1]))
    try:
        with pytest.raises((DeftxError, OSError)) as error:
            convert(tmp_path / "vector", tmp_path / "new", to)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert error_line(error.value)
    if to == "lt-sft":
        assert str(error.value).startswith(f"cannot write {tmp_path / 'new'}: no space left")
    assert not (tmp_path / "new").exists()


def with_adapter(model, folder):
    peft = pytest.importorskip("peft", reason="the extra `neighbours` is not installed")
    return peft.PeftModel.from_pretrained(model, folder)


def linear_only(vector, model):
    layers = {
        f"{n}.weight" for n, m in model.base_model.named_modules() if isinstance(m, torch.nn.Linear)
    }
    return replace(
        vector, tensors={name: e for name, e in vector.tensors.items() if name in layers}
    )


@pytest.mark.filterwarnings(
    "ignore::UserWarning:peft", "ignore::DeprecationWarning", "ignore::FutureWarning"
)
@pytest.mark.parametrize("shape", ["xlmr", "bert", "distilbert"])
@pytest.mark.parametrize("with_head", [False, True])
def test_peft_loads_the_adapter_and_its_logits_are_ours(tmp_path, bases, shape, with_head):
    base = bases(shape)
    deftx.save(vector := vector_of(base, with_head=with_head), tmp_path / "vector")
    ours = load_task_model(base, LABELS) if with_head else load_language_model(base)
    theirs = load_task_model(base, LABELS) if with_head else load_language_model(base)
    kept = linear_only(vector, ours)
    share = f"{1 - kept.k / vector.k:.1%}"
    with pytest.warns(
        UserWarning, match=rf"leaves out {vector.k - kept.k:,} of {vector.k:,} entries \({share}\)"
    ):
        convert(tmp_path / "vector", tmp_path / "adapter", "peft")
    apply(ours, kept)
    tokenizer = load_tokenizer(base)
    before = logits(theirs, tokenizer)
    after = logits(with_adapter(theirs, tmp_path / "adapter"), tokenizer)
    torch.testing.assert_close(after, logits(ours, tokenizer), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(after, before, atol=1e-3)


@pytest.mark.filterwarnings(
    "ignore:the adapter leaves out",
    "ignore::UserWarning:peft",
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
)
@pytest.mark.parametrize("shape", ["xlmr", "qwen", "t5"])
def test_a_language_vectors_adapter_names_its_model_for_peft(tmp_path, bases, shape):
    """`AutoPeftModel` needs nothing besides the folder, from wherever it is called."""
    peft = pytest.importorskip("peft", reason="the extra `neighbours` is not installed")
    deftx.save(vector := vector_of(bases(shape)), tmp_path / "vector")
    base = os.path.relpath(bases(shape))
    convert(tmp_path / "vector", tmp_path / "adapter", "peft", base=base)
    theirs = peft.AutoPeftModel.from_pretrained(tmp_path / "adapter")
    ours = load_language_model(bases(shape))
    apply(ours, linear_only(vector, ours))
    inputs = {"input_ids": torch.tensor([[5, 6, 9, 2]])}
    if shape == "t5":
        inputs["labels"] = inputs["input_ids"]
    with torch.no_grad():
        wanted = ours.eval()(**inputs).logits
        found = theirs.eval()(**inputs).logits
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings(
    "ignore:the adapter leaves out",
    "ignore::UserWarning:peft",
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
)
def test_a_task_vectors_adapter_is_loaded_by_pefts_class_for_classifiers(tmp_path, bases):
    peft = pytest.importorskip("peft", reason="the extra `neighbours` is not installed")
    deftx.save(vector := vector_of(bases(), with_head=True), tmp_path / "vector")
    convert(tmp_path / "vector", tmp_path / "adapter", "peft")
    theirs = peft.AutoPeftModelForSequenceClassification.from_pretrained(
        tmp_path / "adapter", num_labels=len(LABELS)
    )
    ours = load_task_model(bases(), LABELS)
    apply(ours, linear_only(vector, ours))
    tokenizer = load_tokenizer(bases())
    torch.testing.assert_close(
        logits(theirs, tokenizer), logits(ours, tokenizer), rtol=1e-5, atol=1e-5
    )


@pytest.mark.filterwarnings(
    "ignore:the adapter leaves out",
    "ignore::UserWarning:peft",
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
)
def test_peft_adds_up_a_languages_and_a_tasks_adapter_and_disables_them_exactly(tmp_path, bases):
    """As docs/moving.md says; and merging and unmerging is not exact."""
    peft = pytest.importorskip("peft", reason="the extra `neighbours` is not installed")
    language, task = vector_of(bases(), seed=7), vector_of(bases(), with_head=True)
    for name, vector in {"language": language, "task": task}.items():
        deftx.save(vector, tmp_path / name)
        convert(tmp_path / name, tmp_path / f"{name}-adapter", "peft")
    tokenizer = load_tokenizer(bases())
    theirs = peft.PeftModel.from_pretrained(
        load_task_model(bases(), LABELS), tmp_path / "language-adapter", adapter_name="language"
    )
    with theirs.disable_adapter():
        assert logits(theirs, tokenizer).equal(logits(load_task_model(bases(), LABELS), tokenizer))
    theirs.load_adapter(tmp_path / "task-adapter", "task")
    theirs.base_model.set_adapter(["language", "task"])
    ours = load_task_model(bases(), LABELS)
    apply(ours, linear_only(language, ours), linear_only(task, ours))
    torch.testing.assert_close(
        logits(theirs, tokenizer), logits(ours, tokenizer), rtol=1e-5, atol=1e-5
    )
    weights = {name: weight.clone() for name, weight in theirs.named_parameters()}
    theirs.merge_adapter()
    theirs.unmerge_adapter()
    assert not all(weights[name].equal(weight) for name, weight in theirs.named_parameters())


@pytest.mark.parametrize("shape", ["distilbert", "modernbert", "deberta"])
def test_an_adapter_with_a_head_of_several_matrices_comes_back(tmp_path, bases, shape):
    vector = linear_only(
        vector_of(bases(shape), with_head=True), load_task_model(bases(shape), LABELS)
    )
    deftx.save(vector, tmp_path / "vector")
    convert(tmp_path / "vector", tmp_path / "adapter", "peft")
    back = convert(tmp_path / "adapter", tmp_path / "back", base=bases(shape), labels=LABELS)
    assert back.head.labels == LABELS
    assert back.head.tensors.keys() == vector.head.tensors.keys()
    compose(bases(shape), back)


@pytest.mark.parametrize("shape", ["t5", "mt5", "bart", "xlmr", "qwen"])
def test_the_names_in_a_language_vector_for_lt_sft_are_those_of_the_language_model(
    tmp_path, bases, shape
):
    deftx.save(vector := vector_of(bases(shape)), tmp_path / "vector")
    convert(tmp_path / "vector", tmp_path / "sft", "lt-sft", base=bases(shape))
    names, model = lt_sft.read(tmp_path / "sft" / lt_sft.FILE)[0], load_language_model(bases(shape))
    assert len(names) == len(vector.tensors)
    for name in names:
        model.get_parameter(name)


def test_an_adapter_of_linear_layers_only_comes_back_bit_for_bit(tmp_path, bases):
    vector = vector_of(bases(), only="query.weight")
    deftx.save(vector, tmp_path / "vector")
    convert(
        tmp_path / "vector", tmp_path / "adapter", "peft"
    )  # without a warning: nothing is left out
    back = convert(tmp_path / "adapter", tmp_path / "back", base=bases())
    assert_same(replace(back, provenance=Provenance()), replace(vector, provenance=Provenance()))
    with pytest.raises(DeftxError, match="give the --base"):
        read(tmp_path / "adapter")


@pytest.mark.filterwarnings("ignore:the adapter leaves out")
@pytest.mark.parametrize(
    ("only", "message"), [("embeddings", "100.0%.*nothing would be left"), ("", "no room for r")]
)
def test_what_shira_cannot_hold_is_refused(tmp_path, bases, only, message):
    vector = vector_of(bases(), only=only)
    if not only:  # a full square matrix needs the r for which a long one has no room
        full = {name: entries(torch.ones(e.shape)) for name, e in vector.tensors.items()}
        vector = replace(vector, tensors=full)
    deftx.save(vector, tmp_path / "vector")
    with pytest.raises(DeftxError, match=message):
        convert(tmp_path / "vector", tmp_path / "adapter", "peft")
    assert not (tmp_path / "adapter").exists()


# --- whole models, mergekit ---


def test_a_language_vector_as_a_model_is_the_masked_language_model_that_was_trained(
    tmp_path, bases
):
    base = AutoModelForMaskedLM.from_pretrained(bases())
    torch.nn.init.normal_(base.lm_head.bias)
    base.save_pretrained(tmp_path / "base")
    load_tokenizer(bases()).save_pretrained(tmp_path / "base")
    deftx.save(vector := vector_of(bases()), tmp_path / "vector")
    convert(tmp_path / "vector", tmp_path / "model", "model", base=tmp_path / "base")
    ours, loaded = (
        load_language_model(tmp_path / "base"),
        AutoModelForMaskedLM.from_pretrained(tmp_path / "model"),
    )
    apply(ours, vector)
    tokenizer = load_tokenizer(tmp_path / "model")
    assert logits(loaded, tokenizer).equal(logits(ours, tokenizer))


def test_a_task_vector_as_a_model_is_the_composed_classifier(tmp_path, bases):
    deftx.save(vector := vector_of(bases(), with_head=True), tmp_path / "vector")
    convert(tmp_path / "vector", tmp_path / "model", "model")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    tokenizer = load_tokenizer(tmp_path / "model")
    assert logits(loaded, tokenizer).equal(logits(compose(bases(), vector), tokenizer))


@pytest.mark.filterwarnings("ignore:the adapter leaves out")
@pytest.mark.parametrize("shape", ["t5", "bart"])
def test_an_encoder_decoders_language_vector_goes_out_as_model_and_as_adapter(
    tmp_path, bases, shape
):
    deftx.save(vector := vector_of(bases(shape), seed=1), tmp_path / "vector")
    convert(tmp_path / "vector", tmp_path / "model", "model")
    ours, loaded = (
        load_language_model(bases(shape)),
        AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "model"),
    )
    apply(ours, vector)
    given = {name: torch.tensor([[5, 6, 9, 2]]) for name in ("input_ids", "labels")}
    assert loaded.eval()(**given).logits.equal(ours.eval()(**given).logits)
    convert(tmp_path / "vector", tmp_path / "adapter", "peft")
    modules = dict(loaded.named_modules())
    layers = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())[
        "target_modules"
    ]
    assert all(isinstance(modules[name], torch.nn.Linear) for name in layers)
    back = convert(tmp_path / "adapter", tmp_path / "back", base=bases(shape))
    kept = linear_only(vector, ours)
    assert_same(
        replace(back, provenance=Provenance()),
        replace(kept, tensors=dict(sorted(kept.tensors.items())), provenance=Provenance()),
    )


def test_task_arithmetic_by_the_file_for_mergekit_is_the_base_with_the_vector(tmp_path, bases):
    deftx.save(vector := vector_of(bases()), tmp_path / "vector")
    convert(tmp_path / "vector", tmp_path / "merge", "mergekit")
    merge = yaml.safe_load((tmp_path / "merge" / "mergekit.yml").read_text())
    assert merge["merge_method"] == "task_arithmetic"
    (part,) = merge["models"]
    theta0, theta1 = (
        AutoModelForMaskedLM.from_pretrained(m).state_dict()
        for m in (merge["base_model"], part["model"])
    )
    files = [
        load_file(f"{folder}/model.safetensors") for folder in (merge["base_model"], part["model"])
    ]
    assert files[0].keys() == files[1].keys()
    ours = load_language_model(bases())
    apply(ours, vector)
    for name, parameter in parameter_groups(ours).backbone.items():
        before, after = theta0[f"roberta.{name}"], theta1[f"roberta.{name}"]
        torch.testing.assert_close(
            before + part["parameters"]["weight"] * (after - before), parameter.detach()
        )


# --- what users do wrong ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sft", "new", "--to", "pef"], "unknown format 'pef' (did you mean 'peft'?)"),
        (["base", "new"], "deftx extract makes a vector"),
        (["empty", "new"], "is no vector of a known format"),
        (["sft", "new", "--to", "model"], "the vector does not name its base: give --base"),
        (["sft", "empty/file"], "empty/file exists"),
        (["nothing", "new"], "there is no folder 'nothing'"),
        (["sft", "new", "--base", "other"], "which the model does not have"),
    ],
)
def test_a_conversion_that_cannot_be_is_one_line_and_exit_code_2(
    tmp_path, monkeypatch, capsys, bases, arguments, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").symlink_to(bases())
    (tmp_path / "other").symlink_to(bases("distilbert"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "file").touch()
    write_sft(
        tmp_path / "sft", {"roberta.encoder.layer.0.attention.self.query.weight": sparse((16, 16))}
    )
    with pytest.raises(SystemExit) as end:
        main(["convert", *arguments])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "new").exists()


def test_the_command_says_whether_the_vector_is_bound_to_a_base(
    tmp_path, monkeypatch, capsys, bases
):
    monkeypatch.chdir(tmp_path)
    write_sft(
        tmp_path / "sft", {"roberta.encoder.layer.0.attention.self.query.weight": sparse((16, 16))}
    )
    for options, bound in ([[], "not bound to a base"], [["--base", bases(), "--force"], None]):
        with pytest.raises(SystemExit) as end:
            main(["convert", "sft", "new", *options])
        assert not end.value.code
        out = capsys.readouterr().out
        assert out.startswith("new: deftx, from a vector of k = ")
        assert (bound or "k = ") in out
        assert ("not bound" in out) == bool(bound)
