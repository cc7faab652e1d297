"""Matrix factorisations of films: the model in torch, and its plan as services and devices hold it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedrecon.learning.model import FederatedModel
from fedrecon.learning.models.matrix_factorization import ITEMS, matrix_factorization
from fedrecon.learning.planning import compile_plan
from fedrecon.learning.reconstruction import GradientSteps, Reconstruction, Ridge
from fedrecon.learning.rounds_in_process import RunnablePlan, open_plan
from fedrecon.v1.plan_pb2 import Vocabulary

RECONSTRUCTIONS: dict[str, Reconstruction] = {"ridge": Ridge("rating"), "gradient": GradientSteps()}


@dataclass(frozen=True, slots=True)
class Films:
    model: FederatedModel
    folder: Path
    runnable: RunnablePlan


def compile_films(
    reconstruction: str, keys: Sequence[str], factors: int, folder: Path, titles: Sequence[str] = ()
) -> Films:
    model = matrix_factorization(
        len(keys), factors, mean=3.6, bias=True, reconstruction=RECONSTRUCTIONS[reconstruction]
    )
    vocabulary = Vocabulary(name=ITEMS, version=1, keys=keys, titles=titles or keys)
    compile_plan(model, {ITEMS: vocabulary}, Ed25519PrivateKey.generate(), folder)
    return Films(model, folder, open_plan(folder))
