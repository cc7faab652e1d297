"""A task that gets a public row set while it runs: shorter uploads, and rows outside of it that nobody moves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedrecon.datasets.writing import write_csv
from fedrecon.ops.command import main
from fedrecon.wire.row_sets import read_row_set
from support.town import RATINGS, TASK, Town

RING_BYTES = 4


def test_only_rows_of_a_public_set_are_reported_and_moved(
    town: Town, plan_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Adam's momentum would move every row; sums of 10 from 120 people, so a row needs 5 raters of 10 x 0.5.

    Checkpoints have 16 bits here: what is rounded away of other rows is kept, too.
    """
    write_csv(RATINGS, tmp_path / "public")
    row_set = tmp_path / "popular.rows"
    asked = ["--ratings", str(tmp_path / "public"), "--cohort", "10", "--contributors", "2", "--out", str(row_set)]
    assert main(["data", "rows", *asked]) == 0
    rows = read_row_set(row_set.read_bytes()).rows
    others = np.setdiff1d(np.arange(len(RATINGS.item_keys)), rows)
    assert len(rows) > 5
    assert len(others) > 5
    town.create_task(
        plan_folder, "rounds.maximum_rounds=0", "optimizer.rule=ADAM", "optimizer.momentum=0.9",
        "optimizer.second_momentum=0.99", "optimizer.checkpoint_bits=16",
    )  # fmt: skip
    town.wake()
    task = town.wait_until(lambda task: task.committed >= 2)
    initial = town.item_table(task.checkpoint.digest)
    monkeypatch.setenv("FEDRECON_HOME", str(town.stack.home))
    capsys.readouterr()
    assert main(["task", "edit", TASK, "--rows", f"items={row_set}"]) == 0
    assert "of items a public row set" in " ".join(capsys.readouterr().out.split())
    # The round under way ends as it began.
    edited = town.task().committed
    task = town.wait_until(lambda task: task.committed >= edited + 2)
    before, committed = town.item_table(task.checkpoint.digest), task.committed
    task = town.wait_until(lambda task: task.committed >= committed + 2)
    town.sleep()
    after = town.item_table(task.checkpoint.digest)
    assert before.dtype == np.float16
    assert (initial[others] != before[others]).any(), "all rows moved before there was a row set"
    assert (after[others] == before[others]).all()
    assert (after[rows] != before[rows]).any(axis=1).mean() > 0.9
    uploads = [
        departure.bytes for each in town.participations for departure in each.receipt if departure.message == "Upload"
    ]
    vector_and_bias = initial.shape[1] + 1
    assert max(uploads) - min(uploads) == len(others) * vector_and_bias * RING_BYTES


def test_a_file_that_is_no_row_set_is_refused(
    town: Town, plan_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FEDRECON_HOME", str(town.stack.home))
    other = tmp_path / "other"
    other.write_bytes(b"\xff\xff")
    assert main(["task", "create", TASK, "--plan", str(plan_folder), "--rows", f"items={other}"]) == 2
    assert "is no row set" in capsys.readouterr().err
