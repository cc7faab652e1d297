"""What members send between a decision and its event changes nothing about the decision."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fedrecon.aggregator import groups
from fedrecon.aggregator.group_events import Opened, Phase, RosterFrozen
from fedrecon.aggregator.secagg_plus import SecAggPlusSum
from fedrecon.aggregator.secure_sum import Keep, MessageRefusedError
from fedrecon.aggregator.thresholds import SMALLEST_RING
from fedrecon.v1.aggregator_pb2 import JoinRequest, JoinResponse, ShareRequest, ShareResponse
from support.masked_in_memory import begin, config_of, stream_of

MEMBERS = 8


def test_shares_that_come_while_it_is_written_down_whose_count_do_not_count() -> None:
    config = config_of(MEMBERS, 4)
    protocol = SecAggPlusSum(config, stream_of("aggregator"))
    group, _ = groups.step(None, Opened(b"g" * 16, config, "holder", Phase.JOINING, 1))
    members = [begin(number, config) for number in range(MEMBERS)]
    joins = []
    for session, masking in members:
        keys = masking.join_keys()
        joins.append(
            JoinRequest(
                proof=session.proof(),
                share_key=keys.share_key,
                mask_key=keys.mask_key,
                key_signature=keys.key_signature,
            )
        )
        protocol.receive(group, session.assignment.session, joins[-1], 1)
    frozen = protocol.due(group, 2, 1, closing=False)
    assert isinstance(frozen, Keep)
    group, _ = groups.step(group, frozen.event(b"roster"))
    shares = []
    for (session, masking), join in zip(members, joins, strict=True):
        joined = protocol.answer(group, session.assignment.session, join)
        assert isinstance(joined, JoinResponse)
        sealed, commitment = masking.share(joined)
        shares.append(ShareRequest(shares=sealed, seed_commitment=commitment))
    names = [session.assignment.session for session, _ in members]
    for name, share in list(zip(names, shares, strict=True))[:-1]:
        protocol.receive(group, name, share, 2)
    late = 3 + config.phase_milliseconds
    fixed = protocol.due(group, late, 2, closing=False)
    assert isinstance(fixed, Keep)
    protocol.receive(group, names[-1], shares[-1], late)  # the disk is slow
    group, _ = groups.step(group, fixed.event(b"shares"))
    assert group.shared is not None
    assert group.shared.sharers == tuple(range(MEMBERS - 1))
    assert not protocol.can_report(group, names[-1])
    assert all(protocol.can_report(group, name) for name in names[:-1])
    with pytest.raises(MessageRefusedError, match="went on without"):
        protocol.answer(group, names[-1], shares[-1])
    answered = protocol.answer(group, names[0], shares[0])
    assert isinstance(answered, ShareResponse)
    assert [share.from_index for share in answered.shares] == list(range(1, MEMBERS - 1))


def test_members_have_as_many_neighbours_as_the_tasks_drop_out_needs() -> None:
    found = {}
    for drop_out in (0.0, 0.1, 0.3):
        config = replace(config_of(SMALLEST_RING, 4), drop_out=drop_out)
        protocol = SecAggPlusSum(config, stream_of("aggregator"))
        group, _ = groups.step(None, Opened(b"g" * 16, config, "holder", Phase.JOINING, 1))
        for number in range(SMALLEST_RING):
            session, masking = begin(number, config)
            keys = masking.join_keys()
            join = JoinRequest(
                proof=session.proof(),
                share_key=keys.share_key,
                mask_key=keys.mask_key,
                key_signature=keys.key_signature,
            )
            protocol.receive(group, session.assignment.session, join, 1)
        frozen = protocol.due(group, 2, 1, closing=False)
        assert isinstance(frozen, Keep)
        event = frozen.event(b"roster")
        assert isinstance(event, RosterFrozen)
        found[drop_out] = event.neighbours
    assert found[0.1] < found[0.0] < found[0.3]
