"""Letters of the training texts changed at random: how many words, how far, and what is left as it
is."""

from collections import Counter

import pytest
import regex
import tiny
from fit_examples import TASK, TRAIN, VALID, same
from hypothesis import given
from hypothesis import strategies as st
from task_examples import EXAMPLES

from deftx.config import LATER, TaskTrainingConfig, changed
from deftx.data.misspelling import misspeller
from deftx.errors import DeftxError
from deftx.experiments.baselines import madx
from deftx.experiments.baselines.config import MadxTaskConfig
from deftx.fit import fit_task
from deftx.tasks.base import names_of, supervised
from deftx.tasks.registry import TASKS

SOME = ["", "a", "Ibu saya, 2024!", "पानी मीठा", "cafe\u0301"]
TEXT = st.text(st.characters(codec="utf-8"), max_size=60) | st.sampled_from(SOME)
NOISY = changed(TASK, {"training": {"noise": 0.5}})


def words(text):
    return regex.findall(r"[\p{L}\p{M}]{2,}", text)


def one_letter_apart(word, other):
    """Whether a letter put in, left out or replaced (or by chance itself again) makes `other` of
    `word`."""
    ends = {word[:at] + word[at + 1 :] for at in range(len(word))}
    if len(other) == len(word):
        return any(
            word[:at] + word[at + 1 :] == other[:at] + other[at + 1 :] for at in range(len(word))
        )
    return other in ends or word in {other[:at] + other[at + 1 :] for at in range(len(other))}


@given(st.lists(TEXT, min_size=1, max_size=5), st.integers(0, 3))
def test_every_word_and_nothing_else_changes_by_one_letter_where_the_share_is_one(texts, seed):
    spell = misspeller(texts, 1.0, seed)
    for text in texts:
        found = regex.split(r"([\p{L}\p{M}]{2,})", text)
        pattern = "".join(
            r"([\p{L}\p{M}]+)" if odd % 2 else regex.escape(part) for odd, part in enumerate(found)
        )
        changed_words = regex.fullmatch(pattern, spelt := spell(text), regex.DOTALL)
        assert changed_words, (text, spelt)
        assert all(map(one_letter_apart, found[1::2], changed_words.groups()))


@given(st.lists(TEXT, min_size=1, max_size=3))
def test_a_share_of_nought_changes_nothing(texts):
    assert list(map(misspeller(texts, 0.0, 0), texts)) == texts


def test_the_share_of_words_is_the_one_asked_for_and_each_change_is_as_likely():
    spell = misspeller(["abcdefgh"], 0.25, 0)
    found = Counter(
        len(word) - 8 if word != "qqqqqqqq" else "same"
        for word in words(spell("qqqqqqqq " * 12_000))
    )
    assert found["same"] / 12_000 == pytest.approx(0.75, abs=0.02)
    for change in (-1, 0, 1):
        assert found[change] / 3_000 == pytest.approx(1 / 3, abs=0.05)


def test_letters_are_drawn_as_often_as_they_occur_and_from_nothing_else():
    spell = misspeller(["aaab 9 _!"], 1.0, 0)
    drawn = Counter(letter for letter in spell("qqqq " * 3_000) if letter not in "q ")
    assert drawn.keys() == {"a", "b"}
    assert drawn["a"] / drawn.total() == pytest.approx(0.75, abs=0.03)


def test_the_seed_decides():
    texts = tiny.sentences(20)
    one, again, other = (
        [misspeller(texts, 0.3, seed)(text) for text in texts] for seed in (1, 1, 2)
    )
    assert one == again != other


@pytest.mark.parametrize("task", TASKS)
def test_labels_still_belong_to_what_they_label(task):
    kind, examples = TASKS[task], EXAMPLES[task]
    found = kind.map_texts(examples, str.upper)
    assert found.labels == examples.labels
    assert found.texts == [text.upper() for text in examples.texts]
    if task == "question-answering":  # answers are places in the context
        assert found.pairs == examples.pairs
    elif examples.pairs is not None:
        assert found.pairs == [pair.upper() for pair in examples.pairs]
    if examples.parts is not None:
        assert found.parts == [[part.upper() for part in parts] for parts in examples.parts]


@pytest.mark.parametrize("task", TASKS)
def test_training_texts_have_the_noise_and_validation_texts_have_not(task):
    kind, examples = TASKS[task], EXAMPLES[task]
    tokenizer, names = tiny.tokenizer(), names_of(kind, examples)
    plain, noisy = (
        supervised(kind, examples, examples, names, tokenizer, 24, "", noise=noise)
        for noise in (0.0, 1.0)
    )
    assert noisy.valid.inputs == plain.valid.inputs
    assert noisy.digest != plain.digest
    assert all(
        one["input_ids"] != other["input_ids"]
        for one, other in zip(noisy.train, plain.train, strict=True)
    )
    if task in ("tagging", "ner"):
        tags = [[label for label in each["labels"] if label >= 0] for each in noisy.train]
        assert tags == [[label for label in each["labels"] if label >= 0] for each in plain.train]


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_that_is_none_is_an_error(share):
    with pytest.raises(DeftxError, match="noise"):
        TaskTrainingConfig(noise=share)


def test_vectors_note_the_noise_and_those_without_are_named_as_before_there_was_any():
    assert LATER["noise"] == 0.0
    assert "noise" not in TASK.deciding()["training"]
    assert NOISY.deciding()["training"]["noise"] == 0.5
    assert changed(NOISY, {"training": {"noise": 0.0}}).deciding() == TASK.deciding()


def test_a_task_is_learnt_with_noise_by_every_way_there_is(bases):
    plain, noisy = (fit_task(bases(), TRAIN, VALID, settings) for settings in (TASK, NOISY))
    assert not same(plain, noisy)
    assert noisy.provenance.training.settings["noise"] == 0.5
    assert same(noisy, fit_task(bases(), TRAIN, VALID, NOISY))
    assert same(noisy, fit_task(bases(), {"one": TRAIN}, {"one": VALID}, NOISY))
    sets = {"one": TRAIN, "two": VALID}, {"one": VALID, "two": VALID}
    assert not same(fit_task(bases(), *sets, NOISY), fit_task(bases(), *sets, TASK))
    training = {**TASK.training.model_dump(exclude_unset=True), "noise": 0.5}
    adapter = madx.fit_task(bases(), TRAIN, VALID, MadxTaskConfig(training=training), source=None)
    assert adapter.provenance.training.settings["noise"] == 0.5


def test_phase_1_with_noise_is_not_taken_for_one_without(bases, tmp_path):
    fit_task(bases(), TRAIN, VALID, TASK, checkpoint_dir=tmp_path)
    assert same(
        fit_task(bases(), TRAIN, VALID, NOISY, checkpoint_dir=tmp_path),
        fit_task(bases(), TRAIN, VALID, NOISY),
    )


def test_a_word_goes_over_its_marks():
    text = "पानी बहुत मीठा और ठंडा है " * 200
    spelt = misspeller([text], 1.0, 0)(text).split(" ")
    assert sum(
        word != other for word, other in zip(text.split(" "), spelt, strict=True)
    ) > 0.9 * len(text.split())
