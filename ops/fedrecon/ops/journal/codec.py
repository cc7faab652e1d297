"""Events as bytes: a room's frozen dataclasses to JSON `{"event": "Assigned", ...fields}` and back.

Rules: the class name is the event's name on disk, so a class is never renamed once events of it were written; fields
are added with a default, and never change their meaning. Bytes travel as base64, enums by value, tuples and frozensets
as lists. Decoding is strict: a wrong type is an error, never converted. Fields unknown to this version are ignored, so
that older code reads newer journals; an unknown event is an error, because state without it would be wrong.
"""

import dataclasses
from typing import Any, Generic, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, from_json

from fedrecon.ops.journal import JournalError

Event = TypeVar("Event")

_CONFIG = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="constants")
_NAME_FIELD = "event"


class UnreadableEvent(JournalError):  # noqa: N818 - named for what it is, as the journal's other errors
    """Bytes that are no event of this codec, or a value that its own type does not allow."""


class Codec(Generic[Event]):
    """Writes and reads the events of one stream.

    Args:
        event_types: Frozen dataclasses with distinct names; none has a field called `event`.

    Raises:
        TypeError: If one is not a frozen dataclass.
        ValueError: If two share a name, or one has a field called `event`.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Assigned:
        ...     session: bytes
        >>> codec = Codec(Assigned)
        >>> codec.encode(Assigned(b"abc"))
        b'{"event":"Assigned","session":"YWJj"}'
        >>> codec.decode(codec.encode(Assigned(b"abc")))
        Assigned(session=b'abc')
    """

    def __init__(self, *event_types: type[Event]) -> None:
        # An adapter of a list, since only a type without a configuration of its own takes one and hands it down.
        self._adapters: dict[str, TypeAdapter[list[Any]]] = {}
        for event_type in event_types:
            _check_event_type(event_type)
            name = event_type.__name__
            if name in self._adapters:
                raise ValueError(f"two events are called {name}: the name on disk must tell them apart")
            self._adapters[name] = TypeAdapter(list[event_type], config=_CONFIG)  # type: ignore[valid-type]

    def encode(self, event: Event) -> bytes:
        """Return an event as bytes.

        Raises:
            TypeError: If its type is not one of this codec.
            UnreadableEvent: If a field holds a value that its annotation does not allow.
        """
        name = type(event).__name__
        adapter = self._adapters.get(name)
        if adapter is None:
            raise TypeError(f"this codec writes {', '.join(self._adapters)}, not {name}")
        try:
            fields = adapter.dump_json([event], warnings="error")[1:-1]
        except PydanticSerializationError as error:
            raise UnreadableEvent(f"event {name} holds a value its type does not allow: {error}") from error
        opening = b'{"%s":"%s"' % (_NAME_FIELD.encode(), name.encode())
        return opening + (b"}" if fields == b"{}" else b"," + fields[1:])

    def decode(self, encoded: bytes) -> Event:
        """Return the event that bytes hold.

        Raises:
            UnreadableEvent: If they are not JSON, name an event this codec does not know, or do not fit its fields.
        """
        try:
            document = from_json(encoded)
        except ValueError as error:
            raise UnreadableEvent(f"an event of the journal is not JSON ({error}): {_excerpt(encoded)}") from error
        name = document.get(_NAME_FIELD) if isinstance(document, dict) else None
        adapter = self._adapters.get(name) if isinstance(name, str) else None
        if adapter is None:
            raise UnreadableEvent(
                f"this version does not know the event {name!r}; it knows {', '.join(self._adapters)}. "
                "If a newer version wrote this journal, run that version or a later one"
            )
        try:
            event: Event = adapter.validate_json(b"[" + encoded + b"]", strict=True)[0]
        except ValidationError as error:
            raise UnreadableEvent(f"event {name} of the journal does not fit its fields: {error}") from error
        return event


def _check_event_type(event_type: type[Any]) -> None:
    if not dataclasses.is_dataclass(event_type) or not event_type.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise TypeError(f"{event_type.__name__} is not a frozen dataclass: events never change")
    if any(field.name == _NAME_FIELD for field in dataclasses.fields(event_type)):
        raise ValueError(f"{event_type.__name__} has a field {_NAME_FIELD!r}: that place holds the event's name")


def _excerpt(encoded: bytes) -> str:
    return repr(encoded[:80])
