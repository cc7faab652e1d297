"""Devices on a network where three connections in ten are refused, cut, slow, or bring the same bytes again."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from fedrecon.device_sdk import Device, Outcome
from fedrecon.device_sdk.calling import Patience
from fedrecon.device_sdk.requests import Fetch
from fedrecon.device_sdk.testing import FakeServices
from fedrecon.device_sdk.testing.server import serve
from fedrecon.device_sdk.transport import BlockingTransport
from fedrecon.ops.certificates import LOCAL_NAMES, keep_certificates
from fedrecon.v1 import coordinator_pb2
from fedrecon.v1.common_pb2 import Chunk
from fedrecon.v1.coordinator_pb2 import Assignment
from fedrecon.wire.digests import digest_of
from fedrecon.wire.tensors import read_safetensors, write_safetensors
from support.torture import Fate, TorturingProxy
from support.toy_devices import toy_store

CHECKPOINT_BYTES = 800_000  # the item table of MovieLens 1M has 741 KB
TORTURED = 0.3


class Counting(BlockingTransport):
    """Counts the bytes of chunks as they reach the device."""

    def __init__(self, authority: bytes) -> None:
        super().__init__(authority)
        self.fetched = 0

    async def fetch(self, request: Fetch) -> None:
        def take(chunk: Chunk) -> None:
            self.fetched += len(chunk.data)
            request.take(chunk)

        await super().fetch(replace(request, take=take))


class Growing(FakeServices):
    """Services whose every round has a new checkpoint, as large as real ones."""

    def __init__(self, targets: Callable[[], str]) -> None:
        super().__init__()
        self._targets = targets
        self.needed = sum(map(len, self.blobs.values()))
        self.needed -= len(self.blobs[self.plan.manifest.initial_checkpoint.digest])
        self._first = read_safetensors(self.blobs[self.plan.manifest.initial_checkpoint.digest])
        self.change = self._renew

    def _renew(self, assignment: Assignment) -> None:
        ballast = np.frombuffer(os.urandom(CHECKPOINT_BYTES), np.float32)
        content = write_safetensors({**self._first, "ballast": ballast})
        self.blobs[digest_of(content)] = content
        self.needed += len(content)
        assignment.checkpoint.digest, assignment.checkpoint.size = digest_of(content), len(content)
        assignment.blobs = assignment.aggregator = self._targets()


def torture(participations: int, seed: int, home: Path) -> tuple[Growing, TorturingProxy, Counting, list[Any]]:
    """Lets a device take part so often through a torturing proxy; a new connection for each participation."""
    services = Growing(lambda: proxy.target)
    files = keep_certificates(home / "certificates", LOCAL_NAMES)
    authority = files.authority.read_bytes()
    credentials = grpc.ssl_server_credentials([(files.key.read_bytes(), files.certificate.read_bytes())])
    with serve(services, credentials=credentials) as target:
        proxy = TorturingProxy(target, TORTURED, seed)
        with proxy.running():
            transport = Counting(authority)
            patience = Patience(first_seconds=0.05, longest_seconds=1.0)
            device = Device(
                proxy.target,
                "films",
                toy_store(),
                home=home,
                patience=patience,
                transport=transport,
                trusted_plans=[services.publisher],
                min_contributors=0,
            )
            ended = []
            for _ in range(participations):
                ended.append(device.participate())
                transport.close()
    return services, proxy, transport, ended


def judge(services: Growing, transport: Counting, ended: list[Any]) -> None:
    """Raises unless every participation ended right and no byte of a blob came twice."""
    assert [each.outcome for each in ended] == [Outcome.UPLOADED] * len(ended), ended
    assert len(services.reports) == len(ended)
    finished = {each.session: each.outcome for each in services.finished}
    uploaded = coordinator_pb2.SESSION_OUTCOME_UPLOADED
    assert [finished[bytes.fromhex(each.session)] for each in ended] == [uploaded] * len(ended)
    assert transport.fetched == services.needed, "a chunk that has arrived is never fetched again"


def test_a_tortured_network_costs_time_and_nothing_else(tmp_path: Path) -> None:
    services, proxy, transport, ended = torture(4, 11, tmp_path)
    judge(services, transport, ended)
    assert len(proxy.fates) > 1


@pytest.mark.slow
def test_fifty_participations_on_a_tortured_network_end_right(tmp_path: Path) -> None:
    services, proxy, transport, ended = torture(50, 5, tmp_path)
    judge(services, transport, ended)
    assert set(proxy.fates) == set(Fate)
    passed_twice = proxy.passed_down / services.needed - 1  # with all other answers, and what TLS and HTTP/2 add
    assert passed_twice < 0.05, f"{passed_twice:.2%}"
