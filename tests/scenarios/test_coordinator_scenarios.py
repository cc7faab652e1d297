"""Rounds told as scenes: files of commands, each followed by what it must lead to.

A command stands at the start of a line, its outcome indented below it. After a deliberate change,
`PYTHONPATH=tests python tests/scenarios/test_coordinator_scenarios.py --rewrite` writes the outcomes anew: read
the difference before you keep it.

Commands: `at MS` (time), `open`, `waiting N` (devices; begins no window by itself), `assign N`, `finish N... OUTCOME`,
`reports N [voided=M]` and `away` (what the aggregator tells), `due` (does what the moment calls for),
`closed N [voided=M]`, `commit N`, `give up WHY`, `crash` (forget everything but the journal, and resume).
"""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path

import pytest

from fedrecon.coordinator import ledger, round_events, round_state, rounds
from fedrecon.coordinator.entries import round_entries
from fedrecon.coordinator.round_events import (
    Assigned,
    Blob,
    Committed,
    EndedBecause,
    Event,
    Finish,
    GroupsClosed,
    IllegalEvent,
    Opened,
    Outcome,
    ReportingEnded,
    SessionsFinished,
    Slot,
    Terms,
)
from fedrecon.coordinator.round_state import Round, Seen
from fedrecon.coordinator.rounds import DrawCohort, Effect, Gather
from support.scenes import played, rewrite

FOLDER = Path(__file__).parent / "coordinator"
SCENES = sorted(FOLDER.glob("*.txt"))
TERMS = Terms(
    report_goal=10,
    cohort_size=13,
    minimum_cohort=10,
    minimum_reports=8,
    selection_milliseconds=1_000,
    reporting_milliseconds=60_000,
    aggregating_milliseconds=30_000,
    retry_milliseconds=500,
)
GROUP = b"g" * 16


def slot(number: int) -> Slot:
    return Slot(number.to_bytes(16, "little"), (1_000 + number).to_bytes(16, "little"))


class Scene:
    """Plays the commands of a file."""

    def __init__(self) -> None:
        self.now = 0
        self.attempts: tuple[Round, ...] = ()
        self.seen = Seen()
        self.journal: list[bytes] = []

    def play(self, command: str) -> list[str]:  # noqa: C901, PLR0911, PLR0912 - one case for each command
        word, *rest = command.split()
        numbers = [int(each) for each in rest if each.isdigit()]
        voided = next((int(each.removeprefix("voided=")) for each in rest if each.startswith("voided=")), 0)
        match word:
            case "at":
                self.now = numbers[0]
                return []
            case "waiting":
                self.seen = replace(self.seen, waiting=numbers[0])
                return []
            case "reports":
                self.seen = replace(self.seen, reports=numbers[0], voided=voided)
                return []
            case "away":
                self.seen = replace(self.seen, reports=None)
                return []
            case "open":
                attempt = len(self.attempts) + 1
                return self.happen(Opened("films", 1, attempt, TERMS, Blob(b"c" * 32, 9), None, b""))
            case "assign":
                slots = tuple(slot(100 * len(self.attempts) + number) for number in range(numbers[0]))
                return self.happen(Assigned(slots, self.seen.waiting, (GROUP,), "here:1", 999_999))
            case "finish":
                attempt = len(self.attempts)
                ends = tuple(Finish(slot(100 * attempt + n).session, Outcome[rest[-1].upper()]) for n in numbers)
                return self.happen(SessionsFinished(attempt, ends))
            case "moved":
                told = self.happen(round_events.GroupsMoved(numbers[0], rest[-1]))
                return [*told, *(f"at {part.aggregator}" for part in self.attempts[-1].parts)]
            case "goal":
                return self.happen(ReportingEnded(EndedBecause.GOAL_MET, numbers[0]))
            case "closed":
                return self.happen(GroupsClosed((GROUP,), numbers[0], voided))
            case "commit":
                return self.happen(Committed(Blob(b"n" * 32, 9), None, numbers[0], 90, (), 0.5, b"s" * 32))
            case "give":
                return self.happen(rounds.abandon(self.attempts[-1], " ".join(rest[1:]), self.now))
            case "due":
                return self.do_what_is_due()
            case "crash":
                return self.crash()
        raise AssertionError(f"no such command: {command}")

    def happen(self, event: Event) -> list[str]:
        try:
            applied = ledger.apply(self.attempts, event, self.now)
        except IllegalEvent as error:
            return [f"refused: {error}"]
        self.journal.append(round_entries.encode(self.now, event))
        self.attempts = applied.attempts
        retry = [f"retry at {event.retry_at}"] if isinstance(event, round_events.Abandoned) else []
        return [f"{self.describe()}: {self.act(applied.effects)}", *retry]

    def do_what_is_due(self) -> list[str]:
        match rounds.due(self.attempts[-1], self.seen, self.now):
            case None:
                return [f"nothing before {rounds.next_instant(self.attempts[-1], self.seen)}"]
            case Gather():
                return [self.act((Gather(),))]
            case DrawCohort(size):
                return [f"draw {size}"]
            case ReportingEnded() as ended:
                return [f"{ended.because}", *self.happen(ended)]
            case round_events.Abandoned(reason) as abandoned:
                return [f"give up: {reason}", *self.happen(abandoned)]

    def act(self, effects: tuple[Effect, ...]) -> str:
        for effect in effects:
            if isinstance(effect, Gather):
                ends = self.now + TERMS.selection_milliseconds
                self.seen = Seen(window_ends=ends)
            if isinstance(effect, rounds.WatchGroups):
                self.seen = replace(self.seen, reports=None, voided=0)
        return ", ".join(_named(effect) for effect in effects) or "-"

    def crash(self) -> list[str]:
        self.attempts, self.seen = (), Seen()
        for encoded in self.journal:
            entry = round_entries.decode(encoded)
            self.attempts = ledger.apply(self.attempts, entry.event, entry.at).attempts
        return [f"{self.describe()}: {self.act(rounds.resume(self.attempts[-1]))}"]

    def describe(self) -> str:
        last = self.attempts[-1]
        return f"{last.number}.{last.attempt} {last.phase} assigned={len(last.slots)} finished={len(last.finishes)}"


def _named(effect: Effect) -> str:
    values = [
        value for field in dataclasses.fields(effect) if not isinstance(value := getattr(effect, field.name), tuple)
    ]
    return f"{type(effect).__name__}{values or ''}"


@pytest.mark.parametrize("path", SCENES, ids=lambda path: path.stem)
def test_a_scene_plays_as_it_is_told(path: Path) -> None:
    assert played(path.read_text(), Scene()) == path.read_text()


def test_there_are_scenes_and_they_crash_in_every_phase() -> None:
    told = "".join(path.read_text() for path in SCENES)
    crashes = {line.split()[1] for block in told.split("crash\n")[1:] for line in block.splitlines()[:1]}
    assert crashes == {phase.value for phase in round_state.Phase}


if __name__ == "__main__":
    rewrite(SCENES, Scene)
