"""Models as transformers' auto classes load them, always in float32."""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging

from deftx.core.parameters import parameter_groups
from deftx.errors import DeftxError, check_downloaded
from deftx.objectives.registry import language_of
from deftx.storage.manifest import FILE

Base = str | os.PathLike[str]  # a folder or hub id, `ID@REVISION` to pin one

# What transformers raises for a base that it cannot load
BAD_BASE = (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError)

# Beginnings of transformers' messages, and what is said in place of them
NO_AUTO_CLASS = "Unrecognized configuration class"
NO_TOKENIZER_FILES = ("Couldn't instantiate the backend tokenizer", "Missing [UNK]")


def place(model: PreTrainedModel) -> None:
    """Move a model to the first GPU, if there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    nn.Module.to(model, torch.device(device))


def load_language_model(
    base: Base,
    head_of: Base | None = None,
    *,
    lm_head: Literal["trained", "frozen"] = "frozen",
    dropout: float | None = None,
    seed: int = 0,
    in_bf16: bool = False,
) -> PreTrainedModel:
    """`base` with its language modelling head, for language training.

    Its decoder matrix is untied from the embeddings and frozen, as in LT-SFT.

    Args:
        base: Folder or hub id.
        head_of: A model of the same architecture, whose head is used where the checkpoint lacks its
            own.
        lm_head: trained: the rest of the head (dense layer, norm, biases) is trained along, and a
            head that the checkpoint lacks starts at random; frozen: all of it stays as it is.
        dropout: Of the model in training; None: as its config has it.
        seed: Draws a head that the checkpoint lacks.
        in_bf16: Hold the backbone as it is stored, which must be in bf16; the head is in float32.

    Raises:
        DeftxError: The base cannot be loaded, is no language model, or lacks a head that is to be
            frozen.
    """
    language = language_of(load_pretrained(AutoConfig, base))
    options = options_with_dropout(base, dropout, **padding_option(base))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, missing = load_checked(language.auto_model_class, base, in_bf16=in_bf16, **options)
    if missing and head_of is not None:
        missing = _copy_head(model, missing, load_language_model(head_of))

    # What the checkpoint lacks may be a head that is trained along, and nothing else
    decoder = model.get_output_embeddings()
    if missing:
        only_head_is_missing = set(missing) <= _names_outside_the_backbone(model)
        if lm_head == "frozen" or not only_head_is_missing or decoder is None:
            names = ", ".join(missing[:3])
            raise DeftxError(
                f"{base} is not a {language.description}: its checkpoint lacks {names}"
            )
        warnings.warn(
            f"{base} has no language modelling head: a new one is trained along", stacklevel=2
        )

    # The decoder matrix is untied and frozen; the rest of the head moves if it is to be trained
    if decoder is not None and decoder.weight is model.get_input_embeddings().weight:
        decoder.weight = nn.Parameter(decoder.weight.detach().clone())
    for parameter in parameter_groups(model).head.values():
        parameter.requires_grad_(lm_head == "trained")
    if decoder is not None:
        decoder.weight.requires_grad_(False)
    return cast(PreTrainedModel, model)


def load_encoder(base: Base) -> PreTrainedModel:
    """The backbone of `base`, without a head, in eval mode.

    It has no pooler where the checkpoint has none: a new one would be random.
    """
    encoder, missing = load_checked(AutoModel, base, **padding_option(base))
    if any(name.startswith("pooler.") for name in missing):
        encoder.pooler = None
    return cast(PreTrainedModel, encoder)


def skeleton(base: Base, auto: Any = AutoModel, **config_options: Any) -> PreTrainedModel:
    """A model without weights, on the device meta: names, shapes and modules at no cost.

    Args:
        base: Folder or hub id.
        auto: The auto class that makes the model.
        config_options: Changes of its config.
    """
    config = load_pretrained(AutoConfig, base, **config_options)
    with torch.device("meta"):
        model: PreTrainedModel = auto.from_config(config, trust_remote_code=False)
    return model


def load_checked(
    auto: Any, base: Base, *, in_bf16: bool = False, **options: Any
) -> tuple[Any, list[str]]:
    """Load a model in float32, and tell what its checkpoint lacks.

    Args:
        auto: The auto class that loads the model.
        base: Folder or hub id.
        in_bf16: Load the backbone as it is stored, which must be in bf16; the head is in float32.
        options: Further arguments of `from_pretrained`.

    Returns:
        The model, and the sorted names of its weights that the checkpoint lacks. A head's weights
        of another shape, as those of another task are, count as lacking.

    Raises:
        DeftxError: The model cannot be loaded, a weight of the backbone has another shape in the
            checkpoint than config.json says, or it is not stored in bf16 and should be.
    """
    model, loading = load_pretrained(
        auto,
        base,
        dtype="auto" if in_bf16 else torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        **options,
    )
    missing = set(loading["missing_keys"])
    head = parameter_groups(model).head
    for name, stored, wanted in sorted(loading["mismatched_keys"]):
        if name in head:
            missing.add(name)
            continue
        shapes = f"{list(stored)} in the checkpoint and {list(wanted)} by config.json"
        raise DeftxError(
            f"cannot load the model {os.fspath(base)!r}: {name} has the shape {shapes}:"
            " correct one of them"
        )
    if in_bf16:
        check_bf16_and_widen_head(model, base)
    return model, sorted(missing)


def check_bf16_and_widen_head(model: PreTrainedModel, base: Base) -> None:
    """Put the head of a model into float32.

    Raises:
        DeftxError: The backbone was not loaded in bf16, as it is to be stored.
    """
    groups = parameter_groups(model)
    for parameter in groups.head.values():
        parameter.data = parameter.data.float()
    for parameter in groups.backbone.values():
        if parameter.dtype != torch.bfloat16:
            stored = str(parameter.dtype).removeprefix("torch.")
            raise DeftxError(
                f"training.base_precision = bf16: {os.fspath(base)!r} is stored in {stored}, and"
                " rounding would make another base of it: leave base_precision at fp32"
            )


def load_pretrained(auto: Any, base: Base, **options: Any) -> Any:
    """What an auto class loads for a base: a model, a config or a tokenizer.

    Python files that a base brings are never run, and nobody is asked whether they may be.

    Args:
        auto: Such as `AutoConfig`.
        base: Folder or hub id.
        options: Further arguments of `from_pretrained`.

    Raises:
        DeftxError: It cannot be loaded; one line says why.
    """
    name = os.fspath(base)
    revision = None
    _check_not_a_file_or_vector(name)
    is_local = os.path.exists(name)
    if not is_local:
        looks_like_a_path = os.path.isabs(name) or name.startswith(".") or name.count("/") > 1
        if looks_like_a_path:
            raise DeftxError(
                f"cannot load the model {name!r}: there is no such folder, and it is no hub id"
            )
        name, _, revision = name.partition("@")
    check_downloaded(name)

    # The library tokenizers raises nothing more special than Exception
    expected = Exception if auto is AutoTokenizer else BAD_BASE
    try:
        with quiet_transformers():  # `load_checked` tells what is missing
            return auto.from_pretrained(
                name, revision=revision or None, trust_remote_code=False, **options
            )
    except expected as error:
        reason = _reason(str(error), auto)
        if not is_local:
            reason = f"there is no such folder; as a hub id: {reason}"
        raise DeftxError(f"cannot load the model {name!r}: {reason}") from None


def _check_not_a_file_or_vector(name: str) -> None:
    """Raise DeftxError for what is no base, though it is there."""
    if os.path.isfile(name):
        raise DeftxError(
            f"cannot load the model {name!r}: it is a file: give the folder that it is in"
        )
    if os.path.isfile(os.path.join(name, FILE)):
        raise DeftxError(
            f"cannot load the model {name!r}: it is a vector: give the base that it was made on"
        )


def _reason(message: str, auto: Any) -> str:
    """Why a base cannot be loaded, in one line, from transformers' message."""
    first_line = message.strip().split("\n")[0].rstrip(" .:")
    if any(part in first_line for part in NO_TOKENIZER_FILES):
        return (
            "the files of its tokenizer are missing or of another kind:"
            " copy tokenizer.json into its folder"
        )
    if "trust_remote_code" in message:
        return (
            "it needs Python code that it brings, which deftx does not run:"
            " give a base that transformers knows"
        )
    if first_line.startswith(NO_AUTO_CLASS):
        return f"transformers has no {auto.__name__} of this kind of base: give another base"
    return first_line


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Within the block, transformers does not say that heads are new and should be trained."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(before)


# --- options for loading ---


def padding_option(base: Base) -> dict[str, Any]:
    """The padding token of an encoder whose config lacks it, from its tokenizer.

    Many encoders count positions from the padding token's id on.
    """
    config = load_pretrained(AutoConfig, base)
    is_encoder = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not config.is_encoder_decoder
    if not is_encoder or getattr(config, "pad_token_id", None) is not None:
        return {}
    pad_token_id = load_pretrained(AutoTokenizer, base).pad_token_id
    if pad_token_id is None:
        return {}
    return {"pad_token_id": pad_token_id}


def options_with_dropout(base: Base, dropout: float | None, **options: Any) -> dict[str, Any]:
    """Options for loading `base` with another dropout.

    Args:
        base: Folder or hub id.
        dropout: The probability; None: as its config has it.
        options: Further changes of its config.

    Returns:
        `options` themselves without a dropout; else a config that has them and the dropout.

    Raises:
        DeftxError: The base's config has no dropout.
    """
    if dropout is None:
        return options
    config = load_pretrained(AutoConfig, base, **options)
    changed = set_dropout(config, dropout)
    if changed == 0 and dropout > 0:
        raise DeftxError(
            f"training.dropout = {dropout}: a base of the kind {config.model_type!r} has no"
            " dropout: leave it out"
        )
    return {"config": config}


def set_dropout(config: Any, dropout: float) -> int:
    """Set every dropout of a config, and of the configs within it.

    A dropout that is None takes another one's value, and stays None; probabilities of leaving out
    whole layers stay too.

    Returns:
        How many were set.
    """
    count = 0
    for name, value in list(vars(config).items()):
        is_dropout = "dropout" in name or name.endswith("_pdrop")
        if isinstance(value, PreTrainedConfig):
            count += set_dropout(value, dropout)
        elif is_dropout and isinstance(value, int | float):
            setattr(config, name, dropout)
            count += 1
    return count


# --- heads of language models ---


def _names_outside_the_backbone(model: PreTrainedModel) -> set[str]:
    """The names of a head's parameters: of tied ones all names, the decoder matrix included."""
    inside = {id(parameter) for parameter in parameter_groups(model).backbone.values()}
    names = set()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) not in inside or name.endswith("decoder.weight"):
            names.add(name)
    return names


@torch.no_grad()
def _copy_head(model: PreTrainedModel, missing: Sequence[str], other: PreTrainedModel) -> list[str]:
    """Copy what a model's head is missing from another model's head.

    Returns:
        The names of what is still missing: parameters that `other` lacks or has in another shape.
    """
    targets = dict(model.named_parameters(remove_duplicate=False))  # tied ones too
    sources = dict(other.named_parameters(remove_duplicate=False))
    still_missing = []
    for name in missing:
        target = targets.get(name)
        source = sources.get(name)
        if target is None or source is None or target.shape != source.shape:
            still_missing.append(name)
        else:
            target.copy_(source)
    return still_missing
