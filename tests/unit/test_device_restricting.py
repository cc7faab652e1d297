"""A device reports the rows of public row sets only, and only of sets that are what its app insists on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedrecon.device_sdk import Outcome
from fedrecon.device_sdk.floors import read_floors
from fedrecon.device_sdk.local_parameters import LocalParameters
from fedrecon.device_sdk.restricting import restrict
from fedrecon.device_sdk.runtime import SparseUpdate, TrainingResult
from fedrecon.v1 import coordinator_pb2
from fedrecon.v1.coordinator_pb2 import Assignment, CheckInRequest
from fedrecon.v1.plan_pb2 import Layout, Segment
from fedrecon.wire.digests import digest_of
from fedrecon.wire.fixed_point import FixedPoint, dequantise, read_vector
from fedrecon.wire.fixed_point import Segment as FixedSegment
from fedrecon.wire.row_sets import RowSet, write_row_set
from support import device_bundle as bundle
from support.device_services import PUBLISHER, Services, play

DIGEST = b"s" * 32
ROWS = np.array([1, 3, 4])
LAYOUT = Layout(segments=[Segment(parameter="items", row_set_digest=DIGEST, bound=1.0, width=2)])


def result_of(update: SparseUpdate) -> TrainingResult:
    return TrainingResult({"items": update}, (), 3, LocalParameters({}), {"items": 6}, ())


def restricted(update: SparseUpdate) -> SparseUpdate:
    return restrict(result_of(update), LAYOUT, {DIGEST: RowSet(ROWS, 5, 50)}).updates["items"]


def test_rows_outside_of_the_set_are_left_out_and_the_others_numbered_by_their_place() -> None:
    values = np.arange(8, dtype=np.float32).reshape(4, 2)
    after = restricted(SparseUpdate(values, np.array([0, 1, 4, 5])))
    assert after.rows is not None
    assert after.rows.tolist() == [0, 2]
    assert after.values.tolist() == [[2.0, 3.0], [4.0, 5.0]]


def test_of_a_whole_table_the_set_s_rows_are_kept() -> None:
    after = restricted(SparseUpdate(np.arange(12, dtype=np.float32).reshape(6, 2), None))
    assert after.rows is None
    assert after.values.tolist() == [[2.0, 3.0], [6.0, 7.0], [8.0, 9.0]]


def test_a_device_that_touched_no_row_of_the_set_reports_zeros_of_the_same_length() -> None:
    after = restricted(SparseUpdate(np.ones((2, 2), np.float32), np.array([0, 5])))
    assert after.values.shape == (0, 2)


def test_parameters_without_a_row_set_stay_as_they_are() -> None:
    result = result_of(SparseUpdate(np.ones((1, 2), np.float32), np.array([5])))
    whole = Layout(segments=[Segment(parameter="items", all_rows=True, bound=1.0, width=2)])
    assert restrict(result, whole, {}).updates["items"] is result.updates["items"]


@pytest.fixture
def made() -> Any:
    return bundle.make_plan()


def assigned(made: Any, rows: np.ndarray, contributors: int = 5, cohort: int = 5) -> Assignment:
    """An assignment whose items are of a row set, its groups of at least 5."""
    content = write_row_set(rows, contributors, cohort)
    made.blobs[digest_of(content)] = content
    layout = Layout()
    layout.CopyFrom(made.manifest.layout)
    layout.segments[0].row_set_digest = digest_of(content)
    assignment = bundle.make_assignment(made, layout=layout)
    assignment.row_sets["items"].CopyFrom(made.reference(digest_of(content)))
    return assignment


def reported(services: Services, rows: int) -> tuple[np.ndarray, ...]:
    """The update in a report: items, then bias, each times the weight."""
    segments = (FixedSegment(rows * bundle.FACTORS, 8.0), FixedSegment(1, 64.0))
    agreed = FixedPoint(segments, (100.0,), maximum_reports=100, maximum_weight=20)
    read = dequantise(read_vector(bytes(services.received), agreed), agreed)
    return tuple(np.array(each) / read.weight for each in read.updates)


def items_reported(services: Services, rows: int) -> np.ndarray:
    return reported(services, rows)[0].reshape(rows, bundle.FACTORS)


def test_an_upload_holds_the_rows_of_the_set_and_no_others(made: Any) -> None:
    everything = Services(made, bundle.make_assignment(made))
    assert play(everything).participation.outcome is Outcome.UPLOADED
    some = Services(made, assigned(made, ROWS))
    participation = play(some).participation
    assert participation.outcome is Outcome.UPLOADED
    whole = items_reported(everything, 6)
    assert np.abs(whole[ROWS]).max() > 0.1
    assert np.abs(np.delete(whole, ROWS, axis=0)).max() > 0.1
    assert np.allclose(items_reported(some, 3), whole[ROWS], atol=1e-5)
    assert len(everything.received) - len(some.received) == 3 * bundle.FACTORS * 4
    assert "it holds the rows of a public set only" in str(participation.receipt)


def test_only_what_is_reported_counts_for_the_clip_norm(made: Any) -> None:
    """A clip norm between that of the rows reported and that of all rows changes nothing."""
    everything, some = Services(made, bundle.make_assignment(made)), Services(made, assigned(made, np.array([5])))
    for services in (everything, some):
        assert play(services).participation.outcome is Outcome.UPLOADED
    norms = [np.sqrt(sum(np.square(each).sum() for each in reported(*pair))) for pair in ((everything, 6), (some, 1))]
    assert norms[0] > 1.01 * norms[1]
    assignment = assigned(made, np.array([5]))
    assignment.clip_norm = (norms[0] + norms[1]) / 2
    clipped = Services(made, assignment)
    assert play(clipped).participation.outcome is Outcome.UPLOADED
    assert clipped.received == some.received


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"\xff\xff", "damaged"),
        (write_row_set(np.array([1, 6]), 5, 5), "has row 6 of 6"),
    ],
)
def test_a_row_set_that_does_not_fit_ends_the_session(made: Any, content: bytes, told: str) -> None:
    assignment = assigned(made, ROWS)
    made.blobs[digest_of(content)] = content
    assignment.row_sets["items"].CopyFrom(made.reference(digest_of(content)))
    assignment.layout.segments[0].row_set_digest = digest_of(content)
    services = Services(made, assignment)
    participation = play(services).participation
    assert participation.outcome is Outcome.FAILED
    assert told in participation.message
    assert not services.received


def test_a_layout_with_another_row_set_than_the_assignment_ends_the_session(made: Any) -> None:
    assignment = assigned(made, ROWS)
    assignment.layout.segments[0].row_set_digest = b"t" * 32
    services = Services(made, assignment)
    assert play(services).participation.outcome is Outcome.FAILED
    assert not services.received


@pytest.mark.parametrize(("contributors", "cohort", "refused"), [(5, 5, False), (4, 5, True), (5, 100, True)])
def test_an_app_s_floor_counts_contributors_of_the_smallest_group(
    made: Any, contributors: int, cohort: int, refused: bool
) -> None:
    """Groups of 5 may be opened, so 5 of 100 is a quarter of a device."""
    services = Services(made, assigned(made, ROWS, contributors, cohort))
    participation = play(services, floors=read_floors([PUBLISHER], "allowed", 5, 5)).participation
    assert participation.outcome is (Outcome.REFUSED if refused else Outcome.UPLOADED)
    assert participation.reason == ("TOO_FEW_CONTRIBUTORS" if refused else "")
    assert bool(services.received) != refused


def test_a_task_that_sums_all_rows_is_below_any_floor_on_contributors(made: Any) -> None:
    services = Services(made, bundle.make_assignment(made))
    participation = play(services, floors=read_floors([PUBLISHER], "allowed", 5, 1)).participation
    assert (participation.outcome, participation.reason) == (Outcome.REFUSED, "TOO_FEW_CONTRIBUTORS")
    assert services.finished.outcome == coordinator_pb2.SESSION_OUTCOME_REFUSED
    assert CheckInRequest.FromString(services.bodies("CheckIn")[0]).floors.minimum_contributors == 1


def test_an_evaluation_reports_no_rows_and_meets_the_floor(made: Any) -> None:
    assignment = bundle.make_assignment(made, kind=coordinator_pb2.SESSION_KIND_EVALUATE, layout=Layout())
    participation = play(Services(made, assignment), floors=read_floors([PUBLISHER], "allowed", 5, 5)).participation
    assert participation.outcome is Outcome.UPLOADED


def test_a_row_of_few_contributors_is_refused_unless_the_app_says_otherwise() -> None:
    assert read_floors([], "required", 20).minimum_contributors == 5
    assert read_floors([], "required", 20, 0).minimum_contributors == 0
    assert read_floors([], "allowed", 1).minimum_contributors == 0, "what may leave in clear, no sum has to hide"


def test_a_floor_below_zero_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="min_contributors is -1"):
        read_floors([], "required", 20, -1)
