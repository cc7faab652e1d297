"""TLS as services use it: certificates of an authority made for the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fedrecon.ops.lifecycle import Service, serve
from fedrecon.ops.mistakes import UserMistake
from fedrecon.ops.settings import Settings
from fedrecon.ops.tls import open_channel, open_service_channel
from support.authority import make_authority


async def start(service: Service[Settings]) -> None:
    del service


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[str]:
    stopping = asyncio.Event()
    addresses: asyncio.Queue[str] = asyncio.Queue()

    async def tell(service: Service[Settings]) -> None:
        await addresses.put(service.address)

    task = asyncio.create_task(serve("films", tell, settings, 0, stopping=stopping))
    try:
        yield await asyncio.wait_for(addresses.get(), 5)
    finally:
        stopping.set()
        await task


async def check(channel: grpc.aio.Channel) -> int:
    async with channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=1)
        return int(answer.status)


async def test_a_client_that_knows_the_authority_is_answered(tmp_path: Path) -> None:
    authority = make_authority("authority")
    certificate, key = authority.issue(tmp_path, "service")
    trusted = authority.write(tmp_path / "authority.pem")
    async with serving(Settings(tls_certificate=certificate, tls_key=key, metrics_port=-1)) as address:
        assert await check(open_channel(address, trusted)) == health_pb2.HealthCheckResponse.SERVING


async def test_a_service_of_another_authority_is_not_trusted(tmp_path: Path) -> None:
    certificate, key = make_authority("authority").issue(tmp_path, "service")
    other = make_authority("other").write(tmp_path / "other.pem")
    async with serving(Settings(tls_certificate=certificate, tls_key=key, metrics_port=-1)) as address:
        with pytest.raises(grpc.aio.AioRpcError):
            await check(open_channel(address, other))
        with pytest.raises(grpc.aio.AioRpcError):
            await check(open_channel(address))


async def test_services_know_each_other_by_their_certificates(tmp_path: Path) -> None:
    authority = make_authority("authority")
    certificate, key = authority.issue(tmp_path, "service")
    trusted = authority.write(tmp_path / "authority.pem")
    settings = Settings(
        tls_certificate=certificate,
        tls_key=key,
        tls_client_authority=trusted,
        tls_server_authority=trusted,
        metrics_port=-1,
    )
    async with serving(settings) as address:
        assert await check(open_service_channel(address, settings)) == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError):
            await check(open_channel(address, trusted))  # without a certificate of its own


async def test_a_file_that_is_not_there_is_named_with_its_setting(tmp_path: Path) -> None:
    settings = Settings(tls_certificate=tmp_path / "no.pem", tls_key=tmp_path / "no.key", metrics_port=-1)
    with pytest.raises(UserMistake, match=r"FEDRECON_TLS_CERTIFICATE=.*no\.pem cannot be read"):
        await serve("films", start, settings, 0)


async def test_a_file_that_is_no_certificate_is_a_mistake(tmp_path: Path) -> None:
    for name in ("bad.pem", "bad.key"):
        (tmp_path / name).write_text("not a certificate")
    settings = Settings(tls_certificate=tmp_path / "bad.pem", tls_key=tmp_path / "bad.key", metrics_port=-1)
    with pytest.raises(UserMistake, match="certificate or key is not valid"):
        await serve("films", start, settings, 0)
