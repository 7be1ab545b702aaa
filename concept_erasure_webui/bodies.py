"""JSON bodies that anyone may have sent: every field is read as what it must be, or refused by its name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from erasure_core.errors import InvalidSettings

MOST_SHOWN = 100
"""Characters of a value that an answer repeats."""
MOST_NAMED = 300
"""Characters of a text that names something, or of a setting; longer ones are none."""


def shown(value: object) -> str:
    """A value for people, cut where it is long; of lists and objects only that they are some."""
    if isinstance(value, (list, tuple)):
        return "a list"
    if isinstance(value, dict):
        return "an object"
    text = repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"


class Body:
    """The fields of a body, or of an object in it.

    Args:
        given: what was sent.
        known: the fields that it may have.
        what: how it is called in messages.

    Raises:
        InvalidSettings: it is no object, or has other fields.
    """

    def __init__(self, given: object, known: Iterable[str], what: str = "this request") -> None:
        if not isinstance(given, dict):
            raise InvalidSettings(f"{what} is {shown(given)}; it must be an object.")
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise InvalidSettings(f"{shown(unknown[0])} is not a field of {what}; it has {', '.join(sorted(known))}.")
        self.given: Mapping[str, Any] = given

    def text(self, name: str) -> str | None:
        """A text; nothing if the field is not there. Raises InvalidSettings, as all of these."""
        value = self.given.get(name)
        if value is not None and not isinstance(value, str):
            raise _wrong(name, value, "a text")
        return value

    def name(self, name: str) -> str | None:
        """A text that names something."""
        value = self.text(name)
        if value is not None and len(value) > MOST_NAMED:
            raise _wrong(name, value, f"a text of at most {MOST_NAMED} characters")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts; empty if the field is not there."""
        value = self.given.get(name, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise InvalidSettings(f"{name} must be a list of texts.")
        return tuple(value)

    def number(self, name: str, default: float) -> float:
        value = self.given.get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not _is_small(value):
            raise _wrong(name, value, "a number")
        return float(value)

    def whole(self, name: str, default: int) -> int:
        value = self.given.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not _is_small(value):
            raise _wrong(name, value, "a whole number")
        return value

    def flag(self, name: str) -> bool:
        """False if the field is not there."""
        value = self.given.get(name, False)
        if not isinstance(value, bool):
            raise _wrong(name, value, "true or false")
        return value

    def values(self, names: Iterable[str]) -> dict[str, Any]:
        """Those of the fields that are there, for a dataclass that checks them itself; here only that each is a plain
        value short enough to be repeated in a message."""
        found = {name: self.given[name] for name in names if name in self.given}
        for name, value in found.items():
            if isinstance(value, (list, dict)) or len(repr(value)) > MOST_NAMED:
                raise _wrong(name, value, "a number, a short text, true or false")
        return found


def _is_small(value: float) -> bool:
    return math.isfinite(value) if isinstance(value, float) else abs(value) < 2**63


def _wrong(name: str, value: object, kind: str) -> InvalidSettings:
    return InvalidSettings(f"{name} is {shown(value)}; it must be {kind}.")
