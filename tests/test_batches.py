"""Waiting texts: each is answered once, in its own language, in batches of one language, and none
waits for ever."""

import threading
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deftx.data.examples import Examples
from deftx.serving.batches import Batches, Busy

TEXTS = st.lists(
    st.tuples(
        st.text(max_size=3), st.none() | st.text(max_size=3), st.sampled_from(["a", "b", None])
    )
)


class Model:
    """Answers with what it was asked, notes its batches, and can be held up."""

    def __init__(self):
        self.batches, self.go, self.begun = [], threading.Event(), threading.Event()
        self.go.set()

    def answer(self, examples, language):
        self.begun.set()
        self.go.wait()
        self.batches.append((language, list(examples.texts)))
        if "a bad one" in examples.texts:
            raise ValueError("bad")
        return [(text, language) for text in examples.texts]

    @contextmanager
    def busy(self, batches):
        """Within the block, the model is at work on `first`."""
        self.go.clear()
        (first,) = batches.submit(Examples(["first"]), ["a"])
        assert self.begun.wait(10)
        yield
        self.go.set()
        assert first.result(10) == ("first", "a")


@contextmanager
def running(**settings):
    model = Model()
    batches = Batches(model.answer, **settings)
    yield batches, model
    model.go.set()
    batches.close()


@given(TEXTS)
def test_every_text_is_answered_in_its_own_language_and_in_order(asked):
    with running() as (batches, _):
        found = [
            batches.submit(Examples([text], None if pair is None else [pair]), [language])[0]
            for text, pair, language in asked
        ]
        assert [future.result(10) for future in found] == [
            (text, language) for text, _, language in asked
        ]


def test_what_waits_is_grouped_by_language():
    with running(patience=1e9) as (batches, model), model.busy(batches):
        batches.submit(Examples(["1", "2", "3", "4", "5"]), ["b", "a", "b", "a", None])
        assert batches.waiting == 5
    assert model.batches == [("a", ["first"]), ("a", ["2", "4"]), ("b", ["1", "3"]), (None, ["5"])]


def test_a_batch_has_no_more_texts_than_it_may():
    with running(most=2) as (batches, model), model.busy(batches):
        batches.submit(Examples(list("12345")), ["b"] * 5)
    assert model.batches[1:] == [("b", ["1", "2"]), ("b", ["3", "4"]), ("b", ["5"])]


@pytest.mark.parametrize(("patience", "order"), [(1e9, ["a", "a", "b"]), (0, ["a", "b", "a"])])
def test_the_language_at_hand_goes_first_until_another_has_waited_for_too_long(patience, order):
    with running(patience=patience) as (batches, model), model.busy(batches):
        batches.submit(Examples(["1"]), ["b"])
        batches.submit(Examples(["2"]), ["a"])
    assert [language for language, _ in model.batches] == order


def test_no_language_starves_where_another_is_asked_for_without_end():
    with running(most=1, patience=0.01) as (batches, model), model.busy(batches):
        (rare,) = batches.submit(Examples(["rare"]), ["b"])
        rare.add_done_callback(lambda _: stop.set())
        stop = threading.Event()

        def ask_on(_=None):
            if not stop.is_set():
                batches.submit(Examples(["common"]), ["a"])[0].add_done_callback(ask_on)

        ask_on()
        model.go.set()
        assert rare.result(10) == ("rare", "b")


def test_texts_with_other_columns_are_answered_apart():
    with running() as (batches, model), model.busy(batches):
        batches.submit(Examples(["1"], ["x"]), ["b"])
        batches.submit(Examples(["2"]), ["b"])
        batches.submit(Examples(["3"], [""]), ["b"])
        batches.submit(Examples(["4"], parts=[["x", "y"]]), ["b"])
    assert model.batches[1:] == [("b", ["1", "3"]), ("b", ["2"]), ("b", ["4"])]


def test_where_there_is_no_room_for_all_none_is_taken():
    with running(waiting=3) as (batches, model), model.busy(batches):
        batches.submit(Examples(["1", "2"]), ["b", "b"])
        with pytest.raises(Busy, match="2 texts wait already, and 3 may"):
            batches.submit(Examples(["3", "4"]), ["b", "b"])
        assert batches.waiting == 2
        batches.submit(Examples(["5"]), ["b"])
    assert model.batches[1:] == [("b", ["1", "2", "5"])]


@pytest.mark.parametrize("most", [1, 32])
def test_a_failure_is_told_to_those_who_asked_and_the_others_are_answered(most):
    with running(most=most) as (batches, model):
        texts = ["a good one", "a bad one", "another", "and another"]
        with model.busy(batches):
            answers = batches.submit(Examples(texts), ["a"] * 4)
        for text, answer in zip(texts, answers, strict=True):
            if text == "a bad one":
                with pytest.raises(ValueError, match="bad"):
                    answer.result(10)
            else:
                assert answer.result(10) == (text, "a")
        assert batches.alive


def test_texts_that_are_too_many_for_the_memory_together_are_answered_in_parts():
    sizes = []

    def answer(examples, language):
        sizes.append(len(examples))
        if len(examples) > 3:
            raise MemoryError
        return examples.texts

    batches = Batches(answer)
    texts = [str(number) for number in range(10)]
    assert [each.result(10) for each in batches.submit(Examples(texts), ["a"] * 10)] == texts
    assert sum(size for size in sizes if size <= 3) == 10
    batches.close()


def test_a_text_whose_answer_nobody_wants_any_more_is_left_out():
    with running() as (batches, model), model.busy(batches):
        gone, _ = batches.submit(Examples(["1", "2"]), ["b", "b"])
        (alone,) = batches.submit(Examples(["3"]), [None])
        assert gone.cancel()
        assert alone.cancel()
    assert model.batches[1:] == [("b", ["2"])]


def test_at_the_end_all_that_wait_are_answered_and_no_more_is_taken():
    with running() as (batches, model):
        with model.busy(batches):
            waiting = batches.submit(Examples(["1", "2"]), ["a", "b"])
            closing = threading.Thread(target=batches.close)
            closing.start()
            while True:
                try:
                    batches.submit(Examples([]), [])
                except Busy:
                    break
        closing.join(10)
        assert not batches.alive
        assert [future.result(0) for future in waiting] == [("1", "a"), ("2", "b")]
