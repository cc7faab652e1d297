"""The coordinator's calls as subjects of fuzzing: devices with and without enrolment, operators, and strangers.

Each situation is a coordinator of its own in this process, on a journal in memory, with a round in which reports are
waited for. It is built the same every time, and anew after an input that was allowed to change it.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import hashlib
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.message import Message

from fedrecon.coordinator.admin import ROLES, AdminService
from fedrecon.coordinator.aggregators import OpenedPart
from fedrecon.coordinator.enrolment_service import EnrolmentService
from fedrecon.coordinator.forgotten import Forgotten
from fedrecon.coordinator.measures import Measures
from fedrecon.coordinator.nonces import Nonces
from fedrecon.coordinator.peers import Peers
from fedrecon.coordinator.reading import Reader
from fedrecon.coordinator.roster import Roster
from fedrecon.coordinator.service import CandidatesService, CoordinatorService
from fedrecon.coordinator.speakers import Speakers
from fedrecon.coordinator.surroundings import Surroundings
from fedrecon.ops.blobs import LocalBlobs
from fedrecon.ops.boundary import Boundary
from fedrecon.ops.callers import Callers
from fedrecon.ops.clock import ManualClock
from fedrecon.ops.key_ring import KeyRing
from fedrecon.ops.limits import Limits
from fedrecon.ops.metrics import Metrics
from fedrecon.ops.service_identity import PROOF_METADATA, prove
from fedrecon.v1 import admin_pb2, aggregator_pb2, coordinator_pb2, enrolment_pb2
from fedrecon.v1.aggregator_pb2 import GrowRequest, GrowResponse, OpenRequest
from fedrecon.v1.common_pb2 import BlobReference, Credentials
from fedrecon.v1.coordinator_pb2 import (
    Assignment,
    CheckInRequest,
    FinishSessionRequest,
    HandOverRequest,
    LocateRequest,
)
from fedrecon.wire.chunks import cut
from fedrecon.wire.digests import digest_of
from fedrecon.wire.proofs import call_mac, call_transcript, enrolment_transcript
from support.coordinating import KEY, POPULATION, TASK, make_plan, make_spec
from support.fuzz_subjects import (
    AbortedCall,
    CountingJournal,
    Entropy,
    FakeContext,
    Parts,
    Subject,
    Verdict,
    ask,
    parse,
)

NOW = 1_800_000_000_000
DEVICES = 4
COORDINATOR = "/fedrecon.v1.Coordinator/"
ENROLMENT = "/fedrecon.v1.Enrolment/"
ADMIN = "/fedrecon.v1.Admin/"
HAND_OVER = "/fedrecon.v1.Candidates/HandOver"
TOKEN_MILLISECONDS = 3_600_000
KINDS: dict[str, type[Message]] = {
    COORDINATOR + "CheckIn": CheckInRequest,
    COORDINATOR + "FinishSession": FinishSessionRequest,
    COORDINATOR + "Locate": LocateRequest,
    ENROLMENT + "Challenge": enrolment_pb2.ChallengeRequest,
    ENROLMENT + "Enrol": enrolment_pb2.EnrolRequest,
    ENROLMENT + "Renew": enrolment_pb2.RenewRequest,
    ENROLMENT + "Forget": enrolment_pb2.ForgetRequest,
}


class StillAggregators:
    """One that opens groups, and of which nothing more is heard."""

    targets = ("aggregator:1",)

    async def ready(self) -> tuple[str, ...]:
        return self.targets

    async def status(self, target: str) -> None:
        del target

    async def open(self, requests: Sequence[OpenRequest], targets: Sequence[str]) -> tuple[OpenedPart, ...]:
        del targets
        return tuple(OpenedPart(each, (bytes(16),), "aggregator:1") for each in requests)

    async def follow(self, *arguments: Any) -> None:
        del arguments
        await asyncio.Event().wait()

    async def grow(self, request: GrowRequest) -> GrowResponse:
        state = BlobReference(digest=request.optimizer_state_digest, size=1) if request.optimizer_state_digest else None
        return GrowResponse(checkpoint=BlobReference(digest=request.checkpoint_digest, size=18), optimizer_state=state)


@contextlib.contextmanager
def the_same_every_time(name: str) -> Iterator[None]:
    """Lets what is drawn at random be the same every time."""
    entropy = Entropy(name)
    with mock.patch("os.urandom", entropy), mock.patch.object(secrets, "token_bytes", entropy):
        yield


class World:
    """One coordinator.

    Args:
        folder: for its blobs.
        proves: whether devices must be enrolled.
        runs: whether it runs its task; operators are answered without.
    """

    def __init__(self, folder: Path, *, proves: bool, runs: bool = True) -> None:
        self._folder = folder
        self._builds = 0
        self._proves = proves
        self._runs = runs
        self._work: asyncio.Task[Any] | None = None
        self.seeds: dict[str, list[bytes]] = {}
        self.token_key = digest_of(f"token key {proves} {runs}".encode())

    async def build(self) -> None:
        """Makes it anew, the same as before; what lies in its folder tells of another journal."""
        await self.stop()
        shutil.rmtree(self._folder / str(self._builds), ignore_errors=True)
        self._builds += 1
        self._blobs = LocalBlobs(self._folder / str(self._builds))
        self.spec = make_spec(make_plan(self._blobs), reporting_milliseconds=TOKEN_MILLISECONDS)
        self.clock = ManualClock(NOW)
        self.journal = CountingJournal(self.clock)
        around = Surroundings(
            journal=self.journal,
            blobs=self._blobs,
            aggregators=StillAggregators(),  # type: ignore[arg-type]  # as much of it as is called here
            clock=self.clock,
            measures=Measures(Metrics.create("coordinator")),
            key=KEY,
            token_keys=KeyRing(self.token_key),
            peers=Peers(lambda _: None),  # type: ignore[arg-type, return-value]  # there are none
            target="coordinator:1",
        )
        self.roster = Roster(around)
        self.forgotten = Forgotten(self.journal, KEY, self.clock)
        limits = Limits(0, 1, time.monotonic)
        nonces = Nonces(self.journal)
        speakers = Speakers(around.token_keys, nonces, self.forgotten, limits, self.clock, is_required=self._proves)
        self.devices = CoordinatorService(self.roster, 60_000, speakers, proves_sessions=self._proves)
        self.enrolment = EnrolmentService(around, speakers, self.forgotten, TOKEN_MILLISECONDS, None)
        self.candidates = CandidatesService(self.roster)
        self.admin = AdminService(self.roster, asyncio.Event())
        self.valid: dict[str, list[bytes]] = {}
        self.done: dict[str, list[bytes]] = {}
        with the_same_every_time("coordinator"):
            await self.admin.CreateTask(admin_pb2.CreateTaskRequest(spec=self.spec), None)
            if self._runs:
                self._work = asyncio.create_task(self.roster.run())
                await self._begin_round()
        self.before = self.state()
        self.seeds = self.seeds or self.valid
        if self.valid != self.seeds:
            raise RuntimeError("the coordinator was built otherwise than before: its inputs would be stale")

    async def stop(self) -> None:
        """Ends what it does beside its calls."""
        if self._work is not None:
            self._work.cancel()
            await asyncio.gather(self._work, return_exceptions=True)
        await _settle()

    async def _begin_round(self) -> None:
        await _settle()
        keys = [Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"%d" % each).digest()) for each in range(5)]
        self.keys = {key.public_key().public_bytes_raw(): key for key in keys}
        self.tokens = {public: await self._enrol(public) if self._proves else b"" for public in self.keys}
        requests = [self._check_in(public) for public in self.keys]
        self.drawn = frozenset(list(self.keys)[:DEVICES])
        calls = [
            asyncio.create_task(self.devices.CheckIn(request, FakeContext(seconds=20)))
            for request in requests[:DEVICES]
        ]
        await _settle()
        while not all(call.done() for call in calls):  # everything settles in between: what is signed holds the time
            await self.clock.advance(20)
            await _settle()
        assignments = [call.result().assignment for call in calls]
        assert all(assignment.session for assignment in assignments)
        self.assignments = dict(zip(self.keys, assignments, strict=False))
        for place, (public, assignment) in enumerate(self.assignments.items()):
            self._locate(public, assignment)
            finish = self._finish(public, assignment)
            if place < 2:
                await self.devices.FinishSession(finish, FakeContext())
                self.done.setdefault(COORDINATOR + "FinishSession", []).append(finish.SerializeToString())
        for method in ("Renew", "Forget"):
            if self._proves:
                self._note(ENROLMENT + method, self._signed(ENROLMENT + method, next(iter(self.keys))))

    async def _enrol(self, public: bytes) -> bytes:
        question = enrolment_pb2.ChallengeRequest(device_key=public)
        self._note(ENROLMENT + "Challenge", question)
        asked = await self.enrolment.Challenge(question, None)
        signature = self.keys[public].sign(enrolment_transcript(public, asked.challenge, b""))
        request = enrolment_pb2.EnrolRequest(device_key=public, challenge=asked.challenge, signature=signature)
        self._note(ENROLMENT + "Enrol", request)
        return (await self.enrolment.Enrol(request, None)).token

    def _check_in(self, public: bytes) -> CheckInRequest:
        request = CheckInRequest(population=POPULATION, sdk_version="0.1.0", plan_formats=[1])
        if self._proves:
            request = self._signed(COORDINATOR + "CheckIn", public, request)
        else:
            request.credentials.device_key = public
        self._note(COORDINATOR + "CheckIn", request)
        return request

    def _signed(self, method: str, public: bytes, request: Any = None) -> Any:
        made: Any = KINDS[method]() if request is None else request
        nonce = hashlib.sha256(public + method.encode()).digest()[:16]
        made.credentials.CopyFrom(Credentials(device_key=public, token=self.tokens[public], nonce=nonce))
        self.resign(method, made)
        return made

    def resign(self, method: str, message: Any) -> None:
        """Signs a message with the key that it names, if this is a device's here."""
        credentials = message.credentials
        key = self.keys.get(credentials.device_key)
        with contextlib.suppress(ValueError):  # its nonce is none
            if key is not None:
                credentials.signature = key.sign(call_transcript(method, message, credentials))

    def _finish(self, public: bytes, assignment: Assignment) -> FinishSessionRequest:
        request = FinishSessionRequest(
            session=assignment.session,
            round=assignment.round,
            round_token=assignment.round_token,
            outcome=coordinator_pb2.SESSION_OUTCOME_UPLOADED,
            shape="-v[]+^",
        )
        if self._proves:
            nonce = hashlib.sha256(assignment.session).digest()[:16]
            request.credentials.CopyFrom(Credentials(device_key=public, nonce=nonce))
            self.reprove(request)
        self._note(COORDINATOR + "FinishSession", request)
        return request

    def _locate(self, public: bytes, assignment: Assignment) -> LocateRequest:
        request = LocateRequest(session=assignment.session, round=assignment.round, round_token=assignment.round_token)
        if self._proves:
            request.credentials.CopyFrom(Credentials(device_key=public, nonce=bytes(16)))
            self.reprove(request, "Locate")
        self._note(COORDINATOR + "Locate", request)
        return request

    def reprove(self, request: FinishSessionRequest | LocateRequest, method: str = "FinishSession") -> None:
        """Makes the MAC of the session that a message names, if it is one here."""
        for assignment in self.assignments.values():
            if assignment.session == request.session:
                with contextlib.suppress(ValueError):
                    request.credentials.mac = call_mac(
                        assignment.session_key, COORDINATOR + method, request, request.credentials
                    )

    def _note(self, method: str, request: Message) -> None:
        self.valid.setdefault(method, []).append(request.SerializeToString())

    def state(self) -> tuple[int, dict[str, int]]:
        """What an input may not change without leave."""
        return self.journal.writes, dict(self.forgotten._until)

    def method(self, path: str) -> Callable[..., Any]:
        """Returns the service's own method."""
        service = self.enrolment if path.startswith(ENROLMENT) else self.devices
        return getattr(service, path.rpartition("/")[2])  # type: ignore[no-any-return]

    async def judge(self, answer: Any, *, may_change: bool) -> Verdict:
        """Returns how an input ended; everything is as it was afterwards."""
        if self.state() == self.before:
            return Verdict.REFUSED if answer is None else Verdict.ANSWERED
        await self.build()
        return Verdict.ANSWERED if may_change else Verdict.ACCEPTED


@dataclass(frozen=True)
class _Proved:
    """Signed calls, and such with a MAC: only the valid ones are answered."""

    world: World
    method: str

    async def __call__(self, parts: Parts) -> Verdict:
        messages = parse(parts[:1], KINDS[self.method])
        if not messages:
            return Verdict.REFUSED
        said = _proved_part(self.method, messages[0].SerializeToString())
        is_valid = any(said == _proved_part(self.method, valid) for valid in self.world.valid[self.method])
        answer = await ask(self.world.method(self.method), messages)
        if answer is not None and not is_valid and not self.method.endswith("/Challenge"):
            return Verdict.ACCEPTED
        return await self.world.judge(answer, may_change=is_valid)


def _proved_part(method: str, content: bytes) -> Any:
    message: Any = KINDS[method].FromString(content)
    if method.startswith(COORDINATOR) or method.endswith(("Renew", "Forget")):
        has_mac = method.endswith(("FinishSession", "Locate"))
        message.credentials.ClearField("signature" if has_mac else "mac")
    return message


@dataclass(frozen=True)
class _LyingCheckIn:
    """An enrolled device that signs what it says: it spends nonces of its own, and only who was drawn is assigned."""

    world: World

    async def __call__(self, parts: Parts) -> Verdict:
        method = COORDINATOR + "CheckIn"
        messages = parse(parts[:1], CheckInRequest)
        if not messages:
            return Verdict.REFUSED
        if self.world._proves:
            self.world.resign(method, messages[0])
        answer = await ask(self.world.method(method), messages)
        self.world.before = self.world.state()
        if answer is None:
            return Verdict.REFUSED
        is_drawn = messages[0].credentials.device_key in self.world.drawn
        return Verdict.ACCEPTED if answer.HasField("assignment") and not is_drawn else Verdict.ANSWERED


@dataclass(frozen=True)
class _Finished:
    """A session that has ended, and proves what it says: nothing changes, whatever that is."""

    world: World

    async def __call__(self, parts: Parts) -> Verdict:
        messages = parse(parts[:1], FinishSessionRequest)
        if not messages:
            return Verdict.REFUSED
        if self.world._proves:
            self.world.reprove(messages[0])
        ended = {
            FinishSessionRequest.FromString(done).session for done in self.world.done[COORDINATOR + "FinishSession"]
        }
        answer = await ask(self.world.devices.FinishSession, messages)
        return await self.world.judge(answer, may_change=messages[0].session not in ended)


@dataclass(frozen=True)
class _Located:
    """A session that asks where its sum lies: nothing changes, whatever it says."""

    world: World

    async def __call__(self, parts: Parts) -> Verdict:
        messages = parse(parts[:1], LocateRequest)
        if not messages:
            return Verdict.REFUSED
        if self.world._proves:
            self.world.reprove(messages[0], "Locate")
        answer = await ask(self.world.devices.Locate, messages)
        return await self.world.judge(answer, may_change=False)


def device_subjects(world: World, situation: str) -> list[Subject]:
    """Returns the calls of devices."""
    check_in, finish, locate = COORDINATOR + "CheckIn", COORDINATOR + "FinishSession", COORDINATOR + "Locate"
    lying = [
        Subject(
            f"{situation}, lying: CheckIn",
            (check_in,),
            CheckInRequest,
            _seeds(world.valid[check_in]),
            _LyingCheckIn(world),
        ),
        Subject(
            f"{situation}, done: FinishSession",
            (finish,),
            FinishSessionRequest,
            _seeds(world.done[finish]),
            _Finished(world),
        ),
        Subject(f"{situation}, lying: Locate", (locate,), LocateRequest, _seeds(world.valid[locate]), _Located(world)),
    ]
    if not world._proves:
        return lying
    return lying + [
        Subject(
            f"{situation}, proved: {path.rpartition('/')[2]}", (path,), KINDS[path], _seeds(valid), _Proved(world, path)
        )
        for path, valid in world.valid.items()
    ]


async def _settle() -> None:
    """Lets everything that is under way come to where only the clock can move it."""
    for _ in range(4):
        await asyncio.sleep(0.001)
        for _ in range(50):
            await asyncio.sleep(0)


def _seeds(contents: list[bytes]) -> tuple[list[bytes], ...]:
    return tuple([content] for content in contents)


def admin_requests(world: World) -> dict[str, list[list[Any]]]:
    """Returns valid calls of operators."""
    renamed = copy.deepcopy(world.spec)
    renamed.name = "films2"
    named: dict[str, Any] = {"task": TASK}
    blob = [admin_pb2.PutBlobRequest(chunk=chunk) for chunk in cut(b"a blob of some bytes" * 9, 0, 50)]
    return {
        "PutBlob": [blob],
        "CreateTask": [[admin_pb2.CreateTaskRequest(spec=spec)] for spec in (world.spec, renamed)],
        "EditTask": [[admin_pb2.EditTaskRequest(spec=world.spec, version=1)]],
        "GetTask": [[admin_pb2.GetTaskRequest(**named)]],
        "ListTasks": [[admin_pb2.ListTasksRequest()]],
        "PauseTask": [[admin_pb2.PauseTaskRequest(**named, reason="a look")]],
        "ResumeTask": [[admin_pb2.ResumeTaskRequest(**named)]],
        "CancelTask": [[admin_pb2.CancelTaskRequest(**named, reason="over")]],
        "ListRounds": [[admin_pb2.ListRoundsRequest(**named, limit=5, before_round=2)]],
        "GetHistory": [[admin_pb2.GetHistoryRequest(**named, points=5)]],
        "GetCaller": [[admin_pb2.GetCallerRequest()]],
        "ExplainRound": [[admin_pb2.ExplainRoundRequest(**named, round=1)]],
        "WatchTask": [[admin_pb2.WatchTaskRequest(**named)]],
        "ListCheckpoints": [[admin_pb2.ListCheckpointsRequest(**named, limit=3)]],
        "RollBack": [[admin_pb2.RollBackRequest(**named, round=0, reason="worse")]],
        "GetPrivacy": [[admin_pb2.GetPrivacyRequest(**named)]],
        "ListAudit": [[admin_pb2.ListAuditRequest(**named, limit=3)]],
        "CollectBlobs": [[admin_pb2.CollectBlobsRequest(dry_run=True)]],
    }


def operator_subjects(world: World) -> list[Subject]:
    """Returns the calls of operators and coordinators: who they are was proved, and they may change what they say."""
    saved = copy.deepcopy(world.journal._tasks)

    def feed_of(method: Callable[..., Any], kind: type[Message], *, streams: bool) -> Callable[[Parts], Any]:
        async def feed(parts: Parts) -> Verdict:
            messages = parse(parts if streams else parts[:1], kind)
            if not messages:
                return Verdict.REFUSED
            answer = await ask(method, messages, streams=streams)
            if world.state() != world.before:
                world.journal._tasks = copy.deepcopy(saved)
                world.admin._reader = Reader(world.journal)
                world.before = world.state()
            return Verdict.REFUSED if answer is None else Verdict.ANSWERED

        return feed

    made = []
    for name, inputs in admin_requests(world).items():
        kind = type(inputs[0][0])
        feed = feed_of(getattr(world.admin, name), kind, streams=name == "PutBlob")
        seeds = tuple([message.SerializeToString() for message in each] for each in inputs)
        made.append(Subject(f"operator: {name}", (ADMIN + name,), kind, seeds, feed, 0.3))
    hand_over = HandOverRequest(
        task=TASK, replica=bytes(8), candidates=[coordinator_pb2.Candidate(priority=1, device_key=bytes(32))]
    )
    feed = feed_of(world.candidates.HandOver, HandOverRequest, streams=False)
    seed = ([hand_over.SerializeToString()],)
    made.append(Subject("coordinator: HandOver", (HAND_OVER,), HandOverRequest, seed, feed, 0.3))
    return made


def stranger_subjects(world: World) -> list[Subject]:
    """Returns internal calls by who cannot prove to be a service: whatever the proof is bent to, nothing is read."""
    boundary = Boundary(Metrics.create("coordinator"), Callers(KeyRing(world.token_key)))
    services = [coordinator_pb2.DESCRIPTOR, aggregator_pb2.DESCRIPTOR, admin_pb2.DESCRIPTOR]
    internal = [
        file.services_by_name[name] for file, name in zip(services, ("Candidates", "Sums", "Admin"), strict=True)
    ]
    boundary.internal.update(service.full_name for service in internal)
    boundary.roles.update({ADMIN + name: role for name, role in ROLES.items()})

    async def work() -> None:
        """Reads nothing: that it is called at all is what must not be."""

    def feed_of(path: str) -> Callable[[Parts], Any]:
        async def feed(parts: Parts) -> Verdict:
            try:
                await boundary.call(path, FakeContext([(PROOF_METADATA, b"".join(parts))]), work)
            except AbortedCall:
                return Verdict.REFUSED
            return Verdict.ACCEPTED

        return feed

    made = []
    for service in internal:
        for method in service.methods:
            path = f"/{service.full_name}/{method.name}"
            stale = prove(world.token_key, path, NOW - TOKEN_MILLISECONDS)
            other = prove(world.token_key, path + "2", NOW)
            made.append(Subject(f"stranger: {method.name}", (path,), None, ([stale], [other]), feed_of(path), 0.1))
    return made


async def build_all(folder: Path) -> tuple[list[World], list[Subject]]:
    """Returns all coordinators, and what is fuzzed of them."""
    enrolled, keyed = World(folder / "enrolled", proves=True), World(folder / "keyed", proves=False)
    operated = World(folder / "operated", proves=True, runs=False)
    for world in (enrolled, keyed, operated):
        await world.build()
    made = [
        *device_subjects(enrolled, "enrolled"),
        *device_subjects(keyed, "by key"),
        *operator_subjects(operated),
        *stranger_subjects(operated),
    ]
    return [enrolled, keyed, operated], made
