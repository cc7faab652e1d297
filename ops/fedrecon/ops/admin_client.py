"""How commands speak to the Admin service: where it is, and what its refusals mean to a person."""

from __future__ import annotations

import contextlib
import getpass
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc

from fedrecon.ops.callers import NAME_METADATA, bearer
from fedrecon.ops.local_keys import with_keys
from fedrecon.ops.mistakes import Unreachable, UserMistake
from fedrecon.ops.service_identity import NamingCommands, ProvingCommands
from fedrecon.ops.settings import Settings, load_settings
from fedrecon.ops.stack import read_stack_file
from fedrecon.ops.tls import CHANNEL_OPTIONS, channel_credentials, server_authority
from fedrecon.v1 import admin_pb2 as admin
from fedrecon.v1.admin_pb2_grpc import AdminStub
from fedrecon.v1.common_pb2 import BlobReference
from fedrecon.wire.chunks import cut

CALL_SECONDS = 30.0
BULK_SECONDS = 600.0
WATCH_SECONDS = 24 * 3600.0
_ANSWER_SECONDS = 3.0
_LOCAL_TARGETS = ("127.", "localhost:", "[::1]:", "unix:")


@dataclass(frozen=True, slots=True)
class Targets:
    """Where the services of a deployment answer, each as `host:port`."""

    coordinator: str
    aggregator: str
    inference: str


def find_targets(server: str | None, home: Path | None = None) -> Targets:
    """Return where the services are.

    Args:
        server: Target of the coordinator, as given on the command line; None for the stack of this machine.
        home: Folder of that stack; the settings' own by default.

    Raises:
        UserMistake: No stack runs here and no server was named.
    """
    if server is not None and not server.strip():
        raise UserMistake("--server names nothing.", "Name a coordinator: `--server host:port`.")
    if server is not None:
        return Targets(coordinator=server, aggregator="", inference="")
    folder = (home or load_settings(Settings).home).absolute()
    running = read_stack_file(folder)
    if running is None:
        raise UserMistake(
            f"No stack runs on {folder}.", "Start one with `fedrecon up`, or name a coordinator: `--server host:port`."
        )
    return Targets(running["coordinator"], running["aggregator"], running["inference"])


def find_authority(target: str, settings: Settings, home: Path) -> Path | None:
    """Return whom to trust at a target: as the settings say, else as the stack of a home does if the target is its.

    Args:
        target: A service, `host:port`.
        settings: Of the command.
        home: Folder of the local stack.

    Returns:
        PEM file of the authority; None for plaintext.
    """
    running = read_stack_file(home) if settings.tls_server_authority is None else None
    if running is None or target not in running.values() or not running["authority"]:
        return settings.tls_server_authority
    return Path(running["authority"])


def read_authority(target: str, home: Path | None = None) -> bytes | None:
    """Return what devices trust that are made by a command: PEM, or None for plaintext. See `find_authority`.

    Raises:
        UserMistake: The file cannot be read.
    """
    settings = load_settings(Settings)
    path = find_authority(target, settings, (home or settings.home).absolute())
    return server_authority(settings.model_copy(update={"tls_server_authority": path}))


@contextlib.contextmanager
def open_sync_channel(target: str, home: Path | None = None) -> Iterator[grpc.Channel]:
    """Open a channel of a command, with the TLS files that the settings name and the deployment's key.

    Args:
        target: A service, `host:port`.
        home: Folder of the local stack, for its key where the settings have none; the settings' own by default.
    """
    settings = load_settings(Settings)
    folder = (home or settings.home).absolute()
    settings = with_keys(settings, folder)
    authority = find_authority(target, settings, folder)
    credentials = channel_credentials(authority, settings.tls_certificate, settings.tls_key)
    if credentials is None:
        channel = grpc.insecure_channel(target, options=CHANNEL_OPTIONS)
    else:
        channel = grpc.secure_channel(target, credentials, options=CHANNEL_OPTIONS)
    with channel:
        yield _known(channel, settings, target, is_encrypted=credentials is not None)


def _known(channel: grpc.Channel, settings: Settings, target: str, *, is_encrypted: bool) -> grpc.Channel:
    """Return a channel whose calls say who makes them: an operator by its token, else who holds the shared key.

    Raises:
        UserMistake: The token would leave this machine in plaintext.
    """
    token, keys = settings.operator_token.get_secret_value(), settings.round_token_keys
    if token:
        if not is_encrypted and not target.startswith(_LOCAL_TARGETS):
            raise UserMistake(
                f"FEDRECON_OPERATOR_TOKEN would be sent to {target} in plaintext.",
                "Name the services' authority: FEDRECON_TLS_SERVER_AUTHORITY.",
            )
        return grpc.intercept_channel(channel, NamingCommands([bearer(token)]))
    if keys is None:
        return channel
    name = f"{getpass.getuser()}@{socket.gethostname()}"
    named = NamingCommands([(NAME_METADATA, name.encode("ascii", "replace").decode())])
    return grpc.intercept_channel(channel, ProvingCommands(keys.newest), named)


def require_answer(target: str) -> None:
    """Return when a service answers, or say that it does not: devices themselves would keep trying for long.

    Raises:
        Unreachable: Nothing answers there.
    """
    with open_sync_channel(target) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=_ANSWER_SECONDS)
        except grpc.FutureTimeoutError as error:
            raise Unreachable(
                f"Nothing answers at {target}.",
                "See that the coordinator runs and that its address is right; `fedrecon doctor` checks this machine.",
            ) from error


@contextlib.contextmanager
def open_admin(server: str | None, home: Path | None = None) -> Iterator[AdminStub]:
    """Open the Admin service of a deployment; see `find_targets` and `open_sync_channel`."""
    with open_sync_channel(find_targets(server, home).coordinator, home) as channel:
        yield AdminStub(channel)


def put_blob(stub: AdminStub, content: bytes) -> BlobReference:
    """Store a blob and return its reference."""

    def requests() -> Iterable[admin.PutBlobRequest]:
        yield from (admin.PutBlobRequest(chunk=chunk) for chunk in cut(content))

    return stub.PutBlob(iter(requests()), timeout=BULK_SECONDS).blob
