"""How long a recommendation takes whose user nobody has seen: reconstruct, score all items, the best ten.

One user at a time on one core, in the file that a recommendation team serves, opened as the service opens it: by ridge,
by 50 steps of gradient descent, and of choices instead of ratings (`implicit`); and with larger catalogues. Beside it,
where it is installed, the `implicit` package recalculates a user and gives its ten best in the same run: by its own
three steps of conjugate gradient, in C++.

Item vectors are drawn at random, long ones: how many steps a ridge regression takes depends on them.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedrecon.benchmarks.measures import Measure
from fedrecon.inference.bundles import read_bundle
from fedrecon.inference.ranking import COUNT, EXCLUDED, ROWS, SCORES
from fedrecon.inference.recommending import OpenRecommender
from fedrecon.inference.verifying import export_proved
from fedrecon.learning.model import FederatedModel
from fedrecon.learning.models.implicit_feedback import implicit_feedback
from fedrecon.learning.models.matrix_factorization import ITEMS, matrix_factorization
from fedrecon.learning.planning import compile_plan
from fedrecon.learning.reconstruction import GradientSteps, Ridge
from fedrecon.ops.mistakes import UserMistake
from fedrecon.v1.common_pb2 import BlobReference
from fedrecon.v1.plan_pb2 import Vocabulary
from fedrecon.v1.task_pb2 import LocalWork
from fedrecon.wire.tensors import read_safetensors, write_safetensors
from fedrecon.wire.vocabularies import read_vocabulary

FILMS, FACTORS, RATINGS, WANTED = 3706, 50, 30, 10
DEVIATION = 0.3
MANY = (100_000, 1_000_000)
RIDGE_LIMIT, GRADIENT_LIMIT = 0.12, 0.7
_USERS, _USERS_OF_MANY = 600, 60

_PACKAGE = """
import json, statistics, sys, time
import numpy, scipy.sparse
from implicit.als import AlternatingLeastSquares
items, factors, ratings, wanted, users = map(int, sys.argv[1:6])
deviation = float(sys.argv[6])
source = numpy.random.default_rng(1)
model = AlternatingLeastSquares(factors=factors, num_threads=1, use_gpu=False)
model.item_factors = source.normal(0, deviation, (items, factors)).astype("float32")
model.user_factors = source.normal(0, deviation, (1, factors)).astype("float32")
spent = []
for _ in range(users):
    chosen = source.choice(items, ratings, replace=False)
    ones = numpy.ones(ratings, "float32")
    user = scipy.sparse.csr_matrix((ones, (numpy.zeros(ratings, int), chosen)), shape=(1, items))
    began = time.perf_counter()
    model.recommend(0, user, N=wanted, recalculate_user=True)
    spent.append(time.perf_counter() - began)
print(json.dumps({"p50_ms": 1000 * statistics.median(spent)}))
"""


@dataclass(frozen=True, slots=True)
class _Case:
    name: str
    items: int
    users: int
    limit: float | None = None

    def model(self) -> FederatedModel:
        if self.name == "implicit":
            return implicit_feedback(self.items, FACTORS)
        reconstruction = GradientSteps() if self.name == "gradient" else Ridge("rating")
        return matrix_factorization(self.items, FACTORS, mean=3.6, bias=True, reconstruction=reconstruction)


def measure_recommend(package: Path | None) -> list[Measure]:
    """Measure single recommendations.

    Args:
        package: The Python of an environment that has the `implicit` package; None: it is not compared with.

    Returns:
        Medians and 99th percentiles by kind of reconstruction; medians of larger catalogues.

    Raises:
        UserMistake: The package does not run there.
    """
    measures = [
        *_time(_Case("ridge", FILMS, _USERS, RIDGE_LIMIT)),
        *_time(_Case("gradient", FILMS, _USERS, GRADIENT_LIMIT)),
    ]
    ours = _time(_Case("implicit", FILMS, _USERS))
    measures += ours
    if package is not None:
        theirs = _package_milliseconds(package)
        measures.append(Measure("implicit_package_p50_ms", theirs, "ms"))
        measures.append(Measure("implicit_share_of_package", ours[0].value / theirs, "ratio", 1.0))
    for items in MANY:
        (median, _) = _time(_Case("ridge", items, _USERS_OF_MANY))
        measures.append(Measure(f"ridge_{items}_items_p50_ms", median.value, "ms"))
    return measures


def _time(case: _Case) -> list[Measure]:
    recommender = _open(case.model(), case.items)
    source = np.random.default_rng(1)
    spent = []
    for _ in range(case.users):
        rows = source.choice(case.items, RATINGS, replace=False)
        values = {"rating": source.integers(1, 6, RATINGS), "chosen": np.ones(RATINGS)}
        given = {
            each.name: rows if each.vocabulary else values[each.name].astype(np.float32) for each in recommender.fields
        }
        began = time.perf_counter()
        recommender.session.run([ROWS, SCORES], {**given, EXCLUDED: rows, COUNT: np.array([WANTED])})
        spent.append(1000 * (time.perf_counter() - began))
    last = float(np.quantile(spent, 0.99))
    return [
        Measure(f"{case.name}_p50_ms", statistics.median(spent), "ms", case.limit),
        Measure(f"{case.name}_p99_ms", last, "ms"),
    ]


def _open(model: FederatedModel, items: int) -> OpenRecommender:
    """Return the recommender of a model with random item vectors."""
    vocabulary = Vocabulary(name=ITEMS, version=1, keys=[str(row) for row in range(items)])
    with tempfile.TemporaryDirectory(prefix="fedrecon-recommend-") as folder:
        plan = Path(folder) / "plan"
        compile_plan(model, {ITEMS: vocabulary}, Ed25519PrivateKey.generate(), plan)
        blobs: Mapping[str, bytes] = {path.name: path.read_bytes() for path in (plan / "blobs").iterdir()}

        def fetch(blob: BlobReference) -> bytes:
            return blobs[blob.digest.hex()]

        bundle = read_bundle((plan / "manifest.json").read_bytes(), fetch)
    source = np.random.default_rng(0)
    initial = read_safetensors(fetch(bundle.manifest.initial_checkpoint))
    drawn = {name: source.normal(0, DEVIATION, each.shape).astype(np.float32) for name, each in initial.items()}
    stored = fetch(bundle.vocabulary({}))
    exported = export_proved(bundle, write_safetensors(drawn), stored, "films", 0, LocalWork())
    return OpenRecommender.open(exported.recommender, read_vocabulary(stored))


def _package_milliseconds(python: Path) -> float:
    sizes = [str(each) for each in (FILMS, FACTORS, RATINGS, WANTED, _USERS, DEVIATION)]
    try:
        ended = subprocess.run([str(python), "-c", _PACKAGE, *sizes], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        told = getattr(error, "stderr", "") or str(error)
        raise UserMistake(
            f"The `implicit` package does not run with {python}: {told.strip().splitlines()[-1]}",
            "`make bench-peers` makes an environment for it.",
        ) from error
    return float(json.loads(ended.stdout.splitlines()[-1])["p50_ms"])
