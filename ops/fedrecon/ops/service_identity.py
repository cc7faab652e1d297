"""How services and operators know each other: calls that devices may not make carry a proof of a shared key.

A proof is its expiry (8 bytes, little-endian Unix milliseconds) and HMAC-SHA256, under the deployment's shared key,
over a domain, the method and that expiry. It says "one of us calls this method about now"; who it is, and that nobody
on the way reads or replays it, is the matter of TLS (with `tls_client_authority`, of mutual TLS).
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from fedrecon.ops.clock import Clock, SystemClock
from fedrecon.ops.key_ring import KeyRing

PROOF_METADATA = "fedrecon-service-bin"
PROOF_MILLISECONDS = 60_000
"""How long a proof is good, and so how far the clocks of two services may lie apart."""

_DOMAIN = b"fedrecon service 1"
_EXPIRY_BYTES = 8


def prove(key: bytes, method: str, now_unix_milliseconds: int) -> bytes:
    """Return the proof for one call of a method, `/package.Service/Method`."""
    expiry = (now_unix_milliseconds + PROOF_MILLISECONDS).to_bytes(_EXPIRY_BYTES, "little")
    return expiry + _mac(key, method, expiry)


def is_proof(keys: KeyRing, method: str, proof: bytes, now_unix_milliseconds: int) -> bool:
    """Whether this is a proof for this method that has not expired and was not made far in the future."""
    expiry, mac = proof[:_EXPIRY_BYTES], proof[_EXPIRY_BYTES:]
    if keys.find(lambda key: hmac.compare_digest(mac, _mac(key, method, expiry))) is None:
        return False
    until = int.from_bytes(expiry, "little")
    return now_unix_milliseconds <= until <= now_unix_milliseconds + 2 * PROOF_MILLISECONDS


def _mac(key: bytes, method: str, expiry: bytes) -> bytes:
    return hmac.digest(key, b"\0".join([_DOMAIN, method.encode(), expiry]), "sha256")


class _Proving:
    """Adds a proof to the metadata of every call of a channel."""

    def __init__(self, key: bytes, clock: Clock) -> None:
        self._key = key
        self._clock = clock

    def details(self, details: grpc.aio.ClientCallDetails) -> grpc.aio.ClientCallDetails:
        """Return the call's details with a proof."""
        method = details.method.decode() if isinstance(details.method, bytes) else details.method
        metadata = grpc.aio.Metadata(*(details.metadata or ()))
        metadata.add(PROOF_METADATA, prove(self._key, method, self._clock.now_milliseconds()))
        return grpc.aio.ClientCallDetails(
            details.method, details.timeout, metadata, details.credentials, details.wait_for_ready
        )


class ProvingUnary(_Proving, grpc.aio.UnaryUnaryClientInterceptor):
    """Proves unary calls."""

    async def intercept_unary_unary(
        self,
        continuation: Callable[[grpc.aio.ClientCallDetails, Any], Awaitable[Any]],
        client_call_details: grpc.aio.ClientCallDetails,
        request: Any,
    ) -> Any:
        """Make the call with a proof."""
        return await continuation(self.details(client_call_details), request)


class ProvingStream(_Proving, grpc.aio.UnaryStreamClientInterceptor):
    """Proves calls whose answer is a stream."""

    async def intercept_unary_stream(
        self,
        continuation: Callable[[grpc.aio.ClientCallDetails, Any], Awaitable[Any]],
        client_call_details: grpc.aio.ClientCallDetails,
        request: Any,
    ) -> Any:
        """Make the call with a proof."""
        return await continuation(self.details(client_call_details), request)


class _Commands(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor, grpc.StreamUnaryClientInterceptor):
    """Adds metadata to every call of a command's channel."""

    def _metadata(self, method: str) -> list[tuple[str, Any]]:
        raise NotImplementedError

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """Make a unary call with it."""
        return continuation(self._details(client_call_details), request)

    def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """Make a call whose answer is a stream with it."""
        return continuation(self._details(client_call_details), request)

    def intercept_stream_unary(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        """Make a call whose request is a stream with it."""
        return continuation(self._details(client_call_details), request_iterator)

    def _details(self, details: Any) -> Any:
        return details._replace(metadata=[*(details.metadata or ()), *self._metadata(details.method)])


class ProvingCommands(_Commands):
    """Proves every call of a command's channel, as `ProvingUnary` and `ProvingStream` do for services.

    Args:
        key: The deployment's shared key.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def _metadata(self, method: str) -> list[tuple[str, Any]]:
        return [(PROOF_METADATA, prove(self._key, method, SystemClock().now_milliseconds()))]


class NamingCommands(_Commands):
    """Says with every call of a command's channel who makes it.

    Args:
        metadata: What it says.
    """

    def __init__(self, metadata: list[tuple[str, str]]) -> None:
        self._said = metadata

    def _metadata(self, method: str) -> list[tuple[str, Any]]:
        del method
        return self._said


def proving_interceptors(key: bytes, clock: Clock | None = None) -> list[grpc.aio.ClientInterceptor]:
    """Return the interceptors of a channel whose calls prove to come from a service of the deployment."""
    clock = clock or SystemClock()
    return [ProvingUnary(key, clock), ProvingStream(key, clock)]
