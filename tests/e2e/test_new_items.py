"""Items that come while a task runs: rows for them, and devices that train them."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import json_format

from fedrecon.ops.command import main
from fedrecon.v1 import admin_pb2 as admin
from fedrecon.wire.vocabularies import write_vocabulary
from support.compiled_films import compile_films
from support.town import RATINGS, TASK, Town

KNOWN = 40


def test_items_that_come_later_are_trained(
    town: Town, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan knows the first 40 of 60 items; devices have rated all, and leave out what the model does not know."""
    plan = compile_films("ridge", RATINGS.item_keys[:KNOWN], 4, tmp_path / "plan", titles=RATINGS.titles[:KNOWN])
    town.create_task(plan.folder, "rounds.maximum_rounds=0")
    town.wake()
    town.wait_until(lambda task: task.committed >= 2)
    newer = tmp_path / "newer.items"
    newer.write_bytes(write_vocabulary("items", 2, RATINGS.item_keys, RATINGS.titles))
    monkeypatch.setenv("FEDRECON_HOME", str(town.stack.home))
    capsys.readouterr()
    assert main(["task", "edit", TASK, "--vocabulary", f"items={newer}", "--json"]) == 0
    edited = json_format.Parse(capsys.readouterr().out, admin.Task())
    before = town.item_table(edited.checkpoint.digest)
    assert len(before) == len(RATINGS.item_keys)
    assert (before[KNOWN:] == before[KNOWN]).all()
    task = town.wait_until(lambda task: task.committed >= edited.committed + 3)
    town.sleep()
    after = town.item_table(task.checkpoint.digest)
    moved = (after[KNOWN:] != before[KNOWN:]).any(axis=1)
    assert moved.mean() > 0.5
