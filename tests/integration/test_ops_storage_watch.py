"""What a service tells of its stores when they fill up, stop taking writes, go away, and come back."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fedrecon.ops.blobs import BlobMissing
from fedrecon.ops.certificates import keep_certificates
from fedrecon.ops.durable_files import StorageFull
from fedrecon.ops.embedded_valkey import EmbeddedValkey
from fedrecon.ops.journal import Append
from fedrecon.ops.journal.redis import RedisJournal, Standing
from fedrecon.ops.local_blobs import LocalBlobs
from fedrecon.ops.metrics import Metrics
from fedrecon.ops.storage_watch import STORAGE_HEALTH, StorageWatch
from fedrecon.ops.watched_blobs import BlobsUnavailable, WatchedBlobs


@dataclass
class Told:
    """A watch, and what it tells."""

    metrics: Metrics = field(default_factory=lambda: Metrics.create("coordinator"))
    health: dict[str, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.watch = StorageWatch(self.metrics, self.tell)

    async def tell(self, name: str, serves: bool) -> None:
        self.health[name] = serves

    def of(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"fedrecon_{name}", labels)

    def failures(self, store: str, outcome: str) -> float:
        return self.of("storage_seconds_count", store=store, outcome=outcome) or 0


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey(tmp_path_factory.mktemp("valkey")) as started:
        yield started


@pytest.fixture
async def journal(server: EmbeddedValkey, told: Told) -> AsyncIterator[RedisJournal]:
    opened = await RedisJournal.connect(server.url, note=told.watch.noting("journal"), patience_seconds=30)
    yield opened
    await opened.close()


async def failing(told: Told, store: str, outcome: str) -> None:
    async with asyncio.timeout(20):
        while not told.failures(store, outcome):  # noqa: ASYNC110 - a metric sets no event
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("breaking", "mending", "outcome"),
    [
        (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0"), "full"),
        (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE"), "read_only"),
    ],
)
async def test_a_journal_that_takes_no_writes_is_told_until_it_does(
    server: EmbeddedValkey, journal: RedisJournal, told: Told, breaking: Any, mending: Any, outcome: str
) -> None:
    operator = await RedisJournal.connect(server.url)
    await told.watch.look_at_journal(journal)
    assert (told.of("storage_up", store="journal"), told.watch.works) == (1, True)
    await operator._shared.call(*breaking)
    stream = f"round-{outcome}"
    asked = asyncio.create_task(journal.append("task", [Append(stream, 0, (b"kept",))]))
    await failing(told, "journal", outcome)
    assert (told.of("storage_up", store="journal"), told.watch.works) == (0, False)
    await operator._shared.call(*mending)
    await asked
    assert told.of("storage_up", store="journal") == 0, "that something works is said when a write was tried"
    await told.watch.look_at_journal(journal)
    assert (told.of("storage_up", store="journal"), told.watch.works) == (1, True)
    assert [each.event for each in (await operator.load("task", stream)).events] == [b"kept"]
    await operator.close()


async def test_a_journal_that_is_away_is_told_until_it_is_back(
    server: EmbeddedValkey, journal: RedisJournal, told: Told
) -> None:
    server.stop()
    asked = asyncio.create_task(journal.ping())
    await failing(told, "journal", "away")
    assert told.of("storage_up", store="journal") == 0
    server.start()
    await asked
    await told.watch.look_at_journal(journal)
    assert told.of("storage_up", store="journal") == 1


async def test_how_full_the_journal_is_and_what_time_it_has_is_told(journal: RedisJournal, told: Told) -> None:
    await journal._shared.call("CONFIG", "SET", "maxmemory", "1gb")
    await told.watch.look_at_journal(journal)
    await journal._shared.call("CONFIG", "SET", "maxmemory", "0")
    used = told.of("storage_used_ratio", store="journal")
    assert used is not None
    assert 0 < used < 0.1
    assert abs(told.of("clock_skew_seconds") or 0) < 5, "it is the same machine"


async def test_clocks_that_differ_are_told_apart_by_the_journals(
    journal: RedisJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    behind, ahead = Told(), Told()
    standing = await journal.standing()

    async def seen(difference: float) -> Standing:
        return Standing(standing.used_ratio, (await RedisJournal.standing(journal)).server_seconds - difference)

    for told, difference in ((behind, -60.0), (ahead, 60.0)):
        monkeypatch.setattr(journal, "standing", lambda difference=difference: seen(difference))
        await told.watch.look_at_journal(journal)
    assert round(((ahead.of("clock_skew_seconds") or 0) - (behind.of("clock_skew_seconds") or 0)) / 10) == 12


class Refusing(LocalBlobs):
    """An object store, as its library tells of it."""

    refusal: Exception | None = None

    def _fail(self) -> None:
        if self.refusal is not None:
            raise self.refusal

    def put(self, content: Any) -> bytes:
        self._fail()
        return super().put(content)

    def write_note(self, name: str, content: bytes) -> None:
        self._fail()
        super().write_note(name, content)


class ClientError(Exception):
    """As a library has it that is no OSError."""


@pytest.mark.parametrize(
    ("refusal", "outcome"),
    [
        (PermissionError("Access Denied"), "refused"),
        (ClientError("503 Slow Down"), "away"),
        (ConnectionRefusedError(), "away"),
        (StorageFull(28, "no space"), "full"),
    ],
)
async def test_blobs_that_are_refused_are_told_until_they_are_taken(
    tmp_path: Path, told: Told, refusal: Exception, outcome: str
) -> None:
    store = Refusing(tmp_path)
    blobs = WatchedBlobs(store, told.watch.noting("blobs"))
    digest = blobs.put(b"kept")
    assert told.of("storage_up", store="blobs") == 1
    store.refusal = refusal
    with pytest.raises(OSError) as caught:  # noqa: PT011 - which one is what the next line says
        blobs.put(b"more")
    assert isinstance(caught.value, StorageFull if outcome == "full" else BlobsUnavailable)
    assert blobs.read(digest) == b"kept"
    await told.watch.look_at_blobs(blobs)
    assert (told.of("storage_up", store="blobs"), told.failures("blobs", outcome)) == (0, 2)
    store.refusal = None
    await told.watch.look_at_blobs(blobs)
    assert (told.of("storage_up", store="blobs"), told.watch.works) == (1, True)


def test_what_a_store_says_of_one_blob_is_no_failure_of_the_store(tmp_path: Path, told: Told) -> None:
    blobs = WatchedBlobs(LocalBlobs(tmp_path), told.watch.noting("blobs"))
    with pytest.raises(BlobMissing):
        blobs.read(bytes(32))
    assert blobs.size(bytes(32)) is None
    with pytest.raises(BlobMissing):
        list(blobs.chunks(bytes(32)))

    def broken() -> Iterator[bytes]:
        yield b"part"
        raise ClientError("of whoever gives the content")

    with pytest.raises(ClientError):
        blobs.put(broken())
    assert told.watch.works
    assert told.of("storage_up", store="blobs") == 1


async def test_health_and_the_disk_are_told_as_long_as_the_service_runs(tmp_path: Path, told: Told) -> None:
    store = Refusing(tmp_path / "blobs")
    blobs = WatchedBlobs(store, told.watch.noting("blobs"))
    now = dt.datetime.now(dt.UTC)
    files = keep_certificates(tmp_path / "tls", ["localhost"], now)
    watching = asyncio.create_task(told.watch.keep_watch(None, blobs, files.certificate))
    async with asyncio.timeout(20):
        while STORAGE_HEALTH not in told.health:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)
    watching.cancel()
    assert told.health[STORAGE_HEALTH]
    assert 0 < (told.of("storage_used_ratio", store="blobs") or 0) <= 1
    expires = told.of("certificate_expiry_timestamp_seconds")
    assert expires is not None
    assert expires > now.timestamp() + 86_400
