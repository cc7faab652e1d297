"""The benchmark of masked sums opens what it measures, and says so if the sum is not the true one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fedrecon.benchmarks import secure_sum
from fedrecon.benchmarks.masked_group import SimulatedGroup
from fedrecon.benchmarks.secure_sum_peers import measure_peers
from fedrecon.ops.mistakes import UserMistake
from fedrecon.wire.fixed_point import Vector

CASE = secure_sum.Case(members=50, parameters=300, drop_out=0.1)


def test_a_simulated_sum_opens_and_its_figures_are_told() -> None:
    measures = {each.name.removeprefix(f"{CASE.name}."): each for each in secure_sum.measure(CASE)}
    assert (measures["neighbours"].value, measures["threshold"].value) == (24, 14)
    assert measures["client_sent_bytes"].value > measures["plain_report_bytes"].value == 300 * 4 + 3 * 8
    assert measures["client_cpu_ms"].value > 0
    assert measures["plain_sum_ratio"].value > 1
    assert 45 + 5 * 14 <= measures["masks"].value <= 45 + 5 * 24


def test_a_simulated_sum_that_is_not_the_true_one_is_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = SimulatedGroup.plain

    def wrong(group: SimulatedGroup) -> Vector:
        total = plain(group)
        total.tail[1] += 1
        return total

    masked = SimulatedGroup.masked

    def masked_rightly(group: SimulatedGroup, measured: dict[int, bytes]) -> Vector:
        with monkeypatch.context() as unpatched:
            unpatched.setattr(SimulatedGroup, "plain", plain)
            return masked(group, measured)

    monkeypatch.setattr(SimulatedGroup, "plain", wrong)
    monkeypatch.setattr(SimulatedGroup, "masked", masked_rightly)
    with pytest.raises(RuntimeError, match="not the sum"):
        secure_sum.measure(CASE)


def test_the_promised_figures_are_those_of_a_thousand_members() -> None:
    assert (secure_sum.PROMISED.members, secure_sum.PROMISED.parameters) == (1_000, 185_300)
    assert secure_sum.PROMISED in secure_sum.CASES


def test_a_peer_that_is_not_installed_is_said_to_be() -> None:
    with pytest.raises(UserMistake, match="Flower did not run") as raised:
        measure_peers(Path(sys.executable))
    assert "make bench-peers" in str(raised.value.advice)


def test_the_promised_size_tells_the_wall_clock_with_two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secure_sum, "PROMISED", CASE)
    measures = {each.name: each for each in secure_sum.measure(CASE)}
    for name, limit in (("client_cpu_ms", 60), ("server_cpu_seconds", 6), ("server_wall_seconds_two_cores", 3.5)):
        assert measures[name].limit == limit
        assert measures[name].value > 0
