"""`deftx doctor`: it finds what fits and what does not, says which, and ends with a code that
tells."""

import json
import re
from dataclasses import replace

import pytest
import torch
from tiny import random_vector, save_base

import deftx
from deftx.cli import doctor, main
from deftx.core.parameters import parameter_groups
from deftx.core.provenance import Provenance, TokenizerRecord
from deftx.core.tensors import Head
from deftx.core.vector import SparseVector
from deftx.errors import DeftxError
from deftx.models.fingerprint import fingerprint
from deftx.models.heads import load_task_model
from deftx.models.loading import load_encoder
from deftx.models.tokenizers import load_tokenizer, tokenizer_record
from deftx.tasks.registry import TASKS

HUB = "huggingface_hub.constants."


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A base, vectors that fit it, and some that do not."""
    home = tmp_path_factory.mktemp("home")
    base, other = save_base(home / "base"), save_base(home / "other", seed=1)
    model = load_task_model(base, ["bad", "good"])
    noted = Provenance(
        base="base",
        base_fingerprint=fingerprint(model),
        tokenizer=tokenizer_record(load_tokenizer(base)),
    )
    language, task = random_vector(model, 1), random_vector(model, 2, ("bad", "good"))
    misfits = {
        "elsewhere": replace(
            noted, base="other", base_fingerprint=fingerprint(load_encoder(other))
        ),
        "spelt": replace(noted, tokenizer=TokenizerRecord("other", "f" * 64)),
    }
    for name, provenance in misfits.items():
        deftx.save(SparseVector(language.tensors, provenance=provenance), home / name)
    deftx.save(
        SparseVector(language.tensors, provenance=replace(noted, kind="language")), home / "min"
    )
    deftx.save(SparseVector(task.tensors, task.head, replace(noted, kind="task")), home / "task")
    bert = load_task_model(save_base(home / "bert", "bert"), ["bad", "good"])
    deftx.save(random_vector(bert, 3), home / "shapes")
    deftx.save(SparseVector({}, random_vector(bert, 3, ("bad", "good")).head), home / "top")
    return home


@pytest.fixture
def run(home, capsys, monkeypatch):
    monkeypatch.chdir(home)
    monkeypatch.setattr(HUB + "HF_HUB_OFFLINE", True)

    def run(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main(["doctor", *arguments])
        return end.value.code or 0, capsys.readouterr().out

    return run


def said(out):
    return {finding["topic"]: (finding["fine"], finding["says"]) for finding in json.loads(out)}


def test_what_is_installed_and_where_it_would_run_is_shown(run):
    code, out = run("--json")
    found = said(out)
    assert code == 0
    assert all(fine for fine, _ in found.values())
    assert (
        f"deftx {deftx.__version__}, torch {torch.__version__.split('+')[0]}"
        in found["installed"][1]
    )
    assert re.search(r"\d+ cores, of which torch uses \d+", found["device"][1])
    assert re.match(r"(bf16|fp32), ", found["precision"][1])
    assert re.match(r"[\d.]+ GB", found["memory"][1])
    assert re.match(r"[\d.]+ GB free in ", found["disk"][1])
    assert {topic for topic in found if topic.startswith("extra")} >= {"extra data", "extra plot"}
    assert not {"extra dev", "extra docs"} & found.keys()


def test_an_extra_that_is_lacking_comes_with_what_to_type(monkeypatch):
    monkeypatch.setattr(doctor, "_is_installed", lambda name: name != "pyarrow")
    found = {finding.topic: finding.says for finding in doctor.examine()}
    assert found["extra data"] == "lacks pyarrow: pip install 'deftx[data]' to use it"
    assert found["extra plot"] == "installed"


@pytest.mark.parametrize(
    ("cuda", "pays", "says"),
    [
        (False, False, "fp32, for the processor has no amx_bf16"),
        (True, False, "fp32, for this GPU has no bf16"),
        (True, True, "bf16, which this device multiplies faster than fp32"),
    ],
)
def test_the_precision_is_explained(monkeypatch, cuda, pays, says):
    monkeypatch.setattr(doctor, "bf16_pays", lambda device: pays)
    assert doctor._precision(torch.device("cuda" if cuda else "cpu")) == says


def test_whether_the_hub_can_be_had_is_said_and_is_no_fault(hub, monkeypatch):
    assert doctor._hub() == f"{hub.url} answers; nobody is logged in"
    monkeypatch.setenv("HF_TOKEN", "hf_anna")
    assert doctor._hub() == f"{hub.url} answers; a token is there"
    monkeypatch.setattr(HUB + "ENDPOINT", "http://127.0.0.1:9")
    assert re.match(r"not to be reached: .*; until then only what is in /", doctor._hub())
    monkeypatch.setattr(HUB + "HF_HUB_OFFLINE", True)
    assert doctor._hub().startswith("offline mode is on (HF_HUB_OFFLINE): only what is in ")


def test_vectors_that_fit_are_said_to_fit_and_what_a_fit_takes_is_estimated(run):
    code, out = run("--base", "base", "--vector", "min", "--vector", "task", "--json")
    found = said(out)
    assert code == 0
    assert re.fullmatch(
        r"base \([0-9a-f]{12}\): XLMRobertaForMaskedLM, [\d,]+ parameters, at most 32 tokens",
        found["base"][1],
    )
    assert re.fullmatch(r"fits: language vector, k = [\d,]+", found["min"][1])
    assert re.fullmatch(r"fits: task vector, k = [\d,]+, for bad, good", found["task"][1])
    assert "GB of memory" in found["phase 1"][1]
    assert "with k = 155, " in found["phase 2"][1]


MISFITS = {
    "elsewhere": r"the vector was made on other \([0-9a-f]{12}\), not on the base at hand ",
    "spelt": r"the vector was made with the tokenizer other",
    "shapes": r".* is \(.*\) in the model, \(.*\) in the vector|the vector changes .*, which the"
    r" model does not have",
    "top": r"the task vector has 'bert.pooler.*', which is not in the head of"
    r" XLMRobertaForSequenceClassification",
    "nowhere": r"there is no vector at nowhere",
}


@pytest.mark.parametrize(("vector", "says"), MISFITS.items(), ids=MISFITS)
def test_a_vector_that_does_not_fit_is_marked_and_ends_with_1_and_the_others_are_examined(
    run, vector, says
):
    arguments = ["--base", "base", "--vector", vector, "--vector", "min"]
    code, out = run(*arguments, "--json")
    fine, line = said(out)[vector]
    assert (code, fine) == (1, False)
    assert re.match(says, line)
    assert said(out)["min"][0]
    marked = [line for line in run(*arguments)[1].splitlines() if line.startswith("✗")]
    assert [line.split()[1] for line in marked] == [vector]


def test_a_base_that_cannot_be_loaded_or_has_no_language_modelling_head_is_marked(run, home):
    code, out = run("--base", "./nowhere", "--json")
    assert (code, said(out)["base"][0]) == (1, False)
    load_encoder(home / "base").save_pretrained(home / "encoder")
    load_tokenizer(home / "base").save_pretrained(home / "encoder")
    code, out = run("--base", "encoder", "--vector", "task", "--json")
    assert code == 1
    assert "is not a masked language model" in said(out)["base"][1]
    assert said(out)["task"][0]


def test_vectors_without_a_base_are_refused(run):
    assert run("--vector", "min") == (2, "")


@pytest.mark.parametrize("kind", [kind for kind in TASKS if kind != "generation"])
def test_a_vector_of_any_kind_of_task_fits_with_the_head_of_its_model(run, home, kind):
    labels = ("bad", "good") if kind in ("classification", "tagging", "ner") else ()
    try:
        model = load_task_model(home / "base", labels, task=TASKS[kind])
    except (
        DeftxError
    ) as error:  # transformers 5.6 makes XLM-R's model for multiple choice without it
        pytest.skip(str(error)) if "lacks its pooler" in str(error) else pytest.fail(str(error))
    top = Head(
        {name: tensor.detach() for name, tensor in parameter_groups(model).head.items()}, labels
    )
    noted = deftx.load(home / "task").provenance
    deftx.save(SparseVector({}, top, replace(noted, task=kind)), home / kind)
    code, out = run("--base", "base", "--vector", kind, "--json")
    assert (code, said(out)[kind][0]) == (0, True), out
