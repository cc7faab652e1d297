"""Rows for new items: what was there stays, what is new begins as a first round would."""

from __future__ import annotations

import numpy as np
import pytest

from fedrecon.aggregator.growing import ShrunkError, grow
from fedrecon.aggregator.optimizers import adagrad, in_half_precision, sgd

CHECKPOINT = {
    "items": np.array([[1, 2], [3, 4], [8, 0]], np.float32),
    "biases": np.array([[0.5], [0.1], [0.0]], np.float32),
    "dense": np.ones(4, np.float32),
}
ROWS = {"items": 5, "biases": 5}


def test_what_there_was_keeps_its_bytes_and_new_rows_are_the_mean() -> None:
    after, state = grow(CHECKPOINT, None, ROWS, sgd(1.0))
    assert state is None
    assert after["items"][:3].tobytes() == CHECKPOINT["items"].tobytes()
    assert after["items"][3:].tolist() == [[4.0, 2.0]] * 2
    assert after["biases"][3:, 0] == pytest.approx([0.2, 0.2])
    assert after["items"].dtype == np.float32
    assert after["dense"] is CHECKPOINT["dense"]


def test_a_grown_state_goes_on_where_it_was_and_begins_for_new_rows() -> None:
    optimizer = adagrad(0.1, 0.9, 1e-3, 0.25)
    change = {name: np.full(value.shape, 0.5) for name, value in CHECKPOINT.items()}
    checkpoint, state = optimizer.update(change, optimizer.init(CHECKPOINT), CHECKPOINT)
    after, kept = grow(checkpoint, state, ROWS, optimizer)
    assert kept is not None
    assert kept["second_moment/items"][:3].tobytes() == state["second_moment/items"].tobytes()
    assert kept["second_moment/items"][3:].tolist() == [[0.25, 0.25]] * 2
    assert kept["first_moment/biases"][3:].tolist() == [[0.0]] * 2
    # The optimizer goes on with it, and old rows move as they would have moved without the new ones.
    more = {name: np.full(value.shape, 0.5) for name, value in after.items()}
    moved, _ = optimizer.update(more, kept, after)
    alone, _ = optimizer.update(change, state, checkpoint)
    assert moved["items"][:3].tobytes() == alone["items"].tobytes()


def test_nothing_changes_where_nothing_is_new() -> None:
    state = adagrad(0.1, 0.9, 1e-3, 0.0).init(CHECKPOINT)
    after, kept = grow(CHECKPOINT, state, {"items": 3, "biases": 3}, adagrad(0.1, 0.9, 1e-3, 0.0))
    assert {name: value.tobytes() for name, value in after.items()} == {
        name: value.tobytes() for name, value in CHECKPOINT.items()
    }
    assert kept == state


def test_rows_are_never_taken_away() -> None:
    with pytest.raises(ShrunkError, match="3 rows, more than the 2"):
        grow(CHECKPOINT, None, {"items": 2}, sgd(1.0))


def test_no_checkpoint_grows_beyond_what_devices_fetch() -> None:
    with pytest.raises(ShrunkError, match="no device fetches more"):
        grow(CHECKPOINT, None, {"items": 1 << 32}, sgd(1.0))


def test_in_16_bits_new_rows_begin_with_nothing_rounded_away() -> None:
    optimizer = in_half_precision(sgd(1.0))
    change = {name: np.full(value.shape, 1e-4) for name, value in CHECKPOINT.items()}
    checkpoint, state = optimizer.update(change, optimizer.init(CHECKPOINT), CHECKPOINT)
    after, kept = grow(checkpoint, state, ROWS, optimizer)
    assert kept is not None
    assert after["items"].dtype == np.float16
    assert kept["remainder/items"][:3].tobytes() == state["remainder/items"].tobytes()
    assert kept["remainder/items"][3:].tolist() == [[0.0, 0.0]] * 2
    more = {name: np.full(value.shape, 0.5) for name, value in after.items()}
    optimizer.update(more, kept, after)
