"""The model card of a vector: what it is, what it was made of and how to use it, with the metadata
that the hub reads.

The metadata's form is https://huggingface.co/docs/hub/model-cards; huggingface_hub's own classes
write it.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deftx.config import metric_name
from deftx.core.vector import SparseVector
from deftx.errors import DeftxError
from deftx.hub.privacy import published
from deftx.storage.hub_client import LIBRARY, is_model_id

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

# What the hub calls our metrics, where it has another name, and our kinds of task.
_METRICS = {"macro_f1": "f1", "span_f1": "f1", "pearson": "pearsonr", "spearman": "spearmanr"}
_TASKS = {
    "tagging": "token-classification",
    "ner": "token-classification",
    "generation": "text-generation",
}
_TASKS |= {name: name for name in ("question-answering", "multiple-choice")}
_HUB_DATA = "hub:"
CITATION = """@inproceedings{simon-jyothi-2025-deft,
  title     = {{DeFT-X}: Denoised Sparse Fine-Tuning for Zero-Shot Cross-Lingual Transfer},
  author    = {Simon, Sona Elza and Jyothi, Preethi},
  booktitle = {Findings of the Association for Computational Linguistics: EMNLP 2025},
  pages     = {1895--1909},
  year      = {2025}
}"""


@dataclass(frozen=True)
class About:
    """What a card says and a vector does not know. Raises DeftxError for what the hub would refuse.

    base       hub id of the vector's base, `ID` or `ID@REVISION`, where it was made on a folder
               with that model
    languages  ISO 639 codes, such as min
    datasets   hub ids of the training data, besides those that the vector names
    license    the hub's name of a licence, such as apache-2.0
    """

    base: str | None = None
    languages: Sequence[str] = ()
    datasets: Sequence[str] = ()
    license: str | None = None

    def __post_init__(self) -> None:
        if self.base is not None and not is_model_id(self.base):
            raise DeftxError(
                f"{self.base!r} is no model on the hub: write its id, such as "
                "FacebookAI/xlm-roberta-base"
            )
        for language in self.languages:
            if not re.fullmatch(r"[a-z]{2,3}", language):
                raise DeftxError(
                    f"{language!r} is no ISO 639 code: write two or three small letters, such as "
                    "min"
                )
        for dataset in self.datasets:
            if not is_model_id(dataset) or "@" in dataset:
                raise DeftxError(
                    f"{dataset!r} is no dataset on the hub: write its id, such as "
                    "indonlp/NusaX-senti"
                )
        if self.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", self.license):
            raise DeftxError(
                f"{self.license!r} is no licence that the hub knows: write its name, such as "
                "apache-2.0"
            )


def model_card(vector: SparseVector, repo: str, about: About | None = None) -> str:
    """README.md for `vector` in the repository `repo`: YAML metadata and Markdown.

    It says what `privacy.published` lets through. A base that is a folder is not named in it.
    """
    from huggingface_hub import ModelCard

    about = about or About()
    vector = published(vector, about.base)
    metadata = _metadata(vector, repo, about).to_yaml()
    parts = [f"# {repo.split('/')[-1]}", *(section(vector, repo, about) for section in SECTIONS)]
    body = "\n\n".join(part for part in parts if part)
    return str(ModelCard(f"---\n{metadata}\n---\n\n{body}\n"))


def _metadata(vector: SparseVector, repo: str, about: About) -> Any:
    from huggingface_hub import ModelCardData

    base, scores, kind = _base(vector), _scores(vector, about), vector.provenance.kind
    names = [f"base_model:adapter:{base.partition('@')[0]}"] if base else []
    kinds = [f"{kind}-vector"] if kind in ("language", "task") else []
    return ModelCardData(
        base_model=base.partition("@")[0] if base else None,
        base_model_relation="adapter" if base else None,
        datasets=_datasets(vector, about) or None,
        eval_results=scores or None,
        language=list(about.languages) or None,
        library_name=LIBRARY,
        license=about.license,
        metrics=[score.metric_type for score in scores] or None,
        model_name=repo.split("/")[-1] if scores else None,
        pipeline_tag=_task(vector) if vector.head else None,
        tags=["deftx", "sparse-fine-tuning", *kinds, "cross-lingual-transfer", *names],
    )


def _task(vector: SparseVector) -> str:
    """The hub's name of a task vector's task."""
    return _TASKS.get(vector.task or "", "text-classification")


def _scores(vector: SparseVector, about: About) -> "list[EvalResult]":
    """The held-out score of a task vector in the form that the hub reads; none for what has no such
    score."""
    from huggingface_hub import EvalResult

    best, metric = _best(vector), vector.provenance.training.metric
    if not vector.head or not isinstance(metric, str) or not isinstance(best, int | float):
        return []
    datasets = _datasets(vector, about)
    score = EvalResult(
        task_type=_task(vector),
        dataset_type=datasets[0] if datasets else "unknown",
        dataset_name="held-out data of the training",
        metric_type=_METRICS.get(metric, metric),
        metric_name=metric_name(metric),
        metric_value=round(best, 4),
    )
    return [score]


def _best(vector: SparseVector) -> Any:
    last = [None, *vector.provenance.log.values()][-1]
    return last.get("best_score") if isinstance(last, Mapping) else None


def _datasets(vector: SparseVector, about: About) -> list[str]:
    sources = vector.provenance.data.record.get("sources") or []
    on_hub = [
        str(source).removeprefix(_HUB_DATA)
        for source in sources
        if str(source).startswith(_HUB_DATA)
    ]
    names = [re.split("[:@]", source)[0] for source in on_hub]
    return list(dict.fromkeys([*about.datasets, *filter(is_model_id, names)]))


def _base(vector: SparseVector) -> str | None:
    base = vector.base
    return base if base is not None and is_model_id(base) else None


# The body, section by section; one that has nothing to say is empty.


def _summary(vector: SparseVector, repo: str, about: About) -> str:
    size = sum(entries.numel for entries in vector.tensors.values())
    kind = {"language": "language vector", "task": "task vector"}.get(
        vector.provenance.kind or "", "vector"
    )
    base = f"`{_base(vector)}`" if _base(vector) else "its base model"
    languages = f" Languages: {', '.join(about.languages)}." if about.languages else ""
    share = f", {vector.k / size:.2%} of the weights of the tensors that it changes" if size else ""
    return (
        f"A sparse {kind} for {base}, made with `deftx`: {vector.k:,} numbers to be added to its "
        f"weights{share}."
        " Vectors of one base add up: base + task vector + language vector is a model for a task "
        "in a language"
        f" without labelled data.{languages}"
    )


def _usage(vector: SparseVector, repo: str, about: About) -> str:
    base = _base(vector) or "BASE"
    task, language = (repo, "LANGUAGE_VECTOR") if vector.head else ("TASK_VECTOR", repo)
    lines = [
        "## How to use it",
        "```sh",
        f"deftx compose --base {base} --task {task} --language {language} --out model",
        "```",
        "or in Python",
        "```python",
        "import deftx",
        "",
        f'task, language = deftx.load("{task}"), deftx.load("{language}")',
        f'model = deftx.compose("{base}", task=task, language=language)',
        "```",
        f"`{repo}@COMMIT` pins a commit of this repository. Words in capitals stand for what you "
        "choose.",
    ]
    return "\n".join(lines)


def _facts(vector: SparseVector, repo: str, about: About) -> str:
    provenance, base = vector.provenance, _base(vector)
    name, _, revision = (base or "").partition("@")
    rows = {
        "kind": provenance.kind or provenance.operation,
        "base model": name or "not on the hub",
        "revision of the base": revision or None,
        "fingerprint of the base": provenance.base_fingerprint,
        "k (entries)": f"{vector.k:,}",
        "task": provenance.task,
        "method": provenance.method,
        "rank": provenance.rank,
        "rank_rule": provenance.rank_rule,
        "keep": provenance.keep,
        "keep_of": provenance.keep_of,
        "seed": provenance.seed,
        "labels": ", ".join(vector.head.labels) if vector.head else None,
        "licence": about.license,
    }
    return _table("What it is", rows)


def _data(vector: SparseVector, repo: str, about: About) -> str:
    data = dict(vector.provenance.data.record)
    sources = [str(source) for source in data.pop("sources", None) or []]
    named = list(dict.fromkeys([*sources, *about.datasets]))
    return _table(
        "Training data",
        {"languages": ", ".join(about.languages), "sources": ", ".join(named), **data},
    )


def _training(vector: SparseVector, repo: str, about: About) -> str:
    return _table("Training", {**vector.provenance.training.record, **vector.provenance.versions})


def _results(vector: SparseVector, repo: str, about: About) -> str:
    metric, best = (vector.provenance.training.metric or "loss"), _best(vector)
    value = f"{best:.4f}" if isinstance(best, int | float) else None
    return _table("Scores", {f"{metric_name(str(metric))} on held-out training data": value})


def _citation(vector: SparseVector, repo: str, about: About) -> str:
    return (
        "## Citation\n\nThe method is DeFT-X "
        f"(https://arxiv.org/abs/2505.15090):\n\n```bibtex\n{CITATION}\n```"
    )


SECTIONS: list[Callable[[SparseVector, str, About], str]] = [
    _summary,
    _usage,
    _facts,
    _data,
    _training,
    _results,
    _citation,
]


def _table(title: str, facts: Mapping[str, Any]) -> str:
    rows = [
        f"| {_text(key)} | {_text(fact)} |"
        for key, fact in facts.items()
        if fact not in (None, "", [], ())
    ]
    return "\n".join([f"## {title}", "", "| | |", "| --- | --- |", *rows]) if rows else ""


def _text(fact: Any) -> str:
    """A fact as one line that is nothing but text in a cell: it may come from a stranger's
    vector."""
    line = " ".join(str(fact).split())[:300]
    return re.sub(r"[|`<>\[\]\\!&]", lambda found: f"&#{ord(found[0])};", line)
