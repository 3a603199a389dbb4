"""One training step, ours beside the plain way: time, peak memory, and whether both take the same
step.

    python benchmarks/training.py [--shape small] [--repeat 3] [--only STEP]

The plain way computes what LT-SFT describes with the operations that come first to mind: the logits
of all positions, the penalty through autograd, a dense gradient for every weight, masked in phase
2, and AdamW over all of them. Both see the same masked batches and start from the same random
weights. Texts of a task are of lengths as reviews have them, padded to the longest of a batch. One
row has forward and backward pass alone in the place of the plain way: what comes on top of them is
what sparse tuning costs. Another has our own step in its place: what comes on top is what putting a
language into the weights and taking it out again costs, as where there are several sources. On the
GPU if there is one; without, it needs Linux, for the peak memory. The floor is the multiplications
of a forward and a backward pass, at the speed at which this machine multiplies matrices in that
precision.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from multiprocessing import get_context
from statistics import mean, median

import torch
from measure import (
    DEVICE,
    Measured,
    available,
    flops_per_second,
    now,
    options_of,
    peak_in_subprocess,
    print_peak,
    report,
)
from torch import Tensor, nn
from transformers import (
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
    XLMRobertaForSequenceClassification,
)

from deftx.core.parameters import parameter_groups
from deftx.core.select import SparseMask, select
from deftx.core.tensors import SparseTensor
from deftx.core.vector import SparseVector
from deftx.objectives.masked_lm import Masking, mask, masked_loss
from deftx.tasks.base import mean_loss
from deftx.tasks.classification import CLASSIFICATION
from deftx.training.embedding_rows import trainable_embedding_rows
from deftx.training.multi_source import in_language
from deftx.training.precision import autocast, bf16_pays
from deftx.training.sparse import sparse_tuning

RATE, L1, MASKED = 5e-5, 0.1, 0.15
PADDING = 1


@dataclass(frozen=True)
class Step:
    """A way to train: what takes a step on ids and labels and returns the loss, and the optimiser
    in it."""

    take: Callable[[Tensor, Tensor], float]
    optimiser: torch.optim.Optimizer

    def floats(self) -> int:
        """How many floats the optimiser keeps."""
        states = [value for state in self.optimiser.state.values() for value in state.values()]
        return sum(value.numel() for value in states if isinstance(value, Tensor) and value.dim())


@dataclass(frozen=True)
class Row:
    """What is measured: phase 1 or 2 of language ("mlm") or task training, in which precision, with
    which dropout, whether a language is in the weights for the step, and beside which of WAYS."""

    name: str
    kind: str = "mlm"
    phase: int = 1
    bf16: bool = False
    dropout: float = 0.0
    language: bool = False
    beside: str = "plain"


ROWS = (
    Row("MLM phase 1"),
    Row("MLM phase 1, dropout 0.1", dropout=0.1),
    Row("MLM phase 1, bf16", bf16=True),
    Row("MLM phase 2", phase=2),
    Row("MLM phase 2, beside forward and backward alone", phase=2, beside="bare"),
    Row("MLM phase 2, bf16", phase=2, bf16=True),
    Row("task phase 1", kind="task"),
    Row("task phase 2", kind="task", phase=2),
    Row(
        "task phase 2 with a language put in and out, beside our step without",
        kind="task",
        phase=2,
        language=True,
        beside="still",
    ),
)


@dataclass(frozen=True)
class Size:
    """A model and its batches, texts × tokens (of a task: at most); `used` of its vocabulary is
    what the corpus has."""

    width: int
    layers: int
    vocabulary: int
    used: int
    batch: tuple[int, int]
    task_batch: tuple[int, int]


SHAPES = {
    "small": Size(256, 4, 30_000, 5_000, (8, 128), (16, 128)),
    "base": Size(768, 12, 250_002, 20_000, (8, 256), (16, 128)),
    "large": Size(1024, 24, 250_002, 20_000, (8, 256), (16, 128)),
}


GIGABYTES = {"mlm": 21.0, "task": 12.0}  # that both ways take together at XLM-R base's shape


def floor(size: Size, row: Row) -> float:
    """The seconds that the multiplications take: of every layer and of attention, forward and
    backward, for every token but padding, and of the decoder at masked positions, which is
    frozen."""
    tokens = held(size, row)
    length = tokens / (size.batch if row.kind == "mlm" else size.task_batch)[0]
    layers = 3 * 2 * tokens * size.layers * (12 * size.width**2 + 2 * length * size.width)
    decoder = 2 * 2 * MASKED * tokens * size.width * size.vocabulary if row.kind == "mlm" else 0
    return (layers + decoder) / flops_per_second(torch.bfloat16 if row.bf16 else torch.float32)


def held(size: Size, row: Row) -> float:
    """How many tokens a batch has without padding, on average."""
    return mean(
        int((ids != PADDING).sum())
        for (ids, _), _ in zip(batches(size, row), range(20), strict=False)
    )


def build(size: Size, row: Row) -> nn.Module:
    """A random XLM-R of a size, its decoder untied and its head frozen as in language training;
    always the same."""
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.width // 64,
        intermediate_size=4 * size.width,
        max_position_embeddings=514,
        type_vocab_size=1,
        hidden_dropout_prob=row.dropout,
        attention_probs_dropout_prob=row.dropout,
        num_labels=3,
    )
    if row.kind == "task":
        return nn.Module.to(XLMRobertaForSequenceClassification(config), DEVICE)
    model = nn.Module.to(XLMRobertaForMaskedLM(config), DEVICE)
    model.lm_head.decoder.weight = nn.Parameter(model.lm_head.decoder.weight.detach().clone())
    for parameter in model.lm_head.parameters():
        parameter.requires_grad_(False)
    return model


def batches(size: Size, row: Row) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (ids, labels), the same for everyone who asks."""
    generator = torch.Generator().manual_seed(1)
    special, used = torch.arange(5), torch.arange(5, size.used)
    while True:
        ids = torch.randint(
            5, size.used, size.batch if row.kind == "mlm" else size.task_batch, generator=generator
        )
        if row.kind == "mlm":
            ids, labels = mask(ids, Masking(MASKED, special, 4, used), generator)
        else:
            labels = torch.randint(3, (len(ids),), generator=generator)
            # log-normal, 37 in the middle, 45 on average: as the tokens of the reviews of SMSA
            lengths = (
                (3.6 + 0.6 * torch.randn(len(ids), generator=generator))
                .exp()
                .clamp(8, ids.shape[1])
                .int()
            )
            ids = ids[:, : lengths.max()]
            ids[torch.arange(ids.shape[1]) >= lengths[:, None]] = PADDING
        yield ids.to(DEVICE), labels.to(DEVICE)


def selected(model: nn.Module, size: Size, seed: int = 2) -> SparseMask:
    """2.8% of all entries at random, in embedding rows that the corpus has."""
    generator = torch.Generator().manual_seed(seed)
    delta = {
        name: torch.randn(weight.shape, generator=generator)
        for name, weight in parameter_groups(model).trainable.items()
    }
    next(iter(delta.values()))[size.used :] = 0
    return select(delta, "2.8%")


def plain(model: nn.Module, size: Size, row: Row, stack: ExitStack) -> Step:
    """The plain way, as the module's docstring says."""
    body = parameter_groups(model).trainable
    start = {name: weight.detach().clone() for name, weight in body.items()}
    frozen = [
        weight for name, weight in parameter_groups(model).backbone.items() if name not in body
    ]
    for weight in frozen:
        weight.requires_grad_(False)
    masks = {}
    if row.phase == 2:
        masks = {name: torch.zeros_like(weight) for name, weight in body.items()}
        for name, places in selected(model, size).items():
            masks[name].view(-1)[places.indices.to(DEVICE)] = 1
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, RATE, weight_decay=0.0)
    pull = (
        L1 / sum(weight.numel() for weight in parameter_groups(model).backbone.values())
        if row.kind == "mlm"
        else 0.0
    )

    def step(ids: Tensor, labels: Tensor) -> float:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=row.bf16):
            loss = model(input_ids=ids, attention_mask=(ids != PADDING).long(), labels=labels).loss
        total = loss
        if pull:
            total = loss + pull * sum(
                (weight - start[name]).abs().sum() for name, weight in body.items()
            )
        total.backward()
        for name, kept in masks.items():
            body[name].grad *= kept
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        return loss.item()

    return Step(step, optimiser)


def loss_of(model: nn.Module, row: Row, ids: Tensor, labels: Tensor) -> Tensor:
    """Our loss of a batch."""
    if row.kind == "mlm":
        return masked_loss(model, ids, labels)
    return mean_loss(
        CLASSIFICATION,
        model,
        {"input_ids": ids, "attention_mask": (ids != PADDING).long(), "labels": labels},
    )


def ours(model: nn.Module, size: Size, row: Row, stack: ExitStack) -> Step:
    """What `deftx.training` does in a step, without the Trainer around it."""
    body = parameter_groups(model).trainable
    for name, weight in parameter_groups(model).backbone.items():
        weight.requires_grad_(name in body)
    head = [parameter for parameter in model.parameters() if parameter.requires_grad]
    head = [p for p in head if not any(p is weight for weight in body.values())]
    if row.phase == 1:
        rows = stack.enter_context(
            trainable_embedding_rows(model, torch.arange(size.used, device=DEVICE))
        )
        assert rows is not None
        moving = [rows.values if weight is rows.weight else weight for weight in body.values()]
    else:
        moving = stack.enter_context(sparse_tuning(model, selected(model, size))).parameters()
    start = [weight.detach().clone() for weight in moving]
    language = language_of(model, size) if row.language else None
    optimiser = torch.optim.AdamW([*moving, *head], RATE, weight_decay=0.0, fused=True)
    pull = (
        L1 / sum(weight.numel() for weight in parameter_groups(model).backbone.values())
        if row.kind == "mlm"
        else 0.0
    )

    def step(ids: Tensor, labels: Tensor) -> float:
        with in_language(model, language) if language else nullcontext():
            with autocast(DEVICE, row.bf16):
                loss = loss_of(model, row, ids, labels)
            loss.backward()
        if pull:
            for weight, before in zip(moving, start, strict=True):
                weight.grad.add_(torch.sign(weight.detach() - before), alpha=pull)
        nn.utils.clip_grad_norm_([*moving, *head], 1.0)
        optimiser.step()
        optimiser.zero_grad()
        return loss.item()

    return Step(step, optimiser)


def language_of(model: nn.Module, size: Size) -> SparseVector:
    """A language's vector of other entries than those that are tuned, small as differences are."""
    tensors = {
        name: SparseTensor(places.indices, 1e-3 * torch.randn(len(places.indices)), places.shape)
        for name, places in selected(model, size, seed=3).items()
    }
    return SparseVector(tensors, None).to(DEVICE)


def still(model: nn.Module, size: Size, row: Row, stack: ExitStack) -> Step:
    """Our own step without a language."""
    return ours(model, size, replace(row, language=False), stack)


def bare(model: nn.Module, size: Size, row: Row, stack: ExitStack) -> Step:
    """Forward and backward pass with our loss, a dense gradient for every weight, and nothing done
    with them."""
    body = parameter_groups(model).trainable
    for name, weight in parameter_groups(model).backbone.items():
        weight.requires_grad_(name in body)

    def step(ids: Tensor, labels: Tensor) -> float:
        with autocast(DEVICE, row.bf16):
            loss = loss_of(model, row, ids, labels)
        loss.backward()
        model.zero_grad()
        return loss.item()

    return Step(step, torch.optim.SGD(model.parameters(), RATE))  # never asked to step


WAYS = {"plain": plain, "bare": bare, "still": still, "ours": ours}


def compare(
    size: Size, row: Row, repeat: int, chosen: list[str]
) -> tuple[dict[str, float], dict[str, float], str]:
    """Median seconds of the `chosen` ways' steps, taken in turn in one process; the millions of
    floats that their optimisers keep; how far the weights are apart afterwards."""
    models = {way: build(size, row) for way in chosen}
    before = {
        name: weight.detach().clone()
        for name, weight in parameter_groups(models["ours"]).backbone.items()
    }
    seconds: dict[str, list[float]] = {way: [] for way in chosen}
    losses: dict[str, list[float]] = {way: [] for way in chosen}
    with ExitStack() as stack:
        steps = {way: WAYS[way](models[way], size, row, stack) for way in chosen}
        for _, batch in zip(range(1 + repeat), batches(size, row), strict=False):
            for way, step in steps.items():
                began = now()
                losses[way].append(step.take(*batch))
                seconds[way].append(now() - began)
        kept = {way: step.floats() / 1e6 for way, step in steps.items()}
    took = {way: median(times[1:]) for way, times in seconds.items()}
    if "plain" not in chosen or row.dropout:
        return took, kept, "random" if row.dropout else ""
    moved = {
        way: {n: w.detach() - before[n] for n, w in parameter_groups(model).backbone.items()}
        for way, model in models.items()
    }
    apart = sum((moved["ours"][n] - moved["plain"][n]).square().sum() for n in before).sqrt()
    length = sum(moved["plain"][n].square().sum() for n in before).sqrt()
    loss = max(abs(a - b) for a, b in zip(*losses.values(), strict=True))
    return took, kept, f"loss within {loss:.0e}, weights' way {float(apart / length):.0e} apart"


def two_steps(size: Size, row: Row, way: str) -> None:
    """Build a model and take two steps in one way: what the peak memory is measured of."""
    with ExitStack() as stack:
        step = WAYS[way](build(size, row), size, row, stack)
        for _, batch in zip(range(2), batches(size, row), strict=False):
            step.take(*batch)


def measured(row: Row, shape: str, repeat: int, plain_too: bool) -> Iterator[Measured]:
    """The rows for the time, and for what the optimiser keeps."""
    if row.bf16 and not bf16_pays(DEVICE):
        yield Measured(
            row.name, None, note="no bf16 here: the processor has no instructions for it"
        )
        return
    size, needed = SHAPES[shape], GIGABYTES[row.kind] if shape == "base" else 0.0
    fits = DEVICE.type == "cuda" or needed < available()
    ways = ["ours", row.beside] if plain_too and fits else ["ours"]
    with ProcessPoolExecutor(
        1, mp_context=get_context("spawn")
    ) as fresh:  # its memory is free again for the next row
        took, kept, same = fresh.submit(compare, size, row, repeat, ways).result()
    arguments = ["--shape", shape, "--peak", row.name]
    peaks = {way: peak_in_subprocess(*arguments, way) for way in took}
    texts, length = size.batch if row.kind == "mlm" else size.task_batch
    upto = "" if row.kind == "mlm" else "up to "
    note = f"{texts} × {upto}{length}, {held(size, row) / took['ours']:,.0f} tokens/s" + (
        f"; {same}" if same else ""
    )
    note += "" if fits else "; not the memory for the plain way"
    both = peaks["ours"], peaks.get(row.beside)
    yield Measured(
        row.name, took["ours"], took.get(row.beside), floor(size, row), gigabytes=both, note=note
    )
    if row.beside == "plain" and not (row.bf16 or row.dropout):
        yield Measured(f"{row.name}: optimiser", kept["ours"], kept.get("plain"), unit="M floats")


def main() -> None:
    """Parse, compare, report."""
    options = options_of(__doc__, SHAPES, 3).parse_args()
    if options.peak:
        row = next(row for row in ROWS if row.name == options.peak[0])
        return print_peak(lambda: two_steps(SHAPES[options.shape], row, options.peak[1]))
    rows = [row for row in ROWS if options.only in (None, row.name)]
    report(
        (
            m
            for r in rows
            for m in measured(r, options.shape, options.repeat, not options.ours_only)
        ),
        options,
    )


if __name__ == "__main__":
    main()
