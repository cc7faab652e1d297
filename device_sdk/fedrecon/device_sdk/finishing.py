"""The end of a session: how it is told to the coordinator, and to the app.

Part of the core: everything here yields requests. Every assignment ends with `FinishSession`, also the one of a process
that died: then the report may be in the sum already, and the aggregator is asked.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace

from fedrecon.device_sdk.calling import Line, Steps
from fedrecon.device_sdk.delivery import Session
from fedrecon.device_sdk.errors import (
    FedreconError,
    FloorsNotMetError,
    StoppedError,
    TooFewExamplesError,
    TooLateError,
    UnreachableError,
)
from fedrecon.device_sdk.participation import Fate, Outcome, Participation
from fedrecon.device_sdk.requests import FINISH_SESSION, UPLOAD_STATUS
from fedrecon.device_sdk.unfinished import ACKNOWLEDGED, BEGUN, Unfinished
from fedrecon.v1 import coordinator_pb2
from fedrecon.v1.aggregator_pb2 import UploadStatusRequest
from fedrecon.v1.common_pb2 import RetryWindow, RetryWindows
from fedrecon.v1.coordinator_pb2 import FinishSessionRequest, SessionOutcome

_FATES = {
    coordinator_pb2.REPORT_FATE_PENDING: Fate.PENDING,
    coordinator_pb2.REPORT_FATE_COUNTED: Fate.COUNTED,
    coordinator_pb2.REPORT_FATE_VOID: Fate.VOID,
}


def finish(
    coordinator: str,
    session: Session,
    outcome: Outcome,
    ending: SessionOutcome.ValueType,
    windows: RetryWindows,
    failure: FedreconError | None = None,
) -> Steps[Participation]:
    """Tells the coordinator how a session ended, and the app what became of it."""
    session.line.deadline = None
    reason, message = ("", "") if failure is None else (failure.reason, str(failure))
    fate = Fate.NONE
    request = FinishSessionRequest(
        credentials=session.credentials,
        session=session.assignment.session,
        round=session.assignment.round,
        round_token=session.assignment.round_token,
        outcome=ending,
        shape=session.shape,
        kind=session.kind,
    )
    try:
        finished = yield from session.line.call(coordinator, FINISH_SESSION, request)
    except FedreconError as error:
        message = message or f"the report was acknowledged, but the session could not be ended: {error}"
        fate = Fate.PENDING if outcome is Outcome.UPLOADED else Fate.NONE
    else:
        windows = finished.retry_windows if finished.HasField("retry_windows") else windows
        fate = _FATES.get(finished.fate, Fate.NONE)
    participation = Participation(
        outcome,
        reason,
        message,
        seconds_within(milliseconds(windows.accepted), session.line),
        task=session.assignment.round.task,
        round=session.assignment.round.round,
        attempt=session.assignment.round.attempt,
        session=session.assignment.session.hex(),
        shape=session.shape,
        fate=fate,
        receipt=session.line.receipt,
    )
    if session.report is None:
        return participation
    return replace(participation, examples=session.report.examples, unknown_keys=session.report.unknown_keys)


def give_up(coordinator: str, session: Session, unfinished: Unfinished, windows: RetryWindows) -> Steps[Participation]:
    """Ends a session without its work, unless the report is in the sum already."""
    is_acknowledged = unfinished.progress == ACKNOWLEDGED
    if not is_acknowledged and unfinished.group:
        question = UploadStatusRequest(proof=session.proof(), group=unfinished.group)
        with contextlib.suppress(FedreconError):  # who cannot tell knows nothing of a report
            status = yield from session.line.call(unfinished.aggregator, UPLOAD_STATUS, question)
            is_acknowledged = status.acknowledged
    if is_acknowledged:
        session.shape = "-v[]+^"
        return (
            yield from finish(coordinator, session, Outcome.UPLOADED, SessionOutcome.SESSION_OUTCOME_UPLOADED, windows)
        )
    session.shape = "-!" if unfinished.progress == BEGUN else "-v[]+!"
    died = StoppedError("the process died during a session, which was given up", reason="PROCESS_DIED")
    outcome, ending = ending_of(died, session.shape)
    return (yield from finish(coordinator, session, outcome, ending, windows, died))


def ending_of(error: FedreconError, shape: str) -> tuple[Outcome, SessionOutcome.ValueType]:
    """Returns how an error ends a session: for the app, and for the coordinator."""
    timeout = (
        coordinator_pb2.SESSION_OUTCOME_UPLOAD_TIMEOUT
        if "]" in shape
        else coordinator_pb2.SESSION_OUTCOME_LOCAL_TIMEOUT
    )
    match error:
        case FloorsNotMetError():
            ending = Outcome.REFUSED, coordinator_pb2.SESSION_OUTCOME_REFUSED
        case TooFewExamplesError():
            ending = Outcome.TOO_FEW_EXAMPLES, coordinator_pb2.SESSION_OUTCOME_NOT_ELIGIBLE
        case TooLateError(reason="TOO_LATE"):  # its own clock says so, no service
            ending = Outcome.TOO_LATE, timeout
        case TooLateError():
            ending = Outcome.TOO_LATE, coordinator_pb2.SESSION_OUTCOME_TOO_LATE
        case UnreachableError():
            ending = Outcome.UNREACHABLE, timeout
        case StoppedError():
            ending = Outcome.STOPPED, coordinator_pb2.SESSION_OUTCOME_CANCELLED
        case _:
            ending = Outcome.FAILED, coordinator_pb2.SESSION_OUTCOME_LOCAL_FAILED
    return ending


def milliseconds(window: RetryWindow) -> tuple[int, int] | None:
    """Returns a window's limits, or None where the message is empty."""
    if not window.max_milliseconds:
        return None
    return window.min_milliseconds, window.max_milliseconds


def seconds_within(window: tuple[int, int] | None, line: Line) -> float | None:
    """Returns a moment drawn uniformly from a retry window, in seconds from now."""
    if window is None:
        return None
    earliest, latest = window
    return (earliest + line.fraction() * max(latest - earliest, 0)) / 1000
