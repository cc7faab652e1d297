"""Keys that follow each other: what is new is made with the newest, what older ones made is good until it expires.

A key is replaced without stopping anything in three steps, each of them on every service before the next: the new key
joins the old ones (it is accepted), it becomes the newest (it is used), and when what the old one made has expired the
old one goes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KeyRing:
    """Keys of one purpose.

    Attributes:
        newest: Makes what is new.
        older: Still accepted.
    """

    newest: bytes
    older: tuple[bytes, ...] = ()

    def find(self, is_genuine: Callable[[bytes], bool]) -> bytes | None:
        """Return the first key, newest first, under which something is genuine; None if there is none.

        Example:
            >>> KeyRing(b"new", (b"old",)).find(lambda key: key == b"old")
            b'old'
        """
        return next((key for key in (self.newest, *self.older) if is_genuine(key)), None)
