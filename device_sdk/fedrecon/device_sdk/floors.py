"""What an app insists on, whatever the server says.

The server writes plans and assignments, so floors live in the app and are checked on the device before anything is
computed: whose plans may run, whether updates may leave outside a secure sum, how small a group may be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fedrecon.device_sdk.errors import FloorsNotMetError
from fedrecon.v1 import coordinator_pb2, task_pb2
from fedrecon.v1.coordinator_pb2 import Assignment
from fedrecon.wire import manifests

KEY_BYTES = 32
SESSION_BYTES = 16
MIN_CONTRIBUTORS = 5
"""Of 100 to 1,000 people of MovieLens 1M in a sum the plainest attack then finds 0 or 0.2 in the mean, instead of
68 to 106 without a floor (`fedrecon bench leakage`)."""

RUNNABLE_PROTOCOLS = (task_pb2.SUM_PROTOCOL_TRUSTED, task_pb2.SUM_PROTOCOL_SECAGG_PLUS)


@dataclass(frozen=True, slots=True)
class Floors:
    """What an app insists on.

    Attributes:
        trusted_plans: public keys of publishers whose plans may run; empty: any, also unsigned ones.
        secure_sum_required: whether an update leaves only under a secure sum.
        minimum_group: smallest group that may be joined.
        minimum_contributors: devices that must be expected to update each row of a vocabulary that a report holds, in
            the smallest group that may be opened; 0: any number.
    """

    trusted_plans: tuple[bytes, ...]
    secure_sum_required: bool
    minimum_group: int
    minimum_contributors: int = 0

    def message(self) -> coordinator_pb2.Floors:
        """Returns what the coordinator is told, so that it assigns nothing in vain."""
        return coordinator_pb2.Floors(
            trusted_plans=self.trusted_plans,
            secure_sum_required=self.secure_sum_required,
            minimum_group=self.minimum_group,
            minimum_contributors=self.minimum_contributors,
        )


def read_floors(
    trusted_plans: Sequence[str],
    secure_sum: Literal["required", "allowed"],
    min_group: int,
    min_contributors: int | None = None,
) -> Floors:
    """Returns the floors that an app states.

    Args:
        trusted_plans: publisher keys, 64 hexadecimal digits each.
        secure_sum: `"required"`, or `"allowed"` where the app accepts that the aggregator sees its updates.
        min_group: smallest group, at least 1.
        min_contributors: fewest expected contributors of a row, 0 for any number; None: `MIN_CONTRIBUTORS` where a
            secure sum is required, else 0: what may leave in clear, no sum has to hide.

    Raises:
        ValueError: a key is no key, or a word or number is out of range.
    """
    keys = []
    for text in trusted_plans:
        try:
            key = bytes.fromhex(text)
        except ValueError as error:
            raise ValueError(f"trusted_plans: {text!r} is not hexadecimal") from error
        if len(key) != KEY_BYTES:
            raise ValueError(f"trusted_plans: {text!r} has {len(key)} bytes; an Ed25519 public key has {KEY_BYTES}")
        keys.append(key)
    if secure_sum not in {"required", "allowed"}:
        raise ValueError(f'secure_sum is {secure_sum!r}; say "required" or "allowed"')
    if min_group < 1:
        raise ValueError(f"min_group is {min_group}; it must be at least 1")
    if min_contributors is None:
        min_contributors = MIN_CONTRIBUTORS if secure_sum == "required" else 0
    if min_contributors < 0:
        raise ValueError(f"min_contributors is {min_contributors}; it must be at least 0")
    return Floors(tuple(keys), secure_sum == "required", min_group, min_contributors)


def verify_assignment(assignment: Assignment, floors: Floors) -> None:
    """Raises unless an assignment is at least what the app insists on.

    Raises:
        FloorsNotMetError: its reason says what is wrong: `MALFORMED_ASSIGNMENT`, `UNTRUSTED_PLAN`,
            `SECURE_SUM_REQUIRED`, `GROUP_TOO_SMALL` or `UNKNOWN_PROTOCOL`.
    """
    if len(assignment.session) != SESSION_BYTES or assignment.kind not in {
        coordinator_pb2.SESSION_KIND_TRAIN,
        coordinator_pb2.SESSION_KIND_EVALUATE,
    }:
        raise FloorsNotMetError(
            f"the assignment has a session of {len(assignment.session)} bytes and kind {assignment.kind}",
            reason="MALFORMED_ASSIGNMENT",
        )
    if not 0 <= assignment.clip_norm < math.inf:
        raise FloorsNotMetError(
            f"the assignment clips updates to a norm of {assignment.clip_norm}", reason="MALFORMED_ASSIGNMENT"
        )
    _verify_plan(assignment, floors)
    protocol = assignment.secure_sum.protocol
    if floors.secure_sum_required and protocol in {
        task_pb2.SUM_PROTOCOL_TRUSTED,
        task_pb2.SUM_PROTOCOL_UNSPECIFIED,
    }:
        raise FloorsNotMetError(
            "the assignment sends the update in clear; the app requires a secure sum", reason="SECURE_SUM_REQUIRED"
        )
    if assignment.secure_sum.minimum_group < floors.minimum_group:
        raise FloorsNotMetError(
            f"the assignment opens sums of {assignment.secure_sum.minimum_group} devices; "
            f"the app joins groups of at least {floors.minimum_group}",
            reason="GROUP_TOO_SMALL",
        )
    if protocol not in RUNNABLE_PROTOCOLS:
        raise FloorsNotMetError(
            f"the assignment sums by protocol {protocol}, which this version of the SDK does not know",
            "upgrade the SDK",
            reason="UNKNOWN_PROTOCOL",
        )
    if assignment.secure_sum.maximum_reports < floors.minimum_group:  # it promises groups that cannot be
        raise FloorsNotMetError(
            f"the assignment's sums hold at most {assignment.secure_sum.maximum_reports} reports; "
            f"the app joins groups of at least {floors.minimum_group}",
            reason="GROUP_TOO_SMALL",
        )


def _verify_plan(assignment: Assignment, floors: Floors) -> None:
    """Raises unless the plan's publisher is trusted and signed it."""
    if not floors.trusted_plans and not assignment.HasField("signature"):
        return
    try:
        manifests.verify_plan(assignment.plan.digest, assignment.signature)
    except manifests.BadSignatureError as error:
        raise FloorsNotMetError(str(error), reason="UNTRUSTED_PLAN") from error
    if floors.trusted_plans and assignment.signature.publisher_key not in floors.trusted_plans:
        raise FloorsNotMetError(
            f"the plan is signed by {assignment.signature.publisher_key.hex()}, whom the app does not trust",
            reason="UNTRUSTED_PLAN",
        )
