"""Scenes of assignments below what the app insists on: refused on the device, whatever the coordinator says."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedrecon.ops.conformance.scenes import (
    MINIMUM_GROUP,
    OF_WORK,
    REFUSED,
    STOPPED_AT_ONCE,
    STOPPED_BEFORE_UPLOAD,
    Change,
    Scene,
    never,
)
from fedrecon.v1 import coordinator_pb2
from fedrecon.v1.coordinator_pb2 import Assignment
from fedrecon.wire.manifests import sign_plan


def _short_session(assignment: Assignment, blobs: dict[bytes, bytes]) -> None:
    del blobs
    assignment.session = assignment.session[:-1]


def _no_kind(assignment: Assignment, blobs: dict[bytes, bytes]) -> None:
    del blobs
    assignment.kind = coordinator_pb2.SESSION_KIND_UNSPECIFIED


def _negative_norm(assignment: Assignment, blobs: dict[bytes, bytes]) -> None:
    del blobs
    assignment.clip_norm = -1.0


def _no_signature(assignment: Assignment, blobs: dict[bytes, bytes]) -> None:
    del blobs
    assignment.ClearField("signature")


def _forged_signature(assignment: Assignment, blobs: dict[bytes, bytes]) -> None:
    del blobs
    assignment.signature.signature = bytes(64)


def _another_publisher(assignment: Assignment, blobs: dict[bytes, bytes]) -> None:
    del blobs
    assignment.signature.CopyFrom(sign_plan(assignment.plan.digest, Ed25519PrivateKey.generate()))


def _little_group(assignment: Assignment, blobs: dict[bytes, bytes]) -> None:
    del blobs
    assignment.secure_sum.minimum_group = MINIMUM_GROUP - 1


def _later_protocol(assignment: Assignment, blobs: dict[bytes, bytes]) -> None:
    del blobs
    assignment.secure_sum.protocol = 99  # type: ignore[assignment]  # of a later version


def _scene(name: str, reason: str, change: Change) -> Scene:
    refused = frozenset({REFUSED})
    return Scene(name, reason, never(*OF_WORK), change, outcomes=refused, shape=STOPPED_AT_ONCE)


FLOOR_SCENES = (
    _scene("a session of 15 bytes", "MALFORMED_ASSIGNMENT", _short_session),
    _scene("a session without a kind", "MALFORMED_ASSIGNMENT", _no_kind),
    _scene("a clip norm below 0", "MALFORMED_ASSIGNMENT", _negative_norm),
    _scene("a plan that nobody signed", "UNTRUSTED_PLAN", _no_signature),
    _scene("a forged signature", "UNTRUSTED_PLAN", _forged_signature),
    _scene("a plan of another publisher", "UNTRUSTED_PLAN", _another_publisher),
    _scene("a group below the app's", "GROUP_TOO_SMALL", _little_group),
    _scene("a protocol of a later version", "UNKNOWN_PROTOCOL", _later_protocol),
    Scene(
        "a sum in clear",
        "SECURE_SUM_REQUIRED",
        never(*OF_WORK),
        outcomes=frozenset({REFUSED}),
        shape=STOPPED_AT_ONCE,
        secure_sum="required",
    ),
    Scene(
        "rows with a single contributor",
        "TOO_FEW_CONTRIBUTORS",
        never("Join", "Upload"),
        outcomes=frozenset({REFUSED}),
        shape=STOPPED_BEFORE_UPLOAD,
        minimum_contributors=5,
    ),
)
