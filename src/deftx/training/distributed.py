"""One training on several processes, as `torchrun` or `accelerate launch` start them.

All processes go through the same batches, with the same weights and the same optimiser. Each
computes the gradient on its shard of every batch; what is exchanged is the gradient of what moves:
in phase 2, k numbers and the head's. So the state of one process is the state of all.
"""

import atexit
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from deftx.core.select import SparseMask
from deftx.errors import DeftxError
from deftx.objectives.base import Batch

_world: list[
    int
] = []  # once this process has joined: how many processes there are, and the rank of this one


def join() -> None:
    """Join the other processes of this job, if there are any. To be called before a GPU is used:
    each gets its own.

    Raises:
        DeftxError: There are fewer GPUs than processes on this machine, or torch.distributed is in
            use already.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or _world:
        return
    if dist.is_initialized():
        raise DeftxError(
            "torch.distributed is in use already: leave it to deftx, or fit in a process of its own"
        )
    gpu = gpu_of_process(int(os.environ.get("LOCAL_RANK", "0")))
    if gpu is not None:
        torch.cuda.set_device(gpu)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    with _lost_process_is_an_error():
        dist.init_process_group(backend)
    _world[:] = dist.get_world_size(), dist.get_rank()
    atexit.register(dist.destroy_process_group)


def gpu_of_process(local_rank: int) -> int | None:
    """Which of the visible GPUs the process with this rank on its machine takes; None where there
    are none.

    A process whose launcher lets it see a single GPU takes that one.

    Raises:
        DeftxError: There are more processes than GPUs.
    """
    gpus = visible_gpus()
    if not gpus:
        return None
    if len(gpus) == 1 and os.environ.get("CUDA_VISIBLE_DEVICES"):
        return 0
    if local_rank >= len(gpus):
        raise DeftxError(
            f"there are more processes than GPUs on this machine ({len(gpus)}):"
            " start one for each GPU"
        )
    return local_rank


def visible_gpus() -> list[str]:
    """The GPUs of this machine that may be used, as CUDA_VISIBLE_DEVICES names them; counted
    without use of any."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return [str(number) for number in range(torch.cuda.device_count())]
    names = takewhile(lambda name: not name.startswith("-"), listed.split(","))  # -1 ends the list
    return [name for name in names if name]


def world_size() -> int:
    """How many processes there are."""
    return _world[0] if _world else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return _world[1] if _world else 0


def is_main_process() -> bool:
    """Whether this is the one that writes and prints."""
    return rank() == 0


@dataclass(frozen=True, eq=False)
class Shard:
    """This process's part of a batch.

    Attributes:
        rows: Its rows.
        counts: Whether they count: False where there are fewer rows than processes, and this one
            has another's.
    """

    rows: Batch
    counts: bool = True

    def weight(self, denominator: Callable[[Batch], int]) -> int:
        """How many labelled things of the batch are in this part."""
        return denominator(self.rows) if self.counts else 0


def local_shard(batch: Batch) -> Shard:
    """This process's rows of a batch; the whole batch where there is one process."""
    if world_size() == 1:
        return Shard(batch)
    rows = torch.arange(len(batch["labels"])).tensor_split(world_size())[rank()]
    if len(rows) == 0:
        return Shard({name: tensor[:1] for name, tensor in batch.items()}, counts=False)
    return Shard({name: tensor[rows] for name, tensor in batch.items()})


def all_reduce_sum(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its sum over all processes.

    Raises:
        DeftxError: One of the processes is gone.
    """
    if world_size() > 1:
        with _lost_process_is_an_error():
            for tensor in tensors:
                dist.all_reduce(tensor)


def broadcast_selection(selection: SparseMask) -> SparseMask:
    """The main process's selection: on other processors rounding may choose otherwise."""
    if world_size() == 1:
        return selection
    counts = torch.tensor([len(mask.indices) for mask in selection.values()])
    indices = torch.cat([mask.indices.cpu() for mask in selection.values()])
    with _lost_process_is_an_error():
        for tensor in (counts, indices):
            dist.broadcast(tensor, 0)
    shared = {}
    parts = indices.split(counts.tolist())
    for (name, mask), part in zip(selection.items(), parts, strict=True):
        shared[name] = replace(mask, indices=part.to(mask.indices.device))
    return SparseMask(shared)


def refuse_several_processes(what: str) -> None:
    """Check that `what` was started on one process.

    Raises:
        DeftxError: It was started on several.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 or world_size() > 1:
        raise DeftxError(
            f"{what} is for one process: start it without torchrun or accelerate launch"
        )


def assert_same_on_all_ranks(folder: Path | None, value: int) -> None:
    """Wait for all processes, each of which read `value` from `folder`.

    Raises:
        DeftxError: They read different values, or one of them is gone.
    """
    if world_size() > 1:
        ends = torch.tensor([value, -value])
        with _lost_process_is_an_error():
            dist.all_reduce(ends, dist.ReduceOp.MAX)
        if ends.sum() != 0:
            raise DeftxError(
                f"the processes see different files in {folder}:"
                " give a folder on a disk that all share"
            )


@contextmanager
def _lost_process_is_an_error() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().split("\n")[0]
        raise DeftxError(
            f"another process of this job is gone ({reason}): start the job again as before, and"
            " it resumes from the state that was kept"
        ) from error
