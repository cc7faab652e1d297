"""Uploads on their way: order, damage, resumption and room."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from fedrecon.aggregator.ingest import StagedUpload, Staging, StagingKey, chunks_in
from fedrecon.ops.boundary import Refusal
from fedrecon.wire.chunks import cut
from fedrecon.wire.digests import digest_of

CONTENT = bytes(range(200)) * 5
DIGEST = digest_of(CONTENT)
PART = ("films", 1, 1, 0)


class Time:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def key(number: int) -> StagingKey:
    return PART, bytes([number]) * 16


def staging(limit: int = 10_000) -> tuple[Staging, Time, list[float]]:
    time, held = Time(), list[float]()
    return Staging(limit, time, held.append), time, held


async def send(place: Staging, upload: StagedUpload, offset: int = 0, until: int = len(CONTENT)) -> None:
    for chunk in cut(CONTENT[:until], offset, 300):
        await place.append(upload, chunk, upload.connection)


def refusal(reason: str) -> pytest.RaisesExc[Refusal]:
    return pytest.raises(Refusal, check=lambda refused: refused.reason == reason)


async def test_a_whole_upload_is_intact() -> None:
    place, _, held = staging()
    upload = place.begin(key(1), len(CONTENT), DIGEST, 0)
    await send(place, upload)
    assert upload.whole
    assert upload.intact
    assert bytes(upload.content) == CONTENT
    place.drop(key(1))
    assert held == [1_000, 0]


async def test_an_interrupted_upload_goes_on_where_it_stopped() -> None:
    place, time, _ = staging()
    first = place.begin(key(1), len(CONTENT), DIGEST, 0)
    await send(place, first, until=600)
    place.disconnect(first, first.connection)
    time.seconds = 3_600.0
    assert place.received(key(1)) == 600
    second = place.begin(key(1), len(CONTENT), DIGEST, 600)
    await send(place, second, offset=600)
    assert second.intact


async def test_a_newer_connection_takes_over() -> None:
    place, _, _ = staging()
    upload = place.begin(key(1), len(CONTENT), DIGEST, 0)
    old = upload.connection
    await send(place, upload, until=300)
    place.begin(key(1), len(CONTENT), DIGEST, 300)
    with refusal("UPLOAD_REPLACED"):
        await place.append(upload, next(cut(CONTENT, 300, 300)), old)
    place.disconnect(upload, old)
    assert upload.connected


async def test_beginning_anew_replaces_what_was_there() -> None:
    place, _, _ = staging(limit=1_000)
    old = place.begin(key(1), len(CONTENT), DIGEST, 0)
    connection = old.connection
    await send(place, old, until=300)
    new = place.begin(key(1), len(CONTENT), DIGEST, 0)
    assert place.received(key(1)) == 0
    with refusal("UPLOAD_REPLACED"):
        await place.append(old, next(cut(CONTENT, 300, 300)), connection)
    await send(place, new)
    assert new.intact


@pytest.mark.parametrize(
    ("size", "digest", "offset"), [(1_000, DIGEST, 299), (1_000, bytes(32), 300), (999, DIGEST, 300)]
)
async def test_going_on_with_something_else_is_refused(size: int, digest: bytes, offset: int) -> None:
    place, _, _ = staging()
    await send(place, place.begin(key(1), len(CONTENT), DIGEST, 0), until=300)
    with refusal("WRONG_OFFSET"):
        place.begin(key(1), size, digest, offset)
    with refusal("WRONG_OFFSET"):
        place.begin(key(2), len(CONTENT), DIGEST, 300)


async def test_a_damaged_chunk_is_refused_and_what_came_before_is_kept() -> None:
    place, _, _ = staging()
    upload = place.begin(key(1), len(CONTENT), DIGEST, 0)
    await send(place, upload, until=300)
    chunk = next(cut(CONTENT, 300, 300))
    chunk.data = chunk.data[:-1] + b"\x00"
    with refusal("DAMAGED_CHUNK") as caught:
        await place.append(upload, chunk, upload.connection)
    assert caught.value.code is grpc.StatusCode.DATA_LOSS
    await send(place, upload, offset=300)
    assert upload.intact


@pytest.mark.parametrize("offset", [0, 299, 301, 900])
async def test_chunks_out_of_order_are_refused(offset: int) -> None:
    place, _, _ = staging()
    upload = place.begin(key(1), len(CONTENT), DIGEST, 0)
    await send(place, upload, until=300)
    with refusal("CHUNK_ORDER"):
        await place.append(upload, next(cut(CONTENT, offset, 300)), upload.connection)


async def test_other_bytes_than_announced_are_not_intact() -> None:
    place, _, _ = staging()
    upload = place.begin(key(1), len(CONTENT), bytes(32), 0)
    await send(place, upload)
    assert upload.whole
    assert not upload.intact


def test_a_full_staging_refuses_with_a_retry_window() -> None:
    place, _, _ = staging(limit=2_500)
    place.begin(key(1), 1_000, DIGEST, 0)
    place.begin(key(2), 1_000, DIGEST, 0)
    with refusal("STAGING_FULL") as caught:
        place.begin(key(3), 1_000, DIGEST, 0)
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert caught.value.retry_milliseconds is not None
    assert place.received(key(3)) == 0


async def test_only_uploads_that_nobody_touches_make_room() -> None:
    place, time, _ = staging(limit=3_000)
    uploads = [place.begin(key(number), 1_000, DIGEST, 0) for number in range(3)]
    for upload in uploads:
        await send(place, upload, until=300)
    place.disconnect(uploads[1], 0)
    time.seconds = 30.0
    place.disconnect(uploads[0], 0)
    time.seconds = 61.0
    place.begin(key(9), 1_000, DIGEST, 0)
    assert [place.received(key(number)) for number in range(3)] == [300, 0, 300]
    with refusal("STAGING_FULL"):
        place.begin(key(8), 1_000, DIGEST, 0)


async def test_a_connection_that_is_silent_for_minutes_holds_no_room() -> None:
    place, time, _ = staging(limit=1_000)
    silent = place.begin(key(1), 1_000, DIGEST, 0)
    await send(place, silent, until=300)
    time.seconds = 299.0
    with refusal("STAGING_FULL"):
        place.begin(key(2), 1_000, DIGEST, 0)
    time.seconds = 300.0
    place.begin(key(2), 1_000, DIGEST, 0)
    with refusal("UPLOAD_REPLACED"):
        await place.append(silent, next(cut(CONTENT, 300, 300)), 0)


def test_the_end_of_an_attempt_forgets_its_uploads_only() -> None:
    place, _, _ = staging()
    place.begin(key(1), 1_000, DIGEST, 0)
    place.begin((("films", 1, 2, 0), bytes(16)), 1_000, DIGEST, 0)
    place.drop_part(PART)
    assert place.bytes_held == 1_000


async def test_a_large_upload_in_one_piece_or_in_several_is_intact() -> None:
    content = bytes(range(256)) * 1024
    for size in (len(content), 100_000):
        for digest, intact in ((digest_of(content), True), (DIGEST, False)):
            place, _, _ = staging(limit=1 << 20)
            upload = place.begin(key(1), len(content), digest, 0)
            for chunk in cut(content, 0, size):
                await place.append(upload, chunk, upload.connection)
            assert upload.whole
            assert upload.intact is intact
            assert bytes(upload.content) == content


async def test_a_connection_that_is_replaced_while_its_chunk_is_checked_adds_nothing() -> None:
    content = bytes(range(256)) * 1024
    place, _, _ = staging(limit=1 << 20)
    upload = place.begin(key(1), len(content), digest_of(content), 0)
    checking = asyncio.create_task(place.append(upload, next(cut(content, 0, 100_000)), upload.connection))
    await asyncio.sleep(0)
    upload.connection += 1
    with refusal("UPLOAD_REPLACED"):
        await checking
    assert upload.received == 0
    for chunk in cut(content, 0, 100_000):
        await place.append(upload, chunk, upload.connection)
    assert upload.intact


def test_chunks_are_counted_as_they_are_cut() -> None:
    assert [chunks_in(size) for size in (0, 1, 1 << 20, (1 << 20) + 1)] == [0, 1, 1, 2]
