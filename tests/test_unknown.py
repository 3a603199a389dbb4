"""Text that a tokenizer does not know is told of wherever text is read, and refused where there is
no sense in it."""

import pytest
import tiny
from fit_examples import TASK, VALID

import deftx
from deftx.data.examples import Examples
from deftx.data.unknown_text import TEXTS_SAMPLED, check_known, unknown_share
from deftx.errors import DeftxError
from deftx.models.heads import load_task_model
from deftx.models.limits import longest_input
from deftx.models.tokenizers import load_tokenizer
from deftx.tasks.base import evaluate, predict
from deftx.tasks.registry import TASKS

FOREIGN = ["ξένο κείμενο", "και άλλο"] * 6
LABELS = ["a", "b"] * 6
TOKENIZER = tiny.tokenizer()
KIND = TASKS["classification"]


@pytest.fixture(scope="module")
def reading(bases):
    model, tokenizer = load_task_model(bases(), ("a", "b")), load_tokenizer(bases())
    return KIND, model, tokenizer, longest_input(model, tokenizer)


def test_a_task_is_not_learnt_from_or_chosen_on_unknown_text(bases):
    unknown = Examples(FOREIGN, labels=LABELS)
    known = Examples(tiny.sentences(12), labels=LABELS)
    for train, valid in [(unknown, VALID), (known, unknown)]:
        with pytest.raises(
            DeftxError, match="100% of the text is unknown to the base's tokenizer, such as ξένο"
        ):
            deftx.fit_task(bases(), train, valid, TASK)


def test_a_writer_does_not_learn_to_write_unknown_text(bases):
    train = Examples(tiny.sentences(12), labels=FOREIGN)
    with pytest.raises(DeftxError, match="of the text is unknown"):
        deftx.fit_task(bases("mt5"), train, train, deftx.TaskVectorConfig(task="generation"))


def test_unknown_text_is_not_scored_and_half_unknown_text_with_a_warning(reading):
    kind, model, tokenizer, length = reading
    with pytest.raises(DeftxError, match="100% of the text is unknown"):
        evaluate(kind, model, tokenizer, Examples(FOREIGN, labels=LABELS), length)
    half = Examples(["ba be ξένο"] * 12, labels=LABELS)
    with pytest.warns(UserWarning, match="50% of the text is unknown"):
        evaluate(kind, model, tokenizer, half, length)


def test_unknown_text_is_answered_with_a_warning(reading):
    kind, model, tokenizer, length = reading
    with pytest.warns(UserWarning, match="100% of the text is unknown"):
        assert len(predict(kind, model, tokenizer, Examples(FOREIGN), length)) == 12


def test_capitals_that_a_tokenizer_of_lower_case_does_not_know_are_told_of_as_such(reading):
    kind, model, tokenizer, length = reading
    with pytest.raises(DeftxError, match="such as BA: it knows lower case: write the texts so"):
        evaluate(kind, model, tokenizer, Examples(["BA BE"] * 12, labels=LABELS), length)
    with pytest.warns(UserWarning, match="50% of the text .* it knows lower case"):
        evaluate(kind, model, tokenizer, Examples(["BA be"] * 12, labels=LABELS), length)
    with pytest.raises(DeftxError, match="is it in a script that the base knows"):
        evaluate(kind, model, tokenizer, Examples(["ΞΈΝΟ"] * 12, labels=LABELS), length)


def test_second_texts_and_words_are_looked_at_too(reading):
    kind, model, tokenizer, length = reading
    pairs = Examples(["ba"] * 12, pairs=FOREIGN)
    with pytest.warns(UserWarning, match="of the text is unknown"):
        predict(kind, model, tokenizer, pairs, length)


def test_of_many_texts_some_from_all_over_are_looked_at():
    with pytest.warns(UserWarning, match="50% of the text"):
        check_known(["babe"] * 0 + ["ba ξέ"] * 3 * TEXTS_SAMPLED, TOKENIZER, refused_from=None)
    with pytest.warns(UserWarning, match="33% of the text"):
        check_known(
            ["ba"] * 2 * TEXTS_SAMPLED + ["ξέ"] * TEXTS_SAMPLED, TOKENIZER, refused_from=0.5
        )


@pytest.mark.parametrize("texts", [[], [""], ["ba be"]])
def test_nothing_is_said_of_texts_that_are_known_or_empty(texts):
    assert unknown_share(texts, TOKENIZER) == (0.0, "")
    check_known(texts, TOKENIZER, refused_from=0.5)
