"""Who may call Admin: operators by their role, services by their proof or certificate; and how often anybody may."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from fedrecon.coordinator.admin import ROLES
from fedrecon.ops import boundary
from fedrecon.ops.admin_client import open_sync_channel
from fedrecon.ops.boundary import refusal_of
from fedrecon.ops.callers import bearer, current_caller
from fedrecon.ops.command import main
from fedrecon.ops.lifecycle import Service, serve
from fedrecon.ops.mistakes import UserMistake
from fedrecon.ops.operators import Role, digest_of_token
from fedrecon.ops.settings import InvalidSettings, Settings, load_settings
from fedrecon.ops.tls import open_channel, open_service_channel
from fedrecon.v1 import admin_pb2 as admin
from fedrecon.v1 import admin_pb2_grpc
from fedrecon.v1.admin_pb2_grpc import AdminServicer, AdminStub, add_AdminServicer_to_server
from support.authority import make_authority

KEY = bytes(range(32)).hex()
TOKENS = {"viewer": "watching", "operator": "running", "admin": "ending"}
OPERATORS = ",".join(f"{role}-anna:{role}:{digest_of_token(token)}" for role, token in TOKENS.items())


class Answers(AdminServicer):
    """Tells callers who they are."""

    async def GetTask(self, request: Any, context: Any) -> admin.GetTaskResponse:  # noqa: N802
        del request, context
        return admin.GetTaskResponse(task=admin.Task(reason=current_caller.get()))

    async def PauseTask(self, request: Any, context: Any) -> admin.PauseTaskResponse:  # noqa: N802
        del request, context
        return admin.PauseTaskResponse(task=admin.Task(reason=current_caller.get()))

    async def CancelTask(self, request: Any, context: Any) -> admin.CancelTaskResponse:  # noqa: N802
        del request, context
        return admin.CancelTaskResponse(task=admin.Task(reason=current_caller.get()))

    async def WatchTask(self, request: Any, context: Any) -> AsyncIterator[admin.WatchTaskResponse]:  # noqa: N802
        del request, context
        yield admin.WatchTaskResponse(task=admin.Task(reason=current_caller.get()))


def made_to_answer() -> Any:
    return Answers()  # type: ignore[abstract]  # the others are answered with UNIMPLEMENTED


@contextlib.asynccontextmanager
async def answering(roles: dict[str, Role] | None = ROLES, **settings: Any) -> AsyncIterator[str]:
    stopping, addresses = asyncio.Event(), asyncio.Queue[str]()

    async def start(service: Service[Settings]) -> None:
        service.add(add_AdminServicer_to_server, made_to_answer(), internal=True, roles=roles)
        await addresses.put(service.address)

    made = Settings(metrics_port=-1, round_token_key=KEY, operators=OPERATORS, **settings)
    serving = asyncio.create_task(serve("films", start, made, 0, stopping=stopping))
    try:
        yield await asyncio.wait_for(addresses.get(), 5)
    finally:
        stopping.set()
        await serving


def calls_of(stub: Any, metadata: list[tuple[str, str]]) -> Iterator[Any]:
    yield stub.GetTask(admin.GetTaskRequest(), timeout=5, metadata=metadata)
    yield stub.PauseTask(admin.PauseTaskRequest(), timeout=5, metadata=metadata)
    yield stub.CancelTask(admin.CancelTaskRequest(), timeout=5, metadata=metadata)


async def outcome(call: Any) -> str:
    try:
        return str((await call).task.reason)
    except grpc.aio.AioRpcError as error:
        refusal = refusal_of(error)
        assert refusal is not None
        return refusal.reason


@pytest.mark.parametrize(("role", "may"), [("viewer", 1), ("operator", 2), ("admin", 3)])
async def test_a_role_may_what_lesser_ones_may(role: str, may: int) -> None:
    async with answering() as address, open_channel(address) as channel:
        metadata = [bearer(TOKENS[role])]
        outcomes = [await outcome(call) for call in calls_of(AdminStub(channel), metadata)]
        assert outcomes == [f"{role}-anna"] * may + ["ROLE_TOO_LOW"] * (3 - may)
        stub: Any = AdminStub(channel)
        streamed = [
            each.task.reason async for each in stub.WatchTask(admin.WatchTaskRequest(), timeout=5, metadata=metadata)
        ]
        assert streamed == [f"{role}-anna"]


@pytest.mark.parametrize("shown", ["Bearer no such token", "Bearer ", "watching", "Basic watching"])
async def test_a_token_that_is_nobodys_is_refused_also_with_a_proof(shown: str) -> None:
    async with answering() as address, open_service_channel(address, Settings(round_token_key=KEY)) as channel:
        metadata = [("authorization", shown)]
        assert {await outcome(call) for call in calls_of(AdminStub(channel), metadata)} == {"UNKNOWN_OPERATOR"}


async def test_operators_do_not_call_what_services_call() -> None:
    async with answering(roles=None) as address, open_channel(address) as channel:
        outcomes = {await outcome(call) for call in calls_of(AdminStub(channel), [bearer(TOKENS["admin"])])}
        assert outcomes == {"SERVICE_IDENTITY_REQUIRED"}


async def test_nobody_is_let_in_without_a_name() -> None:
    async with answering() as address, open_channel(address) as channel:
        assert {await outcome(call) for call in calls_of(AdminStub(channel), [])} == {"SERVICE_IDENTITY_REQUIRED"}


def test_every_call_of_admin_has_a_role() -> None:
    methods = {name for name in vars(AdminServicer) if not name.startswith("_")}
    assert set(ROLES) == methods
    assert admin_pb2_grpc.AdminServicer is AdminServicer


async def test_a_certificate_that_is_named_is_a_services(tmp_path: Path) -> None:
    authority = make_authority("authority")
    certificate, key = authority.issue(tmp_path, "service")
    trusted = authority.write(tmp_path / "authority.pem")
    tls: dict[str, Any] = {"tls_certificate": certificate, "tls_key": key, "tls_client_authority": trusted}
    async with answering(**tls, tls_service_names="other, fedrecon-service") as address:
        for name, expected in (("fedrecon-service", "fedrecon-service"), ("stranger", "SERVICE_IDENTITY_REQUIRED")):
            shown = authority.issue(tmp_path, name)
            async with open_channel(address, trusted, *shown) as channel:
                assert {await outcome(call) for call in calls_of(AdminStub(channel), [])} == {expected}


async def test_commands_say_who_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDRECON_HOME", str(tmp_path))
    async with answering() as address:

        def ask() -> str:
            with open_sync_channel(address) as channel:
                return AdminStub(channel).GetTask(admin.GetTaskRequest(), timeout=5).task.reason

        monkeypatch.setenv("FEDRECON_ROUND_TOKEN_KEY", KEY)
        monkeypatch.setattr("getpass.getuser", lambda: "anna")
        assert (await asyncio.to_thread(ask)).startswith("anna@")
        monkeypatch.setenv("FEDRECON_OPERATOR_TOKEN", TOKENS["viewer"])
        assert await asyncio.to_thread(ask) == "viewer-anna"


def test_a_token_is_not_sent_in_plaintext_to_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDRECON_OPERATOR_TOKEN", "secret")
    with pytest.raises(UserMistake, match="in plaintext"), open_sync_channel("203.0.113.7:7001"):
        pass


def test_a_new_operator_fits_into_the_settings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["operators", "new", "anna@example.org", "--role", "admin", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    monkeypatch.setenv("FEDRECON_OPERATORS", told["FEDRECON_OPERATORS"])
    assert load_settings(Settings).operators.startswith("anna@example.org:admin:")
    assert digest_of_token(told["FEDRECON_OPERATOR_TOKEN"]) in told["FEDRECON_OPERATORS"]
    assert main(["operators", "new", "no spaces"]) == 2
    monkeypatch.setenv("FEDRECON_OPERATORS", "anna:god:00")
    with pytest.raises(InvalidSettings, match="FEDRECON_OPERATORS"):
        load_settings(Settings)


async def test_who_calls_too_often_from_one_address_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boundary, "address_of", lambda peer: peer.split(":")[1])
    async with answering(address_calls_per_second=1.0) as address, open_channel(address) as channel:
        raw: Any = channel.unary_unary("/fedrecon.v1.Admin/GetTask")
        reasons = []
        for _ in range(30):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await raw(b"\xff\xff no message", timeout=5, metadata=[bearer(TOKENS["viewer"])])
            refusal = refusal_of(caught.value)
            assert refusal is not None
            reasons.append(refusal.reason)
        assert reasons[:10] == ["MALFORMED_REQUEST"] * 10
        assert set(reasons[15:]) == {"TOO_MANY_CALLS"}
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert refusal is not None
        assert 0 < refusal.retry.min_milliseconds <= refusal.retry.max_milliseconds
