"""Operators taken apart, since their vectorised form would fix the number of clients when it is compiled.

Found by compiling each operator under `vmap` with a varying first extent (torch 2.13): joining, looking up, gathering
and scattering, and what is made of them. In their place stand indexing and plain arithmetic. Joining is kept, but made
to join only what differs between clients (`join_alike`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, cast

import torch
from torch import Tensor
from torch._decomp import get_decompositions

aten: Any = torch.ops.aten


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
    aten.embedding.default: _embedding,
    aten.embedding_dense_backward.default: _embedding_backward,
    aten.gather.default: _gather,
    aten.index_select.default: _index_select,
    aten.scatter.src: _scatter,
    aten.scatter.value: _scatter,
    aten.scatter_add.default: _scatter_add,
}


def join_alike(graph: torch.fx.GraphModule) -> None:
    """Makes all parts of what is joined differ between clients if one does: only a mixture fixes the number of clients.

    Each part is added a zero that is made of all parts, and so differs where one of them does; the compiler leaves the
    adding out. Padding and adding the parts instead, which does without joining, took an LSTM of 20 steps 19 times as
    long to compile.

    Args:
        graph: one client's function as plain operators; changed.
    """
    for node in list(graph.graph.nodes):
        if node.target is not aten.cat.default:
            continue
        # Empty vectors may be joined with anything, but not once they differ between clients.
        parts = [part for part in node.args[0] if part.meta["tensor_meta"].shape != (0,)] or node.args[0][:1]
        with graph.graph.inserting_before(node):
            zeros = [graph.graph.call_function(aten.new_zeros.default, (part, [])) for part in parts]
            zero = reduce(lambda one, other: graph.graph.call_function(aten.add.Tensor, (one, other)), zeros)
            alike = [graph.graph.call_function(aten.add.Tensor, (part, zero)) for part in parts]
        node.args = (alike, *node.args[1:])
    graph.recompile()
