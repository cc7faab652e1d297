"""An aggregator over loopback: what devices and coordinators may rely on."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from fedrecon.ops.clock import ManualClock
from fedrecon.ops.journal.memory import MemoryJournal
from fedrecon.ops.tokens import issue_token
from fedrecon.v1 import aggregator_pb2, coordinator_pb2, task_pb2
from fedrecon.v1.aggregator_pb2 import (
    CloseRequest,
    JoinRequest,
    SessionProof,
    ShareRequest,
    UnmaskRequest,
    UploadHeader,
    UploadRequest,
    UploadStatusRequest,
    WatchRequest,
)
from fedrecon.v1.blobs_pb2 import FetchRequest, StatRequest
from fedrecon.v1.blobs_pb2_grpc import BlobsStub
from fedrecon.v1.common_pb2 import RoundKey
from fedrecon.v1.plan_pb2 import Layout, Segment
from fedrecon.v1.task_pb2 import SecureSum, ServerOptimizer
from fedrecon.wire.digests import digest_of
from fedrecon.wire.fixed_point import FixedPoint, quantise
from fedrecon.wire.tensors import read_safetensors, write_safetensors
from support.aggregator_sample import (
    CHECKPOINT,
    FIXED_POINT,
    ROUND,
    TOKEN_KEY,
    Device,
    make_device,
    merging,
    now,
    opened,
    opening,
    refused,
    running,
    total_of,
)


async def test_reports_become_a_checkpoint(tmp_path: Path) -> None:
    devices = [make_device(seed) for seed in range(12)]
    async with running(tmp_path) as aggregator:
        checkpoint, groups = await opened(aggregator)
        joined = await aggregator.devices.Join(JoinRequest(proof=devices[0].proof), timeout=5)
        assert joined.group == groups[0]
        assert joined.phase == aggregator_pb2.GROUP_PHASE_UPLOADING
        answers = await asyncio.gather(*(device.upload(aggregator, groups[0]) for device in devices))
        assert [answer.digest for answer in answers] == [digest_of(device.vector) for device in devices]
        closed = await aggregator.sums.Close(CloseRequest(round=ROUND), timeout=5)
        assert [(group.phase, group.reports) for group in closed.groups] == [(aggregator_pb2.GROUP_PHASE_CLOSED, 12)]
        merged = await aggregator.sums.Merge(merging(checkpoint, groups), timeout=5)
        assert merged.sum_digest == digest_of(total_of(devices))
        assert merged.reports == 12
        after = read_safetensors(aggregator.blobs.read(merged.checkpoint.digest))
        assert not np.array_equal(after["items"], CHECKPOINT["items"])
        assert np.array_equal(after["untouched"], CHECKPOINT["untouched"])
        again = await aggregator.sums.Merge(merging(checkpoint, groups), timeout=5)
        assert again == merged
        assert aggregator.counted("reports_total", outcome="accepted") == 12
        assert aggregator.counted("update_norm_count") == 12
        assert aggregator.counted("sum_norm", task=ROUND.task) == pytest.approx(merged.update_norm)


async def test_an_attempt_is_opened_once(tmp_path: Path) -> None:
    async with running(tmp_path) as aggregator:
        _, groups = await opened(aggregator)
        assert (await opened(aggregator))[1] == groups
        assert (await opened(aggregator, expires_unix_milliseconds=now() + 5_000))[1] == groups
        explained = await refused(opened(aggregator, cohort_size=21), grpc.StatusCode.ALREADY_EXISTS, "ATTEMPT_DIFFERS")
        assert "next attempt" in explained.advice
        other = await opened(aggregator, round=RoundKey(task="films", round=3, attempt=2))
        assert other[1] != groups


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": coordinator_pb2.SESSION_KIND_EVALUATE}, "evaluation"),
        ({"kind": 0}, "kind"),
        ({"cohort_size": 0}, "cohort"),
        ({"plan_digest": b"short"}, "plan_digest"),
        ({"round": RoundKey(task="no spaces", round=1, attempt=1)}, "no spaces"),
        ({"round": RoundKey(task="films", round=0, attempt=1)}, "round"),
        ({"secure_sum": SecureSum(protocol=task_pb2.SUM_PROTOCOL_SECAGG_PLUS)}, "masked"),
        ({"secure_sum": SecureSum(protocol=task_pb2.SumProtocol.ValueType(7))}, "protocol"),
        ({"report_goal": 5}, "masked"),
        ({"secure_sum": SecureSum(maximum_reports=1 << 31)}, "fit"),
        ({"layout": Layout(segments=[Segment(parameter="items", row_set_digest=bytes(31))])}, "row set"),
        ({"layout": Layout()}, "elements"),
    ],
)
async def test_an_opening_that_makes_no_sense_is_refused(tmp_path: Path, changes: Any, words: str) -> None:
    if "secure_sum" in changes:
        whole = SecureSum(protocol=task_pb2.SUM_PROTOCOL_TRUSTED, ring_bits=32, maximum_reports=50, maximum_weight=10)
        whole.MergeFrom(changes["secure_sum"])
        changes = {"secure_sum": whole}
    async with running(tmp_path) as aggregator:
        explained = await refused(opened(aggregator, **changes), grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST")
        assert words in explained.message


async def test_an_attempt_of_too_many_groups_is_not_opened(tmp_path: Path) -> None:
    async with running(tmp_path) as aggregator:
        await refused(opened(aggregator, cohort_size=1 << 31), grpc.StatusCode.INVALID_ARGUMENT, "TOO_MANY_GROUPS")


async def test_an_attempt_that_is_over_is_not_opened(tmp_path: Path) -> None:
    async with running(tmp_path) as aggregator:
        await refused(
            opened(aggregator, expires_unix_milliseconds=now() - 1), grpc.StatusCode.INVALID_ARGUMENT, "EXPIRED"
        )


async def test_a_repeated_upload_gets_the_stored_answer_and_another_vector_is_refused(tmp_path: Path) -> None:
    device, other = make_device(1), make_device(2)
    async with running(tmp_path) as aggregator:
        _, (group,) = await opened(aggregator)
        first = await device.upload(aggregator, group)
        assert await device.upload(aggregator, group) == first
        impostor = Device(device.session, other.vector)
        await refused(impostor.upload(aggregator, group), grpc.StatusCode.ALREADY_EXISTS, "ALREADY_REPORTED")
        closed = await aggregator.sums.Close(CloseRequest(round=ROUND), timeout=5)
        assert closed.groups[0].reports == 1
        assert (await device.upload(aggregator, group)).digest == first.digest


async def test_a_late_report_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path) as aggregator:
        _, (group,) = await opened(aggregator)
        await make_device(1).upload(aggregator, group)
        await aggregator.sums.Close(CloseRequest(round=ROUND), timeout=5)
        late = make_device(2)
        await refused(late.upload(aggregator, group), grpc.StatusCode.FAILED_PRECONDITION, "ROUND_CLOSED")
        joining = aggregator.devices.Join(JoinRequest(proof=late.proof), timeout=5)
        await refused(joining, grpc.StatusCode.FAILED_PRECONDITION, "ROUND_CLOSED")
        assert aggregator.counted("reports_total", outcome="late") == 1


async def test_a_session_that_nobody_assigned_is_refused(tmp_path: Path) -> None:
    device = make_device(1)
    async with running(tmp_path) as aggregator:
        _, (group,) = await opened(aggregator)
        forged = device.proof
        forged.round_token = forged.round_token[:-1] + bytes([forged.round_token[-1] ^ 1])
        expired = device.proof
        expired.round_token = issue_token(TOKEN_KEY, ROUND, device.session, now() - 1)
        stolen = make_device(2).proof
        stolen.session = device.session
        other_round = device.proof
        other_round.round.attempt = 2
        expiring = aggregator.devices.Join(JoinRequest(proof=expired), timeout=5)
        await refused(expiring, grpc.StatusCode.FAILED_PRECONDITION, "TOKEN_EXPIRED")
        for proof in (forged, stolen, other_round, SessionProof(round=ROUND, session=device.session)):
            for call in (
                aggregator.devices.Join(JoinRequest(proof=proof), timeout=5),
                aggregator.devices.UploadStatus(UploadStatusRequest(proof=proof, group=group), timeout=5),
                aggregator.devices.Upload(iter([UploadRequest(header=UploadHeader(proof=proof))]), timeout=5),
            ):
                await refused(call, grpc.StatusCode.PERMISSION_DENIED, "BAD_ROUND_TOKEN")
        assert aggregator.counted("reports_total", outcome="unauthorized") == 12


async def test_masked_phases_and_keys_have_no_place_under_trusted(tmp_path: Path) -> None:
    device = make_device(1)
    async with running(tmp_path) as aggregator:
        _, (group,) = await opened(aggregator)
        share = aggregator.devices.Share(ShareRequest(proof=device.proof, group=group), timeout=5)
        await refused(share, grpc.StatusCode.FAILED_PRECONDITION, "WRONG_PHASE")
        unmask = aggregator.devices.Unmask(UnmaskRequest(proof=device.proof, group=group), timeout=5)
        await refused(unmask, grpc.StatusCode.FAILED_PRECONDITION, "WRONG_PHASE")
        masked = aggregator.devices.Join(JoinRequest(proof=device.proof, mask_key=bytes(32)), timeout=5)
        await refused(masked, grpc.StatusCode.FAILED_PRECONDITION, "NOT_MASKED")


async def test_a_vector_of_the_wrong_size_is_refused_before_its_bytes(tmp_path: Path) -> None:
    device = make_device(1)
    async with running(tmp_path) as aggregator:
        _, (group,) = await opened(aggregator)
        for vector in (device.vector[:-1], device.vector + b"\0", b""):
            wrong = Device(device.session, vector)
            await refused(wrong.upload(aggregator, group), grpc.StatusCode.INVALID_ARGUMENT, "WRONG_SIZE")
        assert aggregator.counted("update_rejected_total", reason="shape") == 3
        assert (await device.upload(aggregator, group)).digest == digest_of(device.vector)


async def test_a_flipped_byte_is_refused_and_the_upload_can_go_on(tmp_path: Path) -> None:
    device = make_device(1)
    async with running(tmp_path) as aggregator:
        _, (group,) = await opened(aggregator)
        parts = list(device.parts(group, size=20))
        parts[2].chunk.data = bytes([parts[2].chunk.data[0] ^ 1]) + parts[2].chunk.data[1:]
        await refused(aggregator.devices.Upload(iter(parts), timeout=5), grpc.StatusCode.DATA_LOSS, "DAMAGED_CHUNK")
        status = await aggregator.devices.UploadStatus(UploadStatusRequest(proof=device.proof, group=group), timeout=5)
        assert (status.received_bytes, status.acknowledged) == (20, False)
        answer = await aggregator.devices.Upload(device.parts(group, offset=20), timeout=5)
        assert answer.digest == digest_of(device.vector)
        assert aggregator.counted("upload_chunks_resumed_total") == 1


async def test_a_vector_that_is_not_the_announced_one_is_refused(tmp_path: Path) -> None:
    device, other = make_device(1), make_device(2)
    async with running(tmp_path) as aggregator:
        _, (group,) = await opened(aggregator)
        header, *_ = device.parts(group)
        _, *chunks = other.parts(group)
        upload = aggregator.devices.Upload(iter([header, *chunks]), timeout=5)
        await refused(upload, grpc.StatusCode.DATA_LOSS, "DIGEST_MISMATCH")
        assert (await aggregator.sums.Close(CloseRequest(round=ROUND), timeout=5)).groups[0].reports == 0


@pytest.mark.parametrize(
    ("entry", "value", "reason"), [(0, 1_000, "weight"), (0, 0, "weight"), (1, 2, "shape"), (2, 1 << 62, "norm")]
)
async def test_an_absurd_report_is_refused(tmp_path: Path, entry: int, value: int, reason: str) -> None:
    device = make_device(1)
    tail = FIXED_POINT.elements * 4 + 8 * entry
    device.vector = device.vector[:tail] + value.to_bytes(8, "little") + device.vector[tail + 8 :]
    async with running(tmp_path) as aggregator:
        _, (group,) = await opened(aggregator)
        await refused(device.upload(aggregator, group), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REPORT")
        assert aggregator.counted("update_rejected_total", reason=reason) == 1
        assert aggregator.counted("aggregator_pending_bytes") == 0


async def test_an_interrupted_upload_goes_on_where_it_stopped(tmp_path: Path) -> None:
    device = make_device(1)
    async with running(tmp_path) as aggregator:
        _, (group,) = await opened(aggregator)
        parts = list(device.parts(group, size=10))
        arrived = asyncio.Event()

        async def broken() -> AsyncIterator[UploadRequest]:
            for part in parts[:4]:
                yield part
            arrived.set()
            await asyncio.sleep(60)

        call = aggregator.devices.Upload(broken(), timeout=30)
        await arrived.wait()
        asking = UploadStatusRequest(proof=device.proof, group=group)
        while (await aggregator.devices.UploadStatus(asking, timeout=5)).received_bytes < 30:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        call.cancel()
        assert (await aggregator.devices.UploadStatus(asking, timeout=5)).received_bytes == 30
        ended = aggregator.devices.Upload(iter(parts[:3]), timeout=5)
        await refused(ended, grpc.StatusCode.FAILED_PRECONDITION, "UPLOAD_INCOMPLETE")
        answer = await aggregator.devices.Upload(device.parts(group, offset=20), timeout=5)
        assert answer.digest == digest_of(device.vector)
        status = await aggregator.devices.UploadStatus(asking, timeout=5)
        assert (status.acknowledged, status.digest, status.fate) == (
            True,
            digest_of(device.vector),
            coordinator_pb2.REPORT_FATE_PENDING,
        )


async def test_discarding_makes_every_report_void_also_after_closing(tmp_path: Path) -> None:
    devices = [make_device(seed) for seed in range(3)]
    async with running(tmp_path) as aggregator:
        checkpoint, groups = await opened(aggregator)
        for device in devices:
            await device.upload(aggregator, groups[0])
        await aggregator.sums.Close(CloseRequest(round=ROUND), timeout=5)
        for _ in range(2):
            answer = await aggregator.sums.Close(CloseRequest(round=ROUND, discard=True), timeout=5)
            assert [(one.phase, one.voided) for one in answer.groups] == [(aggregator_pb2.GROUP_PHASE_ABORTED, 3)]
        status = await aggregator.devices.UploadStatus(
            UploadStatusRequest(proof=devices[0].proof, group=groups[0]), timeout=5
        )
        assert status.fate == coordinator_pb2.REPORT_FATE_VOID
        merge = aggregator.sums.Merge(merging(checkpoint, groups), timeout=5)
        await refused(merge, grpc.StatusCode.FAILED_PRECONDITION, "GROUP_NOT_CLOSED")
        assert aggregator.counted("secure_sum_voided_total") == 3


async def test_a_large_cohort_is_spread_over_groups_that_all_fit(tmp_path: Path) -> None:
    small = FixedPoint(FIXED_POINT.segments, FIXED_POINT.metric_bounds, maximum_reports=5, maximum_weight=10)
    devices = [make_device(seed, small) for seed in range(15)]
    secure_sum = SecureSum(protocol=task_pb2.SUM_PROTOCOL_TRUSTED, ring_bits=32, maximum_reports=5, maximum_weight=10)
    async with running(tmp_path) as aggregator:
        checkpoint, groups = await opened(aggregator, cohort_size=15, secure_sum=secure_sum)
        assert len(groups) == 3
        await asyncio.gather(*(device.upload(aggregator, groups[0]) for device in devices))
        await refused(
            make_device(99, small).upload(aggregator, groups[0]), grpc.StatusCode.FAILED_PRECONDITION, "GROUP_FULL"
        )
        closed = await aggregator.sums.Close(CloseRequest(round=ROUND), timeout=5)
        assert [group.reports for group in closed.groups] == [5, 5, 5]
        merged = await aggregator.sums.Merge(merging(checkpoint, groups), timeout=5)
        assert merged.sum_digest == digest_of(total_of(devices))
        assert merged == await aggregator.sums.Merge(merging(checkpoint, groups[::-1]), timeout=5)


async def test_watching_tells_the_state_at_once_and_every_change(tmp_path: Path) -> None:
    async with running(tmp_path) as aggregator:
        _, (group,) = await opened(aggregator)
        device = make_device(1)
        seen = []
        watch = aggregator.sums.Watch(WatchRequest(round=ROUND), timeout=10)
        seen.append((await watch.read()).groups[0])
        await aggregator.devices.Join(JoinRequest(proof=device.proof), timeout=5)
        seen.append((await watch.read()).groups[0])
        await device.upload(aggregator, group)
        seen.append((await watch.read()).groups[0])
        await aggregator.sums.Close(CloseRequest(round=ROUND), timeout=5)
        seen.append((await watch.read()).groups[0])
        assert [(one.joined, one.reports) for one in seen] == [(0, 0), (1, 0), (1, 1), (1, 1)]
        assert seen[-1].phase == aggregator_pb2.GROUP_PHASE_CLOSED
        assert await watch.read() is grpc.aio.EOF


async def test_an_evaluation_gives_metric_sums_and_changes_no_checkpoint(tmp_path: Path) -> None:
    fixed_point = FixedPoint((), (25.0,), maximum_reports=50, maximum_weight=10)
    reports = [
        Device(secrets.token_bytes(16), quantise([], 4, [10.5 + number], fixed_point, bytes(32)).to_bytes())
        for number in range(3)
    ]
    async with running(tmp_path) as aggregator:
        request = opening(aggregator.blobs.put(write_safetensors(CHECKPOINT)))
        request.ClearField("layout")
        request.ClearField("segment_elements")
        request.kind = coordinator_pb2.SESSION_KIND_EVALUATE
        groups = list((await aggregator.sums.Open(request, timeout=5)).groups)
        for device in reports:
            await device.upload(aggregator, groups[0])
        await aggregator.sums.Close(CloseRequest(round=ROUND), timeout=5)
        merged = await aggregator.sums.Merge(merging(request.checkpoint_digest, groups), timeout=5)
        assert merged.checkpoint.digest == request.checkpoint_digest
        assert not merged.HasField("optimizer_state")
        assert merged.metric_sums == {"squared_error": 34.5}
        assert (merged.reports, merged.weight) == (3, 12)


async def test_a_merge_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path) as aggregator:
        checkpoint, groups = await opened(aggregator)
        for seed in range(3):
            await make_device(seed).upload(aggregator, groups[0])
        open_still = aggregator.sums.Merge(merging(checkpoint, groups), timeout=5)
        await refused(open_still, grpc.StatusCode.FAILED_PRECONDITION, "GROUP_NOT_CLOSED")
        await aggregator.sums.Close(CloseRequest(round=ROUND), timeout=5)
        state = aggregator.blobs.put(write_safetensors({"first_moment/items": np.zeros(3, np.float32)}))
        text = aggregator.blobs.put(b"no tensors")
        cases: list[tuple[dict[str, Any], grpc.StatusCode, str]] = [
            ({"plan_digest": bytes(32)}, grpc.StatusCode.FAILED_PRECONDITION, "STATE_MISMATCH"),
            ({"checkpoint_digest": bytes(32)}, grpc.StatusCode.FAILED_PRECONDITION, "STATE_MISMATCH"),
            ({"optimizer_state_digest": state}, grpc.StatusCode.FAILED_PRECONDITION, "STATE_MISMATCH"),
            ({"optimizer_state_digest": bytes(32)}, grpc.StatusCode.NOT_FOUND, "UNKNOWN_BLOB"),
            ({"optimizer_state_digest": text}, grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST"),
            ({"minimum_reports": 4}, grpc.StatusCode.FAILED_PRECONDITION, "TOO_FEW_REPORTS"),
            ({"optimizer": ServerOptimizer(adaptivity=-1)}, grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST"),
            (
                {
                    "optimizer": ServerOptimizer(
                        rule=task_pb2.OPTIMIZER_RULE_ADAM, rate=3e38, second_momentum=0.9999, adaptivity=1e-30
                    )
                },
                grpc.StatusCode.FAILED_PRECONDITION,
                "NOT_FINITE",
            ),
            (
                {"privacy": task_pb2.Privacy(noise_multiplier=1.0), "denominator": 3},
                grpc.StatusCode.INVALID_ARGUMENT,
                "MALFORMED_REQUEST",
            ),
        ]
        for changes, code, reason in cases:
            call = aggregator.sums.Merge(merging(checkpoint, groups, **changes), timeout=5)
            await refused(call, code, reason)
        unknown = aggregator.sums.Merge(merging(checkpoint, [bytes(16)]), timeout=5)
        await refused(unknown, grpc.StatusCode.NOT_FOUND, "UNKNOWN_GROUP")
        twice = aggregator.sums.Merge(merging(checkpoint, groups * 2), timeout=5)
        await refused(twice, grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST")


async def test_a_private_merge_has_noise_and_the_same_when_it_is_repeated(tmp_path: Path) -> None:
    private = SecureSum(protocol=task_pb2.SUM_PROTOCOL_TRUSTED, ring_bits=32, maximum_reports=50, maximum_weight=1)
    light = FixedPoint(FIXED_POINT.segments, FIXED_POINT.metric_bounds, maximum_reports=50, maximum_weight=1)
    devices = [make_device(seed, light) for seed in range(3)]
    async with running(tmp_path) as aggregator:
        checkpoint, groups = await opened(aggregator, secure_sum=private)
        for device in devices:
            await device.upload(aggregator, groups[0])
        await aggregator.sums.Close(CloseRequest(round=ROUND), timeout=5)
        exact = await aggregator.sums.Merge(merging(checkpoint, groups), timeout=5)
        wanted = merging(checkpoint, groups, privacy=task_pb2.Privacy(noise_multiplier=1.0), denominator=4)
        wanted.clip_norm = 0.5
        noisy, again = [await aggregator.sums.Merge(wanted, timeout=5) for _ in range(2)]
        assert noisy == again, "two draws of noise for one sum would give it away"
        assert noisy.checkpoint.digest != exact.checkpoint.digest
        assert noisy.sum_digest != exact.sum_digest
        assert dict(noisy.metric_sums) == {}
        assert dict(exact.metric_sums) != {}
        assert (noisy.reports, noisy.clip_norm) == (3, 0.5)
        wanted.noise_added = bytes([1]) * 32
        in_a_tree = await aggregator.sums.Merge(wanted, timeout=5)
        wanted.noise_removed.append(bytes([2]) * 32)
        digests = {noisy.sum_digest, in_a_tree.sum_digest, (await aggregator.sums.Merge(wanted, timeout=5)).sum_digest}
        assert len(digests) == 3
        wanted.noise_removed.append(bytes(31))
        await refused(aggregator.sums.Merge(wanted, timeout=5), grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST")


async def test_a_group_that_nobody_closes_is_given_up(tmp_path: Path) -> None:
    clock = ManualClock(now())
    async with running(tmp_path, clock=clock) as aggregator:
        _, (group,) = await opened(aggregator, expires_unix_milliseconds=now() + 10_000)
        device = make_device(1)
        await device.upload(aggregator, group)
        watch = aggregator.sums.Watch(WatchRequest(round=ROUND), timeout=10)
        assert (await watch.read()).groups[0].phase == aggregator_pb2.GROUP_PHASE_UPLOADING
        await clock.advance(15_000)
        given_up = (await watch.read()).groups[0]
        assert (given_up.phase, given_up.voided) == (aggregator_pb2.GROUP_PHASE_ABORTED, 1)
        assert await watch.read() is grpc.aio.EOF


async def test_ended_attempts_are_removed_after_a_while(tmp_path: Path) -> None:
    clock, journal = ManualClock(now()), MemoryJournal()
    async with running(tmp_path, journal, clock, aggregator_keep_hours=0.01) as aggregator:
        _, (group,) = await opened(aggregator, expires_unix_milliseconds=now() + 10_000)
        await make_device(1).upload(aggregator, group)
        await aggregator.sums.Close(CloseRequest(round=ROUND), timeout=5)
        await clock.advance(40_000)
        assert len((await aggregator.sums.Close(CloseRequest(round=ROUND), timeout=5)).groups) == 1
        await clock.advance(20_000)
        while await journal.streams("films", "group/"):  # files are removed in a thread, and a look may be missed
            await clock.advance(1_000)
            await asyncio.sleep(0.01)
        gone = aggregator.sums.Close(CloseRequest(round=ROUND), timeout=5)
        await refused(gone, grpc.StatusCode.NOT_FOUND, "UNKNOWN_ROUND")
        assert not [path for path in (tmp_path / "aggregator" / "sums").glob("??/*") if path.is_file()]


async def test_blobs_are_fetched_from_any_byte_with_their_digest(tmp_path: Path) -> None:
    content = secrets.token_bytes((2 << 20) + 77)
    async with running(tmp_path) as aggregator:
        blobs: Any = BlobsStub(aggregator.channel)
        digest = aggregator.blobs.put(content)
        assert (await blobs.Stat(StatRequest(digest=digest), timeout=5)).blob.size == len(content)
        for offset in (0, 1, 1 << 20, len(content) - 1, len(content)):
            pieces = [one.chunk async for one in blobs.Fetch(FetchRequest(digest=digest, offset=offset), timeout=5)]
            assert b"".join(piece.data for piece in pieces) == content[offset:]
            assert all(digest_of(piece.data) == piece.digest for piece in pieces)
        await refused(blobs.Stat(StatRequest(digest=bytes(32)), timeout=5), grpc.StatusCode.NOT_FOUND, "UNKNOWN_BLOB")
        await refused(
            blobs.Stat(StatRequest(digest=b"x"), timeout=5), grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST"
        )
        beyond = blobs.Fetch(FetchRequest(digest=digest, offset=len(content) + 1), timeout=5)
        await refused(beyond.read(), grpc.StatusCode.INVALID_ARGUMENT, "WRONG_OFFSET")
        path = next((tmp_path / "blobs").glob(f"*/{digest.hex()}"))
        flipped = bytes([content[0] ^ 1])
        path.write_bytes(flipped + content[1:])
        damaged = blobs.Fetch(FetchRequest(digest=digest), timeout=5)
        assert (await damaged.read()).chunk.data[:1] == flipped

        async def read_the_rest() -> None:
            while await damaged.read() is not grpc.aio.EOF:
                pass

        await refused(read_the_rest(), grpc.StatusCode.DATA_LOSS, "CORRUPT_BLOB")
