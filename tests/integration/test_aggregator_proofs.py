"""An aggregator that hears the devices of its sessions alone, and each call only as it was sent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from fedrecon.ops.tokens import issue_token, session_key
from fedrecon.v1 import aggregator_pb2
from fedrecon.v1.aggregator_pb2 import (
    JoinRequest,
    SessionProof,
    ShareRequest,
    UnmaskRequest,
    UploadHeader,
    UploadRequest,
    UploadStatusRequest,
)
from fedrecon.v1.common_pb2 import Credentials
from fedrecon.wire.chunks import cut
from fedrecon.wire.digests import digest_of
from fedrecon.wire.proofs import call_mac
from support.aggregator_sample import ROUND, TOKEN_KEY, Device, make_device, now, opened, refused, running

DEVICE_KEY = bytes(range(100, 132))
OLD_KEY = bytes(range(50, 82))


def proved(device: Device, name: str, request: Any, *, issuer: bytes = TOKEN_KEY, key: bytes = DEVICE_KEY) -> Any:
    """A request with the round token and the MAC that its device would make."""
    request.proof.CopyFrom(
        SessionProof(
            credentials=Credentials(device_key=key, nonce=os.urandom(16)),
            round=ROUND,
            session=device.session,
            round_token=issue_token(issuer, ROUND, device.session, now() + 60_000),
        )
    )
    credentials = request.proof.credentials
    secret = session_key(issuer, ROUND, device.session, DEVICE_KEY)
    credentials.mac = call_mac(secret, f"/fedrecon.v1.Aggregator/{name}", request, credentials)
    return request


def header(device: Device, group: bytes) -> UploadHeader:
    made: UploadHeader = proved(
        device, "Upload", UploadHeader(group=group, size=len(device.vector), digest=digest_of(device.vector))
    )
    return made


def parts(device: Device, first: UploadHeader) -> Iterator[UploadRequest]:
    yield UploadRequest(header=first)
    for chunk in cut(device.vector, 0, 1 << 20):
        yield UploadRequest(chunk=chunk)


async def test_a_session_is_served_for_its_own_device(tmp_path: Path) -> None:
    device = make_device(1)
    async with running(tmp_path, enrolment="required") as aggregator:
        _, groups = await opened(aggregator)
        join = proved(device, "Join", JoinRequest())
        for _ in range(2):  # the same bytes again get the same answer
            assert (await aggregator.devices.Join(join, timeout=5)).group == groups[0]
        first = header(device, groups[0])
        for _ in range(2):
            answer = await aggregator.devices.Upload(parts(device, first), timeout=5)
            assert answer.digest == digest_of(device.vector)
        question = proved(device, "UploadStatus", UploadStatusRequest(group=groups[0]))
        assert (await aggregator.devices.UploadStatus(question, timeout=5)).acknowledged


@pytest.mark.parametrize("name", ["Join", "Share", "UploadStatus", "Upload", "Unmask"])
async def test_no_call_of_a_session_is_heard_without_its_proof(tmp_path: Path, name: str) -> None:
    device = make_device(1)
    requests: dict[str, Any] = {
        "Join": JoinRequest(),
        "Share": ShareRequest(group=b"g" * 16),
        "UploadStatus": UploadStatusRequest(group=b"g" * 16),
        "Upload": UploadHeader(group=b"g" * 16),
        "Unmask": UnmaskRequest(group=b"g" * 16),
    }
    other_method = "Unmask" if name == "Join" else "Join"
    async with running(tmp_path, enrolment="required") as aggregator:
        await opened(aggregator)

        async def call(request: Any) -> Any:
            if name == "Upload":
                return await aggregator.devices.Upload(parts(device, request), timeout=5)
            return await getattr(aggregator.devices, name)(request, timeout=5)

        bent = []
        for _ in range(5):
            request = type(requests[name])()
            request.CopyFrom(requests[name])
            bent.append(proved(device, name, request))
        bent[0].proof.credentials.mac = b""
        bent[1].proof.credentials.nonce = b""
        bent[2].proof.credentials.device_key = b"k" * 32
        bent[3].proof.session = make_device(2).session
        bent[3].proof.round_token = issue_token(TOKEN_KEY, ROUND, bent[3].proof.session, now() + 60_000)
        proved(device, other_method, bent[4])
        for request in bent:
            await refused(call(request), grpc.StatusCode.PERMISSION_DENIED, "UNPROVEN_CALL")
        assert aggregator.counted("reports_total", outcome="unauthorized") == len(bent)


async def test_a_proof_is_good_for_one_body(tmp_path: Path) -> None:
    device = make_device(1)
    async with running(tmp_path, enrolment="required") as aggregator:
        _, groups = await opened(aggregator)
        first = header(device, groups[0])
        first.digest = digest_of(b"another vector")
        call = aggregator.devices.Upload(parts(device, first), timeout=5)
        await refused(call, grpc.StatusCode.PERMISSION_DENIED, "UNPROVEN_CALL")
        join = proved(device, "Join", JoinRequest())
        join.share_key = b"k" * 32
        await refused(aggregator.devices.Join(join, timeout=5), grpc.StatusCode.PERMISSION_DENIED, "UNPROVEN_CALL")


async def test_a_wrong_proof_is_refused_where_none_is_needed(tmp_path: Path) -> None:
    device = make_device(1)
    async with running(tmp_path, enrolment="off") as aggregator:
        await opened(aggregator)
        join = proved(device, "Join", JoinRequest())
        join.proof.credentials.mac = bytes(32)
        await refused(aggregator.devices.Join(join, timeout=5), grpc.StatusCode.PERMISSION_DENIED, "UNPROVEN_CALL")
        join.proof.credentials.Clear()
        assert (await aggregator.devices.Join(join, timeout=5)).phase == aggregator_pb2.GROUP_PHASE_UPLOADING


@pytest.mark.parametrize(("old_keys", "is_heard"), [(OLD_KEY.hex(), True), ("", False)])
async def test_sessions_of_an_older_key_go_on_while_it_is_accepted(
    tmp_path: Path, old_keys: str, *, is_heard: bool
) -> None:
    device = make_device(1)
    async with running(tmp_path, enrolment="required", round_token_old_keys=old_keys) as aggregator:
        await opened(aggregator)
        call = aggregator.devices.Join(proved(device, "Join", JoinRequest(), issuer=OLD_KEY), timeout=5)
        if is_heard:
            await call
        else:
            await refused(call, grpc.StatusCode.PERMISSION_DENIED, "BAD_ROUND_TOKEN")
