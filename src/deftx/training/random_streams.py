"""Random numbers of a training, each a function of what it is drawn for.

The order of an epoch, the masks of a step and the dropout of a batch have generators of their own,
seeded by the training's seed and their number. So a training that resumes at step s needs no random
state: it draws what the uninterrupted one drew at step s. And two phases with other seeds share
nothing.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Generator


def derived_seed(*parts: object) -> int:
    """A seed below 2**63 that is decided by `parts`, such as a seed, a purpose and a step."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(*parts: object) -> Generator:
    """A generator on the CPU that is seeded by `parts`."""
    return Generator().manual_seed(derived_seed(*parts))


@contextmanager
def preserved_global_state(device: torch.device) -> Iterator[None]:
    """Within the block torch's own generators may be seeded; after it they are as before."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield
