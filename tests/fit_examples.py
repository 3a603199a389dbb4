"""What trainings in tests share: small data and settings, and whether two vectors are the same."""

import tiny
import torch
from transformers import AutoModel

from deftx.config import (
    LanguageTrainingConfig,
    LanguageVectorConfig,
    TaskTrainingConfig,
    TaskVectorConfig,
)
from deftx.core.parameters import parameter_groups
from deftx.data.examples import Examples
from deftx.models.loading import load_language_model
from deftx.models.tokenizers import load_tokenizer
from deftx.objectives.masked_lm import masked_lm

TEXT = tiny.sentences(40)

QUICK = {
    "learning_rate": 1e-2,
    "max_steps": 4,
    "evaluate_every": 2,
    "batch_size": 4,
    "length": 16,
    "precision": "fp32",
}

LANGUAGE = LanguageVectorConfig(
    k="5%", rank=3, training=LanguageTrainingConfig(**QUICK, min_steps=0)
)

TASK = TaskVectorConfig(k="5%", rank=3, training=TaskTrainingConfig(**QUICK))


def labelled(count, seed):
    """Sentences labelled by the half of the words that they begin with."""
    texts = tiny.sentences(count, seed)
    return Examples(
        texts, None, ["early" if tiny.WORDS.index(t.split()[0]) < 35 else "late" for t in texts]
    )


TRAIN, VALID = labelled(30, 1), labelled(12, 2)


def language_model(base, seed=0):
    """What `fit` takes for a language: the model at θ0 and its objective."""
    model = load_language_model(base)
    return model, masked_lm(TEXT, load_tokenizer(base), LANGUAGE.training, 16, seed)


def same(one, other):
    """Whether two vectors are equal bit for bit, heads included."""

    def parts(vector):
        heads = vector.head.tensors if vector.head else {}
        body = [
            t
            for name, e in vector.tensors.items()
            for t in (name, e.indices, e.values.view(torch.int32), e.shape)
        ]
        return [*body, *heads.keys(), *(tensor.view(torch.int32) for tensor in heads.values())]

    def equal(a, b):
        return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b

    one, other = parts(one), parts(other)
    return len(one) == len(other) and all(map(equal, one, other))


def size(base):
    return sum(
        weight.numel()
        for weight in parameter_groups(AutoModel.from_pretrained(base)).trainable.values()
    )
