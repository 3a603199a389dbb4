"""A composed classifier on a processor: PyTorch, ONNX, and ONNX in int8.

    python benchmarks/onnx_int8.py MODEL TEST.tsv [--texts 200]

MODEL is a folder of `deftx compose`, TEST.tsv labelled data. Needs onnx, onnxscript and
onnxruntime. Prints, for each way, the size of its file, the macro-F1, the share of texts on which
it gives PyTorch's label, and the time for a text as a share of PyTorch's: batches of one text, on
one thread, the ways in turn for each text.
"""

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import torch
from onnxruntime import InferenceSession, SessionOptions
from onnxruntime.quantization import QuantType, quantize_dynamic
from sklearn.metrics import f1_score
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from deftx import read_examples

Way = Callable[[dict[str, Any]], int]


def export(model: Any, inputs: dict[str, torch.Tensor], file: Path) -> None:
    """Write a model as ONNX, for batches and texts of any length."""
    dynamic = torch.export.Dim.DYNAMIC
    sizes = {name: {0: dynamic, 1: dynamic} for name in inputs}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        torch.onnx.export(
            model,
            (),
            str(file),
            kwargs=inputs,
            input_names=list(inputs),
            dynamic_shapes=sizes,
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def session_of(file: Path) -> InferenceSession:
    """A session on one thread."""
    options = SessionOptions()
    options.intra_op_num_threads = 1
    return InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def size_of(file: Path) -> float:
    """The megabytes of a file and of what stands beside it with its name."""
    return sum(part.stat().st_size for part in file.parent.glob(f"{file.name}*")) / 1e6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--texts", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(1)

    model = AutoModelForSequenceClassification.from_pretrained(options.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    examples = read_examples(options.test)
    texts = list(examples.texts)[: options.texts]
    labels = [model.config.label2id[label] for label in (examples.labels or [])[: options.texts]]

    with TemporaryDirectory() as folder:
        plain, small = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        sample = dict(tokenizer(texts[:2], padding=True, return_tensors="pt"))
        export(model, sample, plain)
        quantize_dynamic(str(plain), str(small), weight_type=QuantType.QInt8, per_channel=True)
        sessions = {"ONNX": session_of(plain), "ONNX, int8": session_of(small)}
        weights = sum(weight.nbytes for weight in model.parameters()) / 1e6
        sizes = {"PyTorch": weights, "ONNX": size_of(plain), "ONNX, int8": size_of(small)}

        def by_torch(inputs: dict[str, Any]) -> int:
            tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
            with torch.inference_mode():
                return int(model(**tensors).logits.argmax())

        def by_session(session: InferenceSession) -> Way:
            return lambda inputs: int(np.argmax(session.run(None, inputs)[0]))

        ways: dict[str, Way] = {"PyTorch": by_torch}
        for name, session in sessions.items():
            ways[name] = by_session(session)

        answers: dict[str, list[int]] = {name: [] for name in ways}
        ratios: dict[str, list[float]] = {name: [] for name in ways}
        for text in texts:
            inputs = dict(tokenizer([text], truncation=True, max_length=128, return_tensors="np"))
            seconds = {}
            for name, way in ways.items():
                began = perf_counter()
                answers[name].append(way(inputs))
                seconds[name] = perf_counter() - began
            for name, taken in seconds.items():
                ratios[name].append(taken / seconds["PyTorch"])

    print("| | megabytes | macro-F1 | label of PyTorch | time |")
    print("| --- | --- | --- | --- | --- |")
    for name, given in answers.items():
        score = 100 * f1_score(labels, given, average="macro")
        same = np.mean([a == b for a, b in zip(given, answers["PyTorch"], strict=True)])
        columns = [name, f"{sizes[name]:.0f}", f"{score:.1f}", f"{same:.1%}"]
        print(f"| {' | '.join(columns)} | {median(ratios[name]):.2f} |")


if __name__ == "__main__":
    main()
