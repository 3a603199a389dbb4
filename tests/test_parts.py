"""Batches in parts of like length."""

from itertools import combinations

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

TEXTS = [
    " ".join(["ba", "de", "gi", "ku", "lo"] * 5)[: 3 * words]
    for words in (24, 1, 2, 20, 3, 1, 22, 0)
]
LABELS = {
    "classification": ["no" if i % 3 else "yes" for i in range(len(TEXTS))],
    "regression": [float(i) for i in range(len(TEXTS))],
    "tagging": [
        [("A", "B")[(i + j) % 2] for j, _ in enumerate(text.split())]
        for i, text in enumerate(TEXTS)
    ],
}


@given(st.lists(st.integers(0, 200), max_size=9).map(sorted), st.integers(0, 300))
def test_the_groups_are_the_cheapest_of_all(lengths, part):
    def cost(sizes):
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        return sum(size * lengths[end - 1] + part for size, end in zip(sizes, ends, strict=True))

    found = bucket_sizes(lengths, part)
    assert sum(found) == len(lengths)
    assert all(found)
    if lengths:
        cuts = [c for n in range(len(lengths)) for c in combinations(range(1, len(lengths)), n)]
        ways = [[b - a for a, b in zip((0, *c), (*c, len(lengths)), strict=True)] for c in cuts]
        assert cost(found) == min(map(cost, ways))


@given(st.lists(st.integers(0, 100), min_size=1, max_size=12), st.booleans())
def test_parts_hold_every_row_once_and_no_column_of_padding(lengths, left):
    longest = max(lengths)
    places = torch.arange(longest).expand(len(lengths), longest)
    sizes = torch.tensor(lengths)[:, None]
    mask = (places >= longest - sizes) if left else (places < sizes)
    ids = torch.arange(len(lengths))[:, None] * 1000 + places
    batch = {"input_ids": ids, "attention_mask": mask.long(), "labels": torch.arange(len(lengths))}
    rows = []
    for part in split_by_length(batch):
        kept = part["attention_mask"].bool()
        assert kept.any(dim=0).all()
        for row, tokens, there in zip(
            part["labels"].tolist(), part["input_ids"], kept, strict=True
        ):
            assert torch.equal(tokens[there], ids[row][mask[row]])
            rows.append(row)
    assert sorted(rows) == list(range(len(lengths)))


@pytest.mark.parametrize("shape", ["xlmr", "modernbert", "qwen"])
@pytest.mark.parametrize("task", LABELS)
def test_loss_and_gradients_are_those_of_the_whole_batch(bases, shape, task):
    kind = TASKS[task]
    parts = [text.split() for text in TEXTS] if task == "tagging" else None
    rows = (
        range(len(TEXTS) - 1) if task == "tagging" else range(len(TEXTS))
    )  # the last has no words
    examples = Examples(TEXTS, labels=LABELS[task], parts=parts).at(rows)
    names, tokenizer = names_of(kind, examples), load_tokenizer(bases(shape))
    model = load_task_model(bases(shape), names, task=kind).eval()  # no dropout
    objective = supervised(kind, examples, examples, names, tokenizer, 30, "")
    batch = objective.collate(objective.train)
    assert len(split_by_length(batch)) > 1
    assert (
        sum(part["input_ids"].numel() + BUCKET_COST for part in split_by_length(batch))
        < batch["input_ids"].numel() + BUCKET_COST
    )
    found = []
    for loss in (objective.loss, kind.loss):
        model.zero_grad()
        value = loss(model, batch)
        value.backward()
        found.append(
            (
                value.detach(),
                {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None},
            )
        )
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


def test_a_task_whose_loss_is_no_mean_over_its_batch_goes_whole(bases):
    kind, examples = (
        TASKS["generation"],
        Examples([*8 * ["ba"], "de " * 27], labels=[*8 * ["ba"], "zu"]),
    )
    model = load_task_model(bases("qwen"), (), task=kind).eval()
    objective = supervised(kind, examples, examples, (), load_tokenizer(bases("qwen")), 30, "")
    batch = objective.collate(objective.train)
    assert len(split_by_length({name: batch[name] for name in ("input_ids", "attention_mask")})) > 1
    assert torch.equal(objective.loss(model, batch), kind.loss(model, batch))
