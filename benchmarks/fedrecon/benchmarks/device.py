"""What a round costs a device: time of reconstruction and update by the number of ratings, and bytes both ways.

The model is the paper's matrix factorisation on 3,706 films. `share_outside_onnxruntime` is the part of
`reconstruct + evaluate + update` that is not spent inside ONNX Runtime: laying out examples, rows and schedules. Making
the report of it (rounding all 185,300 numbers) and masking are told beside it.

Bytes are those of a participation under a secure sum of 20, as the receipt has them and as blobs came, against twice
the item table in 32 bits: what a round that sends the table down and an update up must carry.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from numpy.typing import NDArray

from fedrecon.benchmarks.measures import Measure
from fedrecon.benchmarks.movielens_round import FACTORS, FILMS, make_plan, ratings_of_a_user, send_16_bits
from fedrecon.device_sdk import Device, Outcome
from fedrecon.device_sdk.columns import map_examples, rule_of
from fedrecon.device_sdk.plans import load_plan, read_checkpoint, rows_in_force
from fedrecon.device_sdk.requests import Fetch
from fedrecon.device_sdk.runtime import Seeds, agreement, report_vector, train
from fedrecon.device_sdk.testing import FakeServices, FakeTransport, ToyPlan
from fedrecon.v1.common_pb2 import Chunk
from fedrecon.v1.task_pb2 import SPLIT_RULE_ALTERNATE_BATCHES, LocalWork, SecureSum
from fedrecon.wire.vocabularies import read_vocabulary

RATINGS = (30, 200, 1000)
SHARE_LIMIT = 0.3
FIRST_LIMIT, LATER_LIMIT = 1.1, 0.6
_RUNS = 30
_MODEL_BYTES = 2 * 4 * FILMS * FACTORS


def measure_device() -> list[Measure]:
    """Measure rounds of users with few and with many ratings, and the bytes of a first and of a later round.

    Returns:
        Milliseconds and shares by number of ratings; bytes and their ratios for 32 and for 16 bits.
    """
    with tempfile.TemporaryDirectory(prefix="fedrecon-device-") as folder:
        plan = make_plan(Path(folder) / "plan")
    measures = [measure for ratings in RATINGS for measure in _time(plan, ratings)]
    full, half = FakeServices(plan), FakeServices(plan)
    send_16_bits(half)
    first, later = _bytes_of_two_rounds(full)
    _, later_16 = _bytes_of_two_rounds(half)
    return [
        *measures,
        Measure("bytes_first", first, "B"),
        Measure("bytes_later", later, "B"),
        Measure("bytes_later_16_bit", later_16, "B"),
        Measure("bytes_ratio_first", first / _MODEL_BYTES, "ratio", FIRST_LIMIT),
        Measure("bytes_ratio_later", later_16 / _MODEL_BYTES, "ratio", LATER_LIMIT),
    ]


def _time(plan: ToyPlan, ratings: int) -> list[Measure]:
    """Measure one user's work, the median of many runs."""
    ready = load_plan(plan.content, plan.blobs.__getitem__)
    manifest = plan.manifest
    checkpoint = read_checkpoint(plan.blobs[manifest.initial_checkpoint.digest], manifest)
    items = {name: read_vocabulary(plan.blobs[blob.digest]) for name, blob in manifest.vocabularies.items()}
    rules, rows = [rule_of(each) for each in manifest.fields], rows_in_force(manifest, checkpoint)
    columns = map_examples(rules, ratings_of_a_user(ratings), items, rows).columns
    work = LocalWork(split=SPLIT_RULE_ALTERNATE_BATCHES)
    sums = SecureSum(ring_bits=32, maximum_reports=100, maximum_weight=1000)
    totals, inside, reports = [], [], []
    for _ in range(_RUNS + 1):  # the first one warms up
        seeds = Seeds(os.urandom(32), os.urandom(32), os.urandom(32))
        with _timed_sessions() as spent:
            result, seconds = _timed(partial(train, ready, checkpoint, columns, work, seeds))
        agreed = agreement(result, manifest, manifest.layout, sums)
        _, report = _timed(partial(report_vector, result, manifest.layout, agreed, seeds.rounding))
        totals.append(seconds)
        inside.append(sum(spent))
        reports.append(report)
    share = statistics.median(1 - part / total for part, total in zip(inside[1:], totals[1:], strict=True))
    name = f"ratings_{ratings}"
    return [
        Measure(f"{name}.train_ms", 1000 * statistics.median(totals[1:]), "ms"),
        Measure(f"{name}.report_ms", 1000 * statistics.median(reports[1:]), "ms"),
        Measure(f"{name}.share_outside_onnxruntime", share, "ratio", SHARE_LIMIT),
    ]


def _timed(act: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    made = act()
    return made, time.perf_counter() - began


@contextmanager
def _timed_sessions() -> Iterator[list[float]]:
    """Note how long every run of ONNX Runtime takes."""
    import onnxruntime

    spent: list[float] = []
    run = onnxruntime.InferenceSession.run

    def timed(*arguments: Any, **more: Any) -> Any:
        answer, seconds = _timed(lambda: run(*arguments, **more))
        spent.append(seconds)
        return answer

    with mock.patch.object(onnxruntime.InferenceSession, "run", timed):
        yield spent


class _Weighing(FakeTransport):
    """Counts bytes of blobs as they come."""

    def __init__(self, services: FakeServices) -> None:
        super().__init__(services)
        self.fetched = 0

    async def fetch(self, request: Fetch) -> None:
        """Gives every chunk to `request.take`, and counts it."""

        def take(chunk: Chunk) -> None:
            self.fetched += len(chunk.data)
            request.take(chunk)

        await super().fetch(replace(request, take=take))


@dataclass(frozen=True, slots=True)
class _User:
    """Thirty ratings."""

    ratings: Mapping[str, NDArray[Any]] = field(default_factory=lambda: ratings_of_a_user(RATINGS[0]))

    def count(self) -> int:
        """Return how many there are."""
        return RATINGS[0]

    def columns(self) -> Mapping[str, NDArray[Any]]:
        """Return them by field."""
        return self.ratings


def _bytes_of_two_rounds(services: FakeServices) -> tuple[int, int]:
    """Return the bytes, down and up, of a device's first round and of one with the same plan and a new checkpoint."""
    transport = _Weighing(services)
    device = Device("coordinator:1", "films", _User(), trusted_plans=[transport.publisher], transport=transport)
    weights = []
    for _ in range(2):
        transport.fetched = 0
        ended = device.participate()
        if ended.outcome is not Outcome.UPLOADED:
            raise RuntimeError(f"the device did not report: {ended}")
        weights.append(transport.fetched + ended.receipt.bytes)
    checkpoint = services.assigned[-1].checkpoint.size
    return weights[0], weights[1] + checkpoint  # in the second round it was in the cache; a new one is as large
