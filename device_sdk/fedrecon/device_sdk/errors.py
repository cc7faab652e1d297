"""What may go wrong on a device, each with advice.

Every error that the SDK raises on purpose is a `FedreconError`: it says what was wrong and where, `advice` says what
to do, and `reason` is a stable word for programs.
"""

from __future__ import annotations

from typing import ClassVar

# Codes that gRPC itself makes when a connection or a deadline breaks: the same bytes may be sent again. Services
# refuse with other codes, so a refusal is never repeated by mistake.
TRANSIENT_CODES = frozenset(
    {
        "CANCELLED",
        "DEADLINE_EXCEEDED",
        "INTERNAL",
        "RESOURCE_EXHAUSTED",
        "UNAVAILABLE",
        "UNKNOWN",
    }
)


GROUP_MOVED = "GROUP_MOVED"

# Refusals of an aggregator that has not, or not any more, what it is asked for: another one may.
LOST_REASONS = frozenset({GROUP_MOVED, "UNKNOWN_ROUND"})


# Refusals of an upload after which its status says where to go on.
RESUMABLE_REASONS = frozenset(
    {
        "CHUNK_ORDER",
        "DAMAGED_CHUNK",
        "DIGEST_MISMATCH",
        "UPLOAD_INCOMPLETE",
        "UPLOAD_REPLACED",
        "WRONG_OFFSET",
    }
)


class FedreconError(Exception):
    """Base of all errors of the device SDK.

    Attributes:
        reason: stable word for programs.
        advice: what to do.
    """

    reason: str = "FAILED"
    default_advice: ClassVar[str] = ""

    def __init__(self, message: str, advice: str = "", *, reason: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice or self.default_advice
        self.reason = reason or type(self).reason

    def __str__(self) -> str:
        return f"{self.message}; {self.advice}" if self.advice else self.message


class InvalidExampleError(FedreconError):
    """An example does not fit the fields of the store."""

    reason = "INVALID_EXAMPLE"


class TooFewExamplesError(FedreconError):
    """There are not enough examples to report anything."""

    reason = "TOO_FEW_EXAMPLES"
    default_advice = "take part again when the user has more examples"


class CallFailedError(FedreconError):
    """A call to a service failed or was refused.

    Attributes:
        code: name of the gRPC status code.
        retry_milliseconds: the retry window that came with a refusal, earliest and latest; None if none came.
    """

    reason = "CALL_FAILED"

    def __init__(
        self,
        message: str,
        advice: str = "",
        *,
        code: str,
        reason: str = "",
        retry_milliseconds: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(message, advice, reason=reason)
        self.code = code
        self.retry_milliseconds = retry_milliseconds

    @property
    def transient(self) -> bool:
        """Whether the same bytes may be sent again."""
        return self.code in TRANSIENT_CODES or self.reason in RESUMABLE_REASONS


class UnreachableError(FedreconError):
    """A service did not answer, however often it was asked."""

    reason = "UNREACHABLE"
    default_advice = (
        "check the network, the target, and the device's clock (certificates have dates); take part again later: "
        "nothing is lost"
    )


class FloorsNotMetError(FedreconError):
    """An assignment is below what the app insists on."""

    reason = "FLOORS_NOT_MET"
    default_advice = "nothing was computed and nothing left; tell the operator of the task"


class TooLateError(FedreconError):
    """The round ended before the report was acknowledged."""

    reason = "TOO_LATE"
    default_advice = "take part again in a later round"


class DamagedBlobError(FedreconError):
    """What was fetched is not what its digest says."""

    reason = "DAMAGED_BLOB"
    default_advice = "it is fetched again next time; if it stays so, the blob store of the deployment is damaged"


class UnusablePlanError(FedreconError):
    """A plan, checkpoint or recommender cannot be run here."""

    reason = "UNUSABLE_PLAN"
    default_advice = "tell the publisher of the plan; an upgrade of the SDK may run it"


class DivergedError(FedreconError):
    """Training gave values that are not finite: nothing is reported."""

    reason = "DIVERGED"
    default_advice = "nothing was reported; the task's rates are too large for these examples"


class NoModelError(FedreconError):
    """There is nothing to recommend with."""

    reason = "NO_MODEL"
    default_advice = "give the device a recommender file or an inference target, or take part once"


class LocalParametersStayError(FedreconError, TypeError):
    """Something tried to serialise local parameters."""

    reason = "LOCAL_PARAMETERS_STAY"
    default_advice = "they never leave the device: reconstruct them where they are needed"


class SumRefusedError(FedreconError):
    """A secure sum was not what it must be: the device takes no further part in it."""

    reason = "SUM_REFUSED"
    default_advice = "what had not left stays here; tell the operator of the task if it happens again"


class StoppedError(FedreconError):
    """The app stopped what the device was doing."""

    reason = "STOPPED"
    default_advice = "nothing is lost: take part again when the device is free"


class BusyError(FedreconError):
    """Another participation of the same home folder is under way."""

    reason = "BUSY"
    default_advice = "wait until it has ended, or stop it: one home folder serves one process at a time"


class OptedOutError(FedreconError):
    """The user has opted out."""

    reason = "OPTED_OUT"
    default_advice = "take part again when the user agrees: `opt_in()`"


class StorageFailedError(FedreconError):
    """The device could not write a file; what was there before is there still."""

    reason = "STORAGE_FAILED"
    default_advice = "make room on the disk and check who may write there: what was stored before is whole"


class DamagedExamplesError(FedreconError):
    """The file of examples is no database, or a damaged one."""

    reason = "DAMAGED_EXAMPLES"
    default_advice = "open the store again: it begins with no examples"


class TooLargeError(FloorsNotMetError):
    """An assignment needs more memory than the app allows."""

    reason = "TOO_LARGE"
    default_advice = "nothing was fetched; raise the limit, or tell the operator of the task"


class UnknownItemsError(FedreconError):
    """Candidates name items that the model does not know.

    Attributes:
        keys: those items.
    """

    reason = "UNKNOWN_ITEMS"
    default_advice = "leave them out: a later model may know them"

    def __init__(self, message: str, advice: str = "", *, keys: tuple[str, ...] = ()) -> None:
        super().__init__(message, advice)
        self.keys = keys
