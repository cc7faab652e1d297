"""From a torch function to the nodes of an ONNX graph.

The road: `make_fx` (which dissolves `torch.func.grad` and `vmap`; exporting them directly fails) -> `torch.export`
-> `torch.onnx.export` with its own optimiser off (it drops small constants and folds large ones) -> the safe passes
of `simplification`.

Rules: varying extents stay symbolic; operators without a faithful translation are taken apart (`translations`); the
same function gives the same nodes every time.
"""

from __future__ import annotations

import functools
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.onnx._internal import _lazy_import

from fedrecon.learning.planning.simplification import simplify
from fedrecon.learning.planning.translations import decompositions, rewriting
from fedrecon.learning.planning.values import Extent, Function, PlanError, Value

OPSET = 20
IR_VERSION = 10

element_types: dict[torch.dtype, int] = {
    torch.float32: onnx.TensorProto.FLOAT,
    torch.int64: onnx.TensorProto.INT64,
    torch.int32: onnx.TensorProto.INT32,
    torch.bool: onnx.TensorProto.BOOL,
}


# Every export parses the source of some 500 translations, which takes longer than the rest of it: a graph in three.
_apis: Any = _lazy_import.onnxscript_apis  # type: ignore[attr-defined]
_apis.get_torchlib_ops = functools.cache(_apis.get_torchlib_ops)


class _Flat(nn.Module):
    """A traced function as a module, which `torch.export` asks for."""

    def __init__(self, traced: torch.fx.GraphModule) -> None:
        super().__init__()
        self.traced = traced

    def forward(self, *arguments: Tensor) -> Any:
        return self.traced(*arguments)


def export(what: str, function: Function, inputs: Sequence[Value], outputs: Sequence[Value]) -> list[onnx.NodeProto]:
    """Returns the ONNX nodes of a torch function, between values of the given names.

    Args:
        what: name of the graph, for errors.
        function: takes and returns tensors by name.
        inputs: its inputs.
        outputs: its outputs.

    Raises:
        PlanError: torch cannot trace or translate the function.
    """
    arguments = tuple(example_arguments(inputs))

    def flat(*tensors: Tensor) -> tuple[Tensor, ...]:
        results = function({value.name: tensor for value, tensor in zip(inputs, tensors, strict=True)})
        return tuple(results[value.name] for value in outputs)

    dynamic = tuple(
        {axis: torch.export.Dim.DYNAMIC for axis, extent in enumerate(value.shape) if isinstance(extent, str)}
        for value in inputs
    )
    try:
        with _quiet(), rewriting():
            traced = make_fx(flat, decomposition_table=decompositions(), tracing_mode="symbolic")(*arguments)
            program = torch.export.export(_Flat(traced), arguments, dynamic_shapes=(dynamic,), strict=False)
            exported = torch.onnx.export(
                program, dynamo=True, optimize=False, opset_version=OPSET, verbose=False, external_data=False
            )
    except Exception as error:
        raise PlanError(f"graph {what}: torch cannot turn the model into ONNX: {first_reason(error)}") from error
    if exported is None:
        raise PlanError(f"graph {what}: torch gave no ONNX program")
    graph = exported.model_proto.graph
    if graph.initializer:
        raise PlanError(
            f"graph {what}: {graph.initializer[0].name!r} would become part of the graph; weights are inputs"
        )
    return simplify(what, exported.model_proto, [value.name for value in inputs], [value.name for value in outputs])


def first_reason(error: BaseException) -> str:
    """Returns what torch stumbled over: it raises a dozen unrelated types, and wraps some of them in advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def declare(value: Value, name: str | None = None) -> onnx.ValueInfoProto:
    """Returns a value as a graph declares it, under its own or another name."""
    return onnx.helper.make_tensor_value_info(name or value.name, element_types[value.dtype], list(value.shape))


def example_arguments(inputs: Sequence[Value]) -> Iterator[Tensor]:
    """Yields a tensor for every value, with extents by which tracing cannot mistake one axis for another.

    The tracer takes axes of equal extent for the same axis, so every word gets a prime that no fixed extent equals
    and of which none is a product.
    """
    fixed = {extent for value in inputs for extent in value.shape if isinstance(extent, int)}
    words = sorted({extent for value in inputs for extent in value.shape if isinstance(extent, str)})
    primes = (number for number in range(11, 1 << 16) if all(number % d for d in range(2, math.isqrt(number) + 1)))
    free = (number for number in primes if all(extent % number for extent in fixed if extent))
    sizes: dict[Extent, int] = dict(zip(words, free, strict=False))
    for value in inputs:
        shape = [sizes[extent] if isinstance(extent, str) else extent for extent in value.shape]
        yield torch.zeros(shape, dtype=value.dtype)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences what torch tells every exporter: deprecations of its own internals, packages it would also know."""
    noisy = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = noisy.level
    noisy.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        noisy.setLevel(level)
