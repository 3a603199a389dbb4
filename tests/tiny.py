"""Tiny random models and a word tokenizer, made on the spot: what the tests use as bases."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
)

from deftx.core.backbone import backbone, head
from deftx.core.vector import Entries, Head, SparseVector

WORDS = [f"{onset}{vowel}" for onset in "b d f g k l m n p r s t v z".split() for vowel in "a e i o u".split()]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
COMMON = {"vocab_size": 75, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}


def xlmr() -> PreTrainedModel:
    return XLMRobertaForMaskedLM(XLMRobertaConfig(**SIZES, **COMMON, max_position_embeddings=34, type_vocab_size=1))


def bert() -> PreTrainedModel:
    return BertForMaskedLM(BertConfig(**SIZES, **COMMON, max_position_embeddings=32))


def distilbert() -> PreTrainedModel:
    sizes = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}
    return DistilBertForMaskedLM(DistilBertConfig(**sizes, **COMMON, max_position_embeddings=32))


def modernbert() -> PreTrainedModel:
    special = {"cls_token_id": 0, "sep_token_id": 2}
    return ModernBertForMaskedLM(ModernBertConfig(**SIZES, **COMMON, **special, max_position_embeddings=32))


def deberta() -> PreTrainedModel:
    config = DebertaV2Config(
        **SIZES, **COMMON, max_position_embeddings=32, relative_attention=True, pos_att_type=["p2c", "c2p"]
    )
    return DebertaV2ForMaskedLM(config)


SHAPES = {"xlmr": xlmr, "bert": bert, "distilbert": distilbert, "modernbert": modernbert, "deberta": deberta}


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word; unknown words become <unk>."""
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("<s>", 0), ("</s>", 2)]
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=ends
    )
    names = {"bos": "<s>", "cls": "<s>", "pad": "<pad>", "eos": "</s>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}
    tokens = {f"{name}_token": token for name, token in names.items()}
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, model_max_length=32, model_input_names=["input_ids", "attention_mask"], **tokens
    )


def save_base(folder: Path, shape: str = "xlmr", dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    """A checkpoint of a tiny random masked language model with its tokenizer."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        SHAPES[shape]().to(dtype).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def random_vector(model: PreTrainedModel, seed: int, labels: tuple[str, ...] = ()) -> SparseVector:
    """A vector of random entries, a third of the backbone's; with a random head where there are labels."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, weight in backbone(model).items():
        places = (torch.rand(weight.numel(), generator=generator) < 0.3).nonzero().view(-1)
        tensors[name] = Entries(places, torch.randn(len(places), generator=generator), tuple(weight.shape))
    top = {name: torch.randn(weight.shape, generator=generator) for name, weight in head(model).items()}
    return SparseVector(tensors, Head(top, labels) if labels else None)


def sentences(count: int, seed: int = 0, step: int = 1) -> list[str]:
    """Random sentences with a pattern: every word is followed by its neighbour in WORDS, or the `step`-th."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(len(WORDS), (count,), generator=generator).tolist()
    length = torch.randint(4, 10, (count,), generator=generator).tolist()
    return [" ".join(WORDS[(s + step * i) % len(WORDS)] for i in range(n)) for s, n in zip(start, length, strict=True)]
