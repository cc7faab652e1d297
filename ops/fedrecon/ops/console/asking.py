"""How the console speaks to Admin: as the operator who is signed in, never as itself.

Rules: calls of somebody with a token carry that token, on a channel that proves nothing else. Only somebody who came by
a link of this machine speaks by the deployment's shared key, as commands on it do.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from fedrecon.ops.boundary import Refusal, refusal_of
from fedrecon.ops.callers import NAME_METADATA, bearer
from fedrecon.ops.console.sessions import Session
from fedrecon.ops.operators import Role
from fedrecon.ops.service_identity import proving_interceptors
from fedrecon.ops.settings import Settings
from fedrecon.ops.tls import open_channel
from fedrecon.v1 import admin_pb2 as admin
from fedrecon.v1.admin_pb2_grpc import AdminStub

if TYPE_CHECKING:  # a name of the type stubs alone
    from fedrecon.v1.admin_pb2_grpc import AdminAsyncStub

CALL_SECONDS = 20.0
WATCH_SECONDS = 24 * 3600.0
_RETRY_MILLISECONDS = (1_000, 5_000)


class Asking:
    """Calls Admin for those who are signed in.

    Args:
        target: The coordinator.
        settings: Of the console: TLS files, and the shared key if this is the deployment's own machine.
    """

    def __init__(self, target: str, settings: Settings) -> None:
        files = settings.tls_server_authority, settings.tls_certificate, settings.tls_key
        self._plain = open_channel(target, *files)
        keys = settings.round_token_keys
        proofs = [] if keys is None else proving_interceptors(keys.newest)
        self._proving = open_channel(target, *files, proofs)
        self._stubs: dict[bool, AdminAsyncStub] = {True: AdminStub(self._plain), False: AdminStub(self._proving)}

    async def close(self) -> None:
        """Give the channels back."""
        await self._plain.close()
        await self._proving.close()

    async def call(self, session: Session, method: str, request: Any) -> Any:
        """Make a call and return its answer.

        Args:
            session: Who asks.
            method: Name of the call.
            request: Its request.

        Raises:
            Refusal: As Admin refuses, or because it does not answer.
        """
        stub = self._stubs[bool(session.token)]
        try:
            return await getattr(stub, method)(request, timeout=CALL_SECONDS, metadata=_shown_by(session))
        except grpc.aio.AioRpcError as error:
            raise _refusal(error) from error

    async def watch(self, session: Session, task: str) -> AsyncIterator[admin.Task]:
        """Yield a task after every change. Raises as `call`."""
        stub = self._stubs[bool(session.token)]
        request = admin.WatchTaskRequest(task=task)
        try:
            async for answer in stub.WatchTask(request, timeout=WATCH_SECONDS, metadata=_shown_by(session)):
                yield answer.task
        except grpc.aio.AioRpcError as error:
            raise _refusal(error) from error

    async def introduce(self, token: str, name: str, now: int) -> Session:
        """Return a session of somebody, if Admin knows them.

        Args:
            token: The operator's; empty for somebody who came by a link.
            name: Theirs, if they came by a link.
            now: Unix milliseconds.

        Raises:
            Refusal: It does not.
        """
        session = Session(name, Role.VIEWER, token, now)
        known = await self.call(session, "GetCaller", admin.GetCallerRequest())
        session.name = known.name
        session.role = Role[admin.OperatorRole.Name(known.role).removeprefix("OPERATOR_ROLE_")]
        return session


def _shown_by(session: Session) -> grpc.aio.Metadata:
    if session.token:
        return grpc.aio.Metadata(bearer(session.token))
    return grpc.aio.Metadata((NAME_METADATA, session.name.encode("ascii", "replace").decode()))


def _refusal(error: grpc.aio.AioRpcError) -> Refusal:
    explained = refusal_of(error)
    if explained is not None and explained.reason != "INTERNAL":
        return Refusal(error.code(), explained.reason, explained.message, explained.advice)
    told = explained.message if explained is not None else "The coordinator does not answer."
    return Refusal(
        grpc.StatusCode.UNAVAILABLE,
        "COORDINATOR_AWAY",
        told,
        "It is tried again by itself; `fedrecon status` on its machine tells more.",
        retry_milliseconds=_RETRY_MILLISECONDS,
    )
