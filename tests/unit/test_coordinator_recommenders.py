"""What a task serves, as a fold of events: what may follow on what, and what a replay gives."""

from __future__ import annotations

import pytest

from fedrecon.coordinator.entries import recommender_entries
from fedrecon.coordinator.recommenders import (
    KEPT_VERSIONS,
    CanaryBegun,
    CanaryTakenBack,
    CandidateAdmitted,
    Event,
    Evidence,
    ItemsRenewed,
    Measured,
    RecommenderPromoted,
    RecommenderRolledBack,
    Recommenders,
    Stage,
    step,
)
from fedrecon.coordinator.round_events import Blob, IllegalEvent

EVIDENCE = Evidence("evaluation rounds 3", 120, 0, (Measured("rmse", 0.9, 0.88, 0.92),))


def blob(number: int) -> Blob:
    return Blob(bytes([number % 256]) * 32, 10)


def admitted(version: int) -> CandidateAdmitted:
    return CandidateAdmitted(version, 10 * version, blob(version), b"spec")


def promoted(version: int) -> RecommenderPromoted:
    return RecommenderPromoted(version, blob(version), b"spec", EVIDENCE, "", "ada")


def canary(version: int, places: int = 500) -> CanaryBegun:
    return CanaryBegun(version, places, blob(version), b"spec", EVIDENCE, "", "ada")


def rolled_back(version: int) -> RecommenderRolledBack:
    return RecommenderRolledBack(version, blob(version), b"spec", "worse on phones", "bob")


def folded(*events: Event) -> Recommenders:
    state = Recommenders()
    for now, event in enumerate(events, start=1):
        state = step(state, event, now)
    return state


def stages(state: Recommenders) -> dict[int, Stage]:
    return {each.version: each.stage for each in state.versions}


def test_a_replay_of_a_promotion_gives_what_was_live() -> None:
    events: tuple[Event, ...] = (admitted(1), promoted(1), admitted(2), canary(2), promoted(2))
    state = folded(*events)
    assert stages(state) == {1: Stage.RETIRED, 2: Stage.LIVE}
    assert state.live is not None
    assert (state.live.evidence, state.live.operator, state.live.since) == (EVIDENCE, "ada", 5)
    replayed = Recommenders()
    for now, event in enumerate(events, start=1):
        entry = recommender_entries.decode(recommender_entries.encode(now, event))
        replayed = step(replayed, entry.event, entry.at)
    assert replayed == state


@pytest.mark.parametrize("places", [0, 10_000])
def test_a_canary_may_have_nobody_or_everybody_and_the_live_one_stays(places: int) -> None:
    state = folded(admitted(1), promoted(1), admitted(2), canary(2, places))
    assert state.canary is not None
    assert state.canary.places == places
    assert state.live is not None
    assert state.live.version == 1


def test_a_canary_may_grow_and_another_takes_its_place() -> None:
    state = folded(admitted(1), admitted(2), canary(1, 100), canary(1, 2_000))
    assert state.canary is not None
    assert state.canary.places == 2_000
    state = step(state, canary(2), 9)
    assert stages(state) == {1: Stage.CANDIDATE, 2: Stage.CANARY}
    assert all(each.places == 0 for each in state.versions if each.stage is Stage.CANDIDATE)


def test_a_canary_that_is_taken_back_must_pass_the_gate_again() -> None:
    state = folded(admitted(1), promoted(1), admitted(2), canary(2), CanaryTakenBack(2, "slow", "bob"))
    assert stages(state) == {1: Stage.LIVE, 2: Stage.CANDIDATE}
    with pytest.raises(IllegalEvent, match="version 2 is candidate, not retired"):
        step(state, rolled_back(2), 9)


def test_a_roll_back_makes_a_retired_version_live_and_retires_the_other() -> None:
    state = folded(admitted(1), promoted(1), admitted(2), promoted(2), rolled_back(1))
    assert stages(state) == {1: Stage.LIVE, 2: Stage.RETIRED}
    assert state.newest_retired is not None
    assert state.newest_retired.version == 2
    assert state.live is not None
    assert state.live.reason == "worse on phones"


@pytest.mark.parametrize(
    ("event", "told"),
    [
        (admitted(7), "version 7 is admitted, but 3 is the next"),
        (promoted(9), "there is no version 9"),
        (promoted(1), "version 1 is live, not candidate or canary"),
        (canary(1), "version 1 is live"),
        (canary(2, 10_001), "10001 places"),
        (rolled_back(2), "version 2 is candidate, not retired"),
        (CanaryTakenBack(2, "", "ada"), "version 2 is candidate, not canary"),
        (ItemsRenewed(2, blob(2), b"spec"), "version 2 is candidate, not live or canary"),
    ],
)
def test_what_cannot_happen_is_refused(event: Event, told: str) -> None:
    state = folded(admitted(1), promoted(1), admitted(2))
    with pytest.raises(IllegalEvent, match=told):
        step(state, event, 9)


def test_the_same_version_cannot_be_promoted_twice_in_the_journal() -> None:
    state = folded(admitted(1), admitted(2), promoted(2))
    with pytest.raises(IllegalEvent):
        step(state, promoted(2), 9)


def test_new_items_reach_what_is_served() -> None:
    state = folded(admitted(1), promoted(1), ItemsRenewed(1, blob(99), b"newer"))
    assert state.live is not None
    assert (state.live.checkpoint, state.live.spec, state.live.stage) == (blob(99), b"newer", Stage.LIVE)


def test_old_candidates_are_dropped_and_what_is_served_stays() -> None:
    events: list[Event] = [admitted(1), promoted(1), admitted(2), canary(2)]
    events += [admitted(number) for number in range(3, 3 + KEPT_VERSIONS + 5)]
    state = folded(*events)
    assert [each.version for each in state.served] == [1, 2]
    assert len(state.versions) == KEPT_VERSIONS + 2
    assert state.find(7) is None
    assert state.find(8) is not None
    with pytest.raises(IllegalEvent, match="there is no version 7, or not any more"):
        step(state, promoted(7), 99)


def test_of_retired_versions_those_that_were_live_last_are_kept() -> None:
    events: list[Event] = []
    for version in range(1, KEPT_VERSIONS + 4):
        events += [admitted(version), promoted(version)]
    state = folded(*events)
    assert state.find(2) is None
    assert stages(state)[3] is Stage.RETIRED
    assert len(state.versions) == KEPT_VERSIONS + 1
