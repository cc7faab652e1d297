from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import pytest

from fedrecon.ops.journal.codec import Codec, UnreadableEvent


class Outcome(Enum):
    ACCEPTED = "accepted"
    VOID = "void"


@dataclass(frozen=True, slots=True)
class Member:
    session: bytes
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Assigned:
    round_number: int
    members: tuple[Member, ...]
    outcome: Outcome
    rates: dict[int, float]
    hosts: frozenset[str]
    expires: int | None = None


@dataclass(frozen=True, slots=True)
class Closed:
    pass


@dataclass(frozen=True, slots=True)
class Committed:
    checkpoint: bytes
    note: str = field(default="")


ASSIGNED = Assigned(
    round_number=2**53 + 1,
    members=(Member(bytes(range(256)), (1, 2)), Member(b"", ())),
    outcome=Outcome.VOID,
    rates={1: 0.1, 2: 1.0},
    hosts=frozenset({"a", "ä\n\x00"}),
)
CODEC: Codec[Assigned | Closed | Committed] = Codec(Assigned, Closed, Committed)


@pytest.mark.parametrize("event", [ASSIGNED, Closed(), Committed(b"\xff"), Committed(b"", "note")])
def test_every_event_comes_back_equal(event: Assigned | Closed | Committed) -> None:
    assert CODEC.decode(CODEC.encode(event)) == event


def test_events_lie_as_json_under_their_class_name() -> None:
    assert CODEC.encode(Closed()) == b'{"event":"Closed"}'
    assert CODEC.encode(Committed(b"\x00")) == b'{"event":"Committed","checkpoint":"AA==","note":""}'


def test_a_journal_of_a_newer_version_is_read_without_its_new_fields() -> None:
    newer = b'{"event":"Committed","checkpoint":"AA==","note":"n","added":{"later":[1]}}'
    assert CODEC.decode(newer) == Committed(b"\x00", "n")


def test_a_journal_of_an_older_version_is_read_with_defaults() -> None:
    assert CODEC.decode(b'{"event":"Committed","checkpoint":"AA=="}') == Committed(b"\x00")


def test_an_unknown_event_is_refused_with_the_known_ones_named() -> None:
    with pytest.raises(UnreadableEvent, match=r"'Paused'.*Assigned, Closed, Committed.*newer version"):
        CODEC.decode(b'{"event":"Paused"}')


@pytest.mark.parametrize(
    "encoded",
    [
        b"",
        b"not json",
        b"[]",
        b"{}",
        b'{"event":null}',
        b'{"event":["Closed"]}',
        b'{"event":"Committed"}',
        b'{"event":"Committed","checkpoint":7}',
        b'{"event":"Committed","checkpoint":"no base64!"}',
        b'{"event":"Committed","checkpoint":"AA==","note":7}',
        b'{"event":"Closed"},{"event":"Closed"}',
        b"\xff\xfe",
    ],
)
def test_bytes_that_fit_no_event_are_refused(encoded: bytes) -> None:
    with pytest.raises(UnreadableEvent):
        CODEC.decode(encoded)


def test_a_number_in_quotes_is_not_a_number() -> None:
    encoded = CODEC.encode(ASSIGNED).replace(b'"round_number":9007199254740993', b'"round_number":"1"')
    with pytest.raises(UnreadableEvent, match="round_number"):
        CODEC.decode(encoded)


def test_a_value_of_a_wrong_type_is_not_written() -> None:
    wrong: Any = "not bytes"
    with pytest.raises(UnreadableEvent, match="Committed"):
        CODEC.encode(Committed(checkpoint=7))  # type: ignore[arg-type]
    with pytest.raises(UnreadableEvent, match="Assigned"):
        CODEC.encode(Assigned(1, (wrong,), Outcome.VOID, {}, frozenset()))


def test_an_event_of_another_room_is_not_written() -> None:
    @dataclass(frozen=True)
    class Stray:
        pass

    with pytest.raises(TypeError, match="not Stray"):
        CODEC.encode(Stray())  # type: ignore[arg-type]


def test_only_frozen_dataclasses_with_distinct_names_are_events() -> None:
    @dataclass
    class Changeable:
        pass

    @dataclass(frozen=True)
    class Named:
        event: str

    for wrong in (int, Changeable):
        with pytest.raises(TypeError, match="frozen dataclass"):
            Codec(wrong)
    with pytest.raises(ValueError, match="two events"):
        Codec(Closed, Closed)
    with pytest.raises(ValueError, match="field 'event'"):
        Codec(Named)
