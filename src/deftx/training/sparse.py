"""Sparse tuning: only the selected entries of a model move, and only they cost optimiser state.

The entries of a selection live in one flat parameter of k values. The model computes with its own
dense weights; as soon as autograd has accumulated the gradient of a weight, its selected entries
are gathered into the flat gradient and the dense gradient is dropped, so that at most one dense
gradient exists at a time. After a step of an optimiser over the flat parameter, the k values are
written into the weights. Nothing outside the selection can move, whatever the optimiser or its
weight decay does.

The flat parameter is in float32 also where the weights are in half precision: there a step of the
learning rate's size would be lost in rounding. The weights then hold the values rounded.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from deftx.core.entries import read_entries, write_entries
from deftx.core.parameters import SPARSE_VALUES, parameter_groups
from deftx.core.select import SparseMask, TensorMask
from deftx.core.tensors import SparseTensor
from deftx.core.vector import SparseVector
from deftx.errors import DeftxError
from deftx.training.embedding_rows import EmbeddingRows, input_embeddings, trainable_embedding_rows


class SparseTuning:
    """A model under sparse tuning; made by `sparse_tuning`.

    Attributes:
        selection: Tensor name -> its selected entries, on the model's device.
        values: The flat parameter [k]: the selected entries of all tensors, in the order of the
            selection; in float32, or in float64 where weights are so.
        start: What these entries were at the beginning [k].
    """

    def __init__(
        self,
        weights: Mapping[str, nn.Parameter],
        selection: SparseMask,
        rows: EmbeddingRows | None,
    ) -> None:
        self.selection = selection
        self._weights = {name: weights[name] for name in selection}

        # What has a gradient, and where in it the selected entries are: the weight itself, or the
        # embedding's rows that are trained by themselves
        self._targets: dict[str, tuple[nn.Parameter, Tensor]] = {}
        for name, mask in selection.items():
            weight = weights[name]
            if rows is not None and weight is rows.weight:
                self._targets[name] = (rows.values, rows.local(mask.indices))
            else:
                self._targets[name] = (weight, mask.indices)

        entries = []
        for weight, indices in self._targets.values():
            entries.append(read_entries(weight.detach(), indices))
        in_own_precision = torch.cat(entries) if entries else torch.empty(0)
        wide = torch.promote_types(in_own_precision.dtype, torch.float32)
        self.start = in_own_precision.to(wide)
        self.values = nn.Parameter(self.start.clone())

    def parameters(self) -> list[nn.Parameter]:
        """What an optimiser should move: the flat parameter."""
        return [self.values]

    def vector(self) -> SparseVector:
        """How far the entries have moved so far (φ = θ2 − θ0), as a float32 vector on the CPU."""
        change = (self.values.detach() - self.start).float()
        tensors: dict[str, SparseTensor] = {}
        for name, moved in self._by_tensor(change.cpu()):
            mask = self.selection[name]
            tensors[name] = SparseTensor(mask.indices.cpu(), moved.clone(), mask.shape)
        return SparseVector(tensors)

    def write(self) -> None:
        """Put the flat parameter's values into the model's weights."""
        for name, values in self._by_tensor(self.values.detach()):
            target, indices = self._targets[name]
            write_entries(target.detach(), indices, values)
            weight = self._weights[name]
            if target is not weight:  # embedding rows: also into the whole embedding
                write_entries(weight.detach(), self.selection[name].indices, values)

    def _by_tensor(self, flat: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The parts of a flat tensor [k] by tensor name."""
        sizes = [len(mask.indices) for mask in self.selection.values()]
        return zip(self.selection, flat.split(sizes), strict=True)

    def _gather(self, weight: nn.Parameter, indices: Tensor, start: int) -> None:
        """Move the selected entries of a weight's fresh gradient into the flat one, from `start`
        on; drop the rest."""
        assert weight.grad is not None
        if self.values.grad is None:
            self.values.grad = torch.zeros_like(self.values)
        own_part = self.values.grad[start : start + len(indices)]
        own_part += read_entries(weight.grad, indices)
        weight.grad = None

    def _register_hooks(self) -> list[Any]:
        """Have gradients gathered as they come, and values written after each step of their
        optimiser."""
        hooks: list[Any] = []
        start = 0
        for weight, indices in self._targets.values():
            if len(indices):
                gather = partial(self._gather, indices=indices, start=start)
                hooks.append(weight.register_post_accumulate_grad_hook(gather))
            start += len(indices)
        hooks.append(register_optimizer_step_post_hook(self._write_after_step))
        return hooks

    def _write_after_step(
        self, optimizer: torch.optim.Optimizer, args: object, kwargs: object
    ) -> None:
        """The hook of all optimisers' steps: those of other parameters do not count."""
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter is self.values:
                    self.write()
                    return


@contextmanager
def sparse_tuning(model: nn.Module, selection: Mapping[str, TensorMask]) -> Iterator[SparseTuning]:
    """Let only the selected entries of the model's backbone move, until the end of the block.

    Any torch optimiser over `tuning.parameters()` will do; a closure, as LBFGS wants one, starts
    with `tuning.write()`. The flat parameter is also registered on the model, as `sparse_values`,
    so that gradient clipping and `zero_grad()` on the model see it. Parameters outside the backbone
    (a head) are left alone: train or freeze them as you like. On leaving, the model keeps what was
    learnt.

    Args:
        model: A model of transformers, or one that torch has wrapped.
        selection: Tensor name -> its selected entries: what `select` returns.

    Yields:
        The tuning: its flat parameter, and the vector that it has learnt so far.

    Raises:
        DeftxError: The selection does not fit the model, or the model is within another block of
            sparse tuning.

    Example:
        >>> import torch
        >>> from deftx import select, sparse_tuning
        >>> model = torch.nn.Linear(3, 1)
        >>> mask = select({"weight": torch.tensor([[0.1, 3.0, 0.2]])}, k=1)
        >>> with sparse_tuning(model, mask) as tuning:
        ...     optimizer = torch.optim.AdamW(tuning.parameters(), lr=0.1)
        ...     model(torch.ones(3)).sum().backward()
        ...     optimizer.step()
        >>> tuning.vector()
        SparseVector(k=1 in 1 tensors)
    """
    if hasattr(model, SPARSE_VALUES):
        raise DeftxError("the model is under sparse tuning already: end that block first")
    weights = parameter_groups(model).backbone
    on_device: dict[str, TensorMask] = {}
    for name, mask in selection.items():
        if name not in weights or tuple(weights[name].shape) != mask.shape:
            problem = f"the selection's tensor {name!r} {mask.shape} is not in the model"
            raise DeftxError(f"{problem}: select on its own delta")
        on_device[name] = TensorMask(mask.indices.to(weights[name].device), mask.shape)

    with ExitStack() as stack:
        # Only weights with selected entries have gradients
        for name, weight in weights.items():
            stack.callback(weight.requires_grad_, weight.requires_grad)
            weight.requires_grad_(name in on_device and len(on_device[name].indices) > 0)
            weight.grad = None  # or an earlier loop's would be gathered with the first gradient

        rows = stack.enter_context(_selected_rows(model, weights, on_device))
        tuning = SparseTuning(weights, SparseMask(on_device), rows)
        for hook in tuning._register_hooks():
            stack.callback(hook.remove)
        model.register_parameter(SPARSE_VALUES, tuning.values)
        stack.callback(delattr, model, SPARSE_VALUES)
        stack.callback(tuning.write)
        yield tuning


def _selected_rows(
    model: Any, weights: Mapping[str, nn.Parameter], selection: Mapping[str, TensorMask]
) -> AbstractContextManager[EmbeddingRows | None]:
    """The embedding rows that hold selected entries, trained by themselves: the others need no
    gradient."""
    embeddings = input_embeddings(model)
    if embeddings is None:
        return nullcontext()
    for name, mask in selection.items():
        if weights[name] is embeddings.weight and len(mask.indices):
            return trainable_embedding_rows(model, mask.indices // mask.shape[1])
    return nullcontext()
