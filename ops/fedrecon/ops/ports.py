"""Opening a service's port, and saying why one cannot be opened."""

from __future__ import annotations

import socket

import grpc.aio

from fedrecon.ops.mistakes import UserMistake
from fedrecon.ops.settings import Settings, variable_of
from fedrecon.ops.tls import server_credentials


def open_port(server: grpc.aio.Server, settings: Settings, port: int, port_setting: str) -> str:
    """Open a server's port.

    Args:
        server: The server.
        settings: Say on which address, and with which certificate.
        port: Port; 0 for a free one.
        port_setting: Field of the settings that holds it, for the message when it is taken.

    Returns:
        `host:port` as it was opened.

    Raises:
        UserMistake: The address or the port cannot be had.
    """
    credentials = server_credentials(settings)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    try:
        if credentials is None:
            opened = server.add_insecure_port(f"{host}:{port}")
        else:
            opened = server.add_secure_port(f"{host}:{port}", credentials)
    except RuntimeError as error:
        why = why_port_cannot_be_opened(settings.host, port)
        why = why or "the certificate or key is not valid, or the port was taken for a moment"
        if why_port_cannot_be_opened(settings.host, 0) is not None:
            raise UserMistake(
                f"{variable_of('host')}: {settings.host} cannot be listened on: {why}.",
                f"Set {variable_of('host')} to an address of this machine: 127.0.0.1, or 0.0.0.0 for all of them.",
            ) from error
        raise UserMistake(
            f"{variable_of(port_setting)}: {host}:{port} cannot be opened: {why}.",
            f"Stop what uses it, or set {variable_of(port_setting)} to another port or to 0 for a free one.",
        ) from error
    return f"{host}:{opened}"


def why_port_cannot_be_opened(host: str, port: int) -> str | None:
    """Ask the system itself, by opening a port and closing it: gRPC only says that it failed.

    Args:
        host: Address.
        port: Port.

    Returns:
        The system's reason, for example `address already in use`; None if the port can be opened.
    """
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            # As gRPC does: a port whose last connections are still being forgotten can be opened.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
            probe.listen()
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return None
