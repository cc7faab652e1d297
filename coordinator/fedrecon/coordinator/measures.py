"""What the coordinator counts, under the names of `fedrecon.ops.metrics`; never a device, a session or a round."""

from __future__ import annotations

from collections.abc import Iterable

from fedrecon.coordinator import round_events
from fedrecon.coordinator.labels import Versions, shape_label
from fedrecon.coordinator.round_events import Finish
from fedrecon.coordinator.round_state import Round
from fedrecon.coordinator.tasks import Task
from fedrecon.ops.metrics import Metrics

_LOSS_SUM = "loss"
_NO_TASK = ""


class Measures:
    """Turns events into metrics.

    Args:
        metrics: Where they are counted.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._versions = Versions()
        self._told_versions: set[str] = set()

    def note_check_in(self, outcome: str, task: str = _NO_TASK) -> None:
        """Counts an answered check-in.

        Args:
            outcome: `assigned`, `full`, `no_task`, `ineligible`, `version`, `waiting` or `unauthenticated`.
            task: Which task it was for; empty where none was chosen.
        """
        self._metrics.check_ins_total.labels(task=task, outcome=outcome).inc()

    def note_version(self, version: str, device: int, now: int) -> None:
        """Counts a device by its SDK.

        Args:
            version: As it says.
            device: Hash of its key.
            now: Unix milliseconds.
        """
        label, census = self._versions.note(version, device, now)
        if label not in self._told_versions:  # estimated when somebody looks: at every call it would cost a fifth of it
            self._told_versions.add(label)
            self._metrics.device_versions.labels(version=label).set_function(lambda: census.devices)

    def note_finishes(self, finishes: Iterable[Finish]) -> None:
        """Counts sessions that ended."""
        for finish in finishes:
            self._metrics.assignments_total.labels(state=finish.outcome.value.lower()).inc()
            self._metrics.session_shapes_total.labels(shape=shape_label(finish.shape)).inc()

    def note_task(self, task: Task, name: str) -> None:
        """Sets what is known of a task after a replay."""
        self._metrics.round_current.labels(task=name).set(task.number)
        self._metrics.model_version.labels(task=name).set(task.committed)
        self._metrics.model_bytes.labels(task=name).set(task.checkpoint.size)
        if task.committed_at:
            self._metrics.round_last_commit_timestamp_seconds.labels(task=name).set(task.committed_at / 1000)

    def note_reports(self, name: str, reports: int) -> None:
        """Sets how many reports the attempt under way has."""
        self._metrics.round_devices.labels(task=name, state="reported").set(reports)

    def note_event(self, name: str, before: Round | None, after: Round, event: round_events.Event, now: int) -> None:
        """Counts what an event of a round means.

        Args:
            name: The task.
            before: The attempt before it.
            after: The attempt after it.
            event: What happened.
            now: When, Unix milliseconds.
        """
        if before is not None and after.attempt == before.attempt and after.phase is not before.phase:
            seconds = (now - before.phase_since) / 1000
            self._metrics.round_phase_seconds.labels(task=name, phase=before.phase.value).observe(seconds)
        match event:
            case round_events.Opened():
                self._metrics.round_current.labels(task=name).set(after.number)
                self._devices(name, after.terms.cohort_size, 0, 0)
            case round_events.Assigned():
                self._devices(name, after.terms.cohort_size, len(after.slots), 0)
                ratio = len(after.slots) / after.terms.report_goal
                self._metrics.round_overselection_ratio.labels(task=name).set(ratio)
            case round_events.Committed():
                self._committed(name, after, event, now)
            case round_events.Abandoned():
                self._metrics.rounds_total.labels(task=name, outcome="abandoned").inc()
            case _:
                pass

    def _committed(self, name: str, attempt: Round, event: round_events.Committed, now: int) -> None:
        self._metrics.rounds_total.labels(task=name, outcome="committed").inc()
        self._metrics.round_last_commit_timestamp_seconds.labels(task=name).set(now / 1000)
        self._metrics.model_version.labels(task=name).set(attempt.number)
        self._metrics.model_bytes.labels(task=name).set(event.checkpoint.size)
        self._metrics.round_dropout_ratio.labels(task=name).set(1 - event.reports / len(attempt.slots))
        loss = dict(event.metric_sums).get(_LOSS_SUM)
        if loss is not None and event.weight:
            self._metrics.train_loss.labels(task=name).set(loss / event.weight)

    def _devices(self, name: str, target: int, assigned: int, reported: int) -> None:
        for state, devices in (("target", target), ("assigned", assigned), ("reported", reported)):
            self._metrics.round_devices.labels(task=name, state=state).set(devices)
