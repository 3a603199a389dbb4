"""Scales from the source's validation data: the best pair of the grid, and the same one each
time."""

import pytest
import tiny
from vector_examples import LABELS, vector

from deftx.data.examples import Examples
from deftx.errors import DeftxError
from deftx.models import scales as module
from deftx.models.compose import compose
from deftx.models.scales import tune_scales
from deftx.models.tokenizers import load_tokenizer
from deftx.tasks.base import evaluate
from deftx.tasks.classification import CLASSIFICATION

TEXTS = tiny.sentences(30, 4)
VALID = Examples(TEXTS, None, [LABELS[len(text) % len(LABELS)] for text in TEXTS])


@pytest.mark.parametrize("rule", ["scaled", "ties:density=0.9"])
def test_the_best_pair_scores_as_its_composed_model_does_and_as_no_other_exceeds(bases, rule):
    task, source = vector(bases(), 1, with_head=True), vector(bases(), 2)
    found = tune_scales(bases(), task, source, VALID, [0.5, 2.0], rule=rule)
    assert {scale for pair in found.scores for scale in pair} == {0.5, 1.0, 2.0}
    assert len(found.scores) == 9
    assert found.score == max(found.scores.values()) == found.scores[found.language, found.task]
    model = compose(bases(), task, source, rule=found.rule)
    assert (
        evaluate(CLASSIFICATION, model, load_tokenizer(bases()), VALID, 32)["macro_f1"]
        == found.score
    )
    plain = compose(bases(), task, source, rule=rule)
    assert (
        evaluate(CLASSIFICATION, plain, load_tokenizer(bases()), VALID, 32)["macro_f1"]
        == found.scores[1.0, 1.0]
    )
    assert tune_scales(bases(), task, source, VALID, [2.0, 1.0, 0.5], rule=rule) == found


@pytest.mark.parametrize(
    ("score", "best"),
    [
        (lambda language, task: 0.5, (1.0, 1.0)),
        (lambda language, task: float(language != 1), (0.8, 1.0)),
        (lambda language, task: float(task > 1), (1.0, 1.2)),
        (lambda language, task: language - task, (1.4, 0.8)),
    ],
)
def test_of_equal_scores_the_pair_nearest_to_one_counts_and_then_the_smaller(
    bases, monkeypatch, score, best
):
    task, source = vector(bases(), 1, with_head=True), vector(bases(), 2)
    tried = iter(
        [(language, task) for language in (0.8, 1.0, 1.2, 1.4) for task in (0.8, 1.0, 1.2, 1.4)]
    )
    monkeypatch.setattr(
        module, "evaluate", lambda *args: {"macro_f1": score(*next(tried)), "accuracy": 0.0}
    )
    found = tune_scales(bases(), task, source, VALID, [1.4, 0.8, 1.2])
    assert (found.language, found.task) == best


def test_what_cannot_be_tuned_is_said(bases):
    task, source = vector(bases(), 1, with_head=True), vector(bases(), 2)
    with pytest.raises(DeftxError, match="unknown option of sum 'language_scale'"):
        tune_scales(bases(), task, source, VALID, rule="sum")
    with pytest.raises(DeftxError, match="unknown metric 'f1'"):
        tune_scales(bases(), task, source, VALID, metric="f1")
    with pytest.raises(DeftxError, match="the task vector has no head"):
        tune_scales(bases(), source, task, VALID)
