"""What the coordinator counts, by the rules of `fedrecon.ops.described_metrics`.

Rules: what a task stands at is shown by the coordinator that leads it, and by no other (`forget_task`): of two values
nobody could say which one holds. What is counted stays where it was counted, and is summed over coordinators.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from prometheus_client import Counter, Gauge, Histogram

from fedrecon.coordinator import round_events
from fedrecon.coordinator.kinds import ACTIVITIES, DEVICE_CLASSES, ENDS, SHOWN_TOGETHER, Kinds
from fedrecon.coordinator.labels import MOST_VERSIONS, OTHER, SHAPES, Versions, shape_label
from fedrecon.coordinator.pacing import Window
from fedrecon.coordinator.round_events import Finish, Kind, Outcome
from fedrecon.coordinator.round_state import Phase, Round
from fedrecon.coordinator.tasks import State, Task
from fedrecon.coordinator.tracing import trace_event
from fedrecon.ops.described_metrics import TASK
from fedrecon.ops.metrics import Metrics
from fedrecon.v1.coordinator_pb2 import DeviceKind

CHECK_IN_OUTCOMES = ("assigned", "waiting", "full", "no_task", "ineligible", "version", "unauthenticated")
ASSIGNMENT_STATES = ("assigned", *(outcome.value.lower() for outcome in Outcome))
ROUND_OUTCOMES = ("committed", "abandoned")
DEVICE_STATES = ("target", "assigned", "reported")
REPORT_FATES = ("counted", "void")
PHASES = tuple(phase.value for phase in (Phase.SELECTING, Phase.REPORTING, Phase.AGGREGATING))
UNSEEN = "unseen"
NO_TASK = ""

_PHASE_SECONDS = (0.1, 0.5, 1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 14400.0)
_SESSION_SECONDS = (0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
_RETRY_SECONDS = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 43200.0, 86400.0, 172800.0)
_LOSS, _SQUARED_ERROR, _EXAMPLES = "loss", "squared_error", "examples"
_RECALL = re.compile(r"recall_at_(\d{1,4})")


class Measures:
    """Turns events into metrics.

    Args:
        metrics: Where they are counted.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._make_of_rounds(metrics)
        self._make_of_devices(metrics)
        self._make_of_models(metrics)
        self._versions = Versions()
        self._told_versions: set[str] = set()

    def _make_of_rounds(self, metrics: Metrics) -> None:
        make = metrics.described
        self._rounds: Counter = make.counter(
            "rounds_total", "Attempts of rounds that ended, by outcome.", task=TASK, outcome=ROUND_OUTCOMES
        )
        self._round_reports: Counter = make.counter(
            "round_reports_total",
            "Reports of rounds that ended: counted in a checkpoint or an evaluation, or made void.",
            task=TASK,
            fate=REPORT_FATES,
        )
        self._running: Gauge = make.gauge("task_running", "1 while the task runs; 0 paused or ended.", task=TASK)
        self._window: Gauge = make.gauge(
            "round_window_seconds", "Longest time that a round of the task may take, by its windows.", task=TASK
        )
        self._current: Gauge = make.gauge("round_current", "Number of the round under way.", task=TASK)
        self._phase: Gauge = make.gauge(
            "round_phase", "1 for the phase in which the round under way is, 0 for others.", task=TASK, phase=PHASES
        )
        self._devices: Gauge = make.gauge(
            "round_devices",
            "Devices of the round under way: wanted, assigned, and those whose report is there.",
            task=TASK,
            state=DEVICE_STATES,
        )
        self._phase_seconds: Histogram = make.histogram(
            "round_phase_seconds", "Time that a round spent in a phase.", _PHASE_SECONDS, task=TASK, phase=PHASES
        )
        self._dropout: Gauge = make.gauge(
            "round_dropout_ratio", "Share of assigned devices whose report is not in the last round.", task=TASK
        )
        self._overselection: Gauge = make.gauge(
            "round_overselection_ratio", "Assigned devices over the report goal, last round.", task=TASK
        )
        self._last_commit: Gauge = make.gauge(
            "round_last_commit_timestamp_seconds",
            "Unix time of the last committed round; of the task's creation before the first.",
            task=TASK,
        )

    def _make_of_devices(self, metrics: Metrics) -> None:
        make = metrics.described
        self._check_ins: Counter = make.counter(
            "check_ins_total",
            "Answered check-ins, by outcome; the task is empty where none was chosen.",
            task=TASK,
            outcome=CHECK_IN_OUTCOMES,
        )
        for outcome in CHECK_IN_OUTCOMES:
            self._check_ins.labels(task=NO_TASK, outcome=outcome)
        self._retry: Histogram = make.histogram(
            "retry_window_seconds",
            "After how long devices are asked to come back.",
            _RETRY_SECONDS,
        )
        self._assignments: Counter = make.counter(
            "assignments_total", "Assignments made, and by how their sessions ended.", state=ASSIGNMENT_STATES
        )
        self._session_seconds: Histogram = make.histogram(
            "session_seconds",
            "Time from an assignment to the end of its session, as its device told it.",
            _SESSION_SECONDS,
            state=ASSIGNMENT_STATES[1:],
        )
        self._shapes: Counter = make.counter(
            "session_shapes_total", "Sessions that ended, by their shape.", shape=(*sorted(SHAPES), OTHER)
        )
        only = f"only of apps that tell it, and in steps of {SHOWN_TOGETHER} sessions"
        by_activity = make.counter(
            "sessions_by_activity_total",
            "Sessions that told their end, by how many examples the device has: fewer than 20, fewer than 100, more.",
            only=only,
            activity=ACTIVITIES,
            end=ENDS,
        )
        by_class = make.counter(
            "sessions_by_device_class_total",
            "Sessions that told their end, by how well equipped the app says the device is.",
            only=only,
            device_class=DEVICE_CLASSES,
            end=ENDS,
        )
        self._by_kind: dict[str, Counter] = {"activity": by_activity, "device_class": by_class}
        self._kinds = Kinds()
        self._device_versions: Gauge = make.gauge(
            "device_versions",
            "Devices that called here within two days, by SDK version, estimated.",
            version=f"version of the SDK; `{OTHER}` after the first {MOST_VERSIONS}",
        )

    def _make_of_models(self, metrics: Metrics) -> None:
        make = metrics.described
        self._model_version: Gauge = make.gauge("model_version", "Round that made the live checkpoint.", task=TASK)
        self._model_bytes: Gauge = make.gauge("model_bytes", "Size of the live checkpoint.", task=TASK)
        self._train_loss: Gauge = make.gauge(
            "train_loss",
            "Mean of the plan's `loss`, or else of its `squared_error`, over the examples of the last training round.",
            only="only without privacy, where the plan sums one of them",
            task=TASK,
        )
        self._eval_rmse: Gauge = make.gauge(
            "eval_rmse",
            "Root mean squared error of the last evaluation round, on devices held out for good.",
            only="only with evaluation rounds, where the plan sums `squared_error`",
            task=TASK,
            cohort=(UNSEEN,),
        )
        self._eval_recall: Gauge = make.gauge(
            "eval_recall_at_k",
            "Recall among the first k of the last evaluation round, on devices held out for good.",
            only="only with evaluation rounds, where the plan sums `recall_at_K`",
            task=TASK,
            k="as the plan names it",
        )
        self._epsilon: Gauge = make.gauge(
            "privacy_epsilon", "Epsilon spent, at the task's delta.", only="only with privacy", task=TASK
        )
        self._budget: Gauge = make.gauge(
            "privacy_epsilon_budget", "Epsilon at which the task ends.", only="only with privacy", task=TASK
        )

    # -- devices -----------------------------------------------------------------------------------------------------

    def note_check_in(self, outcome: str, task: str = NO_TASK) -> None:
        """Counts an answered check-in.

        Args:
            outcome: One of `CHECK_IN_OUTCOMES`.
            task: Which task it was for; empty where none was chosen.
        """
        self._check_ins.labels(task=task, outcome=outcome).inc()

    def note_retry(self, window: Window) -> None:
        """Counts when a device was asked to come back."""
        self._retry.observe((window.minimum + window.maximum) / 2000)

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
            self._device_versions.labels(version=label).set_function(lambda: census.devices)

    def note_finishes(self, finishes: Iterable[Finish], milliseconds: int) -> None:
        """Counts sessions that ended.

        Args:
            finishes: Their ends.
            milliseconds: Since they were assigned.
        """
        for finish in finishes:
            state = finish.outcome.value.lower()
            self._assignments.labels(state=state).inc()
            self._session_seconds.labels(state=state).observe(milliseconds / 1000)
            self._shapes.labels(shape=shape_label(finish.shape)).inc()

    def note_kind(self, kind: DeviceKind, outcome: Outcome) -> None:
        """Counts a session that ended by what its device tells of itself."""
        for what, word, end in self._kinds.note(kind, outcome):
            self._by_kind[what].labels(**{what: word, "end": end}).inc(SHOWN_TOGETHER)

    # -- tasks and rounds --------------------------------------------------------------------------------------------

    def note_task(self, task: Task, name: str) -> None:
        """Sets what is known of a task, whenever it has changed."""
        for outcome in ROUND_OUTCOMES:
            self._rounds.labels(task=name, outcome=outcome)
        for fate in REPORT_FATES:
            self._round_reports.labels(task=name, fate=fate)
        self._running.labels(task=name).set(task.state is State.RUNNING)
        self._current.labels(task=name).set(task.number)
        self._model_version.labels(task=name).set(task.live_round)
        self._model_bytes.labels(task=name).set(task.checkpoint.size)
        self._last_commit.labels(task=name).set((task.committed_at or task.created_at) / 1000)

    def note_window(self, name: str, milliseconds: int) -> None:
        """Sets how long a round of a task may take."""
        self._window.labels(task=name).set(milliseconds / 1000)

    def note_privacy(self, name: str, epsilon: float, budget: float) -> None:
        """Sets what a task has spent of its privacy budget."""
        self._epsilon.labels(task=name).set(epsilon)
        self._budget.labels(task=name).set(budget)

    def forget_task(self, name: str) -> None:
        """Shows no more what a task stands at: another coordinator leads it now, or it has ended."""
        of_tasks = (
            self._running, self._window, self._current, self._phase, self._devices, self._dropout, self._overselection,
            self._last_commit, self._model_version, self._model_bytes, self._train_loss, self._eval_rmse,
            self._eval_recall, self._epsilon, self._budget,
        )  # fmt: skip
        for each in of_tasks:
            each.remove_by_labels({"task": name})

    def note_reports(self, name: str, reports: int) -> None:
        """Sets how many reports the attempt under way has."""
        self._devices.labels(task=name, state="reported").set(reports)

    def note_round(self, name: str, attempt: Round) -> None:
        """Sets where an attempt stands, whenever it has changed."""
        self._current.labels(task=name).set(attempt.number)
        for phase in PHASES:
            self._phase.labels(task=name, phase=phase).set(attempt.phase.value == phase)
        self._devices.labels(task=name, state="target").set(attempt.terms.cohort_size)
        self._devices.labels(task=name, state="assigned").set(len(attempt.slots))
        if attempt.slots:
            ratio = len(attempt.slots) / attempt.terms.report_goal
            self._overselection.labels(task=name).set(ratio)
        else:
            self.note_reports(name, 0)

    def note_event(self, name: str, before: Round | None, after: Round, event: round_events.Event, now: int) -> None:
        """Counts what an event of a round means, and tells its traces.

        Args:
            name: The task.
            before: The attempt before it.
            after: The attempt after it.
            event: What happened.
            now: When, Unix milliseconds.
        """
        trace_event(before, after, event, now)
        if before is not None and after.attempt == before.attempt and after.phase is not before.phase:
            seconds = (now - before.phase_since) / 1000
            self._phase_seconds.labels(task=name, phase=before.phase.value).observe(seconds)
        match event:
            case round_events.Assigned():
                self._assignments.labels(state="assigned").inc(len(event.slots))
            case round_events.GroupsClosed():
                self._round_reports.labels(task=name, fate="void").inc(event.voided)
            case round_events.Committed():
                self._committed(name, after, event)
            case round_events.Abandoned():
                self._rounds.labels(task=name, outcome="abandoned").inc()
                ended = after.reporting_ended
                summed = after.closed.reports if after.closed is not None else ended.reports if ended is not None else 0
                self._round_reports.labels(task=name, fate="void").inc(summed)
            case _:
                pass
        if not isinstance(event, round_events.SessionsFinished):  # of this attempt or an older one
            self.note_round(name, after)

    def _committed(self, name: str, attempt: Round, event: round_events.Committed) -> None:
        self._rounds.labels(task=name, outcome="committed").inc()
        self._round_reports.labels(task=name, fate="counted").inc(event.reports)
        self._dropout.labels(task=name).set(1 - event.reports / len(attempt.slots))
        sums = dict(event.metric_sums)
        if attempt.kind is Kind.EVALUATE:
            self._evaluated(name, sums)
        else:
            self._trained(name, sums, event.weight)

    def _trained(self, name: str, sums: dict[str, float], weight: int) -> None:
        examples = sums.get(_EXAMPLES) or weight
        loss = sums.get(_LOSS, sums.get(_SQUARED_ERROR))
        if loss is not None and examples:
            self._train_loss.labels(task=name).set(loss / examples)

    def _evaluated(self, name: str, sums: dict[str, float]) -> None:
        examples = sums.get(_EXAMPLES, 0.0)
        if not examples:
            return
        if (squared := sums.get(_SQUARED_ERROR)) is not None:
            self._eval_rmse.labels(task=name, cohort=UNSEEN).set(math.sqrt(max(squared, 0.0) / examples))
        for metric, total in sums.items():
            if (named := _RECALL.fullmatch(metric)) is not None:
                self._eval_recall.labels(task=name, k=named[1]).set(total / examples)
