"""What the demo trains, and how: one configuration for real ratings, one for ratings it makes up.

Chosen on validation users: matrix factorisation with biases, the user part reconstructed by ridge, the item part
improved by one pass of SGD over the query half, Adagrad on the server.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Configuration:
    """A demo's numbers.

    Attributes:
        rounds: rounds to commit.
        report_goal: reports wanted in a round.
        over_selection: devices assigned for each report wanted.
        dropout: share of assigned devices that vanish.
        awake: devices that take part at once.
        factors: length of user and item vectors.
        ridge: ridge of the reconstruction.
        mean: constant added to every prediction, in stars.
        update_rate: rate of the devices' SGD steps.
        server_rate: rate of the server's Adagrad.
        maximum_weight: clip of a report's weight, in examples.
        bound: largest absolute value of an element of an item vector's update; a bias may move twice as far.
    """

    rounds: int = 20
    report_goal: int = 60
    over_selection: float = 1.3
    dropout: float = 0.1
    awake: int = 120
    factors: int = 8
    ridge: float = 5.0
    mean: float = 3.6
    update_rate: float = 0.5
    server_rate: float = 0.2
    maximum_weight: int = 100
    bound: float = 0.5

    def describe(self) -> str:
        """Return the configuration in one line."""
        return (
            f"matrix factorisation, {self.factors} factors, biases, mean {self.mean:g}, "
            f"ridge reconstruction {self.ridge:g}, device SGD {self.update_rate:g}, "
            f"server Adagrad {self.server_rate:g}, {self.report_goal} reports a round, "
            f"over-selection {self.over_selection:g}, drop-out {self.dropout:.0%}, SecAgg+"
        )

    def assignments(self) -> list[str]:
        """Return the task's specification as `fedrecon task create --set` takes it."""
        return [
            "population=demo",
            f"rounds.report_goal={self.report_goal}",
            f"rounds.over_selection={self.over_selection}",
            f"rounds.maximum_rounds={self.rounds}",
            "rounds.selection_milliseconds=200",
            "rounds.reporting_milliseconds=30000",
            "rounds.retry_milliseconds=200",
            "work.minimum_examples=10",
            "optimizer.rule=ADAGRAD",
            f"optimizer.rate={self.server_rate}",
            f"secure_sum.maximum_weight={self.maximum_weight}",
            f"work.hyperparameters.reconstruct.ridge={self.ridge}",
            f"work.hyperparameters.update.rate={self.update_rate}",
            f"bounds.item_vectors.weight={self.bound}",
            f"bounds.item_biases.weight={2 * self.bound}",
        ]


MADE_UP = Configuration()
MOVIELENS = Configuration(rounds=100, report_goal=100, awake=200, factors=20, ridge=8.0, server_rate=0.1)
