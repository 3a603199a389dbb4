"""Everything a recipe reads, read at once: what is missing or wrong, evaluation text in training
text too, shows before the first training."""

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from transformers import PreTrainedModel

from deftx.config import VectorConfig
from deftx.core.apply import check_fit
from deftx.core.parameters import parameter_groups
from deftx.core.vector import SparseVector
from deftx.core.vector_checks import check_language
from deftx.data.contamination import (
    Overlap,
    describe_counts,
    find_contaminated_examples,
    find_contamination,
    texts_of,
)
from deftx.data.examples import Columns, Examples, check_labels, check_pairs, joined, written
from deftx.data.held_out import HELD_OUT_SHARE, held_out
from deftx.data.letter_case import capitals, lower_case
from deftx.data.reading import read_text
from deftx.errors import DeftxError
from deftx.experiments.recipe import Recipe
from deftx.fit import check_settings
from deftx.models.fingerprint import check_base, fingerprint, fingerprint_of
from deftx.models.loading import load_language_model
from deftx.models.tokenizers import check_tokenizer, load_tokenizer, tokenizer_record
from deftx.storage.vector_files import load
from deftx.tasks.base import Task, names_of
from deftx.tasks.registry import task_of

# What data are called where they leak
LABELLED = "labelled data"
VALIDATION = "validation data"


@dataclass(frozen=True)
class Data:
    """What a recipe trains and tests on.

    Attributes:
        texts: Language -> plain text.
        train: Language -> labelled data to train on.
        valid: Language -> labelled data to choose the best step on.
        test: Language -> labelled data to score on.
        base: A name of the base by its content: weights, head, configuration, tokenizer.
        trimmed: What was left out since it holds evaluation text: language, "labelled data" or
            "validation data" (of several languages "labelled data of eng") -> how much, in words.
        reading: A fingerprint of how the base's tokenizer reads.
        vectors: Language -> a finished language vector, which is used as it is.
    """

    texts: Mapping[str, list[str]]
    train: Mapping[str, Examples]
    valid: Mapping[str, Examples]
    test: Mapping[str, Examples]
    base: str
    trimmed: Mapping[str, str]
    reading: str
    vectors: Mapping[str, SparseVector] = field(default_factory=dict)


def read(recipe: Recipe) -> Data:
    """The data of a recipe, without what leaks where it says so.

    Raises:
        DeftxError: Something is wrong with it, or with the variants' settings.
    """
    model = load_language_model(recipe.base, recipe.language.training.head)
    groups = parameter_groups(model)
    for variant in recipe.variants:
        language = recipe.language_config(variant, recipe.seeds[0])
        fitted_task = recipe.task_config(variant, recipe.seeds[0])
        if isinstance(language, VectorConfig):
            check_settings(language, model, groups, head=False)
        if isinstance(fitted_task, VectorConfig):
            check_settings(fitted_task, model, groups, head=True)
    task = task_of(recipe.task.task)
    columns = recipe.columns.over(task.columns)
    train, valid = _labelled(recipe, task, columns)
    data = Data(
        {name: read_text(*sources) for name, sources in recipe.languages.items()},
        train,
        valid,
        {name: task.read(source, columns, True) for name, source in recipe.test.items()},
        _identity(recipe.base, model),
        {},
        _reading(recipe.base),
        _finished_vectors(recipe, model),
    )
    pairs = any(examples.pairs is not None for examples in data.train.values())
    for examples in [*data.train.values(), *data.valid.values(), *data.test.values()]:
        check_pairs(pairs, examples)
    _warn_of_capitals(recipe, data)
    if recipe.contamination != "ignore":
        data = _guarded(data, trim=recipe.contamination == "trim")
    if task.label_names:
        _check_labels(recipe, task, data)
    return data


def _labelled(
    recipe: Recipe, task: Task, columns: Columns
) -> tuple[dict[str, Examples], dict[str, Examples]]:
    """Training and validation data by language; a language without the latter has a tenth of the
    former held out, by the first seed, as `deftx fit task` does."""
    train = {}
    valid = {}
    for name, files in recipe.labelled.items():
        examples = task.read(files.train, columns, True)
        if files.valid:
            train[name] = examples
            valid[name] = task.read(files.valid, columns, True)
            continue
        named = task.label_names is not None
        train[name], valid[name] = held_out(examples, HELD_OUT_SHARE, recipe.seeds[0], named=named)
        what = f"without validation data, {len(valid[name]):,} of the rows of {name}"
        warnings.warn(f"{what} choose the best step and are not learnt", stacklevel=2)
    return train, valid


def _finished_vectors(recipe: Recipe, model: PreTrainedModel) -> dict[str, SparseVector]:
    """The vectors that the recipe takes instead of learning them.

    Raises:
        DeftxError: One does not fit the base.
    """
    vectors = {name: load(source) for name, source in recipe.vectors.items()}
    for vector in vectors.values():
        check_language(vector)
        check_base(model, vector, ignore_base_mismatch=None)
        check_fit(model, vector)
    check_tokenizer(load_tokenizer(recipe.base), *vectors.values(), ignore_base_mismatch=None)
    return vectors


def _check_labels(recipe: Recipe, task: Task, data: Data) -> None:
    """Raise DeftxError for a label of validation or test data that some variant does not learn."""
    for variant in recipe.variants if recipe.test else ():
        sources = recipe.sources_of(variant)
        names = names_of(task, joined([data.train[source] for source in sources]))
        for source in sources:
            files = recipe.labelled[source]
            check_labels(files.valid or files.train, data.valid[source], names)
        for name, examples in data.test.items():
            check_labels(recipe.test[name], examples, names)


def _warn_of_capitals(recipe: Recipe, data: Data) -> None:
    """Warn where the labelled texts have no capitals, test texts have some, and some variant leaves
    them so."""
    trained_texts: list[str] = []
    for examples in data.train.values():
        trained_texts += written(examples)
    unlike = [name for name, examples in data.test.items() if capitals(written(examples))]
    are_normalized = all(variant.normalize for variant in recipe.variants.values())
    if lower_case(trained_texts) and unlike and not are_normalized:
        where = (
            f"the labelled texts have no capitals, and the test texts of {', '.join(unlike)}"
            " have some"
        )
        warnings.warn(f"{where}: `normalize: case` of a variant takes them away", stacklevel=2)


def _identity(base: str, model: PreTrainedModel) -> str:
    """A name of the base: one with other weights, configuration or pieces has another."""
    tokenizer = tokenizer_record(load_tokenizer(base))
    passing = ("_name_or_path", "architectures", "dtype", "transformers_version")
    config = {key: value for key, value in model.config.to_dict().items() if key not in passing}
    top = parameter_groups(model).head
    parts = [
        fingerprint(model),
        fingerprint_of(top, lambda name: top[name].detach()),
        tokenizer.digest,
        config,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _reading(base: str) -> str:
    """A name of how the base's tokenizer reads texts, which more than its pieces decide: by what it
    makes of some of them, also in capitals, and of all Latin letters, and how long inputs may
    be."""
    tokenizer = load_tokenizer(base)
    pieces = sorted(tokenizer.get_vocab())
    some = " ".join(pieces[:: len(pieces) // 500 + 1])
    probe = [
        some,
        some.upper(),
        " ".join(map(chr, range(0x21, 0x250))),
        "With-hyphens... 3.14  (हिन्दी)",
    ]
    parts = [
        tokenizer(probe, verbose=False)["input_ids"],
        tokenizer.model_max_length,
        tokenizer.padding_side,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _guarded(data: Data, *, trim: bool) -> Data:
    """The data without evaluation text in what is trained on, or what the best step is chosen on.

    With `trim` such texts are left out; without it they are a DeftxError.
    """
    evaluation = []
    for name, examples in data.test.items():
        evaluation += [(name, text) for text in texts_of(examples)]
    evaluation_texts = [text for _, text in evaluation]
    by_language = " of {}" if len(data.train) > 1 else ""

    # What leaks, and in which texts, by the name under which people are told of it
    found: dict[str, tuple[list[Overlap], Sequence[str]]] = {}
    for name, lines in data.texts.items():
        found[name] = find_contamination(lines, evaluation_texts), lines
    for kind, sets in ((LABELLED, data.train), (VALIDATION, data.valid)):
        for name, examples in sets.items():
            found[kind + by_language.format(name)] = (
                find_contaminated_examples(examples, evaluation_texts),
                examples.texts,
            )

    leaky = {name: (of_name, texts) for name, (of_name, texts) in found.items() if of_name}
    if leaky and not trim:
        name, (of_name, texts) = next(iter(leaky.items()))
        raise DeftxError(_complaint(name, of_name, texts, evaluation))

    for name, (of_name, texts) in leaky.items():
        if len(of_name) == len(texts):
            raise DeftxError(
                f"{name}: all {len(texts):,} texts hold evaluation text, so nothing is left:"
                " give others"
            )

    def rest(name: str) -> list[int]:
        """The numbers of the texts that do not leak."""
        leaking_texts, texts = found[name]
        numbers = {leak.training for leak in leaking_texts}
        return [number for number in range(len(texts)) if number not in numbers]

    def rest_of(kind: str, sets: Mapping[str, Examples]) -> dict[str, Examples]:
        """The examples that do not leak, by language."""
        remaining = {}
        for name, examples in sets.items():
            remaining[name] = examples.at(rest(kind + by_language.format(name)))
        return remaining

    remaining_texts = {}
    for name, lines in data.texts.items():
        remaining_texts[name] = [lines[number] for number in rest(name)]
    trimmed = {}
    for name, (of_name, texts) in leaky.items():
        trimmed[name] = f"{len(of_name)} of {len(texts):,} ({describe_counts(of_name)})"
    return replace(
        data,
        texts=remaining_texts,
        train=rest_of(LABELLED, data.train),
        valid=rest_of(VALIDATION, data.valid),
        trimmed=trimmed,
    )


def _complaint(
    name: str, found: Sequence[Overlap], texts: Sequence[str], evaluation: Sequence[tuple[str, str]]
) -> str:
    """One line that names the texts, the first three of them at least."""
    shown = [
        f"no. {leak.training + 1} {texts[leak.training]!r:.60} ({leak.kind}, test of"
        f" {evaluation[leak.evaluation][0]})"
        for leak in found[:3]
    ]
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    fix = "see `deftx data trim`, or set contamination to trim (or ignore)"
    return (
        f"{name}: {len(found)} of {len(texts):,} texts hold evaluation text:"
        f" {'; '.join(shown)}{more}; {fix}"
    )
