"""The sums that a round is merged of, whichever aggregator summed them.

A group that is at work here is read here, and given up if its sum is gone. Of the others the journal tells that they
are closed and which sealed file holds their sum; nobody needs to hold a group to read it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import grpc

from fedrecon.aggregator.attempts import Attempts, state_of, streams_of
from fedrecon.aggregator.group_events import Config, Phase
from fedrecon.aggregator.groups import Group, IllegalEventError
from fedrecon.aggregator.merging import ClosedSum
from fedrecon.aggregator.messages import malformed
from fedrecon.aggregator.refusals import sum_lost
from fedrecon.aggregator.snapshots import SnapshotLostError
from fedrecon.aggregator.summing import Storage
from fedrecon.ops.boundary import Refusal
from fedrecon.ops.journal import JournalError, JournalUnavailable, checked_name
from fedrecon.v1.aggregator_pb2 import MergeRequest
from fedrecon.v1.common_pb2 import RoundKey


@dataclass(frozen=True, slots=True)
class ClosedGroups:
    """The groups of an attempt that are to be merged.

    Attributes:
        config: what one of them was opened for; the others differ in how many devices they were for.
        groups: as the journal has them, in the order of their ids.
    """

    config: Config
    groups: tuple[Group, ...]


async def find_closed(attempts: Attempts, storage: Storage, request: MergeRequest) -> ClosedGroups:
    """Returns the groups that a merge names.

    Args:
        attempts: those at work here.
        storage: where the others are.
        request: the merge.

    Raises:
        Refusal: one is unknown, named twice, not closed, or of another plan or checkpoint.
        JournalUnavailable: the journal does not answer.
    """
    if not request.groups or len(set(request.groups)) != len(request.groups):
        raise malformed("a merge names at least one group, and each once")
    try:
        checked_name(request.round.task)
    except ValueError as error:
        raise malformed(str(error)) from error
    held = attempts.held_groups(request.round)
    known = {group: one.group for group, one in held.items() if one.group.phase is Phase.CLOSED}
    if not set(request.groups) <= known.keys():  # what is open here may be closed where it is held by now
        known = await _elsewhere(storage, request.round) | known
    if not known:
        raise Refusal(
            grpc.StatusCode.NOT_FOUND,
            "UNKNOWN_ROUND",
            "The attempt has no groups.",
            "Open it first; its sums are gone an hour after its round.",
        )
    if missing := set(request.groups) - known.keys():
        raise Refusal(
            grpc.StatusCode.NOT_FOUND,
            "UNKNOWN_GROUP",
            f"The attempt has no group {min(missing).hex()}.",
            "Name groups that its opening gave.",
        )
    chosen = [known[group] for group in sorted(request.groups)]
    _require_mergeable(chosen, request)
    return ClosedGroups(chosen[0].config, tuple(chosen))


async def read_closed(
    attempts: Attempts, storage: Storage, round_key: RoundKey, found: ClosedGroups
) -> list[ClosedSum]:
    """Returns the sums of closed groups.

    Args:
        attempts: those at work here.
        storage: where sums are.
        round_key: the attempt.
        found: its groups.

    Raises:
        DamagedSumError: a sum is not that of its reports.
        Refusal: a sum was lost; its group was given up, if it is here.
    """
    held = attempts.held_groups(round_key)
    sums = []
    for group in found.groups:
        summing = held.get(group.group)
        if summing is not None and summing.group.phase is Phase.CLOSED:
            sums.append(ClosedSum(await summing.read_sum(), len(group.reports)))
            continue
        try:
            total = await asyncio.to_thread(
                storage.snapshots.read, group.group, group.snapshot, group.sum_digest, group.config.fixed_point
            )
        except SnapshotLostError as error:
            raise sum_lost(group.group, error) from error
        sums.append(ClosedSum(total, len(group.reports)))
    return sums


async def _elsewhere(storage: Storage, round_key: RoundKey) -> dict[bytes, Group]:
    """Returns the groups of an attempt as the journal has them; those that cannot be read are left out."""
    streams = await streams_of(storage.journal, round_key.task)
    wanted = round_key.task, round_key.round, round_key.attempt
    found: dict[bytes, Group] = {}
    for stream in [stream for key, names in streams.items() if key[:3] == wanted for stream in names]:
        try:
            state = state_of(await storage.journal.load(round_key.task, stream))
        except JournalUnavailable:
            raise
        except (JournalError, IllegalEventError, ValueError):
            continue
        if state is not None:
            found[state.group] = state
    return found


def _require_mergeable(groups: Sequence[Group], request: MergeRequest) -> None:
    for group in groups:
        if (request.plan_digest, request.checkpoint_digest) != (
            group.config.plan_digest,
            group.config.checkpoint_digest,
        ):
            raise Refusal(
                grpc.StatusCode.FAILED_PRECONDITION,
                "STATE_MISMATCH",
                "The attempt was opened for another plan or checkpoint.",
                "Name those of its opening.",
            )
        if group.phase is not Phase.CLOSED:
            raise Refusal(
                grpc.StatusCode.FAILED_PRECONDITION,
                "GROUP_NOT_CLOSED",
                f"Group {group.group.hex()} is {group.phase.name}.",
                "Merge closed groups only.",
            )
