"""What a drawn device is told, and the secrets bound to it: marks, tickets and round tokens.

Round tokens and session keys are made with the newest of the services' keys; all else is keyed with a key that is never
replaced, each under a domain of its own, so that a device keeps its names when keys are. A mark names a device within
one attempt only: the journal holds marks, never device keys, so it cannot be asked who took part in two rounds.
"""

from __future__ import annotations

import hmac

from fedrecon.coordinator.round_events import Blob, Kind, Slot
from fedrecon.coordinator.round_state import Round
from fedrecon.coordinator.specs import Prepared, tells_spread, work_of
from fedrecon.ops.tokens import issue_token, session_key
from fedrecon.v1 import coordinator_pb2
from fedrecon.v1.common_pb2 import BlobReference, RoundKey
from fedrecon.v1.coordinator_pb2 import Assignment
from fedrecon.v1.task_pb2 import TaskSpec

MARK_BYTES = 16
PRIORITY_BYTES = 8
_TICKET_MAC_BYTES = 16
_MARK_DOMAIN = b"fedrecon mark 1"
_TICKET_DOMAIN = b"fedrecon ticket 1"
_HELD_OUT_DOMAIN = b"fedrecon held out 1"
_SAMPLED_DOMAIN = b"fedrecon sampled 1"
_PARTICIPATION_DOMAIN = b"fedrecon participation 1"


def key_of(attempt: Round, part: int = 0) -> RoundKey:
    """Returns the key of an attempt, or of a part of it, on the wire."""
    return RoundKey(task=attempt.opened.task, round=attempt.number, attempt=attempt.attempt, part=part)


def session_kind_of(kind: Kind) -> coordinator_pb2.SessionKind.ValueType:
    """Returns what sessions are for, as the contract names it."""
    return coordinator_pb2.SessionKind.Value(f"SESSION_KIND_{kind.value}")


def is_held_out(key: bytes, task: str, device_key: bytes, share: float) -> bool:
    """Returns whether a device is held out from a task's training, for good: by a keyed hash, which nobody chooses.

    Args:
        key: Of names in ledgers.
        task: The task.
        device_key: The device's.
        share: Of devices that are held out.
    """
    if not share:
        return False
    drawn = int.from_bytes(_keyed(key, _HELD_OUT_DOMAIN, task.encode(), device_key)[:8], "little")
    return drawn < share * (1 << 64)


def is_sampled(key: bytes, number: int, attempt: int, task: str, device_key: bytes, rate: float) -> bool:
    """Returns whether a device may be drawn for an attempt: Poisson sampling by a keyed hash, which nobody chooses.

    Args:
        key: Of round tokens.
        number: The round.
        attempt: Its attempt.
        task: The task.
        device_key: The device's.
        rate: Share of devices that may be drawn; 0: all.
    """
    if not rate:
        return True
    numbers = number.to_bytes(8, "little") + attempt.to_bytes(8, "little")
    drawn = int.from_bytes(_keyed(key, _SAMPLED_DOMAIN, task.encode(), numbers, device_key)[:8], "little")
    return drawn < rate * (1 << 64)


def reference_to(blob: Blob | None) -> BlobReference | None:
    """Returns a blob as the contract names it."""
    return None if blob is None else BlobReference(digest=blob.digest, size=blob.size)


def mark_of(key: bytes, attempt: Round, device_key: bytes) -> bytes:
    """Returns the mark of a device in an attempt, 16 bytes."""
    numbers = attempt.number.to_bytes(8, "little") + attempt.attempt.to_bytes(8, "little")
    return _keyed(key, _MARK_DOMAIN, attempt.opened.task.encode(), numbers, device_key)[:MARK_BYTES]


def participation_of(key: bytes, task: str, device_key: bytes) -> str:
    """Returns the name under which a device's last participation in a task is remembered for a while."""
    return f"participation/{_keyed(key, _PARTICIPATION_DOMAIN, task.encode(), device_key).hex()}"


def membership_of(key: bytes, task: str, device_key: bytes, tree: int) -> str:
    """Returns the name under which it is remembered that a device took part in a tree of noise."""
    return f"tree/{tree}/{_keyed(key, _PARTICIPATION_DOMAIN, task.encode(), device_key).hex()}"


def issue_ticket(key: bytes, attempt: Round, device_key: bytes, priority: int) -> bytes:
    """Returns a ticket that keeps a device's priority in an attempt's selection: nobody can choose a better one."""
    drawn = priority.to_bytes(PRIORITY_BYTES, "little")
    return drawn + _ticket_mac(key, attempt, device_key, drawn)


def read_ticket(key: bytes, attempt: Round, device_key: bytes, ticket: bytes) -> int | None:
    """Returns the priority of a ticket; None if it is not this device's of this attempt: then it draws anew."""
    if not ticket:
        return None
    drawn, mac = ticket[:PRIORITY_BYTES], ticket[PRIORITY_BYTES:]
    genuine = hmac.compare_digest(mac, _ticket_mac(key, attempt, device_key, drawn))
    return int.from_bytes(drawn, "little") if genuine else None


def common_assignment(prepared: Prepared, attempt: Round) -> Assignment:
    """Returns what all devices of an attempt are told alike: made once, since a cohort has thousands.

    Args:
        prepared: What the plan gives.
        attempt: An attempt with a cohort.
    """
    spec = TaskSpec.FromString(attempt.opened.spec)
    return Assignment(
        kind=session_kind_of(attempt.kind),
        plan=spec.plan,
        signature=spec.signature if spec.HasField("signature") else None,
        checkpoint=reference_to(attempt.opened.checkpoint),
        vocabularies=spec.vocabularies or prepared.manifest.vocabularies,
        secure_sum=spec.secure_sum,
        work=work_of(spec, attempt.number),
        layout=None if attempt.kind is Kind.EVALUATE else prepared.layout,
        row_sets=None if attempt.kind is Kind.EVALUATE else spec.row_sets,
        clip_norm=attempt.opened.clip_norm,
        clip_adapts=spec.privacy.clip_quantile > 0,
        tells_spread=tells_spread(spec, attempt.kind),
        outcome_versions=attempt.opened.outcome_versions,
    )


def make_assignment(
    key: bytes, common: Assignment, attempt: Round, slot: Slot, device_key: bytes, blobs: str, now: int
) -> Assignment:
    """Returns what one device is told; the same slot gives the same session whenever it asks.

    Args:
        key: The newest of the services' keys.
        common: What all devices of the attempt are told.
        attempt: The attempt.
        slot: The device's place in it.
        device_key: The device's.
        blobs: Target of a Blobs service; empty: the aggregator's.
        now: Unix milliseconds.
    """
    assert attempt.assigned is not None  # noqa: S101 - a slot exists only in a cohort
    assignment = Assignment()
    assignment.CopyFrom(common)
    assignment.session = slot.session
    assignment.round.CopyFrom(key_of(attempt, slot.part))
    assignment.aggregator = attempt.parts[slot.part].aggregator
    assignment.blobs = blobs or assignment.aggregator
    assignment.report_within_milliseconds = max(attempt.reporting_ends - now, 0)
    assignment.round_token = issue_token(key, assignment.round, slot.session, attempt.assigned.groups_expire_at)
    assignment.session_key = session_key(key, assignment.round, slot.session, device_key)
    return assignment


def _ticket_mac(key: bytes, attempt: Round, device_key: bytes, drawn: bytes) -> bytes:
    where = key_of(attempt).SerializeToString(deterministic=True)
    return _keyed(key, _TICKET_DOMAIN, where, device_key, drawn)[:_TICKET_MAC_BYTES]


def _keyed(key: bytes, *parts: bytes) -> bytes:
    framed = b"".join(len(part).to_bytes(8, "little") + part for part in parts)
    return hmac.digest(key, framed, "sha256")
