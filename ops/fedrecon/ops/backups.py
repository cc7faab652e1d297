"""Backups of a deployment: its journal and its blobs, in a folder or a tar file.

| file | what |
|---|---|
| `notes/NAME` | watermarks, read before the journal, so that none is ahead of it |
| `journal.jsonl` | each stream on a line: task, name, snapshot, events; and keys that are noted until an instant |
| `blobs/ab/abcd...` | all blobs, by SHA-256: those that the journal names were there before it named them |
| `keys.sealed` | the keys, if they were asked for, sealed with a passphrase |
| `backup.json` | what must be there, with sizes and digests; written last, so that a backup without it is not whole |

Rules: whoever reads a backup verifies every byte by its digest. Sealed sums of rounds under way are not in it: such a
round is abandoned after a restore, and tried again, as if its aggregator had lost its disk.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from fedrecon.ops.blobs import CHUNK_BYTES, BlobMissing, BlobStore
from fedrecon.ops.durable_files import write_durably
from fedrecon.ops.journal import History, Recorded
from fedrecon.ops.journal.copying import TaskCopy

FORMAT = 1
MANIFEST = "backup.json"
JOURNAL = "journal.jsonl"
KEYS = "keys.sealed"
_NOTES = "notes/"
_TAR_ENDINGS = (".tar", ".tar.gz", ".tgz")


class BackupBroken(Exception):  # noqa: N818 - named for what it says
    """A backup is not whole, is damaged, or is of a later version."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What a backup holds.

    Attributes:
        made: When, Unix milliseconds.
        version: Of fedrecon that made it.
        tasks: Names of its tasks.
        files: Size and SHA-256 (hexadecimal) of every file but the manifest, by name.
        blobs: Sizes of its blobs by digest, hexadecimal.
    """

    made: int
    version: str
    tasks: tuple[str, ...]
    files: Mapping[str, tuple[int, str]]
    blobs: Mapping[str, int]

    @property
    def has_keys(self) -> bool:
        """Whether the keys are in it, sealed."""
        return KEYS in self.files

    @property
    def bytes(self) -> int:
        """Size of all of it."""
        return sum(size for size, _ in self.files.values()) + sum(self.blobs.values())


class Target(Protocol):
    """Where a backup is written."""

    def add(self, name: str, size: int, chunks: Iterable[bytes]) -> None:
        """Keep a file."""
        ...


class Source(Protocol):
    """Where a backup is read."""

    def read(self, name: str) -> Iterator[bytes]:
        """Yield a file in chunks.

        Raises:
            BackupBroken: It is not there.
        """
        ...


class FolderOfBackup:
    """A backup as a folder.

    Args:
        folder: Where.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, name: str, size: int, chunks: Iterable[bytes]) -> None:
        """Keep a file. See `Target.add`."""
        del size
        write_durably(self._folder / name, chunks)

    def read(self, name: str) -> Iterator[bytes]:
        """Yield a file in chunks. See `Source.read`."""
        try:
            with (self._folder / name).open("rb") as file:
                yield from iter(lambda: file.read(CHUNK_BYTES), b"")
        except OSError as error:
            raise BackupBroken(f"{name} is not in it") from error


class TarOfBackup:
    """A backup as a tar file, compressed or not.

    Args:
        tar: The open file.
    """

    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar

    def add(self, name: str, size: int, chunks: Iterable[bytes]) -> None:
        """Keep a file. See `Target.add`."""
        member = tarfile.TarInfo(name)
        member.size, member.mode = size, 0o600
        self._tar.addfile(member, _Reading(iter(chunks)))

    def read(self, name: str) -> Iterator[bytes]:
        """Yield a file in chunks. See `Source.read`."""
        try:
            file = self._tar.extractfile(name)
            if file is None:
                raise BackupBroken(f"{name} is no file")
            yield from iter(lambda: file.read(CHUNK_BYTES), b"")
        except KeyError as error:
            raise BackupBroken(f"{name} is not in it") from error
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            raise BackupBroken(f"it cannot be read: {error}") from error


class _Reading(io.RawIOBase):
    """Chunks as a file that is read from its start to its end."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._left = b""

    def read(self, size: int = -1) -> bytes:
        while len(self._left) < size and (chunk := next(self._chunks, b"")):
            self._left += chunk
        given, self._left = self._left[:size], self._left[size:]
        return given


@contextlib.contextmanager
def open_target(place: Path) -> Iterator[Target]:
    """Open a place for a new backup: a tar file if its name ends like one, else a folder.

    Raises:
        FileExistsError: Something is there.
    """
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise FileExistsError(place)
    if not place.name.endswith(_TAR_ENDINGS):
        place.mkdir(parents=True, exist_ok=True)
        yield FolderOfBackup(place)
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_name(f".{place.name}.partial")
    try:
        with tarfile.open(partial, "w" if place.name.endswith(".tar") else "w:gz") as tar:
            yield TarOfBackup(tar)
        partial.replace(place)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def open_source(place: Path) -> Iterator[Source]:
    """Open a backup.

    Raises:
        BackupBroken: It is none.
    """
    if place.is_dir():
        yield FolderOfBackup(place)
        return
    try:
        tar = tarfile.open(place)  # noqa: SIM115 - closed below
    except (OSError, tarfile.TarError) as error:
        raise BackupBroken(f"{place} is neither a folder nor a tar file: {error}") from error
    with tar:
        yield TarOfBackup(tar)


class Writing:
    """A backup while it is written: notes, then the journal, then blobs, then the manifest.

    Args:
        target: Where.
        made: Now, Unix milliseconds.
    """

    def __init__(self, target: Target, made: int) -> None:
        self._target = target
        self._made = made
        self._tasks: tuple[str, ...] = ()
        self._files: dict[str, tuple[int, str]] = {}
        self._blobs: dict[str, int] = {}

    def add_notes(self, notes: Mapping[str, bytes]) -> None:
        """Keep the notes beside the blobs, as they were before the journal was read."""
        for name, content in notes.items():
            self._add(_NOTES + name, content)

    def add_journal(self, tasks: Sequence[TaskCopy]) -> None:
        """Keep the journal."""
        self._tasks = tuple(copy.task for copy in tasks)
        self._add(JOURNAL, b"".join(line for copy in tasks for line in _lines_of(copy)))

    def add_blobs(self, blobs: BlobStore) -> None:
        """Keep all blobs; one that is collected meanwhile was needed by nobody."""
        for stored in list(blobs.stored()):
            name = stored.digest.hex()
            with contextlib.suppress(BlobMissing):
                self._target.add(_blob_name(name), stored.size, blobs.chunks(stored.digest))
                self._blobs[name] = stored.size

    @property
    def blobs(self) -> frozenset[bytes]:
        """Digests of the blobs that were kept."""
        return frozenset(map(bytes.fromhex, self._blobs))

    def add_keys(self, sealed: bytes) -> None:
        """Keep the keys, sealed."""
        self._add(KEYS, sealed)

    def finish(self) -> Contents:
        """Write down what must be there; the backup is whole then."""
        contents = Contents(self._made, version("fedrecon"), self._tasks, self._files, self._blobs)
        manifest = {
            "format": FORMAT,
            "made": contents.made,
            "version": contents.version,
            "tasks": contents.tasks,
            "files": {name: {"size": size, "sha256": digest} for name, (size, digest) in self._files.items()},
            "blobs": self._blobs,
        }
        content = json.dumps(manifest, indent=1, sort_keys=True).encode()
        self._target.add(MANIFEST, len(content), [content])
        return contents

    def _add(self, name: str, content: bytes) -> None:
        self._files[name] = len(content), hashlib.sha256(content).hexdigest()
        self._target.add(name, len(content), [content])


class Reading:
    """A backup that is read, each byte verified.

    Args:
        source: Where it lies.

    Raises:
        BackupBroken: It is not whole, or of a later version.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        try:
            manifest: dict[str, Any] = json.loads(b"".join(source.read(MANIFEST)))
            if manifest["format"] != FORMAT:
                raise BackupBroken(f"it has format {manifest['format']}; this version reads format {FORMAT}")
            files = {name: (each["size"], each["sha256"]) for name, each in manifest["files"].items()}
            self.contents = Contents(
                manifest["made"], manifest["version"], tuple(manifest["tasks"]), files, manifest["blobs"]
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BackupBroken(f"{MANIFEST} is damaged: {error}") from error

    def notes(self) -> dict[str, bytes]:
        """Return the notes by name."""
        return {name.removeprefix(_NOTES): self._file(name) for name in self.contents.files if name.startswith(_NOTES)}

    def journal(self) -> list[TaskCopy]:
        """Return the journal."""
        return _tasks_of(self._file(JOURNAL).splitlines())

    def keys(self) -> bytes:
        """Return the sealed keys."""
        return self._file(KEYS)

    def put_blobs(self, blobs: BlobStore) -> None:
        """Put all blobs into a store.

        Raises:
            BackupBroken: One is damaged or missing.
        """
        for name in self.contents.blobs:
            if blobs.put(self._source.read(_blob_name(name))).hex() != name:
                raise BackupBroken(f"blob {name} is damaged: its bytes have another digest")

    def verify_blobs(self) -> None:
        """Read all blobs and compare them with their names. Raises as `put_blobs`."""
        for name in self.contents.blobs:
            digest = hashlib.sha256()
            for chunk in self._source.read(_blob_name(name)):
                digest.update(chunk)
            if digest.hexdigest() != name:
                raise BackupBroken(f"blob {name} is damaged: its bytes have another digest")

    def _file(self, name: str) -> bytes:
        content = b"".join(self._source.read(name))
        if hashlib.sha256(content).hexdigest() != self.contents.files[name][1]:
            raise BackupBroken(f"{name} is damaged: its bytes have another digest")
        return content


def _blob_name(name: str) -> str:
    return f"blobs/{name[:2]}/{name}"


def _lines_of(copy: TaskCopy) -> Iterator[bytes]:
    yield _line({"task": copy.task, "remembered": copy.remembered})
    for name, history in copy.streams.items():
        stream = {
            "task": copy.task,
            "stream": name,
            "snapshot": None if history.snapshot is None else base64.b64encode(history.snapshot).decode(),
            "snapshot_version": history.snapshot_version,
            "events": [base64.b64encode(each.event).decode() for each in history.events],
        }
        yield _line(stream)


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def _tasks_of(lines: Iterable[bytes]) -> list[TaskCopy]:
    streams: dict[str, dict[str, History]] = {}
    remembered: dict[str, tuple[tuple[str, int], ...]] = {}
    for line in lines:
        told = json.loads(line)
        if "stream" not in told:
            remembered[told["task"]] = tuple((key, until) for key, until in told["remembered"])
            streams[told["task"]] = {}
            continue
        first = told["snapshot_version"]
        events = tuple(
            Recorded(first + number, base64.b64decode(event)) for number, event in enumerate(told["events"], start=1)
        )
        snapshot = None if told["snapshot"] is None else base64.b64decode(told["snapshot"])
        streams[told["task"]][told["stream"]] = History(first + len(events), snapshot, first, events)
    return [TaskCopy(task, streams[task], remembered[task]) for task in streams]
