"""Which of a model's parameters belong to the backbone, which of those a vector may hold, and to
which layers they belong."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

# What counts as a head even within `base_model`: masked language models have no pooler,
# and some models of T5's kind no `base_model` around encoder and decoder.
HEADS = ("pooler.", "lm_head.", "qa_outputs.")

# What training registers on a model beside its own parameters, for clipping and `zero_grad()` to
# see.
SPARSE_VALUES, EMBEDDING_ROWS = "sparse_values", "embedding_rows"


def unwrapped(model: nn.Module) -> nn.Module:
    """The model itself, without what torch wraps around it: DataParallel, DistributedDataParallel,
    `torch.compile`."""
    inner: nn.Module = model
    while True:
        children = dict(inner.named_children())
        wrapped = children.get("_orig_mod")
        if wrapped is None and not hasattr(inner, "base_model"):  # no model of transformers itself
            wrapped = children.get("module")
        if wrapped is None:
            return inner
        inner = wrapped


@dataclass(frozen=True, eq=False)
class ParameterGroups:
    """A model's parameters by the part that they play; made by `parameter_groups`.

    Attributes:
        backbone: The parameters below the model's head: the part that every task and language
            shares. Names are relative to `model.base_model` (the model itself where there is none),
            so that the same names hold in the bare model, the language model and the classifier.
            Tied parameters come once, under their first name.
        trainable: The backbone without its layer norms, which stay as they are (paper, section 3):
            what a vector may hold.
        head: The parameters outside the backbone, under their full names. What HEADS names counts
            as head.
    """

    backbone: Mapping[str, nn.Parameter]
    trainable: Mapping[str, nn.Parameter]
    head: Mapping[str, nn.Parameter]

    @property
    def trained_head(self) -> dict[str, nn.Parameter]:
        """The parameters of the head that require a gradient."""
        trained: dict[str, nn.Parameter] = {}
        for name, parameter in self.head.items():
            if parameter.requires_grad:
                trained[name] = parameter
        return trained

    @property
    def trainable_size(self) -> int:
        """The number of entries of the trainable parameters."""
        return sum(weight.numel() for weight in self.trainable.values())


def parameter_groups(model: nn.Module) -> ParameterGroups:
    """The groups of a model's parameters. What training registers on it is in none of them.

    Args:
        model: A model, or one that torch has wrapped.

    Returns:
        Its parameters themselves, no copies.

    Example:
        >>> from torch import nn
        >>> from deftx.core.parameters import parameter_groups
        >>> groups = parameter_groups(nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3)))
        >>> list(groups.trainable)
        ['0.weight', '0.bias']
    """
    model = unwrapped(model)
    inner: Any = getattr(model, "base_model", model)
    registered = (SPARSE_VALUES, EMBEDDING_ROWS)
    not_backbone = (*HEADS, *registered)

    # What every task and language shares
    backbone: dict[str, nn.Parameter] = {}
    for name, parameter in inner.named_parameters():
        if not name.startswith(not_backbone):
            backbone[name] = parameter

    # Layer norms stay as they are (paper, section 3)
    in_norms: set[int] = set()
    for module in model.modules():
        kind = type(module).__name__.lower()
        if "norm" in kind:
            in_norms |= {id(weight) for weight in module.parameters(recurse=False)}
    trainable: dict[str, nn.Parameter] = {}
    for name, parameter in backbone.items():
        if id(parameter) not in in_norms:
            trainable[name] = parameter

    # The rest of the model, without parameters that are tied to the backbone's
    in_backbone = {id(parameter) for parameter in backbone.values()}
    head: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        if id(parameter) not in in_backbone and not name.startswith(registered):
            head[name] = parameter
    return ParameterGroups(backbone, trainable, head)


def layer_of(name: str) -> str:
    """The layer that a parameter belongs to.

    Args:
        name: The parameter's name, such as `encoder.layer.3.output.weight`.

    Returns:
        The name up to its first number; without a number, its first part.

    Example:
        >>> from deftx.core.parameters import layer_of
        >>> layer_of("encoder.layer.3.output.weight"), layer_of("embeddings.position.weight")
        ('encoder.layer.3', 'embeddings')
    """
    numbered = re.match(r"(.+?\.)?\d+(?=\.)", name)
    if numbered is not None:
        return numbered[0]
    first_part, _, _ = name.partition(".")
    return first_part
