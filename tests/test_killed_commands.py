"""compose, pull and push that are killed at any file operation: what they write is whole or not
there, and the same command again completes it."""

import itertools
import shutil

import huggingface_hub
import pytest
from killed import fatal_operations, full_disk_at, killed_at
from lt_sft_files import vector_of
from storage_examples import assert_same, example

import deftx
from deftx.models import compose as composing
from deftx.models.heads import load_composed
from deftx.models.tokenizers import load_tokenizer

pytestmark = [
    pytest.mark.once,
    pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning"),
]

# at every file operation, or, where it has to be quick, at some of them
steps = pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 9])


@pytest.fixture
def compose_to(bases, monkeypatch):
    """`deftx compose` without the loading, which writes nothing; the models by their number."""
    tokenizer = load_tokenizer(bases())
    models = []
    for seed in range(2):
        task = vector_of(bases(), with_head=True, seed=seed)
        models.append(deftx.compose(bases(), task))
    monkeypatch.setattr(composing, "load_tokenizer", lambda base: tokenizer)

    def compose_to(out, number, *, force=False):
        monkeypatch.setattr(composing, "compose", lambda *_, **__: models[number])
        composing.compose_to(
            out, bases(), [task], [], rule="sum", force=force, ignore_base_mismatch=False
        )

    compose_to.models = models
    return compose_to


def same_model(folder, model):
    """Whether a folder holds just this model, with its tokenizer."""
    load_tokenizer(folder)
    loaded = load_composed(folder).state_dict()
    return all(weight.equal(loaded[name]) for name, weight in model.state_dict().items())


@steps
def test_a_killed_compose_leaves_a_whole_model_or_none(tmp_path, compose_to, step):
    def action(folder):
        compose_to(folder / "model", 0)

    outcomes = []
    for folder in fatal_operations(tmp_path, action, step=step):
        out = folder / "model"
        outcomes.append(out.exists())
        if out.exists():
            assert same_model(out, compose_to.models[0])
        compose_to(out, 0, force=out.exists())
        assert same_model(out, compose_to.models[0])
        assert [path.name for path in folder.iterdir()] == ["model"]
        shutil.rmtree(folder)
        folder.mkdir()
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {False, True}


def test_compose_on_a_disk_without_free_inodes_says_so_and_keeps_the_old_model(
    tmp_path, compose_to
):
    root = tmp_path / "disk"
    compose_to(root / "model", 0)
    messages = set()
    for failing in itertools.count(1):
        message = full_disk_at(
            failing,
            root,
            lambda: compose_to(root / "model", 1, force=True),
            tmp_path / "message",
        )
        if message is None:
            break
        assert message.startswith(f"NoSpace: cannot write {root}"), message
        assert "no space left on the disk" in message
        assert "\n" not in message
        messages.add(message)
        # the old model is there, at its place or set aside, and is put back by the next command
        standing = root / "model" if (root / "model").exists() else root / ".model.old"
        assert same_model(standing, compose_to.models[0])
    assert failing > 3
    assert same_model(root / "model", compose_to.models[1])
    assert [path.name for path in root.iterdir()] == ["model"]


@pytest.mark.slow
def test_a_killed_compose_that_replaces_a_model_leaves_the_old_or_the_new_one(tmp_path, compose_to):
    """Between two renames the old one is beside its place, under another name."""
    compose_to(tmp_path / "old" / "model", 0)
    outcomes = set()
    for fatal in itertools.count(1):
        folder = tmp_path / str(fatal)
        shutil.copytree(tmp_path / "old", folder)
        out = folder / "model"
        killed = killed_at(fatal, folder, lambda: compose_to(out, 1, force=True))  # noqa: B023
        standing = out if out.exists() else folder / ".model.old"
        is_new = same_model(standing, compose_to.models[1])
        assert is_new or same_model(standing, compose_to.models[0])
        outcomes.add((standing.name, is_new))
        compose_to(out, 1, force=True)
        assert same_model(out, compose_to.models[1])
        assert [path.name for path in folder.iterdir()] == ["model"]
        shutil.rmtree(folder)
        if not killed:
            break
    assert outcomes == {("model", False), (".model.old", False), ("model", True)}


@pytest.fixture
def shared(hub, monkeypatch):
    """A hub with the first example at anna/min."""
    monkeypatch.setenv("HF_TOKEN", "hf_anna")
    deftx.push(example(), "anna/min")
    huggingface_hub.close_session()  # a copy of the process must not share its connections
    return hub


@steps
def test_a_killed_pull_leaves_the_whole_vector_or_none(tmp_path, shared, monkeypatch, step):
    """Also with a cache in which the client was killed."""

    def pull(folder):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "cache"))
        deftx.pull("anna/min", folder / "out" / "v", force=(folder / "out" / "v").exists())
        huggingface_hub.close_session()

    outcomes = []
    for folder in fatal_operations(tmp_path, pull, step=step):
        out = folder / "out" / "v"
        outcomes.append(out.exists())
        if out.exists():
            assert_same(deftx.load(out), example())
        pull(folder)
        assert_same(deftx.load(out), example())
        assert [path.name for path in out.parent.iterdir()] == ["v"]
    # The client downloads in threads, so that how many files are touched before the vector is there
    # differs from time to time
    assert outcomes[0] is False
    assert outcomes[-1] is True


@steps
def test_a_killed_push_leaves_the_old_vector_or_the_new_one(tmp_path, shared, monkeypatch, step):
    """All files change in one commit."""

    def push(folder):
        monkeypatch.setattr("tempfile.tempdir", str(folder))
        deftx.push(example(1), "anna/min")
        huggingface_hub.close_session()

    def on_hub():
        return deftx.load(f"anna/min@{shared.repos['anna/min'].refs['main']}")

    outcomes = set()
    for folder in fatal_operations(tmp_path, push, step=step):
        is_new = on_hub().equal(example(1))
        if not is_new:
            assert_same(on_hub(), example())
        outcomes.add(is_new)
        push(folder)
        assert_same(on_hub(), example(1))
        deftx.push(example(), "anna/min")  # as before, for the next process
        huggingface_hub.close_session()
    assert outcomes == {False, True}
