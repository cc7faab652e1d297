"""When a device may work for others: idle, charging, on an unmetered network, with charge to spare, at the right time.

Each condition is a callable of the app's own where its platform knows better; these are what can be told without the
platform. On Linux they read `/sys/class/power_supply` and the load; elsewhere, and where a machine has no battery, they
hold. Nothing that is portable knows whether a network is metered: apps on phones give that one.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path

POWER_SUPPLIES = Path("/sys/class/power_supply")
FEWEST_PERCENT = 40
BUSY_SHARE = 0.75
"""Part of the processors that others may use while the device counts as idle; its own work takes one of them."""


def is_idle() -> bool:
    """Returns whether the processors were mostly free for the last minute."""
    if not hasattr(os, "getloadavg"):
        return True
    return os.getloadavg()[0] <= BUSY_SHARE * max(os.cpu_count() or 1, 2)


def is_charging() -> bool:
    """Returns whether there is no battery, or one that is not being emptied."""
    return "discharging" not in _battery_words("status")


def has_charge() -> bool:
    """Returns whether there is no battery, or one that is well filled."""
    return all(int(percent) >= FEWEST_PERCENT for percent in _battery_words("capacity") if percent.isdecimal())


def always() -> bool:
    """Returns that it is so."""
    return True


def between(first_hour: int, last_hour: int, clock: Callable[[], datetime] = datetime.now) -> Callable[[], bool]:
    """Returns a condition that holds in some hours of the day, by the device's own time.

    Args:
        first_hour: the hour in which it begins to hold, 0 to 23.
        last_hour: the hour in which it holds no more; may be the smaller one: 22 to 6 is the night.
        clock: tells the time.

    Example:
        >>> between(22, 6, lambda: datetime(2026, 3, 1, 23, 30))()
        True
    """

    def is_time() -> bool:
        hour = clock().hour
        if first_hour <= last_hour:
            return first_hour <= hour < last_hour
        return hour >= first_hour or hour < last_hour

    return is_time


@dataclass(frozen=True, slots=True)
class Conditions:
    """What must hold before a participation begins, and while it runs.

    Attributes:
        idle: whether nobody uses the device.
        charging: whether it is plugged in.
        unmetered: whether its network costs nothing.
        battery: whether it has charge to spare.
        time: whether it is the time for it, for example `Conditions.between(22, 6)`.
    """

    idle: Callable[[], bool] = is_idle
    charging: Callable[[], bool] = is_charging
    unmetered: Callable[[], bool] = always
    battery: Callable[[], bool] = has_charge
    time: Callable[[], bool] = always

    between = staticmethod(between)

    def unmet(self) -> tuple[str, ...]:
        """Returns the names of those that do not hold."""
        return tuple(each.name for each in fields(self) if not getattr(self, each.name)())


def _battery_words(name: str) -> list[str]:
    """Returns what every battery says of itself in a file of this name."""
    words = []
    for supply in sorted(POWER_SUPPLIES.glob("BAT*")):
        try:
            words.append((supply / name).read_text().strip().lower())
        except OSError:
            continue
    return words
