"""Dependency parsing: trees read and written, the loss, decoding and the scores, each against a
plain reference."""

import json
from itertools import product

import lt_sft_files
import numpy as np
import pytest
import tiny
import torch
from task_examples import EXAMPLES
from torch.nn.functional import log_softmax
from transformers import BertModel

from deftx.data.conll import conllu_block, conllu_blocks, fault_of_tree, with_arcs
from deftx.data.examples import Examples, check_labels
from deftx.data.held_out import held_out
from deftx.errors import DeftxError
from deftx.interop.convert import convert
from deftx.models.compose import compose
from deftx.models.heads import load_task_model
from deftx.storage.vector_files import load
from deftx.tasks.base import predict, supervised
from deftx.tasks.biaffine import NO_WORD
from deftx.tasks.encoding import inputs_of
from deftx.tasks.parsing import (
    PARSING,
    UNIVERSAL_RELATIONS,
    encode,
    las,
    loss,
    relation_names,
    uas,
)
from deftx.tasks.registry import read_examples
from deftx.tasks.spanning_tree import best_tree

TOKENIZER = tiny.tokenizer()
NAMES = relation_names(EXAMPLES["parsing"])
FILE = """# newdoc
# sent_id = 1
# text = Ba beli.
1\tBa\tba\tNOUN\t_\t_\t2\tnsubj:pass\t_\t_
2-3\tbeli\t_\t_\t_\t_\t_\t_\t_\t_
2\tbe\tbe\tVERB\t_\t_\t0\troot\t_\tA=B
3\tli\t_\tPRON\t_\t_\t2\tobj\t_\t_
3.1\tla\t_\tPRON\t_\t_\t_\t_\t2:obj\t_
4\t.\t.\tPUNCT\t_\t_\t2\tpunct\t_\t_


# sent_id = 2
1\tBo\t_\tINTJ\t_\t_\t0\troot\t_\t_
# the end
"""


@pytest.fixture
def parser(bases):
    """A parser whose head is random, on a tiny base."""

    def of(shape="xlmr"):
        model = load_task_model(bases(shape), NAMES, task=PARSING).eval()
        generator = torch.Generator().manual_seed(0)
        for weight in (model.biaffine_arcs.weight, model.biaffine_rels.weight):
            torch.nn.init.normal_(weight, generator=generator)
        return model

    return of


# --- CoNLL-U ---


def test_words_heads_and_relations_are_read(tmp_path):
    path = tmp_path / "a.conllu"
    path.write_text(FILE, encoding="utf-8")
    examples = read_examples(path, task="parsing")
    assert examples.parts == [["Ba", "be", "li", "."], ["Bo"]]
    assert examples.texts == ["Ba be li .", "Bo"]
    assert examples.labels == [
        [(2, "nsubj"), (0, "root"), (2, "obj"), (2, "punct")],
        [(0, "root")],
    ]
    unlabelled = read_examples(path, task="parsing", labelled=False)
    assert unlabelled == Examples(examples.texts, parts=examples.parts)


def test_without_heads_words_are_read_all_the_same(tmp_path):
    path = tmp_path / "a.conllu"
    path.write_text("1\tBa\t_\t_\t_\t_\t_\t_\t_\t_\n", encoding="utf-8")
    assert read_examples(path, task="parsing", labelled=False).parts == [["Ba"]]


def test_tables_of_lists_are_read_too(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"words": ["Ba", "beli", "be", "li"], "heads": ["2", "None", 0, 2], '
        '"relations": ["nsubj:pass", "_", "root", "obj"]}\n'
    )
    examples = read_examples(path, task="parsing")
    assert examples.parts == [["Ba", "be", "li"]]  # without the multiword token
    assert examples.labels == [[(2, "nsubj"), (0, "root"), (2, "obj")]]


def lines(*heads, ids=None):
    rows = []
    for number, head in enumerate(heads, 1):
        own_id = ids[number - 1] if ids else number
        rows.append(f"{own_id}\tw{number}\t_\t_\t_\t_\t{head}\tobj\t_\t_")
    return "# a comment\n" + "\n".join(rows) + "\n"


WRONG = {
    "not a number": (lines("x", 0), "line 2: the head of 'w1' is 'x': give the number of a word"),
    "no head": (lines(2, "_"), "line 3: the head of 'w2' is '_'"),
    "negative": (lines(0, "-1"), "line 3: the head of 'w2' is '-1'"),
    "too large": (lines(0, 3), "line 3: the head of word 2 is 3, of 2 words"),
    "no root": (lines(2, 1), "line 2: no word of the sentence has the head 0"),
    "two roots": (lines(0, 1, 0), "line 4: the words 1 and 3 both have the head 0"),
    "a cycle": (lines(0, 3, 2), "line 3: the heads of word 2 lead back to it"),
    "its own head": (lines(0, 2), "line 3: the heads of word 2 lead back to it"),
    "numbers": (lines(0, 1, ids=[1, 3]), "line 3: the word 'w2' has the ID 3, and is word 2"),
    "no number": (lines(0, 1, ids=[1, "b"]), "line 3: .* is no word and tag"),
    "fields": ("1\tba\t0\troot\n", "line 1: .* is no word and tag"),
}


@pytest.mark.parametrize(("content", "says"), WRONG.values(), ids=WRONG)
def test_what_is_no_tree_is_one_line_with_the_number_of_the_line(tmp_path, content, says):
    path = tmp_path / "a.conllu"
    path.write_text(content)
    with pytest.raises(DeftxError, match=says) as error:
        read_examples(path, task="parsing")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ('"heads": [0], "relations": ["root", "obj"]', "are no heads of 2 words"),
        ('"heads": [0, 1], "relations": "obj"', "are no relations of 2 words"),
        ('"heads": [0, true], "relations": ["root", "obj"]', "'b' has the head True"),
        ('"heads": [0, 1], "relations": ["root", ""]', "'b' has the head 1 and the relation ''"),
        ('"heads": [2, 1], "relations": ["root", "obj"]', "no word of the sentence has the head 0"),
    ],
)
def test_tables_that_hold_no_trees_are_one_line(tmp_path, row, says):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"words": ["a", "b"], {row}}}\n')
    with pytest.raises(DeftxError, match=f"line 1: .*{says}"):
        read_examples(path, task="parsing")


def test_arcs_given_in_python_are_checked_too():
    for arcs, says in (
        ([(0, "root")], "example 2 has 2 words and 1 arcs"),
        ([(2, "obj"), (1, "obj")], "example 2: no word of the sentence has the head 0"),
    ):
        examples = Examples(["ba", "ba be"], labels=[[(0, "root")], arcs])
        with pytest.raises(DeftxError, match=says):
            encode(examples, TOKENIZER, 24, NAMES, True)


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("content", [FILE, FILE.rstrip("\n"), "\n" + FILE, FILE + "\n\n"])
def test_only_heads_and_relations_are_changed(tmp_path, content, ends):
    content = content.replace("\n", ends)
    path = tmp_path / "a.conllu"
    path.write_bytes(content.encode())
    blocks = conllu_blocks(path)
    assert "".join(blocks) == content
    assert len(blocks) == 2

    arcs = [[(0, "root"), (1, "x"), (2, "y"), (3, "z")], [(0, "w")]]
    changed = "".join(with_arcs(block, own) for block, own in zip(blocks, arcs, strict=True))
    expected = content
    for before, after in (
        ("\t2\tnsubj:pass\t", "\t0\troot\t"),
        ("VERB\t_\t_\t0\troot\t", "VERB\t_\t_\t1\tx\t"),
        ("\t2\tobj\t", "\t2\ty\t"),
        ("\t2\tpunct\t", "\t3\tz\t"),
        ("INTJ\t_\t_\t0\troot\t", "INTJ\t_\t_\t0\tw\t"),
    ):
        assert expected.count(before) == 1
        expected = expected.replace(before, after)
    assert changed == expected


def test_a_text_becomes_conllu_that_is_read_again(tmp_path):
    path = tmp_path / "a.conllu"
    path.write_text(with_arcs(conllu_block(["ba", "be"]), [(2, "obj"), (0, "root")]))
    examples = read_examples(path, task="parsing")
    assert examples.parts == [["ba", "be"]]
    assert examples.labels == [[(2, "obj"), (0, "root")]]


# --- scores ---


def conll_2018(true, predicted):
    """UAS and LAS as the evaluation of CoNLL 2018 counts them where the words are the same: all
    words, relations up to the colon."""
    words = [pair for rows in zip(true, predicted, strict=True) for pair in zip(*rows, strict=True)]
    same_head = [gold for gold, system in words if gold[0] == system[0]]
    same_arc = [
        gold
        for gold, system in words
        if (gold[0], gold[1].split(":")[0]) == (system[0], system[1].split(":")[0])
    ]
    return len(same_head) / len(words), len(same_arc) / len(words)


def test_attachment_scores_are_those_of_conll():
    true = [[(2, "nsubj:pass"), (0, "root"), (2, "punct")], [(0, "root"), (1, "obj")]]
    predicted = [[(2, "nsubj"), (0, "root"), (1, "punct")], [(0, "root"), (1, "obl:arg")]]
    assert conll_2018(true, predicted) == (4 / 5, 3 / 5)
    assert (uas(true, predicted), las(true, predicted)) == (4 / 5, 3 / 5)

    generator = np.random.default_rng(0)

    def sentence():
        heads = generator.integers(3, size=6).tolist()
        return list(zip(heads, generator.choice(["a", "a:b", "c"], size=6).tolist(), strict=True))

    for _ in range(20):
        true = [sentence(), sentence()]
        predicted = [sentence(), sentence()]
        assert (uas(true, predicted), las(true, predicted)) == conll_2018(true, predicted)


def test_relations_of_the_head_are_the_universal_ones_and_what_else_occurs():
    examples = Examples(["a b"], labels=[[(0, "root"), (1, "zz:x")]], parts=[["a", "b"]])
    assert relation_names(examples) == (*UNIVERSAL_RELATIONS, "zz")
    assert len(UNIVERSAL_RELATIONS) == 38
    assert [*UNIVERSAL_RELATIONS] == sorted(UNIVERSAL_RELATIONS)


# --- the best tree ---


def trees(words):
    for heads in product(range(words + 1), repeat=words):
        if fault_of_tree(heads) is None:
            yield heads


@pytest.mark.parametrize("words", [1, 2, 3, 4, 5])
def test_the_best_tree_is_the_best_of_all_trees(words):
    generator = np.random.default_rng(words)
    all_trees = list(trees(words))
    assert len(all_trees) == words ** (words - 1)  # Cayley: rooted labelled trees
    greedy_is_no_tree = 0
    for scale in (1, 1, 1, 10, 1000):
        for _ in range(10):
            scores = scale * generator.normal(size=(words, words + 1))
            scores[:, 0] += generator.normal() * scale  # several roots would often be better
            sums = [
                sum(scores[word, head] for word, head in enumerate(heads)) for heads in all_trees
            ]
            found = best_tree(scores)
            assert tuple(found) == all_trees[int(np.argmax(sums))]
            greedy_is_no_tree += fault_of_tree(scores.argmax(1).tolist()) is not None
    assert words == 1 or greedy_is_no_tree > 5


def test_a_long_sentence_gets_a_tree_whatever_its_scores():
    generator = np.random.default_rng(0)
    for scores in (
        generator.normal(size=(150, 151)),
        np.zeros((1100, 1101)),
        np.full((9, 10), np.nan),
    ):
        assert fault_of_tree(best_tree(scores)) is None
    assert best_tree(np.zeros((0, 1))) == []


# --- the model ---


def plain_scores(model, text, words):
    """Arc scores [words, 1 + words] and relation scores [words, 1 + words, names] as LT-SFT's
    parser has them: word by word, without batches."""
    tokens = TOKENIZER(text, return_tensors="pt")
    outputs = model.base_model(**tokens)
    states = outputs.last_hidden_state[0]
    root = states[0]
    if getattr(outputs, "pooler_output", None) is not None:
        root = outputs.pooler_output[0]
    vectors = []
    start = 1
    for word in words:
        end = start + len(TOKENIZER(word, add_special_tokens=False)["input_ids"])
        vectors.append(states[start:end].mean(0))
        start = end
    one = torch.ones(1)
    arcs = torch.zeros(len(words), 1 + len(words))
    relations = torch.zeros(len(words), 1 + len(words), len(NAMES))
    for place, word in enumerate(vectors):
        for head, candidate in enumerate([root, *vectors]):
            x = torch.cat([word, one])
            arcs[place, head] = x @ model.biaffine_arcs.weight[0] @ candidate
            y = torch.cat([candidate, one])
            for name in range(len(NAMES)):
                relations[place, head, name] = x @ model.biaffine_rels.weight[name] @ y
    return arcs, relations


@pytest.mark.parametrize("shape", ["xlmr", "bert", "modernbert"])
@torch.no_grad()
def test_scores_loss_and_answers_are_those_of_a_plain_parser(parser, shape):
    model = parser(shape)
    examples = EXAMPLES["parsing"].at(range(6))
    objective = supervised(PARSING, examples, examples, NAMES, TOKENIZER, 30, "las")
    total, count, expected = 0.0, 0, []
    for text, words, arcs in zip(examples.texts, examples.parts, examples.labels, strict=True):
        arc_scores, relation_scores = plain_scores(model, text, words)
        for place, (head, relation) in enumerate(arcs):
            total -= log_softmax(arc_scores[place], 0)[head]
            total -= log_softmax(relation_scores[place, head], 0)[NAMES.index(relation)]
            count += 1
        heads = best_tree(arc_scores.numpy())
        best = [relation_scores[place, head].argmax() for place, head in enumerate(heads)]
        expected.append(([(head, NAMES[name]) for head, name in zip(heads, best, strict=True)],))
    batch = objective.collate(objective.train)
    assert objective.loss_denominator(batch) == count
    torch.testing.assert_close(loss(model, batch), total / count, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(objective.loss(model, batch), total / count, rtol=1e-4, atol=1e-4)
    assert predict(PARSING, model, TOKENIZER, examples, 30) == expected


@torch.no_grad()
def test_the_words_of_a_word_with_several_tokens_are_their_mean(parser):
    model = parser()
    words = ["ba-be", "li", "so.so"]  # of three tokens, one, and three
    arcs, _ = plain_scores(model, " ".join(words), words)
    encoded = encode(Examples(["x"], parts=[words]), TOKENIZER, 30, NAMES, False)
    assert encoded.inputs[0]["word_ids"] == [NO_WORD, 0, 0, 0, 1, 2, 2, 2, NO_WORD]
    batch = encoded.pad(encoded.inputs)
    found, _ = model(**inputs_of(batch), heads=torch.zeros(1, 3, dtype=torch.long))
    torch.testing.assert_close(found[0], arcs, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_scores_are_not_rounded_where_the_encoder_runs_in_bf16(parser):
    model = parser()
    words, roots = torch.randn(2, 5, 16), torch.randn(2, 16)
    heads = torch.tensor([[0, 1, 2, 3, 4], [2, 0, 2, 5, 1]])
    arcs = model.arc_scores(words, roots)
    relations = model.relation_scores(words, roots, heads)
    encoded = encode(EXAMPLES["parsing"].at([0]), TOKENIZER, 30, NAMES, False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.arc_scores(words, roots).equal(arcs)
        assert model.relation_scores(words, roots, heads).equal(relations)
        states = model.word_states(**encoded.pad(encoded.inputs))
    assert states.words.dtype == torch.float32


# --- long sentences ---


def chain(words):
    """A sentence in which each word hangs on the one before it."""
    return Examples(
        [" ".join(words)], labels=[[(place, "obj") for place in range(len(words))]], parts=[words]
    )


def test_targets_of_windows_count_from_their_own_first_word():
    examples = chain(tiny.WORDS[:10])
    encoded = encode(examples, TOKENIZER, 6, NAMES, True)  # four words a window
    obj = NAMES.index("obj")
    assert [row["word_ids"] for row in encoded.inputs] == [
        [NO_WORD, 0, 1, 2, 3, NO_WORD],
        [NO_WORD, 0, 1, 2, 3, NO_WORD],
        [NO_WORD, 0, 1, NO_WORD],
    ]
    ignored = (-100, -100)  # its head is in the window before
    assert encoded.targets == [
        [(0, obj), (1, obj), (2, obj), (3, obj)],
        [ignored, (1, obj), (2, obj), (3, obj)],
        [ignored, (1, obj)],
    ]


def test_a_word_that_is_cut_is_learnt_once_and_whole_in_its_first_window():
    words = ["ba", "be", "li-li"]
    encoded = encode(chain(words), TOKENIZER, 5, NAMES, True)
    obj = NAMES.index("obj")
    assert encoded.word_ids == [[-1, 0, 1, 2, -1], [-1, 2, 2, -1]]
    assert encoded.targets == [[(0, obj), (1, obj), (2, obj)], [(-100, -100)]]


@torch.no_grad()
def test_no_word_of_a_long_sentence_is_lost(parser):
    model = parser()
    long, short = tiny.WORDS[:25], ["ba", "be"]
    examples = Examples(["", ""], parts=[long, short])
    (arcs,), (others,) = predict(PARSING, model, TOKENIZER, examples, 8)
    assert len(arcs) == 25
    assert fault_of_tree([head for head, _ in arcs]) is None
    assert others == predict(PARSING, model, TOKENIZER, examples.at([1]), 8)[0][0]
    # Heads are found in other windows of six words, too
    assert any(abs(head - place) > 6 for place, (head, _) in enumerate(arcs, 1) if head)

    # What is parsed is the words of all windows together
    vectors = []
    for start in range(0, 25, 6):
        encoded = encode(
            Examples([""], parts=[long[start : start + 6]]), TOKENIZER, 8, NAMES, False
        )
        vectors.append(model.word_states(**encoded.pad(encoded.inputs)))
    words = torch.cat([states.words[0] for states in vectors])
    scores = model.arc_scores(words.unsqueeze(0), vectors[0].roots)[0]
    assert [head for head, _ in arcs] == best_tree(scores.double().numpy())


@torch.no_grad()
def test_words_without_tokens_and_texts_without_words_get_an_answer(parser):
    examples = Examples(["", "ba be", "ba"], parts=[[], ["ba", " ", "be"], ["ba"]])
    answers = predict(PARSING, parser(), TOKENIZER, examples, 8)
    assert [len(arcs) for (arcs,) in answers] == [0, 3, 1]
    assert fault_of_tree([head for head, _ in answers[1][0]]) is None


@pytest.mark.parametrize("shape", ["qwen", "bart"])
def test_a_base_that_is_no_encoder_is_one_line(bases, shape):
    with pytest.raises(DeftxError, match="no AutoModelForBiaffineParsing of this kind of base"):
        load_task_model(bases(shape), NAMES, task=PARSING)


# --- LT-SFT's parsers ---


class TheirParser(torch.nn.Module):
    """LT-SFT's parser by its names and shapes: `bert` with its pooler, and two biaffine weights."""

    def __init__(self, bert, relations=38):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.bert = bert
        self.biaffine_arcs = torch.nn.Module()
        self.biaffine_arcs.weight = torch.nn.Parameter(torch.randn(1, 17, 16, generator=generator))
        self.biaffine_rels = torch.nn.Module()
        self.biaffine_rels.weight = torch.nn.Parameter(
            torch.randn(relations, 17, 17, generator=generator)
        )


@pytest.fixture
def theirs(tmp_path):
    """The base of a parser of LT-SFT, the parser, and its file."""
    torch.manual_seed(0)
    bert = BertModel(tiny.bert().config).eval()
    bert.save_pretrained(tmp_path / "base")
    tiny.tokenizer().save_pretrained(tmp_path / "base")
    parser = TheirParser(bert)
    diffs = {}
    with torch.no_grad():
        for number, (name, weight) in enumerate(parser.bert.named_parameters()):
            if "LayerNorm" not in name:
                diffs[f"bert.{name}"] = lt_sft_files.sparse(tuple(weight.shape), number) / 4
                weight += diffs[f"bert.{name}"]
    dense = {
        name: weight.detach().clone()
        for name, weight in parser.named_parameters()
        if name.startswith("biaffine")
    }
    write_their_file(tmp_path / "sft", diffs, dense)
    return tmp_path / "base", parser, tmp_path / "sft"


def write_their_file(folder, diffs, dense):
    folder.mkdir(exist_ok=True)
    coded = {name: lt_sft_files.coded(tensor) for name, tensor in diffs.items()}
    torch.save({"diffs": coded, "abs": dense}, folder / "pytorch_diff.bin")


def their_evaluation(scores, labels):
    """UAS and LAS as LT-SFT's script has them: the best head of each word by itself, the best
    relation to the true head, all words."""
    heads, arcs, count = 0, 0, 0
    for (arc_scores, relation_scores), tree in zip(scores, labels, strict=True):
        for place, (head, relation) in enumerate(tree):
            head_is_right = int(arc_scores[place].argmax()) == head
            name = UNIVERSAL_RELATIONS[relation_scores[place, head].argmax()]
            heads += head_is_right
            arcs += head_is_right and name == relation
            count += 1
    return heads / count, arcs / count


@torch.no_grad()
def test_a_parser_of_lt_sft_is_converted_composed_and_scored(theirs, tmp_path, run):
    base, parser, file = theirs
    vector = convert(file, tmp_path / "parser", base=base)
    assert vector.task == "parsing"
    assert vector.labels == tuple(UNIVERSAL_RELATIONS)
    assert vector.head.tensors.keys() == {
        "biaffine_arcs.weight",
        "biaffine_rels.weight",
        "bert.pooler.dense.weight",
        "bert.pooler.dense.bias",
    }

    # Its scores are theirs, word by word
    model = compose(base, load(tmp_path / "parser"))
    parser.base_model = parser.bert
    examples = EXAMPLES["parsing"]
    their_scores, our_scores = [], []
    for text, words in zip(examples.texts, examples.parts, strict=True):
        their_scores.append(plain_scores(parser, text, words))
        encoded = encode(Examples([text], parts=[words]), TOKENIZER, 30, NAMES, False)
        states = model.word_states(**encoded.pad(encoded.inputs))
        arcs = model.arc_scores(states.words, states.roots)[0]
        torch.testing.assert_close(arcs, their_scores[-1][0], rtol=1e-4, atol=1e-4)
        relations = torch.zeros(len(words), 1 + len(words), 38)
        for head in range(1 + len(words)):
            heads = torch.full((1, len(words)), head)
            relations[:, head] = model.relation_scores(states.words, states.roots, heads)[0]
        torch.testing.assert_close(relations, their_scores[-1][1], rtol=1e-4, atol=1e-3)
        our_scores.append((arcs, relations))

    # So are its scores by their own evaluation, on trees that it gets right in part
    trees = []
    for number, (arcs, relations) in enumerate(their_scores):
        heads = best_tree(arcs.double().numpy())
        if number % 3 == 0:
            heads = list(range(len(heads)))
        best = [int(relations[place, head].argmax()) for place, head in enumerate(heads)]
        names = [UNIVERSAL_RELATIONS[name - (number % 2)] for name in best]
        trees.append(list(zip(heads, names, strict=True)))
    their_uas, their_las = their_evaluation(their_scores, trees)
    assert 0 < their_las < their_uas < 1
    assert their_evaluation(our_scores, trees) == (their_uas, their_las)

    # `deftx evaluate` scores the best trees
    blocks = [conllu_block(words) for words in examples.parts]
    content = "".join(with_arcs(block, tree) for block, tree in zip(blocks, trees, strict=True))
    (tmp_path / "test.conllu").write_text(content)
    options = ["--base", str(base), "--task", str(tmp_path / "parser"), "--json"]
    (row,) = json.loads(run("evaluate", *options, "--test", str(tmp_path / "test.conllu")).out)
    answers = []
    for arcs, relations in their_scores:
        heads = best_tree(arcs.double().numpy())
        best = [int(relations[place, head].argmax()) for place, head in enumerate(heads)]
        names = [UNIVERSAL_RELATIONS[name] for name in best]
        answers.append(list(zip(heads, names, strict=True)))
    assert (row["uas"], row["las"]) == pytest.approx(conll_2018(trees, answers))
    assert 0 < row["las"] < 1


def test_a_parser_of_ours_goes_to_lt_sft_and_back(theirs, tmp_path):
    base, _, file = theirs
    vector = convert(file, tmp_path / "parser", base=base)
    convert(tmp_path / "parser", tmp_path / "there", "lt-sft", base=base)
    back = convert(tmp_path / "there", tmp_path / "back", base=base)
    assert back.labels == vector.labels
    assert back.task == "parsing"
    assert all(map(torch.equal, back.head.tensors.values(), vector.head.tensors.values()))


@pytest.mark.parametrize(
    ("dense", "kind", "says"),
    [
        ({"mlp_arc.weight": (16, 16)}, None, "the head 'mlp_arc.weight', of an unknown kind"),
        ({"biaffine_arcs.weight": (1, 17, 16)}, None, "without 'biaffine_rels.weight'"),
        (
            {"biaffine_arcs.weight": (1, 17, 17), "biaffine_rels.weight": (38, 17, 17)},
            None,
            r"of the shapes \(1, 17, 17\) and \(38, 17, 17\): only LT-SFT's are read",
        ),
        (
            {"biaffine_arcs.weight": (1, 17, 16), "biaffine_rels.weight": (38, 17)},
            None,
            r"of the shapes \(1, 17, 16\) and \(38, 17\): only LT-SFT's are read",
        ),
        (
            {"biaffine_arcs.weight": (1, 17, 16), "biaffine_rels.weight": (38, 17, 17)},
            "tagging",
            "kind tagging: the head has 'biaffine_arcs.weight': say kind parsing, or none",
        ),
        (
            {"classifier.weight": (2, 16)},
            "parsing",
            "kind parsing: the head has no 'biaffine_arcs.weight': say its own kind",
        ),
    ],
)
def test_heads_of_unknown_kinds_are_refused_in_one_line(theirs, tmp_path, dense, kind, says):
    base, _, file = theirs
    query = "bert.encoder.layer.0.attention.self.query.weight"
    diffs = {query: lt_sft_files.sparse((16, 16))}
    write_their_file(file, diffs, {name: torch.ones(shape) for name, shape in dense.items()})
    with pytest.raises(DeftxError, match=says) as error:
        convert(file, tmp_path / "parser", base=base, kind=kind)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "parser").exists()


# --- the command line ---


@torch.no_grad()
def test_predict_writes_conllu_and_keeps_the_rest_of_the_file(theirs, tmp_path, run):
    base, _, file = theirs
    convert(file, tmp_path / "parser", base=base)
    path = tmp_path / "a.conllu"
    path.write_text(FILE.lower(), encoding="utf-8")
    options = ["--base", str(base), "--task", str(tmp_path / "parser")]
    answers = run("predict", *options, "--json", str(path)).out
    arcs = [json.loads(line)["arcs"] for line in answers.splitlines()]
    assert [len(own) for own in arcs] == [4, 1]
    assert arcs[1][0][0] == 0
    blocks = conllu_blocks(path)
    expected = "".join(with_arcs(block, own) for block, own in zip(blocks, arcs, strict=True))
    assert run("predict", *options, str(path)).out == expected
    run("predict", *options, str(path), "--out", str(tmp_path / "out.conllu"))
    assert (tmp_path / "out.conllu").read_text() == expected
    assert read_examples(tmp_path / "out.conllu", task="parsing").parts == [
        ["ba", "be", "li", "."],
        ["bo"],
    ]

    # Plain text becomes CoNLL-U; a saved model says the same
    (tmp_path / "a.txt").write_text("ba be li .\nbo\n")
    run("predict", *options, str(tmp_path / "a.txt"), "--out", str(tmp_path / "text.conllu"))
    written = read_examples(tmp_path / "text.conllu", task="parsing")
    assert written.labels == [[tuple(arc) for arc in own] for own in arcs]
    composed = run("compose", *options, "--out", str(tmp_path / "model"))
    assert "a model that deftx loads" in composed.out
    assert run("predict", "--model", str(tmp_path / "model"), str(path)).out == expected


def test_a_transfer_learns_a_parser_and_scores_it(tmp_path, bases, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, seed in (("ind", 1), ("jav", 2)):
        texts = tiny.sentences(40, seed)
        (tmp_path / f"{name}.txt").write_text("\n".join(tiny.sentences(40, seed + 10)))
        trees = []
        for words in map(str.split, texts):
            relations = ["nsubj:pass" if word[-1] in "ei" else "obj" for word in words]
            trees.append(with_arcs(conllu_block(words), list(enumerate(relations))))
        (tmp_path / f"{name}.conllu").write_text("".join(trees))
    options = ["--base", bases(), "--kind", "parsing", "--train", "ind.conllu"]
    options += ["--source", "ind.txt", "--target", "jav.txt", "--test", "jav=jav.conllu"]
    for setting in ("max_steps=3", "length=16", "evaluate_every=3", "epochs=1"):
        options += ["--set", f"task.training.{setting}", "--set", f"language.training.{setting}"]
    done = run("transfer", *options, "--out", "out", "--json")
    assert done.code == 0, done.err
    facts = {row["name"]: row["facts"] for row in json.loads(done.out)}
    assert "LAS" in facts["task"][0]
    assert any(fact.startswith("LAS") for fact in facts["jav"]), facts
    parsed = run("predict", "--model", "out/models/jav", "jav.conllu").out
    assert [line.split("\t")[:6] for line in parsed.splitlines()] == [
        line.split("\t")[:6] for line in (tmp_path / "jav.conllu").read_text().splitlines()
    ]


def test_examples_can_be_held_out():
    train, held = held_out(EXAMPLES["parsing"], 0.2, 0, named=True)
    assert (len(train), len(held)) == (10, 2)
    check_labels("a file", held, NAMES)
    with pytest.raises(DeftxError, match="a file, example 1: label 'root' is not among"):
        check_labels("a file", Examples(["ba"], labels=[[(0, "root")]]), ["obj"])


@pytest.mark.parametrize("trained", [False, True])
def test_a_new_head_is_0_also_on_a_base_that_has_another_one(bases, parser, tmp_path, trained):
    base = bases()
    if trained:
        parser().save_pretrained(tmp_path)
        TOKENIZER.save_pretrained(tmp_path)
        base = str(tmp_path)
    for names in (NAMES, NAMES[:5]):
        model = load_task_model(base, names, task=PARSING)
        assert model.biaffine_rels.weight.shape == (len(names), 17, 17)
        assert not model.biaffine_arcs.weight.any()
        assert not model.biaffine_rels.weight.any()
