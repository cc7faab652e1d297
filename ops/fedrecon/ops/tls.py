"""Transport: TLS from PEM files, and channels to services of fedrecon.

Rules: TLS 1.3 alone (`fedrecon.ops`). Without a certificate everything is plaintext, meant for one machine or a mesh
that encrypts. With `tls_client_authority` every client must show a certificate of that authority. Files that change are
read again for the next connection, so certificates are replaced while services run; a pair that does not fit together,
as between the writing of two files, changes nothing.
Channels retry only `UNAVAILABLE`, gRPC's word for a call that found no service: all calls of the contract may be
repeated.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio

from fedrecon.ops.certificates import belong_together
from fedrecon.ops.logs import logger_of
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


_log = logger_of(__name__)


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
    shown = _Shown(settings.tls_certificate, settings.tls_key, settings.tls_client_authority)
    return grpc.dynamic_ssl_server_credentials(
        shown.read(),
        shown.read_if_changed,  # type: ignore[arg-type]  # None is what gRPC documents for "no change"
        require_client_authentication=settings.tls_client_authority is not None,
    )


@dataclass(slots=True)
class _Shown:
    """What a service shows, as its files say at the moment.

    Attributes:
        certificate: PEM file of its certificate chain.
        key: PEM file of its private key.
        client_authority: PEM file of who signs its clients, if they must be known.
        seen: When each file was written that was read last, and how long it was.
    """

    certificate: Path
    key: Path
    client_authority: Path | None
    seen: tuple[tuple[int, int], ...] = ()

    def read(self) -> grpc.ServerCertificateConfiguration:
        """Read the files.

        Raises:
            UserMistake: One cannot be read, or certificate and key are no pair.
        """
        seen = self._look()
        chain = _read(self.certificate, "FEDRECON_TLS_CERTIFICATE")
        key = _read(self.key, "FEDRECON_TLS_KEY")
        authority = None
        if self.client_authority is not None:
            authority = _read(self.client_authority, "FEDRECON_TLS_CLIENT_AUTHORITY")
        if not belong_together(chain, key):
            raise UserMistake(
                f"FEDRECON_TLS_CERTIFICATE={self.certificate}, FEDRECON_TLS_KEY={self.key}: "
                "the certificate or key is not valid, or they do not belong together.",
                "Name a PEM certificate and its own private key; `fedrecon certs` makes both.",
            )
        self.seen = seen
        return grpc.ssl_server_certificate_configuration([(key, chain)], root_certificates=authority)

    def read_if_changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Read the files if they were replaced; None: go on with what there is. Called for every connection."""
        try:
            if self._look() == self.seen:
                return None
            changed = self.read()
        except (OSError, UserMistake) as problem:
            _log.warning("certificate not replaced", problem=str(problem))
            return None
        _log.info("certificate replaced")
        return changed

    def _look(self) -> tuple[tuple[int, int], ...]:
        paths = [self.certificate, self.key, *([] if self.client_authority is None else [self.client_authority])]
        found = [path.stat() for path in paths if path.exists()]
        return tuple((each.st_mtime_ns, each.st_size) for each in found)


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
    keys = settings.round_token_keys
    interceptors = proving_interceptors(keys.newest) if keys is not None else []
    return open_channel(target, settings.tls_server_authority, settings.tls_certificate, settings.tls_key, interceptors)
