"""The whole method in one command: what it leaves, how it resumes, and what is said of wrong
turns."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from tiny import save_base, sentences
from tiny_run import labelled, same
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from typed import typed

import deftx
from deftx.config import LANGUAGE_PRESETS, TASK_PRESETS, changed
from deftx.data.held_out import held_out
from deftx.errors import DeftxError
from deftx.experiments import estimate, steps
from deftx.experiments.benefit import Benefit
from deftx.experiments.recipe import load_recipe
from deftx.experiments.report.statistics import Difference
from deftx.experiments.run import run_recipe
from deftx.experiments.transfer import Outcome, Request, TargetScore, recipe_data

SHORT = ["contamination=ignore", "language.k=20%"]
SHORT += [
    f"{what}.training.{setting}"
    for what in ("language", "task")
    for setting in ("max_steps=3", "length=16")
]
SHORT += [f"{what}.training.learning_rate=0.01" for what in ("language", "task")]
SETTINGS = [part for change in SHORT for part in ("--set", change)]
START = ["transfer", "--base", "base", "--train", "train.tsv", *SETTINGS]
SOURCE = ["--source", "ind.txt"]
TWO = [*START, "--source", "ind.txt", "--target", "min=texts/min.txt", "--target", "ace.txt"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, labelled data and texts."""
    folder = tmp_path_factory.mktemp("files")
    save_base(folder / "base")
    (folder / "texts").mkdir()
    for number, name in enumerate(["ind", "texts/min", "ace"]):
        (folder / f"{name}.txt").write_text("\n".join(sentences(50, number)) + "\n")
    for number, name in enumerate(["train", "valid", "test"]):
        labelled(folder / f"{name}.tsv", number, count=40)
    return folder


@pytest.fixture(scope="module")
def done(files: Path) -> Path:
    """The files, and `out`: a transfer to two targets, one of them with test data."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(files)
        assert typed(*TWO, "--test", "min=test.tsv", "--out", "out") == 0
    return files


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports are not written, which takes seconds."""
    monkeypatch.setattr("deftx.experiments.transfer.lacking", lambda: ["jinja2"])


@pytest.fixture
def folder(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files, as the working folder."""
    shutil.copytree(files, tmp_path / "own", ignore=shutil.ignore_patterns("out"))
    monkeypatch.chdir(tmp_path / "own")
    return tmp_path / "own"


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kinds of the steps that are computed from now on."""
    seen: list[str] = []
    for kind, make in steps.KINDS.items():

        def counted(store, step, *folders, make=make):
            seen.append(step.kind)
            make(store, step, *folders)

        monkeypatch.setitem(steps.KINDS, kind, counted)
    return seen


def test_it_leaves_vectors_a_model_for_each_target_a_table_a_report_and_a_recipe(
    done: Path,
) -> None:
    out = done / "out"
    assert sorted(path.name for path in (out / "vectors").iterdir()) == [
        "ace",
        "ind",
        "min",
        "task",
    ]
    assert sorted(path.name for path in (out / "models").iterdir()) == ["ace", "min"]
    results = (out / "results.md").read_text()
    assert "| min |" in results
    assert "| ace |" not in results
    assert all(f"## {name}\n" in results for name in ("task", "ind", "min", "ace"))
    page = (out / "report" / "report.html").read_text()
    assert "Did it help?" in page
    assert "of its places are the task" in page


def test_a_model_is_base_and_task_and_target_with_the_tokenizer_that_cuts_as_in_training(
    done: Path,
) -> None:
    out = done / "out"
    model = AutoModelForSequenceClassification.from_pretrained(out / "models" / "min").eval()
    vectors = [deftx.load(out / "vectors" / name) for name in ("task", "min")]
    composed = deftx.compose(str(done / "base"), *vectors)
    assert all(
        torch.equal(model.state_dict()[name], weight)
        for name, weight in composed.state_dict().items()
    )
    assert AutoTokenizer.from_pretrained(out / "models" / "min").model_max_length == 16


def test_it_is_what_three_fits_do(done: Path) -> None:
    """Learnt one by one in Python, with the preset's settings, the vectors are the same."""
    training = {"max_steps": 3, "length": 16, "learning_rate": 0.01}
    language = changed(LANGUAGE_PRESETS["standard"], {"k": "20%", "training": training})
    task = changed(TASK_PRESETS["standard"], {"training": training})
    base, vectors = str(done / "base"), done / "out" / "vectors"
    phi_source = deftx.fit_language(base, deftx.read_text(done / "ind.txt"), language)
    whole = deftx.read_examples(done / "train.tsv")
    train, valid = held_out(whole, 0.1, 0, named=True)
    deftx.save(phi_source, done / "fits" / "ind", force=True)
    deftx.save(
        deftx.fit_task(base, train, valid, task, source=phi_source),
        done / "fits" / "task",
        force=True,
    )
    assert all(same(vectors / name, done / "fits" / name) for name in ("ind", "task"))


def test_the_recipe_does_the_same_from_any_folder(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, computed: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(done / "out" / "recipe.yaml")
    with pytest.warns(UserWarning, match="4 of the rows of ind choose the best step"):
        scores = run_recipe(recipe, tmp_path / "again", done / "out" / "store")
    assert computed == []  # every step is in the store: it is the same one
    assert [(score.variant, score.language) for score in scores] == [
        ("with its vector", "min"),
        ("without its vector", "min"),
    ]
    assert recipe.language == changed(
        LANGUAGE_PRESETS["standard"],
        {"k": "20%", "training": {"max_steps": 3, "length": 16, "learning_rate": 0.01}},
    )
    data = yaml.safe_load((done / "out" / "recipe.yaml").read_text())
    assert data["train"] == "../train.tsv"
    assert data["languages"] == {
        "ind": "../ind.txt",
        "min": "../texts/min.txt",
        "ace": "../ace.txt",
    }


@pytest.mark.usefixtures("no_report")
def test_the_same_command_again_learns_nothing_and_says_the_same(
    done: Path, run, monkeypatch, computed
) -> None:
    monkeypatch.chdir(done)
    before = (done / "out" / "results.md").read_text()
    again = run(*TWO, "--test", "min=test.tsv", "--out", "out")
    assert (again.code, computed) == (0, [])
    assert before in again.out
    assert "deftx predict --model out/models/min new.txt" in again.out


@pytest.mark.usefixtures("no_report")
def test_another_request_in_the_folder_is_refused_but_for_force_which_keeps_the_steps(
    done: Path, run, monkeypatch, computed, tmp_path: Path
) -> None:
    shutil.copytree(done, tmp_path / "own")
    monkeypatch.chdir(tmp_path / "own")
    one = [*START, "--source", "ind.txt", "--target", "ace.txt", "--out", "out"]
    refused = run(*one)
    assert refused.code == 2
    assert "out holds another transfer (title, languages, test, targets" in refused.complaint
    assert "--force, which keeps what can be used again" in refused.complaint
    assert Path("out/models/min").exists()
    assert run(*one, "--force").code == 0
    assert computed == []
    assert sorted(os.listdir("out/models")) == ["ace"]
    assert sorted(os.listdir("out/vectors")) == ["ace", "ind", "task"]


@pytest.mark.usefixtures("no_report")
def test_a_transfer_that_was_stopped_resumes(
    folder: Path, run, monkeypatch, computed: list[str]
) -> None:
    command = [*START, "--source", "ind.txt", "--target", "ace.txt", "--out", "out"]
    vector = steps.KINDS["vector"]

    def stopping(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(steps.KINDS, "vector", stopping)
        stopped = run(*command)
    assert stopped.code == 130
    assert "deftx: stopped; to go on, type: deftx transfer " in stopped.err
    assert steps.KINDS["vector"] is vector
    assert computed == ["delta"]
    assert Path("out/recipe.yaml").is_file()
    assert not Path("out/models").exists()
    assert run(*command).code == 0
    assert computed == ["delta", "vector", "delta", "vector", "delta", "vector"]
    assert Path("out/models/ace/config.json").is_file()


@pytest.mark.usefixtures("no_report")
def test_several_seeds_are_learnt_and_their_mean_is_scored(
    done: Path, run, monkeypatch, tmp_path: Path
) -> None:
    shutil.copytree(done, tmp_path / "own")
    monkeypatch.chdir(tmp_path / "own")
    found = run(
        *TWO, "--test", "min=test.tsv", "--out", "out", "--set", "seeds=[0,1]", "--force", "--json"
    )
    assert found.code == 0
    facts = {row["name"]: row["facts"] for row in json.loads(found.out)}["min"]
    rows = [json.loads(line) for line in Path("out/run/results.jsonl").read_text().splitlines()]
    scores = [row["macro_f1"] for row in rows if row["variant"] == "with its vector"]
    assert len(scores) == 2
    assert facts[0].startswith(f"macro-F1 {50 * sum(scores):.1f} with the vector, ")
    assert facts[0].endswith("; 40 texts; 2 seeds: too few to say")
    assert same(Path("out/vectors/min"), done / "out" / "vectors" / "min")  # of the first seed


@pytest.mark.parametrize(
    ("seeds", "value", "certainty", "advice"),
    [
        (1, -0.2, "one seed: interval over texts only", []),
        (2, -0.2, "2 seeds: too few to say", []),
        (3, -0.2, "3 seeds", ["its vector costs 20.0 points"]),
        (3, 0.2, "3 seeds", []),
        (3, -0.001, "3 seeds: may be chance", []),
        (1, -0.001, "one seed: interval over texts only", []),
    ],
)
def test_nothing_is_concluded_from_one_seed_or_two(
    seeds: int, value: float, certainty: str, advice: list[str]
) -> None:
    difference = Difference(value, error=0.01, freedom=100.0, seeds=seeds)
    score = TargetScore("min", 40, "macro_f1", 0.5 + value, 0.5, difference)
    benefit = Benefit("min", None, None, 0.1, None, 1.0)
    outcome = Outcome(Path("out"), None, [benefit], [score])
    about = outcome.about()[1]
    assert about["advice"] == advice
    assert about["facts"][0].endswith(f"; 40 texts; {certainty}")
    assert f"| 40 | {certainty} |" in outcome.markdown()


@pytest.mark.usefixtures("no_report")
def test_one_that_was_stopped_while_gathering_resumes_too(
    folder: Path, run, monkeypatch, computed: list[str]
) -> None:
    command = [*START, "--source", "ind.txt", "--target", "ace.txt", "--out", "out"]

    def stopping(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("deftx.experiments.transfer.compose_to", stopping)
        assert run(*command).code == 130
    assert Path("out/vectors/ace").is_dir()
    learnt = len(computed)
    assert run(*command).code == 0
    assert len(computed) == learnt
    assert Path("out/models/ace/config.json").is_file()


def test_one_that_was_stopped_while_reading_begins_again(folder: Path, run, monkeypatch) -> None:
    command = [*START, "--source", "ind.txt", "--target", "ace.txt", "--out", "out"]

    def stopping(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("deftx.experiments.run.make_plan", stopping)
        assert run(*command).code == 130
    assert not Path("out/recipe.yaml").exists()
    assert Path("out/store").is_dir()
    assert run(*command, "--dry-run").code == 0


@pytest.mark.usefixtures("no_report")
def test_test_texts_in_what_is_learnt_are_left_out_and_that_is_said(folder: Path, run) -> None:
    text, test = Path("ace.txt"), Path("test.tsv")
    leak = "bi bo be ba bu bi bo be ba du"
    text.write_text(f"{text.read_text()}{leak}\n")
    test.write_text(f"text\tlabel\n{leak}\tfront\n")
    command = [
        "transfer",
        "--base",
        "base",
        "--train",
        "train.tsv",
        *SOURCE,
        "--target",
        "ace.txt",
        "--out",
        "out",
    ]
    settings = [part for change in SHORT[1:] for part in ("--set", change)]
    done = run(*command, "--test", "test.tsv", *settings, "--dry-run")
    assert done.code == 0
    assert "left out of ace, since it holds evaluation text: 1 of 51" in done.out


def test_the_folder_of_a_run_is_not_taken_for_a_transfer(folder: Path, run) -> None:
    Path("out/run").mkdir(parents=True)
    Path("out/run/recipe.json").write_text("{}")
    Path("out/store").mkdir()
    refused = run(*START, *SOURCE, "--target", "ace.txt", "--out", "out")
    assert refused.code == 2
    assert "is not the folder of a transfer" in refused.complaint


def test_a_dry_run_says_what_it_takes_and_leaves_nothing(
    folder: Path, run, computed: list[str]
) -> None:
    before = sorted(folder.rglob("*"))
    plan = run(*TWO, "--test", "min=test.tsv", "--out", "out", "--dry-run")
    assert plan.code == 0
    assert "10 steps, 10 to do" in plan.out
    assert all(f"{what}: about " in plan.out for what in ("time", "memory", "disk"))
    found = json.loads(run(*TWO, "--out", "out", "--dry-run", "--json").out)
    assert [step["kind"] for step in found["steps"]].count("delta") == 4
    assert (computed, sorted(folder.rglob("*"))) == ([], before)


def test_the_plan_is_printed_before_anything_is_learnt(folder: Path, run, monkeypatch) -> None:
    def failing(*arguments):
        raise DeftxError("begun")

    monkeypatch.setitem(steps.KINDS, "delta", failing)
    failed = run(*START, "--source", "ind.txt", "--target", "ace.txt", "--out", "out")
    assert failed.code == 2
    assert "time: about " in failed.out
    assert "begun" in failed.err


@pytest.mark.usefixtures("no_report")
def test_finished_vectors_take_the_place_of_texts(
    done: Path, run, monkeypatch, computed, tmp_path: Path
) -> None:
    shutil.copytree(done, tmp_path / "own", ignore=shutil.ignore_patterns("store"))
    monkeypatch.chdir(tmp_path / "own")
    command = [
        *START,
        "--source-vector",
        "out/vectors/ind",
        "--target-vector",
        "min=out/vectors/min",
    ]
    found = run(*command, "--test", "test.tsv", "--out", "other", "--json")
    assert found.code == 0
    assert computed == ["given", "given", "delta", "vector", "score", "score"]
    assert same(Path("other/vectors/task"), Path("out/vectors/task"))
    rows = {row["name"]: row for row in json.loads(found.out)}
    assert rows.keys() == {"task", "ind", "min"}
    assert any(
        "40 texts; one seed: interval over texts only" in fact for fact in rows["min"]["facts"]
    )
    assert not any(
        "unknown to the tokenizer" in fact for fact in rows["min"]["facts"]
    )  # there is no text
    with_text = run(*command, "--target", "min=texts/min.txt", "--out", "third", "--json")
    assert with_text.code == 0
    assert "unknown to the tokenizer" in with_text.out


@pytest.mark.usefixtures("no_report")
def test_without_test_data_nothing_is_scored_and_what_can_be_said_is(
    folder: Path, run, computed
) -> None:
    found = run(*START, "--source", "ind.txt", "--target", "ace.txt", "--out", "out")
    assert found.code == 0
    assert "score" not in computed
    assert "| language |" not in found.out
    for fact in (
        "held-out loss ",
        "of the text is unknown",
        "of its places are the task's too",
        "answered otherwise",
    ):
        assert fact in found.out
    assert (
        "deftx evaluate --base base --task out/vectors/task --language ace=out/vectors/ace"
        in found.out
    )


@pytest.mark.usefixtures("no_report")
def test_without_the_libraries_of_the_report_all_else_is_there(folder: Path, run) -> None:
    found = run(*START, "--source", "ind.txt", "--target", "ace.txt", "--out", "out")
    assert found.code == 0
    assert not Path("out/report").exists()
    assert "pip install 'deftx[report]'" in found.out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            ["--target", "ace.txt"],
            "there is no text of the source language: give --source NAME=FILE",
        ),
        (SOURCE, "there is no target language: give --target NAME=FILE"),
        (
            [*SOURCE, "--target", "ace.txt", "--target", "texts/../ace.txt"],
            "is the second one named 'ace'",
        ),
        (
            [*SOURCE, "--target", "a=ace.txt", "--target", "a=texts/min.txt"],
            "is the second one named 'a'",
        ),
        (
            [*SOURCE, "--target", "ind=ace.txt"],
            "the target 'ind' is the source, the language of --train",
        ),
        (
            [*SOURCE, "--target", "new=ind.txt"],
            "--target new=ind.txt is the text of the source 'ind'",
        ),
        (
            [*SOURCE, "--source-vector", "other=v", "--target", "ace.txt"],
            "give --source NAME=FILE.* of the same name",
        ),
        (
            [*SOURCE, "--target", "ace.txt", "--test", "min=test.tsv"],
            r"unknown target \(--test\) 'min'.*known: ace",
        ),
        (
            [*SOURCE, "--target", "ace.txt", "--target", "texts/min.txt", "--test", "test.tsv"],
            "--test test.tsv is of which target\\? write NAME=test.tsv; targets: ace, min",
        ),
        ([*SOURCE, "--target", "hub:some/text"], "--target hub:some/text is of which language"),
        (
            [*SOURCE, "--target", "ace.txt", "--preset", "quik"],
            r"unknown preset 'quik' .did you mean 'quick'.*standard",
        ),
        ([*SOURCE, "--target", "nothing.txt"], "nothing.txt"),
        ([*SOURCE, "--target", "task=ace.txt"], "a language cannot be called 'task'"),
        ([*SOURCE, "--target", "ace.txt", "--method", "defx"], "unknown method 'defx'"),
        ([*SOURCE, "--target", "ace.txt", "--set", "langage.k=5%"], "unknown setting 'langage'"),
        ([*SOURCE, "--target-vector", "base"], "base"),
        ([*SOURCE, "--target", "ace.txt", "--valid", "nothing.tsv"], "nothing.tsv"),
        (
            [*SOURCE, "--target", "ace.txt", "--kind", "question-answering"],
            "a recipe compares macro_f1 and accuracy",
        ),
    ],
    ids=lambda value: None if isinstance(value, list) else value[:40],
)
def test_wrong_turns_are_one_line_and_leave_nothing(
    folder: Path, run, options: list[str], says: str
) -> None:
    wrong = run(*START, *options, "--out", "out")
    assert wrong.code == 2
    lines = [line for line in wrong.err.splitlines() if "warning" not in line]
    assert len(lines) == 1
    with pytest.raises(DeftxError, match=says):
        raise DeftxError(lines[0])
    assert not Path("out/recipe.yaml").exists()


@pytest.mark.parametrize("content", ["file", "folder"])
def test_what_is_at_out_is_not_touched(folder: Path, run, content: str) -> None:
    if content == "file":
        Path("out").write_text("mine")
    else:
        Path("out").mkdir()
        Path("out/mine.txt").write_text("mine")
    for force in ([], ["--force"]):
        refused = run(*START, *SOURCE, "--target", "ace.txt", "--out", "out", *force)
        assert refused.code == 2
        assert "out exists and is not the folder of a transfer" in refused.complaint
    assert (Path("out") if content == "file" else Path("out/mine.txt")).read_text() == "mine"


def test_without_a_preset_it_is_standard_and_presets_go_together() -> None:
    request = Request("base", "train.tsv", "ind", ["min"], {"ind": "ind.txt", "min": "min.txt"})
    data = recipe_data(request, Path("out"))
    standard = LANGUAGE_PRESETS["standard"].model_dump(exclude_unset=True)
    assert data["language"] == standard
    paper = recipe_data(Request("b", "t", "ind", ["min"], {}, preset="paper-nli"), Path("out"))
    assert paper["language"]["k"] == LANGUAGE_PRESETS["paper-nli"].k
    assert (
        paper["task"]["training"]["metric"]
        == TASK_PRESETS["paper-nli"].training.metric
        == "accuracy"
    )
    assert data["variants"] == {"with its vector": {}}
    assert "valid" not in data


def test_options_reach_both_vectors_and_the_task_its_columns(
    folder: Path, run, monkeypatch
) -> None:
    found = []
    monkeypatch.setattr(
        "deftx.experiments.transfer.plan", lambda request, *rest, **options: found.append(request)
    )
    options = [
        "--method",
        "lt-sft",
        "--rank",
        "3",
        "--seed",
        "4",
        "--kind",
        "tagging",
        "--label-column",
        "tags",
    ]
    assert (
        run(*START, *SOURCE, "--target", "ace.txt", "--out", "o", "--dry-run", *options).code == 0
    )
    changes = found[0].changes
    assert (changes["language"]["method"], changes["language"]["rank"], changes["seeds"]) == (
        "lt-sft",
        3,
        [4],
    )
    assert (changes["task"]["method"], changes["task"]["rank"], changes["task"]["task"]) == (
        "lt-sft",
        3,
        "tagging",
    )
    assert changes["columns"] == {"label": "tags"}


def test_too_little_memory_is_said_before(folder: Path, run, monkeypatch) -> None:
    monkeypatch.setattr(estimate, "free_memory", lambda: 1)
    assert "more memory than is free" in run(*TWO, "--out", "out", "--dry-run").out


IN_PYTHON = {"max_steps": 3, "length": 16, "learning_rate": 0.01}


def in_python(done: Path, **options: object) -> object:
    """`deftx.transfer` with the settings of `done`."""
    language = changed(LANGUAGE_PRESETS["standard"], {"k": "20%", "training": IN_PYTHON})
    task = changed(TASK_PRESETS["standard"], {"training": IN_PYTHON})
    source, train = deftx.read_text(done / "ind.txt"), deftx.read_examples(done / "train.tsv")
    texts = {
        name: deftx.read_text(done / file)
        for name, file in {"min": "texts/min.txt", "ace": "ace.txt"}.items()
    }
    return deftx.transfer(
        str(done / "base"),
        source,
        options.pop("target", texts),
        train,
        language_settings=language,
        task_settings=task,
        **options,
    )


def test_in_python_the_models_are_those_of_the_command_and_what_was_stopped_resumes(
    done: Path, tmp_path: Path, monkeypatch
) -> None:
    titles, fit_language = [], deftx.fit.fit_language

    def stopping(*arguments, title, **options):
        titles.append(title)
        if title == "ace language" and titles.count(title) == 1:
            raise KeyboardInterrupt
        return fit_language(*arguments, title=title, **options)

    monkeypatch.setattr("deftx.fit.fit_language", stopping)
    with pytest.raises(KeyboardInterrupt):
        in_python(done, checkpoint_dir=tmp_path)
    phase1 = sorted(path.parent.name for path in tmp_path.rglob("phase1.safetensors"))
    assert phase1 == ["min language", "source language", "task"]
    models = in_python(done, checkpoint_dir=tmp_path)
    for name, model in models.items():
        saved = AutoModelForSequenceClassification.from_pretrained(done / "out" / "models" / name)
        assert all(
            torch.equal(saved.state_dict()[key], weight)
            for key, weight in model.state_dict().items()
        )
    assert list(models) == ["min", "ace"]


def test_in_python_a_single_target_gives_a_model(done: Path) -> None:
    model = in_python(done, target=deftx.read_text(done / "ace.txt"))
    saved = AutoModelForSequenceClassification.from_pretrained(done / "out" / "models" / "ace")
    assert all(
        torch.equal(saved.state_dict()[key], weight) for key, weight in model.state_dict().items()
    )
    with pytest.raises(DeftxError, match=r"'ace\.txt' is one text, where a list is wanted"):
        in_python(done, target={"ace": "ace.txt"})


@pytest.mark.parametrize(
    "option", ["--train", "--valid", "--source ind=", "--target min=", "--test min="]
)
def test_a_file_that_is_not_there_is_named_as_it_was_typed(here, run, option):
    words = "transfer --base home/base --train home/train.tsv --valid home/valid.tsv"
    words += " --source ind=home/ind.txt --target min=home/min.txt --test min=home/test.tsv"
    flag, _, language = option.partition(" ")
    missing = f"{language}nowhere.tsv"
    parts = words.split()
    parts[parts.index(flag) + 1] = missing
    done = run(*parts, "--out", "out")
    assert done.code == 2
    assert "deftx: nowhere.tsv does not exist: check the path" in done.err
    assert not (here / "out").exists()
