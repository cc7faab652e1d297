"""What is remembered of a task outside of its journal, so that a journal put back to an older state is found.

A failover to a replica that lags behind, or the restore of a backup, takes entries that were acknowledged. A process
that runs notices, since it knew more; one that starts cannot know. So after every entry of a task its version, and what
was committed last, are noted beside the blobs: a journal that knows less than the note has lost something.

Rules: the note is written after the entry, so it may lag behind by the last one, and is never ahead of what was kept.
A loss pauses the task, and is told once. Whoever resumes it accepts the loss: only then is the note overwritten.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedrecon.coordinator.round_events import Blob
from fedrecon.coordinator.tasks import HistoryLost, State, Task
from fedrecon.ops.blob_contract import ReadBlobs
from fedrecon.ops.blobs import BlobStore
from fedrecon.ops.journal.codec import Codec, UnreadableEvent
from fedrecon.ops.logs import logger_of

_SUFFIX = ".watermark"
_SHOWN_DIGITS = 12

_log = logger_of(__name__)


@dataclass(frozen=True, slots=True)
class Watermark:
    """How far a task had come.

    Attributes:
        version: Version of its stream.
        committed: Rounds committed.
        checkpoint: The live checkpoint.
        optimizer_state: State of the server optimizer that belongs to it.
    """

    version: int
    committed: int
    checkpoint: Blob
    optimizer_state: Blob | None

    @property
    def name(self) -> str:
        """What tells it from others."""
        return f"{self.version}/{self.committed}/{self.checkpoint.digest.hex()}"


_CODEC: Codec[Watermark] = Codec(Watermark)


def read_watermark(blobs: ReadBlobs, task: str) -> Watermark | None:
    """Returns what was noted of a task; None if nothing was. Blocks.

    Raises:
        UnreadableEvent: The note is damaged.
    """
    content = blobs.read_note(f"{task}{_SUFFIX}")
    return None if content is None else _CODEC.decode(content)


def noted_tasks(blobs: ReadBlobs) -> tuple[str, ...]:
    """Returns the names of all tasks of which something was noted. Blocks."""
    return tuple(name.removesuffix(_SUFFIX) for name in blobs.notes() if name.endswith(_SUFFIX))


def keep_watermark(blobs: BlobStore, name: str, task: Task, version: int) -> None:
    """Notes how far a task has come, unless more is noted already. Blocks.

    Args:
        blobs: Where notes lie.
        name: The task.
        task: As it stands.
        version: Version of its stream.

    Raises:
        OSError: The note cannot be written.
    """
    noted = _readable_watermark(blobs, name)
    if noted is not None:
        is_told = noted.name == task.lost_watermark
        is_behind = version <= noted.version or task.committed < noted.committed
        if (is_told and task.state is State.PAUSED) or (not is_told and is_behind):
            return
    watermark = Watermark(version, task.committed, task.checkpoint, task.optimizer_state)
    blobs.write_note(f"{name}{_SUFFIX}", _CODEC.encode(watermark))


def find_loss(blobs: BlobStore, name: str, task: Task, version: int, *, knew_more: bool) -> HistoryLost | None:
    """Returns what must be recorded because the journal has lost entries of a task; None if nothing. Blocks.

    Args:
        blobs: Where notes lie.
        name: The task.
        task: As the journal tells it.
        version: Version of its stream.
        knew_more: Whether this process itself knew more of it before.
    """
    if task.has_ended:
        return None
    noted = _readable_watermark(blobs, name)
    # Versions alone would not tell: others may have written to the journal since it went back.
    is_behind = (
        noted is not None
        and (version < noted.version or task.committed < noted.committed)
        and noted.name != task.lost_watermark
    )
    if not is_behind and not knew_more:
        return None
    lost = "entries that this process knew are missing"
    if noted is not None and noted.committed > task.committed:
        lost = (
            f"round {noted.committed} was committed (checkpoint {noted.checkpoint.digest.hex()[:_SHOWN_DIGITS]}), "
            f"but the journal knows of {task.committed}"
        )
    elif is_behind and noted is not None:
        lost = f"the task had {noted.version} entries, but the journal knows {version}"
    reason = (
        f"the journal went back to an older state: {lost}. Stop all services and restore a newer copy of the journal, "
        f"or accept the loss with `fedrecon task resume {name}`"
    )
    return HistoryLost(reason, "" if noted is None else noted.name)


def _readable_watermark(blobs: BlobStore, name: str) -> Watermark | None:
    try:
        return read_watermark(blobs, name)
    except UnreadableEvent as error:  # it only guards: rounds go on without it, and the next note mends it
        _log.error("watermark cannot be read", task=name, why=str(error)[:200])
        return None
