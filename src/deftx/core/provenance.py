"""Where a vector comes from: what was trained on what, and how."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any


@dataclass(frozen=True)
class TokenizerRecord:
    """The tokenizer that a vector was made with.

    Attributes:
        name: Folder or hub id.
        digest: SHA-256 (64 hex digits) of its tokens and their ids.
        extra: What a file records beside the attributes, by key.
        key_order: The keys of the file, in its order; what they name is written first.
    """

    name: str | None = None
    digest: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    key_order: tuple[str, ...] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True)
class DataRecord:
    """The data that a vector was trained on.

    Attributes:
        lines: The number of lines of a language's text.
        train: The number of labelled examples.
        valid: The number of held-out examples.
        lower_case: Whether no text has capitals.
        pairs: Whether inputs are pairs of texts.
        digest: A name of the tokenised data: equal for equal data.
        sources: The names of the files or data sets.
        extra: What a file records beside the attributes, by key.
        key_order: The keys of the file, in its order; what they name is written first.
    """

    lines: int | None = None
    train: int | None = None
    valid: int | None = None
    lower_case: bool | None = None
    pairs: bool | None = None
    digest: str | None = None
    sources: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    key_order: tuple[str, ...] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True)
class TrainingRecord:
    """The settings of a training.

    Attributes:
        settings: All settings by name, as in `LanguageTrainingConfig` and `TaskTrainingConfig`.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def length(self) -> int | None:
        """The number of tokens that inputs were cut to."""
        length = self.settings.get("length")
        is_integer = isinstance(length, int) and not isinstance(length, bool)
        return length if is_integer else None

    @property
    def metric(self) -> str | None:
        """The metric by which the best step was chosen."""
        metric = self.settings.get("metric")
        return metric if isinstance(metric, str) else None


@dataclass(frozen=True)
class PhaseLog:
    """How a training went.

    Attributes:
        steps: Optimiser steps taken.
        best_step: The evaluated step whose weights were kept.
        best_score: Its score on the held-out data.
        start_score: The score before the first step.
        history: Rows of training losses and of scores.
        extra: What a file records beside the attributes, by key.
        key_order: The keys of the file, in its order; what they name is written first.
    """

    steps: int | None = None
    best_step: int | None = None
    best_score: float | None = None
    start_score: float | None = None
    history: Sequence[Mapping[str, float]] = field(default=(), repr=False)
    extra: Mapping[str, Any] = field(default_factory=dict)
    key_order: tuple[str, ...] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True)
class ConversionRecord:
    """The file of another library that a vector was converted from.

    Attributes:
        format: `lt-sft` or `peft`.
        prefix: What the names of the backbone's tensors began with, without its dot.
        extra: What a file records beside the attributes, by key.
        key_order: The keys of the file, in its order; what they name is written first.
    """

    format: str | None = None
    prefix: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    key_order: tuple[str, ...] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True)
class Provenance:
    """Where a vector comes from, as far as it is recorded.

    An attribute is None (or empty) where nothing is recorded. Files of others may have more, or
    values of other types; these are kept in `extra`, so that a file that is loaded and saved says
    what it said before. Copies with other attributes are made by `dataclasses.replace`.

    Attributes:
        kind: `language`, `task` or `difference`.
        base: Folder or hub id of the base.
        base_fingerprint: The base by its weights: see `deftx.models.fingerprint.fingerprint`.
        tokenizer: The tokenizer; None where none is recorded: the vector fits any.
        versions: The versions of the libraries, by package.
        labels: The labels that a task was trained with.
        source: Of a task vector of one language, the language vector that it was trained on top of.
        sources: Of a task vector of several languages, the language vectors by language; None for a
            language that was trained on the base alone.
        temperature: How even several languages were made.
        data: The data of the training.
        seed: The seed of the fit.
        training: The settings of the training.
        method: `deftx`, `lt-sft`, `random` or another method.
        k: The number of entries when the vector was made.
        rank: The rank as it was set: a number, or text such as `90%` or the name of a rule.
        keep: The share of largest residual entries that denoising kept.
        keep_of: What `keep` is a share of.
        split: Within what the entries competed.
        phase1_steps: The most steps of phase 1, where they were other than phase 2's.
        phase2: Whether the selected entries were trained again from the base.
        reselection: When entries were chosen again during the training, by setting.
        task: The type of task, such as `classification`.
        rank_rule: What the rank stood for, where it does not say so itself.
        ranks: The rank of each denoised matrix, by name.
        log: How the training went, by phase.
        language: The language, for a language vector whose language was named.
        finetuned: Of an extracted vector, the fine-tuned model.
        converted: Of a converted vector, the file that it was made from.
        operation: Of a computed vector, what was done, such as `sum`.
        terms: Of a computed vector, where the vectors come from that it was computed from.
        extra: What a file records beside the attributes, by key.
        key_order: The keys of the file, in its order; what they name is written first.

    Example:
        >>> from dataclasses import replace
        >>> from deftx import Provenance
        >>> provenance = Provenance(kind="language", base="FacebookAI/xlm-roberta-base", k=3)
        >>> replace(provenance, k=4).base
        'FacebookAI/xlm-roberta-base'
    """

    # What it is of, and what it was trained on
    kind: str | None = None
    base: str | None = None
    base_fingerprint: str | None = None
    tokenizer: TokenizerRecord | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    source: "Provenance | None" = None
    sources: Mapping[str, "Provenance | None"] = field(default_factory=dict)
    temperature: float | None = None
    data: DataRecord = field(default_factory=DataRecord)

    # How it was trained
    seed: int | None = None
    training: TrainingRecord = field(default_factory=TrainingRecord)
    method: str | None = None
    k: int | None = None
    rank: int | float | str | None = None
    keep: float | None = None
    keep_of: str | None = None
    split: str | None = None
    phase1_steps: int | None = None
    phase2: bool | None = None
    reselection: Mapping[str, Any] | None = None
    task: str | None = None
    rank_rule: int | float | str | None = None
    ranks: Mapping[str, int] | None = None
    log: Mapping[str, PhaseLog] = field(default_factory=dict)
    language: str | None = None

    # What it was made from without a training
    finetuned: str | None = None
    converted: ConversionRecord | None = None
    operation: str | None = None
    terms: tuple["Provenance", ...] = ()

    # What a file says besides
    extra: Mapping[str, Any] = field(default_factory=dict)
    key_order: tuple[str, ...] = field(default=(), compare=False, repr=False)

    @property
    def languages(self) -> tuple[str, ...]:
        """All languages that are recorded, each once: its own, its sources', those of its terms."""
        return tuple(dict.fromkeys(self._languages()))

    def _languages(self) -> Iterator[str]:
        remaining = [self]
        while remaining:  # no recursion: a sum of a sum of a sum may be deep
            provenance = remaining.pop()
            if provenance.language is not None:
                yield provenance.language
            yield from provenance.sources
            remaining += reversed(provenance.terms)

    def updated(self, later: "Provenance") -> "Provenance":
        """This provenance, with all that a later one records in place of what it says."""
        nothing = Provenance()
        changes: dict[str, Any] = {}
        for attribute in fields(Provenance):
            value = getattr(later, attribute.name)
            if value != getattr(nothing, attribute.name):
                changes[attribute.name] = value
        changes["extra"] = {**self.extra, **later.extra}
        changes["key_order"] = tuple(dict.fromkeys([*self.key_order, *later.key_order]))
        return replace(self, **changes)
