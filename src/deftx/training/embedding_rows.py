"""Training only those rows of the input embeddings that can change.

A row that no batch looks up has no gradient: neither AdamW without weight decay nor the penalty,
whose sign is 0 there, moves it. So only the other rows, a small part in a multilingual model, need
gradients, optimiser state and time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from deftx.core.parameters import EMBEDDING_ROWS


class EmbeddingRows:
    """Some rows of an embedding, as a parameter of their own; made by `trainable_embedding_rows`.

    Attributes:
        weight: The whole embedding [vocabulary, width].
        ids: Which rows [n], sorted.
        values: The rows [n, width].
        row_of_id: For every token id, its number among `ids`, or -1 [vocabulary].
    """

    def __init__(self, module: nn.Embedding, ids: Tensor) -> None:
        self.weight = module.weight
        self.ids = ids.to(module.weight.device)
        self.values = nn.Parameter(self.weight.detach()[self.ids])
        self.row_of_id = self.ids.new_full((len(self.weight),), -1)
        self.row_of_id[self.ids] = torch.arange(len(self.ids), device=self.ids.device)
        self.padding_row: int | None = None
        if module.padding_idx is not None and self.row_of_id[module.padding_idx] >= 0:
            self.padding_row = int(self.row_of_id[module.padding_idx])

    def local(self, indices: Tensor) -> Tensor:
        """Flat indices [n] into `weight`, of entries in these rows, as flat indices into
        `values`."""
        width = self.weight.shape[1]
        return self.row_of_id[indices // width] * width + indices % width

    @torch.no_grad()
    def write(self) -> None:
        """Put the rows into the whole embedding."""
        self.weight.index_copy_(0, self.ids, self.values.detach())

    def look_up(self, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        """What the embedding gives for token ids: these rows where they are asked for, else
        `output`."""
        rows = self.row_of_id[inputs[0]]
        looked_up = embedding(rows.clamp_min(0), self.values, self.padding_row)
        return torch.where((rows >= 0).unsqueeze(-1), looked_up, output)


@contextmanager
def trainable_embedding_rows(model: Any, ids: Tensor) -> Iterator[EmbeddingRows | None]:
    """While active, the input embeddings' rows `ids` [n] are a parameter of their own, the other
    rows frozen.

    On leaving, the rows are written into the embeddings. The parameter is also registered on the
    model, as `embedding_rows`, so that clipping and `zero_grad()` on the model see it.

    Yields:
        The rows; None, with nothing done, where the embeddings are tied to a decoder or of another
        kind, and where `ids` are all of them.
    """
    module = input_embeddings(model)
    distinct_ids = ids.unique()
    if module is None or len(distinct_ids) == len(module.weight):
        yield None
        return
    rows = EmbeddingRows(module, distinct_ids)
    was_trained = module.weight.requires_grad
    module.weight.requires_grad = False
    hook = module.register_forward_hook(rows.look_up)
    model.register_parameter(EMBEDDING_ROWS, rows.values)
    model.trainable_embedding_rows = (
        rows  # for those who change entries of the embeddings meanwhile
    )
    try:
        yield rows
    finally:
        hook.remove()
        del model.embedding_rows, model.trainable_embedding_rows
        rows.write()
        module.weight.requires_grad_(was_trained)


def input_embeddings(model: Any) -> nn.Embedding | None:
    """The model's input embeddings, if they are of the plain kind and nothing else has their
    weight."""
    if (
        getattr(getattr(model, "config", None), "legacy", None) is False
    ):  # DeBERTa's newer head reads them by itself
        return None
    module = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    if type(module) is not nn.Embedding:
        return None
    owners = 0
    for _, parameter in model.named_parameters(remove_duplicate=False):
        owners += parameter is module.weight
    return module if owners == 1 else None
