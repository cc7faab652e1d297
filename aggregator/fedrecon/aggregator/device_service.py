"""The service `Aggregator`: what devices speak to.

Rules: a call is believed only with the round token of its session. Size, phase and group are checked before a byte is
kept, digests before a vector is read, and the vector before it touches a sum. A report that is here already is answered
again if the digest is the same, and refused if it is not.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.protobuf.message import Message

from fedrecon.aggregator.attempt import Attempt
from fedrecon.aggregator.attempts import Attempts
from fedrecon.aggregator.ingest import StagedUpload, Staging, StagingKey, chunks_in
from fedrecon.aggregator.measures import Measures
from fedrecon.aggregator.messages import fate_of, malformed, phase_of
from fedrecon.aggregator.refusals import round_closed
from fedrecon.aggregator.secure_sum import InvalidReportError, MessageRefusedError
from fedrecon.aggregator.summing import Summing
from fedrecon.aggregator.trusted import TrustedSum
from fedrecon.ops.boundary import Refusal
from fedrecon.ops.clock import Clock
from fedrecon.ops.key_ring import KeyRing
from fedrecon.ops.session_calls import require_proof
from fedrecon.ops.tokens import BadTokenError, verify_token
from fedrecon.ops.traces import span
from fedrecon.v1.aggregator_pb2 import (
    JoinRequest,
    JoinResponse,
    ShareRequest,
    ShareResponse,
    UnmaskRequest,
    UnmaskResponse,
    UploadHeader,
    UploadRequest,
    UploadResponse,
    UploadStatusRequest,
    UploadStatusResponse,
)
from fedrecon.v1.aggregator_pb2_grpc import AggregatorServicer
from fedrecon.wire.digests import DIGEST_BYTES
from fedrecon.wire.fixed_point import read_vector

_Proved = JoinRequest | ShareRequest | UploadStatusRequest | UploadHeader | UnmaskRequest

_PATIENCE_SECONDS = 20.0
"""How long a call waits for the others of its group; the device asks again after that."""

CODES = {
    "late": grpc.StatusCode.FAILED_PRECONDITION,
    "invalid": grpc.StatusCode.INVALID_ARGUMENT,
    "differs": grpc.StatusCode.ALREADY_EXISTS,
}
"""What a protocol's refusal of a message is on the wire, by its kind."""


class DeviceService(AggregatorServicer):
    """Answers devices.

    Args:
        attempts: the sums.
        staging: uploads on their way.
        token_keys: under which coordinators issue round tokens.
        clock: judges the tokens' expiry.
        measures: what is counted.
        proves_sessions: whether calls must be proved by the session's key.
    """

    def __init__(
        self,
        attempts: Attempts,
        staging: Staging,
        token_keys: KeyRing,
        clock: Clock,
        measures: Measures,
        *,
        proves_sessions: bool,
    ) -> None:
        self._attempts = attempts
        self._staging = staging
        self._token_keys = token_keys
        self._proves_sessions = proves_sessions
        self._clock = clock
        self._measures = measures

    async def Join(self, request: JoinRequest, context: Any) -> JoinResponse:  # noqa: N802 - the contract's name
        """Enters a sum group with the update ready."""
        del context
        session, attempt = self._prove("Join", request)
        with span("join", attempt.config.traced):
            summing = attempt.join(session)
            answer = await self._exchange(summing, session, request)
        return answer or JoinResponse(group=summing.group.group, phase=phase_of(summing))

    async def Share(self, request: ShareRequest, context: Any) -> ShareResponse:  # noqa: N802
        """Takes sealed shares, and gives those of the neighbours."""
        del context
        session, attempt = self._prove("Share", request)
        with span("share", attempt.config.traced):
            summing = attempt.find(request.group)
            return await self._exchange(summing, session, request) or ShareResponse(phase=phase_of(summing))

    async def Unmask(self, request: UnmaskRequest, context: Any) -> UnmaskResponse:  # noqa: N802
        """Says who survived, then takes the shares that unmask the sum."""
        del context
        session, attempt = self._prove("Unmask", request)
        with span("unmask", attempt.config.traced):
            summing = attempt.find(request.group)
            answer = await self._exchange(summing, session, request) or UnmaskResponse(phase=phase_of(summing))
        answer.fate = fate_of(summing, session)
        return answer

    async def UploadStatus(  # noqa: N802
        self, request: UploadStatusRequest, context: Any
    ) -> UploadStatusResponse:
        """Says how much of an upload is there, and what became of it."""
        del context
        session, attempt = self._prove("UploadStatus", request)
        held = attempt.holding(session)
        summing = held or attempt.find(request.group)
        acknowledged = summing.group.reports.get(session)
        return UploadStatusResponse(
            phase=phase_of(summing),
            received_bytes=self._staging.received(_key_of(attempt, session)) if held is None else _size_of(summing),
            acknowledged=acknowledged is not None,
            digest=acknowledged or b"",
            fate=fate_of(summing, session),
        )

    async def Upload(  # noqa: N802
        self, request_iterator: AsyncIterator[UploadRequest], context: Any
    ) -> UploadResponse:
        """Takes a report; answers when it is durable."""
        del context
        first = await anext(aiter(request_iterator), None)
        if first is None or first.WhichOneof("part") != "header":
            raise malformed("an upload begins with its header")
        header = first.header
        session, attempt = self._prove("Upload", header)
        attempt.find(header.group)
        if len(header.digest) != DIGEST_BYTES:
            raise malformed(f"the vector's digest has {len(header.digest)} bytes, not {DIGEST_BYTES}")
        with span("upload", attempt.config.traced, bytes=header.size):
            if attempt.holding(session) is None:
                await self._receive(attempt, session, header, request_iterator)
            else:
                self._measures.reports.labels(outcome="duplicate").inc()
            return await self._answer(attempt, session, header.digest)

    async def _receive(
        self, attempt: Attempt, session: bytes, header: UploadHeader, parts: AsyncIterator[UploadRequest]
    ) -> None:
        """Takes the bytes of a report, checks them and adds the vector."""
        summing = self._placed(attempt, session)
        size = _size_of(summing)
        if header.size != size:
            self._count_rejected("too_large" if header.size > size else "invalid", "shape")
            raise Refusal(
                grpc.StatusCode.INVALID_ARGUMENT,
                "WRONG_SIZE",
                f"The vector has {header.size} bytes; the round's layout needs {size}.",
                "Make the report anew after the assignment's layout.",
            )
        key = _key_of(attempt, session)
        upload = self._staging.begin(key, size, header.digest, header.offset)
        connection = upload.connection
        self._measures.resumed_chunks.inc(chunks_in(header.offset))
        try:
            await self._take(attempt, upload, connection, parts)
        finally:
            self._staging.disconnect(upload, connection)
        if attempt.holding(session) is not None or upload.connection != connection:
            return  # another connection was quicker
        if not upload.whole:
            raise Refusal(
                grpc.StatusCode.FAILED_PRECONDITION,
                "UPLOAD_INCOMPLETE",
                f"The upload ended after {upload.received} of {size} bytes.",
                "Go on from there: the bytes are kept.",
            )
        self._staging.drop(key)
        self._add(attempt, session, upload)

    async def _take(
        self, attempt: Attempt, upload: StagedUpload, connection: int, parts: AsyncIterator[UploadRequest]
    ) -> None:
        """Takes the chunks of an upload, as many as come."""
        async for part in parts:
            if attempt.ended:
                self._measures.reports.labels(outcome="late").inc()
                raise round_closed()
            if part.WhichOneof("part") != "chunk":
                raise malformed("after the header come chunks")
            await self._staging.append(upload, part.chunk, connection)

    def _add(self, attempt: Attempt, session: bytes, upload: StagedUpload) -> None:
        """Checks a whole upload and adds it to the group that has room now."""
        if not upload.intact:
            self._count_rejected("invalid", None)
            raise Refusal(
                grpc.StatusCode.DATA_LOSS,
                "DIGEST_MISMATCH",
                "The vector that arrived has not the digest that was announced.",
                "Upload it again from its first byte.",
            )
        summing = self._placed(attempt, session)
        vector = read_vector(upload.content, summing.fixed_point)
        try:
            summing.protocol.check(vector)
        except InvalidReportError as error:
            self._count_rejected("invalid", error.reason)
            raise Refusal(
                grpc.StatusCode.INVALID_ARGUMENT,
                "INVALID_REPORT",
                f"Report refused: {error}.",
                "End the session as failed: its vector is not one that the round's arithmetic gives.",
            ) from error
        self._measures.report_bytes.observe(len(upload.content))
        if isinstance(summing.protocol, TrustedSum):
            self._measures.update_norm.observe(summing.protocol.norm_of(vector))
        summing.add(session, upload.digest, vector)

    async def _answer(self, attempt: Attempt, session: bytes, digest: bytes) -> UploadResponse:
        """Answers for a report that is here, once it is durable."""
        summing = attempt.holding(session)
        if summing is None:  # a newer connection brings it
            raise Refusal(
                grpc.StatusCode.ABORTED, "UPLOAD_REPLACED", "The session has begun a newer upload.", "Go on with that."
            )
        if summing.digest_of(session) != digest:
            raise Refusal(
                grpc.StatusCode.ALREADY_EXISTS,
                "ALREADY_REPORTED",
                "The session has reported another vector.",
                "A session reports once: end it.",
            )
        await summing.acknowledged(session)
        return UploadResponse(digest=digest, phase=phase_of(summing))

    def _placed(self, attempt: Attempt, session: bytes) -> Summing:
        try:
            return attempt.place(session)
        except Refusal:
            self._measures.reports.labels(outcome="late").inc()
            self._staging.drop(_key_of(attempt, session))
            raise

    def _prove(self, method: str, message: _Proved) -> tuple[bytes, Attempt]:
        """Returns a session and its attempt, once its token says that it was assigned, and its MAC to this device.

        Raises:
            Refusal: it was not, or the attempt is not here.
        """
        proof = message.proof
        try:
            issuer = verify_token(self._token_keys, proof.round, proof.session, proof.round_token, 0)
        except BadTokenError as error:
            self._measures.reports.labels(outcome="unauthorized").inc()
            raise Refusal(
                grpc.StatusCode.PERMISSION_DENIED,
                "BAD_ROUND_TOKEN",
                f"The call was refused: {error}.",
                "End the session; the coordinator says when to come back.",
            ) from error
        self._require_proof(issuer, f"/fedrecon.v1.Aggregator/{method}", message)
        try:
            now = self._clock.now_milliseconds()
            verify_token(self._token_keys, proof.round, proof.session, proof.round_token, now)
        except BadTokenError as error:
            self._measures.reports.labels(outcome="late").inc()
            raise Refusal(
                grpc.StatusCode.FAILED_PRECONDITION,
                "TOKEN_EXPIRED",
                "The session's time is over.",
                "End the session; the coordinator says when to come back.",
            ) from error
        return proof.session, self._attempts.find(proof.round)

    def _require_proof(self, issuer: bytes, method: str, message: _Proved) -> None:
        proof = message.proof
        try:
            require_proof(
                issuer,
                method,
                message,
                proof.credentials,
                proof.round,
                proof.session,
                is_required=self._proves_sessions,
            )
        except Refusal:
            self._measures.reports.labels(outcome="unauthorized").inc()
            raise

    async def _exchange(self, summing: Summing, session: bytes, message: Message) -> Any:
        """Gives a message to the group's protocol; returns its answer, None if the group has not come so far yet."""
        try:
            return await summing.exchange(session, message, _PATIENCE_SECONDS)
        except MessageRefusedError as error:
            raise Refusal(CODES[error.kind], error.reason, f"{error}.", error.advice) from error

    def _count_rejected(self, outcome: str, reason: str | None) -> None:
        self._measures.reports.labels(outcome=outcome).inc()
        if reason is not None:
            self._measures.rejected.labels(reason=reason).inc()


def _key_of(attempt: Attempt, session: bytes) -> StagingKey:
    return attempt.config.key, session


def _size_of(summing: Summing) -> int:
    return summing.fixed_point.vector_bytes
