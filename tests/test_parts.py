"""Batches in parts of like length."""

from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deftx.data.examples import Examples
from deftx.models.heads import load_task_model
from deftx.models.tokenizers import load_tokenizer
from deftx.tasks.base import names_of, supervised
from deftx.tasks.length_buckets import BUCKET_COST, bucket_sizes, split_by_length
from deftx.tasks.registry import TASKS

WORDS = " ".join(["ba", "de", "gi", "ku", "lo"] * 5)  # each with its space has 3 characters
NUMBERS_OF_WORDS = (24, 1, 2, 20, 3, 1, 22, 0)
TEXTS = [WORDS[: 3 * count] for count in NUMBERS_OF_WORDS]


def classes():
    """The label `yes` for each third text, else `no`."""
    return ["no" if number % 3 else "yes" for number in range(len(TEXTS))]


def tags():
    """Tags A and B in turn, one for each word."""
    tags_of_texts = []
    for number, count in enumerate(NUMBERS_OF_WORDS):
        tags_of_texts.append(["AB"[(number + word) % 2] for word in range(count)])
    return tags_of_texts


LABELS = {
    "classification": classes(),
    "regression": [float(number) for number in range(len(TEXTS))],
    "tagging": tags(),
}


def all_divisions(count):
    """The sizes of the groups, for all ways to divide a row of items into groups."""
    divisions = []
    for number_of_cuts in range(count):
        for cuts in combinations(range(1, count), number_of_cuts):
            bounds = [0, *cuts, count]
            divisions.append([end - start for start, end in pairwise(bounds)])
    return divisions


@given(st.lists(st.integers(0, 200), max_size=9).map(sorted), st.integers(0, 300))
def test_the_groups_are_the_cheapest_of_all(lengths, cost_of_group):
    def cost(sizes):
        total = 0
        end = 0
        for size in sizes:
            end += size
            longest = lengths[end - 1]  # of the group: lengths ascend
            total += size * longest + cost_of_group
        return total

    sizes = bucket_sizes(lengths, cost_of_group)
    assert sum(sizes) == len(lengths)
    assert all(sizes)
    if lengths:
        assert cost(sizes) == min(map(cost, all_divisions(len(lengths))))


@given(st.lists(st.integers(0, 100), min_size=1, max_size=12), st.booleans())
def test_parts_hold_every_row_once_and_no_column_of_padding(lengths, is_padded_left):
    # A batch whose tokens say where they come from, and whose labels are the rows' numbers
    count = len(lengths)
    longest = max(lengths)
    places = torch.arange(longest).expand(count, longest)
    sizes = torch.tensor(lengths)[:, None]
    mask = places < sizes
    if is_padded_left:
        mask = places >= longest - sizes
    numbers = torch.arange(count)
    ids = numbers[:, None] * 1000 + places
    batch = {"input_ids": ids, "attention_mask": mask.long(), "labels": numbers}

    rows = []
    for part in split_by_length(batch):
        own_mask = part["attention_mask"].bool()
        assert own_mask.any(dim=0).all()
        for row, own_ids, is_token in zip(
            part["labels"].tolist(), part["input_ids"], own_mask, strict=True
        ):
            assert torch.equal(own_ids[is_token], ids[row][mask[row]])
            rows.append(row)
    assert sorted(rows) == list(range(count))


@pytest.mark.parametrize("shape", ["xlmr", "modernbert", "qwen"])
@pytest.mark.parametrize("task", LABELS)
def test_loss_and_gradients_are_those_of_the_whole_batch(bases, shape, task):
    kind = TASKS[task]
    examples = Examples(TEXTS, labels=LABELS[task])
    if task == "tagging":
        words = [text.split() for text in TEXTS]
        tagged = Examples(TEXTS, labels=LABELS[task], parts=words)
        examples = tagged.at(range(len(TEXTS) - 1))  # the last has no words
    names = names_of(kind, examples)
    tokenizer = load_tokenizer(bases(shape))
    model = load_task_model(bases(shape), names, task=kind).eval()  # no dropout
    objective = supervised(kind, examples, examples, names, tokenizer, 30, "")
    batch = objective.collate(objective.train)

    # The parts are cheaper than the whole batch
    parts = split_by_length(batch)
    assert len(parts) > 1
    cost_of_parts = sum(part["input_ids"].numel() + BUCKET_COST for part in parts)
    assert cost_of_parts < batch["input_ids"].numel() + BUCKET_COST

    def value_and_gradients(loss):
        model.zero_grad()
        value = loss(model, batch)
        value.backward()
        gradients = {}
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                gradients[name] = parameter.grad.clone()
        return value.detach(), gradients

    in_parts = value_and_gradients(objective.loss)
    whole = value_and_gradients(kind.loss)
    torch.testing.assert_close(in_parts, whole, rtol=1e-4, atol=1e-6)


def test_a_task_whose_loss_is_no_mean_over_its_batch_goes_whole(bases):
    kind = TASKS["generation"]
    short = ["ba"] * 8
    examples = Examples([*short, "de " * 27], labels=[*short, "zu"])
    model = load_task_model(bases("qwen"), (), task=kind).eval()
    tokenizer = load_tokenizer(bases("qwen"))
    objective = supervised(kind, examples, examples, (), tokenizer, 30, "")
    batch = objective.collate(objective.train)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    assert len(split_by_length(inputs)) > 1
    assert torch.equal(objective.loss(model, batch), kind.loss(model, batch))
