"""Denoised sparse fine-tuning: language and task vectors that add up to a model for a language
without labels."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from deftx.errors import DeftxError, Diverged, Locked, NoSpace

if TYPE_CHECKING:
    from deftx.config import (
        LanguageTrainingConfig,
        LanguageVectorConfig,
        TaskTrainingConfig,
        TaskVectorConfig,
    )
    from deftx.core.apply import apply, apply_temporarily
    from deftx.core.denoise import Denoised, denoise
    from deftx.core.merge import merge
    from deftx.core.provenance import Provenance
    from deftx.core.ranks import split_half_ranks
    from deftx.core.select import SparseMask, TensorMask, select
    from deftx.core.tensors import Head, SparseTensor
    from deftx.core.vector import SparseVector, overlap
    from deftx.data.examples import Columns, Examples
    from deftx.data.reading import read_text
    from deftx.fit import fit_language, fit_task, transfer
    from deftx.hub.share import pull, push
    from deftx.interop.convert import convert
    from deftx.models.compose import compose, compose_with_tokenizer
    from deftx.models.extract import delta, extract
    from deftx.models.scales import Scales, tune_scales
    from deftx.models.switcher import Switcher
    from deftx.storage.vector_files import load, save
    from deftx.tasks.normalization import Normalizer, build_normalizer, normalize, read_normalizer
    from deftx.tasks.registry import read_examples
    from deftx.training.sparse import SparseTuning, sparse_tuning

__all__ = [
    "Columns",
    "DeftxError",
    "Denoised",
    "Diverged",
    "Examples",
    "Head",
    "LanguageTrainingConfig",
    "LanguageVectorConfig",
    "Locked",
    "NoSpace",
    "Normalizer",
    "Provenance",
    "Scales",
    "SparseMask",
    "SparseTensor",
    "SparseTuning",
    "SparseVector",
    "Switcher",
    "TaskTrainingConfig",
    "TaskVectorConfig",
    "TensorMask",
    "apply",
    "apply_temporarily",
    "build_normalizer",
    "compose",
    "compose_with_tokenizer",
    "convert",
    "delta",
    "denoise",
    "extract",
    "fit_language",
    "fit_task",
    "load",
    "merge",
    "normalize",
    "overlap",
    "pull",
    "push",
    "read_examples",
    "read_normalizer",
    "read_text",
    "save",
    "select",
    "sparse_tuning",
    "split_half_ranks",
    "transfer",
    "tune_scales",
]

# Where the public names live; they are imported when they are first used, since torch takes a
# second.
_HOMES = {
    "config": [
        "LanguageVectorConfig",
        "LanguageTrainingConfig",
        "TaskVectorConfig",
        "TaskTrainingConfig",
    ],
    "core.apply": ["apply_temporarily", "apply"],
    "core.denoise": ["Denoised", "denoise"],
    "core.merge": ["merge"],
    "core.provenance": ["Provenance"],
    "core.ranks": ["split_half_ranks"],
    "core.select": ["SparseMask", "TensorMask", "select"],
    "core.tensors": ["Head", "SparseTensor"],
    "core.vector": ["SparseVector", "overlap"],
    "data.examples": ["Columns", "Examples"],
    "data.reading": ["read_text"],
    "fit": ["fit_language", "fit_task", "transfer"],
    "hub.share": ["pull", "push"],
    "interop.convert": ["convert"],
    "models.compose": ["compose", "compose_with_tokenizer"],
    "models.extract": ["delta", "extract"],
    "models.scales": ["Scales", "tune_scales"],
    "models.switcher": ["Switcher"],
    "storage.vector_files": ["load", "save"],
    "tasks.normalization": ["Normalizer", "read_normalizer", "normalize", "build_normalizer"],
    "tasks.registry": ["read_examples"],
    "training.sparse": ["SparseTuning", "sparse_tuning"],
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("deftx")
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"deftx.{home}"), name)
    raise AttributeError(f"module 'deftx' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
