"""A network that fails: a TCP proxy between devices and a service, whose connections are cut or stand still.

Bytes are passed on as they come, both ways, until somebody interferes: a cut resets every connection at once, wherever
a message is; a stall lets bytes lie for a while, so that callers see a connection that lives and says nothing.
"""

from __future__ import annotations

import asyncio
import contextlib

_PIECE_BYTES = 16 << 10


class Proxy:
    """Passes connections on to a service.

    Attributes:
        address: Where it answers, `host:port`; after `start`.
        upstream: Where the service answers, `host:port`; connections are refused while it is empty.
        cuts: Connections that were cut.
    """

    def __init__(self) -> None:
        self.address = ""
        self.upstream = ""
        self.cuts = 0
        self._open: set[asyncio.StreamWriter] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._pass_on, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self._flowing.set()
        self.cut()
        await self._server.wait_closed()

    def cut(self) -> None:
        """Resets all connections, both ends."""
        for writer in list(self._open):
            writer.transport.abort()
            self.cuts += 1

    def next_upstream(self) -> str:
        """Returns where the next connection goes."""
        return self.upstream

    async def stall(self, seconds: float) -> None:
        """Passes nothing on for a while."""
        self._flowing.clear()
        await asyncio.sleep(seconds)
        self._flowing.set()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = [writer]
        try:
            host, _, port = self.next_upstream().rpartition(":")
            answers, onward = await asyncio.open_connection(host, int(port))
            ends.append(onward)
            self._open.update(ends)
            flows = [asyncio.create_task(self._flow(reader, onward)), asyncio.create_task(self._flow(answers, writer))]
            await asyncio.wait(flows, return_when=asyncio.FIRST_COMPLETED)
            for flow in flows:
                flow.cancel()
            await asyncio.gather(*flows, return_exceptions=True)
        except (OSError, ValueError):
            pass  # the service is away, or not started yet
        finally:
            for end in ends:
                self._open.discard(end)
                end.transport.abort()

    async def _flow(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(_PIECE_BYTES):
                await self._flowing.wait()
                writer.write(piece)
                await writer.drain()
