"""A disk that loses power: what remains of a folder is what was fsynced, names included.

A file's bytes are kept by fsync of the file, and the names in a folder by fsync of the folder (POSIX promises no more,
and ext4 and XFS keep to it). Whatever else was written is gone: a file that was never fsynced is empty where its name
was kept, and a name that was not kept is not there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


class PowerLost(OSError):  # noqa: N818 - named for what happened
    """The machine is off: nothing becomes durable any more."""


class Disk:
    """Follows every fsync of this process, and knows what would be left.

    Args:
        root: The folder that is looked at; what it holds now is durable.
        patch: Replaces `os.fsync`.

    Attributes:
        synced: How often something was made durable.
        lose_power_at: After so many the power is lost; None: never.
    """

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.synced = 0
        self.lose_power_at: int | None = None
        self._root = root
        self._files: dict[int, bytes] = {}
        self._folders: dict[int, dict[str, int]] = {}
        self._held: list[int] = []  # open files: an inode that is held is not used again for another file
        self._fsync: Callable[[int], None] = os.fsync
        for folder, _, names in os.walk(root):
            self._keep_folder(Path(folder))
            for name in names:
                self._keep_file(Path(folder) / name)
        patch.setattr(os, "fsync", self._sync)

    @property
    def is_off(self) -> bool:
        return self.lose_power_at is not None and self.synced >= self.lose_power_at

    def remains(self, target: Path) -> Path:
        """Writes what power loss would leave to a new folder, and returns it."""
        self._rebuild(self._root.stat().st_ino, target)
        return target

    def close(self) -> None:
        for descriptor in self._held:
            os.close(descriptor)

    def _sync(self, descriptor: int) -> None:
        if self.is_off:
            raise PowerLost("the power is lost")
        self._fsync(descriptor)
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.is_dir():
            self._keep_folder(path)
        else:
            self._keep_file(path)
        self.synced += 1

    def _keep_file(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        self._held.append(descriptor)
        self._files[os.fstat(descriptor).st_ino] = path.read_bytes()

    def _keep_folder(self, path: Path) -> None:
        with os.scandir(path) as entries:
            names = {}
            for entry in entries:
                descriptor = os.open(entry.path, os.O_RDONLY)
                self._held.append(descriptor)
                names[entry.name] = os.fstat(descriptor).st_ino
                if entry.is_dir():
                    self._folders.setdefault(names[entry.name], {})
        self._folders[path.stat().st_ino] = names

    def _rebuild(self, folder: int, target: Path) -> None:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        for name, inode in self._folders.get(folder, {}).items():
            if inode in self._folders:
                self._rebuild(inode, target / name)
            else:
                (target / name).write_bytes(self._files.get(inode, b""))
