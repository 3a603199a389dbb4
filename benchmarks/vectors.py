"""Saving, loading, applying and undoing vectors, beside the plain way: `python benchmarks/vectors.py [--shape small]`.

The plain way saves coordinate lists (an int64 for each dimension of each entry, and the values) with `torch.save`,
adds the values to apply and subtracts them to undo. Both handle the same vectors: entries of differences as
fine-tuning leaves them, differences of float32 weights. The model is on the GPU if there is one, and the vectors that
are applied are there too.

The floors: for files, one pass of the checksum over what is stored (load), or of the memory over what is coded (save);
for weights, the bytes that must move: of every entry its index and value, and the cache line it stands in, read and
written.
"""

import argparse
import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from measure import DEVICE, alternate, bytes_per_second, machine, print_table
from torch import Tensor, nn
from transformers import XLMRobertaConfig, XLMRobertaModel

from deftx.core.backbone import backbone, tunable
from deftx.core.compose import applied
from deftx.core.select import select
from deftx.core.vector import Entries, SparseVector
from deftx.storage.files import load, save

TASK, LANGUAGE = "5.118%", "2.77%"  # 14.2M and 7.7M of XLM-R base's 277M
SHAPES = {"small": (30_000, 256, 4), "base": (250_002, 768, 12), "large": (250_002, 1024, 24)}
LINE = 64  # bytes that memory moves at once


def build(shape: str) -> nn.Module:
    """A random model of XLM-R's kind."""
    torch.manual_seed(0)
    vocabulary, width, layers = SHAPES[shape]
    sizes = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "intermediate_size": 4 * width,
    }
    config = XLMRobertaConfig(vocab_size=vocabulary, max_position_embeddings=514, type_vocab_size=1, **sizes)
    return XLMRobertaModel(config, add_pooling_layer=False)


def vector_of(model: nn.Module, k: str, seed: int) -> SparseVector:
    """The largest of Laplace-distributed changes, as far as float32 weights can follow them; on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    delta = {}
    for name, weight in tunable(model).items():
        change = torch.empty(weight.shape).exponential_(1 / 3e-4, generator=generator)
        change *= torch.randint(0, 2, weight.shape, generator=generator) * 2 - 1
        delta[name] = (weight.detach() + change) - weight.detach()
    chosen = select(delta, k)
    return SparseVector({n: Entries(p.indices, delta[n].view(-1)[p.indices], p.shape) for n, p in chosen.items()})


def plain_save(vector: SparseVector, path: Path) -> None:
    """Coordinates and values, pickled."""
    tensors = vector.tensors.items()
    torch.save({n: (torch.stack(torch.unravel_index(e.indices, e.shape)), e.values) for n, e in tensors}, path)


def plain_load(path: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """The same back."""
    found: dict[str, tuple[Tensor, Tensor]] = torch.load(path)
    return found


@torch.no_grad()
def plain_add(model: nn.Module, vector: SparseVector, sign: int) -> None:
    """Add the values to the weights, or subtract them."""
    weights = backbone(model)
    for name, entries in vector.tensors.items():
        weights[name].view(-1)[entries.indices] += sign * entries.values


def files(vector: SparseVector, folder: Path, repeat: int) -> Iterator[list[str]]:
    """Rows for saving, loading and size."""
    ours, plain = folder / "ours", folder / "plain.pt"
    (took, of_plain), _ = alternate([lambda: save(vector, ours, force=True), lambda: plain_save(vector, plain)], repeat)
    raw = sum(entries.indices.nbytes + entries.values.nbytes for entries in vector.tensors.values())
    yield timed("save", took, of_plain, raw / bytes_per_second(torch.device("cpu")), "")
    (took, of_plain), (found, _) = alternate([lambda: load(ours), lambda: plain_load(plain)], repeat)
    same = all(
        torch.equal(found.tensors[name].values.view(torch.int32), entries.values.view(torch.int32))
        and torch.equal(found.tensors[name].indices, entries.indices)
        for name, entries in vector.tensors.items()
    )
    stored = (ours / "vector.safetensors").read_bytes()
    (floor,), _ = alternate([lambda: hashlib.sha256(stored)], repeat)
    yield timed("load", took, of_plain, floor, f"bit for bit: {same}")
    sizes = [sum(file.stat().st_size for file in ours.rglob("*")) / 1e6, plain.stat().st_size / 1e6]
    yield ["size", f"{sizes[0]:.1f} MB", "", f"{sizes[1]:.1f} MB", f"{sizes[1] / sizes[0]:.1f}", ""]


def weights(model: nn.Module, vectors: list[SparseVector], repeat: int) -> Iterator[list[str]]:
    """Rows for applying and undoing a task vector, alone and on a language vector."""
    before = {name: weight.detach().clone() for name, weight in backbone(model).items()}
    task, language = vectors

    def left() -> str:
        wrong = sum(int((weight != before[name]).sum()) for name, weight in backbone(model).items())
        return f"{wrong:,} weights changed"

    def ours(*chosen: SparseVector) -> None:
        with applied(model, *chosen):
            pass

    def plain(*chosen: SparseVector) -> None:
        for vector, sign in [*((v, 1) for v in chosen), *((v, -1) for v in reversed(chosen))]:
            plain_add(model, vector, sign)

    for name, chosen in {"apply and undo": [task], "language and task, and undo": [language, task]}.items():
        (took,), _ = alternate([lambda chosen=chosen: ours(*chosen)], repeat)
        after = left()
        (of_plain,), _ = alternate([lambda chosen=chosen: plain(*chosen)], repeat)
        floor = sum(map(moved, chosen)) / bytes_per_second()
        yield timed(name, took, of_plain, floor, f"ours: {after}; plain: {left()}")
        for place, weight in backbone(model).items():
            weight.data.copy_(before[place])


def moved(vector: SparseVector) -> float:
    """The bytes that applying and undoing must move: indices and values or old values, read or written; and all
    cache lines with an entry, read and written both times."""
    total = 0.0
    for entries in vector.tensors.values():
        touched = len((entries.indices // (LINE // entries.values.itemsize)).unique_consecutive())
        total += 2 * 2 * touched * LINE + 2 * entries.indices.nbytes + 3 * entries.values.nbytes
    return total


def timed(name: str, ours: float, plain: float, floor: float, after: str) -> list[str]:
    """A row of the table."""
    return [name, f"{ours:.3f} s", f"{floor:.3f} s", f"{plain:.3f} s", f"{plain / ours:.1f}", after]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="base", help="of XLM-R base, XLM-R large or something small")
    parser.add_argument("--repeat", type=int, default=5, help="rounds of both ways")
    options = parser.parse_args()
    model = build(options.shape)
    vectors = [vector_of(model, k, seed) for seed, k in enumerate([TASK, LANGUAGE])]
    print(f"{machine()}; shape {options.shape}, median of {options.repeat}")
    print(f"{vectors[0].k:,} entries in the task vector, {vectors[1].k:,} in the language vector\n")
    with tempfile.TemporaryDirectory() as folder:
        rows = list(files(vectors[0], Path(folder), options.repeat))
    rows += weights(nn.Module.to(model, DEVICE), [vector.to(DEVICE) for vector in vectors], options.repeat)
    print_table(["", "ours", "floor", "plain", "ratio", "after it"], rows)


if __name__ == "__main__":
    main()
