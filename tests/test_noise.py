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
    one_less = without_a_letter(word)
    other_one_less = without_a_letter(other)
    if len(other) == len(word):
        pairs = zip(one_less, other_one_less, strict=True)  # without the same letter
        return any(first == second for first, second in pairs)
    return other in one_less or word in other_one_less


def without_a_letter(word):
    """The word without each of its letters in turn."""
    return [word[:place] + word[place + 1 :] for place in range(len(word))]


@given(st.lists(TEXT, min_size=1, max_size=5), st.integers(0, 3))
def test_every_word_and_nothing_else_changes_by_one_letter_where_the_share_is_one(texts, seed):
    spell = misspeller(texts, 1.0, seed)
    for text in texts:
        # Words, and what is between them, which stays as it is
        parts = regex.split(r"([\p{L}\p{M}]{2,})", text)
        between = [regex.escape(part) for part in parts[::2]]
        own_words = parts[1::2]
        pattern = r"([\p{L}\p{M}]+)".join(between)

        misspelt = spell(text)
        match = regex.fullmatch(pattern, misspelt, regex.DOTALL)
        assert match, (text, misspelt)
        for word, changed_word in zip(own_words, match.groups(), strict=True):
            assert one_letter_apart(word, changed_word)


@given(st.lists(TEXT, min_size=1, max_size=3))
def test_a_share_of_nought_changes_nothing(texts):
    spell = misspeller(texts, 0.0, 0)
    assert [spell(text) for text in texts] == texts


def test_the_share_of_words_is_the_one_asked_for_and_each_change_is_as_likely():
    spell = misspeller(["abcdefgh"], 0.25, 0)
    word = "qqqqqqqq"
    misspelt = words(spell(f"{word} " * 12_000))
    assert misspelt.count(word) / 12_000 == pytest.approx(0.75, abs=0.02)
    changes = Counter(len(other) - len(word) for other in misspelt if other != word)
    for change in (-1, 0, 1):
        assert changes[change] / 3_000 == pytest.approx(1 / 3, abs=0.05)


def test_letters_are_drawn_as_often_as_they_occur_and_from_nothing_else():
    spell = misspeller(["aaab 9 _!"], 1.0, 0)
    drawn = Counter(letter for letter in spell("qqqq " * 3_000) if letter not in "q ")
    assert drawn.keys() == {"a", "b"}
    assert drawn["a"] / drawn.total() == pytest.approx(0.75, abs=0.03)


def test_the_seed_decides():
    texts = tiny.sentences(20)

    def misspelt(seed):
        spell = misspeller(texts, 0.3, seed)
        return [spell(text) for text in texts]

    assert misspelt(1) == misspelt(1)
    assert misspelt(1) != misspelt(2)


@pytest.mark.parametrize("task", TASKS)
def test_labels_still_belong_to_what_they_label(task):
    kind = TASKS[task]
    examples = EXAMPLES[task]
    found = kind.map_texts(examples, str.upper)
    assert found.labels == examples.labels
    assert found.texts == [text.upper() for text in examples.texts]
    if task == "question-answering":  # answers are places in the context
        assert found.pairs == examples.pairs
    elif examples.pairs is not None:
        assert found.pairs == [pair.upper() for pair in examples.pairs]
    if examples.parts is not None:
        for parts, own_parts in zip(found.parts, examples.parts, strict=True):
            assert parts == [part.upper() for part in own_parts]


def tags_in(item):
    """The numbers of the tags of an item's words."""
    return [label for label in item["labels"] if label >= 0]


@pytest.mark.parametrize("task", TASKS)
def test_training_texts_have_the_noise_and_validation_texts_have_not(task):
    kind = TASKS[task]
    examples = EXAMPLES[task]
    names = names_of(kind, examples)
    tokenizer = tiny.tokenizer()
    plain = supervised(kind, examples, examples, names, tokenizer, 24, "", noise=0.0)
    noisy = supervised(kind, examples, examples, names, tokenizer, 24, "", noise=1.0)
    assert noisy.valid.inputs == plain.valid.inputs
    assert noisy.digest != plain.digest
    for noisy_item, plain_item in zip(noisy.train, plain.train, strict=True):
        assert noisy_item["input_ids"] != plain_item["input_ids"]
        if task in ("tagging", "ner"):
            assert tags_in(noisy_item) == tags_in(plain_item)


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
    plain = fit_task(bases(), TRAIN, VALID, TASK)
    noisy = fit_task(bases(), TRAIN, VALID, NOISY)
    assert not same(plain, noisy)
    assert noisy.provenance.training.settings["noise"] == 0.5
    again = fit_task(bases(), TRAIN, VALID, NOISY)
    of_one_source = fit_task(bases(), {"one": TRAIN}, {"one": VALID}, NOISY)
    assert same(noisy, again)
    assert same(noisy, of_one_source)

    # Several sources
    train_sets = {"one": TRAIN, "two": VALID}
    valid_sets = {"one": VALID, "two": VALID}
    noisy_of_two = fit_task(bases(), train_sets, valid_sets, NOISY)
    plain_of_two = fit_task(bases(), train_sets, valid_sets, TASK)
    assert not same(noisy_of_two, plain_of_two)

    # A baseline
    training = {**TASK.training.model_dump(exclude_unset=True), "noise": 0.5}
    settings = MadxTaskConfig(training=training)
    adapter = madx.fit_task(bases(), TRAIN, VALID, settings, source=None)
    assert adapter.provenance.training.settings["noise"] == 0.5


def test_phase_1_with_noise_is_not_taken_for_one_without(bases, tmp_path):
    fit_task(bases(), TRAIN, VALID, TASK, checkpoint_dir=tmp_path)
    resumed = fit_task(bases(), TRAIN, VALID, NOISY, checkpoint_dir=tmp_path)
    alone = fit_task(bases(), TRAIN, VALID, NOISY)
    assert same(resumed, alone)


def test_a_word_goes_over_its_marks():
    text = "पानी बहुत मीठा और ठंडा है " * 200
    spell = misspeller([text], 1.0, 0)
    pairs = zip(text.split(" "), spell(text).split(" "), strict=True)
    changed_words = sum(word != other for word, other in pairs)
    assert changed_words > 0.9 * len(text.split())
