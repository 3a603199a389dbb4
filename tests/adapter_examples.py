"""What tests of the baselines share."""

import torch

IDS = torch.arange(5, 17).view(2, 6)  # two texts of six words


def equal(one, other):
    """Whether two adapters are equal bit for bit, heads included."""

    def tensors(adapter):
        return {**adapter.tensors, **(adapter.head.tensors if adapter.head else {})}

    pairs = [(tensor, tensors(other).get(name)) for name, tensor in tensors(one).items()]
    return tensors(one).keys() == tensors(other).keys() and all(a.equal(b) for a, b in pairs)
