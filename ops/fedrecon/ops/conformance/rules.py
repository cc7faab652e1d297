"""The rules of the protocol that a device is judged by, and the scenes that judge them.

A rule names its section of `docs/protocol.md`, says what a device does, and what to do about one that does not. The
last ones are named by the reason for which a device refuses, as the page names them.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedrecon.ops.conformance.floor_scenes import FLOOR_SCENES
from fedrecon.ops.conformance.line_scenes import LINE_SCENES
from fedrecon.ops.conformance.masked_scenes import MASKED_SCENES
from fedrecon.ops.conformance.report_scenes import REPORT_SCENES
from fedrecon.ops.conformance.scenes import Scene

CALLS, SPEAKS = "Calls, in order", "Who speaks"
FLOORS, ARITHMETIC = "Before anything is fetched", "Arithmetic"
SUMS, AGAIN, REFUSALS = "Secure sums", "Trying again", "Refusals"


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of the protocol.

    Attributes:
        name: unique.
        section: heading in `docs/protocol.md`.
        says: what a device does.
        advice: what to do where it does not.
    """

    name: str
    section: str
    says: str
    advice: str


RULES = (
    Rule("readable", CALLS, "every message can be read", "write it with the contract's protos"),
    Rule("deadlines", CALLS, "every call has a deadline", "set one for each call, 45 s for CheckIn"),
    Rule("check-in", CALLS, "a check-in says who, for what, and what the app insists on", "fill in CheckInRequest"),
    Rule("ticket", CALLS, "after a ticket it waits, and calls with the ticket", "wait wait_milliseconds first"),
    Rule("rejection", CALLS, "a rejection ends the participation", "come back within the window of the answer"),
    Rule("session-end", CALLS, "every session is ended, and nothing follows", "call FinishSession after failures, too"),
    Rule("shape", ARITHMETIC, "the shape tells the session's steps", "add a character with each step"),
    Rule("report-within", CALLS, "nothing is tried after the report's time", "count it from the assignment's arrival"),
    Rule("locate", CALLS, "a group that has moved is asked for, and found", "call Locate, and go on where it says"),
    Rule("enrolment", SPEAKS, "refused with NOT_ENROLLED, it enrols", "sign the challenge with the device key"),
    Rule("signatures", SPEAKS, "calls with a token are signed", "sign method, nonce and body as Credentials says"),
    Rule("signed-anew", SPEAKS, "a signed call is signed anew for each try", "take a fresh nonce for each try"),
    Rule("session-proofs", SPEAKS, "calls of a session carry its MAC", "HMAC under session_key over the same bytes"),
    Rule("no-session-key", SPEAKS, "without a session key there is no MAC", "leave nonce and mac empty"),
    Rule("MALFORMED_ASSIGNMENT", FLOORS, "an assignment that makes no sense is refused", "check it before anything"),
    Rule("UNTRUSTED_PLAN", FLOORS, "a plan of nobody trusted is refused", "verify the signature over the digest"),
    Rule("SECURE_SUM_REQUIRED", FLOORS, "no update leaves in clear where the app forbids it", "compare the protocol"),
    Rule("GROUP_TOO_SMALL", FLOORS, "a group below the app's is refused", "compare secure_sum.minimum_group"),
    Rule("UNKNOWN_PROTOCOL", FLOORS, "a protocol that is not known is refused", "know 1 and 2, refuse the others"),
    Rule("TOO_FEW_CONTRIBUTORS", FLOORS, "rows with too few contributors are refused", "compute it from the row set"),
    Rule("round-token", ARITHMETIC, "session, round and token go back as they came", "keep them as bytes"),
    Rule("report", ARITHMETIC, "the report is the plan's", "compare with training.json and wire.json, step by step"),
    Rule("rounding", ARITHMETIC, "rounding is drawn anew for each session", "three fresh seeds a session, told nobody"),
    Rule("evaluation", ARITHMETIC, "an evaluation reports metric sums alone", "leave the body empty"),
    Rule("spread", ARITHMETIC, "an evaluation tells second moments if asked", "append them behind all metric sums"),
    Rule(
        "outcomes", ARITHMETIC, "an evaluation tells outcomes if asked", "append five for each version, 0 without any"
    ),
    Rule("task-settings", ARITHMETIC, "the task's settings win over the plan's", "read LocalWork before the manifest"),
    Rule("clip-norm", ARITHMETIC, "the update is clipped", "clip the norm of all segments together"),
    Rule("row-sets", ARITHMETIC, "reports hold the rows of public sets alone", "leave the others out before clipping"),
    Rule("vocabularies", ARITHMETIC, "the assignment's vocabularies win", "take rows from the checkpoint's shape"),
    Rule("unknown-fields", ARITHMETIC, "fields of later versions are ignored", "skip them in JSON and in messages"),
    Rule("too-few-examples", ARITHMETIC, "too few examples end as NOT_ELIGIBLE", "count those that the model knows"),
    Rule("fetch-resumes", AGAIN, "a broken fetch goes on where it stopped", "ask for the offset that is there"),
    Rule("chunk-digests", ARITHMETIC, "a damaged chunk is not taken", "check each chunk's digest as it comes"),
    Rule("blob-digests", ARITHMETIC, "what is not its digest's is not run", "check the whole before it is used"),
    Rule("same-bytes", AGAIN, "a call is tried again with the same bytes", "serialise once, keep nonce and MAC"),
    Rule("retry-window", AGAIN, "a refusal's window is kept", "draw a moment between both, from the answer's arrival"),
    Rule("upload-status", AGAIN, "the status comes before an upload", "ask it, and stop where it is acknowledged"),
    Rule("upload-resumes", AGAIN, "a broken upload goes on where it stopped", "begin at received_bytes"),
    Rule("void", AGAIN, "a report that became void is not sent again", "end the session with the fate that was told"),
    Rule("too-late", REFUSALS, "a round that went on ends as TOO_LATE", "do not try again, and end the session"),
    Rule("refusal", REFUSALS, "a refusal is not tried again, whatever its reason", "decide by code, then by reason"),
    Rule("masked-report", SUMS, "keys, shares, masks and answers are the protocol's", "see secure_sum.json"),
    Rule("masked-same-bytes", SUMS, "each step is said again in the same bytes", "keep keys and shares of the session"),
    Rule("BAD_ROSTER", SUMS, "a roster that is none is refused", "check lengths, indices, keys and the digest"),
    Rule("BAD_SIGNATURE", SUMS, "keys that are not signed are refused", "verify each neighbour's signature"),
    Rule("BAD_KEY", SUMS, "keys of small order are refused", "refuse a shared secret of zeros"),
    Rule("SUM_TOO_SMALL", SUMS, "a group below its promise is refused", "compare members with both floors"),
    Rule("GROUP_TOO_LARGE", SUMS, "a group whose sum could wrap is refused", "compare members with maximum_reports"),
    Rule("TOO_FEW_NEIGHBOURS", SUMS, "too few neighbours are refused", "count those that are there, and that shared"),
    Rule("THRESHOLD_TOO_LOW", SUMS, "a threshold of at most half is refused", "refuse unless 2 t > k"),
    Rule("BAD_SHARE", SUMS, "a share that does not open is refused", "open every share before masking"),
    Rule("BAD_LISTS", SUMS, "lists that are not of all neighbours are refused", "compare with those that shared"),
    Rule("ANSWERED_ALREADY", SUMS, "one pair of lists is answered, ever", "keep the answer, and give it again"),
)
"""All rules, as they are shown."""

SCENES: tuple[Scene, ...] = (*LINE_SCENES, *FLOOR_SCENES, *REPORT_SCENES, *MASKED_SCENES)
"""All scenes, in the order in which they are played."""
