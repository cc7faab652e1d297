"""Who is whose neighbour in a masked sum: a ring of all members in random order (a Harary graph).

Each member has the k/2 members before it and the k/2 after it as neighbours; where k is all others, they are the
complete graph. The order is drawn when the roster is final, so that nobody can join beside somebody.

Source: Bell, Bonawitz, Gascon, Lepoint, Raykova, CCS 2020 (ePrint 2020/704), section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

_DRAWN_BYTES = 16


def draw(members: int, entropy: Callable[[int], bytes]) -> tuple[int, ...]:
    """Returns the members' indices in random order, uniform but for 2^-100.

    Args:
        members: how many.
        entropy: gives so many bytes of a CSPRNG.

    Example:
        >>> import os
        >>> sorted(draw(5, os.urandom))
        [0, 1, 2, 3, 4]
    """
    order = list(range(members))
    drawn = entropy(_DRAWN_BYTES * members)
    for last in range(members - 1, 0, -1):  # Fisher and Yates; 16 bytes modulo a small number are all but uniform
        word = int.from_bytes(drawn[last * _DRAWN_BYTES : (last + 1) * _DRAWN_BYTES], "little")
        other = word % (last + 1)
        order[last], order[other] = order[other], order[last]
    return tuple(order)


def neighbours_of(order: Sequence[int], neighbours: int, index: int) -> tuple[int, ...]:
    """Returns the indices of a member's neighbours, ascending.

    Args:
        order: the ring.
        neighbours: k, even; or so many that they are all others.
        index: the member.

    Raises:
        ValueError: k is odd or negative, or the member is not in the ring.

    Example:
        >>> neighbours_of((3, 0, 2, 1, 4), 2, 3)
        (0, 4)
    """
    place = order.index(index)
    if neighbours >= len(order) - 1:
        return tuple(sorted(other for other in order if other != index))
    return _around(order, neighbours, place)


def all_neighbours(order: Sequence[int], neighbours: int) -> dict[int, tuple[int, ...]]:
    """Returns every member's neighbours, as `neighbours_of` does.

    Args:
        order: the ring.
        neighbours: k, even; or so many that they are all others.

    Raises:
        ValueError: k is odd or negative.
    """
    if neighbours >= len(order) - 1:
        return {index: neighbours_of(order, neighbours, index) for index in order}
    return {index: _around(order, neighbours, place) for place, index in enumerate(order)}


def _around(order: Sequence[int], neighbours: int, place: int) -> tuple[int, ...]:
    if neighbours < 0 or neighbours % 2:
        raise ValueError(f"{neighbours} neighbours; in a ring they are an even number")
    half = neighbours // 2
    distances = (*range(-half, 0), *range(1, half + 1))
    return tuple(sorted(order[(place + distance) % len(order)] for distance in distances))
