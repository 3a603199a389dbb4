"""Models: loading by transformers' auto classes, always in float32; saving."""

import hashlib
import json
import os
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
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
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from deftx.core.parameters import backbone, head
from deftx.core.ranks import Rank, is_relative, resolve_rank
from deftx.core.vector import SparseVector
from deftx.data.unknown_text import no_embedding
from deftx.errors import DeftxError, check_downloaded
from deftx.models.fingerprint import IGNORE_BASE_MISMATCH
from deftx.objectives.registry import language_of
from deftx.storage.atomic_files import MODEL, check_target, new_folder
from deftx.storage.manifest import FILE
from deftx.tasks.base import Task
from deftx.tasks.classification import CLASSIFICATION
from deftx.tasks.registry import task_of

Base = str | os.PathLike[str]  # a folder or hub id, `ID@REVISION` to pin one

SPACE = "▁"  # SentencePiece's

# Tokens that are put into texts or between them, whatever the texts are
SPECIAL_TOKENS = ("cls_token", "bos_token", "sep_token", "eos_token", "pad_token", "mask_token")

TASK, DEFAULT_TASK = (
    "deftx_task",
    "classification",
)  # in the config of a composed model, the kind of its task

# what transformers raises for a base it cannot load
BAD_BASE = (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError)


def place(model: PreTrainedModel) -> None:
    """Move a model to the first GPU, if there is one."""
    nn.Module.to(model, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def load_tokenizer(base: Base) -> PreTrainedTokenizerBase:
    """The tokenizer of `base`; one that knows no padding, as some decoders', pads with the token
    that ends texts.

    Raises DeftxError where its files are missing, and where the base has no embedding for one of
    its special tokens.
    """
    tokenizer: PreTrainedTokenizerBase = _load(AutoTokenizer, base)
    _check_pieces(base, tokenizer)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _check_pieces(base: Base, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise DeftxError for a tokenizer that knows no words, and for special tokens without an
    embedding."""
    pieces = tokenizer.get_vocab()
    if not pieces:  # it reads characters by their numbers, as CANINE's does
        return

    # Where its files are missing, transformers makes one of special tokens (and of a sign for the
    # space) alone
    special = {str(token) for token in tokenizer.added_tokens_decoder.values()} | set(
        tokenizer.all_special_tokens
    )
    words = pieces.keys() - special - {SPACE}
    if not words:
        fix = "copy tokenizer.json, or sentencepiece.bpe.model or vocab.txt, into its folder (save_pretrained of both)"
        raise DeftxError(f"the tokenizer of {base} knows no word: its files are missing: {fix}")

    # Special tokens are put into every text. Others without an embedding do no harm unless a text
    # has one of them: see `check_embedded`
    try:
        vocab_size = getattr(_load(AutoConfig, base), "vocab_size", None)
    except DeftxError:  # a tokenizer alone; what is wrong with a base, loading its model tells
        return
    if vocab_size is None:
        return
    for role in SPECIAL_TOKENS:
        number = getattr(tokenizer, f"{role}_id")
        if number is not None and number >= vocab_size:
            token = getattr(tokenizer, role)
            problem = f"the {role} of its tokenizer is {token!r:.40}, {no_embedding(vocab_size)}"
            raise DeftxError(f"cannot use the base {base}: {problem}")


def recorded_name(base: Base) -> str:
    """What a vector notes of which base or model it is of: a folder in the working folder as
    `./NAME`, lest it be taken for a hub id where it is not at hand."""
    name = os.fspath(base)
    return (
        f"./{name}"
        if os.path.isdir(name) and not (os.path.isabs(name) or name.startswith("."))
        else name
    )


def tokenizer_record(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """What a vector notes of the tokenizer it was made with: its name, and a digest of its pieces
    and their numbers."""
    pieces = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=False)
    digest = hashlib.sha256(pieces.encode(errors="replace")).hexdigest()
    return {"name": recorded_name(str(tokenizer.name_or_path)), "digest": digest}


def check_tokenizer(
    tokenizer: PreTrainedTokenizerBase,
    *vectors: SparseVector,
    ignore_base_mismatch: bool | None = False,
) -> None:
    """Raise DeftxError where a vector was made with a tokenizer of other pieces; warn with
    `ignore_base_mismatch`; None: no choice.

    Vectors that note no tokenizer fit any.
    """
    found = tokenizer_record(tokenizer)
    for vector in vectors:
        noted = vector.info.get("tokenizer")
        if isinstance(noted, Mapping) and noted.get("digest") != found["digest"]:
            made, here = str(noted.get("digest"))[:12], found["digest"][:12]
            which = f"the tokenizer {noted.get('name')} ({made}), not with {found['name']} ({here})"
            message = f"the vector was made with {which}"
            if not ignore_base_mismatch:
                raise DeftxError(
                    f"{message}: use the former"
                    + (f", or {IGNORE_BASE_MISMATCH}" if ignore_base_mismatch is False else "")
                )
            warnings.warn(message, stacklevel=2)


def check_reading(
    base: Base | PreTrainedTokenizerBase,
    *vectors: SparseVector,
    ignore_base_mismatch: bool | None = False,
) -> None:
    """`check_tokenizer` of a base, or its tokenizer; where no vector notes one, it is not
    loaded."""
    noting = [vector for vector in vectors if isinstance(vector.info.get("tokenizer"), Mapping)]
    if noting:
        tokenizer = base if isinstance(base, PreTrainedTokenizerBase) else load_tokenizer(base)
        check_tokenizer(tokenizer, *noting, ignore_base_mismatch=ignore_base_mismatch)


def load_language_model(
    base: Base,
    head_of: Base | None = None,
    *,
    lm_head: Literal["trained", "frozen"] = "frozen",
    dropout: float | None = None,
    seed: int = 0,
) -> PreTrainedModel:
    """`base` with its language modelling head, for language training.

    Its decoder matrix is untied from the embeddings and frozen, as in LT-SFT.

    Args:
        base: Folder or hub id.
        head_of: A model of the same kind, whose head stands in for what the checkpoint lacks of its
            own.
        lm_head: trained: the rest of the head (dense layer, norm, biases) is trained along, and a
            head that the checkpoint lacks starts at random; frozen: all of it stays as it is.
        dropout: Of the model in training; None: as its config has it.
        seed: Draws a head that the checkpoint lacks.

    Raises:
        DeftxError: The base cannot be loaded, is no language model, or lacks a head that is to be
            frozen.
    """
    language = language_of(_load(AutoConfig, base))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, missing = _load_checked(
            language.auto, base, **_with_dropout(base, dropout, **_padding(base))
        )
    if missing and head_of is not None:
        missing = _stand_in(model, missing, load_language_model(head_of))
    decoder, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    only_head_is_missing = set(missing) <= _names_outside_the_backbone(model)
    if missing and not (lm_head == "trained" and only_head_is_missing and decoder is not None):
        raise DeftxError(
            f"{base} is not a {language.called}: its checkpoint lacks {', '.join(missing[:3])}"
        )
    if missing:
        warnings.warn(
            f"{base} has no language modelling head: a new one is trained along", stacklevel=2
        )
    if decoder is not None and decoder.weight is embeddings.weight:
        decoder.weight = nn.Parameter(decoder.weight.detach().clone())
    for parameter in head(model).values():
        parameter.requires_grad_(lm_head == "trained")
    if decoder is not None:
        decoder.weight.requires_grad_(False)
    return cast(PreTrainedModel, model)


def _names_outside_the_backbone(model: PreTrainedModel) -> set[str]:
    """The names of a head's parameters, all names of one that has several."""
    inside = {id(parameter) for parameter in backbone(model).values()}
    named = model.named_parameters(remove_duplicate=False)
    return {
        name
        for name, parameter in named
        if id(parameter) not in inside or name.endswith("decoder.weight")
    }


def _with_dropout(base: Base, dropout: float | None, **options: Any) -> dict[str, Any]:
    """`options` for loading `base`, and its config with another dropout and these options where one
    is given.

    Raises:
        DeftxError: The base's config knows no dropout.
    """
    if dropout is None:
        return options
    config = _load(AutoConfig, base, **options)
    changed = set_dropout(config, dropout)
    if changed == 0 and dropout > 0:
        kind = config.model_type
        raise DeftxError(
            f"training.dropout = {dropout}: a base of the kind {kind!r} has no dropout: leave it out"
        )
    return {"config": config}


def set_dropout(config: Any, dropout: float) -> int:
    """Set every dropout of a config, and of the configs within it; how many there are.

    What is None takes another one's value, and stays so; probabilities of leaving whole layers out
    stay too.
    """
    count = 0
    for name, value in list(vars(config).items()):
        if isinstance(value, PreTrainedConfig):
            count += set_dropout(value, dropout)
        elif ("dropout" in name or name.endswith("_pdrop")) and isinstance(value, int | float):
            setattr(config, name, dropout)
            count += 1
    return count


@torch.no_grad()
def _stand_in(model: PreTrainedModel, missing: Sequence[str], other: PreTrainedModel) -> list[str]:
    """Copy what a model's head is missing from another model's head; what is missing still."""
    ours, theirs = (
        dict(each.named_parameters(remove_duplicate=False)) for each in (model, other)
    )  # tied ones too
    found = [n for n in missing if n in ours and n in theirs and ours[n].shape == theirs[n].shape]
    for name in found:
        ours[name].copy_(theirs[name])
    return [name for name in missing if name not in found]


def load_task_model(
    base: Base,
    labels: Sequence[str],
    seed: int = 0,
    task: Task = CLASSIFICATION,
    *,
    dropout: float | None = None,
) -> PreTrainedModel:
    """`base` with a new head for a task, its random start drawn from `seed`, its outputs named by
    `labels`.

    `dropout` is the model's in training; None: as its config has it.

    Raises DeftxError where transformers has no such model of the base, or does not find the base's
    weights for it.
    """
    return with_new_head(base, labels, seed, task, dropout=dropout)[0]


def with_new_head(
    base: Base,
    labels: Sequence[str],
    seed: int = 0,
    task: Task = CLASSIFICATION,
    *,
    dropout: float | None = None,
) -> tuple[PreTrainedModel, list[str]]:
    """`load_task_model`, and the names of what is random in its head."""
    if task.auto is None:
        return _load_writer(base, dropout), []
    options = _with_dropout(base, dropout, **_head_options(labels, task), **_padding(base))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, missing = _load_checked(task.auto, base, **options)

        trained = trained_head(model, missing)
        if trained:
            model, missing = _with_head_drawn_again(model, {*trained, *missing})
    if lost := sorted(set(missing) - head(model).keys()):
        raise DeftxError(
            f"{base} lacks {lost[0]}, which {type(model).__name__} needs: give another base for this task"
        )
    if _load(AutoConfig, base).is_encoder_decoder and not hasattr(model.base_model, "decoder"):
        raise DeftxError(
            f"{type(model).__name__} leaves out the decoder of {base}: give an encoder such as XLM-R"
        )
    if (
        type(model).__name__.endswith("ForMultipleChoice")
        and getattr(model.base_model, "pooler", True) is None
    ):
        raise DeftxError(
            f"{type(model).__name__} lacks its pooler in this release of transformers: upgrade transformers"
        )
    if model.config.pad_token_id is None:  # by which a decoder knows where a text ends
        model.config.pad_token_id = load_tokenizer(base).pad_token_id
    return cast(PreTrainedModel, model), missing


def _head_options(labels: Sequence[str], task: Task) -> dict[str, Any]:
    """What the config of a model with a task's head says of it, whatever the base's own config
    says."""
    numbered = dict(enumerate(labels))
    named = {
        "num_labels": len(labels),
        "id2label": numbered,
        "label2id": {label: i for i, label in numbered.items()},
    }
    return {**(named if labels else {}), **task.config}


def trained_head(model: PreTrainedModel, missing: Collection[str]) -> list[str]:
    """The names of a head's weights that the checkpoint brought.

    A pooler within the backbone is none of them: it was trained with the base.
    """
    prefix = model.base_model_prefix
    in_backbone = {f"{prefix}.{name}" for name in model.base_model.state_dict()}
    own = model.state_dict().keys() - in_backbone
    return sorted(name for name in head(model) if name in own and name not in missing)


def _with_head_drawn_again(
    model: PreTrainedModel, left_out: Collection[str]
) -> tuple[PreTrainedModel, list[str]]:
    """A model with the same weights but those `left_out`, which are drawn at random; their names.

    The weights are shared with `model`, which takes no more memory.
    """
    kept = {name: weight for name, weight in model.state_dict().items() if name not in left_out}
    kind: Any = type(model)
    with _quiet():
        renewed, loading = kind.from_pretrained(
            None, config=model.config, state_dict=kept, output_loading_info=True
        )
    renewed.name_or_path = model.name_or_path
    return renewed, sorted(loading["missing_keys"])


def _padding(base: Base) -> dict[str, Any]:
    """The padding token of an encoder whose config leaves it out: many count positions from its
    number on."""
    config = _load(AutoConfig, base)
    encoder = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not config.is_encoder_decoder
    if not encoder or getattr(config, "pad_token_id", None) is not None:
        return {}
    padding = _load(AutoTokenizer, base).pad_token_id
    return {} if padding is None else {"pad_token_id": padding}


def check_head(model: PreTrainedModel, random: Collection[str], learnt: Collection[str]) -> None:
    """Raise DeftxError where a task's head would be left `random` in part, or is not one of the
    model's."""
    strange, bare = set(learnt) - head(model).keys(), set(random) - set(learnt)
    if strange or bare:
        what = f"{min(strange)!r}, which is not in" if strange else f"no {min(bare)!r}, which is in"
        why = "is it of another kind of task (deftx convert --kind) or base?"
        raise DeftxError(f"the task vector has {what} the head of {type(model).__name__}: {why}")


def _load_writer(base: Base, dropout: float | None) -> PreTrainedModel:
    """`base` as it writes texts; its output embeddings stay what they are, whatever its input
    embeddings become."""
    model: Any = load_language_model(base, dropout=dropout)
    if not model.can_generate():
        raise DeftxError(
            f"{base} cannot write texts, as a base for generation has to: give one such as Qwen or mT5"
        )
    save_untied(model)
    if (
        model.config.is_encoder_decoder
    ):  # what it was to write otherwise, such as languages' codes, is not learnt here
        pad, end = model.config.pad_token_id, model.config.eos_token_id
        about = {
            "decoder_start_token_id": _first_written(model),
            "eos_token_id": end,
            "pad_token_id": pad,
        }
        model.generation_config = GenerationConfig(**about)  # type: ignore[no-untyped-call]
    return cast(PreTrainedModel, model)


def _first_written(model: Any) -> int:
    """The token that the decoder of an encoder-decoder is given first in its training."""
    if hasattr(model, "prepare_decoder_input_ids_from_labels"):
        labels = torch.tensor([[model.config.eos_token_id]])
        return int(model.prepare_decoder_input_ids_from_labels(labels=labels)[0, 0])
    return int(model.config.decoder_start_token_id)  # NLLB, M2M100


def save_untied(model: Any) -> None:
    """Note in the model's config, for when it is saved, that its output embeddings are not its
    input embeddings.

    Not so in encoder-decoders, whose input embeddings would be parted from each other too: in them
    transformers ties no weights that are saved with different values.
    """
    if not model.config.is_encoder_decoder:
        model.config.tie_word_embeddings = False


def load_composed(folder: Base) -> PreTrainedModel:
    """A model that was saved whole. Raises DeftxError where the checkpoint has no trained head of
    its task."""
    auto = recorded_task(folder).auto or language_of(_load(AutoConfig, folder)).auto
    model, missing = _load_checked(auto, folder, **_padding(folder))
    if missing:
        raise DeftxError(
            f"{folder} is not a model of a task: it lacks {', '.join(missing[:3])}; compose one first"
        )
    return cast(PreTrainedModel, model)


def recorded_task(folder: Base) -> Task:
    """The kind of task that a composed model is for; one that notes none is a classifier."""
    return task_of(str(getattr(_load(AutoConfig, folder), TASK, DEFAULT_TASK)))


def load_encoder(base: Base) -> PreTrainedModel:
    """The backbone of `base`, without a head, in eval mode; without a pooler too where the
    checkpoint has none."""
    encoder, missing = _load_checked(AutoModel, base, **_padding(base))
    if any(name.startswith("pooler.") for name in missing):
        encoder.pooler = None  # it would be a random one
    return cast(PreTrainedModel, encoder)


def skeleton(base: Base, auto: Any = AutoModel, **config_options: Any) -> PreTrainedModel:
    """The model that `auto` makes for `base`, without weights: names, shapes and modules at no cost
    (device meta)."""
    config = _load(AutoConfig, base, **config_options)
    with torch.device("meta"):
        model: PreTrainedModel = auto.from_config(config, trust_remote_code=False)
    return model


def longest_input(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The most tokens the base takes at once."""
    positions: int = (
        getattr(model.config, "max_position_embeddings", None) or tokenizer.model_max_length
    )
    longest = min(positions - _first_position(model), int(tokenizer.model_max_length))
    if longest < 1:
        raise DeftxError(
            f"{model.name_or_path} has {positions} positions, so that no token can be read: is it whole?"
        )
    return longest


def _first_position(model: PreTrainedModel) -> int:
    """The number of the first token's position: RoBERTa and its kin count from the number of the
    padding token on.

    Whatever they are called, their table of positions has a row for padding.
    """
    for module in model.modules():
        table = getattr(module, "position_embeddings", None)
        padding = getattr(table, "padding_idx", None)
        if padding is not None:
            return int(padding) + 1
    return 0


def hidden_width(config: PreTrainedConfig) -> int:
    """How many numbers a model's layers pass on for each token: the `768` of XLM-R base.

    Configurations give it several names (`hidden_size`, `d_model`, `n_embd`, `dim`), of which
    transformers makes one; those of models that also read images have it in their text part. Raises
    DeftxError where there is none.
    """
    width = getattr(config.get_text_config(), "hidden_size", None)
    if not isinstance(width, int):
        raise DeftxError(
            f"a {config.model_type!r} model does not say how wide it is: give rank as a number or a share"
        )
    return width


def rank_on(model: PreTrainedModel, rank: Rank) -> Rank:
    """What a rank comes to on a model: a number, where it is relative to the width (`100/768`);
    others as they are."""
    if not is_relative(rank):
        return rank
    return resolve_rank(rank, hidden_width(model.config))


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


def _load_checked(auto: Any, base: Base, **options: Any) -> tuple[Any, list[str]]:
    """A model, and the names of its weights that the checkpoint lacks."""
    about = {"dtype": torch.float32, "output_loading_info": True, "ignore_mismatched_sizes": True}
    model, loading = _load(auto, base, **about, **options)
    for name, stored, wanted in sorted(loading["mismatched_keys"]):
        if name in head(model):  # another task's, with another number of outputs
            loading["missing_keys"].add(name)
            continue
        shapes = f"{list(stored)} in the checkpoint and {list(wanted)} by config.json"
        raise DeftxError(
            f"cannot load the model {os.fspath(base)!r}: {name} has the shape {shapes}: correct one of them"
        )
    return model, sorted(loading["missing_keys"])


def _load(auto: Any, base: Base, **options: Any) -> Any:
    """What `auto` loads for `base`, or one line that says why it cannot.

    Python files that a base brings are never run, and nobody is asked whether they may be.
    """
    name, revision, where = os.fspath(base), None, ""
    if os.path.isfile(name):
        raise DeftxError(
            f"cannot load the model {name!r}: it is a file: give the folder that it is in"
        )
    if os.path.isfile(os.path.join(name, FILE)):
        raise DeftxError(
            f"cannot load the model {name!r}: it is a vector: give the base that it was made on"
        )
    if not os.path.exists(name):
        if os.path.isabs(name) or name.startswith(".") or name.count("/") > 1:
            raise DeftxError(
                f"cannot load the model {name!r}: there is no such folder, and it is no hub id"
            )
        name, _, revision = name.partition("@")
        where = "there is no such folder; as a hub id: "
    check_downloaded(name)
    expected = (
        Exception if auto is AutoTokenizer else BAD_BASE
    )  # the library tokenizers raises no other kind
    try:
        with _quiet():  # `_load_checked` tells what is missing
            return auto.from_pretrained(
                name, revision=revision or None, trust_remote_code=False, **options
            )
    except expected as error:
        reason = str(error).strip().split("\n")[0].rstrip(" .:")
        if "trust_remote_code" in str(error):
            reason = "it needs Python code that it brings, which deftx does not run: give a base that transformers knows"
        if reason.startswith("Unrecognized configuration class"):
            reason = f"transformers has no {auto.__name__} of this kind of base: give another base"
        if (
            reason.startswith("Couldn't instantiate the backend tokenizer")
            or "Missing [UNK]" in reason
        ):
            reason = "the files of its tokenizer are missing or of another kind: copy tokenizer.json into its folder"
        raise DeftxError(f"cannot load the model {name!r}: {where}{reason}") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Within the block, transformers does not say that heads are new, and that they should be
    trained."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(before)
