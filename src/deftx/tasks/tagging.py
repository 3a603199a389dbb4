"""Token classification: a tag for every word, such as its part of speech (`tagging`) or its place
in a name (`ner`).

The first token of a word stands for the word. A text that is longer than the model takes is read in
windows, one after the other, so that every word is tagged.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForTokenClassification, PreTrainedTokenizerBase

from deftx.data import examples as data
from deftx.data.conll import LABELLED_TEXT, SENTENCES, looks_tagged
from deftx.data.examples import Columns, Examples, cells
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

WORDS = "words"  # the column, if nothing else is said
Span = tuple[int, int, str]  # first word, the one after the last, kind


def read(source: str | Path, columns: Columns, labelled: bool) -> Examples:
    """Lists of words and lists of tags, as many; or a file with a word and its tag on each line.
    Plain text to be tagged has its words between white space."""
    if columns.pair:
        raise DeftxError(
            f"nothing is read beside words to be tagged: leave out the column {columns.pair!r}"
        )
    readers = {**READERS, **SENTENCES, **(LABELLED_TEXT if labelled else {})}
    table = open_source(source, readers)
    if table.plain and not labelled:
        texts = cells(table, "text" if columns.text == WORDS else columns.text, data.text)
        if looks_tagged(texts):
            warnings.warn(
                f"{source} is read as plain text, a text on each line, but looks like words with "
                "tags: if so, call it .conll",
                stacklevel=2,
            )
        return Examples(texts)
    words = cells(table, columns.text, data.names)
    tags = cells(table, columns.label, data.names) if labelled else None
    for (place, _), each, some in zip(
        table.values(columns.text), words, tags or words, strict=True
    ):
        if len(each) != len(some):
            raise DeftxError(
                f"{place}: {len(each)} words and {len(some)} tags: give every word one"
            )
    spaced = sum(" " in word for each in words for word in each)
    if 2 * spaced > sum(map(len, words)):
        warnings.warn(
            f"most words in {source} have spaces in them: are they whole texts?", stacklevel=2
        )
    return Examples([" ".join(each) for each in words], labels=tags, parts=words)


def read_spans(source: str | Path, columns: Columns, labelled: bool) -> Examples:
    """As `read`, with tags in BIOES or BILOU turned into B- and I-."""
    examples = read(source, columns, labelled)
    if examples.labels is None:
        return examples
    return replace(examples, labels=[as_bio(row) for row in examples.labels])


def encode(
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    names: Sequence[str],
    labelled: bool,
) -> Encoded:
    """Tokenise texts in windows of `length` tokens, with the numbers of the tags at the words'
    first tokens.

    places  of each window: the number of the word of which a token is the first, or -1
    """
    if not tokenizer.is_fast:
        raise DeftxError(
            "the base's tokenizer does not say where its tokens stand: words cannot be tagged with it"
        )
    examples, options = (
        in_words(examples),
        {"return_overflowing_tokens": True, "return_offsets_mapping": True},
    )
    tokens, inputs = tokenised(examples, tokenizer, length, labelled, **options)
    owners, parts = tokens["overflow_to_sample_mapping"], examples.parts or []
    tags = [numbers(row, names) for row in examples.labels or []] if labelled else []
    places, targets, seen = [], [], set[tuple[int, int]]()
    for owner, offsets in zip(owners, tokens["offset_mapping"], strict=True):
        firsts = list(_firsts(offsets, parts[owner], seen, owner))
        places.append(firsts)
        if labelled:
            targets.append([IGNORED if word < 0 else tags[owner][word] for word in firsts])
    return Encoded(examples, inputs, targets, names, padding(tokenizer), owners, places)


def in_words(examples: Examples) -> Examples:
    """The examples with their words, and these with a space between them as texts. Without `parts`,
    a text's words are what stands between white space. Raises DeftxError where words and tags are
    not as many."""
    words = [text.split() for text in examples.texts] if examples.parts is None else examples.parts
    for number, (each, tags) in enumerate(zip(words, examples.labels or words, strict=True), 1):
        if len(each) != len(tags):
            raise DeftxError(
                f"example {number} has {len(each)} words and {len(tags)} tags: give every word one"
            )
    return replace(examples, texts=[" ".join(each) for each in words], parts=words)


def _firsts(
    offsets: Sequence[tuple[int, int]], words: Sequence[str], seen: set[tuple[int, int]], owner: int
) -> Iterator[int]:
    """For each token the word that it is the first token of, or -1; `seen` are the words that had
    theirs before."""
    ends, end = [], -1
    for word in words:
        end += 1 + len(word)
        ends.append(end)
    at = 0
    for start, stop in offsets:
        while at < len(ends) and ends[at] <= start:
            at += 1
        inside = stop > start and at < len(ends) and stop > ends[at] - len(words[at])
        first = inside and (owner, at) not in seen
        if first:
            seen.add((owner, at))
        yield at if first else -1


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """The mean cross-entropy of the words of a batch; 0 where there are none."""
    targets = batch["labels"].flatten()
    total = cross_entropy(
        logits(model, batch).flatten(0, 1), targets, ignore_index=IGNORED, reduction="sum"
    )
    return total / max(int((targets != IGNORED).sum()), 1)


def answer(model: nn.Module, encoded: Encoded, batch_size: int) -> list[tuple[list[str]]]:
    """The most probable tag of every word; of a word of which the tokenizer makes nothing, the
    first tag."""
    tags = [[encoded.names[0]] * len(words) for words in encoded.examples.parts or []]
    rows = logits_of(model, encoded, batch_size, logits, by_token=True)
    for owner, places, row in zip(encoded.owners, encoded.places, rows, strict=True):
        for word, best in zip(places, row.argmax(-1).tolist(), strict=True):
            if word >= 0:
                tags[owner][word] = encoded.names[best]
    return [(each,) for each in tags]


def over_words(metric: Metric) -> Metric:
    """A metric of labels as one of lists of tags: every word counts the same."""
    return lambda true, predicted: metric(list(chain(*true)), list(chain(*predicted)))


BIOES = {"S": "B", "U": "B", "E": "I", "L": "I", "M": "I"}  # also called BILOU and BMES


def as_bio(tags: Sequence[str]) -> list[str]:
    """The tags of a sentence with B- and I- where they are BIOES or BILOU; all others as they are.

    A span's last word is within it (E-, L-), and a span of one word begins there (S-, U-).
    """
    return [_bio_tag(tag) for tag in tags]


def _bio_tag(tag: str) -> str:
    prefix, dash, name = tag.partition("-")
    return f"{BIOES[prefix]}-{name}" if dash and name and prefix in BIOES else tag


def spans(tags: Sequence[str]) -> set[Span]:
    """The spans that tags such as B-PER, I-PER and O mark (CoNLL-2003): B- begins one, and so does
    an I- of its own."""
    found: set[Span] = set()
    start, kind = 0, None  # of the span that has begun, if any
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        if kind is not None and not (prefix == "I" and name == kind):
            found.add((start, place, kind))
            kind = None
        if kind is None and prefix in ("B", "I"):
            start, kind = place, name
    return found


def span_f1(true: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> float:
    """F1 of spans: a predicted one is right where its first word, last word and kind are; 0 where
    there are none."""
    pairs = [(spans(row), spans(other)) for row, other in zip(true, predicted, strict=True)]
    right = sum(len(one & other) for one, other in pairs)
    return 2 * right / max(sum(len(one) + len(other) for one, other in pairs), 1)


def respelt(examples: Examples, spell: Callable[[str], str]) -> Examples:
    """The examples with `spell` of each word, by which a word can neither go nor become two."""
    words = [list(map(spell, each)) for each in in_words(examples).parts or []]
    return in_words(replace(examples, parts=words))


def tag_names(examples: Examples) -> tuple[str, ...]:
    """The tags that occur, sorted."""
    return label_names(list(chain(*examples.labels or [])))


def span_names(examples: Examples) -> tuple[str, ...]:
    """The tags that occur. Raises DeftxError where they are not B-, I- and O: F1 of the names would
    be 0."""
    names = tag_names(examples)
    for name in names:
        if name.partition("-")[0] not in ("B", "I", "O"):
            raise DeftxError(
                f"tag {name!r} is none of names, such as B-PER, I-PER and O: or is it tagging?"
            )
    return names


TAGGING = Task(
    auto=AutoModelForTokenClassification,
    columns=Columns(WORDS, None, "tags"),
    read=read,
    names=tag_names,
    encode=encode,
    loss=loss,
    loss_denominator=labelled_tokens,
    splits_by_length=True,
    answer=answer,
    shown=("tags",),
    metrics={name: over_words(metric) for name, metric in METRICS.items()},
    stack=by_token,
    respelt=respelt,
    takes={"parts": False},
)
NER = replace(
    TAGGING, read=read_spans, names=span_names, metrics={"span_f1": span_f1, **TAGGING.metrics}
)
