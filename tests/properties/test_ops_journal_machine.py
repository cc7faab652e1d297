"""Whatever is done, the journal on Valkey answers as the one in memory does.

Leases never run out here (they last a minute), so that both judge them alike; instants of remembered keys lie far in
the future or far in the past.
"""

import asyncio
import secrets
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from fedrecon.ops.clock import SystemClock
from fedrecon.ops.embedded_valkey import EmbeddedValkey
from fedrecon.ops.journal import Append, Journal, JournalError, Lease
from fedrecon.ops.journal.memory import MemoryJournal
from fedrecon.ops.journal.redis import RedisJournal

MINUTE = 60_000
STREAMS = st.sampled_from(["round", "group/1", "group/2"])
VERSIONS = st.integers(0, 8)
EVENTS = st.lists(st.binary(max_size=3), max_size=3).map(tuple)
HOLDERS = st.sampled_from(["one", "two"])


@dataclass(frozen=True)
class Refused:
    """What an error of the journal says, for comparison."""

    kind: type[JournalError]
    text: str


class JournalMachine(RuleBasedStateMachine):
    """Does the same to both journals and compares every answer, and after every step all that can be read."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.task = f"task-{secrets.token_hex(8)}"
        self.memory = MemoryJournal()
        self.redis = RedisJournal(self.url)
        self.leases: list[Lease] = []
        self.versions = {"round": 0, "group/1": 0, "group/2": 0}

    @initialize()
    def start(self) -> None:
        assert self.read_all() == ((), [])

    def teardown(self) -> None:
        self.runner.run(self.redis.close())
        self.runner.close()

    def both(self, act: Callable[[Journal], Awaitable[Any]]) -> Any:
        async def answer(journal: Journal) -> Any:
            try:
                answered = await act(journal)
            except JournalError as error:
                return Refused(type(error), str(error))
            return replace(answered, until_milliseconds=0) if isinstance(answered, Lease) else answered

        expected = self.runner.run(answer(self.memory))
        assert self.runner.run(answer(self.redis)) == expected
        return expected

    def read_all(self) -> Any:
        names = self.both(lambda journal: journal.streams(self.task))
        return names, [self.read(name) for name in names]

    def read(self, name: str) -> Any:
        return self.both(lambda journal: journal.load(self.task, name))

    @rule(
        wanted=st.lists(
            st.tuples(STREAMS, st.sampled_from([0, 0, 0, 0, 0, 0, -1, 1]), EVENTS), max_size=3, unique_by=lambda x: x[0]
        ),
        choice=st.none() | st.integers(0, 9),
    )
    def append(self, wanted: list[tuple[str, int, tuple[bytes, ...]]], choice: int | None) -> None:
        appends = [Append(name, max(0, self.versions[name] + off), events) for name, off, events in wanted]
        lease = self.leases[choice % len(self.leases)] if self.leases and choice is not None else None
        if self.both(lambda journal: journal.append(self.task, appends, lease=lease)) is None:
            for each in appends:
                self.versions[each.stream] += len(each.events)
        self.read_all()

    @rule(name=STREAMS, after=VERSIONS)
    def tail(self, name: str, after: int) -> None:
        self.both(lambda journal: journal.tail(self.task, name, after, 0))

    @rule(name=STREAMS, through=VERSIONS, snapshot=st.binary(max_size=3))
    def compact(self, name: str, through: int, snapshot: bytes) -> None:
        self.both(lambda journal: journal.compact(self.task, name, through, snapshot))
        self.read_all()

    @rule(name=STREAMS, off=st.sampled_from([0, 0, 1]))
    def discard(self, name: str, off: int) -> None:
        if self.both(lambda journal: journal.discard(self.task, name, self.versions[name] + off)) is None:
            self.versions[name] = 0
        self.read_all()

    @rule(name=st.sampled_from(["select", "merge"]), holder=HOLDERS)
    def acquire(self, name: str, holder: str) -> None:
        lease = self.both(lambda journal: journal.acquire(self.task, name, holder, MINUTE))
        if lease is not None:
            self.leases.append(lease)

    @rule(choice=st.integers(0, 9))
    def renew(self, choice: int) -> None:
        if self.leases:
            self.both(lambda journal: journal.renew(self.leases[choice % len(self.leases)]))

    @rule(choice=st.integers(0, 9))
    def release(self, choice: int) -> None:
        if self.leases:
            self.both(lambda journal: journal.release(self.leases[choice % len(self.leases)]))

    @rule(key=st.sampled_from(["a", "b", "c"]), off=st.sampled_from([MINUTE, -MINUTE]))
    def remember(self, key: str, off: int) -> None:
        until = SystemClock().now_milliseconds() + off
        self.both(lambda journal: journal.remember(self.task, key, until))


def test_the_journal_on_valkey_answers_as_the_one_in_memory() -> None:
    with tempfile.TemporaryDirectory() as folder, EmbeddedValkey(folder) as server:
        machine = type("Machine", (JournalMachine,), {"url": server.url})
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
            ),
        )
