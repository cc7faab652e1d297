"""Coordinator, blob store and aggregator of one small task, in memory: what they answer, without any transport.

Each check-in is a new session of the next round. Calls may come again, uploads may break and go on, as with the real
services; a report is acknowledged when all of it is there. Attributes can be changed between calls.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from google.protobuf.message import Message

from fedrecon.device_sdk.errors import CallFailedError
from fedrecon.device_sdk.plans import read_checkpoint, rows_in_force
from fedrecon.device_sdk.requests import CHECK_IN, FINISH_SESSION, JOIN, SHARE, UNMASK, UPLOAD_STATUS
from fedrecon.device_sdk.testing.neighbours import Neighbours
from fedrecon.device_sdk.testing.toy_plan import ToyPlan, toy_plan
from fedrecon.v1 import aggregator_pb2, coordinator_pb2, task_pb2
from fedrecon.v1.aggregator_pb2 import (
    JoinRequest,
    JoinResponse,
    ShareRequest,
    ShareResponse,
    UnmaskRequest,
    UnmaskResponse,
    UploadRequest,
    UploadResponse,
    UploadStatusRequest,
    UploadStatusResponse,
)
from fedrecon.v1.blobs_pb2 import FetchRequest
from fedrecon.v1.common_pb2 import BlobReference, Chunk, RetryWindow, RetryWindows, RoundKey
from fedrecon.v1.coordinator_pb2 import (
    Assignment,
    CheckInRequest,
    CheckInResponse,
    FinishSessionRequest,
    FinishSessionResponse,
    Rejection,
    RejectionReason,
)
from fedrecon.v1.plan_pb2 import Layout
from fedrecon.wire import chunks, manifests
from fedrecon.wire.digests import digest_of
from fedrecon.wire.fixed_point import FixedPoint
from fedrecon.wire.row_sets import read_row_set, write_row_set

MAXIMUM_REPORTS, MAXIMUM_WEIGHT, GROUP = 100, 20, 20
REPORT_MILLISECONDS = 60_000
CHUNK_BYTES = 1 << 16


@dataclass(slots=True)
class _Played:
    """One session."""

    assignment: Assignment
    neighbours: Neighbours
    arrived: bytearray = field(default_factory=bytearray)
    digest: bytes = b""
    uploads: int = 0
    is_acknowledged: bool = False


class FakeServices:
    """Answers devices.

    Args:
        plan: what they run; the toy plan if not given.
        secure_sum: whether reports are masked; else the aggregator would see them.
        group: how many devices a sum has, at least 3: all but one are played.

    Attributes:
        rejects: why check-ins are rejected; None: every device is assigned.
        minimum_examples: what devices are told that a task needs.
        rest_milliseconds: earliest and latest moment at which devices are told to come back.
        change: what a test changes about every assignment, before it is answered.
        calls: names of the calls that came, in order.
        reports: the vectors that were acknowledged, masked under a secure sum.
        finished: how sessions said that they ended.
        assigned: what devices were asked to do.
    """

    def __init__(self, plan: ToyPlan | None = None, *, secure_sum: bool = True, group: int = GROUP) -> None:
        self.plan = plan or toy_plan()
        self.blobs = dict(self.plan.blobs)
        self._row_sets = {vocabulary: self._every_row(rows, group) for vocabulary, rows in self._rows().items()}
        self.rejects: RejectionReason.ValueType | None = None
        self.minimum_examples = 1
        self.rest_milliseconds = (60_000, 120_000)
        self.calls: list[str] = []
        self.reports: list[bytes] = []
        self.finished: list[FinishSessionRequest] = []
        self.assigned: list[Assignment] = []
        self.change: Callable[[Assignment], None] = lambda _: None
        self._group = group
        self._protocol = task_pb2.SUM_PROTOCOL_SECAGG_PLUS if secure_sum else task_pb2.SUM_PROTOCOL_TRUSTED
        self._sessions: dict[bytes, _Played] = {}
        self._rounds = itertools.count(1)

    @property
    def publisher(self) -> str:
        """The key that signed the plan, for `trusted_plans`."""
        return self.plan.publisher

    def answer(self, path: str, body: bytes) -> Message:
        """Returns the answer of a unary call.

        Args:
            path: what gRPC calls it.
            body: the serialised request.

        Raises:
            CallFailedError: the call is unknown here, or refused.
        """
        name = path.rpartition("/")[2]
        self.calls.append(name)
        answers: dict[str, tuple[Any, Callable[[Any], Message]]] = {
            CHECK_IN.path: (CheckInRequest, self._check_in),
            FINISH_SESSION.path: (FinishSessionRequest, self._finish),
            JOIN.path: (JoinRequest, self._join),
            SHARE.path: (ShareRequest, self._share),
            UPLOAD_STATUS.path: (UploadStatusRequest, self._status),
            UNMASK.path: (UnmaskRequest, self._unmask),
        }
        if path not in answers:
            raise CallFailedError(f"{name} is not played here", code="UNIMPLEMENTED")
        request, answer = answers[path]
        return answer(request.FromString(body))

    def fetch(self, body: bytes) -> Iterator[Chunk]:
        """Returns the chunks of a blob from where they are wanted.

        Raises:
            CallFailedError: there is no such blob.
        """
        self.calls.append("Fetch")
        question = FetchRequest.FromString(body)
        if question.digest not in self.blobs:
            raise CallFailedError("no such blob", code="NOT_FOUND", reason="UNKNOWN_BLOB")
        return chunks.cut(self.blobs[question.digest], question.offset, CHUNK_BYTES)

    def upload(self, parts: Iterable[bytes]) -> UploadResponse:
        """Takes a vector, from where the header says; what arrived of a broken stream is kept.

        Raises:
            CallFailedError: it does not go on where it stopped, or is not what its digest says.
        """
        self.calls.append("Upload")
        stream = (UploadRequest.FromString(part) for part in parts)
        header = next(stream).header
        played = self._session(header.proof.session)
        if header.offset == 0 or header.digest != played.digest:
            played.arrived.clear()
            played.digest = header.digest
        if header.offset != len(played.arrived):
            raise CallFailedError("not where it stopped", code="FAILED_PRECONDITION", reason="WRONG_OFFSET")
        played.uploads += 1
        this_one = played.uploads
        for part in stream:
            if played.uploads != this_one:
                raise CallFailedError("a newer upload goes on", code="ABORTED", reason="UPLOAD_REPLACED")
            played.arrived += chunks.take(part.chunk, len(played.arrived), header.size)
        if len(played.arrived) < header.size:
            raise CallFailedError("not all of it", code="FAILED_PRECONDITION", reason="UPLOAD_INCOMPLETE")
        if digest_of(bytes(played.arrived)) != header.digest:
            played.arrived.clear()
            raise CallFailedError("another digest", code="DATA_LOSS", reason="DIGEST_MISMATCH")
        if not played.is_acknowledged:
            played.is_acknowledged = True
            self.reports.append(bytes(played.arrived))
        return UploadResponse(digest=header.digest, phase=aggregator_pb2.GROUP_PHASE_UPLOADING)

    def _check_in(self, request: CheckInRequest) -> CheckInResponse:
        del request
        windows = self._windows()
        if self.rejects is not None:
            rejection = Rejection(reason=self.rejects, message="not this time")
            return CheckInResponse(rejection=rejection, retry_windows=windows, minimum_examples=self.minimum_examples)
        assignment = self._assignment()
        self.change(assignment)
        self.assigned.append(assignment)
        self._sessions[assignment.session] = _Played(assignment, Neighbours(assignment, self._fixed_point(assignment)))
        return CheckInResponse(assignment=assignment, retry_windows=windows, minimum_examples=self.minimum_examples)

    def _finish(self, request: FinishSessionRequest) -> FinishSessionResponse:
        self.finished.append(request)
        played = self._session(request.session)
        fate = (
            coordinator_pb2.REPORT_FATE_PENDING if played.is_acknowledged else coordinator_pb2.REPORT_FATE_UNSPECIFIED
        )
        return FinishSessionResponse(fate=fate, retry_windows=self._windows())

    def _join(self, request: JoinRequest) -> JoinResponse:
        played = self._session(request.proof.session)
        if self._protocol == task_pb2.SUM_PROTOCOL_TRUSTED:
            return JoinResponse(group=played.neighbours.group, phase=aggregator_pb2.GROUP_PHASE_UPLOADING)
        joined = JoinResponse()
        joined.CopyFrom(played.neighbours.join(request))
        joined.phase = aggregator_pb2.GROUP_PHASE_SHARING
        return joined

    def _share(self, request: ShareRequest) -> ShareResponse:
        played = self._session(request.proof.session)
        return ShareResponse(phase=aggregator_pb2.GROUP_PHASE_UPLOADING, shares=played.neighbours.shares)

    def _status(self, request: UploadStatusRequest) -> UploadStatusResponse:
        played = self._session(request.proof.session)
        return UploadStatusResponse(
            phase=aggregator_pb2.GROUP_PHASE_UPLOADING,
            received_bytes=len(played.arrived),
            acknowledged=played.is_acknowledged,
            digest=played.digest if played.is_acknowledged else b"",
        )

    def _unmask(self, request: UnmaskRequest) -> UnmaskResponse:
        played = self._session(request.proof.session)
        if request.shares:
            return UnmaskResponse(phase=aggregator_pb2.GROUP_PHASE_CLOSED)
        return UnmaskResponse(phase=aggregator_pb2.GROUP_PHASE_UNMASKING, survivors=played.neighbours.indices)

    def _session(self, session: bytes) -> _Played:
        if session not in self._sessions:
            raise CallFailedError("no such session", code="NOT_FOUND", reason="UNKNOWN_SESSION")
        return self._sessions[session]

    def _windows(self) -> RetryWindows:
        window = RetryWindow(min_milliseconds=self.rest_milliseconds[0], max_milliseconds=self.rest_milliseconds[1])
        return RetryWindows(accepted=window, rejected=window)

    def _assignment(self) -> Assignment:
        manifest = self.plan.manifest
        return Assignment(
            session=os.urandom(16),
            round=RoundKey(task="toy", round=next(self._rounds), attempt=1),
            kind=coordinator_pb2.SESSION_KIND_TRAIN,
            plan=self.plan.reference(digest_of(self.plan.content)),
            signature=self.plan.signature,
            checkpoint=manifest.initial_checkpoint,
            aggregator="aggregator:1",
            blobs="blobs:1",
            secure_sum=self._secure_sum(),
            work=task_pb2.LocalWork(split=task_pb2.SPLIT_RULE_ALTERNATE_EXAMPLES, minimum_examples=1),
            layout=self._layout(),
            row_sets=self._row_sets,
            report_within_milliseconds=REPORT_MILLISECONDS,
            round_token=os.urandom(40),
            session_key=os.urandom(32),
        )

    def _every_row(self, rows: int, group: int) -> BlobReference:
        """Returns a public row set of all rows, popular enough for any app."""
        content = write_row_set(np.arange(rows), group, group)
        digest = digest_of(content)
        self.blobs[digest] = content
        return BlobReference(digest=digest, size=len(content))

    def _rows(self) -> Mapping[str, int]:
        manifest = self.plan.manifest
        return rows_in_force(manifest, read_checkpoint(self.blobs[manifest.initial_checkpoint.digest], manifest))

    def _layout(self) -> Layout:
        """Returns the plan's layout, restricted to the row sets."""
        layout = Layout()
        layout.CopyFrom(self.plan.manifest.layout)
        vocabularies = {each.name: each.vocabulary for each in self.plan.manifest.parameters}
        for segment in layout.segments:
            if vocabularies[segment.parameter]:
                segment.row_set_digest = self._row_sets[vocabularies[segment.parameter]].digest
        return layout

    def _secure_sum(self) -> task_pb2.SecureSum:
        return task_pb2.SecureSum(
            protocol=self._protocol,
            ring_bits=32,
            maximum_reports=MAXIMUM_REPORTS,
            maximum_weight=MAXIMUM_WEIGHT,
            minimum_group=self._group,
        )

    def _fixed_point(self, assignment: Assignment) -> FixedPoint:
        manifest = self.plan.manifest
        row_sets = {each.digest: read_row_set(self.blobs[each.digest]) for each in self._row_sets.values()}
        elements = manifests.segment_elements(assignment.layout, manifest, self._rows(), row_sets)
        bounds = [metric.bound for metric in manifest.metrics]
        return manifests.fixed_point_of(assignment.layout, elements, bounds, assignment.secure_sum)
