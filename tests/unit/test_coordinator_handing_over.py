"""Devices that wait at other coordinators: drawn as often as any, forgotten when they are not heard of again."""

from __future__ import annotations

import random

from fedrecon.coordinator.handing_over import REMEMBERED_MILLISECONDS, HandedOver
from fedrecon.coordinator.selection import Candidate, merge


def test_a_hand_over_takes_the_place_of_the_one_before() -> None:
    handed_over = HandedOver()
    handed_over.put(b"one", [Candidate(1, b"a"), Candidate(2, b"b")], 0)
    handed_over.put(b"two", [Candidate(3, b"c")], 0)
    handed_over.put(b"one", [Candidate(2, b"b")], 10)
    assert sorted(handed_over.parts(10)) == [(Candidate(2, b"b"),), (Candidate(3, b"c"),)]
    assert handed_over.count(10) == 2


def test_a_coordinator_that_is_not_heard_of_again_is_forgotten() -> None:
    handed_over = HandedOver()
    handed_over.put(b"one", [Candidate(1, b"a")], 1_000)
    assert handed_over.count(1_000 + REMEMBERED_MILLISECONDS - 1) == 1
    assert handed_over.count(1_000 + REMEMBERED_MILLISECONDS) == 0


def test_a_device_that_was_refused_is_left_out_until_the_next_attempt() -> None:
    handed_over = HandedOver()
    handed_over.put(b"one", [Candidate(1, b"a"), Candidate(2, b"b")], 0)
    handed_over.refuse(b"a")
    assert handed_over.parts(0) == [(Candidate(2, b"b"),)]
    handed_over.begin()
    handed_over.put(b"one", [Candidate(1, b"a")], 0)
    assert handed_over.count(0) == 1


def test_where_a_device_waits_does_not_matter_to_its_chance() -> None:
    """Coordinators hand over only as many as can be drawn: the smallest of each are enough."""
    generator = random.Random(11)
    drawn = dict.fromkeys(range(12), 0)
    for _ in range(3_000):
        priorities = {n: Candidate(generator.getrandbits(64), bytes([n])) for n in drawn}
        here, there = [priorities[n] for n in range(2)], [priorities[n] for n in range(2, 12)]
        handed_over = HandedOver()
        handed_over.put(b"there", merge([there], 3), 0)
        for candidate in merge([merge([here], 3), *handed_over.parts(0)], 3):
            drawn[candidate.device[0]] += 1
    # 750 expected of each, standard deviation 24
    assert all(650 < count < 850 for count in drawn.values()), drawn
