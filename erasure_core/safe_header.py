"""Checks the header of a safetensors file that anyone may have written, before any of its data is touched."""

from __future__ import annotations

import math
from typing import Any

from .strict_json import parse_json

MAX_TENSORS = 20_000
MAX_ITEMS = 16 * MAX_TENSORS
"""Entries of the header's JSON: a tensor takes about twelve."""
MAX_NAME = 1000
"""Characters of a tensor's name. Names are shown in messages."""
MAX_SIDE = 2**40
WIDTHS = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL"), 1),
}
"""Bytes of one number of each type that is in use."""

Header = dict[str, dict[str, Any]]


def parse_header(text: bytes, body: int) -> Header:
    """Tensor name to dtype, shape and offsets, and ``__metadata__``, all of the right types.

    Args:
        text: the header's JSON.
        body: bytes behind the header, which the tensors must fill exactly.

    Raises:
        ValueError: what is wrong with it.
    """
    header = parse_json(text.decode("utf-8"), MAX_ITEMS)
    if not isinstance(header, dict):
        raise ValueError("its header is no object")
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    if len(tensors) > MAX_TENSORS:
        raise ValueError(f"it lists {len(tensors)} tensors, more than {MAX_TENSORS} are not accepted")
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata are not texts")
    for name, entry in tensors.items():
        _check_entry(name, entry)
    _check_places([entry["data_offsets"] for entry in tensors.values()], body)
    return header


def _is_count(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _check_entry(name: str, entry: Any) -> None:
    """Whether a tensor's entry has the right form and its shape fills its place."""
    if len(name) > MAX_NAME:
        raise ValueError(f"the name of a tensor is {len(name)} characters long ({name[:40]!r}…)")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"the entry of {name!r} does not describe a tensor")
    kind, shape, place = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or len(kind) > 16:
        raise ValueError(f"{name!r} has an invalid type")
    if not isinstance(shape, list) or not all(_is_count(side, MAX_SIDE) for side in shape) or len(shape) > 8:
        raise ValueError(f"{name!r} has an invalid shape")
    if not isinstance(place, list) or len(place) != 2 or not all(_is_count(end, 2**62) for end in place):
        raise ValueError(f"{name!r} has an invalid place in the file")
    if kind in WIDTHS and math.prod(shape) * WIDTHS[kind] != place[1] - place[0]:
        raise ValueError(f"{name!r} does not fill its place")


def _check_places(places: list[list[int]], body: int) -> None:
    """Whether tensors lie one behind the other, without gap or overlap, to the end of the file."""
    end = 0
    for place in sorted(places):
        if place[0] != end or place[1] < place[0]:
            raise ValueError("its tensors overlap or leave gaps")
        end = place[1]
    if end != body:
        raise ValueError(f"its tensors take {end} bytes, but it holds {body}")
