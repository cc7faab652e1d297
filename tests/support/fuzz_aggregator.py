"""The aggregator's calls as subjects of fuzzing: sums that are open, masked ones in each phase, and the coordinator's.

Each situation is an aggregator of its own in this process, on a journal in memory, built the same every time. It is
built anew after an input that was allowed to change it.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any
from unittest import mock

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.message import Message

from fedrecon.aggregator.attempts import Attempts
from fedrecon.aggregator.device_service import DeviceService
from fedrecon.aggregator.holding import Holding
from fedrecon.aggregator.ingest import Staging
from fedrecon.aggregator.measures import Measures
from fedrecon.aggregator.messages import protocol_of
from fedrecon.aggregator.secagg_plus import SecAggPlusSum
from fedrecon.aggregator.snapshots import Snapshots
from fedrecon.aggregator.summing import Storage
from fedrecon.aggregator.sums_service import SumsService
from fedrecon.device_sdk.identity import public_bytes
from fedrecon.ops.blobs import LocalBlobs
from fedrecon.ops.clock import ManualClock
from fedrecon.ops.key_ring import KeyRing
from fedrecon.ops.metrics import Metrics
from fedrecon.ops.tokens import issue_token, session_key
from fedrecon.v1.aggregator_pb2 import (
    CloseRequest,
    GrowRequest,
    JoinRequest,
    MergeRequest,
    OpenRequest,
    SessionProof,
    ShareRequest,
    UnmaskRequest,
    UploadHeader,
    UploadRequest,
    UploadStatusRequest,
    WatchRequest,
)
from fedrecon.v1.common_pb2 import Credentials
from fedrecon.wire.chunks import cut
from fedrecon.wire.digests import digest_of
from fedrecon.wire.proofs import call_mac
from fedrecon.wire.tensors import write_safetensors
from support.aggregator_sample import CHECKPOINT, ROUND, SEAL_KEY, make_device, merging, opening
from support.device_bundle import make_plan
from support.fuzz_subjects import CountingJournal, Entropy, Parts, Subject, Verdict, ask, parse
from support.masked_sample import MaskedDevice, masked_terms

NOW = 1_800_000_000_000
LATER = NOW + 600_000
MEMBERS = 5
SERVICE = "/fedrecon.v1.Aggregator/"
SUMS = "/fedrecon.v1.Sums/"
STAGING_BYTES = 1 << 20
REQUESTS: dict[str, type[Message]] = {
    "Join": JoinRequest,
    "Share": ShareRequest,
    "UploadStatus": UploadStatusRequest,
    "Upload": UploadRequest,
    "Unmask": UnmaskRequest,
}


class Stage(IntEnum):
    """How far a masked group has come; its last member has not said what the stage waits for."""

    JOINING = 0
    SHARING = 1
    UPLOADING = 2
    UNMASKING = 3


@dataclass
class Sent:
    """Valid inputs: those that a service has had, and those that it waits for."""

    done: dict[str, list[list[bytes]]] = field(default_factory=dict)
    fresh: dict[str, list[list[bytes]]] = field(default_factory=dict)

    def note(self, name: str, messages: Sequence[Message], *, is_done: bool) -> None:
        kept = self.done if is_done else self.fresh
        kept.setdefault(name, []).append([message.SerializeToString() for message in messages])


class World:
    """One aggregator.

    Args:
        folder: for its files; nobody else's.
        proves: whether sessions must be proved.
        stage: of the masked group; None for a trusted sum.
        has_ended: whether the sum takes no more reports, and can be merged.
    """

    def __init__(self, folder: Path, *, proves: bool, stage: Stage | None, has_ended: bool = False) -> None:
        self._folder = folder
        self._has_ended = has_ended
        self._proves = proves
        self._stage = stage
        self._snapshots = Snapshots(folder / "own", SEAL_KEY, LocalBlobs(folder / "sums"))
        self._blobs = LocalBlobs(folder / "blobs")
        self.checkpoint = self._blobs.put(write_safetensors(CHECKPOINT))
        plan = make_plan()
        self.plan = self._blobs.put(plan.content)
        self.attempts: Attempts | None = None
        self.sent = Sent()
        self.keys: dict[bytes, bytes] = {}
        self.spoken: dict[str, set[bytes]] = {}
        self.token_key = digest_of(f"token key {proves} {stage}".encode())

    async def build(self) -> None:
        """Makes it anew, the same as before."""
        if self.attempts is not None:
            await self.attempts.stop()
        self.journal, self.sent, self.spoken = CountingJournal(ManualClock(NOW)), Sent(), {}
        clock, measures = ManualClock(NOW), Measures(Metrics.create("aggregator"))
        staging = Staging(STAGING_BYTES, time.monotonic, measures.pending_bytes.set)
        storage = Storage(self.journal, self._snapshots, clock, measures)
        holding = Holding(self._snapshots.holder, self.journal, clock)
        self.attempts = Attempts(storage, protocol_of, 3_600_000, holding)
        keys = KeyRing(self.token_key)
        self.devices = DeviceService(self.attempts, staging, keys, clock, measures, proves_sessions=self._proves)
        stopping = asyncio.Event()
        self.sums = SumsService(self.attempts, storage, staging, self._blobs, "aggregator:1", measures, stopping)
        entropy = Entropy("aggregator")
        with (
            mock.patch("os.urandom", entropy),
            mock.patch.object(secrets, "token_bytes", entropy),
            mock.patch("support.aggregator_sample.now", return_value=NOW),
        ):
            if self._stage is None:
                await self._build_trusted()
            else:
                await self._build_masked(self._stage)
            if self._has_ended:
                await self.sums.Close(CloseRequest(round=ROUND), None)
        self.before = self.state()

    async def _build_trusted(self) -> None:
        answer = await self.sums.Open(opening(self.checkpoint), None)
        group = answer.groups[0]
        for seed in range(3 if self._proves else 2):  # who is not done may still say anything
            device, is_done = make_device(seed), seed < 2
            key = hashlib.sha256(b"device %d" % seed).digest()
            await self._say(key, device.session, "Join", JoinRequest(), is_done=is_done)
            await self._upload(key, device.session, group, device.vector, is_done=is_done)
            question = UploadStatusRequest(group=group)
            await self._say(key, device.session, "UploadStatus", question, is_done=is_done)
            if is_done:
                await self._say(key, device.session, "Share", ShareRequest(group=group), is_done=True)
                await self._say(key, device.session, "Unmask", UnmaskRequest(group=group), is_done=True)

    async def _build_masked(self, stage: Stage) -> None:
        changes = {"secure_sum": masked_terms(), "cohort_size": MEMBERS, "report_goal": MEMBERS}
        times = {"joining_ends_unix_milliseconds": LATER, "phase_milliseconds": 600_000}
        group = (await self.sums.Open(opening(self.checkpoint, **changes, **times), None)).groups[0]
        members = [self._member(seed) for seed in range(MEMBERS)]
        joins = [member.keys() for member in members]
        await self._say_all(members, "Join", joins, waits=stage is Stage.JOINING)
        if stage is Stage.JOINING:
            return
        joined = [await self._say_again(member, "Join", join) for member, join in zip(members, joins, strict=True)]
        shares = []
        for member, answer in zip(members, joined, strict=True):
            sealed, commitment = member.begin().share(answer)
            shares.append(ShareRequest(group=group, shares=sealed, seed_commitment=commitment))
        await self._say_all(members, "Share", shares, waits=stage is Stage.SHARING)
        if stage is Stage.SHARING:
            return
        shared = [await self._say_again(member, "Share", share) for member, share in zip(members, shares, strict=True)]
        for seed, (member, answer) in enumerate(zip(members, shared, strict=True)):
            vector = member.begin().mask(answer, member.vector)
            is_done = seed < MEMBERS - 1 or stage is not Stage.UPLOADING
            await self._upload(public_bytes(member.key), member.session, group, vector, is_done=is_done)
        questions = [UnmaskRequest(group=group) for _ in members]
        await self._say_all(members, "Unmask", questions, waits=False)
        if stage is Stage.UPLOADING:
            return
        lists = [await self._say_again(member, "Unmask", UnmaskRequest(group=group)) for member in members]
        self.spoken["Unmask"] = set()  # who asked may still reveal
        for seed, (member, answer) in enumerate(zip(members, lists, strict=True)):
            revealed = UnmaskRequest(group=group, shares=member.begin().reveal(answer))
            key = public_bytes(member.key)
            await self._say(key, member.session, "Unmask", revealed, is_done=seed < 1)

    def _member(self, seed: int) -> MaskedDevice:
        plain = make_device(seed)
        key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"device %d" % seed).digest())
        return MaskedDevice(plain.session, plain.vector, checkpoint=self.checkpoint, key=key)

    async def _say_all(self, members: list[MaskedDevice], name: str, messages: Sequence[Any], *, waits: bool) -> None:
        """Lets all members speak; where the stage `waits` for it, the last one does not."""
        for seed, (member, message) in enumerate(zip(members, messages, strict=True)):
            is_done = seed < MEMBERS - 1 or not waits
            await self._say(public_bytes(member.key), member.session, name, message, is_done=is_done)
        for _ in range(30):  # the group goes on beside the calls
            await asyncio.sleep(0)

    async def _say_again(self, member: MaskedDevice, name: str, message: Any) -> Any:
        made = self.proved(public_bytes(member.key), member.session, name, message)
        return await getattr(self.devices, name)(made, None)

    async def _say(self, key: bytes, session: bytes, name: str, message: Any, *, is_done: bool) -> None:
        made = self.proved(key, session, name, message)
        self.sent.note(name, [made], is_done=is_done)
        if is_done:
            self.spoken.setdefault(name, set()).add(session)
            await ask(getattr(self.devices, name), [made])

    async def _upload(self, key: bytes, session: bytes, group: bytes, vector: bytes, *, is_done: bool) -> None:
        header = UploadHeader(group=group, size=len(vector), digest=digest_of(vector))
        made = UploadRequest(header=self.proved(key, session, "Upload", header))
        parts = [made, *(UploadRequest(chunk=chunk) for chunk in cut(vector, 0, 40))]
        self.sent.note("Upload", parts, is_done=is_done)
        if is_done:
            self.spoken.setdefault("Upload", set()).add(session)
            assert await ask(self.devices.Upload, parts, streams=True) is not None

    def proved(self, key: bytes, session: bytes, name: str, message: Any) -> Any:
        """Returns a message with its session's token and MAC."""
        self.keys[session] = key
        credentials = Credentials(device_key=key, nonce=hashlib.sha256(session + name.encode()).digest()[:16])
        token = issue_token(self.token_key, ROUND, session, LATER)
        message.proof.CopyFrom(SessionProof(credentials=credentials, round=ROUND, session=session, round_token=token))
        self.reprove(session, name, message)
        return message

    def state(self) -> tuple[Any, ...]:
        """What an input may not change without leave."""
        assert self.attempts is not None
        attempt = self.attempts.find(ROUND)
        protocol = attempt.summings[0].protocol
        heard: tuple[Any, ...] = ()
        if isinstance(protocol, SecAggPlusSum):
            heard = (dict(protocol._joins), dict(protocol._shares), dict(protocol._revealed))
        reports = dict(attempt.summings[0].group.reports)
        return self.journal.writes, [set(joined) for joined in attempt.joined], reports, heard

    def reprove(self, session: bytes, name: str, message: Any) -> None:
        """Makes the MAC that the session's own device would make for a message."""
        credentials = message.proof.credentials
        secret = session_key(self.token_key, ROUND, session, self.keys.get(session, b""))
        try:
            credentials.mac = call_mac(secret, SERVICE + name, message, credentials)
        except ValueError:  # its nonce is none: there is nothing to prove
            credentials.mac = b""

    async def stop(self) -> None:
        """Ends what it does, for good."""
        if self.attempts is not None:
            await self.attempts.stop()
        self._snapshots.close()


def subjects(world: World, situation: str) -> list[Subject]:
    """Returns the calls of devices in a situation."""
    made = []
    for name in REQUESTS:
        done, fresh = world.sent.done.get(name, []), world.sent.fresh.get(name, [])
        if not done and not fresh:
            continue
        if world._proves:
            made.append(_subject(f"{situation} proved", name, [*done, *fresh], _Proved(world, name)))
            if done:
                made.append(_subject(f"{situation} lying", name, done, _Lying(world, name, may_change=False)))
            if fresh:
                lying = _Lying(world, name, may_change=True)
                made.append(_subject(f"{situation} lying anew", name, fresh, lying, share=0.1))
        elif done:
            made.append(_subject(f"{situation} by token", name, done, _ByToken(world, name)))
    return made


def _subject(situation: str, name: str, seeds: list[list[bytes]], feed: Any, share: float = 1.0) -> Subject:
    return Subject(f"{situation}: {name}", (SERVICE + name,), REQUESTS[name], tuple(seeds), feed, share)


@dataclass(frozen=True)
class _Feed:
    """Gives an input to a call of devices."""

    world: World
    name: str

    async def ask(self, messages: list[Any]) -> Any:
        return await ask(getattr(self.world.devices, self.name), messages, streams=self.name == "Upload")

    def read(self, parts: Parts) -> list[Any] | None:
        streams = self.name == "Upload"
        return parse(parts if streams else parts[:1], REQUESTS[self.name])


class _ByToken(_Feed):
    """A session that is done, and proves itself by its token alone: nothing changes, whatever it says."""

    async def __call__(self, parts: Parts) -> Verdict:
        messages = self.read(parts)
        answer = None if messages is None else await self.ask(messages)
        return await _judged(self.world, answer, may_change=False)


class _Proved(_Feed):
    """Calls with a MAC: only the valid ones are answered."""

    async def __call__(self, parts: Parts) -> Verdict:
        messages = self.read(parts)
        if messages is None:
            return Verdict.REFUSED
        answer = await self.ask(messages)
        is_valid = any(_is_same(self.name, messages, valid) for valid in _valid(self.world, self.name))
        if answer is not None and not is_valid:
            return Verdict.ACCEPTED
        return await _judged(self.world, answer, may_change=is_valid)


@dataclass(frozen=True)
class _Lying(_Feed):
    """A member that proves what it says, with the key of its own session."""

    may_change: bool

    async def __call__(self, parts: Parts) -> Verdict:
        messages = self.read(parts)
        if messages is None:
            return Verdict.REFUSED
        may_change = self.may_change
        if messages:
            spoken = messages[0].header if self.name == "Upload" else messages[0]
            session = spoken.proof.session
            self.world.reprove(session, self.name, spoken)
            may_change |= session not in self.world.spoken.get(
                self.name, set()
            )  # a whole input of one who is still to speak
        return await _judged(self.world, await self.ask(messages), may_change=may_change)


async def _judged(world: World, answer: Any, *, may_change: bool) -> Verdict:
    """Returns how an input ended; the world is as it was afterwards."""
    if world.state() == world.before:
        return Verdict.REFUSED if answer is None else Verdict.ANSWERED
    await world.build()
    return Verdict.ANSWERED if may_change else Verdict.ACCEPTED


def _valid(world: World, name: str) -> list[list[bytes]]:
    return world.sent.done.get(name, []) + world.sent.fresh.get(name, [])


def _is_same(name: str, messages: list[Any], valid: Parts) -> bool:
    """Whether messages say what is proved by a valid input; the chunks of an upload are proved by its digest."""
    if not messages:
        return False
    proved, other = messages[0], REQUESTS[name].FromString(valid[0])
    return bool(_without_signature(proved, name) == _without_signature(other, name))


def _without_signature(message: Any, name: str) -> Any:
    copied = type(message)()
    copied.CopyFrom(message)
    spoken = copied.header if name == "Upload" else copied
    spoken.proof.credentials.ClearField("signature")
    return copied


def sums_subjects(world: World) -> list[Subject]:
    """Returns the coordinator's calls: who makes them was proved at the boundary, and they may change what they say."""
    group = world.attempts.find(ROUND).summings[0].group.group if world.attempts else b""
    with mock.patch("support.aggregator_sample.now", return_value=NOW):
        again = opening(world.checkpoint)
        other = opening(world.checkpoint, plan_digest=world.plan)
    other.round.attempt = 2
    optimizer = merging(world.checkpoint, [group]).optimizer
    grow = GrowRequest(
        plan_digest=world.plan, checkpoint_digest=world.checkpoint, optimizer=optimizer, rows={"items": 8}
    )
    seeds: dict[str, tuple[type[Message], list[Any], float]] = {
        "Open": (OpenRequest, [again, other], 0.3),
        "Close": (CloseRequest, [CloseRequest(round=ROUND), CloseRequest(round=ROUND, discard=True)], 0.1),
        "Watch": (WatchRequest, [WatchRequest(round=ROUND)], 0.3),
        "Merge": (MergeRequest, [merging(world.checkpoint, [group])], 0.3),
        "Grow": (GrowRequest, [grow], 0.3),
    }

    return [_sums_subject(world, f"sums: {name}", name, *seed) for name, seed in seeds.items()]


def merge_subject(world: World) -> Subject:
    """Returns the merge of a sum that has ended: whatever it is bent to, it writes blobs alone."""
    assert world.attempts is not None
    group = world.attempts.find(ROUND).summings[0].group.group
    seed = merging(world.checkpoint, [group])
    return _sums_subject(world, "ended: Merge", "Merge", MergeRequest, [seed], 1.0, may_change=False)


def _sums_subject(
    world: World,
    title: str,
    name: str,
    kind: type[Message],
    messages: list[Any],
    share: float,
    *,
    may_change: bool = True,
) -> Subject:
    async def feed(parts: Parts) -> Verdict:
        given = parse(parts[:1], kind)
        answer = None if given is None else await ask(getattr(world.sums, name), given)
        return await _judged(world, answer, may_change=may_change)

    seeds = tuple([message.SerializeToString()] for message in messages)
    return Subject(title, (SUMS + name,), kind, seeds, feed, share)


async def build_all(folder: Path) -> tuple[list[World], list[Subject]]:
    """Returns all aggregators, and what is fuzzed of them."""
    situations: list[tuple[str, bool, Stage | None]] = [
        ("trusted", False, None),
        ("trusted", True, None),
        *((f"masked, {stage.name.lower()}", True, stage) for stage in Stage),
    ]
    worlds, made = [], []
    for place, (situation, proves, stage) in enumerate(situations):
        (folder / str(place)).mkdir()
        world = World(folder / str(place), proves=proves, stage=stage)
        await world.build()
        worlds.append(world)
        made += subjects(world, situation)
    opened = World(folder / "sums", proves=False, stage=None)
    ended = World(folder / "ended", proves=False, stage=None, has_ended=True)
    for world in (opened, ended):
        await world.build()
    return [*worlds, opened, ended], [*made, *sums_subjects(opened), merge_subject(ended)]
