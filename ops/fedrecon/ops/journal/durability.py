"""Does a Redis keep what it acknowledges? Asked at every connect, since a failover may put another server there.

Required: version 7.0 or later, a primary, `appendonly yes`, `appendfsync always`, `maxmemory-policy noeviction`.
Accepted loss waives all but the version and the primary.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from redis.exceptions import ReadOnlyError, ResponseError

from fedrecon.ops.journal import DurabilityRefused

Call = Callable[..., Awaitable[Any]]
"""Sends one command and returns its reply in RESP 2."""

_REQUIRED = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
_OLDEST_VERSION = (7, 0)
_WAIVER = "or accept that acknowledged reports can be lost with FEDRECON_REDIS_DURABILITY=accepted-loss"


async def check_durability(call: Call, *, accepted_loss: bool = False) -> None:
    """Return if a server may hold a journal.

    Args:
        call: Sends one command to the server.
        accepted_loss: The operator accepts that acknowledged events can be lost with the server.

    Raises:
        DurabilityRefused: If not, with the settings to change.
        redis.exceptions.ReadOnlyError: If it is a replica, for now.
    """
    about = fields_of(await call("INFO", "server")) | fields_of(await call("INFO", "replication"))
    version = tuple(int(part) for part in about.get("redis_version", "0.0").split(".")[:2])
    if version < _OLDEST_VERSION:
        raise DurabilityRefused(f"the server is Redis {about.get('redis_version')}: use Redis 7.0 or later, or Valkey")
    if about.get("role") != "master":  # passes when a failover ends
        raise ReadOnlyError("the server is a replica: put the primary's address into FEDRECON_REDIS_URL")
    if accepted_loss:
        return
    try:
        reply = await call("CONFIG", "GET", *_REQUIRED)
    except ResponseError as error:  # hosted services forbid CONFIG
        raise DurabilityRefused(
            f"the server does not say how durable it is ({error}): allow this user CONFIG GET, {_WAIVER}"
        ) from error
    found = {name.decode(): value.decode() for name, value in zip(reply[::2], reply[1::2], strict=True)}
    wrong = {name: found.get(name) for name, value in _REQUIRED.items() if found.get(name) != value}
    if wrong:
        has = ", ".join(f"{name} is {value}" for name, value in wrong.items())
        needs = "; ".join(f"CONFIG SET {name} {_REQUIRED[name]}" for name in wrong)
        raise DurabilityRefused(f"the server does not keep what it acknowledges ({has}): {needs}, {_WAIVER}")


def fields_of(reply: bytes) -> dict[str, str]:
    """Read what `INFO` replies."""
    lines = (line.partition(":") for line in reply.decode().splitlines() if not line.startswith("#"))
    return {name: value for name, separator, value in lines if separator}
