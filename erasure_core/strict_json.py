"""JSON from strangers: read in bounded memory, without the surprises that the standard parser lets through."""

from __future__ import annotations

import json
import math
import re
from typing import Any

MAX_DEPTH = 32
"""Brackets within brackets. A manifest needs five; far more would exhaust the stack of whoever walks through it."""
LONGEST_NUMBER = 20
"""Digits of an integer. More than any 64-bit number has, and the largest ones cannot even become a float."""
_TOKEN = re.compile(r'"[^"]*"?|[\[\]{},]')


def parse_json(text: str, max_items: int) -> Any:
    """Parse JSON that anyone may have written.

    Args:
        text: the JSON.
        max_items: most entries of all lists and objects together: each takes far more memory than its characters.

    Raises:
        ValueError: not JSON; nested too deep or too many entries; a name twice in one object, which parsers read
            differently; NaN or a number beyond float64, which are no JSON; half a character, which no file and no
            terminal takes.
    """
    _check_size(text, max_items)
    content = json.loads(
        text, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite_number, parse_int=_short_number
    )
    try:
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError("it spells half a character") from error
    return content


def _check_size(text: str, most: int) -> None:
    """Count brackets and commas outside of strings before anything is built."""
    depth = items = 0
    for token in _TOKEN.finditer(text.replace("\\\\", "").replace('\\"', "")):
        kind = token[0][0]
        if kind == '"':
            continue
        items += kind in "[{,"
        depth += (kind in "[{") - (kind in "]}")
        if depth > MAX_DEPTH or items > most:
            raise ValueError(f"it has more than {MAX_DEPTH} levels or {most} entries")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for name, value in pairs:
        if name in content:
            raise ValueError(f"the name {name[:80]!r} stands twice in it")
        content[name] = value
    return content


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def _finite_number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:80]} is too large a number")
    return value


def _short_number(text: str) -> int:
    if len(text) > LONGEST_NUMBER:
        raise ValueError(f"{text[:LONGEST_NUMBER]}… is too large a number")
    return int(text)
