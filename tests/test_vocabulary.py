"""Bases with more pieces: what is learnt, and that nothing else changes."""

import pytest
import tiny
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

import deftx
from deftx.config import LanguageVectorConfig, TaskVectorConfig, changed
from deftx.errors import DeftxError
from deftx.models.tokenizers import load_tokenizer
from deftx.models.vocabulary import (
    NewPiece,
    enlarge,
    extend_base,
    extended_tokenizer,
    learn_pieces,
)

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
LETTERS = ["▁", *"abcdefghi"]
# Written in letters that the tokenizer knows, and in two that it does not
TEXT = ["abc abc жщж def", "abc жщ abc def", "ghi abc щж"] * 4


def unigram() -> PreTrainedTokenizerFast:
    vocabulary = [(piece, 0.0) for piece in SPECIAL] + [(piece, -3.0) for piece in LETTERS]
    vocabulary += [("▁ab", -4.0), ("gh", -9.5)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    ends = [("<s>", 0), ("</s>", 2)]
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", None, ends)
    names = ["bos_token", "pad_token", "eos_token", "unk_token", "mask_token"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **dict(zip(names, SPECIAL, strict=True))
    )


@pytest.fixture
def base(tmp_path):
    tokenizer = unigram()
    model = tiny.xlmr()
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_the_pieces_are_the_unknown_characters_and_what_saves_most_tokens():
    found = learn_pieces(TEXT, unigram(), 10)
    assert [piece.text for piece in found[:2]] == ["ж", "щ"]
    assert found[0].parts == ()
    assert found[0].count == 16  # four in three lines, four times over
    by_text = {piece.text: piece for piece in found}
    ids = unigram().convert_tokens_to_ids(["▁ab", "c"])
    assert by_text["▁abc"] == NewPiece("▁abc", tuple(ids), 20)  # five in three lines


def test_no_more_pieces_than_asked_for_and_none_that_is_known_or_seen_once():
    known = unigram().get_vocab()
    for budget in (1, 3, 1000):
        found = learn_pieces([*TEXT, "igc ы"], unigram(), budget)
        texts = [piece.text for piece in found]
        assert len(texts) <= budget
        assert len(set(texts)) == len(texts)
        assert not set(texts) & known.keys()
        assert "ы" not in texts


def test_pieces_are_the_same_in_every_run():
    assert learn_pieces(TEXT, unigram(), 8) == learn_pieces(TEXT, unigram(), 8)


def test_a_text_is_split_into_fewer_known_pieces_and_offsets_stay_right(base, tmp_path):
    extend_base(base, TEXT, tmp_path / "new", pieces=20)
    before, after = load_tokenizer(base), load_tokenizer(tmp_path / "new")
    for line in TEXT[:3]:
        encoded = after(line, return_offsets_mapping=True, add_special_tokens=False)
        assert len(encoded.input_ids) < len(before(line, add_special_tokens=False).input_ids)
        assert after.unk_token_id not in encoded.input_ids
        written = "".join(line[start:end] for start, end in encoded.offset_mapping)
        assert written == line


def test_a_text_without_new_pieces_is_split_as_before(base, tmp_path):
    extend_base(base, TEXT, tmp_path / "new", pieces=20)
    before, after = load_tokenizer(base), load_tokenizer(tmp_path / "new")
    for line in ["ghgh ihg", "hi ы gi", "", "ab ba <mask> ih"]:
        assert after(line).input_ids == before(line).input_ids


def test_saved_and_loaded_the_tokenizer_gives_the_same_ids(tmp_path):
    tokenizer = unigram()
    extended = extended_tokenizer(tokenizer, learn_pieces(TEXT, tokenizer, 20))
    extended.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.get_vocab() == extended.get_vocab()
    assert again.mask_token_id == tokenizer.mask_token_id
    for line in TEXT:
        assert again(line).input_ids == extended(line).input_ids
    assert tokenizer.get_vocab() == unigram().get_vocab()  # the one that was extended stays


def test_new_rows_are_means_of_their_parts_and_old_rows_stay_bit_for_bit(base, tmp_path):
    found = extend_base(base, TEXT, tmp_path / "new", pieces=20)
    old = AutoModelForMaskedLM.from_pretrained(base)
    new = AutoModelForMaskedLM.from_pretrained(tmp_path / "new")
    old_rows = old.get_input_embeddings().weight
    new_rows = new.get_input_embeddings().weight
    first = len(old_rows)
    assert new_rows.shape[0] == new.config.vocab_size == first + len(found)
    assert torch.equal(new_rows[:first], old_rows)
    decoder = new.get_output_embeddings()
    assert decoder.weight is new_rows
    assert torch.equal(decoder.bias[:first], old.get_output_embeddings().bias)
    for number, piece in enumerate(found):
        expected = old_rows[list(piece.parts)] if piece.parts else old_rows
        assert torch.equal(new_rows[first + number], expected.mean(dim=0))
    rest = {name: value for name, value in old.state_dict().items() if len(value) != first}
    for name, value in rest.items():
        assert torch.equal(value, new.state_dict()[name])


def test_rows_that_the_model_has_to_spare_are_used_first():
    model = tiny.xlmr()
    rows = model.get_input_embeddings().weight.shape[0]
    enlarge(model, rows - 5, [NewPiece("x", (7, 8), 2)])
    weight = model.get_input_embeddings().weight
    assert weight.shape[0] == rows
    assert torch.equal(weight[rows - 5], weight[[7, 8]].mean(dim=0))


def test_what_cannot_be_extended_is_refused_in_one_line(bases):
    words = load_tokenizer(bases())
    with pytest.raises(DeftxError, match=r"tokenizer \(WordLevel\) cannot be extended: give"):
        learn_pieces(TEXT, words, 5)
    with pytest.raises(DeftxError, match="pieces = 0; give 1 to"):
        learn_pieces(TEXT, unigram(), 0)
    with pytest.raises(DeftxError, match="already has the piece 'gh'"):
        extended_tokenizer(unigram(), [NewPiece("gh", (5,), 2)])
    with pytest.raises(DeftxError, match="already has the piece 'xy'"):
        extended_tokenizer(unigram(), [NewPiece("xy", (5,), 2)] * 2)
    with_token = unigram()
    with_token.add_tokens(["<user>"])
    with pytest.raises(DeftxError, match="added tokens after its vocabulary"):
        learn_pieces(TEXT, with_token, 5)


def test_the_command_saves_a_base_that_is_read_like_any_other(base, tmp_path, run):
    (tmp_path / "text.txt").write_text("\n".join(TEXT), encoding="utf-8")
    out = tmp_path / "new"
    arguments = ["--base", base, "--text", tmp_path / "text.txt", "--out", out, "--pieces", "4"]
    done = run("extend", *arguments)
    assert done.code == 0
    assert "with 4 more pieces, such as ж, щ" in done.out
    assert len(load_tokenizer(out)) == len(unigram()) + 4
    assert run("extend", *arguments).code == 2  # the folder exists


def test_vectors_are_learnt_composed_and_switched_on_an_extended_base_as_on_any(base, tmp_path):
    extended = tmp_path / "extended"
    extend_base(base, TEXT, extended, pieces=5)
    training = {"max_steps": 2, "min_steps": 0, "evaluate_every": 1, "length": 16, "batch_size": 2}
    language = deftx.fit_language(
        extended,
        TEXT * 4,
        changed(LanguageVectorConfig(), {"k": "10%", "training": {**training, "held_out": 0.2}}),
    )
    examples = deftx.Examples(TEXT, labels=["even", "odd"] * 6)
    task = deftx.fit_task(
        extended,
        examples,
        examples,
        changed(TaskVectorConfig(), {"k": "10%", "training": training}),
        source=language,
    )
    model, composed_tokenizer = deftx.compose_with_tokenizer(extended, task, language)
    model.save_pretrained(tmp_path / "model")
    composed_tokenizer.save_pretrained(tmp_path / "model")
    composed = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert len(tokenizer) == len(load_tokenizer(base)) + 5
    assert tokenizer("жщ")["input_ids"].count(tokenizer.unk_token_id) == 0
    with torch.no_grad():
        inputs = tokenizer(TEXT[:3], padding=True, return_tensors="pt")
        expected = composed(**inputs).logits.softmax(-1)
    switcher = deftx.Switcher(extended, task, {"own": language})
    torch.testing.assert_close(switcher.probabilities(TEXT[:3], "own"), expected)
    # The vectors are of the extended base alone
    with pytest.raises(DeftxError):
        deftx.compose(base, task, language)
