"""The life of a sum group, event by event."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fedrecon.aggregator import groups
from fedrecon.aggregator.group_events import (
    Aborted,
    Accepted,
    Closed,
    Config,
    Event,
    Metric,
    Opened,
    Phase,
    Report,
    RosterFrozen,
    Segment,
    SharesFixed,
    TakenOver,
    UploadsEnded,
)
from fedrecon.aggregator.groups import (
    TRANSITIONS,
    Acknowledge,
    Group,
    IllegalEventError,
    RemoveFiles,
    step,
)
from fedrecon.aggregator.summing import CODEC
from fedrecon.v1 import aggregator_pb2

CONFIG = Config(
    task="films",
    round=1,
    attempt=1,
    kind=1,
    protocol=1,
    segments=(Segment("items", 4, 1.0),),
    metrics=(Metric("squared_error", 25.0),),
    ring_bits=32,
    maximum_reports=3,
    maximum_weight=10,
    minimum_group=0,
    cohort_size=7,
    plan_digest=bytes(32),
    checkpoint_digest=bytes(32),
    expires_milliseconds=1_000,
)
OPENED = Opened(b"g" * 16, CONFIG, "holder", Phase.UPLOADING, 10)


def accepted(*sessions: bytes, total: int, snapshot: bytes = b"s", at: int = 20) -> Accepted:
    return Accepted(tuple(Report(session, b"d" + session) for session in sessions), total, snapshot, b"sum", at)


def after(*events: Event) -> Group:
    group = groups.replay([OPENED, *events])
    assert group is not None
    return group


MASKED = replace(CONFIG, protocol=2, maximum_reports=4, report_goal=4, joining_ends_milliseconds=500)
JOINING = Opened(b"g" * 16, MASKED, "holder", Phase.JOINING, 10)
FROZEN = RosterFrozen((b"a", b"b", b"c", b"d"), b"roster", (2, 0, 3, 1), 3, 2, b"n" * 32, 20)
FIXED = SharesFixed((0, 1, 2), b"shares", 30)
TWO = (accepted(b"a", total=1), accepted(b"b", total=2, snapshot=b"t", at=40))
OPEN = Closed(2, b"open sum", 60, b"unmasked")


def masked(*events: Event) -> Group:
    group = groups.replay([JOINING, *events])
    assert group is not None
    return group


def test_a_masked_group_goes_through_all_phases_and_keeps_the_files_it_needs() -> None:
    stages: list[tuple[Event, ...]] = [(), (FROZEN,), (FIXED,), TWO, (UploadsEnded(50),), (OPEN,)]
    events: tuple[Event, ...] = ()
    seen = []
    for stage in stages:
        events += stage
        group = masked(*events)
        seen.append((group.phase, group.files, group.phase_since_milliseconds))
    assert seen == [
        (Phase.JOINING, frozenset(), 10),
        (Phase.SHARING, {b"roster"}, 20),
        (Phase.UPLOADING, {b"roster", b"shares"}, 30),
        (Phase.UPLOADING, {b"roster", b"shares", b"t"}, 30),
        (Phase.UNMASKING, {b"roster", b"shares", b"t"}, 50),
        (Phase.CLOSED, {b"unmasked"}, 60),
    ]
    assert group.survivors == {0, 1}
    assert group.sum_digest == b"open sum"


def test_what_a_masked_group_needs_no_more_is_removed() -> None:
    _, effects = step(masked(FROZEN, FIXED, *TWO, UploadsEnded(50)), OPEN)
    assert effects == (RemoveFiles(frozenset({b"roster", b"shares", b"t"})),)
    _, effects = step(masked(FROZEN, FIXED), Aborted("TOO_FEW_REPORTS", 0, 40))
    assert effects == (RemoveFiles(frozenset({b"roster", b"shares"})),)


@pytest.mark.parametrize(
    ("before", "event"),
    [
        ((), FIXED),
        ((), accepted(b"a", total=1)),
        ((), replace(FROZEN, sessions=(b"a", b"b", b"c", b"a"))),
        ((), replace(FROZEN, ring=(0, 1, 2, 2))),
        ((), replace(FROZEN, neighbours=4)),
        ((), replace(FROZEN, threshold=4)),
        ((), replace(FROZEN, sessions=(b"a", b"b", b"c", b"d", b"e"), ring=(0, 1, 2, 3, 4))),
        ((FROZEN,), FROZEN),
        ((FROZEN,), accepted(b"a", total=1)),
        ((FROZEN,), replace(FIXED, sharers=())),
        ((FROZEN,), replace(FIXED, sharers=(0, 4))),
        ((FROZEN,), replace(FIXED, sharers=(1, 0))),
        ((FROZEN, FIXED), accepted(b"d", total=1)),  # shared nothing
        ((FROZEN, FIXED), accepted(b"x", total=1)),  # is no member
        ((FROZEN, FIXED), UploadsEnded(50)),  # nothing to unmask
        ((FROZEN, FIXED, *TWO), Closed(2, b"sum", 60)),  # its masks are on
        ((FROZEN, FIXED, *TWO), OPEN),  # nobody was asked
        ((FROZEN, FIXED, *TWO, UploadsEnded(50)), accepted(b"c", total=3)),  # it is no survivor any more
        ((FROZEN, FIXED, *TWO, UploadsEnded(50)), UploadsEnded(51)),  # survivors are fixed once
        ((FROZEN, FIXED, *TWO, UploadsEnded(50)), replace(OPEN, snapshot=b"")),
        ((FROZEN, FIXED, *TWO, UploadsEnded(50)), replace(OPEN, reports=3)),
    ],
)
def test_an_illegal_event_of_a_masked_group_raises(before: tuple[Event, ...], event: Event) -> None:
    group = masked(*before)
    with pytest.raises(IllegalEventError):
        step(group, event)
    assert group == masked(*before)


def test_the_phases_are_those_of_the_contract() -> None:
    contract = {
        name.removeprefix("GROUP_PHASE_"): number for name, number in aggregator_pb2.GroupPhase.items() if number
    }
    assert {phase.name: int(phase) for phase in Phase} == contract
    assert set(TRANSITIONS) == set(Phase)


def test_every_phase_is_reached_and_every_phase_can_be_given_up() -> None:
    reached, frontier = set(), [Phase.JOINING]
    while frontier:
        phase = frontier.pop()
        if phase not in reached:
            reached.add(phase)
            frontier += TRANSITIONS[phase]
    assert reached == set(Phase)
    assert all(Phase.ABORTED in TRANSITIONS[phase] for phase in set(Phase) - {Phase.ABORTED})


def test_a_batch_acknowledges_its_sessions_and_replaces_the_snapshot() -> None:
    group, effects = step(after(accepted(b"a", total=1)), accepted(b"b", b"c", total=3, snapshot=b"t"))
    assert effects == (RemoveFiles(frozenset({b"s"})), Acknowledge((b"b", b"c")))
    assert group.reports == {b"a": b"da", b"b": b"db", b"c": b"dc"}
    assert group.snapshot == b"t"


def test_closing_keeps_the_sum_and_giving_up_removes_it() -> None:
    closed, effects = step(after(accepted(b"a", total=1)), Closed(1, b"sum", 30))
    assert (closed.phase, effects, closed.ended_milliseconds) == (Phase.CLOSED, (), 30)
    aborted, effects = step(closed, Aborted("DISCARDED", 1, 40))
    assert (aborted.phase, effects) == (Phase.ABORTED, (RemoveFiles(frozenset({b"s"})),))
    assert aborted.aborted_because == "DISCARDED"


@pytest.mark.parametrize(
    ("before", "event"),
    [
        ((accepted(b"a", total=1),), accepted(b"a", total=2)),
        ((), accepted(b"a", b"a", total=2)),
        ((), accepted(b"a", total=2)),
        ((), Accepted((), 0, b"s", b"sum", 1)),
        ((), accepted(b"a", b"b", b"c", b"d", total=4)),
        ((accepted(b"a", total=1), Closed(1, b"sum", 1)), accepted(b"b", total=2)),
        ((accepted(b"a", total=1), Closed(1, b"sum", 1)), Closed(1, b"sum", 2)),
        ((accepted(b"a", total=1),), Closed(2, b"sum", 1)),
        ((accepted(b"a", total=1),), Closed(1, b"other", 1)),
        ((), Closed(0, b"", 1)),
        ((Aborted("EXPIRED", 0, 1),), Aborted("EXPIRED", 0, 2)),
        ((Aborted("EXPIRED", 0, 1),), accepted(b"a", total=1)),
        ((), OPENED),
    ],
)
def test_an_illegal_event_raises(before: tuple[Event, ...], event: Event) -> None:
    group = after(*before)
    with pytest.raises(IllegalEventError):
        step(group, event)
    assert group == after(*before)


def test_nothing_happens_to_a_group_that_was_never_opened() -> None:
    with pytest.raises(IllegalEventError):
        step(None, Closed(0, b"", 1))
    with pytest.raises(IllegalEventError):
        step(None, Opened(b"g", CONFIG, "holder", Phase.CLOSED, 1))


def test_too_few_reports_give_the_group_up() -> None:
    assert groups.end(after(), 50, discard=False) == Aborted("TOO_FEW_REPORTS", 0, 50)
    one = after(accepted(b"a", total=1))
    assert groups.end(one, 50, discard=False) == Closed(1, b"sum", 50)
    assert groups.end(one, 50, discard=True) == Aborted("DISCARDED", 1, 50)


def test_ending_twice_changes_nothing_but_a_closed_group_may_be_discarded() -> None:
    closed = after(accepted(b"a", total=1), Closed(1, b"sum", 30))
    assert groups.end(closed, 50, discard=False) is None
    assert groups.end(closed, 50, discard=True) == Aborted("DISCARDED", 1, 50)
    aborted = after(Aborted("EXPIRED", 0, 30))
    assert groups.end(aborted, 50, discard=True) is None
    assert groups.end(aborted, 50, discard=False) is None


@pytest.mark.parametrize(
    "events",
    [
        (),
        (accepted(b"a", total=1),),
        (accepted(b"a", total=1), Closed(1, b"sum", 30)),
        (accepted(b"a", total=1), Aborted("DISCARDED", 1, 30)),
    ],
)
def test_a_group_that_is_taken_over_stays_what_it_is(events: tuple[Event, ...]) -> None:
    before = after(*events)
    taken, effects = step(before, TakenOver("other", 40))
    assert (taken.holder, effects) == ("other", ())
    assert replace(taken, holder=before.holder) == before


def test_a_group_expires_only_while_it_is_open() -> None:
    group = after(accepted(b"a", total=1))
    assert groups.expire(group, 999) is None
    assert groups.expire(group, 1_000) == Aborted("EXPIRED", 1, 1_000)
    assert groups.expire(after(accepted(b"a", total=1), Closed(1, b"sum", 30)), 5_000) is None


def test_a_large_cohort_needs_several_groups() -> None:
    assert CONFIG.group_count == 3
    assert replace(CONFIG, cohort_size=3).group_count == 1


@pytest.mark.parametrize(
    "event",
    [OPENED, TakenOver("other", 5), accepted(b"\x00\xff", total=1), Closed(2, b"sum", 3), Aborted("EXPIRED", 1, 2)],
)
def test_events_survive_the_journal(event: Event) -> None:
    assert CODEC.decode(CODEC.encode(event)) == event
