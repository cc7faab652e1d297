"""How many neighbours a member of a masked sum has, and how many of them recover its secrets.

Members lie in a ring in random order; each has the k/2 before it and the k/2 after it as neighbours, and t of their
shares recover a secret. The smallest k is taken for which, among n members of whom a share is corrupt (tells the server
everything) and a share drops out:

- the ring of honest survivors stays connected but with probability 2^-(sigma + 1): it falls apart only where k/2
  neighbouring members in two places are corrupt or lost, and n (n - k - 1) / 2 pairs of places bound that;
- t exceeds what corrupt neighbours (and, unless the server is honest but curious, honest ones that were told different
  lists) can give it, but with probability 2^-(sigma + 1) / n for each member;
- t of a member's neighbours survive, but with probability 2^-eta / n.

The numbers of corrupt and of surviving neighbours are hypergeometric. Small groups have the complete graph (Bonawitz et
al., CCS 2017). Logarithms of factorials are all that is needed.

Source: Bell, Bonawitz, Gascon, Lepoint, Raykova, CCS 2020 (ePrint 2020/704), sections 3 and 4.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

SMALLEST_RING = 40
"""Below so many members all others are neighbours: a ring would save nothing."""

FEWEST_NEIGHBOURS = 10
SMALLEST_GROUP, LARGEST_GROUP = 2, 1_000_000

_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Profile:
    """What a group must withstand.

    Attributes:
        corrupt: share of members that work for the server.
        drop_out: share of members that are lost after they shared.
        semi_honest: whether the server follows the protocol and is only curious.
        sigma: security in bits.
        eta: bits of the chance that a sum cannot be opened.
    """

    corrupt: float
    drop_out: float
    semi_honest: bool = False
    sigma: int = 40
    eta: int = 20

    def __post_init__(self) -> None:
        """Refuses shares that no graph withstands."""
        if not (0 <= self.corrupt < 1 and 0 <= self.drop_out < 1 and self.sigma > 0 and self.eta > 0):
            raise ValueError(f"shares are from 0 to below 1, bits positive: {self}")


DEFAULT = Profile(corrupt=0.05, drop_out=0.2)
"""A server that may show members different lists, 5% of them with it, and a fifth lost within seconds."""

STEADY = Profile(corrupt=0.05, drop_out=0.1)
"""Members that seldom are lost: fewer neighbours."""

UNSTEADY = Profile(corrupt=0.05, drop_out=0.3)
"""Members that often are lost: more neighbours."""

CURIOUS = Profile(corrupt=0.1, drop_out=0.3, semi_honest=True)
"""A server that follows the protocol. Devices refuse its thresholds: it is here to compare with."""


def withstanding(drop_out: float) -> Profile:
    """Returns what a task's group must withstand.

    Args:
        drop_out: share of the members that may be lost after they shared, at most `MOST_DROP_OUT`; 0: the default's.
    """
    return replace(DEFAULT, drop_out=drop_out) if drop_out else DEFAULT


class NoThresholdError(ValueError):
    """No number of neighbours withstands the profile."""


@dataclass(frozen=True, slots=True)
class Neighbourhood:
    """What `find` gives.

    Attributes:
        neighbours: k, of every member.
        threshold: t, shares that recover a secret.
    """

    neighbours: int
    threshold: int


@functools.lru_cache(maxsize=1024)
def find(members: int, profile: Profile = DEFAULT) -> Neighbourhood:
    """Returns the fewest neighbours that withstand a profile, and the threshold for them.

    Args:
        members: n, from 2.
        profile: what the group must withstand.

    Raises:
        NoThresholdError: there is none.

    Example:
        >>> find(1000)
        Neighbourhood(neighbours=148, threshold=90)
    """
    if not SMALLEST_GROUP <= members <= LARGEST_GROUP:
        raise NoThresholdError(f"a group of {members} members; it may have {SMALLEST_GROUP} to {LARGEST_GROUP}")
    if members < SMALLEST_RING:
        return _complete(members, profile)
    for neighbours in range(FEWEST_NEIGHBOURS, members - 1, 2):
        threshold = _threshold(members, neighbours, profile)
        if threshold is not None:
            return Neighbourhood(neighbours, threshold)
    raise NoThresholdError(f"no ring of {members} members withstands {profile}; lower its shares")


def _complete(members: int, profile: Profile) -> Neighbourhood:
    """Returns the threshold among all others: the numbers of corrupt and lost members are known, nothing is drawn."""
    neighbours = members - 1
    corrupt = min(_at_most(profile.corrupt, members), neighbours)
    threshold = _lowest_threshold(neighbours, corrupt, profile)
    if threshold > neighbours - _at_most(profile.drop_out, members):
        raise NoThresholdError(f"{members} members do not withstand {profile}: take more, or lower its shares")
    return Neighbourhood(neighbours, threshold)


def _threshold(members: int, neighbours: int, profile: Profile) -> int | None:
    """Returns the lowest threshold for so many neighbours; None if they are too few."""
    log_security = -(profile.sigma + 1) * math.log(2)
    corrupt, lost = _at_most(profile.corrupt, members), _at_most(profile.drop_out, members)
    if _log_disconnected(members, neighbours, corrupt + lost) >= log_security:
        return None
    security = math.exp(log_security) / members
    most_corrupt = _upper_quantile(members, corrupt, neighbours, security)
    threshold = _lowest_threshold(neighbours, most_corrupt, profile)
    survivors = _Hypergeometric(members, members - lost, neighbours)
    return threshold if survivors.below(threshold) < 2.0**-profile.eta / members else None


def _lowest_threshold(neighbours: int, corrupt: int, profile: Profile) -> int:
    """Returns the lowest threshold that so many corrupt neighbours do not reach.

    A server that lies tells some honest neighbours that a member survived and others that it was lost: it has k shares
    of the honest and the corrupt neighbours' both, and needs 2 t of them: 2 t > k + corrupt.
    """
    if profile.semi_honest:
        return max(corrupt + 1, 2)
    return (neighbours + corrupt) // 2 + 1


def _at_most(share: float, members: int) -> int:
    """Returns how many members a share is at most; rounding of the product must not lose one."""
    return math.floor(share * members + _ROUNDING)


def _log_disconnected(members: int, neighbours: int, bad: int) -> float:
    """Returns a bound on the logarithm of the chance that a ring without its bad members falls apart.

    Two runs of k/2 bad members each: `pairs of places * (bad)_k / (n)_k`, with falling factorials.
    """
    if neighbours > bad or members - neighbours - 1 < 1:
        return -math.inf
    pairs = math.log(members) + math.log(members - neighbours - 1) - math.log(2)
    return pairs + _log_falling(bad, neighbours) - _log_falling(members, neighbours)


def _log_falling(start: int, count: int) -> float:
    return math.lgamma(start + 1) - math.lgamma(start - count + 1)


def _upper_quantile(members: int, marked: int, drawn: int, tail: float) -> int:
    """Returns the smallest x with P[marked ones among the drawn > x] < tail."""
    distribution = _Hypergeometric(members, marked, drawn)
    above, value = 0.0, min(marked, drawn)
    while value >= 0:
        above += distribution.exactly(value)
        if above >= tail:
            return value
        value -= 1
    return 0


@dataclass(frozen=True, slots=True)
class _Hypergeometric:
    """How many marked ones are among `drawn` of `total`, of which `marked` are."""

    total: int
    marked: int
    drawn: int

    def exactly(self, count: int) -> float:
        """Returns the probability of a count."""
        if not max(0, self.drawn + self.marked - self.total) <= count <= min(self.drawn, self.marked):
            return 0.0
        return math.exp(
            _log_choose(self.marked, count)
            + _log_choose(self.total - self.marked, self.drawn - count)
            - _log_choose(self.total, self.drawn)
        )

    def below(self, limit: int) -> float:
        """Returns the probability of less than a limit, summed from the smallest terms."""
        return math.fsum(self.exactly(count) for count in range(limit))


def _log_choose(total: int, count: int) -> float:
    return math.lgamma(total + 1) - math.lgamma(count + 1) - math.lgamma(total - count + 1)
