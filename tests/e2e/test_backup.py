"""A backup of a whole stack in the middle of rounds; then everything is killed, and a fresh machine goes on from it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedrecon.ops.fleet.people import People
from fedrecon.ops.settings import Settings
from fedrecon.ops.stack import Stack
from fedrecon.v1 import admin_pb2 as admin
from support.town import Town

pytestmark = pytest.mark.slow


def command(home: Path, *arguments: str, code: int = 0) -> Any:
    """Run a command on a home, as a process of its own, and return what it printed as JSON."""
    ended = subprocess.run(
        [sys.executable, "-m", "fedrecon.ops", *arguments, "--json"],
        env={**os.environ, "FEDRECON_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert ended.returncode == code, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1]) if code == 0 else ended.stderr


@pytest.mark.parametrize("name", ["backup", "backup.tar.gz"])
def test_rounds_go_on_from_a_backup_after_everything_was_killed(
    tmp_path: Path, people: People, plan_folder: Path, name: str
) -> None:
    old, new, passphrase = tmp_path / "old", tmp_path / "new", tmp_path / "passphrase"
    passphrase.write_text("correct horse battery staple\n")
    stack = Stack(Settings(home=old))
    stack.start()
    town = Town(stack, people)
    try:
        town.create_task(plan_folder, "rounds.maximum_rounds=0")
        town.wake(dropout=0.1)
        town.wait_until(lambda task: task.committed >= 2 and task.round.phase == admin.ROUND_PHASE_REPORTING)
        made = command(old, "backup", str(tmp_path / name), "--keys-passphrase", str(passphrase))
        (told,) = made["tasks"]
        assert told["committed"] >= 2
        town.sleep()
        before = town.rounds()
    finally:
        town.sleep()
        for role in stack.roles.values():
            if role.process is not None:
                role.process.kill()
        stack.stop()
    shutil.rmtree(old)
    restored = command(new, "restore", str(tmp_path / name), "--keys-passphrase", str(passphrase))
    assert restored["tasks"] == made["tasks"]
    assert "Restore into an empty deployment" in command(new, "restore", str(tmp_path / name), code=2)
    with Stack(Settings(home=new)) as fresh:
        reborn = Town(fresh, people)
        reborn.wake()
        try:
            reborn.wait_until(lambda task: task.committed >= told["committed"] + 2)
        finally:
            reborn.sleep()
        digests = {each.key.round: each.checkpoint.digest for each in before if each.checkpoint.digest}
        kept = {each.key.round: each.checkpoint.digest for each in reborn.rounds() if each.checkpoint.digest}
        committed = range(1, told["committed"] + 1)
        assert [kept[number] for number in committed] == [digests[number] for number in committed]
        assert not reborn.task().reason, "no loss is told: the backup's notes are not ahead of its journal"
