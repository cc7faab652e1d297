"""The rules of `fedrecon.ops.journal`, kept by the journal in memory and by the one on a real Valkey."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from fedrecon.ops.clock import ManualClock, SystemClock
from fedrecon.ops.embedded_valkey import EmbeddedValkey
from fedrecon.ops.journal import (
    TAIL_LIMIT,
    Append,
    HistoryCompacted,
    Journal,
    JournalUnavailable,
    LeaseLost,
    Recorded,
    StaleWriter,
)
from fedrecon.ops.journal.memory import MemoryJournal
from fedrecon.ops.journal.redis import RedisJournal

LONG = 60_000


@pytest.fixture(scope="session")
def valkey_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with EmbeddedValkey(Path(tmp_path_factory.mktemp("valkey"))) as server:
        yield server.url


@pytest.fixture(params=["memory", "redis"])
async def journal(request: pytest.FixtureRequest) -> AsyncIterator[Journal]:
    opened: Journal
    if request.param == "memory":
        opened = MemoryJournal()
    else:
        opened = await RedisJournal.connect(request.getfixturevalue("valkey_url"), patience_seconds=5)
    yield opened
    await opened.close()


@pytest.fixture
def task() -> str:
    return f"task-{secrets.token_hex(8)}"


def events(*texts: str) -> tuple[bytes, ...]:
    return tuple(text.encode() for text in texts)


async def test_a_stream_nobody_wrote_is_empty_and_has_version_zero(journal: Journal, task: str) -> None:
    history = await journal.load(task, "round")
    assert (history.version, history.snapshot, history.snapshot_version, history.events) == (0, None, 0, ())
    assert await journal.streams(task) == ()


async def test_what_was_appended_is_loaded_in_order_with_versions(journal: Journal, task: str) -> None:
    await journal.append(task, [Append("round", 0, (b"\x00\xff", b"", b"two"))])
    await journal.append(task, [Append("round", 3, events("three"))])
    history = await journal.load(task, "round")
    assert history.version == 4
    assert history.events == (Recorded(1, b"\x00\xff"), Recorded(2, b""), Recorded(3, b"two"), Recorded(4, b"three"))


async def test_an_append_over_several_streams_is_applied_whole(journal: Journal, task: str) -> None:
    await journal.append(task, [Append("round", 0, events("a")), Append("group/1", 0, events("b", "c"))])
    assert (await journal.load(task, "round")).version == 1
    assert (await journal.load(task, "group/1")).version == 2


async def test_an_append_with_one_stale_stream_changes_no_stream(journal: Journal, task: str) -> None:
    await journal.append(task, [Append("moved", 0, events("a", "b"))])
    with pytest.raises(StaleWriter) as refused:
        await journal.append(
            task, [Append("fresh", 0, events("x")), Append("moved", 1, events("y")), Append("other", 0, events("z"))]
        )
    assert (refused.value.stream, refused.value.expected, refused.value.actual) == ("moved", 1, 2)
    assert await journal.streams(task) == ("moved",)
    assert (await journal.load(task, "fresh")).version == 0
    assert (await journal.load(task, "moved")).version == 2


async def test_a_writer_ahead_of_the_store_is_refused(journal: Journal, task: str) -> None:
    with pytest.raises(StaleWriter) as refused:
        await journal.append(task, [Append("round", 7, events("x"))])
    assert (refused.value.expected, refused.value.actual) == (7, 0)


async def test_an_append_without_events_checks_the_version_only(journal: Journal, task: str) -> None:
    await journal.append(task, [Append("round", 0, events("a"))])
    await journal.append(task, [Append("round", 1, ()), Append("group", 0, events("b"))])
    assert (await journal.load(task, "round")).version == 1
    with pytest.raises(StaleWriter):
        await journal.append(task, [Append("round", 0, ()), Append("group", 1, events("c"))])
    assert (await journal.load(task, "group")).version == 1


async def test_of_concurrent_writers_exactly_one_wins(journal: Journal, task: str) -> None:
    outcomes = await asyncio.gather(
        *(journal.append(task, [Append("round", 0, events(f"writer {number}"))]) for number in range(20)),
        return_exceptions=True,
    )
    assert sum(outcome is None for outcome in outcomes) == 1
    assert sum(isinstance(outcome, StaleWriter) for outcome in outcomes) == 19
    winner = outcomes.index(None)
    assert (await journal.load(task, "round")).events == (Recorded(1, f"writer {winner}".encode()),)


async def test_tasks_do_not_see_each_other(journal: Journal, task: str) -> None:
    await journal.append(task, [Append("round", 0, events("a"))])
    assert (await journal.load(task + "-other", "round")).version == 0
    assert await journal.streams(task + "-other") == ()


async def test_streams_are_found_by_prefix(journal: Journal, task: str) -> None:
    await journal.append(task, [Append(name, 0, events("a")) for name in ("group/2", "round", "group/1", "groups")])
    assert await journal.streams(task) == ("group/1", "group/2", "groups", "round")
    assert await journal.streams(task, "group/") == ("group/1", "group/2")
    assert await journal.streams(task, "nothing") == ()


@pytest.mark.parametrize("name", ["", "a b", "{a}", "a}b", "ä", "a\n", "x" * 201])
async def test_names_that_could_break_keys_are_refused(journal: Journal, task: str, name: str) -> None:
    with pytest.raises(ValueError, match="cannot name"):
        await journal.append(name, [Append("round", 0, events("a"))])
    with pytest.raises(ValueError, match="cannot name"):
        await journal.append(task, [Append(name, 0, events("a"))])
    with pytest.raises(ValueError, match="cannot name"):
        await journal.remember(task, name, 1)
    with pytest.raises(ValueError, match="cannot name"):
        await journal.acquire(task, name, "me", 1000)


async def test_an_append_that_names_a_stream_twice_is_refused(journal: Journal, task: str) -> None:
    with pytest.raises(ValueError, match="twice"):
        await journal.append(task, [Append("round", 0, events("a")), Append("round", 1, events("b"))])
    assert (await journal.load(task, "round")).version == 0


async def test_tail_returns_at_once_what_is_there(journal: Journal, task: str) -> None:
    await journal.append(task, [Append("round", 0, events("a", "b", "c"))])
    assert await journal.tail(task, "round", 1, LONG) == (Recorded(2, b"b"), Recorded(3, b"c"))


async def test_tail_waits_in_vain_only_as_long_as_asked(journal: Journal, task: str) -> None:
    async with asyncio.timeout(2):
        assert await journal.tail(task, "round", 0, 50) == ()
        assert await journal.tail(task, "round", 0, 0) == ()


async def test_tail_wakes_everybody_who_waits_for_a_new_event(journal: Journal, task: str) -> None:
    await journal.append(task, [Append("round", 0, events("a"))])
    waiting = [asyncio.create_task(journal.tail(task, "round", 1, LONG)) for _ in range(3)]
    waiting.append(asyncio.create_task(journal.tail(task, "unborn", 0, LONG)))
    await asyncio.sleep(0.05)
    assert not any(each.done() for each in waiting)
    await journal.append(task, [Append("round", 1, events("b")), Append("unborn", 0, events("c"))])
    async with asyncio.timeout(2):
        assert await asyncio.gather(*waiting) == [(Recorded(2, b"b"),)] * 3 + [(Recorded(1, b"c"),)]


async def test_a_follower_sees_every_event_once_while_a_writer_writes(journal: Journal, task: str) -> None:
    async def write() -> None:
        for number in range(100):
            await journal.append(task, [Append("round", number, events(str(number)))])

    async def follow() -> list[Recorded]:
        seen: list[Recorded] = []
        while len(seen) < 100:
            seen += await journal.tail(task, "round", len(seen), LONG)
        return seen

    async with asyncio.timeout(10):
        seen, _ = await asyncio.gather(follow(), write())
    assert seen == [Recorded(number + 1, str(number).encode()) for number in range(100)]


async def test_one_tail_returns_a_bounded_number_of_events(journal: Journal, task: str) -> None:
    await journal.append(task, [Append("round", 0, (b"x",) * (TAIL_LIMIT + 1))])
    assert len(await journal.tail(task, "round", 0, 0)) == TAIL_LIMIT
    assert await journal.tail(task, "round", TAIL_LIMIT, 0) == (Recorded(TAIL_LIMIT + 1, b"x"),)


async def test_a_cancelled_tail_leaves_the_journal_usable(journal: Journal, task: str) -> None:
    waiting = asyncio.create_task(journal.tail(task, "round", 0, LONG))
    await asyncio.sleep(0.02)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await journal.append(task, [Append("round", 0, events("a"))])
    assert await journal.tail(task, "round", 0, LONG) == (Recorded(1, b"a"),)


async def test_compaction_keeps_the_version_and_the_later_events(journal: Journal, task: str) -> None:
    await journal.append(task, [Append("round", 0, events("a", "b", "c", "d"))])
    await journal.compact(task, "round", 3, b"abc")
    history = await journal.load(task, "round")
    assert (history.version, history.snapshot, history.snapshot_version) == (4, b"abc", 3)
    assert history.events == (Recorded(4, b"d"),)
    assert await journal.tail(task, "round", 3, 0) == (Recorded(4, b"d"),)
    await journal.append(task, [Append("round", 4, events("e"))])
    await journal.compact(task, "round", 5, b"abcde")
    history = await journal.load(task, "round")
    assert (history.version, history.snapshot, history.events) == (5, b"abcde", ())
    await journal.append(task, [Append("round", 5, events("f"))])
    assert (await journal.load(task, "round")).events == (Recorded(6, b"f"),)
    assert await journal.streams(task) == ("round",)


async def test_compacting_again_or_less_far_changes_nothing(journal: Journal, task: str) -> None:
    await journal.append(task, [Append("round", 0, events("a", "b", "c"))])
    await journal.compact(task, "round", 2, b"ab")
    before = await journal.load(task, "round")
    await journal.compact(task, "round", 2, b"something else")
    await journal.compact(task, "round", 1, b"a")
    await journal.compact(task, "round", 0, b"")
    assert await journal.load(task, "round") == before


async def test_compacting_beyond_the_stream_is_refused(journal: Journal, task: str) -> None:
    await journal.append(task, [Append("round", 0, events("a"))])
    with pytest.raises(StaleWriter) as refused:
        await journal.compact(task, "round", 2, b"ab")
    assert (refused.value.expected, refused.value.actual) == (2, 1)
    assert (await journal.load(task, "round")).snapshot is None


async def test_a_tail_from_before_a_snapshot_is_told_to_load(journal: Journal, task: str) -> None:
    await journal.append(task, [Append("round", 0, events("a", "b", "c"))])
    await journal.compact(task, "round", 3, b"abc")
    with pytest.raises(HistoryCompacted) as refused:
        await journal.tail(task, "round", 1, LONG)
    assert refused.value.snapshot_version == 3
    assert await journal.tail(task, "round", 3, 0) == ()


async def test_a_discarded_stream_is_gone_and_may_be_discarded_again(journal: Journal, task: str) -> None:
    await journal.append(task, [Append("group", 0, events("a", "b")), Append("round", 0, events("c"))])
    await journal.compact(task, "group", 1, b"a")
    with pytest.raises(StaleWriter):
        await journal.discard(task, "group", 1)
    await journal.discard(task, "group", 2)
    await journal.discard(task, "group", 2)
    assert await journal.streams(task) == ("round",)
    assert (await journal.load(task, "group")).version == 0


async def test_a_held_lease_is_not_given_to_another(journal: Journal, task: str) -> None:
    before = SystemClock().now_milliseconds()
    lease = await journal.acquire(task, "select", "one", LONG)
    assert lease is not None
    assert before + LONG - 50 <= lease.until_milliseconds <= SystemClock().now_milliseconds() + LONG + 50
    assert await journal.acquire(task, "select", "two", LONG) is None
    assert await journal.acquire(task, "merge", "two", LONG) is not None


async def test_a_lease_that_ran_out_goes_to_the_next_with_a_larger_token(journal: Journal, task: str) -> None:
    first = await journal.acquire(task, "select", "one", 30)
    assert first is not None
    await asyncio.sleep(0.05)
    second = await journal.acquire(task, "select", "two", LONG)
    assert second is not None
    assert second.token > first.token
    with pytest.raises(LeaseLost):
        await journal.renew(first)
    await journal.release(first)
    assert await journal.acquire(task, "select", "one", LONG) is None, "a lost lease gave away the other's"


async def test_a_renewed_lease_lasts(journal: Journal, task: str) -> None:
    lease = await journal.acquire(task, "select", "one", 400)
    assert lease is not None
    for _ in range(3):
        await asyncio.sleep(0.15)
        renewed = await journal.renew(lease)
        assert renewed.token == lease.token
        assert renewed.until_milliseconds > lease.until_milliseconds
        assert await journal.acquire(task, "select", "two", 400) is None
        lease = renewed


async def test_a_released_lease_is_free_and_its_token_void(journal: Journal, task: str) -> None:
    first = await journal.acquire(task, "select", "one", LONG)
    assert first is not None
    await journal.release(first)
    await journal.release(first)
    with pytest.raises(LeaseLost):
        await journal.append(task, [Append("round", 0, events("a"))], lease=first)
    second = await journal.acquire(task, "select", "two", LONG)
    assert second is not None
    assert second.token > first.token


async def test_an_old_lease_can_not_write(journal: Journal, task: str) -> None:
    old = await journal.acquire(task, "select", "one", 20)
    assert old is not None
    await journal.append(task, [Append("round", 0, events("a"))], lease=old)
    await asyncio.sleep(0.04)
    await journal.append(task, [Append("round", 1, events("b"))], lease=old)  # ran out, but nobody took it
    new = await journal.acquire(task, "select", "two", LONG)
    assert new is not None
    with pytest.raises(LeaseLost) as refused:
        await journal.append(task, [Append("round", 2, events("c")), Append("group", 0, events("c"))], lease=old)
    assert refused.value.lease == old
    assert await journal.streams(task) == ("round",)
    await journal.append(task, [Append("round", 2, events("d"))], lease=new)
    assert [each.event for each in (await journal.load(task, "round")).events] == [b"a", b"b", b"d"]


async def test_acquiring_again_fences_the_holders_earlier_self(journal: Journal, task: str) -> None:
    first = await journal.acquire(task, "select", "one", LONG)
    again = await journal.acquire(task, "select", "one", LONG)
    assert first is not None
    assert again is not None
    assert again.token > first.token
    with pytest.raises(LeaseLost):
        await journal.append(task, [Append("round", 0, events("a"))], lease=first)


async def test_a_lease_of_another_task_is_refused(journal: Journal, task: str) -> None:
    lease = await journal.acquire(task, "select", "one", LONG)
    with pytest.raises(ValueError, match="belongs to task"):
        await journal.append(task + "-other", [Append("round", 0, events("a"))], lease=lease)


async def test_of_many_who_want_a_lease_one_gets_it(journal: Journal, task: str) -> None:
    leases = await asyncio.gather(*(journal.acquire(task, "select", f"holder-{each}", LONG) for each in range(10)))
    assert sum(lease is not None for lease in leases) == 1


async def test_a_key_is_new_once_until_it_expires(journal: Journal, task: str) -> None:
    now = SystemClock().now_milliseconds()
    assert await journal.remember(task, "nonce", now + 300)
    assert not await journal.remember(task, "nonce", now + LONG)
    assert await journal.remember(task + "-other", "nonce", now + LONG)
    await asyncio.sleep(0.32)
    assert await journal.remember(task, "nonce", now + LONG)
    assert not await journal.remember(task, "nonce", now + LONG)


async def test_a_key_noted_until_a_passed_instant_is_not_noted(journal: Journal, task: str) -> None:
    now = SystemClock().now_milliseconds()
    assert await journal.remember(task, "nonce", now - 10)
    assert await journal.remember(task, "nonce", -5)
    assert await journal.remember(task, "nonce", now + LONG)


async def test_keys_noted_together_are_new_each_by_itself(journal: Journal, task: str) -> None:
    until = SystemClock().now_milliseconds() + LONG
    assert await journal.remember(task, "b", until)
    notes = [("a", until), ("b", until), ("c", until), ("a", until)]
    assert await journal.remember_all(task, notes) == (True, False, True, False)
    assert await journal.remember_all(task, notes) == (False, False, False, False)
    assert await journal.remember_all(task, []) == ()
    many = [(f"nonce/{number}", until) for number in range(3_000)]
    assert all(await journal.remember_all(task, many))


async def test_what_is_remembered_is_told_with_its_end_and_nothing_of_other_tasks(journal: Journal, task: str) -> None:
    until = SystemClock().now_milliseconds() + LONG
    assert await journal.remembered(task) == ()
    notes = [(f"nonce/{number:04}", until + number) for number in range(1_500)]
    assert all(await journal.remember_all(task, notes))
    assert await journal.remember(task + "-other", "nonce/9999", until)
    assert await journal.remember(task, "passed", 1)
    await journal.forget(task, "nonce/0007")
    assert await journal.remembered(task) == tuple(notes[:7] + notes[8:])


async def test_a_key_that_was_removed_is_new_again(journal: Journal, task: str) -> None:
    until = SystemClock().now_milliseconds() + LONG
    await journal.forget(task, "nonce")
    for key in ("nonce", "other"):
        assert await journal.remember(task, key, until)
    await journal.forget(task, "nonce")
    assert await journal.remember(task, "nonce", until)
    assert not await journal.remember(task, "other", until)


async def test_of_concurrent_notes_of_one_key_one_is_new(journal: Journal, task: str) -> None:
    until = SystemClock().now_milliseconds() + LONG
    new = await asyncio.gather(*(journal.remember(task, "nonce", until) for _ in range(20)))
    assert sum(new) == 1


async def test_a_closed_journal_says_so(journal: Journal, task: str) -> None:
    waiting = asyncio.create_task(journal.tail(task, "round", 0, LONG))
    await asyncio.sleep(0.02)
    await journal.close()
    async with asyncio.timeout(5):
        with pytest.raises(JournalUnavailable):
            await waiting
        with pytest.raises(JournalUnavailable):
            await journal.append(task, [Append("round", 0, events("a"))])
        with pytest.raises(JournalUnavailable):
            await journal.ping()


async def test_keys_that_have_passed_are_not_kept_in_memory() -> None:
    clock = ManualClock(1_000)
    journal = MemoryJournal(clock)
    for number in range(20_000):
        assert await journal.remember("task", f"nonce/{number}", clock.now_milliseconds() + 10)
        await clock.advance(1)
    assert len(journal._tasks["task"].remembered) < 3_000
    assert not await journal.remember("task", "nonce/19999", clock.now_milliseconds() + 10)
