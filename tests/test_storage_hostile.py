"""Damaged and hostile vector folders: a clean error that names the file, or a valid vector, and
nothing else."""

import hashlib
import json
import os
import random

import pytest
import torch
from safetensors.torch import load_file, save_file
from storage_examples import assert_same, example

from deftx.errors import DeftxError
from deftx.storage.codec import encode_indices, encode_values
from deftx.storage.vector_files import load, save

pytestmark = pytest.mark.once


FILES = ("vector.safetensors", "head.safetensors", "vector.json")


@pytest.fixture
def folder(tmp_path):
    save(example(), tmp_path / "v")
    return tmp_path / "v"


def reseal(folder):
    """Make the checksums fit again, as a forger would."""
    path = folder / "vector.json"
    content = json.loads(path.read_text())
    content["sha256"] = hashlib.sha256((folder / "vector.safetensors").read_bytes()).hexdigest()
    content["head"]["sha256"] = hashlib.sha256(
        (folder / "head.safetensors").read_bytes()
    ).hexdigest()
    path.write_text(json.dumps(content))


def assert_refused(folder, file, message=None):
    with pytest.raises(DeftxError, match=message) as error:
        load(folder)
    assert str(folder / file) in str(error.value)
    assert "\n" not in str(error.value)


def flipped(data, position):
    changed = bytearray(data)
    changed[position // 8] ^= 1 << position % 8
    return changed


def assert_valid_or_refused(folder, file):
    try:
        vector = load(folder)
    except DeftxError as error:
        message = str(error)
    else:
        assert_valid(vector)
        return
    assert file in message
    assert "\n" not in message


def assert_valid(vector):
    for entries in vector.tensors.values():
        indices = entries.indices.tolist()
        assert indices == sorted(set(indices))
        assert all(0 <= index < entries.numel for index in indices)
        assert entries.values.shape == entries.indices.shape
        assert entries.values.isfinite().all()


@pytest.mark.parametrize("file", FILES[:2])
def test_every_damage_to_a_tensor_file_is_noticed(folder, file):
    data = (folder / file).read_bytes()
    for position in random.Random(0).sample(range(len(data) * 8), 200):
        (folder / file).write_bytes(flipped(data, position))
        assert_refused(folder, file, "SHA-256")
    for size in (0, 1, 8, len(data) // 2, len(data) - 1):
        (folder / file).write_bytes(data[:size])
        assert_refused(folder, file, "SHA-256")


@pytest.mark.parametrize("file", FILES[:2])
@pytest.mark.parametrize("part", ["header", "data"])
def test_flipped_bits_with_forged_checksums_give_a_clean_error_or_a_valid_vector(
    folder, file, part
):
    data = (folder / file).read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    span = range(start) if part == "header" else range(start, len(data))
    draw = random.Random(1)
    for _ in range(200):
        (folder / file).write_bytes(flipped(data, 8 * draw.choice(span) + draw.randrange(8)))
        reseal(folder)
        assert_valid_or_refused(folder, file)


def test_flipped_bits_in_the_json_give_a_clean_error_or_a_valid_vector(folder):
    data = (folder / "vector.json").read_bytes()
    for position in random.Random(2).sample(range(len(data) * 8), 200):
        (folder / "vector.json").write_bytes(flipped(data, position))
        assert_valid_or_refused(folder, folder.name)


def reverse_labels(content):
    content["head"]["labels"].reverse()


def change_length(content):
    content["info"]["training"] = {"length": 7}


def transpose(content):
    shapes = [tensor["shape"] for tensor in content["tensors"].values()]
    next(shape for shape in shapes if len(shape) == 2 and shape[0] != shape[1]).reverse()


@pytest.mark.parametrize("change", [reverse_labels, change_length, transpose])
def test_a_manifest_that_was_changed_is_noticed_though_it_is_of_the_right_form(folder, change):
    path = folder / "vector.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content))  # written otherwise, it says the same
    load(folder)
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(
        DeftxError, match=r"vector.json: the file is damaged, or was changed by hand"
    ):
        load(folder)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "3",
        '{"format_version": 1}',
        "[" * 200_000,
        '{"a":' * 200_000,
        "9" * 10_000,
        '{"format_version": NaN}',
        "\0",
        "\ufeff{}",
    ],
    ids=lambda text: repr(text[:12]),
)
def test_text_that_is_no_manifest_is_refused(folder, text):
    (folder / "vector.json").write_text(text)
    assert_refused(folder, "vector.json")


def test_a_manifest_that_is_not_text_is_refused(folder):
    (folder / "vector.json").write_bytes(b'{"\xff": 1}')
    assert_refused(folder, "vector.json", "utf-8")


WORDS = "embeddings.word_embeddings.weight"


def tensor_form(**change):
    return {"tensors": {WORDS: {"shape": [500, 40], "count": 5, "dtype": "F32"} | change}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "upgrade deftx"),
        ({"format_version": 0}, "format_version"),
        ({"format_version": "1"}, "format_version"),
        ({"surprise": 1}, "surprise"),
        ({"info": []}, "info"),
        (
            {"info": {"base_fingerprint": ["ab"]}},
            "'info.base_fingerprint': Input should be a valid string",
        ),
        ({"info": {"kind": ["a"]}}, "'info.kind': Input should be a valid string"),
        ({"info": {"task": 3}}, "'info.task': Input should be a valid string"),
        ({"info": {"ranks": [1]}}, "'info.ranks': Input should be a valid dictionary"),
        ({"info": {"ranks": {"a": "b"}}}, "'info.ranks.a': Input should be a valid integer"),
        ({"info": {"training": None}}, "'info.training': Input should be"),
        (
            {"info": {"training": {"length": -5}}},
            "'info.training.length': Input should be greater than or equal to 1",
        ),
        (
            {"info": {"training": {"length": "x"}}},
            "'info.training.length': Input should be a valid integer",
        ),
        ({"info": {"note": "\ud800"}}, "surrogates not allowed"),
        ({"sha256": None}, "sha256"),
        ({"head": {"labels": ["a"]}}, "head.sha256"),
        (tensor_form(shape=[500, -40]), "shape.1"),
        (tensor_form(shape=[500, 40.0]), "shape.1"),
        (tensor_form(shape=[500, True]), "shape.1"),
        (tensor_form(shape=[2**60, 2**60]), "shape.0"),
        (tensor_form(shape=[1] * 1000), "shape"),
        (tensor_form(count=-1), "count"),
        (tensor_form(count="5"), "count"),
        (tensor_form(dtype="F64"), "dtype"),
        (tensor_form(dtype=None), "dtype"),
        ({"tensors": {WORDS: {"shape": [500, 40], "count": 5}}}, f"{WORDS}.dtype.*Field required"),
        ({"tensors": {"../" + WORDS: {"shape": [], "count": 0, "dtype": "F32"}}}, "tensors"),
        ({"tensors": {"a\nb": {"shape": [], "count": 0, "dtype": "F32"}}}, "tensors"),
        ({"tensors": {"": {"shape": [], "count": 0, "dtype": "F32"}}}, "tensors"),
        ({"tensors": {"a\n": {"shape": [], "count": 0, "dtype": "F32"}}}, "tensors"),
    ],
)
def test_a_manifest_of_another_form_is_refused(folder, change, message):
    path = folder / "vector.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert_refused(folder, "vector.json", message)


def edit(folder, file, change):
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / file).items()}
    change(tensors)
    save_file(tensors, folder / file)
    reseal(folder)


INDICES, VALUES = f"{WORDS}.indices", f"{WORDS}.values"


def coded(*indices):
    return torch.from_numpy(encode_indices(torch.tensor(indices).numpy(), 2**60))


def values(tensor):
    return torch.from_numpy(encode_values(tensor))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({INDICES: coded(0, 1, 2, 3, 20_000)}, f"{WORDS}.*20000 entries"),
        ({INDICES: coded(0, 1, 2, 3)}, "5 are announced, 4 are there"),
        ({INDICES: torch.tensor([0, 1, 128, 1000, 19_999])}, "I64, not U8"),
        ({INDICES: torch.tensor([0, 1, 2, 3, 128], dtype=torch.uint8)}, "cut off"),
        ({VALUES: values(torch.ones(4))}, f"{WORDS}.*does not announce 20 bytes"),
        ({VALUES: values(torch.ones(5, dtype=torch.float16))}, "does not announce 20 bytes"),
        ({VALUES: values(torch.ones(5))[:-1]}, "cut off"),
        ({VALUES: torch.ones(5)}, "F32, not U8"),
        ({VALUES: torch.ones(0, dtype=torch.uint8)}, "cut off"),
        (
            {VALUES: values(torch.full((5,), float("nan")))},
            f"{VALUES.removesuffix('.values')}.*not finite",
        ),
        ({VALUES: values(torch.tensor([0, 0, 0, 0, -float("inf")]))}, "not finite"),
        ({"extra": torch.ones(1)}, "'extra'"),
        ({VALUES: None}, WORDS),
    ],
)
def test_tensors_that_do_not_fit_are_refused(folder, change, message):
    def apply(tensors):
        tensors |= change
        for name in [name for name, tensor in tensors.items() if tensor is None]:
            del tensors[name]

    edit(folder, "vector.safetensors", apply)
    assert_refused(folder, "vector.safetensors", message)


@pytest.mark.parametrize(
    "change",
    [
        {"classifier.bias": torch.ones(2)},
        {"other": torch.ones(1)},
        {"classifier.bias": torch.full((3,), torch.nan)},
    ],
)
def test_a_head_that_does_not_fit_is_refused(folder, change):
    edit(folder, "head.safetensors", lambda tensors: tensors.update(change))
    assert_refused(folder, "head.safetensors")


@pytest.mark.parametrize("file", FILES[:2])
def test_a_missing_file_is_named(folder, file):
    (folder / file).unlink()
    assert_refused(folder, file, "missing")


@pytest.mark.parametrize("file", FILES[:2])
def test_what_is_no_ordinary_file_is_not_opened(folder, file):
    (folder / file).unlink()
    os.mkfifo(folder / file)
    assert_refused(folder, file, "missing")


def test_files_of_two_vectors_do_not_mix(tmp_path, folder):
    save(example(1), tmp_path / "other")
    (tmp_path / "other" / "vector.safetensors").replace(folder / "vector.safetensors")
    assert_refused(folder, "vector.safetensors", "SHA-256")


def test_linked_files_as_in_the_hub_cache_are_read(tmp_path, folder):
    (tmp_path / "snapshot").mkdir()
    for file in FILES:
        (tmp_path / "snapshot" / file).symlink_to(folder / file)
    assert_same(load(tmp_path / "snapshot"), example())
