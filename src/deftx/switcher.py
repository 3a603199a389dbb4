"""Many languages on one loaded base: the model of each, bit for bit, for the cost of writing its language's entries."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import RLock

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from deftx.core.backbone import backbone
from deftx.core.compose import applied, apply
from deftx.core.entries import read_entries, write_entries
from deftx.core.vector import SparseVector
from deftx.errors import DeftxError, unknown
from deftx.models import Base, check_tokenizer, load_tokenizer, place, trained_length, without_vectors
from deftx.tasks.classification import most_probable, probabilities
from deftx.tasks.data import Examples


@dataclass(frozen=True, eq=False)
class _Entries:
    """The entries of one weight that a language changes: where, and what they are with the language and without."""

    weight: nn.Parameter
    indices: Tensor
    with_it: Tensor
    without: Tensor


class Switcher:
    """A classifier on one base that takes on any of several languages.

    base       folder or hub id of the base that all vectors were made on
    task       the task vector, with its head
    languages  name -> language vector
    force      go on, with a warning, where the base has other weights than the vectors' base

    `with switcher.language("min") as model:` gives the model that `compose(base, task, languages["min"])` would, the
    same to the last bit; None stands for the task alone. A switch writes the entries of the old language and of the
    new one, no more: what they are is computed once, from θ0 in the order of `compose`, so that no rounding adds up.
    Beside the base it takes an index and two values for each entry of each language. The model is on the GPU if there
    is one.

    One thread at a time has the model, and no other language than its own can be written meanwhile. A switch that is
    cut off in its middle (by Ctrl-C, say) is mended by the next one. Raises DeftxError as `compose` does, and for
    vectors that were made with another tokenizer.
    """

    def __init__(
        self, base: Base, task: SparseVector, languages: Mapping[str, SparseVector], *, force: bool = False
    ) -> None:
        self._model = without_vectors(base, task, list(languages.values()), force=force)
        self._tokenizer = load_tokenizer(base)
        check_tokenizer(self._tokenizer, task, *languages.values(), force=force)
        self._length = trained_length(self._model, self._tokenizer, task)
        place(self._model)
        self._entries = {name: _entries(self._model, task, vector) for name, vector in languages.items()}
        apply(self._model, task)
        self._written: list[str] = []  # the language whose entries are in the weights, if any
        self._whole = True  # all of them: False within a switch
        self._lock, self._taken = RLock(), False

    @property
    def languages(self) -> tuple[str, ...]:
        """The names of the languages."""
        return tuple(self._entries)

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of the task, in the order of the columns of `probabilities`."""
        return tuple((self._model.config.id2label or {}).values())

    @contextmanager
    def language(self, name: str | None) -> Iterator[PreTrainedModel]:
        """The model in a language, for this thread alone until the end of the block; None: of the task alone.

        Leave its weights as they are. Raises DeftxError for a language that is not among `languages`.
        """
        if name is not None and name not in self._entries:
            raise unknown("language", name, self._entries)
        with self._lock:
            if self._taken:  # by this thread: others wait at the lock
                raise DeftxError(
                    f"the model is {self._written or 'the task alone'} at the moment: end that block first"
                )
            self._switch(name)
            self._taken = True
            try:
                yield self._model
            finally:
                self._taken = False

    def predict(self, examples: Examples, languages: Sequence[str | None]) -> list[tuple[str, float]]:
        """The most probable label of every example in its own language, and its probability (0 to 1)."""
        return most_probable(self.probabilities(examples, languages), self.labels)

    def probabilities(self, examples: Examples, languages: Sequence[str | None]) -> Tensor:
        """How probable each label is for every example in its own language [examples, labels], float32 on the CPU.

        Each language is switched to once, whatever the order of the examples.
        """
        if len(languages) != len(examples):
            raise DeftxError(f"there are {len(examples)} examples and {len(languages)} languages: give one for each")
        answers = torch.empty(len(examples), len(self.labels))
        for name in sorted(set(languages), key=lambda name: name not in self._written):  # the one at hand first
            rows = [row for row, language in enumerate(languages) if language == name]
            some = Examples(
                [examples.texts[row] for row in rows], examples.pairs and [examples.pairs[row] for row in rows]
            )
            with self.language(name) as model:
                answers[rows] = probabilities(model, self._tokenizer, some, self._length)
        return answers

    @torch.no_grad()
    def _switch(self, name: str | None) -> None:
        """Write a language's entries, those of the languages before it having been written back. Cut off anywhere, it
        leaves in `_written` what is to be written back."""
        wanted = [] if name is None else [name]
        if self._whole and self._written == wanted:
            return
        self._whole = False
        for old in self._written:
            for part in self._entries[old]:
                write_entries(part.weight, part.indices, part.without)
        self._written = wanted
        for new in wanted:
            for part in self._entries[new]:
                write_entries(part.weight, part.indices, part.with_it)
        self._whole = True


def _entries(model: nn.Module, task: SparseVector, language: SparseVector) -> list[_Entries]:
    """What a language changes in a model at θ0, there: its entries of θ0 + φ_language + φ_task and of θ0 + φ_task."""
    weights = backbone(model)
    places = {name: entries.indices.to(weights[name].device) for name, entries in language.tensors.items()}
    values = []
    for vectors in ([language, task], [task]):
        with applied(model, *vectors):
            values.append([read_entries(weights[name].detach(), indices) for name, indices in places.items()])
    return [
        _Entries(weights[name], indices, *both) for (name, indices), *both in zip(places.items(), *values, strict=True)
    ]
