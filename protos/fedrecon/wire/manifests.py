"""Reading a plan: its manifest, its signature, and what follows from them.

A manifest is signed and named by the exact bytes of its JSON form, so it is never written again from its message.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from google.protobuf import json_format
from numpy.typing import NDArray

from fedrecon.v1 import plan_pb2
from fedrecon.v1.common_pb2 import BlobReference
from fedrecon.v1.plan_pb2 import Layout, Manifest, Parameter, PlanSignature
from fedrecon.v1.task_pb2 import SecureSum
from fedrecon.wire import keystream
from fedrecon.wire.fixed_point import FixedPoint, Segment
from fedrecon.wire.row_sets import RowSet
from fedrecon.wire.tensors import numpy_types

PLAN_FORMATS = (1,)
SIGNING_DOMAIN = b"fedrecon plan 1"
LARGEST_LOCALS = 1 << 24
"""Elements of all local parameters together: 64 MiB of float32."""

role_names = {number: name.removeprefix("GRAPH_ROLE_").lower() for name, number in plan_pb2.GraphRole.items()}
"""Roles of graphs as words: `reconstruct`."""


class MalformedPlanError(ValueError):
    """Bytes are not a plan that can be run here."""


class BadSignatureError(ValueError):
    """A plan's signature is not that of its publisher."""


def read_manifest(content: bytes) -> Manifest:
    """Returns the manifest of `manifest.json`.

    Raises:
        MalformedPlanError: it is no manifest, or of a format that this version does not run.
    """
    try:
        manifest = json_format.Parse(content, Manifest(), ignore_unknown_fields=True)
    except (json_format.ParseError, UnicodeDecodeError) as error:
        raise MalformedPlanError(f"the manifest cannot be read: {error}") from error
    if manifest.format not in PLAN_FORMATS:
        raise MalformedPlanError(
            f"plan {manifest.name!r} has format {manifest.format}; this version runs "
            f"{', '.join(map(str, PLAN_FORMATS))}: upgrade fedrecon, or compile the plan with this version"
        )
    return manifest


def write_manifest(manifest: Manifest) -> bytes:
    """Returns the bytes of `manifest.json`; their SHA-256 is the plan's digest."""
    return json_format.MessageToJson(manifest, preserving_proto_field_name=True, sort_keys=True).encode() + b"\n"


def sign_plan(plan_digest: bytes, key: Ed25519PrivateKey) -> PlanSignature:
    """Returns the publisher's signature over a plan's digest."""
    public = key.public_key().public_bytes_raw()
    return PlanSignature(publisher_key=public, signature=key.sign(SIGNING_DOMAIN + plan_digest))


def read_signature(content: bytes) -> PlanSignature:
    """Returns the signature of `signature.json`; `verify_plan` says whether it is right.

    Raises:
        BadSignatureError: it is no signature.
    """
    try:
        return json_format.Parse(content, PlanSignature())
    except (json_format.ParseError, UnicodeDecodeError) as error:
        raise BadSignatureError(f"the signature cannot be read: {str(error).rstrip('.')}") from error


def verify_plan(plan_digest: bytes, signature: PlanSignature) -> None:
    """Raises unless the signature is its publisher's word for this plan.

    Raises:
        BadSignatureError: it is not; whether the publisher is trusted is the caller's question.
    """
    try:
        key = Ed25519PublicKey.from_public_bytes(signature.publisher_key)
        key.verify(signature.signature, SIGNING_DOMAIN + plan_digest)
    except (ValueError, InvalidSignature) as error:
        raise BadSignatureError(
            f"the signature of plan {plan_digest.hex()} is not that of publisher {signature.publisher_key.hex()}"
        ) from error


def graph_of(manifest: Manifest, role: plan_pb2.GraphRole.ValueType) -> plan_pb2.Graph:
    """Returns the graph of a role.

    Raises:
        MalformedPlanError: the plan has none.
    """
    for graph in manifest.graphs:
        if graph.role == role:
            return graph
    raise MalformedPlanError(f"plan {manifest.name!r} has no graph of role {plan_pb2.GraphRole.Name(role)}")


def blobs_of(manifest: Manifest) -> Iterator[tuple[str, BlobReference]]:
    """Yields every blob that a manifest names, with a name for people."""
    for graph in manifest.graphs:
        yield f"graph {role_names.get(graph.role, graph.role)}", graph.blob
    yield "initial checkpoint", manifest.initial_checkpoint
    for name in sorted(manifest.vocabularies):
        yield f"vocabulary {name}", manifest.vocabularies[name]
    yield "recorded answers", manifest.recorded_answers


def local_parameters(manifest: Manifest) -> list[Parameter]:
    """Returns the parameters that never leave the device, in manifest order."""
    return [parameter for parameter in manifest.parameters if parameter.placement == plan_pb2.PLACEMENT_LOCAL]


def initial_locals(
    manifest: Manifest, global_parameters: Mapping[str, NDArray[Any]], seed: bytes
) -> dict[str, NDArray[Any]]:
    """Returns the local parameters as they are before reconstruction.

    Args:
        manifest: says how each starts.
        global_parameters: for those that start from a learned default.
        seed: 32 bytes; every session draws its own.

    Raises:
        MalformedPlanError: a parameter has no rule, or there are more than `LARGEST_LOCALS` elements.
        ValueError: a parameter's default has another shape.
    """
    initial: dict[str, NDArray[Any]] = {}
    start = 0
    for parameter in local_parameters(manifest):
        shape, count = tuple(parameter.shape), math.prod(parameter.shape)
        if start + count > LARGEST_LOCALS:
            raise MalformedPlanError(f"local parameter {parameter.name}: more than {LARGEST_LOCALS} local elements")
        match parameter.initial.WhichOneof("rule"):
            case "constant":
                values = np.full(shape, parameter.initial.constant)
            case "uniform_bound":
                drawn = keystream.uniform(seed, "initial", start, count)
                values = ((drawn * 2.0 - 1.0) * parameter.initial.uniform_bound).reshape(shape)
            case "global_parameter":
                values = global_parameters[parameter.initial.global_parameter].reshape(shape)
            case _:
                raise MalformedPlanError(f"local parameter {parameter.name} has no rule for its initial value")
        initial[parameter.name] = values.astype(numpy_types[parameter.dtype])
        start += count
    return initial


def segment_elements(
    layout: Layout, manifest: Manifest, rows: Mapping[str, int], row_sets: Mapping[bytes, RowSet]
) -> list[int]:
    """Returns the elements of every segment of a report's body.

    Args:
        layout: the segments.
        manifest: shapes of the parameters.
        rows: rows now in force, by vocabulary.
        row_sets: public row sets by digest, those that the layout names.

    Raises:
        MalformedPlanError: a segment names no global parameter of the plan, or one that another has named, or rows of
            another width, or a row set that is not there, is of a parameter without rows, or reaches beyond them.
    """
    parameters = {parameter.name: parameter for parameter in manifest.parameters}
    elements = []
    if len({segment.parameter for segment in layout.segments}) != len(layout.segments):
        raise MalformedPlanError("two segments of the layout are of one parameter")
    for segment in layout.segments:
        parameter = parameters.get(segment.parameter)
        if parameter is None or parameter.placement != plan_pb2.PLACEMENT_GLOBAL:
            raise MalformedPlanError(
                f"the layout names {segment.parameter!r}, which is no global parameter of the plan"
            )
        if not parameter.vocabulary:
            if segment.row_set_digest:
                raise MalformedPlanError(f"the layout gives {segment.parameter!r} a row set, and it has no vocabulary")
            elements.append(math.prod(parameter.shape))
            continue
        width = math.prod(parameter.shape[1:])
        if segment.width != width:
            raise MalformedPlanError(
                f"the layout gives rows of {segment.parameter!r} {segment.width} elements; the plan gives them {width}"
            )
        elements.append(_rows_held(segment, rows[parameter.vocabulary], row_sets) * width)
    return elements


def _rows_held(segment: plan_pb2.Segment, rows: int, row_sets: Mapping[bytes, RowSet]) -> int:
    if not segment.row_set_digest:
        return rows
    row_set = row_sets.get(segment.row_set_digest)
    if row_set is None:
        raise MalformedPlanError(f"segment {segment.parameter!r} names a row set that is not there")
    if row_set.rows[-1] >= rows:
        raise MalformedPlanError(f"segment {segment.parameter!r}: its row set has row {row_set.rows[-1]} of {rows}")
    return len(row_set.rows)


def least_contributing_share(layout: Layout, manifest: Manifest, row_sets: Mapping[bytes, RowSet]) -> float:
    """Returns which share of the devices in a sum is expected to update every row that it holds, at least.

    0 where all rows of a vocabulary are summed: then some row may have one contributor. 1 where no parameter has rows.

    Args:
        layout: the segments, as `segment_elements` accepts them.
        manifest: the parameters.
        row_sets: public row sets by digest.
    """
    with_rows = {parameter.name for parameter in manifest.parameters if parameter.vocabulary}
    shares = [
        row_sets[segment.row_set_digest].contributing_share if segment.row_set_digest else 0.0
        for segment in layout.segments
        if segment.parameter in with_rows
    ]
    return min(shares, default=1.0)


def fixed_point_of(
    layout: Layout, elements: list[int], metric_bounds: list[float], secure_sum: SecureSum
) -> FixedPoint:
    """Returns how a round's reports become integers.

    Args:
        layout: segments with their contribution bounds.
        elements: elements of every segment.
        metric_bounds: bound of every metric sum, in manifest order.
        secure_sum: the round's ring, weight clip and largest sum.

    Raises:
        ValueError: under these numbers a sum could overflow or carry nothing.
    """
    return FixedPoint(
        segments=tuple(
            Segment(elements=count, bound=segment.bound, row_set=segment.row_set_digest)
            for segment, count in zip(layout.segments, elements, strict=True)
        ),
        metric_bounds=tuple(metric_bounds),
        maximum_reports=secure_sum.maximum_reports,
        maximum_weight=secure_sum.maximum_weight,
        ring_bits=secure_sum.ring_bits,
    )
