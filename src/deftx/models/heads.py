"""Models of tasks: a base with a task's head, new or composed."""

from collections.abc import Collection, Sequence
from typing import Any, cast

import torch
from transformers import AutoConfig, GenerationConfig, PreTrainedModel

from deftx.core.parameters import parameter_groups
from deftx.errors import DeftxError
from deftx.models.loading import (
    Base,
    check_bf16_and_widen_head,
    load_checked,
    load_language_model,
    load_pretrained,
    options_with_dropout,
    padding_option,
    quiet_transformers,
)
from deftx.models.saving import save_untied
from deftx.models.tokenizers import load_tokenizer
from deftx.objectives.registry import language_of
from deftx.tasks.base import Task
from deftx.tasks.classification import CLASSIFICATION
from deftx.tasks.registry import task_of

# In the config of a composed model: the kind of its task
TASK = "deftx_task"
DEFAULT_TASK = "classification"


def load_task_model(
    base: Base,
    labels: Sequence[str],
    seed: int = 0,
    task: Task = CLASSIFICATION,
    *,
    dropout: float | None = None,
    in_bf16: bool = False,
) -> PreTrainedModel:
    """`base` with a new head for a task.

    Args:
        base: Folder or hub id.
        labels: The names of the head's outputs.
        seed: Draws the head.
        task: The kind of task.
        dropout: Of the model in training; None: as its config has it.
        in_bf16: Hold the backbone as it is stored, which must be in bf16; the head is in float32.

    Raises:
        DeftxError: transformers has no such model of the base, or does not find the base's weights
            for it.
    """
    model, _ = load_with_new_head(base, labels, seed, task, dropout=dropout, in_bf16=in_bf16)
    return model


def load_with_new_head(
    base: Base,
    labels: Sequence[str],
    seed: int = 0,
    task: Task = CLASSIFICATION,
    *,
    dropout: float | None = None,
    in_bf16: bool = False,
) -> tuple[PreTrainedModel, list[str]]:
    """`load_task_model`, and the names of what is random in the head."""
    if task.auto_model_class is None:
        return _load_generator(base, dropout, in_bf16), []
    head_options = _head_options(labels, task)
    options = options_with_dropout(base, dropout, **head_options, **padding_option(base))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, missing = load_checked(task.auto_model_class, base, in_bf16=in_bf16, **options)
        trained = _trained_head(model, missing)
        if trained:
            model, missing = _with_random(model, {*trained, *missing})
            if in_bf16:
                check_bf16_and_widen_head(model, base)
    _check_whole(base, model, missing)
    if model.config.pad_token_id is None:  # by which a decoder knows where a text ends
        model.config.pad_token_id = load_tokenizer(base).pad_token_id
    return model, missing


def _head_options(labels: Sequence[str], task: Task) -> dict[str, Any]:
    """What the config of a model with a task's head says of the head, whatever the base's own
    config says."""
    if not labels:
        return dict(task.config)
    id2label = dict(enumerate(labels))
    label2id = {label: number for number, label in id2label.items()}
    return {
        "num_labels": len(labels),
        "id2label": id2label,
        "label2id": label2id,
        **task.config,
    }


def _trained_head(model: PreTrainedModel, missing: Collection[str]) -> list[str]:
    """The names of a head's weights that the checkpoint brought, trained for another task.

    A pooler within the backbone is none of them: it was trained with the base.
    """
    prefix = model.base_model_prefix
    in_backbone = {f"{prefix}.{name}" for name in model.base_model.state_dict()}
    outside = model.state_dict().keys() - in_backbone
    return sorted(
        name for name in parameter_groups(model).head if name in outside and name not in missing
    )


def _with_random(
    model: PreTrainedModel, random: Collection[str]
) -> tuple[PreTrainedModel, list[str]]:
    """A model with the same weights, except that some are drawn at random; and their names.

    The other weights are shared with `model`: they take no more memory.
    """
    kept = {name: weight for name, weight in model.state_dict().items() if name not in random}
    kind: Any = type(model)
    with quiet_transformers():
        renewed, loading = kind.from_pretrained(
            None, config=model.config, state_dict=kept, output_loading_info=True
        )
    renewed.name_or_path = model.name_or_path
    return renewed, sorted(loading["missing_keys"])


def _check_whole(base: Base, model: PreTrainedModel, missing: Collection[str]) -> None:
    """Raise DeftxError where a model with a task's head lacks a part of its base."""
    kind = type(model).__name__
    missing_in_backbone = sorted(set(missing) - parameter_groups(model).head.keys())
    if missing_in_backbone:
        raise DeftxError(
            f"{base} lacks {missing_in_backbone[0]}, which {kind} needs:"
            " give another base for this task"
        )
    is_encoder_decoder = load_pretrained(AutoConfig, base).is_encoder_decoder
    if is_encoder_decoder and not hasattr(model.base_model, "decoder"):
        raise DeftxError(f"{kind} leaves out the decoder of {base}: give an encoder such as XLM-R")
    lacks_pooler = getattr(model.base_model, "pooler", True) is None
    if kind.endswith("ForMultipleChoice") and lacks_pooler:
        raise DeftxError(
            f"{kind} lacks its pooler in this release of transformers: upgrade transformers"
        )


def check_head(model: PreTrainedModel, random: Collection[str], trained: Collection[str]) -> None:
    """Check that a task's head is the one that a model needs.

    Args:
        model: With a new head.
        random: The names of what is random in it.
        trained: The names of the task's head.

    Raises:
        DeftxError: A part of the head would stay random, or the model has no such part.
    """
    reason = "is it of another kind of task (deftx convert --kind) or base?"
    kind = type(model).__name__
    surplus = set(trained) - parameter_groups(model).head.keys()
    lacking = set(random) - set(trained)
    if surplus:
        name = min(surplus)
        raise DeftxError(
            f"the task vector has {name!r}, which is not in the head of {kind}: {reason}"
        )
    if lacking:
        name = min(lacking)
        raise DeftxError(
            f"the task vector has no {name!r}, which is in the head of {kind}: {reason}"
        )


# --- models that write texts ---


def _load_generator(base: Base, dropout: float | None, in_bf16: bool) -> PreTrainedModel:
    """`base` for generation. Its output embeddings stay as they are, whatever its input embeddings
    become."""
    model: Any = load_language_model(base, dropout=dropout, in_bf16=in_bf16)
    if not model.can_generate():
        raise DeftxError(
            f"{base} cannot write texts, as a base for generation has to:"
            " give one such as Qwen or mT5"
        )
    save_untied(model)
    if model.config.is_encoder_decoder:
        # A fresh config: the base's may force tokens, such as codes of languages, that are not
        # learnt here
        model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
            decoder_start_token_id=_decoder_start_token(model),
            eos_token_id=model.config.eos_token_id,
            pad_token_id=model.config.pad_token_id,
        )
    return cast(PreTrainedModel, model)


def _decoder_start_token(model: Any) -> int:
    """The token that the decoder of an encoder-decoder is given first in its training."""
    if hasattr(model, "prepare_decoder_input_ids_from_labels"):
        labels = torch.tensor([[model.config.eos_token_id]])
        decoder_ids = model.prepare_decoder_input_ids_from_labels(labels=labels)
        return int(decoder_ids[0, 0])
    return int(model.config.decoder_start_token_id)  # NLLB, M2M100


# --- composed models ---


def load_composed(folder: Base) -> PreTrainedModel:
    """A composed model that was saved.

    Raises:
        DeftxError: It cannot be loaded, or its checkpoint has no trained head of its task.
    """
    auto = recorded_task(folder).auto_model_class
    if auto is None:
        auto = language_of(load_pretrained(AutoConfig, folder)).auto_model_class
    model, missing = load_checked(auto, folder, **padding_option(folder))
    if missing:
        names = ", ".join(missing[:3])
        raise DeftxError(f"{folder} is not a model of a task: it lacks {names}; compose one first")
    return cast(PreTrainedModel, model)


def recorded_task(folder: Base) -> Task:
    """The kind of task that a composed model is for; one that records none is a classifier."""
    config = load_pretrained(AutoConfig, folder)
    return task_of(str(getattr(config, TASK, DEFAULT_TASK)))
