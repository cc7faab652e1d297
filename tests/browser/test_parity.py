"""One user, one list, wherever it is computed: torch, Python, the service both ways, node, and Chromium.

The model is trained nowhere: what is computed does not depend on it. Printed is the largest difference of a score from
torch's, which solves the regression directly; files of lower precision are compared with Python's run of the same file.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser.test_web_sdk import BROWSER_TESTS, BUNDLE, opened
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from fedrecon.device_sdk import Recommender
from fedrecon.inference.lightening import PRECISIONS, lighten
from fedrecon.inference.ranking import COUNT, EXCLUDED, ROWS, SCORES
from fedrecon.inference.stepwise import open_session
from fedrecon.learning.model import FederatedModel
from fedrecon.learning.models.matrix_factorization import ITEMS, matrix_factorization
from fedrecon.learning.planning import compile_plan
from fedrecon.learning.reconstruction import Ridge
from fedrecon.learning.reference import solve_ridge
from fedrecon.v1.inference_pb2 import Column, RecommendRequest
from fedrecon.v1.plan_pb2 import Vocabulary
from fedrecon.wire.vocabularies import read_vocabulary
from support.inference_deployment import SECONDS, deployed

FILMS, FACTORS, HISTORIES, TOLERANCE = 60, 8, (0, 1, 7, 30), 1e-5
KEYS = [f"film-{row}" for row in range(FILMS)]

Columns = dict[str, list[Any]]
Scores = list[NDArray[np.float64]]

pytestmark = pytest.mark.browser

PAGE_SCRIPT = """
import { Recommender } from "/fedrecon.js";
const read = async (name) => new Uint8Array(await (await fetch(name)).arrayBuffer());
const { names, users, films } = await (await fetch("asked.json")).json();
const found = {};
for (const name of names) {
  const recommender = await Recommender.load({ file: await read(`${name}.onnx`), items: await read("films.items") });
  found[name] = [];
  for (const user of users) {
    const best = await recommender.recommend(user, films, { excludeSeen: false });
    found[name].push(best.map((each) => [each.key, each.score]));
  }
}
globalThis.found = found;
"""


@pytest.fixture(scope="module")
def model() -> FederatedModel:
    made = matrix_factorization(FILMS, FACTORS, mean=3.5, bias=True, reconstruction=Ridge("rating"))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in made.parameters.values():
            value.copy_(0.4 * torch.randn(value.shape, generator=generator))
    return made


@pytest.fixture(scope="module")
def plan(model: FederatedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films") / "plan"
    compile_plan(model, {ITEMS: Vocabulary(name=ITEMS, version=1, keys=KEYS)}, Ed25519PrivateKey.generate(), folder)
    return folder


def users() -> list[Columns]:
    random = np.random.default_rng(5)
    return [
        {
            "item": [KEYS[row] for row in random.choice(FILMS, examples, replace=False)],
            "rating": random.integers(1, 6, examples).astype(float).tolist(),
        }
        for examples in HISTORIES
    ]


def in_torch(model: FederatedModel, user: Columns) -> NDArray[np.float64]:
    rows = torch.tensor([KEYS.index(key) for key in user["item"]], dtype=torch.int64)
    fields = {"item": rows, "rating": torch.tensor(user["rating"], dtype=torch.float32)}
    ridge = torch.tensor(model.hyperparameters["reconstruct.ridge"].default)
    start = model.at_default(model.global_parameters)
    local = solve_ridge(model, model.global_parameters, start, fields, torch.ones(len(rows)), ridge)
    scores = model.scores({**model.global_parameters, **local}, {"item": torch.arange(FILMS)})
    return scores.detach().numpy().astype(np.float64)


def in_python(file: bytes, user: Columns, *, basic: bool = False) -> NDArray[np.float64]:
    given = {
        "item": np.array([KEYS.index(key) for key in user["item"]], dtype=np.int64),
        "rating": np.array(user["rating"], dtype=np.float32),
        EXCLUDED: np.zeros(0, dtype=np.int64),
        COUNT: np.array([FILMS]),
    }
    rows, scores = open_session(file, basic=basic).run([ROWS, SCORES], given)
    return by_key([(KEYS[row], score) for row, score in zip(rows.tolist(), scores.tolist(), strict=True)])


def by_key(listed: list[tuple[str, float]]) -> NDArray[np.float64]:
    scores = dict(listed)
    assert len(scores) == FILMS
    return np.array([scores[key] for key in KEYS])


def over_http(address: str, user: Columns) -> NDArray[np.float64]:
    columns = [{"field": "item", "keys": user["item"]}, {"field": "rating", "values": user["rating"]}]
    body = json.dumps({"columns": columns if user["item"] else [], "count": FILMS, "exclude_seen": False}).encode()
    with urllib.request.urlopen(f"{address}/v1/tasks/films/recommend", body, timeout=SECONDS) as answer:  # noqa: S310 - a loopback address
        told = json.loads(answer.read())
    return by_key([(each["key"], each["score"]) for each in told["recommendations"]])


async def served(plan: Path, folder: Path) -> tuple[bytes, bytes, dict[str, Scores]]:
    """The file that the service gives out, its items, and what the service answers by both ways."""
    answers: dict[str, Scores] = {"service over gRPC": [], "service over HTTP": []}
    async with deployed(folder, plan) as deployment:
        await deployment.coordinator.commit(deployment.task("films"), 1)
        live = await deployment.wait_for_round("films", 1)
        file, items = await deployment.fetch(live.recommender), await deployment.fetch(live.vocabulary)
        requests = []
        for user in users():
            columns = [Column(field="item", keys=user["item"]), Column(field="rating", values=user["rating"])]
            requests.append(RecommendRequest(task="films", columns=columns, count=FILMS))
        # All at once: they may be answered in one run.
        found = await asyncio.gather(*(deployment.inference.Recommend(each, timeout=SECONDS) for each in requests))
        for answer in found:
            answers["service over gRPC"].append(by_key([(each.key, each.score) for each in answer.recommendations]))
        for user in users():
            answers["service over HTTP"].append(await asyncio.to_thread(over_http, deployment.http, user))
    return file, items, answers


def in_scripts(folder: Path, files: dict[str, bytes], items: bytes) -> dict[str, dict[str, list[Any]]]:
    """What node and Chromium answer, by place and file."""
    node = shutil.which("node")
    if not BUNDLE.exists() or node is None or shutil.which("chromium") is None:
        pytest.skip("there is no Chromium, no node, or no bundle: apt-get install chromium nodejs; make web")
    for name, content in files.items():
        (folder / f"{name}.onnx").write_bytes(content)
    (folder / "films.items").write_bytes(items)
    asked = folder / "asked.json"
    asked.write_text(json.dumps({"users": users(), "names": list(files), "films": FILMS}))
    script = folder / "page.js"
    script.write_text(PAGE_SCRIPT)
    more = {f"{name}_onnx": folder / f"{name}.onnx" for name in files}
    page = opened(script, films_items=folder / "films.items", asked_json=asked, **more)
    assert page["complaints"] == []
    command = [node, str(BROWSER_TESTS / "recommend_in_node.mjs"), str(folder)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    return {"node": json.loads(printed.stdout), "Chromium": page["found"]}


async def test_one_user_gets_the_same_list_in_every_runtime(
    model: FederatedModel, plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "home").mkdir()
    file, items, answers = await served(plan, tmp_path / "home")
    vocabulary = read_vocabulary(items)
    files: dict[str, bytes] = {precision: lighten(file, vocabulary, precision).recommender for precision in PRECISIONS}
    answers["onnxruntime, default"] = [in_python(file, user) for user in users()]
    answers["onnxruntime, basic"] = [in_python(file, user, basic=True) for user in users()]
    answers["device SDK"] = []
    sdk = Recommender(file, items)
    for user in users():
        listed = sdk.recommend(user, FILMS, exclude_seen=False)
        answers["device SDK"].append(by_key([(each.key, each.score) for each in listed]))
    expected = {"float32": [in_torch(model, user) for user in users()]}
    expected |= {name: [in_python(files[name], user) for user in users()] for name in PRECISIONS if name != "float32"}
    compared = {place: largest(found, expected["float32"]) for place, found in answers.items()}
    for place, found_by_file in in_scripts(tmp_path, files, items).items():
        for name, lists in found_by_file.items():
            found = [by_key([(key, score) for key, score in each]) for each in lists]
            compared[place if name == "float32" else f"{place}, {name}"] = largest(found, expected[name])
    with capsys.disabled():
        sys.stdout.write("\nlargest difference of a score:\n")
        sys.stdout.writelines(f"  {place:24} {difference:.1e}\n" for place, difference in compared.items())
    assert len(compared) == 11
    assert max(compared.values()) <= TOLERANCE


def largest(found: Scores, expected: Scores) -> float:
    return max(float(np.abs(one - other).max()) for one, other in zip(found, expected, strict=True))
