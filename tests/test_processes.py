"""Several processes learn what one does: the same batches and steps, k numbers exchanged, one that
writes."""

import os
import signal
import socket
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import tiny
import torch
from fit_examples import LANGUAGE, TASK, TEXT, TRAIN, VALID, same
from transformers import AutoModelForMaskedLM

from deftx.cli import main
from deftx.config import changed
from deftx.core.parameters import parameter_groups
from deftx.core.vector import overlap
from deftx.errors import DeftxError
from deftx.fit import fit_language, fit_task
from deftx.models.loading import load_language_model
from deftx.objectives.masked_lm import MaskedLM
from deftx.storage.vector_files import load, save
from deftx.training import distributed, resume

MORE = {"max_steps": 9, "evaluate_every": 4, "learning_rate": 1e-3}
FITS = {
    "language": lambda checkpoint_dir: fit_language(
        "base",
        TEXT,
        changed(LANGUAGE, {"method": "lt-sft", "training": MORE}),
        checkpoint_dir=checkpoint_dir,
    ),
    "task": lambda checkpoint_dir: fit_task(
        "base",
        TRAIN,
        VALID,
        changed(TASK, {"method": "lt-sft", "training": {**MORE, "accumulate": 2}}),
        checkpoint_dir=checkpoint_dir,
    ),
}
COMMAND = ["fit", "language", "--base", "base", "--text", "text.txt", "--out", "v", "--k", "5%"]
COMMAND += [word for name, value in MORE.items() for word in ("--set", f"training.{name}={value}")]
COMMAND += [
    "--set",
    "training.min_steps=0",
    "--set",
    "training.length=16",
    "--set",
    "training.precision=fp32",
]


def together(count, run):
    """Have `count` processes `run` as if torchrun had started them; their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        job = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free.getsockname()[1]),
            "WORLD_SIZE": str(count),
        }
    children = [os.fork() or _run(run, rank, job) for rank in range(count)]
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def _run(run, rank, job):
    os.environ |= job | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.dup2(os.open(f"log{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    try:
        run(rank)
        os._exit(0)
    except SystemExit as end:
        os._exit(int(end.code or 0))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def logs():
    return "\n".join(path.read_text() for path in sorted(Path().glob("log*.txt")))


def learn_what_one_does(kind):
    """Runs in a process of its own, where nothing has run."""

    def alone(rank):
        save(FITS[kind](None), "alone")

    def several(rank):
        sizes, all_reduce_sum = [], distributed.all_reduce_sum

        def counted(tensors):
            tensors = list(tensors)
            sizes.append(sum(tensor.numel() for tensor in tensors))
            all_reduce_sum(tensors)

        distributed.all_reduce_sum = counted
        save(FITS[kind](Path("work")), f"process{rank}")
        Path(f"exchanged{rank}").write_text(str(max(sizes[len(sizes) // 2 :])))

    assert together(1, alone) == [0], logs()
    assert together(2, several) == [0, 0], logs()
    one, *two = (load(name) for name in ("alone", "process0", "process1"))
    assert same(*two)
    if kind == "task":
        head = sum(tensor.numel() for tensor in one.head.tensors.values())
    else:  # it is trained along, and thrown away
        model = load_language_model("base", lm_head="trained")
        head = sum(tensor.numel() for tensor in parameter_groups(model).trained_head.values())
    assert Path("exchanged0").read_text() == Path("exchanged1").read_text() == str(one.k + head)
    for name in one.tensors.keys() | two[0].tensors.keys():
        a, b = one.tensors[name].to_dense(), two[0].tensors[name].to_dense()
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)  # of changes up to 3e-3
    assert overlap(one, two[0]) > 0.98
    assert max(float(entries.to_dense().abs().max()) for entries in one.tensors.values()) > 1e-3


def go_on_after_a_loss():
    """Runs in a process of its own, where nothing has run."""
    resume.SECONDS_BETWEEN, resume.LARGEST_SHARE_OF_TIME = 0.0, 1e9

    def fit(rank):
        main(COMMAND)

    def dying(rank):
        loss, seen = MaskedLM.loss, []

        def watched(*args):
            seen.append(None)
            if len(seen) == 15 and rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return loss(*args)

        MaskedLM.loss = watched
        main(COMMAND)

    assert together(2, fit) == [0, 0], logs()
    os.rename("v", "whole")
    assert together(2, dying) == [2, -signal.SIGKILL], logs()
    (line,) = [
        line for line in Path("log0.txt").read_text().splitlines() if line.startswith("deftx: ")
    ]
    assert line.startswith("deftx: another process of this job is gone (")
    assert "start the job again as before" in line
    assert sorted(os.listdir("v.work")) == ["phase1.safetensors", "phase2.state.safetensors"]
    assert together(2, fit) == [0, 0], logs()
    assert same(load("v"), load("whole"))


def apart(folder, code, timeout=1500):
    """Run `code` in a process of its own, in a folder with a base without dropout: it would differ
    from one to two."""
    tiny.save_base(folder / "base")
    still = AutoModelForMaskedLM.from_pretrained(
        folder / "base", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    still.save_pretrained(folder / "base")
    (folder / "text.txt").write_text("\n".join(TEXT))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, *code]
    done = subprocess.run(
        words, env=environment, cwd=folder, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    return done


@pytest.mark.slow
@pytest.mark.parametrize("kind", FITS)
def test_two_processes_learn_what_one_does_and_exchange_k_numbers(tmp_path, kind):
    apart(tmp_path, ["-c", f"import {__name__} as t; t.learn_what_one_does({kind!r})"])


@pytest.mark.slow
def test_a_process_that_is_lost_ends_the_job_with_one_line_and_it_goes_on(tmp_path):
    apart(tmp_path, ["-c", f"import {__name__} as t; t.go_on_after_a_loss()"])


@pytest.mark.slow
@pytest.mark.parametrize("count", ["1", "2"])
def test_torchrun_starts_processes_of_which_one_writes_and_prints(tmp_path, count):
    launch = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        count,
        "-m",
        "deftx",
    ]
    done = apart(tmp_path, [*launch, *COMMAND])
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["v"]
    assert sorted(os.listdir(tmp_path)) == ["base", "text.txt", "v"]
    assert load(tmp_path / "v").k > 0


def test_a_launcher_may_start_one_process_and_the_environment_stays(monkeypatch):
    alone = {
        "WORLD_SIZE": "1",
        "LOCAL_WORLD_SIZE": "1",
        "RANK": "0",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
    }
    for name, value in alone.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    distributed.join()
    assert distributed.world_size() == 1
    assert dict(os.environ) == before


def test_distributed_torch_of_others_is_refused_with_a_line(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    with pytest.raises(DeftxError, match=r"torch\.distributed is in use already"):
        distributed.join()


def labelled(batch):
    return int((batch["labels"] >= 0).sum())


@pytest.mark.parametrize("sizes", [(5, 2), (4, 2), (2, 3), (1, 4)])
def test_the_shards_of_a_batch_are_the_whole_and_their_weights_add_up(monkeypatch, sizes):
    rows, count = sizes
    labels = torch.randint(0, 9, (rows, 6), generator=torch.Generator().manual_seed(rows))
    labels[labels < 6] = -100
    batch = {"input_ids": torch.arange(rows * 6).view(rows, 6), "labels": labels}
    weights, seen = [], []
    for number in range(count):
        monkeypatch.setattr(distributed, "_world", [count, number])
        shard = distributed.local_shard(batch)
        weights.append(shard.weight(labelled))
        assert len(shard.rows["labels"]) > 0
        if number < rows:
            seen += shard.rows["input_ids"].tolist()
            assert weights[-1] == labelled(shard.rows)
    assert seen == batch["input_ids"].tolist()
    assert sum(weights) == labelled(batch)
    monkeypatch.setattr(distributed, "_world", [])
    assert distributed.local_shard(batch).rows is batch


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (None, ["0", "1", "2"]),
        ("2,GPU-ab", ["2", "GPU-ab"]),
        ("", []),
        ("-1", []),
        ("1,-1,2", ["1"]),
    ],
)
def test_the_gpus_to_share_out_are_those_that_may_be_used(monkeypatch, said, found):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if said is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", said)
    assert distributed.visible_gpus() == found


@pytest.mark.parametrize(
    ("said", "local", "own"), [(None, 2, 2), ("4,5", 1, 1), ("GPU-ab", 1, 0), ("-1", 1, None)]
)
def test_a_process_has_a_gpu_of_its_own_or_the_one_that_it_was_given(monkeypatch, said, local, own):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if said is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", said)
    assert distributed.gpu_of_process(local) == own


@pytest.mark.parametrize("said", [None, "0,1,2"])
def test_more_processes_than_gpus_are_refused(monkeypatch, said):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if said is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", said)
    with pytest.raises(DeftxError, match=r"more processes than GPUs on this machine \(3\)"):
        distributed.gpu_of_process(3)
