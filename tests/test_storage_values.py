"""The coding of values: the same bits come back, they take less room, and no trust in bytes."""

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from storage_examples import BITS, FLOATS, assert_same_tensor

from deftx.errors import DeftxError
from deftx.storage.codec import decode_values, encode_values

FLOAT = {dtype: torch.finfo(dtype) for dtype in FLOATS}
types = pytest.mark.parametrize("dtype", FLOATS, ids=str)


def roundtrip(values):
    return decode_values(encode_values(values), len(values), values.dtype)


def of_bits(bits, dtype):
    width = 8 * dtype.itemsize
    signed = [number - (number >> width - 1 << width) for number in bits]
    return torch.tensor(signed, dtype=BITS[dtype]).view(dtype)


@st.composite
def anything(draw):
    """Values of any type and any bits, those of infinities and NaN among them."""
    dtype = draw(st.sampled_from(FLOATS))
    return of_bits(
        draw(st.lists(st.integers(0, 2 ** (8 * dtype.itemsize) - 1), max_size=300)), dtype
    )


def weights_apart(count, seed=0):
    """Differences of weights as a vector holds them: the largest 5% of those that training made,
    exact in float32."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(count, generator=generator) * 0.04
    steps = 3e-4 * (torch.empty(count).exponential_(generator=generator) + np.log(20))
    steps *= torch.randint(0, 2, (count,), generator=generator) * 2 - 1
    return (weights + steps) - weights


def plain_decode(data, dtype):
    """The format as its description says, one value after the other."""
    planes, width = zstandard.ZstdDecompressor().decompress(bytes(data)), dtype.itemsize
    count = len(planes) // width
    numbers = [
        sum(planes[place * count + i] << 8 * place for place in range(width)) for i in range(count)
    ]
    return of_bits(numbers, dtype)


@given(anything())
def test_any_values_come_back_bit_for_bit_and_match_the_plain_reading(values):
    assert_same_tensor(roundtrip(values), values)
    assert_same_tensor(plain_decode(encode_values(values), values.dtype), values)


@types
@pytest.mark.parametrize("count", [0, 1, 2, 1000])
def test_zeros_of_both_signs_and_the_ends_of_the_range_come_back(dtype, count):
    info = FLOAT[dtype]
    ends = [0.0, -0.0, info.max, info.min, info.tiny, info.smallest_normal, info.eps]
    values = torch.tensor([*ends, *of_bits([1, 2, 3], dtype).tolist()], dtype=dtype)
    for chosen in values:
        assert_same_tensor(roundtrip(chosen.repeat(count)), chosen.repeat(count))
    assert_same_tensor(roundtrip(values), values)


@types
def test_values_that_cannot_be_made_smaller_come_back_and_take_hardly_more_room(dtype):
    bits = np.random.default_rng(0).integers(0, 256, 200_000 * dtype.itemsize, np.uint8)
    values = torch.from_numpy(bits).view(dtype)
    assert_same_tensor(roundtrip(values), values)
    assert len(encode_values(values)) <= 1.001 * len(bits)


@types
def test_differences_of_weights_of_every_type_come_back(dtype):
    values = weights_apart(100_000).to(dtype)
    assert_same_tensor(roundtrip(values), values)


@pytest.mark.parametrize("count", [30_000, 1_000_000])
def test_a_difference_of_weights_takes_less_than_three_bytes(count):
    values = weights_apart(count)
    assert_same_tensor(roundtrip(values), values)
    assert len(encode_values(values)) < 2.75 * count


def test_the_same_values_give_the_same_bytes():
    assert (encode_values(weights_apart(1000)) == encode_values(weights_apart(1000))).all()


def test_decoded_values_can_be_changed():
    values = roundtrip(torch.ones(3))
    values += 1
    assert values.tolist() == [2, 2, 2]


def assert_refused(data, count=1000, message="damaged"):
    with pytest.raises(DeftxError, match=message) as error:
        decode_values(np.frombuffer(bytes(data), np.uint8), count, torch.float32)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "values", [torch.ones(1), torch.ones(1000), weights_apart(1000)], ids=["one", "same", "usual"]
)
def test_values_that_are_cut_off_anywhere_are_refused(values):
    data = bytes(encode_values(values))
    for size in range(len(data)):
        assert_refused(data[:size], len(values))


@given(st.data())
def test_flipped_bits_give_other_values_or_a_clean_error(data):
    coded = encode_values(weights_apart(1000)).copy()
    for position in data.draw(st.lists(st.integers(0, len(coded) * 8 - 1), min_size=1, max_size=5)):
        coded[position // 8] ^= 1 << position % 8
    assert_values_or_error(coded, 1000)


@given(st.binary(max_size=60), st.integers(0, 60), st.sampled_from([b"", zstandard.FRAME_HEADER]))
def test_any_bytes_give_values_or_a_clean_error(data, count, start):
    assert_values_or_error(np.frombuffer(start + data, np.uint8), count)


def assert_values_or_error(data, count):
    before = data.copy()
    try:
        values = decode_values(data, count, torch.float32)
    except DeftxError:
        return
    finally:
        assert (data == before).all()
    assert (values.dtype, values.shape) == (torch.float32, (count,))


def frame(content, **settings):
    return zstandard.ZstdCompressor(**settings).compress(content)


def forged(size, block=b"\x01\x00\x00"):
    """A frame that announces `size` bytes and holds those of `block`, here none."""
    return zstandard.FRAME_HEADER + b"\xe0" + size.to_bytes(8, "little") + block


PLAIN = bytes(4000)
REPEATED = (1 | 1 << 1 | 131_072 << 3).to_bytes(
    3, "little"
) + b"\x00"  # a last block: one byte, 128 KiB times


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(10),
        frame(PLAIN[:-1]),
        frame(PLAIN + b"\x00"),
        frame(PLAIN) + b"\x00",
        frame(PLAIN) + frame(b""),
        frame(PLAIN[:2000]) + frame(PLAIN[:2000]),
        frame(PLAIN, write_content_size=False),
        b"\x50\x2a\x4d\x18" + (4000).to_bytes(4, "little") + PLAIN,
        frame(PLAIN, write_checksum=True)[:-1] + b"!",
        forged(4000),
        forged(4000, REPEATED),
        forged(2**40),
        forged(2**63),
        forged(2**64 - 1),
        forged(2**64 - 2, REPEATED),
    ],
)
def test_frames_that_do_not_hold_just_the_values_are_refused(data):
    assert_refused(data)


def test_a_frame_that_needs_a_dictionary_is_refused():
    samples = [bytes([i % 7, i % 11, i % 13]) * 30 for i in range(2000)]
    trained = zstandard.train_dictionary(1000, samples)
    data = frame((samples[3] * 50)[:4000], dict_data=trained)
    assert zstandard.get_frame_parameters(data).dict_id
    assert_refused(data)


def test_frames_of_other_settings_are_read():
    values = weights_apart(500_000)
    planes = values.view(torch.uint8).view(-1, 4).T.contiguous().numpy().tobytes()
    for settings in ({"level": 19}, {"write_checksum": True}, {"level": -5}):
        data = np.frombuffer(frame(planes, **settings), np.uint8)
        assert_same_tensor(decode_values(data, len(values), values.dtype), values)


def test_a_frame_cannot_have_more_memory_set_aside_than_the_values_take():
    settings = zstandard.ZstdCompressionParameters(window_log=24)
    large = frame(bytes(2**24), compression_params=settings)
    assert len(large) < 2**11
    assert_refused(large, 1000, "does not announce 4000 bytes")
    assert_refused(large[:-1], 2**22, "too much memory")
