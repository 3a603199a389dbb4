"""Our training loop beside the transformers Trainer: steps per second on the same data.

    python benchmarks/loop.py [--steps 100] [--repeat 3] [--shapes demo,nano]

Both train all weights of a small random model by masked language modelling, with our objective,
AdamW and a linear decay to 0, without checkpoints. What differs is what a loop does besides the
forward and backward pass. The two take turns in one process, so that other work on the machine
slows both. Prints the medians and their ratio.
"""

import argparse
import tempfile
import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from transformers import (
    PrinterCallback,
    Trainer,
    TrainingArguments,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
)
from transformers.utils import logging

from deftx.config import LanguageTrainingConfig
from deftx.objectives.masked_lm import MaskedLM, Masking
from deftx.training.loop import TrainableState, train

RATE = 1e-4


@dataclass(frozen=True)
class Shape:
    """A model, and the blocks of a batch."""

    width: int
    layers: int
    vocabulary: int
    batch: int
    length: int


SHAPES = {
    "demo": Shape(64, 2, 400, 16, 48),
    "nano": Shape(384, 6, 16_000, 4, 96),
    "me5": Shape(384, 12, 54_155, 8, 128),
}


class OurTrainer(Trainer):
    """The Trainer with our objective's loss."""

    objective: MaskedLM

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **options: Any) -> Any:
        """The mean loss over the masked tokens."""
        return self.objective.loss(model, inputs)


def model_of(shape: Shape) -> XLMRobertaForMaskedLM:
    """A random model, the same every time."""
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.width // 32,
        intermediate_size=4 * shape.width,
        max_position_embeddings=shape.length + 2,
        type_vocab_size=1,
    )
    return XLMRobertaForMaskedLM(config)


def objective_of(shape: Shape) -> MaskedLM:
    """Random text: as many blocks as 50 steps take."""
    drawn = torch.Generator().manual_seed(0)
    blocks = torch.randint(5, shape.vocabulary, (50 * shape.batch, shape.length), generator=drawn)
    masking = Masking(0.15, torch.arange(5), 4, torch.arange(5, shape.vocabulary))
    held_out = (blocks[:1], blocks[:1].clone())
    return MaskedLM(blocks, held_out, masking, "random")


def ours(shape: Shape, steps: int) -> float:
    """Seconds that our loop takes."""
    model, objective = model_of(shape), objective_of(shape)
    training = LanguageTrainingConfig(
        learning_rate=RATE,
        batch_size=shape.batch,
        max_steps=steps,
        min_steps=steps,
        evaluate_every=10 * steps,
        l1=0.0,
        precision="fp32",
    )
    parameters = list(model.parameters())
    anchors = [parameter.detach().clone() for parameter in parameters]
    start = time.perf_counter()
    train(model, objective, training, TrainableState(parameters, anchors), seed=0, title="ours")
    return time.perf_counter() - start


def trainers(shape: Shape, steps: int) -> float:
    """Seconds that the Trainer takes."""
    model, objective = model_of(shape), objective_of(shape)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=shape.batch,
            learning_rate=RATE,
            weight_decay=0.0,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=model.device.type == "cpu",
            dataloader_pin_memory=False,
            remove_unused_columns=False,
            logging_steps=max(1, steps // 20),
        )
        trainer = OurTrainer(
            model=model,
            args=arguments,
            train_dataset=list(objective.train),
            data_collator=objective.collate,
        )
        trainer.objective = objective
        trainer.remove_callback(PrinterCallback)
        start = time.perf_counter()
        trainer.train()
        return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--shapes", default=",".join(SHAPES))
    options = parser.parse_args()
    logging.set_verbosity_error()
    print("| shape | ours, steps/s | Trainer, steps/s | ratio (smallest to largest) |")
    print("| --- | --- | --- | --- |")
    for name in options.shapes.split(","):
        shape = SHAPES[name]
        ours(shape, 5)
        trainers(shape, 5)
        pairs = [
            (ours(shape, options.steps), trainers(shape, options.steps))
            for _ in range(options.repeat)
        ]
        ratios = sorted(theirs / own for own, theirs in pairs)
        own, theirs = (options.steps / median(seconds) for seconds in zip(*pairs, strict=True))
        spread = f"{median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        print(f"| {name} | {own:.1f} | {theirs:.1f} | {spread} |", flush=True)


if __name__ == "__main__":
    main()
