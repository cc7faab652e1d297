"""The doctor, on machines that are well and on machines that are not."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
import socket
from pathlib import Path

import pytest

from fedrecon.ops import doctor
from fedrecon.ops import settings as settings_module
from fedrecon.ops.certificates import LOCAL_NAMES, keep_certificates
from fedrecon.ops.command import main
from fedrecon.ops.doctor import Finding, examine
from fedrecon.ops.embedded_valkey import EmbeddedValkey
from fedrecon.ops.lifecycle import Service, serve
from fedrecon.ops.settings import Settings


class FilmSettings(Settings):
    film_port: int = 0


class FilmEntryPoint:
    name = "film"

    def load(self) -> type[Settings]:
        return FilmSettings


@pytest.fixture(autouse=True)
def quiet_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.upper().startswith("FEDRECON_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(settings_module, "entry_points", lambda group: [FilmEntryPoint()] if group else [])
    monkeypatch.setenv("FEDRECON_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(doctor, "_PATIENCE_SECONDS", 0.5)


def found(what: str) -> list[Finding]:
    return [finding for finding in examine() if finding.what == what]


def test_a_machine_without_configuration_is_well(tmp_path: Path) -> None:
    findings = examine()
    assert [finding for finding in findings if finding.state == "wrong"] == []
    assert {"python", "grpcio", "settings", "journal", "home", "disk of home", "open files"} <= {
        finding.what for finding in findings
    }
    assert not (tmp_path / "home").exists()  # looking changes nothing


def test_what_is_not_ok_says_how_to_mend_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEDRECON_HOST", "0.0.0.0")  # noqa: S104 - only looked at
    monkeypatch.setenv("FEDRECON_LOG_LEVLE", "debug")
    monkeypatch.setenv("FEDRECON_HOME", str(tmp_path / "file" / "home"))
    (tmp_path / "file").touch()
    troubled = [finding for finding in examine() if finding.state != "ok"]
    assert {finding.what for finding in troubled if finding.what != "open files"} == {"encryption", "settings", "home"}
    assert [finding for finding in troubled if not finding.mend] == []


def test_a_misspelt_variable_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDRECON_FILM_PROT", "7")
    (finding,) = found("settings")
    assert finding.state == "wrong"
    assert "FEDRECON_FILM_PORT" in finding.seen


def test_a_port_that_another_program_uses_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setenv("FEDRECON_FILM_PORT", str(port))
        (finding,) = found(f"port {port}")
    assert finding.state == "wrong"
    assert "FEDRECON_FILM_PORT" in finding.mend
    (finding,) = found(f"port {port}")
    assert (finding.state, finding.seen) == ("ok", "free")


async def test_a_port_that_our_own_service_uses_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses: asyncio.Queue[str] = asyncio.Queue()
    stopping = asyncio.Event()

    async def start(service: Service[Settings]) -> None:
        await addresses.put(service.address)

    running = asyncio.create_task(serve("film", start, Settings(metrics_port=-1), 0, stopping=stopping))
    port = (await addresses.get()).rpartition(":")[2]
    monkeypatch.setenv("FEDRECON_FILM_PORT", port)
    (finding,) = await asyncio.to_thread(found, f"port {port}")
    stopping.set()
    await running
    assert (finding.state, finding.seen) == ("ok", "a healthy service answers on it")


def test_a_redis_that_does_not_answer_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as reserved:  # bound and not listening: connections are refused
        reserved.bind(("127.0.0.1", 0))
        monkeypatch.setenv("FEDRECON_REDIS_URL", f"redis://ops:hunter2@127.0.0.1:{reserved.getsockname()[1]}")
        (finding,) = found("journal")
    assert finding.state == "wrong"
    assert "hunter2" not in finding.seen


def test_a_durable_redis_is_well_and_accepted_loss_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path / "valkey") as server:
        monkeypatch.setenv("FEDRECON_REDIS_URL", server.url)
        (durable,) = found("journal")
        monkeypatch.setenv("FEDRECON_REDIS_DURABILITY", "accepted-loss")
        (accepted,) = found("journal")
    assert (durable.state, accepted.state) == ("ok", "warning")


def test_the_command_ends_with_1_if_anything_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--json"]) == 0
    assert {row["state"] for row in json.loads(capsys.readouterr().out)} <= {"ok", "warning"}
    monkeypatch.setenv("FEDRECON_XYZZY", "1")
    assert main(["doctor"]) == 1
    assert "FEDRECON_XYZZY" in capsys.readouterr().out


@pytest.mark.parametrize(("days", "state"), [(200, "ok"), (3, "warning"), (-1, "wrong")])
def test_a_certificate_is_looked_at_before_it_runs_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, days: int, state: str
) -> None:
    made = dt.datetime.now(dt.UTC) - dt.timedelta(days=365 - days, hours=-1)
    files = keep_certificates(tmp_path / "tls", LOCAL_NAMES, made)
    monkeypatch.setenv("FEDRECON_TLS_CERTIFICATE", str(files.certificate))
    monkeypatch.setenv("FEDRECON_TLS_KEY", str(files.key))
    (finding,) = found("certificate")
    assert finding.state == state
    assert bool(finding.mend) == (state != "ok")


def test_an_open_deployment_without_enrolment_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDRECON_ENROLMENT", "off")
    assert not found("enrolment")
    monkeypatch.setenv("FEDRECON_HOST", "0.0.0.0")  # noqa: S104 - that is what is tested
    (finding,) = found("enrolment")
    assert finding.state == "warning"
