"""Vectors from and to the formats of others. A format is a line in FORMATS."""

import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import yaml
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from deftx.core.apply import apply, check_fit
from deftx.core.provenance import ConversionRecord, Provenance
from deftx.core.tensors import Head, SparseTensor
from deftx.core.vector import SparseVector
from deftx.errors import DeftxError, unknown
from deftx.interop import lt_sft, shira
from deftx.interop.heads import (
    PARSER_RELATIONS,
    check_kind,
    check_known_head,
    is_parser,
    usual_names,
)
from deftx.models.compose import compose, task_type
from deftx.models.fingerprint import check_base, fingerprint
from deftx.models.loading import Base, load_encoder, load_language_model, skeleton
from deftx.models.saving import recorded_name, save_model, save_untied
from deftx.models.tokenizers import check_recorded_tokenizer, load_tokenizer
from deftx.objectives.registry import language_of
from deftx.storage import manifest
from deftx.storage import vector_files as files
from deftx.storage.atomic_files import MODEL, PEFT, SFT, check_target, new_folder
from deftx.storage.checkpoints import local
from deftx.tasks.registry import task_of

# Parts of masked language models that no vector holds.
_LANGUAGE_HEADS = ("lm_head.", "cls.", "vocab_transform.", "vocab_layer_norm.", "vocab_projector.")
_BARE = {"embeddings", "encoder"}  # the first parts of names in a model without a head


@dataclass(frozen=True)
class Format:
    """A format of vectors.

    Attributes:
        mark: The file by which a folder of this format is known.
        read: (folder, base, labels) -> vector; None for formats that are only written.
        write: (vector, folder, base, force) writes the folder.
    """

    mark: str
    read: Callable[[Path, Base | None, Sequence[str]], SparseVector] | None
    write: Callable[[SparseVector, Path, Base | None, bool], None]


def convert(
    old: str | os.PathLike[str],
    new: str | os.PathLike[str],
    to: str = "deftx",
    *,
    base: Base | None = None,
    labels: Sequence[str] = (),
    kind: str | None = None,
    force: bool = False,
) -> SparseVector:
    """Read a vector of any format that can be read, and write it in another one.

    Args:
        old: A folder, LT-SFT's file, or the hub id of a vector.
        new: The folder to write.
        to: The format to write, a name in `FORMATS`.
        base: The model that the vector belongs to. It is checked, and its fingerprint recorded
            where the vector has none. Formats that need a base take the one that the vector names
            where none is given.
        labels: The names of a head's outputs, for formats that do not have them.
        kind: The kind of task of a head, for formats that do not tell; classification by default.
        force: Replace what is at `new`.

    Returns:
        The vector that was written.

    Raises:
        DeftxError: A format or kind is unknown, a format cannot be read or written, or the base
            does not fit.
    """
    if to not in FORMATS:
        raise unknown("format", to, FORMATS)
    vector = read(old, base, labels)
    if kind:
        vector = _of_kind(kind, vector)
    FORMATS[to].write(vector, Path(new), base, force)
    return vector


def read(
    old: str | os.PathLike[str], base: Base | None = None, labels: Sequence[str] = ()
) -> SparseVector:
    """The vector `old`, of any format that can be read; the parameters are those of `convert`."""
    marks = [form.mark for form in FORMATS.values()]
    path = local(old, [*marks, "vector.*", "head.*", "adapter_model.safetensors"])
    folder = path if path.is_dir() else path.parent
    for form in FORMATS.values():
        mark = folder / form.mark
        if not mark.is_file() or path not in (folder, mark):
            continue
        if form.read is None:
            raise DeftxError(
                f"{old} is a whole model: deftx extract makes a vector of its difference from its "
                "base"
            )
        return form.read(folder, base, labels)
    readable = dict.fromkeys(form.mark for form in FORMATS.values() if form.read)
    raise DeftxError(f"{old} is no vector of a known format: it has none of {', '.join(readable)}")


def _read_own(folder: Path, base: Base | None, labels: Sequence[str]) -> SparseVector:
    vector = files.load(folder)
    if base is None:
        return vector
    model = load_encoder(base)
    check_base(model, vector, ignore_base_mismatch=None)
    check_recorded_tokenizer(base, vector, ignore_base_mismatch=None)
    return _of_base(vector, base, model)


def _read_lt_sft(folder: Path, base: Base | None, labels: Sequence[str]) -> SparseVector:
    diffs, dense = lt_sft.read(folder / lt_sft.FILE)
    model = load_encoder(base) if base else None
    prefix = f"{model.base_model_prefix}." if model else _shared_prefix(diffs)

    tensors = {name.removeprefix(prefix): entries for name, entries in diffs.items()}
    head = {}
    for name, tensor in dense.items():
        in_backbone = prefix and name.startswith(prefix)
        if name.startswith(_LANGUAGE_HEADS):
            continue
        if in_backbone and not name.startswith(f"{prefix}pooler."):
            tensors[name.removeprefix(prefix)] = _difference(name, tensor, model, prefix)
        else:
            head[name] = tensor
    # The pooler counts as part of a head, whose tensors are kept whole
    for name in list(tensors):
        if name.startswith("pooler."):
            head[prefix + name] = _added(prefix + name, tensors.pop(name), model, prefix)

    check_known_head(folder, head, prefix)
    kind = "task" if head else "language"
    task = "parsing" if is_parser(head) else None
    conversion = ConversionRecord("lt-sft", prefix.rstrip("."))
    provenance = Provenance(kind=kind, task=task, method="lt-sft", converted=conversion)
    labelled_head = _head(head, labels) if head else None
    vector = SparseVector(tensors, labelled_head, provenance)
    if base is None or model is None:
        return vector
    return _of_base(vector, base, model)


def _read_shira(folder: Path, base: Base | None, labels: Sequence[str]) -> SparseVector:
    if base is None:
        raise DeftxError(
            f"{folder} is an adapter, which does not tell the shapes of its base: give the --base"
        )
    model = load_encoder(base)
    prefix = f"{model.base_model_prefix}."

    # An adapter names its layers by the whole model, or by the backbone alone
    shapes = {}
    for name, layer in _linear(model).items():
        shapes[name] = shapes[prefix + name] = tuple(layer.weight.shape)
    layers, dense = shira.read(folder, shapes)
    tensors = {f"{name.removeprefix(prefix)}.weight": entries for name, entries in layers.items()}

    check_known_head(folder, dense, prefix)
    kind = "task" if dense else "language"
    provenance = Provenance(kind=kind, converted=ConversionRecord("peft"))
    labelled_head = _head(dense, labels) if dense else None
    vector = SparseVector(tensors, labelled_head, provenance)
    return _of_base(vector, base, model)


def _write_own(vector: SparseVector, out: Path, base: Base | None, force: bool) -> None:
    files.save(vector, out, force=force)


def _write_lt_sft(vector: SparseVector, out: Path, base: Base | None, force: bool) -> None:
    target = check_target(out, SFT, force=force)
    prefix = _recorded_prefix(vector) if base is None else None
    if prefix is None:
        prefix = _prefix(_base_of(vector, base), vector)
    begin = f"{prefix}." if prefix else ""
    diffs = {begin + name: entries for name, entries in vector.tensors.items()}
    dense = vector.head.tensors if vector.head else {}
    with new_folder(target, force=force) as new:
        lt_sft.write(new / lt_sft.FILE, diffs, dense)


def _write_shira(vector: SparseVector, out: Path, base: Base | None, force: bool) -> None:
    base = _base_of(vector, base)
    target = check_target(out, PEFT, force=force)
    if vector.head and task_type(vector).auto_model_class is not AutoModelForSequenceClassification:
        raise DeftxError(
            f"an adapter of type SHiRA is written for classifiers, not for {vector.task}"
        )
    model_class: Any = AutoModelForSequenceClassification
    if not vector.head:
        model_class = language_of(skeleton(base).config).auto_model_class
    model = skeleton(base, model_class)
    check_fit(model, replace(vector, head=None))

    # What SHiRA can hold: entries in the weights of linear layers
    prefix = _prefix(base, vector)
    begin = f"{prefix}." if prefix else ""
    layers = {}
    for name in _linear(model.base_model):
        entries = vector.tensors.get(f"{name}.weight")
        if entries is not None and len(entries.indices):
            layers[begin + name] = entries
    _warn_of_lost(vector, layers)

    dense = vector.head.tensors if vector.head else {}
    modules = sorted({name.removeprefix(begin).split(".")[0] for name in dense})
    about: dict[str, Any] = {
        "base_model_name_or_path": _absolute(base),
        "task_type": "SEQ_CLS" if vector.head else None,
        "modules_to_save": modules or None,
    }
    if not vector.head:  # where there is no task_type, PEFT's AutoPeftModel loads this class
        about["auto_mapping"] = {
            "base_model_class": type(model).__name__,
            "parent_library": type(model).__module__,
        }
    with new_folder(target, force=force) as new:
        shira.write(new, layers, dense, about)


def _warn_of_lost(vector: SparseVector, layers: Mapping[str, SparseTensor]) -> None:
    """Warn of the entries that are not in the linear `layers`.

    Raises:
        DeftxError: None is in them.
    """
    kept = sum(len(entries.indices) for entries in layers.values())
    lost = vector.k - kept
    share = f"{lost:,} of {vector.k:,} entries ({lost / max(1, vector.k):.1%})"
    what = f"{share}, those of embeddings, biases and the like"
    if not layers:
        raise DeftxError(
            f"an adapter would leave out {what}: SHiRA has linear layers only, and nothing would "
            "be left"
        )
    if lost:
        warnings.warn(f"the adapter leaves out {what}: SHiRA has linear layers only", stacklevel=3)


def _write_model(vector: SparseVector, out: Path, base: Base | None, force: bool) -> None:
    base = _base_of(vector, base)
    check_target(out, MODEL, force=force)
    if vector.head:
        model = compose(base, vector, ignore_base_mismatch=None)
    else:
        model = _with_vector(base, vector, tied=False)
    save_model(model, load_tokenizer(base), out, force=force)


def _write_mergekit(vector: SparseVector, out: Path, base: Base | None, force: bool) -> None:
    """Write the base with the vector, of the base's own architecture, and the configuration with
    which mergekit takes their difference."""
    base = _base_of(vector, base)
    target = check_target(out, MODEL, force=force)
    if vector.head:
        warnings.warn(
            "the head is left out: mergekit merges models of the base's own architecture",
            stacklevel=2,
        )
    model = _with_vector(base, vector, tied=True)
    tokenizer = load_tokenizer(base)
    merge = {
        "merge_method": "task_arithmetic",
        "base_model": _absolute(base),
        "models": [{"model": str(target), "parameters": {"weight": 1.0}}],
        "dtype": "float32",
    }
    configuration = yaml.safe_dump(merge, sort_keys=False)
    save_model(model, tokenizer, out, force=force, beside={"mergekit.yml": configuration})


FORMATS = {
    "deftx": Format(manifest.FILE, _read_own, _write_own),
    "lt-sft": Format(lt_sft.FILE, _read_lt_sft, _write_lt_sft),
    "peft": Format(shira.FILE, _read_shira, _write_shira),
    "model": Format("config.json", None, _write_model),
    "mergekit": Format("config.json", None, _write_mergekit),
}


def _absolute(base: Base) -> str:
    """A base as others find it from any folder: its whole path, or its hub id."""
    return os.path.abspath(base) if os.path.exists(base) else os.fspath(base)


def _with_vector(base: Base, vector: SparseVector, *, tied: bool) -> PreTrainedModel:
    """The base's language model with a vector; the encoder where the base has no such head.

    Args:
        base: The base.
        vector: A vector; its head is left out.
        tied: The decoder is the changed embeddings, as in the base. Otherwise the decoder stays the
            base's, as in the training of the vector.
    """
    try:
        model: Any = load_language_model(base)
    except DeftxError:
        model = load_encoder(base)
    check_base(model, vector, ignore_base_mismatch=None)
    check_recorded_tokenizer(base, vector, ignore_base_mismatch=None)
    apply(model, replace(vector, head=None))
    if tied:
        model.tie_weights()
        return cast(PreTrainedModel, model)
    decoder = model.get_output_embeddings()
    if decoder is not None:
        save_untied(model)
        if decoder.bias is not None:  # it is tied as well, and would not be saved
            decoder.bias = nn.Parameter(decoder.bias.detach().clone())
    return cast(PreTrainedModel, model)


def _of_kind(kind: str, vector: SparseVector) -> SparseVector:
    """The task vector, recorded to be of a kind of task."""
    task = task_of(kind)
    if not vector.head:
        raise DeftxError(
            f"kind {kind}: the vector has no head, so it is of no kind of task: leave the kind out"
        )
    check_kind(kind, vector.head.tensors)
    head = vector.head if task.label_names else replace(vector.head, labels=())
    return replace(vector, head=head, provenance=replace(vector.provenance, task=kind))


def _base_of(vector: SparseVector, base: Base | None) -> Base:
    """`base`, or the one that the vector names.

    Raises:
        DeftxError: There is neither.
    """
    named: Base | None = base or vector.base
    if named is None:
        raise DeftxError("the vector does not name its base: give --base")
    return named


def _of_base(vector: SparseVector, base: Base, model: nn.Module) -> SparseVector:
    """The vector with the base's name and fingerprint.

    Raises:
        DeftxError: It does not fit the base.
    """
    check_fit(model, replace(vector, head=None))
    provenance = replace(
        vector.provenance,
        base=recorded_name(base),
        base_fingerprint=fingerprint(model),
        k=vector.k,
    )
    return replace(vector, provenance=provenance)


def _prefix(base: Base, vector: SparseVector) -> str:
    """What the backbone's names begin with in the model that a vector was trained in; nothing in
    T5's language model, which is its own backbone."""
    backbone = skeleton(base)
    if vector.head:
        return backbone.base_model_prefix
    model = skeleton(base, language_of(backbone.config).auto_model_class)
    return "" if model.base_model is model else model.base_model_prefix


def _recorded_prefix(vector: SparseVector) -> str | None:
    """The same, as a vector that came from LT-SFT records it."""
    converted = vector.provenance.converted
    return None if converted is None else converted.prefix


def _shared_prefix(names: Iterable[str]) -> str:
    """What the backbone's names begin with in a task model, with its dot: `roberta.`; nothing in a
    bare encoder."""
    first_parts = {name.split(".")[0] for name in names}
    if len(first_parts) != 1 or first_parts <= _BARE:
        return ""
    return f"{first_parts.pop()}."


def _linear(model: nn.Module) -> dict[str, nn.Linear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def _weight(name: str, model: nn.Module | None, prefix: str, shape: tuple[int, ...]) -> Tensor:
    """A tensor of the base, by its name in the task model.

    Raises:
        DeftxError: It is not there, or has another shape.
    """
    if model is None:
        raise DeftxError(
            f"the file has {name!r}, which can only be read beside its base: give --base"
        )
    weights = dict(model.named_parameters())
    if name.removeprefix(prefix) not in weights:
        raise DeftxError(f"the base has no {name!r}: give the vector's own base")
    weight = weights[name.removeprefix(prefix)].detach()
    if weight.shape != shape:
        raise DeftxError(
            f"{name!r} is {shape} in the file, {tuple(weight.shape)} in the base: give the "
            "vector's base"
        )
    return weight


def _added(name: str, change: SparseTensor, model: nn.Module | None, prefix: str) -> Tensor:
    return _weight(name, model, prefix, change.shape) + change.to_dense()


def _difference(name: str, whole: Tensor, model: nn.Module | None, prefix: str) -> SparseTensor:
    before = _weight(name, model, prefix, tuple(whole.shape))
    flat = (whole.float() - before).view(-1)
    indices = flat.nonzero().view(-1)
    return SparseTensor(indices, flat[indices], tuple(whole.shape))


def _head(dense: Mapping[str, Tensor], labels: Sequence[str]) -> Head:
    """A head of dense tensors. Without `labels`, its outputs get numbers.

    How many outputs it has are the rows of its last matrix: the one that is not square, as those
    between the base and it are, or the smallest one; of a parser, its relations.
    """
    matrices = [tensor for tensor in dense.values() if tensor.dim() == 2]
    not_square = [tensor for tensor in matrices if tensor.shape[0] != tensor.shape[1]]
    outputs = min(map(len, not_square or matrices), default=0)
    if is_parser(dense):
        outputs = len(dense[PARSER_RELATIONS])
    if labels and len(labels) != outputs:
        raise DeftxError(
            f"{len(labels)} labels are given for a head of {outputs} outputs: give one for each"
        )
    names = tuple(labels) or usual_names(outputs, dense)
    return Head(dict(dense), names)
