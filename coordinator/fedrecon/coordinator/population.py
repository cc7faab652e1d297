"""How many devices a population has, and at which hours they call: estimated from check-ins, remembering none of them.

A check-in leaves a keyed hash of its device's key. Of these the smallest 1,024 are kept (bottom-k sketch, Cohen and
Kaplan 2007): if the k-th smallest of uniform numbers in [0, 1) is x, there are about (k - 1) / x of them, within 3%.
Sketches of two days make one estimate: who has not called for so long is not there any more.

Rules: in memory only, since it is there again after a day of calls; time is passed in.
"""

from __future__ import annotations

import bisect
import hmac
from dataclasses import dataclass, field

KEPT = 1_024
DAY_MILLISECONDS = 24 * 60 * 60 * 1000
HOURS = 24
_HOUR_MILLISECONDS = 60 * 60 * 1000
_RANGE = 1 << 64
_DOMAIN = b"fedrecon census 1"


def hash_of(key: bytes, device_key: bytes) -> int:
    """Returns a device's hash: uniform in [0, 2^64), and no one's without the deployment's key."""
    return int.from_bytes(hmac.digest(key, _DOMAIN + device_key, "sha256")[:8], "little")


@dataclass(slots=True)
class Sketch:
    """The smallest of the hashes that were put in, each once.

    Attributes:
        smallest: At most `KEPT`, ascending.
    """

    smallest: list[int] = field(default_factory=list)

    def put(self, number: int) -> bool:
        """Puts a hash in, and says whether that changed anything: one that is there already does not."""
        if len(self.smallest) == KEPT and number >= self.smallest[-1]:
            return False
        place = bisect.bisect_left(self.smallest, number)
        if place < len(self.smallest) and self.smallest[place] == number:
            return False
        self.smallest.insert(place, number)
        del self.smallest[KEPT:]
        return True


def estimate(sketches: list[Sketch]) -> int:
    """Returns about how many distinct hashes were put into sketches."""
    union = sorted({number for sketch in sketches for number in sketch.smallest})[:KEPT]
    return len(union) if len(union) < KEPT else round((KEPT - 1) * _RANGE / union[-1])


@dataclass(slots=True, eq=False)
class Census:
    """What check-ins say of a population.

    Attributes:
        day: Day of the newest call, since 1970.
        today: Sketch of that day.
        yesterday: Sketch of the day before.
        hours: Calls by hour of the day (UTC), those of earlier days counted half, a quarter, and so on.
    """

    day: int = 0
    today: Sketch = field(default_factory=Sketch)
    yesterday: Sketch = field(default_factory=Sketch)
    hours: list[float] = field(default_factory=lambda: [0.0] * HOURS)
    _devices: int | None = 0

    def note(self, number: int, now: int) -> None:
        """Notes a call.

        Args:
            number: Hash of the device.
            now: Unix milliseconds.
        """
        day = now // DAY_MILLISECONDS
        if day > self.day:
            self.yesterday = self.today if day == self.day + 1 else Sketch()
            self.day, self.today, self._devices = day, Sketch(), None
            self.hours = [calls / 2 for calls in self.hours]
        if self.today.put(number):
            self._devices = None
        self.hours[now // _HOUR_MILLISECONDS % HOURS] += 1.0

    @property
    def devices(self) -> int:
        """About how many devices there are."""
        if self._devices is None:
            self._devices = estimate([self.today, self.yesterday])
        return self._devices

    def busyness(self, now: int) -> float:
        """Returns how many calls this hour of the day has, as a multiple of the mean hour; 1 until a day was seen."""
        if not all(self.hours):
            return 1.0
        return self.hours[now // _HOUR_MILLISECONDS % HOURS] * HOURS / sum(self.hours)
