"""The probe of containers asks a service as its clients do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fedrecon.ops.certificates import keep_certificates
from fedrecon.ops.lifecycle import Service, serve
from fedrecon.ops.probe import ask, main
from fedrecon.ops.settings import Settings
from support.authority import make_authority


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[int]:
    stopping = asyncio.Event()
    ports: asyncio.Queue[int] = asyncio.Queue()

    async def tell(service: Service[Settings]) -> None:
        await ports.put(int(service.address.rpartition(":")[2]))

    task = asyncio.create_task(serve("films", tell, settings, 0, stopping=stopping))
    try:
        yield await asyncio.wait_for(ports.get(), 5)
    finally:
        stopping.set()
        await task


async def test_a_service_in_plaintext_serves() -> None:
    settings = Settings(metrics_port=-1)
    async with serving(settings) as port:
        assert not await asyncio.to_thread(ask, settings, port)


async def test_a_service_of_another_name_than_its_address_serves_under_mutual_tls(tmp_path: Path) -> None:
    files = keep_certificates(tmp_path, ["*.films.example.org"])
    settings = Settings(
        host="0.0.0.0",  # noqa: S104 - as in a container
        tls_certificate=files.certificate,
        tls_key=files.key,
        tls_client_authority=files.authority,
        tls_server_authority=files.authority,
        metrics_port=-1,
    )
    async with serving(settings) as port:
        assert not await asyncio.to_thread(ask, settings, port)


async def test_a_service_that_shows_the_certificate_of_somebody_else_does_not_serve(tmp_path: Path) -> None:
    certificate, key = make_authority("authority").issue(tmp_path, "service")
    other = make_authority("other").write(tmp_path / "other.pem")
    settings = Settings(tls_certificate=certificate, tls_key=key, tls_server_authority=other, metrics_port=-1)
    async with serving(settings) as port:
        assert await asyncio.to_thread(ask, settings, port)


async def test_nobody_at_the_port_is_said() -> None:
    settings = Settings(metrics_port=-1)
    async with serving(settings) as port:
        pass
    assert await asyncio.to_thread(ask, settings, port)


def test_wrong_settings_end_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    files = keep_certificates(tmp_path, ["localhost"])
    monkeypatch.setenv("FEDRECON_TLS_CERTIFICATE", str(files.certificate))
    monkeypatch.setenv("FEDRECON_TLS_KEY", str(files.key))
    assert main(["inference"]) == 2
    assert "FEDRECON_TLS_SERVER_AUTHORITY is not set" in capsys.readouterr().err
