"""One line and exit code 2 for every kind of wrong input, and nothing changed by it."""

import errno
import re
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from tiny_run import labelled
from typed import COMPOSE, EVALUATE, FIT_LANGUAGE, FIT_TASK, TWO, tree, with_options

from deftx import messages
from deftx.cli import main
from deftx.errors import DeftxError


@pytest.fixture
def bad(here, home):
    """Files that are wrong, each in its way, in the folder to work in."""
    files = {
        "empty.txt": b"",
        "blank.tsv": b"text\tlabel\n \ta\n",
        "latin.txt": "ba be\nbi bo\nré\n".encode("latin-1"),
        "one.txt": b"ba be bi\n",
        "wide.txt": "ba be\n".encode("utf-16"),
        "headless.tsv": b"ba be\tfront\nbi bo\tback\n",
        "columns.tsv": b"review\tstars\nba be\t1\nbi bo\t2\n",
        "unlabelled.tsv": b"text\tlabel\nba be\tfront\nbi bo\t\n",
        "single.tsv": b"text\tlabel\n" + b"ba be\tfront\n" * 40,
        "strange.tsv": b"text\tlabel\nba be\tfront\nbi bo\tmiddle\n",
        "cased.tsv": b"text\tlabel\nba be\tfront\nbi bo\tFRONT\n",
        "pairs.tsv": b"text\tother\tlabel\nba be\tbi\tfront\nbi bo\tba\tback\n",
        "commas.tsv": b"text,label\nba be,front\nbi bo,back\n",
        "tabs.txt": b"text\tlabel\nba be\tfront\nbi bo\tback\n",
        "two.tsv": b"text\tlabel\nba be\tfront\nbi bo\tback\n",
    }
    for name, content in files.items():
        (here / name).write_bytes(content)
    shutil.copytree(home / "ind", here / "damaged")
    path = here / "damaged" / "vector.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    (here / "taken").mkdir()
    (here / "taken" / "notes.txt").write_text("notes")
    return here


FIT_TASK_ALONE = "fit task --base home/base --train home/train.tsv --out new".split()
WRONG = {
    # command, options in place of its own, what the line says
    "missing text": (
        FIT_LANGUAGE,
        "--text nowhere.txt",
        r"nowhere\.txt does not exist: check the path",
    ),
    "empty text": (
        FIT_LANGUAGE,
        "--text empty.txt",
        r"empty\.txt is empty: it needs at least one line",
    ),
    "no usable line": (
        FIT_LANGUAGE,
        "--text blank.tsv",
        r"blank\.tsv has no usable line: it needs at least one",
    ),
    "one usable line": (FIT_LANGUAGE, "--text one.txt", r"give at least 2"),
    "text not UTF-8": (
        FIT_LANGUAGE,
        "--text latin.txt",
        r"latin\.txt, line 3: not UTF-8: save the file as UTF-8",
    ),
    "wrong text column": (
        FIT_LANGUAGE,
        "--text home/test.tsv --column review",
        r"no column 'review', only 'text', 'label'",
    ),
    "clip without an end": (
        FIT_LANGUAGE,
        "--set training.clip=.inf",
        r"training\.clip = inf: .*finite number",
    ),
    "epochs without an end": (
        FIT_LANGUAGE,
        "--set training.epochs=.inf",
        r"training\.epochs = inf: .*finite number",
    ),
    "a seed too large": (
        FIT_LANGUAGE,
        f"--seed {2**32}",
        r"seed = 4294967296: .*less than 4294967296",
    ),
    "evened without an end": (
        FIT_TASK,
        f"{TWO} --temperature inf",
        r"temperature inf is no number; give 1",
    ),
    "k too large": (FIT_LANGUAGE, "--k 7.6M", r"k = 7\.6M is 7,600,000 entries; give 0 to 5,552"),
    "k of no kind": (
        FIT_LANGUAGE,
        "--k 1.5",
        r"k = 1\.5 is neither a count \(7600000, 7\.6M\) nor a share",
    ),
    "rank 0": (
        FIT_LANGUAGE,
        "--rank 0",
        r"rank 0 is out of range: give an integer above 0 or a share up to 100%",
    ),
    "rank below 0": (FIT_LANGUAGE, "--rank=-3", r"rank -3 is out of range"),
    "rank 0%": (FIT_LANGUAGE, "--rank 0%", r"rank 0% is out of range"),
    "rank above 100%": (FIT_LANGUAGE, "--rank 101%", r"rank 101% is out of range: .* up to 100%"),
    "unknown method": (
        FIT_LANGUAGE,
        "--method lt-sfd",
        r"unknown method 'lt-sfd' \(did you mean 'lt-sft'\?\); known: ",
    ),
    "unknown preset": (
        FIT_LANGUAGE,
        "--preset quik",
        r"unknown preset 'quik' \(did you mean 'quick'\?\)",
    ),
    "unknown setting": (
        FIT_LANGUAGE,
        "--set training.batchsize=4",
        r"'training\.batchsize' \(did you mean 'training\.batch_size'",
    ),
    "wrong type": (
        FIT_LANGUAGE,
        "--set training.batch_size=many",
        r"training\.batch_size = 'many': input should be",
    ),
    "no value": (
        FIT_LANGUAGE,
        "--set training.batch_size",
        r"'training\.batch_size' sets nothing: write KEY=VALUE",
    ),
    "no YAML": (FIT_LANGUAGE, "--set k=[", r"'k=\[' sets nothing"),
    "missing base": (FIT_LANGUAGE, "--base ./nowhere", r"cannot load the model '\./nowhere'"),
    "base not a masked LM": (
        FIT_LANGUAGE,
        "--base home/encoder --set training.lm_head=frozen",
        r"is not a masked language model: its checkpoint lacks",
    ),
    "vector folder exists": (
        FIT_LANGUAGE,
        "--out home/min",
        r"min exists: choose another folder, or .* --force",
    ),
    "folder below a file": (
        FIT_LANGUAGE,
        "--out one.txt/new",
        r"one\.txt is not a folder that you may write to",
    ),
    "missing labels": (FIT_TASK, "--train nowhere.tsv", r"nowhere\.tsv does not exist"),
    "wrong column": (
        FIT_TASK,
        "--train columns.tsv",
        r"columns\.tsv has no column 'text', only 'review', 'stars'",
    ),
    "wrong label column": (FIT_TASK, "--label-column stars", r"train\.tsv has no column 'stars'"),
    "label missing": (
        FIT_TASK,
        "--train unlabelled.tsv",
        r"unlabelled\.tsv, line 3: the label in 'label' is empty",
    ),
    "one label": (FIT_TASK, "--train single.tsv", r"a classifier needs at least two"),
    "label not in training": (
        FIT_TASK,
        "--valid strange.tsv",
        r"strange\.tsv, example 2: label 'middle' is not among those learnt: back, front",
    ),
    "label in another case": (
        EVALUATE,
        "--test cased.tsv",
        r"cased\.tsv, example 2: label 'FRONT' is not among those learnt \(did you mean"
        r" 'front'\?\): back, front",
    ),
    "pairs for a task of single texts": (
        EVALUATE,
        "--test pairs.tsv --pair-column other",
        r"the task was learnt from single texts, and these are pairs: leave the second texts out",
    ),
    "column in another case": (
        FIT_TASK,
        "--train cased.tsv --text-column Text",
        r"cased\.tsv has no column 'Text' \(did you mean 'text'\?\), only 'text', 'label': say"
        r" which",
    ),
    "commas in TSV": (
        FIT_TASK,
        "--train commas.tsv",
        r"only 'text,label': if commas separate its columns, call it commas\.csv",
    ),
    "tabs in plain text": (
        FIT_TASK,
        "--train tabs.txt",
        r"if tabs separate its columns, call it tabs\.tsv",
    ),
    "two rows and no validation data": (
        FIT_TASK_ALONE,
        "--train two.tsv",
        r"of 2 example\(s\) none can be held out",
    ),
    "unknown metric": (
        FIT_TASK,
        "--set training.metric=f1",
        r"unknown metric of classification 'f1'.*; known: accuracy, macro_f1",
    ),
    "unknown kind": (
        FIT_TASK,
        "--kind taging",
        r"unknown task 'taging' \(did you mean 'tagging'\?\); known: class",
    ),
    "data of another kind": (
        FIT_TASK,
        "--kind regression",
        r"train\.tsv, line 2: '(front|back)' in 'label' is not a number",
    ),
    "missing source": (FIT_TASK, "--source nowhere", r"there is no vector at nowhere"),
    "damaged source": (FIT_TASK, "--source damaged", r"vector\.safetensors: the file is damaged"),
    "source of another base": (
        FIT_TASK,
        "--source home/ind --base home/other",
        r"made on .*/base \(.*\), not on .*--ignore-base-mismatch",
    ),
    "sources without a name": (
        FIT_TASK,
        "--train home/train.tsv --train home/test.tsv",
        r"--train home/train\.tsv is of which language\? there are several, so write"
        r" NAME=home/train\.tsv",
    ),
    "source twice": (
        FIT_TASK,
        "--train a=home/train.tsv --train a=home/test.tsv",
        r"--train a=home/test\.tsv is the second one of 'a': give one each",
    ),
    "validation in another language": (
        FIT_TASK,
        "--train ind=home/train.tsv --valid min=home/valid.tsv",
        r"must be of the same languages, but are of ind; min",
    ),
    "validation without a name": (
        FIT_TASK,
        "--train a=home/train.tsv --train b=home/test.tsv",
        r"but are of a, b; one without a name",
    ),
    "source without a vector": (
        FIT_TASK,
        f"{TWO} --source a=home/ind",
        r"but are of a, b; a, b; a",
    ),
    "uneven beyond the data": (
        FIT_TASK,
        f"{TWO} --temperature 0.5",
        r"temperature 0\.5 is below 1; give 1",
    ),
    "task as one of the sources": (
        FIT_TASK,
        f"{TWO} --source a=home/ind --source b=home/task",
        r"vector 2 of 2 given as a language is a task vector",
    ),
    "vectors of another base": (
        COMPOSE,
        "--base home/other",
        r"was made on .*, not on home/other .*: use .*/base",
    ),
    "task for language": (
        COMPOSE,
        "--language home/task",
        r"the vector given as a language is a task vector, for back, front: give one that `deftx"
        r" fit language` made",
    ),
    "task for source": (
        FIT_TASK,
        "--source home/task",
        r"given as a language is a task vector, for back, front",
    ),
    "vector for base": (
        COMPOSE,
        "--base home/min",
        r"'home/min': it is a vector: give the base that it was made on",
    ),
    "file for base": (
        COMPOSE,
        "--base one.txt",
        r"'one\.txt': it is a file: give the folder that it is in",
    ),
    "base mistyped": (
        COMPOSE,
        "--base home/bse",
        r"'home/bse': there is no such folder; as a hub id: ",
    ),
    "folder of vectors": (
        COMPOSE,
        "--task home",
        r"is not a vector: .*; in it are the vectors ind, min, task: name one",
    ),
    "no header line": (
        FIT_TASK,
        "--train headless.tsv",
        r"only 'ba be', 'front': .* or name columns in a first line",
    ),
    "text in UTF-16": (
        FIT_LANGUAGE,
        "--text wide.txt",
        r"line 1: not UTF-8: .*iconv -f UTF-16 -t UTF-8 wide\.txt",
    ),
    "language for task": (
        COMPOSE,
        "--task home/ind",
        r"is a language vector, which has no labels: give it as --language",
    ),
    "unknown rule": (
        COMPOSE,
        "--rule tise",
        r"unknown rule 'tise' \(did you mean 'ties'\?\); known: agree, ",
    ),
    "unknown option of a rule": (
        EVALUATE,
        "--rule ties:cut=1",
        r"unknown option of ties 'cut'; known: density, ",
    ),
    "option out of range": (
        EVALUATE,
        "--rule dare:drop=1",
        r"rule dare: drop = 1: give a share from 0 to below 1",
    ),
    "damaged language": (
        COMPOSE,
        "--language damaged",
        r"vector\.safetensors: the file is damaged",
    ),
    "model folder exists": (
        COMPOSE,
        "--out home/model",
        r"model exists: choose another folder, or .* --force",
    ),
    "test label not in training": (
        EVALUATE,
        "--test strange.tsv",
        r"label 'middle' is not among .*: back, front",
    ),
    "two tests of a language": (
        EVALUATE,
        "--test home/test.tsv --test min=one.txt",
        r"one\.txt is the second one for min",
    ),
    "test of no language": (
        EVALUATE,
        "--test ind=home/test.tsv",
        r"needs a --language ind=VECTOR; languages: min",
    ),
    "test without a name": (
        EVALUATE,
        "--language min=home/min --language home/ind",
        r"test\.tsv is for which language\? write NAME=",
    ),
    "language without a test": (
        EVALUATE,
        "--language a=home/min --language home/ind --test a=home/test.tsv",
        r"add --test ind=FILE",
    ),
    "one task twice": (
        EVALUATE,
        "--task home/task --task home/task",
        r"vectors 1 and 2 of 3 are the same: give each once",
    ),
    "more texts than may wait": (
        "serve --base home/base --task home/task".split(),
        "--max-waiting 10",
        r"64 texts in a request \(--max-texts\), but 10 may wait \(--max-waiting\)",
    ),
    "languages of one name": (
        EVALUATE,
        "--language home/min --language min=home/ind",
        r"two language vectors are named 'min'",
    ),
    "nothing to predict by": (
        ["predict", "home/test.tsv"],
        "--base home/base",
        r"either --model, or --base and --task",
    ),
    "two to predict by": (
        ["predict", "home/test.tsv"],
        "--model m --task t --base b",
        r"either --model, or --base",
    ),
    "model not composed": (
        ["predict", "home/test.tsv"],
        "--model home/base",
        r"base is not a model of a task: it lacks",
    ),
    "not a vector": (["inspect"], "taken", r"taken is not a vector: it has no vector\.json"),
    "damaged vector": (
        ["inspect", "home/min"],
        "damaged",
        r"vector\.safetensors: the file is damaged",
    ),
    "missing recipe": (["run"], "nowhere.yaml", r"cannot read the recipe nowhere\.yaml"),
}


@pytest.mark.parametrize(("command", "wrong", "says"), WRONG.values(), ids=WRONG)
def test_wrong_input_is_one_line_with_code_2_and_changes_no_file(
    bad, home, run, command, wrong, says
):
    before = tree(bad), tree(home)
    done = run(*with_options(command, wrong))
    assert done.code == 2
    assert done.out == ""
    assert re.fullmatch(rf"deftx: .*{says}.*", done.complaint)
    assert done.err.count("phase") == 0, "it was noticed after training had begun"
    assert (tree(bad), tree(home)) == before


def test_a_language_may_be_named_wherever_it_is_given(here, home, run):
    assert run(*with_options(COMPOSE, "--language min=home/min --out named")).code == 0
    assert tree(Path("named")) == tree(home / "model")


def test_more_to_validate_on_than_to_learn_from_is_worth_a_warning(here, home, run):
    labelled(here / "small.tsv", 3, count=8)
    done = run(*with_options(FIT_TASK, "--train small.tsv"), "--source", "home/ind")
    assert done.code == 0
    warned = "deftx: warning: --valid has 24 rows and --train 8: are they the wrong way round?"
    assert warned in done.err.splitlines()
    assert "without --source" not in done.out


def test_vectors_go_onto_another_base_when_that_is_wanted(here, run):
    for command in (COMPOSE, [*FIT_TASK, "--source", "home/ind"]):
        done = run(*with_options(command, "--base home/other"), "--ignore-base-mismatch")
        assert done.code == 0
        assert "deftx: warning: the vector was made on " in done.err
        shutil.rmtree("new")


def test_an_unknown_option_is_refused_with_the_nearest(run):
    done = run("inspect", "x", "--jsn")
    assert (done.code, done.out) == (2, "")
    assert "--json" in done.err


ERRORS = {
    "disk": (
        OSError(errno.ENOSPC, "No space left on device", "x/y"),
        "cannot write x/y: no space left on the disk; free some space",
    ),
    "permission": (
        PermissionError(errno.EACCES, "Permission denied", "x"),
        "x: Permission denied: check",
    ),
    "folder": (IsADirectoryError(errno.EISDIR, "Is a directory", "x"), "x: Is a directory: check"),
    "bare": (OSError("no luck"), "no luck: check"),
    "memory": (MemoryError(), "out of memory: lower training.batch_size"),
    "torch's memory": (
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you"
            " tried to ..."
        ),
        "out of memory: lower training.batch_size",
    ),
    "GPU memory": (
        torch.OutOfMemoryError("CUDA\nout"),
        "out of GPU memory: lower training.batch_size",
    ),
    "weights": (SafetensorError("I/O error"), "cannot read or write weights (I/O error)"),
    "lines": (DeftxError("one\n  two"), "one two"),
}


@pytest.mark.parametrize(("error", "says"), ERRORS.values(), ids=ERRORS)
def test_what_the_machine_refuses_is_one_line_too(run, monkeypatch, error, says):
    def refuse(*_):
        raise error

    monkeypatch.setattr("deftx.storage.vector_files.load", refuse)
    done = run("inspect", "x")
    assert (done.code, done.out) == (2, "")
    assert done.complaint.startswith(f"deftx: {says}")


def test_a_mistake_of_the_program_keeps_its_traceback(monkeypatch):
    def fail(_):
        raise RuntimeError("a bug")

    monkeypatch.setattr("deftx.storage.vector_files.load", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["inspect", "x"])


def test_the_traceback_of_wrong_input_can_be_had(monkeypatch):
    monkeypatch.setenv("DEFTX_TRACEBACK", "1")
    with pytest.raises(DeftxError, match="there is no vector at nowhere"):
        main(["inspect", "nowhere"])


def test_warnings_of_deftx_are_one_line_and_those_of_others_are_not_shown(capsys):
    with messages.short_warnings():
        warnings.warn_explicit(
            "two\n lines", UserWarning, "models.py", 1, module="deftx.models.loading"
        )
        warnings.warn_explicit("noise", UserWarning, "x.py", 1, module="transformers.x")
    assert capsys.readouterr().err == "deftx: warning: two lines\n"
