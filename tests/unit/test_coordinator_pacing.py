"""When devices come back, and what is known of how many there are."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from fedrecon.coordinator import pacing
from fedrecon.coordinator.pacing import Rhythm, Window, pace
from fedrecon.coordinator.population import DAY_MILLISECONDS, KEPT, Census, Sketch, estimate, hash_of

RHYTHM = Rhythm(until_selection=5_000, selection=1_000, reporting=9_000, separation=0, cohort_size=10)
HOUR = 60 * 60 * 1000


def test_a_small_population_is_gathered_in_the_next_selection() -> None:
    assert pace(RHYTHM, 0).rejected == pace(RHYTHM, 20).rejected == Window(5_000, 6_000)


def test_a_large_population_is_spread_so_that_each_selection_has_as_many_calls_as_it_can_use() -> None:
    for devices in (1_000, 10_000):
        window = pace(RHYTHM, devices).rejected
        mean = (window.minimum + window.maximum) / 2
        assert devices * 10_000 / mean == pytest.approx(pacing.CALLS_FOR_EACH_PLACE * 10, rel=0.1)
        assert window.minimum == RHYTHM.until_selection


def test_nobody_is_sent_away_for_more_than_two_days() -> None:
    window = pace(RHYTHM, 10**9).rejected
    assert window.maximum == 2 * pacing.LONGEST_WAIT_MILLISECONDS


def test_waits_are_longer_in_busy_hours_and_shorter_in_quiet_ones() -> None:
    usual, busy, quiet = (pace(RHYTHM, 10_000, busyness).rejected for busyness in (1.0, 1.5, 0.75))
    assert busy.maximum == 1.5 * usual.maximum
    assert quiet.maximum == 0.75 * usual.maximum
    assert pace(RHYTHM, 10_000, 100.0) == pace(RHYTHM, 10_000, pacing.BUSYNESS[1])


def test_a_device_does_not_return_before_it_may_take_part_again() -> None:
    windows = pace(replace(RHYTHM, until_selection=0, reporting=0, separation=60_000, cohort_size=1), 1)
    assert windows.accepted.minimum == 60_000
    assert windows.rejected.minimum == pacing.LEAST_WAIT_MILLISECONDS


@pytest.mark.parametrize("devices", [10, KEPT, 50_000])
def test_the_census_counts_devices_however_often_they_call(devices: int) -> None:
    generator = random.Random(devices)
    hashes = [generator.getrandbits(64) for _ in range(devices)]
    census = Census()
    for position, number in enumerate(hashes + hashes[: devices // 2]):
        census.note(number, DAY_MILLISECONDS + position)
    assert census.devices == (devices if devices < KEPT else pytest.approx(devices, rel=0.1))


def test_devices_that_have_not_called_for_two_days_are_not_counted() -> None:
    census = Census()
    for number in range(100):
        census.note(number, 0)
    census.note(1_000, DAY_MILLISECONDS)
    assert census.devices == 101
    census.note(1_001, 2 * DAY_MILLISECONDS)
    assert census.devices == 2
    census.note(1_002, 9 * DAY_MILLISECONDS)
    assert census.devices == 1


def test_the_hour_of_the_day_counts_once_every_hour_was_seen() -> None:
    census = Census()
    for hour in range(23):
        for _ in range(30 if hour < 12 else 10):
            census.note(1, hour * HOUR)
    assert census.busyness(0) == 1.0
    for _ in range(10):
        census.note(1, 23 * HOUR)
    assert census.busyness(0) == pytest.approx(1.5)
    assert census.busyness(20 * HOUR) == pytest.approx(0.5)


def test_a_sketch_is_the_same_whatever_the_order() -> None:
    numbers = [random.Random(3).getrandbits(64) for _ in range(1)] + [n * 7919 % 10_007 for n in range(3_000)]
    one, other = Sketch(), Sketch()
    for number in numbers:
        one.put(number)
    for number in reversed(numbers * 2):
        other.put(number)
    assert one == other
    assert one.smallest == sorted(set(numbers))[:KEPT]
    assert estimate([one, other]) == estimate([one])


def test_a_device_s_hash_needs_the_deployment_s_key() -> None:
    assert hash_of(b"k" * 32, b"d" * 32) != hash_of(b"l" * 32, b"d" * 32)
    assert 0 <= hash_of(b"k" * 32, b"d" * 32) < 1 << 64
