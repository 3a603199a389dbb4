"""Saving, loading, applying and undoing a vector, beside the plain way: `python benchmarks/vectors.py [--small]`.

The plain way saves coordinate lists (an int64 for each dimension of each entry, and the values) with `torch.save`,
adds the values to apply and subtracts them to undo. Both handle the same vector: entries of differences as fine-tuning
leaves them, differences of float32 weights.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from measure import alternate, print_table
from torch import Tensor, nn
from transformers import XLMRobertaConfig, XLMRobertaModel

from deftx.core.backbone import backbone, tunable
from deftx.core.compose import applied
from deftx.core.select import select
from deftx.core.vector import Entries, SparseVector
from deftx.storage.files import load, save

K = "5.118%"  # 14.2M of XLM-R base's 277M


def build(small: bool) -> nn.Module:
    """A random model at XLM-R base's shape, or a small one."""
    torch.manual_seed(0)
    vocabulary, width, layers = (30_000, 256, 4) if small else (250_002, 768, 12)
    sizes = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "intermediate_size": 4 * width,
    }
    config = XLMRobertaConfig(vocab_size=vocabulary, max_position_embeddings=514, type_vocab_size=1, **sizes)
    return XLMRobertaModel(config, add_pooling_layer=False)


def vector_of(model: nn.Module) -> SparseVector:
    """The largest of Laplace-distributed changes, as far as float32 weights can follow them."""
    generator = torch.Generator().manual_seed(1)
    delta = {}
    for name, weight in tunable(model).items():
        change = torch.empty(weight.shape).exponential_(1 / 3e-4, generator=generator)
        change *= torch.randint(0, 2, weight.shape, generator=generator) * 2 - 1
        delta[name] = (weight.detach() + change) - weight.detach()
    chosen = select(delta, K)
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


def files(vector: SparseVector, folder: Path, repeat: int) -> list[list[str]]:
    """Rows for saving, loading and size."""
    ours, plain = folder / "ours", folder / "plain.pt"
    (took, of_plain), _ = alternate([lambda: save(vector, ours, force=True), lambda: plain_save(vector, plain)], repeat)
    rows = [["save, s", f"{of_plain:.2f}", f"{took:.2f}", f"{of_plain / took:.1f}", ""]]
    (took, of_plain), (found, _) = alternate([lambda: load(ours), lambda: plain_load(plain)], repeat)
    same = all(
        torch.equal(found.tensors[name].values.view(torch.int32), entries.values.view(torch.int32))
        and torch.equal(found.tensors[name].indices, entries.indices)
        for name, entries in vector.tensors.items()
    )
    rows.append(["load, s", f"{of_plain:.2f}", f"{took:.2f}", f"{of_plain / took:.1f}", f"bit for bit: {same}"])
    sizes = [sum(file.stat().st_size for file in ours.rglob("*")) / 1e6, plain.stat().st_size / 1e6]
    rows.append(["size, MB", f"{sizes[1]:.1f}", f"{sizes[0]:.1f}", f"{sizes[1] / sizes[0]:.1f}", ""])
    return rows


def weights(model: nn.Module, vector: SparseVector, repeat: int) -> list[list[str]]:
    """Rows for applying and undoing, taken together with what is left of the vector afterwards."""
    before = {name: weight.detach().clone() for name, weight in backbone(model).items()}

    def left() -> str:
        wrong = sum(int((weight != before[name]).sum()) for name, weight in backbone(model).items())
        return f"{wrong:,} weights changed"

    def ours() -> None:
        with applied(model, vector):
            pass

    def plain() -> None:
        plain_add(model, vector, 1)
        plain_add(model, vector, -1)

    (took,), _ = alternate([ours], repeat)
    after = left()
    (of_plain,), _ = alternate([plain], repeat)
    return [
        [
            "apply and undo, s",
            f"{of_plain:.3f}",
            f"{took:.3f}",
            f"{of_plain / took:.1f}",
            f"ours: {after}; plain: {left()}",
        ]
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a small model, for a quick look")
    parser.add_argument("--repeat", type=int, default=5, help="rounds of both ways")
    options = parser.parse_args()
    model = build(options.small)
    vector = vector_of(model)
    with tempfile.TemporaryDirectory() as folder:
        rows = files(vector, Path(folder), options.repeat)
    rows += weights(model, vector, options.repeat)
    print(f"{vector.k:,} entries\n")
    print_table(["", "plain", "ours", "ratio", "after it"], rows)


if __name__ == "__main__":
    main()
