"""How a language is learnt, by what kind of language model the base is."""

from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
)

from deftx.errors import DeftxError
from deftx.objectives.causal_lm import causal_lm
from deftx.objectives.masked_lm import masked_lm
from deftx.objectives.seq2seq_lm import seq2seq_lm


@dataclass(frozen=True)
class Language:
    """A kind of language model, and how a language is learnt with it.

    Attributes:
        description: What it is, in words.
        configs: The classes of configs for which transformers has such a model.
        auto_model_class: transformers' auto class of such models.
        objective: Builds the objective: (texts, tokenizer, settings, tokens of a block, seed,
            `held_out`: other texts to validate on).
    """

    description: str
    configs: Container[type]
    auto_model_class: Any
    objective: Callable[..., Any]


# A base is of the first kind that transformers has for its config: encoders may be loaded as
# decoders too, and BART as any of the three
LANGUAGES = (
    Language(
        "encoder-decoder model",
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
        AutoModelForSeq2SeqLM,
        seq2seq_lm,
    ),
    Language("masked language model", MODEL_FOR_MASKED_LM_MAPPING, AutoModelForMaskedLM, masked_lm),
    Language("causal language model", MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, causal_lm),
)


def language_of(config: Any) -> Language:
    """The kind of language model that a base with this config is.

    Raises:
        DeftxError: It is none of LANGUAGES.
    """
    for language in LANGUAGES:
        if type(config) in language.configs:
            return language
    known = " or ".join(language.description for language in LANGUAGES)
    raise DeftxError(
        f"a base of the kind {config.model_type!r} is no {known}: "
        "give one such as XLM-R, Qwen or mT5"
    )
