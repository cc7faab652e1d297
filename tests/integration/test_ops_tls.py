"""TLS as services use it: certificates of an authority made for the test."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fedrecon.ops.certificates import LOCAL_NAMES, keep_certificates
from fedrecon.ops.lifecycle import Service, run_service, serve
from fedrecon.ops.metrics import Metrics
from fedrecon.ops.mistakes import UserMistake
from fedrecon.ops.settings import Settings
from fedrecon.ops.storage_watch import StorageWatch
from fedrecon.ops.tls import open_channel, open_service_channel
from support.authority import Authority, make_authority


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


def replace(authority: Authority, folder: Path, certificate: Path, key: Path) -> None:
    newer, newer_key = authority.issue(folder, "newer")
    newer_key.replace(key)
    newer.replace(certificate)


async def test_a_certificate_is_replaced_while_the_service_runs(tmp_path: Path) -> None:
    old, new = make_authority("old"), make_authority("new")
    certificate, key = old.issue(tmp_path, "service")
    trusts_old, trusts_new = old.write(tmp_path / "old.pem"), new.write(tmp_path / "new.pem")
    async with serving(Settings(tls_certificate=certificate, tls_key=key, metrics_port=-1)) as address:
        kept = open_channel(address, trusts_old)
        stub = health_pb2_grpc.HealthStub(kept)
        await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
        replace(new, tmp_path, certificate, key)
        assert await check(open_channel(address, trusts_new)) == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError):
            await check(open_channel(address, trusts_old))
        assert await check(kept) == health_pb2.HealthCheckResponse.SERVING, "connections that are open stay open"


async def test_a_certificate_that_has_expired_is_told_and_replaced_without_a_restart(tmp_path: Path) -> None:
    now, metrics = dt.datetime.now(dt.UTC), Metrics.create("films")

    async def tell(name: str, serves: bool) -> None:
        del name, serves

    def left() -> float:
        watch.look_at_certificate(files.certificate)
        expires = metrics.registry.get_sample_value("fedrecon_certificate_expiry_timestamp_seconds")
        assert expires is not None
        return expires - now.timestamp()

    watch = StorageWatch(metrics, tell)
    files = keep_certificates(tmp_path / "tls", LOCAL_NAMES, now - dt.timedelta(days=400))
    async with serving(Settings(tls_certificate=files.certificate, tls_key=files.key, metrics_port=-1)) as address:
        assert left() < 0
        with pytest.raises(grpc.aio.AioRpcError):
            await check(open_channel(address, files.authority))
        keep_certificates(tmp_path / "tls", LOCAL_NAMES, now)
        assert left() > 300 * 86_400
        assert await check(open_channel(address, files.authority)) == health_pb2.HealthCheckResponse.SERVING


async def test_a_pair_that_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    authority = make_authority("authority")
    certificate, key = authority.issue(tmp_path, "service")
    trusted = authority.write(tmp_path / "authority.pem")
    async with serving(Settings(tls_certificate=certificate, tls_key=key, metrics_port=-1)) as address:
        assert await check(open_channel(address, trusted)) == health_pb2.HealthCheckResponse.SERVING
        _, other_key = make_authority("other").issue(tmp_path, "other")
        other_key.replace(key)
        assert await check(open_channel(address, trusted)) == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize(("version", "is_spoken"), [(ssl.TLSVersion.TLSv1_2, False), (ssl.TLSVersion.TLSv1_3, True)])
def test_services_speak_tls_1_3_alone(tmp_path: Path, version: ssl.TLSVersion, *, is_spoken: bool) -> None:
    files = keep_certificates(tmp_path / "tls", LOCAL_NAMES)
    ready = tmp_path / "ready.json"
    settings = {
        "FEDRECON_HOME": str(tmp_path / "home"),
        "FEDRECON_TLS_CERTIFICATE": str(files.certificate),
        "FEDRECON_TLS_KEY": str(files.key),
        "FEDRECON_INFERENCE_PORT": "0",
        "FEDRECON_METRICS_PORT": "none",
        "FEDRECON_REDIS_URL": "",
    }
    with subprocess.Popen(
        [sys.executable, "-m", "fedrecon.inference", "--ready-file", str(ready)], env={**os.environ, **settings}
    ) as process:
        try:
            while not ready.exists():
                assert process.poll() is None
                time.sleep(0.02)
            host, _, port = json.loads(ready.read_text())["address"].rpartition(":")
            context = ssl.create_default_context(cafile=str(files.authority))
            context.minimum_version = context.maximum_version = version
            context.set_alpn_protocols(["h2"])
            with (
                contextlib.nullcontext() if is_spoken else pytest.raises((ssl.SSLError, ConnectionError)),
                socket.create_connection((host, int(port)), timeout=5) as plain,
                context.wrap_socket(plain, server_hostname=host) as encrypted,
            ):
                assert encrypted.version() == "TLSv1.3"
        finally:
            process.terminate()


@pytest.mark.parametrize(("word", "is_refused"), [("required", True), ("off", False)])
def test_plaintext_beyond_this_machine_needs_a_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], word: str, *, is_refused: bool
) -> None:
    monkeypatch.setenv("FEDRECON_HOST", "0.0.0.0")  # noqa: S104 - that is what is tested
    monkeypatch.setenv("FEDRECON_TLS", word)
    monkeypatch.setenv("FEDRECON_METRICS_PORT", "0")

    async def stop_at_once(service: Service[Settings]) -> None:
        service.stopping.set()
        await asyncio.sleep(0)

    assert run_service("films", stop_at_once, Settings, "metrics_port", []) == (2 if is_refused else 0)
    assert ("FEDRECON_TLS=off" in capsys.readouterr().err) == is_refused


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
