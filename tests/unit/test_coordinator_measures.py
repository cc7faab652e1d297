"""What the coordinator tells of tasks and rounds, as their events come."""

from __future__ import annotations

from fedrecon.coordinator import ledger, tasks
from fedrecon.coordinator.measures import Measures
from fedrecon.coordinator.pacing import Window
from fedrecon.coordinator.round_events import (
    Abandoned,
    Assigned,
    Blob,
    Committed,
    EndedBecause,
    Event,
    Finish,
    GroupsClosed,
    Kind,
    Opened,
    Outcome,
    ReportingEnded,
    Slot,
    Terms,
)
from fedrecon.coordinator.round_state import Round
from fedrecon.ops.metrics import Metrics
from fedrecon.v1.task_pb2 import TaskSpec

TASK = "films"
BLOB = Blob(bytes(32), 500)
TERMS = Terms(8, 10, 10, 6, 2_000, 60_000, 30_000, 1_000)
SLOTS = tuple(Slot(bytes([number]) * 16, bytes([number]) * 16) for number in range(10))
ASSIGNED = Assigned(SLOTS, 20, (b"g" * 16,), "here:1", 10**9)
CLOSED = GroupsClosed((b"g" * 16,), 7, 1)
ENDED = ReportingEnded(EndedBecause.GOAL_MET, 8)


def opened(kind: Kind = Kind.TRAIN) -> Opened:
    return Opened(TASK, 1, 1, TERMS, BLOB, None, b"", kind=kind)


def committed(*sums: tuple[str, float]) -> Committed:
    return Committed(Blob(bytes(32), 600), None, 7, 14, sums, 1.0, bytes(32))


class Told:
    """Measures, and what Prometheus reads of them."""

    def __init__(self) -> None:
        self.metrics = Metrics.create("coordinator")
        self.measures = Measures(self.metrics)

    def play(self, *events: Event) -> None:
        attempts: tuple[Round, ...] = ()
        for second, event in enumerate(events):
            applied = ledger.apply(attempts, event, 1_000 * second)
            self.measures.note_event(TASK, applied.before, applied.after, event, 1_000 * second)
            attempts = applied.attempts

    def of(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"fedrecon_{name}", labels)

    def of_task(self, name: str, **labels: str) -> float | None:
        return self.of(name, task=TASK, **labels)


def a_task() -> tasks.Task:
    created = tasks.TaskCreated(TaskSpec(name=TASK).SerializeToString(), BLOB, 0, 0, "alice")
    return tasks.step(None, created, 5_000)


def test_a_committed_round_is_told_from_its_opening_to_its_checkpoint() -> None:
    told = Told()
    told.play(opened())
    assert told.of_task("round_phase", phase="selecting") == 1
    assert told.of_task("round_devices", state="target") == 10
    assert told.of_task("round_overselection_ratio") is None
    told = Told()
    told.play(opened(), ASSIGNED, ENDED, CLOSED, committed(("loss", 7.0)))
    assert told.of_task("rounds_total", outcome="committed") == 1
    assert told.of_task("round_reports_total", fate="counted") == 7
    assert told.of_task("round_reports_total", fate="void") == 1
    assert told.of_task("round_overselection_ratio") == 10 / 8
    assert round(told.of_task("round_dropout_ratio") or 0, 9) == 0.3
    assert told.of_task("train_loss") == 0.5
    assert told.of("assignments_total", state="assigned") == 10
    phases = ("selecting", "reporting", "aggregating")
    assert [told.of_task("round_phase_seconds_sum", phase=phase) for phase in phases] == [1, 1, 2]
    assert [told.of_task("round_phase", phase=phase) for phase in phases] == [0, 0, 0]
    assert told.of_task("eval_rmse", cohort="unseen") is None


def test_reports_of_an_abandoned_round_are_told_as_void() -> None:
    told = Told()
    told.play(opened(), ASSIGNED, ENDED, CLOSED, Abandoned("merging took too long", 9_000))
    assert told.of_task("rounds_total", outcome="abandoned") == 1
    assert told.of_task("round_reports_total", fate="void") == 8
    told = Told()
    told.play(opened(), ASSIGNED, Abandoned("the window ended with too few reports", 9_000))
    assert told.of_task("round_reports_total", fate="void") == 0


def test_an_evaluation_tells_of_unseen_users_and_leaves_the_training_loss() -> None:
    told = Told()
    sums = committed(("loss", 7.0), ("squared_error", 36.0), ("recall_at_10", 2.0), ("examples", 4.0))
    told.play(opened(Kind.EVALUATE), ASSIGNED, ENDED, CLOSED, sums)
    assert told.of_task("eval_rmse", cohort="unseen") == 3
    assert told.of_task("eval_recall_at_k", k="10") == 0.5
    assert told.of_task("train_loss") is None


def test_a_task_is_told_by_who_leads_it_and_by_nobody_after() -> None:
    told, task = Told(), a_task()
    told.measures.note_task(task, TASK)
    told.measures.note_window(TASK, 92_000)
    told.measures.note_privacy(TASK, 1.5, 8.0)
    told.play(opened())
    assert told.of_task("task_running") == 1
    assert told.of_task("round_window_seconds") == 92
    assert told.of_task("round_last_commit_timestamp_seconds") == 5, "before the first commit: since it exists"
    assert (told.of_task("privacy_epsilon"), told.of_task("privacy_epsilon_budget")) == (1.5, 8.0)
    assert (told.of_task("model_bytes"), told.of_task("model_version")) == (500, 0)
    assert told.of_task("rounds_total", outcome="abandoned") == 0, "a rate sees the first one"
    told.measures.note_task(tasks.step(task, tasks.TaskPaused("to look"), 6_000), TASK)
    assert told.of_task("task_running") == 0
    told.measures.forget_task(TASK)
    stands = ("task_running", "round_window_seconds", "round_current", "privacy_epsilon", "model_version")
    assert [told.of_task(name) for name in stands] == [None] * len(stands)
    assert told.of_task("round_devices", state="target") is None
    assert told.of_task("rounds_total", outcome="abandoned") == 0, "what was counted stays"


def test_sessions_are_told_by_how_they_ended_and_how_long_they_took() -> None:
    told = Told()
    told.measures.note_finishes([Finish(bytes(16), Outcome.UPLOADED, "-v[]+^")], 4_000)
    told.measures.note_finishes([Finish(bytes(16), Outcome.LOCAL_TIMEOUT, "-v[#")], 60_000)
    assert told.of("session_seconds_sum", state="uploaded") == 4
    assert told.of("session_seconds_count", state="local_timeout") == 1
    assert told.of("assignments_total", state="local_timeout") == 1


def test_retry_windows_are_told() -> None:
    told = Told()
    told.measures.note_retry(Window(4_000, 6_000))
    assert told.of("retry_window_seconds_sum") == 5
    assert told.of("retry_window_seconds_bucket", le="5.0") == 1
