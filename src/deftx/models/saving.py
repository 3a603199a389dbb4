"""Saving models as ordinary folders, and naming bases in what is saved."""

import os
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from deftx.models.loading import Base
from deftx.storage.atomic_files import MODEL, check_target, new_folder


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Base,
    *,
    force: bool = False,
    beside: Mapping[str, str] | None = None,
) -> None:
    """Write an ordinary model folder, whole or not at all.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        folder: Where to.
        force: Replace the model that is there.
        beside: Further files, text by name.
    """
    target = check_target(folder, MODEL, force=force)
    with new_folder(target, force=force) as new:
        model.save_pretrained(new)
        tokenizer.save_pretrained(new)
        for name, text in (beside or {}).items():
            (new / name).write_text(text, encoding="utf-8")


def save_untied(model: Any) -> None:
    """Record in a model's config, for when it is saved, that its output embeddings are not its
    input embeddings.

    Encoder-decoders are left as they are, since their input embeddings would be untied from each
    other too. In them, transformers ties no weights that are saved with different values.
    """
    if not model.config.is_encoder_decoder:
        model.config.tie_word_embeddings = False


def recorded_name(base: Base) -> str:
    """The name of a base or model as it is recorded in a vector.

    A folder in the working directory becomes `./NAME`, so that it is not taken for a hub id where
    the folder is missing.
    """
    name = os.fspath(base)
    looks_like_a_path = os.path.isabs(name) or name.startswith(".")
    if os.path.isdir(name) and not looks_like_a_path:
        return f"./{name}"
    return name
