"""The rows of the input embeddings that can move, apart from all the others.

A row that no batch looks up has no gradient: neither AdamW without weight decay nor the penalty, whose sign is 0
there, moves it. So only the other rows, a small part in a multilingual model, need gradients, optimiser state and
time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from deftx.core.backbone import EMBEDDING_ROWS


class Rows:
    """Some rows of an embedding, as a parameter of their own; made by `rows_apart`.

    weight  the whole embedding [vocabulary, width]
    ids     which rows [n], sorted
    values  what they are [n, width]
    """

    def __init__(self, module: nn.Embedding, ids: Tensor) -> None:
        self.weight, self.ids = module.weight, ids.to(module.weight.device)
        self.values = nn.Parameter(self.weight.detach()[self.ids])
        self.place = self.ids.new_full((len(self.weight),), -1)
        self.place[self.ids] = torch.arange(len(self.ids), device=self.ids.device)
        padding = -1 if module.padding_idx is None else int(self.place[module.padding_idx])
        self.padding = padding if padding >= 0 else None

    def local(self, indices: Tensor) -> Tensor:
        """Flat indices [n] into `weight`, of entries in these rows, as flat indices into `values`."""
        width = self.weight.shape[1]
        return self.place[indices // width] * width + indices % width

    @torch.no_grad()
    def write(self) -> None:
        """Put the rows into the whole embedding."""
        self.weight.index_copy_(0, self.ids, self.values.detach())

    def look_up(self, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        """What the embedding gives for token ids: these rows where they are asked for, else `output`."""
        places = self.place[inputs[0]]
        found = embedding(places.clamp_min(0), self.values, self.padding)
        return torch.where((places >= 0).unsqueeze(-1), found, output)


@contextmanager
def rows_apart(model: Any, ids: Tensor) -> Iterator[Rows | None]:
    """While active, the input embeddings' rows `ids` [n] are a parameter apart, and the embeddings themselves frozen.

    On leaving, the rows are written into the embeddings. The parameter is also registered on the model, as
    `embedding_rows`, so that clipping and `zero_grad()` on the model see it. None, and nothing is done, where rows
    cannot be parted: embeddings that are tied to a decoder, or of a kind of their own.
    """
    module = input_embeddings(model)
    if module is None:
        yield None
        return
    rows = Rows(module, ids.unique())
    trained, module.weight.requires_grad = module.weight.requires_grad, False
    hook = module.register_forward_hook(rows.look_up)
    model.register_parameter(EMBEDDING_ROWS, rows.values)
    model.rows_that_are_apart = rows  # for those who change entries of the embeddings meanwhile
    try:
        yield rows
    finally:
        hook.remove()
        del model.embedding_rows, model.rows_that_are_apart
        rows.write()
        module.weight.requires_grad_(trained)


def input_embeddings(model: Any) -> nn.Embedding | None:
    """The model's input embeddings, if they are of the plain kind and nothing else has their weight."""
    if getattr(getattr(model, "config", None), "legacy", None) is False:  # DeBERTa's newer head reads them by itself
        return None
    module = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    if type(module) is not nn.Embedding:
        return None
    everywhere = [parameter for _, parameter in model.named_parameters(remove_duplicate=False)]
    return module if sum(parameter is module.weight for parameter in everywhere) == 1 else None
