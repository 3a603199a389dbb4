"""Token classification: a tag for every word, such as its part of speech (`tagging`) or its place
in a name (`ner`).

The first token of a word stands for the word. A text that is longer than the model takes is read in
windows, one after the other, so that every word is tagged.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForTokenClassification, PreTrainedTokenizerBase

from deftx.data.cells import as_names, as_text, read_column
from deftx.data.conll import LABELLED_TEXT, SENTENCES, looks_tagged
from deftx.data.examples import Columns, Examples
from deftx.data.tables import READERS, open_source
from deftx.errors import DeftxError
from deftx.objectives.base import IGNORED, Batch, labelled_tokens
from deftx.tasks.base import Metric, Task
from deftx.tasks.classification import METRICS, logits
from deftx.tasks.encoding import (
    Encoded,
    by_token,
    label_names,
    logits_of,
    numbers,
    padding,
    tokenised,
)

WORDS = "words"  # the usual column
NOT_FIRST = -1  # the word number of a token that is in no word, or not the first one of its word
# Tags of the schemes BIOES, BILOU and BMES, and what they are in BIO
BIO_PREFIXES = {"S": "B", "U": "B", "E": "I", "L": "I", "M": "I"}

Span = tuple[int, int, str]  # first word, the one after the last, kind


def read(source: str | Path, columns: Columns, labelled: bool) -> Examples:
    """Read words and tags.

    Args:
        source: A table with lists of words and lists of tags, or a file with a word and its tag on
            each line. Where no labels are wanted, plain text (.txt) is a text on each line.
        columns: The names of the columns.
        labelled: Whether tags are read.

    Raises:
        DeftxError: A pair column is named, words and tags differ in number, or the source cannot be
            read.
    """
    if columns.pair:
        raise DeftxError(
            f"nothing is read beside words to be tagged: leave out the column {columns.pair!r}"
        )
    readers = READERS | SENTENCES
    if labelled:
        readers |= LABELLED_TEXT
    table = open_source(source, readers)
    if table.plain and not labelled:
        text_column = "text" if columns.text == WORDS else columns.text
        texts = read_column(table, text_column, as_text)
        if looks_tagged(texts):
            warnings.warn(
                f"{source} is read as plain text, a text on each line, but looks like words with "
                "tags: if so, call it .conll",
                stacklevel=2,
            )
        return Examples(texts)

    words = read_column(table, columns.text, as_names)
    tags = None
    if labelled:
        tags = read_column(table, columns.label, as_names)
        places = table.values(columns.text)
        for (place, _), own_words, own_tags in zip(places, words, tags, strict=True):
            if len(own_words) != len(own_tags):
                raise DeftxError(
                    f"{place}: {len(own_words)} words and {len(own_tags)} tags: give every word one"
                )
    _warn_of_texts_as_words(source, words)
    return Examples([" ".join(own_words) for own_words in words], labels=tags, parts=words)


def _warn_of_texts_as_words(source: str | Path, words: Sequence[Sequence[str]]) -> None:
    total = 0
    with_space = 0
    for own_words in words:
        total += len(own_words)
        with_space += sum(" " in word for word in own_words)
    if 2 * with_space > total:
        warnings.warn(
            f"most words in {source} have spaces in them: are they whole texts?", stacklevel=2
        )


def read_spans(source: str | Path, columns: Columns, labelled: bool) -> Examples:
    """As `read`, with tags in BIOES or BILOU turned into B- and I-."""
    examples = read(source, columns, labelled)
    if examples.labels is None:
        return examples
    return replace(examples, labels=[as_bio(tags) for tags in examples.labels])


def encode(
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    names: Sequence[str],
    labelled: bool,
) -> Encoded:
    """Tokenise texts in windows of `length` tokens.

    Returns:
        Targets are the number of a word's tag at the word's first token, and IGNORED at all others.
        `word_ids` says which tokens are first ones.

    Raises:
        DeftxError: The tokenizer has no offsets, or a tag is not in `names`.
    """
    windows = read_in_windows(examples, tokenizer, length, labelled)
    found_words: list[set[int]] = [set() for _ in windows.examples.parts or []]
    word_ids = []
    for sample, window_words in zip(windows.samples, windows.words, strict=True):
        word_ids.append(_first_tokens(window_words, found_words[sample]))

    targets = []
    if labelled:
        tags = [numbers(own_tags, names) for own_tags in windows.examples.labels or []]
        for sample, window_words in zip(windows.samples, word_ids, strict=True):
            targets.append(_token_targets(window_words, tags[sample]))
    return Encoded(
        windows.examples,
        windows.inputs,
        targets,
        names,
        padding(tokenizer),
        overflow_to_sample_mapping=windows.samples,
        word_ids=word_ids,
    )


@dataclass(frozen=True)
class Windows:
    """Texts in windows of tokens.

    Attributes:
        examples: The texts, with their words.
        inputs: The model's inputs for each window.
        samples: The number of each window's text.
        words: For each window, the number of the word that each token is in, or NOT_FIRST where it
            is in none.
    """

    examples: Examples
    inputs: list[dict[str, Any]]
    samples: Sequence[int]
    words: list[list[int]]


def read_in_windows(
    examples: Examples, tokenizer: PreTrainedTokenizerBase, length: int, labelled: bool
) -> Windows:
    """Tokenise texts in windows of `length` tokens, one after the other.

    Raises:
        DeftxError: The tokenizer has no offsets.
    """
    if not tokenizer.is_fast:
        raise DeftxError(
            "the base's tokenizer does not say where its tokens stand: words cannot be tagged "
            "with it"
        )
    examples = in_words(examples)
    tokens, inputs = tokenised(
        examples,
        tokenizer,
        length,
        labelled,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    samples = tokens["overflow_to_sample_mapping"]
    texts_words = examples.parts or []
    words = []
    for sample, offsets in zip(samples, tokens["offset_mapping"], strict=True):
        words.append(_words_of_tokens(offsets, texts_words[sample]))
    return Windows(examples, inputs, samples, words)


def in_words(examples: Examples) -> Examples:
    """The examples with their words as `parts`, and these with a space between them as texts.

    Without `parts`, the words of a text are separated by white space.

    Raises:
        DeftxError: Words and tags differ in number.
    """
    words = examples.parts
    if words is None:
        words = [text.split() for text in examples.texts]
    tags = examples.labels or words
    for number, (own_words, own_tags) in enumerate(zip(words, tags, strict=True), 1):
        if len(own_words) != len(own_tags):
            raise DeftxError(
                f"example {number} has {len(own_words)} words and {len(own_tags)} tags: "
                "give every word one"
            )
    texts = [" ".join(own_words) for own_words in words]
    return replace(examples, texts=texts, parts=words)


def _words_of_tokens(offsets: Sequence[tuple[int, int]], words: Sequence[str]) -> list[int]:
    """For each token of a window, the word that it is in, or NOT_FIRST.

    Args:
        offsets: First and one after last character of each token; empty for special tokens.
        words: The words of the text, which have one space between them.
    """
    # The character after the last one of each word
    ends = []
    end = -1
    for word in words:
        end += 1 + len(word)
        ends.append(end)

    words_of_tokens = []
    number = 0
    for token_start, token_end in offsets:
        while number < len(words) and ends[number] <= token_start:
            number += 1
        word_of_token = NOT_FIRST
        if number < len(words):
            word_start = ends[number] - len(words[number])
            if token_end > token_start and token_end > word_start:
                word_of_token = number
        words_of_tokens.append(word_of_token)
    return words_of_tokens


def _first_tokens(window_words: Sequence[int], found: set[int]) -> list[int]:
    """For each token of a window, the word that it is the first token of, or NOT_FIRST.

    A word that is cut by the end of a window has its first token in this window alone.

    Args:
        window_words: The word that each token is in, or NOT_FIRST.
        found: The words that had their first token before; those of this window are added.
    """
    word_ids = []
    for word in window_words:
        is_first = word != NOT_FIRST and word not in found
        if is_first:
            word_ids.append(word)
        else:
            word_ids.append(NOT_FIRST)
        found.add(word)
    return word_ids


def _token_targets(word_ids: Sequence[int], tags: Sequence[int]) -> list[int]:
    return [IGNORED if word == NOT_FIRST else tags[word] for word in word_ids]


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """The mean cross-entropy of the words of a batch; 0 where there are none."""
    targets = batch["labels"].flatten()
    token_logits = logits(model, batch).flatten(0, 1)
    total = cross_entropy(token_logits, targets, ignore_index=IGNORED, reduction="sum")
    return total / max(labelled_tokens(targets), 1)


def answer(model: nn.Module, encoded: Encoded, batch_size: int) -> list[tuple[list[str]]]:
    """The most probable tag of every word; the first tag for a word that has no token."""
    names = encoded.label_names
    tags = [[names[0]] * len(words) for words in encoded.examples.parts or []]
    rows = logits_of(model, encoded, batch_size, logits, by_token=True)
    for sample, word_ids, row in zip(
        encoded.overflow_to_sample_mapping, encoded.word_ids, rows, strict=True
    ):
        for word, best in zip(word_ids, row.argmax(-1).tolist(), strict=True):
            if word != NOT_FIRST:
                tags[sample][word] = names[best]
    return [(own_tags,) for own_tags in tags]


def over_words(metric: Metric) -> Metric:
    """A metric of labels as one of lists of tags: every word counts the same."""

    def metric_of_lists(true: Sequence[Any], predicted: Sequence[Any]) -> float:
        return metric(_flat(true), _flat(predicted))

    return metric_of_lists


def _flat(rows: Sequence[Sequence[str]]) -> list[str]:
    return list(chain.from_iterable(rows))


def as_bio(tags: Sequence[str]) -> list[str]:
    """The tags of a sentence with B- and I- where they are BIOES or BILOU; all others as they are.

    A span's last word is within it (E-, L-), and a span of one word begins there (S-, U-).
    """
    return [_bio_tag(tag) for tag in tags]


def _bio_tag(tag: str) -> str:
    prefix, dash, kind = tag.partition("-")
    if not (dash and kind and prefix in BIO_PREFIXES):
        return tag
    return f"{BIO_PREFIXES[prefix]}-{kind}"


def spans(tags: Sequence[str]) -> set[Span]:
    """The spans that tags such as B-PER, I-PER and O mark, as in CoNLL-2003's evaluation.

    B- begins a span, and so does an I- that continues none.
    """
    found: set[Span] = set()
    start = 0
    open_kind: str | None = None  # of the span that has begun, if any
    for word, tag in enumerate([*tags, "O"]):
        prefix, _, kind = tag.partition("-")
        continues = prefix == "I" and kind == open_kind
        if open_kind is not None and not continues:
            found.add((start, word, open_kind))
            open_kind = None
        if open_kind is None and prefix in ("B", "I"):
            start = word
            open_kind = kind
    return found


def span_f1(true: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> float:
    """F1 of spans, 0 to 1; 0 where there are none.

    A predicted span is right if its first word, last word and kind are.
    """
    right = 0
    total = 0
    for true_tags, predicted_tags in zip(true, predicted, strict=True):
        true_spans = spans(true_tags)
        predicted_spans = spans(predicted_tags)
        right += len(true_spans & predicted_spans)
        total += len(true_spans) + len(predicted_spans)
    return 2 * right / max(total, 1)


def map_words(examples: Examples, change: Callable[[str], str]) -> Examples:
    """The examples with `change` applied to each word; none may vanish or become two."""
    words = []
    for own_words in in_words(examples).parts or []:
        words.append([change(word) for word in own_words])
    return in_words(replace(examples, parts=words))


def tag_names(examples: Examples) -> tuple[str, ...]:
    """The tags that occur, sorted."""
    return label_names(_flat(examples.labels or []))


def span_names(examples: Examples) -> tuple[str, ...]:
    """The tags that occur, sorted.

    Raises:
        DeftxError: One is not B, I or O, or begins so: F1 of spans would be 0.
    """
    names = tag_names(examples)
    for name in names:
        if name.partition("-")[0] not in ("B", "I", "O"):
            raise DeftxError(
                f"tag {name!r} is none of names, such as B-PER, I-PER and O: or is it tagging?"
            )
    return names


TAGGING = Task(
    auto_model_class=AutoModelForTokenClassification,
    columns=Columns(WORDS, None, "tags"),
    read=read,
    label_names=tag_names,
    encode=encode,
    loss=loss,
    loss_denominator=labelled_tokens,
    splits_by_length=True,
    answer=answer,
    output_fields=("tags",),
    metrics={name: over_words(metric) for name, metric in METRICS.items()},
    collate_targets=by_token,
    map_texts=map_words,
    required_columns={"parts": False},
)
NER = replace(
    TAGGING,
    read=read_spans,
    label_names=span_names,
    metrics={"span_f1": span_f1, **TAGGING.metrics},
)
