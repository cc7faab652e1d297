"""One device's offer to take part in one task: from its call to an answer.

Rules: whoever was drawn and asks again gets the same session, from the journal, so an answer that was lost on its way
costs nothing. A call waits until it is answered or its time is up; then it leaves with a ticket that keeps its
priority.
"""

from __future__ import annotations

import asyncio
import secrets

from fedrecon.coordinator.answers import Answer, Drawn, Ineligible, KeepWaiting, NoTask, NotDrawn
from fedrecon.coordinator.assignments import PRIORITY_BYTES, is_held_out, is_sampled, issue_ticket, mark_of, read_ticket
from fedrecon.coordinator.pacing import Rhythm, Windows, pace
from fedrecon.coordinator.population import hash_of
from fedrecon.coordinator.round_events import Kind
from fedrecon.coordinator.round_state import Phase, Round
from fedrecon.coordinator.runner import Runner
from fedrecon.coordinator.specs import kind_of
from fedrecon.coordinator.tasks import State

PRESENCE_MILLISECONDS = 10_000
"""How long before a window's end its ticket holders are asked to call again: only who is there can be drawn."""

_SHARE_OF_WINDOW = 10
"""Reporting is expected to take this part of its window, until a round has shown how long it takes."""


async def offer(runner: Runner, device_key: bytes, ticket: bytes, patience_milliseconds: int) -> Answer:
    """Waits for a place in the task's next cohort.

    Args:
        runner: The task's; it is ready.
        device_key: The device.
        ticket: Of an earlier answer; empty if there is none.
        patience_milliseconds: How long the call may wait.
    """
    now = runner.book.now()
    runner.census.note(hash_of(runner.around.key, device_key), now)
    task, attempt = runner.book.task, runner.book.attempt
    if task.state is not State.RUNNING:
        return NoTask(f"the task is {task.state}")
    why = _wrong_half(runner, device_key) or _not_sampled(runner, device_key)
    if why is not None:
        return Ineligible(why)
    if attempt is not None and attempt.phase is Phase.REPORTING:
        return _place_in(runner, attempt, device_key, now)
    if until_selection(runner, now) > patience_milliseconds:
        return NotDrawn("the next round has not begun yet")
    drawn = None if attempt is None else read_ticket(runner.around.key, attempt, device_key, ticket)
    priority = int.from_bytes(secrets.token_bytes(PRIORITY_BYTES), "little") if drawn is None else drawn
    capacity = _capacity(runner)
    with runner.waiting.place(device_key, priority, capacity) as (answer, kept_priority):
        # Not the coordinator's clock: a call has a deadline of its own, and a timer for each of thousands costs.
        await asyncio.wait({answer}, timeout=patience_milliseconds / 1000)
        if answer.done():
            return answer.result()
    return _keep_waiting(runner, device_key, kept_priority)


def place_held(runner: Runner, device_key: bytes) -> tuple[Runner, Drawn] | None:
    """Returns a device's place in the round that runs, with its task; None if it has none there."""
    attempt, now = runner.book.attempt, runner.book.now()
    if attempt is None or attempt.phase is not Phase.REPORTING:
        return None
    answer = _place_in(runner, attempt, device_key, now)
    return (runner, answer) if isinstance(answer, Drawn) else None


def windows_of(runner: Runner, device_key: bytes) -> Windows:
    """Returns when a device should come back: for a round that it may take part in."""
    now = runner.book.now()
    a_round = runner.terms.selection_milliseconds + _expected_reporting(runner)
    rhythm = Rhythm(
        until_selection=until_selection(runner, now) + _rounds_without(runner, device_key) * a_round,
        selection=runner.terms.selection_milliseconds,
        reporting=_expected_reporting(runner),
        separation=runner.spec.eligibility.minimum_separation_milliseconds,
        cohort_size=_capacity(runner),
    )
    return pace(rhythm, runner.census.devices, runner.census.busyness(now))


def until_selection(runner: Runner, now: int) -> int:
    """Returns the expected milliseconds until devices are gathered again; 0 while they are."""
    task, attempt = runner.book.task, runner.book.attempt
    if attempt is None or attempt.is_over:
        return max(task.retry_at - now, runner.spec.start_unix_milliseconds - now, 0)
    if attempt.phase is Phase.REPORTING:
        return max(attempt.assigned_at + _expected_reporting(runner) - now, 0)
    return 0


def _wrong_half(runner: Runner, device_key: bytes) -> str | None:
    """Returns why a device may not take part in the round that runs or comes next; None if it may."""
    evaluates = runner.kind is Kind.EVALUATE
    if _is_held_out(runner, device_key) == evaluates or not runner.spec.evaluation.every_rounds:
        return None
    return "only held-out devices evaluate" if evaluates else "held-out devices only evaluate"


def _not_sampled(runner: Runner, device_key: bytes) -> str | None:
    """Returns why a device cannot be drawn for the attempt that gathers; None if it may, or none gathers."""
    attempt, rate = runner.book.attempt, runner.spec.privacy.sampling_rate
    if attempt is None or attempt.phase is not Phase.SELECTING:
        return None  # it may wait; who may be drawn is asked when a cohort is
    if is_sampled(runner.around.key, attempt.number, attempt.attempt, runner.name, device_key, rate):
        return None
    return "this attempt samples other devices"


def _is_held_out(runner: Runner, device_key: bytes) -> bool:
    return is_held_out(runner.around.key, runner.name, device_key, runner.spec.evaluation.held_out_share)


def _rounds_without(runner: Runner, device_key: bytes) -> int:
    """Returns how many rounds begin, from the next selection on, before one in which a device may take part."""
    every, attempt = runner.spec.evaluation.every_rounds, runner.book.attempt
    selects = attempt is None or attempt.is_over or attempt.phase is Phase.SELECTING
    upcoming = runner.book.task.number + (0 if selects else 1)
    wanted = Kind.EVALUATE if _is_held_out(runner, device_key) else Kind.TRAIN
    kinds = [kind_of(runner.spec, number) for number in range(upcoming, upcoming + every + 1)]
    return kinds.index(wanted) if wanted in kinds else 0


def _expected_reporting(runner: Runner) -> int:
    return runner.reporting_milliseconds or runner.spec.rounds.reporting_milliseconds // _SHARE_OF_WINDOW


def _capacity(runner: Runner) -> int:
    return runner.terms.cohort_size


def _place_in(runner: Runner, attempt: Round, device_key: bytes, now: int) -> Answer:
    slot = attempt.slot_of_device(mark_of(runner.around.key, attempt, device_key))
    if slot is None:
        return NotDrawn("the round has its cohort")
    if slot.session in attempt.finishes:
        return NotDrawn("this device's session in the round has ended")
    if now >= attempt.reporting_ends:
        return NotDrawn("the round's reporting window has ended")
    return Drawn(attempt, slot)


def _keep_waiting(runner: Runner, device_key: bytes, priority: int) -> Answer:
    attempt, now = runner.book.attempt, runner.book.now()
    if attempt is None or attempt.phase is not Phase.SELECTING:
        return NotDrawn("the next round has not begun yet")
    ticket = issue_ticket(runner.around.key, attempt, device_key, priority)
    return KeepWaiting(ticket, max(runner.seen.window_ends - PRESENCE_MILLISECONDS - now, 0))
