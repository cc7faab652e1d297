"""What a task's noise is worth: epsilon after so many sums, and how many sums a budget allows.

The mechanism: every device's update is clipped to a norm, so that no report moves the sum by more; Gaussian noise of
`noise_multiplier` times that norm is added to each sum, by the aggregator; checkpoint and next clip norm follow from
the noisy sum alone. Where the task samples, a device may be drawn only if a keyed hash of its key, the round and the
attempt is below the sampling rate: Poisson sampling, enforced by the coordinator whatever devices do.

With noise in a tree (`noise_trees`) a device is in one sum of each tree, and its report in one node of each level: as
if it were in so many sums, each with the noise of one node.

Neighbouring: two populations are neighbours if one device's reports in one are zeros in the other (zero-out: Ponomareva
et al. 2023, "How to DP-fy ML", section 2.1). Who took part is not hidden.

Numbers: with sampling the privacy loss distribution of Koskela et al. 2020 (`dp-accounting`, pessimistic), or beyond an
epsilon of 15, where that takes minutes, Renyi differential privacy (Mironov 2017), whose bound is larger; without
sampling, sums of Gaussian mechanisms are one Gaussian mechanism, whose epsilon is exact (Balle and Wang 2018).
"""

from __future__ import annotations

import functools
import math
from importlib.metadata import version
from typing import Any

from fedrecon.coordinator.noise_trees import levels
from fedrecon.v1.task_pb2 import Privacy

LARGEST_SPEND = 1_000_000
"""Sums beyond which nobody counts: a task of so many rounds has no useful budget."""

_INTERVAL = 1e-4
_LARGEST_DISTRIBUTION = 15.0


class AccountantMissing(Exception):  # noqa: N818 - named for what it says
    """The library that accounts is not installed."""


def epsilon_after(privacy: Privacy, sums: int) -> float:
    """Returns the epsilon that so many sums of a task have spent, at the task's delta.

    Args:
        privacy: noise multiplier, delta, sampling rate and sums of a tree.
        sums: released sums, at least 0.

    Raises:
        AccountantMissing: `fedrecon[privacy]` is not installed.
    """
    if sums == 0:
        return 0.0
    multiplier, delta, rate = privacy.noise_multiplier, privacy.delta, privacy.sampling_rate
    if rate and rate < 1:
        bound = _renyi_bound(multiplier, rate, sums, delta)
        if bound > _LARGEST_DISTRIBUTION:
            return bound
        return float(_one_sum(multiplier, rate).self_compose(sums).get_epsilon_for_delta(delta))
    return float(_library().get_epsilon_gaussian(multiplier / math.sqrt(_noises_of_a_device(privacy, sums)), delta))


def sums_within(privacy: Privacy) -> int:
    """Returns how many sums a task may release before its epsilon budget is spent, by bisection.

    Args:
        privacy: with a budget above 0.

    Raises:
        AccountantMissing: `fedrecon[privacy]` is not installed.
    """

    def fits(sums: int) -> bool:
        return epsilon_after(privacy, sums) <= privacy.epsilon_budget

    if not fits(1):
        return 0
    enough, too_many = 1, 2
    while too_many <= LARGEST_SPEND and fits(too_many):
        enough, too_many = too_many, 2 * too_many
    while too_many - enough > 1:
        middle = (enough + too_many) // 2
        enough, too_many = (middle, too_many) if fits(middle) else (enough, middle)
    return min(enough, LARGEST_SPEND)


def _noises_of_a_device(privacy: Privacy, sums: int) -> int:
    """Returns how many Gaussians, at most, a device's reports are under, if it takes part whenever it may."""
    if not privacy.tree_sums:
        return sums
    whole, rest = divmod(sums, privacy.tree_sums)
    return whole * levels(privacy.tree_sums) + levels(rest)


def accountant_version() -> str:
    """Returns the accountant's name and version, for the record."""
    return f"dp-accounting {version('dp-accounting')}"


def _renyi_bound(multiplier: float, rate: float, sums: int, delta: float) -> float:
    library = _library()
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant()
    accountant.compose(library.PoissonSampledDpEvent(rate, library.GaussianDpEvent(multiplier)), sums)
    return float(accountant.get_epsilon(delta))


@functools.lru_cache(maxsize=64)
def _one_sum(multiplier: float, rate: float) -> Any:
    from dp_accounting.pld import privacy_loss_distribution

    _library()
    return privacy_loss_distribution.from_gaussian_mechanism(
        multiplier, sampling_prob=rate, value_discretization_interval=_INTERVAL
    )


def _library() -> Any:
    try:
        import dp_accounting
    except ImportError as error:
        raise AccountantMissing("the accountant is not installed: pip install 'fedrecon[privacy]'") from error
    return dp_accounting
