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
from deftx.core.vector import Head, SparseTensor, SparseVector
from deftx.errors import DeftxError, unknown
from deftx.interop import lt_sft, shira
from deftx.models.compose import compose, task_type
from deftx.models.fingerprint import check_base, fingerprint
from deftx.models.loading import (
    Base,
    check_reading,
    load_encoder,
    load_language_model,
    load_tokenizer,
    recorded_name,
    save_model,
    save_untied,
    skeleton,
)
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
    """How vectors are read from a format (path, base, labels), and written to it (vector, folder,
    base, force).

    mark  the file by which a folder of this format is known
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
    """Write the vector `old`, of any format that can be read, as `new` in the format `to`, and
    return it.

    old     a folder, LT-SFT's file, or the hub id of one
    base    the model that the vector belongs to: it is checked, and its fingerprint noted where
            there is none. What needs a base and gets none takes the one that the vector names
    labels  the names of a head's outputs, for formats that do not have them
    kind    the kind of task that a head is of, for formats that do not tell: without it
            classification
    force   replace what is at `new`

    Raises DeftxError where a format or kind is unknown, a format cannot be read or written, or the
    base does not fit.
    """
    if to not in FORMATS:
        raise unknown("format", to, FORMATS)
    vector = _of_kind(kind, read(old, base, labels)) if kind else read(old, base, labels)
    FORMATS[to].write(vector, Path(new), base, force)
    return vector


def read(
    old: str | os.PathLike[str], base: Base | None = None, labels: Sequence[str] = ()
) -> SparseVector:
    """The vector `old`, of any format that can be read; see `convert`."""
    given = local(
        old,
        [form.mark for form in FORMATS.values()]
        + ["vector.*", "head.*", "adapter_model.safetensors"],
    )
    folder = given if given.is_dir() else given.parent
    known = [
        form
        for form in FORMATS.values()
        if (folder / form.mark).is_file() and given in (folder, folder / form.mark)
    ]
    if not known:
        marks = ", ".join(dict.fromkeys(form.mark for form in FORMATS.values() if form.read))
        raise DeftxError(f"{old} is no vector of a known format: it has none of {marks}")
    if known[0].read is None:
        raise DeftxError(
            f"{old} is a whole model: deftx extract makes a vector of its difference from its base"
        )
    return known[0].read(folder, base, labels)


def _read_own(folder: Path, base: Base | None, labels: Sequence[str]) -> SparseVector:
    vector = files.load(folder)
    if base is None:
        return vector
    model = load_encoder(base)
    check_base(model, vector, ignore_base_mismatch=None)
    check_reading(base, vector, ignore_base_mismatch=None)
    return _of_base(vector, base, model)


def _read_lt_sft(folder: Path, base: Base | None, labels: Sequence[str]) -> SparseVector:
    diffs, dense = lt_sft.read(folder / lt_sft.FILE)
    dense = {name: tensor for name, tensor in dense.items() if not name.startswith(_LANGUAGE_HEADS)}
    model = load_encoder(base) if base else None
    prefix = f"{model.base_model_prefix}." if model else _shared_prefix(diffs)
    tensors = {name.removeprefix(prefix): entries for name, entries in diffs.items()}
    pooler = f"{prefix}pooler."
    for name in [
        n for n in dense if prefix and n.startswith(prefix) and not n.startswith(pooler)
    ]:  # of the backbone
        tensors[name.removeprefix(prefix)] = _difference(name, dense.pop(name), model, prefix)
    for name in [
        name for name in tensors if name.startswith("pooler.")
    ]:  # it counts as part of a head
        dense[prefix + name] = _added(prefix + name, tensors.pop(name), model, prefix)
    top = _head(dense, labels) if dense else None
    converted = {"from": "lt-sft", "prefix": prefix.rstrip(".")}
    kind = "task" if top else "language"
    vector = SparseVector(tensors, top, {"kind": kind, "method": "lt-sft", "converted": converted})
    return _of_base(vector, base, model) if base and model else vector


def _read_shira(folder: Path, base: Base | None, labels: Sequence[str]) -> SparseVector:
    if base is None:
        raise DeftxError(
            f"{folder} is an adapter, which does not tell the shapes of its base: give the --base"
        )
    model = load_encoder(base)
    prefix = f"{model.base_model_prefix}."
    shapes = {name: tuple(module.weight.shape) for name, module in _linear(model).items()}
    layers, dense = shira.read(
        folder, shapes | {prefix + name: shape for name, shape in shapes.items()}
    )
    tensors = {f"{name.removeprefix(prefix)}.weight": entries for name, entries in layers.items()}
    top = _head(dense, labels) if dense else None
    origin = {"kind": "task" if top else "language", "converted": {"from": "peft"}}
    return _of_base(SparseVector(tensors, top, origin), base, model)


def _write_own(vector: SparseVector, out: Path, base: Base | None, force: bool) -> None:
    files.save(vector, out, force=force)


def _write_lt_sft(vector: SparseVector, out: Path, base: Base | None, force: bool) -> None:
    target = check_target(out, SFT, force=force)
    converted = vector.info.get("converted")
    known = converted.get("prefix") if isinstance(converted, Mapping) and base is None else None
    prefix = known if isinstance(known, str) else _prefix(_base_of(vector, base), vector)
    diffs = {
        f"{prefix}.{name}" if prefix else name: entries for name, entries in vector.tensors.items()
    }
    with new_folder(target, force=force) as new:
        lt_sft.write(new / lt_sft.FILE, diffs, vector.head.tensors if vector.head else {})


def _write_shira(vector: SparseVector, out: Path, base: Base | None, force: bool) -> None:
    base = _base_of(vector, base)
    target = check_target(out, PEFT, force=force)
    if vector.head and task_type(vector).auto is not AutoModelForSequenceClassification:
        raise DeftxError(
            f"an adapter of type SHiRA is written for classifiers, not for {vector.info['task']}"
        )
    language = language_of(skeleton(base).config).auto
    model = skeleton(base, AutoModelForSequenceClassification if vector.head else language)
    check_fit(model, replace(vector, head=None))
    linear = {f"{name}.weight": name for name in _linear(model.base_model)}
    kept = {
        name: entries
        for name, entries in vector.tensors.items()
        if name in linear and len(entries.indices)
    }
    lost = vector.k - sum(len(entries.indices) for entries in kept.values())
    what = f"{lost:,} of {vector.k:,} entries ({lost / max(1, vector.k):.1%}), those of embeddings, biases and the like"
    if not kept:
        raise DeftxError(
            f"an adapter would leave out {what}: SHiRA has linear layers only, and nothing would be left"
        )
    if lost:
        warnings.warn(f"the adapter leaves out {what}: SHiRA has linear layers only", stacklevel=2)
    prefix = f"{found}." if (found := _prefix(base, vector)) else ""
    layers = {prefix + linear[name]: entries for name, entries in kept.items()}
    dense = vector.head.tensors if vector.head else {}
    about = {
        "base_model_name_or_path": os.fspath(base),
        "task_type": "SEQ_CLS" if vector.head else None,
        "modules_to_save": sorted({name.removeprefix(prefix).split(".")[0] for name in dense})
        or None,
    }
    with new_folder(target, force=force) as new:
        shira.write(new, layers, dense, about)


def _write_model(vector: SparseVector, out: Path, base: Base | None, force: bool) -> None:
    base = _base_of(vector, base)
    check_target(out, MODEL, force=force)
    model = (
        compose(base, vector, ignore_base_mismatch=None)
        if vector.head
        else _with_vector(base, vector, tied=False)
    )
    save_model(model, load_tokenizer(base), out, force=force)


def _write_mergekit(vector: SparseVector, out: Path, base: Base | None, force: bool) -> None:
    """The base with the vector, of the base's own architecture, and what to give mergekit to have
    the difference."""
    base = _base_of(vector, base)
    target = check_target(out, MODEL, force=force)
    if vector.head:
        warnings.warn(
            "the head is left out: mergekit merges models of the base's own architecture",
            stacklevel=2,
        )
    model, tokenizer = _with_vector(base, vector, tied=True), load_tokenizer(base)
    named = os.path.abspath(base) if os.path.exists(base) else os.fspath(base)
    merge = {
        "merge_method": "task_arithmetic",
        "base_model": named,
        "models": [{"model": str(target), "parameters": {"weight": 1.0}}],
        "dtype": "float32",
    }
    save_model(
        model,
        tokenizer,
        out,
        force=force,
        beside={"mergekit.yml": yaml.safe_dump(merge, sort_keys=False)},
    )


FORMATS = {
    "deftx": Format(manifest.FILE, _read_own, _write_own),
    "lt-sft": Format(lt_sft.FILE, _read_lt_sft, _write_lt_sft),
    "peft": Format(shira.FILE, _read_shira, _write_shira),
    "model": Format("config.json", None, _write_model),
    "mergekit": Format("config.json", None, _write_mergekit),
}


def _with_vector(base: Base, vector: SparseVector, *, tied: bool) -> PreTrainedModel:
    """The base with a vector, as the masked language model that it is, or the encoder where it has
    no such head.

    tied  its decoder is the changed embeddings, as in the base; else the base's, as in the training
          of the vector
    """
    try:
        model: Any = load_language_model(base)
    except DeftxError:
        model = load_encoder(base)
    check_base(model, vector, ignore_base_mismatch=None)
    check_reading(base, vector, ignore_base_mismatch=None)
    apply(model, replace(vector, head=None))
    if tied:
        model.tie_weights()
    elif (decoder := model.get_output_embeddings()) is not None:
        save_untied(model)
        if decoder.bias is not None:  # it is tied as well, and would not be saved
            decoder.bias = nn.Parameter(decoder.bias.detach().clone())
    return cast(PreTrainedModel, model)


def _of_kind(kind: str, vector: SparseVector) -> SparseVector:
    """The task vector, noted to be of a kind of task."""
    task_of(kind)
    if not vector.head:
        raise DeftxError(
            f"kind {kind}: the vector has no head, so it is of no kind of task: leave the kind out"
        )
    top = vector.head if task_of(kind).names else replace(vector.head, labels=())
    return replace(vector, head=top, info={**vector.info, "task": kind})


def _base_of(vector: SparseVector, base: Base | None) -> Base:
    found: Base | None = base or vector.info.get("base")
    if found is None:
        raise DeftxError("the vector does not name its base: give --base")
    return found


def _of_base(vector: SparseVector, base: Base, model: nn.Module) -> SparseVector:
    """The vector with the base's name and fingerprint, once it fits."""
    check_fit(model, replace(vector, head=None))
    named = {"base": recorded_name(base), "base_fingerprint": fingerprint(model)}
    return replace(vector, info={**vector.info, **named, "k": vector.k})


def _prefix(base: Base, vector: SparseVector) -> str:
    """What stands before the backbone's names in the model that a vector was learnt in: nothing in
    T5's language model, which is its own backbone."""
    body = skeleton(base)
    if vector.head:
        return body.base_model_prefix
    model = skeleton(base, language_of(body.config).auto)
    return "" if model.base_model is model else model.base_model_prefix


def _shared_prefix(names: Iterable[str]) -> str:
    """What stands before the backbone's names in a task model, with its dot: `roberta.`; nothing in
    a bare encoder."""
    first = {name.split(".")[0] for name in names}
    return f"{first.pop()}." if len(first) == 1 and not first <= _BARE else ""


def _linear(model: nn.Module) -> dict[str, nn.Linear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def _weight(name: str, model: nn.Module | None, prefix: str, shape: tuple[int, ...]) -> Tensor:
    """A tensor of the base, by its name in the task model. Raises DeftxError unless it is there, of
    this shape."""
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
            f"{name!r} is {shape} in the file, {tuple(weight.shape)} in the base: give the vector's base"
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
    """A head of dense tensors. Its outputs are the rows of its matrix that is not square, as those
    between the base and it are, or of the smallest; without `labels` they get numbers."""
    matrices = [tensor for tensor in dense.values() if tensor.dim() == 2]
    last = [tensor for tensor in matrices if tensor.shape[0] != tensor.shape[1]] or matrices
    outputs = min(map(len, last), default=0)
    if labels and len(labels) != outputs:
        raise DeftxError(
            f"{len(labels)} labels are given for a head of {outputs} outputs: give one for each"
        )
    return Head(dict(dense), tuple(labels) or tuple(f"LABEL_{number}" for number in range(outputs)))
