"""The coding of indices: exact both ways, and no trust in bytes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from deftx.errors import DeftxError
from deftx.storage.codec import decode_indices, encode_indices

LARGEST = 2**63 - 1


def plain_encode(indices):
    """LEB128 of the gaps, one entry after the other."""
    data, before = [], -1
    for index in indices:
        gap, before = index - before - 1, index
        while gap > 127:
            data.append(gap & 127 | 128)
            gap >>= 7
        data.append(gap)
    return bytes(data)


def roundtrip(indices, numel):
    data = encode_indices(np.array(indices, np.int64), numel)
    assert bytes(data) == plain_encode(indices)
    return decode_indices(data, len(indices), numel).tolist()


edges = [
    edge
    for power in range(0, 64, 7)
    for edge in (2**power - 1, 2**power, 2**power + 1)
    if edge < LARGEST
]


@given(st.lists(st.integers(0, 300) | st.sampled_from(edges) | st.integers(0, 2**62)))
def test_any_ascending_indices_come_back_and_match_the_plain_coding(gaps):
    indices = [int(index) for index in np.cumsum(np.array(gaps, object) + 1) - 1 if index < LARGEST]
    assert roundtrip(indices, LARGEST) == indices


@pytest.mark.parametrize("gap", edges)
def test_a_gap_at_every_change_of_length_comes_back(gap):
    indices = [index for index in (gap, 2 * gap + 1, 2 * gap + 2) if index < LARGEST]
    assert roundtrip(indices, LARGEST) == indices


def test_no_entries_take_no_bytes():
    assert roundtrip([], 0) == roundtrip([], 5) == []


def test_the_only_entry_may_be_the_last_of_a_huge_tensor():
    assert roundtrip([2**33 - 1], 2**33) == [2**33 - 1]


def test_all_entries_take_a_byte_each():
    assert roundtrip(list(range(1000)), 1000) == list(range(1000))
    assert len(encode_indices(np.arange(1000), 1000)) == 1000


def test_an_entry_takes_about_a_byte_at_five_percent_density():
    indices = np.flatnonzero(np.random.default_rng(0).random(200_000) < 0.05)
    assert len(encode_indices(indices, 200_000)) <= 1.05 * len(indices)


@pytest.mark.parametrize("indices", [[-1], [3, 3], [4, 3], [0, 10], [-(2**63), LARGEST]])
def test_indices_that_are_not_ascending_or_leave_the_tensor_are_not_encoded(indices):
    with pytest.raises(DeftxError, match="ascend"):
        encode_indices(np.array(indices), 10)


@pytest.mark.parametrize(
    ("data", "count", "numel", "message"),
    [
        (b"\x80", 0, 10, "cut off"),
        (b"\x01\x80", 1, 10, "cut off"),
        (b"\x01", 2, 10, "2 are announced, 1 are there"),
        (b"\x01\x01", 1, 10, "1 are announced, 2 are there"),
        (b"", 1, 10, "cut off"),
        (b"\x0a", 1, 10, "leave"),
        (b"\x00", 1, 0, "leave"),
        (b"\x05\x05", 2, 11, "leave"),
        (b"\x80" * 9 + b"\x01", 1, LARGEST, "more than 9 bytes"),
        (b"\xff" * 8 + b"\x7f", 1, LARGEST, "leave"),
        ((b"\xff" * 8 + b"\x7f") * 3, 3, LARGEST, "leave"),
        ((b"\xff" * 8 + b"\x3f") * 4, 4, LARGEST, "leave"),
    ],
)
def test_bytes_that_are_no_indices_are_refused(data, count, numel, message):
    with pytest.raises(DeftxError, match=message):
        decode_indices(np.frombuffer(data, np.uint8), count, numel)


@given(arrays(np.uint8, st.integers(0, 60)), st.integers(0, 60), st.integers(0, LARGEST))
def test_any_bytes_give_valid_indices_or_a_clean_error(data, count, numel):
    before = data.copy()
    try:
        indices = decode_indices(data, count, numel).tolist()
    except DeftxError:
        return
    finally:
        assert (data == before).all()
    assert len(indices) == count
    assert indices == sorted(set(indices))
    assert all(0 <= index < numel for index in indices)


def test_memory_is_bounded_by_the_bytes_whatever_they_announce():
    with pytest.raises(DeftxError, match=f"{2**60} are announced"):
        decode_indices(np.zeros(10, np.uint8), 2**60, 2**62)
