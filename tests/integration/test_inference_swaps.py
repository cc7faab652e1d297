"""A newer recommender takes its place while users ask: no call fails, and every answer is from exactly one version."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from fedrecon.device_sdk import Recommender
from fedrecon.v1.inference_pb2 import Column, RecommendRequest, RecommendResponse
from support.inference_deployment import SECONDS, Deployment, deployed

PLAN = Path(__file__).parent.parent.parent / "protos" / "vectors" / "films-ridge"
TASK, CALLERS, COUNT = "films", 8, 5


async def swap_under_load(deployment: Deployment, swaps: int) -> None:
    """Swaps versions while callers ask, and checks every answer against the file of its version."""
    random = np.random.default_rng(0)
    files = {1: await commit(deployment, 1)}
    known = files[1].items.keys
    keys = [known[row] for row in random.choice(len(known), CALLERS, replace=False)]
    ratings = random.uniform(1, 5, CALLERS).tolist()
    # Callers differ, so that an answer given to the wrong one is seen.
    users = [{"item": keys[: 1 + caller], "rating": ratings[: 1 + caller]} for caller in range(CALLERS)]
    answers: list[tuple[int, RecommendResponse]] = []
    stopping = asyncio.Event()

    async def ask(caller: int) -> None:
        columns = [
            Column(field="item", keys=users[caller]["item"]),
            Column(field="rating", values=users[caller]["rating"]),
        ]
        request = RecommendRequest(task=TASK, columns=columns, count=COUNT, exclude_seen=True)
        while not stopping.is_set():
            answers.append((caller, await deployment.inference.Recommend(request, timeout=SECONDS)))

    async with asyncio.TaskGroup() as group:
        for caller in range(CALLERS):
            group.create_task(ask(caller))
        for round_number in range(2, swaps + 2):
            files[round_number] = await commit(deployment, round_number)
            seen = len(answers)
            while len(answers) < seen + CALLERS:  # noqa: ASYNC110 - the callers' own list
                await asyncio.sleep(0.001)
        stopping.set()
    expected = {
        (caller, round_number): file.recommend(user, COUNT)
        for round_number, file in files.items()
        for caller, user in enumerate(users)
    }
    for caller, answer in answers:
        own = expected[caller, answer.round]
        assert [each.key for each in answer.recommendations] == [each.key for each in own]
        scores = [each.score for each in answer.recommendations]
        assert scores == pytest.approx([each.score for each in own], abs=1e-5)
    assert {answer.round for _, answer in answers} == set(files)


async def commit(deployment: Deployment, round_number: int) -> Recommender:
    """Commits another checkpoint, and returns its file once it is live."""
    await deployment.coordinator.commit(deployment.task(TASK, 0.02 * round_number), round_number)
    live = await deployment.wait_for_round(TASK, round_number)
    items = await deployment.fetch(live.vocabulary)
    return Recommender(await deployment.fetch(live.recommender), items)


@pytest.mark.parametrize("swaps", [5, pytest.param(100, marks=pytest.mark.slow)])
async def test_no_call_fails_while_versions_are_swapped_and_answers_are_of_one_version(
    tmp_path: Path, swaps: int
) -> None:
    async with deployed(tmp_path, PLAN) as deployment:
        await swap_under_load(deployment, swaps)
