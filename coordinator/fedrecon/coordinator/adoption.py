"""What a task is asked for, as its rounds go by it: the specification in force, and what its plan gives.

Rules: an attempt goes by the specification that it opened with until it is over, whatever is asked for meanwhile.
"""

from __future__ import annotations

import asyncio

from fedrecon.coordinator.plans import load_plan
from fedrecon.coordinator.round_state import Round
from fedrecon.coordinator.specs import Prepared
from fedrecon.coordinator.tasks import Task
from fedrecon.ops.blobs import BlobStore
from fedrecon.v1.task_pb2 import TaskSpec


class Adoption:
    """The specification that one task goes by.

    Args:
        blobs: Where plans lie.

    Attributes:
        encoded: The specification for the next attempt, serialised; empty before the first was adopted.
        spec: The same.
    """

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._prepared: dict[bytes, Prepared] = {}
        self.encoded = b""
        self.spec = TaskSpec()

    async def adopt(self, task: Task, attempt: Round | None) -> None:
        """Goes by what a task is asked for now.

        Args:
            task: As it stands.
            attempt: Its last attempt, of the round that runs or comes next.

        Raises:
            InvalidSpec: A plan cannot be used any more.
        """
        needed = {task.spec} if attempt is None else {task.spec, attempt.opened.spec}
        for encoded in needed - self._prepared.keys():
            self._prepared[encoded] = await asyncio.to_thread(load_plan, TaskSpec.FromString(encoded), self._blobs)
        self._prepared = {encoded: self._prepared[encoded] for encoded in needed}
        if task.spec != self.encoded:
            self.encoded, self.spec = task.spec, TaskSpec.FromString(task.spec)

    def prepared_for(self, attempt: Round | None = None) -> Prepared:
        """Returns what the plan gives an attempt.

        Args:
            attempt: An attempt of the round that runs, or comes next; None: one that has not opened yet.
        """
        return self._prepared[self.encoded if attempt is None else attempt.opened.spec]
