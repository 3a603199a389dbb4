"""Fingerprints: equal for equal backbones however stored, different for anything else."""

import hashlib
import json

import pytest
import torch
from torch import nn
from transformers import (
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
    XLMRobertaForSequenceClassification,
    XLMRobertaModel,
)

from deftx.core.parameters import parameter_groups
from deftx.core.provenance import Provenance
from deftx.core.vector import SparseVector
from deftx.errors import DeftxError
from deftx.models import fingerprint as module
from deftx.models.fingerprint import check_base, fingerprint


class Tiny(nn.Module):
    """A base with a matrix, a transposed matrix, a scalar, an empty tensor and a tied one."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.arange(60.0).reshape(20, 3) / 64)
        self.turned = nn.Parameter((torch.arange(12.0).reshape(3, 4) / 32).T)
        self.scale = nn.Parameter(torch.tensor(-0.5))
        self.nothing = nn.Parameter(torch.zeros(0, 5))
        self.tied = self.weight


def plain(model):
    lines = ""
    for name, parameter in sorted(parameter_groups(model).backbone.items()):
        data = parameter.detach().float().numpy().tobytes()
        lines += json.dumps([name, list(parameter.shape), hashlib.sha256(data).hexdigest()]) + "\n"
    return hashlib.sha256(lines.encode()).hexdigest()


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_the_fingerprint_is_as_described_whatever_the_chunks(monkeypatch, chunk):
    monkeypatch.setattr(module, "_CHUNK", chunk)
    assert fingerprint(Tiny()) == plain(Tiny())


def test_the_fingerprint_stays_the_same_for_ever():
    assert fingerprint(Tiny()) == "d0791a899f369b57660efc252f01ae002fe79854c13bd65bd7fafb034a19e54b"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_and_their_float32_copies_are_one_base(dtype):
    half = Tiny().to(dtype)
    assert fingerprint(half) == fingerprint(Tiny().to(dtype).float()) == fingerprint(Tiny())


@pytest.mark.parametrize("name", ["weight", "turned", "scale"])
def test_one_bit_changes_it(name):
    model = Tiny()
    bits = getattr(model, name).detach().view(torch.int32)
    bits[(-1,) * bits.dim()] ^= 1
    assert fingerprint(model) != fingerprint(Tiny())


def test_names_and_shapes_count():
    renamed, reshaped = Tiny(), Tiny()
    renamed.other = renamed.scale
    del renamed.scale
    reshaped.weight = reshaped.tied = nn.Parameter(reshaped.weight.detach().reshape(3, 20))
    assert len({fingerprint(model) for model in (Tiny(), renamed, reshaped)}) == 3


def test_head_pooler_and_untying_of_the_output_do_not_count():
    config = XLMRobertaConfig(
        vocab_size=50,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        num_labels=3,
    )
    base = XLMRobertaModel(config)
    untied = XLMRobertaConfig.from_dict(config.to_dict() | {"tie_word_embeddings": False})
    others = [
        XLMRobertaForMaskedLM(config),
        XLMRobertaForMaskedLM(untied),
        XLMRobertaForSequenceClassification(config),
    ]
    for other in others:
        assert fingerprint(other) != fingerprint(base)
        other.base_model.load_state_dict(base.state_dict(), strict=False)
        assert fingerprint(other) == fingerprint(base)


@pytest.fixture
def vector():
    return SparseVector(
        {}, None, Provenance(base="some/base", base_fingerprint=fingerprint(Tiny()))
    )


def test_the_right_base_passes_as_a_model_and_as_a_fingerprint(vector):
    check_base(Tiny(), vector)
    check_base(fingerprint(Tiny()), vector)


def test_a_vector_that_names_no_base_passes():
    check_base(Tiny(), SparseVector({}))


def test_a_wrong_base_is_an_error_that_names_both(vector):
    wrong = Tiny().requires_grad_(False)
    wrong.scale += 1
    wrong.name_or_path = "other/base"
    former = rf"some/base \({fingerprint(Tiny())[:12]}\)"
    latter = rf"other/base \({fingerprint(wrong)[:12]}\)"
    expected = f"{former}, not on {latter}.*--ignore-base-mismatch"
    with pytest.raises(DeftxError, match=expected):
        check_base(wrong, vector)
    with pytest.raises(DeftxError, match=rf"the base at hand \({'0' * 12}\)"):
        check_base("0" * 64, vector)


def test_a_wrong_base_is_a_warning_when_forced(vector):
    with pytest.warns(UserWarning, match="some/base"):
        check_base("0" * 64, vector, ignore_base_mismatch=True)
