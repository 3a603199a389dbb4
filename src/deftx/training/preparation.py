"""What a fit starts from: a loaded model at θ0 or θ0 + φ_source, an objective on the data, and
where they come from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from math import inf
from typing import Any

from transformers import PreTrainedModel

from deftx.config import LanguageVectorConfig, TaskVectorConfig, VectorConfig, changed
from deftx.core.apply import apply, check_fit
from deftx.core.parameters import ParameterGroups, parameter_groups
from deftx.core.provenance import DataRecord, Provenance, TokenizerRecord
from deftx.core.ranks import is_split_half
from deftx.core.reselection import RESELECTIONS
from deftx.core.tensors import Head
from deftx.core.vector import SparseVector, check_same_base
from deftx.core.vector_checks import check_language
from deftx.core.weights import WEIGHT_RULES
from deftx.data.examples import Examples, check_examples, check_pairs, check_read, joined, written
from deftx.data.letter_case import lower_case
from deftx.data.unknown_text import check_embedded, no_embedding
from deftx.errors import DeftxError
from deftx.models.fingerprint import check_base, fingerprint
from deftx.models.heads import load_task_model
from deftx.models.limits import longest_input
from deftx.models.loading import Base, load_language_model, place
from deftx.models.saving import recorded_name
from deftx.models.tokenizers import check_tokenizer, load_tokenizer, tokenizer_record
from deftx.objectives.base import Objective
from deftx.objectives.registry import language_of
from deftx.tasks.base import Supervised, names_of, supervised
from deftx.tasks.registry import settled, task_of
from deftx.training import distributed
from deftx.training.multi_source import multi_source


@dataclass(frozen=True, eq=False)
class PreparedTraining:
    """A model about to be trained.

    Attributes:
        model: At θ0, or at θ0 + φ_source.
        groups: Its parameters.
        objective: What it is to be trained for.
        origin: Where a vector learnt so comes from: kind, base, tokenizer, data, versions.
        settings: How to train it. With several sources a batch is one item, so that the batch size
            is 1.
    """

    model: PreTrainedModel
    groups: ParameterGroups
    objective: Objective
    origin: Provenance
    settings: VectorConfig


def prepare_language(
    base: Base, text: Sequence[str], settings: LanguageVectorConfig
) -> PreparedTraining:
    """`base` and the lines of a language's plain text, to be learnt as this kind of base learns a
    language.

    Raises:
        DeftxError: The base cannot be loaded, or the text is too short or unknown to its tokenizer.
    """
    distributed.join()
    check_read(text, "read_text")
    tokenizer = load_tokenizer(base)
    training = settings.training
    model = load_language_model(
        base,
        training.head,
        lm_head=training.lm_head,
        dropout=training.dropout,
        seed=settings.seed,
        in_bf16=training.base_precision == "bf16",
    )
    place(model)
    origin = _origin("language", base, fingerprint(model), tokenizer_record(tokenizer))
    length = min(training.length, longest_input(model, tokenizer))
    build_objective = language_of(model.config).objective
    check_embedded(text, tokenizer, model.config)
    objective = build_objective(text, tokenizer, training, length, settings.seed)
    _check_replacements(objective, model)
    origin = replace(origin, data=DataRecord(lines=len(text), digest=objective.digest))
    return PreparedTraining(model, parameter_groups(model), objective, origin, settings)


def _check_replacements(objective: Objective, model: PreTrainedModel) -> None:
    """Raise DeftxError where tokens without an embedding are drawn as random replacements."""
    vocab_size = getattr(model.config, "vocab_size", None)
    if vocab_size is not None and int(objective.vocabulary_used.max()) >= vocab_size:
        raise DeftxError(
            "training.replacements = vocabulary: the tokenizer has a token"
            f" {no_embedding(vocab_size)}; or set training.replacements = corpus"
        )


def prepare_task(
    base: Base,
    train_sets: Mapping[str, Examples],
    valid_sets: Mapping[str, Examples],
    settings: TaskVectorConfig,
    sources: Mapping[str, SparseVector] | None = None,
    *,
    temperature: float = 1.0,
    ignore_base_mismatch: bool = False,
) -> PreparedTraining:
    """`base` with a new head, and labelled data by language.

    Args:
        base: Folder or hub id.
        train_sets: Labelled data to learn from, by language.
        valid_sets: Labelled data to choose the best step on, for the same languages.
        settings: Of the fit.
        sources: The languages' vectors. With one language the model starts at θ0 + φ_source; with
            several, each batch is computed with the vector of its language. None: at θ0.
        temperature: How even several languages are made: 1 takes every example once an epoch; the
            higher, the more often those of languages with few, up to as many as the largest has.
        ignore_base_mismatch: Warn, instead of raising, where a source was made on other weights
            than the base's.

    Raises:
        DeftxError: The base cannot be loaded, data and vectors are not of the same languages,
            examples are not of the task, or a source does not fit the base.
    """
    check_same_languages(train_sets, valid_sets, sources)
    if not 1 <= temperature < inf:
        problem = "is below 1" if temperature < 1 else "is no number"
        raise DeftxError(
            f"temperature {temperature} {problem}; give 1 (as the data are) or more (more even)"
        )
    settings = settled(settings)
    languages = sorted(train_sets)  # in whatever order they are given
    if len(languages) == 1:
        language = languages[0]
        source = sources[language] if sources else None
        return _prepare_single_source(
            base,
            train_sets[language],
            valid_sets[language],
            settings,
            source,
            ignore_base_mismatch=ignore_base_mismatch,
        )
    if temperature > 1 and takes_halves(settings):
        why = "above it examples come several times, and two halves of the data would share them"
        raise DeftxError(
            f"rank {settings.rank} with temperature {temperature}: give temperature 1, since {why}"
        )

    # One head for the labels of all languages, and an objective for each
    pooled = joined([train_sets[language] for language in languages])
    vectors = [sources[language] for language in languages] if sources else []
    model, origin, objective_of = _task_model(
        base, pooled, settings, vectors, ignore_base_mismatch=ignore_base_mismatch
    )
    parts = {
        language: objective_of(train_sets[language], valid_sets[language]) for language in languages
    }
    on_device = {}
    for language in languages:
        vector = sources[language] if sources else SparseVector({})
        on_device[language] = vector.to(model.device)
    objective = multi_source(
        parts,
        on_device,
        batch_size=settings.training.batch_size,
        temperature=temperature,
        seed=settings.seed,
    )

    # Where the vector comes from
    below: dict[str, Provenance | None] = dict.fromkeys(languages)
    if sources:
        below = {language: sources[language].provenance for language in languages}
    valid_size = sum(len(examples) for examples in valid_sets.values())
    data = _task_data(pooled, valid_size, objective)
    origin = replace(origin, sources=below, temperature=temperature, data=data)
    by_batches = changed(settings, {"training": {"batch_size": 1}})
    return PreparedTraining(model, parameter_groups(model), objective, origin, by_batches)


def _prepare_single_source(
    base: Base,
    train_set: Examples,
    valid_set: Examples,
    settings: TaskVectorConfig,
    source: SparseVector | None,
    *,
    ignore_base_mismatch: bool,
) -> PreparedTraining:
    """`base` + φ_source with a new head, and labelled data of one language."""
    sources = [source] if source else []
    model, origin, objective_of = _task_model(
        base, train_set, settings, sources, ignore_base_mismatch=ignore_base_mismatch
    )
    apply(model, *sources)
    objective = objective_of(train_set, valid_set)
    data = _task_data(train_set, len(valid_set), objective)
    below = None if source is None else source.provenance
    origin = replace(origin, source=below, data=data)
    return PreparedTraining(model, parameter_groups(model), objective, origin, settings)


def _task_data(train_set: Examples, valid_size: int, objective: Objective) -> DataRecord:
    """What a task vector records of its data."""
    return DataRecord(
        train=len(train_set),
        valid=valid_size,
        lower_case=lower_case(written(train_set)),
        pairs=train_set.pairs is not None,
        digest=objective.digest,
    )


def _task_model(
    base: Base,
    train_set: Examples,
    settings: TaskVectorConfig,
    sources: Sequence[SparseVector],
    *,
    ignore_base_mismatch: bool,
) -> tuple[PreTrainedModel, Provenance, Callable[[Examples, Examples], Supervised]]:
    """A task's model at θ0 that the sources fit; where its vector comes from; and what makes an
    objective of data."""
    distributed.join()
    check_examples(train_set)
    check_language(*sources)
    check_same_base(*sources)
    task = task_of(settings.task)
    labels = names_of(task, train_set)
    tokenizer = load_tokenizer(base)
    training = settings.training
    model = load_task_model(
        base,
        labels,
        settings.seed,
        task,
        dropout=training.dropout,
        in_bf16=training.base_precision == "bf16",
    )
    place(model)
    origin = _origin("task", base, fingerprint(model), tokenizer_record(tokenizer))
    origin = replace(origin, labels=tuple(labels))
    for source in sources:
        check_base(str(origin.base_fingerprint), source, ignore_base_mismatch=ignore_base_mismatch)
        check_fit(model, source)
    check_tokenizer(tokenizer, *sources, ignore_base_mismatch=ignore_base_mismatch)
    length = min(settings.training.length, longest_input(model, tokenizer))

    def objective_of(train: Examples, valid: Examples) -> Supervised:
        check_examples(valid)
        check_pairs(train.pairs is not None, valid)
        for examples in (train, valid):
            check_embedded(written(examples), tokenizer, model.config)
            if task.auto_model_class is None:  # labels are texts to be written
                labels_as_texts = [str(label) for label in examples.labels or []]
                check_embedded(labels_as_texts, tokenizer, model.config)
        return supervised(
            task,
            train,
            valid,
            labels,
            tokenizer,
            length,
            str(settings.training.metric),
            noise=settings.training.noise,
            seed=settings.seed,
        )

    return model, origin, objective_of


def check_same_languages(
    train: Mapping[str, Any], valid: Mapping[str, Any], sources: Mapping[str, Any] | None = None
) -> None:
    """Raise DeftxError unless there is something, and all of it for the same languages."""
    mappings = [train, valid]
    if sources is not None:
        mappings.append(sources)
    languages = {frozenset(mapping) for mapping in mappings}
    if train and len(languages) == 1:
        return
    listings = []
    for mapping in mappings:
        names = sorted(name or "one without a name" for name in mapping)
        listings.append(", ".join(names) or "none")
    rule = "training data, validation data and vectors must be of the same languages"
    raise DeftxError(f"{rule}, but are of {'; '.join(listings)}")


def learned_head(groups: ParameterGroups, labels: Sequence[str]) -> Head:
    """A copy of the head that was trained with a task."""
    tensors = {}
    for name, parameter in groups.trained_head.items():
        tensors[name] = parameter.detach().cpu().clone()
    return Head(tensors, tuple(labels))


def takes_phase1(settings: VectorConfig) -> bool:
    """Whether a fit takes a training of all weights, which tells the entries that may change."""
    return settings.method not in (*WEIGHT_RULES, *RESELECTIONS)


def takes_halves(settings: VectorConfig) -> bool:
    """Whether a fit takes two trainings more, each on one half of the data, which tell its
    ranks."""
    return settings.method == "deftx" and is_split_half(settings.rank)


def _origin(kind: str, base: Base, base_fingerprint: str, tokenizer: TokenizerRecord) -> Provenance:
    """What a vector records of where it comes from: its kind, the base, the tokenizer, the
    versions."""
    versions = {package: version(package) for package in ("deftx", "torch", "transformers")}
    return Provenance(
        kind=kind,
        base=recorded_name(base),
        base_fingerprint=base_fingerprint,
        tokenizer=tokenizer,
        versions=versions,
    )
