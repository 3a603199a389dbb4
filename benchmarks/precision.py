"""A training step's forward and backward pass in bf16 beside fp32, on this processor.

    python benchmarks/precision.py BASE [BASE ...] [--batch 8] [--length 128] [--rounds 5]

One thread, both in turn; seconds of the thread's own time, so that other work does not count.
Where the ratio is above 1, `precision: auto` should take bf16 here.
"""

import argparse
import statistics
import time

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from deftx.models.loading import load_language_model
from deftx.training.precision import autocast, bf16_pays

CPU = torch.device("cpu")


def main() -> None:
    """Print both medians, their ratio and what `auto` takes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base", nargs="+")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for base in options.base:
        model = load_language_model(base).train()
        tokens = torch.randint(5, model.config.vocab_size, (options.batch, options.length))
        seconds: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(options.rounds + 1):
            for bf16, times in seconds.items():
                times.append(step_seconds(model, tokens, bf16=bf16))
        fp32, bf16 = (statistics.median(times[1:]) for times in seconds.values())
        chosen = "bf16" if bf16_pays(CPU) else "fp32"
        print(
            f"{base}: fp32 {fp32:.3f} s, bf16 {bf16:.3f} s, ratio {fp32 / bf16:.2f}; auto: {chosen}"
        )


def step_seconds(model: PreTrainedModel, tokens: Tensor, *, bf16: bool) -> float:
    """Seconds of a forward and backward pass with a seventh of the tokens masked."""
    start = time.thread_time()
    masked = torch.zeros_like(tokens, dtype=torch.bool)
    masked[:, ::7] = True
    with autocast(CPU, bf16):
        hidden = model.base_model(tokens)[0]
        scores = model.get_submodule("lm_head")(hidden[masked])
    cross_entropy(scores.float(), tokens[masked]).backward()
    seconds = time.thread_time() - start
    model.zero_grad()
    return seconds


if __name__ == "__main__":
    main()
