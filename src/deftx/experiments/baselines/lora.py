"""LoRA arithmetic: low-rank changes of a language and of a task, added to the base (LoRA: Hu et al.
2021).

    W_TL = W0 + α/r B_task A_task + α/r B_language A_language   for each linear layer W [out, in] of
    the backbone

with A [r, in] and B [out, r], learnt by `peft`; the task's on top of the source language's, as our
vectors are.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from deftx.config import parse
from deftx.core.parameters import parameter_groups
from deftx.core.select import parse_k
from deftx.data.examples import Examples
from deftx.errors import DeftxError
from deftx.experiments.baselines.adapters import (
    Adapter,
    classifier,
    learn,
    prepare_language_adapter,
    prepare_task_adapter,
)
from deftx.experiments.baselines.config import (
    LoraArithmeticConfig,
    LoraLanguageConfig,
    LoraTaskConfig,
)
from deftx.models.loading import Base

METHOD = "lora"

L = TypeVar("L", bound=LoraArithmeticConfig)


def fit_language(
    base: Base,
    text: Sequence[str],
    settings: LoraLanguageConfig,
    *,
    checkpoint_dir: Path | None = None,
    title: str = "LoRA language",
) -> Adapter:
    """A language's low-rank change of the base, by masked language modelling."""
    start = prepare_language_adapter(base, text, settings)
    settings = ranked(start.model, settings)
    trained_head = start.groups.trained_head
    return learn(
        METHOD,
        start,
        inject(start.model, settings),
        settings,
        trained_head=trained_head,
        checkpoint_dir=checkpoint_dir,
        title=title,
    )


def fit_task(
    base: Base,
    train_set: Examples,
    valid_set: Examples,
    settings: LoraTaskConfig,
    *,
    source: Adapter | None,
    checkpoint_dir: Path | None = None,
    title: str = "LoRA task",
) -> Adapter:
    """A task's low-rank change of the base as the source language's adapter has changed it, and the
    task's head."""
    start = prepare_task_adapter(METHOD, base, train_set, valid_set, settings, source)
    if source is not None:
        add(start.model, source)
    settings = ranked(start.model, settings)
    return learn(
        METHOD,
        start,
        inject(start.model, settings),
        settings,
        source=source,
        checkpoint_dir=checkpoint_dir,
        title=title,
    )


def compose(base: Base, task: Adapter, language: Adapter | None) -> PreTrainedModel:
    """The base with both changes added to its weights, and the task's head: an ordinary classifier,
    in eval mode.

    Raises:
        DeftxError: An adapter was made on another base, or does not fit.
    """
    model = classifier(base, METHOD, task, language)
    for adapter in (language, task):
        if adapter is not None:
            add(model, adapter)
    return model


def rank_for(model: PreTrainedModel, k: int | float | str) -> int:
    """The rank whose LoRA on all linear layers has the number of parameters nearest to `k`; at
    least 1.

    Args:
        model: The model.
        k: A count, or a share of the trainable entries, as for a vector.
    """
    layers = linear_layers(model).values()
    size_of_rank_1 = sum(layer.in_features + layer.out_features for layer in layers)
    wanted_size = parse_k(k, parameter_groups(model).trainable_size)
    return max(1, round(wanted_size / size_of_rank_1))


def linear_layers(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """The linear layers of the backbone, by their names in it.

    Raises:
        DeftxError: There are none.
    """
    named = model.base_model.named_modules()
    layers = {n: m for n, m in named if isinstance(m, nn.Linear) and not n.startswith("pooler.")}
    if not layers:
        raise DeftxError(
            f"the backbone of a {model.config.model_type!r} model has no linear layers for LoRA"
        )
    return layers


def ranked(model: PreTrainedModel, settings: L) -> L:
    """`settings` with the rank and alpha that they stand for on this model."""
    rank = settings.rank or rank_for(model, settings.k)
    return settings.model_copy(update={"rank": rank, "alpha": settings.alpha or rank})


def inject(model: PreTrainedModel, settings: LoraArithmeticConfig) -> dict[str, nn.Parameter]:
    """Have `model` compute with a new LoRA on its linear layers.

    B is zero, A drawn from the seed.

    Returns:
        The parameters of the LoRA, `LAYER.A` and `LAYER.B`.

    Raises:
        DeftxError: peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise DeftxError(
            f"{error.name} is not installed: pip install 'deftx[baselines]'"
        ) from error
    assert settings.rank is not None  # as `ranked` gave it
    assert settings.alpha is not None
    layers = linear_layers(model)
    inside = {id(layer) for layer in layers.values()}
    targets = [name for name, module in model.named_modules() if id(module) in inside]
    config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=targets)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        inject_adapter_in_model(config, model)

    parameters: dict[str, nn.Parameter] = {}
    for name in layers:
        layer: Any = model.base_model.get_submodule(name)
        (parameters[f"{name}.A"],) = layer.lora_A.parameters()
        (parameters[f"{name}.B"],) = layer.lora_B.parameters()
    return parameters


@torch.no_grad()
def add(model: PreTrainedModel, adapter: Adapter) -> None:
    """Add an adapter's change to the weights of `model`.

    Raises:
        DeftxError: It does not fit; nothing was added.
    """
    provenance = adapter.provenance
    sizes = {"rank": provenance.rank, "alpha": provenance.extra.get("alpha")}
    settings = parse(LoraTaskConfig, sizes)
    rank = settings.rank or 0
    alpha = settings.alpha or 0

    # Whether it fits
    layers = linear_layers(model)
    wanted_shapes = {}
    for name, layer in layers.items():
        wanted_shapes[f"{name}.A"] = (rank, layer.in_features)
        wanted_shapes[f"{name}.B"] = (layer.out_features, rank)
    shapes = {name: tuple(tensor.shape) for name, tensor in adapter.tensors.items()}
    if wanted_shapes != shapes or not rank:
        differences = dict(wanted_shapes.items() ^ shapes.items())
        first = min(differences, default="rank")
        raise DeftxError(
            f"the adapter does not fit the model: {first!r} is missing, not in it or of"
            " another shape"
        )

    # W + α/r B A
    for name, layer in layers.items():
        a = adapter.tensors[f"{name}.A"].to(layer.weight.device)
        b = adapter.tensors[f"{name}.B"].to(layer.weight.device)
        layer.weight += (b @ a) * (alpha / rank)
