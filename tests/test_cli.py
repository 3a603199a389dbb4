"""The commands: a whole flow on a tiny base, and one line and exit code 2 for every kind of wrong input."""

import errno
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from tiny import save_base, sentences
from transformers import AutoModel, AutoModelForMaskedLM, pipeline

import deftx
from deftx import console, given
from deftx.cli import main
from deftx.composed import compose, without_vectors
from deftx.core.vector import Head
from deftx.errors import DeftxError
from deftx.experiments.demo.run import recipe as demo_recipe
from deftx.models import load_composed, load_tokenizer
from deftx.settings import LANGUAGE_PRESETS, LanguageFit, changed
from deftx.storage.folders import claimed
from deftx.tasks import masked_lm
from deftx.tasks.classification import CLASSIFICATION
from deftx.tasks.supervised import evaluate

TRAINING = ["max_steps=2", "evaluate_every=1", "length=16", "batch_size=8", "learning_rate=1e-2"]
QUICK = ["--k", "5%", *(part for setting in TRAINING for part in ("--set", f"training.{setting}"))]
LANGUAGE = [*QUICK, "--set", "training.min_steps=0"]


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The one line on standard error besides progress bars."""
        (line,) = [line for line in self.err.splitlines() if line.strip() and "━" not in line]
        return line


def typed(*arguments: object) -> int:
    """The exit code of a command."""
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return int(end.value.code or 0)


@pytest.fixture
def run(capsys):
    def run(*arguments):
        capsys.readouterr()
        code = typed(*arguments)
        return Done(code, *capsys.readouterr())

    return run


def labelled(path: Path, seed: int, count: int = 24) -> None:
    rows = [f"{text}\t{'front' if text[-1] in 'ei' else 'back'}" for text in sentences(count, seed)]
    path.write_text("\n".join(["text\tlabel", *rows]) + "\n")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with data, two bases, and what the first commands of a user make of them."""
    home = tmp_path_factory.mktemp("home")
    save_base(home / "base")
    save_base(home / "other", seed=1)
    AutoModel.from_pretrained(home / "base").save_pretrained(home / "encoder")
    load_tokenizer(home / "base").save_pretrained(home / "encoder")
    for number, name in enumerate(["ind", "min"]):
        (home / f"{name}.txt").write_text("\n".join(sentences(30, number)) + "\n")
    for number, name in enumerate(["train", "valid", "test"]):
        labelled(home / f"{name}.tsv", number)
    base = ["--base", home / "base"]
    for name in ["ind", "min"]:
        assert typed("fit", "language", *base, "--text", home / f"{name}.txt", "--out", home / name, *LANGUAGE) == 0
    data = ["--train", home / "train.tsv", "--valid", home / "valid.tsv", "--source", home / "ind"]
    assert typed("fit", "task", *base, *data, "--out", home / "task", *QUICK) == 0
    vectors = ["--task", home / "task", "--language", home / "min"]
    assert typed("compose", *base, *vectors, "--out", home / "model") == 0
    return home


@pytest.fixture
def here(home, tmp_path, monkeypatch):
    """An empty folder to work in; `home` is beside it, as in what users type."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").symlink_to(home)
    return tmp_path


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# The flow


def test_a_language_vector_has_exactly_k_entries_and_leaves_no_working_files(home):
    vector = deftx.load(home / "min")
    tunable = sum(entries.numel for entries in vector.tensors.values())
    assert vector.k == vector.info["k"] == round(0.05 * tunable)
    assert vector.info["kind"] == "language"
    assert not (home / "min.work").exists()


def test_a_fit_says_in_one_line_what_it_wrote(here, run):
    done = run("fit", "language", "--base", "home/base", "--text", "home/min.txt", "--out", "min", *LANGUAGE)
    best = deftx.load("min").info["log"]["phase2"]["best_score"]
    assert done.code == 0
    assert done.out == f"min: language vector, k = {deftx.load('min').k:,}, held-out loss {best:.4f}\n"


def test_an_encoder_decoder_goes_the_same_way(here, run):
    save_base(here / "mt5", "mt5")
    fitted = ["--base", "mt5", "--train", "home/train.tsv", "--valid", "home/valid.tsv", *QUICK]
    for done in [
        run("fit", "language", "--base", "mt5", "--text", "home/min.txt", "--out", "min", *LANGUAGE),
        run("fit", "task", *fitted, "--source", "min", "--out", "task"),
        run("compose", "--base", "mt5", "--task", "task", "--language", "min", "--out", "model"),
    ]:
        assert (done.code, done.out.splitlines()[1:]) == (0, [])
    done = run("evaluate", "--base", "mt5", "--task", "task", "--language", "min", "--test", "home/test.tsv", "--json")
    data = deftx.read_examples("home/test.tsv")
    model = load_composed("model")
    assert type(model).__name__ == "MT5ForSequenceClassification"
    scores = evaluate(CLASSIFICATION, model, load_tokenizer("model"), data, 16)
    assert scores.items() <= json.loads(done.out)[0].items()


def test_the_same_command_makes_the_same_vector(here, home, run):
    run("fit", "language", "--base", "home/base", "--text", "home/min.txt", "--out", "again", *LANGUAGE)
    first, second = deftx.load(home / "min"), deftx.load("again")
    assert all(torch.equal(first.tensors[n].values, second.tensors[n].values) for n in first.tensors)
    assert all(torch.equal(first.tensors[n].indices, second.tensors[n].indices) for n in first.tensors)


def test_a_task_vector_knows_its_source_and_its_labels(home):
    task = deftx.load(home / "task")
    assert task.head is not None
    assert task.head.labels == ("back", "front")
    assert task.info["source"]["data"] == deftx.load(home / "ind").info["data"]


def test_a_task_is_learnt_on_several_languages_each_with_its_vector(here, home, run):
    sources = ["--source", "b=home/min", "--source", "a=home/ind", "--temperature", 3]
    done = run(*with_options(FIT_TASK, TWO), *sources)
    assert (done.code, "without --source" in done.out) == (0, False)
    train = {name: deftx.read_examples(home / f"{part}.tsv") for name, part in {"a": "train", "b": "test"}.items()}
    valid = dict.fromkeys(train, deftx.read_examples(home / "valid.tsv"))
    settings = changed(deftx.TaskFit(), given.assigned(["k=5%", *QUICK[3::2]]))
    vectors = {"a": deftx.load("home/ind"), "b": deftx.load("home/min")}
    expected = deftx.fit_task_several("home/base", train, valid, settings, sources=vectors, temperature=3)
    found = deftx.load("new")
    for name, entries in expected.tensors.items():
        assert torch.equal(found.tensors[name].indices, entries.indices)
        assert torch.equal(found.tensors[name].values, entries.values)
    assert list(found.info["sources"]) == ["a", "b"]
    assert len(found.info["data"]["sources"]) == 4
    assert "without --source" in run(*with_options(FIT_TASK, f"{TWO} --out other")).out


def test_a_lone_source_may_have_a_name(here, home, run):
    named = "--train ind=home/train.tsv --valid home/valid.tsv --source ind=home/ind"
    assert run(*with_options(FIT_TASK, named)).code == 0
    assert tree(Path("new"))["vector.safetensors"] == tree(home / "task")["vector.safetensors"]
    assert deftx.load("new").info["source"] == deftx.load(home / "task").info["source"]


def test_a_pipeline_runs_the_composed_model_and_predict_says_the_same(here, home, run):
    texts = sentences(8, seed=5)
    Path("texts.txt").write_text("\n".join(texts) + "\n")
    answers = pipeline("text-classification", model=str(home / "model"))(texts)
    lines = run("predict", "--model", "home/model", "texts.txt", "--json").out.splitlines()
    found = [json.loads(line) for line in lines]
    assert [row["label"] for row in found] == [answer["label"] for answer in answers]
    assert [row["probability"] for row in found] == pytest.approx([answer["score"] for answer in answers], abs=1e-5)
    vectors = ["--base", "home/base", "--task", "home/task", "--language", "home/min"]
    assert run("predict", *vectors, "texts.txt", "--json").out.splitlines() == lines


def test_texts_with_capitals_are_told_of_where_the_task_saw_none(here, run):
    vectors, warning = ["--base", "home/base", "--task", "home/task"], "warning: the task was learnt from texts without"
    rows = [line.split("\t") for line in Path("home/test.tsv").read_text().splitlines()[1:]]
    Path("big.tsv").write_text("\n".join(["text\tlabel", *(f"{text.title()}\t{label}" for text, label in rows)]))
    for command in (["predict", *vectors, "big.tsv"], ["evaluate", *vectors, "--test", "big.tsv"]):
        done = run(*command)
        assert (done.code, done.err.count(warning)) == (0, 1)
    respell = ["data", "respell", "big.tsv", "--like", "home/train.tsv", "--case-only", "--out", "small.tsv"]
    assert run(*respell).code == 0
    assert deftx.read_examples("small.tsv").texts == deftx.read_examples("home/test.tsv").texts
    assert warning not in run("predict", *vectors, "small.tsv").err


def test_predict_writes_a_table_whole_and_only_where_nothing_is(here, run):
    shown = run("predict", "--model", "home/model", "home/test.tsv").out
    assert shown.splitlines()[0] == "label\tprobability"
    assert len(shown.splitlines()) == 1 + 24
    assert run("predict", "--model", "home/model", "home/test.tsv", "--out", "new/found.tsv").code == 0
    assert Path("new/found.tsv").read_text() == shown
    Path("new/found.tsv").write_text("mine")
    refused = run("predict", "--model", "home/model", "home/test.tsv", "--out", "new/found.tsv")
    assert (refused.code, Path("new/found.tsv").read_text()) == (2, "mine")
    assert "--force" in refused.complaint
    assert run("predict", "--model", "home/model", "home/test.tsv", "--out", "new/found.tsv", "--force").code == 0
    assert Path("new/found.tsv").read_text() == shown


def test_evaluate_scores_what_compose_makes(here, home, run):
    task, language = deftx.load(home / "task"), deftx.load(home / "min")
    composed, base = compose(home / "base", task, language), without_vectors(home / "base", task, [language])
    with deftx.applied(base, language, task):
        assert all(
            torch.equal(a, b) for a, b in zip(composed.state_dict().values(), base.state_dict().values(), strict=True)
        )
    scores = evaluate(
        CLASSIFICATION, composed, load_tokenizer(home / "base"), deftx.read_examples(home / "test.tsv"), 16
    )
    vectors = ["--base", "home/base", "--task", "home/task", "--language", "min=home/min"]
    done = run("evaluate", *vectors, "--test", "min=home/test.tsv", "--json")
    assert json.loads(done.out) == [{"language": "min", "examples": 24, **scores}]
    assert run("evaluate", *vectors, "--test", "home/test.tsv", "--json").out == done.out


def test_vectors_are_combined_by_the_rule_that_is_named_whatever_the_command(here, home, run):
    rule = "ties-sum:density=0.5,task_scale=0.5"
    task, language = deftx.load(home / "task"), deftx.load(home / "min")
    expected = compose(home / "base", task, language, rule=rule)
    plain = compose(home / "base", task, language)
    assert run(*COMPOSE, "--rule", rule).code == 0
    saved = load_composed("new")
    assert all(torch.equal(weight, saved.state_dict()[name]) for name, weight in expected.state_dict().items())
    assert not all(torch.equal(weight, saved.state_dict()[name]) for name, weight in plain.state_dict().items())
    (row,) = json.loads(run(*EVALUATE, "--rule", rule, "--json").out)
    scores = evaluate(
        CLASSIFICATION, expected, load_tokenizer(home / "base"), deftx.read_examples(home / "test.tsv"), 16
    )
    assert {name: row[name] for name in scores} == scores
    by_vectors = run("predict", "home/test.tsv", *COMPOSE[1:7], "--rule", rule).out
    assert by_vectors == run("predict", "home/test.tsv", "--model", "new").out


def test_of_several_tasks_the_first_ones_head_is_used(here, home, run):
    task, language = deftx.load(home / "task"), deftx.load(home / "min")
    second = replace(-0.5 * task, head=Head({n: -t for n, t in task.head.tensors.items()}, task.head.labels))
    deftx.save(second, "second")
    assert run(*COMPOSE, "--task", "second").code == 0
    saved = load_composed("new")
    expected = compose(home / "base", [task, replace(second, head=None)], language)
    assert all(torch.equal(weight, saved.state_dict()[name]) for name, weight in expected.state_dict().items())
    (row,) = json.loads(run(*EVALUATE, "--task", "second", "--json").out)
    scores = evaluate(
        CLASSIFICATION, expected, load_tokenizer(home / "base"), deftx.read_examples(home / "test.tsv"), 16
    )
    assert {name: row[name] for name in scores} == scores


def test_evaluate_takes_each_language_with_its_own_test_and_undoes_it_before_the_next(here, run):
    task = ["--base", "home/base", "--task", "home/task"]
    both = [
        "--language",
        "a=home/min",
        "--language",
        "home/ind",
        "--test",
        "ind=home/valid.tsv",
        "--test",
        "a=home/test.tsv",
    ]
    rows = json.loads(run("evaluate", *task, *both, "--json").out)
    alone = run("evaluate", *task, "--language", "a=home/min", "--test", "home/test.tsv", "--json")
    assert [row["language"] for row in rows] == ["ind", "a"]
    assert rows[1:] == json.loads(alone.out)
    none = run("evaluate", *task, "--test", "home/test.tsv")
    assert "(none)" in none.out
    assert "macro-F1" in none.out


def test_inspect_shows_where_vectors_come_from_and_what_they_share(here, home, run):
    found = json.loads(run("inspect", "home/min", "home/ind", "home/task", "--json").out)
    vectors = [deftx.load(home / name) for name in ("min", "ind", "task")]
    assert found["overlap"] == [[deftx.overlap(a, b) for b in vectors] for a in vectors]
    assert [facts["kind"] for facts in found["vectors"]] == ["language", "language", "task"]
    assert found["vectors"][2]["labels"] == ["back", "front"]
    for facts, vector in zip(found["vectors"], vectors, strict=True):
        assert facts["k"] == vector.k
        assert facts["fingerprint"] == vector.info["base_fingerprint"]
        assert set(facts["density"]) == {"embeddings", "encoder.layer.0", "encoder.layer.1"}
    shown = run("inspect", "home/min").out
    assert all(word in shown for word in ("deftx", "90%", "encoder.layer.1", vectors[0].info["base_fingerprint"][:12]))
    assert "overlap" not in shown


def test_words_are_tagged_from_the_first_command_to_the_last(here, run):
    """The vector and the model note the task, which nothing but the first command is told."""
    sentence = "".join(f"{word}\t{'FRONT' if word[-1] in 'ei' else 'BACK'}\n" for word in "ba be bi bo".split())
    Path("pos.tsv").write_text("\n".join([sentence] * 8))
    Path("words.tsv").write_text("ba\nbe\n\nbi\n")
    vectors = ["--base", "home/base", "--task", "pos", "--language", "home/min"]
    data = ["--train", "pos.tsv", "--valid", "pos.tsv", "--kind", "tagging"]
    assert run("fit", "task", "--base", "home/base", *data, "--out", "pos", *QUICK).code == 0
    done = run("evaluate", *vectors, "--test", "pos.tsv")
    assert done.out.split()[:4] == ["language", "macro-F1", "accuracy", "examples"]
    (row,) = json.loads(run("evaluate", *vectors, "--test", "pos.tsv", "--json").out)
    assert row.keys() == {"language", "examples", "macro_f1", "accuracy"}
    done = run("predict", *vectors, "words.tsv")
    header, *lines = done.out.splitlines()
    assert (done.code, header, [len(line.split()) for line in lines]) == (0, "tags", [2, 1])
    assert run("compose", *vectors, "--out", "model").code == 0
    assert run("predict", "--model", "model", "words.tsv").out == done.out
    found = [json.loads(line) for line in run("predict", "--model", "model", "words.tsv", "--json").out.splitlines()]
    assert [" ".join(each["tags"]) for each in found] == lines


def test_rows_with_an_empty_premise_are_valid(here, run):
    rows = [
        f"{premise}\t{text}\t{text[-1] in 'ei'}"
        for premise, text in zip(["", "ba be"] * 12, sentences(24), strict=True)
    ]
    Path("nli.tsv").write_text("\n".join(["premise\thypothesis\tlabel", *rows]) + "\n")
    data = ["--train", "nli.tsv", "--valid", "nli.tsv"]
    assert run("fit", "task", "--base", "home/base", *data, "--out", "nli", *QUICK).code == 0
    scored = run("evaluate", "--base", "home/base", "--task", "nli", "--test", "nli.tsv", "--json")
    assert json.loads(scored.out)[0]["examples"] == 24


def test_force_replaces_a_vector_and_a_model_and_nothing_else(here, home, run):
    shutil.copytree(home / "min", "min")
    shutil.copytree(home / "model", "model")
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("notes")
    fit = ["fit", "language", "--base", "home/base", "--text", "home/ind.txt", *LANGUAGE, "--force"]
    assert run(*fit, "--out", "min").code == 0
    assert deftx.load("min").info["data"] == deftx.load(home / "ind").info["data"]
    vectors = ["compose", "--base", "home/base", "--task", "home/task", "--force"]
    assert run(*vectors, "--out", "model").code == 0
    assert tree(Path("model"))["model.safetensors"] != tree(home / "model")["model.safetensors"]
    for command in (fit, vectors):
        assert run(*command, "--out", "mine").code == 2
    assert tree(Path("mine")) == {"notes.txt": b"notes"}


def test_a_recipe_is_carried_out_and_its_table_printed(here, run):
    settings = {"max_steps": 2, "evaluate_every": 2, "length": 16}
    recipe = {
        "base": "home/base",
        "languages": {"ind": "home/ind.txt", "min": "home/min.txt"},
        "source": "ind",
        "train": "home/train.tsv",
        "valid": "home/valid.tsv",
        "test": {"min": "home/test.tsv"},
        "leakage": "ignore",
        "language": {"training": {**settings, "min_steps": 0}},
        "task": {"training": settings},
        "variants": {"LT-SFT": {"language": {"method": "lt-sft"}, "task": {"method": "lt-sft"}}},
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    rows = json.loads(run("run", "recipe.yaml", "--set", "seeds=[3]", "--json").out)
    assert [(row["variant"], row["seed"], row["language"]) for row in rows] == [("LT-SFT", 3, "min")]
    again = run("run", "recipe.yaml", "--set", "seeds=[3]")
    assert again.out == Path("runs/recipe/results.md").read_text()
    assert "phase" not in again.err


def test_demo_hands_on_what_was_typed(run, monkeypatch):
    calls = []
    stub = SimpleNamespace(demo=lambda *arguments: calls.append(arguments))
    monkeypatch.setitem(sys.modules, "deftx.experiments.demo.run", stub)
    assert run("demo").code == run("demo", "--out", "~/x", "--seed", "3", "--force").code == 0
    assert calls == [(Path("demo"), 0, False), (Path("~/x").expanduser(), 3, True)]


# Stopping and going on


def test_a_fit_that_was_stopped_goes_on_where_phase_1_ended(here, home, run, monkeypatch):
    train, titles = deftx.training.phases.train, []

    def stopping(*arguments, title, **options):
        titles.append(title)
        if len(titles) == 2:
            raise KeyboardInterrupt
        return train(*arguments, title=title, **options)

    monkeypatch.setattr("deftx.training.phases.train", stopping)
    command = ["fit", "language", "--base", "home/base", "--text", "home/min.txt", "--out", "a b", *LANGUAGE]
    stopped = run(*command)
    assert stopped.code == 130
    assert stopped.complaint == f"deftx: stopped; to go on, type: {shlex.join(['deftx', *command])}"
    assert sorted(os.listdir(here)) == ["a b.work", "home"]
    assert run(*command).code == 0
    assert titles == ["a b: phase 1", "a b: phase 2", "a b: phase 2"]
    assert sorted(os.listdir(here)) == ["a b", "home"]
    assert all(
        torch.equal(entries.values, deftx.load("a b").tensors[name].values)
        for name, entries in deftx.load(home / "min").tensors.items()
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_with_what_to_type_and_leaves_the_handler_as_it_was(here, run, monkeypatch, number, code):
    before = signal.getsignal(signal.SIGTERM)
    interrupt = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # ignored where the tests are in the background
    monkeypatch.setattr(
        "deftx.training.phases.train", lambda *args, **options: os.kill(os.getpid(), number) or time.sleep(9)
    )
    command = ["fit", "language", "--base", "home/base", "--text", "home/min.txt", "--out", "min", *LANGUAGE]
    stopped = run(*command)
    assert stopped.code == code
    assert stopped.complaint == f"deftx: stopped; to go on, type: {shlex.join(['deftx', *command])}"
    signal.signal(signal.SIGINT, interrupt)
    assert signal.getsignal(signal.SIGTERM) == before
    assert os.listdir(here) == ["home"]


def test_the_second_of_two_processes_on_one_folder_is_refused(here, run, monkeypatch):
    monkeypatch.setattr("deftx.experiments.run.read", lambda recipe: pytest.fail("begun"))
    recipe = {"base": "home/base", "source": "ind", "languages": {"ind": "home/ind.txt"}, "variants": {"V": {}}}
    recipe |= {"train": "home/train.tsv", "valid": "home/valid.tsv", "test": {"ind": "home/test.tsv"}}
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    Path("demo").mkdir()
    Path("demo/recipe.yaml").write_text(yaml.safe_dump(demo_recipe(0), sort_keys=False))
    data = ["--base", "home/base", "--text", "home/min.txt"]
    commands = {
        "min.work": ["fit", "language", *data, "--out", "min", *LANGUAGE],
        "runs": ["run", "recipe.yaml", "--out", "runs"],
        "demo": ["demo", "--out", "demo"],
    }
    for folder, command in commands.items():
        with claimed(Path(folder)):
            refused = run(*command)
        assert refused.code == 2
        assert f"{folder} is in use by another deftx" in refused.complaint
    assert not Path("min.work").exists()
    assert run(*commands["min.work"]).code == 0


def test_a_fit_that_was_killed_after_its_vector_was_saved_is_done(here, home, run):
    command = ["fit", "language", "--base", "home/base", "--text", "home/min.txt", "--out", "min", *LANGUAGE]
    first = run(*command)
    assert first.code == 0
    assert run(*command).code == 2
    Path("min.work").mkdir()
    Path("min.work/.lock").write_text("saving")
    again = run(*command)
    assert (again.code, again.out) == (0, first.out)
    assert sorted(os.listdir(here)) == ["home", "min"]


@pytest.mark.parametrize("service", ["nonsense", "clearml"])  # one is unknown, one is not installed
def test_a_service_to_report_to_that_is_not_there_is_one_line_before_any_step(here, run, service):
    fit = ["fit", "language", "--base", "home/base", "--text", "home/ind.txt", *LANGUAGE, "--out", "new"]
    done = run(*fit, "--set", f"training.report_to=[{service}]")
    assert done.code == 2
    bar, complaint = done.err.strip().splitlines()
    assert " 0/2 " in bar
    assert complaint.startswith(f"deftx: training.report_to = {service}: ")


def test_a_loss_that_is_no_number_stops_and_names_the_step(here, run):
    command = ["fit", "language", "--base", "home/base", "--text", "home/min.txt", "--out", "min", *LANGUAGE]
    done = run(*command, "--set", "training.learning_rate=1e30")
    assert done.code == 2
    assert done.complaint.startswith("deftx: min: phase 1: the ")
    assert "step 1" in done.complaint
    assert "learning rate" in done.complaint
    assert os.listdir(here) == ["home"]


@pytest.mark.parametrize(("bad", "phase"), [(2, 1), (4, 2)])
def test_the_last_good_state_is_kept_when_the_loss_is_no_number(here, run, monkeypatch, bad, phase):
    loss, seen = masked_lm.MaskedLM.loss, []

    def poisoned(self, model, batch):
        seen.append(None)
        return loss(self, model, batch) * (float("nan") if len(seen) == bad else 1.0)

    command = ["fit", "language", "--base", "home/base", "--text", "home/min.txt", "--out", "min", *LANGUAGE]
    with monkeypatch.context() as patch:
        patch.setattr(masked_lm.MaskedLM, "loss", poisoned)
        done = run(*command)
    assert done.code == 2
    assert f"phase {phase}: the loss became nan at step 2; the state of step 1 is kept" in done.complaint
    assert "min.work/last-good.safetensors" in done.complaint
    learnt = load_file("min.work/last-good.safetensors")
    assert all(tensor.isfinite().all() for tensor in learnt.values())
    changed = sum(int((tensor != 0).sum()) for tensor in learnt.values())
    tunable = sum(tensor.numel() for tensor in learnt.values())
    assert changed > 0
    assert phase == 1 or changed <= round(0.05 * tunable)
    assert not Path("min").exists()
    assert run(*command).code == 0
    assert not Path("min.work").exists()


# Wrong input


@pytest.fixture
def bad(here, home):
    """Files that are wrong, each in its way, in the folder to work in."""
    files = {
        "empty.txt": b"",
        "blank.tsv": b"text\tlabel\n \ta\n",
        "latin.txt": "ba be\nbi bo\nré\n".encode("latin-1"),
        "one.txt": b"ba be bi\n",
        "wide.txt": "ba be\n".encode("utf-16"),
        "headless.tsv": b"ba be\tfront\nbi bo\tback\n",
        "columns.tsv": b"review\tstars\nba be\t1\nbi bo\t2\n",
        "unlabelled.tsv": b"text\tlabel\nba be\tfront\nbi bo\t\n",
        "single.tsv": b"text\tlabel\n" + b"ba be\tfront\n" * 40,
        "strange.tsv": b"text\tlabel\nba be\tfront\nbi bo\tmiddle\n",
    }
    for name, content in files.items():
        (here / name).write_bytes(content)
    shutil.copytree(home / "ind", here / "damaged")
    path = here / "damaged" / "vector.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    (here / "taken").mkdir()
    (here / "taken" / "notes.txt").write_text("notes")
    return here


FIT_LANGUAGE = ["fit", "language", "--base", "home/base", "--text", "home/min.txt", "--out", "new", *LANGUAGE]
FIT_TASK = "fit task --base home/base --train home/train.tsv --valid home/valid.tsv --out new".split() + QUICK
TWO = "--train a=home/train.tsv --train b=home/test.tsv --valid a=home/valid.tsv --valid b=home/valid.tsv"
COMPOSE = "compose --base home/base --task home/task --language home/min --out new".split()
EVALUATE = "evaluate --base home/base --task home/task --language min=home/min --test home/test.tsv".split()

WRONG = {
    # command, options in place of its own, what the line says
    "missing text": (FIT_LANGUAGE, "--text nowhere.txt", r"nowhere\.txt does not exist: check the path"),
    "empty text": (FIT_LANGUAGE, "--text empty.txt", r"empty\.txt is empty: it needs at least one line"),
    "no usable line": (FIT_LANGUAGE, "--text blank.tsv", r"blank\.tsv has no usable line: it needs at least one"),
    "one usable line": (FIT_LANGUAGE, "--text one.txt", r"give at least 2"),
    "text not UTF-8": (FIT_LANGUAGE, "--text latin.txt", r"latin\.txt, line 3: not UTF-8: save the file as UTF-8"),
    "wrong text column": (
        FIT_LANGUAGE,
        "--text home/test.tsv --column review",
        r"no column 'review', only 'text', 'label'",
    ),
    "k too large": (FIT_LANGUAGE, "--k 7.6M", r"k = 7\.6M is 7,600,000 entries; give 0 to 5,552"),
    "k of no kind": (FIT_LANGUAGE, "--k 0.5", r"k = 0\.5 is neither a count \(7600000, 7\.6M\) nor a share"),
    "rank 0": (FIT_LANGUAGE, "--rank 0", r"rank 0 is out of range: give an integer above 0 or a share up to 100%"),
    "rank below 0": (FIT_LANGUAGE, "--rank=-3", r"rank -3 is out of range"),
    "rank 0%": (FIT_LANGUAGE, "--rank 0%", r"rank 0% is out of range"),
    "rank above 100%": (FIT_LANGUAGE, "--rank 101%", r"rank 101% is out of range: .* up to 100%"),
    "unknown method": (
        FIT_LANGUAGE,
        "--method lt-sfd",
        r"unknown method 'lt-sfd' \(did you mean 'lt-sft'\?\); known: ",
    ),
    "unknown preset": (FIT_LANGUAGE, "--preset quik", r"unknown preset 'quik' \(did you mean 'quick'\?\)"),
    "unknown setting": (
        FIT_LANGUAGE,
        "--set training.batchsize=4",
        r"'training\.batchsize' \(did you mean 'training\.batch_size'",
    ),
    "wrong type": (FIT_LANGUAGE, "--set training.batch_size=many", r"training\.batch_size = 'many': input should be"),
    "no value": (FIT_LANGUAGE, "--set training.batch_size", r"'training\.batch_size' sets nothing: write KEY=VALUE"),
    "no YAML": (FIT_LANGUAGE, "--set k=[", r"'k=\[' sets nothing"),
    "missing base": (FIT_LANGUAGE, "--base ./nowhere", r"cannot load the model '\./nowhere'"),
    "base not a masked LM": (
        FIT_LANGUAGE,
        "--base home/encoder",
        r"is not a masked language model: its checkpoint lacks",
    ),
    "vector folder exists": (FIT_LANGUAGE, "--out home/min", r"min exists: choose another folder, or .* --force"),
    "folder below a file": (FIT_LANGUAGE, "--out one.txt/new", r"one\.txt is not a folder that you may write to"),
    "missing labels": (FIT_TASK, "--train nowhere.tsv", r"nowhere\.tsv does not exist"),
    "wrong column": (FIT_TASK, "--train columns.tsv", r"columns\.tsv has no column 'text', only 'review', 'stars'"),
    "wrong label column": (FIT_TASK, "--label-column stars", r"train\.tsv has no column 'stars'"),
    "label missing": (FIT_TASK, "--train unlabelled.tsv", r"unlabelled\.tsv, line 3: the label in 'label' is empty"),
    "one label": (FIT_TASK, "--train single.tsv", r"a classifier needs at least two"),
    "label not in training": (FIT_TASK, "--valid strange.tsv", r"label 'middle' is not among .*: back, front"),
    "unknown metric": (
        FIT_TASK,
        "--set training.metric=f1",
        r"unknown metric of classification 'f1'.*; known: accuracy, macro_f1",
    ),
    "unknown kind": (FIT_TASK, "--kind taging", r"unknown task 'taging' \(did you mean 'tagging'\?\); known: class"),
    "data of another kind": (
        FIT_TASK,
        "--kind regression",
        r"train\.tsv, line 2: '(front|back)' in 'label' is not a number",
    ),
    "missing source": (FIT_TASK, "--source nowhere", r"there is no vector at nowhere"),
    "damaged source": (FIT_TASK, "--source damaged", r"vector\.safetensors: the file is damaged"),
    "source of another base": (
        FIT_TASK,
        "--source home/ind --base home/other",
        r"made on .*/base \(.*\), not on .*--any-base",
    ),
    "sources without a name": (
        FIT_TASK,
        "--train home/train.tsv --train home/test.tsv",
        r"--train home/train\.tsv is of which language\? there are several, so write NAME=home/train\.tsv",
    ),
    "source twice": (
        FIT_TASK,
        "--train a=home/train.tsv --train a=home/test.tsv",
        r"--train a=home/test\.tsv is the second one of 'a': give one each",
    ),
    "validation in another language": (
        FIT_TASK,
        "--train ind=home/train.tsv --valid min=home/valid.tsv",
        r"must be of the same languages, but are of ind; min",
    ),
    "validation without a name": (
        FIT_TASK,
        "--train a=home/train.tsv --train b=home/test.tsv",
        r"but are of a, b; one without a name",
    ),
    "source without a vector": (FIT_TASK, f"{TWO} --source a=home/ind", r"but are of a, b; a, b; a"),
    "uneven beyond the data": (FIT_TASK, f"{TWO} --temperature 0.5", r"temperature 0\.5 is below 1; give 1"),
    "task as one of the sources": (
        FIT_TASK,
        f"{TWO} --source a=home/ind --source b=home/task",
        r"the vector given as a language is a task vector",
    ),
    "vectors of another base": (COMPOSE, "--base home/other", r"was made on .*, not on home/other .*: use .*/base"),
    "task for language": (
        COMPOSE,
        "--language home/task",
        r"the vector given as a language is a task vector, for back, front: give one that `deftx fit language` made",
    ),
    "task for source": (FIT_TASK, "--source home/task", r"given as a language is a task vector, for back, front"),
    "vector for base": (COMPOSE, "--base home/min", r"'home/min': it is a vector: give the base that it was made on"),
    "file for base": (COMPOSE, "--base one.txt", r"'one\.txt': it is a file: give the folder that it is in"),
    "base mistyped": (COMPOSE, "--base home/bse", r"'home/bse': there is no such folder; as a hub id: "),
    "folder of vectors": (
        COMPOSE,
        "--task home",
        r"is not a vector: .*; in it are the vectors ind, min, task: name one",
    ),
    "no header line": (
        FIT_TASK,
        "--train headless.tsv",
        r"only 'ba be', 'front': .* write the columns' names as a first",
    ),
    "text in UTF-16": (FIT_LANGUAGE, "--text wide.txt", r"line 1: not UTF-8: .*iconv -f UTF-16 -t UTF-8 wide\.txt"),
    "language for task": (COMPOSE, "--task home/ind", r"has no head: give the vector that `deftx fit task` made"),
    "unknown rule": (COMPOSE, "--rule tise", r"unknown rule 'tise' \(did you mean 'ties'\?\); known: agree, "),
    "unknown option of a rule": (EVALUATE, "--rule ties:cut=1", r"unknown option of ties 'cut'; known: density, "),
    "option out of range": (EVALUATE, "--rule dare:drop=1", r"rule dare: drop = 1: give a share from 0 to below 1"),
    "damaged language": (COMPOSE, "--language damaged", r"vector\.safetensors: the file is damaged"),
    "model folder exists": (COMPOSE, "--out home/model", r"model exists: choose another folder, or .* --force"),
    "test label not in training": (EVALUATE, "--test strange.tsv", r"label 'middle' is not among .*: back, front"),
    "two tests of a language": (
        EVALUATE,
        "--test home/test.tsv --test min=one.txt",
        r"one\.txt is the second one for min",
    ),
    "test of no language": (EVALUATE, "--test ind=home/test.tsv", r"needs a --language ind=VECTOR; languages: min"),
    "test without a name": (
        EVALUATE,
        "--language min=home/min --language home/ind",
        r"test\.tsv is for which language\? write NAME=",
    ),
    "language without a test": (
        EVALUATE,
        "--language a=home/min --language home/ind --test a=home/test.tsv",
        r"add --test ind=FILE",
    ),
    "languages of one name": (
        EVALUATE,
        "--language home/min --language min=home/ind",
        r"two language vectors are named 'min'",
    ),
    "nothing to predict by": (
        ["predict", "home/test.tsv"],
        "--base home/base",
        r"either --model, or --base and --task",
    ),
    "two to predict by": (["predict", "home/test.tsv"], "--model m --task t --base b", r"either --model, or --base"),
    "model not composed": (
        ["predict", "home/test.tsv"],
        "--model home/base",
        r"base is not a model of a task: it lacks",
    ),
    "not a vector": (["inspect"], "taken", r"taken is not a vector: it has no vector\.json"),
    "damaged vector": (["inspect", "home/min"], "damaged", r"vector\.safetensors: the file is damaged"),
    "missing recipe": (["run"], "nowhere.yaml", r"cannot read the recipe nowhere\.yaml"),
}


def with_options(command: list[str], options: str) -> list[str]:
    """A command with `options` in place of those of the same names."""
    words = options.split()
    names = {word for word in words if word.startswith("--")} - {"--set"}
    kept = [word for before, word in zip(["", *command], command, strict=False) if not {before, word} & names]
    return [*kept, *words]


@pytest.mark.parametrize(("command", "wrong", "says"), WRONG.values(), ids=WRONG)
def test_wrong_input_is_one_line_with_code_2_and_changes_no_file(bad, home, run, command, wrong, says):
    before = tree(bad), tree(home)
    done = run(*with_options(command, wrong))
    assert done.code == 2
    assert done.out == ""
    assert re.fullmatch(rf"deftx: .*{says}.*", done.complaint)
    assert done.err.count("phase") == 0, "it was noticed after training had begun"
    assert (tree(bad), tree(home)) == before


def test_a_language_may_be_named_wherever_it_is_given(here, home, run):
    assert run(*with_options(COMPOSE, "--language min=home/min --out named")).code == 0
    assert tree(Path("named")) == tree(home / "model")


def test_more_to_validate_on_than_to_learn_from_is_worth_a_warning(here, home, run):
    labelled(here / "small.tsv", 3, count=8)
    done = run(*with_options(FIT_TASK, "--train small.tsv"), "--source", "home/ind")
    assert done.code == 0
    assert done.complaint == "deftx: warning: --valid has 24 rows and --train 8: are they the wrong way round?"
    assert "without --source" not in done.out


def test_vectors_go_onto_another_base_when_that_is_wanted(here, run):
    for command in (COMPOSE, [*FIT_TASK, "--source", "home/ind"]):
        done = run(*with_options(command, "--base home/other"), "--any-base")
        assert done.code == 0
        assert done.complaint.startswith("deftx: warning: the vector was made on ")
        shutil.rmtree("new")


def test_an_unknown_option_is_refused_with_the_nearest(run):
    done = run("inspect", "x", "--jsn")
    assert (done.code, done.out) == (2, "")
    assert "--json" in done.err


ERRORS = {
    "disk": (OSError(errno.ENOSPC, "No space left on device", "x/y"), "x/y: No space left on device: check"),
    "permission": (PermissionError(errno.EACCES, "Permission denied", "x"), "x: Permission denied: check"),
    "folder": (IsADirectoryError(errno.EISDIR, "Is a directory", "x"), "x: Is a directory: check"),
    "bare": (OSError("no luck"), "no luck: check"),
    "memory": (MemoryError(), "out of memory: lower training.batch_size"),
    "torch's memory": (
        RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried to ..."),
        "out of memory: lower training.batch_size",
    ),
    "GPU memory": (torch.OutOfMemoryError("CUDA\nout"), "out of GPU memory: lower training.batch_size"),
    "weights": (SafetensorError("I/O error"), "cannot read or write weights (I/O error)"),
    "lines": (DeftxError("one\n  two"), "one two"),
}


@pytest.mark.parametrize(("error", "says"), ERRORS.values(), ids=ERRORS)
def test_what_the_machine_refuses_is_one_line_too(run, monkeypatch, error, says):
    def refuse(*_):
        raise error

    monkeypatch.setattr("deftx.storage.files.load", refuse)
    done = run("inspect", "x")
    assert (done.code, done.out) == (2, "")
    assert done.complaint.startswith(f"deftx: {says}")


def test_a_mistake_of_the_program_keeps_its_traceback(monkeypatch):
    def fail(_):
        raise RuntimeError("a bug")

    monkeypatch.setattr("deftx.storage.files.load", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["inspect", "x"])


def test_the_traceback_of_wrong_input_can_be_had(monkeypatch):
    monkeypatch.setenv("DEFTX_TRACEBACK", "1")
    with pytest.raises(DeftxError, match="there is no vector at nowhere"):
        main(["inspect", "nowhere"])


def test_warnings_of_deftx_are_one_line_and_those_of_others_are_not_shown(capsys):
    with console.short_warnings():
        warnings.warn_explicit("two\n lines", UserWarning, "models.py", 1, module="deftx.models")
        warnings.warn_explicit("noise", UserWarning, "x.py", 1, module="transformers.x")
    assert capsys.readouterr().err == "deftx: warning: two lines\n"


# Settings


def test_later_settings_win_and_a_preset_comes_first():
    flags = {"k": "5%", "rank": "100", "method": None}
    changes = ["k=3", "training.batch_size=4", "training.report_to=[wandb]"]
    chosen = given.settings_from(LanguageFit(), LANGUAGE_PRESETS, "quick", flags, changes)
    quick = LANGUAGE_PRESETS["quick"]
    training = quick.training.model_copy(update={"batch_size": 4, "report_to": ("wandb",)})
    assert chosen == quick.model_copy(update={"k": 3, "rank": 100, "training": training})
    assert given.settings_from(LanguageFit(), LANGUAGE_PRESETS, None, {}, []) == LanguageFit()


# The program and the package


def program(*arguments: object) -> subprocess.CompletedProcess[str]:
    typed = [sys.executable, *map(str, arguments)]
    return subprocess.run(typed, capture_output=True, text=True, check=False, timeout=120)


def test_importing_deftx_or_its_command_imports_nothing_heavy():
    heavy = "torch transformers pydantic numpy pandas sklearn matplotlib yaml safetensors".split()
    code = f"import sys, deftx, deftx.cli; print([name for name in {heavy} if name in sys.modules])"
    assert program("-c", code).stdout == "[]\n"


def test_the_program_keeps_results_and_news_apart(home, tmp_path):
    task = ["--base", home / "base", "--train", home / "train.tsv", "--valid", home / "valid.tsv"]
    done = program("-m", "deftx.cli", "fit", "task", *task, "--out", tmp_path / "task", *QUICK)
    assert done.returncode == 0
    alone = "; without --source, so learnt on the base alone"
    assert re.fullmatch(rf".*task: task vector, k = 278, held-out macro_f1 0\.\d+{alone}\n", done.stdout)
    assert all("━" in line for line in done.stderr.splitlines() if line), done.stderr


def test_the_program_refuses_with_one_line_and_code_2(home):
    done = program("-m", "deftx.cli", "inspect", home / "min", home)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"deftx: .* is not a vector: it has no vector\.json; in it are .*\n", done.stderr)


def test_the_command_is_installed_under_its_name(run):
    (script,) = entry_points(group="console_scripts", name="deftx")
    assert script.value == "deftx.cli:main"
    assert run("--version").out == f"{deftx.__version__}\n"


@pytest.mark.parametrize(
    "name",
    [
        *["fit language", "fit task", "compose", "evaluate", "predict", "inspect", "push", "pull", "convert", "delta"],
        *["data trim", "demo", "report", "run", "runs", "prune", "serve", "doctor"],
    ],
)
def test_every_command_explains_itself_with_an_example(run, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "200")
    done = run(*name.split(), "--help")
    assert done.code == 0
    assert f"Example: deftx {name} " in done.out


def test_the_public_names_are_all_there():
    assert sorted(name for names in deftx._HOMES.values() for name in names) == sorted(
        {*deftx.__all__} - {"DeftxError"}
    )
    assert all(callable(getattr(deftx, name)) for name in dir(deftx) if name != "__version__")
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        deftx.lode  # noqa: B018


def test_a_training_loop_of_ones_own_makes_a_vector(home):
    base = home / "base"
    finetuned, model = (AutoModelForMaskedLM.from_pretrained(base) for _ in range(2))
    start = {name: weight.clone() for name, weight in model.state_dict().items()}
    with torch.no_grad():
        for parameter in finetuned.parameters():
            parameter.add_(torch.randn_like(parameter))
    delta = deftx.delta(finetuned, base)
    for same in (deftx.delta(finetuned, model), deftx.delta(finetuned, start)):
        assert same.keys() == delta.keys()
        assert all(torch.equal(same[name], delta[name]) for name in delta)
    assert not any("LayerNorm" in name for name in delta)
    selection = deftx.select(deftx.denoise(delta, rank=0.9), k="2.8%")
    with deftx.sparse_tuning(model, selection) as tuning:
        optimizer = torch.optim.SGD(tuning.parameters(), lr=0.1)
        ids = torch.tensor([[0, 5, 6, 2]])
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    vector = tuning.vector()
    assert vector.k == round(0.028 * 5552)
    moved = deftx.delta(model, start)
    assert all(torch.allclose(moved[name], entries.dense()) for name, entries in vector.tensors.items())
    assert any(tensor.any() for tensor in moved.values())


def test_a_delta_to_another_shape_of_base_is_refused(home, bases):
    with pytest.raises(DeftxError, match="missing in the base, or of another shape"):
        deftx.delta(home / "base", bases("distilbert"))
