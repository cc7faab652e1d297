"""The journal of a round in words: one sentence for each event, for operators who ask why.

Sentences are made of the journal alone, so the same journal always tells the same story.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime

from fedrecon.coordinator import round_events
from fedrecon.coordinator.round_events import EndedBecause, Outcome

_SHOWN_DIGITS = 12


def tell_all(entries: Iterable[tuple[int, round_events.Event]]) -> list[str]:
    """Returns the story of a round, a sentence for each event.

    Ends of sessions that follow each other are told together: a cohort of a thousand is one sentence, not a thousand.

    Args:
        entries: Unix milliseconds and what happened then, in order.
    """
    story: list[str] = []
    evaluates = False
    for at, event, until in _gathered(entries):
        if isinstance(event, round_events.Opened):
            evaluates = event.kind is round_events.Kind.EVALUATE
        sentence = tell(at, event)
        if evaluates and isinstance(event, round_events.Committed):
            sentence = f"{_moment(at)}: {_evaluated(event)}"
        story.append(sentence if until == at else f"{sentence} The last at {_moment(until)}.")
    return story


def _gathered(entries: Iterable[tuple[int, round_events.Event]]) -> Iterator[tuple[int, round_events.Event, int]]:
    """Yields events with their first and last moment; neighbouring ends of sessions of one attempt become one event."""
    held: tuple[int, round_events.SessionsFinished, int] | None = None
    for at, event in entries:
        if held is not None and isinstance(event, round_events.SessionsFinished) and event.attempt == held[1].attempt:
            together = replace(held[1], finished=(*held[1].finished, *event.finished))
            held = (held[0], together, at)
            continue
        if held is not None:
            yield held
            held = None
        if isinstance(event, round_events.SessionsFinished):
            held = (at, event, at)
        else:
            yield at, event, at
    if held is not None:
        yield held


def tell(at: int, event: round_events.Event) -> str:
    """Returns an event as a sentence that begins with its moment.

    Args:
        at: Unix milliseconds.
        event: What happened.

    Example:
        >>> tell(1000, round_events.ReportingEnded(EndedBecause.GOAL_MET, 100))
        '1970-01-01 00:00:01.000 UTC: Reporting ended because the report goal was met: 100 reports were acknowledged.'
    """
    return f"{_moment(at)}: {_sentence(at, event)}"


def _moment(at: int) -> str:
    moment = datetime.fromtimestamp(at / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    return f"{moment}.{at % 1000:03} UTC"


def _sentence(at: int, event: round_events.Event) -> str:  # noqa: PLR0911 - one return for each event
    match event:
        case round_events.Opened():
            return _opened(event)
        case round_events.Assigned():
            targets = list(dict.fromkeys(part.aggregator for part in event.parts)) or [event.aggregator]
            return (
                f"Of {_count(event.waiting, 'device')} that waited, {len(event.slots)} were drawn and assigned; they "
                f"report to {' and '.join(targets)}."
            )
        case round_events.GroupsMoved():
            return f"Part {event.part} of the sum groups was taken over by {event.aggregator}."
        case round_events.SessionsFinished():
            counted = Counter(finish.outcome for finish in event.finished)
            ended = ", ".join(f"{counted[outcome]} {_TOLD[outcome]}" for outcome in Outcome if outcome in counted)
            return f"{_count(len(event.finished), 'session')} of attempt {event.attempt} ended: {ended}."
        case round_events.ReportingEnded():
            reports = _count(event.reports, "report")
            was = "was" if event.reports == 1 else "were"
            return f"Reporting ended because {_BECAUSE[event.because]}: {reports} {was} acknowledged."
        case round_events.GroupsClosed():
            voided = f"; {_count(event.voided, 'report')} became void" if event.voided else ""
            groups = _count(len(event.groups), "sum group")
            return f"{groups} closed with {_count(event.reports, 'report')}{voided}."
        case round_events.Committed():
            return (
                f"Committed checkpoint {_short(event.checkpoint.digest)} ({event.checkpoint.size} bytes) out of "
                f"{_count(event.reports, 'report')} of weight {event.weight}; the mean update has norm "
                f"{event.update_norm:.6g}."
            )
        case round_events.Abandoned():
            wait = max(event.retry_at - at, 0) / 1000
            return f"Abandoned because {event.reason}; the next attempt may begin {wait:g} s later."


def _evaluated(event: round_events.Committed) -> str:
    return (
        f"Evaluated checkpoint {_short(event.checkpoint.digest)} by {_count(event.reports, 'report')} of weight "
        f"{event.weight}; it stays as it is."
    )


def _opened(event: round_events.Opened) -> str:
    terms = event.terms
    rounds = "evaluation round" if event.kind is round_events.Kind.EVALUATE else "round"
    expected = f" Of those assigned, {event.report_share:.0%} were expected to report." if event.report_share else ""
    return (
        f"Attempt {event.attempt} of {rounds} {event.number} opened from checkpoint {_short(event.checkpoint.digest)}: "
        f"{_count(terms.report_goal, 'report')} wanted of up to {_count(terms.cohort_size, 'device')}, at least "
        f"{terms.minimum_reports} needed."
    ) + expected


_BECAUSE = {
    EndedBecause.GOAL_MET: "the report goal was met",
    EndedBecause.ALL_FINISHED: "all sessions had ended",
    EndedBecause.WINDOW_ENDED: "the reporting window ended",
    EndedBecause.GROUPS_CLOSED: "all members of its groups had reported, or were lost",
}

_TOLD = {
    Outcome.UPLOADED: "uploaded",
    Outcome.LOCAL_FAILED: "failed on the device",
    Outcome.NOT_ELIGIBLE: "had too few examples",
    Outcome.LOCAL_TIMEOUT: "worked too long",
    Outcome.UPLOAD_TIMEOUT: "uploaded too slowly",
    Outcome.CANCELLED: "were stopped by app or user",
    Outcome.REFUSED: "refused the assignment",
    Outcome.TOO_LATE: "came too late",
}


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _short(digest: bytes) -> str:
    return digest.hex()[:_SHOWN_DIGITS]
