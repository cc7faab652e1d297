"""Calls that survive lost connections: the same bytes again, transfers from where they stopped.

Part of the core: everything here yields requests and is resumed with answers, and keeps the receipt.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from google.protobuf.message import Message

from fedrecon.device_sdk.blob_cache import BlobCache
from fedrecon.device_sdk.errors import (
    GROUP_MOVED,
    LOST_REASONS,
    CallFailedError,
    DamagedBlobError,
    FedreconError,
    TooLateError,
    UnreachableError,
)
from fedrecon.device_sdk.kinds import reveals_of
from fedrecon.device_sdk.receipts import REVEALS, Departure, Receipt
from fedrecon.device_sdk.requests import FETCH, UPLOAD, Call, Compute, Fetch, Method, Request, Sleep, Upload
from fedrecon.v1.aggregator_pb2 import UploadHeader, UploadRequest, UploadResponse
from fedrecon.v1.blobs_pb2 import FetchRequest
from fedrecon.v1.common_pb2 import BlobReference, Chunk
from fedrecon.wire import chunks
from fedrecon.wire.digests import DIGEST_BYTES, DigestMismatchError, digest_of
from fedrecon.wire.proofs import NONCE_BYTES, call_mac

Answer = TypeVar("Answer", bound=Message)
Result = TypeVar("Result")
Steps = Generator[Request, Any, Result]

CALL_SECONDS = 30.0
TRANSFER_SECONDS = 300.0
CLAIM_SECONDS = 0.05
LONGEST_RETRY_SECONDS = 300.0
_FAILURES_BEFORE_ASKING = 2
BLOB_LIMIT_BYTES = 1 << 30
UPLOAD_CHUNK_BYTES = 1 << 18
"""A message is held several times on its way, and is sent again whole where the connection breaks within it."""
_UINT32 = 1 << 32


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a device goes on trying.

    Attributes:
        attempts: sends of one call or transfer that make no progress, at least 1, outside a session.
        session_attempts: the same within a session, whose deadline ends it, too: a service may be restarting.
        first_seconds: wait after the first failure; it doubles, and is spread by half up and down.
        longest_seconds: longest wait.
    """

    attempts: int = 6
    session_attempts: int = 40
    first_seconds: float = 0.25
    longest_seconds: float = 8.0


@dataclass(slots=True)
class Line:
    """A core's way to the world: clock, randomness, patience, deadline and receipt of one participation.

    Attributes:
        clock: seconds; only differences matter.
        wall_clock: Unix seconds, for the receipt.
        entropy: gives that many random bytes.
        patience: how long to go on trying.
        cache: blobs that are here already.
        deadline: moment of `clock` after which nothing more is tried; None before an assignment.
        session_key: proves the calls of a session, once one was assigned; empty before, and where none is given.
        aggregator: target of the session's aggregator, as assigned; empty before.
        find: asks where that one's work goes on by now; empty if nobody can tell.
        departures: what left.
    """

    clock: Callable[[], float]
    wall_clock: Callable[[], float]
    entropy: Callable[[int], bytes]
    patience: Patience
    cache: BlobCache
    deadline: float | None = None
    session_key: bytes = b""
    aggregator: str = ""
    find: Callable[[], Steps[str]] | None = None
    _moved_to: str = ""
    departures: list[Departure] = field(default_factory=list)

    @property
    def receipt(self) -> Receipt:
        """What has left so far."""
        return Receipt(tuple(self.departures))

    def fraction(self) -> float:
        """Returns a random number in [0, 1)."""
        return int.from_bytes(self.entropy(4), "little") / _UINT32

    def call(
        self,
        target: str,
        method: Method[Answer],
        request: Message | Callable[[], Message],
        seconds: float = CALL_SECONDS,
    ) -> Steps[Answer]:
        """Calls a service until it answers.

        Args:
            target: the service.
            method: which call.
            request: what is said: the same bytes with every try; or a function that makes them anew for each.
            seconds: deadline of a try.

        Raises:
            CallFailedError: the service refused.
            UnreachableError: it did not answer.
            TooLateError: the deadline has passed.
        """
        make = request if callable(request) else _always(self._prove(method, request))
        failures = 0
        while True:
            try:
                return (yield from self.try_once(target, method, make(), seconds))
            except CallFailedError as error:
                failures += 1
                yield from self.back_off(error, failures, target)

    def try_once(
        self, target: str, method: Method[Answer], request: Message, seconds: float = CALL_SECONDS
    ) -> Steps[Answer]:
        """Calls a service, and takes no answer for an answer.

        Args:
            target: the service.
            method: which call.
            request: what is said.
            seconds: its deadline.

        Raises:
            CallFailedError: the service refused, or did not answer.
            TooLateError: the deadline has passed.
        """
        body = self._prove(method, request).SerializeToString(deterministic=True)
        within, reached = self._within(seconds), self._reached(target)
        self.note(method.name, len(body), digest_of(body), reached, reveals_of(request))
        answer: Answer = yield Call(reached, method, body, within)
        return answer

    def fetch(self, target: str, reference: BlobReference, what: str) -> Steps[bytes]:
        """Returns a blob, from the cache or from a Blobs service; a broken transfer goes on where it stopped.

        Args:
            target: the Blobs service.
            reference: which blob.
            what: how to call it in errors.

        Raises:
            DamagedBlobError: what came is not what the digest says.
            CallFailedError: the service refused.
            UnreachableError: it did not answer.
            TooLateError: the deadline has passed.
        """
        digest = reference.digest
        if len(digest) != DIGEST_BYTES:
            raise DamagedBlobError(f"{what}: it is named by {len(digest)} bytes, a digest has {DIGEST_BYTES}")
        content: bytes | None = yield Compute(lambda: self.cache.read(digest))
        if content is not None:
            return content
        while not self.cache.claim(digest):
            self._within(CLAIM_SECONDS)
            yield Sleep(CLAIM_SECONDS)  # another device of this process fetches it
        try:
            content = yield Compute(lambda: self.cache.read(digest))  # by now it may be here
            if content is None:
                content = yield from self._transfer(target, reference, what)
                whole = content
                yield Compute(lambda: self.cache.write(digest, whole))
        finally:
            self.cache.release(digest)
        return content

    def _transfer(self, target: str, reference: BlobReference, what: str) -> Steps[bytes]:
        if not 0 <= reference.size <= BLOB_LIMIT_BYTES:
            raise DamagedBlobError(f"{what}: {reference.size} bytes announced, at most {BLOB_LIMIT_BYTES} are taken")
        arrived = bytearray((yield Compute(lambda: self.cache.partial(reference.digest))))
        fresh = not arrived

        def take(chunk: Chunk) -> None:
            arrived.extend(chunks.take(chunk, len(arrived), reference.size))

        failures = 0
        while len(arrived) < reference.size:
            before = len(arrived)
            body = FetchRequest(digest=reference.digest, offset=before).SerializeToString(deterministic=True)
            within, reached = self._within(TRANSFER_SECONDS), self._reached(target)
            self.note(FETCH.name, len(body), digest_of(body), reached)
            error = CallFailedError(
                f"{what}: the stream ended at byte {before} of {reference.size}", code="UNAVAILABLE"
            )
            try:
                yield Fetch(reached, body, take, within)
            except CallFailedError as failure:
                error = failure
            except (DigestMismatchError, chunks.ChunkOrderError) as failure:
                error = CallFailedError(f"{what}: {failure}", code="UNAVAILABLE", reason="DAMAGED_BLOB")
            if len(arrived) < reference.size:
                failures = 1 if len(arrived) > before else failures + 1
                kept = bytes(arrived)
                try:
                    yield from self.back_off(error, failures, target)
                except FedreconError:
                    self.cache.keep_partial(reference.digest, kept)
                    raise
        content = bytes(arrived)
        if digest_of(content) == reference.digest:
            return content
        self.cache.keep_partial(reference.digest, b"")
        if not fresh:  # bytes of an earlier transfer may be the damaged ones: all of it once more
            return (yield from self._transfer(target, reference, what))
        raise DamagedBlobError(
            f"{what}: expected SHA-256 {reference.digest.hex()}, got {digest_of(content).hex()} from {target}"
        )

    def upload(self, target: str, header: UploadHeader, content: bytes, reveals: str) -> Steps[UploadResponse]:
        """Sends a vector from the header's offset, once; the caller asks for the status before it tries again.

        Raises:
            CallFailedError: the stream broke or the service refused.
            TooLateError: the deadline has passed.
        """
        self._prove(UPLOAD, header)

        def parts() -> Iterator[bytes]:
            yield UploadRequest(header=header).SerializeToString()
            for chunk in chunks.cut(content, header.offset, UPLOAD_CHUNK_BYTES):
                yield UploadRequest(chunk=chunk).SerializeToString()

        within, reached = self._within(TRANSFER_SECONDS), self._reached(target)
        self.note(UPLOAD.name, sum(map(len, parts())), header.digest, reached, reveals)
        answer: UploadResponse = yield Upload(reached, parts, within)
        return answer

    def back_off(self, error: CallFailedError, failures: int, target: str) -> Steps[None]:
        """Waits before the same bytes are sent again, perhaps to another aggregator, or gives up.

        Raises:
            CallFailedError: the failure was a refusal, or asks for more patience than a call has: it is raised again.
            UnreachableError: there were too many failures.
            TooLateError: the deadline passes before the wait ends.
        """
        before = self._reached(target)
        is_elsewhere = yield from self._seek(error, failures, target)
        if not (error.transient or is_elsewhere):
            raise error
        has_moved = self._reached(target) != before
        attempts = self.patience.attempts if self.deadline is None else self.patience.session_attempts
        if failures >= attempts:
            raise UnreachableError(f"{target} failed {failures} times, at last with: {error}") from error
        doublings = 0 if has_moved else failures - 1  # whoever took over has not failed yet
        wait = min(self.patience.first_seconds * 2**doublings, self.patience.longest_seconds)
        wait *= 0.5 + self.fraction()
        if error.retry_milliseconds is not None and not has_moved:  # the service says itself when
            earliest, latest = error.retry_milliseconds
            wait = (earliest + self.fraction() * max(latest - earliest, 0)) / 1000
            if wait > LONGEST_RETRY_SECONDS:  # that is for the app to wait: the error tells it how long
                raise error
        if self.deadline is not None and self.clock() + wait >= self.deadline:
            raise TooLateError(f"the report's time ended while {target} did not answer: {error}") from error
        yield Sleep(wait)

    def _seek(self, error: CallFailedError, failures: int, target: str) -> Steps[bool]:
        """Asks where a session's aggregator is by now, if it does not answer, or has not what it is asked for.

        Returns:
            Whether what it said is not final: another one has it, or will in a moment.
        """
        if self.find is None or target != self.aggregator:
            return False
        has_lost = error.reason in LOST_REASONS
        if not has_lost and (not error.transient or failures < _FAILURES_BEFORE_ASKING):
            return False
        found = yield from self.find()
        has_moved = found not in {"", self._reached(target)}
        if has_moved:
            self._moved_to = found
        return has_moved or error.reason == GROUP_MOVED

    def _reached(self, target: str) -> str:
        """Returns where a service is called: the session's aggregator may be another one by now."""
        return self._moved_to if self._moved_to and target == self.aggregator else target

    def note(self, message: str, size: int, digest: bytes, target: str, reveals: str = "") -> None:
        """Writes a line of the receipt."""
        moment = round(self.wall_clock() * 1000)
        self.departures.append(
            Departure(message, size, digest.hex(), target, moment, reveals or REVEALS[message]),
        )

    def _prove(self, method: Method[Any], request: Message) -> Message:
        """Puts the session's MAC into a request that has credentials and none yet, and returns it."""
        holder: Any = getattr(request, "proof", request)
        if self.session_key and "credentials" in holder.DESCRIPTOR.fields_by_name and not holder.credentials.mac:
            holder.credentials.nonce = self.entropy(NONCE_BYTES)
            holder.credentials.mac = call_mac(self.session_key, method.path, request, holder.credentials)
        return request

    def _within(self, seconds: float) -> float:
        """Returns the deadline of a call: its own, or what is left of the participation's."""
        if self.deadline is None:
            return seconds
        left = self.deadline - self.clock()
        if left <= 0:
            raise TooLateError("the time for the report has ended")
        return min(seconds, left)


def _always(message: Message) -> Callable[[], Message]:
    """Returns a function that returns a message."""
    return lambda: message
