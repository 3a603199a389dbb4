"""Provenance as JSON: the `info` of vector.json.

Files of others may lack any key, have more, or have values of other types. What no attribute can
hold is kept as it is (`extra`), and so is the order of the keys (`key_order`), so that what is read
is written unchanged.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from deftx.core.provenance import (
    ConversionRecord,
    DataRecord,
    PhaseLog,
    Provenance,
    TokenizerRecord,
    TrainingRecord,
)
from deftx.errors import DeftxError

JSON = Mapping[str, Any]
Record = TypeVar("Record", bound="Provenance | DataRecord | PhaseLog | TokenizerRecord | Any")


def _same(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Key:
    """One key of a JSON object.

    Attributes:
        attribute: The name of the attribute that holds its value.
        read: The attribute's value for a value of the file; None for one of another type.
        write: The file's value for one of the attribute.
    """

    attribute: str
    read: Callable[[Any], Any]
    write: Callable[[Any], Any] = _same


def provenance_from_json(record: JSON) -> Provenance:
    """The provenance that a JSON object records.

    Raises:
        DeftxError: It is no JSON object.
    """
    if not isinstance(record, Mapping):
        raise DeftxError(f"info is a {type(record).__name__}: it must be a JSON object")
    # Sources and terms are such objects themselves, to any depth: the innermost are read first
    records = [record]
    for outer in records:  # which grows
        records += _inner_records(outer)
    provenances: dict[int, Provenance] = {}
    for inner in reversed(records):
        provenances[id(inner)] = _provenance_of(inner, provenances)
    return provenances[id(record)]


def provenance_to_json(provenance: Provenance) -> dict[str, Any]:
    """The JSON object that records a provenance: of one that was read, the same again."""
    provenances = [provenance]
    for outer in provenances:  # which grows
        sources = [outer.source, *outer.sources.values()]
        provenances += [source for source in sources if source is not None]
        provenances += outer.terms
    records: dict[int, dict[str, Any]] = {}
    for inner in reversed(provenances):
        records[id(inner)] = _record_of(inner, records)
    return records[id(provenance)]


def data_to_json(data: DataRecord) -> dict[str, Any]:
    """The JSON object that records the data of a training."""
    return _to_json(data, DATA)


# One level of a provenance, and the other records


def _inner_records(record: JSON) -> list[JSON]:
    sources = record.get("sources")
    terms = record.get("of")
    candidates = [record.get("source")]
    if isinstance(sources, Mapping):
        candidates += sources.values()
    if isinstance(terms, list | tuple):
        candidates += terms
    return [candidate for candidate in candidates if isinstance(candidate, Mapping)]


def _provenance_of(record: JSON, provenances: Mapping[int, Provenance]) -> Provenance:
    """The provenance that a JSON object records, whose inner ones were read before."""

    def source(value: Any) -> Provenance | None:
        return provenances[id(value)] if isinstance(value, Mapping) else None

    def sources(value: Any) -> dict[str, Provenance | None] | None:
        if not _is_mapping_of(value, Mapping | None):
            return None
        return {language: source(inner) for language, inner in value.items()}

    def terms(value: Any) -> tuple[Provenance, ...] | None:
        if not _is_list_of(value, Mapping):
            return None
        return tuple(provenances[id(term)] for term in value)

    nested = {
        "source": Key("source", source),
        "sources": Key("sources", sources),
        "of": Key("terms", terms),
    }
    return _from_json(Provenance, {**PROVENANCE, **nested}, record)


def _record_of(provenance: Provenance, records: Mapping[int, JSON]) -> dict[str, Any]:
    """The JSON object of a provenance, whose inner ones were written before."""

    def source(value: Provenance | None) -> JSON | None:
        return None if value is None else records[id(value)]

    def sources(value: Mapping[str, Provenance | None]) -> dict[str, JSON | None]:
        return {language: source(inner) for language, inner in value.items()}

    def terms(value: Iterable[Provenance]) -> list[JSON]:
        return [records[id(term)] for term in value]

    nested = {
        "source": Key("source", _same, source),
        "sources": Key("sources", _same, sources),
        "of": Key("terms", _same, terms),
    }
    # That a task has no labels, or was trained on the base alone, is recorded, too
    is_trained_task = provenance.kind == "task" and bool(provenance.log)
    always = ("labels", "source") if is_trained_task and not provenance.key_order else ()
    return _to_json(provenance, {**PROVENANCE, **nested}, always)


def _from_json(kind: type[Record], keys: Mapping[str, Key], record: JSON) -> Record:
    """A record of this kind, by the table of its keys."""
    nothing = kind()
    values: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for name, value in record.items():
        key = keys.get(name)
        if key is None:
            extra[name] = value
            continue
        if value is None and getattr(nothing, key.attribute) is None:
            continue  # nothing is recorded; that it is said is known by the `key_order`
        known = key.read(value)
        if known is None:
            extra[name] = value
        else:
            values[key.attribute] = known
    return kind(**values, extra=extra, key_order=tuple(record))


def _to_json(record: Any, keys: Mapping[str, Key], always: Iterable[str] = ()) -> dict[str, Any]:
    """The JSON object of a record: first the keys of its file, then what else it has, in the order
    of the table.

    `always` names the keys that are written even where nothing is recorded.
    """
    nothing = type(record)()
    content: dict[str, Any] = {}
    for name in dict.fromkeys([*record.key_order, *keys, *record.extra]):
        if name not in keys:
            if name in record.extra:
                content[name] = record.extra[name]
            continue
        key = keys[name]
        value = getattr(record, key.attribute)
        if value != getattr(nothing, key.attribute):
            content[name] = key.write(value)
        elif name in record.extra:
            content[name] = record.extra[name]
        elif name in record.key_order or name in always:
            content[name] = None if value is None else key.write(value)
    return content


# Values of the expected types; None for others


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _truth(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _integer(value: Any) -> int | None:
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    return value if is_integer else None


def _number(value: Any) -> int | float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number else None


def _rank(value: Any) -> int | float | str | None:
    return value if isinstance(value, str) else _number(value)


def _is_list_of(value: Any, kinds: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(part, kinds) for part in value)


def _is_mapping_of(value: Any, kinds: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(part, kinds) for part in value.values())


def _texts(value: Any) -> tuple[str, ...] | None:
    return tuple(value) if _is_list_of(value, str) else None


def _texts_by_name(value: Any) -> dict[str, str] | None:
    return dict(value) if _is_mapping_of(value, str) else None


def _integers_by_name(value: Any) -> dict[str, int] | None:
    is_known = isinstance(value, Mapping) and all(
        _integer(number) is not None for number in value.values()
    )
    return dict(value) if is_known else None


def _rows(value: Any) -> list[JSON] | None:
    return list(value) if _is_list_of(value, Mapping) else None


def _tokenizer(value: Any) -> TokenizerRecord | None:
    return _from_json(TokenizerRecord, TOKENIZER, value) if isinstance(value, Mapping) else None


def _data(value: Any) -> DataRecord | None:
    return _from_json(DataRecord, DATA, value) if isinstance(value, Mapping) else None


def _settings(value: Any) -> dict[str, Any] | None:
    return dict(value) if isinstance(value, Mapping) else None


def _training(value: Any) -> TrainingRecord | None:
    return TrainingRecord(dict(value)) if isinstance(value, Mapping) else None


def _log(value: Any) -> dict[str, PhaseLog] | None:
    if not _is_mapping_of(value, Mapping):
        return None
    return {phase: _from_json(PhaseLog, PHASE, log) for phase, log in value.items()}


def _converted(value: Any) -> ConversionRecord | None:
    return _from_json(ConversionRecord, CONVERTED, value) if isinstance(value, Mapping) else None


def _log_to_json(log: Mapping[str, PhaseLog]) -> dict[str, Any]:
    return {phase: _to_json(course, PHASE) for phase, course in log.items()}


# The keys of each record, in the order in which new files have them

TOKENIZER = {
    "name": Key("name", _text),
    "digest": Key("digest", _text),
}
DATA = {
    "lines": Key("lines", _integer),
    "train": Key("train", _integer),
    "valid": Key("valid", _integer),
    "lower_case": Key("lower_case", _truth),
    "pairs": Key("pairs", _truth),
    "digest": Key("digest", _text),
    "sources": Key("sources", _texts, list),
}
PHASE = {
    "steps": Key("steps", _integer),
    "best_step": Key("best_step", _integer),
    "best_score": Key("best_score", _number),
    "start_score": Key("start_score", _number),
    "history": Key("history", _rows, list),
}
CONVERTED = {
    "from": Key("format", _text),
    "prefix": Key("prefix", _text),
}
PROVENANCE = {
    "kind": Key("kind", _text),
    "base": Key("base", _text),
    "base_fingerprint": Key("base_fingerprint", _text),
    "tokenizer": Key("tokenizer", _tokenizer, lambda record: _to_json(record, TOKENIZER)),
    "versions": Key("versions", _texts_by_name, dict),
    "labels": Key("labels", _texts, list),
    "source": Key("source", _same),  # those three are read and written one in the other
    "sources": Key("sources", _same),
    "temperature": Key("temperature", _number),
    "data": Key("data", _data, data_to_json),
    "seed": Key("seed", _integer),
    "training": Key("training", _training, lambda training: dict(training.settings)),
    "method": Key("method", _text),
    "k": Key("k", _integer),
    "rank": Key("rank", _rank),
    "keep": Key("keep", _number),
    "keep_of": Key("keep_of", _text),
    "split": Key("split", _text),
    "phase1_steps": Key("phase1_steps", _integer),
    "phase2": Key("phase2", _truth),
    "reselection": Key("reselection", _settings, dict),
    "task": Key("task", _text),
    "rank_rule": Key("rank_rule", _rank),
    "ranks": Key("ranks", _integers_by_name, dict),
    "log": Key("log", _log, _log_to_json),
    "language": Key("language", _text),
    "finetuned": Key("finetuned", _text),
    "converted": Key("converted", _converted, lambda record: _to_json(record, CONVERTED)),
    "operation": Key("operation", _text),
    "of": Key("terms", _same),
}
