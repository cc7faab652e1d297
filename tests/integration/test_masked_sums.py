"""SecAgg+ through a real aggregator: the sum is the plain one, or there is none."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

from fedrecon.v1 import aggregator_pb2, coordinator_pb2
from fedrecon.v1.aggregator_pb2 import CloseRequest, JoinRequest, ShareRequest, UnmaskRequest, WatchRequest
from fedrecon.wire.digests import digest_of
from fedrecon.wire.fixed_point import FixedPoint
from support.aggregator_sample import (
    FIXED_POINT,
    ROUND,
    Aggregator,
    Device,
    make_device,
    merging,
    opened,
    refused,
    running,
    total_of,
)
from support.masked_sample import (
    JOINING_MILLISECONDS,
    Step,
    hurried,
    make_masked,
    masked_terms,
    opened_masked,
    take_part,
)

MEMBERS = 20


async def ended(aggregator: Aggregator) -> Any:
    """Returns the progress of the only group, once it has ended."""
    while True:
        closed = await aggregator.sums.Close(CloseRequest(round=ROUND), timeout=10)
        if closed.groups[0].phase in {aggregator_pb2.GROUP_PHASE_CLOSED, aggregator_pb2.GROUP_PHASE_ABORTED}:
            return closed.groups[0]
        await asyncio.sleep(0.05)


async def merged(aggregator: Aggregator, checkpoint: bytes, groups: list[bytes], reports: int) -> Any:
    return await aggregator.sums.Merge(merging(checkpoint, groups, minimum_reports=reports), timeout=10)


def digest_of_checkpoint(aggregator: Aggregator) -> bytes:
    return next(iter(aggregator.blobs.digests()))


@pytest.mark.parametrize(
    ("step", "lost"), [(Step.UNMASK, 0), *((step, lost) for step in list(Step)[:3] for lost in (2, 6))]
)
async def test_the_sum_is_that_of_the_survivors_bit_for_bit(tmp_path: Path, step: Step, lost: int) -> None:
    async with hurried(tmp_path) as (aggregator, clock):
        checkpoint, groups = await opened_masked(aggregator, MEMBERS)
        devices = make_masked(MEMBERS, checkpoint)
        for device in devices[:lost]:
            device.last = step
        await take_part(aggregator, clock, devices)
        group = await ended(aggregator)
        in_sum = devices if step >= Step.UPLOAD else devices[lost:]
        assert (group.phase, group.joined, group.reports) == (
            aggregator_pb2.GROUP_PHASE_CLOSED,
            MEMBERS,
            len(in_sum),
        )
        response = await merged(aggregator, checkpoint, groups, len(in_sum))
        assert response.sum_digest == digest_of(total_of(in_sum))
        assert {device.fate for device in devices[lost:]} == {coordinator_pb2.REPORT_FATE_PENDING}


@pytest.mark.parametrize("step", list(Step)[:3])
async def test_too_many_lost_void_the_whole_group(tmp_path: Path, step: Step) -> None:
    async with hurried(tmp_path) as (aggregator, clock):
        await opened_masked(aggregator, MEMBERS)
        devices = make_masked(MEMBERS, digest_of_checkpoint(aggregator))
        for device in devices[: MEMBERS - 3]:
            device.last = step
        results = await take_part(aggregator, clock, devices, results=True)
        group = await ended(aggregator)
        assert group.phase == aggregator_pb2.GROUP_PHASE_ABORTED
        assert group.voided == (MEMBERS if step is Step.UPLOAD else 3 if step is Step.SHARE else 0)
        if step is Step.JOIN:  # nobody uploaded: they were told before
            assert all(isinstance(result, Exception) for result in results[MEMBERS - 3 :])
        else:
            assert {device.fate for device in devices[MEMBERS - 3 :]} == {coordinator_pb2.REPORT_FATE_VOID}


async def test_joining_ends_with_the_members_that_are_there(tmp_path: Path) -> None:
    async with hurried(tmp_path) as (aggregator, clock):
        checkpoint, groups = await opened_masked(aggregator, 30)
        devices = make_masked(8, checkpoint)
        work = asyncio.create_task(take_part(aggregator, clock, devices))
        await clock.wait_for(Step.JOIN, 8)
        clock.ahead += JOINING_MILLISECONDS
        await work
        assert (await ended(aggregator)).reports == 8
        response = await merged(aggregator, checkpoint, groups, 8)
        assert response.sum_digest == digest_of(total_of(devices))


async def test_a_group_of_fewer_than_its_smallest_never_begins(tmp_path: Path) -> None:
    async with hurried(tmp_path) as (aggregator, clock):
        checkpoint, _ = await opened_masked(aggregator, 30)
        devices = make_masked(4, checkpoint)
        work = asyncio.create_task(take_part(aggregator, clock, devices, results=True))
        await clock.wait_for(Step.JOIN, 4)
        clock.ahead += JOINING_MILLISECONDS
        for result in await work:
            assert isinstance(result, grpc.aio.AioRpcError)
        assert (await ended(aggregator)).phase == aggregator_pb2.GROUP_PHASE_ABORTED


async def test_a_group_that_began_takes_nobody_in(tmp_path: Path) -> None:
    async with running(tmp_path) as aggregator:
        checkpoint, _ = await opened_masked(aggregator, 6)
        *members, late = make_masked(7, checkpoint)
        await asyncio.gather(*(member.join(aggregator) for member in members))
        await refused(
            aggregator.devices.Join(late.keys(), timeout=5), grpc.StatusCode.FAILED_PRECONDITION, "GROUP_FULL"
        )


async def test_groups_are_filled_one_after_the_other_and_merged_exactly(tmp_path: Path) -> None:
    async with hurried(tmp_path) as (aggregator, clock):
        settings = {"cohort_size": 24, "report_goal": 24}
        checkpoint, groups = await opened_masked(aggregator, 24, **settings, secure_sum=masked_terms(maximum_reports=8))
        assert len(groups) == 3
        small = FixedPoint(FIXED_POINT.segments, FIXED_POINT.metric_bounds, maximum_reports=8, maximum_weight=10)
        devices = make_masked(24, checkpoint, small)
        await take_part(aggregator, clock, devices)
        closed = await aggregator.sums.Close(CloseRequest(round=ROUND), timeout=10)
        assert [group.reports for group in closed.groups] == [8, 8, 8]
        response = await merged(aggregator, checkpoint, groups, 24)
        assert response.sum_digest == digest_of(total_of(devices))


async def test_a_close_in_the_middle_of_uploads_unmasks_what_is_there(tmp_path: Path) -> None:
    async with running(tmp_path) as aggregator:
        checkpoint, groups = await opened_masked(aggregator, 10)
        devices = make_masked(10, checkpoint)
        slow = devices[9]
        slow.last = Step.SHARE
        work = asyncio.gather(*(device.take_part(aggregator) for device in devices))
        async for progress in aggregator.sums.Watch(WatchRequest(round=ROUND), timeout=20):
            if progress.groups[0].reports == 9:
                break
        assert (await ended(aggregator)).reports == 9
        await work
        response = await merged(aggregator, checkpoint, groups, 9)
        assert response.sum_digest == digest_of(total_of(devices[:9]))


async def test_no_member_says_two_things(tmp_path: Path) -> None:
    async with running(tmp_path) as aggregator:
        checkpoint, _ = await opened_masked(aggregator, 6)
        devices = make_masked(6, checkpoint)
        first, second = devices[:2]
        waiting = asyncio.create_task(first.join(aggregator))
        await asyncio.sleep(0.05)
        other = first.keys()
        other.mask_key = bytes(32)
        exists = grpc.StatusCode.ALREADY_EXISTS
        await refused(aggregator.devices.Join(other, timeout=5), exists, "ALREADY_SENT")
        stolen = second.keys()
        stolen.mask_key = first.keys().mask_key
        await refused(aggregator.devices.Join(stolen, timeout=5), exists, "KEY_IN_GROUP")
        rest = await asyncio.gather(*(device.join(aggregator) for device in devices[1:]))
        joined = await waiting
        assert await first.join(aggregator) == joined, "the same keys again get the stored answer"
        shares, commitment = first.begin().share(joined)
        given = ShareRequest(proof=first.proof, group=joined.group, shares=shares, seed_commitment=commitment)
        bad = ShareRequest()
        bad.CopyFrom(given)
        del bad.shares[0]
        invalid = grpc.StatusCode.INVALID_ARGUMENT
        await refused(aggregator.devices.Share(bad, timeout=5), invalid, "MALFORMED_MESSAGE")
        waiting = asyncio.create_task(first.share(aggregator, joined))
        await asyncio.sleep(0.05)
        given.seed_commitment = bytes(32)
        await refused(aggregator.devices.Share(given, timeout=5), exists, "ALREADY_SENT")
        assert len(rest) == 5
        waiting.cancel()


async def test_keys_that_neighbours_would_refuse_do_not_reach_them(tmp_path: Path) -> None:
    async with running(tmp_path) as aggregator:
        checkpoint, _ = await opened_masked(aggregator, 6)
        device = make_masked(1, checkpoint)[0]
        for change in ({"key_signature": bytes(64)}, {"mask_key": bytes(32)}, {"share_key": bytes(31)}):
            keys = device.keys()
            for name, value in change.items():
                setattr(keys, name, value)
            call = aggregator.devices.Join(keys, timeout=5)
            await refused(call, grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_MESSAGE")


async def test_nobody_reveals_before_the_survivors_are_fixed(tmp_path: Path) -> None:
    async with running(tmp_path) as aggregator:
        checkpoint, _ = await opened_masked(aggregator, 6)
        devices = make_masked(6, checkpoint)
        joined = await asyncio.gather(*(device.join(aggregator) for device in devices))
        shared = await asyncio.gather(
            *(device.share(aggregator, answer) for device, answer in zip(devices, joined, strict=True))
        )
        group = joined[0].group
        await devices[0].send(aggregator, group, shared[0])
        early = UnmaskRequest(proof=devices[0].proof, group=group, shares=[aggregator_pb2.RevealedShare(index=1)])
        late = grpc.StatusCode.FAILED_PRECONDITION
        await refused(aggregator.devices.Unmask(early, timeout=5), late, "WRONG_PHASE")
        stranger = UnmaskRequest(proof=devices[1].proof, group=group)
        await refused(aggregator.devices.Unmask(stranger, timeout=5), late, "ROUND_CLOSED")


async def test_a_vector_of_nobody_who_shared_is_not_added(tmp_path: Path) -> None:
    async with hurried(tmp_path) as (aggregator, clock):
        checkpoint, _ = await opened_masked(aggregator, 6)
        devices = make_masked(6, checkpoint)
        devices[0].last = Step.JOIN
        stranger = make_device(99)
        await take_part(aggregator, clock, devices)
        group = (await aggregator.sums.Close(CloseRequest(round=ROUND), timeout=10)).groups[0].group
        for device in (stranger, Device(devices[0].session, devices[0].vector)):
            await refused(device.upload(aggregator, group), grpc.StatusCode.FAILED_PRECONDITION, "ROUND_CLOSED")


async def test_a_device_with_keys_is_refused_where_nothing_is_masked(tmp_path: Path) -> None:
    async with running(tmp_path) as aggregator:
        checkpoint, _ = await opened(aggregator)
        device = make_masked(1, checkpoint)[0]
        await refused(
            aggregator.devices.Join(device.keys(), timeout=5), grpc.StatusCode.FAILED_PRECONDITION, "NOT_MASKED"
        )
        keyless = JoinRequest(proof=device.proof)
        assert (await aggregator.devices.Join(keyless, timeout=5)).phase == aggregator_pb2.GROUP_PHASE_UPLOADING
