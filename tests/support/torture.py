"""A network that tortures connections one by one: some are refused, cut, slow, or bring the same bytes again."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections import Counter
from collections.abc import Iterator
from enum import Enum

_PIECE_BYTES = 16 << 10
_LONGEST_CUT_BYTES = 600 << 10
_DELAY_SECONDS = 0.01


class Fate(Enum):
    """What becomes of a connection."""

    GOOD = "good"
    DROPPED = "dropped"
    TRUNCATED = "truncated"
    DELAYED = "delayed"
    DUPLICATED = "duplicated"


class TorturingProxy:
    """Passes connections on to a service, in a thread of its own.

    Args:
        upstream: target of the service.
        share: part of the connections that are tortured.
        seed: of all draws.

    Attributes:
        target: where it answers.
        fates: how many connections had which.
        passed_down: bytes that went to devices.
    """

    def __init__(self, upstream: str, share: float, seed: int) -> None:
        self._upstream = upstream
        self._share = share
        self._source = random.Random(seed)
        self.fates: Counter[Fate] = Counter()
        self.passed_down = 0
        self.target = ""
        self._open: set[asyncio.StreamWriter] = set()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        loop, started = asyncio.new_event_loop(), threading.Event()

        async def serve() -> None:
            server = await asyncio.start_server(self._pass_on, "127.0.0.1", 0)
            self.target = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            started.set()
            await stopping.wait()
            server.close()
            for writer in list(self._open):
                writer.transport.abort()
            await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True)

        stopping = asyncio.Event()
        thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
        thread.start()
        started.wait()
        try:
            yield
        finally:
            loop.call_soon_threadsafe(stopping.set)
            thread.join()
            loop.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tortured = self._source.random() < self._share
        fate = self._source.choice(list(Fate)[1:]) if tortured else Fate.GOOD
        left = self._source.randrange(_LONGEST_CUT_BYTES)
        self.fates[fate] += 1
        ends = [writer]
        self._open.add(writer)
        try:
            if fate is Fate.DROPPED:
                return
            host, _, port = self._upstream.rpartition(":")
            answers, onward = await asyncio.open_connection(host, int(port))
            ends.append(onward)
            self._open.add(onward)
            budget = [left]
            flows = [
                asyncio.create_task(self._flow(reader, onward, fate, budget)),
                asyncio.create_task(self._flow(answers, writer, fate, budget, down=True)),
            ]
            await asyncio.wait(flows, return_when=asyncio.FIRST_COMPLETED)
            for flow in flows:
                flow.cancel()
            await asyncio.gather(*flows, return_exceptions=True)
        except OSError:
            pass
        finally:
            for end in ends:
                self._open.discard(end)
                if fate is Fate.DROPPED:
                    end.transport.abort()
                else:
                    end.close()  # what was passed on arrives

    async def _flow(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        fate: Fate,
        budget: list[int],
        *,
        down: bool = False,
    ) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(_PIECE_BYTES):
                if fate is Fate.DELAYED:
                    await asyncio.sleep(_DELAY_SECONDS)
                if fate in {Fate.TRUNCATED, Fate.DUPLICATED}:
                    budget[0] -= len(piece)
                    if budget[0] < 0:
                        writer.write(piece[: len(piece) // 2] if fate is Fate.TRUNCATED else piece + piece)
                        await writer.drain()
                        if fate is Fate.TRUNCATED:
                            return
                        continue
                self.passed_down += len(piece) if down else 0
                writer.write(piece)
                await writer.drain()
