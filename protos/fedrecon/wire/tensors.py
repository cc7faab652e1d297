"""Checkpoints as safetensors files, and tensors as messages.

A reader and writer of the safetensors format (https://github.com/huggingface/safetensors, format of version 0.4)
small enough to live on a device: 8 bytes of little-endian header length, a JSON header, then the data. Files written
here are canonical (names sorted, no gaps, header padded with spaces to 8 bytes), so equal tensors give equal digests.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrecon.v1 import common_pb2
from fedrecon.v1.common_pb2 import Dtype, Tensor

type_names: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "U8": np.dtype("u1"),
    "U32": np.dtype("<u4"),
    "U64": np.dtype("<u8"),
}
_names_of_types = {dtype: name for name, dtype in type_names.items()}

numpy_types: dict[Dtype.ValueType, np.dtype[Any]] = {
    common_pb2.DTYPE_FLOAT32: np.dtype("<f4"),
    common_pb2.DTYPE_FLOAT16: np.dtype("<f2"),
    common_pb2.DTYPE_INT64: np.dtype("<i8"),
    common_pb2.DTYPE_INT32: np.dtype("<i4"),
    common_pb2.DTYPE_BOOL: np.dtype("?"),
}
_wire_types = {dtype: number for number, dtype in numpy_types.items()}

HEADER_LIMIT_BYTES = 100 << 20
_LENGTH_BYTES = 8


class MalformedTensorsError(ValueError):
    """Bytes are not a tensor or a safetensors file."""


def write_safetensors(tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None) -> bytes:
    """Returns the canonical safetensors file of `tensors`.

    Args:
        tensors: arrays by name; every type of the format but bfloat16 and float8.
        metadata: text by key, kept under `__metadata__`.

    Raises:
        TypeError: an array has a type that the format does not know.
    """
    header: dict[str, Any] = {}
    if metadata:
        header["__metadata__"] = dict(sorted(metadata.items()))
    parts: list[bytes] = []
    offset = 0
    for name, tensor in sorted(tensors.items()):
        little = np.ascontiguousarray(tensor, dtype=tensor.dtype.newbyteorder("<")).reshape(tensor.shape)
        type_name = _names_of_types.get(little.dtype)
        if type_name is None:
            raise TypeError(f"tensor {name}: type {tensor.dtype} cannot be stored; use one of {sorted(type_names)}")
        content = little.tobytes()
        header[name] = {
            "dtype": type_name,
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + len(content)],
        }
        parts.append(content)
        offset += len(content)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(_LENGTH_BYTES, "little"), text, *parts])


def read_safetensors(content: bytes) -> dict[str, NDArray[Any]]:
    """Returns the arrays of a safetensors file, read-only views of `content`.

    Raises:
        MalformedTensorsError: the file is cut off, its header is no JSON, a type is unknown, or offsets do not fit.
    """
    header, start = _read_header(content)
    tensors: dict[str, NDArray[Any]] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype, shape = type_names[entry["dtype"]], tuple(int(extent) for extent in entry["shape"])
            begin, end = (int(position) for position in entry["data_offsets"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise MalformedTensorsError(f"tensor {name}: malformed header entry {entry!r}") from error
        count = math.prod(shape)
        if (
            begin < 0
            or end - begin != count * dtype.itemsize
            or start + end > len(content)
            or min(shape, default=0) < 0
        ):
            raise MalformedTensorsError(
                f"tensor {name}: {list(shape)} {entry['dtype']} does not fit bytes {begin} to {end} of a file with "
                f"{len(content) - start} bytes of data; the file is cut off or damaged"
            )
        flat = np.frombuffer(content, dtype=dtype, count=count, offset=start + begin)
        tensors[name] = _shaped(flat, shape, name)
    return tensors


def _read_header(content: bytes) -> tuple[dict[str, Any], int]:
    """Returns the header of a safetensors file and the position of its first data byte."""
    if len(content) < _LENGTH_BYTES:
        raise MalformedTensorsError(f"{len(content)} bytes are no safetensors file: the header length is cut off")
    length = int.from_bytes(content[:_LENGTH_BYTES], "little")
    start = _LENGTH_BYTES + length
    if length > HEADER_LIMIT_BYTES or start > len(content):
        raise MalformedTensorsError(
            f"header of {length} bytes in a file of {len(content)}: cut off or no safetensors file"
        )
    try:
        header = json.loads(content[_LENGTH_BYTES:start])
    except (ValueError, RecursionError) as error:
        raise MalformedTensorsError("the safetensors header is no JSON") from error
    if not isinstance(header, dict):
        raise MalformedTensorsError("the safetensors header is no JSON object")
    return header, start


def to_message(name: str, array: NDArray[Any]) -> Tensor:
    """Returns an array as a message.

    Raises:
        TypeError: the contract has no such element type.
    """
    dtype = _wire_types.get(array.dtype.newbyteorder("<"))
    if dtype is None:
        raise TypeError(f"tensor {name}: type {array.dtype} has no place in the contract")
    return Tensor(name=name, dtype=dtype, shape=array.shape, data=np.ascontiguousarray(array).tobytes())


def from_message(tensor: Tensor) -> NDArray[Any]:
    """Returns the array of a message, read-only.

    Raises:
        MalformedTensorsError: the type is unknown or the length does not fit the shape.
    """
    dtype = numpy_types.get(tensor.dtype)
    if dtype is None:
        raise MalformedTensorsError(f"tensor {tensor.name}: unknown type {tensor.dtype}")
    shape = tuple(tensor.shape)
    if math.prod(shape) * dtype.itemsize != len(tensor.data):
        raise MalformedTensorsError(
            f"tensor {tensor.name}: {list(shape)} {dtype} needs {math.prod(shape) * dtype.itemsize} bytes, "
            f"not {len(tensor.data)}"
        )
    return _shaped(np.frombuffer(tensor.data, dtype=dtype), shape, tensor.name)


def _shaped(flat: NDArray[Any], shape: tuple[int, ...], name: str) -> NDArray[Any]:
    """Returns elements in their shape: their number fits, but not every shape of that number can be held."""
    try:
        return flat.reshape(shape)
    except (ValueError, OverflowError) as error:
        raise MalformedTensorsError(
            f"tensor {name}: a shape of {len(shape)} extents cannot be held: {error}"
        ) from error
