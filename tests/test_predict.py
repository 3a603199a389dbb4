"""`deftx predict` writes while it answers and keeps what is finished when it is stopped; one label
for everything is pointed out."""

import errno
import json
from pathlib import Path

import pytest
from tiny import sentences
from tiny_run import labelled
from typed import FIT_TASK

from deftx.cli import actions
from deftx.experiments.benefit import advice_on_answers

MODEL = ["predict", "--model", "home/model", "texts.txt"]


@pytest.fixture
def texts(here) -> list[str]:
    lines = sentences(10, 3)
    Path("texts.txt").write_text("\n".join(lines) + "\n")
    return lines


@pytest.fixture
def in_threes(monkeypatch) -> None:
    monkeypatch.setattr(actions, "ANSWERED_AT_ONCE", 3)


def stop_at(monkeypatch, number: int, error: BaseException) -> None:
    """Have the chunk of this number, counted from 1, raise an error."""
    predict_in_chunks = actions.predict_in_chunks

    def stopping(*arguments):
        for count, chunk in enumerate(predict_in_chunks(*arguments), 1):
            if count == number:
                raise error
            yield chunk

    monkeypatch.setattr(actions, "predict_in_chunks", stopping)


@pytest.mark.parametrize("options", [[], ["--json"], ["--json", "--with-text"], ["--with-text"]])
def test_the_size_of_chunks_changes_no_line(texts, run, monkeypatch, options):
    whole = run(*MODEL, *options).out.splitlines()
    monkeypatch.setattr(actions, "ANSWERED_AT_ONCE", 3)
    in_chunks = run(*MODEL, *options).out.splitlines()
    assert len(in_chunks) == 10 + ("--json" not in options)
    if "--json" not in options:
        assert in_chunks == whole
        return
    for line, expected in zip(map(json.loads, in_chunks), map(json.loads, whole), strict=True):
        assert line.pop("probability") == pytest.approx(expected.pop("probability"), abs=1e-6)
        assert line == expected


def test_each_chunk_is_written_before_the_next_one_is_answered(texts, in_threes, run, monkeypatch):
    written = []
    predict_in_chunks = actions.predict_in_chunks

    def watched(*arguments):
        for chunk in predict_in_chunks(*arguments):
            part = Path("found.tsv.part")
            written.append(len(part.read_text().splitlines()) if part.exists() else 0)
            yield chunk

    monkeypatch.setattr(actions, "predict_in_chunks", watched)
    assert run(*MODEL, "--out", "found.tsv").code == 0
    assert written == [0, 4, 7, 10]
    assert len(Path("found.tsv").read_text().splitlines()) == 11
    assert not Path("found.tsv.part").exists()


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")])
def test_what_is_finished_is_kept_when_predict_ends_early(texts, in_threes, run, monkeypatch, stop):
    whole = run(*MODEL).out.splitlines()
    stop_at(monkeypatch, 3, stop)
    Path("found.tsv").write_text("mine")
    done = run(*MODEL, "--out", "found.tsv", "--force")
    assert done.code in (130, 2)
    assert "deftx: 6 of 10 predictions are finished and kept in found.tsv.part" in done.err
    assert Path("found.tsv.part").read_text().splitlines() == whole[:7]
    assert Path("found.tsv").read_text() == "mine"


def test_nothing_is_left_when_predict_ends_before_its_first_answer(texts, run, monkeypatch):
    stop_at(monkeypatch, 1, KeyboardInterrupt())
    assert run(*MODEL, "--out", "new/found.tsv").code == 130
    assert list(Path("new").iterdir()) == []


def test_long_input_shows_a_bar_and_short_input_none(texts, run, monkeypatch):
    assert "predict" not in run(*MODEL).err
    monkeypatch.setattr(actions, "ANSWERED_AT_ONCE", 3)
    assert "predict ━" in run(*MODEL, "--out", "found.tsv").err


@pytest.mark.parametrize(
    ("answers", "expected", "advised"),
    [
        (["a"] * 20, None, True),
        (["a"] * 19, None, False),
        (["a"] * 98 + ["b"] * 2, None, True),
        (["a"] * 97 + ["b"] * 3, None, False),
        (["a"] * 30, ["a"] * 30, False),
        (["a"] * 30, ["a"] * 15 + ["b"] * 15, True),
        (["a"] * 30, ["b"] * 30, True),
        ([["O", "O"]] * 10, None, True),
        ([["O", "B-PER"]] * 10, None, False),
        ([], None, False),
    ],
)
def test_one_label_for_everything_is_pointed_out(answers, expected, advised):
    advice = advice_on_answers(answers, expected)
    assert bool(advice) == advised
    if advised:
        assert advice[0].startswith(
            f"{(answers[0] if answers[0] != ['O', 'O'] else 'O')!r} is the answer in "
        )


def test_predict_evaluate_and_fit_say_that_all_answers_are_one_label(here, run, monkeypatch):
    said = "'good' is the answer in 100% of "
    answer = actions.answers_to_labelled

    monkeypatch.setattr(
        actions,
        "answers_to_labelled",
        lambda *arguments: [("good", 0.9)] * len(answer(*arguments)),
    )
    monkeypatch.setattr(
        actions,
        "predict_in_chunks",
        lambda task, model, tokenizer, examples, *rest: iter([[("good", 0.9)] * len(examples)]),
    )
    labelled(Path("test.tsv"), 2, count=24)
    vectors = ["--base", "home/base", "--task", "home/task"]
    evaluated = run("evaluate", *vectors, "--language", "min=home/min", "--test", "test.tsv")
    assert f"deftx: warning: min: {said}24 cases" in evaluated.err
    assert f"deftx: warning: {said}24 cases" in run("predict", *vectors, "test.tsv").err
    assert f"deftx: {said}24 cases" in run(*FIT_TASK).err
