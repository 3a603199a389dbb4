"""How long a model's inputs can be, and how wide its layers are."""

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from deftx.core.ranks import Rank, is_relative, resolve_rank
from deftx.errors import DeftxError


def longest_input(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The most tokens that the base takes at once.

    Raises:
        DeftxError: Its config has so few positions that no token fits.
    """
    positions = getattr(model.config, "max_position_embeddings", None)
    if not positions:
        positions = tokenizer.model_max_length
    usable = positions - _first_position(model)
    longest = min(usable, int(tokenizer.model_max_length))
    if longest < 1:
        raise DeftxError(
            f"{model.name_or_path} has {positions} positions, so that no token can be read:"
            " is it whole?"
        )
    return int(longest)


def _first_position(model: PreTrainedModel) -> int:
    """The position of the first token.

    RoBERTa and models like it count positions from the padding token's id on. Their table of
    positions has a row for padding, by which they are known, whatever they are called.
    """
    for module in model.modules():
        table = getattr(module, "position_embeddings", None)
        padding_idx = getattr(table, "padding_idx", None)
        if padding_idx is not None:
            return int(padding_idx) + 1
    return 0


def hidden_width(config: PreTrainedConfig) -> int:
    """The hidden size of a model: the `768` of XLM-R base.

    Configs have several names for it (`hidden_size`, `d_model`, `n_embd`, `dim`), all of which
    transformers maps to one; models that also read images have it in the text part of their config.

    Raises:
        DeftxError: The config has no hidden size.
    """
    width = getattr(config.get_text_config(), "hidden_size", None)
    if not isinstance(width, int):
        raise DeftxError(
            f"a {config.model_type!r} model does not say how wide it is:"
            " give rank as a number or a share"
        )
    return width


def rank_on(model: PreTrainedModel, rank: Rank) -> Rank:
    """A rank that is relative to the width (`100/768`) as a number for this model; any other rank
    as it is."""
    if not is_relative(rank):
        return rank
    return resolve_rank(rank, hidden_width(model.config))
