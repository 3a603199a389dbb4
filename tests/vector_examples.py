"""A vector that was learnt on a tiny base, or looks so."""

import torch

from deftx.core.parameters import parameter_groups
from deftx.core.provenance import Provenance
from deftx.core.tensors import Head, SparseTensor
from deftx.core.vector import SparseVector
from deftx.models.fingerprint import fingerprint
from deftx.models.heads import load_task_model

LABELS = ("bad", "fair", "good")


def vector(base, seed, with_head=False, named=True):
    model = load_task_model(base, LABELS, seed)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, weight in parameter_groups(model).trainable.items():
        places = (torch.rand(weight.numel(), generator=generator) < 0.2).nonzero().view(-1)
        tensors[name] = SparseTensor(
            places, 0.3 * torch.randn(len(places), generator=generator), tuple(weight.shape)
        )
    top = (
        Head(
            {
                name: weight.detach().clone()
                for name, weight in parameter_groups(model).head.items()
            },
            LABELS,
        )
        if with_head
        else None
    )
    provenance = Provenance()
    if named:
        provenance = Provenance(base=str(base), base_fingerprint=fingerprint(model))
    return SparseVector(tensors, top, provenance)
