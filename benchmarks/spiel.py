"""Memory of one training that chooses its k entries meanwhile, beside phase 1 of DeFT-X.

    python benchmarks/spiel.py [--shape 30M] [--k 2.8%] [--ways phase1,spiel-ag,...]
        [--weights bf16]

A decoder with random weights learns random text. Each way runs in a process of its own: `bare` is a
forward and backward pass that drops every gradient at once, what no training can do without;
`phase1` is full fine-tuning for a step; the others train until entries have been replaced twice.
Prints by how much each raises the peak memory of the process that holds the model, in gigabytes and
in multiples of the weights, and what `phase1` takes for each byte of it.
"""

import argparse
import subprocess
import sys
from dataclasses import dataclass

import torch
from measure import print_peak
from transformers import LlamaConfig, LlamaForCausalLM

from deftx.config import LanguageTrainingConfig, LanguageVectorConfig, ReselectionConfig
from deftx.core.parameters import parameter_groups
from deftx.core.reselection import RESELECTIONS
from deftx.objectives.causal_lm import CausalLM
from deftx.training.phases import full_tuning, reselected_training
from deftx.training.precision import autocast

BARE, PHASE1 = "bare", "phase1"
SCHEDULE = ReselectionConfig(every=2, window=1)
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
STEPS = 5  # entries are replaced after steps 1 and 3
GIGABYTE = 1e9


@dataclass(frozen=True)
class Shape:
    """A decoder with input and output embeddings of their own."""

    width: int
    layers: int
    vocabulary: int

    def model(self, precision: str = "fp32") -> LlamaForCausalLM:
        """One with random weights, those of its backbone in a precision."""
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.width // 64,
            intermediate_size=4 * self.width,
            max_position_embeddings=64,
        )
        model = LlamaForCausalLM(config)
        for weight in parameter_groups(model).backbone.values():
            weight.data = weight.data.to(PRECISIONS[precision])
        return model


SHAPES = {
    "1M": Shape(128, 2, 1000),
    "30M": Shape(512, 6, 8000),
    "200M": Shape(1024, 11, 16_000),
}


def text_of(shape: Shape) -> CausalLM:
    """Random text."""
    drawn = torch.Generator().manual_seed(0)
    blocks = torch.randint(3, shape.vocabulary, (2 * STEPS, 16), generator=drawn)
    return CausalLM(blocks, blocks[:1], "random")


def train(model: LlamaForCausalLM, shape: Shape, way: str, k: str, precision: str) -> None:
    """Train in one way."""
    groups = parameter_groups(model)
    for weight in groups.head.values():
        weight.requires_grad_(False)
    if way == BARE:
        for weight in groups.backbone.values():
            weight.register_post_accumulate_grad_hook(drop_gradient)
        objective = text_of(shape)
        with autocast(model.device, precision == "bf16"):
            loss = objective.loss(model, objective.collate(list(objective.train[:2])))
        loss.backward()
        return
    steps = 1 if way == PHASE1 else STEPS
    training = LanguageTrainingConfig(
        batch_size=2, max_steps=steps, min_steps=steps, evaluate_every=steps, precision=precision
    )
    if way == PHASE1:
        full_tuning(model, text_of(shape), LanguageVectorConfig(k=k, training=training), groups)
        return
    settings = LanguageVectorConfig(k=k, method=way, training=training, reselection=SCHEDULE)
    reselected_training(model, text_of(shape), settings, groups)


def drop_gradient(weight: torch.Tensor) -> None:
    """The hook of `bare`."""
    weight.grad = None


def peak(way: str, options: argparse.Namespace) -> float:
    """The gigabytes that a way takes beside the model, in a process of its own."""
    arguments = ["--shape", options.shape, "--k", options.k, "--peak", way]
    arguments += ["--weights", options.weights]
    run = subprocess.run(
        [sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=True
    )
    return int(run.stdout.split()[-1]) / GIGABYTE


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=list(SHAPES), default="30M")
    parser.add_argument("--k", default="2.8%")
    parser.add_argument("--ways", default=",".join([PHASE1, BARE, *RESELECTIONS]))
    parser.add_argument("--weights", choices=list(PRECISIONS), default="fp32")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    if options.peak:
        to_train = shape.model(options.weights)
        print_peak(lambda: train(to_train, shape, options.peak, options.k, options.weights))
        return

    model = shape.model(options.weights)
    parameters = sum(weight.numel() for weight in model.parameters())
    weights = sum(weight.nbytes for weight in model.parameters()) / GIGABYTE
    del model
    print(f"{parameters / 1e6:.0f}M weights, {weights:.2f} GB; k = {options.k}\n")
    print("| way | beside the weights | in multiples of them | phase 1 takes |")
    print("| --- | --- | --- | --- |")
    of_phase1 = None
    for way in options.ways.split(","):
        taken = peak(way, options)
        if way == PHASE1:
            of_phase1 = taken
        ratio = "" if of_phase1 is None else f"{of_phase1 / taken:.1f} ×"
        print(f"| {way} | {taken:.2f} GB | {taken / weights:.2f} | {ratio} |", flush=True)


if __name__ == "__main__":
    main()
