"""A task over its whole life, as a pure fold of its events.

States: RUNNING <-> PAUSED, then COMPLETED or CANCELLED for good. Which round and attempt come next, from which
checkpoint, and how often in a row attempts were abandoned all follow from the events of this one stream; what happened
within a round lies in the round's own stream.

Rules: `step` raises `IllegalEvent` before anything changes. A commit writes `CheckpointCommitted` here and `Committed`
in the round's stream in one append, so that neither is ever without the other. Numbers of rounds only grow: after a
roll-back the next round has the next number, and starts from the older checkpoint and its optimizer state.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum

from fedrecon.coordinator.noise_trees import NoiseTree, grow
from fedrecon.coordinator.plausibility import REMEMBERED_ROUNDS, Likeness
from fedrecon.coordinator.round_events import Blob, IllegalEvent


class State(StrEnum):
    """What a task does."""

    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class TaskCreated:
    """An operator registered the task.

    Attributes:
        spec: `TaskSpec`, serialised.
        checkpoint: The plan's initial checkpoint.
        maximum_rounds: Rounds after which it is complete; 0: no limit.
        maximum_attempts: Abandoned attempts in a row after which it pauses itself; 0: no limit.
        operator: Who.
        private_sums: Sums that its privacy budget allows; 0: it has no budget.
        tree_sums: Sums of a tree that its noise is in; 0: every sum has noise of its own.
    """

    spec: bytes
    checkpoint: Blob
    maximum_rounds: int
    maximum_attempts: int
    operator: str
    private_sums: int = 0
    tree_sums: int = 0


@dataclass(frozen=True, slots=True)
class TaskPaused:
    """No new rounds begin.

    Attributes:
        reason: Why.
        operator: Who; empty: the task itself.
    """

    reason: str
    operator: str = ""


@dataclass(frozen=True, slots=True)
class TaskResumed:
    """Rounds go on.

    Attributes:
        operator: Who.
    """

    operator: str


@dataclass(frozen=True, slots=True)
class TaskCancelled:
    """The task has ended for good.

    Attributes:
        reason: Why.
        operator: Who.
    """

    reason: str
    operator: str


@dataclass(frozen=True, slots=True)
class TaskCompleted:
    """The task has done what it was created for.

    Attributes:
        reason: What that was.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class CheckpointCommitted:
    """A round's checkpoint became the live one.

    Attributes:
        number: The round.
        attempt: Its attempt.
        checkpoint: The checkpoint.
        optimizer_state: The optimizer's state that belongs to it.
        reports: Reports in it.
        weight: Sum of their weights.
        metric_sums: Sums over the reports, by name.
        clip_norm: Clip norm of the next round; 0 without privacy.
        update_norm: Euclidean norm of its mean update; 0: not known.
    """

    number: int
    attempt: int
    checkpoint: Blob
    optimizer_state: Blob | None
    reports: int
    weight: int
    metric_sums: tuple[tuple[str, float], ...] = ()
    clip_norm: float = 0.0
    update_norm: float = 0.0


@dataclass(frozen=True, slots=True)
class CheckpointEvaluated:
    """An evaluation round told how good the live checkpoint is; it changed nothing.

    Attributes:
        number: The round.
        attempt: Its attempt.
        live_round: The round that made the checkpoint.
        reports: Reports in the sums.
        weight: Sum of their weights.
        metric_sums: Sums over the reports, by name.
    """

    number: int
    attempt: int
    live_round: int
    reports: int
    weight: int
    metric_sums: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class PrivacySpent:
    """A noisy sum is about to be made: it counts whether or not its round is committed, and is never given back.

    Attributes:
        number: The round.
        attempt: Its attempt.
        sum_name: Digest of the groups that are summed.
    """

    number: int
    attempt: int
    sum_name: bytes = b""


@dataclass(frozen=True, slots=True)
class AttemptAbandoned:
    """An attempt of a round was given up.

    Attributes:
        number: The round.
        attempt: Its attempt.
        reason: Why.
        retry_at: Earliest moment of the next attempt.
    """

    number: int
    attempt: int
    reason: str
    retry_at: int


@dataclass(frozen=True, slots=True)
class TaskEdited:
    """An operator changed what was asked for; rounds that open from now on go by it.

    Attributes:
        spec: The whole new `TaskSpec`, serialised.
        maximum_rounds: As of `TaskCreated`.
        maximum_attempts: Likewise.
        operator: Who.
        checkpoint: The live checkpoint with rows for new items; None: it stays as it is.
        optimizer_state: The optimizer's state that belongs to it; None: there is none, or it stays.
    """

    spec: bytes
    maximum_rounds: int
    maximum_attempts: int
    operator: str
    checkpoint: Blob | None = None
    optimizer_state: Blob | None = None


@dataclass(frozen=True, slots=True)
class TaskLed:
    """Another coordinator began to lead the task.

    Attributes:
        target: Where other coordinators reach it.
    """

    target: str


@dataclass(frozen=True, slots=True)
class RolledBack:
    """An operator made an older checkpoint the live one.

    Attributes:
        number: The round that made it; 0: the plan's initial one.
        checkpoint: The checkpoint.
        optimizer_state: The optimizer's state that belongs to it.
        reason: Why.
        operator: Who.
        clip_norm: Clip norm that belongs to it; 0 without privacy, and for the plan's initial one.
    """

    number: int
    checkpoint: Blob
    optimizer_state: Blob | None
    reason: str
    operator: str
    clip_norm: float = 0.0


@dataclass(frozen=True, slots=True)
class HistoryLost:
    """The journal went back to an older state: whoever resumes the task accepts the loss.

    Attributes:
        reason: What was lost, and what can be done.
        watermark: What had been noted outside of the journal, by its name; empty: nothing was.
    """

    reason: str
    watermark: str


Event = (
    TaskCreated
    | TaskEdited
    | TaskPaused
    | TaskResumed
    | TaskCancelled
    | TaskCompleted
    | CheckpointCommitted
    | CheckpointEvaluated
    | PrivacySpent
    | AttemptAbandoned
    | RolledBack
    | TaskLed
    | HistoryLost
)
EVENT_TYPES = (
    TaskCreated,
    TaskEdited,
    TaskPaused,
    TaskResumed,
    TaskCancelled,
    TaskCompleted,
    CheckpointCommitted,
    CheckpointEvaluated,
    PrivacySpent,
    AttemptAbandoned,
    RolledBack,
    TaskLed,
    HistoryLost,
)


@dataclass(frozen=True, slots=True)
class Task:
    """A task as its events have left it. Instants are Unix milliseconds.

    Attributes:
        created: How it began.
        created_at: When.
        state: What it does.
        spec: What is asked for now: a `TaskSpec`, serialised.
        maximum_rounds: Rounds after which it is complete; 0: no limit.
        maximum_attempts: Abandoned attempts in a row after which it pauses itself; 0: no limit.
        checkpoint: The live checkpoint.
        live_round: The round that made it; 0: it is the plan's initial one.
        optimizer_state: State of the server optimizer that belongs to it.
        committed: Rounds committed.
        abandoned: Attempts abandoned, over all rounds.
        attempt: Attempt of round `committed + 1` that runs or comes next.
        abandoned_in_a_row: Attempts abandoned since the last commit or resumption.
        retry_at: Earliest moment of the next attempt.
        reason: Why it is in its state, where there is a reason.
        committed_at: When the last round was committed; 0: none was.
        ended_at: When it was completed or cancelled; 0: it was not.
        lost_watermark: What the newest loss of history was measured by.
        leader: Where the coordinator is reached that leads it, or led it last; empty: not known.
        clip_norm: Clip norm that the live checkpoint ended with; 0: the specification's first one counts.
        private_sums: Noisy sums that were made, or begun.
        spent_for: Round and attempt of the last of them.
        noise: The tree that their noise is in, if it is in one.
        recent: What its last rounds were like, since it was created, edited or rolled back.
    """

    created: TaskCreated
    created_at: int
    state: State
    spec: bytes
    maximum_rounds: int
    maximum_attempts: int
    checkpoint: Blob
    live_round: int = 0
    optimizer_state: Blob | None = None
    committed: int = 0
    abandoned: int = 0
    attempt: int = 1
    abandoned_in_a_row: int = 0
    retry_at: int = 0
    reason: str = ""
    committed_at: int = 0
    ended_at: int = 0
    lost_watermark: str = ""
    leader: str = ""
    clip_norm: float = 0.0
    private_sums: int = 0
    spent_for: tuple[int, int] = (0, 0)
    noise: NoiseTree = field(default_factory=NoiseTree)
    recent: tuple[Likeness, ...] = ()

    @property
    def number(self) -> int:
        """Number of the round that runs or comes next."""
        return self.committed + 1

    @property
    def has_spent_its_budget(self) -> bool:
        """Whether another noisy sum would be more than its privacy budget allows."""
        return 0 < self.created.private_sums <= self.private_sums

    @property
    def tree_number(self) -> int | None:
        """Which tree of noise the next sum belongs to; None if sums have noise of their own."""
        return self.private_sums // self.created.tree_sums if self.created.tree_sums else None

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in {State.COMPLETED, State.CANCELLED}


def step(task: Task | None, event: Event, now: int) -> Task:  # noqa: C901, PLR0911, PLR0912 - one return for each
    """Applies an event.

    Args:
        task: The task as it stands; None before it is created.
        event: What happened.
        now: When, Unix milliseconds.

    Raises:
        IllegalEvent: It cannot happen now; nothing was changed.
    """
    if isinstance(event, TaskCreated):
        if task is not None:
            raise IllegalEvent("the task exists already")
        limits = event.maximum_rounds, event.maximum_attempts
        return Task(event, now, State.RUNNING, event.spec, *limits, event.checkpoint)
    if task is None:
        raise IllegalEvent(f"{type(event).__name__} before the task was created")
    match event:
        case TaskEdited():
            _require_open(task, event)
            edited = replace(
                task,
                spec=event.spec,
                maximum_rounds=event.maximum_rounds,
                maximum_attempts=event.maximum_attempts,
                recent=(),
            )
            if event.checkpoint is None:
                return edited
            return replace(edited, checkpoint=event.checkpoint, optimizer_state=event.optimizer_state)
        case TaskPaused():
            _require(task, State.RUNNING, event)
            return replace(task, state=State.PAUSED, reason=event.reason)
        case TaskResumed():
            _require(task, State.PAUSED, event)
            return replace(task, state=State.RUNNING, reason="", abandoned_in_a_row=0, retry_at=now)
        case TaskCancelled():
            _require_open(task, event)
            return replace(task, state=State.CANCELLED, reason=event.reason, ended_at=now)
        case TaskCompleted():
            _require_open(task, event)
            return replace(task, state=State.COMPLETED, reason=event.reason, ended_at=now)
        case CheckpointCommitted():
            _require_open(task, event)
            _require_attempt(task, event)
            return replace(
                task,
                checkpoint=event.checkpoint,
                live_round=event.number,
                optimizer_state=event.optimizer_state,
                committed=event.number,
                attempt=1,
                abandoned_in_a_row=0,
                retry_at=now,
                committed_at=now,
                clip_norm=event.clip_norm,
                recent=(*task.recent, likeness_of(event))[-REMEMBERED_ROUNDS:],
            )
        case PrivacySpent():
            _require_attempt(task, event)
            if task.has_spent_its_budget or task.spent_for == (event.number, event.attempt):
                raise IllegalEvent("the privacy budget is spent, or this sum was counted already")
            noise = grow(task.noise, event.sum_name, task.created.tree_sums) if task.created.tree_sums else task.noise
            spent_for = event.number, event.attempt
            return replace(task, private_sums=task.private_sums + 1, spent_for=spent_for, noise=noise)
        case CheckpointEvaluated():
            _require_open(task, event)
            _require_attempt(task, event)
            return replace(
                task, committed=event.number, attempt=1, abandoned_in_a_row=0, retry_at=now, committed_at=now
            )
        case AttemptAbandoned():
            _require_attempt(task, event)
            return replace(
                task,
                abandoned=task.abandoned + 1,
                attempt=event.attempt + 1,
                abandoned_in_a_row=task.abandoned_in_a_row + 1,
                retry_at=event.retry_at,
            )
        case TaskLed():
            return replace(task, leader=event.target)
        case RolledBack():
            if event.number > task.committed:
                raise IllegalEvent(f"round {event.number} has made no checkpoint: {task.committed} are committed")
            return replace(
                task,
                checkpoint=event.checkpoint,
                live_round=event.number,
                optimizer_state=event.optimizer_state,
                clip_norm=event.clip_norm,
                recent=(),
            )
        case HistoryLost():
            _require_open(task, event)
            return replace(task, state=State.PAUSED, reason=event.reason, lost_watermark=event.watermark)


def likeness_of(event: CheckpointCommitted) -> Likeness:
    """Returns what a committed round was like."""
    return Likeness(event.update_norm, event.weight / max(event.reports, 1))


def consequences(
    before: Task, event: CheckpointCommitted | CheckpointEvaluated | AttemptAbandoned, now: int
) -> tuple[Event, ...]:
    """Returns an event with what must be recorded together with it: the task's own pause or completion.

    Args:
        before: The task before the event.
        event: What happened.
        now: When, Unix milliseconds.

    Raises:
        IllegalEvent: As `step`.
    """
    after = step(before, event, now)
    if after.has_ended:
        return (event,)
    if not isinstance(event, AttemptAbandoned) and 0 < after.maximum_rounds <= after.committed:
        return (event, TaskCompleted(f"all of its {after.maximum_rounds} rounds are committed"))
    tired = 0 < after.maximum_attempts <= after.abandoned_in_a_row
    if isinstance(event, AttemptAbandoned) and tired and after.state is State.RUNNING:
        times = f"{after.abandoned_in_a_row} attempts in a row were abandoned"
        return (event, TaskPaused(f"{times}, the last one because {event.reason}"))
    return (event,)


def _require(task: Task, state: State, event: Event) -> None:
    if task.state is not state:
        raise IllegalEvent(f"{type(event).__name__}: the task is {task.state}, not {state}")


def _require_open(task: Task, event: Event) -> None:
    if task.has_ended:
        raise IllegalEvent(f"{type(event).__name__}: the task is {task.state} already")


def _require_attempt(
    task: Task, event: CheckpointCommitted | CheckpointEvaluated | PrivacySpent | AttemptAbandoned
) -> None:
    if (event.number, event.attempt) != (task.number, task.attempt):
        raise IllegalEvent(
            f"{type(event).__name__} of attempt {event.attempt} of round {event.number}: "
            f"attempt {task.attempt} of round {task.number} is next"
        )
