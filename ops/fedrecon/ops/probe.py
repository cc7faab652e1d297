"""Whether the service beside this process answers: `python -m fedrecon.ops.probe coordinator`, for containers.

It asks what any client would ask, gRPC's own health service over the service's own TLS, with the settings that the
service was started with. Kubernetes' gRPC probes speak no TLS, and an open port alone says nothing.

Exit codes: 0 it serves; 1 it does not, or it drains; 2 the settings are wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import grpc
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fedrecon.ops.certificates import names_in
from fedrecon.ops.mistakes import UserMistake
from fedrecon.ops.settings import Settings, load_settings, room_settings
from fedrecon.ops.tls import channel_credentials

_SECONDS = 4.0
_EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 - what is opened there is asked at home


def main(arguments: Sequence[str] | None = None) -> int:
    """Ask, and say what is wrong on standard error.

    Args:
        arguments: Of the command line, without the program's name; the process's own by default.

    Returns:
        The exit code.
    """
    classes, _ = room_settings()
    parser = argparse.ArgumentParser(prog="python -m fedrecon.ops.probe", description="Ask whether a service serves.")
    parser.add_argument("service", choices=sorted(classes))
    service = parser.parse_args(arguments).service
    try:
        settings = load_settings(classes[service])
        problem = ask(settings, getattr(settings, f"{service}_port"))
    except UserMistake as mistake:
        sys.stderr.write(f"{mistake}\n")
        return 2
    if problem:
        sys.stderr.write(f"the {service} does not serve: {problem}\n")
    return 1 if problem else 0


def ask(settings: Settings, port: int) -> str:
    """Ask a service of this machine for its health.

    Args:
        settings: It was started with them.
        port: Where it answers.

    Returns:
        What is wrong; empty if nothing is.

    Raises:
        UserMistake: A file of the settings cannot be read.
    """
    host = _EVERY_ADDRESS.get(settings.host, settings.host)
    with _channel(f"{host}:{port}", settings) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=_SECONDS)
        except grpc.RpcError as error:
            return str(error.details())
    is_serving = answer.status == health_pb2.HealthCheckResponse.SERVING
    return "" if is_serving else str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def _channel(target: str, settings: Settings) -> grpc.Channel:
    """Opens a channel that trusts whom other services trust, under a name that the certificate is for."""
    if settings.tls_certificate is None:
        return grpc.insecure_channel(target)
    credentials = channel_credentials(settings.tls_server_authority, settings.tls_certificate, settings.tls_key)
    if credentials is None:
        raise UserMistake(
            "FEDRECON_TLS_SERVER_AUTHORITY is not set: nobody here can tell whether the service is the right one.",
            "Name the PEM file of who signed its certificate.",
        )
    shown = x509.load_pem_x509_certificates(settings.tls_certificate.read_bytes())[0]
    named = [name.replace("*", "probe") for name in names_in(shown)]
    options = [("grpc.ssl_target_name_override", name) for name in named[:1]]
    return grpc.secure_channel(target, credentials, options=options)


if __name__ == "__main__":
    sys.exit(main())
