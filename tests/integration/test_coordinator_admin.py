"""A coordinator over loopback: what operators may rely on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import grpc
import pytest

from fedrecon.coordinator.round_state import Phase
from fedrecon.ops.journal import Append, Lease
from fedrecon.ops.journal.memory import MemoryJournal
from fedrecon.v1 import admin_pb2, coordinator_pb2, task_pb2
from fedrecon.v1.admin_pb2 import PutBlobRequest
from fedrecon.v1.common_pb2 import BlobReference, Chunk
from fedrecon.v1.task_pb2 import TaskSpec
from fedrecon.wire.chunks import cut
from fedrecon.wire.digests import digest_of
from fedrecon.wire.vocabularies import write_vocabulary
from support.coordinating import TASK, Coordinator, House, house, make_spec, refused, until_true


async def begun(built: House, **changes: int) -> Coordinator:
    coordinator = await built.coordinator()
    await coordinator.create(make_spec(built.plan, **changes))
    return coordinator


async def committed(built: House, coordinator: Coordinator, number: int) -> BlobReference:
    assigned = await coordinator.assign(1, 2, 3)
    await built.sums.report(assigned[0].round, 3)
    made = (await coordinator.until(Phase.COMMITTED, number)).committed
    assert made is not None
    return BlobReference(digest=made.checkpoint.digest, size=made.checkpoint.size)


async def test_a_blob_is_stored_under_its_digest(tmp_path: Path) -> None:
    content = bytes(range(256)) * 10_000
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await built.coordinator()
        for _ in range(2):
            requests = [PutBlobRequest(chunk=chunk) for chunk in cut(content)]
            answer = await coordinator.admin.PutBlob(iter(requests), timeout=10)
            assert (answer.blob.digest, answer.blob.size) == (digest_of(content), len(content))
        assert built.blobs.read(digest_of(content)) == content


async def test_a_damaged_or_misplaced_chunk_is_refused(tmp_path: Path) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await built.coordinator()
        for chunk in (
            Chunk(offset=0, data=b"abc", digest=digest_of(b"abd")),
            Chunk(offset=3, data=b"abc", digest=digest_of(b"abc")),
        ):
            call = coordinator.admin.PutBlob(iter([PutBlobRequest(chunk=chunk)]), timeout=10)
            await refused(call, grpc.StatusCode.INVALID_ARGUMENT, "BAD_CHUNK")


async def test_a_created_task_is_shown_and_creating_it_again_changes_nothing(tmp_path: Path) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await built.coordinator()
        spec = make_spec(built.plan)
        created = await coordinator.create(spec)
        assert created.state == admin_pb2.TASK_STATE_RUNNING
        assert created.spec == spec
        assert created.checkpoint.digest == digest_of(b"initial checkpoint")
        assert (await coordinator.create(spec)).created_unix_milliseconds == created.created_unix_milliseconds
        spec.work.minimum_examples = 9
        call = coordinator.admin.CreateTask(admin_pb2.CreateTaskRequest(spec=spec), timeout=10)
        await refused(call, grpc.StatusCode.ALREADY_EXISTS, "TASK_EXISTS")
        listed = await coordinator.admin.ListTasks(admin_pb2.ListTasksRequest(), timeout=10)
        assert [task.spec.name for task in listed.tasks] == [TASK]


async def test_a_task_whose_registration_was_cut_short_is_finished_by_asking_again(tmp_path: Path) -> None:
    class CutShort(MemoryJournal):
        is_cut = True

        async def append(self, task: str, appends: Sequence[Append], *, lease: Lease | None = None) -> None:
            if self.is_cut and task == "registry":
                self.is_cut = False
                raise ConnectionResetError
            await super().append(task, appends, lease=lease)

    async with house(tmp_path, CutShort()) as built:
        coordinator = await built.coordinator()
        call = coordinator.admin.CreateTask(admin_pb2.CreateTaskRequest(spec=make_spec(built.plan)), timeout=10)
        await refused(call, grpc.StatusCode.INTERNAL, "INTERNAL")
        await coordinator.create(make_spec(built.plan))
        assert len(await coordinator.assign(1, 2, 3)) == 3


PRIVATE = TaskSpec(
    privacy=task_pb2.Privacy(noise_multiplier=1, clip_norm=1, delta=1e-5, epsilon_budget=0.1),
    secure_sum=task_pb2.SecureSum(maximum_weight=1),
)


@pytest.mark.parametrize(
    ("change", "code", "reason", "told"),
    [
        (lambda spec: setattr(spec, "name", "No Name"), "INVALID_ARGUMENT", "INVALID_SPEC", "lower-case"),
        (lambda spec: setattr(spec.rounds, "minimum_reports", 9), "INVALID_ARGUMENT", "INVALID_SPEC", "minimum_repo"),
        (lambda spec: setattr(spec.plan, "digest", bytes(32)), "FAILED_PRECONDITION", "MISSING_BLOB", "plan: blob 00"),
        (
            lambda spec: spec.vocabularies["items"].MergeFrom(spec.plan),
            "INVALID_ARGUMENT",
            "MALFORMED_PLAN",
            "vocabulary",
        ),
        (
            lambda spec: spec.MergeFrom(PRIVATE),
            "INVALID_ARGUMENT",
            "INVALID_SPEC",
            "one round spends",
        ),
    ],
)
async def test_a_task_that_cannot_run_is_refused(
    tmp_path: Path, change: Callable[[TaskSpec], None], code: str, reason: str, told: str
) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await built.coordinator()
        spec = make_spec(built.plan)
        change(spec)
        call = coordinator.admin.CreateTask(admin_pb2.CreateTaskRequest(spec=spec), timeout=10)
        explained = await refused(call, grpc.StatusCode[code], reason)
        assert told in explained.message
        assert explained.advice


async def test_an_unknown_task_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await begun(built)
        for call in (
            coordinator.admin.GetTask(admin_pb2.GetTaskRequest(task="book/s"), timeout=10),
            coordinator.admin.PauseTask(admin_pb2.PauseTaskRequest(task="books"), timeout=10),
            coordinator.admin.ListRounds(admin_pb2.ListRoundsRequest(task="bücher"), timeout=10),
            coordinator.admin.ListAudit(admin_pb2.ListAuditRequest(task="registry"), timeout=10),
        ):
            explained = await refused(call, grpc.StatusCode.NOT_FOUND, "UNKNOWN_TASK")
            assert "films" in explained.message


async def test_a_paused_task_ends_its_round_and_begins_no_other(tmp_path: Path) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await begun(built)
        assigned = await coordinator.assign(1, 2, 3)
        for _ in range(2):
            pause = admin_pb2.PauseTaskRequest(task=TASK, reason="lunch")
            paused = (await coordinator.admin.PauseTask(pause, timeout=10)).task
            assert (paused.state, paused.reason) == (admin_pb2.TASK_STATE_PAUSED, "lunch")
        await built.sums.report(assigned[0].round, 3)
        await coordinator.until(Phase.COMMITTED)
        answer = await coordinator.check_in(4)
        assert answer.rejection.reason == coordinator_pb2.REJECTION_REASON_NO_TASK
        assert (await coordinator.task()).round.key.round == 1
        await coordinator.admin.ResumeTask(admin_pb2.ResumeTaskRequest(task=TASK), timeout=10)
        runner = coordinator.roster.ready_runner(TASK)
        assert runner is not None
        await until_true(lambda: runner.book.task.state == "running")
        assert (await coordinator.assign(1, 2, 3))[0].round.round == 2
        audit = await coordinator.admin.ListAudit(admin_pb2.ListAuditRequest(), timeout=10)
        assert [(entry.action, entry.reason) for entry in audit.entries] == [
            ("ResumeTask", ""),
            ("PauseTask", "lunch"),
            ("CreateTask", ""),
        ]
        assert {entry.operator for entry in audit.entries} == {"unauthenticated"}


async def test_a_cancelled_task_gives_its_round_up_and_stays_cancelled(tmp_path: Path) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await begun(built)
        assigned = await coordinator.assign(1, 2, 3)
        await coordinator.finish(assigned[0])
        cancel = admin_pb2.CancelTaskRequest(task=TASK, reason="enough")
        task = (await coordinator.admin.CancelTask(cancel, timeout=10)).task
        assert task.state == admin_pb2.TASK_STATE_CANCELLED
        await coordinator.until(Phase.ABANDONED)
        assert (await coordinator.finish(assigned[0])).fate == coordinator_pb2.REPORT_FATE_VOID
        assert (await coordinator.finish(assigned[1])).fate == coordinator_pb2.REPORT_FATE_VOID
        resume = coordinator.admin.ResumeTask(admin_pb2.ResumeTaskRequest(task=TASK), timeout=10)
        await refused(resume, grpc.StatusCode.FAILED_PRECONDITION, "WRONG_STATE")
        assert "enough" in (await coordinator.task()).round.reason


async def test_a_task_that_fails_again_and_again_pauses_itself_and_says_why(tmp_path: Path) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await begun(built, reporting_milliseconds=50, maximum_attempts=2, retry_milliseconds=1)
        for attempt in (1, 2):
            await coordinator.until(Phase.SELECTING, attempt=attempt)
            assert await coordinator.assign(1, 2, 3)
            await coordinator.until(Phase.ABANDONED if attempt == 2 else Phase.SELECTING, attempt=2)
        task = await coordinator.task()
        assert task.state == admin_pb2.TASK_STATE_PAUSED
        assert "2 attempts in a row" in task.reason
        assert task.abandoned == 2
        assert coordinator.counted("rounds_total", task=TASK, outcome="abandoned") == 2


async def test_rounds_checkpoints_and_stories_are_told_from_the_journal(tmp_path: Path) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await begun(built, maximum_rounds=2)
        await committed(built, coordinator, 1)
        await committed(built, coordinator, 2)
        task = await coordinator.task()
        assert (task.state, task.committed) == (admin_pb2.TASK_STATE_COMPLETED, 2)
        listed = await coordinator.admin.ListRounds(admin_pb2.ListRoundsRequest(task=TASK), timeout=10)
        assert [(each.key.round, each.phase) for each in listed.rounds] == [
            (2, admin_pb2.ROUND_PHASE_COMMITTED),
            (1, admin_pb2.ROUND_PHASE_COMMITTED),
        ]
        newest = listed.rounds[0]
        assert (newest.assigned, newest.reported, newest.counted, newest.weight) == (3, 3, 3, 30)
        assert newest.metric_sums == {"loss": 1.5}
        assert newest.checkpoint == task.checkpoint
        older = await coordinator.admin.ListRounds(admin_pb2.ListRoundsRequest(task=TASK, before_round=2), timeout=10)
        assert [each.key.round for each in older.rounds] == [1]
        beyond = admin_pb2.ListRoundsRequest(task=TASK, before_round=(1 << 64) - 1, limit=1)
        assert [each.key.round for each in (await coordinator.admin.ListRounds(beyond, timeout=10)).rounds] == [2]
        request = admin_pb2.ListCheckpointsRequest(task=TASK)
        checkpoints = (await coordinator.admin.ListCheckpoints(request, timeout=10)).checkpoints
        assert [(each.round, each.live) for each in checkpoints] == [(2, True), (1, False), (0, False)]
        assert checkpoints[0].blob == task.checkpoint
        explained = await coordinator.admin.ExplainRound(admin_pb2.ExplainRoundRequest(task=TASK, round=1), timeout=10)
        assert len(explained.attempts) == 1
        assert [line.split("UTC: ")[1].split()[0] for line in explained.story] == [
            "Attempt",
            "Of",
            "Reporting",
            "1",
            "Committed",
        ]
        unknown = coordinator.admin.ExplainRound(admin_pb2.ExplainRoundRequest(task=TASK, round=9), timeout=10)
        await refused(unknown, grpc.StatusCode.NOT_FOUND, "UNKNOWN_ROUND")
        privacy = await coordinator.admin.GetPrivacy(admin_pb2.GetPrivacyRequest(task=TASK), timeout=10)
        assert privacy.statement.startswith("no DP guarantee")
        assert privacy.epsilon == 0


async def test_a_watcher_sees_every_phase_and_the_reports_as_they_come(tmp_path: Path) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await begun(built, maximum_rounds=1)
        seen: list[admin_pb2.Task] = []

        async def watch() -> None:
            async for update in coordinator.admin.WatchTask(admin_pb2.WatchTaskRequest(task=TASK), timeout=20):
                seen.append(update.task)  # noqa: PERF401 - the test looks at it as it grows

        watching = asyncio.create_task(watch())
        assigned = await coordinator.assign(1, 2, 3)
        await built.sums.report(assigned[0].round, 1)
        await until_true(lambda: any(task.round.reported == 1 for task in seen))
        built.sums.may_merge.clear()
        await built.sums.report(assigned[0].round, 2)
        await until_true(lambda: seen[-1].round.phase == admin_pb2.ROUND_PHASE_AGGREGATING)
        built.sums.may_merge.set()
        await until_true(lambda: seen[-1].state == admin_pb2.TASK_STATE_COMPLETED)
        coordinator.stopping.set()
        async with asyncio.timeout(5):
            await watching
        assert len({task.SerializeToString(deterministic=True) for task in seen}) == len(seen)
        await coordinator.stop()


async def test_a_round_after_a_roll_back_starts_from_the_older_checkpoint_and_its_state(tmp_path: Path) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await begun(built)
        first = await committed(built, coordinator, 1)
        await committed(built, coordinator, 2)
        request = admin_pb2.RollBackRequest(task=TASK, round=1, reason="worse")
        task = (await coordinator.admin.RollBack(request, timeout=10)).task
        assert task.checkpoint == first
        listed = await coordinator.admin.ListCheckpoints(admin_pb2.ListCheckpointsRequest(task=TASK), timeout=10)
        assert [(each.round, each.live) for each in listed.checkpoints] == [(2, False), (1, True), (0, False)]
        third = await committed(built, coordinator, 3)
        assert built.blobs.read(third.digest).decode().endswith(f" of 3 from {first.digest.hex()}")
        states = {each.round: each.optimizer_state for each in listed.checkpoints}
        after = await coordinator.admin.ListCheckpoints(admin_pb2.ListCheckpointsRequest(task=TASK), timeout=10)
        made = built.blobs.read(after.checkpoints[0].optimizer_state.digest).decode()
        assert made == f"state 3 after {states[1].digest.hex()}"
        audit = await coordinator.admin.ListAudit(admin_pb2.ListAuditRequest(), timeout=10)
        assert (audit.entries[0].action, audit.entries[0].reason) == ("RollBack", "to round 1: worse")


async def test_a_roll_back_gives_the_round_under_way_up(tmp_path: Path) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await begun(built)
        await committed(built, coordinator, 1)
        assigned = await coordinator.assign(1, 2, 3)
        built.sums.may_merge.clear()
        await built.sums.report(assigned[0].round, 3)
        await coordinator.until(Phase.AGGREGATING, 2)
        await coordinator.admin.RollBack(admin_pb2.RollBackRequest(task=TASK), timeout=10)
        built.sums.may_merge.set()
        await coordinator.until(Phase.SELECTING, 2, attempt=2)
        explained = await coordinator.admin.ExplainRound(admin_pb2.ExplainRoundRequest(task=TASK, round=2), timeout=10)
        assert "another checkpoint became live: that of round 0" in explained.attempts[0].reason
        assert (await coordinator.finish(assigned[0])).fate == coordinator_pb2.REPORT_FATE_VOID
        second = await committed(built, coordinator, 2)
        assert second == (await coordinator.task()).checkpoint
        initial = digest_of(b"initial checkpoint").hex()
        assert built.blobs.read(second.digest).decode() == f"checkpoint 2.2 of 3 from {initial}"


async def test_a_checkpoint_that_is_not_there_does_not_become_live(tmp_path: Path) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await begun(built)
        first = await committed(built, coordinator, 1)
        await committed(built, coordinator, 2)
        call = coordinator.admin.RollBack(admin_pb2.RollBackRequest(task=TASK, round=7), timeout=10)
        await refused(call, grpc.StatusCode.NOT_FOUND, "UNKNOWN_CHECKPOINT")
        for path in await asyncio.to_thread(lambda: list(tmp_path.rglob(first.digest.hex()))):
            path.unlink()
        call = coordinator.admin.RollBack(admin_pb2.RollBackRequest(task=TASK, round=1), timeout=10)
        await refused(call, grpc.StatusCode.FAILED_PRECONDITION, "CHECKPOINT_GONE")
        assert (await coordinator.task()).checkpoint != first


async def test_an_edit_counts_from_the_next_round_on(tmp_path: Path) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await begun(built)
        assigned = await coordinator.assign(1, 2, 3)
        edited = (await coordinator.task()).spec
        edited.work.maximum_examples = 77
        edited.rounds.report_goal = edited.rounds.minimum_reports = 2
        edited.bounds["items"] = 0.25
        version = (await coordinator.task()).version
        request = admin_pb2.EditTaskRequest(spec=edited, version=version)
        task = (await coordinator.admin.EditTask(request, timeout=10)).task
        assert task.spec == edited
        assert (await coordinator.check_in(1)).assignment.work.maximum_examples == 0
        assert (await coordinator.check_in(1)).assignment.layout == assigned[0].layout
        await built.sums.report(assigned[0].round, 3)
        await coordinator.until(Phase.COMMITTED)
        following = await coordinator.assign(1, 2, 3)
        assert {each.work.maximum_examples for each in following} == {77}
        assert {each.layout.segments[0].bound for each in following} == {0.25}
        audit = await coordinator.admin.ListAudit(admin_pb2.ListAuditRequest(), timeout=10)
        assert audit.entries[0].action == "EditTask"


async def test_what_rounds_rely_on_cannot_be_edited(tmp_path: Path) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await begun(built)
        task = await coordinator.task()
        other = TaskSpec()
        other.CopyFrom(task.spec)
        other.population, other.secure_sum.maximum_weight = "others", 3
        call = coordinator.admin.EditTask(admin_pb2.EditTaskRequest(spec=other, version=task.version), timeout=10)
        explained = await refused(call, grpc.StatusCode.FAILED_PRECONDITION, "NOT_EDITABLE")
        assert "population, secure_sum" in explained.message
        wrong = TaskSpec()
        wrong.CopyFrom(task.spec)
        wrong.rounds.report_goal = 0
        call = coordinator.admin.EditTask(admin_pb2.EditTaskRequest(spec=wrong, version=task.version), timeout=10)
        await refused(call, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_SPEC")
        call = coordinator.admin.EditTask(admin_pb2.EditTaskRequest(spec=task.spec, version=9), timeout=10)
        await refused(call, grpc.StatusCode.ABORTED, "TASK_MOVED_ON")
        assert (await coordinator.task()).spec == task.spec


def vocabulary_of(built: House, *keys: str, version: int = 2) -> BlobReference:
    content = write_vocabulary("items", version, keys)
    return BlobReference(digest=built.blobs.put(content), size=len(content))


async def test_new_items_have_rows_from_the_next_round_on(tmp_path: Path) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await begun(built)
        before = await committed(built, coordinator, 1)
        assigned = await coordinator.assign(1, 2, 3)
        task = await coordinator.task()
        task.spec.vocabularies["items"].CopyFrom(vocabulary_of(built, *(f"item {row}" for row in range(8))))
        request = admin_pb2.EditTaskRequest(spec=task.spec, version=task.version)
        edited = (await coordinator.admin.EditTask(request, timeout=10)).task
        assert built.blobs.read(edited.checkpoint.digest).decode() == f"{before.digest.hex()} with {{'items': 8}}"
        # Updates of the round under way are of fewer rows: it is given up, and the next attempt has them all.
        await coordinator.until(Phase.SELECTING, 2, attempt=2)
        assert (await coordinator.finish(assigned[0])).fate == coordinator_pb2.REPORT_FATE_VOID
        following = await coordinator.assign(1, 2, 3)
        assert {each.checkpoint.digest for each in following} == {edited.checkpoint.digest}
        opened = built.sums.find(following[0].round).request
        assert list(opened.segment_elements) == [16]
        listed = await coordinator.admin.ListCheckpoints(admin_pb2.ListCheckpointsRequest(task=TASK), timeout=10)
        assert [(each.round, each.live, each.blob == edited.checkpoint) for each in listed.checkpoints] == [
            (1, True, True),
            (0, False, False),
        ]


async def test_a_checkpoint_that_is_rolled_back_to_has_rows_for_newer_items(tmp_path: Path) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await begun(built)
        first = await committed(built, coordinator, 1)
        await committed(built, coordinator, 2)
        task = await coordinator.task()
        task.spec.vocabularies["items"].CopyFrom(vocabulary_of(built, *(f"item {row}" for row in range(7))))
        await coordinator.admin.EditTask(admin_pb2.EditTaskRequest(spec=task.spec, version=task.version), timeout=10)
        rolled = await coordinator.admin.RollBack(admin_pb2.RollBackRequest(task=TASK, round=1), timeout=10)
        content = built.blobs.read(rolled.task.checkpoint.digest).decode()
        assert content == f"{first.digest.hex()} with {{'items': 7}}"


@pytest.mark.parametrize(
    ("keys", "reason", "told"),
    [
        ([f"item {row}" for row in (1, 0, 2, 3, 4, 5, 6)], "NOT_EDITABLE", "row 0 stands for 'item 0'"),
        ([f"item {row}" for row in range(5)], "INVALID_SPEC", "never removed"),
    ],
)
async def test_rows_are_never_renumbered(tmp_path: Path, keys: list[str], reason: str, told: str) -> None:
    async with house(tmp_path, MemoryJournal()) as built:
        coordinator = await begun(built)
        task = await coordinator.task()
        checkpoint = task.checkpoint
        task.spec.vocabularies["items"].CopyFrom(vocabulary_of(built, *keys))
        call = coordinator.admin.EditTask(admin_pb2.EditTaskRequest(spec=task.spec, version=task.version), timeout=10)
        code = grpc.StatusCode.INVALID_ARGUMENT if reason == "INVALID_SPEC" else grpc.StatusCode.FAILED_PRECONDITION
        assert told in (await refused(call, code, reason)).message
        assert (await coordinator.task()).checkpoint == checkpoint
