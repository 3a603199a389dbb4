"""A fit that is killed (SIGKILL) at any moment is gone on with by the same command, and ends with
the same vector."""

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from fit_examples import same
from killed import killed_at
from storage_examples import assert_same, example

from deftx.cli import main
from deftx.cli.actions import SAVING, learn
from deftx.core.provenance import Provenance
from deftx.errors import DeftxError
from deftx.objectives.masked_lm import MaskedLM
from deftx.storage.atomic_files import LOCK, new_file
from deftx.storage.vector_files import load, save
from deftx.tasks.base import Supervised
from deftx.training import distributed, resume

pytestmark = pytest.mark.once


TRAINING = [
    "max_steps=9",
    "evaluate_every=4",
    "batch_size=4",
    "length=16",
    "learning_rate=1e-2",
    "precision=fp32",
]
SETTINGS = [
    "--k",
    "5%",
    "--rank",
    "3",
    *(word for s in TRAINING for word in ("--set", f"training.{s}")),
]
DATA = {
    "language": ["--text", "text.txt", "--set", "training.min_steps=0"],
    "task": ["--train", "train.tsv", "--valid", "valid.tsv", "--set", "training.accumulate=2"],
}
EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}
KILLS = 28  # of each kind of fit


def write_data(folder):
    tiny.save_base(folder / "base")
    (folder / "text.txt").write_text("\n".join(tiny.sentences(40)))
    for number, name in enumerate(("train", "valid")):
        rows = [
            f"{text}\t{'front' if text[-1] in 'ei' else 'back'}"
            for text in tiny.sentences(30, number)
        ]
        (folder / f"{name}.tsv").write_text("\n".join(["text\tlabel", *rows]))


def command(kind, out):
    return ["fit", kind, "--base", "base", "--out", str(out), *SETTINGS, *DATA[kind]]


def started(kind, out, fatal=0):
    """The id of a process that fits; given `fatal`, it kills itself at that event: a loss, or a
    file touched."""
    child = os.fork()
    if child:
        return child
    resume.SECONDS_BETWEEN, resume.LARGEST_SHARE_OF_TIME = 0.0, 1e9  # a checkpoint before each step
    seen = [0]

    def event(name="open", args=(), *_):
        if name in EVENTS and (not args or str(out) in str(args[0])):
            seen[0] += 1
            if seen[0] == fatal:
                os.kill(os.getpid(), signal.SIGKILL)

    def watched(loss):
        return lambda *args: (event(), loss(*args))[1]

    sys.addaudithook(event)
    for objective in (MaskedLM, Supervised):
        objective.loss = watched(objective.loss)
    os.dup2(os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    try:
        main(command(kind, out))
    except SystemExit as end:
        Path("events.txt").write_text(str(seen[0]))
        os._exit(int(end.code or 0))
    finally:
        os._exit(1)


def ended(child):
    """The exit code of a process, or less than 0 for what killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def stage(out):
    """How far a fit has come, by what it left."""
    checkpoint_dir = out.with_name(f"{out.name}.work")
    return out.exists(), *(
        sorted(path.name for path in checkpoint_dir.glob("[!.]*"))
        if checkpoint_dir.exists()
        else ()
    )


def kill_again_and_again(kind):
    """Runs in a process of its own: a first fit imports what its copies need."""
    with pytest.raises(SystemExit):
        main(command(kind, "first"))
    begin, draw, kills, stages = time.monotonic(), random.Random(kind), 0, set()
    assert ended(started(kind, Path("whole"))) == 0, Path("log.txt").read_text()
    duration, events, whole = (
        time.monotonic() - begin,
        int(Path("events.txt").read_text()),
        load("whole"),
    )
    for number in range(KILLS):
        out = Path(f"vectors{number}") / "v"
        while True:
            by_event = draw.random() < 0.6
            child = started(kind, out, draw.randint(1, events // 3) if by_event else 0)
            if not by_event:
                time.sleep(draw.uniform(0, duration))
                os.kill(child, signal.SIGKILL)
            code = ended(child)
            if code == 0 or (
                code == 2 and "v exists: " in Path("log.txt").read_text().splitlines()[-1]
            ):
                break  # in the second case it was killed when all was done
            assert code == -signal.SIGKILL, Path("log.txt").read_text()
            kills += 1
            stages.add(stage(out))
        vector = load(out)
        assert same(vector, whole)
        assert vector.provenance == whole.provenance
        assert all(path.parent == out for path in out.parent.rglob("*") if path.is_file())
        print(out, kills, flush=True)
        if kills >= KILLS:
            break
    assert {("phase1.state.safetensors",), ("phase1.safetensors", "phase2.state.safetensors")} <= {
        s[1:] for s in stages
    }
    print(kind, kills, "kills", number + 1, "vectors", sorted(stages))


def fit(checkpoint_dir):
    """As a training does: leave a file of work, written by a library that makes another; give what
    was learnt."""
    with new_file(checkpoint_dir / "phase1.safetensors") as half:
        other = half.with_name(".tmpAbCdEf")
        other.touch()
        other.rename(half)
    return replace(example(), head=None, provenance=Provenance())


def test_after_a_kill_at_any_file_touched_the_same_command_leaves_the_vector_and_no_other_file(
    tmp_path,
):
    for fatal in itertools.count(1):
        out = tmp_path / str(fatal) / "v"
        out.parent.mkdir()
        killed = killed_at(fatal, out.parent, lambda: learn(out, fit, [], force=False))  # noqa: B023
        saved = out.exists()
        with (
            suppress(DeftxError) if saved else nullcontext()
        ):  # refused where it was killed when all was done
            learn(out, fit, [], force=False)
        assert_same(
            load(out),
            replace(example(), head=None, provenance=Provenance()),
        )
        assert [
            path for path in out.parent.rglob("*") if path.is_file() and path.parent != out
        ] == [], fatal
        if not killed:
            break
    assert fatal > 12


@pytest.mark.slow
@pytest.mark.parametrize("kind", DATA)
def test_a_fit_killed_at_random_moments_ends_with_the_same_vector_bit_for_bit(tmp_path, kind):
    write_data(tmp_path)
    code = f"import {__name__} as t; t.kill_again_and_again({kind!r})"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)


def test_after_a_kill_between_saving_and_clearing_up_no_process_learns_again(monkeypatch, tmp_path):
    out, checkpoint_dir = tmp_path / "v", tmp_path / "v.work"
    save(replace(example(), head=None, provenance=Provenance()), out)
    checkpoint_dir.mkdir()
    (checkpoint_dir / LOCK).write_text(SAVING)
    monkeypatch.setattr(distributed, "is_main_process", lambda: False)
    assert_same(
        learn(out, lambda checkpoint_dir: pytest.fail("learnt again"), [], force=False), load(out)
    )
