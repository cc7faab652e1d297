"""What a device reads from servers, as subjects of fuzzing: answers, files, streams and errors.

Whole participations, and steps of masked sums, in which one answer is bent: they must end as outcomes or as
`FedreconError`s, and soon: nothing else may be raised, whatever a server says.
"""

from __future__ import annotations

import itertools
import types
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.message import Message

from fedrecon.device_sdk import material, plans, requests, transport
from fedrecon.device_sdk.blob_cache import BlobCache
from fedrecon.device_sdk.calling import Line, Patience, Steps
from fedrecon.device_sdk.errors import CallFailedError, FedreconError
from fedrecon.device_sdk.identity import public_bytes
from fedrecon.device_sdk.participation import Outcome
from fedrecon.device_sdk.requests import Compute, Fetch, Sleep
from fedrecon.device_sdk.serving import fetch_recommender
from fedrecon.device_sdk.speaking import Speaker
from fedrecon.v1 import aggregator_pb2, coordinator_pb2, enrolment_pb2
from fedrecon.v1.blobs_pb2 import FetchRequest, FetchResponse
from fedrecon.v1.common_pb2 import BlobReference, ErrorInfo, RetryWindow
from fedrecon.v1.coordinator_pb2 import CheckInResponse, Rejection, Ticket
from fedrecon.v1.inference_pb2 import GetRecommenderResponse
from fedrecon.wire.chunks import cut
from fedrecon.wire.digests import digest_of
from fedrecon.wire.row_sets import write_row_set
from support import device_bundle as bundle
from support.device_services import WINDOWS, Services, play
from support.fuzz_subjects import Parts, Subject, Verdict
from support.masked_sums import MaskedSum

KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
MEMBERS = 5
_PLAYED = ("CheckIn", "Locate", "Join", "UploadStatus", "Upload", "FinishSession")


def build_all() -> list[Subject]:
    """Returns what is fuzzed of the device."""
    plan = bundle.make_plan()
    return [*_file_subjects(plan), *_played_subjects(plan), *_masked_subjects(), *_spoken_subjects(plan)]


def _feed(read: Callable[[Parts], bool]) -> Callable[[Parts], Awaitable[Verdict]]:
    """Returns what gives an input to a reader; it returns whether the input was taken."""

    async def feed(parts: Parts) -> Verdict:
        try:
            return Verdict.ANSWERED if read(parts) else Verdict.REFUSED
        except FedreconError:
            return Verdict.REFUSED

    return feed


def _file_subjects(plan: bundle.HandMadePlan) -> list[Subject]:
    """Files by digest: manifest, vocabulary, row set, checkpoint."""
    checkpoint = plan.blobs[plan.manifest.initial_checkpoint.digest]
    vocabulary = plan.blobs[plan.manifest.vocabularies["items"].digest]

    def read_vocabulary(parts: Parts) -> bool:
        return bool(material._vocabulary(parts[0], digest_of(parts[0])))

    files: dict[str, tuple[bytes, Callable[[Parts], bool]]] = {
        "manifest": (plan.content, lambda parts: bool(material._read_manifest(parts[0]))),
        "vocabulary": (vocabulary, read_vocabulary),
        "row set": (write_row_set(np.array([0, 2, 3]), 5, 50), lambda parts: bool(material._row_set(parts[0]))),
        "checkpoint": (checkpoint, lambda parts: bool(plans.read_checkpoint(parts[0], plan.manifest))),
    }
    return [
        Subject(f"device, file: {name}", (name,), None, ([content],), _feed(read))
        for name, (content, read) in files.items()
    ]


def _played_subjects(plan: bundle.HandMadePlan) -> list[Subject]:
    """Whole participations over services played by hand, in which one answer is bent."""
    assignment = bundle.make_assignment(plan)
    untouched = Services(plan, assignment)
    play(untouched)
    more = [
        CheckInResponse(ticket=Ticket(ticket=b"t", wait_milliseconds=5), retry_windows=WINDOWS),
        CheckInResponse(
            rejection=Rejection(reason=coordinator_pb2.REJECTION_REASON_FULL, message="full"),
            retry_windows=WINDOWS,
            minimum_examples=3,
        ),
    ]
    uploaded = aggregator_pb2.UploadResponse(digest=bytes(32), phase=aggregator_pb2.GROUP_PHASE_UPLOADING)
    answers: dict[str, list[Message]] = {
        "CheckIn": [untouched.check_ins[0], *more],
        "Locate": [coordinator_pb2.LocateResponse(aggregator="aggregator:2")],
        "Join": [aggregator_pb2.JoinResponse(group=b"g" * 16, phase=aggregator_pb2.GROUP_PHASE_UPLOADING)],
        "UploadStatus": [aggregator_pb2.UploadStatusResponse(phase=aggregator_pb2.GROUP_PHASE_UPLOADING)],
        "Upload": [uploaded],
        "FinishSession": [untouched.finish],
    }
    methods: dict[str, Any] = {
        "CheckIn": requests.CHECK_IN,
        "Locate": requests.LOCATE,
        "Join": requests.JOIN,
        "UploadStatus": requests.UPLOAD_STATUS,
        "Upload": requests.UPLOAD,
        "FinishSession": requests.FINISH_SESSION,
    }

    def feed_of(name: str) -> Callable[[Parts], bool]:
        def read(parts: Parts) -> bool:
            services = Services(plan, assignment, ["Join", "Join"] if name == "Locate" else [])
            _bend_answer(services, name, methods[name], parts[0])
            return play(services, cache=cache).participation.outcome is Outcome.UPLOADED

        cache = BlobCache()
        return read

    played = [
        Subject(
            f"device, participation: {name}",
            (methods[name].answer.__name__,),
            methods[name].answer,
            tuple([message.SerializeToString()] for message in answers[name]),
            _feed(feed_of(name)),
            0.05,
        )
        for name in _PLAYED
    ]
    chunks = [FetchResponse(chunk=chunk).SerializeToString() for chunk in cut(plan.content, 0, 1000)]
    fetched = Subject(
        "device, fetch: FetchResponse", ("FetchResponse",), FetchResponse, (chunks,), _feed(_fetching(plan)), 0.3
    )
    return [*played, fetched]


def _bend_answer(services: Services, name: str, method: Any, content: bytes) -> None:
    """Lets the first answer of a call be other bytes; asked again, the services answer as they should."""
    told = itertools.count()
    attribute = "upload" if name == "Upload" else name
    untouched = getattr(services, attribute)

    def answer(_: Services, request: Any) -> Any:
        given = untouched(request)
        return given if next(told) else transport._parse(method, "services:1", content)

    setattr(services, attribute, types.MethodType(answer, services))
    strict = services.answer

    def refusing(request: Any) -> Any:
        """What the services played by hand are sure of, real ones refuse."""
        try:
            return strict(request)
        except AssertionError as error:
            raise CallFailedError("refused", code="INVALID_ARGUMENT", reason="MALFORMED_REQUEST") from error

    services.answer = refusing  # type: ignore[method-assign]


def _fetching(plan: bundle.HandMadePlan) -> Callable[[Parts], bool]:
    """Fetches the manifest out of a stream of bent answers."""
    reference = BlobReference(digest=plan.digest, size=len(plan.content))

    def read(parts: Parts) -> bool:
        def fetch(request: Fetch) -> None:
            for part in parts:
                answer: Any = transport._parse(requests.FETCH, "blobs:1", part)
                request.take(answer.chunk)

        return bool(_drive(_line().fetch("blobs:1", reference, "plan"), {"Fetch": fetch}))

    return read


def _masked_subjects() -> list[Subject]:
    """What an aggregator tells a member of a masked group, in each of its steps."""
    group = MaskedSum(MEMBERS)
    for index in range(MEMBERS):
        group.share(index)
    joined, shared = group.joined(0), group.shared(0)
    for index in range(MEMBERS - 1):
        group.upload(index)
    lists = group.lists(0)
    vector = group.vectors[0].to_bytes()

    def parsed(method: Any) -> Callable[[Parts], Any]:
        return lambda parts: transport._parse(method, "aggregator:1", parts[0])

    def member(steps: int) -> Any:
        """A member that has taken so many steps."""
        masking = MaskedSum(MEMBERS).devices[0].masking
        masking.join_keys()
        if steps > 0:
            masking.share(joined)
        if steps > 1:
            masking.mask(shared, vector)
        return masking

    join = parsed(requests.JOIN)
    share = parsed(requests.SHARE)
    unmask = parsed(requests.UNMASK)
    calls: list[tuple[Message, Callable[[Parts], bool]]] = [
        (joined, lambda parts: bool(member(0).share(join(parts)))),
        (shared, lambda parts: bool(member(1).mask(share(parts), vector))),
        (lists, lambda parts: bool(member(2).reveal(unmask(parts)))),
    ]
    return [
        Subject(
            f"device, masked: {type(valid).__name__}",
            (type(valid).__name__,),
            type(valid),
            ([valid.SerializeToString()],),
            _feed(read),
            0.15,
        )
        for valid, read in calls
    ]


def _spoken_subjects(plan: bundle.HandMadePlan) -> list[Subject]:
    """Answers about enrolment and recommenders, and the reasons of refusals."""
    challenge = enrolment_pb2.ChallengeResponse(challenge=bytes(56), expires_within_milliseconds=9, attestation="phone")
    token = enrolment_pb2.EnrolResponse(token=bytes(40), expires_within_milliseconds=3_600_000)
    renewed = enrolment_pb2.RenewResponse(token=bytes(40), expires_within_milliseconds=1)
    file, items = bundle.make_recommender(plan)
    blobs = {digest_of(content): content for content in (file, items)}
    named = GetRecommenderResponse(
        recommender=BlobReference(digest=digest_of(file), size=len(file)),
        vocabulary=BlobReference(digest=digest_of(items), size=len(items)),
        round=3,
    )
    retry = RetryWindow(min_milliseconds=500, max_milliseconds=900)
    refusal = ErrorInfo(reason="ROUND_CLOSED", message="Over.", advice="Come back.", retry=retry)

    def enrolled(name: str) -> Callable[[Parts], bool]:
        def read(parts: Parts) -> bool:
            said = {"Challenge": challenge.SerializeToString(), "Enrol": token.SerializeToString(), name: parts[0]}
            speaker = Speaker("coordinator:1", public_bytes(KEY), KEY.sign, lambda _, asked: asked)
            _drive(speaker.enrol(_line()), {"Call": lambda request: _parsed(request, said)})
            return True

        return read

    def renewing(parts: Parts) -> bool:
        speaker = Speaker("coordinator:1", public_bytes(KEY), KEY.sign)
        speaker._keep(_line(), renewed)
        said = {"Renew": parts[0], "Forget": b""}
        _drive(speaker.forget(_line(wall_clock=_just_before_the_end)), {"Call": lambda request: _parsed(request, said)})
        return True

    def forgetting(parts: Parts) -> bool:
        speaker = Speaker("coordinator:1", public_bytes(KEY), KEY.sign)
        speaker._keep(_line(), token)
        _drive(speaker.forget(_line()), {"Call": lambda request: _parsed(request, {"Forget": parts[0]})})
        return speaker.enrolment is None

    def recommending(parts: Parts) -> bool:
        def fetch(request: Fetch) -> None:
            for chunk in cut(blobs.get(FetchRequest.FromString(request.body).digest, b"")):
                request.take(chunk)

        said = {"GetRecommender": parts[0]}
        answers: dict[str, Callable[[Any], Any]] = {"Call": lambda request: _parsed(request, said), "Fetch": fetch}
        return bool(_drive(fetch_recommender(_line(), "inference:1", "films", 9_999), answers))

    def refused(parts: Parts) -> bool:
        error = transport._failure(_FakeError(parts[0]), "services:1", "Join")

        def fail(_: Any) -> Any:
            raise error

        line = _line()
        _drive(line.call("services:1", requests.JOIN, aggregator_pb2.JoinRequest()), {"Call": fail})
        return True

    spoken: list[tuple[Message, Callable[[Parts], bool], float]] = [
        (challenge, enrolled("Challenge"), 0.2),
        (token, enrolled("Enrol"), 0.2),
        (renewed, renewing, 0.2),
        (enrolment_pb2.ForgetResponse(), forgetting, 0.1),
        (named, recommending, 0.05),
        (refusal, refused, 0.3),
    ]
    return [
        Subject(
            f"device, spoken: {type(valid).__name__}",
            (type(valid).__name__,),
            type(valid),
            ([valid.SerializeToString()],),
            _feed(read),
            share,
        )
        for valid, read, share in spoken
    ]


class _FakeError:
    """A gRPC error with the trailer of a refusal."""

    def __init__(self, trailer: bytes) -> None:
        self._trailer = trailer

    def code(self) -> Any:
        return types.SimpleNamespace(name="ABORTED")

    def trailing_metadata(self) -> list[tuple[str, bytes]]:
        return [(transport.ERROR_KEY, self._trailer)]

    def details(self) -> str:
        return "aborted"


def _parsed(request: Any, said: dict[str, bytes]) -> Message:
    return transport._parse(request.method, request.target, said[request.method.name])


def _line(wall_clock: Callable[[], float] = lambda: 1_700_000_000.0) -> Line:
    patience = Patience(attempts=3, session_attempts=3)
    return Line(lambda: 0.0, wall_clock, lambda count: bytes([7]) * count, patience, BlobCache())


def _just_before_the_end() -> float:
    return 1_700_000_000.0009


def _drive(core: Steps[Any], answers: dict[str, Callable[[Any], Any]]) -> Any:
    """Runs a core; what it asks for is answered by the kind of request."""
    try:
        asked = next(core)
        while True:
            try:
                result = _answer(asked, answers)
            except Exception as error:  # noqa: BLE001 - the core is to answer for it
                asked = core.throw(error)
            else:
                asked = core.send(result)
    except StopIteration as end:
        return end.value


def _answer(asked: requests.Request, answers: dict[str, Callable[[Any], Any]]) -> Any:
    match asked:
        case Compute():
            return asked.function()
        case Sleep():
            return None
        case _:
            return answers[type(asked).__name__](asked)
