"""Reading and writing single entries of a tensor by flat (row-major) index."""

from torch import Tensor, unravel_index


def read_entries(tensor: Tensor, indices: Tensor) -> Tensor:
    """The entries of `tensor` at flat `indices` [n] -> [n], whatever its strides."""
    return tensor.take(indices)  # on all cores, which index_select is not


def write_entries(tensor: Tensor, indices: Tensor, values: Tensor) -> None:
    """Put `values` [n] at flat `indices` [n] of `tensor`, in place, whatever its strides."""
    if tensor.is_contiguous():
        tensor.view(-1).index_copy_(0, indices, values.to(tensor.dtype))
    else:
        tensor[unravel_index(indices, tensor.shape)] = values.to(tensor.dtype)
