"""The entries of a tensor as bytes: fewer than in memory, and exactly the same when they come back.

Indices are sorted and flat: the gaps between them are stored as LEB128 variable-length integers.
The first index comes first, then each index's distance to the one before, minus one. A gap takes
one byte for every seven of its bits, lowest first; all its bytes but the last have the high bit
set. At 5% density nearly every gap is below 128, so an entry takes little more than one byte in
place of eight.

Values are differences of weights that are larger than the difference: their lowest bits are mostly
zero, and few exponents occur among the largest of them. So their bytes are stored by place, first
the lowest byte of every value, then the second of every value and so on, as one Zstandard frame. A
float32 takes about 2.6 bytes in place of four.
"""

import numpy as np
import torch
import zstandard
from numpy.typing import NDArray
from torch import Tensor

from deftx.errors import DeftxError

_LONGEST = 9  # bytes: 63 bits, all that an index can have
_LIMITS = np.array(
    [1 << 7 * size for size in range(1, _LONGEST)]
)  # the least gap of 2, 3, ... bytes

# What makes values smaller is the code for single bytes. Repeated strings are chance: look for long
# ones only.
_LEVEL, _MATCHES = 1, {"min_match": 7, "hash_log": 6}
_WINDOW = 1 << 20  # bytes that a damaged frame may have set aside beside those it decodes to


def encode_indices(indices: NDArray[np.int64], numel: int) -> NDArray[np.uint8]:
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


def decode_indices(data: NDArray[np.uint8], count: int, numel: int) -> NDArray[np.int64]:
    """The `count` flat indices of a tensor with `numel` entries that `encode_indices` turned into
    `data`.

    Raises DeftxError for bytes that are not such indices. Memory is bounded by the size of `data`,
    whatever `count` and `numel` claim.
    """
    found = np.count_nonzero(data < 128)
    if found != count or (len(data) and data[-1] > 127):
        raise DeftxError(
            f"the indices are cut off or damaged: {count} are announced, {found} are there"
        )
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
    # Steps are positive, so the sum can only leave the range upwards: past `numel` or past 63 bits,
    # to below zero.
    if count and (indices[-1] >= numel or indices.min() < 0):
        raise DeftxError(f"the indices leave their tensor, which has {numel} entries")
    return indices


def encode_values(values: Tensor) -> NDArray[np.uint8]:
    """Values [n] of a type of any width, on the CPU -> bytes."""
    width = values.itemsize
    places = values.detach().contiguous().view(torch.uint8).numpy().reshape(-1, width)
    settings = zstandard.ZstdCompressionParameters.from_level(_LEVEL, **_MATCHES)
    coder = zstandard.ZstdCompressor(compression_params=settings).compressobj(size=places.size)
    data = bytearray()
    for place in range(width):
        data += coder.compress(places[:, place].tobytes())
        data += coder.flush(
            zstandard.COMPRESSOBJ_FLUSH_BLOCK
        )  # places differ: none shares its code with the next
    data += coder.flush()
    return np.frombuffer(data, np.uint8)


def decode_values(data: NDArray[np.uint8], count: int, dtype: torch.dtype) -> Tensor:
    """The `count` values that `encode_values` turned into `data`, bit for bit.

    Raises DeftxError for bytes that are not such values. Memory is bounded by `count`, whatever
    `data` claims.
    """
    size = count * dtype.itemsize
    try:
        if zstandard.get_frame_parameters(data.data).content_size != size:
            raise DeftxError(f"the values are damaged: their frame does not announce {size} bytes")
        decoder = zstandard.ZstdDecompressor(max_window_size=_WINDOW)
        planes = decoder.decompress(data.data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise DeftxError(f"the values are cut off or damaged: {error}") from error
    if len(planes) != size:  # a frame that is to be skipped announces its size and holds nothing
        raise DeftxError(f"the values are damaged: their frame does not hold {size} bytes")
    places = np.empty(
        (count, dtype.itemsize), np.uint8
    )  # NumPy's comes in large pages: half the time of torch's
    for place, plane in enumerate(np.frombuffer(planes, np.uint8).reshape(dtype.itemsize, count)):
        places[:, place] = plane
    return torch.from_numpy(places.reshape(-1)).view(dtype)
