"""A save that fails or is killed at any moment leaves the old vector or the new one, and later
saves work."""

import contextlib
import errno
import fcntl
import itertools
import os
import random
import resource
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from storage_examples import assert_same, example

from deftx.errors import DeftxError
from deftx.storage import tensors as tensors_module
from deftx.storage import vector_files as files
from deftx.storage.atomic_files import check_target, lock_directory, new_file, write_text
from deftx.storage.tensors import load_tensors, read_tensors, save_tensors
from deftx.storage.vector_files import load, save

pytestmark = pytest.mark.once


class Crash(BaseException):
    """The end of the process: nothing handles it."""


STEPS = [(os, "mkdir"), (os, "rename"), (os, "fsync"), (os, "open"), (os, "rmdir"), (os, "unlink")]
STEPS += [(files, "save_file"), (files, "write_manifest")]


def seed_of(folder):
    """Which whole example the folder holds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the word that the old vector was set aside
        vector = load(folder)
    seed = next(
        seed
        for seed in range(3)
        if torch.equal(vector.tensors["scale"].values, example(seed).tensors["scale"].values)
    )
    assert_same(vector, example(seed))
    return seed


def broken_save(monkeypatch, folder, error, step, *, lasting, force):
    """Save example 1 with `error` in place of its step number `step` and, if lasting, of all after
    it.

    False if the save has fewer steps.
    """
    taken = 0

    def breaking(function):
        def call(*args, **kwargs):
            nonlocal taken
            taken += 1
            if taken == step or (lasting and taken > step):
                raise error
            return function(*args, **kwargs)

        return call

    with monkeypatch.context() as patch, contextlib.suppress(DeftxError, Crash):
        for module, name in STEPS:
            patch.setattr(module, name, breaking(getattr(module, name)))
        save(example(1), folder, force=force)
    return taken >= step


failures = pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left"), Crash()], ids=["error", "crash"]
)
durations = pytest.mark.parametrize("lasting", [False, True], ids=["once", "lasting"])


@failures
@durations
def test_a_replacement_that_fails_at_any_step_leaves_the_old_or_the_new_vector(
    tmp_path, monkeypatch, error, lasting
):
    seen = []
    for step in itertools.count(1):
        folder = tmp_path / str(step) / "v"
        save(example(0), folder)
        if not broken_save(monkeypatch, folder, error, step, lasting=lasting, force=True):
            break
        seen.append(seed_of(folder))
        with pytest.raises(DeftxError, match="--force"):
            check_target(folder)
        save(example(2), folder, force=True)
        assert seed_of(folder) == 2
        assert os.listdir(folder.parent) == ["v"]
    assert set(seen) == {0, 1}


@failures
@durations
def test_a_first_save_that_fails_at_any_step_leaves_nothing_or_the_vector(
    tmp_path, monkeypatch, error, lasting
):
    seen = []
    for step in itertools.count(1):
        folder = tmp_path / str(step) / "v"
        if not broken_save(monkeypatch, folder, error, step, lasting=lasting, force=False):
            break
        seen.append(folder.exists())
        if folder.exists():
            assert seed_of(folder) == 1
        else:
            save(example(2), folder)
            assert seed_of(folder) == 2
            assert os.listdir(folder.parent) == ["v"]
    assert seen == sorted(seen)
    assert set(seen) == {False, True}


def test_the_old_vector_is_read_with_a_warning_when_a_crash_came_between_the_renames(tmp_path):
    save(example(0), tmp_path / "v")
    (tmp_path / "v").rename(tmp_path / ".v.old")
    with pytest.warns(UserWarning, match="cut off"):
        assert_same(load(tmp_path / "v"), example(0))


def test_an_error_while_saving_is_one_line_that_says_what_failed(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        DeftxError, match=r"^cannot write .*/v: no space left on the disk; free some space, "
    ):
        save(example(), tmp_path / "v")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        SafetensorError("Error while serializing: I/O error: No space left (os error 28)"),
    ],
    ids=["disk", "quota", "safetensors"],
)
def test_a_full_disk_is_the_same_line_for_files_tensors_and_vectors(tmp_path, monkeypatch, error):
    def full(*_, **__):
        raise error

    monkeypatch.setattr(tensors_module, "save_file", full)
    monkeypatch.setattr(files, "save_file", full)
    monkeypatch.setattr(Path, "write_text", full)
    writers = {
        "text": lambda path: write_text(path, "x"),
        "tensors": lambda path: save_tensors(path, {"a": torch.zeros(1)}, {}),
        "vector": lambda path: save(example(), path),
    }
    for name, write in writers.items():
        with pytest.raises(DeftxError, match=f"^cannot write {tmp_path / name}: no space left"):
            write(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_appears_while_saving_is_not_replaced(tmp_path, monkeypatch):
    write_manifest = files.write_manifest

    def meanwhile(*args):
        monkeypatch.setattr(files, "write_manifest", write_manifest)
        save(example(0), tmp_path / "v")
        write_manifest(*args)

    monkeypatch.setattr(files, "write_manifest", meanwhile)
    with pytest.raises(DeftxError, match=r"another process has written .*/v meanwhile"):
        save(example(1), tmp_path / "v")
    assert seed_of(tmp_path / "v") == 0


def test_leftovers_of_other_vectors_are_left_alone(tmp_path):
    neighbour = tmp_path / ".v.x.0123abcd.tmp"
    neighbour.mkdir()
    (tmp_path / ".v.0123abcd.tmp").mkdir()
    save(example(), tmp_path / "v")
    assert sorted(path.name for path in tmp_path.iterdir()) == [neighbour.name, "v"]


def test_what_a_killed_writer_left_beside_its_file_goes_with_the_next_attempt(tmp_path):
    """As safetensors does, which writes to a file of its own and renames it."""
    child = os.fork()
    if child == 0:
        with new_file(tmp_path / "file") as half:
            half.with_name(".tmpAbCdEf").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [".tmpAbCdEf"]
    with new_file(tmp_path / "file") as half:
        half.write_text("whole")
    assert [path.name for path in tmp_path.rglob("*")] == ["file"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_files_may_be_read_by_those_who_may_read_their_folder(tmp_path, mask):
    """Also those that safetensors writes for their owner alone."""
    before = os.umask(mask)
    try:
        save(example(), tmp_path / "v")
        save_tensors(tmp_path / "delta.safetensors", {"a": torch.zeros(2)}, {})
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()}
    assert modes == {0o666 & ~mask}


def kill_at_random_moments(parent, rounds):
    """Runs in a process of its own: fork one that replaces a vector again and again, kill it,
    look."""
    folder, draw = parent / "v", random.Random(0)
    save(example(0), folder)
    for _ in range(rounds):
        child = os.fork()
        if child == 0:
            for seed in itertools.cycle((1, 0)):
                save(example(seed), folder, force=True)
        time.sleep(draw.uniform(0.0, 0.05))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert seed_of(folder) in (0, 1)
    save(example(2), folder, force=True)
    assert seed_of(folder) == 2
    assert os.listdir(parent) == ["v"]


def test_a_save_killed_at_random_moments_leaves_the_old_or_the_new_vector(tmp_path):
    call = f"kill_at_random_moments(pathlib.Path({str(tmp_path)!r}), 40)"
    code = f"import pathlib, {__name__} as t; t.{call}"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_a_full_disk_gives_one_clear_line_and_keeps_the_old_vector(tmp_path):
    save(example(0), tmp_path / "v")
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, old[1]))
    try:
        with pytest.raises(DeftxError, match=r"cannot save .*File too large"):
            save(example(1), tmp_path / "v", force=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert seed_of(tmp_path / "v") == 0
    assert os.listdir(tmp_path) == ["v"]


def test_tensors_of_which_any_bit_changed_are_not_used(tmp_path):
    """Nor what they are about: weights with a wrong exponent would go on into a vector without a
    word."""
    path = tmp_path / "phase1.safetensors"
    tensors = {
        "a": torch.tensor([1.0, -2.0, 0.5]),
        "b": torch.ones(2, 2, dtype=torch.bfloat16),
        "c": torch.tensor(3),
    }
    save_tensors(path, tensors, {"key": "k", "steps": 3})
    loaded, about = load_tensors(path, "k")
    assert about == {"key": "k", "steps": 3}
    assert all(loaded[name].equal(tensor) for name, tensor in tensors.items())
    good = path.read_bytes()
    length = int.from_bytes(good[:8], "little")
    for place in [*range(len(good) - 1, 8 + length - 1, -1), good.index(b"steps") + 9]:
        for bit in range(8):
            content = bytearray(good)
            content[place] ^= 1 << bit
            path.write_bytes(content)
            with pytest.warns(
                UserWarning, match="phase1.safetensors is damaged, so it is not used"
            ):
                assert load_tensors(path) is None


@pytest.mark.parametrize(
    "about", ["{", "[1]", '"x"', "[" * 100_000, f'{{"n": {"9" * 5000}}}'], ids=range(5)
)
def test_tensors_with_odd_metadata_are_damaged(tmp_path, about):
    path = tmp_path / "odd.safetensors"
    save_file({"a": torch.ones(2)}, path, metadata={"about": about})
    with pytest.raises(DeftxError, match=r"odd.safetensors is (missing or )?damaged"):
        read_tensors(path)
    with pytest.warns(UserWarning, match="odd.safetensors is damaged, so it is not used"):
        assert load_tensors(path, "k") is None


def test_a_missing_file_of_tensors_is_an_error_to_read_and_nothing_to_load(tmp_path):
    with pytest.raises(DeftxError, match="is missing"):
        read_tensors(tmp_path / "none.safetensors")
    assert load_tensors(tmp_path / "none.safetensors") is None


def test_tensors_of_an_older_version_have_no_checksum_and_are_read(tmp_path):
    save_file(
        {"a": torch.ones(2)}, tmp_path / "old.safetensors", metadata={"about": '{"key": "k"}'}
    )
    found = load_tensors(tmp_path / "old.safetensors", "k")
    assert found is not None
    assert load_tensors(tmp_path / "none.safetensors") is None


def test_a_claim_on_a_folder_ends_with_its_process(tmp_path):
    folder = tmp_path / "a" / "b"
    code = (
        "import pathlib, sys, time; from deftx.storage.atomic_files import lock_directory\n"
        "with lock_directory(pathlib.Path(sys.argv[1])): print(flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE)
    with other:
        other.stdout.readline()
        with (
            pytest.raises(DeftxError, match=f"^{folder} is in use by another deftx: "),
            lock_directory(folder),
        ):
            pass
        other.kill()
    with lock_directory(folder):
        (folder / "mine").touch()
    assert os.listdir(folder) == ["mine"]
    (folder / "mine").unlink()
    with lock_directory(folder):
        pass
    assert not folder.exists()


def test_where_there_are_no_locks_nothing_is_refused(tmp_path, monkeypatch):
    def unknown(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    with lock_directory(tmp_path / "x"):
        monkeypatch.setattr(fcntl, "flock", unknown)
        with lock_directory(tmp_path / "x"):
            pass


CLAIM = """
import sys, time
from contextlib import suppress
from pathlib import Path
from deftx.errors import Locked
from deftx.storage.atomic_files import lock_directory, new_file
end = time.monotonic() + 2
while time.monotonic() < end:
    with suppress(Locked), lock_directory(Path(sys.argv[1], "work")):
        pass
    with new_file(Path(sys.argv[1], "file")) as half:
        half.write_text("x")
"""


def test_processes_at_the_same_folder_and_file_do_not_get_into_each_others_way(tmp_path):
    command = [sys.executable, "-c", CLAIM, str(tmp_path)]
    several = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    assert [(process.communicate()[1], process.returncode) for process in several] == [("", 0)] * 3
    assert os.listdir(tmp_path) in (["file"], ["file", "work"], ["work", "file"])
