"""`fedrecon recommenders` against services that tell what a test wants."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from fedrecon.ops.command import main
from fedrecon.v1 import admin_pb2
from fedrecon.v1.admin_pb2_grpc import AdminServicer, add_AdminServicer_to_server
from fedrecon.v1.blobs_pb2 import FetchRequest, FetchResponse
from fedrecon.v1.blobs_pb2_grpc import BlobsServicer, add_BlobsServicer_to_server
from fedrecon.v1.common_pb2 import BlobReference
from fedrecon.v1.task_pb2 import Serving, TaskSpec
from fedrecon.wire.chunks import cut
from fedrecon.wire.digests import digest_of
from fedrecon.wire.tensors import write_safetensors
from support.inference_sample import ITEMS, Sample, make_sample

LIVE, CANARY, CANDIDATE = (
    admin_pb2.RECOMMENDER_STAGE_LIVE,
    admin_pb2.RECOMMENDER_STAGE_CANARY,
    admin_pb2.RECOMMENDER_STAGE_CANDIDATE,
)


class Services(AdminServicer, BlobsServicer):
    """A coordinator and blobs: a live version, and a candidate that learned less."""

    def __init__(self, sample: Sample) -> None:
        self.blobs = dict(sample.blobs)
        manifest = self.keep(sample.manifest)
        spec = TaskSpec(name="films", plan=manifest, serving=Serving(data_statement="Ratings that were made up."))
        better = write_safetensors(sample.checkpoint)
        worse = write_safetensors({name: values * 0 for name, values in sample.checkpoint.items()})
        self.versions = [
            admin_pb2.Recommender(version=2, stage=CANDIDATE, round=20, checkpoint=self.keep(worse), spec=spec),
            admin_pb2.Recommender(
                version=1,
                stage=LIVE,
                round=10,
                checkpoint=self.keep(better),
                spec=spec,
                click_through=admin_pb2.Measured(name="click_through", value=0.08, lowest=0.07, highest=0.09),
                shown=12_345,
            ),
        ]
        self.promoted: list[admin_pb2.PromoteRecommenderRequest] = []
        self.rolled_back: list[admin_pb2.RollBackRecommenderRequest] = []

    def keep(self, content: bytes) -> BlobReference:
        self.blobs[digest_of(content)] = content
        return BlobReference(digest=digest_of(content), size=len(content))

    def ListRecommenders(self, request: Any, context: Any) -> admin_pb2.ListRecommendersResponse:  # noqa: N802
        del request, context
        return admin_pb2.ListRecommendersResponse(recommenders=self.versions, refusals={2: "its recall is not known"})

    def AdmitRecommender(self, request: Any, context: Any) -> admin_pb2.AdmitRecommenderResponse:  # noqa: N802
        del context
        admitted = admin_pb2.Recommender(version=3, stage=CANDIDATE, round=request.round)
        return admin_pb2.AdmitRecommenderResponse(recommender=admitted)

    def PromoteRecommender(  # noqa: N802
        self, request: admin_pb2.PromoteRecommenderRequest, context: Any
    ) -> admin_pb2.PromoteRecommenderResponse:
        del context
        self.promoted.append(request)
        stage = CANARY if request.HasField("canary_places") else LIVE
        told = admin_pb2.Recommender(version=request.version, stage=stage, round=20, evidence=request.evidence)
        return admin_pb2.PromoteRecommenderResponse(recommender=told)

    def RollBackRecommender(self, request: Any, context: Any) -> admin_pb2.RollBackRecommenderResponse:  # noqa: N802
        del context
        self.rolled_back.append(request)
        return admin_pb2.RollBackRecommenderResponse(recommender=self.versions[1])

    def GetTask(self, request: Any, context: Any) -> admin_pb2.GetTaskResponse:  # noqa: N802
        del request, context
        task = admin_pb2.Task(spec=self.versions[1].spec, recommenders=self.versions[1:])
        return admin_pb2.GetTaskResponse(task=task)

    def GetPrivacy(self, request: Any, context: Any) -> admin_pb2.GetPrivacyResponse:  # noqa: N802
        del request, context
        return admin_pb2.GetPrivacyResponse(statement="no DP guarantee: the task adds no noise")

    def Fetch(self, request: FetchRequest, context: Any) -> Iterator[FetchResponse]:  # noqa: N802
        del context
        for chunk in cut(self.blobs[request.digest], request.offset):
            yield FetchResponse(chunk=chunk)


@pytest.fixture
def services() -> Iterator[tuple[Services, list[str]]]:
    made = Services(make_sample())  # type: ignore[abstract]  # the commands call no other method
    server = grpc.server(ThreadPoolExecutor(4))
    add_AdminServicer_to_server(made, server)
    add_BlobsServicer_to_server(made, server)
    target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield made, ["--server", target]
    server.stop(None).wait()


@pytest.fixture
def users(tmp_path: Path) -> Path:
    random = np.random.default_rng(4)
    lines = ["user,item,rating"]
    for user in range(30):
        rows = random.permutation(ITEMS)[:14]
        lines += [f"u{user},key-{row},{random.integers(1, 6)}" for row in rows]
    path = tmp_path / "users.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_list_says_what_stands_in_a_candidates_way(
    services: tuple[Services, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    _, server = services
    assert main(["recommenders", "list", "films", *server]) == 0
    told = capsys.readouterr().out
    assert "Version 2: its recall is not known." in told
    assert "0.0800" in told
    assert main(["recommenders", "list", "films", *server, "--json"]) == 0
    assert [each["version"] for each in json.loads(capsys.readouterr().out)["recommenders"]] == ["2", "1"]


def test_promote_judges_the_newest_candidate_and_the_live_one_on_the_same_users(
    services: tuple[Services, list[str]], users: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, server = services
    judged = ["--users", str(users), "--everybody", "--blobs", server[1]]
    assert main(["recommenders", "promote", "films", *server, *judged, "--canary", "2.5"]) == 0
    (request,) = made.promoted
    assert (request.version, request.canary_places, request.override) == (2, 250, "")
    assert (request.evidence.users, request.evidence.live_version) == (30, 1)
    assert request.evidence.source == "all users of users.csv"
    by_name = {each.name: each for each in request.evidence.measures}
    assert set(by_name) == {"rmse", "recall", "ndcg", "coverage"}
    # A model that knows nothing of items shows the same ones to everybody.
    assert by_name["coverage"].highest_difference < 0
    assert by_name["rmse"].lowest_difference < by_name["rmse"].highest_difference
    told = capsys.readouterr().out
    assert "Judged on 30 users" in told
    assert "is the canary of 2.5% of devices" in told


def test_promote_without_users_leaves_the_judgement_to_evaluation_rounds(
    services: tuple[Services, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    made, server = services
    assert main(["recommenders", "promote", "films", "2", *server, "--override", "it was withdrawn"]) == 0
    (request,) = made.promoted
    assert not request.HasField("evidence")
    assert not request.HasField("canary_places")
    assert request.override == "it was withdrawn"
    assert "Version 2 (round 20) is live." in capsys.readouterr().out


def test_an_unknown_version_is_a_mistake(
    services: tuple[Services, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    made, server = services
    assert main(["recommenders", "promote", "films", "9", *server]) == 2
    assert "has no version 9" in capsys.readouterr().err
    made.versions = made.versions[1:]
    assert main(["recommenders", "promote", "films", *server]) == 2
    assert "fedrecon recommenders admit films ROUND" in capsys.readouterr().err
    assert made.promoted == []


def test_admit_and_rollback_say_what_is_so_now(
    services: tuple[Services, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    made, server = services
    assert main(["recommenders", "admit", "films", "30", *server]) == 0
    assert "Round 30 is version 3, candidate." in capsys.readouterr().out
    assert main(["recommenders", "rollback", "films", *server, "--reason", "slow"]) == 0
    assert (made.rolled_back[0].version, made.rolled_back[0].reason) == (0, "slow")
    assert "Live is version 1 (round 10)." in capsys.readouterr().out


def test_the_card_names_data_privacy_and_every_file(
    services: tuple[Services, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    made, server = services
    command = ["recommenders", "card", "films", *server, "--blobs", server[1]]
    assert main([*command, "--json"]) == 0
    card = json.loads(capsys.readouterr().out)
    assert (card["version"], card["round"]) == (1, 10)
    assert card["files"]["checkpoint"]["digest"] == made.versions[1].checkpoint.digest.hex()
    assert card["largest_difference_from_plan"] < 1e-5
    assert main(command) == 0
    page = capsys.readouterr().out
    for part in ("# films, version 1", "Ratings that were made up.", "no DP guarantee: the task adds no noise"):
        assert part in page
    assert card["files"]["recommender"]["digest"] in page
    assert "Not judged before it was served." in page
    assert "Of 12,345 recommendations that held-out devices showed, 8.0% were chosen (0.0700 to 0.0900)." in page
