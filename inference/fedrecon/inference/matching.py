"""What a person means by the title or key of an item, as they type it.

Rules: a key, then a whole title, then a part of a title, case ignored; the first of these that fits decides. What fits
more than one item, or none, is never guessed: the message lists what comes near.
"""

from __future__ import annotations

import difflib

from fedrecon.wire.vocabularies import Items

_SHOWN = 8
_CUTOFF = 0.4  # titles less alike than this are not what was meant


class UnclearItemError(ValueError):
    """Words do not name exactly one item; the message says which come near."""


def find_item(items: Items, words: str) -> int:
    """Returns the row of the item that is meant.

    Args:
        items: the vocabulary.
        words: a key, a title, or a part of a title that no other title has.

    Raises:
        UnclearItemError: no item fits, or more than one.

    Example:
        >>> from fedrecon.wire.vocabularies import read_vocabulary, write_vocabulary
        >>> items = read_vocabulary(write_vocabulary("items", 1, ["1", "2"], ["Alien (1979)", "Heat (1995)"]))
        >>> find_item(items, "heat")
        1
    """
    if words in items.rows:
        return items.rows[words]
    folded = words.casefold().strip()
    titles = [title.casefold() for title in items.titles]
    whole = [row for row, title in enumerate(titles) if title == folded]
    fitting = whole or [row for row, title in enumerate(titles) if folded and folded in title]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        shown = "; ".join(_named(items, row) for row in fitting[:_SHOWN])
        more = f"; and {len(fitting) - _SHOWN} more" if len(fitting) > _SHOWN else ""
        raise UnclearItemError(f"{words!r} may be any of: {shown}{more}")
    names = titles or [key.casefold() for key in items.keys]
    near = difflib.get_close_matches(folded, names, n=_SHOWN, cutoff=_CUTOFF)
    rows = sorted({names.index(name) for name in near}, key=lambda row: near.index(names[row]))
    nearest = "; ".join(_named(items, row) for row in rows)
    raise UnclearItemError(f"no item is called {words!r}" + (f"; the nearest are: {nearest}" if nearest else ""))


def _named(items: Items, row: int) -> str:
    """Returns title and key of an item."""
    return f"{items.titles[row]} (key {items.keys[row]})" if items.titles else items.keys[row]
