"""A vector with everything that a file can hold, and whether two are the same to the bit."""

import torch

from deftx.core.tensors import Head, SparseTensor
from deftx.core.vector import SparseVector
from deftx.storage.provenance_json import provenance_from_json

FLOATS = (torch.float32, torch.float16, torch.bfloat16)

BITS = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}


def example(seed=0, head=True):
    """A small vector with every kind of part: three types, an empty tensor, a scalar, a head,
    what it came from."""
    generator = torch.Generator().manual_seed(seed)

    def entries(shape, places, dtype=torch.float32):
        return SparseTensor(
            torch.tensor(places, dtype=torch.int64),
            torch.randn(len(places), generator=generator).to(dtype),
            shape,
        )

    tensors = {
        "embeddings.word_embeddings.weight": entries((500, 40), [0, 1, 128, 1000, 19_999]),
        "encoder.layer.0.query.weight": entries((4, 4), list(range(16)), torch.float16),
        "encoder.layer.0.query.bias": entries((4,), [], torch.bfloat16),
        "scale": entries((), [0], torch.bfloat16),
    }
    weights = {
        "classifier.weight": torch.randn(3, 4, generator=generator),
        "classifier.bias": torch.zeros(3),
    }
    info = {
        "base": "some/base",
        "base_fingerprint": "ab" * 32,
        "rank": 0.9,
        "log": {"loss": [1.5, None]},
        "ö": "\n",
    }
    top = Head(weights, ("negative", "neutral", "positiv ä")) if head else None
    return SparseVector(tensors, top, provenance_from_json(info))


def assert_same_tensor(one, other):
    assert (one.dtype, one.shape) == (other.dtype, other.shape)
    assert torch.equal(one.view(BITS[one.dtype]), other.view(BITS[other.dtype]))


def assert_same(one, other):
    assert list(one.tensors) == list(other.tensors)
    for name, entries in one.tensors.items():
        assert torch.equal(entries.indices, other.tensors[name].indices)
        assert entries.shape == other.tensors[name].shape
        assert_same_tensor(entries.values, other.tensors[name].values)
    assert (one.head is None) == (other.head is None)
    if one.head is not None and other.head is not None:
        assert one.head.labels == other.head.labels
        assert list(one.head.tensors) == list(other.head.tensors)
        for name, tensor in one.head.tensors.items():
            assert_same_tensor(tensor, other.head.tensors[name])
    assert one.provenance == other.provenance
