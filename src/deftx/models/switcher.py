"""Many languages on one loaded base: the model of each, bit for bit, for the cost of writing its
language's entries."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import RLock
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from deftx.core.apply import apply, apply_temporarily, check_fit
from deftx.core.entries import read_entries, write_entries
from deftx.core.merge import resolve_terms, rule_of, select_head
from deftx.core.parameters import backbone
from deftx.core.vector import SparseVector, as_list, check_distinct
from deftx.data.examples import Examples, check_examples, check_pairs, check_read
from deftx.errors import DeftxError, unknown
from deftx.models.compose import load_base_with_head, task_type, trained_length, uses_text_pairs
from deftx.models.heads import TASK
from deftx.models.loading import Base, place
from deftx.models.tokenizers import load_tokenizer
from deftx.tasks.base import check_columns, evaluate, output_names, predict
from deftx.tasks.classification import CLASSIFICATION, probabilities
from deftx.tasks.normalization import Spelling, respell

T = TypeVar("T")

# One language for all examples (None: of the task alone), or a list with one for each.
Languages = str | None | Sequence[str | None]


@dataclass(frozen=True, eq=False)
class _Entries:
    """The entries of one weight that differ with a language: where, and what they are with the
    language and without."""

    weight: nn.Parameter
    indices: Tensor
    with_it: Tensor
    without: Tensor


class Switcher:
    """A model of a task on one base that takes on any of several languages.

    base       folder or hub id of the base that all vectors were made on
    task       the task vector, with its head, or several
    languages  name -> language vector, or several that are applied together
    rule       how the vectors are combined, such as `ties` or `scaled:language_scale=1.2`: see
               `merge`
    head       of several task vectors with heads, whose is used: 0 is the first
    spellings  name -> how that language's texts are written anew before the model reads them: see
               `spelling_for`
    ignore_base_mismatch   go on, with a warning, where the base has other weights than the vectors'
                           base

    Its `kind` is that of the task, such as `tagging`; its `pairs` says whether the task reads pairs
    of texts; None where the vector does not tell.

    `with switcher.language("min") as model:` gives the model that `compose(base, task,
    languages["min"], rule=rule, head=head)` would, the same to the last bit; None stands for the
    task alone. A switch writes the entries in which the old language and the new one differ from
    the task alone, no more: what they are is computed once, from θ0 in the order of `compose`, so
    that no rounding adds up. Beside the base it takes an index and two values for each such entry
    of each language; with the sum these are the language vector's. The model is on the GPU if there
    is one.

    One thread at a time has the model, and no other language than its own can be written meanwhile.
    A switch that is cut off in its middle (by Ctrl-C, say) is mended by the next one. Raises
    DeftxError as `compose` does, and for the spelling of a language that is not there.
    """

    def __init__(
        self,
        base: Base,
        task: SparseVector | Sequence[SparseVector],
        languages: Mapping[str, SparseVector | Sequence[SparseVector]],
        *,
        rule: str = "sum",
        head: int | None = None,
        spellings: Mapping[str, Spelling] | None = None,
        ignore_base_mismatch: bool = False,
    ) -> None:
        rule_of(rule)
        if not isinstance(languages, Mapping):
            form = "give them by name, such as {'min': vector}"
            raise DeftxError(f"languages is a {type(languages).__name__}: {form}")
        self._spellings = dict(spellings or {})
        for name in self._spellings.keys() - languages.keys():
            raise unknown("language", name, languages)
        tasks = as_list(task)
        named = {name: as_list(vectors) for name, vectors in languages.items()}
        every = [vector for vectors in named.values() for vector in vectors]
        check_distinct(*tasks)
        for vectors in named.values():
            check_distinct(*tasks, *vectors)
        self._tokenizer = load_tokenizer(base)
        self._model = load_base_with_head(
            base,
            tasks,
            every,
            head=head,
            tokenizer=self._tokenizer,
            ignore_base_mismatch=ignore_base_mismatch,
        )
        alone = resolve_terms(rule, tasks, [], head)
        top = select_head(tasks, head) or tasks[0]
        self._task, self.pairs = task_type(top), uses_text_pairs(top)
        self.kind = str(getattr(self._model.config, TASK))
        self._length = trained_length(self._model, self._tokenizer, top)
        place(self._model)
        check_fit(self._model, *alone, *every)
        self._entries = {
            name: _differing(self._model, resolve_terms(rule, tasks, some, head), alone)
            for name, some in named.items()
        }
        apply(self._model, *alone)
        self._written: str | None = None  # the language whose entries are in the weights, if any
        self._whole = True  # all of them: False within a switch
        self._lock, self._taken = RLock(), False

    @property
    def languages(self) -> tuple[str, ...]:
        """The names of the languages."""
        return tuple(self._entries)

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of the task, in the order of the columns of `probabilities`; none where it has
        no such names."""
        return output_names(self._model) if self._task.label_names else ()

    @contextmanager
    def language(self, name: str | None) -> Iterator[PreTrainedModel]:
        """The model in a language, for this thread alone until the end of the block; None: of the
        task alone.

        Leave its weights as they are. Raises DeftxError for a language that is not among
        `languages`.
        """
        if name is not None and name not in self._entries:
            raise unknown("language", name, self._entries)
        with self._lock:
            if self._taken:  # by this thread: others wait at the lock
                now = "without a language" if self._written is None else f"in {self._written}"
                raise DeftxError(f"the model is {now} at the moment: end that block first")
            self._switch(name)
            self._taken = True
            try:
                yield self._model
            finally:
                self._taken = False

    def predict(
        self, examples: Examples | Sequence[str], language: Languages
    ) -> list[tuple[Any, ...]]:
        """The answer to every example, or text, in its language.

        Args:
            examples: Examples, or texts.
            language: One language for all of them (None: of the task alone), or a list with one
                for each.

        Returns:
            One answer for each example, as its type of task has them: a classifier's is the label
            and its probability, a tagger's the tags of the words.

        Raises:
            DeftxError: An unknown language, or another number of languages than of examples.
        """
        return self._answers(partial(predict, self._task), examples, language)

    def evaluate(self, examples: Examples, language: str | None) -> dict[str, float]:
        """All metrics of the kind of task on labelled examples, in a language: what `deftx
        evaluate` prints.

        Raises DeftxError for examples without labels, and for a label that the task has not learnt.
        """
        check_examples(examples)
        check_pairs(self.pairs, examples)
        with self.language(language) as model:
            return evaluate(
                self._task, model, self._tokenizer, self._spelt(examples, language), self._length
            )

    def probabilities(self, examples: Examples | Sequence[str], language: Languages) -> Tensor:
        """How probable each label is for every example, or text, in its language.

        Args:
            examples: Examples, or texts.
            language: As in `predict`.

        Returns:
            Probabilities [examples, labels], float32 on the CPU.

        Raises:
            DeftxError: The task is no classification; and as `predict` does.
        """
        if self._task is not CLASSIFICATION:
            raise DeftxError("only classifiers have probabilities of labels: use predict")
        rows = self._answers(lambda *inputs: list(probabilities(*inputs)), examples, language)
        return torch.stack(rows) if rows else torch.empty(0, len(self.labels))

    def _answers(
        self, answer: Callable[..., list[T]], inputs: Examples | Sequence[str], language: Languages
    ) -> list[T]:
        """What `answer` gives for every example, in its language.

        Each language is switched to once, whatever the order of the examples.
        """
        check_read(inputs, "read_text")
        examples = inputs if isinstance(inputs, Examples) else Examples(list(inputs))
        languages = _one_for_each(language, len(examples))
        check_columns(self._task, examples)
        check_pairs(self.pairs, examples)

        # The examples of each language together, those of the current language first
        names = sorted(set(languages), key=lambda name: name != self._written)
        answers: dict[int, T] = {}
        for name in names:
            rows = [row for row, other in enumerate(languages) if other == name]
            part = self._spelt(examples.at(rows), name)
            with self.language(name) as model:
                results = answer(model, self._tokenizer, part, self._length)
            answers |= dict(zip(rows, results, strict=True))
        return [answers[row] for row in range(len(examples))]

    def _spelt(self, examples: Examples, language: str | None) -> Examples:
        """Examples of a language as they are read."""
        spelling = self._spellings.get(language) if language else None
        return (
            self._task.map_texts(examples, partial(respell, spelling=spelling))
            if spelling
            else examples
        )

    @torch.no_grad()
    def _switch(self, name: str | None) -> None:
        """Write a language's entries, those of the languages before it having been written back.
        Cut off anywhere, it leaves in `_written` what is to be written back."""
        if self._whole and self._written == name:
            return
        self._whole = False
        for part in self._of(self._written):
            write_entries(part.weight, part.indices, part.without)
        self._written = name
        for part in self._of(name):
            write_entries(part.weight, part.indices, part.with_it)
        self._whole = True

    def _of(self, name: str | None) -> Sequence[_Entries]:
        return () if name is None else self._entries[name]


def _one_for_each(language: Languages, count: int) -> list[str | None]:
    """The language of each of `count` examples."""
    if language is None or isinstance(language, str):
        return [language] * count
    languages = list(language)
    if len(languages) != count:
        numbers = f"there are {count} examples and {len(languages)} languages"
        raise DeftxError(f"{numbers}: give one for each, or one for all")
    return languages


def _differing(
    model: nn.Module, first: Sequence[SparseVector], second: Sequence[SparseVector]
) -> list[_Entries]:
    """The entries in which a model at θ0 differs with `first` added from what it is with `second`:
    to the last bit, so that a switch leaves nothing behind. The model is at θ0 again afterwards."""
    weights, places = backbone(model), {}
    vectors = [
        vector for vector in (*first, *second) if vector not in first or vector not in second
    ]
    for name in dict.fromkeys(name for vector in vectors for name in vector.tensors):
        parts = [vector.tensors[name].indices for vector in vectors if name in vector.tensors]
        places[name] = (parts[0] if len(parts) == 1 else torch.cat(parts).unique()).to(
            weights[name].device
        )
    values = []
    for added in (first, second):
        with apply_temporarily(model, *added):
            values.append(
                [read_entries(weights[name].detach(), indices) for name, indices in places.items()]
            )
    found = []
    for (name, indices), one, other in zip(places.items(), *values, strict=True):
        apart = one.view(torch.int32) != other.view(torch.int32)
        found.append(_Entries(weights[name], indices[apart], one[apart], other[apart]))
    return found
