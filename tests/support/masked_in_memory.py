"""A masked group of device cores and an aggregator's core, without a network, a disk or chance: the same every time."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedrecon.aggregator import groups
from fedrecon.aggregator.group_events import Accepted, Closed, Config, Metric, Opened, Phase, Report, Segment
from fedrecon.aggregator.groups import Group
from fedrecon.aggregator.secagg_plus import SecAggPlusSum
from fedrecon.aggregator.secure_sum import Keep, Unmask
from fedrecon.device_sdk.blob_cache import BlobCache
from fedrecon.device_sdk.calling import Line, Patience
from fedrecon.device_sdk.delivery import Session, deliver_masked
from fedrecon.device_sdk.identity import public_bytes
from fedrecon.device_sdk.masking import Masking
from fedrecon.device_sdk.neighbourhood import MaskTerms
from fedrecon.device_sdk.requests import Call, Compute, Upload
from fedrecon.v1 import aggregator_pb2, coordinator_pb2, task_pb2
from fedrecon.v1.aggregator_pb2 import JoinRequest, ShareRequest, UnmaskRequest, UploadRequest, UploadResponse
from fedrecon.v1.common_pb2 import Credentials, RoundKey
from fedrecon.v1.coordinator_pb2 import Assignment
from fedrecon.wire import keystream
from fedrecon.wire.digests import digest_of
from fedrecon.wire.fixed_point import Vector, add, read_vector, zero

ROUND = RoundKey(task="films", round=1, attempt=1)
REQUESTS: dict[str, Any] = {"Join": JoinRequest, "Share": ShareRequest, "Unmask": UnmaskRequest}


def config_of(members: int, elements: int) -> Config:
    """Returns what a group of so many members sums."""
    return Config(
        task="films",
        round=1,
        attempt=1,
        kind=coordinator_pb2.SESSION_KIND_TRAIN,
        protocol=task_pb2.SUM_PROTOCOL_SECAGG_PLUS,
        segments=(Segment("items", elements, 1.0),),
        metrics=(Metric("squared_error", 25.0),),
        ring_bits=32,
        maximum_reports=members,
        maximum_weight=10,
        minimum_group=3,
        cohort_size=members,
        plan_digest=digest_of(b"plan"),
        checkpoint_digest=digest_of(b"checkpoint"),
        expires_milliseconds=10**12,
        report_goal=members,
        joining_ends_milliseconds=10**9,
        phase_milliseconds=10**6,
    )


def stream_of(name: str) -> Callable[[int], bytes]:
    """Returns entropy that is the same every time, one stream for each name."""
    seed, place = hashlib.sha256(name.encode()).digest(), 0

    def draw(count: int) -> bytes:
        nonlocal place
        words = -(-count // keystream.WORD_BYTES)
        drawn = keystream.words(seed, "entropy", place, words).tobytes()[:count]
        place += words
        return drawn

    return draw


@dataclass
class Transcript:
    """What one device sent: the call's name and its bytes, in order."""

    sent: list[tuple[str, bytes]] = field(default_factory=list)


def run_group(vectors: Sequence[bytes], config: Config) -> tuple[list[Transcript], Vector]:
    """Lets devices report; returns what each of them sent, and the open sum."""
    members = [begin(number, config) for number in range(len(vectors))]
    cores = [
        deliver_masked(session, vector, masking) for (session, masking), vector in zip(members, vectors, strict=True)
    ]
    transcripts = [Transcript() for _ in vectors]
    protocol = SecAggPlusSum(config, stream_of("aggregator"))
    group, _ = groups.step(None, Opened(b"g" * 16, config, "holder", Phase.JOINING, 1))
    total = zero(config.fixed_point)
    asked: dict[int, Any] = {number: next(core) for number, core in enumerate(cores)}
    for number, request in asked.items():
        _note(transcripts[number], request)
    opened: Vector | None = None
    while asked:
        for number in list(asked):
            session = members[number][0].assignment.session
            answer, group = _answer(asked[number], session, protocol, group, total)
            if answer is None:
                continue
            try:
                asked[number] = cores[number].send(answer)
                _note(transcripts[number], asked[number])
            except StopIteration:
                del asked[number]
        match protocol.due(group, 2, 1, closing=False):
            case Keep() as keep:
                group, _ = groups.step(group, keep.event(digest_of(keep.content)))
            case Unmask() as unmask:
                opened = unmask.work(total)
                group, _ = groups.step(group, Closed(len(vectors), digest_of(opened.to_bytes()), 2, b"snapshot"))
            case None:
                pass
            case event:
                group, _ = groups.step(group, event)
    assert opened is not None
    return transcripts, opened


def begin(number: int, config: Config) -> tuple[Session, Masking]:
    """Returns a device with a report ready: the same for the same number."""
    key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"device %d" % number).digest())
    session_id, entropy = hashlib.sha256(b"session %d" % number).digest()[:16], stream_of(f"device {number}")
    assignment = Assignment(
        session=session_id,
        round=ROUND,
        aggregator="aggregator:1",
        kind=coordinator_pb2.SESSION_KIND_TRAIN,
        secure_sum=task_pb2.SecureSum(protocol=task_pb2.SUM_PROTOCOL_SECAGG_PLUS, minimum_group=3),
        round_token=bytes(40),
        session_key=bytes(32),
    )
    line = Line(lambda: 0.0, lambda: 0.0, entropy, Patience(), BlobCache(), session_key=bytes(32))
    terms = MaskTerms(
        round_key=ROUND,
        session=session_id,
        device_key=public_bytes(key),
        kind=config.kind,
        plan_digest=config.plan_digest,
        checkpoint_digest=config.checkpoint_digest,
        fixed_point=config.fixed_point,
        minimum_group=3,
    )
    session = Session(assignment, Credentials(device_key=public_bytes(key)), line)
    return session, Masking(entropy, key.sign, 3, terms)


def _note(transcript: Transcript, request: Any) -> None:
    match request:
        case Call():
            transcript.sent.append((request.method.name, request.body))
        case Upload():
            transcript.sent += [("Upload", part) for part in request.parts()]


def _answer(request: Any, session: bytes, protocol: SecAggPlusSum, group: Group, total: Vector) -> tuple[Any, Group]:
    match request:
        case Compute():
            return request.function(), group
        case Upload():
            header, *chunks = (UploadRequest.FromString(part) for part in request.parts())
            vector = b"".join(chunk.chunk.data for chunk in chunks)
            add(total, read_vector(vector, group.config.fixed_point))
            event = Accepted(
                (Report(session, digest_of(vector)),), len(group.reports) + 1, digest_of(session), b"sum", 2
            )
            return UploadResponse(digest=header.header.digest), groups.step(group, event)[0]
        case Call() if request.method.name == "UploadStatus":
            return aggregator_pb2.UploadStatusResponse(phase=aggregator_pb2.GROUP_PHASE_UPLOADING), group
        case Call():
            message = REQUESTS[request.method.name].FromString(request.body)
            protocol.receive(group, session, message, 1)
            return protocol.answer(group, session, message), group
    raise TypeError(f"a device asked for {type(request).__name__}")


def uniform_bytes(content: bytes) -> float:
    """Returns the chi-square statistic of bytes against all 256 values alike, in standard deviations from its mean."""
    counts = np.bincount(np.frombuffer(content, np.uint8), minlength=256)
    expected = len(content) / 256
    statistic = float(((counts - expected) ** 2 / expected).sum())
    return float((statistic - 255) / math.sqrt(2 * 255))
