"""Bends messages: bytes, fields and whole messages, by a generator that the caller seeds.

An input is a list of byte strings: one for a unary call, several for a stream. The same generator and the same valid
input give the same bent one. Nothing here knows what a message means; what it may do is judged by the subjects.

Source: the operations are those of structure-aware fuzzers (libprotobuf-mutator) and of AFL's havoc stage.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

_MANY = 300
_LONG = 5_000
_INTEGERS = (0, 1, 2, 3, 7, 255, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 53, (1 << 63) - 1, (1 << 64) - 1)
_ENUMS = (0, 1, 2, 3, 4, 99, -1, (1 << 31) - 1, -(1 << 31))
_REALS = (0.0, -0.0, 1.0, -1.0, math.nan, math.inf, -math.inf, 1e308, -1e308, 5e-324, 1e-30, 1e30)
_TEXTS = (
    "",
    "x",
    "\0",
    "../../etc/passwd",
    "films",
    "films2",
    "é" * 80,
    "{}",
    "a" * _LONG,
    "\U0001f3ac",
    " ",
    "%s",
    "-",
)
_LIMITS = {
    FieldDescriptor.CPPTYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, (1 << 64) - 1),
    FieldDescriptor.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
}


def bend(
    source: random.Random, parts: Sequence[bytes], kind: type[Message], others: Sequence[Sequence[bytes]]
) -> list[bytes]:
    """Returns another input than a valid one.

    Args:
        source: decides everything.
        parts: the valid input.
        kind: type of its messages.
        others: valid inputs of any calls, to be sent in its place or to take pieces of.
    """
    bent = list(parts)
    chance = source.random()
    if chance < 0.04:
        return list(source.choice(others))
    if chance < 0.12 and len(bent) > 1:
        return _bend_order(source, bent)
    place = source.randrange(len(bent))
    if chance < 0.35:
        for _ in range(source.choice((1, 1, 1, 2, 4))):
            bent[place] = _bend_bytes(source, bent[place], b"".join(source.choice(others)))
    else:
        bent[place] = _bend_fields(source, bent[place], kind)
    return bent


def bend_content(source: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Returns other bytes than the content of a file."""
    for _ in range(source.choice((1, 1, 2, 4))):
        content = _bend_bytes(source, content, source.choice(others))
    return content


def bend_message(source: random.Random, message: Any) -> None:
    """Bends one field somewhere in a message."""
    fields = message.DESCRIPTOR.fields
    if not fields:
        return
    field = source.choice(fields)
    if _is_map(field):
        _bend_map(source, getattr(message, field.name), field)
    elif field.is_repeated:
        _bend_repeated(source, getattr(message, field.name), field)
    elif field.message_type is not None:
        if source.random() < 0.15:
            message.ClearField(field.name)
        else:
            inner = getattr(message, field.name)
            inner.SetInParent()
            bend_message(source, inner)
    elif source.random() < 0.15:
        message.ClearField(field.name)
    else:
        setattr(message, field.name, _scalar(source, field, getattr(message, field.name)))


def _bend_order(source: random.Random, parts: list[bytes]) -> list[bytes]:
    """Removes, repeats or exchanges parts of a stream."""
    first, second = source.randrange(len(parts)), source.randrange(len(parts))
    match source.randrange(3):
        case 0:
            del parts[first]
        case 1:
            parts.insert(second, parts[first])
        case _:
            parts[first], parts[second] = parts[second], parts[first]
    return parts


def _bend_bytes(source: random.Random, content: bytes, other: bytes) -> bytes:  # noqa: PLR0911 - one line for each
    place = source.randrange(len(content) + 1)
    end = min(len(content), place + source.choice((1, 1, 2, 4, 8, 32)))
    match source.randrange(7):
        case 0 if content:
            place = min(place, len(content) - 1)
            return content[:place] + bytes([content[place] ^ (1 << source.randrange(8))]) + content[place + 1 :]
        case 1:
            return content[:place] + source.randbytes(source.choice((1, 1, 2, 4, 16))) + content[place:]
        case 2:
            return content[:place] + content[end:]
        case 3:
            return content[:place]
        case 4 if other:
            begin = source.randrange(len(other))
            return content[:place] + other[begin : begin + source.randrange(1, 64)] + content[place:]
        case 5:
            return content[:place] + content[place:end] * source.choice((2, 3, 50)) + content[end:]
        case _:
            return content[:place] + bytes([source.choice((0, 1, 127, 128, 255))]) * (end - place) + content[end:]


def _bend_fields(source: random.Random, content: bytes, kind: type[Message]) -> bytes:
    message = kind()
    try:
        message.ParseFromString(content)
    except DecodeError:  # a part of another kind, after parts were exchanged
        return content[:-1]
    for _ in range(source.choice((1, 1, 1, 2, 3))):
        bend_message(source, message)
    return message.SerializeToString()


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _bend_map(source: random.Random, values: Any, field: Any) -> None:
    key_field, value_field = (field.message_type.fields_by_name[name] for name in ("key", "value"))
    keys = sorted(values)
    key = source.choice(keys) if keys and source.random() < 0.6 else _scalar(source, key_field, "")
    if keys and source.random() < 0.3:
        values.pop(source.choice(keys))
    elif value_field.message_type is not None:
        bend_message(source, values[key])
    else:
        values[key] = _scalar(source, value_field, values[key])


def _bend_repeated(source: random.Random, values: Any, field: FieldDescriptor) -> None:
    count = len(values)
    match source.randrange(5):
        case 0:
            del values[:]
        case 1 if count:
            del values[source.randrange(count)]
        case 2 if count:
            values.extend([values[source.randrange(count)]] * source.choice((1, 1, 2, _MANY)))
        case 3 if count and field.message_type is not None:
            bend_message(source, values[source.randrange(count)])
        case 3 if count:
            place = source.randrange(count)
            values[place] = _scalar(source, field, values[place])
        case _ if field.message_type is not None:
            bend_message(source, values.add())
        case _:
            values.append(_scalar(source, field, field.default_value if not field.is_repeated else _empty(field)))


def _empty(field: FieldDescriptor) -> Any:
    return {FieldDescriptor.CPPTYPE_STRING: b"" if field.type == FieldDescriptor.TYPE_BYTES else ""}.get(
        field.cpp_type, 0
    )


def _scalar(source: random.Random, field: FieldDescriptor, value: Any) -> Any:
    """Returns another value for a field that is no message."""
    if field.type == FieldDescriptor.TYPE_BYTES:
        return _bytes(source, value)
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return source.choice((*_TEXTS, value + "x", value[:-1], value.upper()))
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return not value
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        return source.choice(_ENUMS)
    if field.cpp_type in {FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT}:
        return source.choice((*_REALS, -value, value / 2, source.uniform(-10, 10)))
    low, high = _LIMITS[field.cpp_type]
    number = source.choice((*_INTEGERS, value + 1, value - 1, value * 2, source.getrandbits(64), -value))
    return min(max(number, low), high)


def _bytes(source: random.Random, value: bytes) -> bytes:
    bends: tuple[Callable[[], bytes], ...] = (
        lambda: b"",
        lambda: value[:-1],
        lambda: value + b"\0",
        lambda: _bend_bytes(source, value, value),
        lambda: source.randbytes(len(value)),
        lambda: bytes(len(value)),
        lambda: b"\xff" * len(value),
        lambda: source.randbytes(source.choice((1, 16, 32, 33, 64, 82, 100))),
        lambda: bytes(_LONG),
    )
    return source.choice(bends)()
