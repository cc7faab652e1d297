"""A coordinator over loopback that hears enrolled devices alone: who may speak, once, and for whom."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from fedrecon.coordinator.assignments import participation_of
from fedrecon.coordinator.attestation import AttestationRefused, load_attestation
from fedrecon.coordinator.enrolment import issue_challenge, issue_enrolment
from fedrecon.coordinator.round_state import Phase
from fedrecon.ops.boundary import refusal_of
from fedrecon.ops.clock import SystemClock
from fedrecon.ops.journal.memory import MemoryJournal
from fedrecon.ops.key_ring import KeyRing
from fedrecon.ops.mistakes import UserMistake
from fedrecon.ops.tokens import issue_token, session_key
from fedrecon.v1 import coordinator_pb2
from fedrecon.v1.coordinator_pb2 import Assignment, CheckInResponse
from fedrecon.v1.enrolment_pb2 import ForgetRequest, RenewRequest
from fedrecon.wire.proofs import call_mac, enrolment_transcript
from support.coordinating import CALL_SECONDS, KEY, TASK, Coordinator, House, house, make_spec, refused, until_true
from support.enrolled import FINISH, EnrolledDevice

UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
RENEW, FORGET = "/fedrecon.v1.Enrolment/Renew", "/fedrecon.v1.Enrolment/Forget"


class Register:
    """An attestation as a deployment would write it: the platform's word must be over the challenge."""

    name = "register"

    async def verify(self, device_key: bytes, challenge: bytes, attestation: bytes) -> None:
        if attestation != b"genuine " + challenge:
            raise AttestationRefused(f"{device_key.hex()} is not in the register")


REGISTER = Register()


@contextlib.asynccontextmanager
async def guarded(folder: Path, **identity: Any) -> AsyncIterator[tuple[House, Coordinator]]:
    async with house(folder, MemoryJournal()) as built:
        coordinator = await built.coordinator(**{"requires_enrolment": True, **identity})
        await coordinator.create(make_spec(built.plan, maximum_rounds=1))
        yield built, coordinator


async def assigned(coordinator: Coordinator, devices: list[EnrolledDevice]) -> list[Assignment]:
    calls = (coordinator.devices.CheckIn(each.check_in(), timeout=CALL_SECONDS) for each in devices)
    answers: list[CheckInResponse] = await asyncio.gather(*calls)
    return [answer.assignment for answer in answers]


async def cohort(coordinator: Coordinator) -> list[EnrolledDevice]:
    return [await EnrolledDevice().enrol(coordinator) for _ in range(4)]


async def test_enrolled_devices_take_part(tmp_path: Path) -> None:
    async with guarded(tmp_path) as (built, coordinator):
        devices = await cohort(coordinator)
        assignments = await assigned(coordinator, devices)
        assert len({each.session_key for each in assignments}) == 4
        await built.sums.report(assignments[0].round, 4)
        await coordinator.until(Phase.COMMITTED)
        for device, assignment in zip(devices, assignments, strict=True):
            finish = device.finish(assignment)
            for _ in range(2):  # the same bytes again get the same answer
                answer = await coordinator.devices.FinishSession(finish, timeout=CALL_SECONDS)
                assert answer.fate == coordinator_pb2.REPORT_FATE_COUNTED


async def test_who_is_not_enrolled_is_told_to(tmp_path: Path) -> None:
    async with guarded(tmp_path) as (_, coordinator):
        stranger, other = EnrolledDevice(), await EnrolledDevice().enrol(coordinator)
        await refused(coordinator.check_in(1), UNAUTHENTICATED, "NOT_ENROLLED")
        assert coordinator.counted("check_ins_total", task="", outcome="unauthenticated") == 1
        for token in (b"", b"x" * 40, other.token, issue_enrolment(KeyRing(bytes(32)), stranger.key, 1 << 50)):
            stranger.token = token
            request = stranger.check_in()
            await refused(coordinator.devices.CheckIn(request, timeout=5), UNAUTHENTICATED, "NOT_ENROLLED")
        stranger.token = issue_enrolment(KeyRing(KEY), stranger.key, SystemClock().now_milliseconds() - 1)
        explained = await refused(
            coordinator.devices.CheckIn(stranger.check_in(), timeout=5), UNAUTHENTICATED, "NOT_ENROLLED"
        )
        assert "expired" in explained.message


async def test_a_signature_is_good_for_one_method_and_one_body(tmp_path: Path) -> None:
    async with guarded(tmp_path) as (_, coordinator):
        device, thief = [await EnrolledDevice().enrol(coordinator) for _ in range(2)]
        other_body = device.check_in()
        other_body.sdk_version = "9.9.9"
        other_nonce = device.check_in()
        other_nonce.credentials.nonce = b"n" * 16
        other_key = device.check_in()
        other_key.credentials.device_key, other_key.credentials.token = thief.key, thief.token
        unsigned = device.check_in()
        unsigned.credentials.signature = b""
        no_nonce = device.check_in()
        no_nonce.credentials.nonce = b""
        for request in (other_body, other_nonce, other_key, unsigned, no_nonce):
            await refused(coordinator.devices.CheckIn(request, timeout=5), UNAUTHENTICATED, "BAD_SIGNATURE")
        renewal = RenewRequest(credentials=device.check_in().credentials)
        await refused(coordinator.enrolment.Renew(renewal, timeout=5), UNAUTHENTICATED, "BAD_SIGNATURE")


async def test_a_captured_check_in_gives_the_answer_there_was_and_never_another_place(tmp_path: Path) -> None:
    async with guarded(tmp_path) as (built, coordinator):
        devices = await cohort(coordinator)
        requests = [each.check_in() for each in devices]
        answers = await asyncio.gather(*(coordinator.devices.CheckIn(each, timeout=CALL_SECONDS) for each in requests))
        again = await coordinator.devices.CheckIn(requests[0], timeout=CALL_SECONDS)
        assert again.assignment.session == answers[0].assignment.session
        finish = devices[0].finish(answers[0].assignment)
        await coordinator.devices.FinishSession(finish, timeout=CALL_SECONDS)
        await refused(coordinator.devices.CheckIn(requests[0], timeout=5), grpc.StatusCode.ALREADY_EXISTS, "REPLAYED")
        other = await built.coordinator(requires_enrolment=True)
        await until_true(lambda: bool(other.roster.runners) and other.roster.is_settled)
        await refused(other.devices.CheckIn(requests[0], timeout=5), grpc.StatusCode.ALREADY_EXISTS, "REPLAYED")


async def test_a_captured_check_in_takes_no_place_in_a_selection(tmp_path: Path) -> None:
    async with guarded(tmp_path) as (_, coordinator):
        request = (await EnrolledDevice().enrol(coordinator)).check_in()
        waiting = asyncio.ensure_future(coordinator.devices.CheckIn(request, timeout=CALL_SECONDS))
        runner = coordinator.roster.runners[TASK]
        await until_true(lambda: bool(runner.waiting.smallest(1)))
        waiting.cancel()
        await until_true(lambda: not runner.waiting.smallest(1))
        await refused(coordinator.devices.CheckIn(request, timeout=5), grpc.StatusCode.ALREADY_EXISTS, "REPLAYED")


async def test_the_end_of_a_session_is_its_own_devices_word(tmp_path: Path) -> None:
    async with guarded(tmp_path) as (_, coordinator):
        devices = await cohort(coordinator)
        first, second, *_ = await assigned(coordinator, devices)
        unproved, other_body, other_device, other_session, other_method, no_nonce = (
            devices[0].finish(first) for _ in range(6)
        )
        unproved.credentials.mac = b""
        other_body.outcome = coordinator_pb2.SESSION_OUTCOME_CANCELLED
        other_device.credentials.device_key = devices[1].key
        other_session.session, other_session.round_token = second.session, second.round_token
        other_method.credentials.mac = call_mac(
            first.session_key, "/fedrecon.v1.Aggregator/Join", other_method, other_method.credentials
        )
        no_nonce.credentials.nonce = b""
        for request in (unproved, other_body, other_device, other_session, other_method, no_nonce):
            await refused(
                coordinator.devices.FinishSession(request, timeout=5),
                grpc.StatusCode.PERMISSION_DENIED,
                "UNPROVEN_CALL",
            )
        await coordinator.devices.FinishSession(devices[0].finish(first), timeout=5)


async def test_an_enrolment_needs_a_fresh_challenge_signed_by_its_key(tmp_path: Path) -> None:
    async with guarded(tmp_path) as (_, coordinator):
        device, other = EnrolledDevice(), EnrolledDevice()
        good = await device.enrolment(coordinator)
        stale = type(good)()
        stale.CopyFrom(good)
        stale.challenge = issue_challenge(KeyRing(KEY), device.key, bytes(16), SystemClock().now_milliseconds() - 10**6)
        stale.signature = device.private.sign(enrolment_transcript(device.key, stale.challenge, b""))
        of_another = await other.enrolment(coordinator)
        of_another.device_key = device.key
        of_another.signature = device.private.sign(enrolment_transcript(device.key, of_another.challenge, b""))
        signed_by_another = await device.enrolment(coordinator)
        signed_by_another.signature = other.private.sign(
            enrolment_transcript(device.key, signed_by_another.challenge, b"")
        )
        with_more = await device.enrolment(coordinator)
        with_more.attestation = b"added on the way"
        for request in (stale, of_another, signed_by_another, with_more):
            await refused(
                coordinator.enrolment.Enrol(request, timeout=5), grpc.StatusCode.INVALID_ARGUMENT, "BAD_ENROLMENT"
            )
        await coordinator.enrolment.Enrol(good, timeout=5)


async def test_a_platform_vouches_for_the_device_where_that_is_asked_for(tmp_path: Path) -> None:
    verifier = load_attestation(f"{__name__}:REGISTER")
    async with guarded(tmp_path, attestation=verifier) as (_, coordinator):
        device = EnrolledDevice()
        request = await device.enrolment(coordinator)
        await refused(
            coordinator.enrolment.Enrol(request, timeout=5), grpc.StatusCode.PERMISSION_DENIED, "ATTESTATION_REFUSED"
        )
        said = b"genuine " + request.challenge
        request.attestation = said
        request.signature = device.private.sign(enrolment_transcript(device.key, request.challenge, said))
        assert (await coordinator.enrolment.Enrol(request, timeout=5)).token


@pytest.mark.parametrize("place", ["no.such.module:name", f"{__name__}:nothing", f"{__name__}:KEY", "no colon"])
def test_a_verifier_that_is_none_is_a_mistake(place: str) -> None:
    with pytest.raises(UserMistake, match="FEDRECON_ATTESTATION"):
        load_attestation(place)


async def test_a_token_is_renewed_by_its_key(tmp_path: Path) -> None:
    async with guarded(tmp_path, attestation=REGISTER) as (_, coordinator):
        device = EnrolledDevice()
        device.token = issue_enrolment(KeyRing(KEY), device.key, SystemClock().now_milliseconds() + 5_000)
        newer = await coordinator.enrolment.Renew(device.sign(RENEW, RenewRequest()), timeout=5)
        assert newer.expires_within_milliseconds == 3_600_000
        device.token = newer.token
        waiting = coordinator.devices.CheckIn(device.check_in(), timeout=1.3)
        assert (await waiting).WhichOneof("answer") == "ticket"


async def test_a_forgotten_key_is_nobodys_and_left_no_trace(tmp_path: Path) -> None:
    async with guarded(tmp_path) as (built, coordinator):
        other = await built.coordinator(requires_enrolment=True)
        device = await EnrolledDevice().enrol(coordinator)
        name, until = participation_of(KEY, TASK, device.key), SystemClock().now_milliseconds() + 60_000
        assert await built.journal.remember(TASK, name, until)
        await coordinator.enrolment.Forget(device.sign(FORGET, ForgetRequest()), timeout=5)
        assert await built.journal.remember(TASK, name, until), "when it took part is forgotten"
        await refused(coordinator.devices.CheckIn(device.check_in(), timeout=5), UNAUTHENTICATED, "NOT_ENROLLED")
        await refused(device.enrol(coordinator), grpc.StatusCode.INVALID_ARGUMENT, "BAD_ENROLMENT")

        async def heard() -> None:
            while True:  # the other coordinator hears of it a moment later
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await device.enrolment(other)
                    continue
                return

        await asyncio.wait_for(heard(), 5)
        later = await built.coordinator(requires_enrolment=True)
        await refused(later.devices.CheckIn(device.check_in(), timeout=5), UNAUTHENTICATED, "NOT_ENROLLED")


async def test_nobody_is_forgotten_but_by_itself(tmp_path: Path) -> None:
    async with guarded(tmp_path, requires_enrolment=False) as (_, coordinator):
        device, other = [await EnrolledDevice().enrol(coordinator) for _ in range(2)]
        forged = other.sign(FORGET, ForgetRequest())
        forged.credentials.device_key, forged.credentials.token = device.key, device.token
        await refused(coordinator.enrolment.Forget(forged, timeout=5), UNAUTHENTICATED, "BAD_SIGNATURE")
        forged.credentials.token = b""
        await refused(coordinator.enrolment.Forget(forged, timeout=5), UNAUTHENTICATED, "NOT_ENROLLED")


async def test_without_enrolment_what_is_shown_is_checked_all_the_same(tmp_path: Path) -> None:
    async with guarded(tmp_path, requires_enrolment=False) as (_, coordinator):
        device = await EnrolledDevice().enrol(coordinator)
        forged = device.check_in()
        forged.sdk_version = "9.9.9"
        await refused(coordinator.devices.CheckIn(forged, timeout=5), UNAUTHENTICATED, "BAD_SIGNATURE")
        assignments = await coordinator.assign(1, 2, 3, 4)
        finish = device.finish(assignments[0])
        await refused(
            coordinator.devices.FinishSession(finish, timeout=5), grpc.StatusCode.PERMISSION_DENIED, "UNPROVEN_CALL"
        )
        await coordinator.finish(assignments[0])


async def test_what_an_older_key_made_is_good_while_keys_are_replaced(tmp_path: Path) -> None:
    newer = bytes(range(1, 33))
    async with house(tmp_path, MemoryJournal()) as built:
        before = await built.coordinator(requires_enrolment=True)
        await before.create(make_spec(built.plan, maximum_rounds=1))
        devices = await cohort(before)
        assignments = await assigned(before, devices)
        await before.stop()
        after = await built.coordinator(requires_enrolment=True, token_keys=KeyRing(newer, (KEY,)))
        await after.until_ready()
        await after.devices.FinishSession(devices[0].finish(assignments[0]), timeout=5)
        again = (await after.devices.CheckIn(devices[1].check_in(), timeout=5)).assignment
        assert again.session == assignments[1].session, "marks are of a key that stays"
        assert again.session_key == session_key(newer, again.round, again.session, devices[1].key)
        await after.devices.FinishSession(devices[1].finish(again), timeout=5)
        await after.stop()
        last = await built.coordinator(requires_enrolment=True, token_keys=KeyRing(newer))
        await last.until_ready()
        await refused(last.devices.CheckIn(devices[2].check_in(), timeout=5), UNAUTHENTICATED, "NOT_ENROLLED")
        old_token = issue_token(KEY, assignments[2].round, assignments[2].session, 1 << 50)
        finish = devices[2].finish(assignments[2])
        finish.round_token = old_token
        finish.credentials.mac = call_mac(assignments[2].session_key, FINISH, finish, finish.credentials)
        await refused(
            last.devices.FinishSession(finish, timeout=5), grpc.StatusCode.PERMISSION_DENIED, "BAD_ROUND_TOKEN"
        )


async def test_who_calls_too_often_is_told_when_to_come_back_and_nobody_else_pays(tmp_path: Path) -> None:
    async with guarded(tmp_path, device_calls_per_second=0.1) as (_, coordinator):
        device, other = [await EnrolledDevice().enrol(coordinator) for _ in range(2)]
        for _ in range(10):  # in another's name, without its token
            forged = other.check_in()
            forged.credentials.token = b"x" * 40
            await refused(coordinator.devices.CheckIn(forged, timeout=5), UNAUTHENTICATED, "NOT_ENROLLED")
        bad = device.check_in()
        bad.sdk_version = "9.9.9"
        reasons = []
        for _ in range(20):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await coordinator.devices.CheckIn(bad, timeout=5)
            explained = refusal_of(caught.value)
            assert explained is not None
            reasons.append(explained.reason)
        assert reasons == ["BAD_SIGNATURE"] * 3 + ["TOO_MANY_CALLS"] * 17
        assert explained is not None
        assert explained.retry.min_milliseconds > 1_000
        await refused(
            coordinator.devices.CheckIn(device.check_in(), timeout=5),
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "TOO_MANY_CALLS",
        )
        answer = await coordinator.devices.CheckIn(other.check_in(), timeout=1.3)
        assert answer.WhichOneof("answer") == "ticket"
