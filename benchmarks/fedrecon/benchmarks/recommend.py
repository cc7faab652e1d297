"""How long a recommendation takes whose user nobody has seen: reconstruct, score all items, the best ten.

One user at a time on one core, in the file that a recommendation team serves, opened as the service opens it: by ridge,
by 50 steps of gradient descent, and of choices instead of ratings (`implicit`); with larger catalogues and longer
histories; in a page, where there is a Chromium (`browser`); and by the service, for many at a time (`serving`). Beside
it, where it is installed, the `implicit` package recalculates a user and gives its ten best, in turns in the same run:
by its own three steps of conjugate gradient, in C++.

Item vectors are drawn at random, long ones: how many steps a ridge regression takes depends on them.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedrecon.benchmarks.browser import time_in_browser
from fedrecon.benchmarks.measures import Measure
from fedrecon.benchmarks.serving import measure_serving
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
LONG = (300, 1_000)
RIDGE_LIMIT, GRADIENT_LIMIT, BROWSER_LIMIT = 0.12, 0.7, 3.0
_USERS, _USERS_OF_MANY = 600, 60

_TURNS = 20

_PACKAGE = """
import json, sys, time
import numpy, scipy.sparse
from implicit.als import AlternatingLeastSquares
items, factors, ratings, wanted, users = map(int, sys.argv[1:6])
deviation = float(sys.argv[6])
source = numpy.random.default_rng(1)
model = AlternatingLeastSquares(factors=factors, num_threads=1, use_gpu=False)
model.item_factors = source.normal(0, deviation, (items, factors)).astype("float32")
model.user_factors = source.normal(0, deviation, (1, factors)).astype("float32")
for _ in sys.stdin:
    spent = []
    for _ in range(users):
        chosen = source.choice(items, ratings, replace=False)
        ones = numpy.ones(ratings, "float32")
        user = scipy.sparse.csr_matrix((ones, (numpy.zeros(ratings, int), chosen)), shape=(1, items))
        began = time.perf_counter()
        model.recommend(0, user, N=wanted, recalculate_user=True)
        spent.append(1000 * (time.perf_counter() - began))
    print(json.dumps(spent), flush=True)
"""


@dataclass(frozen=True, slots=True)
class _Case:
    name: str
    items: int
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
        Medians and 99th percentiles by kind of reconstruction; medians of larger catalogues and longer histories; the
        service's rate beside a bare server's.

    Raises:
        UserMistake: The package does not run there.
    """
    measures = [
        *_measures(_Case("ridge", FILMS, RIDGE_LIMIT), _USERS),
        *_measures(_Case("gradient", FILMS, GRADIENT_LIMIT), _USERS),
        *(_measures(_Case("implicit", FILMS), _USERS) if package is None else _beside_package(package)),
    ]
    for items in MANY:
        (median, _) = _measures(_Case("ridge", items), _USERS_OF_MANY)
        measures.append(Measure(f"ridge_{items}_items_p50_ms", median.value, "ms"))
    for ratings in LONG:
        (median, _) = _measures(_Case("ridge", FILMS), _USERS_OF_MANY, ratings)
        measures.append(Measure(f"ridge_{ratings}_ratings_p50_ms", median.value, "ms"))
    return [*measures, *_in_browser(), *measure_serving(FILMS, FACTORS, RATINGS, WANTED)]


def _in_browser() -> list[Measure]:
    files = {name: _export(_Case(name, FILMS).model(), FILMS) for name in ("ridge", "gradient")}
    recommenders, items = {name: file for name, (file, _) in files.items()}, files["ridge"][1]
    medians = time_in_browser(recommenders, items, FILMS, RATINGS, WANTED, _USERS)
    return [
        Measure("browser_p50_ms" if name == "ridge" else f"browser_{name}_p50_ms", median, "ms", BROWSER_LIMIT)
        for name, median in medians.items()
    ]


def _measures(case: _Case, users: int, ratings: int = RATINGS) -> list[Measure]:
    return _summary(case, _time(_open(case.model(), case.items), case, users, np.random.default_rng(1), ratings))


def _summary(case: _Case, spent: list[float]) -> list[Measure]:
    return [
        Measure(f"{case.name}_p50_ms", statistics.median(spent), "ms", case.limit),
        Measure(f"{case.name}_p99_ms", float(np.quantile(spent, 0.99)), "ms"),
    ]


def _time(
    recommender: OpenRecommender, case: _Case, users: int, source: np.random.Generator, ratings: int = RATINGS
) -> list[float]:
    """Return the milliseconds of each of some users."""
    spent = []
    for _ in range(users):
        rows = source.choice(case.items, ratings, replace=False)
        values = {"rating": source.integers(1, 6, ratings), "chosen": np.ones(ratings)}
        given = {
            each.name: rows if each.vocabulary else values[each.name].astype(np.float32) for each in recommender.fields
        }
        began = time.perf_counter()
        recommender.session.run([ROWS, SCORES], {**given, EXCLUDED: rows, COUNT: np.array([WANTED])})
        spent.append(1000 * (time.perf_counter() - began))
    return spent


def _beside_package(python: Path) -> list[Measure]:
    """Measure ours and the package in turns, so that whatever else the machine does hits both."""
    case, users = _Case("implicit", FILMS), _USERS // _TURNS
    recommender, source = _open(case.model(), case.items), np.random.default_rng(1)
    ours: list[float] = []
    theirs: list[float] = []
    shares = []
    sizes = [str(each) for each in (FILMS, FACTORS, RATINGS, WANTED, users, DEVIATION)]
    with subprocess.Popen(
        [str(python), "-c", _PACKAGE, *sizes],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # as the package advises
    ) as process:
        assert process.stdin is not None  # noqa: S101 - asked for above
        assert process.stdout is not None  # noqa: S101 - the same
        for _ in range(_TURNS):
            try:
                print("go on", file=process.stdin, flush=True)
                their = json.loads(process.stdout.readline())
            except (OSError, ValueError) as error:
                raise UserMistake(
                    f"The `implicit` package does not run with {python}: see above.",
                    "`make bench-peers` makes an environment for it.",
                ) from error
            our = _time(recommender, case, users, source)
            theirs += their
            ours += our
            shares.append(statistics.median(our) / statistics.median(their))
        process.stdin.close()
    return [
        *_summary(case, ours),
        Measure("implicit_package_p50_ms", statistics.median(theirs), "ms"),
        Measure("implicit_share_of_package", statistics.median(shares), "ratio", 1.0),
    ]


def _open(model: FederatedModel, items: int) -> OpenRecommender:
    recommender, stored = _export(model, items)
    return OpenRecommender.open(recommender, read_vocabulary(stored))


def _export(model: FederatedModel, items: int) -> tuple[bytes, bytes]:
    """Return the recommender of a model with random item vectors, and its vocabulary."""
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
    return exported.recommender, stored
