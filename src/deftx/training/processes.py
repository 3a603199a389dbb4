"""One training on several processes, as `torchrun` or `accelerate launch` start them.

All go through the same batches, drawn alike, with the same weights and the same optimiser. Each computes the gradient
on its own rows of a batch; what is exchanged is the gradient of what moves: in phase 2, k numbers and the head's. So
the Trainer need not know of the others, and the state of one process is the state of all.
"""

import atexit
import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import takewhile

import torch
import torch.distributed as dist
from torch import Tensor

from deftx.core.select import Selection
from deftx.errors import DeftxError

# By these the libraries below would tell that a launcher started this process, and wrap the model.
TOLD_BY = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
IGNORED = -100  # the label of what does not count, as in torch's cross-entropy

_all: list[int] = []  # once this process has joined: how many there are, and which one this is


def join() -> None:
    """Join the other processes of this job, if there are any. To be called before a GPU is used: each gets its own.

    Raises DeftxError where there are fewer GPUs than processes on this machine, or where torch.distributed is in use.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        _join()
    for name in TOLD_BY:  # a launcher sets them for one process as well
        os.environ.pop(name, None)


def _join() -> None:
    if dist.is_initialized():
        raise DeftxError("torch.distributed is in use already: leave it to deftx, or fit in a process of its own")
    gpu = own_gpu(int(os.environ.get("LOCAL_RANK", "0")))
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    with _lost_is_an_error():
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    if torch.cuda.device_count() > 1:  # something looked for GPUs before
        raise DeftxError("this process sees several GPUs: start each one with a GPU of its own in CUDA_VISIBLE_DEVICES")
    _all[:] = dist.get_world_size(), dist.get_rank()
    atexit.register(dist.destroy_process_group)


def own_gpu(local: int) -> str | None:
    """The GPU of the process with the number `local` on this machine, or None where there are none; where its launcher
    lets it see one alone, that one. Raises DeftxError where there are fewer than processes."""
    gpus = visible_gpus()
    if len(gpus) == 1 and os.environ.get("CUDA_VISIBLE_DEVICES"):
        return gpus[0]
    if gpus and local >= len(gpus):
        raise DeftxError(f"there are more processes than GPUs on this machine ({len(gpus)}): start one for each GPU")
    return gpus[local] if gpus else None


def visible_gpus() -> list[str]:
    """The GPUs of this machine that may be used, as CUDA_VISIBLE_DEVICES names them; counted without use of any."""
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = map(str, range(torch.cuda.device_count())) if said is None else said.split(",")
    return [name for name in takewhile(lambda name: not name.startswith("-"), names) if name]  # -1 ends the list


def count() -> int:
    """How many processes there are."""
    return _all[0] if _all else 1


def number() -> int:
    """Which of them this is, from 0."""
    return _all[1] if _all else 0


def first() -> bool:
    """Whether this is the one that writes and prints."""
    return number() == 0


def own_rows(batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], float]:
    """This process's rows of a batch, and their share of the labels that count: the weight of their mean loss."""
    if count() == 1:
        return batch, 1.0
    labels = batch["labels"]
    rows = torch.arange(len(labels)).tensor_split(count())[number()]
    weight = int((labels[rows] != IGNORED).sum()) / max(int((labels != IGNORED).sum()), 1)
    rows = rows if len(rows) else torch.zeros(1, dtype=torch.long)  # fewer rows than processes: one more, for nothing
    return {name: tensor[rows.to(tensor.device)] for name, tensor in batch.items()}, weight


@contextmanager
def own_numbers(*seed: int) -> Iterator[None]:
    """Within the block, random numbers of this process alone, given by `seed`; dropout is not to be alike on all."""
    if count() == 1:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(int.from_bytes(hashlib.sha256(repr((number(), *seed)).encode()).digest()[:7], "big"))
        yield


def add_up(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its sum over all processes. Raises DeftxError where one of them is gone."""
    if count() > 1:
        with _lost_is_an_error():
            for tensor in tensors:
                dist.all_reduce(tensor)


def agreed(selection: Selection) -> Selection:
    """The first process's selection: on other processors rounding may choose otherwise."""
    if count() == 1:
        return selection
    counts = torch.tensor([len(places.indices) for places in selection.values()])
    indices = torch.cat([places.indices.cpu() for places in selection.values()])
    with _lost_is_an_error():
        for tensor in (counts, indices):
            dist.broadcast(tensor, 0)
    parts = zip(selection.items(), indices.split(counts.tolist()), strict=True)
    return {name: replace(places, indices=part.to(places.indices.device)) for (name, places), part in parts}


def alone(what: str) -> None:
    """Raise DeftxError where `what` was started on several processes."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 or count() > 1:
        raise DeftxError(f"{what} is for one process: start it without torchrun or accelerate launch")


def see_alike(folder: object, seen: int) -> None:
    """Wait for all processes. Raises DeftxError where they have `seen` different things in `folder`, or one is gone."""
    if count() > 1:
        ends = torch.tensor([seen, -seen])
        with _lost_is_an_error():
            dist.all_reduce(ends, dist.ReduceOp.MAX)
        if ends.sum() != 0:
            raise DeftxError(f"the processes see different files in {folder}: give a folder on a disk that all share")


@contextmanager
def _lost_is_an_error() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().split("\n")[0]
        raise DeftxError(
            f"another process of this job is gone ({reason}): start the job again as before, and it goes on from the"
            " state that was kept"
        ) from error
