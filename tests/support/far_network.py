"""A network of its own for devices, on this machine, that can swallow what is sent: needs root and network namespaces.

A cable leads from one namespace to the other. To swallow, arriving packets are dropped at both ends: nobody is told, no
connection is reset, as when a host vanishes or a phone leaves its cell.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest

HERE, THERE = "10.213.77.1", "10.213.77.2"
_NAME, _NEAR, _FAR = "fedrecon-far", "fedfar0", "fedfar1"


@dataclass(frozen=True, slots=True)
class FarNetwork:
    """Where devices are.

    Attributes:
        here: The address of services, as devices reach them.
        place: What starts a process there.
    """

    here: str
    place: tuple[str, ...]

    @contextlib.asynccontextmanager
    async def swallowing(self) -> AsyncIterator[None]:
        """Lets nothing arrive, either way."""
        await asyncio.to_thread(self._rule, "-A")
        try:
            yield
        finally:
            await asyncio.to_thread(self._rule, "-D")

    def _rule(self, verb: str) -> None:
        _run("iptables", verb, "INPUT", "-i", _NEAR, "-j", "DROP")
        _run(*self.place, "iptables", verb, "INPUT", "-i", _FAR, "-j", "DROP")


@contextlib.contextmanager
def far_network() -> Iterator[FarNetwork]:
    """Makes the network, and removes it; skips the test where that is not allowed."""
    if os.geteuid() != 0 or not (shutil.which("ip") and shutil.which("iptables")):
        pytest.skip("needs root, ip and iptables")
    place = ("ip", "netns", "exec", _NAME)
    try:
        _run("ip", "netns", "add", _NAME)
    except subprocess.CalledProcessError:
        pytest.skip("network namespaces are not allowed here")
    try:
        _run("ip", "link", "add", _NEAR, "type", "veth", "peer", "name", _FAR, "netns", _NAME)
        _run("ip", "address", "add", f"{HERE}/30", "dev", _NEAR)
        _run("ip", "link", "set", _NEAR, "up")
        _run(*place, "ip", "address", "add", f"{THERE}/30", "dev", _FAR)
        _run(*place, "ip", "link", "set", _FAR, "up")
        yield FarNetwork(HERE, place)
    finally:
        subprocess.run(["ip", "link", "delete", _NEAR], check=False, capture_output=True)  # noqa: S607 - of the system
        _run("ip", "netns", "delete", _NAME)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
