"""What `fedrecon aggregators` prints, and what it asks for."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

import pytest

from fedrecon.ops import aggregator_commands
from fedrecon.ops.command import main
from fedrecon.v1.admin_pb2 import (
    AggregatorState,
    DrainAggregatorRequest,
    DrainAggregatorResponse,
    ListAggregatorsRequest,
    ListAggregatorsResponse,
    UndrainAggregatorRequest,
    UndrainAggregatorResponse,
)

BUSY = AggregatorState(target="one:7002", answers=True, open_groups=3)
AWAY = AggregatorState(target="two:7002", drained=True)
ENDING = AggregatorState(target="one:7002", answers=True, drained=True, open_groups=3)
EMPTY = AggregatorState(target="one:7002", answers=True, drained=True)


class Coordinator:
    def __init__(self, *states: AggregatorState) -> None:
        self.states = states
        self.asked: list[DrainAggregatorRequest | UndrainAggregatorRequest] = []

    def ListAggregators(self, request: ListAggregatorsRequest, timeout: float) -> ListAggregatorsResponse:  # noqa: N802
        del request
        assert timeout > 0
        return ListAggregatorsResponse(aggregators=self.states)

    def DrainAggregator(self, request: DrainAggregatorRequest, timeout: float) -> DrainAggregatorResponse:  # noqa: N802
        assert timeout > 0
        self.asked.append(request)
        return DrainAggregatorResponse(aggregator=self.states[0])

    def UndrainAggregator(  # noqa: N802
        self, request: UndrainAggregatorRequest, timeout: float
    ) -> UndrainAggregatorResponse:
        assert timeout > 0
        self.asked.append(request)
        return UndrainAggregatorResponse(aggregator=self.states[0])


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> type[Coordinator]:
    class Serving(Coordinator):
        def __init__(self, *states: AggregatorState) -> None:
            super().__init__(*states)

            @contextlib.contextmanager
            def opened(server: str | None) -> Iterator[Coordinator]:
                assert server == "host:1"
                yield self

            monkeypatch.setattr(aggregator_commands, "open_admin", opened)

    return Serving


def test_a_list_says_who_takes_groups_and_who_does_not_answer(
    serve: type[Coordinator], capsys: pytest.CaptureFixture[str]
) -> None:
    serve(BUSY, AWAY)
    assert main(["aggregators", "list", "--server", "host:1"]) == 0
    told = [line.split() for line in capsys.readouterr().out.splitlines() if ":7002" in line]
    assert told == [["one:7002", "3", "takes", "groups"], ["two:7002", "drained;", "does", "not", "answer"]]
    assert main(["aggregators", "list", "--json", "--server", "host:1"]) == 0
    assert json.loads(capsys.readouterr().out)["aggregators"][0]["target"] == "one:7002"


@pytest.mark.parametrize(
    ("state", "says"), [(ENDING, "drained; 3 groups at work"), (EMPTY, "drained and empty: it can be stopped")]
)
def test_draining_says_whether_an_aggregator_is_empty(
    serve: type[Coordinator], capsys: pytest.CaptureFixture[str], state: AggregatorState, says: str
) -> None:
    coordinator = serve(state)
    assert main(["aggregators", "drain", "one:7002", "--reason", "new disk", "--server", "host:1"]) == 0
    assert coordinator.asked == [DrainAggregatorRequest(target="one:7002", reason="new disk")]
    assert capsys.readouterr().out == f"one:7002: {says}\n"


def test_an_aggregator_gets_groups_again(serve: type[Coordinator], capsys: pytest.CaptureFixture[str]) -> None:
    coordinator = serve(BUSY)
    assert main(["aggregators", "undrain", "one:7002", "--server", "host:1"]) == 0
    assert coordinator.asked == [UndrainAggregatorRequest(target="one:7002")]
    assert capsys.readouterr().out == "one:7002: takes groups\n"
