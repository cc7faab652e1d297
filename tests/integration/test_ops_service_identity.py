"""Only services of the deployment reach the coordinator's hand on the aggregators."""

from __future__ import annotations

from pathlib import Path

import grpc
import grpc.aio
import pytest

from fedrecon.ops.boundary import refusal_of
from fedrecon.ops.key_ring import KeyRing
from fedrecon.ops.service_identity import PROOF_METADATA, PROOF_MILLISECONDS, is_proof, prove
from fedrecon.ops.settings import Settings
from fedrecon.ops.tls import open_channel, open_service_channel
from fedrecon.v1.aggregator_pb2 import CloseRequest, WatchRequest
from fedrecon.v1.aggregator_pb2_grpc import SumsStub
from support.aggregator_sample import ROUND, running

KEY, METHOD, NOW = bytes(range(32)), "/fedrecon.v1.Sums/Close", 1_800_000_000_000


def test_a_proof_is_for_one_method_and_one_minute() -> None:
    proof = prove(KEY, METHOD, NOW)
    assert is_proof(KeyRing(KEY), METHOD, proof, NOW)
    assert is_proof(KeyRing(KEY), METHOD, proof, NOW + PROOF_MILLISECONDS)
    assert is_proof(KeyRing(KEY), METHOD, proof, NOW - PROOF_MILLISECONDS)
    assert not is_proof(KeyRing(KEY), METHOD, proof, NOW + PROOF_MILLISECONDS + 1)
    assert not is_proof(KeyRing(KEY), METHOD, proof, NOW - PROOF_MILLISECONDS - 1)
    assert not is_proof(KeyRing(KEY), "/fedrecon.v1.Sums/Merge", proof, NOW)
    assert not is_proof(KeyRing(bytes(32)), METHOD, proof, NOW)
    assert not is_proof(KeyRing(KEY), METHOD, b"", NOW)


@pytest.mark.parametrize("key", [None, bytes(32)])
async def test_a_caller_without_the_deployments_key_is_refused(tmp_path: Path, key: bytes | None) -> None:
    async with running(tmp_path) as aggregator:
        target = aggregator.target
        settings = Settings(round_token_key=key.hex() if key else "")
        async with open_service_channel(target, settings) as channel:
            stub = SumsStub(channel)
            for call in (stub.Close(CloseRequest(round=ROUND, discard=True), timeout=5), _first(stub)):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call
                assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
                refusal = refusal_of(caught.value)
                assert refusal is not None
                assert refusal.reason == "SERVICE_IDENTITY_REQUIRED"


async def test_a_proof_of_another_method_does_not_open_this_one(tmp_path: Path) -> None:
    async with running(tmp_path) as aggregator, open_channel(aggregator.target) as channel:
        wrong = prove(KEY, "/fedrecon.v1.Sums/Watch", NOW)
        call = SumsStub(channel).Close(CloseRequest(round=ROUND), timeout=5, metadata=[(PROOF_METADATA, wrong)])
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def _first(stub: SumsStub) -> object:
    async for answer in stub.Watch(WatchRequest(round=ROUND), timeout=5):  # type: ignore[attr-defined]
        return answer
    return None
