"""Many languages on one loaded base: the model of each, bit for bit, for the cost of writing its
language's entries."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from threading import RLock
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from deftx.core.apply import apply, apply_temporarily, check_fit
from deftx.core.entries import read_entries, write_entries
from deftx.core.merge import resolve_terms, rule_of, select_head
from deftx.core.parameters import parameter_groups
from deftx.core.vector import SparseVector
from deftx.core.vector_checks import as_list, check_distinct
from deftx.data.examples import Examples, check_examples, check_pairs, check_read
from deftx.errors import DeftxError, unknown
from deftx.models.compose import load_base_with_head, task_type, trained_length, uses_text_pairs
from deftx.models.heads import TASK
from deftx.models.loading import Base, place
from deftx.models.tokenizers import load_tokenizer
from deftx.tasks.base import check_columns, evaluate, output_names, predict
from deftx.tasks.classification import CLASSIFICATION, probabilities
from deftx.tasks.normalization import Normalizer, normalize_text

T = TypeVar("T")

# One language for all examples (None: of the task alone), or a list with one for each.
Languages = str | None | Sequence[str | None]


@dataclass(frozen=True, eq=False)
class _Entries:
    """The entries of one weight that differ with a language.

    Attributes:
        weight: The parameter.
        indices: Positions in the flattened weight [n] int64.
        with_language: Their values with the language [n].
        without: Their values without a language [n].
    """

    weight: nn.Parameter
    indices: Tensor
    with_language: Tensor
    without: Tensor


class Switcher:
    """A model of a task on one base that takes on any of several languages.

    `with switcher.language("min") as model:` gives the model that `compose(base, task,
    languages["min"], rule=rule, head=head)` would, the same to the last bit; None stands for the
    task alone.

    A switch writes the entries in which the old and the new language differ from the task alone,
    and no others. These values are computed once, from θ0 in the order of `compose`, so that no
    rounding adds up. Besides the base, this takes an index and two values for each such entry of
    each language; with the rule `sum` these are the entries of the language vector. The model is on
    the GPU if there is one.

    One thread at a time has the model, and no other language can be written meanwhile. A switch
    that is interrupted (by Ctrl-C, say) is repaired by the next one.

    Args:
        base: Folder or hub id of the base that all vectors were made on.
        task: The task vector, with its head, or several.
        languages: By name, a language vector, or several that are applied together.
        rule: How the vectors are combined, such as `ties` or `scaled:language_scale=1.2`: see
            `merge`.
        head: Of several task vectors with heads, which head is used: 0 is the first.
        normalizers: By name, how that language's texts are normalised before the model reads them:
            see `build_normalizer`.
        ignore_base_mismatch: Warn, instead of raising, where the base has other weights than the
            vectors' base.

    Attributes:
        kind: The kind of task, such as `tagging`.
        pairs: Whether the task has pairs of texts as input; None where the vector does not tell.

    Raises:
        DeftxError: As `compose` does, and where a normalizer is of a language that is not in
            `languages`.
    """

    def __init__(
        self,
        base: Base,
        task: SparseVector | Sequence[SparseVector],
        languages: Mapping[str, SparseVector | Sequence[SparseVector]],
        *,
        rule: str = "sum",
        head: int | None = None,
        normalizers: Mapping[str, Normalizer] | None = None,
        ignore_base_mismatch: bool = False,
    ) -> None:
        rule_of(rule)
        if not isinstance(languages, Mapping):
            form = "give them by name, such as {'min': vector}"
            raise DeftxError(f"languages is a {type(languages).__name__}: {form}")
        self._normalizers = dict(normalizers or {})
        for name in self._normalizers.keys() - languages.keys():
            raise unknown("language", name, languages)
        tasks = as_list(task)
        named = {name: as_list(vectors) for name, vectors in languages.items()}
        all_vectors = list(chain.from_iterable(named.values()))
        check_distinct(*tasks)
        for vectors in named.values():
            check_distinct(*tasks, *vectors)
        self._tokenizer = load_tokenizer(base)
        self._model = load_base_with_head(
            base,
            tasks,
            all_vectors,
            head=head,
            tokenizer=self._tokenizer,
            ignore_base_mismatch=ignore_base_mismatch,
        )
        top = select_head(tasks, head) or tasks[0]
        self._task = task_type(top)
        self.pairs = uses_text_pairs(top)
        self.kind = str(getattr(self._model.config, TASK))
        self._length = trained_length(self._model, self._tokenizer, top)
        place(self._model)

        # What each language changes; then the model is that of the task alone
        task_alone = resolve_terms(rule, tasks, [], head)
        check_fit(self._model, *task_alone, *all_vectors)
        self._entries = {}
        for name, vectors in named.items():
            with_language = resolve_terms(rule, tasks, vectors, head)
            self._entries[name] = _differing(self._model, with_language, task_alone)
        apply(self._model, *task_alone)

        self._current: str | None = None  # the language whose entries are in the weights, if any
        self._is_complete = True  # whether all of them are: False within a switch
        self._lock = RLock()
        self._in_use = False

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

        Leave its weights as they are.

        Raises:
            DeftxError: The language is not among `languages`.
        """
        if name is not None and name not in self._entries:
            raise unknown("language", name, self._entries)
        with self._lock:
            if self._in_use:  # by this thread: others wait for the lock
                state = "without a language" if self._current is None else f"in {self._current}"
                raise DeftxError(f"the model is {state} at the moment: end that block first")
            self._switch(name)
            self._in_use = True
            try:
                yield self._model
            finally:
                self._in_use = False

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

        Raises:
            DeftxError: The examples have no labels, or one that the task has not learnt.
        """
        check_examples(examples)
        check_pairs(self.pairs, examples)
        with self.language(language) as model:
            return evaluate(
                self._task,
                model,
                self._tokenizer,
                self._normalized(examples, language),
                self._length,
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
        names = sorted(set(languages), key=lambda name: name != self._current)
        answers: dict[int, T] = {}
        for name in names:
            rows = [row for row, other in enumerate(languages) if other == name]
            part = self._normalized(examples.at(rows), name)
            with self.language(name) as model:
                results = answer(model, self._tokenizer, part, self._length)
            answers |= dict(zip(rows, results, strict=True))
        return [answers[row] for row in range(len(examples))]

    def _normalized(self, examples: Examples, language: str | None) -> Examples:
        """Examples of a language as they are read."""
        normalizer = self._normalizers.get(language) if language else None
        if not normalizer:
            return examples
        return self._task.map_texts(examples, partial(normalize_text, normalizer=normalizer))

    @torch.no_grad()
    def _switch(self, name: str | None) -> None:
        """Write back the entries of the current language, and write those of another one.

        Interrupted anywhere, it leaves in `_current` what is to be written back.
        """
        if self._is_complete and self._current == name:
            return
        self._is_complete = False
        for part in self._entries_of(self._current):
            write_entries(part.weight, part.indices, part.without)
        self._current = name
        for part in self._entries_of(name):
            write_entries(part.weight, part.indices, part.with_language)
        self._is_complete = True

    def _entries_of(self, name: str | None) -> Sequence[_Entries]:
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
    model: nn.Module, with_language: Sequence[SparseVector], task_alone: Sequence[SparseVector]
) -> list[_Entries]:
    """The entries in which a model differs with a language, to the last bit, so that a switch
    leaves nothing behind.

    Args:
        model: At θ0, as it is again afterwards.
        with_language: What is added to θ0 for the language.
        task_alone: What is added to θ0 without a language.
    """
    weights = parameter_groups(model).backbone
    changing = _not_shared(with_language, task_alone)

    # Where the weights may differ: wherever a vector that is not part of both has an entry
    indices: dict[str, Tensor] = {}
    for vector in changing:
        for name in vector.tensors:
            if name in indices:
                continue
            parts = [other.tensors[name].indices for other in changing if name in other.tensors]
            union = parts[0] if len(parts) == 1 else torch.cat(parts).unique()
            indices[name] = union.to(weights[name].device)

    values_with = _values(model, with_language, indices)
    values_without = _values(model, task_alone, indices)
    differing = []
    for name, places in indices.items():
        value_with, value_without = values_with[name], values_without[name]
        differs = value_with.view(torch.int32) != value_without.view(torch.int32)
        differing.append(
            _Entries(weights[name], places[differs], value_with[differs], value_without[differs])
        )
    return differing


def _not_shared(
    first: Sequence[SparseVector], second: Sequence[SparseVector]
) -> list[SparseVector]:
    """The vectors that are in one of two lists only."""
    return [vector for vector in (*first, *second) if vector not in first or vector not in second]


def _values(
    model: nn.Module, vectors: Sequence[SparseVector], indices: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The values of some entries of the weights, by name, while vectors are applied."""
    weights = parameter_groups(model).backbone
    with apply_temporarily(model, *vectors):
        return {
            name: read_entries(weights[name].detach(), places) for name, places in indices.items()
        }
