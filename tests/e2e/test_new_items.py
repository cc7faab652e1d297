"""Items that come while a task runs: rows for them, and devices that train them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from google.protobuf import json_format
from numpy.typing import NDArray

from fedrecon.ops.admin_client import open_sync_channel
from fedrecon.ops.command import main
from fedrecon.v1 import admin_pb2 as admin
from fedrecon.v1.blobs_pb2 import FetchRequest
from fedrecon.v1.blobs_pb2_grpc import BlobsStub
from fedrecon.wire.tensors import read_safetensors
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
    before = table_of(town, edited.checkpoint.digest)
    assert len(before) == len(RATINGS.item_keys)
    assert (before[KNOWN:] == before[KNOWN]).all()
    task = town.wait_until(lambda task: task.committed >= edited.committed + 3)
    town.sleep()
    after = table_of(town, task.checkpoint.digest)
    moved = (after[KNOWN:] != before[KNOWN:]).any(axis=1)
    assert moved.mean() > 0.5


def table_of(town: Town, digest: bytes) -> NDArray[np.float32]:
    with open_sync_channel(town.stack.roles["aggregator"].address, town.stack.home) as channel:
        chunks = BlobsStub(channel).Fetch(FetchRequest(digest=digest), timeout=10)
        content = b"".join(each.chunk.data for each in chunks)
    table: NDArray[np.float32] = read_safetensors(content)["item_vectors.weight"]
    return table
