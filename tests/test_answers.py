"""Every kind of task over HTTP: what is said is what the composed model says, in the form that is
described."""

import json
from dataclasses import replace

import pytest
from task_examples import EXAMPLES
from tiny import random_vector

import deftx
from deftx.core.provenance import Provenance
from deftx.models.heads import load_task_model
from deftx.models.tokenizers import load_tokenizer
from deftx.tasks.base import names_of, predict
from deftx.tasks.registry import TASKS

pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

from serve_stand_in import StandIn, ask, call, serving

from deftx.serving import Limits
from deftx.serving.answers import ANSWERS

SHAPES = {
    "generation": "qwen",
    "multiple-choice": "modernbert",
}  # not every base has a model for these


def columns(examples):
    """Examples as a request has them."""
    there = {"texts": examples.texts, "pairs": examples.pairs, "parts": examples.parts}
    return {name: column for name, column in there.items() if column}


@pytest.fixture(scope="module", params=TASKS)
def served(request, bases):
    """The port at which a task of some kind is served, the kind, unlabelled examples, and what is
    to be said."""
    kind, task, examples = request.param, TASKS[request.param], EXAMPLES[request.param]
    base, names = bases(SHAPES.get(kind, "xlmr")), names_of(TASKS[request.param], examples)
    model = load_task_model(base, names, task=task)
    language, made = random_vector(model, 1), random_vector(model, 0, ("any",))
    vector = replace(made, head=replace(made.head, labels=names), provenance=Provenance(task=kind))
    examples, tokenizer = replace(examples, labels=None), load_tokenizer(base)
    said = {
        name: predict(task, deftx.compose(base, vector, some), tokenizer, examples, 32)
        for name, some in {"min": [language], None: []}.items()
    }
    with serving(deftx.Switcher(base, vector, {"min": language})) as port:
        yield port, kind, examples, said


def as_json(part):
    """A part of an answer as JSON has it: arcs are lists."""
    return json.loads(json.dumps(part))


@pytest.mark.parametrize("language", ["min", None])
def test_what_is_said_is_what_the_composed_model_says(served, language):
    port, kind, examples, said = served
    status, found = ask(port, language=language, **columns(examples))
    assert status == 200
    for row, answer in zip(found["predictions"], said[language], strict=True):
        assert row["language"] == language
        assert [row[name] for name in TASKS[kind].output_fields] == [
            pytest.approx(part, abs=1e-5) if isinstance(part, float) else as_json(part)
            for part in answer
        ]


def test_the_form_of_what_is_said_is_described(served):
    port, kind, examples, _ = served
    said = ask(port, language="min", **columns(examples))[1]["predictions"][0]
    described = json.loads(call(port, "/openapi.json")[2])
    content = described["paths"]["/predict"]["post"]["responses"]["200"]["content"][
        "application/json"
    ]["schema"]
    form = described["components"]["schemas"][content["$ref"].rpartition("/")[2]]["properties"][
        "predictions"
    ]["items"]
    described_parts = described["components"]["schemas"][form["$ref"].rpartition("/")[2]][
        "properties"
    ]
    assert described_parts.keys() == said.keys() >= {"language", *TASKS[kind].output_fields}


def test_the_kind_of_task_can_be_asked_for(served):
    port, kind, *_ = served
    about = json.loads(call(port, "/languages")[2])
    assert about["kind"] == kind
    assert tuple(about["labels"]) == names_of(TASKS[kind], EXAMPLES[kind])


def test_words_are_what_stands_between_spaces_if_no_others_are_given(bases):
    base, names = bases(), ("X", "Y")
    made = random_vector(load_task_model(base, names, task=TASKS["tagging"]), 0, names)
    with serving(
        deftx.Switcher(base, replace(made, provenance=Provenance(task="tagging")), {})
    ) as port:
        given, parted = ["ba  be\tbi.", ""], [["ba", "be", "bi."], []]
        found = ask(port, given, None)[1]["predictions"]
        assert [row["words"] for row in found] == parted
        assert [len(row["tags"]) for row in found] == [3, 0]
        assert ask(port, given, None, parts=parted)[1]["predictions"] == found
        (others,) = ask(port, given[:1], None, parts=[["ba", "be", "bi", "."]])[1]["predictions"]
        assert (others["words"], len(others["tags"])) == (["ba", "be", "bi", "."], 4)


WRONG = {
    ("multiple-choice", "no options"): (
        {},
        422,
        "the examples have no parts, which this task reads: give `parts`",
    ),
    ("multiple-choice", "none for one"): (
        {"parts": [["a"], []]},
        422,
        "example 2 has no parts: give it at least one",
    ),
    ("multiple-choice", "too many"): (
        {"parts": [["a"] * 2, ["a"] * 2]},
        413,
        "4 options; at most 3 are taken at once",
    ),
    ("question-answering", "no context"): (
        {},
        422,
        "the examples have no pairs, which this task reads: give `pairs`",
    ),
    ("regression", "parts"): (
        {"parts": [["a"], ["a"]]},
        422,
        "have parts, which this task does not read: leave them",
    ),
    ("generation", "pairs"): (
        {"pairs": ["a", "a"]},
        422,
        "have pairs, which this task does not read: leave them out",
    ),
}


@pytest.mark.parametrize(("what", "wrong"), WRONG.items(), ids=map("-".join, WRONG))
def test_what_a_task_cannot_read_is_said_in_one_line(what, wrong):
    switcher, (more, status, says) = StandIn(), wrong
    switcher.kind = what[0]
    with serving(switcher, Limits(texts=3)) as port:
        found, said = ask(port, ["a", "b"], "min", **more)
    assert found == status
    assert says in said["detail"]


def test_there_is_a_form_for_every_kind_of_task():
    assert ANSWERS.keys() == TASKS.keys()
