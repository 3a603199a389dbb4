"""Labelled data that are held out where no validation data are given."""

from collections import Counter

import torch

from deftx.data.examples import Examples, names_in_label, text_pairs
from deftx.data.unicode_forms import canonical
from deftx.errors import DeftxError

HELD_OUT_SHARE = 0.1  # of labelled data


def held_out(
    examples: Examples, share: float, seed: int, *, named: bool
) -> tuple[Examples, Examples]:
    """Split examples at random into those to train on and those held out.

    Texts that occur twice are trained on, so that none is on both sides.

    Args:
        examples: What is split.
        share: How much is held out, 0 to 1; one example at least.
        seed: Which examples are drawn.
        named: Whether labels are names. Each of them stays among the examples to train on.

    Returns:
        The examples to train on, and those held out, each in their order.

    Raises:
        DeftxError: Nothing can be held out.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(examples), generator=generator).tolist()
    wanted = max(1, round(share * len(examples)))

    texts = [(canonical(text), canonical(pair)) for text, pair in text_pairs(examples)]
    occurrences = Counter(texts)
    # How often each label occurs in each example, and among those that are trained on
    label_counts: list[Counter[str]] = [Counter() for _ in texts]
    if named:
        label_counts = [Counter(names_in_label(label)) for label in examples.labels or []]
    remaining = sum(label_counts, Counter[str]())

    rows: set[int] = set()
    for row in order:
        if len(rows) == wanted:
            break
        is_unique = occurrences[texts[row]] == 1
        own_labels = label_counts[row]
        if is_unique and all(remaining[name] > count for name, count in own_labels.items()):
            rows.add(row)
            remaining -= own_labels
    if not rows or len(rows) == len(examples):
        raise DeftxError(
            f"of {len(examples)} example(s) none can be held out, since every label, and what "
            "occurs twice, has to stay: give validation data (--valid)"
        )
    trained = [row for row in range(len(examples)) if row not in rows]
    return examples.at(trained), examples.at(sorted(rows))
