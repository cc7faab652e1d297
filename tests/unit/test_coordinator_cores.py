"""Tasks, specifications, selection, pacing, choices and stories: pure functions, by example."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedrecon.coordinator import round_events, rounds, stories, tasks
from fedrecon.coordinator.assignments import common_assignment, issue_ticket, make_assignment, mark_of, read_ticket
from fedrecon.coordinator.choosing import Choice, choose, misfit_of
from fedrecon.coordinator.entries import round_entries, task_entries
from fedrecon.coordinator.round_events import Assigned, Blob, IllegalEvent, Opened, Slot
from fedrecon.coordinator.selection import Candidate, merge
from fedrecon.coordinator.specs import InvalidSpec, Prepared, check_spec, prepare, terms_of
from fedrecon.coordinator.tasks import (
    AttemptAbandoned,
    CheckpointCommitted,
    State,
    Task,
    TaskCancelled,
    TaskCompleted,
    TaskCreated,
    TaskPaused,
    TaskResumed,
)
from fedrecon.ops.journal.codec import UnreadableEvent
from fedrecon.v1 import coordinator_pb2, plan_pb2, task_pb2
from fedrecon.v1.common_pb2 import BlobReference
from fedrecon.v1.coordinator_pb2 import CheckInRequest, Floors
from fedrecon.v1.plan_pb2 import Hyperparameter, Layout, Manifest, MetricSum, Parameter, Schedule, Segment
from fedrecon.v1.task_pb2 import LocalWork, RoundSpec, SecureSum, ServerOptimizer, TaskSpec
from fedrecon.wire.manifests import sign_plan
from fedrecon.wire.row_sets import RowSet

KEY = bytes(range(32))
CHECKPOINT = Blob(b"c" * 32, 9)
CREATED = TaskCreated(b"spec", CHECKPOINT, maximum_rounds=2, maximum_attempts=2, operator="ada")


def good_spec() -> TaskSpec:
    return TaskSpec(
        name="films",
        population="cinema",
        plan=BlobReference(digest=b"p" * 32),
        rounds=RoundSpec(
            report_goal=10,
            over_selection=1.3,
            minimum_reports=8,
            selection_milliseconds=1_000,
            reporting_milliseconds=10_000,
            aggregating_milliseconds=5_000,
        ),
        work=LocalWork(split=task_pb2.SPLIT_RULE_NONE, hyperparameters={"update.rate": 0.5}),
        optimizer=ServerOptimizer(rule=task_pb2.OPTIMIZER_RULE_SGD, rate=1.0),
        secure_sum=SecureSum(
            protocol=task_pb2.SUM_PROTOCOL_TRUSTED, ring_bits=32, maximum_reports=13, maximum_weight=10
        ),
    )


def good_manifest() -> Manifest:
    return Manifest(
        format=1,
        parameters=[
            Parameter(name="items", placement=plan_pb2.PLACEMENT_GLOBAL, shape=[6, 2], vocabulary="items"),
            Parameter(name="bias", placement=plan_pb2.PLACEMENT_GLOBAL, shape=[3]),
        ],
        layout=Layout(
            segments=[
                Segment(parameter="items", all_rows=True, bound=1.0, width=2),
                Segment(parameter="bias", all_rows=True, bound=1.0, width=1),
            ]
        ),
        hyperparameters={"update.rate": Hyperparameter(default_value=0.1, minimum=0.0, maximum=1.0)},
        metrics=[MetricSum(name="loss", bound=25.0)],
    )


def fold(*events: tasks.Event) -> Task:
    task: Task | None = None
    for now, event in enumerate(events, start=1):
        task = tasks.step(task, event, now)
    assert task is not None
    return task


def committed(number: int, attempt: int = 1) -> CheckpointCommitted:
    return CheckpointCommitted(number, attempt, Blob(bytes([number]) * 32, 9), None, 8, 80)


def abandoned(number: int, attempt: int) -> AttemptAbandoned:
    return AttemptAbandoned(number, attempt, "nobody came", 1_000)


def test_rounds_and_attempts_are_numbered_by_what_happened() -> None:
    assert (fold(CREATED).number, fold(CREATED).attempt) == (1, 1)
    tried = fold(CREATED, abandoned(1, 1))
    assert (tried.number, tried.attempt, tried.retry_at) == (1, 2, 1_000)
    done = fold(CREATED, abandoned(1, 1), committed(1, 2))
    assert (done.number, done.attempt, done.committed, done.abandoned) == (2, 1, 1, 1)
    assert done.checkpoint == Blob(b"\x01" * 32, 9)


@pytest.mark.parametrize("event", [committed(2), committed(1, 2), abandoned(1, 2), abandoned(2, 1)])
def test_a_round_is_not_committed_or_abandoned_out_of_turn(event: tasks.Event) -> None:
    with pytest.raises(IllegalEvent):
        tasks.step(fold(CREATED), event, 5)


def test_a_committed_round_is_never_committed_again() -> None:
    with pytest.raises(IllegalEvent):
        tasks.step(fold(CREATED, committed(1)), committed(1), 5)


def test_the_last_round_completes_the_task() -> None:
    first = tasks.consequences(fold(CREATED), committed(1), 9)
    last = tasks.consequences(fold(CREATED, committed(1)), committed(2), 9)
    assert [type(event) for event in first] == [CheckpointCommitted]
    assert [type(event) for event in last] == [CheckpointCommitted, TaskCompleted]
    assert fold(CREATED, committed(1), *last).state is State.COMPLETED


def test_a_task_pauses_itself_after_too_many_attempts_and_says_why() -> None:
    told = tasks.consequences(fold(CREATED, abandoned(1, 1)), abandoned(1, 2), 9)
    assert [type(event) for event in told] == [AttemptAbandoned, TaskPaused]
    paused = fold(CREATED, abandoned(1, 1), *told)
    assert paused.state is State.PAUSED
    assert "2 attempts in a row" in paused.reason
    assert "nobody came" in paused.reason
    resumed = tasks.step(paused, TaskResumed("ada"), 50)
    assert (resumed.abandoned_in_a_row, resumed.retry_at, resumed.attempt) == (0, 50, 3)


def test_a_cancelled_task_still_abandons_its_round_and_does_nothing_else() -> None:
    cancelled = fold(CREATED, TaskCancelled("enough", "ada"))
    assert tasks.consequences(cancelled, abandoned(1, 1), 9) == (abandoned(1, 1),)
    for event in (TaskPaused("x"), TaskResumed("ada"), TaskCancelled("x", "ada"), TaskCompleted("x")):
        with pytest.raises(IllegalEvent):
            tasks.step(cancelled, event, 9)


@pytest.mark.parametrize(
    ("change", "reason", "told"),
    [
        (lambda spec: setattr(spec, "name", "Films"), "INVALID_SPEC", "lower-case"),
        (lambda spec: setattr(spec, "name", "registry"), "INVALID_SPEC", "reserved"),
        (lambda spec: setattr(spec, "population", ""), "INVALID_SPEC", "population"),
        (lambda spec: setattr(spec.rounds, "report_goal", 0), "INVALID_SPEC", "report_goal"),
        (lambda spec: setattr(spec.rounds, "over_selection", 0.9), "INVALID_SPEC", "over_selection"),
        (lambda spec: setattr(spec.rounds, "minimum_reports", 11), "INVALID_SPEC", "minimum_reports"),
        (lambda spec: setattr(spec.rounds, "minimum_cohort", 14), "INVALID_SPEC", "minimum_cohort"),
        (lambda spec: setattr(spec.rounds, "minimum_cohort", 7), "INVALID_SPEC", "minimum_cohort"),
        (lambda spec: setattr(spec.rounds, "reporting_milliseconds", 0), "INVALID_SPEC", "reporting_milliseconds"),
        (lambda spec: setattr(spec.work, "split", 0), "INVALID_SPEC", "work.split"),
        (lambda spec: setattr(spec.optimizer, "rate", float("nan")), "INVALID_SPEC", "optimizer.rate"),
        (lambda spec: setattr(spec.optimizer, "rule", task_pb2.OPTIMIZER_RULE_ADAM), "INVALID_SPEC", "adaptivity"),
        (lambda spec: setattr(spec.optimizer, "checkpoint_bits", 8), "INVALID_SPEC", "checkpoint_bits"),
        (lambda spec: setattr(spec.secure_sum, "ring_bits", 24), "INVALID_SPEC", "ring_bits"),
        (lambda spec: setattr(spec.secure_sum, "minimum_group", 11), "INVALID_SPEC", "minimum_group"),
        (
            lambda spec: spec.secure_sum.MergeFrom(task_pb2.SecureSum(minimum_group=3, maximum_reports=2)),
            "INVALID_SPEC",
            "at most maximum_reports",
        ),
        (lambda spec: setattr(spec.secure_sum, "maximum_reports", 0), "INVALID_SPEC", "maximum_reports"),
        (lambda spec: setattr(spec.eligibility, "minimum_sdk_version", "1.x"), "INVALID_SPEC", "minimum_sdk_version"),
        (
            lambda spec: spec.secure_sum.MergeFrom(
                task_pb2.SecureSum(protocol=task_pb2.SUM_PROTOCOL_SECAGG_PLUS, minimum_group=2)
            ),
            "INVALID_SPEC",
            "hides nobody",
        ),
        (lambda spec: setattr(spec.secure_sum, "threshold", 9), "INVALID_SPEC", "leave them out"),
        (lambda spec: setattr(spec.secure_sum, "drop_out", 0.4), "INVALID_SPEC", "withstands the loss of at most 0.3"),
        (lambda spec: setattr(spec.secure_sum, "drop_out", math.nan), "INVALID_SPEC", "drop_out nan"),
        (
            lambda spec: spec.secure_sum.MergeFrom(task_pb2.SecureSum(ring_bits=16, maximum_reports=201)),
            "INVALID_SPEC",
            "too few steps",
        ),
        (lambda spec: setattr(spec.privacy, "noise_multiplier", 1.0), "INVALID_SPEC", "privacy.clip_norm"),
        (lambda spec: setattr(spec.evaluation, "every_rounds", 5), "INVALID_SPEC", "go together"),
        (lambda spec: setattr(spec.evaluation, "held_out_share", 1.0), "INVALID_SPEC", "held_out_share"),
        (lambda spec: setattr(spec.evaluation, "report_goal", 9), "INVALID_SPEC", "no evaluation rounds"),
        (lambda spec: setattr(spec.rounds, "maximum_over_selection", 1.1), "INVALID_SPEC", "maximum_over_selection"),
    ],
)
def test_a_specification_that_cannot_run_is_refused_by_name(
    change: Callable[[TaskSpec], None], reason: str, told: str
) -> None:
    spec = good_spec()
    check_spec(spec)
    change(spec)
    with pytest.raises(InvalidSpec, match=told) as refused:
        check_spec(spec)
    assert refused.value.reason == reason


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(InvalidSpec) as refused:
        check_spec(TaskSpec())
    assert len(refused.value.problems) >= 8


def test_rounds_take_the_layout_with_the_bounds_of_the_task() -> None:
    spec = good_spec()
    spec.bounds["bias"] = 0.25
    prepared = prepare(spec, good_manifest(), {"items": 6})
    assert [segment.bound for segment in prepared.layout.segments] == [1.0, 0.25]
    assert prepared.segment_elements == (12, 3)
    assert terms_of(spec).cohort_size == 13
    assert terms_of(spec).minimum_cohort == 8


def with_row_set(spec: TaskSpec, vocabulary: str = "items") -> TaskSpec:
    spec.row_sets[vocabulary].digest = b"s" * 32
    return spec


def test_rounds_hold_the_rows_of_the_task_s_row_set() -> None:
    row_set = RowSet(np.array([1, 4]), contributors=5, cohort_size=50)
    prepared = prepare(with_row_set(good_spec()), good_manifest(), {"items": 6}, {"items": row_set})
    assert [segment.row_set_digest for segment in prepared.layout.segments] == [b"s" * 32, b""]
    assert prepared.segment_elements == (4, 3)
    assert prepared.contributing_share == 0.1
    assert prepare(good_spec(), good_manifest(), {"items": 6}).contributing_share == 0.0


@pytest.mark.parametrize(
    ("vocabulary", "rows", "told"),
    [("films", [1], "row_sets.films: no such vocabulary"), ("items", [6], "it has row 6, and the vocabulary 6 rows")],
)
def test_a_row_set_that_does_not_fit_the_plan_is_refused(vocabulary: str, rows: list[int], told: str) -> None:
    row_set = RowSet(np.array(rows), contributors=5, cohort_size=50)
    with pytest.raises(InvalidSpec, match=told) as refused:
        prepare(with_row_set(good_spec(), vocabulary), good_manifest(), {"items": 6}, {vocabulary: row_set})
    assert refused.value.reason == "INVALID_SPEC"


@pytest.mark.parametrize(
    ("change", "rows", "reason", "told"),
    [
        (lambda spec: spec.work.hyperparameters.update({"update.rate": 2.0}), 6, "INVALID_SPEC", "verified for 0 to 1"),
        (lambda spec: spec.work.hyperparameters.update({"rate": 1.0}), 6, "INVALID_SPEC", "update.rate"),
        (lambda spec: spec.bounds.update({"users": 1.0}), 6, "INVALID_SPEC", "bounds.users"),
        (lambda spec: spec.bounds.update({"items": -1.0}), 6, "INVALID_SPEC", "finite bound"),
        (lambda spec: setattr(spec.secure_sum, "maximum_reports", 1 << 31), 6, "INVALID_SPEC", "do not fit a ring"),
        (lambda _: None, 5, "INVALID_SPEC", "never removed"),
    ],
)
def test_a_specification_that_does_not_fit_its_plan_is_refused(
    change: Callable[[TaskSpec], None], rows: int, reason: str, told: str
) -> None:
    spec = good_spec()
    change(spec)
    with pytest.raises(InvalidSpec, match=told) as refused:
        prepare(spec, good_manifest(), {"items": rows})
    assert refused.value.reason == reason


def test_a_forged_signature_is_refused() -> None:
    spec = good_spec()
    spec.signature.CopyFrom(sign_plan(spec.plan.digest, Ed25519PrivateKey.generate()))
    prepare(spec, good_manifest(), {"items": 6})
    spec.signature.CopyFrom(sign_plan(b"q" * 32, Ed25519PrivateKey.generate()))
    with pytest.raises(InvalidSpec) as refused:
        prepare(spec, good_manifest(), {"items": 6})
    assert refused.value.reason == "BAD_SIGNATURE"


def test_a_sample_of_samples_is_a_sample_of_all() -> None:
    generator = random.Random(5)
    for _ in range(50):
        everyone = [Candidate(generator.getrandbits(64), bytes([number])) for number in range(40)]
        parts = [everyone[:13], everyone[10:29], everyone[25:]]
        samples = [merge([part], 8) for part in parts]
        assert merge(samples, 8) == merge([everyone], 8)


def test_every_device_is_drawn_equally_often() -> None:
    generator = random.Random(7)
    counts = dict.fromkeys(range(10), 0)
    for _ in range(4_000):
        for candidate in merge([[Candidate(generator.getrandbits(64), bytes([n])) for n in counts]], 3):
            counts[candidate.device[0]] += 1
    # 1200 expected, standard deviation 29
    assert all(1_080 < count < 1_320 for count in counts.values()), counts


def test_traffic_follows_the_weights() -> None:
    offers = {"a": 0, "b": 0}
    for _ in range(90):
        offers[choose([Choice("a", True, 1.0), Choice("b", True, 2.0)], offers)] += 1
    assert offers == {"a": 30, "b": 60}
    assert choose([Choice("a", False, 1.0), Choice("b", True, 1.0)], {"b": 99}) == "b"


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (CheckInRequest(plan_formats=[2]), coordinator_pb2.REJECTION_REASON_VERSION),
        (CheckInRequest(plan_formats=[1], sdk_version="0.9.9"), coordinator_pb2.REJECTION_REASON_VERSION),
        (CheckInRequest(plan_formats=[1], sdk_version="2.0.1"), coordinator_pb2.REJECTION_REASON_VERSION),
        (CheckInRequest(plan_formats=[1], sdk_version=""), coordinator_pb2.REJECTION_REASON_VERSION),
        (
            CheckInRequest(plan_formats=[1], sdk_version="1.0.0", floors=Floors(trusted_plans=[b"k"])),
            coordinator_pb2.REJECTION_REASON_FLOORS,
        ),
        (
            CheckInRequest(plan_formats=[1], sdk_version="1.0.0", floors=Floors(secure_sum_required=True)),
            coordinator_pb2.REJECTION_REASON_FLOORS,
        ),
        (
            CheckInRequest(plan_formats=[1], sdk_version="1.0.0", floors=Floors(minimum_group=2)),
            coordinator_pb2.REJECTION_REASON_FLOORS,
        ),
        (
            CheckInRequest(plan_formats=[1], sdk_version="1.0.0", floors=Floors(minimum_contributors=6)),
            coordinator_pb2.REJECTION_REASON_FLOORS,
        ),
        (CheckInRequest(plan_formats=[1], sdk_version="1.10.0", floors=Floors(minimum_contributors=5)), None),
        (CheckInRequest(plan_formats=[1], sdk_version="1.10.0"), None),
    ],
)
def test_a_device_is_not_offered_to_a_task_that_does_not_fit_it(request_: CheckInRequest, reason: int | None) -> None:
    spec = good_spec()
    spec.eligibility.minimum_sdk_version, spec.eligibility.maximum_sdk_version = "1.0.0", "2.0.0"
    spec.secure_sum.minimum_group = 50 if request_.floors.minimum_contributors else 1
    misfit = misfit_of(request_, spec, Prepared(Manifest(format=1), Layout(), (), {}, 0.1))
    assert (misfit and misfit.reason) == reason


def test_tickets_and_marks_belong_to_one_device_and_attempt() -> None:
    opened = Opened("films", 1, 1, terms_of(good_spec()), CHECKPOINT, None, b"")
    first, _ = rounds.step(None, opened, 0)
    given_up, _ = rounds.step(first, round_events.Abandoned("x", 0), 0)
    second, _ = rounds.step(given_up, Opened("films", 1, 2, opened.terms, CHECKPOINT, None, b""), 0)
    ticket = issue_ticket(KEY, first, b"d" * 32, 12_345)
    assert read_ticket(KEY, first, b"d" * 32, ticket) == 12_345
    assert read_ticket(KEY, first, b"e" * 32, ticket) is None
    assert read_ticket(KEY, second, b"d" * 32, ticket) is None
    assert read_ticket(KEY, first, b"d" * 32, bytes(8) + ticket[8:]) is None
    assert read_ticket(KEY, first, b"d" * 32, b"") is None
    assert mark_of(KEY, first, b"d" * 32) != mark_of(KEY, second, b"d" * 32)


def assigned_work(work: LocalWork, number: int) -> LocalWork:
    """Returns what a device of a round is told to do."""
    spec = good_spec()
    spec.work.CopyFrom(work)
    slots = tuple(Slot(bytes([each]) * 16, bytes([100 + each]) * 16) for each in range(8))
    opened = Opened("films", number, 1, terms_of(spec), CHECKPOINT, None, spec.SerializeToString())
    state, _ = rounds.step(None, opened, 0)
    state, _ = rounds.step(state, Assigned(slots, 8, (b"g" * 16,), "here:1", 99_000), 1)
    common = common_assignment(Prepared(Manifest(), Layout(), (), {}, 1.0), state)
    return make_assignment(KEY, common, state, slots[0], b"d" * 32, "", 2).work


def test_epochs_that_grow_are_told_as_the_number_of_the_round() -> None:
    growing, steady = (Schedule(batch_size=4, epochs=5, maximum_steps=50, epochs_grow=grow) for grow in (True, False))
    for number, epochs in ((1, 1), (2, 2), (9, 5)):
        of_round = Schedule(batch_size=4, epochs=epochs, maximum_steps=50)
        told = assigned_work(LocalWork(reconstruct_schedule=growing, update_schedule=steady), number)
        assert told == LocalWork(reconstruct_schedule=of_round, update_schedule=steady)
        told = assigned_work(LocalWork(reconstruct_schedule=steady, update_schedule=growing), number)
        assert told == LocalWork(reconstruct_schedule=steady, update_schedule=of_round)


def test_a_schedule_that_the_task_leaves_to_the_plan_is_not_told() -> None:
    work = LocalWork(split=task_pb2.SPLIT_RULE_NONE, minimum_examples=3)
    assert assigned_work(work, 3) == work


EVENTS: tuple[round_events.Event, ...] = (
    Opened("films", 3, 2, terms_of(good_spec()), CHECKPOINT, Blob(b"o" * 32, 5), b"\x00\xff"),
    round_events.Assigned((round_events.Slot(b"s" * 16, b"d" * 16),), 4, (b"g" * 16,), "here:1", 99),
    round_events.SessionsFinished(2, (round_events.Finish(b"s" * 16, round_events.Outcome.UPLOADED, "-v[]+^"),)),
    round_events.ReportingEnded(round_events.EndedBecause.ALL_FINISHED, 1),
    round_events.GroupsMoved(1, "there:1"),
    round_events.GroupsClosed((b"g" * 16,), 8, 2),
    round_events.Committed(Blob(b"n" * 32, 9), None, 8, 80, (("loss", 1.5),), 0.125, b"\x01" * 32),
    round_events.Abandoned("nobody came", 65_000),
)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_survives_its_journal_with_its_moment(event: round_events.Event) -> None:
    entry = round_entries.decode(round_entries.encode(1_763_712_000_123, event))
    assert (entry.at, entry.event) == (1_763_712_000_123, event)


@pytest.mark.parametrize(
    "event", [CREATED, TaskPaused("why"), committed(1), abandoned(1, 1)], ids=lambda event: type(event).__name__
)
def test_a_task_event_survives_its_journal(event: tasks.Event) -> None:
    assert task_entries.decode(task_entries.encode(5, event)).event == event


def test_an_entry_without_a_moment_is_unreadable() -> None:
    with pytest.raises(UnreadableEvent):
        round_entries.decode(b'{"event":"Abandoned","reason":"x","retry_at":1}')


def test_every_event_is_told_in_one_sentence() -> None:
    told = [stories.tell(60_000, event) for event in EVENTS]
    assert all(line.startswith("1970-01-01 00:01:00.000 UTC: ") and line.endswith(".") for line in told)
    assert [line.removeprefix("1970-01-01 00:01:00.000 UTC: ") for line in told] == [
        (
            "Attempt 2 of round 3 opened from checkpoint 636363636363: 10 reports wanted of up to 13 devices, "
            "at least 8 needed."
        ),
        "Of 4 devices that waited, 1 were drawn and assigned; they report to here:1.",
        "1 session of attempt 2 ended: 1 uploaded.",
        "Reporting ended because all sessions had ended: 1 report was acknowledged.",
        "Part 1 of the sum groups was taken over by there:1.",
        "1 sum group closed with 8 reports; 2 reports became void.",
        "Committed checkpoint 6e6e6e6e6e6e (9 bytes) out of 8 reports of weight 80; the mean update has norm 0.125.",
        "Abandoned because nobody came; the next attempt may begin 5 s later.",
    ]
