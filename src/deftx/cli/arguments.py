"""What a user has typed, as what it stands for: settings, and vectors and files by language."""

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from deftx.config import VectorConfig, changed, merged, preset_named
from deftx.core.vector import SparseVector
from deftx.data.examples import (
    HELD_OUT_SHARE,
    ColumnNames,
    Columns,
    Examples,
    check_labels,
    held_out,
    joined,
    text_pairs,
)
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

LITTLE = 2000  # characters of a language's text
MANY = 0.1  # of validation texts, to be also in the training data


def settings_from(
    plain: F,
    presets: Mapping[str, F],
    preset: str | None,
    flags: Mapping[str, str | None],
    changes: Iterable[str],
) -> F:
    """The settings of a preset (None: `plain`) with those `flags` that were given, and further
    changes."""
    start = plain if preset is None else preset_named(presets, preset)
    flagged = [f"{name}={value}" for name, value in flags.items() if value is not None]
    return changed(start, assigned([*flagged, *changes]))


def assigned(changes: Iterable[str]) -> dict[str, Any]:
    """What `KEY.KEY=VALUE` texts, VALUE being YAML, say together, as nested mappings. Later ones
    win."""
    return reduce(merged, map(_assignment, changes), {})


def _assignment(change: str) -> dict[str, Any]:
    key, _, text = change.partition("=")
    example = "write KEY=VALUE, such as training.batch_size=4, VALUE in YAML"
    if not key or not text.strip():
        raise DeftxError(f"{change!r:.200} sets nothing: {example}")
    try:
        value = parse_yaml(text)
    except BadYaml as error:
        raise DeftxError(f"{change!r:.200} sets nothing ({error}): {example}") from None
    *path, last = key.strip().split(".")
    return reduce(lambda inner, part: {part: inner}, reversed(path), {last: value})


def warn_of_little(lines: Sequence[str]) -> None:
    """Warn where there is too little text for a language to be learnt, or for a held-out loss to
    mean anything."""
    different = len(set(map(canonical, lines)))
    if 2 * different <= len(lines):
        what = f"the text has {len(lines):,} lines, of which {different:,} differ"
        warnings.warn(
            f"{what}: what is learnt by heart makes the held-out loss look good", stacklevel=2
        )
    if (size := sum(map(len, lines))) < LITTLE:
        what = f"the text has {size:,} characters, so few that the held-out loss says little"
        warnings.warn(f"{what}: give all that you have", stacklevel=2)


def labelled(
    task: Task, train: Mapping[str, str], valid: Mapping[str, str], columns: Columns, seed: int
) -> tuple[dict[str, Examples], dict[str, Examples]]:
    """Training and validation data by language, from files; without files of the latter, a share of
    the former.

    Raises DeftxError for labels that are not learnt. Warns of what may be a mistake.
    """
    train_sets = {name: task.read(file, columns, True) for name, file in train.items()}
    names = names_of(task, joined(list(train_sets.values())))
    if not valid:
        parts = {
            name: held_out(some, HELD_OUT_SHARE, seed, named=bool(names))
            for name, some in train_sets.items()
        }
        rows = sum(len(part) for _, part in parts.values())
        warnings.warn(
            f"without --valid, {rows:,} of the rows choose the best step and are not learnt",
            stacklevel=2,
        )
        return {name: part for name, (part, _) in parts.items()}, {
            name: part for name, (_, part) in parts.items()
        }
    valid_sets = {name: task.read(file, columns, True) for name, file in valid.items()}
    for name, some in valid_sets.items():
        if names:
            check_labels(valid[name], some, names)
        _warn_of_valid(train_sets[name], some, f" of {name}" if len(valid_sets) > 1 else "")
    return train_sets, valid_sets


def _warn_of_valid(train: Examples, valid: Examples, of: str) -> None:
    """Warn where there is more to choose a step on than to learn from, and where it is what is
    learnt."""
    if len(valid) > len(train):
        sizes = f"--valid has {len(valid):,} rows and --train {len(train):,}"
        warnings.warn(f"{sizes}{of}: are they the wrong way round?", stacklevel=2)
    learnt = {(caseless(text), caseless(pair)) for text, pair in text_pairs(train)}
    both = sum((caseless(text), caseless(pair)) in learnt for text, pair in text_pairs(valid))
    if both > MANY * len(valid):
        what = f"{both:,} of {len(valid):,} texts of --valid{of} are in --train too"
        warnings.warn(f"{what}: what is learnt by heart looks best then", stacklevel=2)


def load_tasks(folders: Sequence[str]) -> list[SparseVector]:
    """The task vectors in folders, or those that the hub has. Raises DeftxError for the vector of a
    language."""
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
    found: dict[str, str] = {}
    for name, file in map(_named, texts):
        if name is None and len(texts) > 1:
            raise DeftxError(
                f"{option} {file} is of which language? there are several, so write NAME={file}"
            )
        if name in found:
            raise DeftxError(f"{option} {name}={file} is the second one of {name!r}: give one each")
        found[name or ""] = file
    return found


def named_by_file(option: str, texts: Sequence[str]) -> dict[str, str]:
    """Files by the language in `NAME=FILE`, or that the file is called after, such as ind of
    texts/ind.txt."""
    found: dict[str, str] = {}
    for name, file in map(_named, texts):
        if name is None and file.startswith("hub:"):
            raise DeftxError(f"{option} {file} is of which language? write NAME={file}")
        language = name or Path(file).stem
        if language in found:
            raise DeftxError(
                f"{option} {file} is the second one named {language!r}: give it another name, NAME={file}"
            )
        found[language] = file
    return found


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
    """What `deftx transfer` is given. Raises DeftxError for languages that are missing, or that are
    given twice."""
    sources = named_by_file("--source", [source] if source else [])
    source_vectors = named_by_file("--source-vector", [source_vector] if source_vector else [])
    if len({*sources, *source_vectors}) != 1:
        needed = "give --source NAME=FILE, text of the language of --train, or --source-vector NAME=VECTOR"
        which = " and ".join([*sources, *source_vectors])
        raise DeftxError(
            f"{needed}, of the same name"
            if which
            else f"there is no text of the source language: {needed}"
        )
    (name,) = {*sources, *source_vectors}
    texts, vectors = (
        named_by_file("--target", target),
        named_by_file("--target-vector", target_vector),
    )
    targets = list(dict.fromkeys([*texts, *vectors]))
    if not targets:
        raise DeftxError(
            "there is no target language: give --target NAME=FILE, or --target-vector NAME=VECTOR"
        )
    if name in targets:
        raise DeftxError(
            f"the target {name!r} is the source, of which --train is: leave it out of the targets"
        )
    for target_name, file in texts.items():
        if (
            sources
            and os.path.exists(file)
            and os.path.realpath(file) == os.path.realpath(sources.get(name, ""))
        ):
            raise DeftxError(
                f"--target {target_name}={file} is the text of the source {name!r}: give text of the target"
            )
    from deftx.experiments.transfer import Request

    tests = _tests_of_targets(test, targets)
    return Request(
        base=base,
        train=train,
        valid=valid or "",
        source=name,
        targets=targets,
        texts={**sources, **texts},
        vectors={**source_vectors, **vectors},
        tests=tests,
        preset=preset,
        changes=changes,
    )


def _tests_of_targets(test: Sequence[str], targets: Sequence[str]) -> dict[str, str]:
    """Test data by target; a lone file of a lone target needs no name."""
    found: dict[str, str] = {}
    for name, file in by_language("--test", test).items():
        language = name or (targets[0] if len(targets) == 1 else "")
        if not language:
            raise DeftxError(
                f"--test {file} is of which target? write NAME={file}; targets: {', '.join(targets)}"
            )
        if language not in targets:
            raise unknown("target (--test)", language, targets)
        found[language] = file
    return found


def of_sources(
    train: Sequence[str], valid: Sequence[str], source: Sequence[str]
) -> list[dict[str, str]]:
    """What `fit task` is given, by language: training data, validation data, and vectors, which may
    be none at all.

    Where there is one of each, a name counts for all of them. Without any validation data, there is
    none.
    """
    options = {"--train": train, "--valid": valid, "--source": source}
    given = [by_language(option, texts) for option, texts in options.items()]
    names = {name for some in given for name in some if name}
    if len(names) < 2:
        given = [{next(iter(names), ""): file for file in some.values()} for some in given]
    check_same_languages(given[0], given[1] or given[0], given[2] or None)
    return given


def tests_of(
    texts: Sequence[str],
    languages: Sequence[str],
    task: Task,
    columns: ColumnNames,
    labels: Sequence[str],
) -> dict[str | None, Examples]:
    """Test data by language, labelled with `labels` where outputs have names; None stands for no
    language. A lone file needs no name."""
    tests: dict[str | None, Examples] = {}
    for name, file in map(_named, texts):
        if name is None and len(languages) > 1:
            raise DeftxError(
                f"--test {file} is for which language? write NAME={file}; names: {', '.join(languages)}"
            )
        if name is not None and name not in languages:
            named = ", ".join(languages) or "none is given"
            raise DeftxError(
                f"--test {name}={file} needs a --language {name}=VECTOR; languages: {named}"
            )
        language = name or next(iter(languages), None)
        if language in tests:
            raise DeftxError(
                f"--test {file} is the second one for {language or 'the task alone'}: give one each"
            )
        with (
            warnings.catch_warnings()
        ):  # odd labels were warned of in training; others are errors below
            warnings.filterwarnings("ignore", message=r".*: the label ")
            tests[language] = task.read(file, columns.over(task.columns), True)
        if task.label_names:
            check_labels(file, tests[language], labels)
    for language in languages:
        if language not in tests:
            raise DeftxError(
                f"there is no test data for language {language!r}: add --test {language}=FILE"
            )
    return tests


def normalizers_of(texts: Sequence[str], languages: Sequence[str]) -> dict[str, Normalizer]:
    """Normalizers by language; a lone one needs no name where there is one language."""
    found = {}
    for name, file in by_language("--normalizer", texts).items():
        language = name or (languages[0] if len(languages) == 1 else name)
        if language not in languages:
            which = (
                f"{name}={file} needs a --language {name}=VECTOR"
                if name
                else f"{file} is for which language?"
            )
            raise DeftxError(
                f"--normalizer {which}; languages: {', '.join(languages) or 'none is given'}"
            )
        found[language] = read_normalizer(file)
    return found


def _name(vector: str) -> str:
    """What a vector is called where it has been given no name: the last part of its path or hub
    id."""
    return Path(vector if os.path.exists(vector) else vector.partition("@")[0]).name


def _named(text: str) -> tuple[str | None, str]:
    """`NAME=PATH` as its parts; a path alone, also one with an =, has no name."""
    name, equals, path = text.partition("=")
    if not (name and equals) or os.path.exists(text):
        return None, os.path.expanduser(text)
    return name, os.path.expanduser(path)
