"""Extractive question answering: which part of a context answers the question (Rajpurkar et al.
2016, SQuAD).

A context that is longer than the model takes is read in windows that overlap.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from string import punctuation
from typing import Any
from unicodedata import category

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForQuestionAnswering, PreTrainedTokenizerBase

from deftx.data import examples as data
from deftx.data.examples import Columns, Examples, cells
from deftx.data.tables import open_source
from deftx.errors import DeftxError
from deftx.objectives.base import Batch
from deftx.tasks.base import Metric, Task
from deftx.tasks.encoding import Encoded, inputs_of, logits_of, padding, tokenised

LONGEST = 30  # tokens of an answer
NOWHERE = (0, 0)  # characters of a token that is not of the context


def read(source: str | Path, columns: Columns, labelled: bool) -> Examples:
    """Questions, their contexts (the column beside), and the answers: pairs of first character and
    text.

    Answers are as in SQuAD, {"text": [...], "answer_start": [...]}, or a list of texts, or one;
    without its place an answer is where it is found first.
    """
    table = open_source(source)
    questions = cells(table, columns.text, data.text)
    contexts = cells(table, columns.pair or "context", data.text)
    if not labelled:
        return Examples(questions, contexts)
    rows = zip(table.values(columns.label), contexts, strict=True)
    return Examples(
        questions, contexts, [_answers(place, value, context) for (place, value), context in rows]
    )


def _answers(place: str, value: Any, context: str) -> list[tuple[int, str]]:
    found = (
        value if isinstance(value, dict) else {"text": [value] if isinstance(value, str) else value}
    )
    texts, starts = found.get("text"), found.get("answer_start")
    if (
        not isinstance(texts, list)
        or not texts
        or not all(isinstance(text, str) and text for text in texts)
    ):
        raise DeftxError(
            f"{place}: {value!r:.40} is no answer: give a text, a list of them, or SQuAD's form"
        )
    if starts is None:
        starts = [context.find(text) for text in texts]
    if not isinstance(starts, list) or len(starts) != len(texts):
        raise DeftxError(
            f"{place}: {starts!r:.40} are not the places of {len(texts)} answers: give one for each"
        )
    for start, text in zip(starts, texts, strict=True):
        if not isinstance(start, int) or start < 0 or context[start : start + len(text)] != text:
            raise DeftxError(
                f"{place}: the answer {text!r:.40} does not stand in the context: correct it"
            )
    return list(zip(starts, texts, strict=True))


def encode(
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    names: Sequence[str],
    labelled: bool,
) -> Encoded:
    """Tokenise questions with windows of their contexts, together `length` tokens; half of what
    fits overlaps.

    A question takes half of the length at most.

    targets  the first and the last token of the first answer; the first token of all, twice, where
             a window lacks it
    places   of each window, the first character of each token in the context and the one after its
             last
    """
    if not tokenizer.is_fast:
        raise DeftxError(
            "the base's tokenizer does not say where its tokens stand: no answers can be found with it"
        )
    stride = (length // 2 - tokenizer.num_special_tokens_to_add(pair=True)) // 2
    if stride < 1:
        raise DeftxError(
            f"a length of {length} tokens has no room for a question and its context: give more"
        )
    short = replace(examples, texts=_cut(examples.texts, tokenizer, length // 2))
    options = {
        "truncation": "only_second",
        "return_overflowing_tokens": True,
        "return_offsets_mapping": True,
    }
    tokens, inputs = tokenised(short, tokenizer, length, labelled, stride=stride, **options)
    owners = tokens["overflow_to_sample_mapping"]
    places = [
        [
            tuple(place) if part == 1 else NOWHERE
            for place, part in zip(offsets, tokens.sequence_ids(i), strict=True)
        ]
        for i, offsets in enumerate(tokens["offset_mapping"])
    ]
    labels = examples.labels or []
    targets = (
        [_target(places[i], *labels[owner][0]) for i, owner in enumerate(owners)]
        if labelled
        else []
    )
    return Encoded(examples, inputs, targets, names, padding(tokenizer), owners, places)


def _cut(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, most: int) -> list[str]:
    """Texts as far as their first `most` tokens go."""
    options: dict[str, Any] = {
        "truncation": True,
        "max_length": most,
        "return_offsets_mapping": True,
    }
    offsets = tokenizer(list(texts), add_special_tokens=False, **options)["offset_mapping"]
    return [
        text[: places[-1][1]] if places else text
        for text, places in zip(texts, offsets, strict=True)
    ]


def _target(places: Sequence[tuple[int, int]], first: int, text: str) -> tuple[int, int]:
    """The first and the last token of an answer that begins at the character `first`."""
    last = first + len(text)
    inside = [i for i, (start, stop) in enumerate(places) if start < last and stop > first]
    whole = inside and places[inside[0]][0] <= first and places[inside[-1]][1] >= last
    return (inside[0], inside[-1]) if whole else NOWHERE


def logits(model: nn.Module, batch: Batch) -> Tensor:
    """How likely an answer starts and ends at each token [batch, longest, 2], as logits; -inf at
    the padding."""
    outputs = model(**inputs_of(batch))
    found = torch.stack([outputs.start_logits, outputs.end_logits], dim=-1).float()
    return found.masked_fill(batch["attention_mask"].unsqueeze(-1) == 0, float("-inf"))


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """The mean cross-entropy of a batch's first and last tokens."""
    return cross_entropy(logits(model, batch), batch["labels"])


def answer(model: nn.Module, encoded: Encoded, batch_size: int) -> list[tuple[str, float]]:
    """The most probable part of every context, and its probability (0 to 1); nothing where there is
    no context."""
    found = [("", 0.0)] * len(encoded.examples)
    rows = logits_of(model, encoded, batch_size, logits, by_token=True)
    for owner, places, row in zip(encoded.owners, encoded.places, rows, strict=True):
        context = torch.tensor([place != NOWHERE for place in places])
        chance = row.softmax(0) * context.unsqueeze(-1)
        both = (chance[:, :1] * chance[:, 1]).triu().tril(LONGEST - 1)
        first, last = divmod(int(both.argmax()), len(places))
        if (best := float(both[first, last])) > found[owner][1]:
            found[owner] = (
                (encoded.examples.pairs or [])[owner][places[first][0] : places[last][1]],
                best,
            )
    return [(text.strip(), chance) for text, chance in found]


def normalised(text: str) -> list[str]:
    """The words of an answer as SQuAD compares them: in small letters, without English articles and
    any punctuation."""
    kept = "".join(
        each for each in text.lower() if each not in punctuation and category(each)[0] != "P"
    )
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()


def _exact(answer: Sequence[str], predicted: Sequence[str]) -> float:
    return float(answer == predicted)


def _f1(answer: Sequence[str], predicted: Sequence[str]) -> float:
    common = sum((Counter(answer) & Counter(predicted)).values())
    return 2 * common / (len(answer) + len(predicted)) if common else float(answer == predicted)


def _mean(score: Callable[[Sequence[str], Sequence[str]], float]) -> Metric:
    """The mean over all questions of a score, which is that of the answer that it is highest
    for."""
    return lambda true, predicted: (
        sum(
            max(score(normalised(text), normalised(found)) for _, text in answers)
            for answers, found in zip(true, predicted, strict=True)
        )
        / len(true)
    )


ANSWERING = Task(
    auto=AutoModelForQuestionAnswering,
    columns=Columns("question", "context", "answers"),
    read=read,
    names=None,
    encode=encode,
    loss=loss,
    answer=answer,
    shown=("answer", "probability"),
    metrics={"f1": _mean(_f1), "exact_match": _mean(_exact)},
    stack=lambda targets, batch: (
        torch.tensor(targets) + batch["attention_mask"].argmax(1, keepdim=True)
    ),  # after padding
    respelt=lambda examples, spell: replace(
        examples, texts=list(map(spell, examples.texts))
    ),  # not where answers stand
    takes={"pairs": True},
)
