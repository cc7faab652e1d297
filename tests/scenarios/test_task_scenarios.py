"""Tasks told as scenes, as rounds are: files of commands, each followed by what it must lead to.

`PYTHONPATH=tests python tests/scenarios/test_task_scenarios.py --rewrite` writes the outcomes anew
after a deliberate change.

Commands: `at MS` (time), `create [rounds=N] [attempts=N]`, `commit`, `evaluate`, `abandon WHY` (of the attempt that is
next), `late commit N.A` (of another one), `pause WHY`, `resume`, `cancel WHY`, `edit [rounds=N] [attempts=N]`,
`roll back N`, `led TARGET`, `crash` (forget everything but the journal).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from fedrecon.coordinator import tasks
from fedrecon.coordinator.entries import task_entries
from fedrecon.coordinator.round_events import Blob, IllegalEvent
from fedrecon.coordinator.tasks import (
    AttemptAbandoned,
    CheckpointCommitted,
    CheckpointEvaluated,
    Event,
    RolledBack,
    Task,
    TaskCancelled,
    TaskCreated,
    TaskEdited,
    TaskLed,
    TaskPaused,
    TaskResumed,
)
from support.scenes import played, rewrite

FOLDER = Path(__file__).parent / "tasks"
SCENES = sorted(FOLDER.glob("*.txt"))
RETRY_MILLISECONDS = 500


def checkpoint(number: int) -> Blob:
    return Blob(number.to_bytes(32, "big"), 9)


class Scene:
    """Plays the commands of a file."""

    def __init__(self) -> None:
        self.now = 0
        self.task: Task | None = None
        self.journal: list[bytes] = []

    def play(self, command: str) -> list[str]:
        word, _, rest = command.partition(" ")
        if word == "at":
            self.now = int(rest)
            return []
        if word == "crash":
            self.task = None
            for encoded in self.journal:
                entry = task_entries.decode(encoded)
                self.task = tasks.step(self.task, entry.event, entry.at)
            return [self.describe()]
        event = self.event_of(word, rest)
        try:
            if isinstance(event, CheckpointCommitted | CheckpointEvaluated | AttemptAbandoned):
                assert self.task is not None
                events = tasks.consequences(self.task, event, self.now)
            else:
                events = (event,)
            after = self.task
            for each in events:
                after = tasks.step(after, each, self.now)
        except IllegalEvent as error:
            return [f"refused: {error}"]
        self.task = after
        self.journal += [task_entries.encode(self.now, each) for each in events]
        return [f"also: {type(each).__name__}" for each in events[1:]] + [self.describe()]

    def event_of(self, word: str, rest: str) -> Event:  # noqa: C901, PLR0911 - one case for each command
        values = dict(each.split("=") for each in rest.split() if "=" in each)
        limits = int(values.get("rounds", 0)), int(values.get("attempts", 0))
        number, attempt = (0, 0) if self.task is None else (self.task.number, self.task.attempt)
        match word:
            case "create":
                return TaskCreated(b"spec", checkpoint(0), *limits, "olga")
            case "edit":
                return TaskEdited(b"another spec", *limits, "olga")
            case "commit":
                return CheckpointCommitted(number, attempt, checkpoint(number), checkpoint(100 + number), 10, 90)
            case "evaluate":
                assert self.task is not None
                return CheckpointEvaluated(number, attempt, self.task.live_round, 5, 40)
            case "late":
                number, attempt = (int(each) for each in rest.removeprefix("commit ").split("."))
                return CheckpointCommitted(number, attempt, checkpoint(number), None, 10, 90)
            case "abandon":
                return AttemptAbandoned(number, attempt, rest, self.now + RETRY_MILLISECONDS)
            case "pause":
                return TaskPaused(rest, "olga")
            case "resume":
                return TaskResumed("olga")
            case "cancel":
                return TaskCancelled(rest, "olga")
            case "roll":
                of = int(rest.removeprefix("back "))
                return RolledBack(of, checkpoint(of), checkpoint(100 + of) if of else None, "worse", "olga")
            case "led":
                return TaskLed(rest)
        raise AssertionError(f"no such command: {word} {rest}")

    def describe(self) -> str:
        task = self.task
        assert task is not None
        state = f"{task.state}: {task.reason}" if task.reason else f"{task.state}"
        live = int.from_bytes(task.checkpoint.digest, "big")
        assert live == task.live_round
        optimizer = "-" if task.optimizer_state is None else int.from_bytes(task.optimizer_state.digest, "big")
        following = f"next {task.number}.{task.attempt} from {max(task.retry_at, self.now)}"
        led = f", led by {task.leader}" if task.leader else ""
        return f"{state}; {following}, live checkpoint {live} with state {optimizer}{led}"


@pytest.mark.parametrize("path", SCENES, ids=lambda path: path.stem)
def test_a_scene_plays_as_it_is_told(path: Path) -> None:
    assert played(path.read_text(), Scene()) == path.read_text()


def test_there_are_scenes_and_each_says_what_it_is_about() -> None:
    assert len(SCENES) >= 8
    assert all(path.read_text().startswith("# ") for path in SCENES)


if __name__ == "__main__":
    rewrite(SCENES, Scene)
