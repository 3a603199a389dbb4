"""Where a vector comes from: the typed form of `info` in vector.json."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from deftx.errors import DeftxError

JSON = Mapping[str, Any]


@dataclass(frozen=True)
class TokenizerRecord:
    """The tokenizer that a vector was made with.

    Attributes:
        name: Folder or hub id.
        digest: SHA-256 (64 hex digits) of its tokens and their ids.
    """

    name: str | None
    digest: str | None


@dataclass(frozen=True)
class DataRecord:
    """The data that a vector was trained on.

    Attributes:
        record: As in the file: numbers of lines or examples, a digest, and what else is recorded.
    """

    record: JSON = field(default_factory=dict)

    @property
    def digest(self) -> str | None:
        """A name of the tokenised data: equal for equal data."""
        return _text(self.record.get("digest"))

    @property
    def pairs(self) -> bool | None:
        """Whether the task has pairs of texts as input; None where it is not recorded."""
        pairs = self.record.get("pairs")
        return pairs if isinstance(pairs, bool) else None

    @property
    def lower_case(self) -> bool:
        """Whether it is recorded that no text has capitals."""
        return self.record.get("lower_case") is True


@dataclass(frozen=True)
class TrainingRecord:
    """The settings of a training.

    Attributes:
        record: As in the file: all settings by name.
    """

    record: JSON = field(default_factory=dict)

    @property
    def length(self) -> int | None:
        """The number of tokens that inputs were cut to."""
        return _integer(self.record.get("length"))

    @property
    def metric(self) -> str | None:
        """The metric by which the best step was chosen."""
        return _text(self.record.get("metric"))


@dataclass(frozen=True)
class Provenance:
    """Where a vector comes from, as far as it is recorded.

    Files of others may lack any of it, have more, or have values of other types. An attribute is
    None (or empty) where nothing is recorded or where the value has another type; what is unknown
    is in `extra`. Nothing is lost: `to_json` gives back what was read, in the same order.

    Attributes:
        record: The JSON object of the file.

    Example:
        >>> provenance = Provenance.of(kind="language", base="FacebookAI/xlm-roberta-base", k=3)
        >>> provenance.base
        'FacebookAI/xlm-roberta-base'
        >>> provenance.changed(k=4).to_json()
        {'kind': 'language', 'base': 'FacebookAI/xlm-roberta-base', 'k': 4}
    """

    record: JSON = field(default_factory=dict)

    @classmethod
    def of(cls, **record: Any) -> "Provenance":
        """A provenance with these entries, in this order."""
        return cls(record)

    @classmethod
    def from_json(cls, record: JSON) -> "Provenance":
        """The provenance that a file's JSON object records.

        Raises:
            DeftxError: It is no JSON object.
        """
        if not isinstance(record, Mapping):
            raise DeftxError(f"info is a {type(record).__name__}: it must be a JSON object")
        return cls(record)

    def to_json(self) -> dict[str, Any]:
        """The JSON object for a file: what was read, in the same order."""
        return dict(self.record)

    def changed(self, **changes: Any) -> "Provenance":
        """A copy with other entries: those that are there keep their place, new ones come last."""
        return Provenance({**self.record, **changes})

    # What it is

    @property
    def kind(self) -> str | None:
        """`language`, `task` or `difference`."""
        return _text(self.record.get("kind"))

    @property
    def language(self) -> str | None:
        """The language, for a language vector whose language was named."""
        return _text(self.record.get("language"))

    @property
    def task(self) -> str | None:
        """The type of task, such as `classification`."""
        return _text(self.record.get("task"))

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that a task was trained with."""
        labels = self.record.get("labels")
        if not isinstance(labels, list | tuple):
            return ()
        return tuple(str(label) for label in labels)

    @property
    def k(self) -> int | None:
        """The number of entries, when the vector was made."""
        return _integer(self.record.get("k"))

    # What it was made on

    @property
    def base(self) -> str | None:
        """Folder or hub id of the base."""
        return _text(self.record.get("base"))

    @property
    def base_fingerprint(self) -> str | None:
        """The base by its weights: see `deftx.models.fingerprint.fingerprint`."""
        return _text(self.record.get("base_fingerprint"))

    @property
    def tokenizer(self) -> TokenizerRecord | None:
        """The tokenizer; None where none is recorded: the vector fits any."""
        tokenizer = self.record.get("tokenizer")
        if not isinstance(tokenizer, Mapping):
            return None
        return TokenizerRecord(_text(tokenizer.get("name")), _text(tokenizer.get("digest")))

    @property
    def finetuned(self) -> str | None:
        """Of an extracted vector, the fine-tuned model."""
        return _text(self.record.get("finetuned"))

    @property
    def source(self) -> "Provenance | None":
        """Of a task vector of one language, the language vector that it was trained on top of."""
        return _provenance(self.record.get("source"))

    @property
    def sources(self) -> Mapping[str, "Provenance | None"]:
        """Of a task vector of several languages, the language vectors by language."""
        sources = _mapping(self.record.get("sources"))
        return {str(language): _provenance(source) for language, source in sources.items()}

    # How it was made

    @property
    def method(self) -> str | None:
        """What selected the entries, such as `deftx` or `lt-sft`."""
        return _text(self.record.get("method"))

    @property
    def rank(self) -> int | float | str | None:
        """The rank as it was set: a number, or text such as `90%` or the name of a rule."""
        rank = self.record.get("rank")
        is_rank = isinstance(rank, int | float | str) and not isinstance(rank, bool)
        return rank if is_rank else None

    @property
    def keep(self) -> float | None:
        """The share of largest residual entries that denoising kept."""
        keep = self.record.get("keep")
        return keep if isinstance(keep, float) else None

    @property
    def keep_of(self) -> str | None:
        """What `keep` is a share of."""
        return _text(self.record.get("keep_of"))

    @property
    def rank_rule(self) -> str | None:
        """The rule that chose the ranks, where one did."""
        return _text(self.record.get("rank_rule"))

    @property
    def ranks(self) -> Mapping[str, int]:
        """The rank of each denoised matrix, by name."""
        ranks = _mapping(self.record.get("ranks"))
        return {str(name): rank for name, rank in ranks.items() if _integer(rank) is not None}

    @property
    def seed(self) -> int | None:
        """The seed of the fit."""
        return _integer(self.record.get("seed"))

    @property
    def training(self) -> TrainingRecord:
        """The settings of the training."""
        return TrainingRecord(_mapping(self.record.get("training")))

    @property
    def data(self) -> DataRecord:
        """The data of the training."""
        return DataRecord(_mapping(self.record.get("data")))

    @property
    def log(self) -> JSON:
        """How the training went, by phase."""
        return _mapping(self.record.get("log"))

    @property
    def versions(self) -> Mapping[str, str]:
        """The versions of the libraries, by package."""
        versions = _mapping(self.record.get("versions"))
        return {str(package): str(version) for package, version in versions.items()}

    # What it was computed from

    @property
    def operation(self) -> str | None:
        """Of a computed vector, what was done, such as `sum`."""
        return _text(self.record.get("operation"))

    @property
    def terms(self) -> tuple["Provenance", ...]:
        """Of a computed vector, where the vectors come from that it was computed from (`of`)."""
        terms = self.record.get("of")
        if not isinstance(terms, list | tuple):
            return ()
        return tuple(Provenance(term) for term in terms if isinstance(term, Mapping))

    @property
    def languages(self) -> tuple[str, ...]:
        """All languages that are recorded, each once: its own, its sources', those of its terms."""
        return tuple(dict.fromkeys(self._languages()))

    def _languages(self) -> Iterator[str]:
        if self.language is not None:
            yield self.language
        yield from self.sources
        for term in self.terms:
            yield from term._languages()

    @property
    def extra(self) -> JSON:
        """What is recorded beside the attributes above."""
        return {key: value for key, value in self.record.items() if key not in KNOWN}


# The keys of `info` in vector.json that an attribute stands for
KNOWN = frozenset(
    {
        *("kind", "language", "task", "labels", "k"),
        *("base", "base_fingerprint", "tokenizer", "finetuned", "source", "sources"),
        *(
            "method",
            "rank",
            "keep",
            "keep_of",
            "rank_rule",
            "ranks",
            "seed",
            "training",
            "data",
            "log",
            "versions",
        ),
        *("operation", "of"),
    }
)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _integer(value: object) -> int | None:
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    return value if is_integer else None  # type: ignore[return-value]


def _mapping(value: object) -> JSON:
    return value if isinstance(value, Mapping) else {}


def _provenance(value: object) -> Provenance | None:
    return Provenance(value) if isinstance(value, Mapping) else None
