"""What binds the messages of one masked sum together: the context, the roster's digest, the signature over keys.

Every member of a group computes the context from what it was told itself. It goes into every key that two members agree
on and into every sealed share: members that were shown different models, rosters or numbers have masks that do not
cancel and shares that do not open (against a server that shows every client another model: Pasquini et al. 2021,
arXiv 2111.07380).

Encoding: every item is its length in 4 bytes and then its bytes; text is UTF-8, integers have 8 bytes, real numbers are
IEEE 754 binary64, all little-endian; a list is the number of its entries and then their items. A digest is SHA-256 over
the items in the order of the functions below, of which the first is a label with a version.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedrecon.v1.aggregator_pb2 import Member
from fedrecon.v1.common_pb2 import RoundKey
from fedrecon.wire.fixed_point import FixedPoint

CONTEXT_BYTES = 32
GROUP_BYTES = 16
SERVER_NONCE_BYTES = 32
SMALLEST_GROUP = 3
"""Of two, each could take its own report away from the sum."""

MOST_DROP_OUT = 0.3
"""Largest share of a group that may be lost after it shared: beyond it, small groups have no threshold above half."""

_SPARE_SHARE = 10
"""One spare member for so many wanted reports."""

_CONTEXT_LABEL = "fedrecon secure sum context 2"
_ROSTER_LABEL = "fedrecon secure sum roster 1"
_KEYS_LABEL = "fedrecon secure sum keys 1"
_SEED_LABEL = "fedrecon secure sum seed 1"


class BadKeysError(ValueError):
    """A member's keys are not signed by its device key, for this attempt and this session."""


def expected_members(cohort_size: int, report_goal: int) -> int:
    """Returns how many devices the groups of a cohort wait for, all together.

    Under `trusted` the whole cohort may report. A masked sum takes devices whose update is ready, so only those that
    are lost between their keys and their vector must be made up for: a tenth more than are wanted.

    Args:
        cohort_size: devices that are assigned.
        report_goal: reports that are wanted under a masked protocol; 0 under `trusted`.

    Example:
        >>> expected_members(130, 0), expected_members(130, 100), expected_members(105, 100)
        (130, 110, 105)
    """
    if not report_goal:
        return cohort_size
    return min(cohort_size, report_goal + -(-report_goal // _SPARE_SHARE))


def groups_needed(expected: int, maximum_reports: int) -> int:
    """Returns how many groups so many members need.

    Args:
        expected: members of all groups.
        maximum_reports: most reports of one group.

    Example:
        >>> groups_needed(110, 100), groups_needed(1, 100)
        (2, 1)
    """
    return max(1, -(-expected // maximum_reports))


@dataclass(frozen=True, slots=True)
class SumContext:
    """What all members of a group must have been told alike.

    Attributes:
        task: name of the task.
        round: number of the round.
        attempt: attempt of the round.
        kind: `SessionKind` of the sessions.
        group: id of the group, 16 bytes.
        server_nonce: the server's random bytes, 32.
        plan_digest: the plan.
        checkpoint_digest: the checkpoint that updates start from.
        members: how many the roster has.
        neighbours: how many every member has.
        threshold: shares that recover a secret.
        fixed_point: how reports become integers.
        roster_digest: `roster_digest` of all members.
    """

    task: str
    round: int
    attempt: int
    kind: int
    group: bytes
    server_nonce: bytes
    plan_digest: bytes
    checkpoint_digest: bytes
    members: int
    neighbours: int
    threshold: int
    fixed_point: FixedPoint
    roster_digest: bytes

    def digest(self) -> bytes:
        """Returns the context: SHA-256 over the label and all attributes, in order.

        `fixed_point` stands for ring bits, most reports, largest weight, the list of (elements, bound, row set) of its
        segments, and the list of metric bounds.
        """
        agreed = self.fixed_point
        return _digest(
            [
                _text(_CONTEXT_LABEL),
                _text(self.task),
                *map(_integer, (self.round, self.attempt, self.kind)),
                *map(_item, (self.group, self.server_nonce, self.plan_digest, self.checkpoint_digest)),
                *map(_integer, (self.members, self.neighbours, self.threshold)),
                *map(_integer, (agreed.ring_bits, agreed.maximum_reports, agreed.maximum_weight)),
                _integer(len(agreed.segments)),
                *(_integer(one.elements) + _real(one.bound) + _item(one.row_set) for one in agreed.segments),
                _integer(len(agreed.metric_bounds)),
                *map(_real, agreed.metric_bounds),
                _item(self.roster_digest),
            ]
        )


def roster_digest(members: Sequence[Member]) -> bytes:
    """Returns the digest of a roster.

    Over the label, the number of members, and of every member in order of its index: index, share key, mask key,
    device key, session digest.

    Args:
        members: all of them, in order of their indices.
    """
    items = [_text(_ROSTER_LABEL), _integer(len(members))]
    for member in members:
        items.append(_integer(member.index))
        items += map(_item, (member.share_key, member.mask_key, member.device_key, member.session_digest))
    return _digest(items)


def keys_message(round_key: RoundKey, session_digest: bytes, share_key: bytes, mask_key: bytes) -> bytes:
    """Returns what a device's Ed25519 key signs when it joins, before there is a group.

    The items label, task, round, attempt, session digest, share key, mask key, one after the other.

    Args:
        round_key: the attempt.
        session_digest: SHA-256 of the session: neighbours check the signature and need not know the session.
        share_key: public key for shares.
        mask_key: public key for masks.
    """
    return b"".join(
        [
            _text(_KEYS_LABEL),
            _text(round_key.task),
            *map(_integer, (round_key.round, round_key.attempt)),
            *map(_item, (session_digest, share_key, mask_key)),
        ]
    )


def verify_keys(round_key: RoundKey, member: Member) -> None:
    """Raises unless a member's device key signed its keys for this attempt.

    Args:
        round_key: the attempt.
        member: the entry of the roster.

    Raises:
        BadKeysError: it did not.
    """
    message = keys_message(round_key, member.session_digest, member.share_key, member.mask_key)
    try:
        Ed25519PublicKey.from_public_bytes(member.device_key).verify(member.key_signature, message)
    except (InvalidSignature, ValueError) as error:  # a key that is none is a ValueError
        raise BadKeysError(f"the keys of member {member.index} are not signed by its device key") from error


def seed_commitment(context: bytes, member: int, seed: bytes) -> bytes:
    """Returns what a member says of its self-mask seed when it shares it: SHA-256 over label, context, index, seed."""
    return _digest([_text(_SEED_LABEL), _item(context), _integer(member), _item(seed)])


def _text(value: str) -> bytes:
    return _item(value.encode())


def _integer(value: int) -> bytes:
    return _item(struct.pack("<Q", value))


def _real(value: float) -> bytes:
    return _item(struct.pack("<d", value))


def _item(content: bytes) -> bytes:
    return struct.pack("<I", len(content)) + content


def _digest(items: Iterable[bytes]) -> bytes:
    return hashlib.sha256(b"".join(items)).digest()
