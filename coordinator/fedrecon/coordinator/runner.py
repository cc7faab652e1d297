"""One task at work: holds its lease, replays its journal, drives its rounds.

Rules:
- Persist, then act: an event is kept under the task's lease before any of its effects is performed.
- Whatever goes wrong with the journal (somebody else wrote, it is away, the lease is lost) ends in one place:
  everything but the waiting devices is read again, and `rounds.resume` says what to take up. There is no other way
  to recover.
- Work with the aggregator runs beside: its result is an event like any other, and one that comes too late is refused by
  the round itself.
- A task that has ended stays here for as long as devices may still ask what became of their reports.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Coroutine
from dataclasses import replace
from functools import partial
from typing import Any

from fedrecon.coordinator import round_events, rounds, serving, tasks
from fedrecon.coordinator.accounting import AccountantMissing, epsilon_after
from fedrecon.coordinator.adoption import Adoption
from fedrecon.coordinator.aggregators import OpenedPart
from fedrecon.coordinator.answers import NOT_DRAWN, Answer, Drawn, NoTask, NotDrawn
from fedrecon.coordinator.assignments import mark_of
from fedrecon.coordinator.book import RENEW_MILLISECONDS, Book
from fedrecon.coordinator.drawing import Drawing, Rules
from fedrecon.coordinator.endings import Endings
from fedrecon.coordinator.following import Following
from fedrecon.coordinator.handing_over import HandedOver
from fedrecon.coordinator.over_selection import learned_share
from fedrecon.coordinator.parting import PartSize, part_sizes, places
from fedrecon.coordinator.plausibility import doubt
from fedrecon.coordinator.population import Census
from fedrecon.coordinator.round_events import GroupsMoved, IllegalEvent, Kind, Opened, Part, Slot, Terms
from fedrecon.coordinator.round_state import Round, Seen
from fedrecon.coordinator.specs import kind_of, tells_spread, terms_of
from fedrecon.coordinator.sum_requests import (
    Progress,
    committed_of,
    group_milliseconds,
    merge_request,
    open_request,
)
from fedrecon.coordinator.sums import SumsAway, SumsRefused
from fedrecon.coordinator.surroundings import Surroundings
from fedrecon.coordinator.tasks import AttemptAbandoned, CheckpointCommitted, CheckpointEvaluated, State, likeness_of
from fedrecon.coordinator.timetable import NEVER, has_reached_its_end, is_held, may_open, next_instant
from fedrecon.coordinator.upkeep import Upkeep
from fedrecon.coordinator.waiting import WaitingRoom
from fedrecon.ops.journal import JournalUnavailable, LeaseLost, StaleWriter
from fedrecon.ops.logs import logger_of
from fedrecon.ops.tokens import SESSION_BYTES
from fedrecon.v1.aggregator_pb2 import OpenRequest
from fedrecon.v1.task_pb2 import SUM_PROTOCOL_SECAGG_PLUS, Privacy, TaskSpec
from fedrecon.wire.digests import digest_of

_ACQUIRE_MILLISECONDS = 250
_AFTER_OUTAGE_MILLISECONDS = 500
_AFTER_CRASH_MILLISECONDS = 10_000
_TAIL_MILLISECONDS = 30_000
_LONGEST_LOOK_MILLISECONDS = 60_000
"""Long waits are cut into parts, so that a clock that was set is noticed within a minute."""


class Runner:
    """Runs one task.

    Args:
        name: The task.
        around: What it works with.

    Attributes:
        book: The task's journal.
        waiting: Devices that wait to be drawn.
        census: What check-ins say of its population.
        reporting_milliseconds: How long reporting took last; 0: not known.
        endings: Ends of sessions on their way into the journal.
        adoption: What its rounds go by; only while `can_answer`.
        is_ready: Set while the lease is held and the journal has been read.
        is_following: Set while another coordinator leads and the journal has been read.
        handed_over: Devices that wait at other coordinators; only while `is_ready`.
    """

    def __init__(self, name: str, around: Surroundings) -> None:
        self.name = name
        self.around = around
        self._replica = secrets.token_bytes(8)
        self.book = Book(name, around.journal, around.clock, f"coordinator/{self._replica.hex()}")
        self.waiting: WaitingRoom[Answer] = WaitingRoom(
            superseded=NotDrawn("a newer check-in of this device took its place"),
            full=NotDrawn("enough devices wait already"),
        )
        self.census = Census()
        self.reporting_milliseconds = 0
        self.is_ready = asyncio.Event()
        self.is_following = asyncio.Event()
        self.handed_over = HandedOver()
        self.endings = Endings()
        self.adoption = Adoption(around.blobs)
        self._following = Following(around, self.book, self.adoption, self.waiting, self._replica)
        self._seen = Seen()
        self._upkeep = Upkeep(around, self.book)
        self._drawing = Drawing(name, around, self.waiting, self.handed_over, self.book.now)
        self._groups_expire_at = 0
        self._spread: tuple[tuple[PartSize, ...], tuple[str, ...]] = ((), ())
        self._gathering_since = 0
        self._shown_sums: int | None = None
        self._woken = asyncio.Event()
        self._beside: set[asyncio.Task[None]] = set()
        self._job: asyncio.Task[None] | None = None
        self._log = logger_of(__name__, task=name)

    @property
    def spec(self) -> TaskSpec:
        """What is asked for; only while `can_answer`."""
        return self.adoption.spec

    @property
    def terms(self) -> Terms:
        """The numbers that the attempt under way goes by, or the next one would if nothing were learned; likewise."""
        attempt = self.book.attempt
        return terms_of(self.spec) if attempt is None else attempt.terms

    @property
    def kind(self) -> Kind:
        """What the round is for that runs, or comes next."""
        attempt = self.book.attempt
        is_open = attempt is not None and not attempt.is_over
        return attempt.kind if attempt is not None and is_open else kind_of(self.spec, self.book.task.number)

    @property
    def seen(self) -> Seen:
        """What memory knows of the attempt under way."""
        return replace(self._seen, waiting=len(self.waiting) + self.handed_over.count(self.book.now()))

    @property
    def can_answer(self) -> bool:
        """Whether devices can be answered here, whoever leads the task."""
        return self.is_ready.is_set() or self.is_following.is_set()

    async def run(self) -> None:
        """Runs the task until it has ended and nobody needs to ask about it any more."""
        try:
            while True:
                try:
                    await self._stand_by()
                    await self._lead()
                except* LeaseLost:
                    self._log.warning("lease lost")
                    self.book.forget_lease()
                except* (StaleWriter, IllegalEvent) as group:
                    self._log.warning("journal read again", why=str(group.exceptions[0])[:200])
                except* JournalUnavailable:
                    self._log.warning("journal away")
                    await self._pause(_AFTER_OUTAGE_MILLISECONDS)
                except* Exception:  # noqa: BLE001 - one broken task must not stop the others
                    self._log.exception("task cannot run")
                    await self._pause(_AFTER_CRASH_MILLISECONDS)
                else:
                    return
        finally:
            self.waiting.answer_all(NoTask("the task does not run here any more"))
            await self.book.release()

    async def _stand_by(self) -> None:
        """Waits for the lease; meanwhile devices are answered as the one that leads decides."""
        try:
            while not await self.book.acquire():
                if not self.is_following.is_set():
                    await self._following.begin()
                    self.is_following.set()
                await self._following.go_on(_ACQUIRE_MILLISECONDS)
                self._seen = Seen(window_ends=self._following.window_ends)
        finally:
            self.is_following.clear()

    async def _lead(self) -> None:
        """Reads the journal, then drives until the task has ended for long enough."""
        await self._take_up()
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                beside = (
                    self._renew(),
                    self._follow_task(),
                    self._keep_endings(),
                    self._upkeep.keep_tidy(),
                    self._upkeep.keep_mark(),
                )
                for work in beside:
                    self._begin(work)
                if (attempt := self.book.attempt) is not None:
                    for effect in rounds.resume(attempt):
                        self._perform(attempt, effect)
                self._show()
                self.is_ready.set()
                await self._drive()
                await self._upkeep.tidy()
                for each in self._beside:
                    each.cancel()
        finally:
            self.is_ready.clear()
            self._shown_sums = None
            self.around.measures.forget_task(self.name)

    async def _take_up(self) -> None:
        await self.book.read()
        await self._upkeep.stop_after_loss()
        await self.adoption.adopt(self.book.task, self.book.attempt)
        await self._upkeep.admit_evaluated()  # whoever led before may have been killed just before it
        if self.around.target and self.book.task.leader != self.around.target:
            await self.book.record_task(tasks.TaskLed(self.around.target))
        self._seen, self._job = Seen(), None

    async def _renew(self) -> None:
        while True:
            await self._pause(RENEW_MILLISECONDS)
            await self.book.renew()

    async def _follow_task(self) -> None:
        while True:
            await self.book.follow_task(_TAIL_MILLISECONDS)
            self._show()
            if self.book.task.state is not State.RUNNING:
                self.waiting.answer_all(NoTask(f"the task is {self.book.task.state}"))
            self._woken.set()

    async def _keep_endings(self) -> None:
        async for number, attempt, finishes in self.endings.batches():
            attempts = (await self.book.round_at(number)).attempts
            if not attempts:
                continue  # it was condensed since its device asked
            known = attempts[attempt - 1]
            fresh = {each.session: each for each in reversed(finishes) if each.session not in known.finishes}
            if fresh:
                await self._record(number, round_events.SessionsFinished(attempt, tuple(fresh.values())))
                self.around.measures.note_finishes(fresh.values(), self.book.now() - known.assigned_at)

    # -- what the moment calls for -----------------------------------------------------------------------------------

    async def _drive(self) -> None:
        while True:
            self._woken.clear()
            if await self._advance(self.book.now()):
                continue
            instant = next_instant(self.book.task, self.book.attempt, self._seen, self.spec)
            if self.book.task.has_ended and self.book.now() >= instant:
                return
            await self._wait_until(instant)

    async def _advance(self, now: int) -> bool:
        """Does what the moment calls for.

        Returns:
            Whether anything was done: then more may be called for.
        """
        task, attempt = self.book.task, self.book.attempt
        if attempt is None or attempt.is_over:
            return await self._advance_between(now)
        if task.has_ended:
            await self._abandon(attempt, f"the task was {task.state}: {task.reason}", now)
            return True
        if attempt.opened.checkpoint != task.checkpoint:
            why = f"another checkpoint became live: that of round {task.live_round}, or one with rows for new items"
            await self._abandon(attempt, why, now)
            return True
        if is_held(task, attempt):
            return False
        match rounds.due(attempt, self.seen, now):
            case None:
                return False
            case rounds.Gather():
                self._begin_window(now)
            case rounds.DrawCohort(size):
                await self._draw(attempt, size, now)
            case round_events.Abandoned(reason):
                await self._abandon(attempt, reason, now)
            case round_events.ReportingEnded() as ended:
                self.reporting_milliseconds = max(now - attempt.assigned_at, 1)
                await self._record(attempt.number, ended)
        return True

    async def _advance_between(self, now: int) -> bool:
        task = self.book.task
        if task.spec != self.adoption.encoded:
            await self.adoption.adopt(task, self.book.attempt)
        if has_reached_its_end(task, self.spec, now):
            await self.book.record_task(tasks.TaskCompleted("its end has come"))
            return True
        if task.has_spent_its_budget:
            await self.book.record_task(tasks.TaskCompleted("its privacy budget is spent"))
            return True
        if not may_open(task, self.spec, now):
            return False
        last = self.book.attempt
        if last is None and task.committed:
            last = (await self.book.round_at(task.committed)).last
        share = 0.0 if last is None else learned_share(last)
        kind = kind_of(self.spec, task.number)
        terms = terms_of(self.spec, share, kind)
        opened = Opened(
            task=self.name,
            number=task.number,
            attempt=task.attempt,
            terms=terms,
            checkpoint=task.checkpoint,
            optimizer_state=task.optimizer_state,
            spec=self.adoption.encoded,
            report_share=share,
            kind=kind,
            clip_norm=task.clip_norm or self.spec.privacy.clip_norm,
            outcome_versions=await self._outcome_versions(kind),
        )
        await self._record(task.number, opened)
        return True

    async def _outcome_versions(self, kind: Kind) -> tuple[int, ...]:
        """Returns the versions whose outcomes a round asks for: those that devices get now."""
        if not tells_spread(self.spec, kind):
            return ()
        served = (await serving.load(self.around.journal, self.name)).recommenders
        return tuple(each.version for each in (served.live, served.canary) if each is not None)

    async def _draw(self, attempt: Round, size: int, now: int) -> None:
        """Draws a cohort, opens groups for it, and keeps it before anybody is told."""
        waited = self.seen.waiting
        # First, since groups expire: nights may pass until enough devices wait that may take part.
        rules = Rules(
            self.spec.eligibility.minimum_separation_milliseconds,
            self.spec.privacy.sampling_rate,
            self.book.task.tree_number,
        )
        drawn = await self._drawing.draw(size, rules)
        if len(drawn) < attempt.terms.minimum_cohort:
            self._begin_window(self.book.now())
            return
        terms = attempt.terms
        lifetime = group_milliseconds(terms)
        if self._groups_expire_at == 0:  # the same for every try, so that the calls stay the same
            self._groups_expire_at = now + lifetime
            self._spread = await self._spread_out(attempt)
        if now + lifetime // 2 > self._groups_expire_at:
            await self._abandon(attempt, "its groups would expire before they are merged", now)
            return
        sizes, targets = self._spread
        requests = [self._open_request(attempt, self._groups_expire_at, *each) for each in enumerate(sizes)]
        try:
            opened = await self.around.aggregators.open(requests, targets)
        except SumsAway as away:
            self._log.warning("aggregator away", why=str(away))
            self._begin_window(self.book.now())
            return
        except SumsRefused as refused:
            await self._abandon(attempt, f"the aggregator refused to open groups: {refused}", self.book.now())
            return
        slots = tuple(
            Slot(secrets.token_bytes(SESSION_BYTES), mark_of(self.around.key, attempt, device), part)
            for device, part in zip(drawn, places(sizes, len(drawn)), strict=True)
        )
        parts = tuple(
            Part(each.aggregator, each.groups, size.cohort_size, size.report_goal)
            for each, size in zip(opened, sizes, strict=True)
        )
        groups = tuple(group for part in parts for group in part.groups)
        expire_at = self._groups_expire_at
        several = parts if len(parts) > 1 else ()
        assigned = round_events.Assigned(slots, waited, groups, parts[0].aggregator, expire_at, several)
        applied = await self._record(attempt.number, assigned)
        for device, slot in zip(drawn, slots, strict=True):
            self.waiting.answer(device, Drawn(applied, slot))
        self.waiting.answer_all(NotDrawn(NOT_DRAWN))

    async def _spread_out(self, attempt: Round) -> tuple[tuple[PartSize, ...], tuple[str, ...]]:
        """Returns the parts of an attempt's groups, and where they are opened: each round begins at the next one."""
        targets = await self.around.aggregators.ready()
        first = attempt.number % max(len(targets), 1)
        spec = TaskSpec.FromString(attempt.opened.spec)
        whole = PartSize(attempt.terms.cohort_size, attempt.terms.report_goal)
        is_masked = spec.secure_sum.protocol == SUM_PROTOCOL_SECAGG_PLUS
        sizes = part_sizes(whole, spec.secure_sum.maximum_reports, len(targets), is_masked=is_masked)
        return sizes, (*targets[first:], *targets[:first])

    async def _abandon(self, attempt: Round, reason: str, now: int) -> None:
        event = rounds.abandon(attempt, reason, now)
        told = AttemptAbandoned(attempt.number, attempt.attempt, reason, event.retry_at)
        self._log.warning("round abandoned", round=attempt.number, attempt=attempt.attempt, why=reason)
        await self._record(attempt.number, event, *tasks.consequences(self.book.task, told, now))

    # -- telling -----------------------------------------------------------------------------------------------------

    def _show(self) -> None:
        """Shows operators where the task stands."""
        task, terms, measures = self.book.task, self.terms, self.around.measures
        measures.note_task(task, self.name)
        windows = terms.selection_milliseconds, terms.reporting_milliseconds, terms.aggregating_milliseconds
        measures.note_window(self.name, sum(windows))
        if self.book.attempt is not None:
            measures.note_round(self.name, self.book.attempt)
        if self.spec.HasField("privacy") and self._shown_sums != task.private_sums:
            self._shown_sums = task.private_sums
            self._begin(self._show_privacy(self.spec.privacy, task.private_sums))

    async def _show_privacy(self, privacy: Privacy, sums: int) -> None:
        try:  # it may take a second
            epsilon = await asyncio.to_thread(epsilon_after, privacy, sums)
        except AccountantMissing as error:
            self._log.warning("epsilon not shown", why=str(error))
        else:
            self.around.measures.note_privacy(self.name, epsilon, privacy.epsilon_budget)

    # -- keeping and acting ------------------------------------------------------------------------------------------

    async def _record(self, number: int, event: round_events.Event, *task_events: tasks.Event) -> Round:
        applied = await self.book.record(number, event, *task_events)
        if isinstance(event, round_events.ReportingEnded):  # from now on devices wait for the round after this one
            self._gathering_since = self.book.now()
        self.around.measures.note_event(self.name, applied.before, applied.after, event, self.book.now())
        for effect in applied.effects:
            self._perform(applied.after, effect)
        self._woken.set()
        return applied.after

    def _perform(self, attempt: Round, effect: rounds.Effect) -> None:
        match effect:
            case rounds.Gather():
                began = 0
                if self._drawing.begin(attempt.number, attempt.attempt):
                    self._groups_expire_at = 0
                    began, self._gathering_since = self._gathering_since, 0
                self._begin_window(began or self.book.now())
            case rounds.WatchGroups():
                self._seen = Seen()
                self._begin_job(self._watch(attempt))
            case rounds.CloseGroups():
                self._begin_job(self._close(attempt))
            case rounds.MergeGroups(groups):
                self._begin_job(self._merge(attempt, groups))
            case rounds.DiscardGroups():
                self._end_job()
                self._begin(self._discard(attempt))
            case rounds.SendAssignments() | rounds.DrawCohort():
                pass  # whoever drew the cohort holds the devices' calls

    def _begin_window(self, now: int) -> None:
        self._seen = replace(self._seen, window_ends=now + self.terms.selection_milliseconds)
        self._woken.set()

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._group.create_task(work)
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)
        return task

    def _begin_job(self, work: Coroutine[Any, Any, None]) -> None:
        """Starts work on an attempt's groups; what went before belongs to a phase that is over."""
        self._end_job()
        self._job = self._begin(work)

    def _end_job(self) -> None:
        if self._job is not None and self._job is not asyncio.current_task():
            self._job.cancel()

    def _opened(self, attempt: Round) -> tuple[OpenedPart, ...]:
        assert attempt.assigned is not None  # noqa: S101 - groups are opened with the cohort
        expire_at = attempt.assigned.groups_expire_at
        return tuple(
            OpenedPart(
                self._open_request(attempt, expire_at, number, PartSize(part.cohort_size, part.report_goal)),
                part.groups,
                part.aggregator,
            )
            for number, part in enumerate(attempt.parts)
        )

    def _open_request(self, attempt: Round, expire_at: int, part: int, size: PartSize) -> OpenRequest:
        spec, prepared = TaskSpec.FromString(attempt.opened.spec), self.adoption.prepared_for(attempt)
        return open_request(attempt, spec, prepared, expire_at, part, size)

    async def _note_place(self, opened: Opened, part: int, aggregator: str) -> None:
        """Keeps where a part of an attempt lies, if that has changed: devices that ask are told."""
        attempt = self.book.attempt
        if attempt is None or attempt.opened != opened or attempt.is_over:
            return  # what is given up need not be found
        if attempt.parts[part].aggregator != aggregator:
            self._log.warning("sum groups moved", round=attempt.number, part=part, aggregator=aggregator)
            await self._record(attempt.number, GroupsMoved(part, aggregator))

    def _note_progress(self, progress: Progress | None) -> None:
        if progress is None:
            self._seen = replace(self._seen, reports=None)
        else:
            self._seen = replace(self._seen, reports=progress.reports, voided=progress.voided)
            self.around.measures.note_reports(self.name, progress.reports)
        self._woken.set()

    async def _watch(self, attempt: Round) -> None:
        try:
            located = partial(self._note_place, attempt.opened)
            await self.around.aggregators.follow(self._opened(attempt), self._note_progress, located)
        except SumsRefused as refused:
            await self._abandon(attempt, f"the aggregator gave the round up: {refused}", self.book.now())
        else:  # before anybody closed them: there is no more to wait for
            self._seen = replace(self._seen, groups_ended=True)
            self._woken.set()

    async def _close(self, attempt: Round) -> None:
        try:
            located = partial(self._note_place, attempt.opened)
            closed = await self.around.aggregators.close(self._opened(attempt), located)
        except SumsRefused as refused:
            await self._abandon(attempt, f"the aggregator cannot close the groups: {refused}", self.book.now())
            return
        await self._record(attempt.number, closed)

    async def _merge(self, attempt: Round, groups: tuple[bytes, ...]) -> None:
        spec = TaskSpec.FromString(attempt.opened.spec)
        this_sum = attempt.number, attempt.attempt
        if spec.HasField("privacy") and self.book.task.spent_for != this_sum:  # before there is a noisy sum to release
            sum_name = digest_of(b"".join(sorted(groups)))
            await self.book.record_task(tasks.PrivacySpent(*this_sum, sum_name))
        request = merge_request(attempt, spec, groups, self.book.task.noise)
        try:
            merged = await self.around.aggregators.merge(request, self._opened(attempt))
        except SumsRefused as refused:
            await self._abandon(attempt, f"no checkpoint could be made: {refused}", self.book.now())
            return
        if self.book.task.has_ended or attempt.opened.checkpoint != self.book.task.checkpoint:
            return  # cancelled or rolled back meanwhile: the attempt is given up
        event = committed_of(merged)
        told = self._told_of(attempt, event)
        recent = self.book.task.recent
        if isinstance(told, CheckpointCommitted) and (why := doubt(likeness_of(told), recent)) is not None:
            await self._abandon(attempt, f"the sum is not believed: {why}", self.book.now())
            return
        self._log.info("round committed", round=attempt.number, attempt=attempt.attempt, reports=event.reports)
        await self._record(attempt.number, event, *tasks.consequences(self.book.task, told, self.book.now()))
        if isinstance(told, CheckpointEvaluated):
            await self._upkeep.admit_evaluated()

    def _told_of(self, attempt: Round, event: round_events.Committed) -> CheckpointCommitted | CheckpointEvaluated:
        """Returns what a committed round means for the task."""
        number, sums = attempt.number, (event.reports, event.weight, event.metric_sums)
        if attempt.kind is Kind.EVALUATE:
            return CheckpointEvaluated(number, attempt.attempt, self.book.task.live_round, *sums)
        checkpoint, state = event.checkpoint, event.optimizer_state
        return CheckpointCommitted(
            number, attempt.attempt, checkpoint, state, *sums, event.clip_norm, event.update_norm
        )

    async def _discard(self, attempt: Round) -> None:
        try:
            located = partial(self._note_place, attempt.opened)
            await self.around.aggregators.close(self._opened(attempt), located, discard=True)
        except SumsRefused as refused:
            self._log.warning("groups not discarded", why=str(refused))

    # -- time --------------------------------------------------------------------------------------------------------

    async def _pause(self, milliseconds: int) -> None:
        await self.around.clock.sleep(milliseconds)

    async def _wait_until(self, instant: int) -> None:
        """Waits for an instant or for something to happen, whichever comes first."""
        waits: list[asyncio.Future[Any]] = [asyncio.ensure_future(self._woken.wait())]
        if instant < NEVER:
            waits.append(asyncio.ensure_future(self._pause(min(instant - self.book.now(), _LONGEST_LOOK_MILLISECONDS))))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()
