"""The groups of one attempt of a round.

Rule: a session's group is chosen by hash of the session, or is the next one with room; masked groups are filled in
order. A session has one report in the attempt, in whichever group.
"""

from __future__ import annotations

import asyncio
import hashlib

import grpc

from fedrecon.aggregator.group_events import Config
from fedrecon.aggregator.refusals import round_closed
from fedrecon.aggregator.summing import Summing
from fedrecon.ops.boundary import Refusal


class Attempt:
    """The groups of one attempt of a round.

    Args:
        config: what they are for.

    Attributes:
        config: the same.
        summings: the groups at work, by index.
        joined: sessions that joined each group since this process started, or reported.
        version: grows with every change.
        is_without_sums: whether its sums were removed, since nobody may merge them any more.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.summings: list[Summing] = []
        self.joined: list[set[bytes]] = []
        self.version = 0
        self.is_without_sums = False
        self._change = asyncio.Event()

    @property
    def ended(self) -> bool:
        """Whether all groups are closed or aborted."""
        return all(summing.group.ended for summing in self.summings)

    @property
    def has_moved(self) -> bool:
        """Whether another aggregator has groups of it, or the journal forgot them."""
        return any(summing.lost for summing in self.summings)

    def holding(self, session: bytes) -> Summing | None:
        """Returns the group that has a session's report, acknowledged or on its way."""
        return next((one for one in self.summings if one.digest_of(session) is not None), None)

    def place(self, session: bytes) -> Summing:
        """Returns the group for a session's report.

        Raises:
            Refusal: the attempt takes no more reports, or not this one.
        """
        held = self.holding(session)
        return held if held is not None else self._choose(session, [one.can_report(session) for one in self.summings])

    def join(self, session: bytes) -> Summing:
        """Returns the group for a session, and notes that it is there.

        Raises:
            Refusal: the attempt takes no more reports.
        """
        chosen = self.holding(session)
        if chosen is None:
            of_members = [one for one, members in zip(self.summings, self.joined, strict=True) if session in members]
            chosen = of_members[0] if of_members else None
        if chosen is None or not chosen.can_join(session):
            chosen = self._choose(session, [one.can_join(session) for one in self.summings])
        members = self.joined[self.summings.index(chosen)]
        if session not in members:
            members.add(session)
            self.note_change()
        return chosen

    def _choose(self, session: bytes, possible: list[bool]) -> Summing:
        # Masked groups are filled one after the other, so that the first can begin; others alike.
        first = 0 if self.config.report_goal else int.from_bytes(hashlib.sha256(session).digest()[:8], "little")
        for step in range(len(possible)):
            index = (first + step) % len(possible)
            if possible[index]:
                return self.summings[index]
        if not any(one.takes_reports for one in self.summings):
            raise round_closed()
        raise Refusal(
            grpc.StatusCode.FAILED_PRECONDITION,
            "GROUP_FULL",
            "The round's groups have as many reports as fit their sums, or went on without this device.",
            "End the session; the coordinator says when to come back.",
        )

    def find(self, group: bytes) -> Summing:
        """Returns the group with an id.

        Raises:
            Refusal: the attempt has no such group.
        """
        for summing in self.summings:
            if summing.group.group == group:
                return summing
        raise Refusal(
            grpc.StatusCode.NOT_FOUND,
            "UNKNOWN_GROUP",
            "The attempt has no such group.",
            "Join again: the answer names the group.",
        )

    def note_change(self) -> None:
        """Wakes those who wait for a change."""
        self.version += 1
        self._change.set()
        self._change = asyncio.Event()

    async def changed(self, version: int) -> None:
        """Returns once the attempt is past a version."""
        while self.version == version:
            await self._change.wait()
