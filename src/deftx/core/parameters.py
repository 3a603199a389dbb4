"""Which of a model's parameters belong to the backbone, which of those a vector may hold, and to
which layers."""

import re
from typing import Any

from torch import nn

# What counts as a head even where it stands beside the rest: masked language models have no pooler,
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


def backbone(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters below the model's head: the part that every task and language shares.

    Names are relative to `model.base_model` (the module itself where there is none), so that the
    same names hold in the bare model, the language model and the classifier. Tied parameters come
    once, under their first name. What HEADS names is left out.
    """
    model = unwrapped(model)
    inner: Any = getattr(model, "base_model", model)
    named = inner.named_parameters()
    left_out = (*HEADS, SPARSE_VALUES, EMBEDDING_ROWS)
    return {name: parameter for name, parameter in named if not name.startswith(left_out)}


def head(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters outside the backbone, under their full names."""
    inside = {id(parameter) for parameter in backbone(model).values()}
    named = unwrapped(model).named_parameters()
    return {name: parameter for name, parameter in named if id(parameter) not in inside}


def tunable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The backbone without its layer norms, which stay as they are (paper, section 3)."""
    norms = {
        id(parameter)
        for module in model.modules()
        if "norm" in type(module).__name__.lower()
        for parameter in module.parameters(recurse=False)
    }
    return {
        name: parameter for name, parameter in backbone(model).items() if id(parameter) not in norms
    }


def layer_of(name: str) -> str:
    """The layer that a parameter belongs to: its name up to the first number (`encoder.layer.3`);
    without a number, the first part of its name (`embeddings`)."""
    numbered = re.match(r"(.+?\.)?\d+(?=\.)", name)
    return numbered[0] if numbered else name.split(".")[0]
