"""Sorted flat indices as bytes: the gaps between them as LEB128 variable-length integers.

The first index comes first, then each index's distance to the one before, minus one. A gap takes one
byte for every seven of its bits, lowest first; all its bytes but the last have the high bit set. At 5% density
nearly every gap is below 128, so an entry takes little more than one byte in place of eight.
"""

import numpy as np
from numpy.typing import NDArray

from deftx.errors import DeftxError

_LONGEST = 9  # bytes: 63 bits, all that an index can have
_LIMITS = np.array([1 << 7 * size for size in range(1, _LONGEST)])  # the least gap of 2, 3, ... bytes


def encode(indices: NDArray[np.int64], numel: int) -> NDArray[np.uint8]:
    """Flat indices [n] of a tensor with `numel` entries -> bytes [>= n].

    Raises DeftxError unless the indices ascend strictly and lie within 0 .. numel - 1.
    """
    if not len(indices):
        return np.empty(0, np.uint8)
    gaps = np.empty_like(indices)
    gaps[0] = indices[0]
    np.subtract(indices[1:], indices[:-1], out=gaps[1:])
    gaps[1:] -= 1
    if gaps.min() < 0 or indices[-1] >= numel:
        raise DeftxError(f"indices must ascend strictly from 0 or more to at most {numel - 1}")
    leading = gaps.astype(np.uint8)
    wide = np.flatnonzero(gaps > 127)
    leading[wide] |= 128
    rest = gaps[wide]
    extra = np.searchsorted(_LIMITS, rest, side="right")
    data = np.empty(len(gaps) + int(extra.sum()), np.uint8)
    is_leading = np.ones(len(data), bool)
    at = wide + np.cumsum(extra) - extra
    while len(at):
        at, rest = at + 1, rest >> 7
        more = rest > 127
        data[at] = rest & 127 | more * 128
        is_leading[at] = False
        at, rest = at[more], rest[more]
    data[is_leading] = leading
    return data


def decode(data: NDArray[np.uint8], count: int, numel: int) -> NDArray[np.int64]:
    """The `count` flat indices of a tensor with `numel` entries that `encode` turned into `data`.

    Raises DeftxError for bytes that are not such indices. Memory is bounded by the size of `data`,
    whatever `count` and `numel` claim.
    """
    found = np.count_nonzero(data < 128)
    if found != count or (len(data) and data[-1] > 127):
        raise DeftxError(f"the indices are cut off or damaged: {count} are announced, {found} are there")
    is_leading = np.ones(len(data), bool)
    np.less(data[:-1], 128, out=is_leading[1:])
    leading = data[is_leading]
    owner = np.flatnonzero(leading > 127)
    leading &= 127
    leading += 1
    steps = leading.astype(np.int64)
    at = np.flatnonzero(is_leading & (data > 127))
    shift = 7
    while len(at):
        if shift == 7 * _LONGEST:
            raise DeftxError(f"the indices are damaged: one takes more than {_LONGEST} bytes")
        at = at + 1
        part = data[at]
        steps[owner] += (part & 127).astype(np.int64) << shift
        more = part > 127
        at, owner, shift = at[more], owner[more], shift + 7
    steps[:1] -= 1
    indices: NDArray[np.int64] = np.cumsum(steps, out=steps)
    # Steps are positive, so the sum can only leave the range upwards: past `numel` or past 63 bits, to below zero.
    if count and (indices[-1] >= numel or indices.min() < 0):
        raise DeftxError(f"the indices leave their tensor, which has {numel} entries")
    return indices
