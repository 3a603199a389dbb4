"""Evaluation text in training text is found by every rule, and by none where there is nothing to
find."""

import csv
import json
import random
import unicodedata
from functools import partial
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tiny import save_base

from deftx.data.contamination import (
    RULES,
    Overlap,
    describe_counts,
    find_contaminated_examples,
    find_contamination,
    normalised,
)
from deftx.data.examples import Examples
from deftx.errors import DeftxError
from deftx.experiments.data import read
from deftx.experiments.recipe import load_recipe

pytestmark = pytest.mark.once


HELD_OUT = "Makanannya enak sekali, pelayanan di sini ramah dan harganya murah!"
TEXTS = st.lists(st.text("ab c.,D", max_size=30), max_size=8)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("makanannya ENAK sekali pelayanan -- di sini ramah, dan harganya murah", "equal"),
        (
            "Kata ibu: pelayanan di sini ramah dan harganya murah! Betul.",
            None,
        ),  # seven shared words
        ("Kata ibu: sekali pelayanan di sini ramah dan harganya murah! Betul.", "words"),
        ("Makanannya enak sekali, pelayanan di situ ramah dan harganya murah!", "similar"),
        ("Makanannya basi sekali, pelayanan di situ lambat dan harganya mahal!", None),
        ("", None),
        ("...", None),
    ],
)
def test_each_rule_by_an_example(text, kind):
    found = find_contamination([text], ["sesuatu yang lain sama sekali", HELD_OUT])
    assert found == ([Overlap(0, 1, kind)] if kind else [])


@pytest.mark.parametrize(
    ("training", "evaluation", "found"),
    [
        (
            "kata ibu: kebersihannya mengagumkan semua tamu",
            "Kebersihannya mengagumkan semua!",
            True,
        ),
        (
            "Kebersihannya mengagumkan semua!",
            "kata ibu: kebersihannya mengagumkan semua tamu",
            True,
        ),
        ("kata ibu enak sekali tamu", "Enak sekali!", False),  # too short to mean anything
        (
            "kebersihannya mengagumkan semuanya",
            "Kebersihannya mengagumkan semua",
            False,
        ),  # no whole word
    ],
)
def test_a_short_text_that_stands_whole_in_another_is_found_on_either_side(
    training, evaluation, found
):
    kinds = [
        leak.kind for leak in find_contamination([training], [evaluation]) if leak.kind != "similar"
    ]
    assert kinds == (["contained"] if found else [])


def test_all_of_several_equal_texts_are_found():
    text = "makanan di sini enak sekali"
    found = find_contamination([text, "lain saja", text.upper() + "!", text], [text + " dan murah"])
    assert [(leak.training, leak.kind) for leak in found] == [
        (0, "contained"),
        (2, "contained"),
        (3, "contained"),
    ]


def test_a_mark_on_a_letter_does_not_part_a_word():
    assert normalised("  Ção,\u2028n\u0303a—x_y 2\u0e33 ") == "ção ña x y 2\u0e4d\u0e32"  # in NFKC


def distance(first, second):
    """Levenshtein's, by the textbook."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        last, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (a != b))
    return row[-1]


def plainly(training, evaluation):
    """The rules, as they are written, for every pair; the first rule that holds."""

    def kinds(old, new):
        words = [f" {text} ".split(" ")[1:-1] for text in (old, new)]
        runs = [{tuple(part[i : i + 8]) for i in range(len(part) - 7)} for part in words]
        short, long = sorted((old, new), key=len)
        yield "equal", old == new
        yield (
            "contained",
            len(short) >= 25 and len(short.split()) < 8 and f" {short} " in f" {long} ",
        )
        yield "words", bool(runs[0] & runs[1])
        yield "similar", distance(old, new) <= 0.1 * max(len(old), len(new)) + 1e-9

    found = []
    for place, old in enumerate(map(normalised, training)):
        held = {
            k
            for new in map(normalised, evaluation)
            if old and new
            for k, holds in kinds(old, new)
            if holds
        }
        if held:
            found.append((place, min(held, key=list(RULES).index)))
    return found


@given(TEXTS, TEXTS)
def test_the_quick_ways_find_what_comparing_every_pair_finds(training, evaluation):
    assert [
        (leak.training, leak.kind) for leak in find_contamination(training, evaluation)
    ] == plainly(training, evaluation)


def test_the_quick_ways_find_the_same_in_sentences_that_overlap():
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefgh", k=5)) for _ in range(40)]
    evaluation = [" ".join(draw.choices(words, k=draw.randint(4, 14))) for _ in range(16)]
    training = []
    for text in evaluation:
        whole = text.split(" ")
        first, last = sorted(draw.sample(range(len(whole) + 1), 2))
        changed = text.replace(draw.choice(text.replace(" ", "")), "x", 1)
        training += [
            text,
            f"x {text} y",
            " ".join(whole[first:last]),
            changed,
            " ".join(draw.sample(whole, len(whole))),
        ]
    for rule in range(
        5
    ):  # without the texts that are equal, and so on, so that the later rules have their say
        found = [
            (leak.training, leak.kind) for leak in find_contamination(training[rule::5], evaluation)
        ]
        assert found == plainly(training[rule::5], evaluation)
    assert {leak.kind for leak in find_contamination(training, evaluation)} == set(RULES)


def test_of_pairs_both_texts_count_and_an_example_once():
    examples = Examples(["a b", HELD_OUT, HELD_OUT], ["c d", "e f", HELD_OUT], ["x", "y", "z"])
    found = find_contaminated_examples(examples, [HELD_OUT, "c d"])
    assert found == [Overlap(0, 1, "equal"), Overlap(1, 0, "equal"), Overlap(2, 0, "equal")]
    assert describe_counts(found) == "3 equal"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A recipe of which the second line of one text, and the first labelled one, are in the test
    data."""
    folder = tmp_path_factory.mktemp("leak")
    save_base(folder / "base")
    (folder / "src.txt").write_text("ba be bi\nda de di\n")
    (folder / "tar.txt").write_text(f"ba bo bu\n{HELD_OUT.upper()}\nga ge gi\n")
    (folder / "train.tsv").write_text(f"text\tlabel\n{HELD_OUT}\tgood\nda do\tbad\nka ko\tgood\n")
    (folder / "valid.tsv").write_text(f"text\tlabel\n{HELD_OUT}\tgood\nga go\tbad\nna no\tgood\n")
    (folder / "test.tsv").write_text(f"text\tlabel\nsesuatu\tbad\n{HELD_OUT}\tgood\n")
    recipe = {
        "base": "base",
        "languages": {"src": "src.txt", "tar": "tar.txt"},
        "source": "src",
        "train": "train.tsv",
        "valid": "valid.tsv",
        "test": {"tar": "test.tsv"},
        "variants": {"LT-SFT": {}},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def test_a_run_stops_before_any_training_and_names_the_texts(folder):
    with pytest.raises(DeftxError) as caught:
        read(load_recipe(folder / "recipe.yaml"))
    assert str(caught.value).startswith("tar: 1 of 3 texts hold evaluation text: no. 2 'MAKANANNYA")
    assert "(equal, test of tar)" in str(caught.value)
    assert "contamination to trim" in str(caught.value)


def test_a_run_trims_where_it_is_told_to_and_says_how_much(folder):
    data = read(load_recipe(folder / "recipe.yaml", {"contamination": "trim"}))
    assert data.texts == {"src": ["ba be bi", "da de di"], "tar": ["ba bo bu", "ga ge gi"]}
    assert data.train["src"] == Examples(["da do", "ka ko"], None, ["bad", "good"])
    assert data.valid["src"] == Examples(["ga go", "na no"], None, ["bad", "good"])
    one_of_three = "1 of 3 (1 equal)"
    assert data.trimmed == {
        "tar": one_of_three,
        "labelled data": one_of_three,
        "validation data": one_of_three,
    }


def test_evaluation_text_in_validation_data_alone_stops_a_run_too(folder, tmp_path):
    """The best step would else be chosen on the test."""
    clean = tmp_path / "clean.tsv"
    clean.write_text("text\tlabel\nDa do\tbad\nka ko\tgood\n")
    text = tmp_path / "tar.txt"
    text.write_text("ba bo bu\nga ge gi\n")
    changes = {"train": str(clean), "languages": {"tar": str(text)}}
    with pytest.raises(
        DeftxError, match=r"^validation data: 1 of 3 texts hold evaluation text: no. 1 'Makanannya"
    ):
        read(load_recipe(folder / "recipe.yaml", changes))


def test_validation_data_that_are_all_evaluation_text_are_missed_before_any_training(
    folder, tmp_path
):
    leaking = tmp_path / "valid.tsv"
    leaking.write_text(f"text\tlabel\n{HELD_OUT}\tgood\n")
    with pytest.raises(
        DeftxError, match=r"^validation data: all 1 texts hold evaluation text, so nothing is left"
    ):
        read(load_recipe(folder / "recipe.yaml", {"valid": str(leaking), "contamination": "trim"}))


def test_a_run_ignores_it_where_it_is_told_to(folder):
    data = read(load_recipe(folder / "recipe.yaml", {"contamination": "ignore"}))
    assert len(data.train["src"]) == len(data.texts["tar"]) == 3
    assert data.trimmed == {}


@pytest.fixture
def trim(folder, run):
    return partial(run, "data", "trim")


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl"])
def test_trimming_writes_the_other_rows_as_they_were(folder, tmp_path, trim, suffix):
    out = tmp_path / f"out{suffix}"
    done = trim(folder / "train.tsv", "--against", folder / "test.tsv", "--out", out)
    assert done.code == 0
    assert done.out.splitlines() == [
        f"{folder}/train.tsv, line 2: equal, {folder}/test.tsv, line 3",
        f"1 rows of {folder}/train.tsv hold evaluation text; the others are in {out}",
    ]
    rows = [["da do", "bad"], ["ka ko", "good"]]
    if suffix == ".jsonl":
        assert [list(json.loads(line).values()) for line in out.read_text().splitlines()] == rows
    else:
        read_rows = list(
            csv.reader(out.read_text().splitlines(), delimiter="\t" if suffix == ".tsv" else ",")
        )
        assert read_rows == [["text", "label"], *rows]


def test_trimming_plain_text_and_json(folder, tmp_path, trim):
    out = tmp_path / "out.txt"
    done = trim(folder / "tar.txt", "--against", folder / "test.tsv", "--out", out, "--json")
    assert done.code == 0
    row = {"row": f"{folder}/tar.txt, line 2", "of": f"{folder}/test.tsv, line 3", "kind": "equal"}
    assert json.loads(done.out) == [row]
    assert out.read_text() == "ba bo bu\nga ge gi\n"


def test_files_may_have_their_texts_in_columns_of_different_names(folder, tmp_path, trim):
    (ours := tmp_path / "ours.csv").write_text("Review,Stars\nba be bi,1\nde di do,2\n")
    (theirs := tmp_path / "theirs.tsv").write_text("text\tlabel\nde di do\tx\n")
    done = trim(ours, "--against", theirs, "--column", "Review", "--out", tmp_path / "out.csv")
    assert done.code == 0
    assert (tmp_path / "out.csv").read_text() == "Review,Stars\nba be bi,1\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["tar.txt", "--against", "test.tsv", "--column", "review"],
            "unknown column 'review'; known: label, text",
        ),
        (
            ["train.tsv", "--against", "test.tsv", "--out", "OUT.docx"],
            "unknown kind of file to write",
        ),
        (["train.tsv", "--against", "test.tsv", "--out", "OUT.txt"], "holds one column"),
        (["train.tsv", "--against", "test.tsv", "--out", "train.tsv"], "exists"),
        (["none.tsv", "--against", "test.tsv"], "does not exist"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(folder, trim, arguments, said):
    before = sorted(Path(folder).iterdir())
    done = trim(*[folder / a if "." in a else a for a in arguments])
    assert done.code == 2
    assert said in done.err
    assert done.err.count("\n") == 1
    assert sorted(Path(folder).iterdir()) == before


YORUBA = "ọjọ́ ìbí mi ni ọ̀la àti pé inú mi dùn"
# Pairs of texts that Unicode writes in two ways, in several scripts
SAME = {
    "composed and decomposed": (
        unicodedata.normalize("NFC", YORUBA),
        unicodedata.normalize("NFD", YORUBA),
    ),
    "Hangul syllables and letters": (
        "오늘 날씨가 좋다",
        unicodedata.normalize("NFD", "오늘 날씨가 좋다"),
    ),
    "Vietnamese": ("Trời hôm nay đẹp lắm", unicodedata.normalize("NFD", "trời hôm nay đẹp lắm")),
    "Devanagari nukta": ("\u0958लम और \u095bमीन", "क\u093cलम और ज\u093cमीन"),
    "Bengali vowel": ("কোথায় যাও", unicodedata.normalize("NFD", "কোথায় যাও")),
    "Arabic forms": ("سلام عليكم", "ﺳﻼﻡ ﻋﻠﻴﻜﻢ"),
    "full width": ("kota indah 12", "ｋｏｔａ　ｉｎｄａｈ　１２"),
    "ligature": ("office first", "oﬃce ﬁrst"),
    "soft hyphen": ("makanan enak", "ma\u00adkan\u00adan enak"),
    "zero-width space within a word": ("makanan enak", "maka\u200bnan enak"),
    "joiner": ("می‌روم خانه", "میروم خانه"),
    "byte order mark": ("kota indah", "\ufeffkota indah"),
    "marks of direction": ("שלום עולם", "\u200fשלום\u200e עולם"),
    "variation selector": ("ᠮᠣᠩᠭᠣᠯ", "ᠮᠣᠩ\u180bᠭᠣᠯ"),
    "capitals without one of their own": ("straße ὁδός", "STRASSE ὉΔΌΣ"),
}


@pytest.mark.parametrize("kind", SAME)
def test_texts_that_unicode_writes_in_two_ways_are_equal(kind):
    one, other = SAME[kind]
    assert one != other
    assert find_contamination([one], [other]) == [Overlap(0, 0, "equal")]
    assert find_contamination([other], [one]) == [Overlap(0, 0, "equal")]


def test_marks_that_make_another_word_stay():
    assert find_contamination(["ọkọ̀"], ["ọkọ"]) == []
    assert find_contamination(["কত"], ["কাত"]) == []


def test_a_zero_width_space_parts_words_where_no_spaces_are_written():
    parted, spaced = "ខ្ញុំ\u200bទៅ\u200bផ្សារ", "ខ្ញុំ ទៅ ផ្សារ"
    assert normalised(parted) == normalised(spaced)
