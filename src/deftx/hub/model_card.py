"""The model card of a vector: what it is, what it was made of and how to use it, with the metadata
that the hub reads.

The metadata's form is https://huggingface.co/docs/hub/model-cards; huggingface_hub's own classes
write it.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

from deftx.config import metric_name
from deftx.core.vector import SparseVector
from deftx.errors import DeftxError
from deftx.hub.privacy import published
from deftx.storage.hub_client import LIBRARY, is_model_id
from deftx.storage.provenance_json import data_to_json

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

# What the hub calls our metrics, where it has another name, and our kinds of task.
_METRICS = {"macro_f1": "f1", "span_f1": "f1", "pearson": "pearsonr", "spearman": "spearmanr"}
_TASKS = {
    "tagging": "token-classification",
    "ner": "token-classification",
    "parsing": "token-classification",
    "generation": "text-generation",
    "question-answering": "question-answering",
    "multiple-choice": "multiple-choice",
}
_VECTORS = {"language": "language vector", "task": "task vector"}  # by their kind
_HUB_DATA = "hub:"  # how the names of hub datasets begin
_LONGEST_FACT = 300  # characters
CITATION = """@inproceedings{simon-jyothi-2025-deft,
  title     = {{DeFT-X}: Denoised Sparse Fine-Tuning for Zero-Shot Cross-Lingual Transfer},
  author    = {Simon, Sona Elza and Jyothi, Preethi},
  booktitle = {Findings of the Association for Computational Linguistics: EMNLP 2025},
  pages     = {1895--1909},
  year      = {2025}
}"""

# Method -> where it is from, for those that are not DeFT-X's.
_SPIEL = "SpIEL (Ansell et al. 2024, https://arxiv.org/abs/2401.16405)"
PAPERS = {
    "lt-sft": "LT-SFT (Ansell et al. 2022, https://arxiv.org/abs/2110.07560)",
    "pafi": "PaFi (Liao et al. 2023, https://arxiv.org/abs/2305.16742)",
    "largest-weights": "Super-Tuning (2026, https://arxiv.org/abs/2607.09287)",
    "spiel-ag": _SPIEL,
    "spiel-ma": _SPIEL,
    "spiel-deftx": _SPIEL,
}


@dataclass(frozen=True)
class MeasuredScore:
    """A score on labelled test data, measured after the training.

    Attributes:
        language: The language of the test data, as it is called where it was measured.
        metric: Such as macro_f1.
        value: The score of base + task vector + language vector, 0 to 1.
        without: The same without a language vector; None where it was not measured.
        examples: How many examples were scored.
        seed: The seed of the trainings.
    """

    language: str
    metric: str
    value: float
    without: float | None
    examples: int
    seed: int

    @property
    def in_words(self) -> str:
        """Such as "macro-F1 0.7102 (0.6871 without a language vector)"."""
        score = f"{metric_name(self.metric)} {self.value:.4f}"
        if self.without is None:
            return score
        return f"{score} ({self.without:.4f} without a language vector)"


@dataclass(frozen=True)
class About:
    """What a card says and a vector does not know.

    Attributes:
        base: Hub id of the vector's base, `ID` or `ID@REVISION`, where it was made on a folder with
            that model.
        languages: ISO 639 codes, such as min.
        datasets: Hub ids of the training data, besides those that the vector names.
        license: The hub's name of a licence, such as apache-2.0.
        scores: Scores on test data.

    Raises:
        DeftxError: The hub would refuse one of them.
    """

    base: str | None = None
    languages: Sequence[str] = ()
    datasets: Sequence[str] = ()
    license: str | None = None
    scores: Sequence[MeasuredScore] = ()

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
    """The model card of a vector. It says what `privacy.published` lets through.

    Args:
        vector: The vector; a base that is a folder is not named.
        repo: The repository that it is for, USER/NAME.
        about: What the vector does not know.

    Returns:
        README.md: YAML metadata and Markdown.
    """
    from huggingface_hub import ModelCard

    about = about or About()
    vector = published(vector, about.base)
    metadata = _metadata(vector, repo, about).to_yaml()
    sections = [section(vector, repo, about) for section in SECTIONS]
    title = f"# {repo.split('/')[-1]}"
    body = "\n\n".join([title, *filter(None, sections)])
    card = str(ModelCard(f"---\n{metadata}\n---\n\n{body}\n"))
    return _encodable(card)


def _metadata(vector: SparseVector, repo: str, about: About) -> Any:
    """What the hub reads, as huggingface_hub's ModelCardData, which leaves out what is None."""
    from huggingface_hub import ModelCardData

    tags = ["deftx", "sparse-fine-tuning"]
    kind = vector.provenance.kind
    if kind in ("language", "task"):
        tags.append(f"{kind}-vector")
    tags.append("cross-lingual-transfer")
    base = _base(vector)
    base_name = base.partition("@")[0] if base else None
    if base_name:
        tags.append(f"base_model:adapter:{base_name}")
    scores = _scores(vector, about)
    return ModelCardData(
        base_model=base_name,
        base_model_relation="adapter" if base else None,
        datasets=_datasets(vector, about) or None,
        eval_results=scores or None,
        language=list(about.languages) or None,
        library_name=LIBRARY,
        license=about.license,
        metrics=list(dict.fromkeys(score.metric_type for score in scores)) or None,
        model_name=repo.split("/")[-1] if scores else None,
        pipeline_tag=_task(vector) if vector.head else None,
        tags=tags,
    )


def _task(vector: SparseVector) -> str:
    """The hub's name of a task vector's task."""
    return _TASKS.get(vector.task or "", "text-classification")


def _scores(vector: SparseVector, about: About) -> "list[EvalResult]":
    """The scores of a task vector in the form that the hub reads: on held-out data of its training,
    and on test data; none for a language vector, which alone solves no task."""
    from huggingface_hub import EvalResult

    if not vector.head:
        return []
    scores = []
    best = _best(vector)
    metric = vector.provenance.training.metric
    if isinstance(metric, str) and best is not None:
        datasets = _datasets(vector, about)
        held_out = EvalResult(
            task_type=_task(vector),
            dataset_type=datasets[0] if datasets else "unknown",
            dataset_name="held-out data of the training",
            metric_type=_METRICS.get(metric, metric),
            metric_name=metric_name(metric),
            metric_value=round(best, 4),
        )
        scores.append(held_out)
    for test in about.scores:
        on_test_data = EvalResult(
            task_type=_task(vector),
            dataset_type="unknown",
            dataset_name=f"test data of {test.language}",
            metric_type=_METRICS.get(test.metric, test.metric),
            metric_name=metric_name(test.metric),
            metric_value=round(test.value, 4),
        )
        scores.append(on_test_data)
    return scores


def _best(vector: SparseVector) -> float | None:
    """The best score of the last phase; None where there is no number."""
    phases = list(vector.provenance.log.values())
    best = phases[-1].best_score if phases else None
    if best is None:
        return None
    try:
        return float(best) if isfinite(best) else None
    except OverflowError:  # an integer with hundreds of digits
        return None


def _sources(vector: SparseVector) -> list[str]:
    """The names of the training data; a single name that stands for itself is one, too."""
    data = vector.provenance.data
    alone = data.extra.get("sources")
    return [alone] if isinstance(alone, str) else list(data.sources)


def _datasets(vector: SparseVector, about: About) -> list[str]:
    """The hub ids of the training data, without revision, configuration and split."""
    names = list(about.datasets)
    for source in _sources(vector):
        name = re.split("[:@]", source.removeprefix(_HUB_DATA))[0]
        if source.startswith(_HUB_DATA) and is_model_id(name):
            names.append(name)
    return list(dict.fromkeys(names))


def _base(vector: SparseVector) -> str | None:
    base = vector.base
    return base if isinstance(base, str) and is_model_id(base) else None


# The body, section by section; one that has nothing to say is empty.


def _summary(vector: SparseVector, repo: str, about: About) -> str:
    kind = _VECTORS.get(str(vector.provenance.kind), "vector")
    base = _base(vector)
    base_name = f"`{base}`" if base else "its base model"
    size = sum(entries.numel for entries in vector.tensors.values())
    share = ""
    if size:
        share = f", {vector.k / size:.2%} of the weights of the tensors that it changes"
    languages = ""
    if about.languages:
        languages = f" Languages: {', '.join(about.languages)}."
    return (
        f"A sparse {kind} for {base_name}, made with `deftx`: {vector.k:,} numbers to be added to"
        f" its weights{share}. Vectors of one base add up: base + task vector + language vector is"
        f" a model for a task in a language without labelled data.{languages}"
    )


def _usage(vector: SparseVector, repo: str, about: About) -> str:
    base = _base(vector) or "BASE"
    task, language = "TASK_VECTOR", repo
    if vector.head:
        task, language = repo, "LANGUAGE_VECTOR"
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
        f"`{repo}@COMMIT` pins a commit of this repository."
        " Words in capitals stand for what you choose.",
    ]
    return "\n".join(lines)


def _facts(vector: SparseVector, repo: str, about: About) -> str:
    provenance = vector.provenance
    name, _, revision = (_base(vector) or "").partition("@")
    rows = {
        "kind": provenance.kind or provenance.operation,
        "base model": name or "not on the hub",
        "revision of the base": revision,
        "fingerprint of the base": provenance.base_fingerprint,
        "k (entries)": f"{vector.k:,}",
    }
    for key in ("task", "method", "rank", "rank_rule", "keep", "keep_of", "seed"):
        rows[key] = getattr(provenance, key)
    if vector.head:
        rows["labels"] = ", ".join(vector.head.labels)
    rows["licence"] = about.license
    return _table("What it is", rows)


def _data(vector: SparseVector, repo: str, about: About) -> str:
    other_facts = data_to_json(vector.provenance.data)
    other_facts.pop("sources", None)
    sources = dict.fromkeys([*_sources(vector), *about.datasets])
    rows = {"languages": ", ".join(about.languages), "sources": ", ".join(sources)}
    return _table("Training data", {**rows, **other_facts})


def _training(vector: SparseVector, repo: str, about: About) -> str:
    return _table("Training", {**vector.provenance.training.settings, **vector.provenance.versions})


def _results(vector: SparseVector, repo: str, about: About) -> str:
    metric = metric_name(str(vector.provenance.training.metric or "loss"))
    best = _best(vector)
    rows = {}
    if best is not None:
        rows[f"{metric} on held-out training data"] = f"{best:.4f}"
    for test in about.scores:
        name = f"test data of {test.language} ({test.examples} examples, seed {test.seed})"
        rows[name] = test.in_words
    return _table("Scores", rows)


def _citation(vector: SparseVector, repo: str, about: About) -> str:
    method = "The method is DeFT-X (https://arxiv.org/abs/2505.15090):"
    paper = PAPERS.get(vector.provenance.method or "")
    if paper is not None:
        method = f"The entries were chosen as in {paper}. {method.replace('method', 'library')}"
    return f"## Citation\n\n{method}\n\n```bibtex\n{CITATION}\n```"


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
    """A section with a table of the facts that say something; empty where none does."""
    rows = []
    for key, fact in facts.items():
        if fact not in (None, "", [], ()):
            rows.append(f"| {_cell(key)} | {_cell(fact)} |")
    if not rows:
        return ""
    return "\n".join([f"## {title}", "", "| | |", "| --- | --- |", *rows])


def _cell(fact: Any) -> str:
    """A fact as one line that is nothing but text in a cell: it may come from a stranger's
    vector."""
    line = " ".join(str(fact).split())[:_LONGEST_FACT]
    return re.sub(r"[|`<>\[\]\\!&]", lambda mark: f"&#{ord(mark[0])};", line)


def _encodable(text: str) -> str:
    """The text with `?` for halves of characters, which no file can hold."""
    return text.encode(errors="replace").decode()
