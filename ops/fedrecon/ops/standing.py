"""What an operator should look into, in words: one judgement for the console and for `fedrecon status`.

Rules: pure. A warning says what is wrong and what to do. What an operator wanted (a task that somebody paused) is none.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedrecon.v1 import admin_pb2 as admin

NEAR_BUDGET = 0.9
"""Share of the privacy budget from which its end is near."""

_ABANDONED_IN_A_ROW = 2
_WINDOWS_WITHOUT_COMMIT = 3
_LEAST_MILLISECONDS = 60_000
_WINDOWS = ("selection_milliseconds", "reporting_milliseconds", "aggregating_milliseconds")


@dataclass(frozen=True, slots=True)
class Warned:
    """Something to look into.

    Attributes:
        what: What is wrong.
        advice: What to do.
    """

    what: str
    advice: str


def warnings_of(task: admin.Task, privacy: admin.GetPrivacyResponse | None, now: int) -> list[Warned]:
    """Return what is wrong with a task.

    Args:
        task: As it stands.
        privacy: What is claimed for it; None: not asked.
        now: Unix milliseconds.
    """
    name, found = task.spec.name, list[Warned]()
    why = f"`fedrecon rounds why {name} {task.round.key.round}` tells the story"
    if task.state == admin.TASK_STATE_PAUSED and task.abandoned_in_a_row:
        found.append(Warned(f"It paused itself: {task.reason}", f"{why}; then resume it."))
    elif task.state == admin.TASK_STATE_PAUSED and "journal went back" in task.reason:
        found.append(Warned("Its journal went back to an older state.", task.reason))
    elif task.abandoned_in_a_row >= _ABANDONED_IN_A_ROW:
        found.append(Warned(f"{task.abandoned_in_a_row} attempts in a row were abandoned.", f"{why}."))
    if task.state == admin.TASK_STATE_RUNNING:
        found += _of_silence(task, now)
    if privacy is not None:
        found += _of_budget(task, privacy)
    return found


def _of_silence(task: admin.Task, now: int) -> list[Warned]:
    windows = sum(getattr(task.spec.rounds, window) for window in _WINDOWS)
    expected = max(_WINDOWS_WITHOUT_COMMIT * windows, _LEAST_MILLISECONDS)
    since = max(task.committed_unix_milliseconds, task.created_unix_milliseconds)
    if now - since <= expected:
        return []
    if task.round.phase == admin.ROUND_PHASE_SELECTING:
        needed = max(task.spec.rounds.minimum_cohort, 1)
        waiting = f"{task.round.waiting} of at least {needed} devices wait"
        return [
            Warned(f"No commit for {span(now - since)}: {waiting}.", "See that devices check in and find the task.")
        ]
    return [
        Warned(f"No commit for {span(now - since)}.", f"`fedrecon rounds list {task.spec.name}` tells what rounds do.")
    ]


def _of_budget(task: admin.Task, privacy: admin.GetPrivacyResponse) -> list[Warned]:
    budget = task.spec.privacy.epsilon_budget
    if not budget or privacy.epsilon < NEAR_BUDGET * budget:
        return []
    spent = f"{privacy.epsilon / budget:.0%} of the privacy budget are spent"
    return [Warned(f"{spent}: epsilon {privacy.epsilon:.3g} of {budget:g}.", "The task completes when it is spent.")]


def warnings_of_aggregators(aggregators: list[admin.AggregatorState]) -> list[Warned]:
    """Return what is wrong with the aggregators of a deployment."""
    return [
        Warned(
            f"Aggregator {each.target} does not answer.", "Its groups go to another within seconds, if there is one."
        )
        for each in aggregators
        if not each.answers
    ]


def span(milliseconds: float) -> str:
    """Return a span of time for people, in its two largest units.

    Example:
        >>> span(950), span(61_000), span(7_300_000), span(200_000_000)
        ('0 s', '1 min 1 s', '2 h 1 min', '2 d 7 h')
    """
    left, parts = int(milliseconds // 1000), list[str]()
    for unit, seconds in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        count, left = divmod(left, seconds)
        if count or (unit == "s" and not parts):
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])
