"""Words put into the spelling of a related language: which are found, how many are replaced, what stays as it is."""

import json
import re
from collections import Counter

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from test_run import RECIPE, labelled
from test_tasks import EXAMPLES

import deftx
from deftx import cli
from deftx.errors import DeftxError
from deftx.experiments.recipe import load_recipe
from deftx.experiments.run import prepare
from deftx.tasks import cognates as module
from deftx.tasks.cognates import cognates, respeller
from deftx.tasks.data import written
from deftx.tasks.table import TASKS

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


@given(WORDS, WORDS, WORDS)
def test_the_words_found_are_those_that_a_search_of_all_pairs_finds(ours, theirs, others):
    count, known = Counter(theirs), Counter(ours) + Counter(others)
    new = [word for word in count if count[word] >= 2 and len(word) >= 4 and known[word] < 2]
    expected = {}
    for word in {word for word in ours if ours.count(word) >= 2 and len(word) >= 4}:
        alike = {other: 1 - distance(word, other) / max(len(word), len(other)) for other in new}
        near = [other for other in new if alike[other] >= 0.7 - 1e-9]
        if near:
            expected[word] = min(near, key=lambda other: (-round(alike[other], 6), -count[other], other))
    assert cognates([" ".join(ours)], [" ".join(theirs)], [" ".join(others)]) == expected


def test_only_the_words_that_occur_most_are_looked_at(monkeypatch):
    ours, theirs = ["karena makanan"] * 2, ["kareuna makananna kareuna", "makananna kareuna"]
    assert cognates(ours, theirs) == {"karena": "kareuna", "makanan": "makananna"}
    monkeypatch.setattr(module, "MOST", 1)
    assert cognates(ours, theirs) == {"karena": "kareuna"}


@pytest.mark.parametrize(
    ("ours", "theirs"), [([], ["a"]), (["abcd abcd"], []), ([""], [""]), (["1234 1234"], ["1235 1235"])]
)
def test_without_words_there_are_none(ours, theirs):
    assert cognates(ours, theirs) == {}


def test_each_text_is_in_one_spelling_and_as_many_are_in_each():
    tables = [{"yang": "nang", "dengan": "dangan"}, {"yang": "yeng", "dengan": "deungan"}]
    spell = respeller(tables, 1.0, 0)
    found = Counter(spell("yang, DENGAN 5 Yang-x!") for _ in range(3_000))
    assert found.keys() == {"yang, DENGAN 5 Yang-x!", "nang, DANGAN 5 Nang-x!", "yeng, DEUNGAN 5 Yeng-x!"}
    assert all(count == pytest.approx(1_000, abs=120) for count in found.values())


def test_the_share_of_words_is_the_one_asked_for():
    spell = respeller([{"karena": "karana"}], 0.3, 0)
    found = Counter(word for _ in range(200) for word in spell("karena " * 100).split())
    assert found["karana"] / found.total() == pytest.approx(0.3 / 2, abs=0.03)


@given(st.lists(st.text(max_size=40), max_size=4), st.integers(0, 3))
def test_nothing_but_words_of_the_table_changes_and_the_seed_decides(texts, seed):
    one, again = ([respeller([{"ab": "cd"}], 1.0, seed)(text) for text in texts] for _ in range(2))
    assert one == again
    for text, spelt in zip(texts, one, strict=True):
        if not re.search("ab", text, re.IGNORECASE):
            assert spelt == text


@pytest.mark.parametrize("task", TASKS)
def test_examples_of_every_task_keep_their_labels(task):
    examples = EXAMPLES[task]
    target = [re.sub(r"[aeiou]", "y", text) for text in written(examples) * 2]
    found = deftx.with_cognates(examples, [target] * 3, share=1.0, task=task)
    assert found.labels == examples.labels
    assert len(found) == len(examples)


def test_words_are_those_of_the_targets():
    examples = deftx.Examples(["karena enak", "karena mahal"] * 30, labels=["a", "b"] * 30)
    found = deftx.with_cognates(examples, [["kareuna leumak"] * 2, ["karana lamak"] * 2], share=1.0, seed=3)
    assert set(found.texts) == {
        f"{word} {last}" for word in ("karena", "kareuna", "karana") for last in ("enak", "mahal")
    }
    assert found.texts != deftx.with_cognates(examples, [["kareuna"] * 2, ["karana"] * 2], share=1.0, seed=4).texts


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
def test_a_share_that_is_none_is_an_error(share):
    with pytest.raises(DeftxError, match="share"):
        deftx.with_cognates(deftx.Examples(["a"]), [["a"]], share=share)


def in_longer_words(text):
    """Syllables put together by twos."""
    return re.sub(r"\b(\w\w) (\w\w)\b", r"\1\2", text)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Data of a recipe, two languages that differ in a vowel, and the recipe with a variant that has cognates."""
    monkeypatch.chdir(tmp_path)
    tiny.save_base(tmp_path / "base")
    for number, name in enumerate(("src", "tar", "far")):
        labelled(tmp_path / f"{name}.tsv", 0)
        (tmp_path / f"{name}.txt").write_text(
            in_longer_words("\n".join(tiny.sentences(60))).replace("a", "aeo"[number])
        )
    for file in tmp_path.glob("*.tsv"):
        file.write_text(in_longer_words(file.read_text()))
    variants = {"DeFT-X": {}, "cognates": {"cognates": 0.9}, "again": {"cognates": 0.9, "task": {"rank": 2}}}
    languages = {name: f"{name}.txt" for name in ("src", "tar", "far")}
    changed = {**RECIPE, "variants": variants, "languages": languages, "test": {"tar": "tar.tsv", "far": "far.tsv"}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(changed))
    return tmp_path


def test_a_variant_with_cognates_learns_its_task_from_other_texts_and_shares_the_rest(folder):
    recipe = load_recipe(folder / "recipe.yaml", {"seeds": [0, 1]})
    ready = prepare(recipe, folder / "store")
    steps = {
        use: step for step, uses in ready.plan.uses.items() for use in uses if ready.plan.steps[step].kind == "delta"
    }
    named = {(use.variant, use.seed, use.name): step for use, step in steps.items()}
    for seed in (0, 1):
        assert named["DeFT-X", seed, "tar"] == named["cognates", seed, "tar"]
        assert named["DeFT-X", seed, "task"] != named["cognates", seed, "task"] == named["again", seed, "task"]
    data = {seed: ready.plan.steps[named["cognates", seed, "task"]].about for seed in (0, 1)}
    assert data[0]["valid"] == data[1]["valid"]
    texts = {seed: ready.store.examples(about["train"]).texts for seed, about in data.items()}
    assert texts[0] != texts[1]
    plain, own, *targets = deftx.read_examples("src.tsv"), *(deftx.read_text(f"{n}.txt") for n in ("src", "tar", "far"))
    assert texts[1] == deftx.with_cognates(plain, targets, own, share=0.9, seed=1).texts


def test_a_recipe_with_cognates_needs_the_text_of_each_target(folder):
    change = {
        "variants": {"none": {"target": False, "source": False, "cognates": 0.5}},
        "languages": {"tar": "tar.txt"},
    }
    written = json.loads((folder / "recipe.yaml").read_text())
    (folder / "recipe.yaml").write_text(json.dumps({**written, **change}))
    with pytest.raises(DeftxError, match="no text for 'src'"):
        load_recipe(folder / "recipe.yaml")


@pytest.fixture
def typed(capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            cli.main(["data", "cognates", *map(str, arguments)])
        return ended.value.code or 0, capsys.readouterr()

    return run


@pytest.mark.parametrize("suffix", [".tsv", ".jsonl", ".csv"])
def test_the_command_writes_the_same_rows_in_other_spellings(folder, typed, suffix):
    options = ["--target", "tar.txt", "--target", "far.txt", "--text", "src.txt", "--seed", "1", "--share", "0.9"]
    code, printed = typed("src.tsv", *options, "--out", f"new{suffix}")
    assert code == 0, printed.err
    assert [line.partition(":")[0] for line in printed.out.splitlines()] == ["tar.txt", "far.txt", f"new{suffix}"]
    found, plain = deftx.read_examples(f"new{suffix}"), deftx.read_examples("src.tsv")
    targets = [deftx.read_text(f"{name}.txt") for name in ("tar", "far")]
    assert found == deftx.with_cognates(plain, targets, deftx.read_text("src.txt"), share=0.9, seed=1)
    assert found.texts != plain.texts


def test_the_command_changes_lists_of_words_and_tells_what_it_found(folder, typed):
    (folder / "tags.jsonl").write_text('{"words": ["karena", "enak"], "tags": ["C", "A"]}\n' * 20)
    (folder / "min.txt").write_text("karana lamak\n" * 2)
    code, printed = typed(
        "tags.jsonl", "--target", "min.txt", "--column", "words", "--share", 1, "--out", "new.jsonl", "--json"
    )
    assert code == 0, printed.err
    assert json.loads(printed.out) == {"min.txt": {"karena": "karana"}}
    rows = [json.loads(line) for line in (folder / "new.jsonl").read_text().splitlines()]
    assert {tuple(row["words"]) for row in rows} == {("karena", "enak"), ("karana", "enak")}
    assert all(row["tags"] == ["C", "A"] for row in rows)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["src.tsv", "--target", "tar.txt", "--out", "tar.tsv"], "exists"),
        (["src.tsv", "--target", "tar.txt", "--out", "new.tsv", "--share", "0"], "share"),
        (["src.tsv", "--target", "tar.txt", "--out", "new.tsv", "--column", "review"], "has no column 'review'"),
        (["src.tsv", "--target", "none.txt", "--out", "new.tsv"], "does not exist"),
        (["src.tsv", "--target", "tar.txt", "--out", "new.docx"], "unknown kind of file to write"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(folder, typed, arguments, said):
    before = sorted(folder.iterdir())
    code, printed = typed(*arguments)
    assert code == 2
    assert said in printed.err
    assert printed.err.count("\n") == 1
    assert sorted(folder.iterdir()) == before
