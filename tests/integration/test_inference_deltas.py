"""Who has an older recommender fetches what changed: over gRPC and HTTP, and the SDK by itself."""

from __future__ import annotations

import asyncio
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from fedrecon.device_sdk import requests, serving
from fedrecon.device_sdk.blob_cache import BlobCache
from fedrecon.v1.blobs_pb2 import FetchRequest
from fedrecon.v1.common_pb2 import BlobReference
from fedrecon.v1.inference_pb2 import Delta, GetRecommenderResponse
from fedrecon.wire.chunks import cut
from fedrecon.wire.deltas import apply_delta, make_delta
from fedrecon.wire.digests import digest_of
from support.fuzz_devices import _line
from support.inference_deployment import SECONDS, deployed

PLAN = Path(__file__).parent.parent.parent / "protos" / "vectors" / "films-ridge"


async def test_deltas_lead_from_former_recommenders_to_the_one_that_is_live(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of so small a file every number changes; what is worth fetching is not what is tested.
    monkeypatch.setattr("fedrecon.inference.publishing.WORTH_FETCHING", 1.5)
    async with deployed(tmp_path, PLAN) as deployment:
        files = {}
        for round_number in (1, 2, 3):
            await deployment.coordinator.commit(deployment.task("films", 0.001 * round_number), round_number)
            live = await deployment.wait_for_round("films", round_number)
            files[live.recommender.digest] = await deployment.fetch(live.recommender)
            assert {delta.known for delta in live.deltas} == set(files) - {live.recommender.digest}
        for delta in live.deltas:
            made = apply_delta(files[delta.known], await deployment.fetch(delta.blob), live.recommender.size)
            assert digest_of(made) == live.recommender.digest
        address = f"{deployment.http}/v1/blobs/{live.deltas[0].blob.digest.hex()}"
        with await asyncio.to_thread(urllib.request.urlopen, address, None, SECONDS) as answer:
            assert digest_of(answer.read()) == live.deltas[0].blob.digest


class Served:
    """A service that answers a device: what it says is live, and blobs."""

    def __init__(self, answer: GetRecommenderResponse, blobs: dict[bytes, bytes]) -> None:
        self.answer = answer
        self.blobs = blobs
        self.fetched: list[bytes] = []

    def run(self, cache: BlobCache) -> bytes:
        """Lets a device look for a newer recommender; returns the file that it has then."""
        line = _line()
        line.cache = cache
        steps = serving.fetch_recommender(line, "inference:1", "films", 9_999)
        request = steps.send(None)
        try:
            while True:
                try:
                    said = self._do(request)
                except ValueError as error:
                    request = steps.throw(error)
                else:
                    request = steps.send(said)
        except StopIteration:
            return cache.read(self.answer.recommender.digest) or b""

    def _do(self, request: requests.Request) -> Any:
        match request:
            case requests.Call():
                return self.answer
            case requests.Compute():
                return request.function()
            case requests.Fetch():
                return self._fetch(request)
            case _:
                raise AssertionError(request)

    def _fetch(self, request: requests.Fetch) -> None:
        digest = FetchRequest.FromString(request.body).digest
        self.fetched.append(digest)
        for chunk in cut(self.blobs[digest]):
            request.take(chunk)


def reference(content: bytes) -> BlobReference:
    return BlobReference(digest=digest_of(content), size=len(content))


OLD = (PLAN.parent / "films-ridge.onnx").read_bytes()
NEW = OLD.replace(b"ridge/tiny", b"ridge/TINY")
ITEMS = (PLAN.parent / "films-ridge.items").read_bytes()


def served(delta: bytes, known: bytes = OLD) -> Served:
    told = Delta(known=digest_of(known), blob=reference(delta))
    answer = GetRecommenderResponse(recommender=reference(NEW), vocabulary=reference(ITEMS), deltas=[told])
    return Served(answer, {digest_of(each): each for each in (NEW, ITEMS, delta)})


def with_old() -> BlobCache:
    cache = BlobCache()
    cache.write(digest_of(OLD), OLD)
    return cache


def test_a_device_that_has_the_old_file_fetches_the_delta_alone() -> None:
    delta = make_delta(OLD, NEW)
    service = served(delta)
    cache = with_old()
    assert service.run(cache) == NEW
    assert service.fetched == [digest_of(delta), digest_of(ITEMS)]
    assert service.run(cache) == NEW
    assert len(service.fetched) == 2, "what is here is not fetched again"


def test_a_device_without_the_old_file_fetches_the_whole() -> None:
    service = served(make_delta(OLD, NEW))
    assert service.run(BlobCache()) == NEW
    assert service.fetched == [digest_of(NEW), digest_of(ITEMS)]


@pytest.mark.parametrize("delta", [b"no delta", make_delta(OLD, OLD)], ids=["none", "to another file"])
def test_a_delta_that_makes_another_file_is_not_believed(delta: bytes) -> None:
    service = served(delta)
    assert service.run(with_old()) == NEW
    assert service.fetched == [digest_of(delta), digest_of(NEW), digest_of(ITEMS)]
