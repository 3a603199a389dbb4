"""10,000 damaged and hostile files of every kind that is read: an error of one line or a valid
result, nothing else."""

import hashlib
import json
import random
import resource
import shutil
import warnings
import zipfile

import pytest
import torch
from lt_sft_files import coded, sparse
from storage_examples import example

from deftx.core.tensors import SparseTensor
from deftx.core.vector import SparseVector
from deftx.errors import DeftxError
from deftx.experiments.recipe import load_recipe
from deftx.interop import lt_sft
from deftx.interop.convert import read
from deftx.storage.tensors import load_tensors, save_tensors
from deftx.storage.vector_files import load, save

pytestmark = pytest.mark.once


MEMORY = 300 << 10  # KiB that all of it together may need beyond the start

RECIPE = """
base: some/base
seeds: [0, 1]
languages: {ind: ind.txt, min: [a.txt, b.txt]}
source: ind
train: train.tsv
valid: valid.tsv
test: {min: min.tsv}
language: &fit {k: 5%, training: {max_steps: 20, min_steps: 0}}
variants:
  deftx: {}
  lt-sft: {language: {method: lt-sft}, task: {method: lt-sft, k: 100}}
"""

NASTY = [
    -1,
    0,
    2**31,
    2**63,
    2**70,
    1e308,
    None,
    True,
    "",
    "../../x",
    "/dev/zero",
    "\0",
    "a\nb",
    [],
    {},
    [[]],
    "9" * 5000,
]
NASTY_TEXT = [
    b"-1",
    b"99999999999999999999",
    b"1e999",
    b"NaN",
    b"null",
    b'"../x"',
    b"[" * 3000,
    b"{}",
    b"\0",
    b"\xff",
]
NASTY_YAML = [
    b"2024-99-99",
    b"!!python/object/apply:os.getcwd []",
    b"*fit",
    b"&a [*a]",
    b"? [x]",
    b"%",
    b"\t",
    b"~nobody/x",
]


# --- damage ---


def cut(draw, data):
    return data[: draw.randrange(len(data) + 1)]


def flip(draw, data):
    changed = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 8])):
        changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def splice(draw, data):
    """Something else, from here or from nowhere, in place of a part."""
    start, length = draw.randrange(len(data)), draw.choice([0, 1, 2, 4, 8, 64])
    other = draw.randrange(len(data))
    new = draw.choice(
        [
            b"",
            draw.randbytes(length),
            data[other : other + length],
            b"\xff" * length,
            b"\0" * length,
        ]
    )
    return data[:start] + new + data[start + length :]


def numbers(draw, data):
    """A nasty value in place of a number that is written out, in JSON or YAML or the head of a
    tensor file."""
    places = [place for place in range(len(data)) if data[place : place + 1].isdigit()]
    if not places:
        return flip(draw, data)
    start = end = draw.choice(places)
    while data[end : end + 1].isdigit():
        end += 1
    return data[:start] + draw.choice(NASTY_TEXT + NASTY_YAML) + data[end:]


DAMAGES = [cut, flip, flip, splice, splice, numbers]


def damage(draw, path):
    data = path.read_bytes()
    for _ in range(draw.choice([1, 1, 1, 2, 5])):
        data = draw.choice(DAMAGES)(draw, data) if data else data
    path.write_bytes(data)


def reseal(home):
    """Make the checksums fit the files again, as a forger would."""
    content = json.loads((home / "vector.json").read_text())
    content["sha256"] = hashlib.sha256((home / "vector.safetensors").read_bytes()).hexdigest()
    content["head"]["sha256"] = hashlib.sha256((home / "head.safetensors").read_bytes()).hexdigest()
    (home / "vector.json").write_text(json.dumps(content))


# --- kinds of files: each damages a copy of what `start` made, and reads it ---


class Folders:
    """A vector folder: any of its files, with the checksums as they were or made to fit again, or a
    link."""

    def start(self, home):
        save(example(), home)
        self.files = {path.name: path.read_bytes() for path in home.iterdir()}

    def attack(self, draw, home):
        for name, data in self.files.items():
            (home / name).unlink(missing_ok=True)
            (home / name).write_bytes(data)
        file = home / draw.choice(
            ["vector.safetensors", "vector.safetensors", "head.safetensors", "vector.json"]
        )
        how = draw.randrange(20)
        if how == 0:
            file.unlink()
            file.symlink_to(
                draw.choice(["/dev/zero", "/dev/full", file.name, "..", "/etc/hostname", "gone"])
            )
        elif how < 6:
            self.misstate(draw, home / "vector.json")
        else:
            damage(draw, file)
            if file.name != "vector.json" and how < 18:
                reseal(home)
        return load(home)

    def misstate(self, draw, path):
        """A nasty value or name somewhere in the manifest."""
        content = json.loads(path.read_text())
        place = content
        while True:
            key = draw.choice(list(place) if isinstance(place, dict) else range(len(place)))
            if not (isinstance(place[key], dict | list) and place[key]) or draw.randrange(5) == 0:
                break
            place = place[key]
        if isinstance(place, dict) and draw.randrange(4) == 0:
            place[draw.choice(["../x", "", "a\nb", "x" * 600, "\0"])] = place.pop(key)
        else:
            place[key] = draw.choice(NASTY)
        path.write_text(json.dumps(content))


class LtSft:
    """A file of LT-SFT's, of the zip form or the older one. Half of the zips get a right checksum
    again."""

    def __init__(self, zipped):
        self.zipped = zipped

    def start(self, home):
        home.mkdir()
        diffs = {f"roberta.layer.{i}.weight": coded(sparse((4, 5), i)) for i in range(3)}
        content = {"diffs": diffs, "abs": {"classifier.weight": torch.ones(2, 5)}}
        torch.save(content, home / "plain", _use_new_zipfile_serialization=self.zipped)
        self.data = (home / "plain").read_bytes()

    def attack(self, draw, home):
        path = home / lt_sft.FILE
        path.write_bytes(self.data)
        if self.zipped and draw.randrange(2):
            self.rewrite(draw, path)
        else:
            damage(draw, path)
        return read(home)

    def rewrite(self, draw, path):
        """Damage one part of the archive, and write the archive anew around it."""
        with zipfile.ZipFile(path) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        name = draw.choice(
            [name for name in parts if name.endswith("data.pkl") or "/data/" in name]
        )
        inner = path.with_name("part")
        inner.write_bytes(parts[name])
        damage(draw, inner)
        with zipfile.ZipFile(
            path, "w", draw.choice([zipfile.ZIP_STORED] * 9 + [zipfile.ZIP_DEFLATED])
        ) as archive:
            for part, data in parts.items():
                archive.writestr(part, inner.read_bytes() if part == name else data)


class Deltas:
    """What phase 1 left in a folder of work; one that cannot be read counts as none."""

    def start(self, home):
        home.mkdir()
        save_tensors(
            home / "good",
            {"a": torch.randn(4, 5), "b": torch.ones(3)},
            {"key": "k", "log": {"steps": 3}},
        )

    def attack(self, draw, home):
        shutil.copyfile(home / "good", home / "phase1.safetensors")
        damage(draw, home / "phase1.safetensors")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the word that it is damaged
            found = load_tensors(home / "phase1.safetensors")
        assert found is None or all(
            isinstance(tensor, torch.Tensor) for tensor in found[0].values()
        )


class Recipes:
    """A recipe, and one with references."""

    def start(self, home):
        home.mkdir()

    def attack(self, draw, home):
        text = RECIPE.encode()
        if draw.randrange(4) == 0:
            text = text.replace(b"ind.txt", draw.choice(NASTY_YAML))
        (home / "recipe.yaml").write_bytes(text)
        damage(draw, home / "recipe.yaml")
        load_recipe(home / "recipe.yaml")


# how many of each in ten
KINDS = {
    "folders": (Folders, 4),
    "zips": (lambda: LtSft(True), 2),
    "older": (lambda: LtSft(False), 2),
}
KINDS |= {"deltas": (Deltas, 1), "recipes": (Recipes, 1)}


def assert_valid(vector):
    assert isinstance(vector, SparseVector)
    tensors = [entries.values for entries in vector.tensors.values()] + list(
        vector.head.tensors.values() if vector.head else []
    )
    assert all(tensor.isfinite().all() for tensor in tensors)
    for entries in vector.tensors.values():
        assert isinstance(entries, SparseTensor)
        assert entries.indices.shape == entries.values.shape
        assert (entries.indices.diff() > 0).all()
        assert not len(entries.indices) or (
            entries.indices[0] >= 0 and entries.indices[-1] < entries.numel
        )


def fuzz(tmp_path, kind, seeds):
    """Attack once for each seed; how many of the attacks were refused, and how many read."""
    make, _ = KINDS[kind]
    target, home = make(), tmp_path / kind
    target.start(home)
    messages = []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in seeds:
        try:
            found = target.attack(random.Random(seed), home)
        except DeftxError as error:
            messages.append(str(error))
        except BaseException as error:
            raise AssertionError(f"{kind}, seed {seed}: {type(error).__name__}: {error}") from error
        else:
            if found is not None:
                assert_valid(found)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY
    assert all("\n" not in message and len(message) < 3000 for message in messages)
    return len(messages)


@pytest.mark.filterwarnings("ignore::UserWarning:deftx")
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_gives_a_clean_error_or_a_valid_result(tmp_path, kind):
    count = 40 * KINDS[kind][1]
    refused = fuzz(tmp_path, kind, range(count))
    assert refused < count, "none was harmless: the start is damaged itself"
    assert kind == "deltas" or refused > count / 5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:deftx")
def test_ten_thousand_damaged_files_give_clean_errors_or_valid_results(tmp_path):
    for kind, (_, share) in KINDS.items():
        fuzz(tmp_path, kind, range(1000, 1000 + 1000 * share))


def test_references_that_multiply_in_a_recipe_are_refused(tmp_path):
    levels = [
        "a0: &a0 [x, x]",
        *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)),
    ]
    (tmp_path / "recipe.yaml").write_text("\n".join(levels))
    with pytest.raises(DeftxError, match="references"):
        load_recipe(tmp_path / "recipe.yaml")


def test_a_tensor_file_whose_header_announces_more_than_there_is_is_refused(tmp_path):
    save(example(), tmp_path / "v")
    for size in (2**20, 2**40, 2**63):
        (tmp_path / "v" / "vector.safetensors").write_bytes(size.to_bytes(8, "little") + b"{}")
        reseal(tmp_path / "v")
        with pytest.raises(DeftxError, match=r"vector\.safetensors"):
            load(tmp_path / "v")
