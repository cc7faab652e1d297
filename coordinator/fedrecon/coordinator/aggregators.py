"""The coordinator's hand on all aggregators: the groups of an attempt, wherever they lie.

Rules:
- Parts of an attempt are opened on aggregators that answer and are not drained; a part that cannot be opened where it
  was meant to be is opened on another.
- Whoever is asked for a part is told of it first (`Open`), which finds it, or takes it over where the aggregator that
  held it is gone, or refuses with HELD_ELSEWHERE. So no other memory is needed of where a part lies, and a restarted
  aggregator, or another coordinator, goes on in the same way.
- Aggregators that are away are asked again, with growing pauses, for as long as the caller wants to wait. What they
  refuse is final.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from fedrecon.coordinator.round_events import GroupsClosed
from fedrecon.coordinator.sum_requests import Progress, closed_of, have_ended, progress_of
from fedrecon.coordinator.sums import Sums, SumsAway, SumsRefused
from fedrecon.ops.logs import logger_of
from fedrecon.v1.aggregator_pb2 import (
    GroupProgress,
    GrowRequest,
    GrowResponse,
    MergeRequest,
    MergeResponse,
    OpenRequest,
    StatusResponse,
)

_log = logger_of(__name__)

Response = TypeVar("Response")
Located = Callable[[int, str], Awaitable[None]]
"""Told a part, and where devices reach the aggregator that holds it, whenever that was asked."""

_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 2.0
_REMEMBERED = 1_000
_HELD_ELSEWHERE = "HELD_ELSEWHERE"


@dataclass(frozen=True, slots=True)
class OpenedPart:
    """A part of an attempt.

    Attributes:
        request: What opened it.
        groups: Its groups.
        aggregator: Where devices reach the aggregator that holds it.
    """

    request: OpenRequest
    groups: tuple[bytes, ...]
    aggregator: str

    @property
    def number(self) -> int:
        """Which part."""
        return self.request.round.part


class Aggregators:
    """All aggregators of a deployment.

    Args:
        sums: Them, by target as configured.
        drained: Returns the targets that get no new groups.
    """

    def __init__(self, sums: Mapping[str, Sums], drained: Callable[[], Awaitable[frozenset[str]]]) -> None:
        self._sums = dict(sums)
        self._drained = drained
        self._held: dict[bytes, str] = {}

    @property
    def targets(self) -> tuple[str, ...]:
        """Their targets, as configured."""
        return tuple(self._sums)

    async def status(self, target: str) -> StatusResponse | None:
        """Returns what is at work at one of them; None if it does not answer."""
        try:
            return await self._sums[target].status()
        except (SumsAway, SumsRefused):
            return None

    async def ready(self) -> tuple[str, ...]:
        """Returns those that would take new groups now; a single one is not asked."""
        drained = await self._drained()
        taking = [target for target in self._sums if target not in drained]
        if len(taking) <= 1:
            return tuple(taking)
        answers = await asyncio.gather(*map(self.status, taking))
        return tuple(target for target, answer in zip(taking, answers, strict=True) if answer is not None)

    async def open(self, requests: Sequence[OpenRequest], targets: Sequence[str]) -> tuple[OpenedPart, ...]:
        """Opens the parts of an attempt, or finds them open.

        Args:
            requests: One for each part.
            targets: Where they are meant to be, in order; others take what these cannot.

        Raises:
            SumsAway: One of them can be opened nowhere now.
            SumsRefused: An aggregator refuses.
        """
        order = [*targets, *(target for target in await self.ready() if target not in targets)]
        if not order:
            raise SumsAway("no aggregator takes groups: they are away, or drained")
        return await _all(
            self._open(request, [*order[number % len(order) :], *order[: number % len(order)]])
            for number, request in enumerate(requests)
        )

    async def follow(
        self, parts: Sequence[OpenedPart], note: Callable[[Progress | None], None], located: Located
    ) -> None:
        """Follows the progress of an attempt until all its groups have ended.

        Args:
            parts: The attempt.
            note: Told what all groups hold, on every change; None while one that holds some is away.
            located: Told where parts lie.

        Raises:
            SumsRefused: Groups are lost, or an aggregator refuses.
        """
        latest: dict[int, Progress | None] = dict.fromkeys((part.number for part in parts), None)

        async def follow(part: OpenedPart) -> None:
            async for progress in self._follow(part, located):
                latest[part.number] = progress
                known = [each for each in latest.values() if each is not None]
                whole = Progress(sum(each.reports for each in known), sum(each.voided for each in known))
                note(whole if len(known) == len(parts) else None)

        await _all(follow(part) for part in parts)

    async def close(self, parts: Sequence[OpenedPart], located: Located, *, discard: bool = False) -> GroupsClosed:
        """Ends an attempt's uploads and waits until all its groups have ended, however long that takes.

        Args:
            parts: The attempt.
            located: Told where parts lie.
            discard: Whether to give all reports up.

        Raises:
            SumsRefused: Groups are lost, or an aggregator refuses.
        """

        async def until_ended(part: OpenedPart, sums: Sums) -> list[GroupProgress]:
            while True:
                groups = await sums.close(part.request.round, discard=discard)
                if have_ended(groups):
                    return groups
                async for groups in sums.watch(part.request.round):
                    if have_ended(groups):
                        return groups

        async def close(part: OpenedPart) -> list[GroupProgress]:
            async def once(sums: Sums) -> list[GroupProgress]:
                return await until_ended(part, sums)

            return await self._persist(once, part, located)

        ended = await _all(close(part) for part in parts)
        return closed_of([group for groups in ended for group in groups])

    async def merge(self, request: MergeRequest, parts: Sequence[OpenedPart]) -> MergeResponse:
        """Makes the checkpoint at whichever aggregator answers first, the one of the first part before the others.

        Raises:
            SumsRefused: Sums are lost, or no checkpoint can be made of them.
        """
        pauses = _pauses()
        while True:
            for target in self._candidates(parts[0], self.targets):
                try:
                    return await self._sums[target].merge(request)
                except SumsAway as away:
                    _log.warning("aggregator away", target=target, why=str(away))
            await asyncio.sleep(next(pauses))

    async def grow(self, request: GrowRequest) -> GrowResponse:
        """Appends rows for new items to a checkpoint and its optimizer state, at whichever aggregator answers.

        Raises:
            SumsAway: None does.
            SumsRefused: One refuses.
        """
        away = SumsAway("no aggregator is configured")
        for sums in self._sums.values():
            try:
                return await sums.grow(request)
            except SumsAway as error:
                away = error
        raise away

    async def _open(self, request: OpenRequest, targets: Sequence[str]) -> OpenedPart:
        away = SumsAway("no aggregator was asked")
        for target in targets:
            try:
                response = await self._sums[target].open(request)
            except SumsAway as error:
                away = error
            except SumsRefused as refused:
                if refused.reason != _HELD_ELSEWHERE:
                    raise
                away = SumsAway(str(refused))
            else:
                self._remember(request, target)
                return OpenedPart(request, tuple(response.groups), response.aggregator)
        raise away

    async def _find(self, part: OpenedPart, located: Located) -> Sums:
        """Returns the aggregator that holds a part, which has been told of it."""
        found = await self._open(part.request, await self._may_hold(part))
        if set(found.groups) != set(part.groups):
            raise SumsRefused("GROUPS_LOST", "the aggregators have lost the groups of this attempt")
        await located(part.number, found.aggregator)
        return self._sums[self._held[_key(part.request)]]

    async def _follow(self, part: OpenedPart, located: Located) -> AsyncIterator[Progress | None]:
        pauses = _pauses()
        while True:
            try:
                sums = await self._find(part, located)
                async for groups in sums.watch(part.request.round):
                    pauses = _pauses()
                    yield progress_of(groups)
                    if have_ended(groups):
                        return
            except SumsAway as away:
                _log.warning("aggregator away", why=str(away))
                yield None
            except SumsRefused as refused:
                if not refused.is_unknown:
                    raise
                yield None
            await asyncio.sleep(next(pauses))

    async def _persist(
        self, call: Callable[[Sums], Awaitable[Response]], part: OpenedPart, located: Located
    ) -> Response:
        pauses = _pauses()
        while True:
            try:
                return await call(await self._find(part, located))
            except SumsAway as away:
                _log.warning("aggregator away", why=str(away))
            except SumsRefused as refused:
                if not refused.is_unknown:
                    raise
            await asyncio.sleep(next(pauses))

    async def _may_hold(self, part: OpenedPart) -> list[str]:
        """Returns who is asked for a part: all but the drained ones, which take nothing over."""
        if len(self._sums) == 1:
            return list(self._sums)
        drained, last = await self._drained(), self._held.get(_key(part.request))
        return self._candidates(part, [one for one in self._sums if one not in drained or last in {None, one}])

    def _candidates(self, part: OpenedPart, targets: Sequence[str]) -> list[str]:
        """Returns targets, the one first that held a part last."""
        last = self._held.get(_key(part.request))
        return sorted(targets, key=lambda target: target != last)

    def _remember(self, request: OpenRequest, target: str) -> None:
        self._held.pop(_key(request), None)
        self._held = dict([*self._held.items(), (_key(request), target)][-_REMEMBERED:])


def _key(request: OpenRequest) -> bytes:
    return request.round.SerializeToString(deterministic=True)


async def _all(works: Iterator[Coroutine[Any, Any, Response]]) -> tuple[Response, ...]:
    """Returns what works give that run side by side; the first that fails ends the others, and is raised."""
    tasks: list[asyncio.Task[Response]] = []
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
    except ExceptionGroup as failed:
        expected, others = failed.split((SumsAway, SumsRefused))
        if expected is None or others is not None:
            raise
        raise expected.exceptions[0] from None
    return tuple(task.result() for task in tasks)


def _pauses() -> Iterator[float]:
    pause = _FIRST_PAUSE_SECONDS
    while True:
        yield pause
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
