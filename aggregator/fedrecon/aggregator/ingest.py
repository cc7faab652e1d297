"""Uploads on their way: bytes in memory until a vector is whole and its digest is right.

Rules: the size is known from the header and must be the layout's, so nothing is held that cannot be a report; all
uploads together hold at most a fixed number of bytes. Each chunk's digest is checked as it comes. An upload whose
connection is lost keeps its bytes, and goes on from there for as long as the process lives; if room is needed for
others, those that nobody has touched for a minute are dropped, the oldest first, and begin again; after five minutes
also those whose connection lives and is silent, since it is the device that sets its deadline. A session has one
upload: a newer connection takes over from an older one. Nothing is on disk, so nothing lies there in the clear.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc

from fedrecon.ops.boundary import Refusal
from fedrecon.v1.common_pb2 import Chunk
from fedrecon.wire.chunks import CHUNK_BYTES, ChunkOrderError, take
from fedrecon.wire.digests import DigestMismatchError

_IDLE_SECONDS = 60.0
_SILENT_SECONDS = 300.0

StagingKey = tuple[str, int, int, bytes]
"""Task, round, attempt, session."""


@dataclass(slots=True)
class StagedUpload:
    """One upload.

    Attributes:
        digest: SHA-256 of the whole, as announced.
        content: the whole; the first `received` bytes are there.
        received: bytes that are there.
        connection: which of the session's connections brings it; grows.
        connected: whether that connection lives.
        touched: when its last byte came, in seconds of a monotonic clock.
    """

    digest: bytes
    content: bytearray
    touched: float
    received: int = 0
    connection: int = 0
    connected: bool = True
    _seen: Any = field(default_factory=hashlib.sha256)

    @property
    def whole(self) -> bool:
        """Whether all bytes are there."""
        return self.received == len(self.content)

    @property
    def intact(self) -> bool:
        """Whether the bytes that came have the announced digest."""
        return bool(self._seen.digest() == self.digest)

    def append(self, chunk: Chunk, connection: int, now: float) -> None:
        """Adds the next chunk.

        Args:
            chunk: the chunk.
            connection: which connection brings it.
            now: seconds of a monotonic clock.

        Raises:
            Refusal: it is damaged, in the wrong place, or comes over a connection that another has replaced.
        """
        if connection != self.connection:
            raise Refusal(
                grpc.StatusCode.ABORTED,
                "UPLOAD_REPLACED",
                "The session has begun a newer upload.",
                "Go on with the newer one.",
            )
        try:
            piece = take(chunk, self.received, len(self.content))
        except ChunkOrderError as error:
            raise Refusal(
                grpc.StatusCode.INVALID_ARGUMENT, "CHUNK_ORDER", f"Upload: {error}.", "Ask for the upload's status."
            ) from error
        except DigestMismatchError as error:
            raise Refusal(
                grpc.StatusCode.DATA_LOSS,
                "DAMAGED_CHUNK",
                f"Upload: {error}.",
                "Ask for the upload's status and send the rest again.",
            ) from error
        self.content[self.received : self.received + len(piece)] = piece
        self._seen.update(piece)
        self.received += len(piece)
        self.touched = now


class Staging:
    """All uploads on their way.

    Args:
        limit_bytes: most bytes that they hold together.
        monotonic: a clock that never goes back, in seconds.
        held: told the bytes held after every change.
    """

    def __init__(self, limit_bytes: int, monotonic: Callable[[], float], held: Callable[[float], None]) -> None:
        self.limit_bytes = limit_bytes
        self._monotonic = monotonic
        self._held = held
        self._uploads: dict[StagingKey, StagedUpload] = {}

    @property
    def bytes_held(self) -> int:
        """Bytes that all uploads hold."""
        return sum(len(upload.content) for upload in self._uploads.values())

    def received(self, key: StagingKey) -> int:
        """Returns how many bytes of an upload are there; 0 if there is none."""
        upload = self._uploads.get(key)
        return upload.received if upload is not None else 0

    def begin(self, key: StagingKey, size: int, digest: bytes, offset: int) -> StagedUpload:
        """Begins an upload, or goes on with one.

        Args:
            key: whose it is.
            size: length of the whole in bytes.
            digest: SHA-256 of the whole.
            offset: first byte that comes; 0 begins anew.

        Returns:
            The upload; its `connection` is the caller's.

        Raises:
            Refusal: the offset is not what `received` says, another vector was begun, or there is no room.
        """
        upload = self._uploads.get(key)
        if offset == 0:
            connection = upload.connection + 1 if upload is not None else 0
            self.drop(key)
            self._make_room(size)
            upload = StagedUpload(digest, bytearray(size), self._monotonic(), connection=connection)
            self._uploads[key] = upload
            self._held(self.bytes_held)
            return upload
        if upload is None or offset != upload.received or digest != upload.digest or size != len(upload.content):
            raise Refusal(
                grpc.StatusCode.FAILED_PRECONDITION,
                "WRONG_OFFSET",
                f"The upload cannot go on from byte {offset}: {self.received(key)} bytes of this vector are there.",
                "Ask for the upload's status and go on from there, or begin at 0.",
            )
        upload.connection += 1
        upload.connected = True
        return upload

    def disconnect(self, upload: StagedUpload, connection: int) -> None:
        """Notes that a connection has ended, unless a newer one has taken over."""
        if upload.connection == connection:
            upload.connected = False
            upload.touched = self._monotonic()

    def append(self, upload: StagedUpload, chunk: Chunk, connection: int) -> None:
        """Adds the next chunk of an upload. See `StagedUpload.append`."""
        upload.append(chunk, connection, self._monotonic())

    def drop(self, key: StagingKey) -> None:
        """Forgets an upload; nothing happens if there is none."""
        upload = self._uploads.pop(key, None)
        if upload is not None:
            upload.connection += 1  # whoever still brings it is told
            self._held(self.bytes_held)

    def drop_attempt(self, task: str, number: int, attempt: int) -> None:
        """Forgets all uploads of an attempt."""
        for key in [key for key in self._uploads if key[:3] == (task, number, attempt)]:
            self.drop(key)

    def drop_ended(self, takes_reports: Callable[[tuple[str, int, int]], bool]) -> None:
        """Forgets the uploads of attempts that take no more reports.

        Args:
            takes_reports: whether an attempt (task, round, attempt) does.
        """
        for attempt in {key[:3] for key in self._uploads}:
            if not takes_reports(attempt):
                self.drop_attempt(*attempt)

    def _make_room(self, size: int) -> None:
        idle = sorted(
            (upload.touched, key)
            for key, upload in self._uploads.items()
            if self._monotonic() - upload.touched >= (_SILENT_SECONDS if upload.connected else _IDLE_SECONDS)
        )
        for _, key in idle:
            if self.bytes_held + size <= self.limit_bytes:
                return
            self.drop(key)
        if self.bytes_held + size > self.limit_bytes:
            raise Refusal(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "STAGING_FULL",
                "The aggregator holds as many uploads as it may.",
                "Try again within the retry window.",
                retry_milliseconds=(1_000, 10_000),
            )


def chunks_in(size: int) -> int:
    """Returns how many chunks a byte string of this length is."""
    return math.ceil(size / CHUNK_BYTES)
