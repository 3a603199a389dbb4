"""Denoising: reading and writing restore the text, spans keep their shares, and the loss is the
model's own."""

from collections import Counter
from types import SimpleNamespace

import pytest
import tiny
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from deftx.config import LanguageTrainingConfig
from deftx.errors import DeftxError
from deftx.models.loading import load_language_model
from deftx.objectives.registry import language_of
from deftx.objectives.seq2seq_lm import (
    corrupted,
    infilled_spans,
    noise_of,
    sentinel_spans,
    seq2seq_lm,
)

START, PAD, END, UNKNOWN, MASK = range(5)
T5, BART = tiny.tokenizer(sentinels=True), tiny.tokenizer()
SENTINELS = T5.convert_tokens_to_ids(tiny.SENTINELS)
TEXTS = st.lists(st.one_of(st.integers(5, 74), st.just(END)), max_size=60)
SHARES = st.floats(0.05, 0.9)
every_shape = pytest.mark.parametrize("shape", tiny.ENCODER_DECODERS)


def drawn(seed=0):
    return torch.Generator().manual_seed(seed)


def made(shape, texts, length=16, seed=0, share=0.3):
    tokenizer = T5 if shape in ("t5", "mt5") else BART
    return seq2seq_lm(
        texts, tokenizer, LanguageTrainingConfig(held_out=0.2, mask=share), length, seed
    )


# --- span corruption ---


def restored(read, written):
    """The text: each sentinel that was read stands for what is written after it, up to the next
    one."""
    spans, last = {}, None
    for token in written:
        if token in SENTINELS:
            last = spans.setdefault(token, [])
        else:
            last.append(token)
    return [token for each in read for token in spans.get(each, [each])], spans


@given(TEXTS, SHARES, st.integers(0, 9))
def test_what_is_read_and_what_is_written_restore_the_text(ids, share, seed):
    ids = [*ids, END]
    read, written = corrupted(ids, noise_of(T5, share), drawn(seed))
    assert written[-1] == END
    text, spans = restored(read, written[:-1])
    assert text == ids
    assert all(spans.values())
    sentinels = [token for token in read if token in SENTINELS]
    assert (
        sentinels
        == [token for token in written if token in SENTINELS]
        == SENTINELS[: len(sentinels)]
    )
    assert END not in {token for span in spans.values() for token in span}


@given(st.integers(2, 40), st.floats(0.05, 0.5), st.integers(0, 99))
def test_the_share_of_the_tokens_is_hidden_in_spans_of_three_on_average(count, share, seed):
    spans = sentinel_spans(count, share, drawn(seed))
    hidden = max(1, round(share * count))
    assert sum(stop - start for start, stop in spans) == hidden
    assert len(spans) == min(max(1, round(hidden / 3)), count - hidden)
    edges = [edge for span in spans for edge in span]
    assert edges == sorted({*edges})  # no span is empty, and none touches another one
    assert edges[0] >= 0
    assert edges[-1] <= count


def test_all_lengths_and_places_are_equally_probable():
    """Of 8 tokens 2 are kept, which gives two spans 3 pairs of places; the 6 others have 5 ways to
    be two spans."""
    generator = drawn()
    found = Counter(tuple(sentinel_spans(8, 0.75, generator)) for _ in range(6000))
    assert len(found) == 15
    assert all(abs(times - 400) < 90 for times in found.values())  # within 4.5 standard deviations


def test_more_spans_than_sentinels_stay_as_they_are():
    ids = [*range(5, 75), *range(5, 75)]
    read, written = corrupted(ids, noise_of(T5, 0.5), drawn())
    assert restored(read, written[:-1])[0] == ids
    assert [token for token in read if token in SENTINELS] == SENTINELS


# --- text infilling ---


def matches(read, text):
    """Whether a text is what was read, each mask standing for any tokens, none too."""
    reached = {0}
    for token in read:
        if token == MASK:
            reached = set(range(min(reached), len(text) + 1))
        else:
            reached = {at + 1 for at in reached if at < len(text) and text[at] == token}
        if not reached:
            return False
    return len(text) in reached


@given(TEXTS, SHARES, st.integers(0, 9))
@example([5, 6, 7, END] * 5, 0.5, 598)  # a span around an END becomes two, beside an empty one
def test_the_whole_text_is_written_and_masks_stand_for_its_spans(ids, share, seed):
    ids = [START, *ids, END]
    read, written = corrupted(ids, noise_of(BART, share), drawn(seed))
    assert written == ids
    assert matches(read, ids)
    assert len(read) <= len(ids)
    assert read[0] == START
    assert read[-1] == END
    assert read.count(END) == ids.count(END)
    words = sum(token >= 5 for token in ids)
    assert words - sum(token >= 5 for token in read) == min(words, max(1, round(share * words)))


def test_lengths_are_those_of_poisson_and_places_are_anywhere():
    generator = drawn()
    spans = [infilled_spans(300, 0.3, generator) for _ in range(200)]
    lengths = Counter(stop - start for each in spans for start, stop in each[:-1])
    total = sum(lengths.values())
    mean = sum(length * times for length, times in lengths.items()) / total
    assert mean == pytest.approx(3, abs=0.1)
    assert lengths[0] / total == pytest.approx(0.0498, abs=0.015)
    hidden = Counter(
        place // 100 for each in spans for start, stop in each for place in range(start, stop)
    )
    assert all(
        share / sum(hidden.values()) == pytest.approx(1 / 3, abs=0.02) for share in hidden.values()
    )


# --- both ---


@every_shape
@torch.no_grad()
def test_the_loss_is_that_of_the_written_tokens_also_on_held_out_text(bases, shape):
    model, objective = load_language_model(bases(shape)).eval(), made(shape, tiny.sentences(40))
    torch.manual_seed(0)
    batch = objective.collate([*objective.train[:3]])
    totals, counts = [], []
    for read, there, labels in zip(*batch.values(), strict=True):
        written = labels[labels >= 0]
        before = model.prepare_decoder_input_ids_from_labels(labels=written[None])
        logits = model(input_ids=read[there.bool()][None], decoder_input_ids=before).logits[0]
        totals.append(float(cross_entropy(logits, written, reduction="sum")))
        counts.append(len(written))
    assert float(objective.loss(model, batch)) == pytest.approx(sum(totals) / sum(counts), rel=1e-5)
    alone = [
        (float(objective.loss(model, _batch(pair))), len(pair[1])) for pair in objective.held_out
    ]
    expected = sum(loss * count for loss, count in alone) / sum(count for _, count in alone)
    for batch_size in (1, 3, 100):
        assert objective.validate(model, batch_size)["loss"] == pytest.approx(expected, rel=1e-5)


def _batch(pair):
    read, written = (torch.tensor([ids]) for ids in pair)
    return {"input_ids": read, "attention_mask": torch.ones_like(read), "labels": written}


@pytest.mark.parametrize("shape", ["mt5", "bart"])
def test_what_is_random_is_the_seeds_and_blocks_are_corrupted_anew(shape):
    texts = tiny.sentences(40)
    one, again, other = made(shape, texts), made(shape, texts), made(shape, texts, seed=1)
    assert one.digest == again.digest != other.digest
    assert one.held_out == again.held_out != other.held_out
    batches = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        batches.append(one.collate([*one.train])["input_ids"])
    assert torch.equal(batches[0], batches[1])
    assert batches[0].shape != batches[2].shape or not torch.equal(batches[0], batches[2])


@pytest.mark.parametrize("shape", ["mt5", "bart"])
def test_no_token_is_read_that_is_not_among_those_that_can_be(shape):
    objective = made(shape, tiny.sentences(40))
    assert {*objective.collate([*objective.train])["input_ids"].flatten().tolist()} <= {
        *objective.vocabulary_used.tolist(),
        PAD,
    }


def test_sentinels_are_found_as_mt5_spells_them():
    vocabulary = {f"▁<extra_id_{number}>": 102 - number for number in range(3)} | {
        "a": 5,
        "</s>": 1,
    }
    about = {
        "mask_token_id": None,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "all_special_ids": [0, 1, 2],
    }
    noise = noise_of(SimpleNamespace(get_vocab=lambda: vocabulary, **about), 0.15)
    assert noise.sentinels
    assert noise.marks == (102, 101, 100)
    assert noise.special >= {0, 1, 2, 100, 101, 102}


def test_a_tokenizer_without_a_token_for_what_is_hidden_is_an_error():
    with pytest.raises(
        DeftxError, match="neither sentinels nor a mask token: give a base such as mT5 or BART"
    ):
        seq2seq_lm(tiny.sentences(4), tiny.tokenizer(decoder=True), LanguageTrainingConfig(), 16, 0)


@every_shape
def test_a_base_says_itself_that_it_denoises(bases, shape):
    assert language_of(load_language_model(bases(shape)).config).objective is seq2seq_lm
