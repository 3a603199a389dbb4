"""Text that a tokenizer does not know: all of its pieces become the one unknown token, from which
nothing can be learnt or predicted."""

import warnings
from collections.abc import Sequence

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from deftx.errors import DeftxError

# Shares of the characters of a text that its tokenizer does not know
WARN_FROM = 0.05
REFUSED_TO_LEARN = 0.5
REFUSED_TO_SCORE = 0.9

TEXTS_SAMPLED = 1000
EXAMPLE_CHARACTERS = 20
CHECK_SCRIPT = (
    "is it in a script that the base knows? give another base, or write it in the base's script"
)
LOWER_CASE = "it knows lower case: write the texts so (deftx data normalize --case-only)"


def check_known(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, refused_from: float | None
) -> None:
    """Warn where a tokenizer does not know much of the texts.

    Args:
        texts: What is to be read. Of many texts, a sample is checked, spread over all of them.
        tokenizer: The base's tokenizer.
        refused_from: The share of unknown characters from which the texts are refused. None: they
            are never refused.

    Raises:
        DeftxError: The share of unknown characters is `refused_from` or more.
    """
    step = max(1, len(texts) // TEXTS_SAMPLED)
    sample = texts[::step][:TEXTS_SAMPLED]
    share, example = unknown_share(sample, tokenizer)
    if share < WARN_FROM:
        return
    problem = f"{share:.0%} of the text is unknown to the base's tokenizer, such as {example}"

    # A tokenizer of lower-case text knows nothing of a text in capitals: another base is no remedy
    lower_case_share, _ = unknown_share([text.lower() for text in sample], tokenizer)
    only_capitals_unknown = lower_case_share < WARN_FROM
    if refused_from is not None and share >= refused_from:
        remedy = LOWER_CASE if only_capitals_unknown else CHECK_SCRIPT
        raise DeftxError(f"{problem}: {remedy}")
    remedy = LOWER_CASE if only_capitals_unknown else "another base may know its script better"
    warnings.warn(f"{problem}: {remedy}", stacklevel=2)


def check_embedded(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig
) -> None:
    """Check that a model has an embedding for every token of the texts.

    A tokenizer may have more tokens than the model has embeddings (tokens that were added to it, or
    the tokenizer of another model). That does no harm as long as the texts have none of them.

    Args:
        texts: What is to be read.
        tokenizer: The base's.
        config: The model's, which says how many embeddings it has.

    Raises:
        DeftxError: A text has a token without an embedding.
    """
    vocab_size = getattr(config, "vocab_size", None)
    if vocab_size is None:  # models that read characters, as CANINE does
        return
    largest_id = max(len(tokenizer) - 1, *tokenizer.added_tokens_decoder, 0)
    if largest_id < vocab_size:
        return
    for start in range(0, len(texts), TEXTS_SAMPLED):
        lines = list(texts[start : start + TEXTS_SAMPLED])
        for ids in tokenizer(lines, add_special_tokens=False, verbose=False)["input_ids"]:
            largest = max(ids, default=0)
            if largest >= vocab_size:
                token = tokenizer.convert_ids_to_tokens(largest)
                problem = no_embedding(vocab_size)
                raise DeftxError(f"the text has the token {token!r:.40}, {problem}")


def no_embedding(vocab_size: int) -> str:
    """The end of an error about a token without an embedding: how many there are, and a remedy."""
    return (
        f"for which the base has no embedding (it has {vocab_size:,}):"
        " resize them (model.resize_token_embeddings) and save both,"
        " or give the tokenizer that the base came with"
    )


def unknown_share(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> tuple[float, str]:
    """How much of the texts a tokenizer does not know.

    Args:
        texts: The texts to be tokenised.
        tokenizer: The base's tokenizer.

    Returns:
        The share of unknown characters, white space aside (0 to 1), and an example of them. The
        share is 0 for byte-level tokenizers, which know everything, and for slow tokenizers, which
        have no offsets.
    """
    unknown_id = tokenizer.unk_token_id
    # GPT-2 has one special token for the start, the end and the unknown: it does not mark unknown
    # text
    shared_id = unknown_id in (tokenizer.eos_token_id, tokenizer.bos_token_id)
    if not texts or unknown_id is None or shared_id or not tokenizer.is_fast:
        return 0.0, ""
    tokens = tokenizer(
        list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    unknown_pieces = []
    for text, ids, offsets in zip(
        texts, tokens["input_ids"], tokens["offset_mapping"], strict=True
    ):
        for token, (start, end) in zip(ids, offsets, strict=True):
            if token == unknown_id:
                unknown_pieces.append(_without_space(text[start:end]))
    total = sum(len(_without_space(text)) for text in texts)
    unknown = sum(len(piece) for piece in unknown_pieces)
    example = next(filter(None, unknown_pieces), "")
    return unknown / max(total, 1), example[:EXAMPLE_CHARACTERS]


def _without_space(text: str) -> str:
    return "".join(text.split())
