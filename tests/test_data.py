import csv
import json
import os
from datetime import date
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deftx.data.examples import Columns, Examples
from deftx.data.held_out import held_out
from deftx.data.reading import read_text
from deftx.data.tables import NAME_COLUMN_HINT, NO_HEADER_HINT, Table, named, open_source, rows_for
from deftx.errors import DeftxError
from deftx.tasks.registry import read_examples

NAMES = ["text", "label"]
ROWS = [
    ('say "good"', "positive"),
    ("", "neutral"),
    ('"half, quoted', "negative"),
    ("garis\u2028baru é", "positive"),
]
EXAMPLES = Examples([text for text, _ in ROWS], None, [label for _, label in ROWS])


def write_tsv(path, names, rows):
    path.write_text(
        "".join("\t".join(fields) + "\n" for fields in [names, *rows]), encoding="utf-8", newline=""
    )


def write_csv(path, names, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([names, *rows])


def write_jsonl(path, names, rows):
    lines = [
        json.dumps(dict(zip(names, fields, strict=True)), ensure_ascii=False) for fields in rows
    ]
    path.write_text("\n".join(lines), encoding="utf-8")


def write_parquet(path, names, rows):
    columns = [list(column) for column in zip(*rows, strict=True)]
    pyarrow.parquet.write_table(pyarrow.table(dict(zip(names, columns, strict=True))), path)


WRITERS = {".tsv": write_tsv, ".csv": write_csv, ".jsonl": write_jsonl, ".parquet": write_parquet}


@pytest.fixture(params=WRITERS)
def written(request, tmp_path):
    """Writes a table in one of the formats and returns its path."""

    def write(names, rows):
        path = tmp_path / f"data{request.param}"
        WRITERS[request.param](path, names, rows)
        return path

    return write


@pytest.fixture
def file(tmp_path):
    """Writes a file as it is given and returns its path."""

    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def message(read, *arguments, **settings):
    """The one line that a user sees."""
    with pytest.raises(DeftxError) as caught:
        read(*arguments, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_format_gives_the_same_examples(written):
    assert read_examples(written(NAMES, ROWS)) == EXAMPLES


def test_every_format_gives_the_same_usable_texts(written):
    assert read_text(written(NAMES, [*ROWS, ("  spaced ", "x")])) == [
        text for text, _ in ROWS if text
    ] + ["spaced"]


def test_columns_can_be_chosen(written):
    path = written(["kind", "review", "title"], [("good", "a", "b"), ("bad", "c", "d")])
    columns = Columns(text="review", pair="title", label="kind")
    assert read_examples(path, columns) == Examples(["a", "c"], ["b", "d"], ["good", "bad"])
    assert read_text(path, column="title") == ["b", "d"]


def test_every_line_of_plain_text_is_a_text_whatever_column_others_have(tmp_path):
    (tmp_path / "a.txt").write_text("ba be\n")
    (tmp_path / "b.jsonl").write_text('{"content": "bi bo"}\n')
    assert read_text(tmp_path / "a.txt", tmp_path / "b.jsonl", column="content") == [
        "ba be",
        "bi bo",
    ]


def test_premise_and_hypothesis_are_the_default_without_a_text_column(written):
    path = written(
        ["premise", "hypothesis", "label"], [("", "b", "neutral"), ("c", "d", "entailment")]
    )
    examples = Examples(["", "c"], ["b", "d"], ["neutral", "entailment"])
    assert read_examples(path) == examples
    assert read_examples(path, Columns(label="label")) == examples
    assert read_examples(path, Columns(text="hypothesis")).pairs is None


def test_a_text_column_goes_before_premise_and_hypothesis(written):
    path = written(["premise", "hypothesis", "text", "label"], [("a", "b", "c", "d")])
    assert read_examples(path) == Examples(["c"], None, ["d"])


def test_labels_are_not_needed_when_none_are_asked_for(written):
    path = written(["id", "text"], [("1", "a"), ("2", "b")])
    assert read_examples(path, labelled=False) == Examples(["a", "b"])
    assert len(read_examples(path, labelled=False)) == 2


def test_a_missing_column_is_named_beside_those_there_are(written):
    path = written(["review", "stars"], [("a", "1")])
    what = NO_HEADER_HINT if path.suffix in (".tsv", ".csv") else NAME_COLUMN_HINT
    assert (
        message(read_examples, path)
        == f"{path} has no column 'text', only 'review', 'stars': {what}"
    )
    assert "no column 'label'" in message(read_examples, path, Columns(text="review"))
    assert "no column 'title'" in message(
        read_examples, path, Columns(text="review", pair="title", label="stars")
    )
    assert "no column 'body'" in message(read_text, path, column="body")


@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.jsonl"])
def test_blank_lines_are_left_out(file, name):
    one, two = (
        ('{"text": "a", "label": "x"}', '{"text": "b", "label": "y"}')
        if name == "a.jsonl"
        else ("a,x", "b,y")
    )
    head = "" if name == "a.jsonl" else "text,label\n"
    content = f"{head}{one}\n\n{two}\n\n"
    path = file(name, content.replace(",", "\t") if name == "a.tsv" else content)
    assert read_examples(path) == Examples(["a", "b"], None, ["x", "y"])


def test_an_empty_text_in_a_tsv_of_one_column_stays(file):
    assert read_examples(file("a.tsv", "text\na\n\nb\n"), labelled=False).texts == ["a", "", "b"]


def test_tabs_may_divide_the_fields_of_csv(file):
    path = file("a.csv", 'text\tlabel\n"a, b"\tx\nc; d\ty\n')
    assert read_examples(path) == Examples(["a, b", "c; d"], None, ["x", "y"])


@given(st.lists(st.sampled_from("abc"), min_size=2, max_size=60), st.integers(0, 3))
def test_what_is_held_out_is_a_tenth_and_leaves_every_label(labels, seed):
    examples = Examples([str(number) for number in range(len(labels))], None, labels)
    if len(set(labels)) == len(labels):
        with pytest.raises(DeftxError, match="none can be held out"):
            held_out(examples, 0.1, seed, named=True)
        return
    train, valid = held_out(examples, 0.1, seed, named=True)
    assert sorted(map(int, [*train.texts, *valid.texts])) == list(range(len(labels)))
    assert set(train.labels) == set(labels)
    assert 1 <= len(valid) <= max(1, round(0.1 * len(labels)))
    assert held_out(examples, 0.1, seed, named=True) == (train, valid)


def test_what_occurs_twice_is_not_held_out():
    examples = Examples(["a", "b"] * 10 + ["c", "d"], None, ["x", "y"] * 11)
    for seed in range(10):
        assert held_out(examples, 0.5, seed, named=True)[1].texts == ["c", "d"]
    with pytest.raises(DeftxError, match="what occurs twice, has to stay"):
        held_out(examples.at(range(20)), 0.1, 0, named=True)


def test_numbers_are_held_out_whatever_they_are():
    examples = Examples(
        [str(number) for number in range(20)], None, [float(number) for number in range(20)]
    )
    train, valid = held_out(examples, 0.1, 0, named=False)
    assert (len(train), len(valid)) == (18, 2)


def test_an_empty_label_is_named_by_its_place(written):
    path = written(NAMES, [("a", "x"), ("b", " ")])
    place = {".jsonl": "line 2", ".parquet": "row 2"}.get(path.suffix, "line 3")
    assert (
        message(read_examples, path)
        == f"{path}, {place}: the label in 'label' is empty: fill it in or remove the row"
    )


def test_texts_that_are_all_blank_are_no_usable_line(written):
    path = written(NAMES, [("", "x"), ("  ", "x")])
    assert (
        message(read_text, path)
        == f"{path} has no usable line: it needs at least one that is not blank"
    )


@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\t\r\n")), min_size=1
    )
)
def test_tsv_keeps_every_character_of_a_field(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("tsv") / "data.tsv"
    write_tsv(path, NAMES, [(text, "x") for text in texts])
    assert read_examples(path).texts == texts


def test_plain_text_is_one_text_a_line(file):
    path = file("corpus.txt", "\n satu\tdua \n\n\u2003\ntiga\u2028empat\n")
    assert read_text(path) == ["satu\tdua", "tiga\u2028empat"]
    assert read_text(path, str(path)) == 2 * read_text(path)


def test_plain_text_serves_as_unlabelled_examples_line_by_line(file):
    assert read_examples(file("in.TXT", "a\n\nb\n\n"), labelled=False) == Examples(
        ["a", "", "b", ""]
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("data.tsv", "text\tlabel\na\tx\nb\ty\n"),
        ("data.csv", "text,label\na,x\nb,y\n"),
        ("data.csv", "text;label\na;x\nb;y\n"),
        ("data.jsonl", '{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}\n'),
    ],
)
def test_a_byte_order_mark_and_crlf_and_a_missing_last_line_end_are_tolerated(file, name, content):
    for variant in (
        content,
        "\ufeff" + content,
        content.replace("\n", "\r\n"),
        content.rstrip(),
        content + "\n\n",
    ):
        assert read_examples(file(name, variant)) == Examples(["a", "b"], None, ["x", "y"])


def test_a_csv_field_may_hold_line_ends_and_later_lines_are_still_counted(file):
    content = 'text,label\n"two\nlines",x\n\nb,y\n'
    assert read_examples(file("data.csv", content)).texts == ["two\nlines", "b"]
    assert "line 5:" in message(read_examples, file("data.csv", content.replace("b,y", "b,")))


def test_semicolons_divide_a_csv_only_where_its_header_says_so(file):
    content = 'text;label\n"a;b, c";x\nd, e;y\n'
    assert read_examples(file("data.csv", content)) == Examples(
        ["a;b, c", "d, e"], None, ["x", "y"]
    )
    assert read_examples(file("data.csv", "text,label\na;b,x\n")).texts == ["a;b"]
    assert read_text(file("data.csv", 'text\na;b\n"c, d"\n')) == ["a;b", "c, d"]


def test_a_whole_character_written_as_two_halves_is_read(file):
    assert read_examples(file("a.jsonl", '{"text": "\\uD83D\\uDE00", "label": "x"}')).texts == [
        "😀"
    ]


def test_what_a_kind_of_file_cannot_hold_is_refused_before_anything_is_written(file, tmp_path):
    lists = open_source(file("a.jsonl", '{"words": ["a"], "n": 1}\n'))
    assert rows_for(tmp_path / "b.jsonl", lists, [0]) == '{"words": ["a"], "n": 1}\n'
    for name in ("b.tsv", "b.csv"):
        assert "cannot hold a list, such as ['a']: write .jsonl" in message(
            rows_for, tmp_path / name, lists, [0]
        )
    ragged = open_source(
        file("c.jsonl", '{"text": "a", "id": 1}\n{"text": "b", "id": 2, "label": "x"}\n')
    )
    assert read_text(tmp_path / "c.jsonl") == ["a", "b"]
    assert "c.jsonl, line 1: no 'label', which other lines have" in message(
        rows_for, tmp_path / "d.jsonl", ragged, [1]
    )
    days = Table("a", ["day"], [1], lambda _: [date(2026, 1, 2)])
    assert "date is not JSON serializable): write .csv" in message(
        rows_for, tmp_path / "d.jsonl", days, [0]
    )
    assert rows_for(tmp_path / "d.csv", days, [0]) == "day\n2026-01-02\n"


def test_the_name_of_a_file_is_noted_as_text(tmp_path):
    assert named(os.fsdecode(b"/x/caf\xe9.txt")) == "caf?.txt"


def test_integer_labels_become_strings_and_null_texts_empty(tmp_path):
    for suffix in (".jsonl", ".parquet"):
        path = tmp_path / f"data{suffix}"
        WRITERS[suffix](path, NAMES, [("a", 0), (None, 2)])
        assert read_examples(path) == Examples(["a", ""], None, ["0", "2"])
        WRITERS[suffix](
            path, NAMES, [("a", 1.0)]
        )  # what pandas makes of integers where one is missing
        assert read_examples(path).labels == ["1"]


def test_values_of_other_types_are_refused(tmp_path):
    for suffix, unit in ((".jsonl", "line"), (".parquet", "row")):
        path = tmp_path / f"data{suffix}"
        WRITERS[suffix](path, NAMES, [("a", 0.5)])
        assert message(read_examples, path).startswith(
            f"{path}, {unit} 1: label 0.5 is neither text nor an integer"
        )
        assert message(read_text, path, column="label").startswith(
            f"{path}, {unit} 1: 'label' is a float, not text"
        )


def test_a_null_label_is_an_empty_one(file):
    path = file("data.jsonl", '{"text": "a", "label": null}')
    assert "line 1: the label in 'label' is empty" in message(read_examples, path)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", "", "is empty: it needs at least one line that is not blank"),
        ("a.txt", " \n\n", "is empty"),
        ("a.tsv", "\ufeff\n", "is empty"),
        ("a.jsonl", "\n", "is empty"),
        ("a.csv", "", "is empty"),
        ("a.tsv", "text\tlabel\n", "has columns but no rows: it needs at least one"),
        ("a.csv", "text,label\n", "has columns but no rows"),
        (
            "a.tsv",
            "text\tlabel\na\tx\nb\n",
            ", line 3: 1 fields, but the header has 2: give every row one field",
        ),
        ("a.tsv", "text\tlabel\na\tx\ty\n", ", line 2: 3 fields, but the header has 2"),
        ("a.csv", "text,label\na,x\nb,c,y\n", ", line 3: 3 fields, but the header has 2"),
        (
            "a.csv",
            'text,label\na,x\n"b"c,y\nd,z\n',
            ", line 3: ',' expected after '\"': check the quotes",
        ),
        (
            "a.csv",
            'text,label\na,x\n"b,y\nd,z\n',
            ", line 3: unexpected end of data: check the quotes",
        ),
        (
            "a.tsv",
            "text\tlabel\ttext\na\tb\tc\n",
            "has more than one column 'text': rename all but one",
        ),
        ("a.csv", "text,label, text\na,b,c\n", "has more than one column 'text'"),
        (
            "a.jsonl",
            '{"text": "a", "label": "x"}\n{"text"\n',
            ", line 2: not a JSON object: write one {...} on each line",
        ),
        ("a.jsonl", '{"text": "a", "label": "x"}\n\n["b"]\n', ", line 3: not a JSON object"),
        ("a.jsonl", "[" * 100_000, ", line 1: not a JSON object"),
        (
            "a.jsonl",
            '{"text": "a \\ud83d", "label": "x"}\n',
            r", line 1: half a character (\ud83d), as is left",
        ),
        (
            "a.jsonl",
            '{"text": "a", "label": "x"}\n{"text": "b"}\n',
            ", line 2: no 'label', which other lines have",
        ),
        ("a.parquet", "PAR1 and no more", "is not a readable Parquet file: write it again"),
    ],
)
def test_a_damaged_file_is_refused_with_its_place_and_a_remedy(file, name, content, expected):
    path = file(name, content)
    assert message(read_examples, path).startswith(
        f"{path}{expected if expected[0] == ',' else ' ' + expected}"
    )


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("name", ["a.txt", "a.tsv", "a.csv", "a.jsonl"])
def test_the_line_that_is_not_utf8_is_named(file, name, mark):
    path = file(name, mark + "é\nü\n".encode() + b"good\xff\nmore\n")
    convert = f"iconv -f WINDOWS-1252 -t UTF-8 {name}, where -f is its encoding"
    fix = f"save the file as UTF-8, or convert it ({convert})"
    assert message(read_text, path) == f"{path}, line 3: not UTF-8: {fix}"


@pytest.mark.parametrize("code", ["utf-16-le", "utf-16-be"])
def test_text_in_utf_16_is_known_by_its_mark(file, code):
    path = file("a.txt", "\ufeffgood\n".encode(code))
    assert "line 1: not UTF-8" in message(read_text, path)
    assert "iconv -f UTF-16 -t UTF-8 a.txt" in message(read_text, path)


def test_columns_that_are_whole_texts_are_cut_short_in_the_message(file):
    assert len(message(read_examples, file("a.tsv", f"{'long ' * 500}\tpositive\nb\tc\n"))) < 300


def _bad_texts():
    content = pyarrow.array([b"fine", b"\xff\xfe", b"\xc3"], pyarrow.binary())
    return pyarrow.Array.from_buffers(pyarrow.utf8(), 3, content.buffers())


ODD_PARQUET = {
    "a day that no calendar has": lambda: pyarrow.array([0, 2**31 - 1, 0], pyarrow.int32()).cast(
        pyarrow.date32()
    ),
    "a time after the year 9999": lambda: pyarrow.array(
        [0, 9 * 10**18, 0], pyarrow.timestamp("us")
    ),
    "an early time": lambda: pyarrow.array([0, -(2**62), 0], pyarrow.timestamp("ms")),
    "a duration": lambda: pyarrow.array([0, 2**62, 0], pyarrow.duration("s")),
    "bytes that are no UTF-8": _bad_texts,
    "such bytes in a list": lambda: pyarrow.ListArray.from_arrays(
        pyarrow.array([0, 1, 2, 3], pyarrow.int32()), _bad_texts()
    ),
}


@pytest.mark.parametrize("name", ODD_PARQUET)
def test_a_parquet_value_that_python_does_not_have_is_one_line_with_its_row(tmp_path, name):
    path = tmp_path / "data.parquet"
    columns = {"text": pyarrow.array(["a", "b", "c"]), "odd": ODD_PARQUET[name]()}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    table = open_source(path)
    assert [text for _, text in table.values("text")] == ["a", "b", "c"]
    with pytest.raises(DeftxError, match=rf"^{path}, row 2: a .* in 'odd' cannot be read") as error:
        list(table.values("odd"))
    assert "\n" not in str(error.value)


def test_a_parquet_time_in_an_unknown_zone_is_one_line(tmp_path):
    path = tmp_path / "data.parquet"
    zone = pyarrow.timestamp("us", tz="Mars/Phobos")
    pyarrow.parquet.write_table(pyarrow.table({"odd": pyarrow.array([0, 1], zone)}), path)
    with pytest.raises(DeftxError, match=rf"^{path}, row 1: a .*Mars/Phobos.* cannot be read"):
        list(open_source(path).values("odd"))


def test_a_parquet_file_without_rows_and_one_with_a_column_twice_are_refused(tmp_path):
    path = tmp_path / "data.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), path)
    assert "has columns but no rows" in message(read_text, path)
    pyarrow.parquet.write_table(pyarrow.table([["a"], ["b"]], names=["text", "text"]), path)
    assert "more than one column 'text'" in message(read_text, path)


def test_a_path_that_cannot_be_read_is_refused(tmp_path, file):
    assert message(read_text, tmp_path) == f"{tmp_path} is a folder: name a file in it"
    missing = tmp_path / "none.txt"
    assert message(read_text, missing).startswith(
        f"{missing} does not exist: check the path (a hub dataset is"
    )
    path = file("a.tvs", "text\n")
    expected = "'.tvs' (did you mean '.tsv'?); known: .csv, .jsonl, .parquet, .tsv, .txt"
    assert message(read_text, path) == f"unknown kind of file ({path}) {expected}"


@pytest.fixture
def hub(monkeypatch):
    """Stands for the hub: holds the arguments of the last call, and answers with a small
    dataset."""
    calls = []
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )

    def load_dataset(path, *, name=None, data_dir=None, split, revision=None):
        calls.append((path, revision, name or (data_dir and f"{data_dir}/"), split))
        labels = [1, -1] if split == "test" else [1, 0]
        return datasets.Dataset.from_dict({"text": ["a", "b"], "label": labels}, features=features)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


@pytest.mark.parametrize(
    ("source", "call"),
    [
        ("hub:imdb", ("imdb", None, None, "train")),
        ("hub:nyu-mll/multi_nli:default:train", ("nyu-mll/multi_nli", None, "default", "train")),
        (
            "hub:nala-cub/americas_nli:quy:validation",
            ("nala-cub/americas_nli", None, "quy", "validation"),
        ),
        (
            "hub:wikimedia/wikipedia:20231101.ace",
            ("wikimedia/wikipedia", None, "20231101.ace", "train"),
        ),
        ("hub:imdb:validation", ("imdb", None, None, "validation")),
        ("hub:imdb::unsupervised", ("imdb", None, None, "unsupervised")),
        ("hub:imdb:plain_text:train[:5%]", ("imdb", None, "plain_text", "train[:5%]")),
        (
            "hub:indonlp/NusaX-senti@refs/convert/parquet:ace",
            ("indonlp/NusaX-senti", "refs/convert/parquet", "ace/", "train"),
        ),
    ],
)
def test_a_hub_source_is_name_revision_config_and_split(hub, source, call):
    assert read_text(source) == ["a", "b"]
    assert hub == [call]


def test_hub_class_labels_become_their_names(hub):
    assert read_examples("hub:imdb") == Examples(["a", "b"], None, ["yes", "no"])


def test_an_unlabelled_hub_row_has_an_empty_label(hub):
    assert message(read_examples, "hub:imdb:test").startswith(
        "hub:imdb:test, row 2: the label in 'label' is empty"
    )
    assert read_examples("hub:imdb:test", labelled=False) == Examples(["a", "b"])


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("Couldn't reach\n 'a/b' on the Hub"),
        ValueError("Unknown split"),
        RuntimeError("Dataset scripts are no longer supported"),
        datasets.exceptions.DatasetGenerationError("An error occurred"),
    ],
)
def test_a_hub_dataset_that_does_not_load_is_one_line(monkeypatch, error):
    def load_dataset(*_, **__):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    form = "hub:NAME[@REVISION][:CONFIG][:SPLIT]"
    reason = " ".join(str(error).split())
    assert message(read_text, "hub:a/b") == f"hub:a/b cannot be loaded as {form}: {reason}"


@pytest.mark.parametrize(
    ("source", "module"), [("hub:a/b", "datasets"), ("a.parquet", "pyarrow.parquet")]
)
def test_a_package_that_is_not_installed_is_named_with_its_extra(monkeypatch, file, source, module):
    def import_module(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr("deftx.data.tables.import_module", import_module)
    path = source if source.startswith("hub:") else file(source, "")
    assert message(read_text, path) == f"{module} is not installed: pip install 'deftx[data]'"


def test_examples_are_chosen_by_their_numbers_with_all_their_columns():
    examples = Examples(["a", "b", "c"], ["x", "y", "z"], [1, 2, 3], [["a"], ["b"], ["c"]])
    assert examples.at([2, 0]) == Examples(["c", "a"], ["z", "x"], [3, 1], [["c"], ["a"]])
    assert Examples(["a", "b"]).at([1]) == Examples(["b"])
    assert Examples([], labels=[]).at([]) == Examples([], labels=[])


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"labels": ["x"]}, "2 texts and 1 labels: give one for each"),
        ({"pairs": []}, "2 texts and 0 pairs"),
        ({"parts": [["a"], ["b"], ["c"]]}, "2 texts and 3 parts"),
    ],
)
def test_columns_of_other_lengths_are_refused(columns, said):
    with pytest.raises(DeftxError, match=said):
        Examples(["a", "b"], **columns)


@pytest.mark.parametrize("name", ["train.tsv", Path("train.tsv")])
def test_the_name_of_a_file_is_no_list_of_texts(name):
    with pytest.raises(
        DeftxError,
        match=r"'train\.tsv' is one text, where a list is wanted: .* deftx\.read_examples",
    ):
        Examples(name)


def test_the_folder_of_a_config_is_all_that_is_read_of_an_exported_dataset(monkeypatch, tmp_path):
    """As the hub lays out the datasets that it exports as Parquet, read by the real library."""
    for config, rows in {"ace": ["a", "b"], "ban": ["c"]}.items():
        (tmp_path / "exported" / config / "test").mkdir(parents=True)
        features = datasets.Features(
            {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
        )
        made = datasets.Dataset.from_dict(
            {"text": rows, "label": [1] * len(rows)}, features=features
        )
        made.to_parquet(tmp_path / "exported" / config / "test" / "0000.parquet")
    load = datasets.load_dataset

    def local(path, *, data_dir, split, revision):
        return load(
            str(tmp_path / path), data_dir=data_dir, split=split, cache_dir=str(tmp_path / "cache")
        )

    monkeypatch.setattr(datasets, "load_dataset", local)
    found = read_examples("hub:exported@refs/convert/parquet:ace:test")
    assert found == Examples(["a", "b"], None, ["yes", "yes"])
