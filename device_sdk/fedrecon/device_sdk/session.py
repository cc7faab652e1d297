"""The core of a participation: check in, fetch, compute, report, finish.

A generator without I/O: it yields what it wants done (`requests`) and is resumed with answers or errors; network,
clock and randomness are passed in. The order of steps is that of Bonawitz et al. 2019 ("Towards federated learning at
scale", table 1), whose one-character shapes it reports. Every draw of `entropy` for the seeds comes first, in the
order initial, split, rounding: 32 bytes each.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

from fedrecon.device_sdk.blob_cache import BlobCache
from fedrecon.device_sdk.calling import Line, Patience, Steps
from fedrecon.device_sdk.delivery import Session, deliver, deliver_masked
from fedrecon.device_sdk.errors import (
    CallFailedError,
    FedreconError,
    TooLargeError,
    TooLateError,
    UnusablePlanError,
)
from fedrecon.device_sdk.examples import ExampleSource, OutcomeSource
from fedrecon.device_sdk.finishing import ending_of, finish, give_up, milliseconds, seconds_within
from fedrecon.device_sdk.floors import Floors, verify_assignment
from fedrecon.device_sdk.kinds import ClassName, kind_of
from fedrecon.device_sdk.masking import Masking
from fedrecon.device_sdk.material import Report, fetch_material, make_report
from fedrecon.device_sdk.neighbourhood import MaskTerms
from fedrecon.device_sdk.participation import Outcome, Participation
from fedrecon.device_sdk.receipts import Departure
from fedrecon.device_sdk.requests import CHECK_IN, LOCATE, Compute, Sleep
from fedrecon.device_sdk.restricting import verify_contributors
from fedrecon.device_sdk.runtime import Seeds
from fedrecon.device_sdk.speaking import Speaker
from fedrecon.device_sdk.unfinished import BEGUN, Unfinished
from fedrecon.v1 import task_pb2
from fedrecon.v1.common_pb2 import Credentials, RetryWindow, RetryWindows
from fedrecon.v1.coordinator_pb2 import (
    Assignment,
    CheckInRequest,
    CheckInResponse,
    LocateRequest,
    RejectionReason,
    SessionOutcome,
)
from fedrecon.wire import manifests
from fedrecon.wire.keystream import SEED_BYTES

SDK_VERSION = "0.1.0"
CHECK_IN_SECONDS = 45.0  # the coordinator waits up to 30 s for its selection
LOCATE_SECONDS = 5.0
SHORTEST_TICKET_SECONDS = 1.0  # nobody makes a device call without end
HELD_COPIES = 3  # of a checkpoint: its file, its arrays, the report
LONGEST_TICKET_SECONDS = 3600.0  # whoever asks earlier than the ticket says keeps its place

# Refusals that mean: the round or the group went on without this report.
LATE_REASONS = frozenset({"GROUP_FULL", "ROUND_CLOSED", "TOKEN_EXPIRED", "UNKNOWN_GROUP", "UNKNOWN_ROUND"})


@dataclass(frozen=True, slots=True)
class Circumstances:
    """All that a participation depends on.

    Attributes:
        population: the app's population.
        floors: what the app insists on.
        speaker: who speaks; it keeps the newest token, whatever becomes of the participation.
        examples: the app's examples.
        minimum_examples: what the coordinator last said; 0 if it never spoke.
        cache: blobs that are here already.
        entropy: gives that many random bytes.
        clock: seconds; only differences matter.
        wall_clock: Unix seconds, for the receipt.
        patience: how long to go on trying.
        memory_bytes: how much a participation may hold; None: any amount.
        unfinished: the session of a process that died before it ended.
        keep_unfinished: keeps a session on disk while it lasts; None where nothing is kept.
        departures: takes every departure before it happens; may begin with those of a process that died.
        device_class: what the app tells of how well equipped the device is; None: nothing, nor of its examples.
    """

    population: str
    floors: Floors
    speaker: Speaker
    examples: ExampleSource
    minimum_examples: int
    cache: BlobCache
    entropy: Callable[[int], bytes]
    clock: Callable[[], float]
    wall_clock: Callable[[], float]
    patience: Patience
    memory_bytes: int | None = None
    unfinished: Unfinished | None = None
    keep_unfinished: Callable[[Unfinished], None] | None = None
    departures: list[Departure] = field(default_factory=list)
    device_class: ClassName | None = None


@dataclass(frozen=True, slots=True)
class Ending:
    """What the core returns.

    Attributes:
        participation: for the app.
        minimum_examples: to be remembered for the next time.
        assignment: the assignment whose plan and checkpoint are in the cache; None if there are none.
    """

    participation: Participation
    minimum_examples: int
    assignment: Assignment | None = None


def take_part(circumstances: Circumstances) -> Steps[Ending]:
    """Takes part once, from check-in to the end of the session.

    Args:
        circumstances: everything that it depends on.

    Returns:
        How it ended. Failures of network, services and plans are outcomes; only mistakes of the app raise.
    """
    known = circumstances
    seeds = Seeds(known.entropy(SEED_BYTES), known.entropy(SEED_BYTES), known.entropy(SEED_BYTES))
    line = Line(known.clock, known.wall_clock, known.entropy, known.patience, known.cache, departures=known.departures)
    if known.unfinished is not None:
        return (yield from _go_on(known, known.unfinished, line, seeds))
    count = known.examples.count()
    if count < max(known.minimum_examples, 1):
        message = f"{count} examples; the tasks of {known.population!r} need {max(known.minimum_examples, 1)}"
        return Ending(Participation(Outcome.TOO_FEW_EXAMPLES, "TOO_FEW_EXAMPLES", message), known.minimum_examples)
    try:
        answer = yield from _check_in(known, line)
    except FedreconError as error:
        outcome, _ = ending_of(error, "")
        window = error.retry_milliseconds if isinstance(error, CallFailedError) else None
        participation = Participation(
            outcome, error.reason, str(error), seconds_within(window, line), receipt=line.receipt
        )
        return Ending(participation, known.minimum_examples)
    if answer.WhichOneof("answer") != "assignment":
        rejection = answer.rejection
        participation = Participation(
            Outcome.REJECTED,
            _word_for(rejection.reason),
            rejection.message,
            seconds_within(milliseconds(answer.retry_windows.rejected), line),
            receipt=line.receipt,
        )
        return Ending(participation, answer.minimum_examples)
    session = _session(known, answer.assignment, line)
    line.deadline = known.clock() + answer.assignment.report_within_milliseconds / 1000
    accepted = answer.retry_windows.accepted
    session.unfinished = Unfinished(
        answer.assignment.SerializeToString(),
        known.wall_clock(),
        retry_milliseconds=(accepted.min_milliseconds, accepted.max_milliseconds),
    )
    participation = yield from _work(known, session, seeds, answer.retry_windows)
    assignment = answer.assignment if session.material is not None else None
    return Ending(participation, answer.minimum_examples, assignment)


def _session(known: Circumstances, assignment: Assignment, line: Line) -> Session:
    line.session_key, line.aggregator = assignment.session_key, assignment.aggregator
    credentials = Credentials(device_key=known.speaker.device_key)
    kind = None if known.device_class is None else kind_of(known.device_class, known.examples.count())
    session = Session(assignment, credentials, line, keep=known.keep_unfinished, kind=kind)
    line.find = partial(_find_aggregator, known.speaker.coordinator, session)
    return session


def _find_aggregator(coordinator: str, session: Session) -> Steps[str]:
    """Returns where the coordinator says that a session's sum lies; empty if it does not say."""
    request = LocateRequest(
        credentials=session.credentials,
        session=session.assignment.session,
        round=session.assignment.round,
        round_token=session.assignment.round_token,
    )
    try:
        found = yield from session.line.try_once(coordinator, LOCATE, request, LOCATE_SECONDS)
    except CallFailedError:
        return ""  # the aggregator may come back: it is tried again
    return found.aggregator


def _go_on(known: Circumstances, unfinished: Unfinished, line: Line, seeds: Seeds) -> Steps[Ending]:
    """Ends the session of a process that died: does its work again where that is safe, else gives it up."""
    assignment, now = unfinished.read_assignment(), known.wall_clock()
    session = _session(known, assignment, line)
    session.unfinished, session.is_resumed = unfinished, True
    earliest, latest = unfinished.retry_milliseconds
    windows = RetryWindows(accepted=RetryWindow(min_milliseconds=earliest, max_milliseconds=latest))
    if unfinished.can_resume(now):
        line.deadline = known.clock() + unfinished.seconds_left(now)
        participation = yield from _work(known, session, seeds, windows)
    else:
        participation = yield from give_up(known.speaker.coordinator, session, unfinished, windows)
    return Ending(participation, known.minimum_examples, None if session.material is None else assignment)


def _word_for(reason: RejectionReason.ValueType) -> str:
    """Returns a rejection's stable word; a newer coordinator may have reasons that this version has no word for."""
    if reason not in RejectionReason.values():
        return "REJECTED"
    return RejectionReason.Name(reason).removeprefix("REJECTION_REASON_")


def _check_in(known: Circumstances, line: Line) -> Steps[CheckInResponse]:
    """Checks in, and keeps its place while the selection is open."""
    ticket = b""
    while True:
        request = CheckInRequest(
            population=known.population,
            sdk_version=SDK_VERSION,
            plan_formats=manifests.PLAN_FORMATS,
            floors=known.floors.message(),
            ticket=ticket,
        )
        answer = yield from known.speaker.call(line, CHECK_IN, request, CHECK_IN_SECONDS)
        if answer.WhichOneof("answer") != "ticket":
            return answer
        ticket = answer.ticket.ticket
        wait = answer.ticket.wait_milliseconds / 1000
        yield Sleep(max(SHORTEST_TICKET_SECONDS, min(wait, LONGEST_TICKET_SECONDS)))


def _work(known: Circumstances, session: Session, seeds: Seeds, windows: RetryWindows) -> Steps[Participation]:
    """Does what the assignment asks, ends the session, and says how it went."""
    outcome, ending, failure = Outcome.UPLOADED, SessionOutcome.SESSION_OUTCOME_UPLOADED, None
    try:
        yield from _compute_and_report(known, session, seeds)
    except FedreconError as error:
        if not session.is_acknowledged:  # what fails after that is the sum's, not the report's
            outcome, ending = ending_of(error, session.shape)
        failure = error
        session.shape += "#" if outcome is Outcome.TOO_LATE else "!"
    return (yield from finish(known.speaker.coordinator, session, outcome, ending, windows, failure))


def _compute_and_report(known: Circumstances, session: Session, seeds: Seeds) -> Steps[None]:
    verify_assignment(session.assignment, known.floors)
    _verify_size(session.assignment, known.memory_bytes)
    yield from session.mark(BEGUN)
    with _blaming_the_plan():
        session.material = yield from fetch_material(session.assignment, session.line)
    session.shape += "v"
    material, assignment = session.material, session.assignment
    with _blaming_the_plan():
        verify_contributors(
            assignment.layout,
            material.plan.manifest,
            material.row_sets,
            assignment.secure_sum.minimum_group,
            known.floors.minimum_contributors,
        )
    session.shape += "["
    columns = yield Compute(known.examples.columns)  # what the app's own source raises is the app's to hear
    outcomes: Mapping[int, tuple[int, int]] = {}
    if assignment.outcome_versions and isinstance(known.examples, OutcomeSource):
        outcomes = yield Compute(known.examples.outcomes)
    with _blaming_the_plan():
        session.report = yield Compute(lambda: make_report(assignment, material, columns, seeds, outcomes))
    session.shape += "]"
    try:
        if assignment.secure_sum.protocol == task_pb2.SUM_PROTOCOL_TRUSTED:
            yield from deliver(session, session.report.vector)
        else:
            masking = _masking(known, session, session.report)
            yield from deliver_masked(session, session.report.vector, masking)
    except CallFailedError as error:
        if error.reason in LATE_REASONS:
            raise TooLateError(error.message, error.advice, reason=error.reason) from error
        raise


def _verify_size(assignment: Assignment, memory_bytes: int | None) -> None:
    """Raises if what an assignment announces is more than the app allows, before any of it is fetched."""
    named = [assignment.plan, assignment.checkpoint, *assignment.vocabularies.values(), *assignment.row_sets.values()]
    needed = HELD_COPIES * sum(reference.size for reference in named)
    if memory_bytes is not None and needed > memory_bytes:
        raise TooLargeError(
            f"plan, checkpoint and what belongs to them need about {needed >> 20} MiB; "
            f"the app allows {memory_bytes >> 20} MiB"
        )


@contextlib.contextmanager
def _blaming_the_plan() -> Iterator[None]:
    """Makes what plan, checkpoint and task raise by their content an outcome: whoever wrote them, the app did not."""
    try:
        yield
    except FedreconError:
        raise
    except (ArithmeticError, LookupError, MemoryError, RecursionError, TypeError, ValueError) as error:
        raise UnusablePlanError(f"the plan does not run here: {type(error).__name__}: {error}") from error


def _masking(known: Circumstances, session: Session, report: Report) -> Masking:
    """Returns a session's part in a secure sum."""
    assignment = session.assignment
    terms = MaskTerms(
        round_key=assignment.round,
        session=assignment.session,
        device_key=known.speaker.device_key,
        kind=assignment.kind,
        plan_digest=assignment.plan.digest,
        checkpoint_digest=assignment.checkpoint.digest,
        fixed_point=report.fixed_point,
        minimum_group=assignment.secure_sum.minimum_group,
    )
    return Masking(known.entropy, known.speaker.sign, known.floors.minimum_group, terms)
