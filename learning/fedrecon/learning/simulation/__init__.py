"""Many clients at once: rounds of a task in one process, vectorised over the cohort, for any model."""

from fedrecon.learning.simulation.cohorts import CohortSum, Simulator
from fedrecon.learning.simulation.evaluation import Evaluation, FineTuning, evaluate
from fedrecon.learning.simulation.examples import ClientExamples
from fedrecon.learning.simulation.training import Point, Rounds, Trained, Training, Validation, train

__all__ = [
    "ClientExamples",
    "CohortSum",
    "Evaluation",
    "FineTuning",
    "Point",
    "Rounds",
    "Simulator",
    "Trained",
    "Training",
    "Validation",
    "evaluate",
    "train",
]
