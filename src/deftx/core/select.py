"""Magnitude selection: exactly the k largest entries, over all tensors together or tensor by
tensor.

Paper, Algorithm 1, "select": the entries that phase 2 may change. Ties are broken by the order of
the tensors, then by the lowest flat index, so that the same differences always give the same k
places.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deftx.core.parameters import layer_of
from deftx.errors import DeftxError, unknown

CHUNK = (
    1 << 18
)  # entries looked at together: few enough to stay in the processor's cache from step to step
SAMPLE = 1 << 20  # entries from which the first guess of the threshold is taken
UNITS = {"k": 10**3, "m": 10**6, "b": 10**9}

# From a tensor's name to the group within which entries compare.
SPLITS: dict[str, Callable[[str], str]] = {
    "global": lambda name: "",
    "matrix": lambda name: name,
    "layer": layer_of,
}


@dataclass(frozen=True, eq=False)
class TensorMask:
    """Places in one tensor: sorted flat (row-major) `indices` [n] int64 of a tensor of `shape`."""

    indices: Tensor
    shape: tuple[int, ...]


SparseMask = dict[str, TensorMask]

# Tensors in pieces: each a tensor's name, the flat index at which the piece starts, and its entries
# [c]. Pieces come in the order in which ties are broken.
Chunk = tuple[str, int, Tensor]


def digest(selection: SparseMask) -> str:
    """A name of the selection (64 hex digits): other places, another name."""
    whole = hashlib.sha256()
    for name, places in selection.items():
        whole.update(f"{name} {list(places.shape)} {len(places.indices)}\n".encode())
        whole.update(places.indices.cpu().numpy().tobytes())
    return whole.hexdigest()


def parse_k(k: int | float | str, total: int) -> int:
    """A count (`7600000`, `"7.6M"`) or a share (`"2.8%"`) of `total` entries, as a count.

    Raises DeftxError for anything else, and for a count below 0 or above `total`.
    """
    text = str(k).strip()
    unit = text[-1:].lower()
    try:
        if unit == "%":
            count = round(float(text[:-1]) / 100 * total)
        elif unit in UNITS:
            count = round(float(text[:-1]) * UNITS[unit])
        else:
            number = float(text)
            count = int(number)
            if count != number:
                raise ValueError
    except (ValueError, OverflowError):
        raise DeftxError(
            f"k = {k!r} is neither a count (7600000, 7.6M) nor a share (2.8%)"
        ) from None
    if not 0 <= count <= total:
        raise DeftxError(
            f"k = {k} is {count:,} entries; give 0 to {total:,}, all that can be tuned (or up to 100%)"
        )
    return count


def select(delta: Mapping[str, Tensor], k: int | float | str, split: str = "global") -> SparseMask:
    """The k entries of `delta` largest in magnitude, exactly k of them (Algorithm 1, line "μ").

    Needs one pass over the delta beside a sample, and memory for the candidates only (about 1.05 k
    of them).

    Args:
        delta: Tensor name -> difference of any shape; its order is the order in which ties are
            broken.
        k: A count or a share of all entries, see `parse_k`.
        split: What compares with each other: everything (`global`, as in the paper), or only what
            is of one tensor (`matrix`) or of one layer (`layer`), each having its part of k by its
            size, see `shares_of`.

    Returns:
        Tensor name -> places. Every tensor appears, those without a place with an empty one.

    Raises:
        DeftxError: A delta that holds NaN, a k outside its range, an unknown split.
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    group_of = SPLITS[split]
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in delta.items():
        groups.setdefault(group_of(name), {})[name] = tensor

    sizes = [sum(tensor.numel() for tensor in group.values()) for group in groups.values()]
    counts = shares_of(parse_k(k, sum(sizes)), sizes)
    selection: SparseMask = {}
    for group, count in zip(groups.values(), counts, strict=True):
        selection |= _select_largest(group, count)
    return {
        name: selection[name] for name in delta
    }  # in the order of the delta, which groups may not keep


def shares_of(k: int, sizes: Sequence[int]) -> list[int]:
    """k as a sum of counts in proportion to `sizes`, none above its size (for a k of at most their
    sum): rounded down first, then one more where the remainder is largest, in the order of the
    sizes where remainders tie (Hamilton)."""
    total = max(sum(sizes), 1)
    counts = [k * size // total for size in sizes]
    remainders = [k * size % total for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda number: -remainders[number])
    for number in by_remainder[: k - sum(counts)]:
        counts[number] += 1
    return counts


def _select_largest(delta: Mapping[str, Tensor], count: int) -> SparseMask:
    """The `count` entries of `delta` largest in magnitude."""
    total = sum(tensor.numel() for tensor in delta.values())
    flat = {name: tensor.detach().reshape(-1) for name, tensor in delta.items()}
    step = total // SAMPLE | 1  # odd, to meet all columns of a matrix
    sample = [entries[::step] for entries in flat.values()]
    chosen = largest(lambda: _chunks(flat), sample, count, total)

    selection: SparseMask = {}
    for name, tensor in delta.items():
        indices = chosen.get(name, torch.empty(0, dtype=torch.int64))
        selection[name] = TensorMask(indices, tuple(tensor.shape))
    return selection


def largest(
    chunks: Callable[[], Iterable[Chunk]], sample: Iterable[Tensor], k: int, total: int
) -> dict[str, Tensor]:
    """Per name the sorted flat indices of the k largest in magnitude of the `total` entries of
    `chunks`.

    Entries below a bar, which the sample tells, are forgotten at once.

    Args:
        chunks: Gives the same chunks at each call; it is called again where too few of them reached
            the bar.
        sample: Some of the entries, flat, from which the bar is guessed: a poor sample costs time,
            no more.
        k: How many entries are wanted.
        total: How many entries all chunks have.

    Raises:
        DeftxError: An entry is NaN.
    """
    sampled = [_widened(part.abs()) for part in sample]
    magnitudes = torch.cat(sampled) if sampled else torch.empty(0)
    share = 1.05 * k / total + 1e-4 if total else 1.0  # somewhat more candidates than k, mostly
    while True:
        bar = _bar(magnitudes, share)
        expected = min(total, int(1.1 * share * total))
        spans, places, values = _reaching(chunks(), bar, magnitudes.new_empty(expected))
        if bar <= 0 or len(places) >= k:
            break
        share *= 2
    is_kept = _largest(values, k)
    del values
    return {name: places[start:end][is_kept[start:end]] for name, (start, end) in spans.items()}


def _bar(magnitudes: Tensor, share: float) -> float:
    """The magnitude that about `share` of the sample reaches; 0 where that is all of it."""
    rank = int(share * len(magnitudes))
    return (
        float(magnitudes.kthvalue(len(magnitudes) - rank).values) if rank < len(magnitudes) else 0.0
    )


def _reaching(
    chunks: Iterable[Chunk], bar: float, room: Tensor
) -> tuple[dict[str, tuple[int, int]], Tensor, Tensor]:
    """The entries of at least `bar` in magnitude: per name where its own begin and end among all,
    their flat indices in their tensors, ascending, and their magnitudes. These go to `room` as long
    as there is any.

    One array of each, filled from its start, since thousands of small ones cannot be given back to
    the system.
    """
    spans: dict[str, tuple[int, int]] = {}
    places = torch.empty_like(room, dtype=torch.int64)
    values = room
    end = 0
    for name, start, entries in chunks:
        # written so that NaN, which compares false with everything, is found too
        reaching = (~(entries.abs() < bar)).nonzero().view(-1)
        magnitudes = _widened(entries.index_select(0, reaching).abs_())
        if magnitudes.isnan().any():
            why = "holds NaN: the training diverged; lower the learning rate"
            raise DeftxError(f"the difference of tensor {name!r} {why}")

        begin, end = end, end + len(reaching)
        if end > len(places):  # at least twice the room
            places = torch.cat([places, places.new_empty(end)])
            values = torch.cat([values, values.new_empty(end)])
        places[begin:end] = reaching + start
        values[begin:end] = magnitudes
        first_of_name, _ = spans.get(name, (begin, end))
        spans[name] = first_of_name, end
    return spans, places[:end], values[:end]


def _widened(tensor: Tensor) -> Tensor:
    """In float32, or in float64 where it is so already: floats of all kinds compare without
    loss."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _chunks(flat: Mapping[str, Tensor]) -> Iterator[Chunk]:
    for name, entries in flat.items():
        for start in range(0, len(entries), CHUNK):
            yield name, start, entries[start : start + CHUNK]


def _largest(magnitudes: Tensor, k: int) -> Tensor:
    """A mask [n] of exactly the k largest magnitudes, the first ones where they tie."""
    if k == 0 or k >= len(magnitudes):
        return torch.full_like(magnitudes, k > 0, dtype=torch.bool)

    # Ordering takes three times the memory of what is ordered. So a sample tells a magnitude that
    # somewhat fewer than k are above of, and the k-th largest is sought among the rest.
    sample = magnitudes[:: len(magnitudes) // SAMPLE | 1]
    guess = _bar(sample, 0.95 * k / len(magnitudes))
    is_above = magnitudes > guess
    above = int(is_above.sum())
    if above < k:
        rest = magnitudes[~is_above]
    else:  # the sample misled
        rest, above = magnitudes, 0
    threshold = rest.kthvalue(len(rest) - (k - above) + 1).values

    # All above the k-th largest, and of those that equal it the first ones
    is_kept = magnitudes > threshold
    ties = (magnitudes == threshold).nonzero().view(-1)
    is_kept[ties[: k - int(is_kept.sum())]] = True
    return is_kept
