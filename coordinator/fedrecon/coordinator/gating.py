"""Whether a candidate may be promoted: what is known of it on users never seen, against what the task asks for.

Two sources. A folder of ratings gives paired differences on the same users (`fedrecon recommenders promote --users`,
by bootstrap over users). Where the server has no data, the task's own evaluation rounds give sums and their second
moments: figures of different rounds, whose devices partly are the same, are compared as if they were independent,
which makes the interval wider and never narrower than it should be.

Rules: pure functions. A measure may be worse by a share of the live one's value, at the end of the 95% interval of the
difference that speaks against it: with few users the interval is wide, so that nothing passes by luck. A measure that
the gate names and nobody knows refuses. Before anything is live there is nothing to compare with: then the number of
users and the measures' presence are all that is asked for.

The variance of a ratio of sums over users: Cochran 1977, Sampling Techniques, section 6.4; for RMSE by the delta
method.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from fedrecon.coordinator.recommenders import Evidence, Measured
from fedrecon.coordinator.tasks import CheckpointEvaluated
from fedrecon.v1.task_pb2 import Gate
from fedrecon.wire.outcomes import read_outcome
from fedrecon.wire.spread import EXAMPLES, EXAMPLES_SQUARED, squared, times_examples

DEFAULT_MINIMUM_USERS = 100
DEFAULT_MARGINS: Mapping[str, float] = {"rmse": 0.01}
SMALLER_IS_BETTER = frozenset({"rmse"})
_TWO_SIDED_95 = 1.959964
_SQUARED_ERROR = "squared_error"
_LEAST_FOR_A_VARIANCE = 2


def refusals(gate: Gate, evidence: Evidence | None, live_version: int) -> tuple[str, ...]:
    """Returns why a version may not be promoted, in words; nothing if it may.

    Args:
        gate: What the task asks for.
        evidence: What is known; None: nothing.
        live_version: The version that is live; 0: none.
    """
    if evidence is None:
        return ("nothing is known of its quality: no evaluation round has judged its checkpoint with a spread",)
    found: list[str] = []
    least = gate.minimum_users or DEFAULT_MINIMUM_USERS
    if evidence.users < least:
        found.append(f"it was judged on {evidence.users} users, and {least} are needed")
    if evidence.live_version != live_version:
        now = f"version {live_version} is live now" if live_version else "nothing is live now"
        found.append(f"it was compared with version {evidence.live_version}, but {now}")
        return tuple(found)
    measures = {each.name: each for each in evidence.measures}
    for name, margin in sorted((dict(gate.margins) or DEFAULT_MARGINS).items()):
        if name not in measures:
            found.append(f"its {name} is not known from {evidence.source}")
        elif live_version:
            found += _too_much_worse(measures[name], margin)
    return tuple(found)


def _too_much_worse(measured: Measured, margin: float) -> Iterable[str]:
    is_loss = measured.name in SMALLER_IS_BETTER
    worst = measured.highest_difference if is_loss else -measured.lowest_difference
    allowed = margin * abs(measured.live_value)
    # Written so that a difference which is no number refuses.
    if not worst <= allowed:
        direction = "higher" if is_loss else "lower"
        yield (
            f"its {measured.name} {measured.value:.4f} may be {direction} than the live one's "
            f"{measured.live_value:.4f} by {worst:.4f}, and {allowed:.4f} is allowed"
        )


def evidence_of_rounds(
    candidate: Iterable[CheckpointEvaluated], live: Iterable[CheckpointEvaluated] | None, live_version: int
) -> Evidence | None:
    """Returns what evaluation rounds tell of a version; None if they tell no error with a spread.

    Args:
        candidate: Evaluations of its checkpoint.
        live: Evaluations of the live one's; None: nothing is live.
        live_version: Number of the live one; 0: nothing is.
    """
    of_candidate = _Pooled.of(candidate)
    own = of_candidate.rmse()
    if own is None:
        return None
    value, error = own
    measured = Measured("rmse", value, value - _TWO_SIDED_95 * error, value + _TWO_SIDED_95 * error)
    source = f"evaluation rounds {of_candidate.told}"
    if live is None:
        return Evidence(source, of_candidate.users, 0, (measured,))
    of_live = _Pooled.of(live)
    other = of_live.rmse()
    if other is None:  # the live one cannot be compared with: then its rmse is not known
        return Evidence(source, of_candidate.users, live_version, ())
    half = _TWO_SIDED_95 * math.hypot(error, other[1])
    difference = value - other[0]
    compared = Measured(
        "rmse", value, measured.lowest, measured.highest, other[0], difference - half, difference + half
    )
    users = min(of_candidate.users, of_live.users)
    return Evidence(f"{source} against {of_live.told}", users, live_version, (compared,))


def click_through(version: int, evaluations: Iterable[CheckpointEvaluated]) -> tuple[Measured, int] | None:
    """Returns the share of a version's shown recommendations that were chosen, with how many were shown.

    Devices tell all that they have shown of a version each time, so the newest round that asked is taken by itself.

    Args:
        version: Its number.
        evaluations: Of the task, in order.

    Returns:
        None if no round told, nothing was shown, or the sums are none that honest devices could have told.
    """
    for each in reversed(list(evaluations)):
        told = read_outcome(dict(each.metric_sums), version)
        if told is None:
            continue
        if told.shown <= 0 or each.reports < _LEAST_FOR_A_VARIANCE or not told.is_plausible(each.reports):
            return None
        share = told.chosen / told.shown
        residual = told.chosen_squared - 2 * share * told.product + share * share * told.shown_squared
        variance = max(residual, 0.0) / told.shown**2 * each.reports / (each.reports - 1)
        half = _TWO_SIDED_95 * math.sqrt(variance)
        return Measured("click_through", share, max(share - half, 0.0), min(share + half, 1.0)), round(told.shown)
    return None


class _Pooled:
    """Sums of some evaluation rounds of one checkpoint.

    Args:
        sums: By name.
        users: Devices that reported.
        rounds: Their numbers.
    """

    def __init__(self, sums: Mapping[str, float], users: int, rounds: list[int]) -> None:
        self._sums = sums
        self.users = users
        self.told = ", ".join(map(str, rounds)) or "none"

    @classmethod
    def of(cls, evaluations: Iterable[CheckpointEvaluated]) -> _Pooled:
        """Adds up the rounds that told their spread."""
        sums: dict[str, float] = {}
        users, rounds = 0, []
        for each in evaluations:
            told = dict(each.metric_sums)
            if EXAMPLES_SQUARED not in told:
                continue
            for name, value in told.items():
                sums[name] = sums.get(name, 0.0) + value
            users += each.reports
            rounds.append(each.number)
        return cls(sums, users, rounds)

    def rmse(self) -> tuple[float, float] | None:
        """Returns the root mean squared error and its standard error; None where sums are missing or make no sense."""
        names = (_SQUARED_ERROR, squared(_SQUARED_ERROR), times_examples(_SQUARED_ERROR), EXAMPLES, EXAMPLES_SQUARED)
        if self.users < _LEAST_FOR_A_VARIANCE or any(name not in self._sums for name in names):
            return None
        error, error_squared, product, examples, examples_squared = (self._sums[name] for name in names)
        if examples <= 0 or error <= 0:
            return None
        mean = error / examples
        residual = error_squared - 2 * mean * product + mean * mean * examples_squared
        variance = max(residual, 0.0) / examples**2 * self.users / (self.users - 1)
        root = math.sqrt(mean)
        return root, math.sqrt(variance) / (2 * root)
