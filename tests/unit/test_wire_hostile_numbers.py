"""Numbers and files from the network: whatever they are, they are refused with a word, and cost little."""

import json

import numpy as np
import pytest

from fedrecon.v1.common_pb2 import DTYPE_FLOAT32, Tensor
from fedrecon.v1.plan_pb2 import Schedule
from fedrecon.wire import schedules
from fedrecon.wire.fixed_point import TAIL_METRICS, FixedPoint, Segment, add, dequantise, quantise, zero
from fedrecon.wire.tensors import MalformedTensorsError, from_message, read_safetensors

LARGEST_UINT32 = (1 << 32) - 1


@pytest.mark.parametrize(
    "schedule",
    [
        Schedule(batch_size=LARGEST_UINT32, epochs=1),
        Schedule(batch_size=1, epochs=LARGEST_UINT32),
        Schedule(batch_size=5, epochs=LARGEST_UINT32, maximum_steps=LARGEST_UINT32),
        Schedule(batch_size=LARGEST_UINT32, epochs=0),
    ],
)
def test_a_schedule_that_would_fill_the_memory_is_refused(schedule: Schedule) -> None:
    with pytest.raises(ValueError, match="lower the schedule"):
        schedules.order(np.arange(3, dtype=np.int64), schedule)


def test_a_schedule_of_many_epochs_runs_up_to_its_maximum_of_steps() -> None:
    order, _ = schedules.order(np.arange(3), Schedule(batch_size=2, epochs=LARGEST_UINT32, maximum_steps=5))
    assert order.tolist() == [[0, 1], [2, 0], [0, 1], [2, 0], [0, 1]]


@pytest.mark.parametrize("bound", [1e-320, 1e308])
def test_a_bound_whose_integers_mean_nothing_is_refused(bound: float) -> None:
    with pytest.raises(ValueError, match="scaled to integers"):
        FixedPoint((Segment(3, bound),), (), maximum_reports=10, maximum_weight=1000)


@pytest.mark.parametrize("bound", [float("nan"), float("inf"), -1.0])
def test_a_metric_bound_that_bounds_nothing_is_refused(bound: float) -> None:
    with pytest.raises(ValueError, match="metric sum"):
        FixedPoint((), (bound,), maximum_reports=10, maximum_weight=1000)


@pytest.mark.parametrize("total", [1e12, -1e12, 1e300, -1e300])
def test_metric_sums_of_a_full_group_stay_within_their_ring(total: float) -> None:
    agreed = FixedPoint((), (1e300,), maximum_reports=7, maximum_weight=5)
    together = zero(agreed)
    for _ in range(agreed.maximum_reports):
        report = quantise([], 3, [total], agreed, bytes(32))
        assert abs(int(report.tail[TAIL_METRICS:].view("<i8")[0])) <= agreed.metric_limit
        add(together, report)
    assert np.sign(dequantise(together, agreed).metrics[0]) == np.sign(total)


def _file(header: bytes, content: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + content


def _entry(shape: list[float], end: int) -> bytes:
    return json.dumps({"a": {"dtype": "U8", "shape": shape, "data_offsets": [0, end]}}).encode()


@pytest.mark.parametrize(
    "content",
    [
        _file(_entry([float("inf")], 0)),
        _file(_entry([1] * 100, 1), b"x"),
        _file(_entry([0, 1 << 70], 0)),
        _file(_entry([-1, -1], 1), b"x"),
        _file(b"[" * 100_000),
    ],
    ids=["infinite", "many extents", "empty but huge", "negative", "deep"],
)
def test_a_file_of_tensors_that_cannot_be_held_is_malformed(content: bytes) -> None:
    with pytest.raises(MalformedTensorsError):
        read_safetensors(content)


@pytest.mark.parametrize("shape", [[1] * 100, [0, (1 << 64) - 1]])
def test_a_message_of_a_shape_that_cannot_be_held_is_malformed(shape: list[int]) -> None:
    elements = b"" if 0 in shape else bytes(4)
    with pytest.raises(MalformedTensorsError):
        from_message(Tensor(name="a", dtype=DTYPE_FLOAT32, shape=shape, data=elements))
