"""Operators taken apart, since their vectorised form would fix the number of clients when it is compiled.

Found by compiling each operator under `vmap` with a varying first extent (torch 2.13): joining, looking up, gathering
and scattering, and what is made of them. In their place stand stacking, indexing and plain arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, cast

import torch
from torch import Tensor
from torch._decomp import get_decompositions

aten: Any = torch.ops.aten


def _cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Stacks parts of one extent; spreads others over the whole, and adds: what is joined does not overlap."""
    # Empty vectors may be joined with anything.
    parts = [each for each in tensors if each.shape != (0,)]
    if len(parts) <= 1:
        return parts[0].clone() if parts else tensors[0].clone()
    axis = dim % parts[0].dim()
    if len({each.shape[axis] for each in parts}) == 1:
        return torch.stack(list(parts), axis).flatten(axis, axis + 1)
    whole = sum(each.shape[axis] for each in parts)
    spread = []
    begin = 0
    for each in parts:
        spread.append(_amid_zeros(each, axis, begin, whole))
        begin += each.shape[axis]
    joined: Tensor = reduce(torch.logical_or if parts[0].dtype == torch.bool else torch.add, spread)
    return joined


def _amid_zeros(tensor: Tensor, axis: int, begin: int, whole: int) -> Tensor:
    """Returns a tensor with zeros before and after it; torch's own padding would fix the number of clients, too."""
    places = torch.arange(whole, device=tensor.device) - begin
    inside = (places >= 0) & (places < tensor.shape[axis])
    picked = _index_select(tensor, axis, places.clamp(0, tensor.shape[axis] - 1))
    return torch.where(inside.reshape([-1] + [1] * (tensor.dim() - 1 - axis)), picked, torch.zeros_like(picked))


def _index_select(tensor: Tensor, dim: int, index: Tensor) -> Tensor:
    places: list[Any] = [slice(None)] * tensor.dim()
    places[dim] = index
    return tensor[tuple(places)]


def _embedding(table: Tensor, rows: Tensor, *_: Any) -> Tensor:
    return table[rows]


def _embedding_backward(gradient: Tensor, rows: Tensor, count: int, padding: int, by_frequency: bool) -> Tensor:
    del padding, by_frequency
    width = gradient.shape[-1]
    empty = gradient.new_zeros((count, width))
    return empty.index_put((rows.reshape(-1),), gradient.reshape(-1, width), accumulate=True)


def _places(index: Tensor, dim: int) -> tuple[Tensor, ...]:
    """Returns the coordinates that `gather` and `scatter` along an axis mean."""
    own = []
    for axis, extent in enumerate(index.shape):
        shape = [1] * index.dim()
        shape[axis] = extent
        own.append(torch.arange(extent, device=index.device).reshape(shape).expand(index.shape))
    own[dim] = index
    return tuple(own)


def _gather(tensor: Tensor, dim: int, index: Tensor, *, sparse_grad: bool = False) -> Tensor:
    del sparse_grad
    if tensor.dim() == 0:
        return tensor.clone()
    return tensor[_places(index, dim % tensor.dim())]


def _scatter(tensor: Tensor, dim: int, index: Tensor, source: Tensor | float) -> Tensor:
    values = source[tuple(slice(extent) for extent in index.shape)] if isinstance(source, Tensor) else source
    values = torch.as_tensor(values, dtype=tensor.dtype, device=tensor.device)
    return tensor.index_put(_places(index, dim % tensor.dim()), values.expand(index.shape))


def _scatter_add(tensor: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    values = source[tuple(slice(extent) for extent in index.shape)]
    return tensor.index_put(_places(index, dim % tensor.dim()), values, accumulate=True)


dissolved: dict[Any, Callable[..., Any]] = {
    **cast(
        "dict[Any, Callable[..., Any]]",
        get_decompositions(
            [
                aten.native_group_norm,
                aten.native_group_norm_backward,
                aten.native_layer_norm,
                aten.native_layer_norm_backward,
                aten.nll_loss_backward,
                aten.nll_loss_forward,
                aten.select_backward,
                aten.slice_backward,
            ]
        ),
    ),
    aten.cat.default: _cat,
    aten.embedding.default: _embedding,
    aten.embedding_dense_backward.default: _embedding_backward,
    aten.gather.default: _gather,
    aten.index_select.default: _index_select,
    aten.scatter.src: _scatter,
    aten.scatter.value: _scatter,
    aten.scatter_add.default: _scatter_add,
}
