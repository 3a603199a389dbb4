"""Hold our MAD-X against the `adapters` library: the same weights, copied both ways, must give the
same logits.

    python -m venv /tmp/adapters && /tmp/adapters/bin/pip install torch adapters==1.3.0
    python scripts/compare_madx.py /tmp/adapters/bin/python

The library wants an older transformers than we do, hence an environment of its own. This file runs
in both: once as ours, and with `theirs FOLDER` in the other one, where it exchanges tensors with us
through the folder. Bases are tiny and random; the adapters' weights and biases are drawn with a
standard deviation of 0.3.
"""

import logging
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

SHAPES = {"xlmr": "roberta", "bert": "bert"}  # and what the backbone is called
LAYERS = 2
IDS = torch.arange(5, 17).view(2, 6)
# case -> head, names of the stacked adapters from below, how many layers have them
CASES: dict[str, tuple[str, list[str], int]] = {
    "language model, language": ("mlm", ["language"], LAYERS),
    "language model, language + task": ("mlm", ["language", "task"], LAYERS - 1),
    "classifier, language + task": ("classifier", ["language", "task"], LAYERS - 1),
}


def draw(parameters: dict[str, nn.Parameter], seed: int) -> None:
    """Random values for an adapter."""
    generator = torch.Generator().manual_seed(seed)
    for name in sorted(parameters):
        parameters[name].data = torch.randn(parameters[name].shape, generator=generator) * 0.3


def our_names(theirs: str) -> str:
    """`ADAPTER.` and what we call a parameter of the library's, given its full name there."""
    parts = theirs.split(".")
    if "invertible_adapters" in parts:
        _, _, adapter, half, place, kind = parts
        return f"{adapter}.invertible.{half.lower()}.{'down' if place == '0' else 'up'}.{kind}"
    adapter, which, kind = (
        parts[parts.index("adapters") + 1],
        parts[-2 if "adapter_up" in parts else -3],
        parts[-1],
    )
    layer = parts[parts.index("layer") + 1]
    return f"{adapter}.layers.{layer}.{which.removeprefix('adapter_')}.{kind}"


def theirs(folder: Path) -> None:
    """In the other environment: for each shape and case, the library's logits with our weights and
    with its own."""
    import adapters
    from adapters import AutoAdapterModel, SeqBnConfig, SeqBnInvConfig
    from adapters.composition import Stack
    from transformers import AutoModelForSequenceClassification

    # the masked language models of transformers itself would do without the inverse of the
    # invertible adapter
    autos = {"mlm": AutoAdapterModel, "classifier": AutoModelForSequenceClassification}
    for shape in SHAPES:
        for number, (head, names, layers) in enumerate(CASES.values()):
            model = autos[head].from_pretrained(folder / f"{shape}-{head}").eval()
            if head == "classifier":
                adapters.init(model)
            left_out = list(range(layers, LAYERS))
            configs = {
                "language": SeqBnInvConfig(
                    reduction_factor=2, inv_adapter_reduction_factor=2, leave_out=left_out
                ),
                "task": SeqBnConfig(reduction_factor=1, leave_out=left_out),
            }
            for name in names:
                model.add_adapter(name, config=configs[name])
            model.set_active_adapters(Stack(*names))
            found = dict(model.named_parameters())
            own = {our_names(name): weight for name, weight in found.items() if "adapters." in name}
            given = load_file(folder / f"{shape}-{number}-ours.safetensors")
            assert own.keys() == given.keys(), own.keys() ^ given.keys()
            with torch.no_grad():
                for name, weight in own.items():
                    weight.copy_(given[name])
                results: dict[str, Tensor] = {"/with ours": model(IDS).logits}
                draw(own, seed=number)
                results["/with theirs"] = model(IDS).logits
            results |= {name: weight.detach().clone() for name, weight in own.items()}
            save_file(results, folder / f"{shape}-{number}-theirs.safetensors")
    print(f"adapters {adapters.__version__}, torch {torch.__version__}", end=", ", flush=True)


def ours(python: str) -> None:
    """Write bases and adapters, have the library compute, and compare."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    import tiny
    import transformers
    from transformers.utils.logging import disable_progress_bar

    from deftx.experiments.baselines import madx
    from deftx.experiments.baselines.config import MadxLanguageConfig, MadxTaskConfig
    from deftx.models.heads import load_task_model
    from deftx.models.loading import load_language_model

    disable_progress_bar()
    loads: dict[str, Any] = {
        "mlm": load_language_model,
        "classifier": lambda base: load_task_model(base, ("a", "b")),
    }

    def stacked(
        base: Path, head: str, names: list[str], layers: int
    ) -> tuple[nn.Module, dict[str, nn.Parameter]]:
        model = loads[head](base).eval()
        settings = {"language": MadxLanguageConfig(), "task": MadxTaskConfig()}
        stack = {name: madx.untrained(model, settings[name]) for name in names}
        for parts in stack.values():
            del parts.layers[layers:]
        madx.attach(model, *stack.values(), layers=layers)
        return model, {
            f"{name}.{n}": p for name, parts in stack.items() for n, p in parts.named_parameters()
        }

    with TemporaryDirectory() as temporary, torch.no_grad():
        folder = Path(temporary)
        made = {}
        for shape in SHAPES:
            base = tiny.save_base(folder / shape, shape)
            for head, load in loads.items():
                load(base).save_pretrained(folder / f"{shape}-{head}")
            for number, case in enumerate(CASES):
                _, own = made[shape, number] = stacked(base, *CASES[case])
                draw(own, seed=10 + number)
                tensors = {name: parameter.detach().clone() for name, parameter in own.items()}
                save_file(tensors, folder / f"{shape}-{number}-ours.safetensors")
        subprocess.run([python, __file__, "theirs", temporary], check=True)
        print(
            f"ours with transformers {transformers.__version__}\n"
            "largest difference of logits, ours - theirs:"
        )
        equal = True
        for (shape, number), (model, own) in made.items():
            results = load_file(folder / f"{shape}-{number}-theirs.safetensors")
            differences = [model(IDS).logits - results["/with ours"]]
            for name, parameter in own.items():
                parameter.data = results[name]
            differences.append(model(IDS).logits - results["/with theirs"])
            size = results["/with ours"].abs().max().item()
            numbers = ", ".join(
                f"{difference.abs().max().item():.1e}" for difference in differences
            )
            print(
                f"  {shape}, {list(CASES)[number]}: {numbers} (weights ours, theirs);"
                f" largest logit {size:.2f}"
            )
            equal &= all(bool(difference.abs().max() < 1e-5 * size) for difference in differences)
    sys.exit(None if equal else "they are not equal")


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # heads that are new, adapters that are not active yet
    theirs(Path(sys.argv[2])) if sys.argv[1] == "theirs" else ours(sys.argv[1])
