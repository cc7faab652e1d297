"""Rules that hold in every scene, judged over what was heard: how a device calls, proves, and ends a session.

Each function yields complaints: what a device did, in words; none where it keeps the rule.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedrecon.ops.conformance.material import POPULATION
from fedrecon.ops.conformance.playing import TOKEN, Play
from fedrecon.v1.coordinator_pb2 import Floors, SessionOutcome
from fedrecon.wire.manifests import PLAN_FORMATS
from fedrecon.wire.proofs import NONCE_BYTES, call_mac, call_transcript

KEY_BYTES = 32
CHECK_IN_SECONDS = 30.0
"""So long a selection waits. The contract says 45 s, and a call takes a moment to arrive."""
OF_A_SESSION = ("FinishSession", "Locate", "Join", "Share", "UploadStatus", "Upload", "Unmask")
SIGNED = ("CheckIn", "Renew", "Forget")


@dataclass(frozen=True, slots=True)
class Expected:
    """What a scene expects of every device.

    Attributes:
        floors: what the device insists on.
        outcomes: how its session may end; empty where it gets none.
        shape: pattern of the session's shape.
    """

    floors: Floors
    outcomes: frozenset[SessionOutcome.ValueType]
    shape: str


def deadlines(play: Play, expected: Expected) -> Iterator[str]:
    """Every call has a deadline."""
    del expected
    for call in play.transcript.calls:
        if call.seconds is None:
            yield f"{call.method} has no deadline"


def check_in(play: Play, expected: Expected) -> Iterator[str]:
    """A check-in says who, for what, and what the app insists on, and has time to wait."""
    for call in play.transcript.of("CheckIn"):
        request = call.request
        if len(request.credentials.device_key) != KEY_BYTES:
            yield f"the device key has {len(request.credentials.device_key)} bytes"
        if request.population != POPULATION:
            yield f"the population is {request.population!r}"
        if not set(PLAN_FORMATS) <= set(request.plan_formats):
            yield f"the plan formats are {list(request.plan_formats)}"
        if not re.fullmatch(r"\d+\.\d+\.\d+", request.sdk_version):
            yield f"the SDK's version is {request.sdk_version!r}"
        if request.floors != expected.floors:
            yield f"the floors are not those that the app was told: {_one_line(request.floors)}"
        if call.seconds is not None and call.seconds < CHECK_IN_SECONDS:
            yield f"a deadline of {call.seconds:.0f} s ends before a selection may"


def round_token(play: Play, expected: Expected) -> Iterator[str]:
    """Session, round and round token go back as they came."""
    del expected
    asked = play.assignment
    for call in play.transcript.of(*OF_A_SESSION):
        said = getattr(call.proven, "proof", call.proven)
        if (said.session, said.round, said.round_token) != (asked.session, asked.round, asked.round_token):
            yield f"{call.method} names another session, round or token than was assigned"


def proofs(play: Play, expected: Expected) -> Iterator[str]:
    """Calls of a session carry a MAC under its key."""
    del expected
    key = play.assignment.session_key
    for call in play.transcript.of(*OF_A_SESSION):
        said = call.credentials
        if said.token or said.signature:
            yield f"{call.method} carries a token or a signature; it is proved by its MAC alone"
        if key and (len(said.nonce) != NONCE_BYTES or said.mac != call_mac(key, call.path, call.proven, said)):
            yield f"the MAC of {call.method} is not that of its bytes"
        if said.device_key != _device_key(play):
            yield f"{call.method} names another device key than the check-in"


def signatures(play: Play, expected: Expected) -> Iterator[str]:
    """What carries a token is signed by the device key, with a nonce of its own."""
    del expected
    nonces = set()
    for call in play.transcript.of(*SIGNED):
        said = call.credentials
        if not said.token:
            continue
        if said.token != TOKEN:
            yield f"{call.method} carries another token than the enrolment gave"
        if len(said.nonce) != NONCE_BYTES or said.nonce in nonces:
            yield f"{call.method} has no nonce of {NONCE_BYTES} bytes, or one that was used before"
            continue
        nonces.add(said.nonce)
        try:
            key = Ed25519PublicKey.from_public_bytes(said.device_key)
            key.verify(said.signature, call_transcript(call.path, call.proven, said))
        except (InvalidSignature, ValueError):
            yield f"the signature of {call.method} is not that of its bytes"


def session_end(play: Play, expected: Expected) -> Iterator[str]:
    """A session that was assigned is ended, whatever happened, and nothing follows."""
    ends = play.transcript.of("FinishSession")
    if expected.outcomes and not ends:
        yield "the session was not ended by FinishSession"
    if ends and any(call.method != "FinishSession" for call in play.transcript.after(ends[0])):
        yield "calls follow the end of the session"


def shape(play: Play, expected: Expected) -> Iterator[str]:
    """The shape tells the steps of the session."""
    for request in play.transcript.requests("FinishSession"):
        if not re.fullmatch(expected.shape, request.shape):
            yield f"the shape is {request.shape!r}; it should be like {expected.shape}"


ALWAYS: Mapping[str, Callable[[Play, Expected], Iterator[str]]] = {
    "deadlines": deadlines,
    "check-in": check_in,
    "round-token": round_token,
    "session-proofs": proofs,
    "signatures": signatures,
    "session-end": session_end,
    "shape": shape,
}
"""Rules that are judged in every scene."""


def outcome(play: Play, expected: Expected) -> Iterator[str]:
    """Yields what is wrong with how the session was said to end."""
    said = [request.outcome for request in play.transcript.requests("FinishSession")]
    if expected.outcomes and said and said[0] not in expected.outcomes:
        wanted = " or ".join(_name(each) for each in sorted(expected.outcomes))
        yield f"the session ended as {_name(said[0])}, not as {wanted}"


def _device_key(play: Play) -> bytes:
    keys = [request.credentials.device_key for request in play.transcript.requests("CheckIn")]
    return keys[-1] if keys else b""


def _name(value: SessionOutcome.ValueType) -> str:
    known = value in SessionOutcome.values()
    return SessionOutcome.Name(value).removeprefix("SESSION_OUTCOME_") if known else str(value)


def _one_line(message: Floors) -> str:
    return " ".join(str(message).split()) or "none"
