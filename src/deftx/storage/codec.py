"""The entries of a tensor as bytes: fewer than in memory, and exactly the same when they come back.

Indices are sorted and flat: the gaps between them are stored as LEB128 variable-length integers.
The first index comes first, then each index's distance to the one before, minus one. A gap takes
one byte for every seven of its bits, lowest first; all its bytes but the last have the high bit
set. At 5% density nearly every gap is below 128, so an entry takes little more than one byte in
place of eight.

Values are differences of weights that are larger than the difference: their lowest bits are mostly
zero, and few exponents occur among the largest of them. So the lowest byte of every value is stored
first, then the second byte of every value and so on, as one Zstandard frame. A float32 takes about
2.6 bytes in place of four.
"""

import numpy as np
import torch
import zstandard
from numpy.typing import NDArray
from torch import Tensor

from deftx.errors import DeftxError

_BITS = 7  # of a gap, in each byte
_CONTINUES = 1 << _BITS  # the high bit: more bytes of the same gap follow
_PAYLOAD = _CONTINUES - 1  # the other bits
_MAX_GAP_BYTES = 9  # 63 bits, all that an index can have
# the smallest gap that takes 2 bytes, 3 bytes, ...
_SMALLEST_GAPS = np.array([1 << _BITS * size for size in range(1, _MAX_GAP_BYTES)])

# What makes values smaller is the entropy coding of single bytes. Repeated strings are chance, so
# only long ones are looked for.
_LEVEL = 1
_MATCHES = {"min_match": 7, "hash_log": 6}
_WINDOW = 1 << 20  # bytes that a damaged frame may allocate besides those that it decodes to


def encode_indices(indices: NDArray[np.int64], numel: int) -> NDArray[np.uint8]:
    """Encode the positions of a vector's entries in one tensor.

    Args:
        indices: Flat indices [n], ascending.
        numel: How many entries the tensor has.

    Returns:
        Bytes [>= n].

    Raises:
        DeftxError: The indices do not ascend strictly, or leave 0 .. numel - 1.
    """
    if not len(indices):
        return np.empty(0, np.uint8)
    gaps = np.empty_like(indices)
    gaps[0] = indices[0]
    np.subtract(indices[1:], indices[:-1], out=gaps[1:])
    gaps[1:] -= 1
    if gaps.min() < 0 or indices[-1] >= numel:
        raise DeftxError(f"indices must ascend strictly from 0 or more to at most {numel - 1}")

    # The first byte of every gap: its lowest seven bits, and whether more follow.
    first_bytes = gaps.astype(np.uint8)
    wide = np.flatnonzero(gaps > _PAYLOAD)
    first_bytes[wide] |= _CONTINUES

    # Where the second byte of each wide gap goes: behind its first byte and all bytes before that.
    remaining = gaps[wide]
    extra_bytes = np.searchsorted(_SMALLEST_GAPS, remaining, side="right")
    positions = wide + np.cumsum(extra_bytes) - extra_bytes
    data = np.empty(len(gaps) + int(extra_bytes.sum()), np.uint8)
    is_first = np.ones(len(data), bool)

    # The further bytes of all wide gaps at once: their second bytes, then their third, ...
    while len(positions):
        positions = positions + 1
        remaining = remaining >> _BITS
        continues = remaining > _PAYLOAD
        data[positions] = remaining & _PAYLOAD | continues * _CONTINUES
        is_first[positions] = False
        positions = positions[continues]
        remaining = remaining[continues]

    data[is_first] = first_bytes
    return data


def decode_indices(data: NDArray[np.uint8], count: int, numel: int) -> NDArray[np.int64]:
    """Decode what `encode_indices` wrote. Memory is bounded by the size of `data`.

    Args:
        data: The bytes, which may be damaged.
        count: How many indices the manifest announces.
        numel: How many entries the tensor has, by the manifest.

    Returns:
        Flat indices [count], strictly ascending.

    Raises:
        DeftxError: The bytes are not `count` such indices.
    """
    # A gap ends with each byte that has no high bit.
    gap_count = np.count_nonzero(data < _CONTINUES)
    if gap_count != count or (len(data) and data[-1] > _PAYLOAD):
        raise DeftxError(
            f"the indices are cut off or damaged: {count} are announced, {gap_count} are there"
        )
    is_first = np.ones(len(data), bool)
    np.less(data[:-1], _CONTINUES, out=is_first[1:])

    # The lowest seven bits of every gap. A step from one index to the next is a gap plus one.
    first_bytes = data[is_first]
    wide = np.flatnonzero(first_bytes > _PAYLOAD)
    first_bytes &= _PAYLOAD
    first_bytes += 1
    steps = first_bytes.astype(np.int64)

    # The further bytes of all wide gaps at once: their second bytes, then their third, ...
    positions = np.flatnonzero(is_first & (data > _PAYLOAD))
    shift = _BITS
    while len(positions):
        if shift == _BITS * _MAX_GAP_BYTES:
            raise DeftxError(f"the indices are damaged: one takes more than {_MAX_GAP_BYTES} bytes")
        positions = positions + 1
        further_bytes = data[positions]
        steps[wide] += (further_bytes & _PAYLOAD).astype(np.int64) << shift
        continues = further_bytes > _PAYLOAD
        positions = positions[continues]
        wide = wide[continues]
        shift += _BITS

    steps[:1] -= 1  # the first index is a gap itself
    indices: NDArray[np.int64] = np.cumsum(steps, out=steps)
    # Steps are positive, so the sum can only leave the range upwards: past `numel` or past 63 bits,
    # to below zero.
    if count and (indices[-1] >= numel or indices.min() < 0):
        raise DeftxError(f"the indices leave their tensor, which has {numel} entries")
    return indices


def encode_values(values: Tensor) -> NDArray[np.uint8]:
    """Encode the values of a vector's entries in one tensor.

    Args:
        values: Values [n] on the CPU, of a type of any width.

    Returns:
        One Zstandard frame.
    """
    width = values.itemsize
    value_bytes = values.detach().contiguous().view(torch.uint8).numpy().reshape(-1, width)
    settings = zstandard.ZstdCompressionParameters.from_level(_LEVEL, **_MATCHES)
    compressor = zstandard.ZstdCompressor(compression_params=settings)
    frame = compressor.compressobj(size=value_bytes.size)
    data = bytearray()
    for byte_number in range(width):
        data += frame.compress(value_bytes[:, byte_number].tobytes())
        # a block ends here: other bytes are distributed differently, and need their own code
        data += frame.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    data += frame.flush()
    return np.frombuffer(data, np.uint8)


def decode_values(data: NDArray[np.uint8], count: int, dtype: torch.dtype) -> Tensor:
    """Decode what `encode_values` wrote, bit for bit. Memory is bounded by `count`.

    Args:
        data: The bytes, which may be damaged.
        count: How many values there must be.
        dtype: Their type.

    Returns:
        Values [count].

    Raises:
        DeftxError: The bytes are not `count` such values.
    """
    width = dtype.itemsize
    size = count * width
    try:
        if zstandard.get_frame_parameters(data.data).content_size != size:
            raise DeftxError(f"the values are damaged: their frame does not announce {size} bytes")
        decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW)
        content = decompressor.decompress(data.data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise DeftxError(f"the values are cut off or damaged: {error}") from error
    if len(content) != size:  # a skippable frame announces its size and holds nothing
        raise DeftxError(f"the values are damaged: their frame does not hold {size} bytes")

    # All first bytes, all second bytes, ... -> the bytes of each value side by side.
    by_byte_number = np.frombuffer(content, np.uint8).reshape(width, count)
    # NumPy allocates it in large pages, which takes half the time of torch's allocation
    value_bytes = np.empty((count, width), np.uint8)
    for byte_number in range(width):
        value_bytes[:, byte_number] = by_byte_number[byte_number]
    return torch.from_numpy(value_bytes.reshape(-1)).view(dtype)
