"""The difference of two models: as a vector, tensor by tensor and neither loaded whole; or
dense."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from deftx.core.denoise import KEEP, denoise
from deftx.core.parameters import backbone, head, tunable, unwrapped
from deftx.core.ranks import recorded_rank
from deftx.core.select import parse_k, select
from deftx.core.vector import Head, SparseTensor, SparseVector
from deftx.errors import DeftxError
from deftx.models.fingerprint import fingerprint_of
from deftx.models.limits import rank_on
from deftx.models.loading import Base, load_encoder, skeleton
from deftx.models.saving import recorded_name
from deftx.storage.checkpoints import Checkpoint, open_checkpoint


@dataclass(frozen=True, eq=False)
class _Found:
    """Entries of one tensor: their flat indices, what they are chosen by, and their differences,
    all [n]."""

    indices: Tensor
    strength: Tensor
    values: Tensor

    def at(self, places: Tensor) -> "_Found":
        return _Found(self.indices[places], self.strength[places], self.values[places])


def extract(
    finetuned: Base,
    base: Base,
    *,
    k: int | float | str | None = None,
    rank: int | float | str | None = None,
) -> SparseVector:
    """φ = θ1 − θ0 of two checkpoints, of the tunable backbone; with the head, where `finetuned` is
    a classifier.

    finetuned, base  folders or hub ids, in safetensors of any precision, in one file or several
    k                keep this many entries at most, the largest in magnitude: a count or a share;
                     None: all but zeros
    rank             choose them by the difference as denoised with this rank, from those that are
                     not zero; the values stay those of the difference

    Needs memory for one tensor of each checkpoint, their difference, and up to twice the result.
    Raises DeftxError where a checkpoint cannot be read or lacks a tensor, and where the shapes
    differ or a value is not finite.
    """
    body = skeleton(base)
    weights = tunable(body)
    resolved = None if rank is None else rank_on(body, rank)
    before, after = (_reader(open_checkpoint(model), model, body) for model in (base, finetuned))
    total = sum(weight.numel() for weight in weights.values())
    count = None if k is None else parse_k(k, total)
    found: dict[str, _Found] = {}
    for name in weights:
        found[name] = _entries(name, after(name).float() - before(name).float(), count, resolved)
        if count is not None and sum(len(part.indices) for part in found.values()) > 2 * count:
            found = _strongest(found, count)
    found = found if count is None else _strongest(found, count)
    changed = [
        name
        for name in backbone(body)
        if name not in weights and not after(name).equal(before(name))
    ]
    if changed:
        warnings.warn(
            f"{len(changed)} layer norms differ too, which vectors leave as they are", stacklevel=2
        )
    tensors = {
        name: SparseTensor(part.indices, part.values, tuple(weights[name].shape))
        for name, part in found.items()
        if len(part.indices)
    }
    about = {
        "finetuned": recorded_name(finetuned),
        "base": recorded_name(base),
        **recorded_rank(rank, resolved),
    }
    chosen = sum(len(part.indices) for part in found.values())
    origin = {"base_fingerprint": fingerprint_of(backbone(body), before), "k": chosen}
    top = _head(finetuned)
    return SparseVector(tensors, top, {"kind": "task" if top else "difference", **about, **origin})


def delta(
    finetuned: nn.Module | Base, base: nn.Module | Mapping[str, Tensor] | Base
) -> dict[str, Tensor]:
    """δ = θ1 − θ0 of the tunable backbone, dense, float32: for those who have a training loop of
    their own.

    Either is a model, or the folder or hub id of one; `base` may also be a state dict, copied
    before the training. Raises DeftxError where the base lacks a tensor or has another shape of it.
    `extract` makes a vector of two checkpoints without loading either.
    """
    model = finetuned if isinstance(finetuned, nn.Module) else load_encoder(finetuned)
    prefix = f"{getattr(unwrapped(model), 'base_model_prefix', '')}."
    learnt, before = (
        tunable(model),
        {name.removeprefix(prefix): weight for name, weight in _weights(base).items()},
    )
    for name, weight in learnt.items():
        if name not in before or before[name].shape != weight.shape:
            raise DeftxError(
                f"{name!r} is missing in the base, or of another shape: give the base of this fine-tuning"
            )
    return {
        name: weight.detach().float() - before[name].detach().to(weight.device, torch.float32)
        for name, weight in learnt.items()
    }


def _reader(checkpoint: Checkpoint, model: Base, body: PreTrainedModel) -> Callable[[str], Tensor]:
    """A function from a backbone's name to its tensor in the checkpoint, whatever its prefix or
    tied name there."""
    tied: dict[int, list[str]] = {}
    for name, parameter in body.named_parameters(remove_duplicate=False):
        tied.setdefault(id(parameter), []).append(name)
    weights, prefix = backbone(body), f"{body.base_model_prefix}."

    def read(name: str) -> Tensor:
        spelt = [
            spelling for same in tied[id(weights[name])] for spelling in (same, _as_of_old(same))
        ]
        names = [prefix + same if inside else same for same in spelt for inside in (True, False)]
        there = next((same for same in names if same in checkpoint.files), None)
        if there is None:
            why = "give checkpoints of one architecture; or load both, and use deftx.delta"
            raise DeftxError(f"the checkpoint {model} has no tensor {name!r}: {why}")
        tensor = checkpoint.tensor(there)
        if tensor.shape != weights[name].shape:
            shapes = f"{tuple(tensor.shape)} in {model}, {tuple(weights[name].shape)} in the base's configuration"
            raise DeftxError(f"{name!r} is {shapes}: give checkpoints of one architecture")
        return tensor

    return read


def _as_of_old(name: str) -> str:
    """The name that the parameters of layer norms have in BERT's first checkpoints, which
    transformers still reads."""
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
        "LayerNorm.bias", "LayerNorm.beta"
    )


def _entries(name: str, delta: Tensor, count: int | None, rank: int | float | str | None) -> _Found:
    """The entries of one tensor that may be among the `count` largest of all, zeros left out."""
    if not delta.isfinite().all():
        raise DeftxError(
            f"the difference of {name!r} has values that are not finite: a checkpoint is damaged"
        )
    judged = delta if rank is None else denoise({name: delta}, rank, KEEP)[name]
    flat, strength = delta.reshape(-1), judged.abs().masked_fill_(delta == 0, 0).view(-1)
    if count is None:
        places = strength.nonzero().view(-1)
    else:
        places = select({name: strength}, min(count, strength.numel()))[name].indices
    part = _Found(places, strength[places], flat[places])
    return part.at(part.strength > 0)


def _strongest(found: Mapping[str, _Found], count: int) -> dict[str, _Found]:
    """The `count` entries that are strongest, over all tensors; the first of those that tie."""
    strength = torch.cat([part.strength for part in found.values()] or [torch.empty(0)])
    kept = torch.zeros(len(strength), dtype=torch.bool)
    kept[select({"": strength}, min(count, len(strength)))[""].indices] = True
    masks = kept.split([len(part.strength) for part in found.values()])
    return {name: part.at(mask) for (name, part), mask in zip(found.items(), masks, strict=True)}


def _head(finetuned: Base) -> Head | None:
    """The head of a checkpoint that is a classifier."""
    config: Any = skeleton(finetuned).config
    if not (config.architectures or [""])[0].endswith("ForSequenceClassification"):
        return None
    checkpoint, names = (
        open_checkpoint(finetuned),
        head(skeleton(finetuned, AutoModelForSequenceClassification)),
    )
    if missing := [name for name in names if name not in checkpoint.files]:
        raise DeftxError(
            f"the checkpoint {finetuned} calls itself a classifier and lacks {missing[0]!r}"
        )
    labels = tuple(str(config.id2label[number]) for number in range(config.num_labels))
    return Head({name: checkpoint.tensor(name).float() for name in names}, labels)


def _weights(model: nn.Module | Mapping[str, Tensor] | Base) -> Mapping[str, Tensor]:
    """The tunable weights of a model, by their names in the backbone; a state dict as it is."""
    if isinstance(model, Mapping):
        return model
    return tunable(model if isinstance(model, nn.Module) else load_encoder(model))
