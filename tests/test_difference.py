"""The difference of two checkpoints as a vector: what the loaded models would give, without loading
them."""

import json
import shutil
import weakref

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification

import deftx
from deftx.cli import main
from deftx.core.denoise import denoise
from deftx.core.parameters import parameter_groups
from deftx.core.select import select
from deftx.errors import DeftxError
from deftx.models.compose import compose
from deftx.models.extract import delta, extract
from deftx.models.fingerprint import fingerprint
from deftx.models.heads import load_task_model
from deftx.models.loading import load_language_model
from deftx.models.tokenizers import load_tokenizer
from deftx.storage.checkpoints import Checkpoint


def finetuned(base, folder, *, dtype=torch.float32, norms=False, **options):
    """A checkpoint whose backbone differs from the base's in a third of its entries."""
    model = AutoModelForMaskedLM.from_pretrained(base)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in (
            parameter_groups(model).backbone if norms else parameter_groups(model).trainable
        ).values():
            chosen = torch.rand(parameter.shape, generator=generator) < 0.3
            parameter += chosen * torch.randn(parameter.shape, generator=generator) / 10
    model.to(dtype).save_pretrained(folder, **options)
    load_tokenizer(base).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def tuned(bases, tmp_path_factory):
    return finetuned(bases(), tmp_path_factory.mktemp("tuned") / "tuned")


def assert_is(vector, delta):
    for name, dense in delta.items():
        found = (
            vector.tensors[name].to_dense() if name in vector.tensors else torch.zeros_like(dense)
        )
        assert found.equal(dense), name
    assert vector.tensors.keys() <= delta.keys()


@pytest.mark.parametrize("shape", tiny.SHAPES)
def test_all_entries_are_the_difference_of_the_loaded_models(bases, tmp_path, shape):
    after = finetuned(bases(shape), tmp_path / "tuned")
    vector = extract(after, bases(shape))
    assert_is(vector, deftx.delta(after, bases(shape)))
    assert vector.provenance.base_fingerprint == fingerprint(load_language_model(bases(shape)))
    assert all((entries.values != 0).all() for entries in vector.tensors.values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sharded_checkpoints_of_half_precision_are_read(bases, tmp_path, dtype):
    after = finetuned(bases(), tmp_path / "tuned", dtype=dtype, max_shard_size="4KB")
    assert len(list((tmp_path / "tuned").glob("model-*.safetensors"))) > 2
    assert_is(extract(after, bases()), deftx.delta(after, bases()))


def test_the_k_largest_are_those_that_select_chooses(bases, tuned):
    delta = deftx.delta(tuned, bases())
    for k in ("5%", 0, 7, "100%"):
        chosen = select(delta, k)
        vector = extract(tuned, bases(), k=k)
        expected = {name: torch.zeros_like(dense) for name, dense in delta.items()}
        for name, places in chosen.items():
            expected[name].view(-1)[places.indices] = delta[name].reshape(-1)[places.indices]
        assert_is(vector, expected)
        assert (
            vector.k
            == vector.provenance.k
            <= sum(len(places.indices) for places in chosen.values())
        )


def test_with_a_rank_the_denoised_difference_chooses_and_the_values_stay(bases, tuned):
    delta = deftx.delta(tuned, bases())
    vector = extract(tuned, bases(), k="3%", rank=3)
    judged = {name: dense.where(delta[name] != 0, 0) for name, dense in denoise(delta, 3).items()}
    for name, places in select(judged, "3%").items():
        if len(places.indices):
            assert vector.tensors[name].indices.equal(places.indices)
            assert vector.tensors[name].values.equal(delta[name].reshape(-1)[places.indices])


def test_a_classifier_gives_a_task_vector_that_composes_to_it(bases, tmp_path):
    model = load_task_model(bases(), ["bad", "good"])
    with torch.no_grad():
        for parameter in parameter_groups(model).trainable.values():
            parameter += torch.randn_like(parameter) / 10
    model.save_pretrained(tmp_path / "tuned")
    vector = extract(tmp_path / "tuned", bases())
    assert vector.head.labels == ("bad", "good")
    again = compose(bases(), vector)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "tuned")
    inputs = load_tokenizer(bases())(tiny.sentences(4), padding=True, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(
            again(**inputs).logits, loaded.eval()(**inputs).logits, rtol=1e-5, atol=1e-5
        )


def test_the_names_of_layer_norms_in_berts_first_checkpoints_are_understood(bases, tuned, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(tuned, old)
    spelt = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    tensors = load_file(old / "model.safetensors")
    for name in [*tensors]:
        for new, first in spelt.items():
            if name.endswith(new):
                tensors[name.replace(new, first)] = tensors.pop(name)
    assert any(name.endswith("LayerNorm.gamma") for name in tensors)
    save_file(tensors, old / "model.safetensors", metadata={"format": "pt"})
    one, other = extract(tuned, bases()), extract(old, bases())
    assert one.tensors.keys() == other.tensors.keys()
    assert all(
        torch.equal(entries.values, other.tensors[name].values)
        for name, entries in one.tensors.items()
    )


def test_layer_norms_that_differ_are_left_out_with_a_warning(bases, tmp_path):
    after = finetuned(bases(), tmp_path / "tuned", norms=True)
    with pytest.warns(UserWarning, match="10 layer norms differ too"):
        vector = extract(after, bases())
    assert not any("LayerNorm" in name for name in vector.tensors)


def test_no_more_than_a_pair_of_tensors_is_held(bases, tuned, monkeypatch):
    held, most, read = [], [0], Checkpoint.tensor

    def watched(self, name):
        tensor = read(self, name)
        held.append(weakref.ref(tensor))
        most[0] = max(most[0], sum(ref() is not None for ref in held))
        return tensor

    monkeypatch.setattr(Checkpoint, "tensor", watched)
    extract(tuned, bases(), k="5%")
    assert len(held) > 100
    assert most[0] == 2


def test_a_model_elsewhere_is_compared_with_a_base_in_a_folder(bases):
    """As on a GPU: the base is loaded on the processor."""
    there = load_task_model(bases(), ("a", "b")).to("meta")
    assert {tensor.device.type for tensor in delta(there, bases()).values()} == {"meta"}


def test_a_folder_is_compared_with_the_weights_of_a_whole_model(bases, tuned):
    theirs = load_task_model(bases(), ("a", "b")).state_dict()
    ours, plain = delta(tuned, theirs), delta(tuned, bases())
    assert ours.keys() == plain.keys()
    assert all(ours[name].equal(plain[name]) for name in ours)


# --- what users do wrong ---


def broken(source, folder, change):
    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


BIAS = "roberta.encoder.layer.0.attention.self.query.bias"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tensors: tensors.pop(BIAS),
            "has no tensor 'encoder.layer.0.attention.self.query.bias'",
        ),
        (
            lambda tensors: tensors.update({BIAS: torch.ones(3)}),
            r"\(3,\) in .*, \(16,\) in the base",
        ),
        (lambda tensors: tensors.update({BIAS: torch.full((16,), torch.nan)}), "not finite"),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused(bases, tuned, tmp_path, change, message):
    with pytest.raises(DeftxError, match=message):
        extract(broken(tuned, tmp_path / "broken", change), bases())


@pytest.mark.parametrize(
    "index", ['{"weight_map": {"a": "../b"}}', "{", "[]", '{"weight_map": 3}', "[" * 100_000]
)
def test_a_damaged_index_is_refused(bases, tuned, tmp_path, index):
    shutil.copytree(tuned, tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors.index.json").write_text(index)
    with pytest.raises(DeftxError, match="damaged"):
        extract(tmp_path / "broken", bases())


def test_an_index_that_names_a_file_that_is_not_there_is_refused(bases, tuned, tmp_path):
    shutil.copytree(tuned, tmp_path / "broken")
    names = [f"roberta.{name}" for name in parameter_groups(load_language_model(bases())).backbone]
    index = {"weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    (tmp_path / "broken" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(DeftxError, match=r"cannot read .* from"):
        extract(tmp_path / "broken", bases())


def test_a_folder_without_safetensors_is_refused_with_the_way_out(bases, tuned, tmp_path):
    shutil.copytree(tuned, tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").unlink()
    with pytest.raises(DeftxError, match="save_pretrained"):
        extract(tmp_path / "broken", bases())


def test_the_command_saves_the_difference(bases, tuned, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["extract", tuned, bases(), "--k", "5%", "--out", str(tmp_path / "out")])
    assert not end.value.code
    vector = deftx.load(tmp_path / "out")
    assert capsys.readouterr().out == f"{tmp_path / 'out'}: difference vector, k = {vector.k:,}\n"
    with pytest.raises(SystemExit) as end:
        main(["extract", tuned, bases("bert"), "--out", str(tmp_path / "other")])
    assert end.value.code == 2
