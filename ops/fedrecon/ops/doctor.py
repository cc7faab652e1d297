"""`fedrecon doctor`: is this machine fit to run what its settings say?

Each check looks at one thing and gives findings: what, a state (ok, warning, wrong), what was seen, how to mend it. A
check changes nothing, asks others for at most two seconds, and never raises: a crash of one is a finding too.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from fedrecon.ops.settings import (
    Settings,
    read_settings,
    room_settings,
    variable_of,
)

_PATIENCE_SECONDS = 2.0
_OLDEST_PYTHON = (3, 11)
_WRONG_FREE_BYTES = 256 * 1024**2
_LOW_FREE_BYTES = 2 * 1024**3
_RENEWAL = dt.timedelta(days=14)
_LEAST_FILES = 1024
_AMPLE_FILES = 8192
"""A waiting device holds one connection: thousands wait at once."""

State = Literal["ok", "warning", "wrong"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check saw.

    Attributes:
        what: What was looked at.
        state: ok, warning (it works, with limits) or wrong.
        seen: What was found.
        mend: What to do about it; empty where it is ok.
    """

    what: str
    state: State
    seen: str
    mend: str = ""


def examine() -> list[Finding]:
    """Look at everything.

    Returns:
        The findings, in the order in which a person mends them.
    """
    findings = list(_examine_versions())
    loaded, wrong = _load_all()
    findings += wrong
    checks: tuple[Callable[[list[Settings]], Iterator[Finding]], ...] = (
        _examine_exposure,
        _examine_ports,
        _examine_storage,
        _examine_folders,
        _examine_file_limit,
    )
    for check in checks:
        try:
            findings += check(loaded)
        except Exception as error:  # noqa: BLE001 - the doctor goes on
            what = check.__name__.removeprefix("_examine_")
            findings.append(Finding(what, "wrong", f"the check failed: {type(error).__name__}: {error}", "report this"))
    return findings


def _examine_versions() -> Iterator[Finding]:
    python = platform.python_version()
    if sys.version_info >= _OLDEST_PYTHON:
        yield Finding("python", "ok", python)
    else:
        yield Finding("python", "wrong", python, "use Python 3.11 or later")
    for name, needed, mend in (
        ("fedrecon", True, "pip install fedrecon"),
        ("grpcio", True, "pip install fedrecon-device"),
        ("protobuf", True, "pip install fedrecon-device"),
        ("onnxruntime", True, "pip install fedrecon-device"),
        ("torch", False, "only modellers need it: pip install 'fedrecon[learning]'"),
    ):
        try:
            yield Finding(name, "ok", version(name))
        except PackageNotFoundError:
            yield Finding(name, "wrong" if needed else "ok", "not installed", mend if needed else "")


def _load_all() -> tuple[list[Settings], list[Finding]]:
    """The settings of all rooms that are valid, and what is wrong with the others."""
    classes, missing = room_settings()
    problems: dict[str, None] = {}
    loaded: list[Settings] = []
    everyone: tuple[type[Settings], ...] = (Settings, *classes.values())
    for one in everyone:
        settings, wrong = read_settings(one)
        problems.update(dict.fromkeys(wrong))
        loaded.append(settings)
    findings = [
        Finding("settings", "wrong", problem, "correct the variable; `fedrecon settings` lists all")
        for problem in problems
    ]
    if not findings:
        rooms = ", ".join(classes) or "none but the shared ones"
        findings.append(Finding("settings", "ok", f"no variable is misspelt or wrong (rooms: {rooms})"))
    findings += [
        Finding("settings", "warning", f"room {room} is not installed", f"pip install 'fedrecon[{room}]' to use it")
        for room in missing
    ]
    return loaded, findings


def _examine_exposure(loaded: list[Settings]) -> Iterator[Finding]:
    settings = loaded[0]
    if settings.is_on_loopback or settings.tls_certificate is not None:
        yield Finding("encryption", "ok", "TLS" if settings.tls_certificate else f"plaintext on {settings.host} only")
    elif settings.tls == "off":
        yield Finding(
            "encryption",
            "warning",
            f"plaintext on {settings.host}: round tokens and updates can be read on the way",
            "set FEDRECON_TLS_CERTIFICATE and FEDRECON_TLS_KEY, or let a proxy or mesh encrypt",
        )
    else:
        yield Finding(
            "encryption",
            "wrong",
            f"no certificate, on {settings.host}: services do not start",
            "set FEDRECON_TLS_CERTIFICATE and FEDRECON_TLS_KEY (`fedrecon certs`), or FEDRECON_TLS=off behind a mesh",
        )
    if settings.enrolment == "off" and not settings.is_on_loopback:
        yield Finding(
            "enrolment",
            "warning",
            "off: any device key is believed, and calls may be played again",
            "unset FEDRECON_ENROLMENT, unless a gateway knows devices by itself",
        )
    yield from _examine_certificate(settings.tls_certificate)
    for field in ("tls_certificate", "tls_key", "tls_client_authority", "tls_server_authority"):
        path: Path | None = getattr(settings, field)
        if path is not None and not os.access(path, os.R_OK):
            yield Finding(
                "encryption", "wrong", f"{variable_of(field)}={path} cannot be read", "name a readable PEM file"
            )


def _examine_certificate(path: Path | None) -> Iterator[Finding]:
    if path is None or not os.access(path, os.R_OK):
        return
    from cryptography import x509

    try:
        certificate = x509.load_pem_x509_certificates(path.read_bytes())[0]
    except ValueError:
        yield Finding("certificate", "wrong", f"{path} holds none", "`fedrecon certs` makes one")
        return
    left = certificate.not_valid_after_utc - dt.datetime.now(dt.UTC)
    state: State = "wrong" if left < dt.timedelta() else "warning" if left < _RENEWAL else "ok"
    mend = "" if state == "ok" else "renew it; services read it again by themselves (`fedrecon certs` renews its own)"
    yield Finding("certificate", state, f"valid until {certificate.not_valid_after_utc:%Y-%m-%d}", mend)


def _examine_ports(loaded: list[Settings]) -> Iterator[Finding]:
    from fedrecon.ops.ports import why_port_cannot_be_opened

    ports = {
        field: (settings.host, getattr(settings, field))
        for settings in loaded
        for field in type(settings).model_fields
        if field.endswith("_port")
    }
    configured = {field: where for field, where in ports.items() if where[1] > 0}
    if not configured:
        yield Finding("ports", "ok", "none is fixed: free ones are chosen")
    for field, (host, port) in configured.items():
        what = f"port {port}"
        problem = why_port_cannot_be_opened(host, port)
        if problem is None:
            yield Finding(what, "ok", "free")
        elif _serves_health(host, port, loaded[0]):
            yield Finding(what, "ok", "a healthy service answers on it")
        else:
            yield Finding(
                what, "wrong", f"{host}:{port}: {problem}", f"stop what uses it, or change {variable_of(field)}"
            )


def _serves_health(host: str, port: int, settings: Settings) -> bool:
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    from fedrecon.ops.admin_client import find_authority
    from fedrecon.ops.tls import channel_credentials

    target = f"{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"  # noqa: S104 - compared only
    authority = find_authority(target, settings, settings.home.absolute())
    trusted = channel_credentials(authority, settings.tls_certificate, settings.tls_key)
    with grpc.insecure_channel(target) if trusted is None else grpc.secure_channel(target, trusted) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=_PATIENCE_SECONDS
            )
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _examine_storage(loaded: list[Settings]) -> Iterator[Finding]:
    settings = loaded[0]
    if not settings.redis_url:
        from fedrecon.ops.embedded_valkey import ValkeyError, find_valkey

        try:
            yield Finding("journal", "ok", f"embedded: {find_valkey()}")
        except ValkeyError as error:
            yield Finding("journal", "wrong", str(error), "pip install 'fedrecon[ops]', or set FEDRECON_REDIS_URL")
        return
    yield asyncio.run(_examine_redis(settings))


async def _examine_redis(settings: Settings) -> Finding:
    from fedrecon.ops.journal import JournalError
    from fedrecon.ops.journal.redis import RedisJournal

    try:
        journal = await RedisJournal.connect(
            settings.redis_url, accepted_loss=settings.accepts_loss, patience_seconds=_PATIENCE_SECONDS
        )
    except (JournalError, ValueError) as error:
        return Finding("journal", "wrong", str(error), "mend the server, or correct FEDRECON_REDIS_URL")
    await journal.close()
    if settings.accepts_loss:
        return Finding(
            "journal",
            "warning",
            "the Redis answers; that it may lose acknowledged reports is accepted",
            "unset FEDRECON_REDIS_DURABILITY in production",
        )
    return Finding("journal", "ok", "the Redis answers and keeps what it acknowledges")


def _examine_folders(loaded: list[Settings]) -> Iterator[Finding]:
    settings = loaded[0]
    folders = {"home": (settings.home, "FEDRECON_HOME")}
    blobs = urlsplit(settings.blobs_url)
    if settings.blobs_url and blobs.scheme in {"", "file"}:
        folders["blobs"] = (Path(blobs.path), "FEDRECON_BLOBS_URL")
    for what, (folder, variable) in folders.items():
        existing = folder.absolute()
        while not existing.exists():
            existing = existing.parent
        yield _examine_writing(what, folder, existing, variable)
        free = shutil.disk_usage(existing).free
        state: State = "wrong" if free < _WRONG_FREE_BYTES else "warning" if free < _LOW_FREE_BYTES else "ok"
        mend = "" if state == "ok" else f"free some space, or put {variable} on another disk"
        yield Finding(f"disk of {what}", state, f"{free / 1024**3:.1f} GiB free", mend)


def _examine_writing(what: str, folder: Path, existing: Path, variable: str) -> Finding:
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        return Finding(
            what, "wrong", f"{existing} cannot be written: {error.strerror}", f"set {variable} to a folder of yours"
        )
    made = "" if existing == folder.absolute() else " (will be made)"
    return Finding(what, "ok", f"{folder.absolute()}{made}")


def _examine_file_limit(loaded: list[Settings]) -> Iterator[Finding]:
    del loaded
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= _AMPLE_FILES:
        yield Finding("open files", "ok", "unlimited" if soft == resource.RLIM_INFINITY else f"up to {soft}")
        return
    state: State = "wrong" if soft < _LEAST_FILES else "warning"
    highest = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
    yield Finding(
        "open files",
        state,
        f"up to {soft} in a process; each waiting device holds one",
        f"ulimit -n {_AMPLE_FILES} (this user may set up to {highest})",
    )


def print_findings(findings: list[Finding], *, as_json: bool) -> None:
    """Show findings to a person, or to a program.

    Args:
        findings: Of `examine`.
        as_json: Print a JSON array of objects with the fields of `Finding`.
    """
    if as_json:
        sys.stdout.write(json.dumps([asdict(finding) for finding in findings], indent=2) + "\n")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colours = {"ok": "green", "warning": "yellow", "wrong": "red"}
    table = Table(box=None, pad_edge=False)
    for heading in ("What", "State", "Seen", "How to mend"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        table.add_row(
            Text(finding.what),
            Text(finding.state, style=colours[finding.state]),
            Text(finding.seen),
            Text(finding.mend),
        )
    Console().print(table)
