"""What is shown of rounds."""

from __future__ import annotations

import pytest

from fedrecon.ops.round_commands import is_known, metrics_text, row_of
from fedrecon.v1 import admin_pb2 as admin
from fedrecon.v1.common_pb2 import RoundKey


def attempt(number: int, phase: admin.RoundPhase.ValueType, tried: int = 1) -> admin.Round:
    return admin.Round(key=RoundKey(task="films", round=number, attempt=tried), phase=phase, reported=3, report_goal=5)


def test_a_change_of_the_newest_attempt_is_taken_in() -> None:
    newest = [attempt(2, admin.ROUND_PHASE_REPORTING), attempt(1, admin.ROUND_PHASE_COMMITTED)]
    assert is_known(newest, attempt(2, admin.ROUND_PHASE_COMMITTED))
    assert newest[0].phase == admin.ROUND_PHASE_COMMITTED
    assert newest[1].key.round == 1


@pytest.mark.parametrize("key", [(3, 1), (2, 2)])
def test_another_attempt_asks_for_the_whole_list(key: tuple[int, int]) -> None:
    newest = [attempt(2, admin.ROUND_PHASE_REPORTING)]
    assert not is_known(newest, attempt(key[0], admin.ROUND_PHASE_SELECTING, key[1]))
    assert newest[0].phase == admin.ROUND_PHASE_REPORTING
    assert not is_known([], attempt(1, admin.ROUND_PHASE_SELECTING))


def test_a_row_tells_attempt_phase_and_reports_against_the_goal() -> None:
    row = row_of(attempt(7, admin.ROUND_PHASE_ABANDONED, tried=2))
    assert row[0] == "7.2"
    assert "abandoned" in row[1]
    assert row[3] == "3/5"


def test_quality_is_the_rmse_where_there_is_one() -> None:
    assert metrics_text({"squared_error": 8.0, "examples": 2.0}) == "2.0000"
    assert metrics_text({"hits": 1.0, "examples": 2.0}) == "hits 0.5000"
    assert metrics_text({}) == ""
