"""A coordinator over loopback, with an aggregator that only counts."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from fedrecon.coordinator import ledger, round_state
from fedrecon.coordinator.admin import ROLES, AdminService
from fedrecon.coordinator.aggregators import Aggregators
from fedrecon.coordinator.attestation import Attestation
from fedrecon.coordinator.draining import load_drained
from fedrecon.coordinator.enrolment_service import EnrolmentService
from fedrecon.coordinator.forgotten import Forgotten
from fedrecon.coordinator.measures import Measures
from fedrecon.coordinator.nonces import Nonces
from fedrecon.coordinator.peers import Peers
from fedrecon.coordinator.roster import Roster
from fedrecon.coordinator.service import CandidatesService, CoordinatorService
from fedrecon.coordinator.speakers import Speakers
from fedrecon.coordinator.sums import Sums
from fedrecon.coordinator.surroundings import Surroundings
from fedrecon.ops.blobs import LocalBlobs
from fedrecon.ops.boundary import Boundary, Refusal, refusal_of
from fedrecon.ops.callers import Callers
from fedrecon.ops.clock import SystemClock
from fedrecon.ops.journal import Journal
from fedrecon.ops.key_ring import KeyRing
from fedrecon.ops.limits import Limits
from fedrecon.ops.metrics import Metrics
from fedrecon.ops.service_identity import proving_interceptors
from fedrecon.ops.tls import open_channel
from fedrecon.v1 import admin_pb2, aggregator_pb2, coordinator_pb2, plan_pb2, task_pb2
from fedrecon.v1.admin_pb2_grpc import AdminStub, add_AdminServicer_to_server
from fedrecon.v1.aggregator_pb2 import (
    CloseRequest,
    CloseResponse,
    GroupProgress,
    GrowRequest,
    GrowResponse,
    MergeRequest,
    MergeResponse,
    OpenRequest,
    OpenResponse,
    StatusRequest,
    StatusResponse,
    WatchRequest,
    WatchResponse,
)
from fedrecon.v1.aggregator_pb2_grpc import SumsServicer, add_SumsServicer_to_server
from fedrecon.v1.common_pb2 import BlobReference, Credentials, ErrorInfo, RoundKey
from fedrecon.v1.coordinator_pb2 import (
    Assignment,
    CheckInRequest,
    CheckInResponse,
    FinishSessionRequest,
    FinishSessionResponse,
)
from fedrecon.v1.coordinator_pb2_grpc import (
    CoordinatorStub,
    add_CandidatesServicer_to_server,
    add_CoordinatorServicer_to_server,
)
from fedrecon.v1.enrolment_pb2_grpc import EnrolmentStub, add_EnrolmentServicer_to_server
from fedrecon.v1.plan_pb2 import Hyperparameter, Layout, Manifest, MetricSum, Parameter, Segment
from fedrecon.v1.task_pb2 import LocalWork, RoundSpec, SecureSum, ServerOptimizer, TaskSpec
from fedrecon.wire.manifests import write_manifest
from fedrecon.wire.vocabularies import write_vocabulary

KEY = bytes(range(32))
TASK = "films"
POPULATION = "cinema"
TOKEN_KEYS = KeyRing(KEY)
CALL_SECONDS = 20.0
TOKEN_MILLISECONDS = 3_600_000


@dataclass
class CountedAttempt:
    """An attempt as the counting aggregator knows it."""

    request: OpenRequest
    group: bytes
    reports: int = 0
    phase: aggregator_pb2.GroupPhase.ValueType = aggregator_pb2.GROUP_PHASE_UPLOADING
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def progress(self) -> GroupProgress:
        voided = self.reports if self.phase == aggregator_pb2.GROUP_PHASE_ABORTED else 0
        return GroupProgress(group=self.group, phase=self.phase, reports=self.reports, voided=voided)


class CountingSums(SumsServicer):
    """An aggregator that counts reports and makes checkpoints out of their number."""

    def __init__(self, blobs: LocalBlobs) -> None:
        self.blobs = blobs
        self.attempts: dict[tuple[str, int, int], CountedAttempt] = {}
        self.advertised = "aggregator:1"
        self.merges: Counter[tuple[str, int, int]] = Counter()
        self.merge_requests: list[MergeRequest] = []
        self.may_merge = asyncio.Event()
        self.may_close = asyncio.Event()
        self.may_merge.set()
        self.may_close.set()
        self.refuse_merge = False
        self.evaluation_sums = {"loss": 2.5}
        self.update_norm = 0.25

    async def report(self, key: RoundKey, reports: int) -> None:
        attempt = self.find(key)
        async with attempt.changed:
            attempt.reports += reports
            attempt.changed.notify_all()

    def find(self, key: RoundKey) -> CountedAttempt:
        found = self.attempts.get((key.task, key.round, key.attempt))
        if found is None:
            raise Refusal(grpc.StatusCode.NOT_FOUND, "UNKNOWN_ROUND", "There is no such attempt.", "Open it.")
        return found

    async def Open(self, request: OpenRequest, context: Any) -> OpenResponse:  # noqa: N802
        del context
        key = (request.round.task, request.round.round, request.round.attempt)
        attempt = self.attempts.setdefault(key, CountedAttempt(request, secrets.token_bytes(16)))
        assert attempt.request == request, "the same attempt was opened with other words"
        return OpenResponse(groups=[attempt.group], aggregator=self.advertised)

    async def Status(self, request: StatusRequest, context: Any) -> StatusResponse:  # noqa: N802
        del request, context
        open_groups = sum(one.phase == aggregator_pb2.GROUP_PHASE_UPLOADING for one in self.attempts.values())
        return StatusResponse(aggregator=self.advertised, open_groups=open_groups)

    async def Close(self, request: CloseRequest, context: Any) -> CloseResponse:  # noqa: N802
        del context
        await self.may_close.wait()
        attempt = self.find(request.round)
        if attempt.phase == aggregator_pb2.GROUP_PHASE_UPLOADING:
            ended = aggregator_pb2.GROUP_PHASE_ABORTED if request.discard else aggregator_pb2.GROUP_PHASE_CLOSED
            async with attempt.changed:
                attempt.phase = ended
                attempt.changed.notify_all()
        return CloseResponse(groups=[attempt.progress])

    async def Watch(self, request: WatchRequest, context: Any) -> AsyncIterator[WatchResponse]:  # noqa: N802
        del context
        attempt = self.find(request.round)
        while True:
            shown = attempt.progress
            yield WatchResponse(groups=[shown])
            if attempt.phase != aggregator_pb2.GROUP_PHASE_UPLOADING:
                return
            async with attempt.changed:
                await attempt.changed.wait_for(lambda: attempt.progress != shown)  # noqa: B023

    async def Grow(self, request: GrowRequest, context: Any) -> GrowResponse:  # noqa: N802
        del context
        rows = dict(request.rows)
        grown = [b"", b""]
        for place, digest in enumerate((request.checkpoint_digest, request.optimizer_state_digest)):
            if digest:
                grown[place] = self.blobs.put(f"{digest.hex()} with {rows}".encode())
        if rows == {"items": 6}:  # as many as there were
            grown = [request.checkpoint_digest, request.optimizer_state_digest]
        checkpoint, state = grown
        return GrowResponse(
            checkpoint=BlobReference(digest=checkpoint, size=self.blobs.size(checkpoint) or 0),
            optimizer_state=BlobReference(digest=state, size=self.blobs.size(state) or 0) if state else None,
        )

    async def Merge(self, request: MergeRequest, context: Any) -> MergeResponse:  # noqa: N802
        del context
        await self.may_merge.wait()
        attempt = self.find(request.round)
        assert attempt.phase == aggregator_pb2.GROUP_PHASE_CLOSED
        if self.refuse_merge:
            raise Refusal(grpc.StatusCode.DATA_LOSS, "NOT_FINITE", "The sum is not finite.", "Look at the plan.")
        key = request.round
        self.merges[key.task, key.round, key.attempt] += 1
        self.merge_requests.append(request)
        if attempt.request.kind == coordinator_pb2.SESSION_KIND_EVALUATE:
            return MergeResponse(
                checkpoint=BlobReference(digest=request.checkpoint_digest, size=1),
                optimizer_state=BlobReference(digest=request.optimizer_state_digest, size=1),
                reports=attempt.reports,
                weight=10 * attempt.reports,
                metric_sums=self.evaluation_sums,
                sum_digest=hashlib.sha256(b"").digest(),
            )
        content = f"checkpoint {key.round}.{key.attempt} of {attempt.reports} from {request.checkpoint_digest.hex()}"
        state = f"state {key.round} after {request.optimizer_state_digest.hex()}"
        checkpoint, optimizer = self.blobs.put(content.encode()), self.blobs.put(state.encode())
        return MergeResponse(
            checkpoint=BlobReference(digest=checkpoint, size=len(content)),
            optimizer_state=BlobReference(digest=optimizer, size=len(state)),
            reports=attempt.reports,
            weight=10 * attempt.reports,
            metric_sums={"loss": 1.5},
            update_norm=self.update_norm,
            sum_digest=hashlib.sha256(content.encode()).digest(),
        )


def make_plan(blobs: LocalBlobs) -> BlobReference:
    """Puts a small plan and returns its reference."""
    checkpoint = blobs.put(b"initial checkpoint")
    vocabulary = write_vocabulary("items", 1, [f"item {row}" for row in range(6)])
    manifest = Manifest(
        format=1,
        name="films",
        parameters=[
            Parameter(name="items", placement=plan_pb2.PLACEMENT_GLOBAL, shape=[6, 2], vocabulary="items"),
            Parameter(name="user", placement=plan_pb2.PLACEMENT_LOCAL, shape=[2]),
        ],
        layout=Layout(segments=[Segment(parameter="items", all_rows=True, bound=1.0, width=2)]),
        hyperparameters={"update.rate": Hyperparameter(default_value=0.1, minimum=0.0, maximum=1.0)},
        metrics=[MetricSum(name="loss", bound=25.0)],
        initial_checkpoint=BlobReference(digest=checkpoint, size=18),
        vocabularies={"items": BlobReference(digest=blobs.put(vocabulary), size=len(vocabulary))},
    )
    content = write_manifest(manifest)
    return BlobReference(digest=blobs.put(content), size=len(content))


def make_spec(plan: BlobReference, **rounds_: Any) -> TaskSpec:
    """Returns the specification of a task with quick rounds of three reports."""
    quick = {
        "report_goal": 3,
        "over_selection": 1.3,
        "minimum_reports": 2,
        "minimum_cohort": 3,
        "selection_milliseconds": 60,
        "reporting_milliseconds": 15_000,
        "aggregating_milliseconds": 15_000,
        "retry_milliseconds": 20,
    }
    return TaskSpec(
        name=TASK,
        population=POPULATION,
        plan=plan,
        rounds=RoundSpec(**{**quick, **rounds_}),
        work=LocalWork(split=task_pb2.SPLIT_RULE_NONE, minimum_examples=7, hyperparameters={"update.rate": 0.5}),
        optimizer=ServerOptimizer(rule=task_pb2.OPTIMIZER_RULE_SGD, rate=1.0),
        secure_sum=SecureSum(
            protocol=task_pb2.SUM_PROTOCOL_TRUSTED,
            ring_bits=32,
            maximum_reports=50,
            maximum_weight=10,
            minimum_group=1,
        ),
    )


class Coordinator:
    """One run of a coordinator's process, on a journal and blobs that outlive it."""

    def __init__(
        self,
        journal: Journal,
        blobs: LocalBlobs,
        aggregator: str,
        *,
        requires_enrolment: bool = False,
        attestation: Attestation | None = None,
        token_keys: KeyRing = TOKEN_KEYS,
        device_calls_per_second: float = 0,
        connect: Callable[[str], grpc.aio.Channel] = open_channel,
        callers: Callers | None = None,
    ) -> None:
        self.callers = callers
        self.connect = connect
        self.limits = Limits(device_calls_per_second, 3, time.monotonic)
        self.token_keys = token_keys
        self.requires_enrolment = requires_enrolment
        self.attestation = attestation
        self.journal = journal
        self.blobs = blobs
        self.aggregator = aggregator
        self.metrics = Metrics.create("coordinator")
        self.stopping = asyncio.Event()

    async def start(self) -> None:
        self._sums_channels = {target: self.connect(target) for target in self.aggregator.split(",")}
        boundary = Boundary(self.metrics, self.callers)
        if self.callers is not None:  # who calls Admin must be known, as in a deployment
            boundary.internal.add("fedrecon.v1.Admin")
            boundary.roles.update({f"/fedrecon.v1.Admin/{method}": role for method, role in ROLES.items()})
        self._server = grpc.aio.server(interceptors=[boundary])
        self.target = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self.peers = Peers(open_channel)
        around = Surroundings(
            journal=self.journal,
            blobs=self.blobs,
            aggregators=Aggregators(
                {target: Sums(channel) for target, channel in self._sums_channels.items()},
                partial(load_drained, self.journal),
            ),
            clock=SystemClock(),
            measures=Measures(self.metrics),
            key=KEY,
            token_keys=self.token_keys,
            peers=self.peers,
            target=self.target,
        )
        self.roster = Roster(around)
        forgotten = Forgotten(self.journal, KEY, around.clock)
        speakers = Speakers(
            around.token_keys,
            Nonces(self.journal),
            forgotten,
            self.limits,
            around.clock,
            is_required=self.requires_enrolment,
        )
        add_CoordinatorServicer_to_server(
            CoordinatorService(self.roster, 60_000, speakers, proves_sessions=self.requires_enrolment), self._server
        )
        enrolling = EnrolmentService(around, speakers, forgotten, TOKEN_MILLISECONDS, self.attestation)
        add_EnrolmentServicer_to_server(enrolling, self._server)
        add_AdminServicer_to_server(AdminService(self.roster, self.stopping), self._server)
        add_CandidatesServicer_to_server(CandidatesService(self.roster), self._server)
        await self._server.start()
        await forgotten.load()
        self._work = asyncio.gather(self.roster.run(), forgotten.follow())
        self._channel = open_channel(self.target)
        self.devices = CoordinatorStub(self._channel)
        self.enrolment: Any = EnrolmentStub(self._channel)
        self._admin_channel = open_channel(self.target, interceptors=proving_interceptors(KEY))
        self.admin = AdminStub(self._admin_channel)

    async def kill(self) -> None:
        """Ends everything at once; leases stay taken, as after `kill -9`."""
        for runner in self.roster.runners.values():
            runner.book.forget_lease()
        await self.stop()

    async def stop(self) -> None:
        self.stopping.set()
        self._work.cancel()
        await asyncio.gather(self._work, return_exceptions=True)
        await self._channel.close()
        await self._admin_channel.close()
        await self._server.stop(None)
        for channel in self._sums_channels.values():
            await channel.close()
        await self.peers.close()

    async def create(self, spec: TaskSpec) -> admin_pb2.Task:
        answer = await self.admin.CreateTask(admin_pb2.CreateTaskRequest(spec=spec), timeout=CALL_SECONDS)
        await self.until_ready(spec.name)
        return answer.task

    async def until_ready(self, name: str = TASK) -> None:
        await until_true(lambda: self.roster.ready_runner(name) is not None)

    async def task(self, name: str = TASK) -> admin_pb2.Task:
        answer = await self.admin.GetTask(admin_pb2.GetTaskRequest(task=name), timeout=CALL_SECONDS)
        return answer.task

    async def until(self, phase: round_state.Phase, number: int = 1, attempt: int | None = None) -> round_state.Round:
        """Waits until a round of the task is in a phase."""
        async with asyncio.timeout(CALL_SECONDS):
            while True:
                last = (await ledger.load_round(self.journal, TASK, number)).last
                if last is not None and last.phase is phase and attempt in {None, last.attempt}:
                    return last
                await asyncio.sleep(0.005)

    async def check_in(self, device: int, seconds: float = CALL_SECONDS, **fields: Any) -> CheckInResponse:
        request = CheckInRequest(
            **{
                "credentials": Credentials(device_key=device.to_bytes(32, "little")),
                "population": POPULATION,
                "sdk_version": "0.1.0",
                "plan_formats": [1],
                **fields,
            }
        )
        response: CheckInResponse = await self.devices.CheckIn(request, timeout=seconds)
        return response

    async def assign(self, *devices: int) -> list[Assignment]:
        """Checks devices in at once and returns what those that were drawn were told."""
        answers = await asyncio.gather(*(self.check_in(device) for device in devices))
        return [answer.assignment for answer in answers if answer.HasField("assignment")]

    async def finish(
        self,
        assignment: Assignment,
        outcome: coordinator_pb2.SessionOutcome.ValueType = coordinator_pb2.SESSION_OUTCOME_UPLOADED,
        **fields: Any,
    ) -> FinishSessionResponse:
        request = FinishSessionRequest(
            **{
                "session": assignment.session,
                "round": assignment.round,
                "round_token": assignment.round_token,
                "outcome": outcome,
                "shape": "-v[]+^",
                **fields,
            }
        )
        response: FinishSessionResponse = await self.devices.FinishSession(request, timeout=CALL_SECONDS)
        return response

    def counted(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"fedrecon_{name}", labels) or 0.0


@dataclass
class House:
    """A journal, blobs and an aggregator, and the coordinators that come and go."""

    journal: Journal
    blobs: LocalBlobs
    sums: CountingSums
    plan: BlobReference
    metrics: Metrics = field(default_factory=lambda: Metrics.create("aggregator"))
    coordinators: list[Coordinator] = field(default_factory=list)
    port: int = 0

    async def open_aggregator(self) -> None:
        self._server = grpc.aio.server(interceptors=[Boundary(self.metrics)], options=[("grpc.so_reuseport", 0)])
        add_SumsServicer_to_server(self.sums, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def kill_aggregator(self) -> None:
        await self._server.stop(None)

    async def coordinator(self, **identity: Any) -> Coordinator:
        made = Coordinator(self.journal, self.blobs, f"127.0.0.1:{self.port}", **identity)
        await made.start()
        self.coordinators.append(made)
        return made


@contextlib.asynccontextmanager
async def house(folder: Path, journal: Journal) -> AsyncIterator[House]:
    """Opens blobs and the counting aggregator; ends all coordinators that were started."""
    blobs = LocalBlobs(folder / "blobs")
    made = House(journal, blobs, CountingSums(blobs), make_plan(blobs))
    await made.open_aggregator()
    try:
        yield made
    finally:
        for coordinator in made.coordinators:
            if not coordinator.stopping.is_set():
                await coordinator.stop()
        await made.kill_aggregator()


async def until_true(condition: Callable[[], bool]) -> None:
    """Waits for something that no event tells tests."""
    async with asyncio.timeout(CALL_SECONDS):
        while not condition():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.005)


async def refused(call: Any, code: grpc.StatusCode, reason: str) -> ErrorInfo:
    """Asserts that a call is refused and returns why."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    explained = refusal_of(raised.value)
    assert explained is not None, raised.value.details()
    assert (raised.value.code(), explained.reason) == (code, reason), explained.message
    return explained
