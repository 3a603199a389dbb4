"""What a model is trained for: the interface between data and the training loop."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from torch import Generator, Tensor, nn

Batch = dict[str, Tensor]

IGNORED = -100  # the target of a token that is not to be labelled, as in torch's cross-entropy


def labelled_tokens(targets: Tensor) -> int:
    """How many of the targets of tokens are not IGNORED."""
    return int((targets != IGNORED).sum())


class Objective(Protocol):
    """Training data, a loss, and scores on held-out data.

    An objective may also have `training_context(model, batch)`: see the function of that name.
    """

    @property
    def train(self) -> Sequence[Any]:
        """The training examples: a sequence of what `collate` takes."""

    @property
    def metric(self) -> str:
        """Which of the scores of `validate` decides between steps."""

    @property
    def greater_is_better(self) -> bool:
        """Whether larger values of that score are better."""

    @property
    def digest(self) -> str:
        """A name of the data: other data has another name."""

    @property
    def vocabulary_used(self) -> Tensor:
        """All token ids that a training batch can hold [n], padding aside."""

    def collate(self, examples: list[Any], generator: Generator | None = None) -> Batch:
        """One batch of examples.

        Args:
            examples: Some of `train`.
            generator: Draws what is random in a batch, such as masks, example by example: two
                batches of four examples hold the same as one of eight. None: torch's own.

        Returns:
            Tensors by name, each [batch, ...]; the targets are called `labels`.
        """

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of a batch, a scalar."""

    def loss_denominator(self, batch: Batch) -> int:
        """How many labelled things the loss of a batch is the mean of."""

    def validate(self, model: nn.Module, batch_size: int) -> dict[str, float]:
        """Scores on the held-out data."""


def training_context(
    objective: Objective, model: nn.Module, batch: Batch
) -> AbstractContextManager[None]:
    """What the forward and the backward pass of a batch run in: nothing, unless the objective says
    otherwise."""
    own_context = getattr(objective, "training_context", None)
    if own_context is None:
        return nullcontext()
    context: AbstractContextManager[None] = own_context(model, batch)
    return context
