"""Inference over plain HTTP: the same answers as over gRPC, files that are fetched once, refusals that say why."""

from __future__ import annotations

import asyncio
import gzip
import http.client
import json
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from google.protobuf import json_format

from fedrecon.ops.http_server import MOST_BODY_BYTES
from fedrecon.v1.admin_pb2 import RECOMMENDER_STAGE_CANARY, RECOMMENDER_STAGE_LIVE, Recommender
from fedrecon.v1.inference_pb2 import FindSimilarRequest, GetRecommenderRequest, RecommendRequest, RecommendResponse
from fedrecon.wire.digests import digest_of
from fedrecon.wire.tensors import read_safetensors
from support.inference_deployment import ITEMS, RETIRED, SECONDS, Deployment, compile_twelve_films, deployed

RATED = {"columns": [{"field": "item", "keys": ["key-1", "key-7"]}, {"field": "rating", "values": [5, 1]}]}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_twelve_films(tmp_path_factory.mktemp("plans") / "films")


@pytest.fixture
async def deployment(tmp_path: Path, plan: Path) -> AsyncIterator[Deployment]:
    async with deployed(tmp_path, plan) as made:
        await made.coordinator.commit(made.task("films", 0.25), 3)
        async with asyncio.timeout(SECONDS):
            while (await ask(made, "/v1/tasks/films")).status != 200:  # noqa: ASYNC110 - it is asked over HTTP
                await asyncio.sleep(0.02)
        yield made


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def told(self) -> Any:
        return json.loads(self.body)


async def ask(
    deployment: Deployment, path: str, body: Any = None, method: str = "", headers: Mapping[str, str] | None = None
) -> Answer:
    def call() -> Answer:
        connection = http.client.HTTPConnection(urlsplit(deployment.http).netloc, timeout=SECONDS)
        try:
            content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            connection.request(method or ("GET" if body is None else "POST"), path, content, dict(headers or {}))
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, found, response.read())
        finally:
            connection.close()

    return await asyncio.to_thread(call)


async def test_http_recommends_what_grpc_does(deployment: Deployment) -> None:
    asked = {**RATED, "count": 4, "exclude_seen": True, "excluded_keys": ["key-2"], "reasons": 2}
    answer = await ask(deployment, "/v1/tasks/films/recommend", asked)
    request = json_format.ParseDict(asked, RecommendRequest(task="films"))
    response = await deployment.inference.Recommend(request, timeout=SECONDS)
    assert answer.status == 200
    assert answer.headers["cache-control"] == "no-store"
    told = answer.told
    assert told.pop("checkpoint_digest") == response.checkpoint_digest.hex()
    assert json_format.ParseDict(told, RecommendResponse(checkpoint_digest=response.checkpoint_digest)) == response
    assert len(response.recommendations) == 4
    assert {"key-1", "key-2", "key-7"}.isdisjoint(each.key for each in response.recommendations)


async def test_a_user_without_examples_and_a_body_without_anything_is_served(deployment: Deployment) -> None:
    answer = await ask(deployment, "/v1/tasks/films/recommend", b"")
    assert [answer.status, len(answer.told["recommendations"])] == [200, 10]


async def test_a_reason_is_what_the_score_loses_without_the_example(deployment: Deployment) -> None:
    asked = {**RATED, "count": ITEMS, "exclude_seen": False, "reasons": 2}
    explained = (await ask(deployment, "/v1/tasks/films/recommend", asked)).told["recommendations"]
    without = {"columns": [{"field": "item", "keys": ["key-7"]}, {"field": "rating", "values": [1]}]}
    left = (await ask(deployment, "/v1/tasks/films/recommend", {**without, "count": ITEMS, "exclude_seen": False})).told
    scores = {each["key"]: each["score"] for each in left["recommendations"]}
    effects = {
        each["key"]: reason["effect"] for each in explained for reason in each["reasons"] if reason["key"] == "key-1"
    }
    assert effects, "the film that was liked best speaks for something"
    for each in explained:
        lost = each["score"] - scores[each["key"]]
        assert effects.get(each["key"], 0.0) == pytest.approx(max(lost, 0.0), abs=1e-5)
        assert [reason["effect"] for reason in each["reasons"]] == sorted(
            (reason["effect"] for reason in each["reasons"]), reverse=True
        )


async def test_only_what_is_allowed_is_recommended(deployment: Deployment) -> None:
    allowed = ["key-3", "key-5", f"key-{RETIRED}", "key-7", "nobody knows it"]
    answer = await ask(
        deployment, "/v1/tasks/films/recommend", {**RATED, "allowed_keys": allowed, "excluded_keys": ["key-5"]}
    )
    assert [each["key"] for each in answer.told["recommendations"]] == ["key-3"]
    nothing = await ask(deployment, "/v1/tasks/films/recommend", {**RATED, "allowed_keys": ["key-1"]})
    assert (nothing.status, nothing.told["reason"]) == (400, "NOTHING_ALLOWED")


async def test_similar_items_are_those_whose_vectors_point_the_same_way(deployment: Deployment) -> None:
    answer = await ask(deployment, "/v1/tasks/films/similar/key-2?count=20")
    told = answer.told["similar"]
    live = (await ask(deployment, "/v1/tasks/films")).told
    table = read_safetensors(deployment.blobs.read(bytes.fromhex(live["checkpoint_digest"])))["item_vectors.weight"]
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    expected = {f"key-{row}": float(unit[row] @ unit[2]) for row in range(ITEMS) if row not in {2, RETIRED}}
    assert {each["key"]: each["score"] for each in told} == pytest.approx(expected, abs=1e-6)
    assert [each["score"] for each in told] == sorted((each["score"] for each in told), reverse=True)
    over_grpc = await deployment.inference.FindSimilar(
        FindSimilarRequest(task="films", key="key-2", count=20), timeout=SECONDS
    )
    assert [each.key for each in over_grpc.similar] == [each["key"] for each in told]
    assert (await ask(deployment, "/v1/tasks/films/similar/nothing")).told["reason"] == "UNKNOWN_KEY"
    assert (await ask(deployment, "/v1/tasks/films/similar/key-2?count=-1")).status == 400


async def test_files_are_fetched_once_in_parts_and_compressed(deployment: Deployment) -> None:
    live = (await ask(deployment, "/v1/tasks/films")).told
    path, digest = "/v1/tasks/films/recommender.onnx", live["recommender"]["digest"]
    whole = await ask(deployment, path)
    assert digest_of(whole.body).hex() == digest
    assert len(whole.body) == live["recommender"]["size"]
    tag = whole.headers["etag"]
    again = await ask(deployment, path, headers={"If-None-Match": tag})
    assert (again.status, again.body) == (304, b"")
    packed = await ask(deployment, path, headers={"Accept-Encoding": "gzip, br"})
    assert len(packed.body) < len(whole.body)
    assert gzip.decompress(packed.body) == whole.body
    weak = await ask(deployment, path, headers={"If-None-Match": packed.headers["etag"]})
    assert weak.status == 304
    parts = [await ask(deployment, path, headers={"Range": each}) for each in ("bytes=0-99", "bytes=100-", "bytes=-7")]
    assert [part.status for part in parts] == [206] * 3
    assert parts[0].body + parts[1].body == whole.body
    assert parts[2].body == whole.body[-7:]
    assert parts[0].headers["content-range"] == f"bytes 0-99/{len(whole.body)}"
    other = await ask(deployment, path, headers={"Range": "bytes=0-9", "If-Range": '"another"'})
    assert (other.status, other.body) == (200, whole.body)
    for wrong in ("bytes=", "bytes=-", f"bytes={len(whole.body)}-", "bytes=9-3", "lines=1-2"):
        assert (await ask(deployment, path, headers={"Range": wrong})).status == 416
    by_digest = await ask(deployment, live["items"]["path"])
    assert digest_of(by_digest.body).hex() == live["items"]["digest"]
    assert "immutable" in by_digest.headers["cache-control"]


async def test_only_files_that_are_live_are_given_out(deployment: Deployment) -> None:
    secret = deployment.blobs.put(b"an optimizer's state").hex()
    for digest in (secret, secret.upper(), "..", "0" * 64):
        assert (await ask(deployment, f"/v1/blobs/{digest}")).status == 404


@pytest.mark.parametrize(
    ("path", "body", "status", "reason"),
    [
        ("/v1/tasks/nothing", None, 404, "UNKNOWN_TASK"),
        ("/v1/nothing", None, 404, "UNKNOWN_PATH"),
        ("/v1/tasks/films/recommend", None, 405, "WRONG_METHOD"),
        ("/v1/tasks/films/recommend", b"{", 400, "MALFORMED_REQUEST"),
        ("/v1/tasks/films/recommend", b"\xff\xfe", 400, "MALFORMED_REQUEST"),
        ("/v1/tasks/films/recommend", {"cuont": 3}, 400, "MALFORMED_REQUEST"),
        ("/v1/tasks/films/recommend", {"count": 0}, 400, "BAD_COUNT"),
        ("/v1/tasks/films/recommend", {"columns": [{"field": "item", "keys": ["key-1"]}]}, 400, "WRONG_FIELDS"),
        ("/v1/tasks/films/recommend", b" " * (MOST_BODY_BYTES + 1), 400, "TOO_LARGE"),
    ],
)
async def test_bad_requests_are_told_what_is_wrong(
    deployment: Deployment, path: str, body: Any, status: int, reason: str
) -> None:
    answer = await ask(deployment, path, body)
    assert (answer.status, answer.told["reason"]) == (status, reason)
    assert answer.told["message"]
    assert answer.told["advice"]


async def test_numbers_that_are_none_are_refused_over_http_too(deployment: Deployment) -> None:
    columns = [{"field": "item", "keys": ["key-1"]}, {"field": "rating", "values": ["NaN"]}]
    answer = await ask(deployment, "/v1/tasks/films/recommend", {"columns": columns})
    assert (answer.status, answer.told["reason"]) == (400, "NOT_FINITE")


async def test_the_description_names_every_path_and_field(deployment: Deployment) -> None:
    told = (await ask(deployment, "/openapi.json")).told
    assert told["openapi"].startswith("3.1")
    asked = told["components"]["schemas"]["RecommendRequest"]["properties"]
    assert {"columns", "count", "exclude_seen", "excluded_keys", "allowed_keys", "reasons", "place", "version"} == set(
        asked
    )
    for path, operations in told["paths"].items():
        for method in operations:
            filled = path.format(task="films", key="key-2", digest="0" * 64)
            answer = await ask(deployment, filled, b"{}" if method == "post" else None)
            assert answer.status == (404 if "blobs" in path else 200), path


async def test_a_newer_checkpoint_takes_the_place_of_the_one_before(deployment: Deployment) -> None:
    before = (await ask(deployment, "/v1/tasks/films")).told
    await deployment.coordinator.commit(deployment.task("films", 0.5), 4)
    async with asyncio.timeout(SECONDS):
        while (now := (await ask(deployment, "/v1/tasks/films")).told)["round"] != 4:  # noqa: ASYNC110 - likewise
            await asyncio.sleep(0.02)
    stale = await ask(
        deployment,
        "/v1/tasks/films/recommender.onnx",
        headers={"If-None-Match": f'"{before["recommender"]["digest"]}"'},
    )
    assert stale.status == 200
    assert digest_of(stale.body).hex() == now["recommender"]["digest"]


async def test_live_and_canary_answer_by_place_and_say_which_they_are(deployment: Deployment) -> None:
    live, canary = deployment.task("films", 0.25), deployment.task("films", 0.5)
    promoted = [
        Recommender(version=2, stage=RECOMMENDER_STAGE_LIVE, round=3, checkpoint=live.checkpoint, spec=live.spec),
        Recommender(
            version=5,
            stage=RECOMMENDER_STAGE_CANARY,
            round=9,
            checkpoint=canary.checkpoint,
            spec=canary.spec,
            canary_places=2_500,
        ),
    ]
    await deployment.coordinator.commit(deployment.task("films", 0.75, recommenders=promoted), 11)
    async with asyncio.timeout(SECONDS):
        while "canary" not in (told := (await ask(deployment, "/v1/tasks/films")).told):  # noqa: ASYNC110 - likewise
            await asyncio.sleep(0.02)
    assert (told["version"], told["round"]) == (2, 3)
    assert told["canary"] == {"version": 5, "round": 9, "places": 2_500}
    over_http: dict[Any, Any] = {}
    for asked in ({}, {"place": 2_499}, {"place": 2_500}, {"version": 5}, {"place": 0, "version": 2}):
        answer = await ask(deployment, "/v1/tasks/films/recommend", {**RATED, **asked})
        request = json_format.ParseDict({**RATED, **asked, "task": "films", "count": 10}, RecommendRequest())
        request.exclude_seen = True
        response = await deployment.inference.Recommend(request, timeout=SECONDS)
        assert answer.told["version"] == str(response.version)
        assert answer.told["checkpoint_digest"] == response.checkpoint_digest.hex()
        over_http[tuple(asked.items())] = response.version
    assert list(over_http.values()) == [2, 5, 2, 5, 2]
    similar = await ask(deployment, "/v1/tasks/films/similar/key-1?place=17")
    assert similar.told["version"] == "5"
    for wrong, status, reason in (("place=10000", 400, "BAD_PLACE"), ("version=4", 404, "UNKNOWN_VERSION")):
        answer = await ask(deployment, f"/v1/tasks/films?{wrong}")
        assert (answer.status, answer.told["reason"]) == (status, reason)
    held = await ask(deployment, "/v1/tasks/films/recommender.onnx?version=5")
    named = await deployment.inference.GetRecommender(GetRecommenderRequest(task="films"), timeout=SECONDS)
    assert (named.version, named.canary.places, named.canary.recommender.version) == (2, 2_500, 5)
    assert digest_of(held.body) == named.canary.recommender.recommender.digest


async def test_the_card_of_what_is_live_names_its_files_and_claims_nothing_more(deployment: Deployment) -> None:
    card = (await ask(deployment, "/v1/tasks/films/card.json")).told
    live = (await ask(deployment, "/v1/tasks/films")).told
    assert card["files"]["recommender"]["digest"] == live["recommender"]["digest"]
    assert card["privacy"] == "no DP guarantee: the task has no noise"
    assert card["quality"] is None
    page = await ask(deployment, "/v1/tasks/films/card.md")
    assert page.headers["content-type"].startswith("text/markdown")
    assert live["checkpoint_digest"] in page.body.decode()


async def test_the_playground_is_a_page_that_may_load_nothing_from_elsewhere(deployment: Deployment) -> None:
    page = await ask(deployment, "/")
    assert page.status == 200
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "http" not in policy
    named = re.findall(r'(?:src|href)="(/[^"]+)"', page.body.decode())
    assert len(named) >= 2
    for path in named:
        packed = await ask(deployment, path, headers={"Accept-Encoding": "gzip"})
        plain = await ask(deployment, path)
        assert (packed.status, plain.status) == (200, 200)
        assert gzip.decompress(packed.body) == plain.body
        assert (await ask(deployment, path, headers={"If-None-Match": plain.headers["etag"]})).status == 304
    for wrong in ("/playground/../http_face.py", "/playground/%2e%2e/http_face.py", "/playground/nothing.js"):
        assert (await ask(deployment, wrong)).status == 404
    live = (await ask(deployment, "/v1/tasks")).told
    assert live == {"tasks": [{"task": "films", "round": 3, "version": 0}]}
