"""All vectors of a run to the hub, by the hub's real client against a stand-in on loopback."""

import shutil

import pytest
from hub_server import Fault
from huggingface_hub import ModelCard
from storage_examples import example
from synthetic_run import make_run
from typed import typed

import deftx
from deftx.errors import DeftxError
from deftx.experiments.published_run import vectors_to_publish
from deftx.experiments.run import vectors_of
from deftx.hub.collection import CollectionItem, push_collection
from deftx.hub.model_card import About, MeasuredScore, model_card

# the client warns of its own way to upload
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")

VARIANT = ["--variant", "LT-SFT"]
REPOS = ["anna/nusax-task", "anna/nusax-ace", "anna/nusax-min", "anna/nusax-ind"]


@pytest.fixture
def anna(hub, monkeypatch):
    """The hub, with anna logged in."""
    monkeypatch.setenv("HF_TOKEN", "hf_anna")
    return hub


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published") / "run"
    return make_run(folder, seeds=(3, 1), languages=("ace", "min"), examples=60, deltas=False)


def test_a_run_becomes_repositories_with_cards_and_a_collection(anna, run, capsys):
    options = [*VARIANT, "--license", "cc-by-sa-4.0", "--base", "you/base", "--title", "My NusaX"]
    assert typed("push", run, "anna/nusax", *options) == 0
    printed = capsys.readouterr().out
    assert "4 vectors are on the hub; their page is http" in printed

    # Each vector is the one of the smallest seed, without paths, at the commit that was printed
    assert set(anna.repos) == set(REPOS)
    items = vectors_to_publish(run, "anna/nusax", variant="LT-SFT")
    assert [item.repo for item in items] == REPOS
    assert {item.vector for item in items} == set(vectors_of(run, "LT-SFT", 1).values())
    for item in items:
        pushed = deftx.load(f"{item.repo}@{anna.repos[item.repo].refs['main']}")
        kept = deftx.load(item.vector)
        assert pushed.tensors.keys() == kept.tensors.keys()
        for name, entries in kept.tensors.items():
            assert pushed.tensors[name].values.equal(entries.values)
            assert pushed.tensors[name].indices.equal(entries.indices)
        card = anna.repos[item.repo].commits[anna.repos[item.repo].refs["main"]]["README.md"]
        assert b"/home/" not in card
        assert b"cc-by-sa-4.0" in card

    # The page lists them, with the scores of their language
    (collection,) = anna.collections.values()
    assert collection["title"] == "My NusaX"
    assert [item["id"] for item in collection["items"]] == REPOS
    notes = [item["note"]["text"] for item in collection["items"]]
    assert "Language vector of ace: macro-F1 0." in notes[1]
    assert "without a language vector" in notes[1]


def test_cards_have_the_scores_that_the_vector_has_a_part_in(anna, run):
    assert typed("push", run, "anna/nusax", *VARIANT) == 0

    def card(name):
        repo = anna.repos[f"anna/nusax-{name}"]
        return repo.commits[repo.refs["main"]]["README.md"].decode()

    for language in ("ace", "min", "ind"):
        assert f"test data of {language} (60 examples, seed 1)" in card("task")
    assert "test data of ace" in card("ace")
    assert "test data of min" not in card("ace")
    assert "language:\n- ace\n" in card("ace")
    assert "language:\n" not in card("task")


def test_test_scores_are_in_the_metadata_of_a_task_vector_alone():
    score = MeasuredScore("ace", "macro_f1", 0.71234, 0.69, examples=400, seed=0)
    about = About(scores=[score])
    of_task = ModelCard(model_card(example(head=True), "anna/task", about)).data.eval_results
    assert [result.dataset_name for result in of_task] == ["test data of ace"]
    assert of_task[0].metric_type == "f1"
    assert of_task[0].metric_value == 0.7123
    of_language = model_card(example(head=False), "anna/ace", about)
    assert ModelCard(of_language).data.eval_results is None
    assert "macro-F1 0.7123 (0.6900 without a language vector)" in of_language


def test_a_push_that_was_stopped_goes_on_and_what_is_equal_is_not_sent_again(anna, run, capsys):
    items = vectors_to_publish(run, "anna/nusax", variant="LT-SFT")
    push_collection(items[:2], "nusax")
    commits = {name: repo.refs["main"] for name, repo in anna.repos.items()}
    anna.asked.clear()
    assert typed("push", run, "anna/nusax", *VARIANT) == 0
    assert {name: anna.repos[name].refs["main"] for name in commits} == commits
    assert not [path for path in anna.asked if path.endswith("task/commit/main")]
    (collection,) = anna.collections.values()
    assert [item["id"] for item in collection["items"]] == REPOS
    # and once more, whole: nothing is new
    anna.asked.clear()
    assert typed("push", run, "anna/nusax", *VARIANT) == 0
    assert not [path for path in anna.asked if "/commit/" in path]


def test_a_dry_run_prints_what_would_go_where_and_asks_the_hub_nothing(anna, run, capsys):
    assert typed("push", run, "anna/nusax", *VARIANT, "--seed", "3", "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines[:-1]] == REPOS
    assert lines[-1] == "collection 'nusax': 4 vectors; nothing was pushed"
    assert anna.asked == []


def test_private_vectors_have_a_private_page(anna, run):
    assert typed("push", run, "anna/nusax", *VARIANT, "--private") == 0
    assert all(repo.private for repo in anna.repos.values())
    assert [collection["private"] for collection in anna.collections.values()] == [True]


def test_the_folder_of_a_transfer_has_a_run_in_it(anna, run, tmp_path):
    whole = tmp_path / "transfer"
    shutil.copytree(run, whole / "run")
    shutil.copytree(run.parent / "store", whole / "store")
    assert typed("push", whole, "anna/nusax", *VARIANT) == 0
    assert set(anna.repos) == set(REPOS)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ([], "LT-SFT, DeFT-X 90%; say which with --variant"),
        (["--variant", "LTSFT"], "LT-SFT"),
        ([*VARIANT, "--seed", "2"], "its seeds are 1, 3"),
        ([*VARIANT, "--language", "min"], "write NAME=CODE"),
        ([*VARIANT, "--revision", "main"], "--revision does not go with"),
        ([*VARIANT, "--message", "Better"], "--message does not go with"),
        ([*VARIANT, "--title", "x" * 60], "the hub allows 1 to 59 characters"),
        ([*VARIANT, "--language", "min=Minang"], "is no ISO 639 code"),
        ([*VARIANT, "--language", "mi=min"], "min"),
        ([*VARIANT, "--license", "Mine!"], "is no licence"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_pushed(anna, run, capsys, options, problem):
    assert typed("push", run, "anna/nusax", *options) == 2
    assert problem in " ".join(capsys.readouterr().err.split())
    assert anna.repos == {}


def test_options_of_a_run_do_not_go_with_a_vector(anna, run, capsys):
    (item, *_) = vectors_to_publish(run, "anna/nusax", variant="LT-SFT")
    assert typed("push", item.vector, "anna/task", "--dry-run") == 2
    assert "--dry-run does not go with" in capsys.readouterr().err
    assert anna.repos == {}


def test_a_collection_has_one_owner(anna, run):
    (first, second, *_) = vectors_to_publish(run, "anna/nusax", variant="LT-SFT")
    other = CollectionItem(second.vector, "ben/nusax-ace", About(), "")
    with pytest.raises(DeftxError, match="have one owner, and these have anna, ben"):
        push_collection([first, other], "nusax")
    with pytest.raises(DeftxError, match="have one owner, and these have 0"):
        push_collection([], "nusax")
    assert anna.repos == {}


def test_who_may_not_make_the_page_is_told_that_the_vectors_are_there(anna, run):
    items = vectors_to_publish(run, "anna/nusax", variant="LT-SFT")
    anna.fault = Fault(forbid="/api/collections")
    with pytest.raises(DeftxError) as error:
        push_collection(items[:1], "nusax")
    assert "the vectors are on the hub, but not their collection 'nusax'" in str(error.value)
    assert "your token does not allow it" in str(error.value)
    assert set(anna.repos) == {items[0].repo}
