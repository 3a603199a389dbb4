"""A padded batch in parts of like length: every row once, and most of the padding left out."""

from collections.abc import Sequence

from torch import Tensor

PART = 64  # what a further part of a batch costs on a processor, in tokens


def by_length(batch: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The parts of a batch that cost least, its rows sorted by length; of each, no column that is
    padding alone.

    Tensors of tokens [batch, longest] lose columns, others [batch, …] do not.
    """
    mask = batch["attention_mask"].bool()
    lengths, order = mask.sum(dim=1).sort(stable=True)
    parts = []
    for rows in order.split(cheapest(lengths.tolist())):
        held = mask[rows].any(dim=0)
        parts.append(
            {
                name: t[rows][:, held] if t.shape == mask.shape else t[rows]
                for name, t in batch.items()
            }
        )
    return parts


def cheapest(lengths: Sequence[int], part: int = PART) -> list[int]:
    """How many of some sorted lengths [n] go together, so that Σ (number · longest + `part`) is
    least."""
    costs, sizes = (
        [0],
        [0],
    )  # of the first so many lengths: the least cost, and how many the last group has then
    for end, longest in enumerate(lengths, 1):
        cost, size = min(
            (costs[end - size] + size * longest + part, size) for size in range(1, end + 1)
        )
        costs.append(cost)
        sizes.append(size)
    groups, end = [], len(lengths)
    while end:
        groups.append(sizes[end])
        end -= sizes[end]
    return groups[::-1]
