"""MAD-X 2.0: language and task adapters stacked in a frozen base (Pfeiffer et al. 2020; 2021 for
the 2.0).

In each layer, the feed-forward sublayer ends in y = LN(f + x), f what it computes and x its input.
A stack of bottlenecks A(h) = W_up relu(W_down h + b_down) + b_up, the language's below the task's,
changes s = f + x before that:

    s <- s + A(LN(s))   for each A of the stack;   y = LN(s)

which is the configuration `seq_bn` of the `adapters` library, written as one. A language also has
an invertible adapter after the embeddings, whose inverse comes before the output embeddings (NICE
coupling, Dinh et al. 2015):

    e1 <- e1 + F(e2);   e2 <- e2 + G(e1)   with e1, e2 the halves of an embedding, F and G
    bottlenecks

2.0: a language is learnt in all layers; the last one has no adapters when a task is learnt, nor at
transfer.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, relu
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
from deftx.experiments.baselines.config import MadxConfig, MadxLanguageConfig, MadxTaskConfig
from deftx.models.loading import Base

METHOD = "madx"
MODEL_TYPES = ("bert", "camembert", "roberta", "xlm-roberta")  # whose layers end as above
ROUNDING = 1e-6  # what width / reduction may miss a whole number by
SPREAD = 0.02  # standard deviation of the weights at the start, as in BERT; biases are 0

M = TypeVar("M", bound=MadxConfig)


class Bottleneck(nn.Module):
    """A of the equations: [..., width] -> [..., out], through `inner` numbers; made from W_down,
    relu and W_up."""

    def __init__(self, width: int, reduction: float, out: int | None = None) -> None:
        super().__init__()
        inner = max(1, int(width / reduction + ROUNDING))
        self.down, self.up = nn.Linear(width, inner), nn.Linear(inner, out or width)

    def forward(self, hidden: Tensor) -> Tensor:
        """What is added to the residual."""
        return self.up(relu(self.down(hidden)))  # type: ignore[no-any-return]


class Coupling(nn.Module):
    """The invertible adapter: [..., width] -> [..., width], and back."""

    def __init__(self, width: int, reduction: float) -> None:
        super().__init__()
        self.sizes = [width // 2, width - width // 2]
        self.f = Bottleneck(self.sizes[1], reduction, self.sizes[0])
        self.g = Bottleneck(self.sizes[0], reduction, self.sizes[1])

    def forward(self, embeddings: Tensor) -> Tensor:
        """After the embeddings."""
        first, second = embeddings.split(self.sizes, -1)
        first = first + self.f(second)
        return torch.cat([first, second + self.g(first)], -1)

    def inverse(self, hidden: Tensor) -> Tensor:
        """Before the output embeddings."""
        first, second = hidden.split(self.sizes, -1)
        second = second - self.g(first)
        return torch.cat([first - self.f(second), second], -1)


class Parts(nn.Module):
    """One adapter: a bottleneck for each of the first layers, and for a language the coupling."""

    def __init__(self, width: int, layers: int, settings: MadxConfig) -> None:
        super().__init__()
        assert settings.reduction is not None  # as `sized` gave it
        self.layers = nn.ModuleList(Bottleneck(width, settings.reduction) for _ in range(layers))
        if isinstance(settings, MadxLanguageConfig):
            self.invertible = Coupling(width, settings.invertible_reduction)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.normal_(parameter, std=SPREAD)


def fit_language(
    base: Base,
    text: Sequence[str],
    settings: MadxLanguageConfig,
    *,
    checkpoint_dir: Path | None = None,
    title: str = "MAD-X language",
) -> Adapter:
    """A language adapter with its invertible adapter, by masked language modelling; of the rest its
    head moves."""
    start = prepare_language_adapter(base, text, settings)
    trained_head = start.groups.trained_head
    settings = sized(start.model, settings)
    parts = untrained(start.model, settings)
    attach(start.model, parts, layers=len(parts.layers))
    return learn(
        METHOD,
        start,
        dict(parts.named_parameters()),
        settings,
        trained_head=trained_head,
        checkpoint_dir=checkpoint_dir,
        title=title,
    )


def fit_task(
    base: Base,
    train_set: Examples,
    valid_set: Examples,
    settings: MadxTaskConfig,
    *,
    source: Adapter | None,
    checkpoint_dir: Path | None = None,
    title: str = "MAD-X task",
) -> Adapter:
    """A task adapter with the task's head; the source language's adapter lies below it and stays as
    it is."""
    start = prepare_task_adapter(METHOD, base, train_set, valid_set, settings, source)
    settings = sized(start.model, settings)
    parts = untrained(start.model, settings)
    below = [] if source is None else [trained(start.model, source)]
    attach(start.model, *below, parts, layers=len(parts.layers))
    own = dict(parts.named_parameters())
    return learn(
        METHOD, start, own, settings, source=source, checkpoint_dir=checkpoint_dir, title=title
    )


def compose(base: Base, task: Adapter, language: Adapter | None) -> PreTrainedModel:
    """The base with the language's and the task's adapter: a classifier in eval mode.

    The adapters hang on the model by hooks, so that it is no ordinary checkpoint: what
    `save_pretrained` would write lacks them.

    Raises:
        DeftxError: One was made on another base, or does not fit.
    """
    model = classifier(base, METHOD, task, language)
    parts = trained(model, task)
    below = [] if language is None else [trained(model, language)]
    attach(model, *below, parts, layers=len(parts.layers))
    nn.Module.eval(model)
    return model


def sized(model: PreTrainedModel, settings: M) -> M:
    """`settings` with the reduction that they stand for on this model: without one, that of the
    bottlenecks with which the adapter's number of parameters, the coupling's included, is nearest
    to k of the trainable entries."""
    if settings.reduction is not None:
        return settings
    width, layers = model.config.hidden_size, _adapted_layers(model, settings)
    wanted = parse_k(settings.k, parameter_groups(model).trainable_size)
    if isinstance(settings, MadxLanguageConfig):
        coupling = Coupling(width, settings.invertible_reduction)
        wanted -= sum(parameter.numel() for parameter in coupling.parameters())

    # A bottleneck through `inner` numbers has inner · (2 · width + 1) + width parameters
    inner = (wanted / layers - width) / (2 * width + 1)
    return settings.model_copy(update={"reduction": width / max(1, round(inner))})


def untrained(model: PreTrainedModel, settings: MadxConfig) -> Parts:
    """The parts of an adapter of `model`, on its device, at their start, which is drawn from the
    seed."""
    layers = _adapted_layers(model, settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return Parts(model.config.hidden_size, layers, settings).to(model.device)


def trained(model: PreTrainedModel, adapter: Adapter) -> Parts:
    """The parts of an adapter of `model` as they were learnt.

    Raises:
        DeftxError: They are of other shapes.
    """
    kind = MadxTaskConfig if adapter.provenance.kind == "task" else MadxLanguageConfig
    sizes = {
        name: adapter.provenance.extra[name]
        for name in kind.model_fields
        if "reduction" in name and name in adapter.provenance.extra
    }
    parts = untrained(model, parse(kind, sizes))
    try:
        parts.load_state_dict(dict(adapter.tensors))
    except RuntimeError as error:
        raise DeftxError(
            f"the adapter does not fit the model: {' '.join(str(error).split())[:200]}"
        ) from None
    return parts.requires_grad_(False)


def attach(model: Any, *stack: Parts, layers: int) -> None:
    """Have `model` compute with adapters, the lowest first, in its first `layers` layers."""
    whole: Any = model
    whole.base_model.add_module("adapters", nn.ModuleList(stack))  # for clipping and for devices
    for number, layer in enumerate(_layers(model)[:layers]):
        bottlenecks = [parts.layers[number] for parts in stack]
        layer.output.LayerNorm.register_forward_pre_hook(partial(_stacked, bottlenecks))
    for parts in stack:
        coupling = getattr(parts, "invertible", None)
        if not isinstance(coupling, Coupling):
            continue
        whole.base_model.embeddings.register_forward_hook(partial(_after, coupling))
        decoder = whole.get_output_embeddings()
        if decoder is not None:
            decoder.register_forward_pre_hook(partial(_before, coupling))


def _stacked(bottlenecks: Sequence[nn.Module], norm: nn.LayerNorm, inputs: tuple[Tensor]) -> Tensor:
    total = inputs[0]
    for bottleneck in bottlenecks:
        total = total + bottleneck(
            layer_norm(total, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
        )
    return total


def _after(coupling: Coupling, embeddings: nn.Module, inputs: object, output: Tensor) -> Tensor:
    return coupling(output)  # type: ignore[no-any-return]


def _before(coupling: Coupling, decoder: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    return coupling.inverse(inputs[0])


def _adapted_layers(model: Any, settings: MadxConfig) -> int:
    """How many layers have a bottleneck: of a task adapter all but the last (MAD-X 2.0)."""
    return len(_layers(model)) - isinstance(settings, MadxTaskConfig)


def _layers(model: Any) -> Any:
    """The encoder's layers.

    Raises:
        DeftxError: The model is not built as the equations say.
    """
    if model.config.model_type not in MODEL_TYPES:
        known = ", ".join(MODEL_TYPES)
        raise DeftxError(
            f"MAD-X does not support models of type {model.config.model_type!r}, only {known}"
        )
    encoder: Any = model.base_model.encoder
    return encoder.layer
