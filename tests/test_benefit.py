"""Did it help? What is said of vectors without labels of their language, and what is called out."""

import json
from dataclasses import replace
from math import log

import pytest
import torch
from tiny import save_base, sentences
from typed import LANGUAGE

import deftx
from deftx.cli.actions import language_losses
from deftx.config import LanguageTrainingConfig
from deftx.core.apply import apply
from deftx.core.vector import SparseVector
from deftx.experiments.benefit import (
    Answers,
    Course,
    advice_on,
    answers_by_language,
    benefits,
    course_of,
    sample_of,
)
from deftx.models.loading import load_language_model
from deftx.models.tokenizers import load_tokenizer
from deftx.objectives.registry import language_of


@pytest.mark.parametrize(
    ("start", "phase1", "phase2", "says"),
    [
        (3.0, 2.0, 2.2, []),
        (3.0, 2.0, 2.5, []),  # half is kept
        (3.0, 2.0, 2.51, ["phase 2 kept only 49% of what phase 1 gained"]),
        (3.0, 2.98, 2.99, ["the vector did next to nothing"]),
        (3.0, 3.0, 3.0, ["the vector did next to nothing"]),
        (3.0, 2.0, 3.1, ["it is worse than before the training: lower training.learning_rate"]),
        (3.0, 2.0, None, []),  # without phase 2
        (3.0, 3.2, None, ["it is worse than before the training"]),
        (3.0, None, 2.5, []),  # without phase 1
        (3.0, None, 3.1, ["it is worse than before the training"]),
        (None, 2.0, 2.9, []),  # vectors of older versions
    ],
)
def test_what_went_wrong_with_a_loss_is_called_out(start, phase1, phase2, says):
    found = advice_on(Course("loss", start, phase1, phase2))
    assert len(found) == len(says)
    assert all(line.startswith(said) for line, said in zip(found, says, strict=True))


def test_a_score_is_better_the_larger_it_is_and_a_squared_error_the_smaller():
    assert advice_on(Course("macro_f1", 0.3, 0.8, 0.8)) == []
    assert advice_on(Course("macro_f1", 0.3, 0.8, 0.2))[0].startswith("it is worse")
    assert advice_on(Course("mse", 0.8, 0.2, 0.3)) == []
    assert advice_on(Course("mse", 0.8, 0.2, 0.9))[0].startswith("it is worse")
    assert advice_on(None) == []


def test_a_course_is_one_line_of_what_is_known():
    assert str(Course("loss", 3, 2, 2.25)) == (
        "held-out loss 3.0000 before, 2.0000 after phase 1, 2.2500 after phase 2"
    )
    assert str(Course("loss", 3, None, 2.25)) == (
        "held-out loss 3.0000 before, 2.2500 after the training"
    )
    assert str(Course("macro_f1", None, 0.5, None)) == "held-out macro-F1 0.5000 after phase 1"


def test_the_course_of_a_vector_is_that_of_its_log(home):
    vector = deftx.load(home / "min")
    course = course_of(vector)
    phases = vector.provenance.log
    assert (course.metric, course.phase1) == ("loss", phases["phase1"].best_score)
    assert (course.end, course.start) == (
        phases["phase2"].best_score,
        phases["phase1"].start_score,
    )
    assert course_of(deftx.load(home / "task")).metric == "macro_f1"
    assert course_of(SparseVector({})) is None
    log = {**phases, "phase1": replace(phases["phase1"], start_score=99.0)}
    with_start = replace(vector, provenance=replace(vector.provenance, log=log))
    assert course_of(with_start).start == 99.0


@pytest.mark.parametrize(
    ("labels", "without", "trained_share", "says"),
    [
        ({"a": 60, "b": 40}, {"a": 50, "b": 50}, 0.5, []),
        (
            {"a": 99, "b": 1},
            {"a": 50, "b": 50},
            0.5,
            ["the answer is 'a' to 99% of the texts: take half of the vector"],
        ),
        (
            {"a": 100},
            {"a": 99, "b": 1},
            0.5,
            ["the answer is 'a' to 100% of the texts: look at the task first"],
        ),
        ({"a": 100}, {"a": 99, "b": 1}, 0.99, []),  # so it is in the training data
    ],
)
def test_one_label_for_everything_is_called_out(labels, without, trained_share, says):
    found = Answers(100, 0.9, labels, without).advice(trained_share)
    assert len(found) == len(says)
    assert all(line.startswith(said) for line, said in zip(found, says, strict=True))


def test_a_vector_that_changes_no_answer_is_called_out():
    found = Answers(10, 1.0, {"a": 5, "b": 5}, {"a": 5, "b": 5}).advice(0.5)
    assert [line.partition(":")[0] for line in found] == ["the vector changes no answer"]


def test_answers_are_those_of_the_composed_models(home):
    base, task, language = (
        str(home / "base"),
        deftx.load(home / "task"),
        50 * deftx.load(home / "min"),
    )
    texts = sentences(40, 7)
    found = answers_by_language(base, task, {"min": language, "none": language}, {"min": texts})
    assert found.keys() == {"min"}
    labels = {}
    for name, vectors in {"with": [language], "without": []}.items():
        model = deftx.compose(base, task, vectors)
        batch = load_tokenizer(base)(
            texts, padding=True, truncation=True, max_length=16, return_tensors="pt"
        )
        with torch.no_grad():
            numbers = model(**batch).logits.argmax(-1).tolist()
        labels[name] = [model.config.id2label[number] for number in numbers]
    alike = sum(one == other for one, other in zip(labels["with"], labels["without"], strict=True))
    answers = found["min"]
    assert (answers.texts, answers.agreement) == (40, alike / 40)
    assert sum(answers.labels.values()) == 40
    assert answers.labels == {label: labels["with"].count(label) for label in set(labels["with"])}
    assert answers.labels_without == {
        label: labels["without"].count(label) for label in set(labels["without"])
    }


def test_what_is_said_without_labels(home):
    base, task, language = str(home / "base"), deftx.load(home / "task"), deftx.load(home / "min")
    train = deftx.read_examples(home / "train.tsv")
    known, strange = sentences(20, 3), ["@ # ! ?", "ba"] * 10
    found = benefits(
        base, task, {"min": language, "odd": language}, {"odd": strange, "min": known}, {}, train
    )
    assert [one.language for one in found] == ["min", "odd"]
    assert found[0].unknown == 0
    assert found[1].unknown == pytest.approx(4 / 6)
    assert found[0].overlap == deftx.overlap(task, language)
    assert found[0].answers is None
    assert any("does not know 67% of the text" in line for line in found[1].advice())
    assert not any("does not know" in line for line in found[0].advice())
    assert f"{found[0].overlap:.0%} of its places are the task's too" in found[0].facts()


def test_a_sample_is_from_everywhere_and_no_larger_than_wanted():
    assert sample_of(list(range(10)), 10) == list(range(10))
    assert sample_of(list(range(11)), 10) == [0, 2, 4, 6, 8, 10]
    assert sample_of([], 10) == []
    assert all(len(sample_of(list(range(size)), 7)) <= 7 for size in range(60))


@pytest.mark.parametrize("shape", ["xlmr", "qwen", "t5"])
def test_the_loss_of_a_base_with_a_vector_is_that_of_the_model_with_it(shape, tmp_path):
    base = str(save_base(tmp_path / shape, shape))
    training = LanguageTrainingConfig(
        learning_rate=1e-2, max_steps=100, length=16, evaluate_every=20, lm_head="frozen"
    )
    vector = deftx.fit_language(
        base, sentences(60), deftx.LanguageVectorConfig(k="20%", training=training)
    )
    lines = sentences(50, 5)
    alone, vectored = language_losses(
        base, {"min": vector}, lines, None, ignore_base_mismatch=False
    )
    model, tokenizer = load_language_model(base), load_tokenizer(base)
    objective = language_of(model.config).objective(
        lines, tokenizer, training, 16, 0, held_out=lines
    )
    with torch.no_grad():
        before = objective.validate(model.eval(), 8)["loss"]
        apply(model, vector)
        after = objective.validate(model, 8)["loss"]
    assert (alone["language"], vectored["language"]) == (None, "min")
    assert (alone["loss"], vectored["loss"]) == pytest.approx((before, after), abs=1e-6)
    assert vectored["loss"] < alone["loss"]  # the text has the pattern that was learnt
    tokens = sum(len(tokenizer(line, add_special_tokens=False)["input_ids"]) for line in lines)
    expected = before * tokens / sum(map(len, lines)) / log(2)
    assert alone["bits_by_character"] == pytest.approx(expected, abs=1e-6)


def test_the_command_holds_vectors_against_the_base_on_any_text(here, run):
    (here / "new.txt").write_text("\n".join(sentences(30, 9)))
    command = (
        "evaluate-language --base home/base --language min=home/min --language home/ind"
        " --text new.txt"
    ).split()
    rows = json.loads(run(*command, "--json").out)
    assert [row["language"] for row in rows] == [None, "min", "ind"]
    table = run(*command).out.splitlines()
    assert table[1].split() == [
        "(none)",
        f"{rows[0]['loss']:.4f}",
        f"{rows[0]['bits_by_character']:.3f}",
    ]
    assert f"{rows[1]['loss'] - rows[0]['loss']:+.4f}" in table[2]
    alone = json.loads(run(*command[:3], "--text", "new.txt", "--json").out)
    assert [row["language"] for row in alone] == [None]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--language home/task --text home/min.txt", "is a task vector"),
        ("--base home/other --language home/min --text home/min.txt", "the vector was made on"),
        ("--base home/encoder --text home/min.txt", "is not a masked language model"),
        ("--text nothing.txt", "nothing.txt"),
        (
            "--language min=home/min --language min=home/ind --text home/min.txt",
            "two language vectors are named 'min'",
        ),
        ("--language home/min", "Missing option '--text'"),
    ],
)
def test_what_is_wrong_with_evaluate_language_is_one_line(here, run, options, says):
    words = options.split()
    base = [] if "--base" in words else ["--base", "home/base"]
    done = run("evaluate-language", *base, *words)
    assert done.code == 2
    assert says in done.complaint


def test_a_fit_that_did_nothing_is_called_out_with_what_to_try(here, run, monkeypatch):
    monkeypatch.setattr(
        "deftx.experiments.benefit.course_of", lambda vector: Course("loss", 4.0, 3.99, 3.995)
    )
    done = run(
        "fit",
        "language",
        "--base",
        "home/base",
        "--text",
        "home/min.txt",
        "--out",
        "new",
        *LANGUAGE,
    )
    assert done.code == 0
    assert "held-out loss 4.0000 before, 3.9900 after phase 1, 3.9950 after phase 2" in done.out
    assert "deftx: the vector did next to nothing: train longer (training.max_steps)" in done.err
