"""How often somebody may call: a burst at once, a rate in the long run, and bounded memory."""

from __future__ import annotations

from fedrecon.ops import limits
from fedrecon.ops.limits import Limits


class Time:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def let_in(counted: Limits, caller: str, calls: int) -> int:
    return sum(counted.note(caller) == 0 for _ in range(calls))


def test_a_burst_is_let_in_and_then_the_rate() -> None:
    now = Time()
    counted = Limits(per_second=2, burst=10, now=now)
    assert let_in(counted, "a", 5_000) == 10
    now.seconds += 3
    assert let_in(counted, "a", 5_000) == 6
    now.seconds += 1_000
    assert let_in(counted, "a", 5_000) == 10, "quiet callers have their burst again, and no more"


def test_who_is_refused_is_told_when_to_come_back() -> None:
    now = Time()
    counted = Limits(per_second=4, burst=1, now=now)
    assert counted.note("a") == 0
    wait = counted.note("a")
    assert 0 < wait <= 0.25
    now.seconds += wait
    assert counted.note("a") == 0


def test_callers_do_not_use_up_what_others_may() -> None:
    counted = Limits(per_second=1, burst=3, now=Time())
    assert [let_in(counted, caller, 100) for caller in "abc"] == [3, 3, 3]


def test_a_rate_of_zero_limits_nobody() -> None:
    assert let_in(Limits(per_second=0, burst=1, now=Time()), "a", 1_000) == 1_000


def test_memory_is_bounded() -> None:
    now = Time()
    counted = Limits(per_second=1, burst=2, now=now)
    for caller in range(3 * limits.MOST_CALLERS):
        counted.note(caller)
        now.seconds += 1e-6  # all are busy for a second
    assert len(counted._due) <= limits.MOST_CALLERS
    newest = 3 * limits.MOST_CALLERS - 1
    assert counted.note(newest) == 0
    assert counted.note(newest) > 0, "who called last is remembered"
