"""What became of recommendations, as metric sums of an evaluation: for each version, how many were shown and chosen.

A device that is asked to (`Assignment.outcome_versions`) appends for each of those versions, in the order given, with s
what it has shown since it got the version, and c what of it was chosen: s, c, s^2, c^2, s c. It tells the whole each
time, so a report that is sent twice or made void loses and doubles nothing, and rounds are not added up.

Rule: of more than `MOST_SHOWN` a device tells the newest, so that one device weighs no more than that in a sum. Under a
secure sum nobody can check what a device says: the sum is believed only if it could be (`is_plausible`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

MOST_SHOWN = 1_000
"""Shown recommendations of a version that a device tells at most."""

_PREFIX = "outcome."


@dataclass(frozen=True, slots=True)
class OutcomeSums:
    """Sums over devices, of one version.

    Attributes:
        shown: recommendations.
        chosen: of these.
        shown_squared: sum of squares over devices.
        chosen_squared: likewise.
        product: sum of shown times chosen over devices.
    """

    shown: float
    chosen: float
    shown_squared: float
    chosen_squared: float
    product: float

    def is_plausible(self, reports: int) -> bool:
        """Returns whether honest devices could have told this.

        Args:
            reports: in the sum.
        """
        most = MOST_SHOWN * reports
        in_order = 0 <= self.chosen <= self.shown <= most and self.chosen_squared <= self.product <= self.shown_squared
        # Cauchy and Schwarz: the square of a sum is at most its terms' squares times how many there are.
        return in_order and self.shown**2 <= self.shown_squared * reports * (1 + 1e-9) and self.chosen_squared >= 0


def outcome_metrics(versions: Iterable[int]) -> tuple[tuple[str, float], ...]:
    """Returns names and bounds of the sums that are appended.

    Example:
        >>> [name for name, _ in outcome_metrics([3])][:3]
        ['outcome.3.shown', 'outcome.3.chosen', 'outcome.3.shown.squared']
    """
    one, two = float(MOST_SHOWN), float(MOST_SHOWN) ** 2
    return tuple(
        (f"{_PREFIX}{version}.{name}", bound)
        for version in versions
        for name, bound in (
            ("shown", one),
            ("chosen", one),
            ("shown.squared", two),
            ("chosen.squared", two),
            ("product", two),
        )
    )


def outcome_sums(versions: Iterable[int], counted: Mapping[int, tuple[int, int]]) -> tuple[float, ...]:
    """Returns what a device appends.

    Args:
        versions: that are asked for.
        counted: shown and chosen, by version; at most `MOST_SHOWN`.

    Example:
        >>> outcome_sums([3, 4], {3: (10, 2)})
        (10.0, 2.0, 100.0, 4.0, 20.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    """
    own: list[float] = []
    for version in versions:
        shown, chosen = (float(each) for each in counted.get(version, (0, 0)))
        own += [shown, chosen, shown * shown, chosen * chosen, shown * chosen]
    return tuple(own)


def read_outcome(sums: Mapping[str, float], version: int) -> OutcomeSums | None:
    """Returns what metric sums tell of a version; None if they do not."""
    names = [name for name, _ in outcome_metrics([version])]
    if any(name not in sums for name in names):
        return None
    return OutcomeSums(*(sums[name] for name in names))


def is_outcome(name: str) -> bool:
    """Returns whether a metric sum is one of these."""
    return name.startswith(_PREFIX)
