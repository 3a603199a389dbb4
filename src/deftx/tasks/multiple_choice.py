"""Multiple choice: which of a question's options is the answer. Each option is read beside the
question."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sklearn.metrics import accuracy_score
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForMultipleChoice, PreTrainedTokenizerBase

from deftx.data import examples as data
from deftx.data.examples import Columns, Examples, cells
from deftx.data.tables import open_source
from deftx.errors import DeftxError
from deftx.objectives.base import Batch
from deftx.tasks.base import Task
from deftx.tasks.encoding import Encoded, check, inputs_of, logits_of, padding, tokenised


def read(source: str | Path, columns: Columns, labelled: bool) -> Examples:
    """Questions, lists of options (the column beside), and the number of the right one, counted
    from 0."""
    table = open_source(source)
    texts = cells(table, columns.text, data.text)
    options = cells(table, columns.pair or "options", data.names)
    if not labelled:
        return Examples(texts, parts=options)
    right = cells(table, columns.label, data.number)
    for (place, value), each, several in zip(
        table.values(columns.label), right, options, strict=True
    ):
        if each not in range(len(several)):
            raise DeftxError(
                f"{place}: label {value!r:.40} of {len(several)} options: number them from 0"
            )
    return Examples(texts, labels=[int(each) for each in right], parts=options)


def encode(
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    names: Sequence[str],
    labelled: bool,
) -> Encoded:
    """Tokenise every question with each of its options, cut to `length` tokens, with the number of
    the right one."""
    check(examples, tokenizer, labelled)
    parts = examples.parts or []
    pairs = Examples(
        [text for text, options in zip(examples.texts, parts, strict=True) for _ in options],
        [option for options in parts for option in options],
    )
    _, flat = tokenised(pairs, tokenizer, length, labelled=False)
    rest = iter(flat)
    inputs = [_together([next(rest) for _ in options]) for options in parts]
    pad = padding(tokenizer)

    def pad_options(batch: list[dict[str, Any]]) -> Batch:
        """Token tensors [batch, most options, longest]; an option that is not there is one padding
        token."""
        most = max(len(each["input_ids"]) for each in batch)
        none = {key: [0] for key in batch[0]} | {
            "input_ids": [tokenizer.pad_token_id],
            "attention_mask": [1],
        }
        rows = [
            {key: each[key][i] for key in each} if i < len(each["input_ids"]) else none
            for each in batch
            for i in range(most)
        ]
        return {key: value.view(len(batch), most, -1) for key, value in pad(rows).items()}

    targets = list(examples.labels or []) if labelled else []
    return Encoded(examples, inputs, targets, names, pad_options)


def logits(model: nn.Module, batch: Batch) -> Tensor:
    """What the model says to each option of each question of a batch [batch, most options]; -inf to
    no option."""
    found: Tensor = model(**inputs_of(batch)).logits.float()
    return found.masked_fill(batch["attention_mask"].sum(-1) == 1, float("-inf"))


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """The mean cross-entropy of a batch, over the options of each question."""
    return cross_entropy(logits(model, batch), batch["labels"])


def answer(model: nn.Module, encoded: Encoded, batch_size: int) -> list[tuple[int, float]]:
    """The number of the most probable option of every question, from 0, and its probability (0 to
    1)."""
    best = [row.softmax(-1).max(-1) for row in logits_of(model, encoded, batch_size, logits)]
    return [(int(each.indices), float(each.values)) for each in best]


def _together(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {key: [row[key] for row in rows] for key in rows[0]}


def respelt(examples: Examples, spell: Callable[[str], str]) -> Examples:
    """The examples with `spell` of their questions and options."""
    options = [list(map(spell, each)) for each in examples.parts or []]
    return replace(examples, texts=list(map(spell, examples.texts)), parts=options)


CHOICE = Task(
    auto=AutoModelForMultipleChoice,
    columns=Columns("question", "options", "label"),
    read=read,
    names=None,
    encode=encode,
    loss=loss,
    answer=answer,
    shown=("label", "probability"),
    metrics={"accuracy": lambda true, predicted: float(accuracy_score(true, predicted))},
    respelt=respelt,
    takes={"parts": True},
)
