"""The coordinator's spans: an attempt of a round, and its phases. See `fedrecon.ops.traces`."""

from __future__ import annotations

from fedrecon.coordinator import round_events
from fedrecon.coordinator.round_state import Round
from fedrecon.ops.traces import Attempt, Attribute, tell_span


def attempt_of(attempt: Round) -> Attempt:
    """Returns whose trace an attempt is."""
    return Attempt(attempt.opened.task, attempt.number, attempt.attempt)


def trace_event(before: Round | None, after: Round, event: round_events.Event, now: int) -> None:
    """Tells the phase that an event ends, and the attempt when it has ended.

    Args:
        before: The attempt before the event.
        after: The attempt after it.
        event: What happened.
        now: When, Unix milliseconds.
    """
    of = attempt_of(after)
    told: dict[str, Attribute]
    if before is not None and after.attempt == before.attempt and after.phase is not before.phase:
        tell_span(before.phase.value, of, before.phase_since, now)
    match event:
        case round_events.Committed(reports=reports):
            told = {"outcome": "committed", "reports": reports, "devices": len(after.slots)}
        case round_events.Abandoned():
            told = {"outcome": "abandoned", "devices": len(after.slots)}
        case _:
            return
    tell_span("round", of, after.opened_at, now, is_root=True, kind=after.kind.value.lower(), **told)
