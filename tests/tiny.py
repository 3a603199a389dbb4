"""Tiny random models and a word tokenizer, made on the spot: what the tests use as bases."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    MBartConfig,
    MBartForConditionalGeneration,
    ModernBertConfig,
    ModernBertForMaskedLM,
    MT5Config,
    MT5ForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
)

from deftx.core.parameters import parameter_groups
from deftx.core.tensors import Head, SparseTensor
from deftx.core.vector import SparseVector

SENTINELS = [f"<extra_id_{number}>" for number in range(10)]
WORDS = [
    f"{onset}{vowel}"
    for onset in "b d f g k l m n p r s t v z".split()
    for vowel in "a e i o u".split()
]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
COMMON = {"vocab_size": 75, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}


def xlmr() -> PreTrainedModel:
    return XLMRobertaForMaskedLM(
        XLMRobertaConfig(**SIZES, **COMMON, max_position_embeddings=34, type_vocab_size=1)
    )


def bert() -> PreTrainedModel:
    return BertForMaskedLM(BertConfig(**SIZES, **COMMON, max_position_embeddings=32))


def distilbert() -> PreTrainedModel:
    sizes = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}
    return DistilBertForMaskedLM(DistilBertConfig(**sizes, **COMMON, max_position_embeddings=32))


def modernbert() -> PreTrainedModel:
    special = {"cls_token_id": 0, "sep_token_id": 2}
    return ModernBertForMaskedLM(
        ModernBertConfig(**SIZES, **COMMON, **special, max_position_embeddings=32)
    )


def deberta(*, legacy: bool = True) -> PreTrainedModel:
    """Unless `legacy`, its head reads the input embeddings themselves."""
    attention = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
    return DebertaV2ForMaskedLM(
        DebertaV2Config(**SIZES, **COMMON, **attention, max_position_embeddings=32, legacy=legacy)
    )


# What reads the frozen output embeddings can say little with weights of the usual size, since
# hidden states are narrow.
DECODER = {
    **SIZES,
    "vocab_size": 75,
    "max_position_embeddings": 32,
    "initializer_range": 0.3,
    "eos_token_id": 2,
}


def qwen() -> PreTrainedModel:
    """A decoder whose output embeddings are its input embeddings."""
    heads = {"num_key_value_heads": 1, "head_dim": 8}
    return Qwen3ForCausalLM(
        Qwen3Config(**DECODER, **heads, bos_token_id=None, tie_word_embeddings=True)
    )


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**DECODER, bos_token_id=0))


T5 = {
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 2,
    "vocab_size": 85,
    "initializer_factor": 0.5,
}
T5 |= {"pad_token_id": 1, "decoder_start_token_id": 1, "eos_token_id": 2}
BART = {"d_model": 16, "max_position_embeddings": 32, "init_std": 0.3, **COMMON}
BART |= {
    f"{part}_{name}": 2 for part in ("encoder", "decoder") for name in ("layers", "attention_heads")
}
BART |= {"encoder_ffn_dim": 24, "decoder_ffn_dim": 24}


def t5() -> PreTrainedModel:
    """All its embeddings are one weight, and what its decoder says is scaled."""
    return T5ForConditionalGeneration(T5Config(**T5))


def mt5() -> PreTrainedModel:
    """As published, its output embeddings are apart from the others."""
    model = MT5ForConditionalGeneration(MT5Config(**T5))
    model.lm_head.weight = nn.Parameter(torch.randn(85, 16))
    return model


def bart() -> PreTrainedModel:
    return BartForConditionalGeneration(
        BartConfig(**BART, decoder_start_token_id=2, forced_bos_token_id=0)
    )


def mbart() -> PreTrainedModel:
    """Its decoder starts with what ends the text that it writes."""
    return MBartForConditionalGeneration(MBartConfig(**BART))


SHAPES = {
    "xlmr": xlmr,
    "bert": bert,
    "distilbert": distilbert,
    "modernbert": modernbert,
    "deberta": deberta,
}
DECODERS = {"qwen": qwen, "llama": llama}
ENCODER_DECODERS = {"t5": t5, "mt5": mt5, "bart": bart, "mbart": mbart}


def tokenizer(*, decoder: bool = False, sentinels: bool = False) -> PreTrainedTokenizerFast:
    """One token a word; unknown words become <unk>. A decoder's puts <s> before a text, and knows
    no padding. One with sentinels, as T5's, puts </s> after a text, and knows no mask."""
    vocabulary = {
        token: number
        for number, token in enumerate([*SPECIAL, *WORDS, *(SENTINELS if sentinels else [])])
    }
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("<s>", 0), ("</s>", 2)]
    single, pair = (
        ("<s> $A", "<s> $A $B") if decoder else ("<s> $A </s>", "<s> $A </s> </s> $B </s>")
    )
    single, pair = ("$A </s>", "$A </s> $B </s>") if sentinels else (single, pair)
    inner.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=ends
    )
    names = {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}
    if sentinels:
        names = {"eos": "</s>", "unk": "<unk>", "pad": "<pad>"}
    elif not decoder:
        names |= {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "mask": "<mask>"}
    tokens = {f"{name}_token": token for name, token in names.items()}
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        model_max_length=32,
        model_input_names=["input_ids", "attention_mask"],
        **tokens,
    )


def save_base(
    folder: Path, shape: str = "xlmr", dtype: torch.dtype = torch.float32, seed: int = 0
) -> Path:
    """A checkpoint of a tiny random language model with its tokenizer."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        (SHAPES | DECODERS | ENCODER_DECODERS)[shape]().to(dtype).save_pretrained(folder)
    tokenizer(decoder=shape in DECODERS, sentinels=shape in ("t5", "mt5")).save_pretrained(folder)
    return folder


def random_vector(model: PreTrainedModel, seed: int, labels: tuple[str, ...] = ()) -> SparseVector:
    """A vector of random entries, a third of the backbone's; with a random head where there are
    labels."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, weight in parameter_groups(model).backbone.items():
        places = (torch.rand(weight.numel(), generator=generator) < 0.3).nonzero().view(-1)
        tensors[name] = SparseTensor(
            places, torch.randn(len(places), generator=generator), tuple(weight.shape)
        )
    top = {
        name: torch.randn(weight.shape, generator=generator)
        for name, weight in parameter_groups(model).head.items()
    }
    return SparseVector(tensors, Head(top, labels) if labels else None)


def sentences(count: int, seed: int = 0, step: int = 1) -> list[str]:
    """Random sentences with a pattern: every word is followed by its neighbour in WORDS, or the
    `step`-th."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(len(WORDS), (count,), generator=generator).tolist()
    length = torch.randint(4, 10, (count,), generator=generator).tolist()
    return [
        " ".join(WORDS[(s + step * i) % len(WORDS)] for i in range(n))
        for s, n in zip(start, length, strict=True)
    ]
