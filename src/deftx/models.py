"""Bases: loading models and tokenizers by transformers' auto classes, always in float32, and composing them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from deftx.core.backbone import head
from deftx.core.compose import apply
from deftx.core.vector import SparseVector, check_same_base
from deftx.errors import DeftxError
from deftx.storage.fingerprint import check_base

BAD_BASE = (OSError, ValueError, KeyError)  # what transformers raises for a base it cannot load


def default_device() -> torch.device:
    """The first GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_tokenizer(base: str) -> PreTrainedTokenizerBase:
    """The tokenizer of `base`: a folder or hub id, `ID@REVISION` to pin one."""
    return _load(AutoTokenizer, base)


def load_masked_lm(base: str) -> PreTrainedModel:
    """`base` with its masked language modelling head, for language training.

    The head is frozen, and its decoder untied from the embeddings, so that training moves the backbone
    only. Raises DeftxError where the checkpoint has no such head.
    """
    try:
        model, loading = _load(AutoModelForMaskedLM, base, dtype=torch.float32, output_loading_info=True)
    except DeftxError as error:
        raise DeftxError(f"{error}; a language vector needs a masked language model, such as XLM-R") from None
    missing = sorted(loading["missing_keys"])
    if missing:
        raise DeftxError(f"{base} is not a masked language model: its checkpoint lacks {', '.join(missing[:3])}")
    decoder, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if decoder is not None and decoder.weight is embeddings.weight:
        decoder.weight = nn.Parameter(decoder.weight.detach().clone())
    for parameter in head(model).values():
        parameter.requires_grad_(False)
    return model


def load_classifier(base: str, labels: Sequence[str], seed: int = 0) -> PreTrainedModel:
    """`base` with a new classification head for `labels`, its random start drawn from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _load(
            AutoModelForSequenceClassification,
            base,
            dtype=torch.float32,
            num_labels=len(labels),
            id2label=dict(enumerate(labels)),
            label2id={label: index for index, label in enumerate(labels)},
            problem_type="single_label_classification",
        )


def longest_input(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The most tokens the base takes at once."""
    positions = getattr(model.config, "max_position_embeddings", None) or tokenizer.model_max_length
    # RoBERTa-like models number positions from the padding index on
    offset = (model.config.pad_token_id or 0) + 1 if "roberta" in model.config.model_type else 0
    return min(positions - offset, tokenizer.model_max_length)


def compose(
    base: str, task: SparseVector, language: SparseVector | Sequence[SparseVector] = (), *, force: bool = False
) -> PreTrainedModel:
    """θ0 + φ_task + φ_language with the task's head: an ordinary transformers classifier, in eval mode.

    base      folder or hub id of the base that all vectors were made on
    language  one language vector, several (added in order), or none
    force     go on, with a warning, where the base has other weights than the vectors' base
    """
    if task.head is None:
        raise DeftxError("the task vector has no head: give the vector that `deftx fit task` made")
    languages = [language] if isinstance(language, SparseVector) else list(language)
    check_same_base(task, *languages)
    model = load_classifier(base, task.head.labels)
    for vector in [task, *languages]:
        check_base(model, vector, force=force)
    apply(model, *languages, task)
    return model.eval()


def _load(auto: Any, base: str, **options: Any) -> Any:
    """What `auto` loads for `base`, or one line that says why it cannot."""
    name, _, revision = base.partition("@")
    try:
        return auto.from_pretrained(name, revision=revision or None, **options)
    except BAD_BASE as error:
        reason = str(error).strip().splitlines()[0]
        raise DeftxError(f"cannot load {base!r} as base: {reason}") from None
