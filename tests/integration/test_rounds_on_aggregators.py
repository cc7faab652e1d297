"""Whole rounds over several aggregators: coordinator, aggregators and devices as they are, over the loopback."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from fedrecon.aggregator import holding
from fedrecon.aggregator.group_events import Accepted, RosterFrozen, UploadsEnded
from fedrecon.aggregator.holding import Holding
from fedrecon.aggregator.summing import CODEC
from fedrecon.coordinator import ledger
from fedrecon.coordinator.round_events import Assigned, Committed, GroupsMoved
from fedrecon.coordinator.round_state import Phase
from fedrecon.device_sdk.blob_cache import BlobCache
from fedrecon.device_sdk.calling import Patience
from fedrecon.device_sdk.driving import drive
from fedrecon.device_sdk.floors import read_floors
from fedrecon.device_sdk.identity import public_bytes
from fedrecon.device_sdk.participation import Fate, Outcome, Participation
from fedrecon.device_sdk.requests import Call
from fedrecon.device_sdk.session import Circumstances, take_part
from fedrecon.device_sdk.speaking import Speaker
from fedrecon.device_sdk.transport import AsyncTransport
from fedrecon.ops.blobs import LocalBlobs
from fedrecon.ops.clock import SystemClock
from fedrecon.ops.journal.memory import MemoryJournal
from fedrecon.ops.settings import Settings
from fedrecon.ops.tls import open_service_channel
from fedrecon.ops.traces import Attempt, Traces, use_traces
from fedrecon.ops.watched_blobs import WatchedBlobs
from fedrecon.v1 import admin_pb2, task_pb2
from fedrecon.v1.task_pb2 import LocalWork, SecureSum, TaskSpec
from fedrecon.wire import manifests
from support import device_bundle as bundle
from support.aggregator_sample import TOKEN_KEY, Aggregator, running
from support.coordinating import POPULATION, TASK, Coordinator, make_spec, until_true
from support.device_services import PUBLISHER, Examples

DEVICES, PER_GROUP = 10, 5
PROTOCOLS = {"trusted": task_pb2.SUM_PROTOCOL_TRUSTED, "masked": task_pb2.SUM_PROTOCOL_SECAGG_PLUS}


class Held(AsyncTransport):
    """A transport whose device does not join before it may."""

    def __init__(self, may_join: asyncio.Event) -> None:
        super().__init__(None)
        self._may_join = may_join

    async def call(self, request: Call) -> Any:
        if request.method.name == "Join":
            await self._may_join.wait()
        return await super().call(request)


class Refusing(LocalBlobs):
    """Blobs that take nothing while there is a reason."""

    refusal: OSError | None = None

    def put(self, content: bytes | Iterable[bytes]) -> bytes:
        if self.refusal is not None:
            raise self.refusal
        return super().put(content)


class Shifted(SystemClock):
    """A clock that goes wrong by so much."""

    milliseconds = 0

    def now_milliseconds(self) -> int:
        return super().now_milliseconds() + self.milliseconds


class Place:
    """A journal, blobs and sums; aggregators that come and go, and a coordinator."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.journal = MemoryJournal()
        self.blobs = LocalBlobs(folder / "blobs")
        self.refusing = Refusing(folder / "blobs")
        self.outcomes: Counter[str] = Counter()
        self.clock = Shifted()
        self.aggregators: list[Aggregator] = []
        self.stacks: list[AsyncExitStack] = []
        self.coordinator: Coordinator

    async def begin(self, aggregators: int) -> None:
        for number in range(aggregators):
            stack = AsyncExitStack()
            place = running(
                self.folder / f"aggregator-{number}",
                self.journal,
                sums=self.folder / "sums",
                blobs_folder=self.folder / "blobs",
                store=WatchedBlobs(self.refusing, lambda outcome, _: self.outcomes.update([outcome])),
                clock=self.clock,
            )
            self.aggregators.append(await stack.enter_async_context(place))
            self.stacks.append(stack)
        targets = ",".join(each.target for each in self.aggregators)
        self.coordinator = Coordinator(self.journal, self.blobs, targets, connect=connect)
        await self.coordinator.start()

    async def end(self) -> None:
        await self.coordinator.stop()
        for stack in self.stacks:
            await stack.aclose()

    async def take_part(self, number: int, may_join: asyncio.Event) -> Participation:
        key = Ed25519PrivateKey.from_private_bytes(number.to_bytes(32, "little"))
        known = Circumstances(
            population=POPULATION,
            floors=read_floors([PUBLISHER], "allowed", 3),
            speaker=Speaker(self.coordinator.target, public_bytes(key), key.sign),
            examples=Examples(),
            minimum_examples=0,
            cache=BlobCache(),
            entropy=random.Random(number).randbytes,
            clock=time.monotonic,
            wall_clock=time.time,
            patience=Patience(session_attempts=400, first_seconds=0.05, longest_seconds=0.1),
        )
        transport = Held(may_join)
        try:
            return (await drive(take_part(known), transport)).participation
        finally:
            await transport.close()

    async def event_of(self, part: int, kind: type) -> None:
        """Returns once a group of a part has an event of a kind."""
        stream = f"group/1.1{f'.{part}' if part else ''}/0"
        version = 0
        while True:
            for recorded in await self.journal.tail(TASK, stream, version, 100):
                version += 1
                if isinstance(CODEC.decode(recorded.event), kind):
                    return

    async def round_events(self) -> list[Any]:
        return [entry.event for entry in await ledger.load_round_entries(self.journal, TASK, 1)]


def connect(target: str) -> grpc.aio.Channel:
    return open_service_channel(target, Settings(round_token_key=TOKEN_KEY.hex()))


@asynccontextmanager
async def place(folder: Path, aggregators: int) -> AsyncIterator[Place]:
    made = Place(folder)
    await made.begin(aggregators)
    try:
        yield made
    finally:
        await made.end()


def spec_of(blobs: LocalBlobs, protocol: str) -> TaskSpec:
    plan = bundle.make_plan()
    for content in plan.blobs.values():
        blobs.put(content)
    spec = make_spec(
        plan.reference(plan.digest),
        report_goal=DEVICES,
        over_selection=1.0,
        minimum_cohort=DEVICES,
        minimum_reports=DEVICES,
        reporting_milliseconds=120_000,
        aggregating_milliseconds=60_000,
    )
    spec.signature.CopyFrom(manifests.sign_plan(plan.digest, bundle.PUBLISHER))
    spec.work.CopyFrom(LocalWork(split=task_pb2.SPLIT_RULE_ALTERNATE_BATCHES, minimum_examples=2))
    spec.secure_sum.CopyFrom(
        SecureSum(
            protocol=PROTOCOLS[protocol],
            ring_bits=32,
            maximum_reports=PER_GROUP,
            maximum_weight=20,
            minimum_group=3,
        )
    )
    return spec


def committed_in(events: Sequence[Any]) -> Committed:
    (committed,) = [event for event in events if isinstance(event, Committed)]
    return committed


async def one_round(made: Place, protocol: str, meanwhile: Callable[[asyncio.Event], Any]) -> list[Participation]:
    await made.coordinator.create(spec_of(made.blobs, protocol))
    may_join = asyncio.Event()
    devices = [asyncio.create_task(made.take_part(number, may_join)) for number in range(1, DEVICES + 1)]
    await made.coordinator.until(Phase.REPORTING)
    await meanwhile(may_join)
    told = await asyncio.gather(*devices)
    await made.coordinator.until(Phase.COMMITTED)
    return list(told)


async def at_once(may_join: asyncio.Event) -> None:
    may_join.set()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Committed:
    """The round as one aggregator sums it."""

    async def play() -> Committed:
        async with place(tmp_path_factory.mktemp("alone"), 1) as made:
            await one_round(made, "trusted", at_once)
            return committed_in(await made.round_events())

    return asyncio.run(play())


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_round_on_two_aggregators_is_the_round_on_one(tmp_path: Path, protocol: str, alone: Committed) -> None:
    async with place(tmp_path, 2) as made:
        told = await one_round(made, protocol, at_once)
        assert {each.outcome for each in told} == {Outcome.UPLOADED}
        events = await made.round_events()
        (assigned,) = [event for event in events if isinstance(event, Assigned)]
        assert {part.aggregator for part in assigned.parts} == {each.target for each in made.aggregators}
        assert [len(part.groups) for part in assigned.parts] == [1, 1]
        assert sorted(slot.part for slot in assigned.slots) == [0] * PER_GROUP + [1] * PER_GROUP
        committed = committed_in(events)
        assert committed.reports == DEVICES
        assert (committed.sum_digest, committed.checkpoint) == (alone.sum_digest, alone.checkpoint)
        for each in made.aggregators:
            assert each.counted("reports_total", outcome="accepted") == PER_GROUP


@pytest.mark.parametrize(
    ("protocol", "moment"), [("trusted", Accepted), ("masked", RosterFrozen), ("masked", UploadsEnded)]
)
async def test_a_round_goes_on_at_another_aggregator_when_one_is_killed(
    tmp_path: Path, protocol: str, moment: type, alone: Committed, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def kept(_: Holding) -> None:
        """Who is killed gives nothing back."""

    monkeypatch.setattr(holding, "LEASE_MILLISECONDS", 400)
    monkeypatch.setattr(holding, "RENEW_MILLISECONDS", 100)
    monkeypatch.setattr(Holding, "end", kept)
    async with place(tmp_path, 2) as made:

        async def kill(may_join: asyncio.Event) -> None:
            attempt = (await ledger.load_round(made.journal, TASK, 1)).last
            assert attempt is not None
            targets = [each.target for each in made.aggregators]
            may_join.set()
            await made.event_of(1, moment)
            await made.stacks[targets.index(attempt.parts[1].aggregator)].aclose()

        told = await one_round(made, protocol, kill)
        events = await made.round_events()
        assert {each.outcome for each in told} == {Outcome.UPLOADED}
        assert {each.fate for each in told} <= {Fate.PENDING, Fate.COUNTED}
        (moved,) = [event for event in events if isinstance(event, GroupsMoved)]
        (assigned,) = [event for event in events if isinstance(event, Assigned)]
        assert (moved.part, moved.aggregator) == (1, assigned.parts[0].aggregator)
        committed = committed_in(events)
        assert committed.reports == DEVICES
        assert (committed.sum_digest, committed.checkpoint) == (alone.sum_digest, alone.checkpoint)


async def test_a_round_waits_for_blobs_that_are_refused_and_loses_nothing(tmp_path: Path, alone: Committed) -> None:
    async with place(tmp_path, 1) as made:

        async def refuse(may_join: asyncio.Event) -> None:
            made.refusing.refusal = PermissionError("Access Denied")
            may_join.set()
            await until_true(lambda: made.outcomes["refused"] >= 2)  # asked again
            assert made.coordinator.counted("rounds_total", task=TASK, outcome="committed") == 0
            made.refusing.refusal = None

        told = await one_round(made, "trusted", refuse)
        assert {each.outcome for each in told} == {Outcome.UPLOADED}
        committed = committed_in(await made.round_events())
        assert (committed.reports, committed.checkpoint) == (DEVICES, alone.checkpoint)


async def test_clocks_half_a_minute_apart_cost_a_round_nothing(tmp_path: Path, alone: Committed) -> None:
    async with place(tmp_path, 2) as made:
        made.clock.milliseconds = 30_000
        await one_round(made, "trusted", at_once)
        assert committed_in(await made.round_events()).checkpoint == alone.checkpoint


async def test_a_clock_that_is_far_ahead_is_the_reason_and_the_next_attempt_is_made(tmp_path: Path) -> None:
    async with place(tmp_path, 1) as made:
        made.clock.milliseconds = 24 * 3_600_000
        await made.coordinator.create(spec_of(made.blobs, "trusted"))
        may_join = asyncio.Event()
        may_join.set()
        devices = [asyncio.create_task(made.take_part(number, may_join)) for number in range(1, DEVICES + 1)]
        abandoned = (await made.coordinator.until(Phase.ABANDONED)).abandoned
        assert abandoned is not None
        assert "would expire before it begins" in abandoned.reason
        made.clock.milliseconds = 0
        for device in devices:
            device.cancel()
        await asyncio.gather(*devices, return_exceptions=True)
        again = [asyncio.create_task(made.take_part(number, may_join)) for number in range(1, DEVICES + 1)]
        mended = await made.coordinator.until(Phase.COMMITTED)
        assert mended.attempt > 1
        await asyncio.gather(*again)


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_report_is_followed_from_check_in_to_checkpoint_and_nobody_by_it(tmp_path: Path, protocol: str) -> None:
    exporter = InMemorySpanExporter()
    end = use_traces(Traces("test", SimpleSpanProcessor(exporter)))
    try:
        async with place(tmp_path, 2) as made:
            told = await one_round(made, protocol, at_once)
            attempt = (await ledger.load_round(made.journal, TASK, 1)).last
    finally:
        end()
    assert attempt is not None
    traced = Attempt(TASK, 1, attempt.attempt)
    spans = [each for each in exporter.get_finished_spans() if each.context.trace_id == traced.trace_id]
    counted = Counter(each.name for each in spans)
    masked = ("join", "share", "unmask") if protocol == "masked" else ("join",)
    for name in ("check-in", "upload", "finish", *masked):
        assert counted[name] >= DEVICES, name
    phases = ("selecting", "reporting", "aggregating")
    assert [counted[name] for name in (*phases, "merge", "round")] == [1, 1, 1, 1, 1]
    assert min(counted["open"], counted["close"]) >= 2, "on both aggregators"
    (root,) = [each for each in spans if each.name == "round"]
    assert root.context.span_id == traced.root_id
    assert root.parent is None
    assert dict(root.attributes or {}) == {
        "fedrecon.task": TASK,
        "fedrecon.round": 1,
        "fedrecon.attempt": attempt.attempt,
        "fedrecon.outcome": "committed",
        "fedrecon.kind": "train",
        "fedrecon.reports": DEVICES,
        "fedrecon.devices": DEVICES,
    }
    assert all(each.parent is not None and each.parent.span_id == traced.root_id for each in spans if each is not root)
    written = "".join(each.to_json() for each in spans)
    assert len(told) == DEVICES
    for slot in attempt.slots:
        assert slot.session.hex() not in written
        assert slot.device.hex() not in written
    words = {key for each in spans for key in each.attributes or {}}
    assert words == {
        f"fedrecon.{word}"
        for word in (
            "task",
            "round",
            "attempt",
            "outcome",
            "kind",
            "reports",
            "devices",
            "bytes",
            "groups",
            "discard",
            "succeeded",
        )
    }


async def test_a_drained_aggregator_gets_no_groups_and_is_empty_when_its_own_have_ended(tmp_path: Path) -> None:
    async with place(tmp_path, 2) as made:
        admin, target = made.coordinator.admin, made.aggregators[0].target

        async def states() -> dict[str, admin_pb2.AggregatorState]:
            listed = await admin.ListAggregators(admin_pb2.ListAggregatorsRequest(), timeout=10)
            return {each.target: each for each in listed.aggregators}

        async def drain(may_join: asyncio.Event) -> None:
            assert [each.open_groups for each in (await states()).values()] == [1, 1]
            drained = await admin.DrainAggregator(
                admin_pb2.DrainAggregatorRequest(target=target, reason="new disk"), timeout=10
            )
            assert (drained.aggregator.drained, drained.aggregator.open_groups) == (True, 1)
            may_join.set()

        await one_round(made, "trusted", drain)
        assert (await states())[target].open_groups == 0
        may_join = asyncio.Event()
        may_join.set()
        devices = [asyncio.create_task(made.take_part(number, may_join)) for number in range(1, DEVICES + 1)]
        second = await made.coordinator.until(Phase.COMMITTED, number=2)
        assert [part.aggregator for part in second.parts] == [made.aggregators[1].target]
        await asyncio.gather(*devices)
        await admin.UndrainAggregator(admin_pb2.UndrainAggregatorRequest(target=target), timeout=10)
        assert not (await states())[target].drained
        audit = (await admin.ListAudit(admin_pb2.ListAuditRequest(), timeout=10)).entries
        told = [(each.action, each.reason) for each in audit if "Aggregator" in each.action]
        assert told == [("UndrainAggregator", target), ("DrainAggregator", f"{target}: new disk")]
        unknown = admin.DrainAggregator(admin_pb2.DrainAggregatorRequest(target="nowhere:1"), timeout=10)
        with pytest.raises(grpc.aio.AioRpcError, match="There is no aggregator"):
            await unknown


async def test_a_round_waits_while_all_aggregators_are_drained(tmp_path: Path) -> None:
    async with place(tmp_path, 1) as made:
        request = admin_pb2.DrainAggregatorRequest(target=made.aggregators[0].target)
        await made.coordinator.admin.DrainAggregator(request, timeout=10)
        await made.coordinator.create(spec_of(made.blobs, "trusted"))
        may_join = asyncio.Event()
        may_join.set()
        devices = [asyncio.create_task(made.take_part(number, may_join)) for number in range(1, DEVICES + 1)]
        runner = made.coordinator.roster.ready_runner(TASK)
        assert runner is not None
        await until_true(lambda: runner.seen.waiting == DEVICES)
        await asyncio.sleep(0.2)
        assert (await made.coordinator.until(Phase.SELECTING)).attempt == 1
        back = admin_pb2.UndrainAggregatorRequest(target=made.aggregators[0].target)
        await made.coordinator.admin.UndrainAggregator(back, timeout=10)
        assert (await made.coordinator.until(Phase.COMMITTED)).attempt == 1
        await asyncio.gather(*devices)
