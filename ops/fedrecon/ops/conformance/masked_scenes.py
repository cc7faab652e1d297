"""Scenes of a device in a masked group: a good one, one that loses members, and groups that a device must refuse."""

from __future__ import annotations

from collections.abc import Callable

from fedrecon.ops.conformance.hearing import Heard
from fedrecon.ops.conformance.masked_group import DEVICE, MEMBERS, MaskedGroup
from fedrecon.ops.conformance.playing import Answers, Intercept, Play, lost
from fedrecon.ops.conformance.report_scenes import vector_complaints
from fedrecon.ops.conformance.scenes import (
    AGAIN,
    GOOD_SHAPE,
    LOCAL_FAILED,
    REFUSED,
    STOPPED_LATE,
    UPLOADED,
    Change,
    Complaints,
    Scene,
    either,
    first,
    never,
    say,
)
from fedrecon.v1 import aggregator_pb2, task_pb2
from fedrecon.v1.aggregator_pb2 import JoinResponse, Member, ShareResponse, UnmaskResponse
from fedrecon.v1.coordinator_pb2 import Assignment

NEIGHBOURS = tuple(index for index in range(MEMBERS) if index != DEVICE)
SHARING = NEIGHBOURS[:-1]
"""The last neighbour joins, and never shares."""
LOST = SHARING[0]
"""The first one shares, and never uploads."""
SURVIVORS = tuple(index for index in SHARING if index != LOST)

BendJoined = Callable[[JoinResponse], None]
BendShared = Callable[[ShareResponse], None]


def _as_it_is(message: object) -> None:
    """Leaves a message as it is."""


def _group_of(play: Play) -> MaskedGroup:
    assert isinstance(play.group, MaskedGroup)  # noqa: S101 - a device that shares has joined
    return play.group


def masked(
    bend_joined: BendJoined = _as_it_is,
    bend_shared: BendShared = _as_it_is,
    change_keys: Callable[[Member], None] = _as_it_is,
    survivors: tuple[int, ...] = SURVIVORS,
) -> Intercept:
    """Returns an aggregator's part in a masked group.

    Args:
        bend_joined: changes what the device is told of the group.
        bend_shared: changes what its neighbours sealed for it.
        change_keys: changes the keys that its neighbours sign.
        survivors: who is told to have survived.
    """

    def join(play: Play, call: Heard) -> Answers:
        if play.group is None:
            agreed = play.material.report(play.assignment, play.blobs).fixed_point
            play.group = MaskedGroup(play.assignment, agreed, call.request, change_keys)
        joined = _group_of(play).joined()
        bend_joined(joined)
        return [joined]

    def share(play: Play, call: Heard) -> Answers:
        group = _group_of(play)
        group.take(call.request.shares, call.request.seed_commitment)
        answer = ShareResponse(phase=aggregator_pb2.GROUP_PHASE_UPLOADING, shares=group.shares(SHARING))
        bend_shared(answer)
        return [answer]

    def unmask(play: Play, call: Heard) -> Answers:
        if call.request.shares:
            _group_of(play).revealed(call.request.shares, SURVIVORS, [LOST])
            return [UnmaskResponse(phase=aggregator_pb2.GROUP_PHASE_CLOSED)]
        phase = aggregator_pb2.GROUP_PHASE_UNMASKING
        return [UnmaskResponse(phase=phase, survivors=survivors, dropouts=[LOST])]

    steps = {"Join": join, "Share": share, "Unmask": unmask}
    return lambda play, call, _before: steps[call.method](play, call) if call.method in steps else None


def _in_a_group(assignment: Assignment, blobs: dict[bytes, bytes]) -> None:
    del blobs
    assignment.secure_sum.protocol = task_pb2.SUM_PROTOCOL_SECAGG_PLUS


def _in_a_large_group(assignment: Assignment, blobs: dict[bytes, bytes]) -> None:
    _in_a_group(assignment, blobs)
    assignment.secure_sum.maximum_reports = MEMBERS - 1


def _in_a_promised_group(assignment: Assignment, blobs: dict[bytes, bytes]) -> None:
    _in_a_group(assignment, blobs)
    assignment.secure_sum.minimum_group = MEMBERS + 1


def _masked_report(play: Play) -> Complaints:
    if not isinstance(play.group, MaskedGroup):
        yield "it joined no group"
        return
    yield from play.group.complaints
    if not play.acknowledged:
        yield "no report arrived"
        return
    if bytes(play.received) == play.material.report(play.assignment, play.blobs).vector:
        yield "the report came without masks"
        return
    for complaint in vector_complaints(play, play.group.unmasked(bytes(play.received))):
        yield f"its masks do not cancel, or its report is another: {complaint}"
    if not any(request.shares for request in play.transcript.requests("Unmask")):
        yield "it did not answer the lists of survivors and dropouts"


def _same_bytes(play: Play) -> Complaints:
    yield from _masked_report(play)
    for method in ("Join", "Share"):
        calls = play.transcript.of(method)
        if len(calls) < AGAIN or any(call.parts != calls[0].parts for call in calls):
            yield f"{method} was not tried again with the same bytes"


def _nothing_revealed(play: Play) -> Complaints:
    if any(request.shares for request in play.transcript.requests("Unmask")):
        yield "it revealed shares for lists that must be refused"


def _one_answer(play: Play) -> Complaints:
    answers = [call for call in play.transcript.of("Unmask") if call.request.shares]
    if not answers:
        yield "it did not answer the lists of survivors and dropouts"
    if any(call.parts != answers[0].parts for call in answers):
        yield "it said its answer again in other bytes"
    if any(call.request.shares != answers[0].request.shares for call in answers):
        yield "it answered a second pair of lists: with both answers the server can open its neighbours' masks"


def _swap_lists(play: Play, call: Heard, before: int) -> Answers | None:
    """After the answer, tells another pair of lists in the same phase, and then ends."""
    del before
    answered = [each for each in play.transcript.of("Unmask") if each.request.shares]
    if call.method != "Unmask" or not call.request.shares or len(answered) > 1:
        return None
    phase = aggregator_pb2.GROUP_PHASE_UNMASKING
    return [UnmaskResponse(phase=phase, survivors=[LOST, *SURVIVORS[1:]], dropouts=[SURVIVORS[0]])]


def _twice(joined: JoinResponse) -> None:
    joined.neighbours[1].CopyFrom(joined.neighbours[0])


def _another_roster(joined: JoinResponse) -> None:
    joined.roster_digest = bytes(32)


def _unsigned(joined: JoinResponse) -> None:
    joined.neighbours[1].key_signature = bytes(64)


def _small_order(member: Member) -> None:
    if member.index == LOST:
        member.share_key = bytes(32)


def _high_threshold(joined: JoinResponse) -> None:
    joined.threshold = MEMBERS


def _low_threshold(joined: JoinResponse) -> None:
    joined.threshold = 2


def _few_shares(shared: ShareResponse) -> None:
    del shared.shares[2:]


def _damaged_share(shared: ShareResponse) -> None:
    sealed = shared.shares[0].ciphertext
    shared.shares[0].ciphertext = sealed[:-1] + bytes([sealed[-1] ^ 1])


def _share_of_another(shared: ShareResponse) -> None:
    shared.shares[0].to_index = NEIGHBOURS[1]


_REFUSED = frozenset({LOCAL_FAILED, REFUSED})


def _refused(
    name: str,
    rule: str,
    step: str,
    intercept: Intercept,
    change: Change = _in_a_group,
    minimum_group: int = 3,
) -> Scene:
    """Returns a scene in which a device goes no further than before a step."""
    return Scene(
        name,
        rule,
        never(step),
        change,
        intercept,
        _REFUSED,
        STOPPED_LATE,
        "required",
        minimum_group,
    )


_JOINING = JoinResponse(phase=aggregator_pb2.GROUP_PHASE_JOINING)


def _lose_first_share(play: Play, call: Heard) -> Answers:
    del play, call
    raise lost()


MASKED_SCENES = (
    Scene("a masked report", "masked-report", _masked_report, _in_a_group, masked(), secure_sum="required"),
    Scene(
        "a group that keeps its members waiting",
        "masked-same-bytes",
        _same_bytes,
        _in_a_group,
        either(first("Join", say(_JOINING)), first("Share", _lose_first_share), masked()),
        secure_sum="required",
    ),
    Scene(
        "two pairs of lists",
        "ANSWERED_ALREADY",
        _one_answer,
        _in_a_group,
        either(_swap_lists, masked()),
        shape=GOOD_SHAPE + "!?",
        secure_sum="required",
    ),
    Scene(
        "lists without a member",
        "BAD_LISTS",
        _nothing_revealed,
        _in_a_group,
        masked(survivors=SURVIVORS[1:]),
        outcomes=frozenset({UPLOADED}),
        shape=GOOD_SHAPE + "!?",
        secure_sum="required",
    ),
    _refused("a neighbour twice", "BAD_ROSTER", "Share", masked(_twice)),
    _refused("the digest of another roster", "BAD_ROSTER", "Share", masked(_another_roster)),
    _refused("keys that nobody signed", "BAD_SIGNATURE", "Share", masked(_unsigned)),
    _refused("a key of small order", "BAD_KEY", "Share", masked(change_keys=_small_order)),
    _refused("a group below its promise", "SUM_TOO_SMALL", "Share", masked(), _in_a_promised_group, MEMBERS + 1),
    _refused("a group that could wrap", "GROUP_TOO_LARGE", "Share", masked(), _in_a_large_group),
    _refused("fewer neighbours than the threshold", "TOO_FEW_NEIGHBOURS", "Share", masked(_high_threshold)),
    _refused("too few neighbours that shared", "TOO_FEW_NEIGHBOURS", "Upload", masked(bend_shared=_few_shares)),
    _refused("a threshold of less than half", "THRESHOLD_TOO_LOW", "Share", masked(_low_threshold)),
    _refused("a share that does not open", "BAD_SHARE", "Upload", masked(bend_shared=_damaged_share)),
    _refused("a share for somebody else", "BAD_SHARE", "Upload", masked(bend_shared=_share_of_another)),
)
