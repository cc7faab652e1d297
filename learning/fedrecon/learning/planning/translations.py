"""Operators that torch's exporter translates wrongly, or not at all, taken apart into those that it knows.

Three means: rules of torch's own for backward operators; rules of our own where torch has none that fits; and one
rewriting of a function before it is traced. What convolutions and recurrent layers need:

- the gradient of a convolution's input is a transposed convolution, that of its weight a convolution of the input by
  the gradient with batch and channels swapped;
- nn.LSTM, nn.GRU and nn.RNN are written out over their time steps by torch's own rule, if oneDNN is off;
- a linear layer over more than two axes is one over two: written out for a varying number of examples, torch would
  take that number for a constant.

Rules: each rule computes the same numbers as the operator it stands for (`verification` compares the whole); a case
that a rule does not know is refused, never approximated.

Source: Dumoulin and Visin 2016, A guide to convolution arithmetic for deep learning (arXiv 1603.07285).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from torch._decomp import get_decompositions
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from fedrecon.learning.planning.values import PlanError

aten: Any = torch.ops.aten

# Backward operators without a translation to ONNX, taken apart by torch's own rules.
_dissolved = [
    aten._log_softmax_backward_data,  # noqa: SLF001 its name in ATen
    aten._softmax_backward_data,  # noqa: SLF001 its name in ATen
    aten.elu_backward,
    aten.gelu_backward,
    aten.hardsigmoid_backward,
    aten.hardswish_backward,
    aten.hardtanh_backward,
    aten.huber_loss_backward,
    aten.leaky_relu_backward,
    aten.log_sigmoid_backward,
    aten.mse_loss_backward,
    aten.native_group_norm,
    aten.native_group_norm_backward,
    aten.native_layer_norm,
    aten.native_layer_norm_backward,
    aten.select_backward,
    aten.sigmoid_backward,
    aten.silu_backward,
    aten.slice_backward,
    aten.smooth_l1_loss_backward,
    aten.softplus_backward,
    aten.tanh_backward,
    aten.threshold_backward,
]


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Returns what stands for an operator, by the operator."""
    table = cast("dict[Any, Callable[..., Any]]", dict(get_decompositions(_dissolved)))
    table[aten.embedding_dense_backward.default] = _embedding_backward
    table[aten.mv.default] = _matrix_times_vector
    table[aten.convolution_backward.default] = _convolution_backward
    table[aten.max_pool2d_with_indices_backward.default] = _max_pool_backward
    table[aten.avg_pool2d_backward.default] = _average_pool_backward
    return table


@contextmanager
def rewriting() -> Iterator[None]:
    """Within it, functions are traced as far as they can be translated."""
    backend: Any = torch.backends.mkldnn
    # Not by `mkldnn.flags`, which sets more than this and warns of hardware that is not there.
    before = backend.enabled
    backend.enabled = False
    try:
        with _FlatLinear():
            yield
    finally:
        backend.enabled = before


class _FlatLinear(TorchFunctionMode):
    """Lays out all axes but the last of a linear layer's input as one."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        if function is not functional.linear or args[0].dim() <= 2:  # noqa: PLR2004 examples and features
            return function(*args, **(kwargs or {}))
        rows, *rest = args
        flat = function(rows.reshape(-1, rows.shape[-1]), *rest, **(kwargs or {}))
        return flat.reshape(*rows.shape[:-1], flat.shape[-1])


def _embedding_backward(gradient: Tensor, rows: Tensor, count: int, padding: int, by_frequency: bool) -> Tensor:
    """The gradient of a lookup adds up over repeated rows: a ScatterND with addition."""
    del padding, by_frequency  # lookups that use them are refused by `inspection`
    width = gradient.shape[-1]
    empty = gradient.new_zeros((count, width))
    return empty.index_put((rows.reshape(-1),), gradient.reshape(-1, width), accumulate=True)


def _matrix_times_vector(matrix: Tensor, vector: Tensor) -> Tensor:
    """ONNX Runtime silently computes wrong numbers for MatMul(Transpose(A), 1-D v), so the vector becomes a column."""
    return torch.mm(matrix, vector.unsqueeze(1)).squeeze(1)


def _convolution_backward(
    gradient: Tensor,
    images: Tensor,
    weight: Tensor,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of a convolution's images, weight and bias, those that are wanted.

    Args:
        gradient: `[examples, outputs, ...]`, of the result.
        images: `[examples, inputs, ...]`.
        weight: `[outputs, inputs / groups, ...]`.
        bias_sizes: not used: the bias has one number for each output.
        stride: per spatial axis, as all that follow.
        padding: zeros on either side.
        dilation: distance of two taps.
        transposed: must be False.
        output_padding: not used by a plain convolution.
        groups: blocks of channels that know nothing of each other.
        wanted: of images, weight and bias.
    """
    del bias_sizes, output_padding
    if transposed:
        raise PlanError("the gradient of a transposed convolution has no ONNX translation")
    spatial = range(2, images.dim())
    of_images = of_weight = of_bias = None
    if wanted[0]:
        # Where the stride does not divide evenly, the last pixels were never seen.
        unseen = [
            images.shape[axis]
            - ((gradient.shape[axis] - 1) * stride[at] - 2 * padding[at] + dilation[at] * (weight.shape[axis] - 1) + 1)
            for at, axis in enumerate(spatial)
        ]
        of_images = aten.convolution(gradient, weight, None, stride, padding, dilation, True, unseen, groups)
    if wanted[1]:
        of_weight = _weight_gradient(gradient, images, weight, stride, padding, dilation, groups)
    if wanted[2]:
        of_bias = gradient.sum([0, *spatial])
    return of_images, of_weight, of_bias


def _weight_gradient(
    gradient: Tensor,
    images: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Convolves images by the gradient, with examples as channels and channels as examples."""
    examples, inputs, *extents = images.shape
    by_group = images.reshape(examples, groups, inputs // groups, *extents)
    swapped = by_group.movedim(2, 0).movedim(2, 1).reshape(inputs // groups, groups * examples, *extents)
    none = [0] * len(extents)
    found = aten.convolution(
        swapped, gradient.transpose(0, 1), None, dilation, padding, stride, False, none, groups
    ).transpose(0, 1)
    for axis in range(2, weight.dim()):
        found = found.narrow(axis, 0, weight.shape[axis])
    return cast("Tensor", found)


def _max_pool_backward(
    gradient: Tensor,
    images: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    rounded_up: bool,
    chosen: Tensor,
) -> Tensor:
    """Every window's gradient goes to the pixel that was its maximum."""
    del kernel, stride, padding, dilation, rounded_up  # `chosen` says all
    empty = gradient.new_zeros(images.shape).flatten(-2)
    return empty.scatter_add(-1, chosen.flatten(-2), gradient.flatten(-2)).reshape(images.shape)


def _average_pool_backward(
    gradient: Tensor,
    images: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    rounded_up: bool,
    counts_padding: bool,
    divisor: int | None,
) -> Tensor:
    """Every window's gradient is spread evenly: a transposed convolution by a constant, channel by channel."""
    if rounded_up or divisor is not None or (any(padding) and not counts_padding):
        raise PlanError(
            "average pooling with ceil_mode, divisor_override or count_include_pad=False has no translation"
        )
    channels, *extents = images.shape[-3:]
    stride = stride or kernel
    unseen = [
        extent - ((gradient.shape[axis] - 1) * stride[at] - 2 * padding[at] + kernel[at])
        for at, (axis, extent) in enumerate(zip((-2, -1), extents, strict=True))
    ]
    weight = gradient.new_full((channels, 1, *kernel), 1.0 / (kernel[0] * kernel[1]))
    spread = aten.convolution(gradient, weight, None, stride, padding, [1, 1], True, unseen, channels)
    return cast("Tensor", spread)
