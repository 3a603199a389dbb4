"""Vectors in files and in models, beside the plain way: `python benchmarks/vectors.py [--shape
small]`.

The plain way saves coordinate lists (an int64 for each dimension of each entry, and the values)
with `torch.save`, adds the values to apply and subtracts them to undo, and for another language
loads the base again. Both handle the same vectors: entries of differences as fine-tuning leaves
them, differences of float32 weights. The model is on the GPU if there is one, and the vectors that
are applied are there too.

The floors: for files, one pass of the checksum over what is stored (load), or of the memory over
what is coded (save); for weights, the bytes that must move: of every entry its index and value, and
the cache line it stands in, read and written; for languages, these and the multiplications of the
texts.
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measure import (
    DEVICE,
    Measured,
    alternate,
    bytes_per_second,
    flops_per_second,
    options_of,
    peak_in_subprocess,
    print_peak,
    report,
)
from torch import Tensor, nn
from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification

from deftx.core.apply import apply_temporarily
from deftx.core.parameters import parameter_groups
from deftx.core.select import select
from deftx.core.tensors import SparseTensor
from deftx.core.vector import SparseVector
from deftx.storage.vector_files import load, save

TASK, LANGUAGE, LANGUAGES = "5.118%", "2.77%", 5  # 14.2M and 7.7M of XLM-R base's 277M
SHAPES = {"small": (30_000, 256, 4), "base": (250_002, 768, 12), "large": (250_002, 1024, 24)}
TEXTS = (32, 32)  # that are classified in each language, and their tokens
LINE = 64  # bytes that memory moves at once


@dataclass(frozen=True)
class Step:
    """What both ways do, what is said of their results, and the seconds that cannot be avoided."""

    ours: Callable[[], Any]
    plain: Callable[[], Any]
    agree: Callable[[Any, Any], str]
    floor: Callable[[], float]


def build(shape: str) -> nn.Module:
    """A random classifier of XLM-R's kind."""
    torch.manual_seed(0)
    vocabulary, width, layers = SHAPES[shape]
    sizes = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "intermediate_size": 4 * width,
        "num_labels": 3,
    }
    config = XLMRobertaConfig(
        vocab_size=vocabulary, max_position_embeddings=514, type_vocab_size=1, **sizes
    )
    return XLMRobertaForSequenceClassification(config).eval()


def vector_of(model: nn.Module, k: str, seed: int) -> SparseVector:
    """The largest of Laplace-distributed changes, as far as float32 weights can follow them; on the
    CPU."""
    generator = torch.Generator().manual_seed(seed)
    delta = {}
    for name, weight in parameter_groups(model).trainable.items():
        change = torch.empty(weight.shape).exponential_(1 / 3e-4, generator=generator)
        change *= torch.randint(0, 2, weight.shape, generator=generator) * 2 - 1
        delta[name] = (weight.detach() + change) - weight.detach()
    chosen = select(delta, k)
    return SparseVector(
        {
            n: SparseTensor(p.indices, delta[n].view(-1)[p.indices], p.shape)
            for n, p in chosen.items()
        }
    )


def plain_save(vector: SparseVector, path: Path) -> None:
    """Coordinates and values, pickled."""
    tensors = vector.tensors.items()
    torch.save(
        {n: (torch.stack(torch.unravel_index(e.indices, e.shape)), e.values) for n, e in tensors},
        path,
    )


def plain_load(path: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """The same back."""
    found: dict[str, tuple[Tensor, Tensor]] = torch.load(path)
    return found


@torch.no_grad()
def plain_add(model: nn.Module, vector: SparseVector, sign: int) -> None:
    """Add the values to the weights, or subtract them."""
    weights = parameter_groups(model).backbone
    for name, entries in vector.tensors.items():
        weights[name].view(-1)[entries.indices] += sign * entries.values


def saving(shape: str, folder: Path) -> Step:
    """A task vector into files."""
    vector = vector_of(build(shape), TASK, 0)
    raw = sum(entries.indices.nbytes + entries.values.nbytes for entries in vector.tensors.values())
    return Step(
        lambda: save(vector, folder / "ours", force=True),
        lambda: plain_save(vector, folder / "plain.pt"),
        lambda ours, plain: "",
        lambda: raw / bytes_per_second(torch.device("cpu")),
    )


def loading(shape: str, folder: Path) -> Step:
    """The same out of them."""
    vector = vector_of(build(shape), TASK, 0)
    save(vector, folder / "ours", force=True)
    plain_save(vector, folder / "plain.pt")
    stored = (folder / "ours" / "vector.safetensors").read_bytes()

    def agree(ours: SparseVector, plain: Any) -> str:
        same = all(
            torch.equal(
                ours.tensors[name].values.view(torch.int32), entries.values.view(torch.int32)
            )
            and torch.equal(ours.tensors[name].indices, entries.indices)
            for name, entries in vector.tensors.items()
        )
        return "bit for bit" if same else "NOT WHAT WAS SAVED"

    return Step(
        lambda: load(folder / "ours"),
        lambda: plain_load(folder / "plain.pt"),
        agree,
        lambda: alternate([lambda: hashlib.sha256(stored)], 3)[0][0],
    )


def applying(shape: str, kinds: Sequence[str]) -> Step:
    """Vectors of these kinds into a model and out of it again."""
    model = build(shape)
    vectors = [vector_of(model, k, seed).to(DEVICE) for seed, k in enumerate(kinds)]
    nn.Module.to(model, DEVICE)
    before = {
        name: weight.detach().clone() for name, weight in parameter_groups(model).backbone.items()
    }

    def ours() -> None:
        with apply_temporarily(model, *vectors):
            pass

    def plain() -> None:
        for vector, sign in [*((v, 1) for v in vectors), *((v, -1) for v in reversed(vectors))]:
            plain_add(model, vector, sign)

    def changed_by(way: Callable[[], None]) -> int:
        for name, weight in parameter_groups(model).backbone.items():
            weight.data.copy_(before[name])
        way()
        return sum(
            int((weight != before[name]).sum())
            for name, weight in parameter_groups(model).backbone.items()
        )

    return Step(
        ours,
        plain,
        lambda *_: f"weights left changed: ours {changed_by(ours):,}, plain {changed_by(plain):,}",
        lambda: sum(map(moved, vectors)) / bytes_per_second(),
    )


def switching(shape: str, folder: Path) -> Step:
    """Texts classified in several languages, each of its vector and the task's: from a base that is
    loaded once."""
    model = build(shape)
    vectors = [vector_of(model, LANGUAGE, 1 + seed) for seed in range(LANGUAGES)]
    task = vector_of(model, TASK, 0)
    model.save_pretrained(folder / "base")
    nn.Module.to(model, DEVICE)
    ids = torch.randint(5, SHAPES[shape][0], TEXTS, generator=torch.Generator().manual_seed(0)).to(
        DEVICE
    )
    _, width, layers = SHAPES[shape]

    @torch.no_grad()
    def ours() -> list[Tensor]:
        answers = []
        for language in vectors:
            with apply_temporarily(model, language, task):
                answers.append(model(input_ids=ids).logits)
        return answers

    @torch.no_grad()
    def plain() -> list[Tensor]:
        answers = []
        for language in vectors:
            own = nn.Module.to(
                XLMRobertaForSequenceClassification.from_pretrained(folder / "base").eval(), DEVICE
            )
            for vector in (language, task):
                plain_add(own, vector.to(DEVICE), 1)
            answers.append(own(input_ids=ids).logits)
        return answers

    def floor() -> float:
        products = 2 * TEXTS[0] * TEXTS[1] * layers * (12 * width**2 + 2 * TEXTS[1] * width)
        move = sum(moved(language) + moved(task) for language in vectors) / bytes_per_second()
        return LANGUAGES * products / flops_per_second(torch.float32) + move

    def agree(ours: list[Tensor], plain: list[Tensor]) -> str:
        furthest = max(float((a - b).abs().max()) for a, b in zip(ours, plain, strict=True))
        return f"answers within {furthest:.0e}"

    return Step(ours, plain, agree, floor)


STEPS: dict[str, Callable[[str, Path], Step]] = {
    "save a task vector": saving,
    "load it": loading,
    "apply a task vector, and undo": lambda shape, _: applying(shape, [TASK]),
    "apply language and task vector, and undo": lambda shape, _: applying(shape, [LANGUAGE, TASK]),
    "five languages, 32 texts in each": switching,
}


def moved(vector: SparseVector) -> float:
    """The bytes that applying and undoing must move: indices and values or old values, read or
    written; and all cache lines with an entry, read and written both times."""
    total = 0.0
    for entries in vector.tensors.values():
        touched = len((entries.indices // (LINE // entries.values.itemsize)).unique_consecutive())
        total += 2 * 2 * touched * LINE + 2 * entries.indices.nbytes + 3 * entries.values.nbytes
    return total


def measured(name: str, shape: str, repeat: int, folder: Path) -> Iterator[Measured]:
    """The row of a step, and for saving that of the files' size."""
    step = STEPS[name](shape, folder)
    times, results = alternate([step.ours, step.plain], repeat)
    note, floor = step.agree(*results), step.floor()
    del step, results
    peaks = [peak_in_subprocess("--shape", shape, "--peak", name, way) for way in ("ours", "plain")]
    yield Measured(name, *times, floor, gigabytes=(peaks[0], peaks[1]), note=note)
    if STEPS[name] is saving:
        ours = sum(file.stat().st_size for file in (folder / "ours").rglob("*")) / 1e6
        yield Measured("its size", ours, (folder / "plain.pt").stat().st_size / 1e6, unit="MB")


def main() -> None:
    """Parse, compare, report."""
    options = options_of(__doc__, SHAPES, 5).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.peak:
            return print_peak(
                getattr(STEPS[options.peak[0]](options.shape, Path(folder)), options.peak[1])
            )
        names = [name for name in STEPS if options.only in (None, name)]
        report(
            (m for n in names for m in measured(n, options.shape, options.repeat, Path(folder))),
            options,
        )


if __name__ == "__main__":
    main()
