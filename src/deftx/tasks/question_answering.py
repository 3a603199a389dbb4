"""Extractive question answering: which part of a context answers the question (Rajpurkar et al.
2016, SQuAD).

A context that is longer than the model takes is read in overlapping windows.
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

from deftx.data.cells import as_text, read_column
from deftx.data.examples import Columns, Examples
from deftx.data.tables import open_source
from deftx.errors import DeftxError
from deftx.objectives.base import Batch
from deftx.tasks.base import Metric, Task
from deftx.tasks.encoding import Encoded, inputs_of, logits_of, padding, tokenised

MAX_ANSWER_TOKENS = 30
NOT_CONTEXT = (0, 0)  # the offsets of a token that is not in the context
NO_ANSWER = (0, 0)  # first and last token, where a window does not hold the answer

Span = tuple[int, int]  # first and one after last character; or first and last token


def read(source: str | Path, columns: Columns, labelled: bool) -> Examples:
    """Questions, their contexts (the pair column), and the answers.

    Answers are as in SQuAD, {"text": [...], "answer_start": [...]}, or a list of texts, or one
    text. An answer without its start is where it occurs first.

    Returns:
        Examples whose labels are lists of answers, each its first character and its text.
    """
    table = open_source(source)
    questions = read_column(table, columns.text, as_text)
    contexts = read_column(table, columns.pair or "context", as_text)
    if not labelled:
        return Examples(questions, contexts)
    answers = []
    for (place, value), context in zip(table.values(columns.label), contexts, strict=True):
        answers.append(_parse_answers(place, value, context))
    return Examples(questions, contexts, answers)


def _parse_answers(place: str, value: Any, context: str) -> list[tuple[int, str]]:
    """The answers in a cell: the first character and the text of each."""
    texts: Any = value
    starts: Any = None
    if isinstance(value, dict):
        texts = value.get("text")
        starts = value.get("answer_start")
    elif isinstance(value, str):
        texts = [value]

    is_list = isinstance(texts, list) and len(texts) > 0
    if not is_list or not all(isinstance(text, str) and text for text in texts):
        raise DeftxError(
            f"{place}: {value!r:.40} is no answer: give a text, a list of texts, or SQuAD's form"
        )
    if starts is None:
        starts = [context.find(text) for text in texts]
    if not isinstance(starts, list) or len(starts) != len(texts):
        raise DeftxError(
            f"{place}: {starts!r:.40} are not the places of {len(texts)} answers: give one for each"
        )
    for start, text in zip(starts, texts, strict=True):
        is_index = isinstance(start, int) and start >= 0
        if not is_index or context[start : start + len(text)] != text:
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
    """Tokenise questions with windows of their contexts.

    A question and a window have `length` tokens together, a question at most half of them. Windows
    overlap by half of the room that such a question leaves.

    Returns:
        Targets are the first and the last token of the first answer, or NO_ANSWER where a window
        does not hold it. `offset_mapping` has NOT_CONTEXT for the tokens of the question.

    Raises:
        DeftxError: The tokenizer has no offsets, or the length leaves no room for a context.
    """
    if not tokenizer.is_fast:
        raise DeftxError(
            "the base's tokenizer does not say where its tokens stand: no answers can be found "
            "with it"
        )
    max_question = length // 2
    stride = (max_question - tokenizer.num_special_tokens_to_add(pair=True)) // 2
    if stride < 1:
        raise DeftxError(
            f"a length of {length} tokens has no room for a question and its context: give more"
        )
    questions = _truncated(examples.texts, tokenizer, max_question)
    tokens, inputs = tokenised(
        replace(examples, texts=questions),
        tokenizer,
        length,
        labelled,
        truncation="only_second",
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )

    # Where the tokens of each window stand in the context
    sample_of_window = tokens["overflow_to_sample_mapping"]
    offset_mapping = []
    for window, offsets in enumerate(tokens["offset_mapping"]):
        context_offsets = []
        for offset, sequence in zip(offsets, tokens.sequence_ids(window), strict=True):
            if sequence == 1:
                context_offsets.append(tuple(offset))
            else:
                context_offsets.append(NOT_CONTEXT)
        offset_mapping.append(context_offsets)

    targets = []
    if labelled:
        labels = examples.labels or []
        for offsets, sample in zip(offset_mapping, sample_of_window, strict=True):
            first_answer = labels[sample][0]
            targets.append(_answer_tokens(offsets, *first_answer))
    return Encoded(
        examples,
        inputs,
        targets,
        names,
        padding(tokenizer),
        overflow_to_sample_mapping=sample_of_window,
        offset_mapping=offset_mapping,
    )


def _truncated(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, most: int) -> list[str]:
    """Texts truncated to their first `most` tokens."""
    tokens = tokenizer(
        list(texts),
        add_special_tokens=False,
        truncation=True,
        max_length=most,
        return_offsets_mapping=True,
    )
    truncated = []
    for text, offsets in zip(texts, tokens["offset_mapping"], strict=True):
        end = offsets[-1][1] if offsets else len(text)
        truncated.append(text[:end])
    return truncated


def _answer_tokens(offsets: Sequence[Span], first: int, text: str) -> Span:
    """The first and the last token of an answer that begins at the character `first`."""
    end = first + len(text)
    inside = []
    for token, (token_start, token_end) in enumerate(offsets):
        if token_start < end and token_end > first:
            inside.append(token)
    if not inside:
        return NO_ANSWER
    is_whole = offsets[inside[0]][0] <= first and offsets[inside[-1]][1] >= end
    return (inside[0], inside[-1]) if is_whole else NO_ANSWER


def logits(model: nn.Module, batch: Batch) -> Tensor:
    """The logits of an answer's start and end at each token [batch, longest, 2]; -inf at the
    padding."""
    outputs = model(**inputs_of(batch))
    both = torch.stack([outputs.start_logits, outputs.end_logits], dim=-1).float()
    is_padding = batch["attention_mask"].unsqueeze(-1) == 0
    return both.masked_fill(is_padding, float("-inf"))


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """The mean cross-entropy of a batch's first and last tokens."""
    return cross_entropy(logits(model, batch), batch["labels"])


def collate_token_positions(targets: list[Span], batch: Batch) -> Tensor:
    """First and last tokens [batch, 2], counted from the start of the padded rows."""
    left_padding = batch["attention_mask"].argmax(1, keepdim=True)
    return torch.tensor(targets) + left_padding


def answer(model: nn.Module, encoded: Encoded, batch_size: int) -> list[tuple[str, float]]:
    """The most probable part of every context, and its probability (0 to 1); nothing where the
    context is empty."""
    best_text = [""] * len(encoded.examples)
    best_probability = [0.0] * len(encoded.examples)
    contexts = encoded.examples.pairs or []
    rows = logits_of(model, encoded, batch_size, logits, by_token=True)
    for sample, offsets, row in zip(
        encoded.overflow_to_sample_mapping, encoded.offset_mapping, rows, strict=True
    ):
        # p(start) · p(end) for all spans of tokens in the context of at most MAX_ANSWER_TOKENS
        in_context = torch.tensor([offset != NOT_CONTEXT for offset in offsets])
        start_and_end = row.softmax(0) * in_context.unsqueeze(-1)
        joint = start_and_end[:, :1] * start_and_end[:, 1]
        joint = joint.triu().tril(MAX_ANSWER_TOKENS - 1)

        # The best span of this window, if it is better than those of the windows before
        first, last = divmod(int(joint.argmax()), len(offsets))
        probability = float(joint[first, last])
        if probability > best_probability[sample]:
            start, end = offsets[first][0], offsets[last][1]
            best_text[sample] = contexts[sample][start:end].strip()
            best_probability[sample] = probability
    return list(zip(best_text, best_probability, strict=True))


def map_questions(examples: Examples, change: Callable[[str], str]) -> Examples:
    """The examples with `change` applied to the questions; answers point into the contexts."""
    return replace(examples, texts=[change(text) for text in examples.texts])


def normalised(text: str) -> list[str]:
    """The words of an answer as SQuAD compares them: in lower case, without English articles and
    any punctuation."""
    kept = []
    for character in text.lower():
        if character not in punctuation and category(character)[0] != "P":
            kept.append(character)
    return re.sub(r"\b(a|an|the)\b", " ", "".join(kept)).split()


def _exact_match(answer: Sequence[str], predicted: Sequence[str]) -> float:
    return float(answer == predicted)


def _word_f1(answer: Sequence[str], predicted: Sequence[str]) -> float:
    common = sum((Counter(answer) & Counter(predicted)).values())
    if not common:
        return float(answer == predicted)
    return 2 * common / (len(answer) + len(predicted))


def _mean_over_questions(score: Callable[[Sequence[str], Sequence[str]], float]) -> Metric:
    """The mean of a question's score, which is the highest one of its right answers."""

    def metric(true: Sequence[Any], predicted: Sequence[Any]) -> float:
        total = 0.0
        for right_answers, text in zip(true, predicted, strict=True):
            words = normalised(text)
            total += max(score(normalised(right), words) for _, right in right_answers)
        return total / len(true)

    return metric


ANSWERING = Task(
    auto_model_class=AutoModelForQuestionAnswering,
    columns=Columns("question", "context", "answers"),
    read=read,
    label_names=None,
    encode=encode,
    loss=loss,
    answer=answer,
    output_fields=("answer", "probability"),
    metrics={
        "f1": _mean_over_questions(_word_f1),
        "exact_match": _mean_over_questions(_exact_match),
    },
    collate_targets=collate_token_positions,
    map_texts=map_questions,
    required_columns={"pairs": True},
)
