"""What is claimed of a task's privacy: accounted, and told with all it rests on."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
from dp_accounting import NeighboringRelation, SingleEpochTreeAggregationDpEvent
from dp_accounting.rdp import RdpAccountant

from fedrecon.coordinator import tasks
from fedrecon.coordinator.accounting import AccountantMissing, epsilon_after, sums_within
from fedrecon.coordinator.assignments import is_sampled
from fedrecon.coordinator.privacy import claim_of, is_nearly_spent, privacy_problems
from fedrecon.coordinator.round_events import Blob, IllegalEvent
from fedrecon.coordinator.tasks import PrivacySpent, TaskCreated
from fedrecon.v1 import task_pb2
from fedrecon.v1.task_pb2 import Privacy, TaskSpec

PRIVATE = TaskSpec(
    name="films",
    rounds=task_pb2.RoundSpec(report_goal=100),
    secure_sum=task_pb2.SecureSum(protocol=task_pb2.SUM_PROTOCOL_SECAGG_PLUS, maximum_weight=1),
    privacy=Privacy(noise_multiplier=1.0, clip_norm=0.5, delta=1e-5, epsilon_budget=2.0, sampling_rate=100 / 6040),
)


def private(**changes: float) -> Privacy:
    privacy = Privacy()
    privacy.CopyFrom(PRIVATE.privacy)
    for name, value in changes.items():
        setattr(privacy, name, value)
    return privacy


def created(spec: TaskSpec, private_sums: int) -> tasks.Task:
    event = TaskCreated(spec.SerializeToString(), Blob(bytes(32), 1), 0, 0, "", private_sums)
    return tasks.step(None, event, 0)


@pytest.mark.parametrize(
    ("devices", "cohort", "sums", "multiplier", "delta", "epsilon", "without"),
    [(6040, 100, 500, 1.0, 1e-5, 2.27, 344), (1e5, 1000, 1000, 1.0, 3.2e-6, 1.98, 642)],
)
def test_epsilon_is_that_of_the_accountants_own_table(
    devices: float, cohort: int, sums: int, multiplier: float, delta: float, epsilon: float, without: float
) -> None:
    privacy = private(noise_multiplier=multiplier, delta=delta, sampling_rate=cohort / devices)
    assert epsilon_after(privacy, sums) == pytest.approx(epsilon, rel=0.01)
    privacy.sampling_rate = 0
    assert epsilon_after(privacy, sums) == pytest.approx(without, rel=0.01)


def test_beyond_a_sensible_epsilon_a_quicker_bound_is_told() -> None:
    few, many = (epsilon_after(PRIVATE.privacy, sums) for sums in (500, 100_000))
    assert few < 15 < many


def test_nothing_is_spent_before_the_first_sum() -> None:
    assert epsilon_after(PRIVATE.privacy, 0) == 0


@pytest.mark.parametrize("rate", [0.0, 100 / 6040, 1.0])
def test_a_budget_allows_as_many_sums_as_fit_and_not_one_more(rate: float) -> None:
    privacy = private(epsilon_budget=8.0 if rate in {0.0, 1.0} else 1.0, sampling_rate=rate)
    allowed = sums_within(privacy)
    assert allowed > 1
    assert epsilon_after(privacy, allowed) <= privacy.epsilon_budget < epsilon_after(privacy, allowed + 1)


@pytest.mark.parametrize(("sums", "tree"), [(1, 8), (8, 8), (7, 8), (64, 64), (200, 64)])
def test_noise_in_trees_is_accounted_no_looser_than_by_the_library(sums: int, tree: int) -> None:
    privacy = private(sampling_rate=0, noise_multiplier=4.0)
    privacy.tree_sums = tree
    accountant = RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_SPECIAL)
    whole, rest = divmod(sums, tree)
    for leaves in [tree] * whole + [rest] * (rest > 0):
        accountant.compose(SingleEpochTreeAggregationDpEvent(4.0, leaves))
    bound = accountant.get_epsilon(privacy.delta)
    assert 0.5 * bound < epsilon_after(privacy, sums) <= bound


def test_a_tree_spends_less_than_noise_in_every_sum() -> None:
    privacy = private(sampling_rate=0, noise_multiplier=4.0)
    apart = epsilon_after(privacy, 128)
    privacy.tree_sums = 128
    assert epsilon_after(privacy, 128) < 0.2 * apart


def test_a_task_with_trees_grows_them_by_the_sums_that_were_counted() -> None:
    spec = TaskSpec()
    spec.CopyFrom(PRIVATE)
    spec.privacy.sampling_rate, spec.privacy.tree_sums = 0, 2
    assert list(privacy_problems(spec)) == []
    event = TaskCreated(spec.SerializeToString(), Blob(bytes(32), 1), 0, 0, "", 5, tree_sums=2)
    task = tasks.step(None, event, 0)
    seen = []
    for attempt in range(1, 4):
        assert task.tree_number == (attempt - 1) // 2
        task = tasks.step(task, PrivacySpent(1, attempt, bytes([attempt])), attempt)
        seen.append((task.noise.leaves, [node.level for node in task.noise.nodes], len(task.noise.removed)))
        task = tasks.step(task, tasks.AttemptAbandoned(1, attempt, "", 0), attempt)
    assert seen == [(1, [0], 0), (2, [1], 1), (1, [0], 0)]


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("clip_quantile", 0.5, "one clip norm"),
        ("sampling_rate", 0.1, "nothing is claimed for sampling"),
        ("tree_sums", 1 << 21, "at most"),
        ("population_size", 3_000, "fewer than the 6400 reports"),
    ],
)
def test_what_trees_of_noise_do_not_go_with_is_refused(field: str, value: float, words: str) -> None:
    spec = TaskSpec()
    spec.CopyFrom(PRIVATE)
    spec.privacy.sampling_rate, spec.privacy.tree_sums = 0, 64
    setattr(spec.privacy, field, value)
    (problem,) = privacy_problems(spec)
    assert words in problem


def test_a_budget_that_one_sum_exceeds_allows_none() -> None:
    assert sums_within(private(sampling_rate=0, epsilon_budget=0.1)) == 0


def test_without_the_accountant_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(AccountantMissing, match=r"fedrecon\[privacy\]"):
        epsilon_after(private(sampling_rate=0), 1)
    unsampled = TaskSpec()
    unsampled.CopyFrom(PRIVATE)
    unsampled.privacy.sampling_rate = 0
    assert claim_of(replace(created(unsampled, 10), private_sums=1)).statement.startswith("not accounted")


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("privacy.noise_multiplier", 0.0, "noise_multiplier"),
        ("privacy.noise_multiplier", float("nan"), "noise_multiplier"),
        ("privacy.clip_norm", 0.0, "clip_norm"),
        ("privacy.clip_norm", float("inf"), "clip_norm"),
        ("privacy.epsilon_budget", -1.0, "epsilon_budget"),
        ("privacy.delta", 0.0, "delta"),
        ("privacy.delta", 1.0, "delta"),
        ("privacy.clip_quantile", 1.0, "clip_quantile"),
        ("privacy.sampling_rate", 1.5, "sampling_rate"),
        ("secure_sum.maximum_weight", 100, "weighs 1"),
        ("evaluation.every_rounds", 5, "without noise"),
    ],
)
def test_privacy_that_cannot_be_given_is_refused_by_name(path: str, value: float, words: str) -> None:
    spec = TaskSpec()
    spec.CopyFrom(PRIVATE)
    assert list(privacy_problems(spec)) == []
    part, field = path.split(".")
    setattr(getattr(spec, part), field, value)
    (problem,) = privacy_problems(spec)
    assert words in problem


def test_an_adaptive_clip_norm_needs_reports_enough_for_its_own_noise() -> None:
    spec = TaskSpec()
    spec.CopyFrom(PRIVATE)
    spec.privacy.clip_quantile = 0.5
    assert list(privacy_problems(spec)) == []
    spec.rounds.report_goal = 10
    (problem,) = privacy_problems(spec)
    assert "fixed clip norm, or more reports" in problem


def test_a_sum_is_counted_once_and_never_beyond_the_budget() -> None:
    task = created(PRIVATE, 2)
    once = tasks.step(task, PrivacySpent(1, 1), 1)
    assert (once.private_sums, once.has_spent_its_budget) == (1, False)
    with pytest.raises(IllegalEvent):
        tasks.step(once, PrivacySpent(1, 1), 2)
    again = tasks.step(tasks.step(once, tasks.AttemptAbandoned(1, 1, "", 0), 3), PrivacySpent(1, 2), 4)
    assert (again.private_sums, again.has_spent_its_budget) == (2, True)
    third = tasks.step(again, tasks.AttemptAbandoned(1, 2, "", 0), 5)
    with pytest.raises(IllegalEvent):
        tasks.step(third, PrivacySpent(1, 3), 6)


def test_a_roll_back_gives_nothing_of_the_budget_back() -> None:
    task = tasks.step(created(PRIVATE, 5), PrivacySpent(1, 1), 1)
    committed = tasks.step(task, tasks.CheckpointCommitted(1, 1, Blob(bytes(32), 1), None, 90, 90, (), 0.7), 2)
    assert committed.clip_norm == 0.7
    back = tasks.step(committed, tasks.RolledBack(0, Blob(bytes(32), 1), None, "", ""), 3)
    assert (back.private_sums, back.clip_norm) == (1, 0.0)


def test_the_claim_tells_all_it_rests_on() -> None:
    claim = claim_of(replace(created(PRIVATE, 380), private_sums=100))
    assert claim.epsilon == pytest.approx(epsilon_after(PRIVATE.privacy, 100))
    assert "100 of 380" in claim.statement
    told = " ".join(claim.assumptions)
    for word in (
        "Unit",
        "Neighbours",
        "clip norm 0.5",
        "Poisson",
        "enforced",
        "not stated",
        "aggregator",
        "dp-accounting",
    ):
        assert word in told
    assert not is_nearly_spent(replace(created(PRIVATE, 380), private_sums=341))
    assert "nearly spent" in claim_of(replace(created(PRIVATE, 380), private_sums=342)).statement
    assert "is spent" in claim_of(replace(created(PRIVATE, 380), private_sums=380)).statement


def test_a_task_without_privacy_says_so_and_what_is_missing() -> None:
    claim = claim_of(created(TaskSpec(secure_sum=PRIVATE.secure_sum), 0))
    assert claim.statement.startswith("no DP guarantee: no noise is added")
    assert claim.epsilon == 0
    in_clear = task_pb2.SecureSum(protocol=task_pb2.SUM_PROTOCOL_TRUSTED)
    assert "TRUSTED" in claim_of(created(TaskSpec(secure_sum=in_clear), 0)).statement


def test_sampling_is_by_device_and_attempt_and_nobody_chooses() -> None:
    key, devices = bytes(32), [number.to_bytes(32, "little") for number in range(4000)]
    first = {device for device in devices if is_sampled(key, 1, 1, "films", device, 0.1)}
    again = {device for device in devices if is_sampled(key, 1, 1, "films", device, 0.1)}
    retried = {device for device in devices if is_sampled(key, 1, 2, "films", device, 0.1)}
    assert first == again
    assert 320 < len(first) < 480
    assert len(first & retried) < 80, "another attempt draws anew"
    assert all(is_sampled(key, 1, 1, "films", device, 0) for device in devices[:10])
