"""Old blobs are removed, and none that somebody writes at the same moment."""

from __future__ import annotations

import fcntl
import os
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fedrecon.ops.blobs import CHUNK_BYTES, BlobMissing, BlobStore, FsspecBlobs, LocalBlobs, open_blobs

CONTENT = b"a checkpoint" * 100
HOUR_MILLISECONDS = 3_600_000


@pytest.fixture(params=["local", "memory"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    return open_blobs(tmp_path / "blobs" if request.param == "local" else f"memory://{secrets.token_hex(8)}")


def now() -> int:
    return time.time_ns() // 1_000_000


def make_old(blobs: Any, digest: bytes, hours: float = 2.0) -> None:
    """Makes a blob look as if it had been written some hours ago."""
    if isinstance(blobs, LocalBlobs):
        seconds = time.time() - hours * 3600
        os.utime(blobs._path(digest), (seconds, seconds))
    else:
        age(blobs, blobs._path(digest), hours)


def age(blobs: FsspecBlobs, path: str, hours: float) -> None:
    file = blobs._store.store[blobs._store._strip_protocol(path)]
    file.created = file.modified = datetime.now(UTC) - timedelta(hours=hours)


def test_blobs_tell_their_size_and_age(blobs: BlobStore) -> None:
    first, second = blobs.put(CONTENT), blobs.put(b"")
    make_old(blobs, first)
    found = {blob.digest: blob for blob in blobs.stored()}
    assert {digest: blob.size for digest, blob in found.items()} == {first: len(CONTENT), second: 0}
    assert abs(found[second].written_milliseconds - now()) < HOUR_MILLISECONDS / 4
    assert abs(found[first].written_milliseconds - now() + 2 * HOUR_MILLISECONDS) < HOUR_MILLISECONDS / 4


def test_an_old_blob_is_removed_and_a_young_one_stays(blobs: BlobStore) -> None:
    old, young = blobs.put(CONTENT), blobs.put(b"young")
    make_old(blobs, old)
    since = now() - HOUR_MILLISECONDS
    assert blobs.delete_unless_written(old, since)
    assert not blobs.delete_unless_written(young, since)
    assert not blobs.delete_unless_written(bytes(32), since), "it is not there"
    assert list(blobs.digests()) == [young]
    assert blobs.put(CONTENT) == old
    assert blobs.read(old) == CONTENT


@pytest.mark.parametrize("renew", ["put", "refresh"])
def test_a_blob_that_is_written_again_is_young(blobs: BlobStore, renew: str) -> None:
    digest = blobs.put(CONTENT)
    make_old(blobs, digest)
    if renew == "put":
        blobs.put(CONTENT)
    else:
        blobs.refresh(digest)
    assert not blobs.delete_unless_written(digest, now() - HOUR_MILLISECONDS)
    assert blobs.read(digest) == CONTENT


def test_a_blob_that_is_missing_cannot_be_refreshed(blobs: BlobStore) -> None:
    with pytest.raises(BlobMissing):
        blobs.refresh(bytes(32))


def test_notes_are_kept_beside_blobs(blobs: BlobStore) -> None:
    assert blobs.read_note("films") is None
    assert blobs.notes() == ()
    blobs.write_note("films", b"one")
    blobs.write_note("films", b"two")
    blobs.write_note("books", b"three")
    assert (blobs.read_note("films"), blobs.read_note("books")) == (b"two", b"three")
    assert blobs.notes() == ("books", "films")
    assert list(blobs.digests()) == []
    for name in ("", "../films", "a/b", ".hidden"):
        with pytest.raises(ValueError, match="cannot name a note"):
            blobs.write_note(name, b"")


def test_a_local_blob_that_gets_its_name_while_it_is_removed_stays(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path)
    digest = blobs.put(CONTENT)
    make_old(blobs, digest)
    another = LocalBlobs(tmp_path)  # as another process would
    with ThreadPoolExecutor(1) as threads:
        with another._naming(fcntl.LOCK_SH):
            removing = threads.submit(blobs.delete_unless_written, digest, now() - HOUR_MILLISECONDS)
            with pytest.raises(TimeoutError):
                removing.result(0.1)
            os.utime(another._path(digest))
        assert not removing.result(10)
    assert blobs.read(digest) == CONTENT


def test_whoever_has_opened_a_local_blob_reads_it_to_its_end(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path)
    content = secrets.token_bytes(3 * CHUNK_BYTES)
    digest = blobs.put(content)
    make_old(blobs, digest)
    chunks = blobs.chunks(digest)
    received = [next(chunks)]
    assert blobs.delete_unless_written(digest, now() - HOUR_MILLISECONDS)
    assert b"".join([*received, *chunks]) == content


def test_an_object_that_is_removed_while_it_is_read_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = FsspecBlobs(f"memory://{secrets.token_hex(8)}")
    digest = blobs.put(secrets.token_bytes(3 * CHUNK_BYTES))
    really = blobs.open

    def opened(wanted: bytes) -> Any:
        file = really(wanted)
        read = file.read
        calls = iter(range(9))

        def failing(size: int) -> bytes:
            if next(calls) == 2:
                raise FileNotFoundError
            return bytes(read(size))

        monkeypatch.setattr(file, "read", failing)
        return file

    monkeypatch.setattr(blobs, "open", opened)
    chunks = blobs.chunks(digest)
    assert len(next(chunks)) == CHUNK_BYTES
    with pytest.raises(BlobMissing):
        next(chunks)


@pytest.mark.parametrize("name", ["LastModified", "last_modified", "updated", "mtime", "created"])
def test_the_age_of_an_object_is_known_by_whatever_its_store_calls_it(name: str) -> None:
    blobs = FsspecBlobs(f"memory://{secrets.token_hex(8)}")
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert blobs._written("nowhere", {"size": 1, name: moment}) == round(moment.timestamp() * 1000)


class Interrupted:
    """An object store in which something else happens before a call."""

    def __init__(self, store: Any, name: str, suffix: str, act: Callable[[], None]) -> None:
        self._store = store
        self._name = name
        self._suffix = suffix
        self._act: Callable[[], None] | None = act

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if name != self._name:
            return method

        def call(path: str, *arguments: Any, **named: Any) -> Any:
            if self._act is not None and path.endswith(self._suffix):
                act, self._act = self._act, None
                act()
            return method(path, *arguments, **named)

        return call


def two_stores() -> tuple[FsspecBlobs, FsspecBlobs, bytes]:
    """Two processes on one object store, and an old blob in it."""
    url = f"memory://{secrets.token_hex(8)}"
    blobs, another = FsspecBlobs(url), FsspecBlobs(url)
    digest = blobs.put(CONTENT)
    make_old(blobs, digest)
    return blobs, another, digest


def test_an_object_that_is_put_before_the_remover_looks_again_stays() -> None:
    blobs, another, digest = two_stores()
    puts: list[Future[bytes]] = []
    uploaded = threading.Event()
    await_pardon = another._await_pardon

    def wait(digest: bytes) -> None:
        uploaded.set()
        await_pardon(digest)

    another._await_pardon = wait  # type: ignore[method-assign]
    with ThreadPoolExecutor(1) as threads:

        def put_meanwhile() -> None:
            puts.append(threads.submit(another.put, CONTENT))
            assert uploaded.wait(10)

        blobs._store = Interrupted(blobs._store, "info", f"{digest.hex()[:2]}/{digest.hex()}", put_meanwhile)
        assert not blobs.delete_unless_written(digest, now() - HOUR_MILLISECONDS)
        assert puts[0].result(10) == digest
    assert another.read(digest) == CONTENT


def test_an_object_that_is_put_while_it_is_removed_is_put_again() -> None:
    blobs, another, digest = two_stores()
    puts: list[Future[bytes]] = []
    uploads: list[str] = []
    upload = another._upload
    uploaded = threading.Event()

    def counted(path: str, spooled: Any) -> None:
        upload(path, spooled)
        uploads.append(path)
        uploaded.set()

    another._upload = counted  # type: ignore[method-assign]
    with ThreadPoolExecutor(1) as threads:

        def put_meanwhile() -> None:
            puts.append(threads.submit(another.put, CONTENT))
            assert uploaded.wait(10)
            time.sleep(0.05)
            assert not puts[0].done(), "it is told only when the removal is over"

        blobs._store = Interrupted(blobs._store, "rm_file", f"{digest.hex()[:2]}/{digest.hex()}", put_meanwhile)
        assert blobs.delete_unless_written(digest, now() - HOUR_MILLISECONDS)
        assert puts[0].result(10) == digest
    assert another.read(digest) == CONTENT
    assert len(uploads) == 2


def test_a_remover_that_was_held_up_removes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    blobs, _, digest = two_stores()
    began = time.monotonic()
    instants = iter([began, began + 61])
    monkeypatch.setattr("fedrecon.ops.object_blobs.time.monotonic", lambda: next(instants, began + 62))
    assert not blobs.delete_unless_written(digest, now() - HOUR_MILLISECONDS)
    assert blobs.read(digest) == CONTENT


def test_a_remover_that_was_killed_holds_nobody_up_for_good() -> None:
    blobs, another, digest = two_stores()

    def die() -> None:
        raise ConnectionAbortedError

    blobs._store = Interrupted(blobs._store, "rm_file", digest.hex(), die)
    with pytest.raises(ConnectionAbortedError):
        blobs.delete_unless_written(digest, now() - HOUR_MILLISECONDS)
    assert list(another.digests()) == [digest], "a condemnation is no blob"
    age(another, another._condemned(digest), 0.2)
    assert another.put(CONTENT) == digest
    assert not another._store.exists(another._condemned(digest))


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_a_place_within_another_is_none_of_its_business(tmp_path: Path, kind: str) -> None:
    place = str(tmp_path / "blobs") if kind == "local" else f"memory://{secrets.token_hex(8)}"
    outer, inner = open_blobs(place), open_blobs(f"{place}/sums")
    ours, theirs = outer.put(b"a checkpoint"), inner.put(b"a sealed sum")
    assert [blob.digest for blob in outer.stored()] == [ours]
    assert [blob.digest for blob in inner.stored()] == [theirs]
    assert outer.size(theirs) is None
