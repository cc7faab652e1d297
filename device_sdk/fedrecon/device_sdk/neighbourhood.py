"""A device's place in a secure sum: what it is told of its group when it joined, checked before it believes any of it.

Rules: everything comes from the server, and the server gains by small groups, few neighbours and a low threshold. What
cannot be checked (that the ring is random, that neighbours are devices) is said in the documentation; what can be is
checked here, once. Every refusal has a stable reason.

A server that collects one share of each of a member's secrets from every neighbour, telling half of them that it was
lost, must stay below the threshold in one of the two: so 2t > k, always (Bell et al., CCS 2020, section 4).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedrecon.device_sdk.errors import SumRefusedError
from fedrecon.v1.aggregator_pb2 import JoinResponse, Member
from fedrecon.v1.common_pb2 import RoundKey
from fedrecon.wire.digests import DIGEST_BYTES, digest_of
from fedrecon.wire.fixed_point import FixedPoint
from fedrecon.wire.sum_context import (
    GROUP_BYTES,
    SERVER_NONCE_BYTES,
    BadKeysError,
    SumContext,
    roster_digest,
    verify_keys,
)

FEWEST_NEIGHBOURS = 10
"""Neighbours that a member has at least, unless they are all others."""


@dataclass(frozen=True, slots=True)
class MaskTerms:
    """What a session was promised before it joined, by assignment, plan and its own key.

    Attributes:
        round_key: the attempt.
        session: the session, 16 bytes.
        device_key: the device's own public key, 32 bytes.
        kind: `SessionKind`.
        plan_digest: the plan that was run.
        checkpoint_digest: the checkpoint that the update started from.
        fixed_point: how the report became integers.
        minimum_group: fewest survivors for which the sum is opened.
    """

    round_key: RoundKey
    session: bytes
    device_key: bytes
    kind: int
    plan_digest: bytes
    checkpoint_digest: bytes
    fixed_point: FixedPoint
    minimum_group: int


@dataclass(frozen=True, slots=True)
class Neighbourhood:
    """A device's place in a group, checked.

    Attributes:
        index: its own index.
        threshold: shares that recover a secret.
        neighbours: its neighbours by index.
        complete: whether they are all other members.
        context: the context of the sum, as the device computed it.
    """

    index: int
    threshold: int
    neighbours: Mapping[int, Member]
    complete: bool
    context: bytes


def enter(joined: JoinResponse, terms: MaskTerms, own: Member, smallest_group: int) -> Neighbourhood:
    """Returns a device's place in a group.

    Args:
        joined: what the server says.
        terms: what the session was promised.
        own: the device's own entry of the roster, but for its index.
        smallest_group: fewest members that it accepts.

    Raises:
        SumRefusedError: something is not as it must be.
    """
    _check_numbers(joined, terms, smallest_group)
    neighbours = {member.index: member for member in joined.neighbours}
    _check_members(joined, neighbours, own)
    for member in joined.neighbours:
        try:
            verify_keys(terms.round_key, member)
        except BadKeysError as error:
            raise SumRefusedError(str(error), reason="BAD_SIGNATURE") from error
    complete = len(neighbours) == joined.members - 1
    if complete:
        entry = Member()
        entry.CopyFrom(own)
        entry.index = joined.index
        roster = [neighbours.get(index, entry) for index in range(joined.members)]
        if roster_digest(roster) != joined.roster_digest:
            raise SumRefusedError("the roster's digest is not that of its members", reason="BAD_ROSTER")
    context = SumContext(
        task=terms.round_key.task,
        round=terms.round_key.round,
        attempt=terms.round_key.attempt,
        kind=terms.kind,
        group=joined.group,
        server_nonce=joined.server_nonce,
        plan_digest=terms.plan_digest,
        checkpoint_digest=terms.checkpoint_digest,
        members=joined.members,
        neighbours=len(neighbours),
        threshold=joined.threshold,
        fixed_point=terms.fixed_point,
        roster_digest=joined.roster_digest,
    )
    return Neighbourhood(joined.index, joined.threshold, neighbours, complete, context.digest())


def _check_numbers(joined: JoinResponse, terms: MaskTerms, smallest_group: int) -> None:
    """Raises unless sizes are those of the contract, and the group's numbers those of a group that hides anybody."""
    lengths = (len(joined.group), len(joined.server_nonce), len(joined.roster_digest))
    if lengths != (GROUP_BYTES, SERVER_NONCE_BYTES, DIGEST_BYTES):
        raise SumRefusedError(
            f"group, server nonce and roster digest have {lengths} bytes; "
            f"they must have {(GROUP_BYTES, SERVER_NONCE_BYTES, DIGEST_BYTES)}",
            reason="BAD_ROSTER",
        )
    if joined.members < smallest_group:
        raise SumRefusedError(
            f"the group has {joined.members} members; this device joins groups of at least {smallest_group}",
            reason="GROUP_TOO_SMALL",
        )
    if joined.members > terms.fixed_point.maximum_reports:
        raise SumRefusedError(
            f"the group has {joined.members} members; its sum holds {terms.fixed_point.maximum_reports}",
            reason="GROUP_TOO_LARGE",
        )
    count = len(joined.neighbours)
    if count < min(FEWEST_NEIGHBOURS, joined.members - 1) or count < joined.threshold:
        raise SumRefusedError(
            f"{count} neighbours of {joined.members} members with a threshold of {joined.threshold} are too few",
            reason="TOO_FEW_NEIGHBOURS",
        )
    if 2 * joined.threshold <= count:
        raise SumRefusedError(
            f"{joined.threshold} of {count} neighbours recover a secret; it must take more than half of them",
            reason="THRESHOLD_TOO_LOW",
        )


def _check_members(joined: JoinResponse, neighbours: Mapping[int, Member], own: Member) -> None:
    """Raises unless every neighbour is somebody else, once."""
    indices_hold = joined.index not in neighbours and max({joined.index, *neighbours}) < joined.members
    if len(neighbours) != len(joined.neighbours) or not indices_hold:
        raise SumRefusedError("a neighbour is in the list twice, or is none of the group", reason="BAD_ROSTER")
    keys = {own.share_key, own.mask_key}
    keys.update(key for member in joined.neighbours for key in (member.share_key, member.mask_key))
    devices = {own.device_key, *(member.device_key for member in joined.neighbours)}
    if len(keys) != 2 * (len(neighbours) + 1) or len(devices) != len(neighbours) + 1:
        raise SumRefusedError("a key is in the list twice, or is this device's own", reason="BAD_ROSTER")


def own_entry(terms: MaskTerms, share_key: bytes, mask_key: bytes) -> Member:
    """Returns a device's own entry of the roster, but for its index and signature."""
    return Member(
        share_key=share_key, mask_key=mask_key, device_key=terms.device_key, session_digest=digest_of(terms.session)
    )
