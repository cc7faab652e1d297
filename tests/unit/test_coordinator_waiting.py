"""Who waits, and who has to go when too many do."""

from __future__ import annotations

import contextlib
import random
from typing import Any

from fedrecon.coordinator.selection import Candidate
from fedrecon.coordinator.waiting import SPARE, WaitingRoom

CAPACITY = 5


def device(number: int) -> bytes:
    return number.to_bytes(4, "little")


class Twin:
    """The same, by looking through all."""

    def __init__(self) -> None:
        self.waiting: dict[bytes, int] = {}

    def arrive(self, key: bytes, priority: int) -> bytes | None:
        """Returns who has to go."""
        self.waiting.setdefault(key, priority)
        if len(self.waiting) <= SPARE * CAPACITY:
            return None
        last = max(self.waiting, key=lambda each: Candidate(self.waiting[each], each))
        del self.waiting[last]
        return last


async def test_whoever_would_be_drawn_last_has_to_go_whatever_happened_before() -> None:
    generator = random.Random(7)
    for _ in range(30):
        room: WaitingRoom[str] = WaitingRoom("superseded", "full")
        twin = Twin()
        calls: dict[bytes, tuple[contextlib.AbstractContextManager[Any], Any]] = {}
        for _ in range(400):
            key = device(generator.randrange(40))
            match generator.randrange(10):
                case 0 if key in calls:
                    calls.pop(key)[0].__exit__(None, None, None)
                    twin.waiting.pop(key, None)
                case 1 if twin.waiting:
                    drawn = min(twin.waiting, key=lambda each: Candidate(twin.waiting[each], each))
                    assert room.smallest(1)[0].device == drawn
                    room.answer(drawn, "drawn")
                    del twin.waiting[drawn]
                case 2 if generator.random() < 0.1:
                    assert room.answer_all("over") == len(twin.waiting)
                    twin.waiting.clear()
                case _:
                    priority = generator.randrange(30)  # few, so that devices settle ties
                    call = room.place(key, priority, CAPACITY)
                    answer, kept = call.__enter__()
                    gone = twin.arrive(key, priority)
                    assert kept == twin.waiting.get(key, priority)
                    if gone is not None:
                        assert (answer if gone == key else calls[gone][1]).result() == "full"
                    calls[key] = (call, answer)
            assert {each.device for each in room.smallest(100)} == set(twin.waiting)
            assert len(room._largest) <= 64 + 2 * SPARE * CAPACITY


async def test_what_remembers_priorities_stays_as_small_as_the_room() -> None:
    room: WaitingRoom[str] = WaitingRoom("superseded", "full")
    for number in range(10_000):
        with room.place(device(number), number, 1_000):
            assert len(room) == 1
    assert len(room._largest) <= 64
