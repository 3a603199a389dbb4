"""Length bucketing: a padded batch is split into parts of rows of similar length, so that most of
the padding is left out."""

from collections.abc import Sequence

from torch import Tensor

BUCKET_COST = 64  # what a further forward and backward pass costs on a CPU, in tokens


def split_by_length(batch: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Split a batch into the buckets that cost least.

    Args:
        batch: Tensors of tokens [batch, longest], `attention_mask` among them, lose the columns
            that are padding in a whole bucket. Others [batch, ...] keep theirs.

    Returns:
        The buckets, from short rows to long ones. Every row is in one of them.
    """
    mask = batch["attention_mask"].bool()
    lengths, order = mask.sum(dim=1).sort(stable=True)
    buckets = []
    for rows in order.split(bucket_sizes(lengths.tolist())):
        used_columns = mask[rows].any(dim=0)
        bucket = {}
        for name, tensor in batch.items():
            bucket[name] = tensor[rows]
            if tensor.shape == mask.shape:
                bucket[name] = bucket[name][:, used_columns]
        buckets.append(bucket)
    return buckets


def bucket_sizes(lengths: Sequence[int], bucket_cost: int = BUCKET_COST) -> list[int]:
    """The sizes of the buckets that cost least: the sum of rows · longest + `bucket_cost`.

    Args:
        lengths: The rows' lengths in tokens, sorted [n].
        bucket_cost: What each bucket costs beside its tokens.

    Returns:
        The number of rows in each bucket, in the order of `lengths`.
    """
    # Dynamic programming over prefixes: the least cost of the first `end` rows, and the size of the
    # last bucket then
    costs = [0]
    last_sizes = [0]
    for end, longest in enumerate(lengths, 1):
        cost, last_size = min(
            (costs[end - size] + size * longest + bucket_cost, size) for size in range(1, end + 1)
        )
        costs.append(cost)
        last_sizes.append(last_size)

    # Walk back from the last bucket to the first
    sizes = []
    end = len(lengths)
    while end:
        sizes.append(last_sizes[end])
        end -= last_sizes[end]
    return sizes[::-1]
