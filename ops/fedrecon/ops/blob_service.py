"""The service `Blobs`: gives blobs by digest, in chunks that carry their own.

Hosted by aggregator and inference over their blob store. What it gives is public to every device of the deployment.
Rules: a fetch begins at any offset, so a lost connection goes on where it stopped; reading blocks, so it happens in
threads, one chunk ahead of nobody; a blob that is damaged on disk ends the stream with DATA_LOSS before its last chunk.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc

from fedrecon.ops.blobs import BlobMissing, BlobStore, CorruptBlob
from fedrecon.ops.boundary import Refusal
from fedrecon.ops.metrics import Metrics
from fedrecon.v1.blobs_pb2 import FetchRequest, FetchResponse, StatRequest, StatResponse
from fedrecon.v1.blobs_pb2_grpc import BlobsServicer
from fedrecon.v1.common_pb2 import BlobReference, Chunk
from fedrecon.wire.digests import DIGEST_BYTES, digest_of


class BlobService(BlobsServicer):
    """Answers who wants blobs.

    Args:
        blobs: where they lie.
        metrics: what is counted.
    """

    def __init__(self, blobs: BlobStore, metrics: Metrics) -> None:
        self._blobs = blobs
        self._metrics = metrics

    async def Stat(self, request: StatRequest, context: Any) -> StatResponse:  # noqa: N802 - the contract's name
        """Say whether a blob is there and how long it is."""
        del context
        size = await self._size(request.digest)
        return StatResponse(blob=BlobReference(digest=request.digest, size=size))

    async def Fetch(self, request: FetchRequest, context: Any) -> AsyncIterator[FetchResponse]:  # noqa: N802
        """Streams a blob from an offset to its end."""
        del context
        size = await self._size(request.digest)
        if request.offset > size:
            raise Refusal(
                grpc.StatusCode.INVALID_ARGUMENT,
                "WRONG_OFFSET",
                f"The blob has {size} bytes; it cannot be read from byte {request.offset}.",
                "Ask for its size, and begin within it.",
            )
        try:
            pieces = await asyncio.to_thread(self._blobs.chunks, request.digest, request.offset)
            offset = request.offset
            while (chunk := await asyncio.to_thread(_next_chunk, pieces, offset)) is not None:
                yield FetchResponse(chunk=chunk)
                offset += len(chunk.data)
                self._metrics.download_bytes_total.inc(len(chunk.data))
        except BlobMissing as error:  # removed meanwhile
            raise _unknown(request.digest) from error
        except CorruptBlob as error:
            raise Refusal(
                grpc.StatusCode.DATA_LOSS,
                "CORRUPT_BLOB",
                f"Blob {request.digest.hex()} is damaged where it lies.",
                "Forget what was fetched of it; the operator puts it again.",
            ) from error

    async def _size(self, digest: bytes) -> int:
        if len(digest) != DIGEST_BYTES:
            raise Refusal(
                grpc.StatusCode.INVALID_ARGUMENT,
                "MALFORMED_REQUEST",
                f"A digest has {DIGEST_BYTES} bytes, not {len(digest)}.",
                "Send the SHA-256 of the blob.",
            )
        size = await asyncio.to_thread(self._blobs.size, digest)
        if size is None:
            raise _unknown(digest)
        return size


def _next_chunk(pieces: Iterator[bytes], offset: int) -> Chunk | None:
    piece = next(pieces, None)
    return None if piece is None else Chunk(offset=offset, data=piece, digest=digest_of(piece))


def _unknown(digest: bytes) -> Refusal:
    return Refusal(
        grpc.StatusCode.NOT_FOUND,
        "UNKNOWN_BLOB",
        f"Blob {digest.hex()} is not here.",
        "Check the digest. If the logs say `blob damaged and moved aside`, the operator restores it from a copy; the "
        "parts of a plan are stored again by `fedrecon task create`.",
    )
