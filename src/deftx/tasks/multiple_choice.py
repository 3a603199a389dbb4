"""Multiple choice: which of a question's options is the answer.

Each option is read together with the question.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForMultipleChoice, PreTrainedTokenizerBase

from deftx.data.cells import as_names, as_number, as_text, read_column
from deftx.data.examples import Columns, Examples
from deftx.data.tables import open_source
from deftx.errors import DeftxError
from deftx.objectives.base import Batch
from deftx.tasks.base import Task
from deftx.tasks.classification import accuracy
from deftx.tasks.encoding import Encoded, Pad, check, inputs_of, logits_of, padding, tokenised


def read(source: str | Path, columns: Columns, labelled: bool) -> Examples:
    """Questions, lists of options (the pair column), and the number of the right one, from 0."""
    table = open_source(source)
    texts = read_column(table, columns.text, as_text)
    options = read_column(table, columns.pair or "options", as_names)
    if not labelled:
        return Examples(texts, parts=options)
    labels = read_column(table, columns.label, as_number)
    places = table.values(columns.label)
    for (place, value), label, own_options in zip(places, labels, options, strict=True):
        if label not in range(len(own_options)):
            raise DeftxError(
                f"{place}: label {value!r:.40} of {len(own_options)} options: number them from 0"
            )
    return Examples(texts, labels=[int(label) for label in labels], parts=options)


def encode(
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    names: Sequence[str],
    labelled: bool,
) -> Encoded:
    """Tokenise every question with each of its options, truncated to `length` tokens.

    Targets are the numbers of the right options.
    """
    check(examples, tokenizer, labelled)
    options = examples.parts or []

    # All pairs of a question and one of its options, one after the other
    questions = []
    flat_options = []
    for text, own_options in zip(examples.texts, options, strict=True):
        for option in own_options:
            questions.append(text)
            flat_options.append(option)
    pairs = Examples(questions, flat_options)
    _, pair_inputs = tokenised(pairs, tokenizer, length, labelled=False)

    # The options of each question together: one input
    inputs = []
    start = 0
    for own_options in options:
        end = start + len(own_options)
        inputs.append(_as_one_input(pair_inputs[start:end]))
        start = end
    targets = list(examples.labels or []) if labelled else []
    return Encoded(examples, inputs, targets, names, _option_padding(tokenizer))


def _as_one_input(options: list[dict[str, Any]]) -> dict[str, Any]:
    """The inputs of a question's options as one input, with a list of rows for each name."""
    together: dict[str, Any] = {}
    for name in options[0]:
        together[name] = [option[name] for option in options]
    return together


def _option_padding(tokenizer: PreTrainedTokenizerBase) -> Pad:
    """A function that pads inputs -> tensors of tokens [batch, most options, longest].

    A missing option is one padding token: `logits` knows it by that.
    """
    pad_rows = padding(tokenizer)

    def pad(inputs: list[dict[str, Any]]) -> Batch:
        most = max(len(row["input_ids"]) for row in inputs)
        missing = {name: [0] for name in inputs[0]}
        missing["input_ids"] = [tokenizer.pad_token_id]
        missing["attention_mask"] = [1]
        rows = []
        for question in inputs:
            count = len(question["input_ids"])
            for number in range(count):
                rows.append({name: values[number] for name, values in question.items()})
            rows.extend([missing] * (most - count))
        batch = pad_rows(rows)
        return {name: value.view(len(inputs), most, -1) for name, value in batch.items()}

    return pad


def logits(model: nn.Module, batch: Batch) -> Tensor:
    """The logits of each question's options [batch, most options]; -inf for missing options."""
    outputs: Tensor = model(**inputs_of(batch)).logits.float()
    is_missing = batch["attention_mask"].sum(-1) == 1
    return outputs.masked_fill(is_missing, float("-inf"))


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """The mean cross-entropy of a batch, over the options of each question."""
    return cross_entropy(logits(model, batch), batch["labels"])


def answer(model: nn.Module, encoded: Encoded, batch_size: int) -> list[tuple[int, float]]:
    """The number of the most probable option of every question, from 0, and its probability (0 to
    1)."""
    answers = []
    for row in logits_of(model, encoded, batch_size, logits):
        best = row.softmax(-1).max(-1)
        answers.append((int(best.indices), float(best.values)))
    return answers


def map_questions_and_options(examples: Examples, change: Callable[[str], str]) -> Examples:
    """The examples with `change` applied to their questions and options."""
    texts = [change(text) for text in examples.texts]
    parts = []
    for options in examples.parts or []:
        parts.append([change(option) for option in options])
    return replace(examples, texts=texts, parts=parts)


CHOICE = Task(
    auto_model_class=AutoModelForMultipleChoice,
    columns=Columns("question", "options", "label"),
    read=read,
    label_names=None,
    encode=encode,
    loss=loss,
    answer=answer,
    output_fields=("label", "probability"),
    metrics={"accuracy": accuracy},
    map_texts=map_questions_and_options,
    required_columns={"parts": True},
)
