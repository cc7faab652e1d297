"""The protocol `SecAgg+`: the aggregator learns the sum of a group, and nothing of a single report.

After Bell, Bonawitz, Gascón, Lepoint and Raykova, "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead"
(CCS 2020), with late enrolment: a device enters a group when its update is ready, so that only those lost in the
seconds between their keys and their vector cost anything.

    JOINING    members bring keys; the roster is frozen when enough are there, and the ring is drawn after that
    SHARING    members bring shares of their two secrets, sealed for their neighbours; who brought none is left out
    UPLOADING  members bring masked vectors
    UNMASKING  survivors reveal one share of each neighbour: of the seed of a survivor, of the key of a dropout

Rules: nobody is told roster, shares or survivors before they are durable; survivors are fixed once, so no member is
ever asked for both secrets of a neighbour. A group that lacks members, shares or survivors is given up as a whole: the
next attempt has fresh keys. What members sent and no event holds is in memory only; they send it again after a crash.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Executor

from google.protobuf.message import Message

from fedrecon.aggregator import rings, thresholds
from fedrecon.aggregator.group_events import (
    Aborted,
    Config,
    Phase,
    RosterFrozen,
    SharesFixed,
    UploadsEnded,
)
from fedrecon.aggregator.groups import Group
from fedrecon.aggregator.rosters import Roster, read_members, read_shares, roster_of, write_members, write_shares
from fedrecon.aggregator.secure_sum import DamagedSumError, Due, Keep, MessageRefusedError, Unmask
from fedrecon.aggregator.unmasking import (
    CannotUnmaskError,
    InvalidMessageError,
    MaskedGroup,
    check_keys,
    check_reveal,
    check_shares,
    unmask,
)
from fedrecon.v1.aggregator_pb2 import (
    GroupPhase,
    JoinRequest,
    JoinResponse,
    Member,
    RevealedShare,
    ShareRequest,
    ShareResponse,
    UnmaskRequest,
    UnmaskResponse,
)
from fedrecon.wire.digests import digest_of
from fedrecon.wire.fixed_point import Vector
from fedrecon.wire.sum_context import SERVER_NONCE_BYTES, SMALLEST_GROUP

_QUIET_SHARE = 4
"""A group that has as many members as it needs goes on when nobody came for a quarter of a phase."""


class SecAggPlusSum:
    """A sum whose parts the aggregator does not see. See `SecureSum` for the methods.

    Args:
        config: what the group is for.
        entropy: gives that many random bytes.
    """

    def __init__(self, config: Config, entropy: Callable[[int], bytes]) -> None:
        self._config = config
        self._entropy = entropy
        self._joins: dict[bytes, JoinRequest] = {}
        self._keys: set[bytes] = set()
        self._heard_at = 0
        self._members: tuple[Member, ...] = ()
        self._roster: Roster | None = None
        self._shares: dict[int, ShareRequest] = {}
        self._unmasking: MaskedGroup | None = None
        self._revealed: dict[int, tuple[RevealedShare, ...]] = {}
        self._lacking: dict[int, int] = {}
        self._short: set[int] = set()

    def open(self) -> Phase:
        """Returns JOINING."""
        return Phase.JOINING

    def restore(self, roster: bytes, shares: bytes) -> None:
        """Takes roster and shares up again; what members brought after them they bring again."""
        self._members = read_members(roster)
        self._shares = read_shares(shares)

    def can_join(self, group: Group, session: bytes) -> bool:
        """Returns whether there is room, or the session is a member."""
        if group.phase is Phase.JOINING:
            return session in self._joins or len(self._joins) < self._config.group_members
        return session in group.indices

    def can_report(self, group: Group, session: bytes) -> bool:
        """Returns whether the session's masks can be taken away again."""
        index = group.indices.get(session)
        return group.phase is Phase.UPLOADING and index in self._counted(group)

    def receive(self, group: Group, session: bytes, message: Message, now: int) -> None:
        """Takes keys, shares or revealed shares.

        Raises:
            MessageRefusedError: they are malformed, differ from those sent before, or come too late.
        """
        match message:
            case JoinRequest():
                self._receive_keys(group, session, message, now)
            case ShareRequest():
                self._receive_shares(group, session, message, now)
            case UnmaskRequest():
                self._receive_revealed(group, session, message)
            case _:
                raise TypeError(f"{type(message).__name__} is no message of this protocol")

    def answer(self, group: Group, session: bytes, message: Message) -> Message | None:
        """Returns the roster as the member sees it, the shares for it, or who survived; None if it must wait."""
        match message:
            case JoinRequest():
                return self._answer_join(group, session)
            case ShareRequest():
                return self._answer_share(group, session)
            case UnmaskRequest():
                return self._answer_unmask(group, session, asks=not message.shares)
            case _:
                raise TypeError(f"{type(message).__name__} is no message of this protocol")

    def due(self, group: Group, now: int, since: int, *, closing: bool) -> Due | None:
        """Returns the next step once everybody has sent what the phase asks for, or its time is over."""
        is_late = now >= since + self._config.phase_milliseconds
        is_quiet = now >= self._heard_at + self._config.phase_milliseconds // _QUIET_SHARE
        match group.phase:
            case Phase.JOINING:
                ends = max(self._config.joining_ends_milliseconds, since + self._config.phase_milliseconds)
                return self._due_joining(group, now, is_over=closing or now >= ends, is_quiet=is_quiet)
            case Phase.SHARING if closing:
                return _given_up(group, "TOO_FEW_SHARES", now)
            case Phase.SHARING if is_late or self._has_shared(group, is_quiet=is_quiet):
                return self._due_sharing(group, now)
            case Phase.UPLOADING if closing or is_late or len(group.reports) == len(self._counted(group)):
                return self._due_uploading(group, now)
            case Phase.UNMASKING:
                return self._due_unmasking(group, now, is_late=is_late)
            case _:
                return None

    def check(self, report: Vector) -> None:
        """Looks at nothing: a masked vector is random."""

    @property
    def _wanted(self) -> int:
        """Reports that are wanted of this group."""
        return -(-self._config.report_goal // self._config.group_count)

    @property
    def _fewest(self) -> int:
        """Members without whom there is no sum."""
        return max(SMALLEST_GROUP, self._config.minimum_group)

    # -- keys ----------------------------------------------------------------------------------------------------------

    def _receive_keys(self, group: Group, session: bytes, message: JoinRequest, now: int) -> None:
        if group.ended or (group.phase is not Phase.JOINING and session not in group.indices):
            raise _too_late()
        keys = _keys_of(message)
        if group.phase is not Phase.JOINING:
            known = self._members[group.indices[session]]
            if keys != (known.share_key, known.mask_key, known.device_key, known.key_signature):
                raise _differs("keys")
            return
        known_join = self._joins.get(session)
        if known_join is not None and _keys_of(known_join) != keys:
            raise _differs("keys")
        if known_join is None:
            if not self._keys.isdisjoint(keys[:3]):
                raise MessageRefusedError(
                    "differs", "KEY_IN_GROUP", "A key is in the group already, by another session", "End this session."
                )
            with _refusing_invalid():  # else the neighbours would refuse the whole group
                check_keys(message.proof.round, _member(0, session, message))
            self._keys |= set(keys[:3])
            self._joins[session] = message
            self._heard_at = now

    def _due_joining(self, group: Group, now: int, *, is_over: bool, is_quiet: bool) -> Keep | Aborted | None:
        count = len(self._joins)
        has_enough = count >= self._config.group_members or (is_quiet and count >= self._wanted)
        if not (is_over or has_enough):
            return None
        if count < self._fewest:
            return _given_up(group, "TOO_FEW_MEMBERS", now) if is_over else None
        self._members = tuple(
            _member(index, session, message) for index, (session, message) in enumerate(self._joins.items())
        )
        neighbourhood = thresholds.find(count, thresholds.withstanding(self._config.drop_out))
        sessions, ring, nonce = tuple(self._joins), rings.draw(count, self._entropy), self._entropy(SERVER_NONCE_BYTES)

        def frozen(roster: bytes) -> RosterFrozen:
            return RosterFrozen(sessions, roster, ring, neighbourhood.neighbours, neighbourhood.threshold, nonce, now)

        return Keep(write_members(self._members), frozen)

    def _answer_join(self, group: Group, session: bytes) -> JoinResponse | None:
        if group.phase is Phase.JOINING:
            return None
        if group.ended or session not in group.indices:
            raise _too_late()
        roster = self._known_roster(group)
        index = group.indices[session]
        return JoinResponse(
            group=group.group,
            phase=_phase(group),
            index=index,
            neighbours=[roster.members[neighbour] for neighbour in roster.neighbours[index]],
            members=len(roster.members),
            threshold=roster.threshold,
            roster_digest=roster.digest,
            server_nonce=roster.nonce,
        )

    # -- shares --------------------------------------------------------------------------------------------------------

    def _receive_shares(self, group: Group, session: bytes, message: ShareRequest, now: int) -> None:
        index = group.indices.get(session)
        if index is None or group.ended or (group.phase is not Phase.SHARING and index not in self._counted(group)):
            raise _too_late()
        known = self._shares.get(index)
        if known is not None:
            if (list(known.shares), known.seed_commitment) != (list(message.shares), message.seed_commitment):
                raise _differs("shares")
            return
        with _refusing_invalid():
            check_shares(index, self._known_roster(group).neighbours[index], message.shares, message.seed_commitment)
        self._heard_at = now
        self._shares[index] = ShareRequest(shares=message.shares, seed_commitment=message.seed_commitment)

    def _due_sharing(self, group: Group, now: int) -> Keep | Aborted:
        sharers = self._connected(group, frozenset(self._shares))
        if len(sharers) < self._fewest:
            return _given_up(group, "TOO_FEW_SHARES", now)
        fixed = tuple(sorted(sharers))
        content = write_shares({index: self._shares[index] for index in fixed})
        return Keep(content, lambda shares: SharesFixed(fixed, shares, now))

    def _answer_share(self, group: Group, session: bytes) -> ShareResponse | None:
        if group.phase is Phase.SHARING:
            return None
        index, counted = group.indices[session], self._counted(group)
        if group.ended or index not in counted:
            raise _too_late()
        return ShareResponse(
            phase=_phase(group),
            shares=[
                share
                for neighbour in self._known_roster(group).neighbours[index]
                if neighbour in counted
                for share in counted[neighbour].shares
                if share.to_index == index
            ],
        )

    def _counted(self, group: Group) -> dict[int, ShareRequest]:
        """Returns the shares that count: those that came while it was written down whose do are let go."""
        if group.shared is not None and len(self._shares) > len(group.shared.sharers):
            self._shares = {index: self._shares[index] for index in group.shared.sharers}
        return self._shares

    def _has_shared(self, group: Group, *, is_quiet: bool) -> bool:
        count = len(self._shares)
        return count == len(group.indices) or (is_quiet and count >= self._wanted)

    # -- the sum -------------------------------------------------------------------------------------------------------

    def _receive_revealed(self, group: Group, session: bytes, message: UnmaskRequest) -> None:
        index = group.indices.get(session)
        if index is None or session not in group.reports:
            raise _too_late()
        if not message.shares or group.ended:
            return
        if group.phase is not Phase.UNMASKING:
            raise MessageRefusedError(
                "late", "WRONG_PHASE", "Nobody has been asked for shares yet", "Ask who survived first."
            )
        shares = tuple(message.shares)
        if index in self._revealed:
            if self._revealed[index] != shares:
                raise _differs("revealed shares")
            return
        with _refusing_invalid():
            check_reveal(index, self._masked(group), shares)
        self._revealed[index] = shares
        for share in shares:
            self._lacking[share.index] -= 1
            if self._lacking[share.index] == 0:
                self._short.discard(share.index)

    def _answer_unmask(self, group: Group, session: bytes, *, asks: bool) -> UnmaskResponse | None:
        if group.phase is Phase.UPLOADING or (group.phase is Phase.UNMASKING and not asks):
            return None
        if group.ended:
            return UnmaskResponse(phase=_phase(group))
        masked = self._masked(group)
        near = masked.neighbours_that_shared(group.indices[session])
        return UnmaskResponse(
            phase=_phase(group),
            survivors=[one for one in near if one in masked.survivors],
            dropouts=[one for one in near if one not in masked.survivors],
        )

    def _due_unmasking(self, group: Group, now: int, *, is_late: bool) -> Unmask | Aborted | None:
        masked = self._masked(group)
        if self._short:
            return _given_up(group, "TOO_FEW_REVEALED", now) if is_late else None
        revealed = dict(self._revealed)

        def work(total: Vector, executor: Executor | None = None, parts: int = 1) -> Vector:
            try:
                return unmask(total, masked, revealed, executor, parts)
            except CannotUnmaskError as error:
                raise DamagedSumError(str(error)) from error

        return Unmask(work)

    def _connected(self, group: Group, present: frozenset[int]) -> frozenset[int]:
        """Returns those of whom enough neighbours are among them: the others' secrets could not be recovered."""
        roster = self._known_roster(group)
        while True:
            kept = frozenset(
                index
                for index in present
                if sum(one in present for one in roster.neighbours[index]) >= roster.threshold
            )
            if kept == present:
                return kept
            present = kept

    def _due_uploading(self, group: Group, now: int) -> UploadsEnded | Aborted:
        """Returns the end of uploads: every secret that the sum needs must have survivors enough that hold a share."""
        roster, survivors = self._known_roster(group), group.survivors
        if len(survivors) >= self._fewest and all(
            sum(one in survivors for one in roster.neighbours[index]) >= roster.threshold
            for index in self._counted(group)
        ):
            return UploadsEnded(now)
        return _given_up(group, "TOO_FEW_REPORTS", now)

    def _masked(self, group: Group) -> MaskedGroup:
        """Returns what is unmasked; asked once the survivors are fixed."""
        if self._unmasking is None:
            roster, counted = self._known_roster(group), self._counted(group)
            self._unmasking = MaskedGroup(
                context=roster.context,
                roster=roster.members,
                neighbours=roster.neighbours,
                threshold=roster.threshold,
                commitments={index: message.seed_commitment for index, message in counted.items()},
                survivors=group.survivors,
            )
            self._lacking = dict.fromkeys(counted, roster.threshold)
            self._short = set(counted)
        return self._unmasking

    def _known_roster(self, group: Group) -> Roster:
        if self._roster is None:
            self._roster = roster_of(group, self._members)
        return self._roster


def _member(index: int, session: bytes, message: JoinRequest) -> Member:
    share_key, mask_key, device_key, signature = _keys_of(message)
    return Member(
        index=index,
        share_key=share_key,
        mask_key=mask_key,
        device_key=device_key,
        key_signature=signature,
        session_digest=digest_of(session),
    )


@contextlib.contextmanager
def _refusing_invalid() -> Iterator[None]:
    try:
        yield
    except InvalidMessageError as error:
        raise MessageRefusedError(
            "invalid", "MALFORMED_MESSAGE", str(error), "Send what the contract describes."
        ) from error


def _keys_of(message: JoinRequest) -> tuple[bytes, bytes, bytes, bytes]:
    return message.share_key, message.mask_key, message.proof.credentials.device_key, message.key_signature


def _phase(group: Group) -> GroupPhase.ValueType:
    return GroupPhase.ValueType(group.phase)


def _given_up(group: Group, reason: str, now: int) -> Aborted:
    return Aborted(reason, len(group.reports), now)


def _too_late() -> MessageRefusedError:
    return MessageRefusedError(
        "late",
        "ROUND_CLOSED",
        "The group went on without this device",
        "End the session; the coordinator says when to come back.",
    )


def _differs(what: str) -> MessageRefusedError:
    return MessageRefusedError(
        "differs", "ALREADY_SENT", f"The session has sent other {what}", "A session sends them once: end it."
    )
