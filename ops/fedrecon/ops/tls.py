"""Transport: TLS from PEM files, and channels to services of fedrecon.

Rules: without a certificate everything is plaintext, meant for one machine or a mesh that encrypts. With
`tls_client_authority` every client must show a certificate of that authority (services among themselves).
Channels retry only `UNAVAILABLE`, gRPC's word for a call that found no service: all calls of the contract may be
repeated.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import grpc
import grpc.aio

from fedrecon.ops.mistakes import UserMistake
from fedrecon.ops.service_identity import proving_interceptors
from fedrecon.ops.settings import Settings

LARGEST_MESSAGE_BYTES = 4 * 1024 * 1024
"""Bulk travels in chunks of at most 1 MiB: nothing needs more than gRPC's own default, which proxies share."""

_RETRIES = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.2s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}

CHANNEL_OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.service_config", json.dumps(_RETRIES)),
    ("grpc.enable_retries", 1),
    # Longer than the server's least interval, so that it never answers `too_many_pings`; shorter than the few minutes
    # after which NAT and load balancers forget a silent connection.
    ("grpc.keepalive_time_ms", 45_000),
    ("grpc.keepalive_timeout_ms", 15_000),
    ("grpc.max_receive_message_length", LARGEST_MESSAGE_BYTES),
    ("grpc.max_send_message_length", LARGEST_MESSAGE_BYTES),
    # A restarted service is found again within seconds.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


def _read(path: Path, variable: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserMistake(
            f"{variable}={path} cannot be read: {error.strerror or error}.", "Name a PEM file that this user may read."
        ) from error


def server_authority(settings: Settings) -> bytes | None:
    """Whom a device trusts that is made from these settings.

    Args:
        settings: Of the command that makes it.

    Returns:
        The certificate authority of the services in PEM, or None for plaintext.

    Raises:
        UserMistake: The file cannot be read.
    """
    path = settings.tls_server_authority
    return None if path is None else _read(path, "FEDRECON_TLS_SERVER_AUTHORITY")


def server_credentials(settings: Settings) -> grpc.ServerCredentials | None:
    """What a service shows to its clients.

    Args:
        settings: Of the service.

    Returns:
        Its credentials, or None for plaintext.

    Raises:
        UserMistake: A file cannot be read.
    """
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    chain = _read(settings.tls_certificate, "FEDRECON_TLS_CERTIFICATE")
    key = _read(settings.tls_key, "FEDRECON_TLS_KEY")
    authority = None
    if settings.tls_client_authority is not None:
        authority = _read(settings.tls_client_authority, "FEDRECON_TLS_CLIENT_AUTHORITY")
    return grpc.ssl_server_credentials(
        [(key, chain)], root_certificates=authority, require_client_auth=authority is not None
    )


def channel_credentials(
    authority: Path | None, certificate: Path | None = None, key: Path | None = None
) -> grpc.ChannelCredentials | None:
    """Whom a client trusts, and what it shows.

    Args:
        authority: PEM file of who signs the service; None for plaintext.
        certificate: PEM file of the client's own certificate chain, where services ask for one.
        key: PEM file of its private key.

    Returns:
        The credentials, or None for plaintext.

    Raises:
        UserMistake: A file cannot be read.
    """
    if authority is None:
        return None
    return grpc.ssl_channel_credentials(
        root_certificates=_read(authority, "FEDRECON_TLS_SERVER_AUTHORITY"),
        private_key=None if key is None else _read(key, "FEDRECON_TLS_KEY"),
        certificate_chain=None if certificate is None else _read(certificate, "FEDRECON_TLS_CERTIFICATE"),
    )


def open_channel(
    target: str,
    authority: Path | None = None,
    certificate: Path | None = None,
    key: Path | None = None,
    interceptors: Sequence[grpc.aio.ClientInterceptor] = (),
) -> grpc.aio.Channel:
    """Open a channel to a service; it connects at the first call, and again whenever the connection is lost.

    Args:
        target: `host:port`, `unix:PATH` or any other name that gRPC resolves.
        authority: PEM file of who signs the service; None for plaintext.
        certificate: PEM file of the client's own certificate, where services ask for one.
        key: PEM file of its private key.
        interceptors: What every call passes through.

    Returns:
        The channel; close it, or use it as a context manager.

    Raises:
        UserMistake: A file cannot be read.
    """
    credentials = channel_credentials(authority, certificate, key)
    if credentials is None:
        return grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS, interceptors=interceptors)
    return grpc.aio.secure_channel(target, credentials, options=CHANNEL_OPTIONS, interceptors=interceptors)


def open_service_channel(target: str, settings: Settings) -> grpc.aio.Channel:
    """Open a channel from one service to another, with the files and the shared key that its settings name.

    Args:
        target: As in `open_channel`.
        settings: Of the service that calls.

    Returns:
        The channel.

    Raises:
        UserMistake: A file cannot be read.
    """
    key = settings.round_token_key_bytes
    interceptors = proving_interceptors(key) if key is not None else []
    return open_channel(target, settings.tls_server_authority, settings.tls_certificate, settings.tls_key, interceptors)
