"""Uploads on their way: bytes in memory until a vector is whole and its digest is right.

Rules: the size is known from the header and must be the layout's, so nothing is held that cannot be a report; all
uploads together hold at most a fixed number of bytes. Each chunk's digest is checked as it comes. An upload whose
connection is lost keeps its bytes, and goes on from there for as long as the process lives; if room is needed for
others, those that nobody has touched for a minute are dropped, the oldest first, and begin again; after five minutes
also those whose connection lives and is silent, since it is the device that sets its deadline. A session has one
upload: a newer connection takes over from an older one. Nothing is on disk, so nothing lies there in the clear.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc

from fedrecon.aggregator.group_events import Key
from fedrecon.ops.boundary import Refusal
from fedrecon.v1.common_pb2 import Chunk
from fedrecon.wire.chunks import CHUNK_BYTES, ChunkOrderError, take
from fedrecon.wire.digests import DigestMismatchError

_IDLE_SECONDS = 60.0
_SILENT_SECONDS = 300.0
_INLINE_BYTES = 64 << 10
"""Uploads up to this size are checked in the event loop: handing them to a thread would cost more."""

StagingKey = tuple[Key, bytes]
"""Part of an attempt, session."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A chunk that was found to be the next one, and undamaged.

    Attributes:
        data: its bytes.
        seen: the hash of all bytes up to its end; None where it is the whole, whose digest is the chunk's.
        digest: the chunk's digest.
    """

    data: bytes
    seen: Any
    digest: bytes


@dataclass(slots=True)
class StagedUpload:
    """One upload.

    Attributes:
        digest: SHA-256 of the whole, as announced.
        size: bytes of the whole.
        content: what of it is there; room for the whole once a part of it is.
        received: bytes that are there.
        connection: which of the session's connections brings it; grows.
        connected: whether that connection lives.
        touched: when its last byte came, in seconds of a monotonic clock.
    """

    digest: bytes
    size: int
    touched: float
    content: bytes | bytearray = b""
    received: int = 0
    connection: int = 0
    connected: bool = True
    _seen: Any = field(default_factory=hashlib.sha256)
    _whole_digest: bytes = b""

    @property
    def whole(self) -> bool:
        """Whether all bytes are there."""
        return self.received == self.size

    @property
    def intact(self) -> bool:
        """Whether the bytes that came have the announced digest."""
        found: bytes = self._whole_digest or self._seen.digest()
        return found == self.digest

    def check(self, chunk: Chunk) -> Piece:
        """Returns the next chunk, checked; changes nothing, and may run in a thread.

        Args:
            chunk: the chunk.

        Raises:
            Refusal: it is damaged, or in the wrong place.
        """
        try:
            data = take(chunk, self.received, self.size)
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
        if len(data) == self.size:
            return Piece(data, None, chunk.digest)
        seen = self._seen.copy()
        seen.update(data)
        return Piece(data, seen, chunk.digest)

    def keep(self, piece: Piece, connection: int, now: float) -> None:
        """Adds a checked chunk.

        Args:
            piece: the chunk.
            connection: which connection brings it.
            now: seconds of a monotonic clock.

        Raises:
            Refusal: it comes over a connection that another has replaced.
        """
        self.refuse_replaced(connection)
        if piece.seen is None:
            self.content, self._whole_digest = piece.data, piece.digest
        else:
            if not self.content:
                self.content = bytearray(self.size)
            assert isinstance(self.content, bytearray)  # noqa: S101 - only a whole comes in one piece
            self.content[self.received : self.received + len(piece.data)] = piece.data
            self._seen = piece.seen
        self.received += len(piece.data)
        self.touched = now

    def refuse_replaced(self, connection: int) -> None:
        """Raises unless a connection is still the one that brings the upload.

        Raises:
            Refusal: another has replaced it.
        """
        if connection != self.connection:
            raise Refusal(
                grpc.StatusCode.ABORTED,
                "UPLOAD_REPLACED",
                "The session has begun a newer upload.",
                "Go on with the newer one.",
            )


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
        return sum(upload.size for upload in self._uploads.values())

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
            upload = StagedUpload(digest, size, self._monotonic(), connection=connection)
            self._uploads[key] = upload
            self._held(self.bytes_held)
            return upload
        if upload is None or offset != upload.received or digest != upload.digest or size != upload.size:
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

    async def append(self, upload: StagedUpload, chunk: Chunk, connection: int) -> None:
        """Adds the next chunk of an upload.

        Args:
            upload: the upload.
            chunk: the chunk; those of large uploads are checked in threads, several at once.
            connection: which connection brings it.

        Raises:
            Refusal: it is damaged, in the wrong place, or comes over a connection that another has replaced.
        """
        upload.refuse_replaced(connection)
        if upload.size <= _INLINE_BYTES:
            piece = upload.check(chunk)
        else:
            piece = await asyncio.to_thread(upload.check, chunk)
        upload.keep(piece, connection, self._monotonic())

    def drop(self, key: StagingKey) -> None:
        """Forgets an upload; nothing happens if there is none."""
        upload = self._uploads.pop(key, None)
        if upload is not None:
            upload.connection += 1  # whoever still brings it is told
            self._held(self.bytes_held)

    def drop_part(self, part: Key) -> None:
        """Forgets all uploads to a part of an attempt."""
        for key in [key for key in self._uploads if key[0] == part]:
            self.drop(key)

    def drop_ended(self, takes_reports: Callable[[Key], bool]) -> None:
        """Forgets the uploads to parts of attempts that take no more reports.

        Args:
            takes_reports: whether a part does.
        """
        for part in {part for part, _ in self._uploads}:
            if not takes_reports(part):
                self.drop_part(part)

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
