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
# What `k` may be, for messages.
FORMS_OF_K = "neither a count (7600000, 7.6M) nor a share (2.8%, 0.028)"
DIVERGED = "holds NaN: the training diverged; lower the learning rate"


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
        count = len(self.indices)
        return f"TensorMask({count:,} entries, shape={self.shape})"


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
        tensors = len(self.masks)
        return f"SparseMask(k={self.k:,} in {tensors} tensors)"

    @property
    def k(self) -> int:
        """The number of selected entries, over all tensors."""
        count = 0
        for mask in self.masks.values():
            count += len(mask.indices)
        return count


# Tensors in pieces: each a tensor's name, the flat index at which the piece starts, and its entries
# [c]. Pieces come in the order in which ties are broken.
Chunk = tuple[str, int, Tensor]

# By name, where the entries of a tensor start and end in an array that holds those of all.
Spans = dict[str, tuple[int, int]]


def digest(selection: Mapping[str, TensorMask]) -> str:
    """A fingerprint of a selection, which other entries do not have.

    Args:
        selection: Tensor name -> its selected entries; their order counts.

    Returns:
        The SHA-256 of all names, shapes and indices: 64 hex digits.

    Example:
        >>> import torch
        >>> from deftx.core.select import digest, select
        >>> delta = {"weight": torch.tensor([0.5, -2.0])}
        >>> digest(select(delta, k=1)) == digest(select(delta, k="50%"))
        True
    """
    sha256 = hashlib.sha256()
    for name, mask in selection.items():
        shape = list(mask.shape)
        count = len(mask.indices)
        header = f"{name} {shape} {count}\n"
        sha256.update(header.encode())

        indices = mask.indices.cpu().numpy()
        sha256.update(indices.tobytes())
    return sha256.hexdigest()


def parse_k(k: int | float | str, total: int) -> int:
    """How many of `total` entries `k` means.

    Args:
        k: A count (`7600000`, `"7.6M"`), or a share of the entries (`"2.8%"`, `0.028`). A number
            with a decimal point is a share up to 1.0, which is all of them, and a count above.
        total: The number of all entries.

    Returns:
        A count from 0 to `total`.

    Raises:
        DeftxError: `k` is neither, or is a count below 0 or above `total`.

    Example:
        >>> from deftx.core.select import parse_k
        >>> parse_k("2.8%", total=1000)
        28
    """
    text = str(k).strip()
    try:
        count = _parse_count(text, total)
    except (ValueError, OverflowError):
        raise DeftxError(f"k = {k!r} is {FORMS_OF_K}") from None
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

    # A share in percent
    if unit == "%":
        percent = float(text[:-1])
        share = percent / 100
        return round(share * total)

    # A count in thousands, millions or billions
    if unit in UNITS:
        multiple = float(text[:-1])
        return round(multiple * UNITS[unit])

    # A plain count
    try:
        return int(text)
    except ValueError:
        number = float(text)

    # A number with a decimal point
    if 0 <= number <= 1:
        return round(number * total)
    count = int(number)
    if number != count:
        raise ValueError(f"{text} is no whole number")
    return count


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
        group_name = group_of(name)
        group = groups.setdefault(group_name, {})
        group[name] = tensor

    # Each group's part of k
    sizes = [_count_entries(group) for group in groups.values()]
    total = sum(sizes)
    whole_k = parse_k(k, total)
    counts = shares_of(whole_k, sizes)

    # μ: within each group, the entries of the largest magnitudes
    masks: dict[str, TensorMask] = {}
    for group, count in zip(groups.values(), counts, strict=True):
        masks |= _select_largest(group, count)

    # Groups may not keep the delta's order
    in_order = {name: masks[name] for name in delta}
    return SparseMask(in_order)


def _count_entries(delta: Mapping[str, Tensor]) -> int:
    count = 0
    for tensor in delta.values():
        count += tensor.numel()
    return count


def shares_of(k: int, sizes: Sequence[int]) -> list[int]:
    """k as a sum of counts in proportion to `sizes`, none above its size (Hamilton's method).

    Counts are rounded down first; what is left goes, one each, to the largest remainders, in the
    order of the sizes where remainders tie.

    Args:
        k: At most the sum of the sizes.
        sizes: The number of entries of each group.

    Returns:
        A count for each group, together k.

    Example:
        >>> from deftx.core.select import shares_of
        >>> shares_of(5, [1, 2, 2])
        [1, 2, 2]
        >>> shares_of(3, [10, 10])
        [2, 1]
    """
    total = max(sum(sizes), 1)

    # k · size / total, rounded down, and what the rounding took away
    counts: list[int] = []
    remainders: list[int] = []
    for size in sizes:
        count, remainder = divmod(k * size, total)
        counts.append(count)
        remainders.append(remainder)

    # One more for the largest remainders; sorting is stable, so that the first come first
    numbers = range(len(sizes))
    by_remainder = sorted(numbers, key=lambda number: -remainders[number])
    left = k - sum(counts)
    for number in by_remainder[:left]:
        counts[number] += 1
    return counts


def _select_largest(delta: Mapping[str, Tensor], count: int) -> dict[str, TensorMask]:
    """The `count` entries of `delta` largest in magnitude, by tensor."""
    flat: dict[str, Tensor] = {}
    for name, tensor in delta.items():
        flat[name] = tensor.detach().reshape(-1)

    # Every so many entries are the sample; the step is odd, to meet all columns of a matrix
    total = _count_entries(delta)
    step = total // SAMPLE | 1
    sample = [entries[::step] for entries in flat.values()]
    chosen = largest(lambda: _chunks(flat), sample, count, total)

    # Tensors without entries were in no chunk
    no_indices = torch.empty(0, dtype=torch.int64)
    masks: dict[str, TensorMask] = {}
    for name, tensor in delta.items():
        indices = chosen.get(name, no_indices)
        masks[name] = TensorMask(indices, tuple(tensor.shape))
    return masks


def largest(
    chunks: Callable[[], Iterable[Chunk]],
    sample: Iterable[Tensor],
    k: int,
    total: int,
) -> dict[str, Tensor]:
    """The k entries that are largest in magnitude, of tensors that come in chunks.

    A sample tells a threshold which somewhat more than k entries should reach; entries below it are
    dropped at once.

    Args:
        chunks: Gives the same chunks at each call; it is called again where too few entries reached
            the threshold.
        sample: Some of the entries, flat, from which the threshold is guessed: a poor sample costs
            time, nothing else.
        k: How many entries are wanted.
        total: How many entries all chunks have.

    Returns:
        Per name of a chunk the flat indices of its tensor's entries among the k [n] int64,
        ascending.

    Raises:
        DeftxError: An entry is NaN.
    """
    magnitudes = torch.empty(0)
    sampled = [_widened(part.abs()) for part in sample]
    if sampled:
        magnitudes = torch.cat(sampled)

    # The share of entries that the threshold lets pass: somewhat more than k of them
    share = 1.0
    if total:
        share = 1.05 * k / total + 1e-4

    # Candidates: all entries that reach a threshold, which is lowered until they are enough
    while True:
        threshold = _threshold(magnitudes, share)
        expected = int(1.1 * share * total)
        buffer = magnitudes.new_empty(min(total, expected))
        spans, indices, values = _candidates(chunks(), threshold, buffer)
        if threshold <= 0 or len(indices) >= k:
            break
        share *= 2

    # The k largest of the candidates
    is_kept = largest_mask(values, k)
    del buffer, values

    chosen: dict[str, Tensor] = {}
    for name, (start, end) in spans.items():
        own_indices = indices[start:end]
        chosen[name] = own_indices[is_kept[start:end]]
    return chosen


def _threshold(magnitudes: Tensor, share: float) -> float:
    """The magnitude that about `share` of the sample reaches; 0 where that is all of it."""
    count = len(magnitudes)
    above = int(share * count)
    if above >= count:
        return 0.0
    threshold = magnitudes.kthvalue(count - above).values
    return float(threshold)


def _candidates(
    chunks: Iterable[Chunk],
    threshold: float,
    buffer: Tensor,
) -> tuple[Spans, Tensor, Tensor]:
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
    spans: Spans = {}
    indices = torch.empty_like(buffer, dtype=torch.int64)
    values = buffer
    end = 0
    for name, start, entries in chunks:
        # NaN compares false with everything, so "not below" finds it too
        is_below = entries.abs() < threshold
        reaching = (~is_below).nonzero().view(-1)
        reaching_entries = entries.index_select(0, reaching)
        magnitudes = _widened(reaching_entries.abs_())
        if magnitudes.isnan().any():
            raise DeftxError(f"the difference of tensor {name!r} {DIVERGED}")

        # Buffers that are full become at least twice as long
        begin = end
        end = begin + len(reaching)
        if end > len(indices):
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
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    return tensor.to(dtype)


def _chunks(flat: Mapping[str, Tensor]) -> Iterator[Chunk]:
    """Flat tensors in chunks of CHUNK entries."""
    for name, entries in flat.items():
        for start in range(0, len(entries), CHUNK):
            end = start + CHUNK
            yield name, start, entries[start:end]


def largest_mask(magnitudes: Tensor, k: int) -> Tensor:
    """The k largest magnitudes, the first ones where they tie.

    Args:
        magnitudes: Entries [n], none below 0.
        k: How many are wanted.

    Returns:
        A mask [n] bool of exactly k entries, all of them where k is n or more.

    Example:
        >>> import torch
        >>> from deftx.core.select import largest_mask
        >>> largest_mask(torch.tensor([2.0, 3.0, 2.0]), k=2)
        tensor([ True,  True, False])
    """
    count = len(magnitudes)
    if k == 0 or k >= count:
        return torch.full_like(magnitudes, k > 0, dtype=torch.bool)

    # Ordering takes three times the memory of what is ordered. So a sample tells a magnitude that
    # somewhat fewer than k exceed, and the k-th largest is sought among the rest.
    step = count // SAMPLE | 1
    sample = magnitudes[::step]
    guess = _threshold(sample, 0.95 * k / count)
    is_above = magnitudes > guess
    above = int(is_above.sum())
    if above < k:
        rest = magnitudes[~is_above]
    else:
        # The sample misled
        rest = magnitudes
        above = 0

    # The k-th largest of all is the (k − above)-th largest of the rest
    rank_from_below = len(rest) - (k - above) + 1
    threshold = rest.kthvalue(rank_from_below).values

    # All above the k-th largest, and of those that equal it the first ones
    is_kept = magnitudes > threshold
    missing = k - int(is_kept.sum())
    ties = (magnitudes == threshold).nonzero().view(-1)
    is_kept[ties[:missing]] = True
    return is_kept
