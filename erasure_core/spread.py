"""A few of many things."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


def spread(items: Sequence[Item], most: int) -> tuple[Item, ...]:
    """At most so many of some things, evenly spread over all of them, the first one among them.

    >>> spread("abcdefg", 3), spread("ab", 3)
    (('a', 'd', 'g'), ('a', 'b'))
    """
    return tuple(items[:: -(-len(items) // most) or 1])
