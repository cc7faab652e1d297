"""Local parameters: values that stay in the memory of this process.

The types that hold them refuse to be pickled or copied into a message, and do not show their values when printed,
so that they reach no log, queue or other process by accident.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from numpy.typing import NDArray

from fedrecon.device_sdk.errors import LocalParametersStayError


class StaysHere:
    """Mixed into every type that holds local parameters."""

    __slots__ = ()

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        """Refuses pickling and copying.

        Raises:
            LocalParametersStayError: always.
        """
        raise LocalParametersStayError(f"{type(self).__name__} holds local parameters and cannot be serialised")


class LocalParameters(StaysHere, Mapping[str, NDArray[Any]]):
    """The local parameters of one device by name, read-only.

    Args:
        values: arrays by name.
    """

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, NDArray[Any]]) -> None:
        self._values = dict(values)

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"LocalParameters({sorted(self._values)}, values hidden)"
