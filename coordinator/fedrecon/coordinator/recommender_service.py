"""The calls of the Admin service about what a task serves; `AdminService` is made of them and its own.

For a console or a tool: `ListRecommenders` (viewer) tells every version with its stage, figures and, of candidates,
in `refusals` why the gate would refuse them now: an empty word means that `PromoteRecommender` (operator) would go
through without an override. The live one and the canary also come with every `Task`, so that `WatchTask` tells of a
promotion at once. `RollBackRecommender` (operator) with version 0 undoes the last step.

Rules: a change is an event, kept before anybody is answered, with the operator's name. Whoever asks for what is so
already is answered so. Two who promote at once are put in an order by the journal: the second is judged anew, against
what is live by then.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import grpc

from fedrecon.coordinator import gating, ledger, serving, tasks
from fedrecon.coordinator.reading import Reader
from fedrecon.coordinator.recommender_messages import evidence_of, recommender_message
from fedrecon.coordinator.recommenders import (
    CanaryBegun,
    CanaryTakenBack,
    Event,
    Evidence,
    ItemsRenewed,
    RecommenderPromoted,
    RecommenderRolledBack,
    Recommenders,
    Stage,
    Version,
)
from fedrecon.coordinator.round_events import Blob, IllegalEvent
from fedrecon.coordinator.serving import RecommendersAt
from fedrecon.coordinator.surroundings import Surroundings
from fedrecon.coordinator.tasks import CheckpointEvaluated
from fedrecon.ops.boundary import Refusal
from fedrecon.ops.callers import current_caller
from fedrecon.ops.journal import Append, StaleWriter
from fedrecon.v1 import admin_pb2
from fedrecon.v1.admin_pb2_grpc import AdminServicer
from fedrecon.v1.task_pb2 import TaskSpec

_UNKNOWN_OPERATOR = "unauthenticated"


def calling_operator() -> str:
    """Returns who calls, as the boundary knows."""
    return current_caller.get() or _UNKNOWN_OPERATOR


@dataclass(frozen=True, slots=True)
class _Shape:
    """What a version is served with from now on."""

    checkpoint: Blob
    spec: bytes


class RecommenderCalls(AdminServicer):
    """Answers operators about what tasks serve."""

    _around: Surroundings
    _reader: Reader

    @abstractmethod
    async def _known(self, name: str) -> tuple[tasks.Task, int]:
        """Returns a task and the version of its stream.

        Raises:
            Refusal: There is no such task.
        """

    @abstractmethod
    async def _grown(self, spec: TaskSpec, checkpoint: Blob, state: Blob | None) -> tuple[Blob, Blob | None]:
        """Returns a checkpoint and its optimizer state with as many rows as a task's vocabularies have."""

    async def ListRecommenders(  # noqa: N802 - the contract's name, as all that follow
        self, request: admin_pb2.ListRecommendersRequest, context: Any
    ) -> admin_pb2.ListRecommendersResponse:
        """Lists versions, newest first, with what stands in their way."""
        del context
        task, _ = await self._known(request.task)
        found = (await self._reader.recommenders(request.task)).recommenders
        evaluated = await self._evaluations(request.task)
        gate = TaskSpec.FromString(task.spec).serving.gate
        answer = admin_pb2.ListRecommendersResponse(follows_newest=_follows_newest(task, found))
        for version in reversed(found.versions):
            known = version.evidence or _evidence_of_rounds(found, version, evaluated)
            outcome = gating.click_through(version.version, evaluated)
            answer.recommenders.append(recommender_message(version, known, outcome))
            if version.stage in {Stage.CANDIDATE, Stage.CANARY}:
                why = gating.refusals(gate, _evidence_of_rounds(found, version, evaluated), _live_number(found))
                answer.refusals[version.version] = "; ".join(why)
        return answer

    async def AdmitRecommender(  # noqa: N802
        self, request: admin_pb2.AdmitRecommenderRequest, context: Any
    ) -> admin_pb2.AdmitRecommenderResponse:
        """Makes a committed checkpoint a candidate."""
        del context
        await self._known(request.task)
        journal, blobs, now = self._around.journal, self._around.blobs, self._around.clock.now_milliseconds()
        operator = calling_operator()
        admitted = await serving.admit(journal, blobs, request.task, request.round, operator, now, self._grown)
        return admin_pb2.AdmitRecommenderResponse(recommender=recommender_message(admitted))

    async def PromoteRecommender(  # noqa: N802
        self, request: admin_pb2.PromoteRecommenderRequest, context: Any
    ) -> admin_pb2.PromoteRecommenderResponse:
        """Serves a candidate to some devices or to all, if the gate or an override lets it."""
        del context
        is_canary = request.HasField("canary_places")
        while True:
            task, _ = await self._known(request.task)
            at = await self._reader.recommenders(request.task)
            version = _find(request.task, at.recommenders, request.version)
            if _is_so_already(version, request):
                return admin_pb2.PromoteRecommenderResponse(recommender=recommender_message(version, version.evidence))
            evidence = await self._evidence(request, at.recommenders, version)
            gate = TaskSpec.FromString(task.spec).serving.gate
            why = gating.refusals(gate, evidence, _live_number(at.recommenders))
            if why and not request.override:
                raise Refusal(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    "GATE_CLOSED",
                    f"Version {version.version} of task {request.task!r} does not pass the gate: {'; '.join(why)}.",
                    "Judge it on more users (`fedrecon recommenders promote --users`), or give a reason: --override.",
                )
            shape = await self._shape(task, version)
            told = (version.version, shape.checkpoint, shape.spec, evidence, request.override, calling_operator())
            event: Event = RecommenderPromoted(*told)
            if is_canary:
                event = CanaryBegun(version.version, request.canary_places, *told[1:])
            changed = await self._keep_version(request.task, at, event)
            if changed is not None:
                return admin_pb2.PromoteRecommenderResponse(recommender=changed)

    async def RollBackRecommender(  # noqa: N802
        self, request: admin_pb2.RollBackRecommenderRequest, context: Any
    ) -> admin_pb2.RollBackRecommenderResponse:
        """Takes the canary back, or makes one live again that was."""
        del context
        while True:
            task, _ = await self._known(request.task)
            at = await self._reader.recommenders(request.task)
            found = at.recommenders
            if request.version and found.live is not None and found.live.version == request.version:
                return admin_pb2.RollBackRecommenderResponse(recommender=recommender_message(found.live))
            if not request.version and found.canary is not None:
                event: Event = CanaryTakenBack(found.canary.version, request.reason, calling_operator())
            else:
                version = _to_roll_back_to(request.task, found, request.version)
                shape = await self._shape(task, version)
                event = RecommenderRolledBack(
                    version.version, shape.checkpoint, shape.spec, request.reason, calling_operator()
                )
            if await self._keep_version(request.task, at, event) is not None:
                live = (await self._reader.recommenders(request.task)).recommenders.live
                told = None if live is None else recommender_message(live, live.evidence)
                return admin_pb2.RollBackRecommenderResponse(recommender=told)

    async def _items_renewed(self, name: str, spec: TaskSpec) -> tuple[Append, ...]:
        """Returns what gives what is served the items of a specification, to be kept together with its edit."""
        at = await self._reader.recommenders(name)
        renewed: list[Event] = []
        for version in (at.recommenders.live, at.recommenders.canary):
            if version is not None:
                own = _with_items(version.spec, spec)
                checkpoint, _ = await self._grown(own, version.checkpoint, None)
                renewed.append(ItemsRenewed(version.version, checkpoint, own.SerializeToString(deterministic=True)))
        return (serving.append_of(at, renewed, self._around.clock.now_milliseconds()),) if renewed else ()

    async def _shape(self, task: tasks.Task, version: Version) -> _Shape:
        """Returns what a version is served with: its own, but with the items that are in force now."""
        spec = TaskSpec.FromString(task.spec)
        if not spec.vocabularies:
            return _Shape(version.checkpoint, version.spec)
        own = _with_items(version.spec, spec)
        checkpoint, _ = await self._grown(own, version.checkpoint, None)
        return _Shape(checkpoint, own.SerializeToString(deterministic=True))

    async def _keep_version(self, name: str, at: RecommendersAt, event: Event) -> admin_pb2.Recommender | None:
        """Keeps an event, and returns the version that it is about; None if somebody else wrote first.

        Raises:
            Refusal: It cannot happen now.
        """
        now = self._around.clock.now_milliseconds()
        try:
            await self._around.journal.append(name, [serving.append_of(at, [event], now)])
        except IllegalEvent as error:
            raise Refusal(
                grpc.StatusCode.FAILED_PRECONDITION,
                "WRONG_STAGE",
                f"Task {name!r}: {error}.",
                "List its recommenders.",
            ) from error
        except StaleWriter:
            return None
        version = (await self._reader.recommenders(name)).recommenders.find(event.version)
        return admin_pb2.Recommender() if version is None else recommender_message(version, version.evidence)

    async def _evaluations(self, name: str) -> list[CheckpointEvaluated]:
        entries = await ledger.load_task_entries(self._around.journal, name)
        return [entry.event for entry in entries if isinstance(entry.event, CheckpointEvaluated)]

    async def _evidence(
        self, request: admin_pb2.PromoteRecommenderRequest, found: Recommenders, version: Version
    ) -> Evidence | None:
        if request.HasField("evidence"):
            return evidence_of(request.evidence)
        return _evidence_of_rounds(found, version, await self._evaluations(request.task))


def _evidence_of_rounds(found: Recommenders, version: Version, evaluated: list[CheckpointEvaluated]) -> Evidence | None:
    """Returns what evaluation rounds tell of a version against the live one."""
    live = found.live if found.live is not version else None
    return gating.evidence_of_rounds(
        (each for each in evaluated if each.live_round == version.number),
        None if live is None else [each for each in evaluated if each.live_round == live.number],
        0 if live is None else live.version,
    )


def _find(task: str, found: Recommenders, number: int) -> Version:
    version = found.find(number)
    if version is None:
        known = ", ".join(str(each.version) for each in found.versions) or "none"
        raise Refusal(
            grpc.StatusCode.NOT_FOUND,
            "UNKNOWN_RECOMMENDER",
            f"Task {task!r} has no version {number}; there are {known}.",
            "List them, or admit a round's checkpoint first.",
        )
    return version


def _to_roll_back_to(task: str, found: Recommenders, number: int) -> Version:
    if number:
        return _find(task, found, number)
    if found.newest_retired is None:
        raise Refusal(
            grpc.StatusCode.FAILED_PRECONDITION,
            "NOTHING_RETIRED",
            f"Task {task!r} has no canary, and nothing was live before.",
            "There is nothing to roll back.",
        )
    return found.newest_retired


def _is_so_already(version: Version, request: admin_pb2.PromoteRecommenderRequest) -> bool:
    if request.HasField("canary_places"):
        return version.stage is Stage.CANARY and version.places == request.canary_places
    return version.stage is Stage.LIVE


def _live_number(found: Recommenders) -> int:
    return 0 if found.live is None else found.live.version


def _follows_newest(task: tasks.Task, found: Recommenders) -> bool:
    return found.live is None and not TaskSpec.FromString(task.spec).serving.by_promotion


def _with_items(spec: bytes, of: TaskSpec) -> TaskSpec:
    """Returns a version's specification with the vocabularies of another one."""
    own = TaskSpec.FromString(spec)
    own.ClearField("vocabularies")
    for name, reference in of.vocabularies.items():
        own.vocabularies[name].CopyFrom(reference)
    return own
