"""A journal in memory and one on a real Valkey, for tests that must hold on both."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from fedrecon.ops.embedded_valkey import EmbeddedValkey
from fedrecon.ops.journal import Journal
from fedrecon.ops.journal.memory import MemoryJournal
from fedrecon.ops.journal.redis import RedisJournal


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture(params=["memory", "valkey"])
async def journal(request: pytest.FixtureRequest) -> AsyncIterator[Journal]:
    if request.param == "memory":
        yield MemoryJournal()
        return
    server: EmbeddedValkey = request.getfixturevalue("valkey")
    connected = await RedisJournal.connect(server.url)
    await connected._shared.call("FLUSHALL")
    yield connected
    await connected.close()
