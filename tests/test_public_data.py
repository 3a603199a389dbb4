"""Data as people publish it: read where its form says what it is, and told of where it is odd."""

import subprocess
import sys
import warnings

import pytest
import tiny
import torch
from torch import nn

import deftx
from deftx.cli.arguments import load_tasks, warn_of_little
from deftx.core.provenance import Provenance
from deftx.core.vector import SparseVector
from deftx.data.examples import Columns
from deftx.data.reading import read_pairs
from deftx.errors import DeftxError
from deftx.models.loading import load_language_model
from deftx.tasks.registry import TASKS
from deftx.tasks.tagging import as_bio, spans

NER, TAGGING = TASKS["ner"], TASKS["tagging"]
SENTENCES = [["Sari", "pergi", "ke", "Bogor"], ["Budi", "di", "Medan"]]
TAGS = [["B-PER", "O", "O", "B-LOC"], ["B-PER", "O", "B-LOC"]]


def written(path, separator, before="", between=""):
    rows = [
        "".join(f"{word}{separator}{between}{tag}\n" for word, tag in zip(words, tags, strict=True))
        for words, tags in zip(SENTENCES, TAGS, strict=True)
    ]
    path.write_text(before + "\n".join(rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["ner.txt", "ner.tsv", "ner.conll", "ner.bio", "ner.iob2"])
@pytest.mark.parametrize("separator", [" ", "\t", "  "])
def test_words_and_tags_are_read_whatever_parts_them(tmp_path, name, separator):
    examples = NER.read(written(tmp_path / name, separator), NER.columns, True)
    assert examples.parts == SENTENCES
    assert examples.labels == TAGS


def test_conll_2003_with_its_four_columns_and_documents_is_read(tmp_path):
    path = written(tmp_path / "ner.txt", " ", "-DOCSTART- -X- -X- O\n\n", "NN B-NP ")
    assert NER.read(path, NER.columns, True).labels == TAGS


def test_plain_text_to_be_tagged_has_a_text_on_each_line(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("Sari pergi\n\nke Bogor\n\n")
    assert NER.read(path, NER.columns, False).texts == ["Sari pergi", "", "ke Bogor", ""]


@pytest.mark.parametrize(
    ("tags", "bio"),
    [
        (["S-PER", "O", "B-LOC", "E-LOC"], ["B-PER", "O", "B-LOC", "I-LOC"]),
        (["U-PER", "B-LOC", "I-LOC", "L-LOC"], ["B-PER", "B-LOC", "I-LOC", "I-LOC"]),
        (["S-A", "S-A", "B-A", "E-A"], ["B-A", "B-A", "B-A", "I-A"]),
        (["B-PER", "I-PER", "O"], ["B-PER", "I-PER", "O"]),
    ],
)
def test_bioes_marks_the_same_names_as_bio(tmp_path, tags, bio):
    assert as_bio(tags) == bio
    path = tmp_path / "ner.tsv"
    path.write_text("".join(f"w{number}\t{tag}\n" for number, tag in enumerate(tags)))
    examples = NER.read(path, NER.columns, True)
    assert examples.labels == [bio]
    assert set(NER.label_names(examples)) == set(bio)
    assert len(spans(bio)) == sum(tag[0] in "BSU" for tag in tags)
    assert TAGGING.read(path, TAGGING.columns, True).labels == [
        tags
    ]  # elsewhere E- and S- may be anything


def read(tmp_path, text, name="data.tsv"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return deftx.read_examples(path)


def test_a_text_of_any_length_is_read(tmp_path):
    examples = read(tmp_path, 'text,label\n"' + "kota " * 30_000 + '",a\nbuku,b\n', "long.csv")
    assert len(examples.texts[0]) == 150_000


def test_a_space_before_a_quote_is_no_part_of_a_field(tmp_path):
    examples = read(tmp_path, 'text, label\n"kota, indah", "a"\n"kota, buruk", "b"\n', "data.csv")
    assert examples.labels == ["a", "b"]
    assert examples.texts == ["kota, indah", "kota, buruk"]


def test_spaces_within_fields_stay_where_nothing_is_quoted_after_one(tmp_path):
    assert read(tmp_path, 'text,label\n  kota "x",a\nbuku,b\n', "data.csv").texts == [
        '  kota "x"',
        "buku",
    ]


def test_a_header_that_comes_again_is_an_error_that_names_the_line(tmp_path):
    with pytest.raises(
        DeftxError, match=r"line 4: 'text' 'label' are the names of the columns again"
    ):
        read(tmp_path, "text\tlabel\nba\ta\nbe\tb\ntext\tlabel\nbi\ta\n")


@pytest.mark.parametrize(
    ("label", "says"),
    [
        ("-1", "often stands for none"),
        ("-", "often stands for none"),
        ("N/A", "often stands for none"),
        ("nan", "often stands for none"),
        ('"good"', "has quotes about it"),
        ("Good", "differs from 'good' by its writing alone"),
        ("ｇｏｏｄ", "differs from 'good' by its writing alone"),
        ("go\u200bod", "differs from 'good' by its writing alone"),
        ("good,bad", "holds several labels"),
        ("good | bad", "holds several labels"),
        ("1.0", "differs from '1' by its writing alone"),
    ],
)
def test_odd_labels_are_warned_of_with_their_line(tmp_path, label, says):
    with pytest.warns(UserWarning, match=r"line 5: the label .* " + says):
        examples = read(tmp_path, f"text\tlabel\nba\tgood\nbe\tbad\nbi\t1\nbo\t{label}\n")
    assert examples.labels == ["good", "bad", "1", label]


@pytest.mark.parametrize(
    "labels", [["a", "b"], ["good, really", "bad"], ["0", "1", "10"], ["C++", "C"], ["n", "no"]]
)
def test_nothing_is_said_of_ordinary_labels(tmp_path, labels):
    read(tmp_path, "text\tlabel\n" + "".join(f"ba\t{label}\n" for label in labels))


def test_odd_labels_without_end_are_named_a_few_times_and_quickly(tmp_path):
    text = "text\tlabel\n" + "".join(f"ba\tx{number}\nba\tX{number}\n" for number in range(20_000))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read(tmp_path, text)
    assert len(caught) == 5


def test_a_line_of_plain_text_is_a_text_also_where_the_last_ones_are_blank(tmp_path):
    path = tmp_path / "text.txt"
    for content, count in [("a\n\nb\n\n", 4), ("a\nb", 2), ("a\r\n\r\n", 2), ("\na\n", 2)]:
        path.write_bytes(content.encode())
        assert len(read_pairs(path, Columns(), None)) == count


def compiled(model):
    return torch.compile(model, backend="eager")


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, compiled, lambda model: nn.DataParallel(compiled(model))]
)
def test_a_wrapped_model_has_the_delta_of_the_model_itself(bases, wrap):
    model, base = load_language_model(bases()), load_language_model(bases())
    with torch.no_grad():
        model.base_model.embeddings.word_embeddings.weight += 1
    wanted, found = deftx.delta(model, base), deftx.delta(wrap(model), wrap(base))
    assert found.keys() == wanted.keys()
    assert all(found[name].equal(wanted[name]) for name in wanted)
    vector = tiny.random_vector(base, 3)
    deftx.apply(wrap(base), vector)
    other = load_language_model(bases())
    deftx.apply(other, vector)
    assert all(map(torch.equal, base.parameters(), other.parameters()))


def test_a_language_vector_in_a_tasks_place_is_called_so(bases, tmp_path):
    vector = tiny.random_vector(load_language_model(bases()), 3)
    deftx.save(SparseVector(vector.tensors, None, Provenance(kind="language")), tmp_path / "min")
    with pytest.raises(
        DeftxError, match=r"min is a language vector, which has no labels: give it as --language"
    ):
        load_tasks([str(tmp_path / "min")])


def test_a_text_of_a_few_lines_again_and_again_is_warned_of():
    lines = ["ba be bi bo bu" * 20, "da de di do du" * 20, "ka ke ki ko ku" * 20]
    with pytest.warns(UserWarning, match="the text has 60 lines, of which 3 differ"):
        warn_of_little(lines * 20)
    warn_of_little([f"{line} {number}" for number in range(20) for line in lines])


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_what_an_encoding_lacks_is_written_in_another_way_and_not_lost(encoding):
    code = "from deftx.messages import write_all_characters as w; w(); print('да 🙂', chr(0xd83d))"
    environment = {"PYTHONIOENCODING": encoding, "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, check=True, timeout=60
    )
    said = done.stdout.decode(encoding)
    assert r"\ud83d" in said
    assert ("да" if encoding == "utf-8" else r"\u0434\u0430") in said
