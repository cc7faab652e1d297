"""The members of a masked group: who is whose neighbour, and how roster and shares lie in their sealed files.

A roster's file is the contract's `Member`s, a shares' file its `ShareRequest`s without proof, each behind its length (4
bytes, little-endian); the requests are preceded by the index of the member that made them, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fedrecon.aggregator import rings
from fedrecon.aggregator.groups import Group
from fedrecon.v1.aggregator_pb2 import Member, ShareRequest
from fedrecon.wire.sum_context import SumContext, roster_digest

_LENGTH_BYTES = 4


@dataclass(frozen=True, slots=True)
class Roster:
    """A frozen roster.

    Attributes:
        members: by index.
        neighbours: indices of everybody's neighbours, by index.
        threshold: t, shares that recover a secret.
        nonce: the server's, part of the context.
        digest: of all members.
        context: binds keys, shares and masks.
    """

    members: tuple[Member, ...]
    neighbours: Mapping[int, tuple[int, ...]]
    threshold: int
    nonce: bytes
    digest: bytes
    context: bytes


def roster_of(group: Group, members: Sequence[Member]) -> Roster:
    """Returns the roster of a group that has one, with the members that its file holds."""
    frozen, config = group.roster, group.config
    assert frozen is not None  # noqa: S101 - asked of groups that are past joining
    digest = roster_digest(members)
    context = SumContext(
        task=config.task,
        round=config.round,
        attempt=config.attempt,
        kind=config.kind,
        group=group.group,
        server_nonce=frozen.server_nonce,
        plan_digest=config.plan_digest,
        checkpoint_digest=config.checkpoint_digest,
        members=len(members),
        neighbours=frozen.neighbours,
        threshold=frozen.threshold,
        fixed_point=config.fixed_point,
        roster_digest=digest,
    )
    return Roster(
        members=tuple(members),
        neighbours=rings.all_neighbours(frozen.ring, frozen.neighbours),
        threshold=frozen.threshold,
        nonce=frozen.server_nonce,
        digest=digest,
        context=context.digest(),
    )


def write_members(members: Sequence[Member]) -> bytes:
    """Returns the content of a roster's file."""
    return b"".join(_framed(member.SerializeToString(deterministic=True)) for member in members)


def read_members(content: bytes) -> tuple[Member, ...]:
    """Returns the members that a roster's file holds."""
    return tuple(Member.FromString(part) for part in _parts(content))


def write_shares(shares: Mapping[int, ShareRequest]) -> bytes:
    """Returns the content of a shares' file."""
    return b"".join(
        _framed(index.to_bytes(_LENGTH_BYTES, "little") + request.SerializeToString(deterministic=True))
        for index, request in shares.items()
    )


def read_shares(content: bytes) -> dict[int, ShareRequest]:
    """Returns the shares that a file holds, by the index of the member that made them."""
    return {
        int.from_bytes(part[:_LENGTH_BYTES], "little"): ShareRequest.FromString(part[_LENGTH_BYTES:])
        for part in _parts(content)
    }


def _framed(part: bytes) -> bytes:
    return len(part).to_bytes(_LENGTH_BYTES, "little") + part


def _parts(content: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(content):
        end = start + _LENGTH_BYTES + int.from_bytes(content[start : start + _LENGTH_BYTES], "little")
        yield content[start + _LENGTH_BYTES : end]
        start = end
