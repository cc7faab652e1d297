"""Task specifications as people write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedrecon.ops.mistakes import UserMistake
from fedrecon.ops.task_specs import build_spec
from fedrecon.v1 import task_pb2
from fedrecon.v1.plan_pb2 import Schedule


def test_defaults_make_a_whole_specification() -> None:
    spec = build_spec("films", None, [])
    assert spec.name == spec.population == "films"
    assert spec.rounds.report_goal == 50
    assert spec.rounds.minimum_reports == 40
    assert spec.secure_sum.maximum_reports == spec.rounds.minimum_cohort == 65
    assert spec.work.split == task_pb2.SPLIT_RULE_ALTERNATE_BATCHES


def test_a_file_wins_over_defaults_and_single_values_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "films.toml"
    file.write_text(
        'population = "phones"\n[rounds]\nreport_goal = 20\nover_selection = 1.5\n[optimizer]\nrule = "YOGI"\n'
    )
    spec = build_spec("films", file, ["rounds.report_goal=10", "optimizer.rate=0.5"])
    assert spec.population == "phones"
    assert spec.rounds.report_goal == 10
    assert spec.secure_sum.maximum_reports == 15
    assert spec.optimizer.rule == task_pb2.OPTIMIZER_RULE_YOGI
    assert spec.optimizer.rate == 0.5


def test_names_with_dots_of_their_own_stay_whole() -> None:
    spec = build_spec("films", None, ["work.hyperparameters.update.rate=0.3", "bounds.item_vectors.weight=0.25"])
    assert dict(spec.work.hyperparameters) == {"update.rate": 0.3}
    assert dict(spec.bounds) == {"item_vectors.weight": 0.25}


def test_epochs_may_grow_with_the_rounds(tmp_path: Path) -> None:
    file = tmp_path / "films.toml"
    file.write_text("[work.reconstruct_schedule]\nbatch_size = 5\nepochs = 4\nepochs_grow = true\n")
    spec = build_spec("films", file, ["work.update_schedule.batch_size=5", "work.update_schedule.epochs_grow=true"])
    assert spec.work.reconstruct_schedule == Schedule(batch_size=5, epochs=4, epochs_grow=True)
    assert spec.work.update_schedule.epochs_grow


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("rounds.report_goals=3", "report_goals"),
        ("rounds.report_goal=many", "no number"),
        ("optimizer.rule=SGDM", "OPTIMIZER_RULE_SGDM"),
        ("rounds.report_goal", "sets nothing"),
        ("=3", "sets nothing"),
    ],
)
def test_a_wrong_value_is_said_with_its_name(assignment: str, words: str) -> None:
    with pytest.raises(UserMistake, match=words):
        build_spec("films", None, [assignment])


def test_a_file_that_is_not_there_or_no_toml_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserMistake, match="cannot be read"):
        build_spec("films", tmp_path / "nothing.toml", [])
    (tmp_path / "broken.toml").write_text("[rounds\n")
    with pytest.raises(UserMistake, match="is no TOML"):
        build_spec("films", tmp_path / "broken.toml", [])
