"""The Coordinator service: what devices speak to first and last.

Rules: a rejection is an answer, not an error; every answer says when to come back. What a device claims is checked
before anything of it is looked at: who it is and that the call is new (`speakers`), then the token of its session. A
check-in that was made before is told where the device has its place, and takes none.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import grpc

from fedrecon.coordinator import ledger
from fedrecon.coordinator.answers import Answer, Drawn, Ineligible, KeepWaiting, NoTask, NotDrawn
from fedrecon.coordinator.assignments import common_assignment, make_assignment
from fedrecon.coordinator.choosing import Choice, Misfit, choose, misfit_of
from fedrecon.coordinator.offers import offer, place_held, windows_of
from fedrecon.coordinator.pacing import Window, Windows, idle
from fedrecon.coordinator.population import hash_of
from fedrecon.coordinator.roster import Roster
from fedrecon.coordinator.round_events import Finish, Outcome
from fedrecon.coordinator.round_state import Phase, Round
from fedrecon.coordinator.rounds import fate_of
from fedrecon.coordinator.runner import Runner
from fedrecon.coordinator.selection import Candidate
from fedrecon.coordinator.speakers import Speakers, replayed
from fedrecon.coordinator.tasks import State
from fedrecon.coordinator.tracing import attempt_of
from fedrecon.ops.boundary import Refusal
from fedrecon.ops.session_calls import require_proof
from fedrecon.ops.tokens import BadTokenError, verify_token
from fedrecon.ops.traces import span, tell_span
from fedrecon.v1 import coordinator_pb2
from fedrecon.v1.common_pb2 import RetryWindow, RetryWindows
from fedrecon.v1.coordinator_pb2 import (
    Assignment,
    CheckInRequest,
    CheckInResponse,
    FinishSessionRequest,
    FinishSessionResponse,
    HandOverRequest,
    HandOverResponse,
    LocateRequest,
    LocateResponse,
    Rejection,
    RejectionReason,
    ReportFate,
    SessionOutcome,
    Ticket,
)
from fedrecon.v1.coordinator_pb2_grpc import CandidatesServicer, CoordinatorServicer

CHECK_IN = "/fedrecon.v1.Coordinator/CheckIn"
FINISH_SESSION = "/fedrecon.v1.Coordinator/FinishSession"
LOCATE = "/fedrecon.v1.Coordinator/Locate"
LONGEST_WAIT_MILLISECONDS = 30_000
ANSWER_MARGIN_MILLISECONDS = 1_000
"""Time kept back so that an answer arrives before the caller's deadline."""

_LONGEST_POPULATION = 200
_LONGEST_SHAPE = 64
_ASSIGNMENTS_KEPT = 16
_SHAPE_CHARACTERS = frozenset("-v[]+^!#")
_RECOVERING_RETRY = (500, 3_000)
_OUTCOME_PREFIX = "SESSION_OUTCOME_"
_COUNTED_AS = {
    coordinator_pb2.REJECTION_REASON_NO_TASK: "no_task",
    coordinator_pb2.REJECTION_REASON_FULL: "full",
    coordinator_pb2.REJECTION_REASON_INELIGIBLE: "ineligible",
    coordinator_pb2.REJECTION_REASON_VERSION: "version",
    coordinator_pb2.REJECTION_REASON_FLOORS: "ineligible",
}


class CoordinatorService(CoordinatorServicer):
    """Answers devices.

    Args:
        roster: The tasks.
        idle_milliseconds: When devices without a task come back.
        speakers: Judges who speaks.
        proves_sessions: Whether calls of a session must be proved by its key.
    """

    def __init__(self, roster: Roster, idle_milliseconds: int, speakers: Speakers, *, proves_sessions: bool) -> None:
        self._roster = roster
        self._speakers = speakers
        self._proves_sessions = proves_sessions
        self._idle = idle(idle_milliseconds)
        self._offers: Counter[str] = Counter()
        self._measures = roster.around.measures
        self._assignments: dict[tuple[str, int, int], Assignment] = {}

    async def CheckIn(self, request: CheckInRequest, context: Any) -> CheckInResponse:  # noqa: N802 - the contract's name
        """Offers a device to a task of its population. See `coordinator.proto`."""
        _check_population(request)
        try:
            is_new = await self._speakers.hear(CHECK_IN, request, request.credentials)
        except Refusal as refusal:
            if refusal.code is not grpc.StatusCode.RESOURCE_EXHAUSTED:  # it may be who it says, only too often
                self._measures.note_check_in("unauthenticated")
            raise
        around, device_key = self._roster.around, request.credentials.device_key
        device = hash_of(around.key, device_key)
        self._measures.note_version(request.sdk_version, device, around.clock.now_milliseconds())
        runners = self._roster.of_population(request.population)
        running = [runner for runner in runners if runner.book.task.state is State.RUNNING]
        if not running:
            if not self._roster.is_settled:
                raise _recovering()
            return self._rejected(
                coordinator_pb2.REJECTION_REASON_NO_TASK,
                f"the population {request.population!r} has no running task",
                self._idle,
                0,
            )
        minimum_examples = min(runner.spec.work.minimum_examples for runner in running)
        misfits = [misfit_of(request, runner.spec, runner.adoption.prepared_for()) for runner in running]
        fitting = [runner for runner, misfit in zip(running, misfits, strict=True) if misfit is None]
        if not fitting:
            misfit = next(each for each in misfits if isinstance(each, Misfit))
            return self._rejected(misfit.reason, misfit.why, self._idle, minimum_examples)
        if not is_new:
            held = next((held for each in fitting if (held := place_held(each, device_key)) is not None), None)
            if held is None:
                raise replayed()
            runner, place = held
            return self._answered(runner, place, windows_of(runner, device_key), minimum_examples, device_key)
        runner = self._choose(fitting)
        patience, began = _patience_milliseconds(context), around.clock.now_milliseconds()
        answer = await offer(runner, device_key, request.ticket, patience)
        if isinstance(answer, Drawn):
            tell_span("check-in", attempt_of(answer.attempt), began, around.clock.now_milliseconds())
        return self._answered(runner, answer, windows_of(runner, device_key), minimum_examples, device_key)

    async def FinishSession(  # noqa: N802 - the contract's name
        self, request: FinishSessionRequest, context: Any
    ) -> FinishSessionResponse:
        """Ends a session and tells what became of its report. See `coordinator.proto`."""
        del context
        key = request.round
        if request.outcome == coordinator_pb2.SESSION_OUTCOME_UNSPECIFIED:
            raise _refuse("OUTCOME_REQUIRED", "The session's outcome is not stated.", "State how it ended.")
        self._prove(FINISH_SESSION, request)
        if len(request.shape) > _LONGEST_SHAPE or not _SHAPE_CHARACTERS.issuperset(request.shape):
            raise _refuse(
                "BAD_SHAPE",
                "The session's shape is not one.",
                f"Use at most {_LONGEST_SHAPE} of {''.join(sorted(_SHAPE_CHARACTERS))}.",
            )
        runner, follower = self._roster.ready_runner(key.task), self._roster.runners.get(key.task)
        if runner is None and follower is not None:
            return await self._pass_on(follower, request)
        attempt = await self._attempt(runner, request)
        if runner is not None and request.session not in attempt.finishes:
            outcome = Outcome(SessionOutcome.Name(request.outcome).removeprefix(_OUTCOME_PREFIX))
            finish = Finish(request.session, outcome, request.shape)
            with span("finish", attempt_of(attempt), outcome=outcome.value.lower()):
                await runner.endings.keep(key.round, key.attempt, finish)
            self._measures.note_kind(request.kind, outcome)
            attempt = await self._attempt(runner, request)
        fate = ReportFate.Value(f"REPORT_FATE_{fate_of(attempt, request.session).value}")
        windows = (
            self._idle
            if runner is None or runner.book.task.has_ended
            else windows_of(runner, request.credentials.device_key)
        )
        return FinishSessionResponse(fate=fate, retry_windows=_on_wire(windows))

    async def Locate(self, request: LocateRequest, context: Any) -> LocateResponse:  # noqa: N802
        """Tells where a session's sum lies now. See `coordinator.proto`."""
        del context
        self._prove(LOCATE, request)
        runner = self._roster.runners.get(request.round.task)
        attempt = await self._attempt(runner if runner is not None and runner.can_answer else None, request)
        return LocateResponse(aggregator=attempt.parts[request.round.part].aggregator)

    def _prove(self, method: str, request: FinishSessionRequest | LocateRequest) -> None:
        """Returns if a session's token says that it was assigned, and its MAC that this device speaks.

        Raises:
            Refusal: It was not, or another one does.
        """
        try:
            # Without a moment: who comes after the token's expiry still learns what became of the report.
            issuer = verify_token(
                self._roster.around.token_keys, request.round, request.session, request.round_token, 0
            )
        except BadTokenError as error:
            raise Refusal(
                grpc.StatusCode.PERMISSION_DENIED,
                "BAD_ROUND_TOKEN",
                f"The session is not known: {error}.",
                "Send session, round and token as the assignment gave them.",
            ) from error
        require_proof(
            issuer,
            method,
            request,
            request.credentials,
            request.round,
            request.session,
            is_required=self._proves_sessions,
        )

    async def _pass_on(self, follower: Runner, request: FinishSessionRequest) -> FinishSessionResponse:
        """Lets the coordinator that leads the task end a session: only it writes the task's rounds."""
        around = self._roster.around
        leader = follower.book.task.leader if follower.is_following.is_set() else ""
        if leader in {"", around.target}:
            raise _recovering()
        try:
            return await around.peers.finish(leader, request)
        except ConnectionError as error:
            raise _recovering() from error

    async def _attempt(self, runner: Runner | None, request: FinishSessionRequest | LocateRequest) -> Round:
        """Finds a session's attempt: a genuine token names only what was assigned, unless the journal was lost."""
        key = request.round
        if runner is None:
            found = await ledger.load_round(self._roster.around.journal, key.task, key.round)
        else:
            found = await runner.book.round_at(key.round)
        if not (
            1 <= key.attempt <= len(found.attempts) and found.attempts[key.attempt - 1].has_session(request.session)
        ):
            raise Refusal(
                grpc.StatusCode.NOT_FOUND,
                "UNKNOWN_SESSION",
                "No such session was assigned in this round, or the round has been over for too long.",
                "Check in again.",
            )
        return found.attempts[key.attempt - 1]

    def _choose(self, fitting: list[Runner]) -> Runner:
        choices = [Choice(runner.name, _gathers(runner), runner.spec.traffic_weight) for runner in fitting]
        chosen = choose(choices, self._offers)
        self._offers[chosen] += 1
        return next(runner for runner in fitting if runner.name == chosen)

    def _answered(
        self, runner: Runner, answer: Answer, windows: Windows, minimum_examples: int, device_key: bytes
    ) -> CheckInResponse:
        match answer:
            case Drawn(attempt, slot):
                self._measures.note_check_in("assigned", runner.name)
                self._measures.note_retry(windows.accepted)
                around = runner.around
                common = self._common(runner, attempt)
                assignment = make_assignment(
                    around.token_keys.newest, common, attempt, slot, device_key, around.blobs_target, runner.book.now()
                )
                return CheckInResponse(
                    assignment=assignment, retry_windows=_on_wire(windows), minimum_examples=minimum_examples
                )
            case KeepWaiting(ticket, milliseconds):
                self._measures.note_check_in("waiting", runner.name)
                return CheckInResponse(
                    ticket=Ticket(ticket=ticket, wait_milliseconds=milliseconds),
                    retry_windows=_on_wire(windows),
                    minimum_examples=minimum_examples,
                )
            case NotDrawn(why):
                reason = coordinator_pb2.REJECTION_REASON_FULL
            case Ineligible(why):
                reason = coordinator_pb2.REJECTION_REASON_INELIGIBLE
            case NoTask(why):
                reason, windows = coordinator_pb2.REJECTION_REASON_NO_TASK, self._idle
        return self._rejected(reason, why, windows, minimum_examples, runner.name)

    def _common(self, runner: Runner, attempt: Round) -> Assignment:
        """Returns what all devices of an attempt are told; kept for the newest attempts."""
        which = runner.name, attempt.number, attempt.attempt
        if which not in self._assignments:
            prepared = runner.adoption.prepared_for(attempt)
            made = common_assignment(prepared, attempt)
            self._assignments = dict([*self._assignments.items(), (which, made)][-_ASSIGNMENTS_KEPT:])
        return self._assignments[which]

    def _rejected(
        self, reason: RejectionReason.ValueType, why: str, windows: Windows, minimum_examples: int, task: str = ""
    ) -> CheckInResponse:
        self._measures.note_check_in(_COUNTED_AS[reason], task)
        self._measures.note_retry(windows.rejected)
        return CheckInResponse(
            rejection=Rejection(reason=reason, message=why),
            retry_windows=_on_wire(windows),
            minimum_examples=minimum_examples,
        )


class CandidatesService(CandidatesServicer):
    """Answers other coordinators.

    Args:
        roster: The tasks.
    """

    def __init__(self, roster: Roster) -> None:
        self._roster = roster

    async def HandOver(self, request: HandOverRequest, context: Any) -> HandOverResponse:  # noqa: N802 - as above
        """Takes over who waits at another coordinator. See `coordinator.proto`."""
        del context
        runner = self._roster.ready_runner(request.task)
        if runner is None:
            return HandOverResponse(leads=False)
        candidates = [Candidate(each.priority, each.device_key) for each in request.candidates]
        runner.handed_over.put(request.replica, candidates, runner.book.now())
        return HandOverResponse(leads=True)


def _check_population(request: CheckInRequest) -> None:
    if not 1 <= len(request.population) <= _LONGEST_POPULATION:
        raise _refuse("POPULATION_REQUIRED", "The population is missing or too long.", "Name the app's population.")


def _patience_milliseconds(context: Any) -> int:
    remaining = context.time_remaining()
    left = LONGEST_WAIT_MILLISECONDS if remaining is None else int(remaining * 1000) - ANSWER_MARGIN_MILLISECONDS
    return max(min(left, LONGEST_WAIT_MILLISECONDS), 0)


def _gathers(runner: Runner) -> bool:
    attempt = runner.book.attempt
    return attempt is None or attempt.phase is not Phase.REPORTING


def _on_wire(windows: Windows) -> RetryWindows:
    def window(each: Window) -> RetryWindow:
        return RetryWindow(min_milliseconds=each.minimum, max_milliseconds=each.maximum)

    return RetryWindows(accepted=window(windows.accepted), rejected=window(windows.rejected))


def _refuse(reason: str, message: str, advice: str) -> Refusal:
    return Refusal(grpc.StatusCode.INVALID_ARGUMENT, reason, message, advice)


def _recovering() -> Refusal:
    return Refusal(
        grpc.StatusCode.UNAVAILABLE,
        "RECOVERING",
        "This coordinator is reading its journal, or another one leads the task.",
        "Try again in a moment.",
        retry_milliseconds=_RECOVERING_RETRY,
    )
