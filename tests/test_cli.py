"""The commands, one after the other, as a user types them, on a tiny base."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny import random_vector, save_base, sentences
from transformers import pipeline
from typed import COMPOSE, EVALUATE, FIT_TASK, LANGUAGE, QUICK, TWO, tree, with_options
from typer.main import get_command
from typer.testing import CliRunner

import deftx
from deftx.cli import app, arguments
from deftx.config import changed
from deftx.core.provenance import Provenance
from deftx.core.tensors import Head
from deftx.errors import DeftxError
from deftx.models.compose import compose, load_base_with_head
from deftx.models.heads import load_composed, load_task_model
from deftx.models.tokenizers import load_tokenizer
from deftx.tasks.base import evaluate
from deftx.tasks.classification import CLASSIFICATION
from deftx.tasks.registry import TASKS


def test_a_language_vector_has_exactly_k_entries_and_leaves_no_working_files(home):
    vector = deftx.load(home / "min")
    tunable = sum(entries.numel for entries in vector.tensors.values())
    assert vector.k == vector.provenance.k == round(0.05 * tunable)
    assert vector.provenance.kind == "language"
    assert not (home / "min.work").exists()


def test_a_fit_says_in_one_line_what_it_wrote(here, run):
    done = run(
        "fit",
        "language",
        "--base",
        "home/base",
        "--text",
        "home/min.txt",
        "--out",
        "min",
        *LANGUAGE,
    )
    log = deftx.load("min").provenance.log
    first, second = (
        f"{log[phase].best_score:.4f} after phase {phase[-1]}" for phase in ("phase1", "phase2")
    )
    assert done.code == 0
    start, _, course = done.out.partition("held-out loss ")
    assert start == f"min: language vector, k = {deftx.load('min').k:,}, "
    assert course.endswith(f"{first}, {second}\n")


def test_an_encoder_decoder_goes_the_same_way(here, run):
    save_base(here / "mt5", "mt5")
    fitted = ["--base", "mt5", "--train", "home/train.tsv", "--valid", "home/valid.tsv", *QUICK]
    for done in [
        run(
            "fit", "language", "--base", "mt5", "--text", "home/min.txt", "--out", "min", *LANGUAGE
        ),
        run("fit", "task", *fitted, "--source", "min", "--out", "task"),
        run("compose", "--base", "mt5", "--task", "task", "--language", "min", "--out", "model"),
    ]:
        assert (done.code, done.out.splitlines()[1:]) == (0, [])
    done = run(
        "evaluate",
        "--base",
        "mt5",
        "--task",
        "task",
        "--language",
        "min",
        "--test",
        "home/test.tsv",
        "--json",
    )
    data = deftx.read_examples("home/test.tsv")
    model = load_composed("model")
    assert type(model).__name__ == "MT5ForSequenceClassification"
    scores = evaluate(CLASSIFICATION, model, load_tokenizer("model"), data, 16)
    assert scores.items() <= json.loads(done.out)[0].items()


def test_the_same_command_makes_the_same_vector(here, home, run):
    run(
        "fit",
        "language",
        "--base",
        "home/base",
        "--text",
        "home/min.txt",
        "--out",
        "again",
        *LANGUAGE,
    )
    first, second = deftx.load(home / "min"), deftx.load("again")
    assert all(
        torch.equal(first.tensors[n].values, second.tensors[n].values) for n in first.tensors
    )
    assert all(
        torch.equal(first.tensors[n].indices, second.tensors[n].indices) for n in first.tensors
    )


def test_a_task_vector_knows_its_source_and_its_labels(home):
    task = deftx.load(home / "task")
    assert task.head is not None
    assert task.head.labels == ("back", "front")
    assert task.provenance.source.data == deftx.load(home / "ind").provenance.data


def test_a_task_is_learnt_on_several_languages_each_with_its_vector(here, home, run):
    sources = ["--source", "b=home/min", "--source", "a=home/ind", "--temperature", 3]
    done = run(*with_options(FIT_TASK, TWO), *sources)
    assert (done.code, "without --source" in done.out) == (0, False)
    train = {
        name: deftx.read_examples(home / f"{part}.tsv")
        for name, part in {"a": "train", "b": "test"}.items()
    }
    valid = dict.fromkeys(train, deftx.read_examples(home / "valid.tsv"))
    settings = changed(deftx.TaskVectorConfig(), arguments.assigned(["k=5%", *QUICK[3::2]]))
    vectors = {"a": deftx.load("home/ind"), "b": deftx.load("home/min")}
    expected = deftx.fit_task("home/base", train, valid, settings, source=vectors, temperature=3)
    found = deftx.load("new")
    for name, entries in expected.tensors.items():
        assert torch.equal(found.tensors[name].indices, entries.indices)
        assert torch.equal(found.tensors[name].values, entries.values)
    assert list(found.provenance.sources) == ["a", "b"]
    assert len(found.provenance.data.sources) == 4
    assert "without --source" in run(*with_options(FIT_TASK, f"{TWO} --out other")).out


def test_without_validation_data_a_tenth_is_held_out_and_that_is_said(here, home, run):
    base = ["--base", "home/base", "--train", "home/train.tsv", *QUICK]
    done = run("fit", "task", *base, "--out", "new")
    assert done.code == 0
    assert (
        "warning: without --valid, 2 of the rows choose the best step and are not learnt"
        in done.err
    )
    data = deftx.load("new").provenance.data
    assert (data.train, data.valid, data.pairs) == (22, 2, False)
    assert (
        "in --train too"
        in run("fit", "task", *base, "--valid", "home/train.tsv", "--out", "newer").err
    )


def test_a_task_of_pairs_wants_pairs_wherever_it_is_used(here, home, run):
    rows = [line.split("\t") for line in Path("home/train.tsv").read_text().splitlines()[1:]]
    Path("pairs.tsv").write_text(
        "\n".join(["premise\thypothesis\tlabel", *(f"{a}\t{a}\t{b}" for a, b in rows)])
    )
    data = ["--train", "pairs.tsv", "--valid", "pairs.tsv"]
    assert run("fit", "task", "--base", "home/base", *data, *QUICK, "--out", "pairs").code == 0
    vectors = ["--base", "home/base", "--task", "pairs"]
    assert run("compose", *vectors, "--out", "model").code == 0
    for command in (
        ["evaluate", *vectors, "--test", "home/test.tsv"],
        ["predict", *vectors, "home/test.tsv"],
        ["predict", "--model", "model", "home/test.tsv"],
    ):
        done = run(*command)
        assert (
            done.code,
            "learnt from pairs of texts, and these are single ones" in done.complaint,
        ) == (2, True)
    assert run("predict", "--model", "model", "pairs.tsv").code == 0
    mixed = ["--base", "home/base", "--train", "pairs.tsv", "--valid", "home/valid.tsv"]
    assert "learnt from pairs" in run("fit", "task", *mixed, *QUICK, "--out", "mixed").complaint
    both = deftx.merge(task=deftx.load("pairs"), language=[deftx.load("home/min")])
    with pytest.raises(DeftxError, match="learnt from pairs"):
        deftx.tune_scales(
            "home/base", both, deftx.load("home/ind"), deftx.read_examples("home/valid.tsv")
        )
    with pytest.raises(DeftxError, match="learnt from pairs"):
        deftx.Switcher("home/base", deftx.load("pairs"), {}).predict(
            deftx.read_examples("home/test.tsv"), [None] * 24
        )


def test_a_lone_source_may_have_a_name(here, home, run):
    named = "--train ind=home/train.tsv --valid home/valid.tsv --source ind=home/ind"
    assert run(*with_options(FIT_TASK, named)).code == 0
    named, unnamed = (
        load_file("new/vector.safetensors"),
        load_file(home / "task/vector.safetensors"),
    )
    assert named.keys() == unnamed.keys()
    assert all(torch.equal(named[name], unnamed[name]) for name in named)
    assert deftx.load("new").provenance.source == deftx.load(home / "task").provenance.source


def test_a_pipeline_runs_the_composed_model_and_predict_says_the_same(here, home, run):
    texts = sentences(8, seed=5)
    Path("texts.txt").write_text("\n".join(texts) + "\n")
    answers = pipeline("text-classification", model=str(home / "model"))(texts)
    lines = run("predict", "--model", "home/model", "texts.txt", "--json").out.splitlines()
    found = [json.loads(line) for line in lines]
    assert [row["label"] for row in found] == [answer["label"] for answer in answers]
    assert [row["probability"] for row in found] == pytest.approx(
        [answer["score"] for answer in answers], abs=1e-5
    )
    vectors = ["--base", "home/base", "--task", "home/task", "--language", "home/min"]
    assert run("predict", *vectors, "texts.txt", "--json").out.splitlines() == lines


def test_texts_with_capitals_are_told_of_where_the_task_saw_none(here, run):
    vectors, warning = (
        ["--base", "home/base", "--task", "home/task"],
        "warning: the task was learnt from texts without",
    )
    rows = [line.split("\t") for line in Path("home/test.tsv").read_text().splitlines()[1:]]
    titles = [f"{text.title()}\t{label}" for text, label in rows]
    Path("big.tsv").write_text("\n".join(["text\tlabel", *titles]))
    for command in (
        ["predict", *vectors, "big.tsv"],
        ["predict", "--model", "home/model", "big.tsv"],
    ):
        done = run(*command)
        assert (done.code, done.err.count(warning)) == (0, 1)

    # The base's tokenizer knows lower case alone, so that there is nothing to score in capitals
    done = run("evaluate", *vectors, "--test", "big.tsv")
    assert (done.code, done.err.count(warning)) == (2, 1)
    assert "it knows lower case: write the texts so" in done.err
    firsts = [f"{text.capitalize()}\t{label}" for text, label in rows]
    Path("first.tsv").write_text("\n".join(["text\tlabel", *firsts]))
    done = run("evaluate", *vectors, "--test", "first.tsv")
    assert (done.code, done.err.count(warning)) == (0, 1)

    normalize = [
        "data",
        "normalize",
        "big.tsv",
        "--like",
        "home/train.tsv",
        "--case-only",
        "--out",
        "small.tsv",
    ]
    assert run(*normalize).code == 0
    assert deftx.read_examples("small.tsv").texts == deftx.read_examples("home/test.tsv").texts
    assert warning not in run("predict", *vectors, "small.tsv").err
    assert warning not in run("predict", "--model", "home/model", "small.tsv").err


def test_predict_writes_texts_beside_their_answers_where_that_is_wanted(here, run):
    Path("texts.jsonl").write_text('{"text": "ba be"}\n{"text": "bi\\n bo"}\n')
    plain = run("predict", "--model", "home/model", "texts.jsonl").out.splitlines()
    shown = run("predict", "--model", "home/model", "texts.jsonl", "--with-text").out.splitlines()
    assert shown == [
        f"{text}\t{line}" for text, line in zip(["input", "ba be", "bi bo"], plain, strict=True)
    ]
    lines = run(
        "predict", "--model", "home/model", "texts.jsonl", "--with-text", "--json"
    ).out.splitlines()
    assert [json.loads(line)["input"] for line in lines] == ["ba be", "bi\n bo"]


def test_predict_writes_what_was_read_beside_texts_too(bases, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = bases("modernbert")
    vector = random_vector(load_task_model(base, (), task=TASKS["multiple-choice"]), 0, ("any",))
    head = replace(vector.head, labels=())
    deftx.save(replace(vector, head=head, provenance=Provenance(task="multiple-choice")), "task")
    asked = [("ba be", ["bi", "bo bu"]), ("da", ["de", "di", "do"])]
    Path("new.jsonl").write_text(
        "".join(
            json.dumps({"question": text, "options": options}) + "\n" for text, options in asked
        )
    )
    done = run("predict", "--base", base, "--task", "task", "new.jsonl", "--with-text", "--json")
    found = [json.loads(line) for line in done.out.splitlines()]
    assert [(row["input"], row["options"]) for row in found] == asked
    assert [set(row) for row in found] == [{"input", "options", "label", "probability"}] * 2


def test_predict_writes_a_table_whole_and_only_where_nothing_is(here, run):
    shown = run("predict", "--model", "home/model", "home/test.tsv").out
    assert shown.splitlines()[0] == "label\tprobability"
    assert len(shown.splitlines()) == 1 + 24
    assert (
        run("predict", "--model", "home/model", "home/test.tsv", "--out", "new/found.tsv").code == 0
    )
    assert Path("new/found.tsv").read_text() == shown
    Path("new/found.tsv").write_text("mine")
    refused = run("predict", "--model", "home/model", "home/test.tsv", "--out", "new/found.tsv")
    assert (refused.code, Path("new/found.tsv").read_text()) == (2, "mine")
    assert "--force" in refused.complaint
    assert (
        run(
            "predict", "--model", "home/model", "home/test.tsv", "--out", "new/found.tsv", "--force"
        ).code
        == 0
    )
    assert Path("new/found.tsv").read_text() == shown


def test_evaluate_scores_what_compose_makes(here, home, run):
    task, language = deftx.load(home / "task"), deftx.load(home / "min")
    composed, base = (
        compose(home / "base", task, language),
        load_base_with_head(home / "base", task, [language]),
    )
    with deftx.apply_temporarily(base, language, task):
        assert all(
            torch.equal(a, b)
            for a, b in zip(composed.state_dict().values(), base.state_dict().values(), strict=True)
        )
    scores = evaluate(
        CLASSIFICATION,
        composed,
        load_tokenizer(home / "base"),
        deftx.read_examples(home / "test.tsv"),
        16,
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
    assert all(
        torch.equal(weight, saved.state_dict()[name])
        for name, weight in expected.state_dict().items()
    )
    assert not all(
        torch.equal(weight, saved.state_dict()[name]) for name, weight in plain.state_dict().items()
    )
    (row,) = json.loads(run(*EVALUATE, "--rule", rule, "--json").out)
    scores = evaluate(
        CLASSIFICATION,
        expected,
        load_tokenizer(home / "base"),
        deftx.read_examples(home / "test.tsv"),
        16,
    )
    assert {name: row[name] for name in scores} == scores
    by_vectors = run("predict", "home/test.tsv", *COMPOSE[1:7], "--rule", rule).out
    assert by_vectors == run("predict", "home/test.tsv", "--model", "new").out


def test_of_several_tasks_the_first_ones_head_is_used(here, home, run):
    task, language = deftx.load(home / "task"), deftx.load(home / "min")
    second = replace(
        -0.5 * task, head=Head({n: -t for n, t in task.head.tensors.items()}, task.head.labels)
    )
    deftx.save(second, "second")
    assert run(*COMPOSE, "--task", "second").code == 0
    saved = load_composed("new")
    expected = compose(home / "base", [task, replace(second, head=None)], language)
    assert all(
        torch.equal(weight, saved.state_dict()[name])
        for name, weight in expected.state_dict().items()
    )
    (row,) = json.loads(run(*EVALUATE, "--task", "second", "--json").out)
    scores = evaluate(
        CLASSIFICATION,
        expected,
        load_tokenizer(home / "base"),
        deftx.read_examples(home / "test.tsv"),
        16,
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
        assert facts["fingerprint"] == vector.provenance.base_fingerprint
        assert set(facts["density"]) == {"embeddings", "encoder.layer.0", "encoder.layer.1"}
    shown = run("inspect", "home/min", "home/ind").out
    assert "home/min" not in shown  # whole paths make headings that are broken within words
    shown = run("inspect", "home/min").out
    assert all(
        word in shown
        for word in ("deftx", "90%", "encoder.layer.1", vectors[0].provenance.base_fingerprint[:12])
    )
    assert "overlap" not in shown


def test_words_are_tagged_from_the_first_command_to_the_last(here, run):
    """The vector and the model note the task, which nothing but the first command is told."""
    sentence = "".join(
        f"{word}\t{'FRONT' if word[-1] in 'ei' else 'BACK'}\n" for word in "ba be bi bo".split()
    )
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
    found = [
        json.loads(line)
        for line in run("predict", "--model", "model", "words.tsv", "--json").out.splitlines()
    ]
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
    assert deftx.load("min").provenance.data == deftx.load(home / "ind").provenance.data
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
        "contamination": "ignore",
        "language": {"training": {**settings, "min_steps": 0}},
        "task": {"training": settings},
        "variants": {"LT-SFT": {"language": {"method": "lt-sft"}, "task": {"method": "lt-sft"}}},
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    rows = json.loads(run("run", "recipe.yaml", "--set", "seeds=[3]", "--json").out)
    assert [(row["variant"], row["seed"], row["language"]) for row in rows] == [
        ("LT-SFT", 3, "min")
    ]
    again = run("run", "recipe.yaml", "--set", "seeds=[3]")
    assert again.out == Path("runs/recipe/results.md").read_text()
    assert "phase" not in again.err


def test_demo_hands_on_what_was_typed(run, monkeypatch):
    calls = []
    stub = SimpleNamespace(demo=lambda *arguments: calls.append(arguments))
    monkeypatch.setitem(sys.modules, "deftx.experiments.demo.run", stub)
    assert run("demo").code == run("demo", "--out", "~/x", "--seed", "3", "--force").code == 0
    assert calls == [(Path("demo"), 0, False), (Path("~/x").expanduser(), 3, True)]


def test_help_shows_every_bracket_of_its_texts(monkeypatch):
    """Rich reads `[@REVISION]` as markup unless it is escaped."""
    monkeypatch.setenv("COLUMNS", "300")
    commands = [("deftx", get_command(app), [])]
    bracketed = 0
    for name, command, path in commands:
        for inner, child in getattr(command, "commands", {}).items():
            commands.append((f"{name} {inner}", child, [*path, inner]))
        shown = CliRunner().invoke(app, [*path, "--help"]).output
        texts = [command.help, command.epilog, *(getattr(p, "help", "") for p in command.params)]
        for word in " ".join(text or "" for text in texts).split():
            if "[" in word:
                bracketed += 1
                assert word.replace("\\[", "[").strip("`") in shown, name
    assert bracketed > 10


def test_merge_saves_the_sum_of_vectors_as_one(here, home, run):
    task, language = deftx.load(home / "task"), deftx.load(home / "min")
    vectors = ["--task", "home/task", "--language", "home/min"]
    done = run("merge", *vectors, "--out", "sum")
    merged = deftx.load("sum")
    assert done.code == 0
    assert done.out == f"sum: one vector, k = {merged.k:,}, from home/task, home/min\n"
    expected = deftx.merge(task=task, language=language)
    assert merged.head.labels == task.head.labels
    assert all(
        merged.tensors[name].to_dense().equal(entries.to_dense())
        for name, entries in expected.tensors.items()
    )
    refused = run("merge", *vectors, "--out", "sum")
    assert (refused.code, "--force" in refused.complaint) == (2, True)
    assert run("merge", *vectors, "--rule", "ties:density=0.5", "--out", "ties").code == 0
    assert deftx.load("ties").k < merged.k
    nothing = run("merge", "--out", "none")
    assert (nothing.code, "nothing to combine" in nothing.complaint) == (2, True)
