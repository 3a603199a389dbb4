"""Model cards: the metadata that the hub reads, what people read, and nothing of the maker's disk
in either."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import tiny
import yaml
from huggingface_hub import ModelCard
from storage_examples import example

import deftx
from deftx.core.provenance import DataRecord, TrainingRecord
from deftx.core.reselection import RESELECTIONS
from deftx.core.vector import SparseVector
from deftx.core.weights import WEIGHT_RULES
from deftx.errors import DeftxError
from deftx.fit import METHODS
from deftx.hub.model_card import PAPERS, About, model_card
from deftx.hub.privacy import published
from deftx.storage.provenance_json import provenance_from_json, provenance_to_json

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")

INFO = {
    "kind": "language",
    "base": "FacebookAI/xlm-roberta-base@e73636d",
    "base_fingerprint": "ab" * 32,
    "versions": {"deftx": "0.1.0", "torch": "2.13.0"},
    "method": "deftx",
    "k": 22,
    "rank": "90%",
    "keep": 0.05,
    "seed": 0,
    "training": {"learning_rate": 1e-4, "batch_size": 8, "report_to": []},
    "log": {"phase1": {"best_score": 2.0}, "phase2": {"best_score": 1.25}},
    "data": {
        "lines": 5000,
        "digest": "0123abcd",
        "sources": ["hub:wikimedia/wikipedia@v1:20231101.min", "min.txt"],
    },
}
LANGUAGE = replace(example(head=False), provenance=provenance_from_json(INFO))
TASK = replace(
    example(),
    provenance=replace(
        LANGUAGE.provenance,
        kind="task",
        training=TrainingRecord({"metric": "macro_f1"}),
        data=DataRecord(train=11, valid=12, digest="4567", sources=("train.tsv", "valid.tsv")),
        source=LANGUAGE.provenance,
    ),
)


def read(vector, about=None):
    """The card, as the hub's own classes read it."""
    return ModelCard(model_card(vector, "you/xlmr-min", about))


def test_the_metadata_of_a_language_vector_is_what_the_hub_expects():
    card = read(
        LANGUAGE, About(languages=["min", "no"], license="cc-by-sa-4.0", datasets=["you/text"])
    )
    assert card.data.to_dict() == {
        "library_name": "deftx",
        "base_model": "FacebookAI/xlm-roberta-base",
        "base_model_relation": "adapter",
        "tags": [
            "deftx",
            "sparse-fine-tuning",
            "language-vector",
            "cross-lingual-transfer",
            "base_model:adapter:FacebookAI/xlm-roberta-base",
        ],
        "language": ["min", "no"],  # and not false, as YAML would have it
        "license": "cc-by-sa-4.0",
        "datasets": ["you/text", "wikimedia/wikipedia"],
    }


def test_the_metadata_of_a_task_vector_has_its_task_and_its_score():
    card = read(TASK, About(datasets=["indonlp/indonlu"]))
    assert card.data.pipeline_tag == "text-classification"
    assert "task-vector" in card.data.tags
    (score,) = card.data.eval_results
    assert (score.task_type, score.metric_type, score.metric_name) == (
        "text-classification",
        "f1",
        "macro-F1",
    )
    assert (score.metric_value, score.dataset_type) == (1.25, "indonlp/indonlu")
    assert card.data.metrics == ["f1"]
    assert read(TASK).data.eval_results[0].dataset_type == "unknown"


@pytest.mark.parametrize("vector", [LANGUAGE, TASK])
def test_people_read_what_it_is_what_it_was_made_of_and_how_to_use_it(vector):
    text = read(vector, About(languages=["min"], license="mit")).text
    facts = [
        "FacebookAI/xlm-roberta-base",
        "e73636d",
        "ab" * 32,
        "22 numbers",
        "0.11%",
        "90%",
        "0.05",
        "2.13.0",
        "mit",
    ]
    data = vector.provenance.data
    for fact in [
        *facts,
        "1.2500",
        "min",
        data.digest,
        *data.sources,
        "Simon, Sona Elza",
        "2505.15090",
    ]:
        assert fact in text
    own, other = ("--task", "--language") if vector.head else ("--language", "--task")
    assert re.search(
        rf"deftx compose --base FacebookAI/xlm-roberta-base@e73636d .*{own} you/xlmr-min", text
    )
    assert f"{other} " in text
    assert 'deftx.load("you/xlmr-min")' in text
    assert ("negative, neutral, positiv ä" in text) == (vector.head is not None)


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ("deftx", "The method is DeFT-X (https://arxiv.org/abs/2505.15090):"),
        ("spiel-ma", "The entries were chosen as in SpIEL (Ansell et al. 2024, https://arxiv"),
        ("somebody's", "The method is DeFT-X"),
    ],
)
def test_the_paper_that_a_method_is_from_is_cited(method, says):
    vector = replace(LANGUAGE, provenance=replace(LANGUAGE.provenance, method=method))
    citation = model_card(vector, "you/x").partition("## Citation\n\n")[2]
    assert citation.startswith(says)
    assert "2505.15090" in citation
    for name in {*METHODS, *WEIGHT_RULES, *RESELECTIONS} - {"deftx", "random"}:
        assert name in PAPERS


def test_a_vector_that_knows_nothing_has_a_card_too():
    for vector in (
        SparseVector({}),
        2.0 * LANGUAGE,
        replace(TASK, provenance=provenance_from_json({"log": 3, "data": [], "training": None})),
    ):
        assert "deftx" in read(vector).data.tags
    assert "2.0 times" in read(2.0 * LANGUAGE).text


def test_a_stranger_s_info_stays_text():
    bad = "x\n---\n| ` <script> [a](b) ![c](d)"
    info = {
        **INFO,
        "base": bad,
        "method": bad,
        "training": {bad: bad},
        "data": {"sources": [bad, 3, None, f"hub:{bad}"]},
    }
    card = read(replace(LANGUAGE, provenance=provenance_from_json(info)))
    assert card.data.base_model is card.data.datasets is None
    assert "<script>" not in card.text
    assert "](b)" not in card.text
    rows = [line for line in card.text.splitlines() if line.startswith("| ")]
    assert all(line.count("|") == 3 or line == "| --- | --- |" for line in rows)


@pytest.mark.parametrize(
    ("about", "reason"),
    [
        (
            {"languages": ["Minangkabau"]},
            "'Minangkabau' is no ISO 639 code: write two or three small letters",
        ),
        ({"languages": ["pt-BR"]}, "'pt-BR' is no ISO 639 code"),
        (
            {"license": "Apache 2"},
            "'Apache 2' is no licence that the hub knows: write its name, such as apache-2.0",
        ),
        ({"datasets": ["../data/x.tsv"]}, "is no dataset on the hub"),
        ({"base": "../models/x"}, "is no model on the hub"),
    ],
)
def test_what_the_hub_would_refuse_is_refused_before(about, reason):
    with pytest.raises(DeftxError, match=re.escape(reason)):
        About(**about)
    with pytest.raises(DeftxError, match=re.escape(reason)):
        deftx.push(LANGUAGE, "you/min", **about)  # there is no hub to ask


# Privacy

PLACES = [
    "customers/anna/x",
    "/home/anna/x",
    "../anna/x",
    "./anna/x",
    "~anna/x",
    "~/anna/x",
    "C:\\Users\\anna\\x",
    "\\\\anna\\x",
    "/anna/x/",
]


@pytest.mark.parametrize("place", PLACES)
def test_no_place_on_a_disk_is_published(place):
    info = {
        "base": place,
        "finetuned": place,
        "base_fingerprint": "ab",
        "tokenizer": {"name": place, "digest": "ab"},
        "data": {"sources": [place, f"hub:{place}"]}
        if place != PLACES[0]
        else {"sources": ["x", "x"]},
        "other": [{"deep": place}] if place != PLACES[0] else [],
        "k": 3,
    }
    vector = published(
        replace(LANGUAGE, provenance=provenance_from_json({**info, "source": info, "of": [info]}))
    )
    assert "anna" not in json.dumps(provenance_to_json(vector.provenance))
    assert (
        vector.provenance.source.base
        == vector.provenance.terms[0].base
        == vector.provenance.base
        == "a local folder"
    )
    assert vector.provenance.data == DataRecord(sources=("x", "x"))
    assert (vector.provenance.k, vector.provenance.base_fingerprint) == (3, "ab")
    assert published(vector).provenance == vector.provenance
    assert "anna" not in model_card(vector, "you/min")


def test_what_is_no_place_is_published_as_it_is():
    provenance = replace(
        TASK.provenance,
        labels=("/n/", "~/", "a/b"),
        operation="0.5 times",
        extra={"note": "n/a", "text": "hub:a/b:c"},
    )
    assert published(replace(TASK, provenance=provenance)).provenance == provenance


def test_a_folder_that_has_the_form_of_an_id_is_no_base_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FacebookAI" / "xlm-roberta-base@e73636d").mkdir(parents=True)
    assert published(LANGUAGE).provenance.base == "a local folder"
    assert read(LANGUAGE).data.base_model is None
    assert "base_model" not in model_card(LANGUAGE, "you/min")
    named = About(base="FacebookAI/xlm-roberta-base")
    assert read(LANGUAGE, named).data.base_model == "FacebookAI/xlm-roberta-base"


def test_nothing_that_is_pushed_tells_where_it_was_made(hub, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_anna")
    source = replace(LANGUAGE.provenance, base="../secret/x")
    provenance = replace(TASK.provenance, base="/home/secret/x", source=source)
    vector = replace(TASK, provenance=provenance)
    deftx.save(vector, tmp_path / "secret")
    deftx.push(tmp_path / "secret", "anna/task", languages=["min"])
    repo = hub.repos["anna/task"]
    files = repo.commits[repo.refs["main"]]
    assert b"secret" not in b"".join(files.values())
    assert ModelCard(files["README.md"].decode()).data.language == ["min"]
    deftx.push(tmp_path / "secret", "anna/task", base="FacebookAI/xlm-roberta-base")
    assert deftx.load("anna/task").provenance.base == "FacebookAI/xlm-roberta-base"
    assert deftx.load(tmp_path / "secret").provenance == provenance


def test_a_card_of_one_s_own_is_pushed_as_it_is(hub, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_anna")
    deftx.save(LANGUAGE, tmp_path / "min")
    own = "---\nlanguage: [min]\n---\nMine, ö"
    (tmp_path / "min" / "README.md").write_text(own, encoding="utf-8")
    deftx.push(tmp_path / "min", "anna/min")
    repo = hub.repos["anna/min"]
    assert repo.commits[repo.refs["main"]]["README.md"].decode() == own
    with pytest.raises(
        DeftxError,
        match="is pushed as it is: say languages, datasets and licence there, or remove it",
    ):
        deftx.push(tmp_path / "min", "anna/min", languages=["min"])
    (tmp_path / "min" / "README.md").write_text("---\nlicense: strange\n---\n")
    with pytest.raises(
        DeftxError, match=r'cannot push to anna/min: Invalid metadata.*"license" must be one of'
    ):
        deftx.push(tmp_path / "min", "anna/min")
    (tmp_path / "min" / "README.md").write_bytes(b"\xff")
    with pytest.raises(DeftxError, match="cannot be read as UTF-8"):
        deftx.push(tmp_path / "min", "anna/min")
    assert len(repo.messages) == 1


def test_a_rank_left_to_the_library_is_shown_with_the_rule_that_it_stood_for():
    auto = replace(LANGUAGE, provenance=replace(LANGUAGE.provenance, rank="auto", rank_rule="90%"))
    assert "| rank | auto |\n| rank_rule | 90% |" in str(read(auto))
    assert "rank_rule" not in str(read(LANGUAGE))
    counted = replace(LANGUAGE, provenance=replace(LANGUAGE.provenance, keep_of="rows-in-use"))
    assert "| keep | 0.05 |\n| keep_of | rows-in-use |" in str(read(counted))


def test_vectors_learnt_on_a_folder_name_it_so_that_nobody_takes_it_for_an_id(
    bases, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(bases(), "anna/base")
    settings = deftx.LanguageVectorConfig(
        k=10, training=deftx.LanguageTrainingConfig(max_steps=1, min_steps=0, length=8)
    )
    language = deftx.fit_language("anna/base", tiny.sentences(20), settings)
    difference = deftx.extract("anna/base", "anna/base")
    monkeypatch.chdir("/")
    for vector in (language, difference):
        assert "anna" not in json.dumps(provenance_to_json(published(vector).provenance))


ODD = [
    None,
    [],
    {},
    "",
    3,
    float("nan"),
    float("inf"),
    10**400,
    True,
    "\ud800",
    "\u2028---\n# x",
    b"x",
    [[None]],
    {"best_score": 10**400},
    {"best_score": float("nan")},
    {"sources": 5},
    {"sources": {"a": 1}},
    {"sources": [None, 3, {}]},
    {"metric": []},
    {"metric": "\ud800"},
]


@pytest.mark.parametrize("key", ["kind", "task", "base", "training", "log", "data", "seed", "rank"])
@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_a_card_is_written_whatever_the_info_holds(key, odd):
    """It is whatever its maker wrote."""
    info = {
        "kind": "task",
        "training": {"metric": "macro_f1"},
        "log": {"phase2": {"best_score": 0.5}},
    }
    for value in (odd, {"metric": odd}, {"phase2": odd}, {"phase2": {"best_score": odd}}):
        vector = replace(example(), provenance=provenance_from_json({**info, key: value}))
        card = model_card(vector, "anna/min")
        metadata = yaml.safe_load(card.encode().decode().split("\n---\n")[0])
        assert metadata["library_name"] == "deftx"


def test_a_score_that_is_no_number_is_not_in_the_card():
    info = {"training": {"metric": "macro_f1"}, "log": {"phase2": {"best_score": 0.5}}}
    for best, is_there in {0.5: True, float("nan"): False, 10**400: False}.items():
        log = {"phase2": {"best_score": best}}
        provenance = provenance_from_json({**info, "log": log})
        card = model_card(replace(example(), provenance=provenance), "anna/min")
        assert ("## Scores" in card) == is_there
        assert ("model-index" in card) == is_there
