"""Files as composable-sft writes them."""

import numpy as np
import torch

from deftx.core.parameters import parameter_groups
from deftx.core.provenance import Provenance
from deftx.core.tensors import Head, SparseTensor
from deftx.core.vector import SparseVector
from deftx.models.fingerprint import fingerprint
from deftx.models.heads import load_task_model
from deftx.models.loading import load_language_model

LABELS = ("bad", "good")


def sparse(shape, seed=0, share=0.3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * (
        torch.rand(shape, generator=generator) < share
    )


def entries(dense):
    flat = dense.reshape(-1)
    indices = flat.nonzero().view(-1)
    return SparseTensor(indices, flat[indices], tuple(dense.shape))


def vector_of(base, *, with_head=False, seed=0, only=""):
    """A random vector on a base, bound to it."""
    model = load_task_model(base, LABELS, seed=3) if with_head else load_language_model(base)
    names = [name for name in parameter_groups(model).trainable if only in name]
    tensors = {
        name: entries(sparse(tuple(parameter_groups(model).trainable[name].shape), i + seed) / 4)
        for i, name in enumerate(names)
    }
    top = (
        Head({name: p.detach().clone() for name, p in parameter_groups(model).head.items()}, LABELS)
        if with_head
        else None
    )
    return SparseVector(
        tensors, top, Provenance(base=base, base_fingerprint=fingerprint(model), kind="any")
    )


def coded(dense):
    """A dense difference as LT-SFT stores it: here by a transposed copy, there by multiplying
    coordinates."""
    flat = dense.permute(*reversed(range(dense.dim()))).reshape(-1)  # the first dimension fastest
    indices = flat.nonzero().view(-1).numpy()
    steps = np.diff(indices, prepend=0).tolist()
    return {
        "size": dense.size(),
        "index_steps": [np.int64(step) for step in steps[:1]] + steps[1:],
        "values": flat[torch.from_numpy(indices)],
    }
