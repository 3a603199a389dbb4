"""The difference of two models: as a vector, tensor by tensor with neither loaded whole, or
dense."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from deftx.core.denoise import KEEP, denoise
from deftx.core.parameters import ParameterGroups, parameter_groups, unwrapped
from deftx.core.provenance import Provenance
from deftx.core.ranks import recorded_rank
from deftx.core.select import parse_k, select
from deftx.core.tensors import Head, SparseTensor
from deftx.core.vector import SparseVector
from deftx.errors import DeftxError
from deftx.models.fingerprint import fingerprint_of
from deftx.models.limits import rank_on
from deftx.models.loading import Base, load_encoder, skeleton
from deftx.models.saving import recorded_name
from deftx.storage.checkpoints import Checkpoint, open_checkpoint

# From the name of a backbone's parameter to its tensor in a checkpoint
Reader = Callable[[str], Tensor]


@dataclass(frozen=True, eq=False)
class _Candidates:
    """Entries of one tensor that may be kept.

    Attributes:
        indices: Positions in the flattened tensor [n] int64.
        strength: What they are chosen by [n], above 0.
        values: The differences [n].
    """

    indices: Tensor
    strength: Tensor
    values: Tensor

    def __len__(self) -> int:
        return len(self.indices)

    def at(self, rows: Tensor) -> "_Candidates":
        """Those at some rows: numbers, or a mask."""
        return _Candidates(self.indices[rows], self.strength[rows], self.values[rows])


def extract(
    finetuned: Base,
    base: Base,
    *,
    k: int | float | str | None = None,
    rank: int | float | str | None = None,
) -> SparseVector:
    """φ = θ1 − θ0 of two checkpoints, of the trainable backbone; with the head, where `finetuned`
    is a classifier.

    Takes memory for one tensor of each checkpoint, their difference, and up to twice the result.

    Args:
        finetuned: Folder or hub id, in safetensors of any precision, in one file or several.
        base: The same.
        k: Keep this many entries at most, the largest in magnitude: a count or a share; None: all
            but zeros.
        rank: Choose them by the difference as denoised with this rank, from those that are not
            zero; the values stay those of the difference.

    Raises:
        DeftxError: A checkpoint cannot be read or lacks a tensor, shapes differ, or a value is not
            finite.
    """
    body = skeleton(base)
    groups = parameter_groups(body)
    weights = groups.trainable
    resolved_rank = None if rank is None else rank_on(body, rank)
    before = _reader(open_checkpoint(base), base, body)
    after = _reader(open_checkpoint(finetuned), finetuned, body)
    count = None if k is None else parse_k(k, groups.trainable_size)

    # Tensor by tensor; the weakest are left out whenever there are twice as many as are kept
    candidates: dict[str, _Candidates] = {}
    for name in weights:
        difference = after(name).float() - before(name).float()
        candidates[name] = _candidates(name, difference, count, resolved_rank)
        if count is not None and _count(candidates) > 2 * count:
            candidates = _strongest(candidates, count)
    if count is not None:
        candidates = _strongest(candidates, count)

    _warn_of_changed_norms(groups, before, after)
    tensors = {}
    for name, entries in candidates.items():
        if len(entries):
            shape = tuple(weights[name].shape)
            tensors[name] = SparseTensor(entries.indices, entries.values, shape)
    head = _head(finetuned)
    kind = "task" if head else "difference"
    recorded: dict[str, Any] = {**recorded_rank(rank, resolved_rank)}
    provenance = Provenance(
        kind=kind,
        finetuned=recorded_name(finetuned),
        base=recorded_name(base),
        **recorded,
        base_fingerprint=fingerprint_of(groups.backbone, before),
        k=_count(candidates),
    )
    return SparseVector(tensors, head, provenance)


def _warn_of_changed_norms(groups: ParameterGroups, before: Reader, after: Reader) -> None:
    """Warn where layer norms differ, which vectors leave as they are."""
    changed = 0
    for name in groups.backbone:
        if name not in groups.trainable and not after(name).equal(before(name)):
            changed += 1
    if changed:
        warnings.warn(
            f"{changed} layer norms differ too, which vectors leave as they are", stacklevel=3
        )


def delta(
    finetuned: nn.Module | Base, base: nn.Module | Mapping[str, Tensor] | Base
) -> dict[str, Tensor]:
    """δ = θ1 − θ0 of the trainable backbone, dense, float32: for those who have a training loop of
    their own.

    `extract` makes a vector of two checkpoints without loading either.

    Args:
        finetuned: A model, or the folder or hub id of one.
        base: The same, or a state dict that was copied before the training.

    Returns:
        Differences by name, each of its parameter's shape, on the device of `finetuned`.

    Raises:
        DeftxError: The base lacks a tensor, or has another shape of it.
    """
    model = finetuned if isinstance(finetuned, nn.Module) else load_encoder(finetuned)
    after = parameter_groups(model).trainable

    # A state dict of a model with a head has the backbone's names with a prefix
    prefix = f"{getattr(unwrapped(model), 'base_model_prefix', '')}."
    before = {name.removeprefix(prefix): weight for name, weight in _weights(base).items()}

    differences = {}
    for name, weight in after.items():
        if name not in before or before[name].shape != weight.shape:
            raise DeftxError(
                f"{name!r} is missing in the base, or of another shape:"
                " give the base of this fine-tuning"
            )
        old = before[name].detach().to(weight.device, torch.float32)
        differences[name] = weight.detach().float() - old
    return differences


def _weights(model: nn.Module | Mapping[str, Tensor] | Base) -> Mapping[str, Tensor]:
    """The trainable weights of a model, by their names in the backbone; a state dict as it is."""
    if isinstance(model, Mapping):
        return model
    if not isinstance(model, nn.Module):
        model = load_encoder(model)
    return parameter_groups(model).trainable


# --- tensors of checkpoints by their names in the backbone ---


def _reader(checkpoint: Checkpoint, model: Base, body: PreTrainedModel) -> Reader:
    """A function from the name of a backbone's parameter to its tensor in a checkpoint.

    Args:
        checkpoint: Its names may have the prefix of a model with a head, be those of tied
            parameters, or be those of BERT's first checkpoints.
        model: What the checkpoint is called in messages.
        body: The backbone, without weights.
    """
    tied_names: dict[int, list[str]] = {}
    for name, parameter in body.named_parameters(remove_duplicate=False):
        tied_names.setdefault(id(parameter), []).append(name)
    weights = parameter_groups(body).backbone
    prefix = f"{body.base_model_prefix}."

    def stored_name(name: str) -> str | None:
        for tied in tied_names[id(weights[name])]:
            for spelling in (tied, _former_name(tied)):
                for stored in (f"{prefix}{spelling}", spelling):
                    if stored in checkpoint.files:
                        return stored
        return None

    def read(name: str) -> Tensor:
        stored = stored_name(name)
        if stored is None:
            raise DeftxError(
                f"the checkpoint {model} has no tensor {name!r}:"
                " give checkpoints of one architecture; or load both, and use deftx.delta"
            )
        tensor = checkpoint.tensor(stored)
        wanted = tuple(weights[name].shape)
        if tensor.shape != wanted:
            shapes = f"{tuple(tensor.shape)} in {model}, {wanted} in the base's configuration"
            raise DeftxError(f"{name!r} is {shapes}: give checkpoints of one architecture")
        return tensor

    return read


def _former_name(name: str) -> str:
    """The name of a layer norm's parameter in BERT's first checkpoints, which transformers still
    reads."""
    name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
    return name.replace("LayerNorm.bias", "LayerNorm.beta")


# --- the entries that are kept ---


def _candidates(
    name: str, difference: Tensor, count: int | None, rank: int | float | str | None
) -> _Candidates:
    """The entries of one tensor that may be among the `count` largest of all, without zeros."""
    if not difference.isfinite().all():
        raise DeftxError(
            f"the difference of {name!r} has values that are not finite: a checkpoint is damaged"
        )
    judged = difference
    if rank is not None:
        judged = denoise({name: difference}, rank, KEEP)[name]
    strength = judged.abs().masked_fill_(difference == 0, 0).view(-1)
    if count is None:
        indices = strength.nonzero().view(-1)
    else:
        most = min(count, strength.numel())
        indices = select({name: strength}, most)[name].indices
    entries = _Candidates(indices, strength[indices], difference.reshape(-1)[indices])
    return entries.at(entries.strength > 0)


def _strongest(candidates: Mapping[str, _Candidates], count: int) -> dict[str, _Candidates]:
    """The `count` strongest entries of all tensors; of equally strong ones the first."""
    strengths = [entries.strength for entries in candidates.values()]
    strength = torch.cat(strengths) if strengths else torch.empty(0)
    chosen = select({"": strength}, min(count, len(strength)))[""].indices
    is_kept = torch.zeros(len(strength), dtype=torch.bool)
    is_kept[chosen] = True
    masks = is_kept.split([len(entries) for entries in candidates.values()])
    kept = {}
    for (name, entries), mask in zip(candidates.items(), masks, strict=True):
        kept[name] = entries.at(mask)
    return kept


def _count(candidates: Mapping[str, _Candidates]) -> int:
    return sum(len(entries) for entries in candidates.values())


# --- the head ---


def _head(finetuned: Base) -> Head | None:
    """The head of a checkpoint that is a classifier."""
    config: Any = skeleton(finetuned).config
    architectures = config.architectures or [""]
    if not architectures[0].endswith("ForSequenceClassification"):
        return None
    checkpoint = open_checkpoint(finetuned)
    names = parameter_groups(skeleton(finetuned, AutoModelForSequenceClassification)).head
    missing = [name for name in names if name not in checkpoint.files]
    if missing:
        raise DeftxError(
            f"the checkpoint {finetuned} calls itself a classifier and lacks {missing[0]!r}"
        )
    labels = tuple(str(config.id2label[number]) for number in range(config.num_labels))
    tensors = {name: checkpoint.tensor(name).float() for name in names}
    return Head(tensors, labels)
