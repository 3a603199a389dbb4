"""Selection: exactly the k entries that a full sort puts first, however the work is divided."""

from math import prod

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deftx.core import select as module
from deftx.core.denoise import denoise
from deftx.core.select import largest, parse_k, select, shares_of
from deftx.errors import DeftxError

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
TINY = [1e-45, -1e-45, 2.0**-24]  # the smallest float32 and float16 above zero
VALUES = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 3.0, float("inf"), -float("inf"), *TINY])
SHAPE = st.sampled_from([(), (1,), (0,), (7,), (40,), (3, 5), (1, 9), (0, 4), (2, 3, 4)])


def by_sorting(delta, k):
    """The first k places of a full sort by magnitude, then tensor, then flat index."""
    places = [
        (-abs(value), number, index)
        for number, tensor in enumerate(delta.values())
        for index, value in enumerate(tensor.double().reshape(-1).tolist())
    ]
    chosen = sorted(places)[:k]
    return {
        name: sorted(i for _, n, i in chosen if n == number) for number, name in enumerate(delta)
    }


def as_lists(selection):
    return {name: places.indices.tolist() for name, places in selection.items()}


@st.composite
def deltas(draw, values):
    shapes = draw(st.lists(SHAPE, max_size=4))
    dtype = draw(st.sampled_from(FLOATS))
    return {
        f"t{number}": torch.tensor(
            draw(st.lists(values, min_size=prod(shape), max_size=prod(shape))), dtype=dtype
        )
        .reshape(shape)
        .clone()
        for number, shape in enumerate(shapes)
    }


@pytest.mark.parametrize(
    "values", [VALUES, st.floats(width=16, allow_nan=False)], ids=["many ties", "any floats"]
)
@given(
    data=st.data(), chunk=st.sampled_from([1, 2, 5, 64]), sample=st.sampled_from([1, 3, 10, 1000])
)
def test_selection_equals_a_full_sort(values, data, chunk, sample):
    delta = data.draw(deltas(values))
    total = sum(tensor.numel() for tensor in delta.values())
    k = data.draw(st.integers(0, total))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", chunk)
        patch.setattr(module, "SAMPLE", sample)
        selection = select(delta, k)
    assert as_lists(selection) == by_sorting(delta, k)
    assert list(selection) == list(delta)
    assert all(places.shape == tuple(delta[name].shape) for name, places in selection.items())
    assert all(places.indices.dtype == torch.int64 for places in selection.values())


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("k", [0, 1, 17, 1000, 2999, 3000])
def test_larger_tensors_in_several_chunks_equal_a_full_sort(monkeypatch, dtype, k):
    monkeypatch.setattr(module, "CHUNK", 300)
    monkeypatch.setattr(module, "SAMPLE", 100)
    generator = torch.Generator().manual_seed(0)
    delta = {str(i): torch.randn(50, 20, generator=generator).to(dtype) * 10**i for i in range(3)}
    assert as_lists(select(delta, k)) == by_sorting(delta, k)


@given(st.lists(st.integers(0, 12), max_size=8), st.data())
def test_shares_of_k_are_in_proportion_and_add_up_to_it(sizes, data):
    k = data.draw(st.integers(0, sum(sizes)))
    counts = shares_of(k, sizes)
    assert sum(counts) == k
    for count, size in zip(counts, sizes, strict=True):
        assert 0 <= count <= size
        assert abs(count - k * size / max(sum(sizes), 1)) < 1


def test_what_is_left_goes_to_the_largest_remainders_and_to_the_first_of_equal_ones():
    assert shares_of(4, [1, 2, 5]) == [1, 1, 2]  # 0.5, 1 and 2.5
    assert shares_of(3, [1, 2, 5]) == [0, 1, 2]  # 0.375, 0.75 and 1.875
    assert shares_of(2, [3, 3, 3]) == [1, 1, 0]


LAYERS = {
    "embeddings.word": (5, 4),
    "encoder.layer.0.w": (3, 4),
    "encoder.layer.0.b": (3,),
    "encoder.layer.1.w": (2, 4),
    "embeddings.place": (2, 4),
}


@given(data=st.data(), split=st.sampled_from(["matrix", "layer"]))
def test_a_split_selection_is_a_full_sort_of_each_group(data, split):
    of = {"matrix": lambda name: name, "layer": lambda name: name.rpartition(".")[0]}[split]
    delta = {}
    for name, shape in LAYERS.items():
        values = data.draw(st.lists(VALUES, min_size=prod(shape), max_size=prod(shape)))
        delta[name] = torch.tensor(values).view(shape)
    k = data.draw(st.integers(0, 51))
    groups = {
        of(name): {n: tensor for n, tensor in delta.items() if of(n) == of(name)} for name in delta
    }
    counts = shares_of(k, [sum(t.numel() for t in group.values()) for group in groups.values()])
    expected = {}
    for group, count in zip(groups.values(), counts, strict=True):
        expected |= by_sorting(group, count)
    selection = select(delta, k, split)
    assert as_lists(selection) == expected
    assert list(selection) == list(delta)
    assert sum(len(places.indices) for places in selection.values()) == k


def test_an_unknown_split_is_named_with_the_known_ones():
    with pytest.raises(DeftxError, match=r"unknown split 'row'; known: global, layer, matrix"):
        select({"w": torch.ones(3)}, 1, "row")


def test_ties_go_to_the_first_tensor_and_the_lowest_index():
    delta = {"z": torch.tensor([[1.0, 2.0], [-2.0, 1.0]]), "a": torch.tensor([2.0, -1.0, 3.0])}
    assert as_lists(select(delta, 2)) == {"z": [1], "a": [2]}
    assert as_lists(select(delta, 3)) == {"z": [1, 2], "a": [2]}
    assert as_lists(select(delta, 5)) == {"z": [0, 1, 2], "a": [0, 2]}
    assert as_lists(select(delta, 6)) == {"z": [0, 1, 2, 3], "a": [0, 2]}
    turned = dict(reversed(delta.items()))
    assert as_lists(select(turned, 2)) == {"a": [0, 2], "z": []}


@pytest.mark.parametrize("k", [0, 1, 5, 12])
def test_zeros_are_chosen_in_order_where_nothing_else_is_left(k):
    delta = {"a": torch.zeros(3, 2), "b": torch.full((6,), -0.0)}
    places = as_lists(select(delta, k))
    assert places == {"a": list(range(min(k, 6))), "b": list(range(max(0, k - 6)))}


def test_a_sample_that_misses_the_large_entries_is_made_up_for(monkeypatch):
    """Every eleventh entry is sampled and large; of the others enough are needed that the bar must
    fall."""
    monkeypatch.setattr(module, "SAMPLE", 100)
    bars, reaching = [], module._candidates
    monkeypatch.setattr(
        module,
        "_candidates",
        lambda chunks, bar, room: bars.append(bar) or reaching(chunks, bar, room),
    )
    values = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    values[::11] += 5
    delta = {"w": values}
    assert as_lists(select(delta, 300)) == by_sorting(delta, 300)
    assert len(bars) > 1
    assert bars == sorted(bars, reverse=True)


def test_few_candidates_are_looked_at_where_the_sample_is_a_fair_one(monkeypatch):
    seen, keep = [], module.largest_mask
    monkeypatch.setattr(
        module, "largest_mask", lambda values, k: seen.append(len(values)) or keep(values, k)
    )
    monkeypatch.setattr(module, "SAMPLE", 10_000)
    select({"w": torch.randn(200, 500, generator=torch.Generator().manual_seed(0))}, 10_000)
    assert 10_000 <= seen[0] <= 12_000


@pytest.mark.parametrize("dtype", FLOATS)
def test_strides_do_not_matter(dtype):
    wide = torch.randn(12, 10, generator=torch.Generator().manual_seed(1)).to(dtype)
    delta = {"turned": wide.mT, "skipping": wide[:, ::3], "expanded": wide[:1].expand(4, 10)}
    for k in (1, 50, 150):
        assert as_lists(select(delta, k)) == by_sorting(
            {n: t.contiguous() for n, t in delta.items()}, k
        )


def test_tensors_of_different_dtypes_are_compared_by_value():
    delta = {
        "half": torch.tensor([1.0, 65504.0, 6e-8], dtype=torch.float16),
        "brain": torch.tensor([3e38, 1.0078125], dtype=torch.bfloat16),
        "single": torch.tensor([1.0000001, 1e-30]),
        "double": torch.tensor([1.00000001, 1e-300, 1e300], dtype=torch.float64),
    }
    for k in range(11):
        assert as_lists(select(delta, k)) == by_sorting(delta, k)


def test_doubles_are_told_apart_beyond_single_precision():
    delta = {"w": 1 + torch.arange(8, dtype=torch.float64) * 1e-12}
    assert as_lists(select(delta, 2)) == {"w": [6, 7]}


@pytest.mark.parametrize("delta", [{}, {"empty": torch.empty(0, 3)}])
def test_nothing_is_selected_from_nothing(delta):
    for k in (0, "50%", "100%"):
        assert as_lists(select(delta, k)) == {name: [] for name in delta}


@pytest.mark.parametrize("k", [0, 1, 12])
@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_nan_is_an_error_that_names_the_tensor(monkeypatch, k, chunk):
    monkeypatch.setattr(module, "CHUNK", chunk)
    bad = torch.tensor([float("inf"), 1.0, 2.0, 3.0, 4.0, float("nan")])
    with pytest.raises(
        DeftxError, match=r"'encoder\.w' holds NaN: the training diverged; lower the learning rate"
    ):
        select({"fine": torch.arange(6.0), "encoder.w": bad}, k)


def test_pieces_of_one_tensor_give_the_places_within_the_whole():
    entries = torch.tensor([1.0, -4.0, 2.0, 4.0, 0.0, -3.0])
    pieces = [("w", 0, entries[:2]), ("w", 2, entries[2:2]), ("w", 2, entries[2:])]
    for sample in ([], [entries[:1]], [entries]):
        assert largest(lambda: pieces, sample, 3, 6)["w"].tolist() == [1, 3, 5]
        assert largest(lambda: pieces, sample, 0, 6)["w"].tolist() == []


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (0, 0),
        (7, 7),
        ("7", 7),
        (" 1_000 ", 1000),
        (7.6e6, 7_600_000),
        ("7.6e6", 7_600_000),
        ("7.6M", 7_600_000),
        ("7.6m", 7_600_000),
        ("12k", 12_000),
        ("0.01B", 10_000_000),
        ("2.8%", 280_000),
        ("0%", 0),
        ("100%", 10_000_000),
        ("33.33333%", 3_333_333),
        ("1e1%", 1_000_000),
        (0.028, 280_000),
        ("0.028", 280_000),
        (numpy.float32(0.25), 2_500_000),
        (0.0, 0),
        (1.0, 10_000_000),
        (1, 1),
        (2.0, 2),
    ],
)
def test_k_is_a_count_or_a_share(text, count):
    assert parse_k(text, 10_000_000) == count


@pytest.mark.parametrize(
    "k",
    [
        "x",
        "",
        "%",
        "M",
        "5 percent",
        "1.5",
        "2,8%",
        "nan%",
        "inf%",
        "infM",
        "inf",
        None,
        1.5,
        -0.5,
        True,
    ],
)
def test_a_k_that_is_no_number_is_an_error_that_shows_what_is_one(k):
    with pytest.raises(
        DeftxError, match=r"neither a count \(7600000, 7\.6M\) nor a share \(2\.8%, 0\.028\)"
    ) as caught:
        parse_k(k, 1000)
    assert repr(k) in str(caught.value)


@pytest.mark.parametrize("k", [-1, "-1", "-5%", 10_001, "1M", "120%", "101%", "100.01%"])
def test_a_k_out_of_range_is_an_error_that_gives_the_range(k):
    with pytest.raises(DeftxError, match=r"give 0 to 10,000, all that can be trained") as caught:
        parse_k(k, 10_000)
    assert "\n" not in str(caught.value)


def test_a_float_is_the_same_share_as_its_percentage_and_means_one_in_denoise_too():
    delta = {"w": torch.randn(20, 30, generator=torch.Generator().manual_seed(0))}
    assert as_lists(select(delta, 0.25)) == as_lists(select(delta, "25%"))
    assert select(delta, 0.25).k == 150
    assert denoise(delta, 0.9).ranks == denoise(delta, "90%").ranks == denoise(delta, "0.9").ranks


def test_a_selection_is_a_mapping_with_a_repr_of_one_line():
    selection = select({"a": torch.ones(3, 4), "b": torch.zeros(5)}, 7)
    assert (len(selection), list(selection), selection.k) == (2, ["a", "b"], 7)
    assert "c" not in selection
    assert repr(selection) == "SparseMask(k=7 in 2 tensors)"
    assert repr(selection["a"]) == "TensorMask(7 entries, shape=(3, 4))"


def test_a_k_out_of_range_is_refused_by_select():
    with pytest.raises(DeftxError, match="give 0 to 6"):
        select({"w": torch.ones(2, 3)}, 7)


def test_a_sample_of_the_candidates_that_misleads_is_made_up_for(monkeypatch):
    """All that is sampled is larger than the rest, or smaller: the k-th largest is not where the
    sample says."""
    monkeypatch.setattr(module, "SAMPLE", 10)
    for sampled in (100.0, 1e-3):
        entries = torch.rand(1000, generator=torch.Generator().manual_seed(1)) + 1
        entries[:: 1000 // 10 | 1] = sampled
        for k in (1, 9, 10, 11, 500, 990, 999):
            assert as_lists(select({"w": entries}, k)) == by_sorting({"w": entries}, k)


def test_more_candidates_than_there_was_room_for_are_kept_all_the_same(monkeypatch):
    """The sample meets none of the large entries, so the bar is lower than it could be and most
    entries reach it."""
    monkeypatch.setattr(module, "SAMPLE", 100)
    values = torch.rand(5000, generator=torch.Generator().manual_seed(0)) + 5
    values[::51] = 0.5
    delta = {"a": values[:3000], "b": values[3000:]}
    assert as_lists(select(delta, 40)) == by_sorting(delta, 40)
