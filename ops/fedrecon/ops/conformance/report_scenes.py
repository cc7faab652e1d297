"""Scenes of what a device computes: the report that arrives is compared with the one that the Python SDK makes.

Body: every integer within one step of its rounding, and of the difference that two builds of ONNX Runtime may have;
what should be 0 is 0. Tail: weight and one exactly, metric sums as near as the engines are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedrecon.ops.conformance.hearing import Heard
from fedrecon.ops.conformance.playing import Answers, Play
from fedrecon.ops.conformance.scenes import (
    LOCAL_FAILED,
    NOT_ELIGIBLE,
    STOPPED_BEFORE_UPLOAD,
    Complaints,
    Scene,
    never,
)
from fedrecon.v1 import coordinator_pb2, task_pb2
from fedrecon.v1.common_pb2 import BlobReference
from fedrecon.v1.coordinator_pb2 import Assignment
from fedrecon.v1.plan_pb2 import Schedule
from fedrecon.v1.task_pb2 import LocalWork
from fedrecon.wire import fixed_point
from fedrecon.wire.digests import digest_of
from fedrecon.wire.fixed_point import FixedPoint, Vector
from fedrecon.wire.row_sets import write_row_set
from fedrecon.wire.tensors import read_safetensors, write_safetensors
from fedrecon.wire.vocabularies import write_vocabulary

ENGINE_SLACK = 1e-5
"""Relative difference that two builds of ONNX Runtime may have."""
_UNKNOWN_FIELD = b"\xc2\x3e\x05newer"
"""Field 1000 of any message, as a later version may have it."""


def report_complaints(play: Play) -> Complaints:
    """Yields how the report that arrived differs from what it should be."""
    if play.acknowledged:
        yield from vector_complaints(play, bytes(play.received))
    else:
        yield "no report arrived"


def vector_complaints(play: Play, arrived: bytes) -> Complaints:
    """Yields how a vector without masks differs from what it should be."""
    expected = play.material.report(play.assignment, play.blobs)
    agreed = expected.fixed_point
    if len(arrived) != agreed.vector_bytes:
        yield f"the vector has {len(arrived)} bytes, not {agreed.vector_bytes}"
        return
    right, found = fixed_point.read_vector(expected.vector, agreed), fixed_point.read_vector(arrived, agreed)
    wanted = _signed(right, agreed)
    apart = np.abs(_signed(found, agreed) - wanted)
    wrong = np.flatnonzero(apart > np.where(wanted == 0, 0, 1 + np.abs(wanted) * ENGINE_SLACK))
    if wrong.size:
        yield f"{wrong.size} of {apart.size} elements are wrong, the first is {wrong[0]}: {apart[wrong[0]]} steps off"
    tail, right_tail = found.tail.astype(np.int64), right.tail.astype(np.int64)
    metrics = slice(fixed_point.TAIL_METRICS, None)
    if (tail[: fixed_point.TAIL_METRICS] != right_tail[: fixed_point.TAIL_METRICS]).any():
        yield f"weight and one are {tail[:2].tolist()}, not {right_tail[:2].tolist()}"
    if (np.abs(tail - right_tail)[metrics] > 1 + np.abs(right_tail[metrics]) * ENGINE_SLACK).any():
        yield f"the metric sums are {tail[metrics].tolist()}, not {right_tail[metrics].tolist()}"


def _signed(vector: Vector, agreed: FixedPoint) -> NDArray[np.int64]:
    whole = vector.body.astype(np.int64)
    return whole - ((whole >> (agreed.ring_bits - 1)) << agreed.ring_bits)


def keep_blob(blobs: dict[bytes, bytes], content: bytes) -> BlobReference:
    """Keeps a blob, and returns its name."""
    blobs[digest_of(content)] = content
    return BlobReference(digest=digest_of(content), size=len(content))


def _evaluate(assignment: Assignment, blobs: dict[bytes, bytes]) -> None:
    del blobs
    assignment.kind = coordinator_pb2.SESSION_KIND_EVALUATE


def _settings_of_the_task(assignment: Assignment, blobs: dict[bytes, bytes]) -> None:
    del blobs
    assignment.work.CopyFrom(
        LocalWork(
            split=task_pb2.SPLIT_RULE_BY_TIME,
            support_fraction=0.5,
            reconstruct_schedule=Schedule(batch_size=3, epochs=2, maximum_steps=3),
            update_schedule=Schedule(batch_size=2, epochs=3, maximum_steps=4),
            hyperparameters={"rate": 0.125},
            maximum_examples=7,
            minimum_examples=2,
        )
    )
    assignment.secure_sum.maximum_weight = 2
    assignment.secure_sum.ring_bits = 16
    assignment.layout.segments[0].bound = 0.25


def _clip(assignment: Assignment, blobs: dict[bytes, bytes]) -> None:
    del blobs
    assignment.clip_norm = 0.5
    assignment.clip_adapts = True


def _row_set(assignment: Assignment, blobs: dict[bytes, bytes]) -> None:
    reference = keep_blob(blobs, write_row_set(np.array([1, 3, 4]), 5, 50))
    assignment.row_sets["items"].CopyFrom(reference)
    assignment.layout.segments[0].row_set_digest = reference.digest


def _new_item(assignment: Assignment, blobs: dict[bytes, bytes]) -> None:
    """A newer vocabulary, whose last row is the film that the plan did not know, and its checkpoint."""
    tensors = dict(read_safetensors(blobs[assignment.checkpoint.digest]))
    rows = len(tensors["items"])
    tensors["items"] = np.concatenate([tensors["items"], tensors["items"][:1] + np.float32(0.25)])
    assignment.checkpoint.CopyFrom(keep_blob(blobs, write_safetensors(tensors)))
    keys = [*(f"film-{row}" for row in range(rows)), "film-9"]
    assignment.vocabularies["items"].CopyFrom(keep_blob(blobs, write_vocabulary("items", 2, keys)))


def _evaluate_with_spread(assignment: Assignment, blobs: dict[bytes, bytes]) -> None:
    _evaluate(assignment, blobs)
    assignment.tells_spread = True


def _evaluate_with_outcomes(assignment: Assignment, blobs: dict[bytes, bytes]) -> None:
    _evaluate_with_spread(assignment, blobs)
    assignment.outcome_versions.extend((2, 5))


def _many_examples_wanted(assignment: Assignment, blobs: dict[bytes, bytes]) -> None:
    del blobs
    assignment.work.minimum_examples = 50


def _missing_row_set(assignment: Assignment, blobs: dict[bytes, bytes]) -> None:
    del blobs
    assignment.layout.segments[0].row_set_digest = digest_of(b"a row set that nothing names")


def _of_a_later_version(play: Play, call: Heard, before: int) -> Answers:
    """Adds a field that no version knows to every answer."""
    del before
    for message in play.usual(call):
        message.MergeFromString(_UNKNOWN_FIELD)
        yield message


REPORT_SCENES = (
    Scene("a report", "report", report_complaints),
    Scene("an evaluation", "evaluation", report_complaints, _evaluate),
    Scene("an evaluation that tells its spread", "spread", report_complaints, _evaluate_with_spread),
    Scene("an evaluation that asks for outcomes", "outcomes", report_complaints, _evaluate_with_outcomes),
    Scene("a task that sets everything", "task-settings", report_complaints, _settings_of_the_task),
    Scene("a clip norm that adapts", "clip-norm", report_complaints, _clip),
    Scene("rows of a public set", "row-sets", report_complaints, _row_set),
    Scene("an item that came later", "vocabularies", report_complaints, _new_item),
    Scene("fields of a later version", "unknown-fields", report_complaints, intercept=_of_a_later_version),
    Scene(
        "too few examples",
        "too-few-examples",
        never("Join", "Upload"),
        _many_examples_wanted,
        outcomes=frozenset({NOT_ELIGIBLE}),
        shape=STOPPED_BEFORE_UPLOAD,
    ),
    Scene(
        "a row set that is not there",
        "row-sets",
        never("Join", "Upload"),
        _missing_row_set,
        outcomes=frozenset({LOCAL_FAILED}),
        shape=STOPPED_BEFORE_UPLOAD,
    ),
)
