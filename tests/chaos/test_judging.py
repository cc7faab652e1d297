"""The judge of chaos runs finds what it is there to find: every rule is broken once."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from fedrecon.aggregator import group_events
from fedrecon.aggregator.group_events import Accepted, Closed, Report
from fedrecon.aggregator.merging import ClosedSum, apply, combine
from fedrecon.aggregator.messages import config_of
from fedrecon.aggregator.optimizers import from_message
from fedrecon.coordinator import round_events
from fedrecon.coordinator.entries import Entry
from fedrecon.coordinator.round_events import (
    Abandoned,
    Assigned,
    Blob,
    Committed,
    EndedBecause,
    GroupsClosed,
    ReportingEnded,
    Slot,
    Terms,
)
from fedrecon.v1 import task_pb2
from fedrecon.v1.task_pb2 import ServerOptimizer, TaskSpec
from fedrecon.wire.digests import digest_of
from fedrecon.wire.fixed_point import read_vector
from fedrecon.wire.tensors import write_safetensors
from support.aggregator_sample import CHECKPOINT, FIXED_POINT, Device, make_device, opening, total_of
from support.chaos_driver import Kill
from support.chaos_evidence import Evidence, Trail, times_of
from support.chaos_figures import kills_by_phase, quantile, recoveries, undisturbed_waits
from support.chaos_judging import Verdict, judge
from support.chaos_log import Acknowledged, Note, Sent, Told
from support.chaos_programs import Stage, draw_program

GROUP = b"g" * 16
OTHER = b"h" * 16
OPTIMIZER = ServerOptimizer(rule=task_pb2.OPTIMIZER_RULE_SGD, rate=0.5)
SPEC = TaskSpec(optimizer=OPTIMIZER).SerializeToString()
TERMS = Terms(2, 6, 3, 1, 100, 1_000, 1_000, 100)
FIRST = write_safetensors(CHECKPOINT)


@dataclass
class World:
    """A round of three devices, as a sound stack would have left it; tests change it."""

    devices: list[Device] = field(default_factory=lambda: [make_device(seed) for seed in range(3)])
    blobs: dict[bytes, bytes] = field(default_factory=dict)
    kept: dict[int, bytes] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    rounds: dict[int, list[Entry[round_events.Event]]] = field(default_factory=dict)
    trails: dict[bytes, Trail] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.keep(FIRST)
        for device in self.devices:
            digest = digest_of(device.vector)
            self.notes += [Sent(device.session, digest, device.vector), Acknowledged(device.session, digest)]
        self.trails[GROUP] = trail_of(GROUP, self.devices)
        self.rounds[1] = self.round_of([GROUP, OTHER][:1], self.devices)
        self.kept[1] = self.committed.checkpoint.digest

    def keep(self, content: bytes) -> Blob:
        self.blobs[digest_of(content)] = content
        return Blob(digest_of(content), len(content))

    def round_of(self, groups: list[bytes], devices: list[Device]) -> list[Entry[round_events.Event]]:
        config = self.trails[GROUP].opened.config
        total = read_vector(total_of(devices), FIXED_POINT)
        round_sum = combine([ClosedSum(total, len(devices))], config)
        after, kept = apply(round_sum, CHECKPOINT, from_message(OPTIMIZER), None)
        committed = Committed(
            checkpoint=self.keep(write_safetensors(after)),
            optimizer_state=self.keep(write_safetensors(kept)),
            reports=len(devices),
            weight=round_sum.weight,
            metric_sums=(),
            update_norm=round_sum.update_norm,
            sum_digest=round_sum.sum_digest,
        )
        slots = tuple(Slot(device.session, device.session) for device in self.devices)
        return [
            Entry(1_000, opened(1, 1, Blob(digest_of(FIRST), len(FIRST)))),
            Entry(1_100, Assigned(slots, len(slots), tuple(groups), "aggregator:1", 9_000_000)),
            Entry(1_500, ReportingEnded(EndedBecause.GOAL_MET, len(devices))),
            Entry(1_520, GroupsClosed(tuple(groups), len(devices), 0)),
            Entry(1_560, committed),
        ]

    @property
    def committed(self) -> Committed:
        event = self.rounds[1][-1].event
        assert isinstance(event, Committed)
        return event

    def read(self, digest: bytes) -> bytes:
        return self.blobs[digest]

    @property
    def verdict(self) -> Verdict:
        return judge(Evidence(self.rounds, self.trails), self.notes, self.read, self.kept)


def opened(number: int, attempt: int, checkpoint: Blob) -> round_events.Opened:
    return round_events.Opened("films", number, attempt, TERMS, checkpoint, None, SPEC)


def trail_of(group: bytes, devices: list[Device], *, end: bool = True) -> Trail:
    config = config_of(opening(digest_of(FIRST)), 1 << 30)
    reports = tuple(Report(device.session, digest_of(device.vector)) for device in devices)
    digest = digest_of(total_of(devices))
    events: list[group_events.Event] = [
        group_events.Opened(group, config, "here", group_events.Phase.UPLOADING, 1_100),
        Accepted(reports, len(reports), b"s" * 32, digest, 1_400),
    ]
    if end:
        events.append(Closed(len(reports), digest, 1_510))
    return Trail(tuple(events))


@pytest.fixture
def world() -> World:
    return World()


def test_a_sound_run_is_found_sound(world: World) -> None:
    verdict = world.verdict
    assert verdict.faults == []
    assert (verdict.acknowledged, verdict.counted, verdict.committed) == (3, 3, 1)
    assert (verdict.lost, verdict.doubled, verdict.voided, verdict.open) == (0, 0, 0, 0)


def test_a_report_that_the_journal_does_not_have_is_lost(world: World) -> None:
    world.notes.append(Acknowledged(b"x" * 16, b"y" * 32))
    assert world.verdict.lost == 1


def test_a_report_that_the_journal_has_otherwise_is_lost(world: World) -> None:
    world.notes.append(Acknowledged(world.devices[0].session, b"y" * 32))
    assert world.verdict.lost == 1


def test_a_report_whose_group_the_round_left_out_is_lost(world: World) -> None:
    late = make_device(9)
    world.trails[OTHER] = trail_of(OTHER, [late])
    world.rounds[1][1] = replace(
        world.rounds[1][1],
        event=Assigned(
            tuple(Slot(device.session, device.session) for device in [*world.devices, late]),
            4,
            (GROUP, OTHER),
            "aggregator:1",
            9_000_000,
        ),
    )
    world.notes.append(Acknowledged(late.session, digest_of(late.vector)))
    assert world.verdict.lost == 1


def test_a_report_in_two_groups_is_doubled(world: World) -> None:
    world.trails[OTHER] = trail_of(OTHER, world.devices[:1])
    event = world.rounds[1][1].event
    assert isinstance(event, Assigned)
    world.rounds[1][1] = replace(world.rounds[1][1], event=replace(event, groups=(GROUP, OTHER)))
    assert world.verdict.doubled == 1


def test_reports_of_an_abandoned_attempt_are_void_and_the_round_is_tried_again(world: World) -> None:
    world.rounds[1] = [
        *world.rounds[1][:2],
        Entry(1_600, Abandoned("why not", 1_700)),
        Entry(1_800, opened(1, 2, Blob(digest_of(FIRST), len(FIRST)))),
    ]
    world.kept.clear()
    verdict = world.verdict
    assert verdict.faults == []
    assert (verdict.voided, verdict.abandoned, verdict.lost) == (3, 1, 0)
    assert verdict.voided_share == 1.0


def test_a_round_that_was_left_open_is_a_fault(world: World) -> None:
    world.rounds[2] = [Entry(2_000, opened(2, 1, world.committed.checkpoint))]
    assert world.verdict.faults == []  # the newest may be under way
    world.rounds[3] = [Entry(3_000, opened(3, 1, world.committed.checkpoint))]
    assert len(world.verdict.faults) == 1


def test_a_checkpoint_that_changed_after_its_commit_is_a_fault(world: World) -> None:
    world.kept[1] = b"z" * 32
    assert len(world.verdict.faults) == 1


def test_a_commit_that_is_gone_is_a_fault(world: World) -> None:
    world.kept.clear()
    assert len(world.verdict.faults) == 1


def test_a_commit_that_nobody_saw_is_a_fault(world: World) -> None:
    world.kept[2] = b"z" * 32
    assert len(world.verdict.faults) == 1


def test_a_checkpoint_of_another_sum_is_a_fault(world: World) -> None:
    world.rounds[1] = world.round_of([GROUP], world.devices[:2])
    world.kept[1] = world.committed.checkpoint.digest
    assert any("another sum" in fault for fault in world.verdict.faults)


def test_a_damaged_checkpoint_is_a_fault(world: World) -> None:
    world.blobs[world.committed.checkpoint.digest] = FIRST
    assert any("is not the one" in fault for fault in world.verdict.faults)


def test_a_report_that_no_device_sent_is_a_fault(world: World) -> None:
    world.notes = [note for note in world.notes if not isinstance(note, Sent)]
    assert any("no device sent" in fault for fault in world.verdict.faults)


@pytest.mark.parametrize(("fate", "faults"), [("COUNTED", 0), ("PENDING", 0), ("VOID", 1)])
def test_a_device_that_was_told_wrongly_is_a_fault(world: World, fate: str, faults: int) -> None:
    world.notes.append(Told(world.devices[0].session, fate))
    assert len(world.verdict.faults) == faults


def test_times_tell_the_stage_and_the_wait(world: World) -> None:
    times = times_of(Evidence(world.rounds, world.trails))
    stages = [times.stage_at(instant) for instant in (999, 1_000, 1_200, 1_510, 1_530, 1_560)]
    assert stages == [
        Stage.BETWEEN,
        Stage.SELECTING,
        Stage.REPORTING,
        Stage.CLOSING,
        Stage.MERGING,
        Stage.BETWEEN,
    ]
    assert times.wait_for_report(1_150) == 250
    assert times.wait_for_report(1_400) is None
    assert times.wait_for_commit(1_540) == 20
    kills = [
        Kill("valkey", 1_150, Stage.REPORTING, alone=True),
        Kill("aggregator", 1_530, Stage.COMMITTING, alone=True),
    ]
    assert kills_by_phase(kills, times)["valkey"] == {"selecting": 0, "reporting": 1, "aggregating": 0}
    assert kills_by_phase(kills, times)["aggregator"]["aggregating"] == 1
    assert recoveries(kills, times, {Stage.REPORTING: 0.05}) == [pytest.approx(0.2)]
    assert undisturbed_waits(times, 1_400) == {}
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0


def test_a_seed_gives_the_same_program_again() -> None:
    counts = {Stage.SELECTING: 3, Stage.MERGING: 2}
    assert draw_program(7, counts) == draw_program(7, counts) != draw_program(8, counts)
    assert len(draw_program(7, counts)) == 15
