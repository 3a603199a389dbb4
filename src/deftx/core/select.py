"""Magnitude selection: exactly the k largest entries, over all tensors together or tensor by
tensor.

Paper, Algorithm 1, "select": the entries that phase 2 may change. Ties are broken by the order of
the tensors, then by the lowest flat index, so that the same differences always give the same k
entries.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deftx.core.parameters import layer_of
from deftx.errors import DeftxError, unknown

CHUNK = 1 << 18  # entries looked at together: few enough to stay in the processor's cache
SAMPLE = 1 << 20  # entries from which a threshold is guessed
UNITS = {"k": 10**3, "m": 10**6, "b": 10**9}

# From a tensor's name to the group within which entries compare.
SPLITS: dict[str, Callable[[str], str]] = {
    "global": lambda name: "",
    "matrix": lambda name: name,
    "layer": layer_of,
}


@dataclass(frozen=True, eq=False)
class TensorMask:
    """Selected entries of one tensor.

    Attributes:
        indices: Their flat (row-major) indices [n] int64, ascending.
        shape: The shape of the tensor.
    """

    indices: Tensor
    shape: tuple[int, ...]

    def __repr__(self) -> str:
        return f"TensorMask({len(self.indices):,} entries, shape={self.shape})"


@dataclass(frozen=True, eq=False)
class SparseMask(Mapping[str, TensorMask]):
    """Selected entries of a model's tensors: a mapping from their names to each one's `TensorMask`.

    Attributes:
        masks: Tensor name -> its selected entries.
    """

    masks: Mapping[str, TensorMask]

    def __getitem__(self, name: str) -> TensorMask:
        return self.masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.masks)

    def __len__(self) -> int:
        return len(self.masks)

    def __repr__(self) -> str:
        return f"SparseMask(k={self.k:,} in {len(self)} tensors)"

    @property
    def k(self) -> int:
        """The number of selected entries, over all tensors."""
        return sum(len(mask.indices) for mask in self.masks.values())


# Tensors in pieces: each a tensor's name, the flat index at which the piece starts, and its entries
# [c]. Pieces come in the order in which ties are broken.
Chunk = tuple[str, int, Tensor]


def digest(selection: Mapping[str, TensorMask]) -> str:
    """A name of the selection (64 hex digits), which other entries do not have."""
    whole = hashlib.sha256()
    for name, mask in selection.items():
        whole.update(f"{name} {list(mask.shape)} {len(mask.indices)}\n".encode())
        whole.update(mask.indices.cpu().numpy().tobytes())
    return whole.hexdigest()


def parse_k(k: int | float | str, total: int) -> int:
    """How many of `total` entries `k` means.

    Args:
        k: A count (`7600000`, `"7.6M"`), or a share of the entries (`"2.8%"`, `0.028`). A number
            with a decimal point is a share up to 1.0, which is all of them, and a count above.
        total: The number of all entries.

    Raises:
        DeftxError: `k` is neither, or is a count below 0 or above `total`.
    """
    try:
        count = _parse_count(str(k).strip(), total)
    except (ValueError, OverflowError):
        forms = "neither a count (7600000, 7.6M) nor a share (2.8%, 0.028)"
        raise DeftxError(f"k = {k!r} is {forms}") from None
    if not 0 <= count <= total:
        allowed = f"give 0 to {total:,}, all that can be trained (or up to 100%)"
        raise DeftxError(f"k = {k} is {count:,} entries; {allowed}")
    return count


def _parse_count(text: str, total: int) -> int:
    """As `parse_k`, whatever the range.

    Raises:
        ValueError: It is no number, or no whole one.
        OverflowError: It is infinite.
    """
    unit = text[-1:].lower()
    if unit == "%":
        return round(float(text[:-1]) / 100 * total)
    if unit in UNITS:
        return round(float(text[:-1]) * UNITS[unit])
    try:
        return int(text)
    except ValueError:
        number = float(text)
    if 0 <= number <= 1:
        return round(number * total)
    if number != int(number):
        raise ValueError(f"{text} is no whole number")
    return int(number)


def select(delta: Mapping[str, Tensor], k: int | float | str, split: str = "global") -> SparseMask:
    """The k entries of `delta` largest in magnitude, exactly k of them (Algorithm 1, line "μ").

    Takes one pass over the delta beside a sample, and memory for the candidates only (about 1.05 k
    of them).

    Args:
        delta: Tensor name -> difference of any shape; its order is the order in which ties are
            broken.
        k: A count or a share of all entries, see `parse_k`: `7_600_000`, `"7.6M"`, `"2.8%"`,
            `0.028`.
        split: Which entries compete with each other: all (`global`, as in the paper), or only
            those of one tensor (`matrix`) or of one layer (`layer`), each having its part of k by
            its size, see `shares_of`.

    Returns:
        The selected entries by tensor. Every tensor appears, also one without selected entries.

    Raises:
        DeftxError: A delta that holds NaN, a k outside its range, an unknown split.

    Example:
        >>> import torch
        >>> from deftx import select
        >>> selection = select({"weight": torch.tensor([[0.5, -2.0], [1.0, 0.0]])}, k=2)
        >>> selection["weight"].indices
        tensor([1, 2])
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)

    # The tensors that compete, by group
    group_of = SPLITS[split]
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in delta.items():
        groups.setdefault(group_of(name), {})[name] = tensor

    # Each group's part of k
    sizes = [_count_entries(group) for group in groups.values()]
    counts = shares_of(parse_k(k, sum(sizes)), sizes)

    masks: dict[str, TensorMask] = {}
    for group, count in zip(groups.values(), counts, strict=True):
        masks |= _select_largest(group, count)
    in_order = {name: masks[name] for name in delta}  # groups may not keep the delta's order
    return SparseMask(in_order)


def _count_entries(delta: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in delta.values())


def shares_of(k: int, sizes: Sequence[int]) -> list[int]:
    """k as a sum of counts in proportion to `sizes`, none above its size (Hamilton's method).

    Counts are rounded down first; what is left goes, one each, to the largest remainders, in the
    order of the sizes where remainders tie.

    Args:
        k: At most the sum of the sizes.
        sizes: The number of entries of each group.
    """
    total = max(sum(sizes), 1)
    counts = [k * size // total for size in sizes]
    remainders = [k * size % total for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda number: -remainders[number])
    for number in by_remainder[: k - sum(counts)]:
        counts[number] += 1
    return counts


def _select_largest(delta: Mapping[str, Tensor], count: int) -> dict[str, TensorMask]:
    """The `count` entries of `delta` largest in magnitude, by tensor."""
    total = _count_entries(delta)
    flat = {name: tensor.detach().reshape(-1) for name, tensor in delta.items()}
    step = total // SAMPLE | 1  # odd, to meet all columns of a matrix
    sample = [entries[::step] for entries in flat.values()]
    chosen = largest(lambda: _chunks(flat), sample, count, total)

    masks: dict[str, TensorMask] = {}
    for name, tensor in delta.items():
        indices = chosen.get(name, torch.empty(0, dtype=torch.int64))
        masks[name] = TensorMask(indices, tuple(tensor.shape))
    return masks


def largest(
    chunks: Callable[[], Iterable[Chunk]], sample: Iterable[Tensor], k: int, total: int
) -> dict[str, Tensor]:
    """Per name the sorted flat indices of the k largest in magnitude of the `total` entries of
    `chunks`.

    A sample tells a threshold which somewhat more than k entries should reach; entries below it are
    dropped at once.

    Args:
        chunks: Gives the same chunks at each call; it is called again where too few entries reached
            the threshold.
        sample: Some of the entries, flat, from which the threshold is guessed: a poor sample costs
            time, nothing else.
        k: How many entries are wanted.
        total: How many entries all chunks have.

    Raises:
        DeftxError: An entry is NaN.
    """
    sampled = [_widened(part.abs()) for part in sample]
    magnitudes = torch.cat(sampled) if sampled else torch.empty(0)

    # Candidates: all entries that reach a threshold, which is lowered until they are enough
    share = 1.05 * k / total + 1e-4 if total else 1.0
    while True:
        threshold = _threshold(magnitudes, share)
        expected = min(total, int(1.1 * share * total))
        buffer = magnitudes.new_empty(expected)
        spans, indices, values = _candidates(chunks(), threshold, buffer)
        if threshold <= 0 or len(indices) >= k:
            break
        share *= 2

    is_kept = largest_mask(values, k)
    del buffer, values
    chosen = {}
    for name, (start, end) in spans.items():
        own_indices = indices[start:end]
        chosen[name] = own_indices[is_kept[start:end]]
    return chosen


def _threshold(magnitudes: Tensor, share: float) -> float:
    """The magnitude that about `share` of the sample reaches; 0 where that is all of it."""
    rank = int(share * len(magnitudes))
    if rank >= len(magnitudes):
        return 0.0
    return float(magnitudes.kthvalue(len(magnitudes) - rank).values)


def _candidates(
    chunks: Iterable[Chunk], threshold: float, buffer: Tensor
) -> tuple[dict[str, tuple[int, int]], Tensor, Tensor]:
    """The entries of at least `threshold` in magnitude.

    There is one array of indices and one of magnitudes, filled from their start, since the memory
    of thousands of small ones is not returned to the system.

    Args:
        chunks: The entries.
        threshold: The least magnitude.
        buffer: Where magnitudes are written, as far as it is long enough.

    Returns:
        Per name where its candidates start and end; their flat indices in their tensors [n],
        ascending within a tensor; their magnitudes [n].
    """
    spans: dict[str, tuple[int, int]] = {}
    indices = torch.empty_like(buffer, dtype=torch.int64)
    values = buffer
    end = 0
    for name, start, entries in chunks:
        # NaN compares false with everything, so "not below" finds it too
        reaching = (~(entries.abs() < threshold)).nonzero().view(-1)
        magnitudes = _widened(entries.index_select(0, reaching).abs_())
        if magnitudes.isnan().any():
            why = "holds NaN: the training diverged; lower the learning rate"
            raise DeftxError(f"the difference of tensor {name!r} {why}")

        begin = end
        end = begin + len(reaching)
        if end > len(indices):  # make the buffers at least twice as long
            indices = torch.cat([indices, indices.new_empty(end)])
            values = torch.cat([values, values.new_empty(end)])
        indices[begin:end] = reaching + start
        values[begin:end] = magnitudes

        first_of_name, _ = spans.get(name, (begin, end))
        spans[name] = (first_of_name, end)
    return spans, indices[:end], values[:end]


def _widened(tensor: Tensor) -> Tensor:
    """In float32, or in float64 where it is so already: floats of all kinds compare without
    loss."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _chunks(flat: Mapping[str, Tensor]) -> Iterator[Chunk]:
    """Flat tensors in chunks of CHUNK entries."""
    for name, entries in flat.items():
        for start in range(0, len(entries), CHUNK):
            yield name, start, entries[start : start + CHUNK]


def largest_mask(magnitudes: Tensor, k: int) -> Tensor:
    """A mask [n] of exactly the k largest magnitudes, the first ones where they tie."""
    if k == 0 or k >= len(magnitudes):
        return torch.full_like(magnitudes, k > 0, dtype=torch.bool)

    # Ordering takes three times the memory of what is ordered. So a sample tells a magnitude that
    # somewhat fewer than k exceed, and the k-th largest is sought among the rest.
    step = len(magnitudes) // SAMPLE | 1
    guess = _threshold(magnitudes[::step], 0.95 * k / len(magnitudes))
    is_above = magnitudes > guess
    above = int(is_above.sum())
    if above < k:
        rest = magnitudes[~is_above]
    else:  # the sample misled
        rest = magnitudes
        above = 0
    threshold = rest.kthvalue(len(rest) - (k - above) + 1).values

    # All above the k-th largest, and of those that equal it the first ones
    is_kept = magnitudes > threshold
    ties = (magnitudes == threshold).nonzero().view(-1)
    is_kept[ties[: k - int(is_kept.sum())]] = True
    return is_kept
