"""What was typed on the command line becomes settings, and vectors and files by language."""

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from deftx.config import VectorConfig, changed, merged, preset_named
from deftx.core.vector import SparseVector
from deftx.data.examples import ColumnNames, Columns, Examples, check_labels, joined, text_pairs
from deftx.data.held_out import HELD_OUT_SHARE, held_out
from deftx.data.unicode_forms import canonical, caseless
from deftx.errors import DeftxError, unknown
from deftx.experiments.plain_yaml import BadYaml, parse_yaml
from deftx.storage.vector_files import load
from deftx.tasks.base import Task, names_of
from deftx.tasks.normalization import Normalizer, read_normalizer
from deftx.training.preparation import check_same_languages

if TYPE_CHECKING:
    from deftx.experiments.transfer import Request

F = TypeVar("F", bound=VectorConfig)

FEW_CHARACTERS = 2000  # of text: fewer say little about a language
MANY_IN_BOTH = 0.1  # of validation texts: as many in the training data too are worth a warning


# Settings


def settings_from(
    plain: F,
    presets: Mapping[str, F],
    preset: str | None,
    options: Mapping[str, str | None],
    changes: Iterable[str],
) -> F:
    """The settings that a command was given.

    Args:
        plain: The settings without a preset.
        presets: All presets by name.
        preset: The name of the one to start from, if any.
        options: Values of options such as --rank by the setting's name; None: not given.
        changes: `KEY.KEY=VALUE` texts of --set, which come last.
    """
    start = plain if preset is None else preset_named(presets, preset)
    assignments = [f"{name}={value}" for name, value in options.items() if value is not None]
    return changed(start, assigned([*assignments, *changes]))


def assigned(changes: Iterable[str]) -> dict[str, Any]:
    """What `KEY.KEY=VALUE` texts, VALUE being YAML, say together, as nested mappings. Later ones
    win."""
    settings: dict[str, Any] = {}
    for change in changes:
        settings = merged(settings, _assignment(change))
    return settings


def _assignment(change: str) -> dict[str, Any]:
    """`a.b=1` as {"a": {"b": 1}}."""
    key, _, text = change.partition("=")
    example = "write KEY=VALUE, such as training.batch_size=4, VALUE in YAML"
    if not key or not text.strip():
        raise DeftxError(f"{change!r:.200} sets nothing: {example}")
    try:
        value = parse_yaml(text)
    except BadYaml as error:
        raise DeftxError(f"{change!r:.200} sets nothing ({error}): {example}") from None
    nested: Any = value
    for part in reversed(key.strip().split(".")):
        nested = {part: nested}
    return dict(nested)


# Data


def warn_of_little(lines: Sequence[str]) -> None:
    """Warn where there is too little text for training, or for a held-out loss to mean anything."""
    different = len({canonical(line) for line in lines})
    if 2 * different <= len(lines):
        warnings.warn(
            f"the text has {len(lines):,} lines, of which {different:,} differ: what is learnt by"
            " heart makes the held-out loss look good",
            stacklevel=2,
        )
    size = sum(len(line) for line in lines)
    if size < FEW_CHARACTERS:
        warnings.warn(
            f"the text has {size:,} characters, so few that the held-out loss says little: give all"
            " that you have",
            stacklevel=2,
        )


def labelled(
    task: Task, train: Mapping[str, str], valid: Mapping[str, str], columns: Columns, seed: int
) -> tuple[dict[str, Examples], dict[str, Examples]]:
    """Read training and validation data by language; warns of what may be a mistake.

    Args:
        task: The kind of task.
        train: Files by language.
        valid: Files by language; without any, a share of the training data is held out.
        columns: Names of the columns.
        seed: Decides what is held out.

    Raises:
        DeftxError: A label of the validation data is not in the training data.
    """
    train_sets = {name: task.read(file, columns, True) for name, file in train.items()}
    label_names = names_of(task, joined(list(train_sets.values())))
    if not valid:
        return _hold_out(train_sets, seed, named=bool(label_names))

    valid_sets = {name: task.read(file, columns, True) for name, file in valid.items()}
    for name, examples in valid_sets.items():
        if label_names:
            check_labels(valid[name], examples, label_names)
        of_language = f" of {name}" if len(valid_sets) > 1 else ""
        _warn_of_valid(train_sets[name], examples, of_language)
    return train_sets, valid_sets


def _hold_out(
    train_sets: Mapping[str, Examples], seed: int, *, named: bool
) -> tuple[dict[str, Examples], dict[str, Examples]]:
    """The training data of each language, and the share of it that is held out."""
    kept_sets = {}
    valid_sets = {}
    for name, examples in train_sets.items():
        kept, held = held_out(examples, HELD_OUT_SHARE, seed, named=named)
        kept_sets[name] = kept
        valid_sets[name] = held
    rows = sum(len(held) for held in valid_sets.values())
    warnings.warn(
        f"without --valid, {rows:,} of the rows choose the best step and are not learnt",
        stacklevel=2,
    )
    return kept_sets, valid_sets


def _warn_of_valid(train: Examples, valid: Examples, of_language: str) -> None:
    """Warn where validation data is larger than the training data, or partly the same."""
    if len(valid) > len(train):
        warnings.warn(
            f"--valid has {len(valid):,} rows and --train {len(train):,}{of_language}: are they the"
            " wrong way round?",
            stacklevel=2,
        )
    trained = {(caseless(text), caseless(pair)) for text, pair in text_pairs(train)}
    in_both = 0
    for text, pair in text_pairs(valid):
        if (caseless(text), caseless(pair)) in trained:
            in_both += 1
    if in_both > MANY_IN_BOTH * len(valid):
        warnings.warn(
            f"{in_both:,} of {len(valid):,} texts of --valid{of_language} are in --train too: what"
            " is learnt by heart looks best then",
            stacklevel=2,
        )


# Vectors and files by language


def load_tasks(folders: Sequence[str]) -> list[SparseVector]:
    """The task vectors in folders, or those that the hub has.

    Raises:
        DeftxError: One is the vector of a language.
    """
    vectors = [load(folder) for folder in folders]
    for folder, vector in zip(folders, vectors, strict=True):
        if vector.head is None and vector.provenance.kind == "language":
            fix = "give it as --language, and a task vector (deftx fit task) as --task"
            raise DeftxError(f"--task {folder} is a language vector, which has no labels: {fix}")
    return vectors


def named_languages(texts: Sequence[str]) -> dict[str, SparseVector]:
    """Language vectors by the name in `NAME=VECTOR`, or that of the vector's folder or
    repository."""
    pairs = [_named(text) for text in texts]
    names = [name or _name(folder) for name, folder in pairs]
    for name in names:
        if names.count(name) > 1:
            raise DeftxError(
                f"two language vectors are named {name!r}: give them names, --language NAME=VECTOR"
            )
    return {name: load(folder) for name, (_, folder) in zip(names, pairs, strict=True)}


def by_language(option: str, texts: Sequence[str]) -> dict[str, str]:
    """Files, or vectors, by the language in `NAME=FILE`; a lone one needs no name: it is ""
    then."""
    files: dict[str, str] = {}
    for text in texts:
        name, file = _named(text)
        if name is None and len(texts) > 1:
            raise DeftxError(
                f"{option} {file} is of which language? there are several, so write NAME={file}"
            )
        if name in files:
            raise DeftxError(f"{option} {name}={file} is the second one of {name!r}: give one each")
        files[name or ""] = file
    return files


def named_by_file(option: str, texts: Sequence[str]) -> dict[str, str]:
    """Files by the language in `NAME=FILE`, or that the file is called after, such as ind of
    texts/ind.txt."""
    files: dict[str, str] = {}
    for text in texts:
        name, file = _named(text)
        if name is None and file.startswith("hub:"):
            raise DeftxError(f"{option} {file} is of which language? write NAME={file}")
        language = name or Path(file).stem
        if language in files:
            raise DeftxError(
                f"{option} {file} is the second one named {language!r}: give it another name,"
                f" NAME={file}"
            )
        files[language] = file
    return files


def transfer_request(
    base: str,
    train: str,
    valid: str | None,
    source: str | None,
    source_vector: str | None,
    target: Sequence[str],
    target_vector: Sequence[str],
    test: Sequence[str],
    preset: str,
    changes: Mapping[str, Any],
) -> "Request":
    """What `deftx transfer` was asked for.

    Raises:
        DeftxError: The source or all targets are missing, or a language is given twice.
    """
    from deftx.experiments.transfer import Request

    # The source language, from its text or its vector
    given_texts = [source] if source else []
    given_vectors = [source_vector] if source_vector else []
    source_texts = named_by_file("--source", given_texts)
    source_vectors = named_by_file("--source-vector", given_vectors)
    source_name = _source_name(source_texts, source_vectors)

    # The targets, each from its text or its vector
    target_texts = named_by_file("--target", target)
    target_vectors = named_by_file("--target-vector", target_vector)
    targets = list(dict.fromkeys([*target_texts, *target_vectors]))
    if not targets:
        raise DeftxError(
            "there is no target language: give --target NAME=FILE, or --target-vector NAME=VECTOR"
        )
    if source_name in targets:
        raise DeftxError(
            f"the target {source_name!r} is the source, the language of --train: leave it out of"
            " the targets"
        )
    for name, file in target_texts.items():
        if _is_same_file(file, source_texts.get(source_name)):
            raise DeftxError(
                f"--target {name}={file} is the text of the source {source_name!r}: give text of"
                " the target"
            )

    return Request(
        base=base,
        train=train,
        valid=valid or "",
        source=source_name,
        targets=targets,
        texts={**source_texts, **target_texts},
        vectors={**source_vectors, **target_vectors},
        tests=_tests_of_targets(test, targets),
        preset=preset,
        changes=changes,
    )


def _source_name(texts: Mapping[str, str], vectors: Mapping[str, str]) -> str:
    """The one name of the source language.

    Raises:
        DeftxError: There is none, or there are two.
    """
    names = {*texts, *vectors}
    needed = (
        "give --source NAME=FILE, text of the language of --train, or --source-vector NAME=VECTOR"
    )
    if not names:
        raise DeftxError(f"there is no text of the source language: {needed}")
    if len(names) > 1:
        raise DeftxError(f"{needed}, of the same name")
    return names.pop()


def _is_same_file(file: str, other: str | None) -> bool:
    if other is None or not os.path.exists(file):
        return False
    return os.path.realpath(file) == os.path.realpath(other)


def _tests_of_targets(test: Sequence[str], targets: Sequence[str]) -> dict[str, str]:
    """Test data by target; if there is one target, its file needs no name."""
    tests: dict[str, str] = {}
    for name, file in by_language("--test", test).items():
        language = name
        if not name and len(targets) == 1:
            language = targets[0]
        if not language:
            raise DeftxError(
                f"--test {file} is of which target? write NAME={file}; targets:"
                f" {', '.join(targets)}"
            )
        if language not in targets:
            raise unknown("target (--test)", language, targets)
        tests[language] = file
    return tests


def of_sources(
    train: Sequence[str], valid: Sequence[str], source: Sequence[str]
) -> list[dict[str, str]]:
    """The files and vectors of `fit task`, each by language.

    Where there is one of each, a name given once counts for all of them.

    Returns:
        Training data, validation data (empty: none was given) and language vectors (empty: none).
    """
    by_option = [
        by_language("--train", train),
        by_language("--valid", valid),
        by_language("--source", source),
    ]
    names = set()
    for files in by_option:
        names |= {name for name in files if name}
    if len(names) < 2:
        name = next(iter(names), "")
        by_option = [_renamed(files, name) for files in by_option]
    train_files, valid_files, vectors = by_option
    check_same_languages(train_files, valid_files or train_files, vectors or None)
    return by_option


def _renamed(files: Mapping[str, str], name: str) -> dict[str, str]:
    """The only file, if there is one, by another name."""
    if not files:
        return {}
    return {name: next(iter(files.values()))}


def tests_of(
    texts: Sequence[str],
    languages: Sequence[str],
    task: Task,
    columns: ColumnNames,
    labels: Sequence[str],
) -> dict[str | None, Examples]:
    """Read the test data of `evaluate`.

    Args:
        texts: `NAME=FILE`, or a file alone where there is at most one language.
        languages: Names of the language vectors.
        task: The kind of task.
        columns: Names of the columns.
        labels: The labels that the head has, if outputs have names.

    Returns:
        Examples by language; None stands for no language vector.
    """
    tests: dict[str | None, Examples] = {}
    for text in texts:
        name, file = _named(text)
        language = _language_of_test(name, file, languages)
        if language in tests:
            whose = language or "the task alone"
            raise DeftxError(f"--test {file} is the second one for {whose}: give one each")
        # Odd labels were warned of in training; others are errors below.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r".*: the label ")
            examples = task.read(file, columns.over(task.columns), True)
        if task.label_names:
            check_labels(file, examples, labels)
        tests[language] = examples
    for language in languages:
        if language not in tests:
            raise DeftxError(
                f"there is no test data for language {language!r}: add --test {language}=FILE"
            )
    return tests


def _language_of_test(name: str | None, file: str, languages: Sequence[str]) -> str | None:
    """Whose test data a file is; None: nobody's, there are no languages."""
    if name is None and len(languages) > 1:
        raise DeftxError(
            f"--test {file} is for which language? write NAME={file}; names: {', '.join(languages)}"
        )
    if name is not None and name not in languages:
        known = ", ".join(languages) or "none is given"
        raise DeftxError(
            f"--test {name}={file} needs a --language {name}=VECTOR; languages: {known}"
        )
    return name or next(iter(languages), None)


def normalizers_of(texts: Sequence[str], languages: Sequence[str]) -> dict[str, Normalizer]:
    """Normalizers by language; if there is one language, its file needs no name."""
    normalizers = {}
    known = ", ".join(languages) or "none is given"
    for name, file in by_language("--normalizer", texts).items():
        language = name
        if not name and len(languages) == 1:
            language = languages[0]
        if language not in languages:
            if name:
                which = f"{name}={file} needs a --language {name}=VECTOR"
            else:
                which = f"{file} is for which language?"
            raise DeftxError(f"--normalizer {which}; languages: {known}")
        normalizers[language] = read_normalizer(file)
    return normalizers


def _name(vector: str) -> str:
    """What a vector without a name is called: the last part of its path or hub id."""
    if os.path.exists(vector):
        return Path(vector).name
    return Path(vector.partition("@")[0]).name


def _named(text: str) -> tuple[str | None, str]:
    """`NAME=PATH` as its parts; a path alone, also one with an =, has no name."""
    name, equals, path = text.partition("=")
    if not (name and equals) or os.path.exists(text):
        return None, os.path.expanduser(text)
    return name, os.path.expanduser(path)
