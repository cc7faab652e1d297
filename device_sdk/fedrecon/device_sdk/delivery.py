"""From a report to its acknowledgement: a sum group is joined, the vector uploaded, and under a secure sum masked.

Part of the core: everything here yields requests. Under a secure sum the device enters a group with its report ready,
gives its neighbours shares of the two secrets of its masks, uploads the masked vector, and in the end reveals one share
for each neighbour, so that the masks of the sum can be taken away (`masking`).

Rules: each call waits for the others of the group and is sent again, the same bytes, until the group has moved. What
happens after the acknowledgement changes nothing about the report.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from fedrecon.device_sdk.calling import Line, Steps
from fedrecon.device_sdk.errors import CallFailedError, StorageFailedError, TooLateError
from fedrecon.device_sdk.masking import Masking
from fedrecon.device_sdk.material import Material, Report
from fedrecon.device_sdk.receipts import reveals_of_upload
from fedrecon.device_sdk.requests import JOIN, SHARE, UNMASK, UPLOAD_STATUS, Compute, Method
from fedrecon.device_sdk.unfinished import ACKNOWLEDGED, JOINING, Unfinished
from fedrecon.v1.aggregator_pb2 import (
    GroupPhase,
    JoinRequest,
    JoinResponse,
    SessionProof,
    ShareRequest,
    ShareResponse,
    UnmaskRequest,
    UnmaskResponse,
    UploadHeader,
    UploadStatusRequest,
)
from fedrecon.v1.common_pb2 import Credentials
from fedrecon.v1.coordinator_pb2 import Assignment, DeviceKind
from fedrecon.wire.digests import digest_of

Answer = TypeVar("Answer", JoinResponse, ShareResponse, UnmaskResponse)

ENDED_PHASES = frozenset({GroupPhase.GROUP_PHASE_CLOSED, GroupPhase.GROUP_PHASE_ABORTED})
PAST_UPLOADS = ENDED_PHASES | {GroupPhase.GROUP_PHASE_UNMASKING}


@dataclass(slots=True)
class Session:
    """One assignment being worked on.

    Attributes:
        assignment: what is asked.
        credentials: who speaks.
        line: the way to the services.
        shape: its course, one character for each step.
        material: what the assignment names, once it is there.
        report: what is about to leave, once it is made.
        unfinished: what a process that dies leaves of it; None if nothing is kept.
        keep: keeps that on disk.
        is_resumed: whether a process that died began it.
        kind: what is told of the device; None for nothing.
    """

    assignment: Assignment
    credentials: Credentials
    line: Line
    shape: str = "-"
    material: Material | None = None
    report: Report | None = None
    unfinished: Unfinished | None = None
    keep: Callable[[Unfinished], None] | None = None
    is_resumed: bool = False
    kind: DeviceKind | None = None

    @property
    def is_acknowledged(self) -> bool:
        """Whether the report is in the sum."""
        return "^" in self.shape

    def proof(self) -> SessionProof:
        """Returns what says that the session was assigned."""
        return SessionProof(
            credentials=self.credentials,
            round=self.assignment.round,
            session=self.assignment.session,
            round_token=self.assignment.round_token,
        )

    def mark(self, progress: str, group: bytes = b"", aggregator: str = "") -> Steps[None]:
        """Writes down how far it is, before it goes further.

        Raises:
            StorageFailedError: it cannot be written.
        """
        if self.unfinished is None or self.keep is None:
            return
        further, keep = self.unfinished.after(progress, group, aggregator), self.keep
        yield Compute(lambda: keep(further))
        self.unfinished = further


def deliver(session: Session, vector: bytes) -> Steps[None]:
    """Uploads a report that the aggregator may see.

    Raises:
        TooLateError: the group went on without it.
        FedreconError: a service refused, or did not answer.
    """
    target = session.assignment.aggregator
    joined = yield from session.line.call(target, JOIN, JoinRequest(proof=session.proof()))
    session.shape += "+"
    yield from _upload(session, joined.aggregator or target, joined.group, vector)


def deliver_masked(session: Session, vector: bytes, masking: Masking) -> Steps[None]:
    """Uploads a report under its masks, and helps to take those of the sum away.

    Args:
        session: the session.
        vector: the report.
        masking: the session's part in the secure sum.

    Raises:
        TooLateError: the group was given up, or went on without it.
        SumRefusedError: the aggregator asked for what would weaken the sum.
        FedreconError: a service refused, or did not answer.
    """
    proof, target = session.proof(), session.assignment.aggregator
    keys = masking.join_keys()
    yield from session.mark(JOINING)
    ready = JoinRequest(proof=proof, share_key=keys.share_key, mask_key=keys.mask_key, key_signature=keys.key_signature)
    joined = yield from _await_phase(session, target, JOIN, ready, GroupPhase.GROUP_PHASE_JOINING)
    session.shape += "+"
    group, target = joined.group, joined.aggregator or target
    yield from session.mark(JOINING, group, target)
    shares, commitment = yield Compute(lambda: masking.share(joined))
    given = ShareRequest(proof=proof, group=group, shares=shares, seed_commitment=commitment)
    shared = yield from _await_phase(session, target, SHARE, given, GroupPhase.GROUP_PHASE_SHARING)
    masked: bytes = yield Compute(lambda: masking.mask(shared, vector))
    yield from _upload(session, target, group, masked)
    question = UnmaskRequest(proof=proof, group=group)
    lists = yield from _await_phase(session, target, UNMASK, question, GroupPhase.GROUP_PHASE_UPLOADING)
    if lists.phase != GroupPhase.GROUP_PHASE_UNMASKING:
        return  # enough others have answered already, or the group was given up
    revealed = UnmaskRequest(proof=proof, group=group, shares=masking.reveal(lists))
    yield from _await_phase(session, target, UNMASK, revealed, GroupPhase.GROUP_PHASE_UNMASKING)


def _await_phase(
    session: Session,
    target: str,
    method: Method[Answer],
    request: JoinRequest | ShareRequest | UnmaskRequest,
    phase: GroupPhase.ValueType,
) -> Steps[Answer]:
    """Sends a request until the group has left its phase, and returns the answer.

    Args:
        session: the session.
        target: the aggregator.
        method: the call; each waits for the others of the group.
        request: what is said.
        phase: where the group is as long as there is no answer.

    Raises:
        TooLateError: the group ended before the session's report was in its sum.
    """
    while True:
        answer = yield from session.line.call(target, method, request)
        if answer.phase != phase:
            break
    if answer.phase in ENDED_PHASES and not session.is_acknowledged:
        raise _went_on(answer.phase)
    return answer


def _upload(session: Session, target: str, group: bytes, vector: bytes) -> Steps[None]:
    """Uploads, going on where a lost connection stopped, until the report is acknowledged."""
    line = session.line
    digest, failures, arrived, begun = digest_of(vector), 0, 0, False
    while True:
        question = UploadStatusRequest(proof=session.proof(), group=group)
        status = yield from line.call(target, UPLOAD_STATUS, question)
        # A session that a process began which then died may have reported other bytes: those are its report.
        if status.acknowledged and (session.is_resumed or status.digest in {b"", digest}):
            break
        if status.phase in PAST_UPLOADS:
            raise _went_on(status.phase)
        if status.received_bytes > arrived:  # the last try brought something: patience begins anew
            failures, arrived = 0, status.received_bytes
        header = UploadHeader(
            proof=session.proof(),
            group=group,
            size=len(vector),
            digest=digest,
            # What is there before the first try is of a vector that this device made before it was started again.
            offset=status.received_bytes if begun else 0,
        )
        begun = True
        try:
            yield from line.upload(target, header, vector, reveals_of_upload(session.assignment))
        except CallFailedError as error:
            failures += 1
            yield from line.back_off(error, failures, target)
        else:
            break
    session.shape += "^"
    with contextlib.suppress(StorageFailedError):  # then a process that dies now asks the aggregator
        yield from session.mark(ACKNOWLEDGED)


def _went_on(phase: GroupPhase.ValueType) -> TooLateError:
    is_known = phase in GroupPhase.values()  # a newer aggregator may have phases that this version has no name for
    name = GroupPhase.Name(phase).removeprefix("GROUP_PHASE_") if is_known else "UNKNOWN"
    return TooLateError("the group went on without this report", reason=f"GROUP_{name}")
