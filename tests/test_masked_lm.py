"""Masked language modelling: packing loses nothing, masks keep their shares, and the loss is the
model's own."""

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Metaspace
from transformers import PreTrainedTokenizerFast

from deftx.config import LanguageTrainingConfig
from deftx.errors import DeftxError
from deftx.objectives import packing as blocks
from deftx.objectives.causal_lm import causal_lm
from deftx.objectives.masked_lm import IGNORED, Masking, mask, masked_lm, masked_loss
from deftx.objectives.packing import pack

TOKENIZER = tiny.tokenizer()
START, PAD, END, UNKNOWN, MASK = range(5)
SPECIAL = torch.arange(5)
SETTINGS = LanguageTrainingConfig()


def made(shape):
    torch.manual_seed(0)
    return tiny.SHAPES[shape]().eval()


def batch(seed=0, rows=4, length=12):
    """Random tokens with about a third masked -> inputs, labels."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 75, (rows, length), generator=generator)
    return mask(ids, Masking(0.3, SPECIAL, MASK, torch.arange(75)), generator)


def gradients(model):
    return {name: weight.grad for name, weight in model.named_parameters()}


@pytest.mark.parametrize("shape", tiny.SHAPES)
def test_the_loss_and_its_gradients_are_those_of_the_full_model(shape):
    inputs, labels = batch()
    ours, full = made(shape), made(shape)
    loss, expected = masked_loss(ours, inputs, labels), full(input_ids=inputs, labels=labels).loss
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    assert any(gradient is not None and gradient.any() for gradient in gradients(full).values())
    for name, gradient in gradients(full).items():
        torch.testing.assert_close(gradients(ours)[name], gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("shape", tiny.SHAPES)
def test_the_head_sees_the_masked_positions_only(shape):
    inputs, labels = batch()
    model, rows = made(shape), []
    model.get_output_embeddings().register_forward_hook(
        lambda module, args, out: rows.append(out.shape[:-1].numel())
    )
    masked_loss(model, inputs, labels)
    assert rows == [int((labels != IGNORED).sum())]


def test_the_model_is_as_before_afterwards_and_after_an_exception():
    model, (inputs, labels) = made("xlmr"), batch()
    before = model(input_ids=inputs).logits
    masked_loss(model, inputs, labels)
    with pytest.raises(IndexError):
        masked_loss(model, inputs + 1000, labels)
    assert torch.equal(model(input_ids=inputs).logits, before)


@pytest.mark.parametrize("shape", tiny.SHAPES)
def test_a_batch_in_which_nothing_is_masked_costs_nothing_and_teaches_nothing(shape):
    model, (inputs, labels) = made(shape), batch()
    loss = masked_loss(model, inputs, torch.full_like(labels, IGNORED))
    assert loss == 0
    loss.backward()
    assert not any(
        gradient is not None and gradient.any() for gradient in gradients(model).values()
    )


def tokens_of(texts):
    """All texts' tokens, with a separator between them: a plain loop."""
    stream = []
    for text in texts:
        stream += [*TOKENIZER(text, add_special_tokens=False)["input_ids"], END]
    return stream[:-1]


@given(st.integers(1, 30), st.integers(3, 20), st.integers(0, 5))
def test_packing_loses_nothing_but_the_tail_and_keeps_the_order(count, length, seed):
    texts = tiny.sentences(count, seed)
    blocks, stream = pack(texts, TOKENIZER, length), tokens_of(texts)
    room = min(length - 2, len(stream))
    assert blocks.dtype == torch.int64
    assert (blocks[:, 0] == START).all()
    assert (blocks[:, -1] == END).all()
    assert blocks.shape == (len(stream) // room, room + 2)
    inner = blocks[:, 1:-1].reshape(-1).tolist()
    assert inner == stream[: len(inner)]
    assert len(stream) - len(inner) < room


@pytest.mark.parametrize(
    ("words", "length", "expected"),
    [
        ("ba", 32, [[START, 5, END]]),
        ("ba be bi", 5, [[START, 5, 6, 7, END]]),
        ("ba be bi bo", 5, [[START, 5, 6, 7, END]]),
        ("ba be bi bo bu da", 5, [[START, 5, 6, 7, END], [START, 8, 9, 10, END]]),
        ("ba be bi", 3, [[START, 5, END], [START, 6, END], [START, 7, END]]),
    ],
)
def test_blocks_at_the_boundaries(words, length, expected):
    assert pack([words], TOKENIZER, length).tolist() == expected


def test_texts_are_parted_by_the_separator_and_empty_ones_leave_none():
    assert pack(["ba", "", "be bi", " "], TOKENIZER, 32).tolist() == [[START, 5, END, 6, 7, END]]


@pytest.mark.parametrize(("texts", "length"), [(["", " "], 32), (["ba be"], 2), (["ba be"], 1)])
def test_no_tokens_or_no_room_for_them_is_an_error(texts, length):
    with pytest.raises(
        DeftxError, match=r"tokens make no block of length \d+: give more text or a larger length"
    ):
        pack(texts, TOKENIZER, length)


def test_a_tokenizer_without_ends_packs_bare_tokens():
    bare = tiny.tokenizer()
    bare.cls_token = bare.bos_token = bare.sep_token = bare.eos_token = None
    assert pack(["ba be", "bi bo bu"], bare, 2).tolist() == [[5, 6], [7, 8]]


@pytest.mark.parametrize("share", [0.15, 0.4])
def test_masks_keep_their_shares(share):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 75, (400, 250), generator=generator)
    ids[:, 0], ids[:, -1], ids[:, 7], ids[:, 8], ids[:, 9] = START, END, UNKNOWN, MASK, PAD
    inputs, labels = mask(ids, Masking(share, SPECIAL, MASK, torch.arange(75)), generator)
    chosen, free = labels != IGNORED, ~torch.isin(ids, SPECIAL)
    assert torch.equal(labels[chosen], ids[chosen])
    assert torch.equal(inputs[~chosen], ids[~chosen])
    assert not (chosen & ~free).any()
    assert (chosen & free).sum() / free.sum() == pytest.approx(share, abs=0.01)

    masked, kept = inputs[chosen] == MASK, inputs[chosen] == ids[chosen]
    random = ~masked & ~kept
    # a random token is the mask or the token itself once in 75 times
    assert masked.float().mean() == pytest.approx(0.8 + 0.1 / 75, abs=0.01)
    assert kept.float().mean() == pytest.approx(0.1 + 0.1 / 75, abs=0.01)
    assert random.float().mean() == pytest.approx(0.1 - 0.2 / 75, abs=0.01)
    counts = torch.bincount(inputs[chosen][random], minlength=75).float()
    assert counts[MASK] == 0
    others = counts[torch.arange(75) != MASK]
    assert (
        others - others.mean()
    ).abs().max() < 5 * others.mean().sqrt()  # five standard deviations


def test_the_same_generator_masks_in_the_same_way_and_another_does_not():
    ids = torch.randint(5, 75, (20, 30))

    def masked(seed):
        return torch.stack(
            mask(
                ids,
                Masking(0.15, SPECIAL, MASK, torch.arange(75)),
                torch.Generator().manual_seed(seed),
            )
        )

    assert torch.equal(masked(1), masked(1))
    assert not torch.equal(masked(1), masked(2))


def words_of(blocks):
    return [token for token in blocks.reshape(-1).tolist() if token >= 5]


def held_out_tokens(objective):
    inputs, labels = objective.held_out
    return torch.where(labels == IGNORED, inputs, labels)


def test_what_is_held_out_is_no_part_of_what_is_learnt_from():
    texts = [f"{a} {b}" for a in tiny.WORDS for b in tiny.WORDS[:2]]
    objective = masked_lm(texts, TOKENIZER, LanguageTrainingConfig(held_out=0.25), 32, seed=3)
    train, held_out = words_of(objective.train), words_of(held_out_tokens(objective))

    def pairs(words):
        return set(zip(words[::2], words[1::2], strict=True))

    assert not pairs(train) & pairs(held_out)
    assert len(held_out) == pytest.approx(0.25 * 2 * len(texts), abs=32)
    assert len(train) + len(held_out) > 2 * len(texts) - 2 * 32


@pytest.mark.parametrize("learn", [masked_lm, causal_lm])
def test_no_more_is_held_out_than_the_blocks_asked_for_and_the_rest_is_learnt_from(learn):
    texts = tiny.sentences(400)

    def made(most):
        objective = learn(
            texts, TOKENIZER, LanguageTrainingConfig(held_out=0.5, held_out_blocks=most), 16, seed=3
        )
        return objective.train, objective.held_out if learn is causal_lm else held_out_tokens(
            objective
        )

    train, held_out = made(None)
    few_train, few = made(5)
    assert len(few) == 5 < len(held_out)
    assert torch.equal(few, held_out[:5])
    assert len(few_train) + len(few) >= len(train) + len(held_out) - 2
    assert len(made(len(held_out) - 1)[1]) == len(held_out) - 1
    assert all(map(torch.equal, made(len(held_out) + 1), (train, held_out)))


def test_what_is_held_out_is_found_in_a_text_of_many_lines_too():
    texts = [f"{a} {b}" for a in tiny.WORDS for b in tiny.WORDS for _ in range(60)][:6000]
    one, other = (
        masked_lm(texts, TOKENIZER, LanguageTrainingConfig(held_out=0.5, held_out_blocks=n), 16, 3)
        for n in (None, 280)
    )
    assert len(one.held_out[0]) > len(other.held_out[0]) == 280
    assert torch.equal(held_out_tokens(other), held_out_tokens(one)[:280])
    assert len(other.train) > len(one.train)


def test_the_same_seed_gives_the_same_split_and_mask_and_another_does_not():
    texts = tiny.sentences(60)

    def made(seed):
        return masked_lm(texts, TOKENIZER, SETTINGS, 16, seed)

    one, same, other = made(1), made(1), made(2)
    assert torch.equal(one.train, same.train)
    assert all(map(torch.equal, one.held_out, same.held_out))
    assert one.digest == same.digest
    assert one.digest != other.digest
    assert one.train.tolist() != other.train.tolist()
    assert masked_lm([*texts[:-1], "ba"], TOKENIZER, SETTINGS, 16, 1).digest != one.digest


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_both_parts_get_at_least_one_text(share):
    for texts in (["ba be bi", "bo bu da"], ["ba be bi", "bo bu da", "de di do"]):
        objective = masked_lm(texts, TOKENIZER, LanguageTrainingConfig(held_out=share), 16, seed=0)
        assert len(objective.train) == len(objective.held_out[0]) == 1


@pytest.mark.parametrize("seed", range(20))
def test_the_held_out_text_has_a_token_to_predict_however_short_it_is(seed):
    objective = masked_lm(["ba", "be"], TOKENIZER, SETTINGS, 16, seed)
    assert (objective.held_out[1] != IGNORED).sum() == 1


@pytest.mark.parametrize("texts", [["ba be"], []])
def test_less_than_two_texts_are_an_error(texts):
    with pytest.raises(
        DeftxError, match=rf"the text has {len(texts)} usable line\(s\); give at least 2"
    ):
        masked_lm(texts, TOKENIZER, SETTINGS, 16, 0)


def test_text_of_unknown_tokens_only_is_an_error():
    with pytest.raises(
        DeftxError, match="100% of the text is unknown to the base's tokenizer, such as "
    ):
        masked_lm(["ξένο κείμενο", "και άλλο"], TOKENIZER, SETTINGS, 16, 0)


def test_spaces_and_the_like_do_not_make_a_text_known():
    """SentencePiece has a piece for the space before a word that it does not know."""
    pieces = [
        ("<s>", 0.0),
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("<mask>", 0.0),
        ("▁", -1.0),
        ("b", -2.0),
    ]
    inner = Tokenizer(Unigram(pieces, unk_id=3))
    inner.pre_tokenizer = Metaspace()
    named = {
        "bos_token": "<s>",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    }
    sentencepiece = PreTrainedTokenizerFast(
        tokenizer_object=inner, **named, cls_token="<s>", sep_token="</s>"
    )
    with pytest.raises(
        DeftxError, match="100% of the text is unknown to the base's tokenizer, such as ξένο"
    ):
        masked_lm(["ξένο"] * 30, sentencepiece, SETTINGS, 16, 0)


def test_what_parts_texts_is_not_taken_for_unknown_where_both_are_one_token():
    """GPT-2's tokenizer names the token that ends texts its unknown one too."""
    plain = tiny.tokenizer()
    plain.unk_token = plain.sep_token = plain.eos_token
    masked_lm(["ba be bi"] * 40, plain, SETTINGS, 16, 0)


def test_a_text_that_is_known_in_part_is_refused_from_half_on_and_warned_of_before():
    with pytest.warns(
        UserWarning, match="18% of the text is unknown to the base's tokenizer, such as ξένο"
    ):
        masked_lm(["ba be bi bo bu da de di do ξένο"] * 30, TOKENIZER, SETTINGS, 32, 0)
    with pytest.raises(DeftxError, match="67% of the text is unknown"):
        masked_lm(["ba ξένο"] * 30, TOKENIZER, SETTINGS, 32, 0)
    masked_lm(
        [*["ba be bi bo bu da de di do du"] * 29, "ξένο"], TOKENIZER, SETTINGS, 32, 0
    )  # one of many: no word


def test_texts_of_any_number_of_lines_become_one_stream(monkeypatch):
    texts = [*tiny.sentences(50), "", *tiny.sentences(30, 1)]
    whole = pack(texts, TOKENIZER, 16)
    monkeypatch.setattr(blocks, "LINES_PER_BATCH", 7)
    assert torch.equal(pack(texts, TOKENIZER, 16), whole)


def test_a_tokenizer_without_a_mask_is_an_error():
    plain = tiny.tokenizer()
    plain.mask_token = None
    with pytest.raises(
        DeftxError, match="no mask token: a language vector needs a masked language model"
    ):
        masked_lm(["ba be", "bi"], plain, SETTINGS, 16, 0)


def test_blocks_are_masked_anew_each_time():
    objective = masked_lm(tiny.sentences(60), TOKENIZER, SETTINGS, 16, 0)
    torch.manual_seed(0)
    first, second = (objective.collate(list(objective.train[:8])) for _ in range(2))
    assert first["input_ids"].shape == (8, 16)
    assert not torch.equal(first["labels"], second["labels"])
    for made in (first, second):
        assert torch.equal(
            torch.where(made["labels"] == IGNORED, objective.train[:8], made["labels"]),
            objective.train[:8],
        )


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_the_held_out_loss_is_the_mean_over_all_masked_tokens_however_they_are_batched(batch_size):
    model = made("xlmr")
    objective = masked_lm(
        tiny.sentences(60), TOKENIZER, LanguageTrainingConfig(held_out=0.5, mask=0.05), 8, 0
    )
    inputs, labels = objective.held_out
    with torch.no_grad():
        expected = model(input_ids=inputs, labels=labels).loss.item()
        assert objective.validate(model, batch_size) == {"loss": pytest.approx(expected, rel=1e-5)}
    assert objective.metric == "loss"
    assert not objective.greater_is_better
