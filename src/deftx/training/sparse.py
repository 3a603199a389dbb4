"""Sparse tuning: only the selected entries of a model move, and only they cost optimiser state.

The entries of a selection live in one flat parameter of k values. The model computes with its own
dense weights; as soon as autograd has accumulated the gradient of a weight, its selected entries
are gathered into the flat gradient and the dense gradient is dropped, so that at most one dense
gradient exists at a time. After a step of an optimiser over the flat parameter, the k values are
written into the weights. Nothing outside the selection can move, whatever the optimiser or its
weight decay does.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from deftx.core.entries import read_entries, write_entries
from deftx.core.parameters import SPARSE_VALUES, backbone
from deftx.core.select import SparseMask, TensorMask
from deftx.core.vector import SparseTensor, SparseVector
from deftx.errors import DeftxError
from deftx.training.embedding_rows import EmbeddingRows, input_embeddings, trainable_embedding_rows


class SparseTuning:
    """A model under sparse tuning; made by `sparse_tuning`.

    values  the flat parameter [k]: the selected entries of all tensors, in the order of the
            selection
    start   what these entries were at the beginning [k]
    """

    def __init__(self, model: nn.Module, selection: SparseMask, rows: EmbeddingRows | None) -> None:
        self.selection = selection
        self.weights = {
            name: weight for name, weight in backbone(model).items() if name in selection
        }
        self.targets = {
            name: (self.weights[name], places.indices) for name, places in selection.items()
        }
        if rows is not None:
            name = next(name for name, weight in self.weights.items() if weight is rows.weight)
            self.targets[name] = (rows.values, rows.local(selection[name].indices))
        read = [read_entries(weight.detach(), indices) for weight, indices in self.targets.values()]
        self.start = torch.cat(read) if read else torch.empty(0)
        self.values = nn.Parameter(self.start.clone())

    def parameters(self) -> list[nn.Parameter]:
        """What an optimiser should move: the flat parameter."""
        return [self.values]

    def vector(self) -> SparseVector:
        """How far the entries have moved so far (φ = θ2 − θ0), as a vector on the CPU, float32."""
        moved = dict(
            self._slices((self.values.detach().float() - self.start.float()).cpu())
        )  # half precision rounds
        return SparseVector(
            {
                name: SparseTensor(places.indices.cpu(), moved[name].clone(), places.shape)
                for name, places in self.selection.items()
            }
        )

    def write(self) -> None:
        """Put the flat parameter's values into the model's weights."""
        for name, values in self._slices(self.values.detach()):
            weight, indices = self.targets[name]
            write_entries(weight.detach(), indices, values)
            if weight is not self.weights[name]:
                write_entries(self.weights[name].detach(), self.selection[name].indices, values)

    def _slices(self, flat: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The parts of a flat tensor [k] by tensor name."""
        sizes = [len(places.indices) for places in self.selection.values()]
        return zip(self.selection, flat.split(sizes), strict=True)

    def _gather(self, weight: nn.Parameter, indices: Tensor, start: int) -> None:
        """Move the selected entries of a weight's fresh gradient into the flat one; drop the
        rest."""
        assert weight.grad is not None
        if self.values.grad is None:
            self.values.grad = torch.zeros_like(self.values)
        here = self.values.grad[start : start + len(indices)]
        here += read_entries(weight.grad, indices)
        weight.grad = None

    def _hooks(self) -> list[Any]:
        """Have gradients gathered as they come, and values written after each step of their
        optimiser."""
        hooks, start = [], 0
        for weight, indices in self.targets.values():
            if len(indices):
                gather = partial(self._gather, indices=indices, start=start)
                hooks.append(weight.register_post_accumulate_grad_hook(gather))
            start += len(indices)

        def stepped(optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
            if any(p is self.values for group in optimizer.param_groups for p in group["params"]):
                self.write()

        return [*hooks, register_optimizer_step_post_hook(stepped)]


@contextmanager
def sparse_tuning(model: nn.Module, selection: SparseMask) -> Iterator[SparseTuning]:
    """Let only the entries of `selection` move in the model's backbone, until the end of the block.

    Any torch optimiser over `tuning.parameters()` will do; a closure, as LBFGS wants one, starts
    with `tuning.write()`. The flat parameter is also registered on the model, as `sparse_values`,
    so that gradient clipping and `zero_grad()` on the model see it. Parameters outside the backbone
    (a head) are left alone: train or freeze them as you like. On leaving, the model keeps what was
    learnt. Raises DeftxError where the selection does not fit the model, and within another block
    of it.
    """
    if hasattr(model, SPARSE_VALUES):
        raise DeftxError("the model is under sparse tuning already: end that block first")
    weights = backbone(model)
    for name, places in selection.items():
        if name not in weights or tuple(weights[name].shape) != places.shape:
            raise DeftxError(
                f"the selection's tensor {name!r} {places.shape} is not in the model: select on its own delta"
            )
    selection = {
        name: TensorMask(places.indices.to(weights[name].device), places.shape)
        for name, places in selection.items()
    }
    with ExitStack() as stack:
        for name, weight in weights.items():
            stack.callback(weight.requires_grad_, weight.requires_grad)
            weight.requires_grad_(name in selection and len(selection[name].indices) > 0)
            weight.grad = (
                None  # what an earlier loop left would be gathered with the first gradient
            )
        rows = stack.enter_context(_selected_rows(model, selection))
        tuning = SparseTuning(model, selection, rows)
        for hook in tuning._hooks():
            stack.callback(hook.remove)
        model.register_parameter(SPARSE_VALUES, tuning.values)
        stack.callback(delattr, model, SPARSE_VALUES)
        stack.callback(tuning.write)
        yield tuning


def _selected_rows(
    model: Any, selection: SparseMask
) -> AbstractContextManager[EmbeddingRows | None]:
    """The embedding rows that hold selected entries, apart: the others need no gradient."""
    embeddings, weights = input_embeddings(model), backbone(model)
    for name, places in selection.items():
        if embeddings is not None and weights[name] is embeddings.weight and len(places.indices):
            return trainable_embedding_rows(model, places.indices // places.shape[1])
    return nullcontext()
