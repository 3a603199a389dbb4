"""Bases and composed models: loading by transformers' auto classes, always in float32, composing, saving."""

import hashlib
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from deftx.core.backbone import head, tunable
from deftx.core.compose import apply
from deftx.core.vector import SparseVector, check_distinct, check_language, check_same_base
from deftx.errors import DeftxError
from deftx.storage.fingerprint import check_base
from deftx.storage.folders import MODEL, check_target, new_folder
from deftx.storage.manifest import FILE

Base = str | os.PathLike[str]  # a folder or hub id, `ID@REVISION` to pin one

# what transformers raises for a base it cannot load
BAD_BASE = (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError)


def place(model: PreTrainedModel) -> None:
    """Move a model to the first GPU, if there is one."""
    nn.Module.to(model, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def load_tokenizer(base: Base) -> PreTrainedTokenizerBase:
    """The tokenizer of `base`."""
    tokenizer: PreTrainedTokenizerBase = _load(AutoTokenizer, base)
    return tokenizer


def about_tokenizer(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """What a vector notes of the tokenizer it was made with: its name, and a digest of its pieces and their numbers."""
    pieces = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=False)
    return {"name": str(tokenizer.name_or_path), "digest": hashlib.sha256(pieces.encode(errors="replace")).hexdigest()}


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, *vectors: SparseVector, force: bool = False) -> None:
    """Raise DeftxError where a vector was made with a tokenizer of other pieces; warn with `force`.

    Vectors that note no tokenizer fit any.
    """
    found = about_tokenizer(tokenizer)
    for vector in vectors:
        noted = vector.info.get("tokenizer")
        if isinstance(noted, Mapping) and noted.get("digest") != found["digest"]:
            made, here = str(noted.get("digest"))[:12], found["digest"][:12]
            which = f"the tokenizer {noted.get('name')} ({made}), not with {found['name']} ({here})"
            message = f"the vector was made with {which}"
            if not force:
                raise DeftxError(f"{message}: use the former, or go on at your own risk with --any-base")
            warnings.warn(message, stacklevel=2)


def load_masked_lm(base: Base) -> PreTrainedModel:
    """`base` with its masked language modelling head, for language training.

    The head is frozen, and its decoder untied from the embeddings, so that training moves the backbone
    only. Raises DeftxError where the checkpoint has no such head.
    """
    try:
        model, missing = _load_checked(AutoModelForMaskedLM, base)
    except DeftxError as error:
        raise DeftxError(f"{error}; a language vector needs a masked language model, such as XLM-R") from None
    if missing:
        raise DeftxError(f"{base} is not a masked language model: its checkpoint lacks {', '.join(missing[:3])}")
    decoder, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if decoder is not None and decoder.weight is embeddings.weight:
        decoder.weight = nn.Parameter(decoder.weight.detach().clone())
    for parameter in head(model).values():
        parameter.requires_grad_(False)
    return cast(PreTrainedModel, model)


def load_classifier(base: Base, labels: Sequence[str], seed: int = 0) -> PreTrainedModel:
    """`base` with a new classification head for `labels`, its random start drawn from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = _load(
            AutoModelForSequenceClassification,
            base,
            dtype=torch.float32,
            num_labels=len(labels),
            id2label=dict(enumerate(labels)),
            label2id={label: index for index, label in enumerate(labels)},
            problem_type="single_label_classification",
        )
    return model


def load_composed(folder: Base) -> PreTrainedModel:
    """A classifier that was saved whole. Raises DeftxError where the checkpoint has no trained head."""
    model, missing = _load_checked(AutoModelForSequenceClassification, folder)
    if missing:
        raise DeftxError(f"{folder} is not a classifier: it lacks {', '.join(missing[:3])}; compose one first")
    return cast(PreTrainedModel, model)


def load_encoder(base: Base) -> PreTrainedModel:
    """The backbone of `base`, without a head, in eval mode; without a pooler too where the checkpoint has none."""
    encoder, missing = _load_checked(AutoModel, base)
    if any(name.startswith("pooler.") for name in missing):
        encoder.pooler = None  # it would be a random one
    return cast(PreTrainedModel, encoder)


def skeleton(base: Base, auto: Any = AutoModel, **config_options: Any) -> PreTrainedModel:
    """The model that `auto` makes for `base`, without weights: names, shapes and modules at no cost (device meta)."""
    config = _load(AutoConfig, base, **config_options)
    with torch.device("meta"):
        model: PreTrainedModel = auto.from_config(config)
    return model


def longest_input(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The most tokens the base takes at once."""
    positions: int = getattr(model.config, "max_position_embeddings", None) or tokenizer.model_max_length
    # RoBERTa-like models number positions from the padding index on
    offset = (model.config.pad_token_id or 0) + 1 if "roberta" in model.config.model_type else 0
    return min(positions - offset, int(tokenizer.model_max_length))


def trained_length(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: SparseVector) -> int:
    """The tokens that a task's inputs are cut to: as many as in its training."""
    longest = longest_input(model, tokenizer)
    return min(int(task.info.get("training", {}).get("length", longest)), longest)


def compose(
    base: Base, task: SparseVector, language: SparseVector | Sequence[SparseVector] = (), *, force: bool = False
) -> PreTrainedModel:
    """θ0 + φ_task + φ_language with the task's head: an ordinary transformers classifier, in eval mode.

    base      folder or hub id of the base that all vectors were made on
    language  one language vector, several (added in order), or none
    force     go on, with a warning, where the base has other weights than the vectors' base
    """
    languages = [language] if isinstance(language, SparseVector) else list(language)
    check_distinct(task, *languages)
    model = without_vectors(base, task, languages, force=force)
    apply(model, *languages, task)
    return model


def without_vectors(
    base: Base, task: SparseVector, languages: Sequence[SparseVector] = (), *, force: bool = False
) -> PreTrainedModel:
    """θ0 with a classifier of the task's shape, for the vectors to be applied to; all are checked against θ0.

    `applied(model, *languages, task)` on it is `compose`, to be undone: for many languages on one loaded base.
    """
    if task.head is None:
        raise DeftxError("the task vector has no head: give the vector that `deftx fit task` made")
    check_language(*languages)
    check_same_base(task, *languages)
    model = load_classifier(base, task.head.labels)
    named = [vector for vector in (task, *languages) if vector.info.get("base_fingerprint")]
    for vector in named[:1]:  # the others name the same base
        check_base(model, vector, force=force)
    return model


def delta(finetuned: nn.Module | Base, base: nn.Module | Mapping[str, Tensor] | Base) -> dict[str, Tensor]:
    """δ = θ1 − θ0 of the tunable backbone, dense, float32: for those who have a training loop of their own.

    Either is a model, or the folder or hub id of one; `base` may also be a state dict, copied before the training.
    Raises DeftxError where the base lacks a tensor or has another shape of it. `extract` makes a vector of two
    checkpoints without loading either.
    """
    learnt = _weights(finetuned)
    before = {
        name.removeprefix(f"{getattr(finetuned, 'base_model_prefix', '')}."): w for name, w in _weights(base).items()
    }
    for name, weight in learnt.items():
        if name not in before or before[name].shape != weight.shape:
            raise DeftxError(f"{name!r} is missing in the base, or of another shape: give the base of this fine-tuning")
    return {name: weight.detach().float() - before[name].detach().float() for name, weight in learnt.items()}


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Base,
    *,
    force: bool = False,
    beside: Mapping[str, str] | None = None,
) -> None:
    """Write an ordinary model folder, whole or not at all; with `force`, replace the model there.

    beside  further files, text by name
    """
    target = check_target(folder, MODEL, force=force)
    with new_folder(target, force=force) as new:
        model.save_pretrained(new)
        tokenizer.save_pretrained(new)
        for name, text in (beside or {}).items():
            (new / name).write_text(text, encoding="utf-8")


def _weights(model: nn.Module | Mapping[str, Tensor] | Base) -> Mapping[str, Tensor]:
    """The tunable weights of a model, by their names in the backbone; a state dict as it is."""
    if isinstance(model, Mapping):
        return model
    return tunable(model if isinstance(model, nn.Module) else load_encoder(model))


def _load_checked(auto: Any, base: Base) -> tuple[Any, list[str]]:
    """A model, and the names of its weights that the checkpoint lacks."""
    model, loading = _load(auto, base, dtype=torch.float32, output_loading_info=True)
    return model, sorted(loading["missing_keys"])


def _load(auto: Any, base: Base, **options: Any) -> Any:
    """What `auto` loads for `base`, or one line that says why it cannot."""
    name, revision, where = os.fspath(base), None, ""
    if os.path.isfile(name):
        raise DeftxError(f"cannot load the model {name!r}: it is a file: give the folder that it is in")
    if os.path.isfile(os.path.join(name, FILE)):
        raise DeftxError(f"cannot load the model {name!r}: it is a vector: give the base that it was made on")
    if not os.path.exists(name):
        if os.path.isabs(name) or name.startswith(".") or name.count("/") > 1:
            raise DeftxError(f"cannot load the model {name!r}: there is no such folder, and it is no hub id")
        name, _, revision = name.partition("@")
        where = "there is no such folder; as a hub id: "
    try:
        return auto.from_pretrained(name, revision=revision or None, **options)
    except BAD_BASE as error:
        reason = str(error).strip().split("\n")[0].rstrip(" .:")
        raise DeftxError(f"cannot load the model {name!r}: {where}{reason}") from None
