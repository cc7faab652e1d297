"""What the journal on Redis does when the server is slow to be found, goes away, or loses an answer."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Self
from urllib.parse import unquote

import pytest
import redis.asyncio

from fedrecon.ops.clock import SystemClock
from fedrecon.ops.embedded_valkey import EmbeddedValkey
from fedrecon.ops.journal import Append, DurabilityRefused, JournalUnavailable, Recorded, StaleWriter, shared_connection
from fedrecon.ops.journal.redis import RedisJournal

LONG = 60_000


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey(tmp_path / "valkey") as started:
        yield started


class LossyLine:
    """A line to a server that can lose an answer: it hands the request on, waits for the answer, and hangs up."""

    def __init__(self, place: str, target: str) -> None:
        self.url = f"unix://{place}"
        self.lost = 0
        self._place, self._target = place, target
        self._losing = 0

    def lose_answers(self, count: int) -> None:
        self._losing = count

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_unix_server(self._carry, self._place)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()

    async def _carry(self, near_in: asyncio.StreamReader, near_out: asyncio.StreamWriter) -> None:
        far_in, far_out = await asyncio.open_unix_connection(self._target)
        try:
            while request := await near_in.read(1 << 20):
                far_out.write(request)
                answer = await far_in.read(1 << 20)
                if self._losing and (b"EVALSHA" in request or b"NX" in request):
                    self._losing -= 1
                    self.lost += 1
                    return
                near_out.write(answer)
        except ConnectionError:
            pass
        finally:
            near_out.close()
            far_out.close()


@pytest.fixture
async def line(server: EmbeddedValkey, tmp_path: Path) -> AsyncIterator[LossyLine]:
    async with LossyLine(str(tmp_path / "line.sock"), unquote(server.url.removeprefix("unix://"))) as open_line:
        yield open_line


async def test_an_append_whose_answer_was_lost_is_applied_once(line: LossyLine) -> None:
    journal = await RedisJournal.connect(line.url, patience_seconds=10)
    lease = await journal.acquire("task", "select", "one", LONG)
    for number in range(3):
        line.lose_answers(2)
        await journal.append(
            "task", [Append("round", number, (b"%d" % number,)), Append("group", number, (b"x",))], lease=lease
        )
    assert line.lost == 6
    assert (await journal.load("task", "round")).events == tuple(Recorded(n + 1, b"%d" % n) for n in range(3))
    assert (await journal.load("task", "group")).version == 3
    await journal.close()


async def test_a_lost_answer_is_success_even_if_others_wrote_or_took_the_lease_since(
    line: LossyLine, server: EmbeddedValkey
) -> None:
    journal = await RedisJournal.connect(line.url, patience_seconds=10)
    other = await RedisJournal.connect(server.url)
    lease = await journal.acquire("task", "select", "one", 1)
    shared = journal._shared
    repeat = shared.run

    async def run_twice(script: str, keys: list[str], *arguments: bytes | str | int) -> object:
        await repeat(script, keys, *arguments)
        await other.append("task", [Append("round", 2, (b"c",))])
        await asyncio.sleep(0.005)
        assert await other.acquire("task", "select", "two", LONG) is not None
        return await repeat(script, keys, *arguments)

    shared.run = run_twice  # type: ignore[method-assign]
    await journal.append("task", [Append("round", 0, (b"a", b"b"))], lease=lease)
    shared.run = repeat  # type: ignore[method-assign]
    assert [each.event for each in (await other.load("task", "round")).events] == [b"a", b"b", b"c"]
    with pytest.raises(StaleWriter):
        await journal.append("task", [Append("round", 0, (b"a", b"b"))])
    await journal.close()
    await other.close()


async def test_a_lost_answer_is_success_even_if_the_events_were_compacted_since(server: EmbeddedValkey) -> None:
    journal = await RedisJournal.connect(server.url)
    shared = journal._shared
    run = shared.run

    async def run_twice(script: str, keys: list[str], *arguments: bytes | str | int) -> object:
        await run(script, keys, *arguments)
        shared.run = run  # type: ignore[method-assign]
        await journal.compact("task", "round", 2, b"ab")
        return await run(script, keys, *arguments)

    shared.run = run_twice  # type: ignore[method-assign]
    await journal.append("task", [Append("round", 0, (b"a", b"b"))])
    assert (await journal.load("task", "round")).version == 2
    await journal.close()


async def test_an_append_repeated_while_the_server_hung_is_applied_once(
    server: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_connection, "_ANSWER_SECONDS", 0.1)
    journal = await RedisJournal.connect(server.url, patience_seconds=10)
    os.kill(server.pid, signal.SIGSTOP)
    appending = asyncio.gather(*(journal.append("task", [Append(f"stream/{n}", 0, (b"a",))]) for n in range(10)))
    await asyncio.sleep(0.4)
    assert not appending.done()
    os.kill(server.pid, signal.SIGCONT)  # it finds the batch several times in its buffers
    await appending
    for n in range(10):
        assert (await journal.load("task", f"stream/{n}")).events == (Recorded(1, b"a"),)
    await journal.close()


async def test_a_remembered_key_or_lease_whose_answer_was_lost_is_still_new(line: LossyLine) -> None:
    journal = await RedisJournal.connect(line.url, patience_seconds=10)
    line.lose_answers(2)
    assert await journal.remember("task", "nonce", SystemClock().now_milliseconds() + LONG)
    assert not await journal.remember("task", "nonce", SystemClock().now_milliseconds() + LONG)
    line.lose_answers(1)
    assert await journal.acquire("task", "select", "one", LONG) is not None
    assert line.lost == 3
    await journal.close()


async def test_writers_outlast_kill_9_and_restart_of_the_server_without_loss(server: EmbeddedValkey) -> None:
    journal = await RedisJournal.connect(server.url, patience_seconds=20)
    following = asyncio.create_task(journal.tail("task", "late", 0, LONG))
    acknowledged = [0] * 8
    stopping = asyncio.Event()

    async def write(writer: int) -> None:
        while not stopping.is_set():
            number = acknowledged[writer]
            await journal.append("task", [Append(f"writer/{writer}", number, (b"%d" % number,))])
            acknowledged[writer] = number + 1

    writers = [asyncio.create_task(write(writer)) for writer in range(8)]
    for _ in range(2):
        await asyncio.sleep(0.1)
        before = sum(acknowledged)
        assert before > 0
        os.kill(server.pid, signal.SIGKILL)
        while server.running:  # noqa: ASYNC110 - its end sets no event
            await asyncio.sleep(0.005)
        await asyncio.to_thread(server.start)
        async with asyncio.timeout(10):
            while sum(acknowledged) < before + 16:  # noqa: ASYNC110 - counting sets no event
                await asyncio.sleep(0.005)
    stopping.set()
    await asyncio.gather(*writers)
    for writer, count in enumerate(acknowledged):
        history = await journal.load("task", f"writer/{writer}")
        assert history.events == tuple(Recorded(number + 1, b"%d" % number) for number in range(count))
    await journal.append("task", [Append("late", 0, (b"x",))])
    async with asyncio.timeout(5):
        assert await following == (Recorded(1, b"x"),)
    await journal.close()


async def test_a_server_that_stays_away_is_reported_after_the_patience(server: EmbeddedValkey) -> None:
    journal = await RedisJournal.connect(server.url, patience_seconds=0.1)
    server.stop()
    async with asyncio.timeout(5):
        with pytest.raises(JournalUnavailable, match=r"did nothing for 0\.1 s.*see that the server runs"):
            await journal.append("task", [Append("round", 0, (b"a",))])
    server.start()
    await journal.append("task", [Append("round", 0, (b"a",))])
    await journal.close()


async def test_a_replica_is_refused_until_it_is_a_primary(server: EmbeddedValkey) -> None:
    journal = await RedisJournal.connect(server.url, patience_seconds=0.1)
    promoting = await RedisJournal.connect(server.url)
    await promoting._shared.call("REPLICAOF", "127.0.0.1", "1")
    with pytest.raises(JournalUnavailable, match="replica"):
        await journal.append("task", [Append("round", 0, (b"a",))])
    waiting = asyncio.create_task(journal.append("task", [Append("round", 0, (b"a",))]))
    await asyncio.sleep(0.02)
    await promoting._shared.call("REPLICAOF", "NO", "ONE")
    await waiting
    await journal.close()
    await promoting.close()


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
async def test_an_address_where_nobody_listens_is_reported_without_its_password(scheme: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(JournalUnavailable, match=f"{scheme}://127.0.0.1:{port}/2 did nothing") as refused:
            await RedisJournal.connect(f"{scheme}://user:wrong-secret@127.0.0.1:{port}/2", patience_seconds=0.1)
    assert "wrong-secret" not in str(refused.value)


async def test_each_caller_is_patient_for_itself(server: EmbeddedValkey) -> None:
    journal = await RedisJournal.connect(server.url, patience_seconds=0.2)
    server.stop()
    early = asyncio.create_task(journal.append("task", [Append("early", 0, (b"a",))]))
    await asyncio.sleep(0)  # let it be asked: its patience is counted from here
    journal._shared._patience_seconds = 60.0  # the later caller's, however long the server takes to start
    late = asyncio.create_task(journal.append("task", [Append("late", 0, (b"a",))]))
    with pytest.raises(JournalUnavailable):
        await early
    assert not late.done()
    await asyncio.to_thread(server.start)
    await late
    await journal.close()


async def test_flushed_scripts_are_loaded_again(server: EmbeddedValkey) -> None:
    journal = await RedisJournal.connect(server.url, patience_seconds=5)
    await journal._shared.call("SCRIPT", "FLUSH")
    await asyncio.gather(*(journal.append("task", [Append(f"stream/{n}", 0, (b"a",))]) for n in range(20)))
    assert len(await journal.streams("task")) == 20
    await journal.close()


@pytest.mark.parametrize(
    ("setting", "value"),
    [("appendonly", "no"), ("appendfsync", "everysec"), ("maxmemory-policy", "allkeys-lru")],
)
async def test_a_server_that_could_lose_events_is_refused(server: EmbeddedValkey, setting: str, value: str) -> None:
    async with redis.asyncio.from_url(server.url) as client:
        await client.config_set(setting, value)
    with pytest.raises(DurabilityRefused, match=f"{setting} is {value}.*CONFIG SET {setting} .*accepted-loss"):
        await RedisJournal.connect(server.url)
    lossy = await RedisJournal.connect(server.url, accepted_loss=True)
    await lossy.append("task", [Append("round", 0, (b"a",))])
    await lossy.close()


async def test_a_server_without_memory_left_is_reported_and_applies_nothing(server: EmbeddedValkey) -> None:
    journal = await RedisJournal.connect(server.url, patience_seconds=0.1)
    await journal._shared.call("CONFIG", "SET", "maxmemory", "1")
    with pytest.raises(JournalUnavailable, match=r"maxmemory.*memory left"):
        await journal.append("task", [Append("round", 0, (b"a",)), Append("group", 0, (b"a",))])
    await journal._shared.call("CONFIG", "SET", "maxmemory", "0")
    assert await journal.streams("task") == ()
    await journal.append("task", [Append("round", 0, (b"a",))])
    await journal.close()


async def test_a_wrong_password_is_said_at_once_and_not_shown(server: EmbeddedValkey) -> None:
    place = server.url.removeprefix("unix://")
    async with asyncio.timeout(2):
        with pytest.raises(JournalUnavailable, match="refused the user or password") as refused:
            await RedisJournal.connect(f"unix://somebody:wrong-secret@{place}")
    assert "wrong-secret" not in str(refused.value)


async def test_a_url_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="redis://"):
        await RedisJournal.connect("http://localhost")


async def test_concurrent_appends_share_round_trips(server: EmbeddedValkey) -> None:
    journal = await RedisJournal.connect(server.url)
    batches: list[int] = []
    pack = journal._shared._connection.pack_commands

    def count(commands: list[object]) -> object:
        batches.append(len(commands))
        return pack(commands)

    journal._shared._connection.pack_commands = count
    await asyncio.gather(*(journal.append("task", [Append(f"stream/{n}", 0, (b"a",))]) for n in range(64)))
    assert sum(batches) == 64
    assert len(batches) <= 2
    await journal.close()
