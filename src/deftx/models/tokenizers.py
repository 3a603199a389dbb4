"""Tokenizers of bases: loading and checking them; recording which one a vector was made with."""

import hashlib
import json
import warnings
from collections.abc import Mapping

from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from deftx.core.provenance import TokenizerRecord
from deftx.core.vector import SparseVector
from deftx.data.unknown_text import no_embedding
from deftx.errors import DeftxError
from deftx.models.fingerprint import IGNORE_BASE_MISMATCH
from deftx.models.loading import Base, load_pretrained
from deftx.models.saving import recorded_name

SPACE = "▁"  # how SentencePiece writes a space

# Tokens that are put into texts or between them, whatever the texts are
SPECIAL_TOKENS = ("cls_token", "bos_token", "sep_token", "eos_token", "pad_token", "mask_token")


def load_tokenizer(base: Base) -> PreTrainedTokenizerBase:
    """The tokenizer of `base`.

    A tokenizer without a padding token, as some decoders have, pads with the token that ends texts.

    Args:
        base: Folder or hub id.

    Raises:
        DeftxError: Its files are missing, or the base has no embedding for one of its special
            tokens.
    """
    tokenizer: PreTrainedTokenizerBase = load_pretrained(AutoTokenizer, base)
    vocabulary = tokenizer.get_vocab()
    if vocabulary:  # CANINE's is empty: it reads characters by their code points
        _check_has_words(base, tokenizer, vocabulary)
        _check_special_tokens(base, tokenizer)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _check_has_words(
    base: Base, tokenizer: PreTrainedTokenizerBase, vocabulary: Mapping[str, int]
) -> None:
    """Raise DeftxError for a tokenizer of special tokens alone.

    Where its files are missing, transformers makes such a one (with a sign for the space).
    """
    special = set(tokenizer.all_special_tokens)
    special |= {str(token) for token in tokenizer.added_tokens_decoder.values()}
    words = vocabulary.keys() - special - {SPACE}
    if not words:
        raise DeftxError(
            f"the tokenizer of {base} knows no word: its files are missing:"
            " copy tokenizer.json, or sentencepiece.bpe.model or vocab.txt, into its folder"
            " (save_pretrained of both)"
        )


def _check_special_tokens(base: Base, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise DeftxError for a special token without an embedding, as every text has special tokens.

    Other tokens without an embedding do no harm unless a text has one of them: see
    `deftx.data.unknown_text.check_embedded`.
    """
    try:
        config = load_pretrained(AutoConfig, base)
    except DeftxError:  # a tokenizer alone; what is wrong with a base, loading its model tells
        return
    vocab_size = getattr(config, "vocab_size", None)
    if vocab_size is None:
        return
    for role in SPECIAL_TOKENS:
        token_id = getattr(tokenizer, f"{role}_id")
        if token_id is not None and token_id >= vocab_size:
            token = getattr(tokenizer, role)
            problem = f"the {role} of its tokenizer is {token!r:.40}, {no_embedding(vocab_size)}"
            raise DeftxError(f"cannot use the base {base}: {problem}")


# --- which tokenizer a vector was made with ---


def tokenizer_record(tokenizer: PreTrainedTokenizerBase) -> TokenizerRecord:
    """What a vector records of the tokenizer it was made with."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    text = json.dumps(vocabulary, ensure_ascii=False)
    digest = hashlib.sha256(text.encode(errors="replace")).hexdigest()
    return TokenizerRecord(recorded_name(str(tokenizer.name_or_path)), digest)


def check_tokenizer(
    tokenizer: PreTrainedTokenizerBase,
    *vectors: SparseVector,
    ignore_base_mismatch: bool | None = False,
) -> None:
    """Check that vectors were made with a tokenizer of the same tokens and ids.

    Args:
        tokenizer: The base's.
        vectors: Those that record no tokenizer fit any.
        ignore_base_mismatch: Warn instead of raising. None: raise, without mentioning this option.

    Raises:
        DeftxError: A vector was made with another tokenizer.
    """
    current = tokenizer_record(tokenizer)
    for vector in vectors:
        recorded = vector.provenance.tokenizer
        if recorded is None or recorded.digest == current.digest:
            continue
        former = f"{recorded.name} ({str(recorded.digest)[:12]})"
        latter = f"{current.name} ({str(current.digest)[:12]})"
        message = f"the vector was made with the tokenizer {former}, not with {latter}"
        if ignore_base_mismatch:
            warnings.warn(message, stacklevel=2)
            continue
        remedy = "use the former"
        if ignore_base_mismatch is False:
            remedy = f"{remedy}, or {IGNORE_BASE_MISMATCH}"
        raise DeftxError(f"{message}: {remedy}")


def check_recorded_tokenizer(
    base: Base | PreTrainedTokenizerBase,
    *vectors: SparseVector,
    ignore_base_mismatch: bool | None = False,
) -> None:
    """`check_tokenizer` of a base's tokenizer, which is loaded only where a vector records one.

    Args:
        base: Folder or hub id, or the tokenizer itself.
        vectors: Those that record no tokenizer fit any.
        ignore_base_mismatch: As in `check_tokenizer`.

    Raises:
        DeftxError: A vector was made with another tokenizer.
    """
    recording = [vector for vector in vectors if vector.provenance.tokenizer is not None]
    if not recording:
        return
    tokenizer = base if isinstance(base, PreTrainedTokenizerBase) else load_tokenizer(base)
    check_tokenizer(tokenizer, *recording, ignore_base_mismatch=ignore_base_mismatch)
