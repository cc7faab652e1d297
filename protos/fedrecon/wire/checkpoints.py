"""Global parameters as a checkpoint holds them, held against their plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrecon.v1 import plan_pb2
from fedrecon.v1.plan_pb2 import Manifest
from fedrecon.wire.tensors import numpy_types


class MismatchedCheckpointError(ValueError):
    """A checkpoint does not belong to its plan, or holds what no training should make."""


def global_parameters(manifest: Manifest, tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Returns the global parameters of a checkpoint, in their plan's types.

    Args:
        manifest: the plan's.
        tensors: the checkpoint's content by name; what the plan does not know is left out.

    Raises:
        MismatchedCheckpointError: a parameter is missing, has another shape, or holds a value that is not finite.
    """
    checkpoint: dict[str, NDArray[Any]] = {}
    for parameter in manifest.parameters:
        if parameter.placement != plan_pb2.PLACEMENT_GLOBAL:
            continue
        tensor, shape = tensors.get(parameter.name), tuple(parameter.shape)
        fixed = 1 if parameter.vocabulary else 0  # rows come and go with the vocabulary
        if tensor is None or tensor.ndim != len(shape) or tensor.shape[fixed:] != shape[fixed:]:
            raise MismatchedCheckpointError(
                f"parameter {parameter.name} should have shape {list(shape)}, "
                f"found {'nothing' if tensor is None else list(tensor.shape)}: "
                "checkpoint and plan do not belong together"
            )
        if not np.isfinite(tensor).all():
            raise MismatchedCheckpointError(
                f"parameter {parameter.name} holds values that are not finite: training diverged"
            )
        checkpoint[parameter.name] = tensor.astype(numpy_types[parameter.dtype], copy=False)
    return checkpoint
