"""The models of the MovieLens rows, and what their devices are told.

Rules: what is compiled belongs to a model; seeds, rates, schedules and splits do not, since a task tells them to
devices. So all rows of one model, with all seeds, share a simulator (`Simulators`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from fedrecon.learning.experiments.movielens_rows import Federated, Server, Split
from fedrecon.learning.experiments.protocol import BATCH_SIZE
from fedrecon.learning.model import FederatedModel
from fedrecon.learning.models.matrix_factorization import matrix_factorization
from fedrecon.learning.reconstruction import GradientSteps, Hyperparameter
from fedrecon.learning.simulation.cohorts import Simulator
from fedrecon.v1 import plan_pb2, task_pb2

RATING_LIMITS = (1.0, 5.0)
splits = {
    Split.ALTERNATE_BATCHES: task_pb2.SPLIT_RULE_ALTERNATE_BATCHES,
    Split.FRESH_HALVES: task_pb2.SPLIT_RULE_BY_FRACTION,
    Split.NONE: task_pb2.SPLIT_RULE_NONE,
}
servers = {Server.SGD: task_pb2.OPTIMIZER_RULE_SGD, Server.ADAGRAD: task_pb2.OPTIMIZER_RULE_ADAGRAD}


@dataclass(slots=True, eq=False)
class Simulators:
    """Simulators of an experiment: runs of one model share it, and what was compiled for it.

    Attributes:
        items: rows of the item table.
        compiled: whether steps are compiled.
    """

    items: int
    compiled: bool
    _made: dict[Any, Simulator] = field(default_factory=dict)

    def of(self, training: Federated, seed: int, *, evaluates: bool) -> Simulator:
        """Give the simulator of a row, at its beginning.

        Args:
            training: the row's configuration.
            seed: of the item vectors before the first round.
            evaluates: whether support and query are those of the protocol, and vectors are always reconstructed.
        """
        model = model_of(training, self.items, seed)
        # All that is compiled into steps; rates and schedules are not.
        form = (training.factors, training.mean, training.bias, training.clamped)
        key = (*form, training.reconstruction, training.joint_rate is None)
        made = self._made.setdefault(key, Simulator(model, task_pb2.LocalWork(), self.compiled))
        made.model.module.load_state_dict(model.module.state_dict())
        # The copy shares with its original what was compiled.
        return replace(made, work=work_of(training, model, evaluates=evaluates))


def model_of(training: Federated, items: int, seed: int) -> FederatedModel:
    """Give the model of a row.

    Args:
        training: its configuration.
        items: rows of the item table.
        seed: of the item vectors before the first round.
    """
    model = matrix_factorization(
        items,
        training.factors,
        mean=training.mean,
        bias=training.bias,
        reconstruction=training.reconstruction,
        update_rate=training.update_rate,
        rating_limits=RATING_LIMITS,
        clamped=training.clamped,
        seed=seed,
    )
    joint = training.joint_rate
    return replace(model, joint_rate=None if joint is None else Hyperparameter(joint, 0.0, max(1.0, joint)))


def work_of(training: Federated, model: FederatedModel, *, evaluates: bool) -> task_pb2.LocalWork:
    """Give what a device is told: in training, or in evaluation.

    Args:
        training: the row's configuration.
        model: whose hyperparameters are told.
        evaluates: whether support and query are those of the protocol, and vectors are always reconstructed.
    """
    work = task_pb2.LocalWork(
        split=splits[Split.ALTERNATE_BATCHES if evaluates else training.split],
        support_fraction=0.5,
        update_schedule=plan_pb2.Schedule(
            batch_size=BATCH_SIZE if evaluates else training.update_batch,
            epochs=1,
            maximum_steps=training.update_steps,
        ),
        hyperparameters={name: number.default for name, number in model.hyperparameters.items()},
    )
    if isinstance(training.reconstruction, GradientSteps):
        its = training.reconstruction.schedule
        # A vector that is kept from round to round is not reconstructed.
        epochs = 0 if training.stateful and not evaluates else its.epochs
        work.reconstruct_schedule.CopyFrom(
            plan_pb2.Schedule(batch_size=its.batch_size, epochs=epochs, maximum_steps=its.maximum_steps)
        )
    return work


def optimizer_of(training: Federated) -> task_pb2.ServerOptimizer:
    """Give the server optimizer of a row."""
    return task_pb2.ServerOptimizer(
        rule=servers[training.server], rate=training.server_rate, adaptivity=training.server_adaptivity
    )
