"""Magnitude selection: exactly the k largest entries over all tensors together.

Paper, Algorithm 1, "select": the entries that phase 2 may change. Ties are broken by the order of the
tensors, then by the lowest flat index, so that the same differences always give the same k places.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from deftx.errors import DeftxError

CHUNK = 1 << 22  # entries looked at together: keeps the working memory small, whatever the tensor
SAMPLE = 1 << 20  # entries from which the first guess of the threshold is taken
UNITS = {"k": 10**3, "m": 10**6, "b": 10**9}


@dataclass(frozen=True, eq=False)
class Places:
    """Places in one tensor: sorted flat (row-major) `indices` [n] int64 of a tensor of `shape`."""

    indices: Tensor
    shape: tuple[int, ...]


Selection = dict[str, Places]


def parse_k(k: int | float | str, total: int) -> int:
    """A count (`7600000`, `"7.6M"`) or a share (`"2.8%"`) of `total` entries, as a count.

    Raises DeftxError for anything else, and for a count below 0 or above `total`.
    """
    text = str(k).strip()
    try:
        if text.endswith("%"):
            count = round(float(text[:-1]) / 100 * total)
        elif text[-1:].lower() in UNITS:
            count = round(float(text[:-1]) * UNITS[text[-1].lower()])
        else:
            count = int(number := float(text))
            if count != number:
                raise ValueError
    except (ValueError, OverflowError):
        raise DeftxError(f"k = {k!r} is neither a count (7600000, 7.6M) nor a share (2.8%)") from None
    if not 0 <= count <= total:
        raise DeftxError(f"k = {k} is {count:,} entries; give 0 to {total:,}, all that can be tuned (or up to 100%)")
    return count


def select(delta: Mapping[str, Tensor], k: int | float | str) -> Selection:
    """The k entries of `delta` largest in magnitude, exactly k of them (Algorithm 1, line "μ").

    delta  tensor name -> difference of any shape; its order is the order in which ties are broken
    k      a count or a share of all entries, see `parse_k`

    Every tensor appears in the result, those without a place with an empty one. Needs one pass over
    the delta beside a sample, and memory for the candidates only (about 1.1 k of them). Raises
    DeftxError where the delta holds NaN, and for a k outside its range.
    """
    count = parse_k(k, sum(tensor.numel() for tensor in delta.values()))
    candidates = _candidates(delta, count)
    kept = _largest(torch.cat([values for _, values in candidates.values()] or [torch.empty(0)]), count)
    selection, start = {}, 0
    for name, (indices, values) in candidates.items():
        selection[name] = Places(indices[kept[start : start + len(values)]], tuple(delta[name].shape))
        start += len(values)
    return selection


def largest(tensor: Tensor, n: int) -> Tensor:
    """The sorted flat indices [n] of the n entries of one tensor largest in magnitude; ties as in `select`."""
    return select({"": tensor}, n)[""].indices


def _candidates(delta: Mapping[str, Tensor], k: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Per tensor the flat indices and magnitudes of at least k entries, all the largest among them.

    The bar they must reach is guessed from a sample and lowered until enough entries reach it.
    """
    total = sum(tensor.numel() for tensor in delta.values())
    share = 1.05 * k / total + 1e-4 if total else 1.0
    sample = torch.cat([_sample(tensor, total) for tensor in delta.values()] or [torch.empty(0)])
    while True:
        bar = _bar(sample, share)
        found = {name: _reaching(name, tensor, bar) for name, tensor in delta.items()}
        if bar <= 0 or sum(len(indices) for indices, _ in found.values()) >= k:
            return found
        share *= 2


def _sample(tensor: Tensor, total: int) -> Tensor:
    """Magnitudes of a tensor's evenly spaced entries, `SAMPLE` over all tensors together."""
    flat = tensor.reshape(-1)
    return _widened(flat[:: max(1, total // SAMPLE)].abs())


def _bar(sample: Tensor, share: float) -> float:
    """The magnitude that about `share` of the sample reaches; 0 where that is all of it."""
    rank = int(share * len(sample))
    return float(sample.topk(rank + 1).values[-1]) if rank < len(sample) else 0.0


def _reaching(name: str, tensor: Tensor, bar: float) -> tuple[Tensor, Tensor]:
    """Flat indices and magnitudes of the entries of at least `bar`, in ascending order of index."""
    flat, indices, magnitudes = tensor.reshape(-1), [], []
    for start, chunk in _chunks(flat):
        magnitude = chunk.abs()
        # written so that NaN, which compares false with everything, is found too
        places = (~(magnitude < bar)).nonzero().view(-1)
        magnitudes.append(_widened(magnitude[places]))
        indices.append(places + start)
    values = torch.cat(magnitudes) if magnitudes else torch.empty(0)
    if values.isnan().any():
        raise DeftxError(f"the difference of tensor {name!r} holds NaN: the training diverged; lower the learning rate")
    return (torch.cat(indices) if indices else torch.empty(0, dtype=torch.int64)), values


def _widened(tensor: Tensor) -> Tensor:
    """In float32, or in float64 where it is so already: floats of all kinds compare without loss."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _chunks(flat: Tensor) -> Iterator[tuple[int, Tensor]]:
    for start in range(0, len(flat), CHUNK):
        yield start, flat[start : start + CHUNK]


def _largest(magnitudes: Tensor, k: int) -> Tensor:
    """A mask [n] of exactly the k largest magnitudes, the first ones where they tie."""
    if k == 0 or k >= len(magnitudes):
        return torch.full((len(magnitudes),), k > 0)
    threshold = magnitudes.kthvalue(len(magnitudes) - k + 1).values
    kept = magnitudes > threshold
    ties = (magnitudes == threshold).nonzero().view(-1)
    kept[ties[: k - int(kept.sum())]] = True
    return kept
