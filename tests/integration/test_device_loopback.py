"""A device against real gRPC servers on the loopback: what arrives there, and what never does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from concurrent import futures
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from fedrecon.device_sdk import Device, ExampleStore, Outcome, Participation
from fedrecon.device_sdk.blob_cache import BlobCache
from fedrecon.device_sdk.calling import Patience
from fedrecon.device_sdk.columns import map_examples, rule_of
from fedrecon.device_sdk.errors import InvalidExampleError, NoModelError, UnreachableError
from fedrecon.device_sdk.plans import load_plan, read_checkpoint
from fedrecon.device_sdk.runtime import Seeds, agreement, report_vector, train
from fedrecon.device_sdk.transport import AsyncTransport
from fedrecon.v1 import admin_pb2, aggregator_pb2, blobs_pb2, coordinator_pb2
from fedrecon.v1.aggregator_pb2 import JoinResponse, UploadRequest, UploadResponse, UploadStatusResponse
from fedrecon.v1.aggregator_pb2_grpc import AggregatorServicer, add_AggregatorServicer_to_server
from fedrecon.v1.blobs_pb2 import FetchRequest, FetchResponse
from fedrecon.v1.blobs_pb2_grpc import BlobsServicer, add_BlobsServicer_to_server
from fedrecon.v1.common_pb2 import BlobReference, ErrorInfo, RetryWindow, RetryWindows
from fedrecon.v1.coordinator_pb2 import CheckInResponse, FinishSessionResponse, LocateResponse
from fedrecon.v1.coordinator_pb2_grpc import CoordinatorServicer, add_CoordinatorServicer_to_server
from fedrecon.v1.inference_pb2 import Canary, GetRecommenderResponse
from fedrecon.v1.inference_pb2_grpc import InferenceServicer, add_InferenceServicer_to_server
from fedrecon.wire import chunks
from fedrecon.wire.digests import digest_of
from fedrecon.wire.vocabularies import read_vocabulary
from support import device_bundle as bundle

PUBLISHER = bundle.PUBLISHER.public_key().public_bytes_raw().hex()
WINDOWS = RetryWindows(accepted=RetryWindow(min_milliseconds=1000, max_milliseconds=2000))
QUICK = Patience(attempts=3, session_attempts=5, first_seconds=0.01)
RATINGS = [("film-4", 5.0), ("film-1", 1.0), ("film-0", 3.0), ("film-1", 4.0), ("film-2", 0.5), ("film-4", 1.5)]


class Services(CoordinatorServicer, AggregatorServicer, BlobsServicer, InferenceServicer):
    """Coordinator, aggregator, blobs and inference in one; remembers every message that arrived."""

    def __init__(self, plan: Any) -> None:
        self.plan = plan
        self.blobs: dict[bytes, bytes] = dict(plan.blobs)
        self.assignment = bundle.make_assignment(plan)
        self.arrived: list[Message] = []
        self.vectors: list[bytes] = []
        self.refusals: dict[str, ErrorInfo] = {}
        self.fetch_breaks = False
        self.canary_places: int | None = None
        self.version = 0

    def note(self, message: Message, context: grpc.ServicerContext) -> None:
        assert context.time_remaining() is not None, "every call has a deadline"
        assert context.time_remaining() < 1000
        self.arrived.append(message)
        refusal = self.refusals.get(type(message).__name__)
        if refusal is not None:
            context.set_trailing_metadata((("fedrecon-error-bin", refusal.SerializeToString()),))
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, refusal.message)

    def CheckIn(self, request: Any, context: Any) -> CheckInResponse:  # noqa: N802
        self.note(request, context)
        return CheckInResponse(assignment=self.assignment, retry_windows=WINDOWS, minimum_examples=3)

    def FinishSession(self, request: Any, context: Any) -> FinishSessionResponse:  # noqa: N802
        self.note(request, context)
        return FinishSessionResponse(fate=coordinator_pb2.REPORT_FATE_COUNTED, retry_windows=WINDOWS)

    def Join(self, request: Any, context: Any) -> JoinResponse:  # noqa: N802
        self.note(request, context)
        return JoinResponse(group=b"g" * 16, phase=aggregator_pb2.GROUP_PHASE_UPLOADING)

    def UploadStatus(self, request: Any, context: Any) -> UploadStatusResponse:  # noqa: N802
        self.note(request, context)
        return UploadStatusResponse(phase=aggregator_pb2.GROUP_PHASE_UPLOADING)

    def Upload(self, request_iterator: Iterator[UploadRequest], context: Any) -> UploadResponse:  # noqa: N802
        header = next(request_iterator)
        self.note(header, context)
        content = bytearray()
        for part in request_iterator:
            self.note(part, context)
            content += chunks.take(part.chunk, len(content), header.header.size)
        assert digest_of(content) == header.header.digest
        self.vectors.append(bytes(content))
        return UploadResponse(digest=header.header.digest, phase=aggregator_pb2.GROUP_PHASE_UPLOADING)

    def Fetch(self, request: FetchRequest, context: Any) -> Iterator[FetchResponse]:  # noqa: N802
        self.note(request, context)
        for chunk in chunks.cut(self.blobs[request.digest], request.offset, size=64):
            yield FetchResponse(chunk=chunk)
            if self.fetch_breaks:
                self.fetch_breaks = False
                context.abort(grpc.StatusCode.UNAVAILABLE, "the connection is gone")

    def GetRecommender(self, request: Any, context: Any) -> GetRecommenderResponse:  # noqa: N802
        self.note(request, context)
        file, items = self.blobs[b"file"], self.blobs[b"items"]
        self.blobs |= {digest_of(file): file, digest_of(items): items}
        whole = GetRecommenderResponse(
            recommender=BlobReference(digest=digest_of(file), size=len(file)),
            vocabulary=BlobReference(digest=digest_of(items), size=len(items)),
        )
        whole.version = self.version
        if self.canary_places is None:
            return whole
        # Nothing but the files of the whole one can be fetched: who asks for another one fails.
        other = GetRecommenderResponse(recommender=BlobReference(digest=bytes(32), size=1), vocabulary=whole.vocabulary)
        live, canary = (other, whole) if self.canary_places else (whole, other)
        live.canary.CopyFrom(Canary(places=self.canary_places, recommender=canary))
        return live

    def Stat(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        raise AssertionError("a device knows the sizes of blobs from their references")

    def Locate(self, request: Any, context: Any) -> LocateResponse:  # noqa: N802
        self.note(request, context)
        return LocateResponse(aggregator=self.assignment.aggregator)

    def Share(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        raise AssertionError("there are no shares under `trusted`")

    def Unmask(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        raise AssertionError("there are no masks under `trusted`")

    def Recommend(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        raise AssertionError("a device never sends examples to be served")

    def FindSimilar(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        raise AssertionError("a device never asks a server what is alike")


@pytest.fixture(scope="module")
def plan() -> Any:
    return bundle.make_plan()


@contextmanager
def serve(services: Services, credentials: grpc.ServerCredentials | None = None) -> Iterator[tuple[str, grpc.Server]]:
    """Runs the services on a free port of the loopback."""
    server = grpc.server(futures.ThreadPoolExecutor(4))
    add_CoordinatorServicer_to_server(services, server)
    add_AggregatorServicer_to_server(services, server)
    add_BlobsServicer_to_server(services, server)
    add_InferenceServicer_to_server(services, server)
    if credentials is None:
        target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    else:
        target = f"localhost:{server.add_secure_port('localhost:0', credentials)}"
    services.assignment.aggregator = services.assignment.blobs = target
    server.start()
    try:
        yield target, server
    finally:
        server.stop(None).wait()


@pytest.fixture
def running(plan: Any) -> Iterator[tuple[Services, str, grpc.Server]]:
    services = Services(plan)
    with serve(services) as (target, server):
        yield services, target, server


def store() -> ExampleStore:
    examples = ExampleStore(":memory:", fields={"item": str, "rating": (0.5, 5.0)})
    examples.extend({"item": key, "rating": rating, "when": when} for when, (key, rating) in enumerate(RATINGS))
    return examples


def device(target: str, **changes: Any) -> Device:
    settings: dict[str, Any] = {
        "trusted_plans": [PUBLISHER],
        "secure_sum": "allowed",
        "min_group": 5,
        "patience": QUICK,
        "entropy": lambda count: bytes([9]) * count,
    }
    return Device(target, "films", changes.pop("examples", None) or store(), **(settings | changes))


def expected(plan: Any) -> tuple[Any, bytes]:
    """Returns what the device computes, and the vector that it reports."""
    ready = load_plan(plan.content, plan.blobs.__getitem__)
    checkpoint = read_checkpoint(plan.blobs[plan.manifest.initial_checkpoint.digest], plan.manifest)
    items = read_vocabulary(plan.blobs[plan.manifest.vocabularies["items"].digest])
    rules = [rule_of(field) for field in plan.manifest.fields]
    mapped = map_examples(rules, store().columns(), {"items": items}, {"items": 6})
    assignment, seed = bundle.make_assignment(plan), bytes([9]) * 32
    result = train(ready, checkpoint, mapped.columns, assignment.work, Seeds(seed, seed, seed))
    fixed_point = agreement(result, plan.manifest, assignment.layout, assignment.secure_sum)
    return result, report_vector(result, assignment.layout, fixed_point, seed).to_bytes()


def test_a_device_reports_what_the_runtime_computes(running: tuple[Services, str, grpc.Server]) -> None:
    services, target, _ = running
    participation = device(target).participate()
    assert participation.outcome is Outcome.UPLOADED, participation
    assert services.vectors == [expected(services.plan)[1]]


async def test_the_async_driver_reports_the_same(running: tuple[Services, str, grpc.Server]) -> None:
    services, target, _ = running
    participation = await device(target).participate_async()
    assert participation.outcome is Outcome.UPLOADED, participation
    assert services.vectors == [expected(services.plan)[1]]


@pytest.fixture
async def shared_transport() -> AsyncIterator[AsyncTransport]:
    transport = AsyncTransport()
    yield transport
    await transport.close()


async def test_many_devices_share_transport_and_cache(
    running: tuple[Services, str, grpc.Server], shared_transport: AsyncTransport, tmp_path: Path
) -> None:
    import asyncio

    services, target, _ = running
    cache = BlobCache(tmp_path)
    devices = [device(target, transport=shared_transport, cache=cache) for _ in range(20)]
    ended = await asyncio.gather(*(each.participate_async() for each in devices))
    assert [each.outcome for each in ended] == [Outcome.UPLOADED] * 20
    assert len(services.vectors) == 20
    fetched = [message.digest for message in services.arrived if isinstance(message, FetchRequest)]
    assert len(fetched) == len(set(fetched))


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_broken_stream_goes_on_where_it_stopped(
    running: tuple[Services, str, grpc.Server], *, asynchronous: bool
) -> None:
    services, target, _ = running
    services.fetch_breaks = True
    taking_part = device(target)
    ended = await taking_part.participate_async() if asynchronous else taking_part.participate()
    assert ended.outcome is Outcome.UPLOADED
    offsets = [message.offset for message in services.arrived if isinstance(message, FetchRequest)]
    assert offsets[:2] == [0, 64]


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_refusal_arrives_with_reason_and_advice(
    running: tuple[Services, str, grpc.Server], *, asynchronous: bool
) -> None:
    services, target, _ = running
    refusal = ErrorInfo(reason="ROUND_CLOSED", message="the round is closed", advice="come back later")
    services.refusals["JoinRequest"] = refusal
    taking_part = device(target)
    ended: Participation = await taking_part.participate_async() if asynchronous else taking_part.participate()
    assert (ended.outcome, ended.reason) == (Outcome.TOO_LATE, "ROUND_CLOSED")
    assert ended.message.endswith("the round is closed; come back later")


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_server_that_is_not_there_is_an_outcome(*, asynchronous: bool) -> None:
    taking_part = device("127.0.0.1:1")
    ended = await taking_part.participate_async() if asynchronous else taking_part.participate()
    assert (ended.outcome, ended.reason) == (Outcome.UNREACHABLE, "UNREACHABLE")
    assert len(ended.receipt) == 3


def test_no_byte_of_a_local_parameter_leaves(running: tuple[Services, str, grpc.Server]) -> None:
    services, target, _ = running
    taking_part = device(target)
    taking_part.participate()
    result, _ = expected(services.plan)
    everything = b"".join(message.SerializeToString() for message in services.arrived)
    user = result.local_parameters["user"]
    served = taking_part.reconstruct()["user"]
    for values in (user, served):
        for kind in (np.float16, np.float32, np.float64):
            assert values.astype(kind).tobytes() not in everything
    keys = [key.encode() for key, _ in RATINGS]
    assert not any(key in everything for key in keys), "no key of an item leaves either"


def test_the_receipt_tells_every_byte_that_arrived(running: tuple[Services, str, grpc.Server]) -> None:
    services, target, _ = running
    taking_part = device(target)
    taking_part.participate()
    assert taking_part.receipt().bytes == sum(message.ByteSize() for message in services.arrived)
    assert "reveals the user vector" in str(taking_part.receipt())


FORBIDDEN = ("local", "user_vector", "personal", "embedding")


def _descriptors() -> Iterator[Descriptor]:
    for module in (coordinator_pb2, aggregator_pb2, blobs_pb2, admin_pb2):
        yield from module.DESCRIPTOR.message_types_by_name.values()


def test_no_message_of_training_has_a_place_for_local_parameters() -> None:
    seen = 0
    for descriptor in _descriptors():
        for field in descriptor.fields:
            seen += 1
            assert not any(word in field.name for word in FORBIDDEN), f"{descriptor.full_name}.{field.name}"
            if field.message_type is not None:
                assert field.message_type.full_name != "fedrecon.v1.Tensor", f"{descriptor.full_name}.{field.name}"
    assert seen > 100


def test_after_a_participation_a_device_recommends_offline(
    running: tuple[Services, str, grpc.Server], tmp_path: Path
) -> None:
    services, target, server = running
    device(target, home=tmp_path).participate()
    server.stop(None).wait()
    again = device(target, home=tmp_path)
    table = bundle.item_table()
    user = again.reconstruct()["user"]
    rows = {key: row for row, key in enumerate(bundle.KEYS)}
    expected_user = np.full(2, 0.5) + 2 * 0.25 * sum(rating * table[rows[key]] for key, rating in RATINGS)
    np.testing.assert_allclose(user, expected_user, rtol=1e-5)
    recommended = again.recommend(6)
    assert {each.key for each in recommended} == {"film-3", "film-5"}
    assert [each.score for each in recommended] == sorted((float(table[row] @ user) for row in (3, 5)), reverse=True)
    assert recommended[0].title == recommended[0].key.title()
    assert len(again.recommend(2, exclude_seen=False, exclude=["film-5"])) == 2
    assert services.arrived


def test_a_device_without_any_model_says_what_to_do() -> None:
    with pytest.raises(NoModelError, match="give the device a recommender file"):
        device("127.0.0.1:1").recommend(3)


def test_a_fetched_recommender_serves_offline(running: tuple[Services, str, grpc.Server], tmp_path: Path) -> None:
    services, target, server = running
    services.blobs[b"file"], services.blobs[b"items"] = bundle.make_recommender(services.plan)
    online = device("127.0.0.1:1", home=tmp_path, inference=target, task="films").recommend(2)
    server.stop(None).wait()
    offline = device("127.0.0.1:1", home=tmp_path, inference=target, task="films").recommend(2)
    assert offline == online
    with pytest.raises(UnreachableError):
        device("127.0.0.1:1", inference=target, task="films").recommend(2)


@pytest.mark.parametrize("places", [0, 10_000])
def test_a_device_takes_the_canary_if_its_place_is_among_those_that_get_it(
    running: tuple[Services, str, grpc.Server], places: int
) -> None:
    services, target, _ = running
    services.blobs[b"file"], services.blobs[b"items"] = bundle.make_recommender(services.plan)
    services.canary_places = places
    assert len(device("127.0.0.1:1", inference=target, task="films").recommend(2)) == 2


def test_outcomes_are_kept_as_numbers_of_the_version_that_recommended(
    running: tuple[Services, str, grpc.Server],
) -> None:
    services, target, _ = running
    services.blobs[b"file"], services.blobs[b"items"] = bundle.make_recommender(services.plan)
    kept = ExampleStore(":memory:")
    shows = device("127.0.0.1:1", examples=kept, inference=target, task="films")
    assert not shows.record_outcome(["film-1", "film-2"])  # nothing recommended yet
    shows.recommend(2)
    assert not shows.record_outcome(["film-1", "film-2"], ["film-2"])  # nothing was promoted
    services.version = 6
    again = device("127.0.0.1:1", examples=kept, inference=target, task="films")
    again.recommend(2)
    assert again.record_outcome(["film-1", "film-2"], ["film-2"])
    assert again.record_outcome(["film-1", "film-3"])
    assert kept.outcomes() == {6: (4, 1)}
    for shown, chosen in ((["film-1"], ["film-2"]), (["film-1", "film-1"], []), (["film-1"], ["film-1", "film-1"])):
        with pytest.raises(InvalidExampleError):
            again.record_outcome(shown, chosen)
    assert again.forget()
    assert kept.outcomes() == {}


def test_a_device_keeps_its_place_for_as_long_as_its_key(tmp_path: Path) -> None:
    first, again = (device("127.0.0.1:1", home=tmp_path)._participant.place("films") for _ in range(2))
    assert first == again
    places = {device("127.0.0.1:1")._participant.place("films") for _ in range(20)}
    assert len(places) > 10
    assert all(0 <= place < 10_000 for place in places)


def test_without_inference_the_last_plan_serves(running: tuple[Services, str, grpc.Server], tmp_path: Path) -> None:
    _, target, _ = running
    device(target, home=tmp_path).participate()
    serving = device(target, home=tmp_path, inference="127.0.0.1:1")
    assert {each.key for each in serving.recommend(6)} == {"film-3", "film-5"}
    assert [each.message for each in serving.receipt()] == ["GetRecommender"] * 3


def _certificate() -> tuple[bytes, bytes]:
    """Returns a private key and a certificate that signs itself, in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(minutes=10))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return secret, certificate.public_bytes(Encoding.PEM)


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_device_believes_only_its_own_authority(plan: Any, *, asynchronous: bool) -> None:
    secret, certificate = _certificate()
    outcomes = []
    with serve(Services(plan), grpc.ssl_server_credentials([(secret, certificate)])) as (target, _):
        for authority in (certificate, _certificate()[1]):
            taking_part = device(target, authority=authority)
            ended = await taking_part.participate_async() if asynchronous else taking_part.participate()
            outcomes.append(ended.outcome)
    assert outcomes == [Outcome.UPLOADED, Outcome.UNREACHABLE]


def test_a_forgotten_device_is_a_new_one(running: tuple[Services, str, grpc.Server], tmp_path: Path) -> None:
    services, target, _ = running
    examples = store()
    forgetting = device(target, home=tmp_path, examples=examples, locals_key=bytes(32))
    forgetting.participate()
    forgetting.reconstruct()
    forgetting.forget()
    assert [path.name for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size] == []
    assert (examples.count(), len(forgetting.receipt()), forgetting.history()) == (0, 0, ())
    with pytest.raises(NoModelError):
        forgetting.recommend(3)
    examples.extend({"item": key, "rating": rating} for key, rating in RATINGS)
    forgetting.participate()
    keys = {
        message.credentials.device_key
        for message in services.arrived
        if isinstance(message, coordinator_pb2.CheckInRequest)
    }
    assert len(keys) == 2


def test_too_few_examples_are_remembered_without_asking(
    running: tuple[Services, str, grpc.Server], tmp_path: Path
) -> None:
    services, target, _ = running
    device(target, home=tmp_path).participate()
    services.arrived.clear()
    few = ExampleStore(":memory:")
    few.add(item="film-1", rating=1.0)
    ended = device(target, home=tmp_path, examples=few).participate()
    assert ended.outcome is Outcome.TOO_FEW_EXAMPLES
    assert services.arrived == []
