"""Matrix factorisations of films: the model in torch, and its plan as services and devices hold it.

Compiling takes longer than most tests: the same films are compiled once, for all workers of a run.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
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
    shared = _shared_by_workers(folder)
    if shared is None:
        compile_plan(model, {ITEMS: vocabulary}, Ed25519PrivateKey.generate(), folder)
    else:
        told = repr((reconstruction, factors)).encode() + vocabulary.SerializeToString(deterministic=True)
        kept = shared / hashlib.sha256(told).hexdigest()[:16]
        with (shared / f"{kept.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not kept.exists():
                compile_plan(model, {ITEMS: vocabulary}, Ed25519PrivateKey.generate(), kept)
        shutil.copytree(kept, folder)
    return Films(model, folder, open_plan(folder))


def _shared_by_workers(folder: Path) -> Path | None:
    """Gives a folder of this run of tests, made by pytest-xdist; None where there is one process only."""
    run = next((each.parent for each in folder.parents if each.name.startswith("popen-gw")), None)
    if run is None:
        return None
    (run / "films").mkdir(exist_ok=True)
    return run / "films"
