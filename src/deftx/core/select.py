"""Magnitude selection: exactly the k largest entries, over all tensors together or tensor by tensor.

Paper, Algorithm 1, "select": the entries that phase 2 may change. Ties are broken by the order of the
tensors, then by the lowest flat index, so that the same differences always give the same k places.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deftx.core.backbone import layer_of
from deftx.errors import DeftxError, unknown

CHUNK = 1 << 18  # entries looked at together: few enough to stay in the processor's cache from step to step
SAMPLE = 1 << 20  # entries from which the first guess of the threshold is taken
UNITS = {"k": 10**3, "m": 10**6, "b": 10**9}

# From a tensor's name to the group within which entries compare.
SPLITS: dict[str, Callable[[str], str]] = {"global": lambda name: "", "matrix": lambda name: name, "layer": layer_of}


@dataclass(frozen=True, eq=False)
class Places:
    """Places in one tensor: sorted flat (row-major) `indices` [n] int64 of a tensor of `shape`."""

    indices: Tensor
    shape: tuple[int, ...]


Selection = dict[str, Places]

# Tensors in pieces: each a tensor's name, the flat index at which the piece starts, and its entries [c].
# Pieces come in the order in which ties are broken.
Chunk = tuple[str, int, Tensor]


def digest(selection: Selection) -> str:
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


def select(delta: Mapping[str, Tensor], k: int | float | str, split: str = "global") -> Selection:
    """The k entries of `delta` largest in magnitude, exactly k of them (Algorithm 1, line "μ").

    delta  tensor name -> difference of any shape; its order is the order in which ties are broken
    k      a count or a share of all entries, see `parse_k`
    split  what compares with each other: everything (`global`, as in the paper), or only what is of one tensor
           (`matrix`) or of one layer (`layer`), each having its part of k by its size, see `shares_of`

    Every tensor appears in the result, those without a place with an empty one. Needs one pass over
    the delta beside a sample, and memory for the candidates only (about 1.05 k of them). Raises
    DeftxError where the delta holds NaN, for a k outside its range, and for an unknown split.
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in delta.items():
        groups.setdefault(SPLITS[split](name), {})[name] = tensor
    sizes = [sum(tensor.numel() for tensor in group.values()) for group in groups.values()]
    counts = shares_of(parse_k(k, sum(sizes)), sizes)
    chosen = [_selected(group, count) for group, count in zip(groups.values(), counts, strict=True)]
    found = {name: places for selection in chosen for name, places in selection.items()}
    return {name: found[name] for name in delta}


def shares_of(k: int, sizes: Sequence[int]) -> list[int]:
    """k as a sum of counts in proportion to `sizes`, none above its size (for a k of at most their sum): rounded down
    first, then one more where the remainder is largest, in the order of the sizes where remainders tie (Hamilton)."""
    total = max(sum(sizes), 1)
    counts, remainders = [k * size // total for size in sizes], [k * size % total for size in sizes]
    order = sorted(range(len(sizes)), key=lambda number: -remainders[number])
    for number in order[: k - sum(counts)]:
        counts[number] += 1
    return counts


def _selected(delta: Mapping[str, Tensor], count: int) -> Selection:
    """The `count` entries of `delta` largest in magnitude."""
    total = sum(tensor.numel() for tensor in delta.values())
    flat = {name: tensor.detach().reshape(-1) for name, tensor in delta.items()}
    step = total // SAMPLE | 1  # odd, to meet all columns of a matrix
    chosen = largest(lambda: _chunks(flat), [entries[::step] for entries in flat.values()], count, total)
    empty = torch.empty(0, dtype=torch.int64)
    return {name: Places(chosen.get(name, empty), tuple(tensor.shape)) for name, tensor in delta.items()}


def largest(chunks: Callable[[], Iterable[Chunk]], sample: Iterable[Tensor], k: int, total: int) -> dict[str, Tensor]:
    """Per name the sorted flat indices of the k largest in magnitude of the `total` entries of `chunks`.

    chunks  gives the same chunks at each call; it is called again where too few of them reached the bar
    sample  some of the entries, flat, from which the bar is guessed: a poor sample costs time, no more

    Entries below the bar are forgotten at once. Raises DeftxError where an entry is NaN.
    """
    magnitudes = torch.cat([_widened(part.abs()) for part in sample] or [torch.empty(0)])
    share = 1.05 * k / total + 1e-4 if total else 1.0
    while True:
        bar = _bar(magnitudes, share)
        room = min(total, int(1.1 * share * total))
        spans, places, values = _reaching(chunks(), bar, magnitudes.new_empty(room))
        if bar <= 0 or len(places) >= k:
            break
        share *= 2
    kept = _largest(values, k)
    del values
    return {name: places[start:end][kept[start:end]] for name, (start, end) in spans.items()}


def _bar(magnitudes: Tensor, share: float) -> float:
    """The magnitude that about `share` of the sample reaches; 0 where that is all of it."""
    rank = int(share * len(magnitudes))
    return float(magnitudes.kthvalue(len(magnitudes) - rank).values) if rank < len(magnitudes) else 0.0


def _reaching(chunks: Iterable[Chunk], bar: float, room: Tensor) -> tuple[dict[str, tuple[int, int]], Tensor, Tensor]:
    """The entries of at least `bar` in magnitude: per name where its own begin and end among all, their flat indices
    in their tensors, ascending, and their magnitudes. These go to `room` as long as there is any.

    One array of each, filled from its start, since thousands of small ones cannot be given back to the system.
    """
    spans: dict[str, tuple[int, int]] = {}
    places, values, end = torch.empty_like(room, dtype=torch.int64), room, 0
    for name, start, entries in chunks:
        # written so that NaN, which compares false with everything, is found too
        reaching = (~(entries.abs() < bar)).nonzero().view(-1)
        magnitudes = _widened(entries.index_select(0, reaching).abs_())
        if magnitudes.isnan().any():
            why = "holds NaN: the training diverged; lower the learning rate"
            raise DeftxError(f"the difference of tensor {name!r} {why}")
        begin, end = end, end + len(reaching)
        if end > len(places):
            places, values = (torch.cat([every, every.new_empty(end)]) for every in (places, values))
        places[begin:end] = reaching + start
        values[begin:end] = magnitudes
        spans[name] = spans.get(name, (begin, end))[0], end
    return spans, places[:end], values[:end]


def _widened(tensor: Tensor) -> Tensor:
    """In float32, or in float64 where it is so already: floats of all kinds compare without loss."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _chunks(flat: Mapping[str, Tensor]) -> Iterator[Chunk]:
    for name, entries in flat.items():
        for start in range(0, len(entries), CHUNK):
            yield name, start, entries[start : start + CHUNK]


def _largest(magnitudes: Tensor, k: int) -> Tensor:
    """A mask [n] of exactly the k largest magnitudes, the first ones where they tie."""
    if k == 0 or k >= len(magnitudes):
        return torch.full_like(magnitudes, k > 0, dtype=torch.bool)
    # The k-th largest, sought among the few that a sample leaves in question: ordering takes three times their memory.
    high = _bar(magnitudes[:: len(magnitudes) // SAMPLE | 1], 0.95 * k / len(magnitudes))
    kept = magnitudes > high
    above = int(kept.sum())
    low, above = (magnitudes[~kept], above) if above < k else (magnitudes, 0)
    threshold = low.kthvalue(len(low) - (k - above) + 1).values
    kept = magnitudes > threshold
    ties = (magnitudes == threshold).nonzero().view(-1)
    kept[ties[: k - int(kept.sum())]] = True
    return kept
