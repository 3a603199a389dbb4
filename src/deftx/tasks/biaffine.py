"""A biaffine parser on an encoder (Dozat and Manning 2017; Glavaš and Vulić 2021), with the
parameters of LT-SFT's parser: `biaffine_arcs.weight`, `biaffine_rels.weight` and the pooler.

A word is the mean of its tokens, the root what the pooler makes of the first token. There are no
layers between the encoder and the two products of word and head.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

NO_WORD = -1  # the word number of a token that is in no word
DROPOUTS = ("hidden_dropout_prob", "classifier_dropout", "dropout")  # in configs, the first counts


@dataclass(frozen=True)
class WordStates:
    """What an encoder makes of the words in a batch.

    Attributes:
        sums: The sum of each word's tokens [batch, words, width].
        counts: How many tokens these are [batch, words].
        roots: The root of each row [batch, width].
    """

    sums: Tensor
    counts: Tensor
    roots: Tensor

    @property
    def words(self) -> Tensor:
        """The mean of each word's tokens [batch, words, width]; 0 for a word without tokens."""
        return self.sums / self.counts.clamp(min=1).unsqueeze(-1)


class Biaffine(nn.Module):
    """Scores of pairs, x W y for each of several outputs, which are 0 before training.

    Args:
        width: The length of x and of y.
        outputs: How many scores a pair has.
        head_bias: Whether y is extended by a 1, as x always is.
    """

    def __init__(self, width: int, outputs: int, *, head_bias: bool) -> None:
        super().__init__()
        self.head_bias = head_bias
        self.weight = nn.Parameter(torch.zeros(outputs, width + 1, width + head_bias))

    def extended(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """x and y with their biases, in the precision of the weight."""
        x = x.to(self.weight.dtype)
        y = y.to(self.weight.dtype)
        x = torch.cat([x, torch.ones_like(x[..., :1])], dim=-1)
        if self.head_bias:
            y = torch.cat([y, torch.ones_like(y[..., :1])], dim=-1)
        return x, y

    def all_pairs(self, x: Tensor, y: Tensor) -> Tensor:
        """The first score of every x [batch, n, width] with every y [batch, m, width]: [batch, n,
        m]."""
        x, y = self.extended(x, y)
        with _without_autocast(x):
            return (x @ self.weight[0]) @ y.transpose(1, 2)

    def pairs(self, x: Tensor, y: Tensor) -> Tensor:
        """All scores of each x with the y at its place, both [batch, n, width]: [batch, n,
        outputs]."""
        x, y = self.extended(x, y)
        with _without_autocast(x):
            return torch.einsum("bni,oij,bnj->bno", x, self.weight, y)


class BiaffineParser(PreTrainedModel):  # type: ignore[no-untyped-call]
    """The part of a parser that is the same on every encoder; `parser_class` adds the encoder."""

    def _build(self, encoder: Any) -> None:
        config: Any = self.config
        setattr(self, self.base_model_prefix, encoder)
        self.biaffine_arcs = Biaffine(config.hidden_size, 1, head_bias=False)
        self.biaffine_rels = Biaffine(config.hidden_size, config.num_labels, head_bias=True)
        self.dropout = nn.Dropout(_dropout(config))
        self.post_init()  # type: ignore[no-untyped-call]

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **options: Any) -> Any:
        """As in transformers; scores that the checkpoint lacks are 0."""
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **options)
        model, loading = loaded
        lacking = {*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])}
        for name, module in model.named_modules():
            if isinstance(module, Biaffine) and f"{name}.weight" in lacking:
                nn.init.zeros_(module.weight)
        return (model, loading) if output_loading_info else model

    def word_states(
        self, input_ids: Tensor, attention_mask: Tensor, word_ids: Tensor, **inputs: Tensor
    ) -> WordStates:
        """Encode a batch.

        Args:
            input_ids: Tokens [batch, longest].
            attention_mask: 1 for tokens, 0 for padding [batch, longest].
            word_ids: The word that each token belongs to, or NO_WORD [batch, longest].
            inputs: Further inputs of the encoder.
        """
        outputs = self.base_model(input_ids=input_ids, attention_mask=attention_mask, **inputs)
        tokens = self.dropout(outputs.last_hidden_state.to(self.biaffine_arcs.weight.dtype))

        # Sum the tokens of each word
        words = torch.arange(int(word_ids.max()) + 1, device=word_ids.device)
        is_in_word = word_ids.unsqueeze(1) == words.unsqueeze(-1)  # [batch, words, longest]
        with _without_autocast(tokens):
            sums = is_in_word.to(tokens.dtype) @ tokens
        counts = is_in_word.sum(dim=-1)

        # The root: the pooled first token, or the first token where there is no pooler
        roots = getattr(outputs, "pooler_output", None)
        if roots is None:
            first = attention_mask.argmax(dim=1)
            rows = torch.arange(len(first), device=first.device)
            roots = outputs.last_hidden_state[rows, first]
        return WordStates(sums, counts, roots)

    def arc_scores(self, words: Tensor, roots: Tensor) -> Tensor:
        """The score of each head of each word [batch, words, 1 + words]; head 0 is the root."""
        return self.biaffine_arcs.all_pairs(words, _with_roots(words, roots))

    def relation_scores(self, words: Tensor, roots: Tensor, heads: Tensor) -> Tensor:
        """The score of each relation of each word to its head [batch, words, relations].

        Args:
            words: The words [batch, words, width].
            roots: The roots [batch, width].
            heads: The number of each word's head, 0 for the root [batch, words].
        """
        candidates = _with_roots(words, roots)
        index = heads.unsqueeze(-1).expand_as(words)
        return self.biaffine_rels.pairs(words, candidates.gather(1, index))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        word_ids: Tensor,
        heads: Tensor,
        **inputs: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The scores of all arcs, and those of the relations to given heads: see `arc_scores` and
        `relation_scores`."""
        states = self.word_states(input_ids, attention_mask, word_ids, **inputs)
        arcs = self.arc_scores(states.words, states.roots)
        # In a row with fewer words than the longest, what is behind them is no head
        last_words = word_ids.max(dim=1).values + 1
        candidates = torch.arange(arcs.shape[-1], device=arcs.device)
        is_padding = candidates > last_words.unsqueeze(-1)
        arcs = arcs.masked_fill(is_padding.unsqueeze(1), float("-inf"))
        relations = self.relation_scores(states.words, states.roots, heads)
        return arcs, relations


def _with_roots(words: Tensor, roots: Tensor) -> Tensor:
    """The root and then the words [batch, 1 + words, width]."""
    return torch.cat([roots.unsqueeze(1).to(words.dtype), words], dim=1)


def _without_autocast(tensor: Tensor) -> torch.autocast:
    """Within the block bf16 is not taken for fp32: sums of products are too coarse in it."""
    return torch.autocast(tensor.device.type, enabled=False)


def _dropout(config: PreTrainedConfig) -> float:
    for name in DROPOUTS:
        value = getattr(config, name, None)
        if isinstance(value, int | float):
            return float(value)
    return 0.0


@cache
def parser_class(encoder_class: type[PreTrainedModel]) -> type[BiaffineParser]:
    """The class of parsers on an encoder, such as BertForBiaffineParsing for BertModel."""

    def initialise(self: Any, config: PreTrainedConfig) -> None:
        common.__init__(self, config)
        self._build(encoder_class(config))

    name = encoder_class.__name__.removesuffix("Model") + "ForBiaffineParsing"
    common = next(kind for kind in encoder_class.__mro__[1:] if issubclass(kind, PreTrainedModel))
    members = {"__init__": initialise, "__module__": __name__, "config_class": common.config_class}
    parser = type(name, (BiaffineParser, common), members)
    return cast(type[BiaffineParser], parser)


class AutoModelForBiaffineParsing:
    """Makes and loads parsers as transformers' auto classes do their models.

    They are made on encoders: in a decoder a word would not see those after it.
    """

    @classmethod
    def from_pretrained(cls, name: str, *, config: Any = None, **options: Any) -> Any:
        """Load a parser, or an encoder with a new head.

        Args:
            name: Folder or hub id.
            config: The model's config; None: that of `name`, with those of `options` that belong
                into a config.
            options: As those of the auto classes of transformers.

        Raises:
            ValueError: The model is no encoder.
        """
        options.pop("trust_remote_code", None)  # code that a base brings is never run
        revision = options.pop("revision", None)
        if config is None:
            config, options = AutoConfig.from_pretrained(
                name, revision=revision, return_unused_kwargs=True, **options
            )
        return _class_for(config).from_pretrained(name, config=config, revision=revision, **options)

    @classmethod
    def from_config(cls, config: PreTrainedConfig, **options: Any) -> Any:
        """A parser without trained weights."""
        return _class_for(config)(config)


def _class_for(config: Any) -> Any:
    """The class of parsers on a base with this config."""
    kind = type(config)
    is_encoder = kind in MODEL_FOR_MASKED_LM_MAPPING and kind in MODEL_MAPPING
    if not is_encoder or config.is_encoder_decoder:
        raise ValueError(f"Unrecognized configuration class {kind.__name__} for a parser")
    return parser_class(MODEL_MAPPING[kind])
