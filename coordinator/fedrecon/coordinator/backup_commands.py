"""`fedrecon backup` and `fedrecon restore`: all of a deployment in a folder or a tar file, and back.

They speak to the journal's server and the blobs themselves: of the stack here, running or not, or as the settings name
them. What lies in a backup: `fedrecon.ops.backups`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from fedrecon.coordinator.backing_up import NotEmpty, Proved, back_up
from fedrecon.coordinator.backing_up import restore as put_back
from fedrecon.coordinator.settings import CoordinatorSettings
from fedrecon.ops.backups import KEYS, BackupBroken, Contents, Reading, Writing, open_source, open_target
from fedrecon.ops.blobs import BlobStore, open_blobs
from fedrecon.ops.clock import SystemClock
from fedrecon.ops.embedded_valkey import EmbeddedValkey
from fedrecon.ops.journal.copying import NeverStill
from fedrecon.ops.journal.redis import RedisJournal
from fedrecon.ops.local_keys import key_variables, put_keys, with_keys
from fedrecon.ops.mistakes import UserMistake
from fedrecon.ops.printing import print_json
from fedrecon.ops.sealing import SealBroken, open_sealed, seal
from fedrecon.ops.settings import load_settings
from fedrecon.ops.stack import read_stack_file
from fedrecon.ops.stack_refusals import lock_home, make_home
from fedrecon.ops.storage import connect_journal

_SALT_BYTES = 16
_SCRYPT = {"n": 1 << 15, "r": 8, "p": 1}
"""RFC 7914, section 2: 32 MiB for each guess."""

_ASSOCIATED = b"fedrecon keys of a backup 1"

AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object as the last line")]
Passphrase = Annotated[
    Path | None, typer.Option("--keys-passphrase", help="file with a passphrase: the keys are in it, sealed with that")
]


def backup(
    target: Annotated[Path, typer.Argument(help="a new folder, or a file that ends with .tar or .tar.gz")],
    keys_passphrase: Passphrase = None,
    as_json: AsJson = False,
) -> None:
    """Copy the journal and the blobs of a deployment while it runs, verified by digests and by replay."""
    settings = load_settings(CoordinatorSettings)

    async def work() -> tuple[Contents, list[Proved]]:
        async with _storage(settings) as (journal, blobs):
            with open_target(target) as place:
                writing = Writing(place, SystemClock().now_milliseconds())
                proved = await back_up(journal, blobs, writing, settings.kept_checkpoints)
                if keys_passphrase is not None:
                    writing.add_keys(_sealed_keys(settings, keys_passphrase))
                return writing.finish(), proved

    with _explained(target):
        contents, proved = asyncio.run(work())
    told = _told(contents, proved)
    if as_json:
        print_json({"backup": str(target), **told})
        return
    console = Console(soft_wrap=True, highlight=False)
    _show(console, f"[bold]{target}[/] holds", contents, proved)
    if contents.has_keys:
        console.print("The keys are in it, sealed: keep the passphrase elsewhere.")
    else:
        console.print(
            "[yellow]The keys are not in it[/]: keep keys.json of the home (or what the settings name) elsewhere. With "
            "other keys rounds go on, but devices enrol again, count as new, and others are held out."
        )


def restore(
    source: Annotated[Path, typer.Argument(help="what `fedrecon backup` made")],
    keys_passphrase: Passphrase = None,
    as_json: AsJson = False,
) -> None:
    """Put a backup into a deployment that is empty and stopped, and prove it by replay."""
    settings = load_settings(CoordinatorSettings)

    async def work() -> tuple[Contents, list[Proved]]:
        with open_source(source) as place:
            reading = Reading(place)
            keys = None if keys_passphrase is None else _opened_keys(reading, keys_passphrase)
            async with _storage(settings, stopped=True) as (journal, blobs):
                proved = await put_back(journal, blobs, reading, settings.kept_checkpoints)
            if keys is not None:
                put_keys(settings.home.absolute(), keys)
            return reading.contents, proved

    with _explained(source):
        contents, proved = asyncio.run(work())
    if as_json:
        print_json({"restored": str(source), **_told(contents, proved)})
        return
    console = Console(soft_wrap=True, highlight=False)
    _show(console, "Restored, read back and replayed:", contents, proved)
    console.print("Next: [bold]fedrecon up[/]. A round that was under way is tried again.")


def _told(contents: Contents, proved: list[Proved]) -> dict[str, Any]:
    return {
        "made_unix_milliseconds": contents.made,
        "bytes": contents.bytes,
        "blobs": len(contents.blobs),
        "has_keys": contents.has_keys,
        "tasks": [
            {"name": each.name, "committed": each.committed, "rounds": each.rounds, "checkpoint": each.checkpoint.hex()}
            for each in proved
        ],
    }


def _show(console: Console, before: str, contents: Contents, proved: list[Proved]) -> None:
    console.print(f"{before} {len(proved)} tasks, {len(contents.blobs)} blobs, {contents.bytes:,} bytes")
    for each in proved:
        live = each.checkpoint.hex()[:16]
        console.print(f"  {each.name}: {each.committed} rounds committed, live checkpoint {live}", markup=False)


@contextlib.asynccontextmanager
async def _storage(
    settings: CoordinatorSettings, *, stopped: bool = False
) -> AsyncIterator[tuple[RedisJournal, BlobStore]]:
    """Open journal and blobs: as the settings name them, of the stack that runs here, or of its home.

    Args:
        settings: Name them.
        stopped: Whether no stack may run on the home.

    Raises:
        UserMistake: One runs all the same, or there is none.
    """
    home = settings.home.absolute()
    async with contextlib.AsyncExitStack() as resources:
        running = read_stack_file(home)
        if stopped:
            make_home(home)
            resources.callback(os.close, lock_home(home))
        url = settings.redis_url or ("" if running is None else running["redis"])
        if not url:
            if not stopped and not (home / "valkey").exists():
                raise UserMistake(
                    f"There is no stack on {home}.",
                    "Name its home with FEDRECON_HOME, or a Redis with FEDRECON_REDIS_URL.",
                )
            server = EmbeddedValkey(home / "valkey")
            await asyncio.to_thread(server.start)
            resources.push_async_callback(asyncio.to_thread, server.stop)
            url = server.url
        named = settings.model_copy(update={"redis_url": url})
        journal = await connect_journal(named)
        resources.push_async_callback(journal.close)
        yield journal, await asyncio.to_thread(_open_blobs, settings)


def _open_blobs(settings: CoordinatorSettings) -> BlobStore:
    try:
        return open_blobs(settings.blobs_place)
    except (ValueError, ImportError) as error:
        raise UserMistake(f"FEDRECON_BLOBS_URL: {error}.", "Name a folder or an object store.") from error


@contextlib.contextmanager
def _explained(place: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError as error:
        raise UserMistake(f"{place} is there already.", "Name a new folder or file.") from error
    except NotEmpty as error:
        raise UserMistake(
            f"Not restored: {error}.", "Restore into an empty deployment: another FEDRECON_HOME."
        ) from error
    except BackupBroken as error:
        raise UserMistake(f"{place}: {error}.", "Take another backup; nothing of this one should be used.") from error
    except NeverStill as error:
        raise UserMistake(f"No backup was made: {error}.", "Try again.") from error


def _passphrase_key(file: Path, salt: bytes) -> bytes:
    from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

    try:
        passphrase = file.read_bytes().strip()
    except OSError as error:
        raise UserMistake(f"{file} cannot be read: {error.strerror}.", "Name a file with a passphrase.") from error
    if not passphrase:
        raise UserMistake(f"{file} is empty.", "Write a passphrase into it: `openssl rand -hex 32` makes one.")
    return Scrypt(salt=salt, length=32, **_SCRYPT).derive(passphrase)


def _sealed_keys(settings: CoordinatorSettings, passphrase: Path) -> bytes:
    keys = key_variables(with_keys(settings, settings.home.absolute()))
    salt = os.urandom(_SALT_BYTES)
    return salt + seal(_passphrase_key(passphrase, salt), json.dumps(keys).encode(), _ASSOCIATED)


def _opened_keys(reading: Reading, passphrase: Path) -> dict[str, str]:
    if not reading.contents.has_keys:
        raise UserMistake(
            f"There is no {KEYS} in it.", "Restore without --keys-passphrase, and bring keys.json yourself."
        )
    content = reading.keys()
    salt, sealed = content[:_SALT_BYTES], content[_SALT_BYTES:]
    try:
        keys: dict[str, str] = json.loads(open_sealed(_passphrase_key(passphrase, salt), sealed, _ASSOCIATED))
    except SealBroken as error:
        raise UserMistake(
            "The passphrase does not open the keys.", "Give the one that they were sealed with."
        ) from error
    return keys
