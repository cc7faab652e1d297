"""However a round is spread over aggregators, it is the same round: as many devices, reports and groups."""

from __future__ import annotations

from collections import Counter

from hypothesis import example, given
from hypothesis import strategies as st

from fedrecon.aggregator.group_events import Config
from fedrecon.coordinator.parting import PartSize, part_sizes, places
from fedrecon.v1.task_pb2 import SUM_PROTOCOL_SECAGG_PLUS, SUM_PROTOCOL_TRUSTED


def config_of(size: PartSize, maximum_reports: int, *, is_masked: bool) -> Config:
    """What an aggregator makes of it."""
    return Config(
        task="films",
        round=1,
        attempt=1,
        kind=1,
        protocol=SUM_PROTOCOL_SECAGG_PLUS if is_masked else SUM_PROTOCOL_TRUSTED,
        segments=(),
        metrics=(),
        ring_bits=32,
        maximum_reports=maximum_reports,
        maximum_weight=1,
        minimum_group=1,
        cohort_size=size.cohort_size,
        plan_digest=b"",
        checkpoint_digest=b"",
        expires_milliseconds=1,
        report_goal=size.report_goal if is_masked else 0,
    )


@st.composite
def wholes(draw: st.DrawFn) -> PartSize:
    goal = draw(st.integers(1, 3_000))
    return PartSize(goal + draw(st.integers(0, goal)), goal)


@given(whole=wholes(), maximum_reports=st.integers(1, 500), aggregators=st.integers(0, 9), is_masked=st.booleans())
@example(whole=PartSize(250, 181), maximum_reports=100, aggregators=2, is_masked=True)
@example(whole=PartSize(1, 1), maximum_reports=1, aggregators=9, is_masked=False)
@example(whole=PartSize(11, 10), maximum_reports=2, aggregators=3, is_masked=False)
def test_parts_are_the_whole_and_no_group_is_smaller(
    whole: PartSize, maximum_reports: int, aggregators: int, is_masked: bool
) -> None:
    sizes = part_sizes(whole, maximum_reports, aggregators, is_masked=is_masked)
    assert 1 <= len(sizes) <= max(aggregators, 1)
    assert sum(size.cohort_size for size in sizes) == whole.cohort_size
    assert sum(size.report_goal for size in sizes) == whole.report_goal
    assert all(size.cohort_size >= size.report_goal for size in sizes)
    alone = config_of(whole, maximum_reports, is_masked=is_masked)
    parts = [config_of(size, maximum_reports, is_masked=is_masked) for size in sizes]
    assert sum(part.group_count for part in parts) == alone.group_count
    fewest = alone.expected_members // alone.group_count
    assert all(part.expected_members // part.group_count >= fewest - 1 for part in parts), "but for one that is rounded"


@given(sizes=st.lists(st.integers(1, 400), min_size=1, max_size=9), share=st.floats(0, 1))
def test_devices_are_dealt_in_proportion_however_few_were_drawn(sizes: list[int], share: float) -> None:
    count = round(share * sum(sizes))
    dealt = Counter(places(tuple(PartSize(size, size) for size in sizes), count))
    assert sum(dealt.values()) == count
    for number, size in enumerate(sizes):
        assert abs(dealt[number] - count * size / sum(sizes)) <= len(sizes), "but for a turn of each"
    assert count < sum(sizes) or [dealt[number] for number in range(len(sizes))] == sizes
