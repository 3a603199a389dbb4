"""Words put into the spelling of a related language: which are found, where capitals go, what stays
as it is."""

import json
import re
import unicodedata
from collections import Counter
from functools import partial
from itertools import product

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from task_examples import EXAMPLES
from tiny_run import RECIPE, labelled

import deftx
from deftx.data.examples import written
from deftx.data.letter_case import lower_case
from deftx.errors import DeftxError
from deftx.experiments.recipe import load_recipe
from deftx.experiments.run import prepare
from deftx.tasks import normalization as module
from deftx.tasks.normalization import (
    Normalizer,
    build_normalizer,
    cognates,
    normalize_text,
    read_normalizer,
)
from deftx.tasks.registry import TASKS

pytestmark = pytest.mark.once


WORD = st.text("abc", min_size=2, max_size=7)
WORDS = st.lists(WORD, max_size=25)


def distance(one, other):
    """The fewest letters to put in, leave out or replace."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


@given(WORDS, WORDS)
def test_the_words_found_are_those_that_a_search_of_all_pairs_finds(texts, source):
    count = Counter(source)
    known = [word for word in count if count[word] >= 2 and len(word) >= 4]
    expected = {}
    for word in {word for word in texts if count[word] < 2 and len(word) >= 4}:
        alike = {other: 1 - distance(word, other) / max(len(word), len(other)) for other in known}
        near = [other for other in known if alike[other] >= 0.7 - 1e-9]
        if near:
            expected[word] = min(
                near, key=lambda other: (-round(alike[other], 6), -count[other], other)
            )
    assert cognates([" ".join(texts)], [" ".join(source)]) == expected


@given(WORDS, WORDS)
def test_each_word_is_found_by_itself(texts, source):
    known = [" ".join(source)]
    alone = {word: other for text in texts for word, other in cognates([text], known).items()}
    assert cognates(texts, known) == alone


def test_more_words_than_are_compared_at_once():
    words = ["".join(letters) for letters in product("aeiou", "kst", "aeiou", "kst", "aeiou")]
    found = cognates([" ".join(words)], [" ".join(f"{word}xy" for word in words)] * 2)
    assert len(words) > 2 * module.WORDS_PER_BATCH
    assert found == {word: f"{word}xy" for word in words}


def test_only_the_words_that_occur_most_are_looked_at(monkeypatch):
    source, texts = ["karena makanan karena"] * 2, ["kareuna", "makananna kareuna"]
    assert cognates(texts, source) == {"kareuna": "karena", "makananna": "makanan"}
    monkeypatch.setattr(module, "MAX_SOURCE_WORDS", 1)
    assert cognates(texts, source) == {"kareuna": "karena"}


@pytest.mark.parametrize(
    ("texts", "source"),
    [([], ["abcd"] * 2), (["abcd"], []), ([""], [""]), (["1234"], ["1235 1235"])],
)
def test_without_words_there_are_none(texts, source):
    assert cognates(texts, source) == {}


def test_vowels_that_are_written_as_marks_are_parts_of_words():
    assert cognates(["प्रतीक्षा"], ["प्रतिक्षा "] * 2) == {"प्रतीक्षा": "प्रतिक्षा"}


@pytest.mark.parametrize("lower", [False, True])
def test_capitals_stay_or_go_and_so_does_all_that_is_no_word_of_the_table(lower):
    table, spelt = {"nang": "yang", "dangan": "dengan"}, "Yang, DENGAN 5 yang-x! Nangka dengan_yang"
    found = normalize_text("Nang, DANGAN 5 nang-x! Nangka dangan_nang", Normalizer(table, lower))
    assert found == (spelt.lower() if lower else spelt)


@given(st.text(max_size=40))
def test_a_text_without_words_of_the_table_stays(text):
    if "ab" not in text.lower():
        assert normalize_text(text, Normalizer({"ab": "cd"}, False)) == text


@pytest.mark.parametrize("task", TASKS)
def test_examples_of_every_task_keep_their_labels(task):
    examples = EXAMPLES[task]
    source = [re.sub(r"[aeiou]", "y", text) for text in written(examples) * 2]
    found = deftx.normalize(examples, source, task=task)
    assert found.labels == examples.labels
    assert len(found) == len(examples)


def test_words_are_those_of_the_source_and_those_that_it_has_stay():
    examples = deftx.Examples(
        ["Kareuna enak", "karana maha"], pairs=["lamak", "karena"], labels=["a", "b"]
    )
    spelt = deftx.Examples(
        ["Karena enak", "karena mahal"], pairs=["lamak", "karena"], labels=["a", "b"]
    )
    assert deftx.normalize(examples, ["Karena mahal"] * 2) == spelt
    assert deftx.normalize(examples, ["Karena"], ["karena mahal", "mahal"]) == spelt
    assert deftx.normalize(examples, ["Karena mahal"] * 2, words=False) == examples


@pytest.mark.parametrize(
    ("with_capitals", "lower"), [(0, True), (2, True), (3, False), (200, False)]
)
def test_capitals_go_where_the_task_has_seen_hardly_any(with_capitals, lower):
    like = ["Karena enak"] * with_capitals + ["karena enak"] * (200 - with_capitals)
    examples = deftx.Examples(["Kareuna ENAK"], labels=["a"])
    assert deftx.normalize(examples, like).texts == ["karena enak" if lower else "Karena ENAK"]
    assert deftx.normalize(examples, like, words=False).texts == [
        "kareuna enak" if lower else "Kareuna ENAK"
    ]


@pytest.mark.parametrize(
    ("texts", "lower"),
    [
        ([], False),
        (["karena enak", "5"], True),
        (["Karena enak", "karena"], False),
        (["karena"] * 99 + ["Karena"], True),
        (["karena"] * 98 + ["Karena"], False),
        (["प्रतीक्षा", "5"], False),  # letters without cases
        (["प्रतीक्षा", "karena"], True),
    ],
)
def test_texts_are_in_lower_case_where_hardly_any_has_a_capital_but_could(texts, lower):
    assert lower_case(texts) == lower


def in_longer_words(text):
    """Syllables put together by twos."""
    return re.sub(r"\b(\w\w) (\w\w)\b", r"\1\2", text)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Data of a recipe, languages that differ in a vowel and capitals, and variants that put them
    into one spelling."""
    monkeypatch.chdir(tmp_path)
    tiny.save_base(tmp_path / "base")
    labelled(tmp_path / "src.tsv", 0)
    files = {"txt": "\n".join(tiny.sentences(60)), "tsv": (tmp_path / "src.tsv").read_text()}
    (tmp_path / "blank.tsv").write_text("text\n \n")
    for name, vowel in {"src": "o", "tar": "U", "far": "y"}.items():
        for suffix, text in files.items():
            (tmp_path / f"{name}.{suffix}").write_text(
                in_longer_words(text)
                .replace("o", vowel)
                .replace(f"fr{vowel}nt", "front")  # the label's name
            )
    languages = {name: f"{name}.txt" for name in ("src", "tar", "far")}
    tests = {name: f"{name}.tsv" for name in languages}
    variants = {
        "DeFT-X": {},
        "case": {"normalize": "case"},
        "words": {"normalize": "words"},
        "again": {"normalize": "words", "task": {"rank": 2}},
    }
    changed = {
        **RECIPE,
        "variants": variants,
        "languages": languages,
        "test": tests,
        "contamination": "ignore",
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(changed))
    return tmp_path


def test_a_variant_is_scored_on_texts_in_another_spelling_and_shares_the_rest(folder):
    with pytest.warns(UserWarning, match="the test texts of tar have some: `normalize: case`"):
        ready = prepare(load_recipe(folder / "recipe.yaml"), folder / "store")
    steps = {
        (u.variant, u.name, ready.plan.steps[s].kind): s
        for s, uses in ready.plan.uses.items()
        for u in uses
    }
    for name in ("src", "tar", "far", "task"):
        assert (
            steps["DeFT-X", name, "vector"]
            == steps["case", name, "vector"]
            == steps["words", name, "vector"]
        )
    tests = {
        key[:2]: ready.plan.steps[step].spec["test"]
        for key, step in steps.items()
        if key[2] == "score"
    }
    like, text = deftx.read_text("src.tsv"), deftx.read_text("src.txt")
    for name in ("tar", "far"):
        plain = deftx.read_examples(f"{name}.tsv")
        expected = {
            "DeFT-X": plain,
            "case": deftx.normalize(plain, like, words=False),
            "words": deftx.normalize(plain, like, text),
        }
        for variant, examples in expected.items():
            assert ready.store.examples(tests[variant, name]) == examples
        assert expected["words"].texts != expected["case"].texts
        assert (expected["case"] != plain) == (name == "tar")
        assert tests["again", name] == tests["words", name]
    assert tests["DeFT-X", "src"] == tests["case", "src"] == tests["words", "src"]


def test_a_recipe_that_normalizes_words_needs_the_text_of_its_source(folder):
    changes = {
        "variants": {"none": {"target": False, "source": False, "normalize": "words"}},
        "languages": {},
    }
    told = {**json.loads((folder / "recipe.yaml").read_text()), **changes}
    (folder / "recipe.yaml").write_text(json.dumps(told))
    with pytest.raises(DeftxError, match="no text for 'src'"):
        load_recipe(folder / "recipe.yaml")
    told["variants"]["none"]["normalize"] = "case"
    (folder / "recipe.yaml").write_text(json.dumps(told))
    prepare(load_recipe(folder / "recipe.yaml"), folder / "store")


def test_a_recipe_of_an_older_version_says_respell_for_normalize(folder):
    recipe = json.loads((folder / "recipe.yaml").read_text())
    new = load_recipe(folder / "recipe.yaml")
    for variant in recipe["variants"].values():
        if "normalize" in variant:
            variant["respell"] = variant.pop("normalize")
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    assert load_recipe(folder / "recipe.yaml") == new
    assert new.variants["words"].normalize == "words"


@pytest.fixture
def typed(run):
    return partial(run, "data", "normalize")


@pytest.mark.parametrize("suffix", [".tsv", ".jsonl", ".csv"])
@pytest.mark.parametrize("options", [[], ["--case-only"], ["--text", "src.txt"]])
def test_the_command_writes_the_same_rows_in_the_spelling_of_the_source(
    folder, typed, suffix, options
):
    done = typed("tar.tsv", "--like", "src.tsv", *options, "--out", f"new{suffix}")
    assert done.code == 0, done.err
    assert done.out.startswith(f"new{suffix}: the texts of tar.tsv, all in lower case, ")
    found, plain = deftx.read_examples(f"new{suffix}"), deftx.read_examples("tar.tsv")
    text = deftx.read_text("src.txt") if "--text" in options else ()
    assert found == deftx.normalize(
        plain, deftx.read_text("src.tsv"), text, words="--case-only" not in options
    )
    assert found.texts != plain.texts


def test_the_command_changes_lists_of_words_and_tells_what_it_found(folder, typed):
    (folder / "tags.jsonl").write_text('{"words": ["Karana", "enak"], "tags": ["C", "A"]}\n' * 2)
    (folder / "ind.txt").write_text("Karena makan\n" * 2)
    done = typed(
        "tags.jsonl", "--like", "ind.txt", "--column", "words", "--out", "new.jsonl", "--json"
    )
    assert done.code == 0, done.err
    assert json.loads(done.out) == {"lower_case": False, "words": {"karana": "karena"}}
    rows = [json.loads(line) for line in (folder / "new.jsonl").read_text().splitlines()]
    assert rows == [{"words": ["Karena", "enak"], "tags": ["C", "A"]}] * 2


def test_what_it_is_like_is_read_from_the_same_columns_or_the_usual_ones(folder, typed):
    (folder / "review.tsv").write_text("review\tlabel\nkarana enak\tx\n")
    (folder / "same.tsv").write_text("review\tlabel\nkarena makan\tx\nkarena makan\tx\n")
    (folder / "nli.tsv").write_text("premise\thypothesis\tlabel\nkarena makan\tkarena makan\tx\n")
    for like in ("same.tsv", "nli.tsv"):
        done = typed(
            "review.tsv", "--like", like, "--column", "review", "--out", "new.tsv", "--force"
        )
        assert done.code == 0, done.err
        assert (folder / "new.tsv").read_text() == "review\tlabel\nkarena enak\tx\n"


def test_the_command_changes_lines_of_text(folder, typed):
    (folder / "new.txt").write_text("Karana enak.\n\nmaha\n")
    (folder / "ind.txt").write_text("karena mahal\n" * 2)
    done = typed("new.txt", "--like", "ind.txt", "--out", "normalized.txt")
    assert done.code == 0, done.err
    assert (folder / "normalized.txt").read_text() == "karena enak.\n\nmahal\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tar.tsv", "--like", "src.txt", "--out", "tar.tsv"], "exists"),
        (
            ["tar.tsv", "--like", "src.txt", "--out", "new", "--normalizer", "./new"],
            "cannot hold both the texts and the normalizer",
        ),
        (
            ["tar.tsv", "--like", "src.txt", "--out", "new.tsv", "--column", "review"],
            "has no column 'review'",
        ),
        (["tar.tsv", "--like", "none.txt", "--out", "new.tsv"], "does not exist"),
        (["tar.tsv", "--like", "blank.tsv", "--out", "new.tsv"], "blank.tsv has no usable line"),
        (
            ["tar.tsv", "--like", "src.txt", "--text", "none.txt", "--out", "new.tsv"],
            "does not exist",
        ),
        (["tar.tsv", "--like", "src.txt", "--out", "new.docx"], "unknown kind of file to write"),
        (["tar.tsv", "--like", "src.txt", "--normalizer", "tar.tsv"], "exists"),
        (
            ["tar.tsv", "--like", "src.txt"],
            "say what to write: --out FILE for the texts, --normalizer FILE",
        ),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(folder, typed, arguments, said):
    before = sorted(folder.iterdir())
    done = typed(*arguments)
    assert done.code == 2
    assert said in done.err
    assert done.err.count("\n") == 1
    assert sorted(folder.iterdir()) == before


def test_what_the_command_tells_is_a_spelling_for_later_texts(folder, typed):
    done = typed(
        "tar.tsv", "--like", "src.tsv", "--text", "src.txt", "--normalizer", "spelling.json"
    )
    assert done.code == 0, done.err
    assert done.out.startswith("spelling.json: a normalizer for tar.tsv, all in lower case, ")
    plain, like, text = (
        deftx.read_examples("tar.tsv"),
        deftx.read_text("src.tsv"),
        deftx.read_text("src.txt"),
    )
    normalizer = deftx.read_normalizer("spelling.json")
    assert normalizer == deftx.build_normalizer(plain.texts, like, text)
    assert normalizer.lower
    assert normalizer.words
    assert [normalize_text(line, normalizer) for line in plain.texts] == deftx.normalize(
        plain, like, text
    ).texts


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"3",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        b'{"lower_case": true}',
        b'{"lower_case": 1, "words": {}}',
        b'{"lower_case": true, "words": ["karana"]}',
        b'{"lower_case": true, "words": {"karana": 3}}',
    ],
)
def test_another_file_is_no_spelling(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(
        DeftxError, match=r"file holds no normalizer: write one with `deftx data normalize"
    ):
        deftx.read_normalizer(tmp_path / "file")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DeftxError, match=r"cannot read .*file: No such file"):
        deftx.read_normalizer(tmp_path / "file")


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
def test_a_word_that_the_source_has_in_another_form_of_unicodes_is_known(form):
    source = ["malé kota male maleh"] * 4
    text = unicodedata.normalize(form, "malé kota")
    assert cognates([text], source) == {}
    assert normalize_text(text, build_normalizer([text], source)) == text


def test_a_word_with_unseen_characters_is_the_same_word():
    source = ["karena kota"] * 3
    assert cognates(["ka\u00adrena ko\ufeffta"], source) == {}
    assert cognates(["ka\u00adruna"], source) == {"karuna": "karena"}
    assert normalize_text("Ka\u00adruna", Normalizer({"karuna": "karena"}, False)) == "Karena"


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_what_takes_a_words_place_is_in_the_sources_own_form(form):
    source = [unicodedata.normalize(form, "maléhan")] * 3
    other = "NFD" if form == "NFC" else "NFC"
    text = unicodedata.normalize(other, "maléhun")
    assert normalize_text(text, build_normalizer([text], source)) == source[0]


def test_a_spelling_that_was_written_in_another_form_is_read(tmp_path):
    file = tmp_path / "spelling.json"
    words = {unicodedata.normalize("NFD", "maléhun"): "maléhan"}
    file.write_text(json.dumps({"lower_case": False, "words": words}))
    assert normalize_text("maléhun", read_normalizer(file)) == "maléhan"
