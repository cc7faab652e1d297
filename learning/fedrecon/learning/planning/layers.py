"""Refuses layers that can never be part of a plan, by their name in the model.

They draw random numbers, keep running state, mix examples, or have a gradient that has no translation to ONNX
(`translations` says how far those go that do). What is not listed here may still fail when it is exported; then torch
says over which operator it stumbled.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, _AvgPoolNd

from fedrecon.learning.model import FederatedModel
from fedrecon.learning.planning.values import PlanError

_refused: tuple[tuple[type[nn.Module], str], ...] = (
    (_BatchNorm, "keeps running state and mixes examples; use LayerNorm or GroupNorm"),
    (nn.EmbeddingBag, "has no ONNX translation of its gradient; use Embedding and sum over an axis"),
    (_ConvTransposeNd, "has no ONNX translation of its gradient; use Upsample and a plain convolution"),
    (_AdaptiveMaxPoolNd, "has no ONNX translation; use a max-pooling of fixed windows"),
    (nn.MultiheadAttention, "has no ONNX translation of its gradient yet; write attention with Linear layers"),
)


def check_layers(model: FederatedModel) -> None:
    """Refuses a model with such a layer.

    Raises:
        PlanError: the message names the layer, and says what to do instead.
    """
    for name, layer in model.module.named_modules():
        label = f"layer {name!r} ({type(layer).__name__})" if name else f"the model itself ({type(layer).__name__})"
        reasons = (*_of_kind(layer), *_drawing(layer), *_averaging(layer))
        if f"{name}.weight" in model.vocabularies and isinstance(layer, nn.Embedding):
            reasons = (*reasons, *_of_lookup(layer))
        for reason in reasons:
            raise PlanError(f"{label} {reason}")


def _of_kind(layer: nn.Module) -> Iterator[str]:
    for kind, reason in _refused:
        if isinstance(layer, kind):
            yield reason
    for buffer, _ in layer.named_buffers(recurse=False):
        yield f"keeps the buffer {buffer!r}; make it a parameter or a plain number"


def _drawing(layer: nn.Module) -> Iterator[str]:
    if isinstance(layer, _DropoutNd) and layer.training and layer.p > 0:
        yield "draws random numbers; no graph may: remove it, or call module.eval()"
    if isinstance(layer, nn.RNNBase) and layer.training and layer.dropout > 0 and layer.num_layers > 1:
        yield "draws random numbers between its layers; set dropout=0, or call module.eval()"


def _averaging(layer: nn.Module) -> Iterator[str]:
    """Yields why an average pooling is refused: not all of its windows are divided by the same number."""
    plain: Any = layer
    if isinstance(layer, _AdaptiveAvgPoolNd) and np.any(np.ravel(plain.output_size) != 1):
        yield "has no ONNX translation of its gradient unless it averages to 1"
    if isinstance(layer, _AvgPoolNd):
        uncounted = np.any(np.ravel(plain.padding)) and not plain.count_include_pad
        if plain.ceil_mode or uncounted or getattr(plain, "divisor_override", None) is not None:
            yield (
                "has no ONNX translation of its gradient with ceil_mode, divisor_override, or a padding that is not "
                "counted"
            )


def _of_lookup(layer: nn.Embedding) -> Iterator[str]:
    """Yields why a lookup in a row-sparse parameter is refused."""
    for option in ("padding_idx", "max_norm"):
        if getattr(layer, option) is not None:
            yield f"sets {option}, which has no meaning once rows are renumbered; leave it out"
    if layer.scale_grad_by_freq:
        yield "sets scale_grad_by_freq, which plans do not support; leave it out"
