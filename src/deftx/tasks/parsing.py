"""Dependency parsing: the head of every word, and its relation to it (Universal Dependencies).

An encoder's words are scored by a biaffine parser (`deftx.tasks.biaffine`), and the best tree with
one root is taken. Of a relation such as nsubj:pass the universal part, nsubj, is learnt and scored,
as in LT-SFT and in the evaluation of CoNLL 2018.

A sentence that is longer than the model takes is read in windows, one after the other; all of its
words are parsed together.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase

from deftx.core.parameters import unwrapped
from deftx.data.cells import as_names, as_text, read_column
from deftx.data.conll import fault_of_tree, read_trees, read_words
from deftx.data.examples import Columns, Examples
from deftx.data.tables import READERS, open_source
from deftx.errors import DeftxError
from deftx.objectives.base import IGNORED, Batch
from deftx.tasks.base import Task
from deftx.tasks.biaffine import NO_WORD, AutoModelForBiaffineParsing, BiaffineParser
from deftx.tasks.encoding import Encoded, Pad, batches, inputs_of, numbers, padding
from deftx.tasks.spanning_tree import best_tree
from deftx.tasks.tagging import WORDS, map_words, read_in_windows

# The relations of Universal Dependencies 2, and `_` for none: the outputs of LT-SFT's parsers
UNIVERSAL_RELATIONS = (
    "_ acl advcl advmod amod appos aux case cc ccomp clf compound conj cop csubj dep det discourse "
    "dislocated expl fixed flat goeswith iobj list mark nmod nsubj nummod obj obl orphan parataxis "
    "punct reparandum root vocative xcomp"
).split()
# What stands for the head of a multiword token or an empty node in tables of words
NO_HEADS = (None, "None", "_")

Arc = tuple[int, str]  # the number of the head, from 1 (0: the root), and the relation


def read(source: str | Path, columns: Columns, labelled: bool) -> Examples:
    """Read words and their heads and relations.

    Args:
        source: CoNLL-U, or a table with lists of words, heads and relations. Where no heads are
            wanted, plain text (.txt) is a text on each line.
        columns: The names of the columns: words, heads (the pair column) and relations.
        labelled: Whether heads and relations are read.

    Returns:
        Examples whose labels are lists of arcs.

    Raises:
        DeftxError: The heads of a sentence are no tree, or the source cannot be read.
    """
    conllu = read_trees if labelled else read_words
    table = open_source(source, {**READERS, ".conllu": conllu})
    if table.plain and not labelled:
        text_column = "text" if columns.text == WORDS else columns.text
        return Examples(read_column(table, text_column, as_text))
    words = read_column(table, columns.text, as_names)
    labels = None
    if labelled:
        labels = []
        heads = table.values(columns.pair or "heads")
        relations = table.values(columns.label)
        rows = zip(words, heads, relations, strict=True)
        for number, (own_words, (place, own_heads), (_, own_relations)) in enumerate(rows):
            words[number], arcs = _tree(place, own_words, own_heads, own_relations)
            labels.append(arcs)
    return Examples([" ".join(own_words) for own_words in words], labels=labels, parts=words)


def _tree(
    place: str, words: Sequence[str], heads: Any, relations: Any
) -> tuple[list[str], list[Arc]]:
    """The words of a sentence, without multiword tokens and empty nodes, and their arcs."""
    for name, values in (("heads", heads), ("relations", relations)):
        if not isinstance(values, list) or len(values) != len(words):
            raise DeftxError(
                f"{place}: {values!r:.40} are no {name} of {len(words)} words: write a list with "
                "one for each"
            )
    kept_words = []
    arcs: list[Arc] = []
    for word, head, relation in zip(words, heads, relations, strict=True):
        if head in NO_HEADS:
            continue
        is_number = str(head).isascii() and str(head).isdigit()
        if not is_number or not isinstance(relation, str) or not relation.strip():
            raise DeftxError(
                f"{place}: {word!r:.40} has the head {head!r:.40} and the relation "
                f"{relation!r:.40}: give a number, 0 for the root, and a name"
            )
        kept_words.append(word)
        arcs.append((int(head), universal(relation.strip())))
    fault = fault_of_tree([head for head, _ in arcs])
    if fault is not None:
        raise DeftxError(f"{place}: {fault[1]}")
    return kept_words, arcs


def universal(relation: str) -> str:
    """The universal part of a relation: nsubj of nsubj:pass."""
    return relation.partition(":")[0]


def relation_names(examples: Examples) -> tuple[str, ...]:
    """The universal relations, as many as LT-SFT's parsers have, and others that occur."""
    names: set[str] = set()
    for arcs in examples.labels or []:
        names.update(universal(relation) for _, relation in arcs)
    others = sorted(names.difference(UNIVERSAL_RELATIONS))
    return (*UNIVERSAL_RELATIONS, *others)


def encode(
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    names: Sequence[str],
    labelled: bool,
) -> Encoded:
    """Tokenise sentences in windows of `length` tokens.

    Returns:
        Inputs have `word_ids`: the word that each token is in, counted from the first one of its
        window, or NO_WORD. Targets are a head and the number of a relation for each word of the
        window. They are IGNORED where the head is in another window, and for a word that began in
        an earlier one. The `word_ids` beside them count from the first word of the sentence.

    Raises:
        DeftxError: The tokenizer has no offsets, heads are no tree, or a relation is not in
            `names`.
    """
    if labelled and examples.labels is not None:
        _check_arcs(examples)
    windows = read_in_windows(examples, tokenizer, length, labelled)
    for row, window_words in zip(windows.inputs, windows.words, strict=True):
        first = first_word(window_words)
        row["word_ids"] = [NO_WORD if word == NO_WORD else word - first for word in window_words]

    targets = []
    if labelled:
        trees = []
        for arcs in windows.examples.labels or []:
            relations = numbers([universal(relation) for _, relation in arcs], names)
            heads = [head for head, _ in arcs]
            trees.append(list(zip(heads, relations, strict=True)))
        found_words: list[set[int]] = [set() for _ in trees]
        for sample, window_words in zip(windows.samples, windows.words, strict=True):
            targets.append(_targets(window_words, trees[sample], found_words[sample]))
    return Encoded(
        windows.examples,
        windows.inputs,
        targets,
        names,
        word_padding(tokenizer),
        overflow_to_sample_mapping=windows.samples,
        word_ids=windows.words,
    )


def _check_arcs(examples: Examples) -> None:
    """Raise DeftxError for arcs that are no tree, or not as many as words."""
    words = examples.parts or [text.split() for text in examples.texts]
    rows = zip(words, examples.labels or [], strict=True)
    for number, (own_words, arcs) in enumerate(rows, 1):
        if len(own_words) != len(arcs):
            raise DeftxError(
                f"example {number} has {len(own_words)} words and {len(arcs)} arcs: "
                "give every word one"
            )
        fault = fault_of_tree([head for head, _ in arcs])
        if fault is not None:
            raise DeftxError(f"example {number}: {fault[1]}")


def first_word(window_words: Sequence[int]) -> int:
    """The first word of a window; 0 where it has none."""
    return min((word for word in window_words if word != NO_WORD), default=0)


def _targets(
    window_words: Sequence[int], tree: Sequence[tuple[int, int]], found: set[int]
) -> list[tuple[int, int]]:
    """The head and the relation of each word of a window, as far as they are learnt there.

    Args:
        window_words: The word that each token is in, or NO_WORD.
        tree: The head and the relation of each word of the sentence.
        found: The words of earlier windows; those of this window are added.
    """
    own_words = set(window_words) - {NO_WORD}
    first = first_word(window_words)
    last = max(own_words, default=first - 1)
    targets = []
    for word in range(first, last + 1):
        head, relation = tree[word]
        head_is_here = head == 0 or first < head <= last + 1
        if word in own_words and word not in found and head_is_here:
            targets.append((head - first if head else 0, relation))
        else:
            targets.append((IGNORED, IGNORED))
    found.update(own_words)
    return targets


def word_padding(tokenizer: PreTrainedTokenizerBase) -> Pad:
    """A function that pads inputs to the longest of them, `word_ids` too."""
    pad_tokens = padding(tokenizer)

    def pad(inputs: list[dict[str, Any]]) -> Batch:
        tokens = [{name: row[name] for name in row if name != "word_ids"} for row in inputs]
        batch = pad_tokens(tokens)
        is_token = batch["attention_mask"].bool()
        word_ids = torch.full(is_token.shape, NO_WORD)
        word_ids[is_token] = torch.tensor([word for row in inputs for word in row["word_ids"]])
        return {**batch, "word_ids": word_ids}

    return pad


def collate_arcs(targets: list[list[tuple[int, int]]], batch: Batch) -> Tensor:
    """Heads and relations as a tensor [batch, words, 2], IGNORED behind a row's last word."""
    longest = max(len(row) for row in targets)
    padded = torch.full((len(targets), longest, 2), IGNORED)
    for number, row in enumerate(targets):
        if row:
            padded[number, : len(row)] = torch.tensor(row)
    return padded


def learnt_words(targets: Tensor) -> int:
    """How many words have a head to be learnt."""
    return int((targets[..., 0] != IGNORED).sum())


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """The mean over words of the cross-entropy of heads and that of relations to the true heads."""
    longest = int(batch["word_ids"].max()) + 1  # in a part of a batch fewer than the targets have
    heads, relations = batch["labels"][:, :longest].unbind(-1)
    arc_scores, relation_scores = model(**inputs_of(batch), heads=heads.clamp(min=0))
    total = _cross_entropy(arc_scores, heads) + _cross_entropy(relation_scores, relations)
    return total / max(learnt_words(batch["labels"]), 1)


def _cross_entropy(scores: Tensor, targets: Tensor) -> Tensor:
    """The sum over words [batch, words, classes]."""
    flat_scores = scores.flatten(0, 1).float()
    return cross_entropy(flat_scores, targets.flatten(), ignore_index=IGNORED, reduction="sum")


def answer(model: nn.Module, encoded: Encoded, batch_size: int) -> list[tuple[list[Arc]]]:
    """The best tree of every sentence."""
    parser = cast(BiaffineParser, unwrapped(model))
    sentences = encoded.examples.parts or []
    samples = encoded.overflow_to_sample_mapping
    windows_left = Counter(samples)
    sums: dict[int, Tensor] = {}
    counts: dict[int, Tensor] = {}
    roots: dict[int, Tensor] = {}
    trees: list[list[Arc]] = [[] for _ in sentences]
    for rows, batch in batches(parser, encoded, batch_size):
        states = parser.word_states(**batch)
        for place, row in enumerate(rows):
            # Add the window to its sentence; the root is that of the first window
            sample = samples[row]
            word_count = len(sentences[sample])
            if sample not in sums:
                sums[sample] = states.sums.new_zeros(word_count, states.sums.shape[-1])
                counts[sample] = states.counts.new_zeros(word_count)
            first = first_word(encoded.word_ids[row])
            end = min(first + states.sums.shape[1], word_count)
            sums[sample][first:end] += states.sums[place, : end - first]
            counts[sample][first:end] += states.counts[place, : end - first]
            if row == 0 or samples[row - 1] != sample:
                roots[sample] = states.roots[place]

            # Parse the sentence when it is whole
            windows_left[sample] -= 1
            if not windows_left[sample]:
                words = sums.pop(sample) / counts.pop(sample).clamp(min=1).unsqueeze(-1)
                trees[sample] = _parse(parser, words, roots.pop(sample), encoded.label_names)
    return [(tree,) for tree in trees]


def _parse(parser: BiaffineParser, words: Tensor, root: Tensor, names: Sequence[str]) -> list[Arc]:
    """The best tree of one sentence.

    Args:
        parser: The model.
        words: Its words [words, width].
        root: Its root [width].
        names: The names of the relations.
    """
    batch_of_one = words.unsqueeze(0), root.unsqueeze(0)
    arc_scores = parser.arc_scores(*batch_of_one)[0].double().cpu().numpy()
    heads = best_tree(arc_scores)
    chosen = torch.tensor([heads], dtype=torch.long, device=words.device)
    relations = parser.relation_scores(*batch_of_one, chosen)[0].argmax(-1).tolist()
    return [(head, names[relation]) for head, relation in zip(heads, relations, strict=True)]


# --- scores ---


def las(true: Sequence[Any], predicted: Sequence[Any]) -> float:
    """The labelled attachment score, 0 to 1: the share of words with the right head and the right
    universal relation, punctuation included."""
    return _attachment(true, predicted, labelled=True)


def uas(true: Sequence[Any], predicted: Sequence[Any]) -> float:
    """The unlabelled attachment score, 0 to 1: the share of words with the right head, punctuation
    included."""
    return _attachment(true, predicted, labelled=False)


def _attachment(true: Sequence[Any], predicted: Sequence[Any], *, labelled: bool) -> float:
    right = 0
    total = 0
    for true_arcs, predicted_arcs in zip(true, predicted, strict=True):
        for true_arc, predicted_arc in zip(true_arcs, predicted_arcs, strict=True):
            (true_head, true_relation), (head, relation) = true_arc, predicted_arc
            is_right = head == true_head
            if labelled:
                is_right = is_right and universal(relation) == universal(true_relation)
            right += is_right
            total += 1
    return right / max(total, 1)


PARSING = Task(
    auto_model_class=AutoModelForBiaffineParsing,
    columns=Columns(WORDS, "heads", "relations"),
    read=read,
    label_names=relation_names,
    encode=encode,
    loss=loss,
    loss_denominator=learnt_words,
    splits_by_length=True,
    answer=answer,
    output_fields=("arcs",),
    metrics={"las": las, "uas": uas},
    collate_targets=collate_arcs,
    map_texts=map_words,
    required_columns={"parts": False},
)
