"""What the stand-in hub offers under the names of public models and data sets: a tiny base, and
tables of made-up sentences with the columns, classes and files that the real ones have."""

import io
from pathlib import Path

import datasets
from hub_server import Hub, Repo
from tiny import save_base, sentences

PARQUET = "refs/convert/parquet"
WIKIPEDIA = """---
configs:
- config_name: 20231101.id
  data_files: [{split: train, path: 20231101.id/train-*}]
- config_name: 20231101.min
  data_files: [{split: train, path: 20231101.min/train-*}]
---
"""


def parquet(columns: dict[str, list[str]], classes: list[str] | None = None) -> bytes:
    """A table as a Parquet file; its column `label` is a number of a class."""
    features = datasets.Features({name: datasets.Value("string") for name in columns})
    if classes is not None:
        features["label"] = datasets.ClassLabel(names=classes)
    file = io.BytesIO()
    datasets.Dataset.from_dict(columns, features=features).to_parquet(file)
    return file.getvalue()


def labelled(count: int, seed: int) -> dict[str, list[str]]:
    texts = sentences(count, seed)
    labels = ["positive" if text[-1] in "ei" else "negative" for text in texts]
    return {"text": texts, "label": labels}


def offer_nusax(hub: Hub, folder: Path) -> None:
    """XLM-R base, Wikipedia, SMSA and NusaX on the stand-in; `folder` comes to hold the base."""
    base = save_base(folder)
    files = {path.name: path.read_bytes() for path in base.iterdir()}
    wikipedia = {"README.md": WIKIPEDIA.encode()}
    for number, language in enumerate(["id", "min"]):
        table = parquet({"title": ["-"] * 200, "text": sentences(200, number)})
        wikipedia[f"20231101.{language}/train-00000-of-00001.parquet"] = table
    # their classes are in another order, as those of the real ones
    smsa, nusax = ["positive", "neutral", "negative"], ["negative", "neutral", "positive"]
    reviews = {
        f"smsa/{split}/0000.parquet": parquet(labelled(60, seed), smsa)
        for seed, split in enumerate(["train", "validation"])
    }
    tests = {"min/test/0000.parquet": parquet(labelled(60, 5), nusax)}
    _publish(hub, "FacebookAI/xlm-roberta-base", files)
    _publish(hub, "datasets/wikimedia/wikipedia", wikipedia)
    _publish(hub, "datasets/indonlp/indonlu", reviews, PARQUET)
    _publish(hub, "datasets/indonlp/NusaX-senti", tests, PARQUET)


def _publish(hub: Hub, name: str, files: dict[str, bytes], branch: str = "main") -> None:
    repo = Repo()
    repo.refs.setdefault(branch, "0" * 40)
    repo.commit(branch, files, "first")
    hub.repos[name] = repo
