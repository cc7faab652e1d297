"""Several aggregators: a round lies on all of them in parts, and who is gone is replaced; nobody counts twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from fedrecon.aggregator import holding
from fedrecon.aggregator.group_events import Accepted
from fedrecon.aggregator.summing import CODEC
from fedrecon.ops.journal.memory import MemoryJournal
from fedrecon.v1 import aggregator_pb2
from fedrecon.v1.aggregator_pb2 import (
    CloseRequest,
    JoinRequest,
    OpenRequest,
    StatusRequest,
    UploadStatusRequest,
    WatchRequest,
)
from fedrecon.v1.common_pb2 import RoundKey
from fedrecon.wire.digests import digest_of
from fedrecon.wire.tensors import write_safetensors
from support.aggregator_sample import (
    CHECKPOINT,
    ROUND,
    Aggregator,
    Device,
    make_device,
    merging,
    opening,
    refused,
    running,
    total_of,
)


def part(number: int) -> RoundKey:
    return RoundKey(task=ROUND.task, round=ROUND.round, attempt=ROUND.attempt, part=number)


class Pair:
    """Two aggregators on one journal, and where sums and blobs lie."""

    def __init__(self, first: Aggregator, second: Aggregator, journal: MemoryJournal, sums: Path) -> None:
        self.first, self.second, self.journal, self.sums = first, second, journal, sums
        self.checkpoint = b""
        for each in (first, second):
            self.checkpoint = each.blobs.put(write_safetensors(CHECKPOINT))

    def request(self, number: int) -> OpenRequest:
        return opening(self.checkpoint, round=part(number))

    async def open(self, aggregator: Aggregator, request: OpenRequest) -> list[bytes]:
        answer = await aggregator.sums.Open(request, timeout=5)
        assert answer.aggregator == aggregator.target
        return list(answer.groups)

    def end_lease(self, aggregator: Aggregator) -> None:
        """What happens when a process stands still, or is cut off, for longer than its lease lasts."""
        leases = self.journal._tasks["registry"].leases
        holder = (aggregator.folder / "aggregator" / "holder").read_text().strip()
        leases.pop(f"aggregator/{holder}")


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    async with two(tmp_path) as made:
        yield made


@asynccontextmanager
async def two(folder: Path) -> AsyncIterator[Pair]:
    journal, sums = MemoryJournal(), folder / "sums"
    async with (
        running(folder / "a", journal, sums=sums) as first,
        running(folder / "b", journal, sums=sums) as second,
    ):
        yield Pair(first, second, journal, sums)


async def upload_all(aggregator: Aggregator, group: bytes, devices: Sequence[Device]) -> None:
    await asyncio.gather(*(device.upload(aggregator, group) for device in devices))


def in_part(number: int, *seeds: int) -> list[Device]:
    devices = [make_device(seed) for seed in seeds]
    for device in devices:
        device.part = number
    return devices


async def close(aggregator: Aggregator, number: int, *, discard: bool = False) -> Any:
    answer = await aggregator.sums.Close(CloseRequest(round=part(number), discard=discard), timeout=10)
    return answer.groups[0]


async def test_sums_of_two_aggregators_are_merged_as_one_would_sum_them(pair: Pair, tmp_path: Path) -> None:
    devices = [in_part(0, 1, 2, 3), in_part(1, 4, 5)]
    groups = []
    for number, aggregator in enumerate((pair.first, pair.second)):
        (group,) = await pair.open(aggregator, pair.request(number))
        await upload_all(aggregator, group, devices[number])
        assert (await close(aggregator, number)).reports == len(devices[number])
        groups.append(group)
    merged = [await each.sums.Merge(merging(pair.checkpoint, groups), timeout=5) for each in (pair.first, pair.second)]
    assert merged[0] == merged[1]
    assert merged[0].sum_digest == digest_of(total_of([*devices[0], *devices[1]]))
    async with running(tmp_path / "alone") as alone:
        checkpoint = alone.blobs.put(write_safetensors(CHECKPOINT))
        (group,) = (await alone.sums.Open(opening(checkpoint), timeout=5)).groups
        for device in [*devices[0], *devices[1]]:
            device.part = 0
        await upload_all(alone, group, [*devices[0], *devices[1]])
        await alone.sums.Close(CloseRequest(round=ROUND), timeout=5)
        whole = await alone.sums.Merge(merging(checkpoint, [group]), timeout=5)
    assert (whole.checkpoint, whole.optimizer_state) == (merged[0].checkpoint, merged[0].optimizer_state)


async def test_a_session_reports_to_its_own_part_only(pair: Pair) -> None:
    await pair.open(pair.first, pair.request(0))
    (other,) = await pair.open(pair.second, pair.request(1))
    (device,) = in_part(0, 1)
    proof = device.proof
    proof.round.part = 1
    join = pair.second.devices.Join(JoinRequest(proof=proof), timeout=5)
    await refused(join, grpc.StatusCode.PERMISSION_DENIED, "BAD_ROUND_TOKEN")
    await refused(device.upload(pair.second, other), grpc.StatusCode.NOT_FOUND, "UNKNOWN_ROUND")


async def test_an_aggregator_that_lives_keeps_its_groups(pair: Pair) -> None:
    request = pair.request(0)
    groups = await pair.open(pair.first, request)
    await refused(pair.open(pair.second, request), grpc.StatusCode.FAILED_PRECONDITION, "HELD_ELSEWHERE")
    await upload_all(pair.first, groups[0], in_part(0, 1))
    assert await pair.open(pair.first, request) == groups


async def test_reports_of_an_aggregator_that_is_gone_count_at_the_one_that_takes_over(tmp_path: Path) -> None:
    journal, sums = MemoryJournal(), tmp_path / "sums"
    early, late = in_part(1, 1, 2, 3), in_part(1, 4, 5)
    async with running(tmp_path / "b", journal, sums=sums) as second:
        async with running(tmp_path / "a", journal, sums=sums) as first:
            pair = Pair(first, second, journal, sums)
            request = pair.request(1)
            groups = await pair.open(first, request)
            await upload_all(first, groups[0], early)
        assert await pair.open(second, request) == groups
        await upload_all(second, groups[0], [*early, *late])  # who was acknowledged asks again, and counts once
        closed = await close(second, 1)
        assert (closed.phase, closed.reports) == (aggregator_pb2.GROUP_PHASE_CLOSED, 5)
        merged = await second.sums.Merge(merging(pair.checkpoint, groups), timeout=5)
        assert merged.sum_digest == digest_of(total_of([*early, *late]))
    async with running(tmp_path / "a", journal, sums=sums) as first:
        assert first.counted("aggregator_recovered_reports_total") == 0
        await refused(close(first, 1), grpc.StatusCode.NOT_FOUND, "UNKNOWN_ROUND")


async def test_a_closed_sum_is_merged_when_the_aggregator_that_summed_it_is_gone(tmp_path: Path) -> None:
    journal, sums, devices = MemoryJournal(), tmp_path / "sums", in_part(0, 1, 2)
    async with running(tmp_path / "b", journal, sums=sums) as second:
        async with running(tmp_path / "a", journal, sums=sums) as first:
            pair = Pair(first, second, journal, sums)
            groups = await pair.open(first, pair.request(0))
            await upload_all(first, groups[0], devices)
            await close(first, 0)
        merged = await second.sums.Merge(merging(pair.checkpoint, groups), timeout=5)
        assert merged.sum_digest == digest_of(total_of(devices))
        for path in sums.glob("??/*"):
            path.unlink()
        gone = second.sums.Merge(merging(pair.checkpoint, groups), timeout=5)
        await refused(gone, grpc.StatusCode.DATA_LOSS, "SUM_LOST")
        await refused(
            second.sums.Merge(merging(pair.checkpoint, [bytes(16)]), timeout=5),
            grpc.StatusCode.NOT_FOUND,
            "UNKNOWN_GROUP",
        )


async def test_of_two_that_believe_they_hold_a_group_one_can_write(pair: Pair) -> None:
    request = pair.request(0)
    groups = await pair.open(pair.first, request)
    before, meanwhile = in_part(0, 1, 2), in_part(0, 3)
    await upload_all(pair.first, groups[0], before)
    pair.end_lease(pair.first)
    assert await pair.open(pair.second, request) == groups
    await refused(meanwhile[0].upload(pair.first, groups[0]), grpc.StatusCode.ABORTED, "GROUP_MOVED")
    await upload_all(pair.second, groups[0], meanwhile)
    assert (await close(pair.second, 0)).reports == 3
    recorded = (await pair.journal.load("films", "group/3.1/0")).events
    accepted = [event for each in recorded if isinstance(event := CODEC.decode(each.event), Accepted)]
    assert [report.session for event in accepted for report in event.reports] == [
        device.session for device in [*before, *meanwhile]
    ]
    merged = await pair.first.sums.Merge(merging(pair.checkpoint, groups), timeout=5)
    assert merged.sum_digest == digest_of(total_of([*before, *meanwhile]))


async def test_a_coordinator_that_asks_the_old_aggregator_is_told_that_groups_have_moved(pair: Pair) -> None:
    request = pair.request(0)
    (group,) = await pair.open(pair.first, request)
    watch = pair.first.sums.Watch(WatchRequest(round=part(0)), timeout=10)
    assert (await watch.read()).groups[0].phase == aggregator_pb2.GROUP_PHASE_UPLOADING
    pair.end_lease(pair.first)
    await pair.open(pair.second, request)
    await refused(in_part(0, 3)[0].upload(pair.first, group), grpc.StatusCode.ABORTED, "GROUP_MOVED")
    await refused(watch.read(), grpc.StatusCode.ABORTED, "GROUP_MOVED")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await close(pair.first, 0)
    assert caught.value.code() in {grpc.StatusCode.ABORTED, grpc.StatusCode.NOT_FOUND}, "moved, or let go of by now"
    assert (await close(pair.second, 0, discard=True)).phase == aggregator_pb2.GROUP_PHASE_ABORTED


async def test_an_aggregator_whose_lease_was_taken_lets_go_of_what_is_gone_and_keeps_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holding, "RENEW_MILLISECONDS", 20)
    async with two(tmp_path) as pair:
        taken, kept = pair.request(0), pair.request(1)
        groups = await pair.open(pair.first, taken)
        others = await pair.open(pair.first, kept)
        pair.end_lease(pair.first)
        await pair.open(pair.second, taken)
        devices, asking = in_part(1, 7), in_part(0, 8)[0]

        async def is_known() -> bool:
            status = UploadStatusRequest(proof=asking.proof, group=groups[0])
            try:
                await pair.first.devices.UploadStatus(status, timeout=5)
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.NOT_FOUND  # noqa: PT017 - the loop ends with it
                return False
            return True

        async with asyncio.timeout(20):
            while await is_known():  # noqa: ASYNC110 - seen from outside
                await asyncio.sleep(0.01)
        await upload_all(pair.first, others[0], devices)
        assert (await close(pair.first, 1)).reports == 1
        await refused(pair.open(pair.first, taken), grpc.StatusCode.FAILED_PRECONDITION, "HELD_ELSEWHERE")


async def test_a_group_whose_sum_the_next_aggregator_cannot_read_is_void_in_one_event(tmp_path: Path) -> None:
    journal = MemoryJournal()
    async with running(tmp_path / "b", journal, sums=tmp_path / "not shared") as second:
        async with running(tmp_path / "a", journal, sums=tmp_path / "sums") as first:
            pair = Pair(first, second, journal, tmp_path)
            request = pair.request(0)
            (group,) = await pair.open(first, request)
            devices = in_part(0, 1, 2)
            await upload_all(first, group, devices)
        await pair.open(second, request)
        found = await close(second, 0)
        assert (found.phase, found.voided) == (aggregator_pb2.GROUP_PHASE_ABORTED, 2)
        status = UploadStatusRequest(proof=devices[0].proof, group=group)
        assert (await second.devices.UploadStatus(status, timeout=5)).fate != 0


async def test_an_aggregator_tells_how_many_groups_are_at_work(pair: Pair) -> None:
    assert (await pair.first.sums.Status(StatusRequest(), timeout=5)).open_groups == 0
    groups = await pair.open(pair.first, pair.request(0))
    await upload_all(pair.first, groups[0], in_part(0, 1))
    told = await pair.first.sums.Status(StatusRequest(), timeout=5)
    assert (told.open_groups, told.aggregator) == (1, pair.first.target)
    await close(pair.first, 0)
    assert (await pair.first.sums.Status(StatusRequest(), timeout=5)).open_groups == 0
