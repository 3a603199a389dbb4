"""Sharing vectors, by the real client of the hub against a stand-in server on loopback."""

import ast
import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hub_server import Fault, Repo
from storage_examples import assert_same, example
from typed import typed

import deftx
from deftx.core.parameters import parameter_groups
from deftx.core.provenance import Provenance
from deftx.core.tensors import Head, SparseTensor
from deftx.core.vector import SparseVector
from deftx.errors import DeftxError
from deftx.models.fingerprint import fingerprint
from deftx.models.heads import load_task_model

# the client warns of its own way to upload
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")

FILES = ["head.safetensors", "vector.json", "vector.safetensors"]
OUT_OF_ORDER = 503


@pytest.fixture
def anna(hub, monkeypatch):
    """The hub, with anna logged in."""
    monkeypatch.setenv("HF_TOKEN", "hf_anna")
    return hub


@pytest.fixture
def shared(anna):
    """The hub, with anna logged in and the first example at anna/min."""
    deftx.push(example(), "anna/min")
    anna.asked.clear()
    return anna


@pytest.fixture
def impatient(monkeypatch):
    """The client waits for nothing between its tries."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)


def refusal(call, *arguments, **options):
    """The one line that a call is refused with."""
    with pytest.raises(DeftxError) as error:
        call(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def cached(tmp_path, name):
    """The places of a file in the client's cache, links followed."""
    return [
        path for path in (tmp_path / "cache").glob(f"models--*/snapshots/*/{name}") if path.exists()
    ]


# There and back


def test_what_is_pushed_can_be_loaded_by_everybody(shared, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    for name in ("anna/min", "anna/min@main"):
        assert_same(deftx.load(name), example())


def test_only_the_files_of_a_vector_are_fetched_and_only_once(shared, tmp_path):
    repo = shared.repos["anna/min"]
    assert set(repo.commits[repo.refs["main"]]) == {*FILES, "README.md"}
    deftx.load("anna/min")
    assert shared.fetched() == FILES
    deftx.load("anna/min")
    assert shared.fetched() == FILES
    (path,) = cached(tmp_path, "vector.safetensors")
    assert path.is_symlink()
    assert_same(deftx.load(path.parent), example())


def test_a_branch_a_tag_and_a_commit_each_keep_their_vector(shared):
    repo = shared.repos["anna/min"]
    repo.refs["v1"] = repo.refs["main"]
    pinned = f"anna/min@{repo.refs['main']}"
    assert deftx.push(example(1), "anna/min", message="Better") == f"anna/min@{repo.refs['main']}"
    deftx.push(example(2), "anna/min", revision="wip/two")
    assert repo.messages[1] == "Better"
    for name, seed in {"anna/min": 1, "anna/min@v1": 0, pinned: 0, "anna/min@wip/two": 2}.items():
        assert_same(deftx.load(name), example(seed))
    assert_same(deftx.load("anna/min"), example(1))


def test_a_vector_has_the_method_and_takes_the_options_of_push(anna):
    pinned = example().push_to_hub("anna/min", private=True, revision="wip", languages=["min"])
    assert anna.repos["anna/min"].private
    assert pinned == f"anna/min@{anna.repos['anna/min'].refs['wip']}"
    assert_same(deftx.load(pinned), example())


def test_importing_the_core_imports_nothing_of_storage():
    for path in (Path(deftx.__file__).parent / "core").glob("*.py"):
        imported = [
            line.module
            for line in ast.parse(path.read_text()).body
            if isinstance(line, ast.ImportFrom)
        ]
        ours = [module for module in imported if module and module.startswith("deftx")]
        assert all(module.startswith(("deftx.core", "deftx.errors")) for module in ours)


def test_a_head_does_not_outlive_the_vector_that_it_belonged_to(shared):
    deftx.push(example(1, head=False), "anna/min")
    repo = shared.repos["anna/min"]
    assert set(repo.commits[repo.refs["main"]]) == {
        "README.md",
        "vector.json",
        "vector.safetensors",
    }
    assert_same(deftx.load("anna/min"), example(1, head=False))


def test_a_folder_wins_over_the_hub_and_a_path_is_never_an_id(shared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refusal(deftx.load, Path("anna/min")) == "there is no vector at anna/min: no such folder"
    assert refusal(deftx.load, "./anna/min") == "there is no vector at ./anna/min: no such folder"
    deftx.save(example(1), "anna/min")
    assert_same(deftx.load("anna/min"), example(1))
    Path("anna/ban").write_text("no vector")
    assert "is a file" in refusal(deftx.load, "anna/ban")
    assert shared.asked == []


def test_pull_makes_an_ordinary_folder_and_replaces_only_what_it_may(shared, tmp_path):
    out = tmp_path / "vectors" / "min"
    assert_same(deftx.pull("anna/min", out), example())
    assert sorted(os.listdir(out)) == FILES
    assert not any(path.is_symlink() for path in out.iterdir())
    shared.asked.clear()
    assert "--force" in refusal(deftx.pull, "anna/min", out)
    assert shared.asked == []
    deftx.push(example(1), "anna/min")
    deftx.pull("anna/min@main", out, force=True)
    assert_same(deftx.load(out), example(1))
    assert "write USER/NAME or USER/NAME@REVISION" in refusal(deftx.pull, "min", out)


# Who may


def test_a_private_vector_is_had_by_its_owner_alone(anna, monkeypatch):
    deftx.push(example(), "anna/min", private=True)
    assert anna.repos["anna/min"].private
    for token in ("hf_ben", None):
        monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN")
        assert refusal(deftx.load, "anna/min") == (
            "there is no folder anna/min; anna/min on the hub: there is no such repository, or"
            " it is private:"
            " check the name, or log in with `hf auth login` or set HF_TOKEN"
        )
    monkeypatch.setenv("HF_TOKEN", "hf_anna")
    assert_same(deftx.load("anna/min"), example())


def test_the_token_of_a_login_is_used(anna, tmp_path, monkeypatch):
    deftx.push(example(), "anna/min", private=True)
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "token").write_text("hf_anna")
    assert_same(deftx.load("anna/min"), example())


def test_what_is_not_there_is_told_from_what_may_not_be_had(shared, monkeypatch):
    assert "ben/min on the hub: there is no such repository, or it is private" in refusal(
        deftx.load, "ben/min"
    )
    unknown = refusal(deftx.load, "anna/min@nowhere")
    assert f"no branch, tag or commit 'nowhere': see {shared.url}/anna/min/commits/main" in unknown
    assert "not a name that the hub allows" in refusal(deftx.load, "anna/min--min")
    shared.repos["anna/gated"] = replace(shared.repos["anna/min"], gated=True)
    monkeypatch.setenv("HF_TOKEN", "hf_ben")
    assert f"its owner decides who may have it: ask for access at {shared.url}" in refusal(
        deftx.load, "anna/gated"
    )
    shared.repos["anna/model"] = Repo()
    assert refusal(deftx.load, "anna/model").endswith(
        "it is not a vector, for it has no vector.json"
    )


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        (None, "the hub does not know who you are, or your token is no longer valid: log in"),
        ("hf_stale", "the hub does not know who you are, or your token is no longer valid: log in"),
        (
            "hf_ben",
            "your token does not allow it: check the user's name, and that the token may write"
            " there",
        ),
    ],
)
def test_only_who_may_write_pushes(shared, monkeypatch, token, reason):
    monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN")
    for repo in ("anna/min", "anna/new"):
        assert refusal(deftx.push, example(1), repo).startswith(f"cannot push to {repo}: {reason}")
    assert len(shared.repos["anna/min"].messages) == 1


def test_what_shall_be_private_is_not_pushed_where_everybody_can_read(shared):
    assert "there already and public" in refusal(deftx.push, example(1), "anna/min", private=True)
    assert len(shared.repos["anna/min"].messages) == 1


@pytest.mark.parametrize("repo", ["min", "./anna/min", "anna/min@main", "a/b/c", "anna/min ", ""])
def test_a_place_to_push_to_has_a_user_and_a_name(anna, repo):
    assert "write USER/NAME, and a branch with --revision" in refusal(deftx.push, example(), repo)
    assert anna.asked == []


# When something breaks


def test_a_download_that_is_cut_off_goes_on_where_it_was(shared, impatient):
    shared.fault = Fault(cut=60, times=2)
    assert_same(deftx.load("anna/min"), example())
    assert shared.fault.times == 0


def test_half_a_file_is_never_taken_for_the_whole(shared, impatient, tmp_path):
    shared.fault = Fault(cut=0, times=100)
    line = refusal(deftx.load, "anna/min")
    assert line.startswith("there is no folder anna/min; anna/min on the hub: ")
    assert line.endswith(f"check the connection to {shared.url}, and try again")
    assert cached(tmp_path, "vector.safetensors") == []
    shared.fault = Fault()
    assert_same(deftx.load("anna/min"), example())


@pytest.mark.parametrize("file", FILES)
def test_content_that_is_not_what_was_pushed_is_refused_and_had_again_later(shared, file):
    shared.fault = Fault(corrupt=file)
    assert f"{file}" in refusal(deftx.load, "anna/min")
    shared.fault = Fault()
    assert_same(deftx.load("anna/min"), example())


def test_damage_in_the_cache_is_repaired_or_refused_where_the_hub_cannot_be_reached(
    shared, tmp_path, monkeypatch
):
    deftx.load("anna/min")
    (path,) = cached(tmp_path, "vector.safetensors")
    data = path.read_bytes()
    path.resolve().write_bytes(data[:-1])
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        assert "anna/min on the hub: " in (line := refusal(deftx.load, "anna/min"))
        assert "its SHA-256 is not the one in vector.json" in line
    assert_same(deftx.load("anna/min"), example())
    assert path.read_bytes() == data


def test_a_vector_of_a_stranger_is_checked_like_any_other(shared):
    repo = shared.repos["anna/min"]
    files = repo.commits[repo.refs["main"]]
    repo.commit(
        "main",
        {**files, "vector.json": files["vector.json"].replace(b'"scale"', b'"../scale"')},
        "forged",
    )
    assert "vector.json is damaged" in refusal(deftx.load, "anna/min")


def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return (
        "offline mode is on: unset HF_HUB_OFFLINE to reach the hub; it is not in the cache either"
    )


def without_network(monkeypatch):
    with socket.socket() as closed:  # a port on which nobody listens
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    return f"check the connection to {url}, and try again; it is not in the cache either"


@pytest.mark.parametrize("away", [offline, without_network])
def test_without_the_hub_its_cache_serves(shared, monkeypatch, away):
    pinned = f"anna/min@{shared.repos['anna/min'].refs['main']}"
    deftx.load("anna/min")
    shared.asked.clear()
    reason = away(monkeypatch)
    for name in ("anna/min", pinned):
        assert_same(deftx.load(name), example())
    for name in ("anna/ban", "anna/min@other"):
        line = refusal(deftx.load, name)
        assert line.startswith(f"there is no folder {name}; {name} on the hub: ")
        assert line.endswith(reason)
    assert refusal(deftx.push, example(), "anna/min").startswith("cannot push to anna/min: ")
    assert shared.asked == []


def test_a_hub_that_is_out_of_order_says_so(shared):
    shared.fault = Fault(status=OUT_OF_ORDER)
    assert "the hub answered 503" in refusal(deftx.load, "anna/min")
    assert "try again later" in refusal(deftx.push, example(), "anna/min")


def test_a_cache_that_cannot_be_written_is_no_trouble_of_the_network(shared, tmp_path):
    (tmp_path / "cache").write_text("in the way")
    assert f"check the disk, its free space and the permissions of {tmp_path}" in refusal(
        deftx.load, "anna/min"
    )


# The commands


@pytest.fixture(scope="module")
def pair(bases):
    """A task vector and a language vector of the tiny base."""
    model = load_task_model(bases(), ["bad", "good"])
    name, weight = next(iter(parameter_groups(model).trainable.items()))
    entries = {
        name: SparseTensor(torch.tensor([0, 3]), torch.tensor([0.5, -0.5]), tuple(weight.shape))
    }
    provenance = Provenance(base=bases(), base_fingerprint=fingerprint(model))
    top = Head(
        {name: weight.detach().clone() for name, weight in parameter_groups(model).head.items()},
        ("bad", "good"),
    )
    other = {name: entries[name].map(torch.neg)}
    return SparseVector(entries, top, replace(provenance, kind="task")), SparseVector(
        other, None, replace(provenance, kind="language")
    )


def test_every_command_takes_a_vector_from_the_hub(
    anna, pair, bases, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    deftx.save(pair[0], "vectors/task")
    deftx.save(pair[1], "vectors/min")
    for name in ("task", "min"):
        options = ["--language", "min", "--license", "mit", "--message", name, "--revision", "v1"]
        assert typed("push", f"vectors/{name}", f"anna/{name}", *options) == 0
        pinned = anna.repos[f"anna/{name}"].refs["v1"]
        done = capsys.readouterr()
        assert done.out == (
            f"anna/{name}: vectors/{name} is on the hub, and stays there as anna/{name}@{pinned}\n"
        )
        assert anna.repos[f"anna/{name}"].messages == [name]
    Path("test.tsv").write_text("text\tlabel\nba be\tgood\nbi bo\tbad\n")
    vectors = ["--base", bases(), "--task", "anna/task@v1", "--language", "anna/min@v1"]
    assert typed("compose", *vectors, "--out", "model") == 0
    assert typed("predict", *vectors, "test.tsv") == 0
    assert typed("evaluate", *vectors, "--test", "min=test.tsv") == 0
    assert typed("inspect", "anna/min@v1", "vectors/task") == 0
    assert typed("pull", "anna/min@v1", "--out", "pulled") == 0
    assert capsys.readouterr().out.endswith("pulled: language vector, k = 2, from anna/min@v1\n")
    assert_same(
        deftx.load("pulled"),
        replace(pair[1], provenance=replace(pair[1].provenance, base="a local folder")),
    )


def test_a_source_vector_comes_from_the_hub_and_the_base_from_a_folder(
    anna, pair, bases, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("base").symlink_to(bases())
    deftx.push(pair[1], "anna/ind")
    (tmp_path / "train.tsv").write_text("text\tlabel\nba be\tgood\nbi bo\tbad\n")
    data = [
        "--train",
        tmp_path / "train.tsv",
        "--valid",
        tmp_path / "train.tsv",
        "--source",
        "anna/ind",
    ]
    quick = ["--k", "3", "--set", "training.max_steps=1"]
    assert typed("fit", "task", "--base", "base", *data, *quick, "--out", tmp_path / "task") == 0
    provenance = deftx.load(tmp_path / "task").provenance
    assert provenance.source.kind == "language"
    assert provenance.base == "./base"  # which no hub id is like
    assert provenance.data.sources == ("train.tsv", "train.tsv")


def test_a_command_that_fails_says_one_line(anna, capsys):
    assert typed("inspect", "anna/nothing") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "deftx: there is no folder anna/nothing; anna/nothing on the hub: there is no such"
    )
    assert typed("push", "anna/nothing", "anna/min") == 2
    assert typed("pull", "nothing", "--out", "x") == 2
    assert len(capsys.readouterr().err.splitlines()) == 2
