"""Inference over real gRPC: a coordinator's tasks are followed, exported, served, swapped, and remembered by asking."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import structlog

from fedrecon.device_sdk import Recommender
from fedrecon.inference.collecting import export_from_server
from fedrecon.ops.boundary import refusal_of
from fedrecon.ops.logs import configure_logs
from fedrecon.v1.common_pb2 import BlobReference
from fedrecon.v1.inference_pb2 import Column, GetRecommenderRequest, RecommendRequest
from fedrecon.wire.digests import digest_of
from support.inference_deployment import (
    ITEMS,
    RETIRED,
    SECONDS,
    Deployment,
    compile_twelve_films,
    deployed,
)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_twelve_films(tmp_path_factory.mktemp("plans") / "films")


@pytest.fixture
async def deployment(tmp_path: Path, plan: Path) -> AsyncIterator[Deployment]:
    async with deployed(tmp_path, plan) as made:
        yield made


def request(task: str, keys: list[str], ratings: list[float], count: int = 3, **more: Any) -> RecommendRequest:
    columns = [Column(field="item", keys=keys), Column(field="rating", values=ratings)] if keys else []
    return RecommendRequest(task=task, columns=columns, count=count, **more)


async def refused(call: Awaitable[Any]) -> tuple[grpc.StatusCode, Any]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    explained = refusal_of(caught.value)
    assert explained is not None, caught.value
    return caught.value.code(), explained


async def test_a_committed_checkpoint_is_served_and_a_newer_one_takes_its_place(deployment: Deployment) -> None:
    first, second = deployment.task("films"), deployment.task("films", shift=0.3)
    await deployment.coordinator.commit(first, 1)
    live = await deployment.wait_for_round("films", 1)
    assert live.checkpoint_digest == first.checkpoint.digest
    assert live.plan_digest == first.spec.plan.digest
    before = await deployment.inference.Recommend(request("films", ["key-1"], [5.0]), timeout=SECONDS)
    await deployment.coordinator.commit(second, 2)
    await deployment.wait_for_round("films", 2)
    after = await deployment.inference.Recommend(request("films", ["key-1"], [5.0]), timeout=SECONDS)
    assert (before.round, after.round) == (1, 2)
    assert after.checkpoint_digest == second.checkpoint.digest
    assert [one.score for one in after.recommendations] != [one.score for one in before.recommendations]


async def test_the_service_and_the_file_on_a_device_recommend_alike(deployment: Deployment) -> None:
    await deployment.coordinator.commit(deployment.task("films"), 1)
    live = await deployment.wait_for_round("films", 1)
    content, items = await deployment.fetch(live.recommender), await deployment.fetch(live.vocabulary)
    assert digest_of(content) == live.recommender.digest
    keys, ratings = ["key-1", "key-2", "key-9"], [5.0, 1.0, 3.5]
    on_device = Recommender(content, items).recommend({"item": keys, "rating": ratings}, 5)
    answer = await deployment.inference.Recommend(
        request("films", keys, ratings, 5, exclude_seen=True), timeout=SECONDS
    )
    assert [(one.key, one.title, one.score) for one in answer.recommendations] == [
        (one.key, one.title, one.score) for one in on_device
    ]


async def test_seen_excluded_and_retired_items_are_left_out_and_unknown_keys_are_named(deployment: Deployment) -> None:
    await deployment.coordinator.commit(deployment.task("films"), 1)
    await deployment.wait_for_round("films", 1)
    asked = request(
        "films",
        ["key-1", "gone", "key-2", "gone"],
        [5.0, 2.0, 1.0, 2.0],
        100,
        exclude_seen=True,
        excluded_keys=["key-7", "nobody"],
    )
    answer = await deployment.inference.Recommend(asked, timeout=SECONDS)
    assert list(answer.unknown_keys) == ["gone"]
    expected = {f"key-{row}" for row in range(ITEMS)} - {"key-1", "key-2", "key-7", f"key-{RETIRED}"}
    assert {one.key for one in answer.recommendations} == expected
    without_unknown = request("films", ["key-1", "key-2"], [5.0, 1.0], 1)
    same = await deployment.inference.Recommend(without_unknown, timeout=SECONDS)
    with_unknown = request("films", ["key-1", "gone", "key-2"], [5.0, 2.0, 1.0], 1)
    assert (await deployment.inference.Recommend(with_unknown, timeout=SECONDS)).recommendations == same.recommendations


async def test_a_user_without_examples_is_served(deployment: Deployment) -> None:
    await deployment.coordinator.commit(deployment.task("films"), 1)
    await deployment.wait_for_round("films", 1)
    answer = await deployment.inference.Recommend(request("films", [], [], 4), timeout=SECONDS)
    assert len(answer.recommendations) == 4


@pytest.mark.parametrize(
    ("asked", "reason", "named"),
    [
        (request("films", ["key-1"], [7.0]), "OUT_OF_SCALE", "rating holds 7; its scale is 0.5 to 5"),
        (request("films", ["key-1"], [float("nan")]), "NOT_FINITE", "rating holds nan"),
        (request("films", ["key-1"], [5.0], 0), "BAD_COUNT", "0 recommendations"),
        (request("films", ["key-1", "key-2"], [5.0]), "UNEQUAL_COLUMNS", "item 2, rating 1"),
        (
            RecommendRequest(task="films", count=1, columns=[Column(field="item", keys=["key-1"])]),
            "WRONG_FIELDS",
            "the model takes item, rating",
        ),
        (
            RecommendRequest(task="films", count=1, columns=[Column(field="item"), Column(field="item")]),
            "WRONG_FIELDS",
            "more than one column",
        ),
        (
            RecommendRequest(
                task="films",
                count=1,
                columns=[Column(field="item", values=[1.0]), Column(field="rating", values=[1.0])],
            ),
            "WRONG_COLUMN",
            "item has numbers, but holds keys of items",
        ),
    ],
)
async def test_wrong_examples_are_refused_by_name(
    deployment: Deployment, asked: RecommendRequest, reason: str, named: str
) -> None:
    await deployment.coordinator.commit(deployment.task("films"), 1)
    await deployment.wait_for_round("films", 1)
    code, explained = await refused(deployment.inference.Recommend(asked, timeout=SECONDS))
    assert (code, explained.reason) == (grpc.StatusCode.INVALID_ARGUMENT, reason)
    assert named in explained.message


async def test_an_unknown_task_is_told_apart_from_one_that_has_nothing_yet(deployment: Deployment) -> None:
    waiting = deployment.task("waiting", checkpoint=BlobReference())
    await deployment.coordinator.commit(waiting, 0)
    async with asyncio.timeout(SECONDS):
        while True:
            call = deployment.inference.GetRecommender(GetRecommenderRequest(task="waiting"), timeout=SECONDS)
            code, explained = await refused(call)
            if code is grpc.StatusCode.FAILED_PRECONDITION:
                break
            await asyncio.sleep(0.05)
    assert explained.reason == "NOT_READY"
    assert explained.retry.max_milliseconds > 0
    async with asyncio.timeout(SECONDS):
        while explained.reason != "UNKNOWN_TASK":
            code, explained = await refused(deployment.inference.Recommend(request("nothing", [], []), timeout=SECONDS))
    assert code is grpc.StatusCode.NOT_FOUND


async def test_a_checkpoint_that_cannot_be_exported_does_not_displace_the_one_before(deployment: Deployment) -> None:
    await deployment.coordinator.commit(deployment.task("films"), 1)
    await deployment.wait_for_round("films", 1)
    await deployment.coordinator.commit(deployment.task("films", shift=float("nan")), 2)
    await deployment.coordinator.commit(deployment.task("other", shift=float("nan")), 3)
    async with asyncio.timeout(SECONDS):
        while True:
            call = deployment.inference.GetRecommender(GetRecommenderRequest(task="other"), timeout=SECONDS)
            _, explained = await refused(call)
            if explained.reason == "NOT_EXPORTABLE":
                break
            await asyncio.sleep(0.05)
    assert "training diverged" in explained.message
    live = await deployment.inference.GetRecommender(GetRecommenderRequest(task="films"), timeout=SECONDS)
    assert live.round == 1
    await deployment.coordinator.commit(deployment.task("films", shift=0.2), 4)
    await deployment.wait_for_round("films", 4)


async def test_nothing_of_the_user_is_logged(deployment: Deployment) -> None:
    await deployment.coordinator.commit(deployment.task("films"), 1)
    await deployment.wait_for_round("films", 1)
    stream, before = io.StringIO(), (logging.getLogger().handlers, logging.getLogger().level)
    configure_logs("inference", level="debug", form="json", stream=stream)
    try:
        asked = request("films", ["key-1", "a secret film"], [3.75, 4.25], excluded_keys=["key-9"])
        answer = await deployment.inference.Recommend(asked, timeout=SECONDS)
        wrong = request("films", ["key-1"], [66.5])
        await refused(deployment.inference.Recommend(wrong, timeout=SECONDS))
    finally:
        logging.getLogger().handlers, level = before[0], before[1]
        logging.getLogger().setLevel(level)
        structlog.reset_defaults()
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    calls = [line for line in lines if line["event"] == "call ended"]
    assert [call["reason"] for call in calls] == ["", "OUT_OF_SCALE"]
    known = {"code", "event", "level", "logger", "method", "reason", "seconds", "service", "timestamp"}
    assert all(set(line) <= known for line in lines)
    private = ["secret", "key-", *(one.title for one in answer.recommendations)]
    assert [word for word in private if word in stream.getvalue()] == []


async def test_what_is_live_is_the_same_after_a_restart(deployment: Deployment) -> None:
    await deployment.coordinator.commit(deployment.task("films"), 5)
    before = await deployment.wait_for_round("films", 5)
    await deployment.restart()
    assert await deployment.wait_for_round("films", 5) == before


async def test_a_command_exports_the_very_file_that_is_served(deployment: Deployment) -> None:
    await deployment.coordinator.commit(deployment.task("films"), 6)
    live = await deployment.wait_for_round("films", 6)
    exported = await asyncio.to_thread(
        export_from_server, "films", deployment.coordinator_target, deployment.inference_target
    )
    assert digest_of(exported.recommender) == live.recommender.digest
    assert digest_of(exported.items) == live.vocabulary.digest
    assert exported.round == 6
