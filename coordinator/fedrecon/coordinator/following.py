"""What a coordinator does for a task that another one leads: it keeps devices waiting and answers them.

Rules: nothing is written here. Who waits is told to the one that leads, again and again while they wait; who was drawn
is read from the journal, where a device is found by its mark.
"""

from __future__ import annotations

from fedrecon.coordinator.adoption import Adoption
from fedrecon.coordinator.answers import NOT_DRAWN, Answer, Drawn, NoTask, NotDrawn
from fedrecon.coordinator.assignments import mark_of
from fedrecon.coordinator.book import Book
from fedrecon.coordinator.handing_over import LARGEST_HAND_OVER
from fedrecon.coordinator.round_state import Phase, Round
from fedrecon.coordinator.surroundings import Surroundings
from fedrecon.coordinator.tasks import State
from fedrecon.coordinator.waiting import WaitingRoom


class Following:
    """Follows one task.

    Args:
        around: What its runner works with.
        book: The task's journal.
        adoption: What its rounds go by.
        waiting: Devices that wait here.
        replica: Name of this coordinator.

    Attributes:
        window_ends: When the selection window is expected to end, Unix milliseconds.
    """

    def __init__(
        self, around: Surroundings, book: Book, adoption: Adoption, waiting: WaitingRoom[Answer], replica: bytes
    ) -> None:
        self._around = around
        self._book = book
        self._adoption = adoption
        self._waiting = waiting
        self._replica = replica
        self.window_ends = 0

    async def begin(self) -> None:
        """Reads the journal: from now on devices can be answered."""
        await self._book.read()
        await self._adoption.adopt(self._book.task, self._book.attempt)

    async def go_on(self, wait_milliseconds: int) -> None:
        """Takes in what was written, waiting for it, and acts on it.

        Args:
            wait_milliseconds: How long nothing may come; then the one that leads is told again who waits.
        """
        await self._book.follow(wait_milliseconds)
        task, attempt = self._book.task, self._book.attempt
        await self._adoption.adopt(task, attempt)
        if task.state is not State.RUNNING:
            self._waiting.answer_all(NoTask(f"the task is {task.state}"))
        elif attempt is not None and attempt.phase is Phase.REPORTING:
            self._answer(attempt)
        elif attempt is not None and attempt.phase is Phase.SELECTING:
            self.window_ends = max(
                attempt.opened_at + attempt.terms.selection_milliseconds, self._book.now() + wait_milliseconds
            )
            candidates = self._waiting.smallest(min(attempt.terms.cohort_size, LARGEST_HAND_OVER))
            if candidates and task.leader:
                await self._around.peers.hand_over(task.leader, self._book.name, self._replica, candidates)

    def _answer(self, attempt: Round) -> None:
        """Tells everybody who waits whether they were drawn."""
        for candidate in self._waiting.smallest(len(self._waiting)):
            slot = attempt.slot_of_device(mark_of(self._around.key, attempt, candidate.device))
            self._waiting.answer(candidate.device, NotDrawn(NOT_DRAWN) if slot is None else Drawn(attempt, slot))
