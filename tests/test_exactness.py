"""The method with everything left out that cannot matter gives what the method as it is written
gives.

The reference is Algorithm 1 from first principles: logits of all positions, the penalty through
autograd, dense gradients, AdamW over all that is tuned, an SVD of each matrix, a full sort of all
magnitudes, masks.
"""

from dataclasses import dataclass, field
from typing import Any

import pytest
import tiny
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from deftx.config import TrainingConfig, VectorConfig
from deftx.core.parameters import parameter_groups
from deftx.fit import fit
from deftx.objectives.masked_lm import masked_loss
from deftx.training.random_streams import derived_seed, generator

# Words of the text; the model has 75. No biases of keys: their gradient is rounding alone, and
# AdamW enlarges it.
IDS = torch.randint(5, 30, (6, 8), generator=torch.Generator().manual_seed(0))
STEPS = 6


@dataclass
class Fixed:
    """Masked language modelling on fixed text with fixed masks."""

    train: Any = field(default_factory=lambda: list(IDS))
    trained: list[set[str]] = field(
        default_factory=list
    )  # the parameters with a gradient, at each loss
    greater_is_better: bool = False
    metric: str = "loss"
    digest: str = "fixed"

    @property
    def vocabulary_used(self):
        return IDS.unique()

    def collate(self, examples, generator=None):
        return batch_of(torch.stack(examples))

    def loss_denominator(self, batch):
        return int((batch["labels"] >= 0).sum())

    def loss(self, model, batch):
        self.trained.append(
            {name for name, weight in model.named_parameters() if weight.requires_grad}
        )
        return masked_loss(model, batch["input_ids"], batch["labels"])

    def validate(self, model, batch_size):
        return {"loss": 1.0}


def batch_of(ids):
    return {"input_ids": ids, "labels": ids.where(ids % 3 == 0, -100)}


def made(change=None):
    """A tiny model at θ0 with a frozen head; `change` makes its embeddings what a test wants."""
    torch.manual_seed(0)
    model = tiny.modernbert()
    decoder = model.get_output_embeddings()
    decoder.weight = nn.Parameter(decoder.weight.detach().clone())
    if change == "strided":
        embeddings = model.get_input_embeddings()
        embeddings.weight = nn.Parameter(embeddings.weight.detach().mT.contiguous().mT)
        assert not embeddings.weight.is_contiguous()
    if change == "tied":  # to something else than the decoder, that is not used
        model.register_parameter("tie", model.get_input_embeddings().weight)
    inside = {id(weight) for weight in parameter_groups(model).backbone.values()}
    for weight in model.parameters():
        weight.requires_grad_(id(weight) in inside)
    return model


def settings(precision="fp32", rank="80%"):
    training = TrainingConfig(
        learning_rate=1e-2,
        batch_size=2,
        max_steps=STEPS,
        evaluate_every=99,
        l1=5.0,
        precision=precision,
        clip=0.7,
    )
    return VectorConfig(k="10%", rank=rank, training=training)


def by_the_book(model, settings):
    """φ as dense tensors, by Algorithm 1 as it is written."""
    body, training = parameter_groups(model).trainable, settings.training
    for name, weight in parameter_groups(model).backbone.items():
        weight.requires_grad_(name in body)
    start = {name: weight.detach().clone() for name, weight in body.items()}

    def train(phase, masks):
        seed = derived_seed(settings.seed, "phase", phase)
        orders = [
            torch.randperm(len(IDS), generator=generator(seed, "order", epoch))
            for epoch in range(STEPS)
        ]
        rows = torch.cat(orders).split(2)
        optimiser = torch.optim.AdamW(body.values(), training.learning_rate, weight_decay=0.0)
        pull = training.l1 / sum(weight.numel() for weight in model.parameters())
        model.train()
        for step in range(STEPS):
            batch = batch_of(IDS[rows[step]])
            with torch.autocast("cpu", torch.bfloat16, enabled=training.precision == "bf16"):
                logits = model(input_ids=batch["input_ids"]).logits
            loss = cross_entropy(logits.float().flatten(0, 1), batch["labels"].flatten())
            (
                loss
                + pull * sum((weight - start[name]).abs().sum() for name, weight in body.items())
            ).backward()
            for name, mask in masks.items():
                body[name].grad *= mask
            nn.utils.clip_grad_norm_(body.values(), training.clip)
            optimiser.param_groups[0]["lr"] = training.learning_rate * (1 - step / STEPS)
            optimiser.step()
            optimiser.zero_grad()
        return {name: weight.detach() - start[name] for name, weight in body.items()}

    delta = train(1, {})
    for name, values in delta.items():
        body[name].data.copy_(start[name])
        if values.dim() == 2:
            delta[name] = by_svd(
                values.double(), float(settings.rank.rstrip("%")) / 100, settings.keep
            )
    everything = torch.cat([values.double().abs().flatten() for values in delta.values()])
    bar = everything.sort(descending=True).values[round(0.1 * len(everything)) - 1]
    return train(
        2,
        {
            name: (values.double().abs() >= bar).to(start[name].dtype)
            for name, values in delta.items()
        },
    )


def by_svd(matrix, share, keep):
    left, singular, right = torch.linalg.svd(matrix, full_matrices=False)
    reached = singular.square().cumsum(0) >= share * singular.square().sum() * (1 - 1e-10)
    rank = int(reached.int().argmax()) + 1
    low = left[:, :rank] * singular[:rank] @ right[:rank]
    kept = (matrix - low).abs().flatten().topk(round(keep * matrix.numel())).indices
    low.view(-1)[kept] = matrix.flatten()[kept]
    return low


# How far rounding may lead the two apart: the share of places that differ, and where they agree the
# values' distance over their length.
CASES = {
    "as it is": (None, "fp32", 0.01, 1e-3),
    "bf16": (None, "bf16", 0.1, 0.1),  # 2% to 9%, by the release of torch and transformers
    "strided embeddings": ("strided", "fp32", 0.01, 1e-3),
    "tied embeddings": ("tied", "fp32", 0.01, 1e-3),
}


@pytest.mark.parametrize("case", CASES)
def test_fit_is_algorithm_1_as_it_is_written(case):
    change, precision, places, values = CASES[case]
    vector, dense = (
        fit(made(change), Fixed(), settings(precision)),
        by_the_book(made(change), settings(precision)),
    )
    ours = torch.cat([vector.tensors[name].to_dense().flatten() for name in dense])
    expected = torch.cat([tensor.flatten() for tensor in dense.values()])
    assert (expected != 0).sum() > 0.09 * len(expected)
    common = (ours != 0) & (expected != 0)
    assert common.sum() >= (1 - places) * vector.k
    assert (ours - expected)[common].norm() <= values * expected[common].norm()


def test_the_book_would_tell_another_method_apart():
    """The test above would not notice other ranks, or none, were these not far apart."""
    first, second = (by_the_book(made(), settings(rank=rank)) for rank in ("80%", "100%"))
    apart = torch.cat([((first[name] != 0) != (second[name] != 0)).flatten() for name in first])
    assert apart.float().mean() > 0.01


def test_nothing_that_does_not_move_has_a_gradient():
    model, objective = made(), Fixed()
    names = {
        name
        for name, weight in model.named_parameters()
        if any(weight is w for w in parameter_groups(model).trainable.values())
    }
    embeddings = {name for name in names if "embeddings" in name}
    fit(model, objective, settings())
    assert len(embeddings) == 1
    phase1, phase2 = objective.trained[:STEPS], objective.trained[STEPS:]
    assert all(trained == names - embeddings | {"embedding_rows"} for trained in phase1)
    assert len(phase2) == STEPS
    assert all("embedding_rows" in trained and not trained & embeddings for trained in phase2)
