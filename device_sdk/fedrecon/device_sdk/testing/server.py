"""The services in memory behind real gRPC: for tests in which devices are other processes, or networks fail."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc

from fedrecon.device_sdk.errors import CallFailedError
from fedrecon.device_sdk.requests import FETCH, UPLOAD
from fedrecon.device_sdk.testing.services import FakeServices
from fedrecon.device_sdk.transport import ERROR_KEY
from fedrecon.v1.blobs_pb2 import FetchResponse
from fedrecon.v1.common_pb2 import ErrorInfo

WORKERS = 16


class _Handler(grpc.GenericRpcHandler):
    def __init__(self, services: FakeServices) -> None:
        self._services = services

    def service(self, details: Any) -> Any:
        """Returns how a call is handled."""
        path = details.method
        if path == FETCH.path:
            return grpc.unary_stream_rpc_method_handler(self._fetch)
        if path == UPLOAD.path:
            return grpc.stream_unary_rpc_method_handler(
                lambda parts, context: _refusing(context, lambda: self._services.upload(parts).SerializeToString())
            )
        return grpc.unary_unary_rpc_method_handler(
            lambda body, context: _refusing(context, lambda: self._services.answer(path, body).SerializeToString())
        )

    def _fetch(self, body: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        pieces = _refusing(context, lambda: self._services.fetch(body))
        for chunk in pieces:
            yield FetchResponse(chunk=chunk).SerializeToString()


def _refusing(context: grpc.ServicerContext, act: Callable[[], Any]) -> Any:
    """Does something, and refuses the call as services do where that fails."""
    try:
        return act()
    except CallFailedError as error:
        told = ErrorInfo(reason=error.reason, message=error.message)
        context.set_trailing_metadata(((ERROR_KEY, told.SerializeToString()),))
        context.abort(grpc.StatusCode[error.code], error.message)


@contextlib.contextmanager
def serve(
    services: FakeServices, address: str = "127.0.0.1:0", credentials: grpc.ServerCredentials | None = None
) -> Iterator[str]:
    """Serves until the block ends.

    Args:
        services: what answers.
        address: where; port 0 takes a free one.
        credentials: for TLS; None for plain connections.

    Returns:
        The target of all services, `host:port`.
    """
    server = grpc.server(futures.ThreadPoolExecutor(WORKERS), handlers=[_Handler(services)])
    port = server.add_insecure_port(address) if credentials is None else server.add_secure_port(address, credentials)
    server.start()
    try:
        yield f"{address.rpartition(':')[0]}:{port}"
    finally:
        server.stop(None).wait()
