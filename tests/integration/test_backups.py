"""Backups: taken while rounds go on, verified byte by byte, restored into nothing, proved by replay."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from fedrecon.coordinator import ledger
from fedrecon.coordinator.backing_up import NotEmpty, back_up, restore
from fedrecon.coordinator.backup_commands import _opened_keys, _sealed_keys
from fedrecon.coordinator.registering import read_spec, register_task
from fedrecon.coordinator.retention import Retention
from fedrecon.coordinator.round_state import Phase
from fedrecon.coordinator.settings import CoordinatorSettings
from fedrecon.ops.backups import JOURNAL, MANIFEST, BackupBroken, Reading, Writing, open_source, open_target
from fedrecon.ops.blobs import LocalBlobs
from fedrecon.ops.clock import SystemClock
from fedrecon.ops.journal import Append, History, Journal
from fedrecon.ops.journal.copying import copy_task
from fedrecon.ops.journal.memory import MemoryJournal
from fedrecon.ops.mistakes import UserMistake
from fedrecon.wire.digests import digest_of
from support.console_rounds import Past
from support.coordinating import TASK, House, house, make_spec

ROUNDS, KEPT = 12, 4
MADE = 1_700_000_000_000


class Yielding(MemoryJournal):
    """A journal at which others get their turn between reads, as at one that is far away."""

    async def load(self, task: str, stream: str) -> History:
        history = await super().load(task, stream)
        for _ in range(3):
            await asyncio.sleep(0)
        return history


async def lived(built: House, rounds: int = ROUNDS) -> None:
    began = SystemClock().now_milliseconds() - rounds * 10_000
    book = await Past(built.journal, built.blobs, TASK, began).write(make_spec(built.plan), rounds)
    await Retention(TASK, built.journal, 4, KEPT).tidy(book.task, book.version, 1 << 42)
    await built.journal.remember(TASK, "participation/abc", SystemClock().now_milliseconds() + 60_000)
    built.blobs.write_note("other", b"a note")


async def backed_up(built: House, place: Path) -> Path:
    with open_target(place) as target:
        writing = Writing(target, MADE)
        await back_up(built.journal, built.blobs, writing, KEPT)
        writing.finish()
    return place


async def everything(journal: Journal, tasks: tuple[str, ...] = ("registry", TASK)) -> list[object]:
    return [(copy.streams, copy.remembered) for copy in [await copy_task(journal, task) for task in tasks]]


@pytest.mark.parametrize("name", ["backup", "backup.tar", "backup.tar.gz"])
async def test_a_restored_deployment_is_the_one_that_was_backed_up(tmp_path: Path, name: str) -> None:
    async with house(tmp_path / "old", MemoryJournal()) as built:
        await lived(built)
        place = await backed_up(built, tmp_path / name)
        journal, blobs = MemoryJournal(), LocalBlobs(tmp_path / "new")
        with open_source(place) as source:
            reading = Reading(source)
            assert (reading.contents.made, reading.contents.has_keys) == (MADE, False)
            (proved,) = await restore(journal, blobs, reading, KEPT)
        assert (proved.name, proved.committed, proved.rounds) == (TASK, ROUNDS, ROUNDS)
        assert await everything(journal) == await everything(built.journal)
        assert set(blobs.digests()) == set(built.blobs.digests())
        assert blobs.read_note("other") == b"a note"
        with open_target(tmp_path / f"another-{name}"):
            pass
        with pytest.raises(FileExistsError), open_target(place):
            pass


async def test_rounds_go_on_after_a_restore(tmp_path: Path) -> None:
    async with house(tmp_path / "old", MemoryJournal()) as built:
        await lived(built)
        place = await backed_up(built, tmp_path / "backup")
    async with house(tmp_path / "new", MemoryJournal()) as built:
        for digest in list(built.blobs.digests()):  # those of the plan that the house made
            built.blobs.delete(digest)
        with open_source(place) as source:
            await restore(built.journal, built.blobs, Reading(source), KEPT)
        coordinator = await built.coordinator()
        await coordinator.until_ready()
        assigned = await coordinator.assign(1, 2, 3)
        await built.sums.report(assigned[0].round, 3)
        await coordinator.until(Phase.COMMITTED, ROUNDS + 1)


async def test_a_backup_while_rounds_are_written_is_of_one_moment(tmp_path: Path) -> None:
    async with house(tmp_path / "old", Yielding()) as built:
        await lived(built)
        spec = make_spec(built.plan)
        created = await asyncio.to_thread(read_spec, spec, built.blobs, "olga")
        await register_task(built.journal, "busy", created, MADE)
        writing = asyncio.create_task(_write_pairs(built.journal))
        place = await backed_up(built, tmp_path / "backup")
        writing.cancel()
        with open_source(place) as source:
            (copy,) = [each for each in Reading(source).journal() if each.task == "busy"]
    here, there = copy.streams["pairs/1"], copy.streams["pairs/2"]
    assert here.version == there.version > 0, "two streams that are written together were copied together"


async def _write_pairs(journal: Journal) -> None:
    version = 0
    while True:
        both = [Append(f"pairs/{number}", version, (b"{}",)) for number in (1, 2)]
        await journal.append("busy", both)
        version += 1
        for _ in range(20):
            await asyncio.sleep(0)


async def test_a_backup_is_not_restored_into_something(tmp_path: Path) -> None:
    async with house(tmp_path / "old", MemoryJournal()) as built:
        await lived(built)
        place = await backed_up(built, tmp_path / "backup")
        with open_source(place) as source:
            reading = Reading(source)
            with pytest.raises(NotEmpty, match="knows"):
                await restore(built.journal, LocalBlobs(tmp_path / "new"), reading, KEPT)
            with pytest.raises(NotEmpty, match="blobs"):
                await restore(MemoryJournal(), built.blobs, reading, KEPT)


@pytest.mark.parametrize(
    "damage", ["journal", "blob", "blob gone", "note", "cut short", "later version", "other blobs"]
)
async def test_a_damaged_backup_is_not_restored(tmp_path: Path, damage: str) -> None:
    async with house(tmp_path / "old", MemoryJournal()) as built:
        await lived(built)
        place = await backed_up(built, tmp_path / "backup")
        live = (await ledger.load_task(built.journal, TASK)).task
        assert live is not None
    name = live.checkpoint.digest.hex()
    blob, manifest = place / "blobs" / name[:2] / name, place / MANIFEST
    match damage:
        case "journal":
            (place / JOURNAL).write_bytes((place / JOURNAL).read_bytes().replace(b"AAAA", b"AAAB", 1) + b" ")
        case "blob":
            blob.write_bytes(b"other bytes")
        case "blob gone":
            blob.unlink()
        case "note":
            (place / "notes" / "other").write_bytes(b"another")
        case "cut short":
            manifest.unlink()
        case "later version":
            manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))
        case _:
            told = json.loads(manifest.read_text())
            del told["blobs"][name]
            manifest.write_text(json.dumps(told))
    with pytest.raises(BackupBroken), open_source(place) as source:
        await restore(MemoryJournal(), LocalBlobs(tmp_path / "new"), Reading(source), KEPT)


@pytest.mark.parametrize("name", ["backup.tar", "backup.tar.gz"])
async def test_a_tar_file_that_was_cut_short_or_changed_is_not_restored(tmp_path: Path, name: str) -> None:
    async with house(tmp_path / "old", MemoryJournal()) as built:
        await lived(built)
        place = await backed_up(built, tmp_path / name)
    whole = place.read_bytes()
    middle = len(whole) // 2
    for number, damaged in enumerate((whole[:middle], whole[:middle] + bytes(64) + whole[middle + 64 :])):
        place.write_bytes(damaged)
        with pytest.raises(BackupBroken), open_source(place) as source:
            await restore(MemoryJournal(), LocalBlobs(tmp_path / f"new{number}"), Reading(source), KEPT)


async def test_what_is_no_backup_is_told(tmp_path: Path) -> None:
    with pytest.raises(BackupBroken), open_source(tmp_path / "nothing"):
        pass
    (tmp_path / "file").write_bytes(b"no tar")
    with pytest.raises(BackupBroken), open_source(tmp_path / "file"):
        pass


async def test_a_backup_that_lacks_a_blob_is_not_made(tmp_path: Path) -> None:
    async with house(tmp_path / "old", MemoryJournal()) as built:
        await lived(built)
        built.blobs.delete(digest_of(b"initial checkpoint"))
        with pytest.raises(BackupBroken, match="not in it"):
            await backed_up(built, tmp_path / "backup")
        assert not (tmp_path / "backup" / MANIFEST).exists()


async def test_keys_open_with_their_passphrase_alone(tmp_path: Path) -> None:
    settings = CoordinatorSettings(home=tmp_path, round_token_key="ab" * 32, seal_key="cd" * 32)
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    right.write_text("correct horse\n")
    wrong.write_text("battery staple\n")
    with open_target(tmp_path / "backup") as target:
        writing = Writing(target, MADE)
        writing.add_journal([])
        writing.add_keys(_sealed_keys(settings, right))
        assert writing.finish().has_keys
    kept = b"".join(path.read_bytes() for path in (tmp_path / "backup").iterdir())
    assert b"abab" not in kept
    with open_source(tmp_path / "backup") as source:
        reading = Reading(source)
        assert _opened_keys(reading, right)["FEDRECON_SEAL_KEY"] == "cd" * 32
        with pytest.raises(UserMistake, match="does not open"):
            _opened_keys(reading, wrong)
