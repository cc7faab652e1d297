"""Rounds against a naive twin: whatever happens in whatever order, both accept and refuse alike, and a replay of the
journal gives the same state and takes up the same work.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fedrecon.coordinator import ledger, round_events, round_state, rounds
from fedrecon.coordinator.entries import round_entries
from fedrecon.coordinator.round_events import (
    Abandoned,
    Assigned,
    Blob,
    Committed,
    EndedBecause,
    Finish,
    GroupsClosed,
    GroupsMoved,
    IllegalEvent,
    Opened,
    Outcome,
    ReportingEnded,
    SessionsFinished,
    Slot,
    Terms,
)
from fedrecon.coordinator.round_state import Phase, Round

TERMS = Terms(3, 5, 2, 2, 1_000, 10_000, 5_000, 100)
GROUP = b"g" * 16


def slot(number: int) -> Slot:
    return Slot(number.to_bytes(16, "little"), (1_000 + number).to_bytes(16, "little"))


@dataclass
class Twin:
    """The rules again, as flags and sets."""

    phase: str = ""
    attempt: int = 0
    began: int = 0
    sessions: dict[int, set[int]] = field(default_factory=dict)
    ended: dict[int, set[int]] = field(default_factory=dict)
    is_closed: bool = False
    aggregator: str = ""


class Machine(RuleBasedStateMachine):
    """Plays events against rounds and twin."""

    @initialize()
    def begin(self) -> None:
        self.now = 0
        self.attempts: tuple[Round, ...] = ()
        self.effects: tuple[rounds.Effect, ...] = ()
        self.journal: list[bytes] = []
        self.twin = Twin()
        self.commits = 0

    def happen(self, event: round_events.Event, *, is_legal: bool) -> bool:
        before = self.attempts
        if not is_legal:
            with pytest.raises(IllegalEvent):
                ledger.apply(self.attempts, event, self.now)
            assert self.attempts is before
            return False
        applied = ledger.apply(self.attempts, event, self.now)
        self.journal.append(round_entries.encode(self.now, event))
        self.attempts = applied.attempts
        if not isinstance(event, SessionsFinished | GroupsMoved):
            self.effects = tuple(each for each in applied.effects if not isinstance(each, rounds.SendAssignments))
        return True

    @rule(milliseconds=st.sampled_from([0, 1, 999, 5_000, 10_000]))
    def pass_time(self, milliseconds: int) -> None:
        self.now += milliseconds

    @rule(times=st.integers(1, 3))
    def go_on(self, times: int) -> None:
        """Does what leads on, so that late phases are reached as often as early ones."""
        for _ in range(times):
            match self.twin.phase:
                case "" | "abandoned":
                    self.open(skip=0)
                case "selecting":
                    self.assign(numbers=[1, 2, 3])
                case "reporting":
                    self.end_reporting(because=EndedBecause.GOAL_MET, reports=3)
                case "aggregating" if not self.twin.is_closed:
                    self.close(group=GROUP, reports=3)
                case _:
                    return

    @rule(skip=st.integers(0, 1))
    def open(self, skip: int) -> None:
        attempt = self.twin.attempt + 1 + skip
        event = Opened("films", 1, attempt, TERMS, Blob(b"c" * 32, 1), None, b"")
        if self.happen(event, is_legal=self.twin.phase in {"", "abandoned"} and skip == 0):
            self.twin.phase, self.twin.attempt, self.twin.is_closed = "selecting", attempt, False
            self.twin.sessions[attempt], self.twin.ended[attempt] = set(), set()

    @rule(numbers=st.lists(st.integers(0, 9), min_size=0, max_size=7))
    def assign(self, numbers: list[int]) -> None:
        event = Assigned(tuple(slot(number) for number in numbers), 9, (GROUP,), "here:1", 99)
        is_legal = self.twin.phase == "selecting" and len(set(numbers)) == len(numbers) and 2 <= len(numbers) <= 5
        if self.happen(event, is_legal=is_legal):
            self.twin.phase, self.twin.began, self.twin.aggregator = "reporting", self.now, "here:1"
            self.twin.sessions[self.twin.attempt] = set(numbers)

    @rule(part=st.integers(0, 1), aggregator=st.sampled_from(["here:1", "there:1"]))
    def move(self, part: int, aggregator: str) -> None:
        is_legal = self.twin.phase in {"reporting", "aggregating"} and part == 0 and aggregator != self.twin.aggregator
        if self.happen(GroupsMoved(part, aggregator), is_legal=is_legal):
            self.twin.aggregator = aggregator

    @rule(numbers=st.sets(st.integers(0, 9), min_size=1, max_size=3), back=st.integers(0, 2))
    def finish(self, numbers: set[int], back: int) -> None:
        attempt = self.twin.attempt - back
        sessions = self.twin.sessions.get(attempt, set())
        is_legal = bool(sessions) and numbers <= sessions - self.twin.ended[attempt]
        ends = tuple(Finish(slot(number).session, Outcome.UPLOADED) for number in sorted(numbers))
        if self.happen(SessionsFinished(attempt, ends), is_legal=is_legal):
            self.twin.ended[attempt] |= numbers

    @rule(because=st.sampled_from(EndedBecause), reports=st.integers(0, 5))
    def end_reporting(self, because: EndedBecause, reports: int) -> None:
        attempt = self.twin.attempt
        holds = {
            EndedBecause.GOAL_MET: reports >= 3,
            EndedBecause.ALL_FINISHED: self.twin.ended.get(attempt) == self.twin.sessions.get(attempt),
            EndedBecause.WINDOW_ENDED: self.now >= self.twin.began + 10_000,
            EndedBecause.GROUPS_CLOSED: True,
        }
        is_legal = self.twin.phase == "reporting" and reports >= 2 and holds[because]
        if self.happen(ReportingEnded(because, reports), is_legal=is_legal):
            self.twin.phase = "aggregating"

    @rule(group=st.sampled_from([GROUP, b"h" * 16]), reports=st.integers(0, 5))
    def close(self, group: bytes, reports: int) -> None:
        is_legal = self.twin.phase == "aggregating" and not self.twin.is_closed and group == GROUP
        if self.happen(GroupsClosed((group,), reports, 0), is_legal=is_legal):
            self.twin.is_closed = True

    @rule(reports=st.integers(0, 5))
    def commit(self, reports: int) -> None:
        event = Committed(Blob(b"n" * 32, 1), None, reports, 1, (), 0.0, b"s" * 32)
        is_legal = self.twin.phase == "aggregating" and self.twin.is_closed and reports >= 2
        if self.happen(event, is_legal=is_legal):
            self.twin.phase = "committed"
            self.commits += 1

    @rule(retry_after=st.sampled_from([-1, 0, 100]), wanted=st.sampled_from([True, False, False, False]))
    def abandon(self, retry_after: int, wanted: bool) -> None:
        if not wanted:  # or no round would live long
            return
        event = Abandoned("why", self.now + retry_after)
        is_legal = self.twin.phase in {"selecting", "reporting", "aggregating"}
        if self.happen(event, is_legal=is_legal):
            self.twin.phase = "abandoned"

    @invariant()
    def the_twin_agrees(self) -> None:
        last = self.attempts[-1] if self.attempts else None
        assert (last.phase.value if last else "") == self.twin.phase
        assert len(self.attempts) == self.twin.attempt
        assert self.commits <= 1
        assert sum(attempt.phase is Phase.COMMITTED for attempt in self.attempts) == self.commits

    @rule()
    def crash(self) -> None:
        """Forgets everything but the journal: a replay gives the same state, and takes up the same work."""
        replayed: tuple[Round, ...] = ()
        for encoded in self.journal:
            entry = round_entries.decode(encoded)
            replayed = ledger.apply(replayed, entry.event, entry.at).attempts
        assert replayed == self.attempts
        self.attempts = replayed
        if replayed:
            assert rounds.resume(replayed[-1]) == self.effects

    def teardown(self) -> None:
        self.crash()

    @invariant()
    def a_report_is_never_both_counted_and_void(self) -> None:
        for attempt in self.attempts:
            fates = {rounds.fate_of(attempt, each.session) for each in attempt.slots}
            assert not {round_state.Fate.COUNTED, round_state.Fate.VOID} <= fates

    @invariant()
    def what_is_due_is_legal(self) -> None:
        last = self.attempts[-1] if self.attempts else None
        if last is None:
            return
        for reports in (None, 0, 2, 3):
            called_for = rounds.due(last, round_state.Seen(waiting=3, window_ends=self.now, reports=reports), self.now)
            if isinstance(called_for, ReportingEnded | Abandoned):
                rounds.step(last, called_for, self.now)


class LongMachine(Machine):
    """The same for longer."""


def _programs(count: int) -> settings:
    return settings(
        max_examples=count, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )


Machine.TestCase.settings = _programs(120)
LongMachine.TestCase.settings = _programs(2_000)
test_rounds_and_their_twin_agree = Machine.TestCase
test_rounds_and_their_twin_agree_for_long = pytest.mark.slow(LongMachine.TestCase)
