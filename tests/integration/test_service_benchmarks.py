"""The benchmarks of services run, and every report and check-in of theirs is accounted for."""

from __future__ import annotations

import pytest

from fedrecon.benchmarks import check_in, ingest


@pytest.mark.slow
def test_ingest_measures_rates_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"_REPORTS": 8, "_TURNS": 1, "_FEW": 4, "_MANY": 12, "LARGE": 2_000_000}.items():
        monkeypatch.setattr(ingest, name, value)
    measures = {measure.name: measure for measure in ingest.measure_ingest()}
    assert measures["report_mb_per_second"].value > 0
    assert measures["share_of_bare_stream"].limit == 0.8
    assert 0.5 < measures["peak_memory_ratio_1000_over_100"].value < 3


@pytest.mark.slow
def test_check_in_assigns_everybody_who_checks_in(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"COHORT": 20, "_TURNS": 1, "_LONG_MILLISECONDS": 500}.items():
        monkeypatch.setattr(check_in, name, value)
    measures = {measure.name: measure for measure in check_in.measure_check_in()}
    assert measures["not_assigned"].value == 0
    assert measures["assigned_check_ins_per_second"].value > 0
    assert 0 < measures["seconds_from_close_to_answer_p50"].value <= measures["seconds_from_close_to_answer_p99"].value
